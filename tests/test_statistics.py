"""Areas, intervals, summaries and bad tables against numbers worked out by hand or by a second, slower way."""

import itertools
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statistics_helpers import LABELS, run, table

from palkit.errors import ConfigError
from palkit.statistics import (
    area_under_curve,
    bootstrap_interval,
    curves,
    label_saving,
    penalty_matrix,
    summarise,
)

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


# --- bootstrap


@given(hnp.arrays(float, 3, elements=st.integers(0, 1000).map(lambda k: k / 1000)))
@settings(max_examples=20, deadline=None)
def test_bootstrap_of_three_values_against_all_27_resamples(values: np.ndarray) -> None:
    # Only 1 of 27 resamples (3.7 %) is the smallest value three times, which is above 2.5 %: the exact
    # percentile interval is therefore the range of the values.
    means = sorted(np.mean(resample) for resample in itertools.product(values, repeat=3))
    assert means[int(0.025 * 27)] == pytest.approx(values.min())
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(values.min())
    assert high == pytest.approx(values.max())


def test_bootstrap_of_many_values_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_of_one_value_is_undefined_and_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_interval(np.array([[1.0, 2.0]]))
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert low.shape == high.shape == (2,)


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
    assert (random["aubc_low"], random["aubc_high"]) == pytest.approx((11 / 30, 19 / 30))
    assert (random["final"], random["final_low"], random["final_high"]) == pytest.approx((0.8, 0.7, 0.9))
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
    np.testing.assert_allclose(curve["low"], [0.2, 0.2, 0.7])
    np.testing.assert_allclose(curve["high"], [0.2, 0.6, 0.9])


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
    with pytest.raises(ConfigError, match="run toy-vit-lora-random-none-0 round 1"):
        penalty_matrix(table(one, one.iloc[1:2]))
    with pytest.raises(ConfigError, match=r"more than one row .* and 2 more"):
        summarise(table(*[run([0.1] * 7, labels=range(1, 8))] * 2))


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
    with pytest.raises(ConfigError, match="run toy-vit-lora-random-none-0 has label counts that do not"):
        summarise(table(run([0.1, 0.2, 0.3], labels=(10, 10, 20))))


@pytest.mark.parametrize("by", [(), "strategy"])
def test_grouping_needs_a_list_of_columns(by: Sequence[str]) -> None:
    with pytest.raises(ConfigError, match="must list one or more columns"):
        summarise(table(run([0.1, 0.2, 0.3])), by=by)
