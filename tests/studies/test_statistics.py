"""Areas, intervals, summaries and bad tables against numbers worked out by hand or by a second, slower way."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from statistics_helpers import LABELS, run, table

from palkit.errors import ConfigError
from palkit.studies.statistics import (
    area_under_curve,
    curves,
    estimate,
    label_saving,
    mean_interval,
    penalty_matrix,
    summarise,
)

T2 = 4.30265273  # tables of Student's t: 97.5 %, 2 degrees of freedom

# --- area under the budget curve


def test_area_by_hand() -> None:
    # (0.2 + 0.4) / 2 * 10 + (0.4 + 0.8) / 2 * 20 = 3 + 12 = 15, over a range of 30.
    assert area_under_curve([10, 20, 40], [0.2, 0.4, 0.8]) == pytest.approx(0.5)


CURVES = st.integers(2, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 10_000), min_size=n, max_size=n, unique=True).map(sorted),
        hnp.arrays(float, n, elements=st.floats(-10, 10)),
    )
)


@given(CURVES, st.floats(-3, 3), st.floats(-3, 3))
def test_area_is_a_weighted_mean(curve: tuple[list[int], np.ndarray], scale: float, shift: float) -> None:
    labels, values = curve
    area = area_under_curve(labels, values)
    assert values.min() - 1e-9 <= area <= values.max() + 1e-9
    assert area_under_curve(labels, scale * values + shift) == pytest.approx(scale * area + shift, abs=1e-6)
    assert area_under_curve(labels, np.full(len(labels), shift)) == pytest.approx(shift)


@pytest.mark.parametrize(
    ("labels", "values", "message"),
    [
        ([10], [0.5], "two or more rounds"),
        ([10, 20], [0.5], "two or more rounds"),
        ([10, 10], [0.5, 0.6], "must increase"),
        ([20, 10], [0.5, 0.6], "must increase"),
    ],
)
def test_area_rejects(labels: list[int], values: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        area_under_curve(labels, values)


# --- t intervals


def half_width(values: Sequence[float]) -> float:
    """Of the t interval of three values, from tables."""
    mean = sum(values) / 3
    return T2 * math.sqrt(sum((value - mean) ** 2 for value in values) / 2 / 3)


@given(hnp.arrays(float, (3, 2), elements=st.integers(0, 1000).map(lambda k: k / 1000)))
def test_interval_of_three_values_from_tables(values: np.ndarray) -> None:
    low, high = mean_interval(values)
    for column in range(2):
        half = half_width(values[:, column])
        assert low[column] == pytest.approx(values[:, column].mean() - half, abs=1e-9)
        assert high[column] == pytest.approx(values[:, column].mean() + half, abs=1e-9)


def test_interval_of_many_values_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.002)


def test_several_samples_against_welchs_test_by_scipy() -> None:
    """The difference of two means is twice the mean of one and the other's negative."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 5), rng.normal(0, 3, 8)
    found, peer = estimate([a, -b]), stats.ttest_ind(a, b, equal_var=False)
    assert found.mean == pytest.approx((a.mean() - b.mean()) / 2)
    assert found.df == pytest.approx(peer.df)
    assert found.p_value == pytest.approx(peer.pvalue)
    assert 2 * np.array(found.interval()) == pytest.approx(np.array(peer.confidence_interval()))


def test_equal_values_have_an_interval_of_no_width() -> None:
    level, none = estimate([[0.5] * 3, [0.5] * 4]), estimate([[0.0] * 3])
    assert level.interval() == (0.5, 0.5)
    assert (level.p_value, none.p_value) == (0, 1)
    assert level.detectable() == 0


def test_one_value_has_no_interval_and_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = mean_interval(np.array([[1.0, 2.0]]))
        several = estimate([[1.0, 2.0], [3.0]])
        ends = several.interval()
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert low.shape == high.shape == (2,)
    assert several.mean == 2.25
    assert np.isnan([*ends, several.p_value]).all()


# --- summarise, curves


