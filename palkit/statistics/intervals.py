"""Areas under budget curves, and means with bootstrap intervals over seeds."""

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, stats

from palkit.errors import ConfigError
from palkit.statistics.tables import GROUP, TIE, groups, name_of, pick, seed_curves, sign_of, validate


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
        found = "there is one round" if x.shape == y.shape == (1,) else f"there are {x.size} counts and {y.size} values"
        raise ConfigError(
            f"an area under the budget curve needs two or more rounds, each with a label count and a value; {found}."
        )
    if not (np.diff(x) > 0).all():
        raise ConfigError(f"label counts must increase from round to round, got {x.tolist()}.")
    return float(integrate.trapezoid(y, x) / (x[-1] - x[0]))


def bootstrap_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[NDArray, NDArray]:
    """Percentile bootstrap interval of the mean over the first axis, the same for the same values.

    With n values there are only n^n resamples (27 for 3 seeds), and the interval cannot reach beyond the
    smallest and largest value: for few seeds it is far too narrow (for 3, nearly the range of the seeds).

    Args:
        values: (seeds, ...) one row per seed.
        confidence: coverage asked for.

    Returns:
        low and high, each of the shape of one row; NaN for a single seed.

    Source: Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 1979.
    """
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        nan = np.full(array.shape[1:], np.nan)
        return nan, nan
    low, high = _interval(array.tobytes(), array.shape, confidence)
    return low.copy(), high.copy()


@lru_cache(maxsize=4096)  # tables and figures of a study ask for the same intervals
def _interval(values: bytes, shape: tuple[int, ...], confidence: float) -> tuple[NDArray, NDArray]:
    array = np.frombuffer(values).reshape(shape)
    interval = stats.bootstrap(
        (array,), np.mean, axis=0, confidence_level=confidence, method="percentile", rng=0
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


def summarise(rounds: pd.DataFrame, metric: str = "accuracy", by: Sequence[str] = GROUP) -> pd.DataFrame:
    """Final value and area under the budget curve of every group, with 95 % bootstrap intervals over seeds.

    With 3 seeds an interval is hardly more than the range of the three values (see `bootstrap_interval`):
    it shows the spread, it does not support a claim of significance.

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
    for key, table in groups(rounds, metric, by):
        final, areas = table.iloc[-1].to_numpy(), areas_of(table)
        (final_low, aubc_low), (final_high, aubc_high) = bootstrap_interval(np.stack([final, areas], axis=1))
        rows.append(
            {
                **key,
                "metric": metric,
                "n_seeds": table.shape[1],
                "labels": table.index[-1],
                "final": final.mean(),
                "final_low": float(final_low),
                "final_high": float(final_high),
                "aubc": areas.mean(),
                "aubc_low": float(aubc_low),
                "aubc_high": float(aubc_high),
            }
        )
    return pd.DataFrame(rows)


def curves(rounds: pd.DataFrame, metric: str = "accuracy", by: Sequence[str] = GROUP) -> pd.DataFrame:
    """Mean budget curve of every group with pointwise 95 % bootstrap intervals over seeds.

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
    for key, table in groups(rounds, metric, by):
        low, high = bootstrap_interval(table.to_numpy().T)
        mean = table.mean(axis=1).to_numpy()
        band = {"labels": table.index, "mean": mean, "low": low, "high": high, "n_seeds": table.shape[1]}
        parts.append(pd.DataFrame({**key, **band}))
    return pd.concat(parts, ignore_index=True)


def paired_difference(
    rounds: pd.DataFrame,
    a: Mapping[str, Hashable],
    b: Mapping[str, Hashable],
    metric: str = "accuracy",
) -> pd.DataFrame:
    """Difference a - b on the same seeds, of the area under the budget curve and of the final value.

    Args:
        rounds: the table of rounds.
        a: column values that pick one configuration, e.g. `{"adapter": "lora", "strategy": "badge"}`.
        b: the same for the other configuration.
        metric: column to compare.

    Returns:
        Rows `aubc` and `final`; columns `mean` (of a - b), `low`, `high` (95 % bootstrap over seeds, NaN for
        one seed), `wins`, `ties`, `losses` (seeds on which a is better, the same, worse; for losses such as
        `nll`, lower is better) and `n_seeds`.

    Raises:
        ConfigError: a value does not occur, or a and b lack a common set of seeds or label counts.
    """
    validate(rounds, [*a, *b], metric)
    left = seed_curves(pick(rounds, a), metric, name_of(a))
    right = seed_curves(pick(rounds, b), metric, name_of(b))
    if set(left.columns) != set(right.columns):
        raise ConfigError(
            f"{name_of(a)} and {name_of(b)} do not pair: seeds {_missing(left.columns, right.columns)} only in "
            f"the first, {_missing(right.columns, left.columns)} only in the second. Run the missing seeds "
            "or drop them from the table."
        )
    if list(left.index) != list(right.index):
        raise ConfigError(
            f"{name_of(a)} and {name_of(b)} do not pair: label counts {list(left.index)} and {list(right.index)} "
            "differ. Compare runs with the same budget."
        )
    sign = sign_of(metric)
    rows = []
    for measure, difference in (
        ("aubc", areas_of(left) - areas_of(right)),
        ("final", left.iloc[-1].to_numpy() - right.iloc[-1].to_numpy()),
    ):
        low, high = bootstrap_interval(difference)
        rows.append(
            {
                "measure": measure,
                "mean": difference.mean(),
                "low": float(low),
                "high": float(high),
                "wins": int((sign * difference > TIE).sum()),
                "ties": int((abs(difference) <= TIE).sum()),
                "losses": int((sign * difference < -TIE).sum()),
                "n_seeds": len(difference),
            }
        )
    return pd.DataFrame(rows).set_index("measure")


def areas_of(table: pd.DataFrame) -> NDArray:
    """(S,) area under the curve of each column, a seed, over the index, labels."""
    return np.array([area_under_curve(table.index, table[seed]) for seed in table])


def _missing(here: pd.Index, there: pd.Index) -> list:
    return sorted(set(here) - set(there))
