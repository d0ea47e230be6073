"""Quality against cost: the seconds of a run, and the front of what nothing beats."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from palkit.studies.statistics.intervals import summarise
from palkit.studies.statistics.tables import GROUP, SETTING

SECONDS = ("fit_s", "score_s", "select_s")  # what a round takes
CHOICE = ("strategy", "balance")  # what decides which images are bought, and not how long a fit takes


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
    """Area under the budget curve of every group beside the seconds of one of its runs.

    Runs are made one after the other on a machine that does other things, and the first ones fill caches. So fitting,
    which takes the same whatever strategy chose the images, is averaged over all strategies of an adapter, and for
    scoring and selecting the median over the runs counts.

    Args:
        rounds: the table of rounds, with `fit_s`, `score_s`, `select_s`.
        metric: column to summarise.
        by: columns that tell groups apart.

    Returns:
        As `summarise`, and `seconds` of a run, summed over rounds.

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    summary = summarise(rounds, metric, by)
    alike = list(dict.fromkeys([*(name for name in by if name not in CHOICE), *SETTING[:2]]))
    spent = rounds.groupby(list(dict.fromkeys([*by, *alike, "run"])), dropna=False)[list(SECONDS)].sum().reset_index()
    spent["fit_s"] = spent.groupby(alike, dropna=False)["fit_s"].transform("mean")
    spent["choice_s"] = spent["score_s"] + spent["select_s"]
    groups = spent.groupby(list(by), dropna=False)
    seconds = (groups["fit_s"].mean() + groups["choice_s"].median()).rename("seconds")
    return summary.merge(seconds.reset_index(), on=list(by))
