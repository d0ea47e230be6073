"""Rows of made-up runs, as the tests of statistics share them."""

from collections.abc import Sequence

import pandas as pd

LABELS = (10, 20, 40)


def run(
    values: Sequence[float],
    seed: int = 0,
    labels: Sequence[int] = LABELS,
    metric: str = "accuracy",
    **config: str,
) -> pd.DataFrame:
    """Rows of one run; `config` overrides what was run."""
    what = {
        "dataset": "toy",
        "backbone": "vit",
        "adapter": "lora",
        "strategy": "random",
        "balance": "none",
        **config,
    }
    name = "-".join(what.values()) + f"-{seed}"
    return pd.DataFrame(
        {"run": name, **what, "seed": seed, "round": range(len(values)), "labels": labels, metric: values}
    )


def table(*runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of several runs, in reverse: no function may count on their order."""
    return pd.concat(runs)[::-1].reset_index(drop=True)
