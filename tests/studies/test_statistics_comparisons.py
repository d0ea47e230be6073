"""Strategies against each other: differences, savings, penalties, overlaps and fronts, by hand or a slower way."""

import itertools
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
from palkit.studies.statistics import label_saving, paired_difference, pareto_front, penalty_matrix, selection_overlap

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
    # Their deviations 0.4, 0.1, -0.5 thirds have the sum of squares 0.42 / 9; t for 2 degrees of freedom is 4.303.
    mean, half = -0.1 / 3, 4.302653 * math.sqrt(0.42 / 9 / 2 / 3)
    assert (final["mean"], final["low"], final["high"]) == pytest.approx((mean, mean - half, mean + half))
    assert [aubc["mean"], aubc["low"], aubc["high"]] == pytest.approx([mean / 3, (mean - half) / 3, (mean + half) / 3])
    for row in (final, aubc):
        assert (row["wins"], row["ties"], row["losses"], row["n_seeds"]) == (1, 1, 1, 3)


@given(hnp.arrays(float, (2, 3, 3), elements=st.integers(0, 100).map(lambda k: k / 100)))
@settings(max_examples=10)
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
        ({"strategy": "bagde"}, "no run has strategy=bagde; there are strategy=random or badge"),
        (
            {"adapter": "lora", "strategy": "random"},
            "no run has adapter=lora, strategy=random; there are adapter=",
        ),
        ({"flavour": "sweet"}, "lacks the columns flavour"),
    ],
)
def test_unknown_configuration_is_named(config: Mapping[str, str], message: str) -> None:
    rounds = table(run([0.1, 0.2, 0.3], **LORA_BADGE), run([0.1, 0.2, 0.3], **PROBE_RANDOM))
    with pytest.raises(ConfigError, match=message):
        paired_difference(rounds, config, PROBE_RANDOM)


# --- label saving


def slow_saving(reference: list[tuple[float, float]], own: list[tuple[float, float]]) -> float:
    """Monotone curves of (labels, value): geometric mean of label ratios over a fine grid of targets, by bisection."""

    def labels_at(curve: list[tuple[float, float]], target: float) -> float:
        for (before, low), (after, high) in itertools.pairwise(curve):
            if low <= target <= high:
                return before * (after / before) ** ((target - low) / (high - low))
        return curve[0][0] if target < curve[0][1] else curve[-1][0]

    high = min(reference[-1][1], own[-1][1])
    low = min(max(reference[1][1], own[1][1]), high)
    targets = np.linspace(low, high, 20_001)[1:-1]
    return math.exp(np.mean([math.log(labels_at(reference, at) / labels_at(own, at)) for at in targets]))


VALUES = st.lists(st.integers(0, 1000), min_size=4, max_size=6, unique=True).map(
    lambda v: [x / 1000 for x in sorted(v)]
)


@given(VALUES, VALUES)
@settings(max_examples=30)
def test_saving_of_one_seed_against_bisection(reference: list[float], own: list[float]) -> None:
    at = [10, 20, 40, 80, 100, 150]
    rounds = table(
        run(reference, labels=at[: len(reference)], **PROBE_RANDOM), run(own, labels=at[: len(own)], **LORA_BADGE)
    )
    found = label_saving(rounds).set_index("strategy")
    curves = [list(zip(at, values, strict=False)) for values in (reference, own)]
    assert found.loc["badge", "saving"] == pytest.approx(slow_saving(*curves), rel=0.02)
    assert found.loc["badge", ["saving_low", "saving_high"]].isna().all()
    assert found.loc["random", "saving"] == 1


