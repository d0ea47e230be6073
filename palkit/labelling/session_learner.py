"""The model side of a labelling session: from labels by name to scores, metrics and the next batch; no files."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import pad

from palkit.config import ExperimentConfig, plain, runs_only
from palkit.data import UNLABELLED, ImagePool
from palkit.errors import ConfigError
from palkit.experiments.classifier import Classifier
from palkit.experiments.experiment import Learner
from palkit.experiments.setting import setting, settle
from palkit.models.adapters import AdaptedModel, merge
from palkit.models.metrics import evaluate
from palkit.progress import Progress
from palkit.storage.checks import normal
from palkit.strategies import get_strategy
from palkit.strategies.balance import group_numbers
from palkit.strategies.kernels import Rows, View
from palkit.strategies.registry import check_groups
from palkit.strategies.scores import PoolScores
from palkit.strategies.ties import Keys

BATCH = 10  # labels per round where there are no classes yet to go by


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A model fitted to labels that people gave.

    Attributes:
        learner: that fitted it, and knows its labels.
        model: ready to score.
        class_names: what its outputs mean.
        number: of the round.
    """

    learner: Learner
    model: AdaptedModel
    class_names: tuple[str, ...]
    number: int

    def classifier(self) -> Classifier:
        """The model alone, to predict other images with."""
        return Classifier(self.learner.config, self.class_names, self.learner.here.backbone, self.model)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted model's view of the pool.

    Attributes:
        scores: of the whole pool.
        class_names: what the columns of its probabilities mean.
        metrics: of `palkit.models.metrics.evaluate`; empty without held-out labels.
        held_out: images that they were measured on.
    """

    scores: PoolScores
    class_names: tuple[str, ...]
    metrics: dict[str, float]
    held_out: int

    def guess(self, position: int) -> tuple[str, float]:
        """Most probable class of an image of the pool, and its probability."""
        probability, code = self.scores.probs[position].max(0)
        return self.class_names[int(code)], float(probability)


class SessionLearner:
    """Fits models to labels that people gave, and chooses what they should label next.

    With the labels of a simulated run in its order, fits and choices are those of
    `palkit.experiments.experiment.rounds`.

    Args:
        config: see `palkit.labelling.session.Session`.
        pool: its labels are those that are known without anybody's answer.
        device: where to compute.

    Raises:
        ConfigError: the strategy reads labels, bounds images per group where there are no groups, or goes
            on from the last round's model.
    """

    def __init__(self, config: ExperimentConfig, pool: ImagePool, device: str) -> None:
        for name in (config.strategy, config.initial):
            if get_strategy(name).is_oracle:
                raise ConfigError(f"strategy {name!r} reads labels that nobody has given yet; choose another.")
        runs_only(config)
        check_groups(config.strategy_options.get("per_group"), pool.groups is not None)
        self.config, self.pool, self.device = config, pool, device
        self.rows = pool.rows("pool")
        self.position = {normal(str(name)): position for position, name in enumerate(pool.ids[self.rows])}
        self._learner: Learner | None = None

    def batch_size(self, class_names: Sequence[str]) -> int:
        """Labels per round."""
        return self.config.batch_size or len(class_names) or BATCH

    def record(self) -> dict[str, Any]:
        """The settled config and the checksum of the weights, of what has been computed."""
        assert self._learner is not None, "nothing has been computed"
        return plain(self._learner.config) | {"weights_sha256": self._learner.here.backbone.checksum}

    def fit(self, labels: Mapping[str, str], class_names: Sequence[str], number: int, progress: Progress) -> Fitted:
        """Fit a model.

        Args:
            labels: image -> class name, in order of labelling.
            class_names: all classes.
            number: of the round, from 0.
            progress: see `palkit.experiments.experiment.rounds`.

        Raises:
            ConfigError: labels of fewer than two classes.
            DivergenceError: the loss is not finite.
        """
        learner = self._relabelled(labels, class_names, progress)
        return Fitted(learner, learner.fit(self._positions(labels), number, progress), tuple(class_names), number)

    def score(self, fitted: Fitted, held_out: Mapping[str, str], progress: Progress) -> Fit:
        """Score the pool, and evaluate.

        Args:
            fitted: by the last call of `fit`.
            held_out: image -> class name, to evaluate on where the data set has no labelled evaluation split.
            progress: see `palkit.experiments.experiment.rounds`.
        """
        learner, class_names = fitted.learner, fitted.class_names
        scores = learner.score_pool(fitted.model, fitted.number, progress)
        truth, names = learner.eval_labels, learner.eval_names
        if len(truth):
            probs = learner.evaluate(merge(fitted.model), progress)
        else:
            held = torch.from_numpy(self._positions(held_out))
            probs, names = scores.probs[held], Keys(learner.names.rows[held], learner.names.classes)
            truth = torch.tensor([class_names.index(label) for label in held_out.values()], dtype=torch.int64)
        return Fit(scores, class_names, evaluate(probs, truth, names) if len(truth) else {}, len(truth))

    def judged(
        self, probs: np.ndarray, labels: Mapping[str, str], class_names: Sequence[str], progress: Progress
    ) -> Fit:
        """What somebody else's model says of the pool, as a fit: the features are those of the frozen backbone.

        Args:
            probs: (N, C) of the pool.
            labels: image -> class name.
            class_names: of the columns of `probs`.
            progress: see `palkit.experiments.experiment.rounds`.
        """
        scores = self._relabelled(labels, class_names, progress).unscored()
        given = torch.from_numpy(probs.astype(np.float32))
        return Fit(dataclasses.replace(scores, probs=given), tuple(class_names), {}, 0)

    def choose(
        self,
        fit: Fit | None,
        labels: Mapping[str, str],
        class_names: Sequence[str],
        refused: Iterable[str],
        batch_size: int,
        number: int,
        progress: Progress,
        again: Sequence[str] = (),
    ) -> list[int]:
        """Pool positions to label next, best first; by the cold-start strategy if there is no fit yet.

        Args:
            fit: the last one.
            labels: image -> class name, all that is known for training.
            class_names: all classes.
            refused: images that must not be chosen.
            batch_size: at most.
            number: of the round that the labels are for.
            progress: see `palkit.experiments.experiment.rounds`.
            again: images that the batch has already.
        """
        left = np.ones(len(self.rows), dtype=bool)
        left[self._positions(set(refused) - labels.keys())] = False
        if left.sum() == len(labels):
            return []
        learner = self._relabelled(labels, class_names, progress)
        bought, keep = self._positions(labels), torch.from_numpy(np.flatnonzero(left))
        if fit is None:
            scores = _restrict(learner.unscored(), keep, learner.names)
            initial = learner.config.initial
            return learner.buy(initial, scores, bought, batch_size, number, purpose="initial", rows=keep).tolist()
        scores = _restrict(fit.scores, keep, learner.names)
        begun = torch.from_numpy(self._positions(again))
        return learner.next_batch(scores, bought, batch_size, number, keep, begun).tolist()

    def spread(self, names: list[str]) -> list[str]:
        """Those of some images, best first, that one batch may hold: `per_group` of each group at most."""
        bound, groups = self.config.strategy_options.get("per_group"), self.pool.groups
        if bound is None or groups is None:
            return names
        numbers = pd.Series(group_numbers(groups[self.rows[self._positions(names)]]))
        fits = (numbers < 0) | (numbers.groupby(numbers).cumcount() < bound)
        return [name for name, one in zip(names, fits, strict=True) if one]

    def _positions(self, names: Iterable[str]) -> np.ndarray:
        return np.array([self.position[name] for name in names if name in self.position], dtype=np.int64)

    def _relabelled(self, labels: Mapping[str, str], class_names: Sequence[str], progress: Progress) -> Learner:
        """The learner, made when it is first needed, that knows these labels."""
        if self._learner is None:
            here = setting(self.config, self.device, progress, self.pool)
            config = dataclasses.replace(self.config, batch_size=self.batch_size(class_names))
            self._learner = Learner(settle(config, here), here)
        code = {name: number for number, name in enumerate(class_names)}
        known = self.pool.labels.copy()
        known[self.rows] = UNLABELLED
        # An image may have gone since it was labelled.
        known[self.rows[self._positions(labels)]] = [code[labels[name]] for name in labels if name in self.position]
        # Cold-start strategies look at no class, but scores have to have one.
        names = tuple(class_names) or ("",)
        self._learner.relabel(dataclasses.replace(self.pool, labels=known, class_names=names))
        return self._learner


def _restrict(scores: PoolScores, keep: torch.Tensor, names: Keys) -> PoolScores:
    """Scores of some rows; classes that have been added since the fit have no probability."""
    features: Rows = scores.features if len(keep) == len(scores) else View(scores.features, keep)
    new = (0, len(names.classes) - scores.probs.shape[1])
    passes = scores.stochastic_probs
    probs = pad(scores.probs[keep], new)
    keys = Keys(names.rows[keep], names.classes)
    return PoolScores(features, probs, None if passes is None else pad(passes[:, keep], new), keys)
