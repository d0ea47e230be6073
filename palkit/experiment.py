"""One active-learning run: score, select, label, fit, evaluate. A pure function of its config."""

import dataclasses
import hashlib
import json
import resource
import sys
import time
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from palkit.adapters import AdaptedModel, AdapterConfig, attach, first_trained_block, merge, save_adapter
from palkit.backbones import Backbone, BackboneConfig, load_backbone
from palkit.datasets import ImagePool, head, load_dataset
from palkit.errors import ConfigError, unknown_name
from palkit.metrics import evaluate
from palkit.runs import Round, RunDirectory
from palkit.scores import Dropout, LabelledSet, PoolScores
from palkit.scoring import InputCache, Progress, score_pool, silent
from palkit.strategies import get_strategy, select
from palkit.strategies.registry import STRATEGIES, check_options
from palkit.training import FitReport, TrainingConfig, fit

STD_FLOOR = 1e-6


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides what a run computes.

    Attributes:
        dataset: name, folder or CSV manifest.
        pool_size: only the first so many pool images take part; None takes all.
        backbone, adapter, training: see there.
        strategy: which images to buy.
        strategy_options: keyword options of the strategy, `subsample`, and, for a strategy that needs
            stochastic passes, `passes` and `dropout_rate` instead of its own.
        balance: None or "pcb".
        initial: cold-start strategy that buys the first batch.
        batch_size: labels per round; None means one per class, the paper's C.
        rounds: including round 0, which fits on the initial batch.
        evaluate_on: "test", or "val" while choosing hyper-parameters.
        seed: of the initial batch, adapter initialisation, augmentation, order and strategy.
    """

    dataset: str = "fashion_mnist"
    pool_size: int | None = 1500
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    strategy: str = "random"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    balance: str | None = None
    initial: str = "random"
    batch_size: int | None = None
    rounds: int = 7
    evaluate_on: str = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        strategy = get_strategy(self.strategy)
        ours = {"subsample", "passes", "dropout_rate"} if strategy.dropout else {"subsample"}
        check_options(strategy, self.balance, self.strategy_options.keys() - ours)
        if not get_strategy(self.initial).cold_start:
            raise unknown_name("cold-start strategy", self.initial, [n for n, s in STRATEGIES.items() if s.cold_start])
        for name, least in {"rounds": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)}: must be at least {least}.")
        for name in ("batch_size", "pool_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value}: must be at least 1.")
        if self.evaluate_on not in ("test", "val"):
            raise unknown_name("evaluate_on", self.evaluate_on, ["test", "val"])


def config_from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Build a config from plain values; dotted keys reach into parts: `{"adapter.rank": 8}`.

    Raises:
        ConfigError: a key or a type that does not fit, with the nearest valid key.
    """
    return _build(ExperimentConfig, nest(values), "")


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
        if isinstance(value, Mapping) and isinstance(target.get(leaf), dict):
            target[leaf].update(value)
        else:
            target[leaf] = dict(value) if isinstance(value, Mapping) else value
    return nested


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown_name("config field", prefix + name, [prefix + hint for hint in hints])
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, str) and "name" in typing.get_type_hints(hint):
            value = {"name": value}
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            arguments[name] = _build(typing.cast(type, hint), value, f"{prefix}{name}.")
        else:
            arguments[name] = _checked(prefix + name, value, hint)
    return kind(**arguments)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that the field declares, or a ConfigError that names both."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    if tuple[str, ...] in options and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if float in options and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if int in options and isinstance(value, int) and not isinstance(value, bool):
        return value
    if str in options and isinstance(value, str):
        return value
    if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
        return dict(value)
    wanted = " or ".join("nothing" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{name} is {value!r} ({type(value).__name__}); it must be {wanted}.")


def plain(config: ExperimentConfig) -> dict[str, Any]:
    """The config as JSON values, from which `config_from_dict` makes it again."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


@dataclass(frozen=True)
class Setting:
    """What a run works on: loaded once, shared by the runs of a process."""

    pool: ImagePool
    backbone: Backbone
    cache: InputCache


def setting(config: ExperimentConfig, device: str = "cpu", progress: Progress = silent) -> Setting:
    """Load data and backbone of a config."""
    pool = _dataset(config.dataset, config.pool_size)
    backbone = _backbone(config.backbone, device)
    return Setting(pool, backbone, InputCache(pool, backbone, progress))


@cache
def _dataset(name: str, pool_size: int | None) -> ImagePool:
    pool = load_dataset(name)
    return pool if pool_size is None else head(pool, pool_size)


@cache
def _backbone(config: BackboneConfig, device: str) -> Backbone:
    return load_backbone(config, device)


def resolve(config: ExperimentConfig, device: str = "cpu") -> dict[str, Any]:
    """The config with every default filled in, and checksums of data and weights; what the hash is made of."""
    return _resolve(config, setting(config, device))


def _resolve(config: ExperimentConfig, here: Setting) -> dict[str, Any]:
    resolved = plain(config)
    resolved["batch_size"] = config.batch_size or len(here.pool.class_names)
    return resolved | {"data_sha256": here.cache.data_checksum, "weights_sha256": here.backbone.checksum}


def run_hash(resolved: Mapping[str, Any]) -> str:
    """Name of the run directory: equal exactly for equal resolved configs."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:16]


def rounds(config: ExperimentConfig, *, device: str = "cpu", progress: Progress = silent) -> Iterator[Round]:
    """Run an experiment, yielding each round as soon as it is on disk; complete rounds are not computed again.

    Args:
        config: what to run.
        device: "cpu", "cuda" or "mps"; not part of the config, because it should not change the result.
        progress: called with (stage, done, total).

    Raises:
        ConfigError: the config cannot work on this data set.
        DivergenceError: a loss is not finite. Complete rounds stay on disk.
    """
    here = setting(config, device, progress)
    resolved = _resolve(config, here)
    directory = RunDirectory(config.dataset, run_hash(resolved))
    directory.path.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.path / ".lock"):
        if directory.is_complete(config.rounds):
            yield from directory.rounds()[: config.rounds]
            return
        yield from _compute(config, here, resolved, directory, progress)


