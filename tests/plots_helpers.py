"""Tables to draw, and what a figure shows, as the tests of figures share them."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

STRATEGIES = ["random", "entropy", "margin", "featdist", "coreset", "badge"]
CLASSES = ["shirt", "ankle_boot", "bag"]


def table(seeds: int = 3) -> pd.DataFrame:
    """2 adapters x 6 strategies x seeds x 7 rounds."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "run": f"{adapter}-{strategy}-{seed}",
            "dataset": "toy",
            "backbone": "vit",
            "adapter": adapter,
            "strategy": strategy,
            "balance": "none",
            "seed": seed,
            "round": number,
            "labels": 10 * (number + 1),
            "accuracy": 0.3 + 0.06 * number + 0.01 * gain * (number > 0) + 0.01 * rng.random(),
            "nll": 2 - 0.2 * number,
            "fit_s": 10.0 + number,
            "score_s": 5.0,
            "select_s": 1.0 + gain,
        }
        for adapter in ("linear_probe", "lora")
        for gain, strategy in enumerate(STRATEGIES)
        for seed in range(seeds)
        for number in range(7)
    ]
    return pd.DataFrame(rows)


def depth_table() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"image_size": size, "depth": depth, "pooling": pooling, "probe": probe, "accuracy": accuracy}
            for size in (28, 56)
            for depth in (12, 8, 4)
            for number, pooling in enumerate(("cls", "mean"))
            for probe in ("kNN", "logistic")
            for accuracy in [0.5 + size / 1000 - 0.01 * abs(depth - 8) + 0.05 * number]
        ]
    )


def names(ticks: list) -> list[str]:
    return [tick.get_text() for tick in ticks]


def line_of(axes: Axes, label: str) -> matplotlib.lines.Line2D:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return line
