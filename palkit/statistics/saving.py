"""How many labels a configuration saves."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from palkit.errors import ConfigError
from palkit.statistics.tables import (
    GROUP,
    REFERENCE,
    RESAMPLES,
    TIE,
    groups,
    name_of,
    pick,
    seed_curves,
    sign_of,
    validate,
)


def label_saving(
    rounds: pd.DataFrame,
    reference: Mapping[str, Hashable] = REFERENCE,
    metric: str = "accuracy",
    by: Sequence[str] = GROUP,
) -> pd.DataFrame:
    """How many times fewer labels a group needs to reach the final value of the reference.

    Both counts are where the mean curve first reaches the target, linearly between rounds. A group that is
    there at its first round counts its initial labels, so its saving is a lower bound. A reference whose
    curve passes its own final value earlier counts from there.

    Args:
        rounds: the table of rounds.
        reference: column values that pick the reference configuration.
        metric: column to compare.
        by: columns that tell groups apart.

    Returns:
        One row per group: `by`, `metric` (its name), `target`, `reference_labels`, `labels_needed`, `saving`
        (`reference_labels / labels_needed`); the last two are NaN if the group never reaches the target.

    Raises:
        ConfigError: the table cannot be used, or the reference is not in it.
    """
    validate(rounds, [*by, *reference], metric)
    reference_curve = seed_curves(pick(rounds, reference), metric, name_of(reference)).mean(axis=1)
    target = float(reference_curve.iloc[-1])
    reference_labels = _labels_to_reach(reference_curve, target, sign_of(metric))
    rows = []
    for key, table in groups(rounds, metric, by):
        needed = _labels_to_reach(table.mean(axis=1), target, sign_of(metric))
        rows.append(
            {
                **key,
                "metric": metric,
                "target": target,
                "reference_labels": reference_labels,
                "labels_needed": needed,
                "saving": reference_labels / needed,
            }
        )
    return pd.DataFrame(rows)


def label_saving_intervals(
    rounds: pd.DataFrame,
    reference: Mapping[str, Hashable] = REFERENCE,
    metric: str = "accuracy",
    by: Sequence[str] = GROUP,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The table of `label_saving` with percentile bootstrap intervals over paired seeds.

    A resample draws seeds and takes the mean curves of group and reference, and the reference's target, from these
    same seeds. Where the group does not reach the target its saving counts as 0, so an interval that begins at 0
    says that it may not reach it within the budget at all. As every bootstrap of few seeds, it is too narrow.

    Args:
        rounds: the table of rounds.
        reference: column values that pick the reference configuration.
        metric: column to compare.
        by: columns that tell groups apart.
        confidence: coverage asked for.

    Returns:
        As `label_saving`, and `saving_low`, `saving_high` and `reached` (share of resamples that reach the target);
        NaN for one seed.

    Raises:
        ConfigError: as `label_saving`, or a group does not have the seeds of the reference.
    """
    table = label_saving(rounds, reference, metric, by)
    base = seed_curves(pick(rounds, reference), metric, name_of(reference))
    seeds = len(base.columns)
    drawn = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))
    sign = sign_of(metric)
    base_curves = _mean_curves(base, drawn)
    reference_labels = _first_reached(base.index.to_numpy(float), sign * base_curves, sign * base_curves[:, -1])
    tail = (1 - confidence) / 2
    rows = []
    for key, curves in groups(rounds, metric, by):
        if set(curves.columns) != set(base.columns):
            raise ConfigError(
                f"{name_of(key)} and the reference {name_of(reference)} do not pair: seeds {list(curves.columns)} and "
                f"{list(base.columns)}. Run the missing seeds or drop them from the table."
            )
        needed = _first_reached(
            curves.index.to_numpy(float), sign * _mean_curves(curves, drawn), sign * base_curves[:, -1]
        )
        low, high = np.quantile(reference_labels / needed, (tail, 1 - tail))
        rows.append((low, high, np.isfinite(needed).mean()) if seeds > 1 else (np.nan,) * 3)
    return table.join(pd.DataFrame(rows, columns=["saving_low", "saving_high", "reached"]))


def _mean_curves(table: pd.DataFrame, drawn: NDArray) -> NDArray:
    """(resamples, label counts) mean curves of the seeds drawn."""
    return table.to_numpy(float).T[drawn].mean(axis=1)


def _labels_to_reach(curve: pd.Series, target: float, sign: int) -> float:
    """Label count at which a curve first reaches the target, linearly between rounds; NaN if it does not."""
    labels, values = curve.index.to_numpy(float), sign * curve.to_numpy()
    (needed,) = _first_reached(labels, values[None], np.array([sign * target]))
    return float(needed) if np.isfinite(needed) else float("nan")


def _first_reached(labels: NDArray, values: NDArray, goals: NDArray) -> NDArray:
    """(curves,) label counts at which each first reaches its goal, linearly between rounds; infinite if it does not.

    Args:
        labels: (rounds,)
        values: (curves, rounds), higher is better.
        goals: (curves,)
    """
    reached = values >= goals[:, None] - TIE
    after = reached.argmax(axis=1)
    before = np.maximum(after - 1, 0)
    row = np.arange(len(values))
    rise = values[row, after] - values[row, before]
    slope = (labels[after] - labels[before]) / np.where(after > 0, rise, 1)
    between = slope * (goals - values[row, before]) + labels[before]
    # A goal reached at the first round, or but for the last bits, is reached at the round itself.
    needed = np.where((after > 0) & (goals < values[row, after]), between, labels[after])
    return np.where(reached.any(axis=1), needed, np.inf)
