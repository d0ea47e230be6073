"""One active-learning run: score, select, label, fit, evaluate. A pure function of its config."""

import dataclasses
import hashlib
import resource
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from palkit.config import ExperimentConfig, config_from_dict, stochastic_passes
from palkit.data import ImagePool
from palkit.errors import ConfigError, DivergenceError
from palkit.experiments.classifier import Classifier, load_model
from palkit.experiments.runs import Resolved, Round, RunDirectory
from palkit.experiments.setting import Setting, forget_facts, known_facts, setting, settled
from palkit.models.adapters import AdaptedModel, attach, first_trained_block, merge, resume, trainable_count
from palkit.models.adapters.files import save_adapter
from palkit.models.devices import choose_device, memory_explained, memory_limit
from palkit.models.metrics import confidence_table, evaluate
from palkit.models.training import contradictions, cross_fitted_temperature, fit
from palkit.progress import Progress, silent
from palkit.scoring.scorer import score_pool
from palkit.storage.files import cache_dir, locked, owned, remove_orphans, storing
from palkit.strategies import get_strategy, select
from palkit.strategies.balance import group_numbers
from palkit.strategies.heads import PseudoLabels, pseudo_labels
from palkit.strategies.kernels import View, column_moments
from palkit.strategies.options import named_rows
from palkit.strategies.scores import Dropout, LabelledSet, PoolScores
from palkit.strategies.ties import Keys

STD_FLOOR = 1e-6
MOST_PSEUDO = 10_000  # rows of a graph of neighbours, whose cost grows with their square: seconds
SCORES = "scores-"  # prefix of temporary score folders


