"""What quality costs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from palkit.errors import ConfigError
from palkit.studies.statistics.intervals import summarise
from palkit.studies.statistics.tables import GROUP

SECONDS = ("fit_s", "score_s", "select_s")  # what a round takes


def pareto_front(cost: ArrayLike, value: ArrayLike) -> NDArray[np.bool_]:
    """(n,) whether no other configuration has more value at no more cost, or the same value at less.

    Args:
        cost: (n,) lower is better.
        value: (n,) higher is better.
    """
    c, v = np.asarray(cost, dtype=float), np.asarray(value, dtype=float)
    worse = ((c[None] <= c[:, None]) & (v[None] > v[:, None])) | ((c[None] < c[:, None]) & (v[None] >= v[:, None]))
    return np.logical_not(worse.any(axis=1))


def area_costs(rounds: pd.DataFrame, metric: str = "accuracy", by: Sequence[str] = GROUP) -> pd.DataFrame:
    """Area under the budget curve of every group beside the mean seconds of one of its runs.

    Args:
        rounds: the table of rounds, with `fit_s`, `score_s`, `select_s`.
        metric: column to summarise.
        by: columns that tell groups apart.

    Returns:
        As `summarise`, and `seconds` (fit, score and select, summed over rounds, mean over runs).

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    missing = [column for column in SECONDS if column not in rounds.columns]
    if missing:
        raise ConfigError(f"the table of rounds lacks the columns {', '.join(missing)}.")
    summary = summarise(rounds, metric, by)
    spent = rounds.assign(seconds=rounds[list(SECONDS)].sum(axis=1))
    per_run = spent.groupby([*by, "run"], dropna=False)["seconds"].sum()
    return summary.merge(per_run.groupby(level=list(by), dropna=False).mean().reset_index(), on=list(by))
