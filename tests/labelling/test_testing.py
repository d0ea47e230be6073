"""Active testing: no bias, by enumeration; the published weights; intervals that cover; nothing hangs on storage."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palkit.errors import ConfigError
from palkit.labelling import testing
from palkit.labelling.testing import (
    Draws,
    draw_tests,
    error_terms,
    expected_errors,
    measured_accuracy,
    measured_calibration,
    measured_recalls,
    of_those_there,
    weights_of,
)
from palkit.strategies.ties import keys_of

KEYS = keys_of(map(str, range(1000)))


def chances_by_hand(error: np.ndarray, drawn: tuple[int, ...]) -> dict[int, float]:
    """Chance of every image that is left: the deviation of its error, and an even part."""
    left = [row for row in range(len(error)) if row not in drawn]
    weight = {row: math.sqrt(error[row] * (1 - error[row])) for row in left}
    total = sum(weight.values())
    return {row: 0.7 * weight[row] / total + 0.3 / len(left) for row in left}


def every_draw(error: np.ndarray, number: int) -> list[tuple[Draws, float]]:
    """All ordered draws of so many images, each with its probability."""
    found = []
    for order in itertools.permutations(range(len(error)), number):
        parts = [chances_by_hand(error, order[:place]) for place in range(number)]
        chances = [part[row] for part, row in zip(parts, order, strict=True)]
        least = [min(part.values()) for part in parts]
        found.append((Draws(np.array(order), np.array(chances), np.array(least)), math.prod(chances)))
    return found


@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_terms_and_estimates_have_no_bias(number: int) -> None:
    """The mean over all draws that there are is the error itself, for every term and however they are weighed."""
    confidence, wrong = np.array([0.95, 0.5, 0.7, 0.99, 0.4]), np.array([1, 0, 1, 0, 1])
    draws = every_draw(expected_errors(confidence), number)
    assert sum(chance for _, chance in draws) == pytest.approx(1)
    values = weighted = published = 0.0
    for drawn, chance in draws:
        terms = error_terms(confidence, drawn, wrong[drawn.positions])
        values += chance * terms.values
        weighted += chance * (terms.weights() @ terms.values)
        published += chance * np.mean(weights_of(drawn, 5) * wrong[drawn.positions])
        assert (terms.low <= terms.values).all()
        assert (terms.values <= terms.high).all()
    assert values == pytest.approx(np.full(number, 0.6))
    assert weighted == pytest.approx(0.6)
    assert published == pytest.approx(0.6)


def test_recalibration_by_labels_leaves_no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected errors of a draw may be learnt from all draws before it, and from nothing after."""
    monkeypatch.setattr(testing, "BLOCK", 1)
    confidence, wrong = np.array([0.95, 0.5, 0.7, 0.99]), np.array([1, 0, 1, 0])
    values = 0.0
    for drawn, chance in every_draw(expected_errors(confidence), 3):
        values += chance * error_terms(confidence, drawn, wrong[drawn.positions]).values
    assert values == pytest.approx(np.full(3, 0.5))


@pytest.mark.parametrize("gone", [(0,), (1, 4)])
@pytest.mark.parametrize("number", [2, 4])
def test_images_that_are_gone_leave_no_bias(number: int, gone: tuple[int, ...]) -> None:
    """They were among those that the draws were made of, so their chances are what they were."""
    confidence, wrong = np.array([0.95, 0.5, 0.7, 0.99, 0.4]), np.array([1, 0, 1, 0, 1])
    draws, there = every_draw(expected_errors(confidence), number), np.setdiff1d(np.arange(5), gone)
    confidence, wrong = np.where(np.isin(np.arange(5), gone), np.nan, confidence), wrong | np.isin(np.arange(5), gone)
    values = 0.0
    for drawn, chance in draws:
        terms = error_terms(confidence, drawn, wrong[drawn.positions])
        values += chance * terms.values
        assert (terms.low - 1e-12 <= terms.values).all()
        assert (terms.values <= terms.high + 1e-12).all()
        found = measured_accuracy(confidence, drawn, wrong[drawn.positions])
        if np.isin(there, drawn.positions).all():
            assert (found.low, found.value, found.high) == pytest.approx((1 - wrong[there].mean(),) * 3)
        else:
            assert found.low < found.high
    assert [of_those_there(1 - value, confidence) for value in values] == pytest.approx(
        [1 - wrong[there].mean()] * number
    )


def test_images_that_are_gone_are_not_drawn() -> None:
    confidence = np.where(np.arange(20) < 5, np.nan, 0.8)
    draws = draw_tests(confidence, Draws(), [], 15, KEYS[:20], seed=0)
    assert set(draws.positions.tolist()) == {*range(5, 20)}
    with pytest.raises(ConfigError, match="1 test images are to be drawn, and 0 are left"):
        draw_tests(confidence, draws, [], 1, KEYS[:20], seed=0)