def test_summarise_by_hand() -> None:
    rounds = table(
        run([0.2, 0.4, 0.8], seed=0),
        run([0.2, 0.6, 0.9], seed=1),
        run([0.2, 0.2, 0.7], seed=2),
        run([0.3, 0.3, 0.3], seed=0, strategy="badge"),
    )
    summary = summarise(rounds).set_index(["adapter", "strategy"])
    random = summary.loc[("lora", "random")]
    # Areas: 0.5; (4 + 15) / 30; (2 + 9) / 30.
    assert random["aubc"] == pytest.approx((15 + 19 + 11) / 90)
    half = half_width([15 / 30, 19 / 30, 11 / 30])
    assert (random["aubc_low"], random["aubc_high"]) == pytest.approx((0.5 - half, 0.5 + half))
    half = half_width([0.8, 0.9, 0.7])
    assert (random["final"], random["final_low"], random["final_high"]) == pytest.approx((0.8, 0.8 - half, 0.8 + half))
    assert (random["n_seeds"], random["labels"], random["metric"]) == (3, 40, "accuracy")
    badge = summary.loc[("lora", "badge")]
    assert (badge["final"], badge["aubc"], badge["n_seeds"]) == (pytest.approx(0.3), pytest.approx(0.3), 1)
    assert badge[["final_low", "final_high", "aubc_low", "aubc_high"]].isna().all()


def test_curves_by_hand() -> None:
    rounds = table(run([0.2, 0.4, 0.8], seed=0), run([0.2, 0.6, 0.9], seed=1), run([0.2, 0.2, 0.7], seed=2))
    curve = curves(rounds)
    assert list(curve.columns) == ["adapter", "strategy", "labels", "mean", "low", "high", "n_seeds"]
    assert list(curve["labels"]) == [10, 20, 40]
    np.testing.assert_allclose(curve["mean"], [0.2, 0.4, 0.8])
    halves = np.array([0, half_width([0.4, 0.6, 0.2]), half_width([0.8, 0.9, 0.7])])
    np.testing.assert_allclose(curve["low"], curve["mean"] - halves)
    np.testing.assert_allclose(curve["high"], curve["mean"] + halves)


def test_grouping_by_one_column_and_row_order() -> None:
    rounds = table(run([0.2, 0.4, 0.8]), run([0.1, 0.2, 0.3], strategy="badge"))
    summary = summarise(rounds, by=["strategy"])
    assert list(summary["strategy"]) == ["badge", "random"]
    shuffled = rounds.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(summarise(shuffled, by=["strategy"]), summary)
    pd.testing.assert_frame_equal(curves(shuffled, "accuracy", ["strategy"]), curves(rounds, "accuracy", ["strategy"]))


# --- bad tables


def test_missing_columns_are_named() -> None:
    rounds = table(run([0.1, 0.2, 0.3])).drop(columns=["seed", "adapter"])
    with pytest.raises(ConfigError, match="lacks the columns seed, adapter, kappa"):
        summarise(rounds, "kappa")


def test_empty_table() -> None:
    with pytest.raises(ConfigError, match="empty"):
        curves(table(run([0.1, 0.2, 0.3])).head(0))


def test_repeated_rows_are_named() -> None:
    one = run([0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="run toy-vit-lora-random-none-0 is there twice"):
        penalty_matrix(table(one, one.iloc[1:2]))


def test_undefined_values_are_named() -> None:
    with pytest.raises(ConfigError, match=r"accuracy is not a finite number in run .* round 1"):
        label_saving(table(run([0.1, math.nan, 0.3])))


def test_mixed_groups_are_named() -> None:
    rounds = table(run([0.1, 0.2, 0.3]), run([0.1, 0.2, 0.3], dataset="other"))
    with pytest.raises(ConfigError, match=r"adapter=lora, strategy=random: seed 0 has several runs"):
        summarise(rounds)
    assert len(summarise(rounds, by=["dataset", "strategy"])) == 2


def test_unfinished_runs_are_named() -> None:
    rounds = table(run([0.1, 0.2, 0.3], seed=0), run([0.1, 0.2], seed=4, labels=LABELS[:2]))
    with pytest.raises(ConfigError, match=r"seeds \[4\] lack label counts"):
        curves(rounds)


def test_stalled_runs_are_named() -> None:
    with pytest.raises(ConfigError, match="run toy-vit-lora-random-none-0 is there twice, or its label counts"):
        summarise(table(run([0.1, 0.2, 0.3], labels=(10, 10, 20))))
