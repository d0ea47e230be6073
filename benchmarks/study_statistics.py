"""CPU seconds that the statistics of a study of 1,000 runs take. Its numbers are made up: for timing only.

    OMP_NUM_THREADS=1 python benchmarks/study_statistics.py [--rounds 20]

2 adapters, 10 strategies, 5 seeds, 10 data sets; every statistic of the study, on one core. CPU
seconds, so that other work on the machine does not count.
"""

import argparse
import time
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd

from palkit.models.metrics import recalls_of
from palkit.studies import statistics

ADAPTERS = ("linear_probe", "lora")
STRATEGIES = ("random", "entropy", "margin", "featdist", "coreset", "badge", "bald", "typiclust", "probcover", "bait")
SEEDS = range(5)
DATASETS = tuple(f"made_up_{number}" for number in range(10))
CLASSES, BATCH, TEST_ROWS = 10, 10, 1000
LORA_BADGE, LORA_RANDOM = ({"adapter": "lora", "strategy": name} for name in ("badge", "random"))


def made_up_rounds(rounds: int) -> pd.DataFrame:
    """A table of rounds of saturating curves with noise."""
    rng = np.random.default_rng(0)
    steps = np.arange(rounds)
    parts = []
    for dataset, adapter, strategy, seed in product(DATASETS, ADAPTERS, STRATEGIES, SEEDS):
        level = 0.3 + 0.02 * DATASETS.index(dataset) + 0.005 * STRATEGIES.index(strategy)
        columns = {
            "run": f"{dataset}-{adapter}-{strategy}-{seed}",
            "dataset": dataset,
            "backbone": "made_up",
            "adapter": adapter,
            "strategy": strategy,
            "balance": "none",
            "seed": seed,
            "round": steps,
            "labels": BATCH * (steps + 1),
            "accuracy": level + 0.4 * (1 - np.exp(-steps / 5)) + rng.normal(0, 0.01, rounds),
            **{cost: rng.random(rounds) for cost in ("fit_s", "score_s", "select_s")},
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def made_up_selections(rounds: pd.DataFrame) -> pd.DataFrame:
    """What the runs of one data set bought."""
    rng = np.random.default_rng(0)
    runs = rounds[rounds["dataset"] == DATASETS[0]]
    repeated = runs.loc[runs.index.repeat(BATCH), ["run", "adapter", "strategy", "seed", "round"]]
    positions = [rng.permutation(5000)[: len(rows)] for _, rows in repeated.groupby("run", sort=False)]
    return repeated.assign(position=np.concatenate(positions))


def made_up_predictions(rounds: int) -> list[pd.DataFrame]:
    rng = np.random.default_rng(0)
    columns = ["label", "predicted"]
    return [
        pd.DataFrame(rng.integers(CLASSES, size=(TEST_ROWS, 2)), columns=columns).assign(round=number)
        for number in range(rounds)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of every run")
    count = parser.parse_args().rounds
    rounds, predictions = made_up_rounds(count), made_up_predictions(count)
    selections = made_up_selections(rounds)
    lora = selections[selections["adapter"] == "lora"]
    labels = list(range(1, count + 1))
    first = rounds[rounds["dataset"] == DATASETS[0]]
    each = ("dataset", *statistics.GROUP)
    calls: dict[str, Callable[[], object]] = {
        "budget curves, every data set": lambda: statistics.curves(rounds, by=each),
        "IQM curves, over data sets": lambda: statistics.iqm_curves(rounds),
        "IQM curves, every data set": lambda: statistics.iqm_curves(rounds, by=each),
        "IQM of gains over random": lambda: statistics.iqm_curves(statistics.gains(rounds)),
        "table of areas": lambda: statistics.area_table(rounds),
        "summary": lambda: statistics.summarise(rounds, by=each),
        "areas and costs": lambda: statistics.area_costs(rounds, by=each),
        "label saving, one data set": lambda: statistics.label_saving(first),
        "pairwise penalties": lambda: statistics.penalty_matrix(rounds),
        "ranks": lambda: statistics.rank_strategies(rounds),
        "paired difference": lambda: statistics.paired_difference(first, LORA_BADGE, LORA_RANDOM),
        "selections in common, one data set": lambda: statistics.selection_overlap(lora),
        "recalls, 1 run": lambda: recalls_of(predictions, labels),
    }
    print(f"{rounds['run'].nunique()} made-up runs of {count} rounds")
    total = 0.0
    for name, call in calls.items():
        began = time.process_time()
        call()
        seconds = time.process_time() - began
        total += seconds
        print(f"{seconds:7.2f} s  {name}", flush=True)
    print(f"{total:7.2f} s  in total")


if __name__ == "__main__":
    main()