def test_saving_by_hand() -> None:
    # The group is at 0.6 with 20 labels, the reference with 40, and twice as early everywhere after the first round.
    rounds = table(
        run([0.2, 0.4, 0.6, 0.8], labels=(10, 20, 40, 80), **PROBE_RANDOM),
        run([0.2, 0.6, 0.8], labels=(10, 20, 40), **LORA_BADGE),
        # Falls in between: the mean of 0.65 and 0.55 counts at both.
        run([0.2, 0.65, 0.55, 0.8], labels=(10, 20, 30, 40), adapter="lora", strategy="margin"),
        # Begins where the reference ends: its first labels, and a bound.
        run([0.9, 0.91], labels=(10, 20), adapter="lora", strategy="coreset"),
    )
    found = label_saving(rounds).set_index("strategy")
    assert found.loc["badge", "saving"] == pytest.approx(2)
    assert found.loc["badge", ["target_low", "target_high"]].tolist() == pytest.approx([0.6, 0.8])
    assert found.loc["margin", "target_low"] == pytest.approx(0.6)
    assert found.loc["coreset", "saving"] == pytest.approx(8)
    assert list(found["n_seeds"]) == [1] * 4


@pytest.mark.parametrize(
    ("reference", "own", "saving"),
    [
        ([0.3, 0.45, 0.55, 0.6, 0.6, 0.6, 0.6], [0.61, 0.62, 0.63, 0.64, 0.65, 0.66, 0.67], 4.0),
        ([0.5] * 7, [0.9] * 7, 1.0),
        ([0.9] * 7, [0.5] * 7, 1.0),
        ([0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.7], [0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.7], 1.0),
    ],
)
def test_the_first_labels_of_a_plateau_count(reference: list[float], own: list[float], saving: float) -> None:
    labels = range(10, 80, 10)
    found = label_saving(table(run(reference, labels=labels, **PROBE_RANDOM), run(own, labels=labels, **LORA_BADGE)))
    assert found.set_index("strategy").loc["badge", "saving"] == pytest.approx(saving, rel=1e-3)


@given(hnp.arrays(float, (2, 3, 4), elements=st.integers(0, 1000).map(lambda k: k / 1000)))
@settings(max_examples=20)
def test_saving_turns_over_with_its_sides_and_signs(values: np.ndarray) -> None:
    labels = (10, 20, 40, 60)
    rounds = table(
        *(run(values[0, seed], seed=seed, labels=labels, **PROBE_RANDOM) for seed in range(3)),
        *(run(values[1, seed], seed=seed, labels=labels, **LORA_BADGE) for seed in range(3)),
    )
    forth = label_saving(rounds).set_index("strategy").loc["badge"]
    back = label_saving(rounds, LORA_BADGE).set_index("strategy").loc["random"]
    loss = label_saving(rounds.assign(nll=1 - rounds["accuracy"]), metric="nll").set_index("strategy").loc["badge"]
    names = ["saving_low", "saving", "saving_high"]
    assert forth[names].tolist() == pytest.approx([1 / back[name] for name in reversed(names)], rel=1e-6)
    assert loss[names].tolist() == pytest.approx(forth[names].tolist(), rel=1e-6)
    assert loss["target_high"] == pytest.approx(1 - forth["target_high"])
    assert forth["saving_low"] <= forth["saving"] <= forth["saving_high"]


def test_saving_needs_rounds_and_pairs() -> None:
    with pytest.raises(ConfigError, match="two or more rounds"):
        label_saving(table(run([0.2], labels=(10,), **PROBE_RANDOM)))
    lonely = table(run([0.1, 0.2, 0.3], **PROBE_RANDOM), run([0.1, 0.2, 0.3], seed=1, **LORA_BADGE))
    with pytest.raises(ConfigError, match=r"do not pair: seeds \[1\] only in the first, \[0\] only"):
        label_saving(lonely)


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
    assert matrix.attrs == {"settings": 1, "n_seeds": 5}


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
    with pytest.raises(ConfigError, match="strategy=entropy has several runs of seed 0"):
        selection_overlap(twice)
    with pytest.raises(ConfigError, match="no strategy chose anything"):
        selection_overlap(bought("entropy", 0, [1, 2]))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_pareto_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    cost, value = zip(*points, strict=True)
    for (c, v), kept in zip(points, pareto_front(cost, value), strict=True):
        beaten = any((b <= c and w > v) or (b < c and w >= v) for b, w in points)
        assert kept == (not beaten)
