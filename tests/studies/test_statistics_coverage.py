"""Intervals hold what they promise, in simulated studies whose truth is known; labels saved find nothing in nothing."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from breadth import thinned
from scipy import stats

from palkit.studies.statistics import Estimate, estimate, iqm, iqm_interval, mean_interval
from palkit.studies.statistics.saving import saving_of

STUDIES = 20_000
SPREADS = np.array([0.5, 1.0, 2.0, 4.0])  # of four data sets over seeds
LABELS = np.arange(10, 71, 10)


def holding(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    """Share of studies whose interval holds the truth."""
    return float(((low <= truth) & (truth <= high)).mean())


def samples_of_four(rng: np.random.Generator, seeds: Sequence[int], mean: float = 0.0) -> list[np.ndarray]:
    """Of four data sets of unequal spread and mean, (seeds, studies) each; the mean over data sets is `mean`."""
    centres = mean + np.array([-3.0, -1.0, 1.0, 3.0])
    return [rng.normal(*at, (n, STUDIES)) for *at, n in zip(centres, SPREADS, seeds, strict=True)]


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_over_seeds_cover(seeds: int) -> None:
    values = np.random.default_rng(seeds).normal(0.6, 0.02, (seeds, STUDIES))
    assert 0.93 <= holding(*mean_interval(values), 0.6) <= 0.97
    low, high = iqm_interval(values[:, None])
    assert 0.93 <= holding(low, high, 0.6) <= 0.97


@pytest.mark.parametrize("seeds", [(5, 5, 5, 5), (3, 10, 5, 4)])
def test_intervals_over_these_data_sets_cover(seeds: tuple[int, ...]) -> None:
    found = estimate(samples_of_four(np.random.default_rng(1), seeds))
    assert 0.93 <= holding(*found.interval(), 0.0) <= 0.97


def test_interquartile_intervals_over_data_sets_cover() -> None:
    """Of the mean of the middle half, whose truth comes from many seeds; a little more than promised is allowed."""
    many = np.concatenate([sample.ravel() for sample in samples_of_four(np.random.default_rng(2), (50,) * 4)])
    scores = np.stack(samples_of_four(np.random.default_rng(3), (5,) * 4), axis=1)
    low, high = iqm_interval(scores)
    assert (low + high) / 2 == pytest.approx(iqm(scores))
    assert 0.93 <= holding(low, high, stats.trim_mean(many, 0.25)) <= 0.985


def test_intervals_for_data_sets_in_general_cover() -> None:
    """Data sets are drawn too, and what counts is the mean of those that were not."""
    rng = np.random.default_rng(4)
    means = rng.normal(0.5, 1.0, (4, STUDIES)) + rng.normal(0, SPREADS[:, None] / np.sqrt(5), (4, STUDIES))
    assert 0.93 <= holding(*mean_interval(means), 0.5) <= 0.97
    # With the seeds as the sample the same studies would promise far too much.
    assert holding(*Estimate(means.mean(axis=0), np.full(STUDIES, 0.2), np.full(STUDIES, 16.0)).interval(), 0.5) < 0.8


@pytest.mark.parametrize("level", [0.05, 0.005])
def test_the_detectable_difference_is_found_four_times_in_five(level: float) -> None:
    rng = np.random.default_rng(5)
    spread, seeds = 2.0, 5
    exact = Estimate(np.array(0.0), np.array(spread / np.sqrt(seeds)), np.array(seeds - 1.0)).detectable(level, 0.8)
    values = rng.normal(exact, spread, (seeds, STUDIES))
    assert (stats.ttest_1samp(values, 0).pvalue < level).mean() == pytest.approx(0.8, abs=0.01)


def study(rng: np.random.Generator, seeds: int, noise: float, fewer: float) -> list[pd.DataFrame]:
    """Curves such as palkit's, of random choice and of what needs `fewer` times fewer labels after the shared round.

    They rise from 42 to 63 %; the noise of each run and round has this standard deviation, and half of it goes on into
    the next round.
    """
    tables = []
    for factor in (1.0, fewer):
        wobble = rng.normal(0, noise, (len(LABELS), seeds))
        for step in range(1, len(LABELS)):
            wobble[step] = 0.5 * wobble[step - 1] + np.sqrt(0.75) * wobble[step]
        at = np.append(LABELS[0], factor * LABELS[1:])
        tables.append(pd.DataFrame(0.8 - 0.95 * at[:, None] ** -0.4 + wobble, index=LABELS))
    tables[1].iloc[0] = tables[0].iloc[0]
    return tables


@pytest.mark.parametrize(("seeds", "noise"), thinned([3, 5, 10], [0.01, 0.02, 0.03], every=3))
def test_identical_strategies_save_nothing(seeds: int, noise: float) -> None:
    rng = np.random.default_rng(6)
    found = pd.DataFrame([saving_of(*study(rng, seeds, noise, fewer=1)) for _ in range(400)])
    assert 0.97 <= found["saving"].mean() <= 1.03
    assert (found["saving"] >= 1.25).mean() <= 0.05
    assert (found["saving"] <= 1 / 1.25).mean() <= 0.05
    assert 0.92 <= holding(found["saving_low"].to_numpy(), found["saving_high"].to_numpy(), 1) <= 0.98


@pytest.mark.parametrize(("noise", "shown"), [(0.01, 1.45), (0.02, 1.4), (0.03, 1.35)])
def test_what_saves_a_third_of_the_labels_is_found(noise: float, shown: float) -> None:
    rng = np.random.default_rng(7)
    found = pd.DataFrame([saving_of(*study(rng, 10, noise, fewer=1.5)) for _ in range(300)])
    assert shown <= found["saving"].mean() <= 1.53
    assert 0.92 <= holding(found["saving_low"].to_numpy(), found["saving_high"].to_numpy(), 1.5) <= 0.98
