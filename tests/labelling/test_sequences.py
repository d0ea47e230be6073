"""Confidence sequences: what a plain implementation of two gamblers finds, and coverage at every look."""

import math

import numpy as np
import pytest
from breadth import some

from palkit.errors import ConfigError
from palkit.labelling.sequences import betting_interval


def bankrupt(values: list[float], mean: float, side: int, level: float) -> bool:
    """Whether a gambler who bets that the mean is larger (side 1) or smaller (-1) multiplies the stake by 2 / level.

    Each bet is worked out from what came before it, number by number.
    """
    capital = 1.0
    for look, value in enumerate(values, start=1):
        seen = values[: look - 1]
        spread = 0.25
        for place in range(1, len(seen) + 1):
            guess = (0.5 + sum(seen[:place])) / (place + 1)
            spread += (seen[place - 1] - guess) ** 2
        variance = spread / look
        bet = math.sqrt(2 * math.log(2 / level) / (variance * look * math.log1p(look)))
        most = mean if side == 1 else 1 - mean
        if most > 0:
            bet = min(bet, 0.75 / most)
        capital *= 1 + side * bet * (value - mean)
        if capital >= 2 / level:
            return True
    return False


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_ends_are_the_first_means_on_which_no_gambler_gets_rich(share: float) -> None:
    values = (np.random.default_rng(3).random(40) < share).astype(float).tolist()
    low, high = betting_interval(values)[-1]
    for mean in np.linspace(0.005, 0.995, 100):
        assert bankrupt(values, mean, 1, 0.05) == (mean < low) or abs(mean - low) <= 0.001
        assert bankrupt(values, mean, -1, 0.05) == (mean > high) or abs(mean - high) <= 0.001


@pytest.mark.parametrize("share", some([0.02, 0.5, 0.3, 0.95], every=4))
def test_all_looks_together_hold_the_mean(share: float) -> None:
    """Looked at after every one of 300 values, with replacement and without."""
    rng, missed, from_pool = np.random.default_rng(7), 0, 0
    pool = (np.arange(400) < 400 * share).astype(float)
    for _ in range(80):
        ends = betting_interval(rng.random(300) < share)
        missed += not ((ends[:, 0] <= share) & (share <= ends[:, 1])).all()
        drawn = rng.permutation(pool)[:300]
        before = np.concatenate([[0], np.cumsum(drawn)[:-1]])
        left = 400 - np.arange(300)
        ends = betting_interval((before + left * drawn) / 400, before / 400, (before + left) / 400)
        from_pool += not ((ends[:, 0] <= share) & (share <= ends[:, 1])).all()
    most = 80 * 0.05 + 3 * math.sqrt(80 * 0.05 * 0.95)
    assert missed <= most
    assert from_pool <= most


def test_intervals_only_narrow_and_a_horizon_makes_them_narrow_there() -> None:
    values = np.random.default_rng(1).random(200) < 0.2
    ends = betting_interval(values)
    assert (np.diff(ends[:, 0]) >= 0).all()
    assert (np.diff(ends[:, 1]) <= 0).all()
    aimed = betting_interval(values, horizon=200)
    assert np.diff(aimed[-1]) < np.diff(ends[-1])


def test_values_beyond_their_bounds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"value 1 is 1\.5, beyond its bounds 0\.0 and 1\.0"):
        betting_interval([0.5, 1.5])


def test_no_values_give_no_interval() -> None:
    assert betting_interval([]).shape == (0, 2)