def resolve(config: ExperimentConfig, device: str | None = None, here: Setting | None = None) -> Resolved:
    """The config as it will run: settled on its data, backbone and machine, with the checksums of both.

    Args:
        config: of the run.
        device: see `rounds`.
        here: data and backbone where they are loaded; else they are only if they were never here, or have changed.
    """
    device = choose_device(device)
    facts = known_facts(config, device) if here is None else here.facts
    return Resolved(settled(config, facts, device), facts.data_sha256, facts.weights_sha256)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is computed as it is looked at: rounds one by one, then its model.

    Attributes:
        config: what is run.
        device: as of `rounds`.
        progress: likewise.

    >>> run(dataset="digits", pool_size=100, adapter="linear_probe", rounds=1).directory.path.parent.name
    'digits'
    """

    config: ExperimentConfig
    device: str | None = None
    progress: Progress = silent

    def __iter__(self) -> Iterator[Round]:
        return rounds(self.config, device=self.device, progress=self.progress)

    @property
    def directory(self) -> RunDirectory:
        """Where it is, or will be."""
        return run_directory(self.config, self.device)

    def model(self) -> Classifier:
        """The model of the last round, after computing what is missing."""
        for _ in self:
            pass
        return load_model(self.directory.path, self.device)


def run(*, device: str | None = None, progress: Progress = silent, **values: Any) -> Run:
    """A simulated run of active learning on labelled images, found again on disk where it was computed before.

    Args:
        device: see `rounds`.
        progress: likewise.
        values: fields of `palkit.ExperimentConfig`; a part by its name alone, as `adapter="lora"`, or as a mapping,
            as `adapter={"name": "lora", "rank": 4}`.

    Raises:
        ConfigError: a field that does not exist or does not fit, with the nearest that does.

    >>> for round in run(dataset="digits", pool_size=100, adapter="linear_probe", rounds=1):
    ...     print(round.number, round.labels)
    0 10
    """
    return Run(config_from_dict(values), device, progress)


def rounds(config: ExperimentConfig, *, device: str | None = None, progress: Progress = silent) -> Iterator[Round]:
    """Run an experiment, yielding each round as soon as it is on disk; complete rounds are not computed again.

    Args:
        config: what to run.
        device: "cpu", "cuda" or "mps", None for the best there is; not part of the config, because it should not
            change the result.
        progress: called with (stage, done, total).

    Raises:
        ConfigError: the config cannot work on this data set.
        DivergenceError: a loss is not finite. Complete rounds stay on disk.
        DataError: what is stored of the run is damaged; says what to delete.
        StorageError: a file cannot be written. Complete rounds stay on disk.
        OutOfMemoryError: memory ran out. Complete rounds stay on disk.
    """
    with memory_explained():
        yield from _rounds(config, device, progress)


def _rounds(config: ExperimentConfig, device: str | None, progress: Progress) -> Iterator[Round]:
    directory = run_directory(config, device)
    if not directory.is_complete(config.rounds):  # a complete run may lie where nobody can write
        here = setting(config, device, progress)
        if not here.pool.is_labelled:
            raise ConfigError(
                f"dataset {config.dataset!r} has images without a label; a run simulates the expert and needs them "
                "all. Label them first, or leave them out of the manifest."
            )
        expected, resolved = directory, resolve(config, device, here)
        directory = resolved.directory
        if directory.run != expected.run:
            forget_facts(config)
        with locked(directory.path / ".lock"):
            if not directory.is_complete(config.rounds):
                yield from _compute(resolved, here, progress)
                return
    yield from directory.rounds()[: config.rounds]


def run_directory(config: ExperimentConfig, device: str | None = None) -> RunDirectory:
    """Where the run of this config is, or will be."""
    return resolve(config, device).directory


def _compute(resolved: Resolved, here: Setting, progress: Progress) -> Iterator[Round]:
    config, directory = resolved.config, resolved.directory
    pool_rows, batch_size = here.pool.rows("pool"), config.batch_size
    assert batch_size is not None, "settled"
    if config.rounds * batch_size > len(pool_rows):
        raise ConfigError(
            f"{config.rounds} rounds of {batch_size} labels need {config.rounds * batch_size} images, but the pool of "
            f"{config.dataset!r} has {len(pool_rows)}. Lower rounds or batch_size"
            + ("." if config.pool_size is None else ", or raise pool_size.")
        )
    done = directory.rounds()[: config.rounds]
    directory.remove_leftovers()
    directory.start(resolved, len(done), here.backbone.device)
    yield from done

    learner = Learner(config, here)
    bought = [np.array(round_.bought, dtype=np.int64) for round_ in done]
    if done and len(done) < config.rounds:
        stored = directory.selections()
        bought.append(stored.loc[stored["round"] == len(done), "position"].to_numpy(np.int64))
    if not bought:
        bought.append(learner.first_batch(batch_size))
    # A kill between the last round and its adapter leaves rounds complete but no adapter: fit that one again.
    first = min(len(done), config.rounds - 1)
    model = None
    for number in range(first if config.training.warm_start else 0):  # models are not stored
        model = learner.fit(np.concatenate(bought[: number + 1]), number, start=model)

    predictions = directory.predictions(first)

    for number in range(first, config.rounds):
        positions = np.concatenate(bought[: number + 1])
        began = time.perf_counter()
        model = learner.fit(positions, number, start=model)
        fitted = time.perf_counter()
        last = number + 1 == config.rounds
        scores = None
        if not last:
            # A strategy that does not look at scores is not kept waiting for them.
            scores = learner.unscored() if learner.blind else learner.score_pool(model, number, progress)
        judged = learner.evaluate(merge(model), progress), learner.eval_labels, learner.eval_names
        scored = time.perf_counter()
        if scores is not None and len(bought) == number + 1:
            bought.append(learner.next_batch(scores, positions, batch_size, number + 1))
        selected = time.perf_counter()
        round_ = Round(
            number=number,
            labels=len(positions),
            bought=tuple(bought[number].tolist()),
            metrics=evaluate(*judged) | {"temperature": float(model.temperature)},
            costs={
                "fit_s": fitted - began,
                "score_s": scored - fitted,
                "select_s": selected - scored,
                "peak_mb": peak_memory(),
                "trainable": float(trainable_count(model)),
            },
        )
        if last:
            save_adapter(model, directory.adapter, here.pool.class_names)
        if number == len(done):
            done.append(round_)
            predictions.append(confidence_table(*judged).assign(round=number))
            directory.write(done, learner.selections(bought), predictions)
            yield round_


class Learner:
    """The steps of a round on one setting; holds what does not change between rounds."""

    def __init__(self, config: ExperimentConfig, here: Setting) -> None:
        self.config = config
        self.here = here
        self.pool_rows = here.pool.rows("pool")
        eval_rows = here.pool.rows(config.evaluate_on)
        self.eval_labels = torch.from_numpy(here.pool.labels[eval_rows])
        self.pool_labels = torch.from_numpy(here.pool.labels[self.pool_rows])
        self.start_block = first_trained_block(config.adapter, here.backbone.depth)
        self.inputs = here.cache.rows(self.start_block, self.pool_rows)
        self.eval_inputs = here.cache.rows(self.start_block, eval_rows)
        frozen = here.cache.rows(here.backbone.depth, self.pool_rows)
        mean, variance = (moment.float() for moment in column_moments(frozen))
        std = variance.sqrt().clamp_min(STD_FLOOR)
        self.mean, self.std = mean, std
        self.frozen = View(frozen, change=lambda rows: (rows.float() - mean) / std)  # it must not hold on to `self`
        self.names, self.eval_names = (
            Keys.of(here.pool.ids[rows], here.pool.class_names).under(config.seed)
            for rows in (self.pool_rows, eval_rows)
        )
        self._views: dict[int, Tensor] = {}
        self._folder: tempfile.TemporaryDirectory | None = None
        strategy = get_strategy(config.strategy)
        self.options = named_rows(config.strategy_options, here.pool.ids[self.pool_rows].tolist())
        self.blind = strategy.blind and config.balance is None
        self.dropout = stochastic_passes(strategy.dropout, self.options)
        self.options |= self.truth_for(config.strategy)

    def truth_for(self, strategy: str) -> dict[str, Any]:
        """Options by which an oracle sees the true labels; none for any other strategy."""
        return {"labels": self.pool_labels} if get_strategy(strategy).is_oracle else {}

    def first_batch(self, batch_size: int) -> np.ndarray:
        """Pool positions of the initial set: the same for every strategy and adapter of a seed."""
        nothing = np.empty(0, dtype=np.int64)
        return self.buy(self.config.initial, self.unscored(), nothing, batch_size, 0, purpose="initial")

    def unscored(self) -> PoolScores:
        """Frozen features, and no idea of the classes."""
        classes = len(self.here.pool.class_names)
        size = len(self.frozen) * self.frozen.shape[1] * 4
        features = self.frozen[:] if size <= memory_limit() else self.frozen
        return PoolScores(features, torch.full((len(self.pool_rows), classes), 1 / classes), names=self.names)

    def next_batch(
        self,
        scores: PoolScores,
        positions: np.ndarray,
        batch_size: int,
        number: int,
        rows: Tensor | None = None,
        begun: Tensor | None = None,
    ) -> np.ndarray:
        """Pool positions that the strategy of the config buys for round `number`; arguments as of `buy`."""
        config = self.config
        kind: dict[str, Any] = {"balance": config.balance, "options": self.options}
        return self.buy(config.strategy, scores, positions, batch_size, number, rows=rows, begun=begun, **kind)

    def buy(
        self,
        strategy: str,
        scores: PoolScores,
        positions: np.ndarray,
        batch_size: int,
        number: int,
        *,
        purpose: str = "select",
        balance: str | None = None,
        options: Mapping[str, Any] | None = None,
        rows: Tensor | None = None,
        begun: Tensor | None = None,
    ) -> np.ndarray:
        """Pool positions that a strategy buys, best first.

        Args:
            strategy: its name.
            scores: of the pool, or of some rows of it.
            positions: (L,) of the labelled set, in order of purchase.
            batch_size: images to buy.
            number: of the round that they are for.
            purpose: of the random numbers: "select", or "initial" where no model has been fitted.
            balance: None or "pcb".
            options: of the strategy; None for those that it cannot do without.
            rows: (n,) ascending positions that the scores are of; None for all.
            begun: positions that the batch has already from elsewhere; None for an empty batch.
        """
        bought = torch.from_numpy(positions)
        labels = self.pool_labels[bought]
        given = dict(self.truth_for(strategy) if options is None else options)
        bound = given.pop("per_group", self.options.get("per_group"))  # of the first batch, too
        picks = select(
            strategy,
            scores,
            LabelledSet(bought if rows is None else torch.searchsorted(rows, bought), labels),
            batch_size,
            self._generator(purpose, number),
            balance=balance,
            per_group=bound,
            groups=None if bound is None else self._groups(rows),
            begun=None if bound is None or begun is None else self._groups(begun),
            **given,
        )
        return (picks if rows is None else rows[picks]).numpy()

    def _groups(self, rows: Tensor | None) -> Tensor | None:
        """Numbers of the groups of some pool positions, or of all; None if the data set has none."""
        groups = self.here.pool.groups
        if groups is None:
            return None
        numbers = group_numbers(groups[self.pool_rows])
        return numbers if rows is None else numbers[rows]

    def relabel(self, pool: ImagePool) -> None:
        """Go on with other labels of the same images, or other classes."""
        self.here = dataclasses.replace(self.here, pool=pool)
        self.pool_labels = torch.from_numpy(pool.labels[self.pool_rows])
        self.eval_labels = torch.from_numpy(pool.labels[pool.rows(self.config.evaluate_on)])
        classes = Keys.of((), pool.class_names).under(self.config.seed).classes
        self.names, self.eval_names = Keys(self.names.rows, classes), Keys(self.eval_names.rows, classes)

    def fit(
        self, positions: np.ndarray, number: int, progress: Progress = silent, *, start: AdaptedModel | None = None
    ) -> AdaptedModel:
        """A model fitted to the labels bought so far, ready to score.

        Its adapter is merged, so that scoring costs what the bare network does, unless the strategy drops inputs of it.

        Args:
            positions: of the pool.
            number: of the round.
            progress: see `palkit.models.training.fit`.
            start: the model of the round before; nothing of it is used without `training.warm_start`.
        """
        device, training = self.here.backbone.device, self.config.training
        inputs = self._augmented(positions, progress)
        labels = self.pool_labels[torch.from_numpy(positions)].to(device)
        seed = seed_of(self.config.seed, "fit", number)
        model = self._attach()
        if training.warm_start and start is not None:
            resume(model, start)
        pseudo = partial(self._pseudo_labels, positions) if training.pseudo_labels else None
        plain = self.inputs[torch.from_numpy(positions)].to(device).float()
        try:
            fit(model, inputs, labels, training, seed, progress, plain=plain, pseudo=pseudo)
        except DivergenceError as error:
            if not (copies := contradictions(plain, labels)):
                raise
            raise DivergenceError(
                f"training failed because {copies} of the {len(labels)} labelled images are copies of one with another "
                "label, and no model can tell them apart. `palkit manifest SOURCE OUT.csv` lists copies: "
                "correct their labels, or leave them out with --drop-duplicates."
            ) from error
        if training.temperature_folds:
            temperature = cross_fitted_temperature(self._attach, inputs, plain, labels, training, seed, pseudo)
            model.temperature.fill_(temperature)
        return model if self.dropout is not None and self.dropout.on == "adapter" else merge(model)

    def _pseudo_labels(self, positions: np.ndarray, images: Tensor) -> PseudoLabels:
        """Of the pool, or of MOST_PSEUDO rows of it that the seed draws, by the labels of some images.

        Other labelled images are left out: a model that is to predict them must not have learnt from them.

        Args:
            positions: (L,) of the labelled set.
            images: (n,) of these that say something.
        """
        bought = torch.from_numpy(positions)
        labelled, drawn = bought[images.cpu()], self.names.rows.argsort()
        drawn = drawn[~torch.isin(drawn, bought)][: max(MOST_PSEUDO - len(labelled), 0)]
        rows = View(self.frozen, torch.cat([labelled, drawn]))
        classes = len(self.here.pool.class_names)
        found = pseudo_labels(rows, torch.arange(len(labelled)), self.pool_labels[labelled], classes)
        return found._replace(weights=self.config.training.pseudo_labels * found.weights)

    def _attach(self) -> AdaptedModel:
        device = self.here.backbone.device
        return attach(
            self.here.backbone,
            self.config.adapter,
            len(self.here.pool.class_names),
            self.mean.to(device),
            self.std.to(device),
            seed_of(self.config.seed, "adapter", 0),
        )

    def score_pool(self, model: AdaptedModel, number: int, progress: Progress = silent) -> PoolScores:
        """Scores of the pool, with the stochastic passes that the strategy needs; arguments as of `scored`."""
        return self.scored(model, self.dropout, number, progress)

    def scored(
        self, model: AdaptedModel, dropout: Dropout | None, number: int, progress: Progress = silent
    ) -> PoolScores:
        """Scores of the pool.

        Args:
            model: fitted.
            dropout: of stochastic passes; None for no such passes.
            number: of the round.
            progress: see `palkit.scoring.scorer.score_pool`.
        """
        folder = self._feature_folder(dropout)
        scores = score_pool(
            model,
            self.inputs,
            self.here.cache.config,
            progress,
            dropout=dropout,
            rng=self._generator("dropout", number),
            folder=folder,
            names=self.names,
        )
        if folder is not None:
            weakref.finalize(scores.features, shutil.rmtree, folder, ignore_errors=True)
        return scores

    def evaluate(self, model: AdaptedModel, progress: Progress = silent) -> Tensor:
        """(M, C) probabilities of the evaluation rows."""
        return score_pool(model, self.eval_inputs, self.here.cache.config, progress).probs

    def _feature_folder(self, dropout: Dropout | None) -> Path | None:
        """Where features and stochastic passes of one scoring pass go if they exceed memory; gone with this object.

        Each pass has its own: scores of an earlier one may still be read.
        """
        passes = 0 if dropout is None else dropout.passes * len(self.here.pool.class_names)
        if 4 * len(self.pool_rows) * (self.here.backbone.width + passes) <= memory_limit():
            return None
        if self._folder is None:
            with storing(cache_dir()):
                cache_dir().mkdir(parents=True, exist_ok=True)
                remove_orphans(cache_dir(), SCORES)
                self._folder = tempfile.TemporaryDirectory(dir=cache_dir(), prefix=owned(SCORES))
        return Path(tempfile.mkdtemp(dir=self._folder.name))

    def selections(self, bought: list[np.ndarray]) -> pd.DataFrame:
        """Table of everything bought so far."""
        number = np.repeat(np.arange(len(bought)), [len(batch) for batch in bought])
        position = np.concatenate(bought)
        rows = self.pool_rows[position]
        return pd.DataFrame(
            {
                "round": number,
                "position": position,
                "id": self.here.pool.ids[rows],
                "label": self.here.pool.labels[rows],
            }
        )

    def _augmented(self, positions: np.ndarray, progress: Progress) -> Tensor:
        """(V, L, ...) views of the labelled images; the frozen prefix sees each image once per run."""
        missing = np.array([p for p in positions if int(p) not in self._views], dtype=np.int64)
        training = self.config.training
        views = self.here.cache.augmented(
            self.start_block, self.pool_rows[missing], training.augmentation, training.views, self.config.seed, progress
        )
        for column, position in enumerate(missing):
            self._views[int(position)] = views[:, column]
        return torch.stack([self._views[int(position)] for position in positions], dim=1)

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.config.seed, purpose, number))


def peak_memory() -> float:
    """Largest resident size of this process so far, in MB (2^20 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def seed_of(seed: int, purpose: str, number: int) -> int:
    """Independent 63-bit seed for one use of randomness, so that a resumed round draws what it would have drawn."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
