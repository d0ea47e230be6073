"""Number of labels from which on one configuration is better than another."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from palkit.errors import ConfigError
from palkit.studies.statistics import intervals, tables


class Crossing(NamedTuple):
    """Where differences that change with the number of labels go through 0.

    Attributes:
        labels: where the mean line is 0; NaN where the differences do not change with the labels beyond chance.
        low: end of its 95 % interval, 0 where that is open: the slope cannot be told from 0 then, and one configuration
            may be better at every number that was measured.
        high: likewise, infinite where that is open.
        slope: points of the metric per doubling of the labels, the mean over seeds.
        bend_p: p value of a test for a parabola's bend, NaN with fewer than three numbers of labels. Small, the lines
            are not straight, and the crossing means nothing; large, nothing is shown, for few seeds see little.
    """

    labels: float
    low: float
    high: float
    slope: float
    bend_p: float


def crossing(labels: ArrayLike, differences: ArrayLike) -> Crossing:
    """The number of labels at which paired differences go through 0.

    A straight line in the logarithm of the labels is fitted for each seed; the interval holds the numbers of labels at
    which the t interval of the mean line holds 0. It may end beyond the numbers that were measured.

    Args:
        labels: (L,) numbers of labels, two or more.
        differences: (S, L) of each seed at each of them.

    Raises:
        ConfigError: fewer than two seeds or numbers of labels.

    Source: Fieller, Some Problems in Interval Estimation, JRSS B 1954.

    >>> found = crossing([10, 100, 1000], [[-2.0, 0.1, 2.0], [-2.1, 0.0, 1.9], [-1.9, -0.1, 2.1]])
    >>> round(found.labels), round(found.low), round(found.high)
    (100, 85, 118)
    """
    x, y = np.log(np.asarray(labels, dtype=float)), np.asarray(differences, dtype=float)
    if y.ndim != 2 or min(y.shape) < 2:
        raise ConfigError(f"a crossing needs two seeds and two numbers of labels or more, not {y.shape}.")
    centre = x.mean()
    slope, level = np.polyfit(x - centre, y.T, 1)  # (S,)
    seeds = len(y)
    variance = stats.t.ppf(0.975, seeds - 1) ** 2 * np.cov(level, slope) / seeds  # (2, 2), times the square of t
    mean_level, mean_slope = level.mean(), slope.mean()
    bend_p = float("nan")
    if len(x) > 2:
        bend_p = float(stats.ttest_1samp(np.polyfit(x - centre, y.T, 2)[0], 0).pvalue)
    square = mean_slope**2 - variance[1, 1]
    if square <= 0:
        return Crossing(float("nan"), 0.0, float("inf"), mean_slope * np.log(2), bend_p)
    product, rest = mean_level * mean_slope - variance[0, 1], mean_level**2 - variance[0, 0]
    half = np.sqrt(max(product**2 - square * rest, 0.0))
    with np.errstate(over="ignore"):
        low, high = np.exp(centre + (np.array([-half, half]) - product) / square)
        labels_at_0 = np.exp(centre - mean_level / mean_slope)
    return Crossing(float(labels_at_0), float(low), float(high), mean_slope * np.log(2), bend_p)


def crossings(rounds: pd.DataFrame, reference: str, metric: str = "accuracy", by: str = "variant") -> pd.DataFrame:
    """From how many labels on every configuration is better than the reference, data set by data set.

    Args:
        rounds: the table of rounds; numbers of labels may be rounds of one run, or runs. A configuration
            may have fewer of them than the reference.
        reference: value of `by` that the others are compared with.
        metric: column to compare; for losses such as `nll`, lower is better.
        by: column that tells configurations apart.

    Returns:
        One row per data set and configuration: `dataset`, `by`, `n_seeds`, `fewest`, `most` (numbers of labels),
        `above_from`, the fewest labels from which on every 95 % t interval is above 0 (NaN for none), which takes no
        line to be straight; the fields of `Crossing`, and `gain`, `gain_low`, `gain_high` (better by, at the most
        labels) with `detectable`, the true difference there that the design finds four times in five.

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    return pd.DataFrame(
        {"dataset": dataset, by: name, **_compared(difference)}
        for dataset, name, difference in _pairs(rounds, reference, metric, by)
    )


def gain_curves(rounds: pd.DataFrame, reference: str, metric: str = "accuracy", by: str = "variant") -> pd.DataFrame:
    """Paired difference to the reference at every number of labels; arguments as of `crossings`.

    Returns:
        One row per data set, configuration and number of labels: `dataset`, `by`, `labels`, `n_seeds`, `mean`, `low`,
        `high` (95 % t interval over seeds, NaN for one).

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    parts = []
    for dataset, name, difference in _pairs(rounds, reference, metric, by):
        found = intervals.estimate([difference.to_numpy().T])
        low, high = found.interval()
        columns = {"labels": difference.index, "n_seeds": difference.shape[1], "mean": found.mean}
        parts.append(pd.DataFrame({"dataset": dataset, by: name, **columns, "low": low, "high": high}))
    return pd.concat(parts, ignore_index=True)


def _pairs(rounds: pd.DataFrame, reference: str, metric: str, by: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Data set, configuration and (labels, seeds) by how much it is better than the reference."""
    tables.validate(rounds, [by, "dataset"], metric)
    for dataset, table in rounds.groupby("dataset"):
        twice = table.loc[table.duplicated([by, "seed", "labels"]), "run"].unique()
        if len(twice):
            raise ConfigError(f"{dataset} has several runs of one {by}, seed and labels: filter {tables.some(twice)}.")
        values = tables.sign_of(metric) * table.pivot(index="labels", columns=[by, "seed"], values=metric)
        if reference not in values:
            raise ConfigError(f"no run of {dataset} has {by}={reference}, which the others are compared with.")
        for name in sorted(values.columns.unique(0).drop(reference)):
            ours = pd.DataFrame(values[name]).dropna(how="all")
            difference = ours - pd.DataFrame(values[reference]).loc[ours.index]
            if difference.isna().to_numpy().any():
                raise ConfigError(
                    f"{by}={name} and {by}={reference} do not pair on {dataset}: compare runs of the same seeds with "
                    "the same numbers of labels."
                )
            yield str(dataset), str(name), difference


def _compared(difference: pd.DataFrame) -> dict[str, Any]:
    """Crossing, and the gain at the most labels, of (labels, seeds) differences."""
    last = intervals.estimate([difference.iloc[-1].to_numpy()])
    low, high = intervals.mean_interval(difference.to_numpy().T)  # (labels,) each
    above = difference.index[np.logical_and.accumulate(low[::-1] > 0)[::-1]]
    found = crossing(difference.index, difference.to_numpy().T)
    return {
        "n_seeds": difference.shape[1], "fewest": difference.index[0], "most": difference.index[-1],
        "above_from": above.min(), **found._asdict(),
        "gain": float(last.mean), "gain_low": float(low[-1]), "gain_high": float(high[-1]),
        "detectable": last.detectable(),
    }  # fmt: skip
