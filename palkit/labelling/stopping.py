"""When to stop labelling: a rule with a guarantee, one that looks ahead, and those of other libraries."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from palkit.labelling.extrapolation import Forecast
from palkit.labelling.sequences import betting_interval
from palkit.labelling.testing import Terms


def risk_of(number: int, level: float = 0.95) -> float:
    """Risk that round `number`, from 0, may take of being wrong: over ever so many rounds, 1 - level in all.

    >>> round(sum(risk_of(number) for number in range(10_000)), 4)
    0.05
    """
    return (1 - level) / ((number + 1) * (number + 2))


def accuracy_at_least(terms: Terms, number: int, level: float = 0.95) -> float:
    """Accuracy that the model of a round has at least; with probability `level` that is so of all rounds at once.

    A rule that stops in the first round in which this reaches a target is wrong about it in 1 - level of all sessions
    at most, however many rounds there are. Each round is looked at once (a repeated fit is another round), and none may
    learn from test labels.

    Args:
        terms: of the model's error, see `palkit.labelling.testing.error_terms`.
        number: of the round, from 0.
        level: of all rounds together.
    """
    if not len(terms.values):
        return 0.0
    confidence, labels = 1 - 2 * risk_of(number, level), len(terms.values)
    ends = betting_interval(terms.values, terms.low, terms.high, confidence=confidence, horizon=labels)
    return 1 - min(float(ends[-1, 1]), terms.most)


def little_to_gain(forecast: Forecast, gain: float) -> bool:
    """Whether the next labels asked about will hardly bring more than `gain` (a share): the forecast's upper end.

    Args:
        forecast: of the next round.
        gain: that a round must be able to bring.
    """
    return bool(len(forecast.high) and forecast.high[0] - forecast.last < gain)


def predictions_settled(predictions: Sequence[ArrayLike], kappa: float = 0.99, window: int = 3) -> bool:
    """Whether the last models agree: mean kappa of the last `window` pairs of rounds in a row reaches `kappa`.

    Args:
        predictions: (N,) class codes of each round, of the same images, none of which was trained on.
        kappa: Cohen's, of one round with the next.
        window: pairs.

    Source: Bloodgood and Vijay-Shanker, A Method for Stopping Active Learning Based on Stabilizing Predictions, CoNLL
    2009; small-text's KappaAverage, with its defaults.

    >>> predictions_settled([[0, 1, 1]] * 4), predictions_settled([[0, 1, 1]] * 3)
    (True, False)
    """
    from sklearn.metrics import cohen_kappa_score

    if len(predictions) <= window:
        return False
    last = [np.asarray(one) for one in predictions[-window - 1 :]]
    agreement = [
        1.0 if np.array_equal(before, after) else cohen_kappa_score(before, after) for before, after in pairwise(last)
    ]
    return float(np.mean(agreement)) >= kappa


def sure_enough(uncertainty: ArrayLike, threshold: float = 0.05) -> bool:
    """Whether the mean uncertainty of the pool is below a threshold.

    Args:
        uncertainty: (N,) of each image, 0 for none.
        threshold: of the mean.

    Source: small-text's OverallUncertainty and baal's LowAverageUncertaintyStoppingCriterion.
    """
    return float(np.mean(np.asarray(uncertainty, dtype=float))) < threshold


def accuracy_flat(accuracy: Sequence[float], patience: int = 3, epsilon: float = 1e-4) -> bool:
    """Whether the last `patience` held-out accuracies differ by no more than `epsilon` from the last.

    Source: baal's EarlyStoppingCriterion, with its defaults.
    """
    last = np.asarray(accuracy[-patience:], dtype=float)
    return len(last) == patience and bool((abs(last - last[-1]) <= epsilon).all())
