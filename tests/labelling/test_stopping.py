"""Rules for stopping: a guarantee that is kept over rounds and looks, and the rules of other libraries by hand."""

import numpy as np
import pytest

from palkit.labelling.extrapolation import forecast
from palkit.labelling.stopping import (
    accuracy_at_least,
    accuracy_flat,
    little_to_gain,
    predictions_settled,
    risk_of,
    sure_enough,
)
from palkit.labelling.testing import Draws, draw_tests, error_terms
from palkit.strategies.ties import keys_of


def test_risks_of_all_rounds_are_the_risk() -> None:
    assert sum(risk_of(number, 0.9) for number in range(100_000)) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.campaign
def test_whoever_stops_at_the_target_is_seldom_wrong() -> None:
    """Ten rounds, each with a better model, five more test labels and a look; the target is missed by a little."""
    rng, keys = np.random.default_rng(0), keys_of(map(str, range(400)))
    accuracies, target, wrongly, stopped = np.linspace(0.5, 0.89, 10), 0.9, 0, 0
    for seed in range(30):
        difficulty = rng.random(400)
        draws, wrong = Draws(), np.empty(0, dtype=bool)
        for number, accuracy in enumerate(accuracies):
            wrong = difficulty > accuracy
            confidence = np.clip(1.3 - difficulty, 0.3, 0.99)
            draws = draw_tests(confidence, draws, wrong[draws.positions], 20, keys, seed)
            terms = error_terms(confidence, draws, wrong[draws.positions])
            if accuracy_at_least(terms, number) >= target:
                wrongly += (~wrong).mean() < target
                break
        terms = error_terms(confidence, draws, wrong[draws.positions])
        stopped += accuracy_at_least(terms, 9) >= 0.7
    assert wrongly <= 4
    assert stopped > 15, "a target that is well exceeded is found to be"


def test_nothing_is_known_without_labels() -> None:
    assert accuracy_at_least(error_terms([0.9, 0.8], Draws(), []), 0) == 0


def test_a_gain_is_little_if_the_forecast_has_no_room_for_it() -> None:
    flat = forecast([100, 200, 300, 400], [0.9, 0.901, 0.902, 0.902], 5000, [410])
    steep = forecast([10, 20, 30], [0.4, 0.5, 0.6], 5000, [40])
    assert little_to_gain(flat, 0.02)
    assert not little_to_gain(steep, 0.02)
    assert not little_to_gain(forecast([], [], 100, []), 0.02)


def test_settled_predictions_by_hand() -> None:
    """Kappa of these two is (2/3 - 5/9) / (1 - 5/9) = 1/4."""
    before, after = [0, 0, 1], [0, 0, 0]
    other = [0, 1, 1]
    assert not predictions_settled([before, other, before, other])
    assert not predictions_settled([before, before, before])
    assert predictions_settled([other, before, before, before, before])
    assert predictions_settled([[0, 0, 1, 1], [0, 0, 1, 0]], kappa=0.5, window=1)
    assert not predictions_settled([[0, 0, 1, 1], [0, 0, 1, 0]], kappa=0.51, window=1)
    assert not predictions_settled([before, after], window=1)


def test_flat_and_sure() -> None:
    assert accuracy_flat([0.5, 0.7, 0.7, 0.70005])
    assert not accuracy_flat([0.7, 0.7])
    assert not accuracy_flat([0.5, 0.69, 0.7, 0.7])
    assert sure_enough([0.0, 0.09])
    assert not sure_enough([0.0, 0.1])
