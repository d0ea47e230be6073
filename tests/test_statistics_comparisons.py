"""Strategies against each other: differences, savings, penalties, overlaps and fronts, by hand or a slower way."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statistics_helpers import run, table

from palkit.errors import ConfigError
from palkit.statistics import label_saving, paired_difference, pareto_front, penalty_matrix, selection_overlap

PROBE_RANDOM = {"adapter": "linear_probe", "strategy": "random"}
LORA_BADGE = {"adapter": "lora", "strategy": "badge"}


# --- paired difference


def test_paired_difference_by_hand() -> None:
    rounds = table(
        run([0.2, 0.4, 0.8], seed=0, **LORA_BADGE),
        run([0.2, 0.6, 0.9], seed=1, **LORA_BADGE),
        run([0.2, 0.2, 0.7], seed=2, **LORA_BADGE),
        run([0.2, 0.4, 0.7], seed=0, **PROBE_RANDOM),
        run([0.2, 0.6, 0.9], seed=1, **PROBE_RANDOM),
        run([0.2, 0.2, 0.9], seed=2, **PROBE_RANDOM),
    )
    result = paired_difference(rounds, LORA_BADGE, PROBE_RANDOM)
    final, aubc = result.loc["final"], result.loc["aubc"]
    # Final differences 0.1, 0, -0.2; areas differ by a third of that: 20 / 2 of a range of 30.
    assert (final["mean"], final["low"], final["high"]) == pytest.approx((-0.1 / 3, -0.2, 0.1))
    assert (aubc["mean"], aubc["low"], aubc["high"]) == pytest.approx((-0.1 / 9, -0.2 / 3, 0.1 / 3))
    for row in (final, aubc):
        assert (row["wins"], row["ties"], row["losses"], row["n_seeds"]) == (1, 1, 1, 3)


@given(hnp.arrays(float, (2, 3, 3), elements=st.integers(0, 100).map(lambda k: k / 100)))
@settings(max_examples=10, deadline=None)
def test_paired_difference_is_antisymmetric(values: np.ndarray) -> None:
    rounds = table(
        *(run(values[0, seed], seed=seed, **LORA_BADGE) for seed in range(3)),
        *(run(values[1, seed], seed=seed, **PROBE_RANDOM) for seed in range(3)),
    )
    forward = paired_difference(rounds, LORA_BADGE, PROBE_RANDOM)
    back = paired_difference(rounds, PROBE_RANDOM, LORA_BADGE)
    np.testing.assert_allclose(forward["mean"], -back["mean"])
    np.testing.assert_allclose(forward["low"], -back["high"], atol=1e-12)
    assert list(forward["wins"]) == list(back["losses"])
    assert list(forward["ties"]) == list(back["ties"])
    assert (forward[["wins", "ties", "losses"]].sum(axis=1) == 3).all()


def test_lower_loss_wins() -> None:
    rounds = table(run([2.0, 1.0, 0.5], metric="nll", **LORA_BADGE), run([2.0, 1.5, 1.0], metric="nll", **PROBE_RANDOM))
    result = paired_difference(rounds, LORA_BADGE, PROBE_RANDOM, "nll")
    assert result.loc["final", "mean"] == pytest.approx(-0.5)
    assert list(result["wins"]) == [1, 1]
    assert result[["low", "high"]].isna().all(axis=None)


def test_unpaired_seeds_are_named() -> None:
    rounds = table(
        run([0.1, 0.2, 0.3], seed=0, **LORA_BADGE),
        run([0.1, 0.2, 0.3], seed=7, **LORA_BADGE),
        run([0.1, 0.2, 0.3], seed=0, **PROBE_RANDOM),
        run([0.1, 0.2, 0.3], seed=5, **PROBE_RANDOM),
    )
    with pytest.raises(ConfigError, match=r"seeds \[7\] only in the first, \[5\] only in the second"):
        paired_difference(rounds, LORA_BADGE, PROBE_RANDOM)


def test_unpaired_budgets_are_named() -> None:
    rounds = table(run([0.1, 0.2, 0.3], **LORA_BADGE), run([0.1, 0.2], labels=(10, 20), **PROBE_RANDOM))
    with pytest.raises(ConfigError, match=r"label counts \[10, 20, 40\] and \[10, 20\] differ"):
        paired_difference(rounds, LORA_BADGE, PROBE_RANDOM)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strategy": "bagde"}, "unknown strategy 'bagde'. Did you mean 'badge'"),
        ({"adapter": "lora", "strategy": "random"}, "never together"),
        ({"flavour": "sweet"}, "lacks the columns flavour"),
    ],
)
def test_unknown_configuration_is_named(config: Mapping[str, str], message: str) -> None:
    rounds = table(run([0.1, 0.2, 0.3], **LORA_BADGE), run([0.1, 0.2, 0.3], **PROBE_RANDOM))
    with pytest.raises(ConfigError, match=message):
        paired_difference(rounds, config, PROBE_RANDOM)


# --- label saving


def test_label_saving_by_hand() -> None:
    rounds = table(
        # Mean curve 0.2, 0.4, 0.6: the target is 0.6, reached at 40.
        run([0.1, 0.4, 0.5], seed=0, **PROBE_RANDOM),
        run([0.3, 0.4, 0.7], seed=1, **PROBE_RANDOM),
        # 0.6 lies halfway between 0.4 at 10 and 0.8 at 20.
        run([0.4, 0.8, 0.8], **LORA_BADGE),
        run([0.7, 0.8, 0.9], adapter="lora", strategy="coreset"),
        run([0.1, 0.2, 0.59], adapter="lora", strategy="entropy"),
        # Passes the target, falls back, passes again: the first time counts.
        run([0.2, 0.7, 0.5], adapter="lora", strategy="margin"),
    )
    saving = label_saving(rounds).set_index(["adapter", "strategy"])
    needed = saving["labels_needed"].to_dict()
    assert needed[("linear_probe", "random")] == pytest.approx(40)
    assert needed[("lora", "badge")] == pytest.approx(15)
    assert needed[("lora", "coreset")] == 10
    assert needed[("lora", "margin")] == pytest.approx(18)
    assert math.isnan(needed[("lora", "entropy")])
    assert saving.loc[("lora", "badge"), "saving"] == pytest.approx(40 / 15)
    assert saving.loc[("linear_probe", "random"), "saving"] == pytest.approx(1)
    assert math.isnan(saving.loc[("lora", "entropy"), "saving"])
    assert saving["target"].to_numpy() == pytest.approx(0.6)


def test_label_saving_of_a_loss() -> None:
    rounds = table(run([2.0, 1.5, 1.0], metric="ece", **PROBE_RANDOM), run([2.0, 0.0, 0.0], metric="ece", **LORA_BADGE))
    saving = label_saving(rounds, metric="ece").set_index("strategy")
    assert saving.loc["badge", "labels_needed"] == pytest.approx(15)
    assert saving.loc["random", "labels_needed"] == pytest.approx(40)


def test_reference_that_peaks_early_saves_nothing_on_itself() -> None:
    rounds = table(run([0.2, 0.8, 0.5], **PROBE_RANDOM))
    (row,) = label_saving(rounds).to_dict("records")
    assert row["labels_needed"] == row["reference_labels"] == pytest.approx(15)
    assert row["saving"] == pytest.approx(1)


# --- penalty matrix


def paired_runs(strategy: str, base: np.ndarray, gain: np.ndarray, **config: str) -> list[pd.DataFrame]:
    """A run per seed; `base` and `gain` are (seeds, rounds)."""
    return [run(values, seed=seed, strategy=strategy, **config) for seed, values in enumerate(base + gain)]


BASE = np.array([[0.2, 0.4, 0.6], [0.25, 0.45, 0.62], [0.3, 0.42, 0.58], [0.2, 0.5, 0.7], [0.1, 0.41, 0.66]])


def test_penalties_at_the_critical_value_of_the_paper() -> None:
    # Five differences m + d * (-2, -1, 0, 1, 2) have standard error d * sqrt(2.5 / 5) = d / sqrt(2), so
    # t = m * sqrt(2) / d; the paper's critical value is 2.776.
    steps = 0.01 * np.array([-2.0, -1, 0, 1, 2])
    gain = np.zeros((5, 3))
    gain[:, 1] = steps + 2.79 * 0.01 / math.sqrt(2)
    gain[:, 2] = steps + 2.76 * 0.01 / math.sqrt(2)
    rounds = table(*paired_runs("random", BASE, np.zeros_like(BASE)), *paired_runs("badge", BASE, gain))
    matrix = penalty_matrix(rounds)
    assert matrix.loc["badge", "random"] == 0.5
    assert matrix.loc["random", "badge"] == 0
    assert list(np.diag(matrix)) == [0, 0]
    assert matrix.attrs == {"settings": 1, "n_seeds": 5, "confidence": 0.95, "metric": "accuracy"}
    # At 90 % the critical value is 2.132.
    assert penalty_matrix(rounds, confidence=0.9).loc["badge", "random"] == 1


def test_penalties_add_over_settings_and_know_losses() -> None:
    better = np.array([0, 0.1, 0.2]) + np.array([0.0, 0.001, 0.002])[:, None] * [0, 1, 1]
    base = BASE[:3]
    zero = np.zeros_like(base)
    runs = [
        *paired_runs("random", base, zero),
        *paired_runs("badge", base, better),
        *paired_runs("random", base, zero, dataset="other"),
        *paired_runs("badge", base, better, dataset="other"),
    ]
    rounds = table(*runs)
    assert penalty_matrix(rounds).loc["badge", "random"] == 2
    assert penalty_matrix(rounds).attrs["n_seeds"] == 3
    as_loss = rounds.rename(columns={"accuracy": "nll"})
    assert penalty_matrix(as_loss, "nll").loc["random", "badge"] == 2
    assert penalty_matrix(as_loss, "nll").loc["badge", "random"] == 0


def test_penalties_of_equal_and_constant_differences_are_silent() -> None:
    base = np.array([[0.25, 0.5, 0.5], [0.25, 0.25, 0.75]])
    runs = [
        *paired_runs("random", base, np.zeros_like(base)),
        *paired_runs("entropy", base, np.zeros_like(base)),
        *paired_runs("badge", base, np.array([0, 0.125, 0.125])),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = penalty_matrix(table(*runs))
    assert matrix.loc["badge", "random"] == matrix.loc["badge", "entropy"] == 1
    assert matrix.loc["random", "entropy"] == matrix.loc["entropy", "random"] == 0


def test_penalties_without_two_common_seeds_are_undefined() -> None:
    rounds = table(run([0.1, 0.2, 0.3]), run([0.1, 0.2, 0.3], strategy="badge"))
    matrix = penalty_matrix(rounds)
    assert math.isnan(matrix.loc["badge", "random"])
    assert matrix.attrs["n_seeds"] == 0
    one_round = table(*(run([0.1], seed, [10], strategy=s) for seed in (0, 1) for s in ("a", "b")))
    assert math.isnan(penalty_matrix(one_round).loc["a", "b"])


# --- selections in common, and what nothing beats


def bought(strategy: str, seed: int, *batches: Sequence[int], name: str = "") -> pd.DataFrame:
    rows = [(number, position) for number, batch in enumerate(batches) for position in batch]
    return pd.DataFrame(rows, columns=["round", "position"]).assign(strategy=strategy, seed=seed, run=name or strategy)


def test_overlap_leaves_out_the_initial_set_and_averages_seeds() -> None:
    shared = selection_overlap(
        pd.concat(
            [
                bought("entropy", 0, [1, 2], [3, 4], [5, 6]),
                bought("margin", 0, [1, 2], [5, 4], [7, 8]),
                bought("entropy", 1, [1, 2], [3, 4], [5, 6]),
                bought("margin", 1, [1, 2], [7, 8], [9, 10]),
                bought("badge", 0, [1, 2], [3, 4], [5, 6]),
                bought("lonely", 7, [1, 2], [3, 4]),
            ]
        )
    )
    assert list(shared.index) == list(shared.columns) == ["entropy", "margin", "badge", "lonely"]
    assert shared.loc["entropy", "margin"] == shared.loc["margin", "entropy"] == (2 / 4 + 0) / 2
    assert shared.loc["entropy", "badge"] == 1
    assert (np.diag(shared) == 1).all()
    assert math.isnan(shared.loc["entropy", "lonely"])


def test_overlap_refuses_what_it_cannot_pair() -> None:
    twice = pd.concat([bought("entropy", 0, [1], [3], name="a"), bought("entropy", 0, [1], [3], name="b")])
    with pytest.raises(ConfigError, match="strategy=entropy has several runs of one seed"):
        selection_overlap(twice)
    with pytest.raises(ConfigError, match="no strategy chose anything"):
        selection_overlap(bought("entropy", 0, [1, 2]))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_pareto_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    cost, value = zip(*points, strict=True)
    for (c, v), kept in zip(points, pareto_front(cost, value), strict=True):
        beaten = any((b <= c and w > v) or (b < c and w >= v) for b, w in points)
        assert kept == (not beaten)
