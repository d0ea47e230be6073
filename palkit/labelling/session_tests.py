"""Held-out images of a session of which few are drawn to be labelled, and what their labels say of its model."""

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from palkit.labelling.session_file import Drawn, SessionState
from palkit.labelling.session_learner import Fit
from palkit.labelling.stopping import accuracy_at_least
from palkit.labelling.testing import (
    Draws,
    draw_tests,
    error_terms,
    measured_accuracy,
    measured_calibration,
    measured_recalls,
)
from palkit.strategies.ties import Keys, keys_of, predict


@dataclass(frozen=True)
class Tested:
    """Images set aside; a prediction for one that nobody can label counts as wrong.

    So the accuracy is a lower bound of that over the images that can be labelled, and so is what is guaranteed.

    Attributes:
        ids: (N,) of them.
        confidence: (N,) of a model in its predictions.
        draws: M of them.
        predicted: (L,) class codes of the first L draws; the next one waits for its label.
        labels: (L,) of them, -1 where nobody can tell.
    """

    ids: list[str]
    confidence: NDArray
    draws: Draws
    predicted: NDArray
    labels: NDArray

    @property
    def wrong(self) -> NDArray:
        """(L,) whether the predictions are."""
        return self.predicted != self.labels

    def more(self, number: int, seed: int) -> list[Drawn]:
        """Further images to label, as many as there are.

        Args:
            number: of them.
            seed: of the session's draws.
        """
        number = min(number, len(self.ids) - len(self.draws))
        found = draw_tests(self.confidence, self.draws, self.wrong, number, keys_of(self.ids), seed)
        new = range(len(self.draws), len(found))
        return [
            Drawn(self.ids[found.positions[place]], float(found.chances[place]), float(found.least[place]))
            for place in new
        ]

    def metrics(self, number: int) -> dict[str, float]:
        """Metrics of round `number` for `palkit.labelling.session_file.SessionRound`; none without labels."""
        if not len(self.wrong):
            return {}
        found = measured_accuracy(self.confidence, self.draws, self.wrong)
        least = accuracy_at_least(error_terms(self.confidence, self.draws, self.wrong), number)
        return {
            "accuracy": found.value,
            "accuracy_low": found.low,
            "accuracy_high": found.high,
            "accuracy_at_least": least,
        }

    def table(self, class_names: Sequence[str]) -> pd.DataFrame:
        """Accuracy, calibration error and each class's recall over all images, with 95 % intervals at one look.

        Args:
            class_names: of the codes.
        """
        known = len(self.labels)
        draws = Draws(self.draws.positions[:known], self.draws.chances[:known], self.draws.least[:known])
        found = {
            "accuracy": measured_accuracy(self.confidence, draws, self.wrong),
            "calibration error": measured_calibration(self.confidence, draws, self.wrong),
        }
        recalls = measured_recalls(draws, len(self.ids), self.labels, self.predicted, len(class_names))
        found |= {f"recall of {name}": one for name, one in zip(class_names, recalls, strict=True)}
        return pd.DataFrame({name: vars(one) for name, one in found.items()}).T.astype({"labels": int})


def tested(
    state: SessionState,
    fit: Fit | None,
    position: Mapping[str, int],
    labels: Mapping[str, str],
    answered: AbstractSet[str],
) -> Tested:
    """What is known of the images that a session set aside.

    Args:
        state: of the session.
        fit: its model; None before the first, when all draws have the same chance.
        position: of the images in the pool; one may have gone.
        labels: image -> class name, of all that are labelled.
        answered: images that somebody has answered; without a label nobody can tell their class, or people disagree.
    """
    ids = [name for name in state.held_out if name in position]
    place = {name: number for number, name in enumerate(ids)}
    drawn = [one for one in state.drawn if one.id in place]
    draws = Draws(
        np.array([place[one.id] for one in drawn], dtype=np.int64),
        np.array([one.chance for one in drawn]),
        np.array([one.least for one in drawn]),
    )
    if fit is None:
        nothing = np.empty(0, dtype=np.int64)
        return Tested(ids, np.full(len(ids), 0.5), draws, nothing, nothing)
    rows = torch.tensor([position[name] for name in ids], dtype=torch.int64)
    probs, names = fit.scores.probs[rows], fit.scores.keys  # (N, C)
    predicted = predict(probs, Keys(names.rows[rows], names.classes))
    known = list(takewhile(lambda one: one.id in labels or one.id in answered, drawn))
    code = {name: number for number, name in enumerate(fit.class_names)}
    said = np.array([int(predicted[place[one.id]]) for one in known], dtype=np.int64)
    # A class that the model does not know yet is none of those that it may have meant.
    true = [code.get(labels[one.id], len(code)) if one.id in labels else -1 for one in known]
    return Tested(ids, probs.amax(1).double().numpy(), draws, said, np.array(true, dtype=np.int64))


def wanted_tests(share: float, training: int) -> int:
    """Test labels beside so many training labels.

    >>> wanted_tests(0.25, 30), wanted_tests(0.4, 30)
    (10, 20)
    """
    return math.ceil(round(share / (1 - share) * training, 6))  # in floats 20 may be a little more
