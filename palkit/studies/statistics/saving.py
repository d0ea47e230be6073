"""Labels that a configuration saves against a reference.

The count of labels at which a noisy curve first reaches a noisy final value favours whoever is lucky: of two identical
strategies the one that gets there at all does so 1.27 times as early. Here both mean curves are made monotone, many
targets are compared instead of one, on the range that both curves reach, and what is within the noise is drawn towards
no saving. Simulated with identical strategies (7 rounds, 3, 5 or 10 paired seeds, noise of 1 to 3 points, half of it
carried over from round to round): 1.00 on average, 1.25 or more in at most 3 % of studies (6 % with 3 seeds, 3 points
and four fifths carried over). Where 1.5 times fewer labels are needed, ten seeds show 1.49, 1.47 and 1.42 with noise of
1, 2 and 3 points, three seeds 1.46, 1.35 and 1.28. Where there is an effect, nominal 95 % intervals are too short with
few seeds or much noise: coverage 0.91 and 0.86 with 3 and 10 seeds of 4 points, 0.93 and 0.96 of 2 (1,000 studies).
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from palkit.errors import ConfigError
from palkit.studies.statistics import tables

TARGETS = 50
CONFIDENCE = 0.95  # of the intervals
HAIR = 1e-9


def label_saving(
    rounds: pd.DataFrame,
    reference: Mapping[str, Hashable] = tables.REFERENCE,
    metric: str = "accuracy",
    by: Sequence[str] = tables.GROUP,
) -> pd.DataFrame:
    """Factor by which a group needs fewer labels than the reference, for the same value of the metric.

    Mean curves over seeds are made monotone by isotonic regression; between rounds the logarithm of labels is linear.
    Targets lie evenly between the higher of the two second rounds (the first is shared, nothing is chosen yet) and the
    lower of the two ends, or are that end alone if a curve begins beyond it. On a plateau its first labels count; where
    noise lifts its end, as of a reference that has reached all it can, the saving is too large. A curve that is beyond
    a target from its first round on counts its first labels, so the saving is then a bound. The saving is the geometric
    mean over targets of the reference's labels over the group's. Its logarithm t has a t interval from the jackknife
    over paired seeds; with e half of its width at 68 %, the estimate is `t * (1 - (e / t)^2)`, and 0 if `e > |t|`.

    Args:
        rounds: the table of rounds.
        reference: column values that pick the reference configuration.
        metric: column to compare.
        by: columns that tell groups apart.

    Returns:
        One row per group: `by`, `metric` (its name), `target_low`, `target_high` (range of the targets), `saving`,
        `saving_low`, `saving_high` (NaN for one seed, whose saving is as it was measured) and `n_seeds`.

    Raises:
        ConfigError: the table cannot be used, there is one round, the reference is not in the table, or a group does
            not have its seeds.

    Source: James & Stein, Estimation with Quadratic Loss, 1961 (the drawing in, its positive part); Efron & Stein, The
    Jackknife Estimate of Variance, Annals of Statistics 1981.
    """
    tables.validate(rounds, [*by, *reference], metric)
    sign = tables.sign_of(metric)
    base = tables.seed_curves(tables.pick(rounds, reference), metric, tables.name_of(reference))
    rows = []
    for key, curves in tables.groups(rounds, metric, by):
        tables.check_pairs(key, curves, reference, base)
        if min(len(base), len(curves)) < 2:
            raise ConfigError(f"labels saved need two or more rounds; {tables.name_of(key)} or the reference has one.")
        found = saving_of(sign * base, sign * curves[base.columns])
        targets = {name: sign * found.pop(name) for name in ("target_low", "target_high")}
        rows.append({**key, "metric": metric, **targets, **found, "n_seeds": len(base.columns)})
    return pd.DataFrame(rows)


def saving_of(reference: pd.DataFrame, own: pd.DataFrame) -> dict[str, float]:
    """Range of targets, saving and its interval, as in `label_saving`.

    Args:
        reference: (labels, seeds) values of the metric, higher being better.
        own: the same of what may save labels, with the same seeds in the same order.
    """
    values = reference.to_numpy(float), own.to_numpy(float)
    logs = np.log(reference.index.to_numpy(float)), np.log(own.index.to_numpy(float))
    low, high = _range(*map(_monotone, values))
    seeds = values[0].shape[1]
    freedom = max(seeds - 1, 1)
    whole = _log_saving(values, logs)
    others = [np.delete(np.arange(seeds), seed) for seed in range(seeds)] if seeds > 1 else []
    without = [_log_saving([table[:, kept] for table in values], logs) for kept in others] or [np.nan]
    error = np.sqrt(freedom * np.var(without))
    near, far = stats.t.isf([stats.norm.sf(1), (1 - CONFIDENCE) / 2], freedom) * error
    middle = 0.0 if near >= abs(whole) else whole - near**2 / whole if seeds > 1 else whole
    ends = {"saving": middle, "saving_low": whole - far, "saving_high": whole + far}
    return {"target_low": low, "target_high": high, **{name: float(np.exp(end)) for name, end in ends.items()}}


def _log_saving(pair: Sequence[NDArray], logs: Sequence[NDArray]) -> float:
    """Mean over targets of the logarithm of the reference's labels over the group's."""
    curves = [_monotone(values) for values in pair]
    low, high = _range(*curves)
    targets = low + (np.arange(TARGETS) + 0.5) / TARGETS * (high - low)
    # A hair below: at the height of a plateau the first labels that reach it count, not the last.
    reference, own = (np.interp(targets - HAIR, curve, at) for curve, at in zip(curves, logs, strict=True))
    return float((reference - own).mean())


def _monotone(values: NDArray) -> NDArray:
    """(R,) mean of (R, seeds) curves that never falls."""
    return optimize.isotonic_regression(values.mean(axis=1)).x


def _range(reference: NDArray, own: NDArray) -> tuple[float, float]:
    """Lowest and highest target."""
    high = min(reference[-1], own[-1])
    return float(min(max(reference[1], own[1]), high)), float(high)
