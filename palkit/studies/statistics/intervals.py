"""Areas under budget curves, and means with Student's t intervals, which cover with few seeds too.

Measured coverage of the nominal 95 % with normal seeds: 0.95 for 3, 5 and 10, and for 4 data sets of 5 seeds.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize, stats

from palkit.errors import ConfigError
from palkit.studies.statistics import tables


def area_under_curve(labels: ArrayLike, metric: ArrayLike) -> float:
    """Area under the budget curve by the trapezoid rule, divided by the range of labels.

    The result has the metric's own scale: a constant curve has its own value.

    Args:
        labels: (R,) labels bought, strictly increasing.
        metric: (R,) value of the metric at each.

    Raises:
        ConfigError: the two differ in length, there are fewer than two points, or labels do not increase.

    Source: Zhan et al., A Comparative Survey: Benchmarking for Pool-based Active Learning, IJCAI 2021.
    """
    x, y = np.asarray(labels, dtype=float), np.asarray(metric, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ConfigError(
            f"an area under the budget curve needs two or more rounds, each with a label count and a value; there are "
            f"{x.size} counts and {y.size} values."
        )
    if not (np.diff(x) > 0).all():
        raise ConfigError(f"label counts must increase from round to round, got {x.tolist()}.")
    return float(integrate.trapezoid(y, x) / (x[-1] - x[0]))


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, for Student's t; each attribute has the shape of one value.

    Attributes:
        mean: the estimate.
        error: its standard error; NaN where a sample has one value.
        df: degrees of freedom of the error.
    """

    mean: NDArray
    error: NDArray
    df: NDArray

    def interval(self, confidence: float = 0.95) -> tuple[NDArray, NDArray]:
        """Low and high ends of the interval that holds the true mean with probability `confidence`."""
        half = stats.t.ppf((1 + confidence) / 2, self.df) * self.error
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> NDArray:
        """Of the two-sided test that the true mean is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = np.where(abs(self.mean) <= tables.TIE, 0, abs(self.mean) / self.error)
        return np.minimum(2 * stats.t.sf(statistic, self.df), 1)

    def detectable(self, level: float = 0.05, power: float = 0.8) -> float:
        """Smallest true difference from 0 that a two-sided test at `level` finds with probability `power`.

        Of a single value, with the error as it was measured.
        """
        critical = stats.t.isf(level / 2, self.df)
        # Noncentrality at which the test has the power; the other tail adds nothing there.
        found = optimize.brentq(
            lambda shift: stats.nct.sf(critical, self.df, shift) - power, 0, 3 * critical + 10, xtol=1e-6
        )
        return float(found * self.error)


def estimate(samples: Sequence[ArrayLike]) -> Estimate:
    """Mean over samples of their means, each sample with its own variance; of one sample, its mean.

    With a sample per data set and a value per seed it speaks of these data sets with other seeds. To speak of data sets
    in general, give one sample whose values are the data sets' means.

    Args:
        samples: (values, ...) each.

    Source: Welch, The Generalization of Student's Problem when Several Different Population Variances are Involved,
    Biometrika 1947 (with Satterthwaite's degrees of freedom; of one sample, Student's t).
    """
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    mean = np.mean([array.mean(axis=0) for array in arrays], axis=0)
    if min(map(len, arrays)) < 2:
        nothing = np.full_like(mean, np.nan)
        return Estimate(mean, nothing, nothing)
    freedom = np.array([len(array) - 1 for array in arrays], dtype=float).reshape(-1, *[1] * mean.ndim)
    squares = np.stack([array.var(axis=0, ddof=1) / len(array) for array in arrays])
    return Estimate(mean, np.sqrt(squares.sum(axis=0)) / len(arrays), pooled_freedom(squares, freedom))


def pooled_freedom(squares: NDArray, freedom: NDArray) -> NDArray:
    """(...) Satterthwaite's degrees of freedom of a sum of squares.

    Args:
        squares: (samples, ...) parts of the sum.
        freedom: (samples, ...) degrees of freedom of each, or what broadcasts to it.
    """
    total = squares.sum(axis=0)
    shares = np.divide(squares, total, out=np.full_like(squares, 1 / len(squares)), where=total > 0)
    return 1 / (shares**2 / freedom).sum(axis=0)


def mean_interval(values: ArrayLike) -> tuple[NDArray, NDArray]:
    """Student's 95 % t interval of the mean over the first axis, for values that are about normal.

    Args:
        values: (seeds, ...) one row per seed.

    Returns:
        low and high, each of the shape of one row; NaN for a single seed.

    Source: Student, The Probable Error of a Mean, Biometrika 1908.
    """
    return estimate([values]).interval()


def with_ends(name: str, values: NDArray) -> dict[str, float]:
    """Mean of (seeds,) values and the ends of its interval, as the columns `name`, `name_low`, `name_high`."""
    low, high = mean_interval(values)
    return {name: values.mean(), f"{name}_low": float(low), f"{name}_high": float(high)}


def summarise(rounds: pd.DataFrame, metric: str = "accuracy", by: Sequence[str] = tables.GROUP) -> pd.DataFrame:
    """Final value and area under the budget curve of every group, with 95 % t intervals over seeds.

    Args:
        rounds: the table of rounds.
        metric: column to summarise.
        by: columns that tell groups apart.

    Returns:
        One row per group: `by`, `metric` (its name), `n_seeds`, `labels` (bought at the end), `final`,
        `final_low`, `final_high`, `aubc`, `aubc_low`, `aubc_high`; intervals are NaN for one seed.

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    rows = []
    for key, table in tables.groups(rounds, metric, by):
        row = {**key, "metric": metric, "n_seeds": table.shape[1], "labels": table.index[-1]}
        values = np.stack([table.iloc[-1].to_numpy(), areas_of(table)], axis=1)
        for name, own, low, high in zip(("final", "aubc"), values.T, *mean_interval(values), strict=True):
            row |= {name: own.mean(), f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def curves(rounds: pd.DataFrame, metric: str = "accuracy", by: Sequence[str] = tables.GROUP) -> pd.DataFrame:
    """Mean budget curve of every group with pointwise 95 % t intervals over seeds.

    Args:
        rounds: the table of rounds.
        metric: column to average.
        by: columns that tell groups apart.

    Returns:
        One row per group and label count: `by`, `labels`, `mean`, `low`, `high`, `n_seeds`.

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    parts = []
    for key, table in tables.groups(rounds, metric, by):
        low, high = mean_interval(table.to_numpy().T)
        mean = table.mean(axis=1).to_numpy()
        band = {"labels": table.index, "mean": mean, "low": low, "high": high, "n_seeds": table.shape[1]}
        parts.append(pd.DataFrame({**key, **band}))
    return pd.concat(parts, ignore_index=True)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being a family, in the same order.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


def paired_difference(
    rounds: pd.DataFrame, a: Mapping[str, Hashable], b: Mapping[str, Hashable], metric: str = "accuracy"
) -> pd.DataFrame:
    """Difference a - b on the same seeds, of the area under the budget curve and of the final value.

    Args:
        rounds: the table of rounds.
        a: column values that pick one configuration, e.g. `{"adapter": "lora", "strategy": "badge"}`.
        b: the same for the other configuration.
        metric: column to compare.

    Returns:
        Rows `aubc` and `final`; columns `mean` (of a - b), `low`, `high` (95 % t interval over seeds, NaN
        for one seed), `wins`, `ties`, `losses` (seeds on which a is better, the same, worse; for losses such as
        `nll`, lower is better), `n_seeds` and `p` (two-sided t test, NaN for one seed).

    Raises:
        ConfigError: a value does not occur, or a and b lack a common set of seeds or label counts.
    """
    tables.validate(rounds, [*a, *b], metric)
    left = tables.seed_curves(tables.pick(rounds, a), metric, tables.name_of(a))
    right = tables.seed_curves(tables.pick(rounds, b), metric, tables.name_of(b))
    tables.check_pairs(a, left, b, right)
    if list(left.index) != list(right.index):
        raise ConfigError(
            f"{tables.name_of(a)} and {tables.name_of(b)} do not pair: label counts {list(left.index)} and "
            f"{list(right.index)} differ. Compare runs with the same budget."
        )
    sign = tables.sign_of(metric)
    rows = []
    final = left.iloc[-1].to_numpy() - right.iloc[-1].to_numpy()
    for measure, difference in (("aubc", areas_of(left) - areas_of(right)), ("final", final)):
        found = estimate([difference])
        mean, (low, high), p = float(found.mean), map(float, found.interval()), float(found.p_value)
        wins, losses = int((sign * difference > tables.TIE).sum()), int((sign * difference < -tables.TIE).sum())
        rows.append((measure, mean, low, high, wins, len(difference) - wins - losses, losses, len(difference), p))
    columns = ["measure", "mean", "low", "high", "wins", "ties", "losses", "n_seeds", "p"]
    return pd.DataFrame(rows, columns=columns).set_index("measure")


def areas_of(table: pd.DataFrame) -> NDArray:
    """(S,) area under the curve of each column, a seed, over the index, labels."""
    return np.array([area_under_curve(table.index, table[seed]) for seed in table])
