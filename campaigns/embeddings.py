"""A published table from features as a data set: MNIST as VAE embeddings, logistic regression, balanced random labels.

    python campaigns/embeddings.py mnist_vae.npz    # half a minute

The archive is that of github.com/fbickfordsmith/vae-embeddings (MIT): features_train, labels_train, features_test,
labels_test. Published are means and deviations of test accuracy over 20 seeds, see docs/features.md. Standardisation by
the pool, logistic regression with C = 1: the penalty of a mean loss of L labels is then 1 / L, which `head_decay` over
the root of L is for 1 over that root.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import palkit
from palkit.storage.files import cache_dir

PUBLISHED = {10: (44.30, 5.34), 50: (72.68, 2.71), 100: (81.75, 1.74), 200: (86.95, 0.80), 500: (90.24, 0.52)}
SEEDS = range(20)


def as_data_set(archive: Path) -> Path:
    """The archive's arrays in one file of features, with the split."""
    path = cache_dir() / "features" / "mnist_vae.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with np.load(archive) as found:
        arrays = {part: [found[f"{part}_{split}"] for split in ("train", "test")] for part in ("features", "labels")}
    split = np.repeat(["train", "test"], [len(part) for part in arrays["labels"]])
    np.savez(path, split=split, **{part: np.concatenate(both) for part, both in arrays.items()})
    return path


def accuracy(path: Path, labels: int, seed: int) -> float:
    """Test accuracy in % of so many labels, as many of each class, drawn at random."""
    training = {"head": "logistic", "head_decay": labels**-0.5}
    first = {"initial": "class_balanced_oracle", "batch_size": labels, "rounds": 1, "pool_size": None}
    run = palkit.run(dataset=str(path), adapter="linear_probe", training=training, seed=seed, **first)
    (only,) = run
    return 100 * only.metrics["accuracy"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("archive", type=Path)
    path = as_data_set(parser.parse_args().archive)
    rows = []
    for labels, (mean, deviation) in PUBLISHED.items():
        found = [accuracy(path, labels, seed) for seed in SEEDS]
        rows.append((labels, np.mean(found), np.std(found, ddof=1), mean, deviation))
    columns = ["labels", "mean", "deviation", "published mean", "published deviation"]
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))