def run_directory(config: ExperimentConfig, device: str = "cpu") -> RunDirectory:
    """Where the run of this config is, or will be."""
    return RunDirectory(config.dataset, run_hash(resolve(config, device)))


def _compute(
    config: ExperimentConfig,
    here: Setting,
    resolved: Mapping[str, Any],
    directory: RunDirectory,
    progress: Progress,
) -> Iterator[Round]:
    pool_rows, batch_size = here.pool.rows("pool"), config.batch_size or len(here.pool.class_names)
    if config.rounds * batch_size > len(pool_rows):
        raise ConfigError(
            f"{config.rounds} rounds of {batch_size} labels need {config.rounds * batch_size} images, but the pool of "
            f"{config.dataset!r} has {len(pool_rows)}. Lower rounds or batch_size, or raise pool_size."
        )
    first_trained_block(config.adapter, here.backbone.depth)
    directory.start(resolved)
    done = directory.rounds()[: config.rounds]
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

    for number in range(first, config.rounds):
        positions = np.concatenate(bought[: number + 1])
        began = time.perf_counter()
        model, _ = learner.fit(positions, number)
        fit_s = time.perf_counter() - began
        began = time.perf_counter()
        last = number + 1 == config.rounds
        scores, eval_probs = learner.score(model, number, progress, pool=not last)
        score_s = time.perf_counter() - began
        began = time.perf_counter()
        if scores is not None and len(bought) == number + 1:
            bought.append(learner.next_batch(scores, positions, batch_size, number + 1))
        select_s = time.perf_counter() - began
        round_ = Round(
            number=number,
            labels=len(positions),
            bought=tuple(bought[number].tolist()),
            metrics=evaluate(eval_probs, learner.eval_labels),
            costs={
                "fit_s": fit_s,
                "score_s": score_s,
                "select_s": select_s,
                "peak_mb": peak_memory(),
            },
        )
        if last:
            save_adapter(model, directory.path / "adapter.safetensors")
        if number == len(done):
            done.append(round_)
            directory.write(done, learner.selections(bought))
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
        # Pool and evaluation rows in one tensor: one pass scores both.
        rows = torch.from_numpy(np.concatenate([self.pool_rows, eval_rows]))
        self.inputs = here.cache.inputs(self.start_block)[rows]
        self.frozen = here.cache.features()[torch.from_numpy(self.pool_rows)].float()
        self.mean, self.std = self.frozen.mean(dim=0), self.frozen.std(dim=0).clamp_min(STD_FLOOR)
        self._views: dict[int, Tensor] = {}
        strategy, self.options = get_strategy(config.strategy), dict(config.strategy_options)
        self.dropout = strategy.dropout
        if self.dropout is not None:
            passes = self.options.pop("passes", self.dropout.passes)
            self.dropout = Dropout(passes, self.options.pop("dropout_rate", self.dropout.rate))
        if "labels" in strategy.options:  # an oracle
            self.options["labels"] = self.pool_labels

    def first_batch(self, batch_size: int) -> np.ndarray:
        """Pool positions of the initial set: the same for every strategy and adapter of a seed."""
        classes = len(self.here.pool.class_names)
        uniform = torch.full((len(self.pool_rows), classes), 1 / classes)
        scores = PoolScores((self.frozen - self.mean) / self.std, uniform)
        nothing = LabelledSet(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
        return select(self.config.initial, scores, nothing, batch_size, self._generator("initial", 0)).numpy()

    def next_batch(self, scores: PoolScores, positions: np.ndarray, batch_size: int, number: int) -> np.ndarray:
        """Pool positions that the strategy buys for round `number`."""
        bought = torch.from_numpy(positions)
        return select(
            self.config.strategy,
            scores,
            LabelledSet(bought, self.pool_labels[bought]),
            batch_size,
            self._generator("select", number),
            balance=self.config.balance,
            **self.options,
        ).numpy()

    def fit(self, positions: np.ndarray, number: int) -> tuple[AdaptedModel, FitReport]:
        """A model fitted from the pretrained weights to the labels bought so far, merged for scoring."""
        device = self.here.backbone.device
        model = attach(
            self.here.backbone,
            self.config.adapter,
            len(self.here.pool.class_names),
            self.mean.to(device),
            self.std.to(device),
            seed_of(self.config.seed, "adapter", 0),
        )
        inputs = self._augmented(positions)
        labels = self.pool_labels[torch.from_numpy(positions)].to(device)
        report = fit(model, inputs, labels, self.config.training, seed_of(self.config.seed, "fit", number))
        return merge(model), report

    def score(
        self, model: AdaptedModel, number: int, progress: Progress = silent, *, pool: bool = True
    ) -> tuple[PoolScores | None, Tensor]:
        """Scores of the pool and (M, C) probabilities of the evaluation rows, from one pass.

        Args:
            model: fitted and merged.
            number: of the round.
            progress: see `score_pool`.
            pool: whether the pool is scored too; after the last round nothing is selected.
        """
        size = len(self.pool_rows)
        if not pool:
            return None, score_pool(model, self.inputs[size:], progress).probs
        rng = self._generator("dropout", number)
        scores = score_pool(model, self.inputs, progress, dropout=self.dropout, rng=rng)
        passes = scores.stochastic_probs
        passes = None if passes is None else passes[:, :size]
        return PoolScores(scores.features[:size], scores.probs[:size], passes), scores.probs[size:]

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

    def _augmented(self, positions: np.ndarray) -> Tensor:
        """(V, L, ...) views of the labelled images; the frozen prefix sees each image once per run."""
        missing = np.array([p for p in positions if int(p) not in self._views], dtype=np.int64)
        training = self.config.training
        views = self.here.cache.augmented(
            self.start_block, self.pool_rows[missing], training.augmentation, training.views, self.config.seed
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
