"""Answers to what strategies would label next: the explorer without its widgets; a change recomputes what it must."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import peft  # noqa: F401  the first fit would load it, while somebody waits
from pydantic import Field

from palkit.config import ExperimentConfig, plain, runs_only
from palkit.data import FileImages, ImagePool
from palkit.errors import ConfigError, brief
from palkit.experiments.experiment import Learner
from palkit.experiments.setting import Setting, pool_of, setting, settle
from palkit.labelling.maps import pca, tsne
from palkit.labelling.proposals import Answer, propose
from palkit.models.adapters import AdaptedModel
from palkit.progress import Progress, silent
from palkit.storage.checks import Checked, checked
from palkit.storage.files import cache_dir, short_hash
from palkit.strategies import get_strategy
from palkit.strategies.registry import check_options
from palkit.strategies.scores import Dropout, PoolScores


@dataclass(frozen=True)
class Question(Checked):
    """What is asked of one or two strategies.

    Attributes:
        config: data, backbone, adapter, training and seed; `batch_size` is how many images are proposed (None: one per
            class) and `balance` goes for all strategies. Its strategy is replaced by each of `strategies`.
        strategies: one or two registered names, A and B.
        round: the labelled set holds (round + 1) labels per class on average.
        history: who bought them: "random", all at once as the first batch of a run is bought, or "own", round by round
            what a run of A buys with the default batch size.
    """

    config: ExperimentConfig = field(default_factory=ExperimentConfig)
    strategies: tuple[str, ...] = ("entropy",)
    round: Annotated[int, Field(ge=0)] = 0
    history: Literal["random", "own"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(set(self.strategies)) == len(self.strategies) <= 2:
            raise ConfigError(f"strategies {brief(self.strategies)}: give one, or two different ones.")
        runs_only(self.config)
        for name in self.strategies:
            check_options(get_strategy(name), self.config.balance, {})


class Memo:
    """The results asked for last, at most `size` of them. What a cancelled computation left is nowhere."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of `make()`, computed if it is not kept."""
        value = self._kept[key] if key in self._kept else make()
        self.keep(key, value)
        return value

    def keep(self, key: Hashable, value: Any) -> None:
        """Keep a result as the newest one."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)


class _State(NamedTuple):
    """A fitted model: its learner, the round, and who bought the labels (None: all at once, at random)."""

    learner: str
    round: int
    buyer: tuple[str, str | None] | None

    @property
    def number(self) -> int:
        """Of the round in the run that would fit this model."""
        return 0 if self.buyer is None else self.round


class Exploration:
    """Answers questions, and keeps what the next one may need again.

    One fit serves all strategies, batch sizes and balances; scores and picks are kept in layers of bounded
    size. Whatever `progress` raises cancels; the same question then starts where complete parts end. Everything is
    held in memory: for pools of a few hundred thousand images. Threads wait for each other.
    """

    def __init__(self) -> None:
        self._settings = Memo(2)
        self._learners = Memo(4)
        self._labels = Memo(256)
        self._models = Memo(2)  # each holds a copy of the backbone
        self._scores = Memo(10)
        self._picks = Memo(512)
        self._maps = Memo(8)
        self._lock = Lock()

    def answer(self, question: Question, progress: Progress = silent) -> Answer:
        """What the strategies propose.

        Args:
            question: see there.
            progress: called with (stage, done, total).

        Raises:
            ConfigError: the data set is not fully labelled, or too small for the round.
            PalkitError: as for a run.
        """
        with self._lock:
            learner, state = self._begin(question, progress)
            config, here = question.config, learner.here
            size = config.batch_size or len(here.pool.class_names)
            picks = {}
            # Stochastic passes yield plain scores on the way, but not the other way round.
            for name in sorted(question.strategies, key=lambda name: get_strategy(name).dropout is None):
                picks[name] = self._pick(learner, state, name, config.balance, size, progress)
            scores = self._score(learner, state, None, progress)
            labelled = self._labelled(learner, state, progress)
            answer = Answer(here.pool, learner.pool_rows, labelled, scores, ())
            proposals = []
            for name in question.strategies:
                seen = self._score(learner, state, get_strategy(name).dropout, progress)
                proposals.append(propose(answer, name, picks[name], seen))
            return replace(answer, proposals=tuple(proposals))

    def prepare(self, question: Question, progress: Progress = silent) -> None:
        """Augment ahead what neighbours of a question need: the next seed, the other history, all rounds of its config.

        Only where features are frozen; elsewhere this would keep the machine busy.
        """
        config, training = question.config, question.config.training
        if config.adapter.name != "linear_probe":
            return
        neighbours = (
            replace(question, config=replace(config, seed=config.seed + 1)),
            replace(question, history="own" if question.history == "random" else "random"),
            replace(question, round=max(question.round, config.rounds - 1)),
        )
        with self._lock:
            for other in neighbours:
                learner, state = self._begin(other, progress)
                rows, seed = learner.pool_rows[self._labelled(learner, state, progress)], learner.config.seed
                learner.here.cache.augmented(
                    learner.start_block, rows, training.augmentation, training.views, seed, progress
                )

    def projection(self, question: Question, kind: str = "pca", progress: Progress = silent) -> np.ndarray:
        """(N, 2) map of the pool's frozen features.

        Args:
            question: only its data and backbone matter.
            kind: "pca", at once, or "tsne", in another process that ends if `progress` raises, then on disk.
            progress: called with (stage, done, total).

        Raises:
            ConfigError: another kind.
            PalkitError: the process failed.
        """
        checked("map", kind, Literal["pca", "tsne"])
        with self._lock:
            learner, _ = self._begin(question, progress)
        here = learner.here
        backbone = plain(question.config)["backbone"] | {"checkpoint": here.backbone.checksum}
        key = short_hash([here.pool.pixels_checksum, backbone])
        if kind == "pca":
            return self._maps.get((kind, key), lambda: pca(learner.frozen[:]))
        path = cache_dir() / "maps" / f"{key}.npy"
        try:
            return np.load(path)
        except (OSError, ValueError, EOFError):  # not there, or damaged
            tsne(learner.frozen[:].numpy(), path, progress)
        return np.load(path)

    def _begin(self, question: Question, progress: Progress) -> tuple[Learner, _State]:
        config = replace(
            question.config, strategy="random", strategy_options={}, balance=None, batch_size=None, rounds=1
        )
        here = self._setting(config, progress)
        key = short_hash([plain(config), _identity(here.pool)])
        learner = self._learners.get(key, lambda: Learner(settle(config, here), here))
        buyer = (question.strategies[0], question.config.balance)
        own = question.history == "own" and question.round
        needed = (question.round + 1) * len(here.pool.class_names)
        if needed >= len(learner.pool_rows):
            raise ConfigError(
                f"round {question.round} has {needed} labels, but the pool of {config.dataset!r} has "
                f"{len(learner.pool_rows)} images. Take an earlier round, or a larger pool_size."
            )
        return learner, _State(key, question.round, buyer if own else None)

    def _setting(self, config: ExperimentConfig, progress: Progress) -> Setting:
        def make() -> Setting:
            here = setting(config, progress=progress)
            if not here.pool.is_labelled:
                raise ConfigError(
                    f"dataset {config.dataset!r} has images without a label; the explorer plays the expert and needs "
                    "them all. To label these images yourself, open notebooks/label.ipynb."
                )
            return here

        values = plain(config)
        # With what the images are now: they may be replaced or renamed while the page is open.
        parts = [_identity(pool_of(config)), *(values[n] for n in ("dataset", "pool_size", "backbone", "scoring"))]
        here = self._settings.get(short_hash(parts), make)
        here.cache.progress = progress  # that of an earlier question may be closed
        return here

    def _labelled(self, learner: Learner, state: _State, progress: Progress) -> np.ndarray:
        classes = len(learner.here.pool.class_names)

        def make() -> np.ndarray:
            if state.buyer is None:
                return learner.first_batch((state.round + 1) * classes)
            buyer = state.buyer if state.round > 1 else None
            before = _State(state.learner, state.round - 1, buyer)
            bought = self._pick(learner, before, *state.buyer, classes, progress)
            return np.concatenate([self._labelled(learner, before, progress), bought])

        return self._labels.get(state, make)

    def _model(self, learner: Learner, state: _State, progress: Progress) -> AdaptedModel:
        return self._models.get(
            state, lambda: learner.fit(self._labelled(learner, state, progress), state.number, progress)
        )

    def _score(self, learner: Learner, state: _State, dropout: Dropout | None, progress: Progress) -> PoolScores:
        def make() -> PoolScores:
            scores = learner.scored(self._model(learner, state, progress), dropout, state.number, progress)
            self._scores.keep((state, None), PoolScores(scores.features, scores.probs, names=scores.names))
            return scores

        return self._scores.get((state, dropout), make)

    def _pick(
        self, learner: Learner, state: _State, name: str, balance: str | None, size: int, progress: Progress
    ) -> np.ndarray:
        def make() -> np.ndarray:
            strategy, bought = get_strategy(name), self._labelled(learner, state, progress)
            looks = balance is not None or not strategy.blind
            scores = self._score(learner, state, strategy.dropout, progress) if looks else learner.unscored()
            progress(f"selecting ({name})", 0, 1)
            return learner.buy(name, scores, bought, size, state.number + 1, balance=balance)

        return self._picks.get((state, name, balance, size), make)


def _identity(pool: ImagePool) -> str:
    """Checksum of a pool with what its images and classes are called and where its files lie."""
    paths = [str(path) for path in pool.images.paths] if isinstance(pool.images, FileImages) else []
    return short_hash([pool.checksum(), pool.ids.tolist(), pool.class_names, paths])


def summary(question: Question) -> str:
    """A question in a few words.

    Args:
        question: any.
    """
    config = question.config
    balance = f", balance {config.balance}" if config.balance else ""
    bought = "at random" if question.history == "random" else f"by {question.strategies[0]}"
    return (
        f"{' and '.join(question.strategies)}{balance} on {config.dataset}, {config.adapter.name}, "
        f"round {question.round} (labels bought {bought}), seed {config.seed}"
    )
