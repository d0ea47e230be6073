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
    of_those_there,
)
from palkit.strategies.ties import Keys, keys_of, predict

GONE = -2  # code of a prediction that cannot be made, for the image is gone: it is wrong whatever the label


@dataclass(frozen=True)
class Tested:
    """Images set aside; a prediction for one that nobody can label counts as wrong.

    So the accuracy is a lower bound of that over the images that can be labelled, and so is what is guaranteed. Images
    that are gone stay among the N: those drawn before were drawn among them, too.

    Attributes:
        ids: (N,) of them.
        confidence: (N,) of a model in its predictions, NaN for images that are gone.
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
        drawn = np.isin(np.arange(len(self.ids)), self.draws.positions)
        number = min(number, int((~np.isnan(self.confidence) & ~drawn).sum()))
        found = draw_tests(self.confidence, self.draws, self.wrong, number, keys_of(self.ids), seed)
        new = range(len(self.draws), len(found))
        return [
            Drawn(self.ids[found.positions[place]], float(found.chances[place]), float(found.least[place]))
            for place in new
        ]

    def metrics(self, number: int) -> dict[str, float]:
        """Metrics of round `number` for `palkit.labelling.session_file.SessionRound`; none without labels."""
        if not len(self.wrong) or np.isnan(self.confidence).all():
            return {}
        found = measured_accuracy(self.confidence, self.draws, self.wrong)
        least = accuracy_at_least(error_terms(self.confidence, self.draws, self.wrong), number)
        return {
            "accuracy": found.value,
            "accuracy_low": found.low,
            "accuracy_high": found.high,
            "accuracy_at_least": of_those_there(least, self.confidence),
        }

    def table(self, class_names: Sequence[str]) -> pd.DataFrame:
        """Accuracy, calibration error and each class's recall over all images, with 95 % intervals at one look.

        Args:
            class_names: of the codes.
        """
        found = {
            "accuracy": measured_accuracy(self.confidence, self.draws, self.wrong),
            "calibration error": measured_calibration(self.confidence, self.draws, self.wrong),
        }
        recalls = measured_recalls(self.draws, len(self.ids), self.labels, self.predicted, len(class_names))
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
    ids, drawn = list(state.held_out), state.drawn
    place = {name: number for number, name in enumerate(ids)}
    draws = Draws(
        np.array([place[one.id] for one in drawn], dtype=np.int64),
        np.array([one.chance for one in drawn]),
        np.array([one.least for one in drawn]),
    )
    there = np.array([name in position for name in ids], dtype=bool)
    confidence = np.where(there, 0.5, np.nan)
    if fit is None:
        nothing = np.empty(0, dtype=np.int64)
        return Tested(ids, confidence, draws, nothing, nothing)
    rows = torch.tensor([position[name] for name in ids if name in position], dtype=torch.int64)
    probs, names = fit.scores.probs[rows], fit.scores.keys  # (n, C)
    confidence[there] = probs.amax(1).double().numpy()
    predicted = np.full(len(ids), GONE)
    predicted[there] = predict(probs, Keys(names.rows[rows], names.classes)).numpy()
    known = list(takewhile(lambda one: one.id in labels or one.id in answered or one.id not in position, drawn))
    code = {name: number for number, name in enumerate(fit.class_names)}
    said = predicted[draws.positions[: len(known)]]
    # A class that the model does not know yet is none of those that it may have meant.
    true = [code.get(labels[one.id], len(code)) if one.id in labels else -1 for one in known]
    return Tested(ids, confidence, draws, said, np.array(true, dtype=np.int64))


def wanted_tests(share: float, training: int) -> int:
    """Test labels beside so many training labels.

    >>> wanted_tests(0.25, 30), wanted_tests(0.4, 30)
    (10, 20)
    """
    return math.ceil(round(share / (1 - share) * training, 6))  # in floats 20 may be a little more
