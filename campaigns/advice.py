"""Gains of strategies over random on every data set that was studied, into figures/advice, for `palkit doctor`.

python campaigns/advice.py    # a minute; needs the images of the sweep `ood`, docs/images.md
"""

import pandas as pd

from palkit.data import load_dataset
from palkit.experiments.results import FIGURES, read_results
from palkit.storage.formats import write_table
from palkit.studies.advice import EVIDENCE, gains_of, imbalance_of

SWEEPS = ("ood", "default")
TWICE = ("histology_slides",)  # the images of another data set

if __name__ == "__main__":
    tables = []
    for sweep in SWEEPS:
        rounds = read_results(FIGURES / sweep).rounds
        rounds = rounds[~rounds["dataset"].isin(TWICE)]
        pools = {str(name): load_dataset(str(name)) for name in rounds["dataset"].unique()}
        classes = {name: len(pool.class_names) for name, pool in pools.items()}
        imbalance = {name: imbalance_of(pool.labels[pool.rows("pool")]) for name, pool in pools.items()}
        tables.append(gains_of(rounds, classes, imbalance))
    write_table(pd.concat(tables, ignore_index=True), EVIDENCE)