def test_without_expected_errors_the_estimate_is_the_published_one() -> None:
    """R_LURE of Farquhar et al. 2021: the mean of weighted losses; where chances are even, the plain mean."""
    confidence, wrong = np.full(40, 0.98), np.arange(40) % 3 == 0
    draws = draw_tests(confidence, Draws(), [], 12, KEYS[:40], seed=3)
    lost = wrong[draws.positions]
    assert weights_of(draws, 40) == pytest.approx(np.ones(12)), "all expect the same"
    terms = error_terms(confidence, draws, lost)
    # The same expected error everywhere cancels: what is expected of the drawn is taken away, and of all is added.
    assert terms.weights() @ terms.values == pytest.approx(lost.mean())


@given(st.lists(st.floats(0.3, 0.99), min_size=8, max_size=30), st.randoms())
def test_storage_order_plays_no_part(confidence: list[float], shuffle: object) -> None:
    order = list(range(len(confidence)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    known = np.array(confidence)
    here = draw_tests(known, Draws(), [], 5, KEYS[: len(known)], seed=1)
    there = draw_tests(known[order], Draws(), [], 5, KEYS[: len(known)][order], seed=1)
    assert [order[place] for place in there.positions] == here.positions.tolist()
    assert there.chances == pytest.approx(here.chances)


def test_draws_go_on_where_they_were_left() -> None:
    confidence = np.linspace(0.3, 1, 60)
    at_once = draw_tests(confidence, Draws(), [], 20, KEYS[:60], seed=0)
    half = draw_tests(confidence, Draws(), [], 10, KEYS[:60], seed=0)
    assert draw_tests(confidence, half, [], 10, KEYS[:60], seed=0).positions.tolist() == at_once.positions.tolist()
    assert len(set(at_once.positions.tolist())) == 20
    other = draw_tests(confidence, Draws(), [], 20, KEYS[:60], seed=1)
    assert other.positions.tolist() != at_once.positions.tolist()


def test_images_are_drawn_as_often_as_their_chances_say() -> None:
    confidence = np.array([0.99, 0.5, 0.9, 0.7])
    chances = chances_by_hand(expected_errors(confidence), ())
    counts = np.zeros(4)
    for seed in range(4000):
        counts[draw_tests(confidence, Draws(), [], 1, KEYS[:4], seed=seed).positions] += 1
    expected = np.array([chances[row] for row in range(4)])
    assert abs(counts / 4000 - expected) == pytest.approx(np.zeros(4), abs=4 * 0.5 / math.sqrt(4000))


def test_more_than_there_is_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="4 test images are to be drawn, and 3 are left"):
        draw_tests([0.5, 0.6, 0.7], Draws(), [], 4, KEYS[:3], seed=0)


def test_labels_correct_a_model_that_is_sure_of_its_mistakes() -> None:
    confidence = np.full(100, 0.99)
    told = expected_errors(confidence, np.arange(50), np.ones(50))
    assert expected_errors(confidence)[0] == pytest.approx(0.02)
    assert told.min() > 0.8


# --- intervals


def populations() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Confidence, true class and prediction of 800 images, of models that know themselves well, badly or not at all."""
    rng = np.random.default_rng(5)
    found = {}
    for name, shift in {"calibrated": 0.0, "too sure": 2.0, "ignorant": None}.items():
        odds = rng.normal(1.5, 1.5, 800)
        right = rng.random(800) < 1 / (1 + np.exp(-odds))
        confidence = rng.uniform(0.4, 1, 800) if shift is None else np.maximum(1 / (1 + np.exp(-odds - shift)), 0.26)
        truth = rng.choice(4, 800, p=[0.6, 0.2, 0.15, 0.05])
        found[name] = confidence, truth, np.where(right, truth, (truth + 1) % 4), right
    return found


POPULATIONS = populations()


def drawn_in_rounds(confidence: np.ndarray, wrong: np.ndarray, number: int, seed: int) -> Draws:
    draws = Draws()
    while len(draws) < number:
        draws = draw_tests(confidence, draws, wrong[draws.positions], min(25, number - len(draws)), KEYS[:800], seed)
    return draws


@pytest.mark.parametrize("number", [25, pytest.param(100, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_hold_the_truth(name: str, number: int) -> None:
    """95 of 100 times, within three deviations of so many repetitions; those of classes and bins more often."""
    confidence, truth, predicted, right = POPULATIONS[name]
    recalls = [right[truth == number].mean() for number in range(4)]
    ranked = confidence.argsort(kind="stable").reshape(5, -1)
    gap = np.mean([abs(right[rows].mean() - confidence[rows].mean()) for rows in ranked])
    accuracy, calibration, classes = [], [], []
    for seed in range(150):
        draws = drawn_in_rounds(confidence, ~right, number, seed)
        at = draws.positions
        found = measured_accuracy(confidence, draws, ~right[at])
        accuracy.append(found.low <= right.mean() <= found.high)
        found = measured_calibration(confidence, draws, ~right[at])
        calibration.append(found.low <= gap <= found.high)
        each = measured_recalls(draws, 800, truth[at], predicted[at], 4)
        classes += [one.low <= recall <= one.high for one, recall in zip(each, recalls, strict=True)]
    assert np.mean(accuracy) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 150)
    assert np.mean(classes) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 600)
    assert np.mean(calibration) > 0.95


def test_a_model_that_knows_itself_needs_fewer_labels() -> None:
    """Beside a model that knows nothing, whose draws are even in the end."""
    widths = {}
    for name in ("calibrated", "ignorant"):
        confidence, _, _, right = POPULATIONS[name]
        found = [
            measured_accuracy(confidence, draws, ~right[draws.positions])
            for draws in (drawn_in_rounds(confidence, ~right, 100, seed) for seed in range(20))
        ]
        even = 2 * 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 100)
        widths[name] = np.mean([one.high - one.low for one in found]) / even
    assert widths["calibrated"] < 0.9 < widths["ignorant"] < 1.1


def test_all_images_labelled_leave_no_doubt() -> None:
    confidence, wrong = np.linspace(0.4, 1, 30), np.arange(30) % 4 == 0
    draws = draw_tests(confidence, Draws(), [], 30, KEYS[:30], seed=0)
    found = measured_accuracy(confidence, draws, wrong[draws.positions])
    assert (found.value, found.low, found.high) == pytest.approx((1 - wrong.mean(),) * 3)
    assert str(found) == "73.3 % [73.3, 73.3] by 30 labels"
    truth = np.arange(30) % 3
    each = measured_recalls(draws, 30, truth[draws.positions], np.where(wrong, 5, truth)[draws.positions], 3)
    for number, one in enumerate(each):
        assert (one.low, one.value, one.high) == pytest.approx((1 - wrong[truth == number].mean(),) * 3)
    gap = measured_calibration(confidence, draws, wrong[draws.positions])
    expected = np.mean([abs(1 - wrong[rows].mean() - confidence[rows].mean()) for rows in np.arange(30).reshape(5, 6)])
    assert (gap.low, gap.value, gap.high) == pytest.approx((expected,) * 3)
    assert error_terms(confidence, draws, wrong[draws.positions]).most == pytest.approx(wrong.mean())
    assert draw_tests(confidence, draws, wrong[draws.positions], 0, KEYS[:30], seed=0) is draws


def test_no_label_and_one_label_say_nothing() -> None:
    found = measured_accuracy([0.5, 0.9], Draws(), [])
    assert math.isnan(found.value)
    assert (found.low, found.high, found.labels) == (0, 1, 0)
    one = draw_tests([0.5, 0.9, 0.8], Draws(), [], 1, KEYS[:3], seed=0)
    found = measured_accuracy([0.5, 0.9, 0.8], one, [False])
    assert (found.low, found.high) == (0, 1)
    assert [math.isnan(each.value) for each in measured_recalls(one, 3, [1], [1], 2)] == [True, False]
    nothing = measured_calibration([0.5, 0.9, 0.8], one, [])
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.labels) == (0, pytest.approx((0.5 + 0.9 + 0.8) / 3), 0)


def test_bins_without_labels_say_nothing_of_the_calibration_error() -> None:
    """Of four images in five bins, and with labels in some bins alone: the gap is the mean of those that have some."""
    few = draw_tests([0.5, 0.9, 0.8, 0.6], Draws(), [], 4, KEYS[:4], seed=0)
    wrong = np.array([True, False, False, True])[few.positions]
    assert measured_calibration([0.5, 0.9, 0.8, 0.6], few, wrong).value == pytest.approx((0.5 + 0.1 + 0.2 + 0.6) / 4)
    confidence = np.repeat([0.5, 0.9], 50)
    one = Draws(np.array([0]), np.array([0.01]), np.array([0.01]))
    assert measured_calibration(confidence, one, [True], bins=2).value == pytest.approx(0.5)


def test_labels_of_the_first_draws_are_enough() -> None:
    confidence = np.linspace(0.5, 1, 40)
    draws = draw_tests(confidence, Draws(), [], 20, KEYS[:40], seed=0)
    wrong = np.arange(12) % 3 == 0
    assert measured_calibration(confidence, draws, wrong) == measured_calibration(confidence, draws.first(12), wrong)
    truth, said = np.arange(12) % 2, np.zeros(12, dtype=int)
    assert measured_recalls(draws, 40, truth, said, 2) == measured_recalls(draws.first(12), 40, truth, said, 2)


def test_earlier_draws_serve_a_later_model() -> None:
    """What was drawn for one model measures another without bias: the mean over many draws is its accuracy."""
    confidence, _, _, right = POPULATIONS["calibrated"]
    other = np.roll(confidence, 1), np.roll(right, 1)
    values = []
    for seed in range(150):
        draws = drawn_in_rounds(confidence, ~right, 50, seed)
        values.append(measured_accuracy(other[0], draws, ~other[1][draws.positions]).value)
    assert abs(np.mean(values) - right.mean()) < 3 * np.std(values) / math.sqrt(150)
    wrong_way = replace(draws, chances=draws.chances[::-1].copy())
    assert measured_accuracy(other[0], wrong_way, ~other[1][draws.positions]).value != pytest.approx(values[-1])
