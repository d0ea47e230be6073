"""Readouts of frozen features on the paper's images, by image size, depth and pooling: figures/recipe/readouts.csv.

    python campaigns/readouts.py figures/recipe/readouts.csv    # 15 minutes; needs the images, docs/images.md

Accuracy on validation images, of at most 1,500 images of the pool and 1,000 for validation; the linear readout has five
labels per class, mean of 20 draws. Nothing of a test split is used.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from palkit.config import ExperimentConfig
from palkit.data.pool import without
from palkit.experiments.setting import pool_of
from palkit.models.backbones import BackboneConfig
from palkit.storage.files import atomic_path
from palkit.studies.readouts import readout_table

SIZES = {"histology": (42, 56, 84, 112, 168), "eurosat": (42, 56, 84, 112), "idrid_unique": (56, 84, 112, 168, 224)}
VALIDATION, DRAWS, LABELS_PER_CLASS = 1000, 20, 5


def readouts(name: str, sizes: tuple[int, ...]) -> pd.DataFrame:
    """`readout_table` of a data set, with its name."""
    pool = pool_of(ExperimentConfig(dataset=name))  # 1,500 images, or all
    pool = without(pool, np.random.default_rng(0).permutation(pool.rows("val"))[VALIDATION:])
    labels = LABELS_PER_CLASS * len(pool.class_names)
    table, _ = readout_table(pool, BackboneConfig(image_size=sizes[0]), sizes, labels=labels, draws=DRAWS)
    return table.drop(columns="cost").assign(dataset=name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    found = pd.concat([readouts(name, sizes) for name, sizes in SIZES.items()])
    columns = ["dataset", "image_size", "depth", "pooling", "tokens", "probe", "accuracy"]
    with atomic_path(out) as temporary:
        found.sort_values(columns[:-1])[columns].round(4).to_csv(temporary, index=False)
