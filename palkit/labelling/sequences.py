"""Confidence sequences: intervals of a mean that hold at every look, however often one looks and whenever one stops."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palkit.errors import ConfigError

GRID = 1000  # candidates of the mean are this fine
CAUTION = 0.75  # share of what a bet may lose at most


def betting_interval(
    values: ArrayLike, low: ArrayLike = 0.0, high: ArrayLike = 1.0, *, confidence: float = 0.95, horizon: int = 0
) -> NDArray:
    """Ends of the interval of a mean in [0, 1] after every value; all of them hold together with that confidence.

    Each end holds alone with half of the risk.

    Whatever came before, each value must have the wanted mean and lie between bounds that were known before it was
    drawn. So are draws with and without replacement, of equal chances and of others that are known, see
    `palkit.labelling.testing`.

    Args:
        values: (M,) in the order in which they came.
        low: (M,) or one number, what each value is at least, known before it was drawn.
        high: likewise at most.
        confidence: of all looks together.
        horizon: number of values after which the interval should be narrowest; 0 for no such number. It holds in
            any case.

    Returns:
        (M, 2), each interval within the one before it.

    Raises:
        ConfigError: a value lies beyond its bounds.

    Source: Waudby-Smith and Ramdas, Estimating Means of Bounded Random Variables by Betting, JRSS B 2024: capital
    of two players (Theorem 3), each with half of the risk, by predictable plug-in bets (eq. 26); for a mean of a finite
    pool, section 5.

    >>> betting_interval([0, 1, 0, 0] * 100)[[9, 99, 399]].round(2).tolist()
    [[0.0, 0.69], [0.12, 0.42], [0.17, 0.35]]
    """
    z = np.asarray(values, dtype=float)  # (M,)
    low, high = np.broadcast_to(low, z.shape).astype(float), np.broadcast_to(high, z.shape).astype(float)
    beyond = (z < low - 1e-9) | (z > high + 1e-9)
    if beyond.any():
        first = int(beyond.argmax())
        raise ConfigError(f"value {first} is {z[first]}, beyond its bounds {low[first]} and {high[first]}.")
    look = np.arange(1, len(z) + 1)
    mean = (0.5 + np.cumsum(z)) / (look + 1)
    spread = (0.25 + np.cumsum((z - mean) ** 2)) / (look + 1)
    before = np.concatenate([[0.25], spread[:-1]])  # a bet is made before its value is seen
    bets = np.sqrt(2 * np.log(2 / (1 - confidence)) / (before * (horizon or look * np.log1p(look))))
    candidates = np.linspace(0, 1, GRID + 1)[:, None]  # (G, 1)
    with np.errstate(divide="ignore"):
        up = np.minimum(bets, CAUTION / np.maximum(candidates - low, 0))
        down = np.minimum(bets, CAUTION / np.maximum(high - candidates, 0))
    enough = np.log(2 / (1 - confidence))
    # A candidate that lost once is out for good.
    above = np.logical_and.accumulate(np.log1p(up * (z - candidates)).cumsum(axis=1) < enough, axis=1)  # (G, M)
    below = np.logical_and.accumulate(np.log1p(-down * (z - candidates)).cumsum(axis=1) < enough, axis=1)
    first, last = above.argmax(axis=0), GRID - below[::-1].argmax(axis=0)
    # Between the last candidate that is out and the first that is in, all may be in.
    return np.stack([np.maximum(first - 1, 0), np.minimum(last + 1, GRID)], axis=1) / GRID
