"""Proposals of strategies, how much two of them agree, and why an image was proposed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from palkit.data import ImagePool
from palkit.errors import ConfigError
from palkit.experiments.picks import PAIRS
from palkit.strategies import get_strategy
from palkit.strategies.kernels import distances, nearest
from palkit.strategies.scores import PoolScores
from palkit.strategies.uncertainty import entropy_scores, margin_scores

NEIGHBOURS = 5


@dataclass(frozen=True)
class Proposal:
    """The next batch of a strategy.

    Attributes:
        strategy: its name.
        table: one row per image in order of preference: rank (from 1), position (in the pool), row (of the data set),
            id, predicted (class name), probability (of that class), score.
        measure: what the score is: "least_confidence", "margin", "entropy" or "bald", by which the strategy ranks;
            "distance" to the nearest label where features alone count; "" (and NaN) where there is no such number.
    """

    strategy: str
    table: pd.DataFrame
    measure: str


@dataclass(frozen=True)
class Overlap:
    """Images that two strategies both propose. `jaccard` is their share of all proposed images."""

    positions: np.ndarray
    jaccard: float


@dataclass(frozen=True)
class Why:
    """What is known about one image of the pool.

    Attributes:
        position, row, id: which image.
        classes: columns class and probability, the most probable first.
        neighbours: columns row, position, label (class name) and distance of the nearest labelled images.
        margin, entropy: uncertainty, see `palkit.strategies.uncertainty`; high is unsure.
        margin_percentile, entropy_percentile, distance_percentile: percentage of unlabelled images that are at most as
            unsure, or as far from a label.
        ranks: strategy -> rank in its proposal, or None.
        truth: class name if it was asked for, else "".
    """

    position: int
    row: int
    id: str
    classes: pd.DataFrame
    neighbours: pd.DataFrame
    margin: float
    entropy: float
    margin_percentile: float
    entropy_percentile: float
    distance_percentile: float
    ranks: dict[str, int | None]
    truth: str


@dataclass(frozen=True)
class Answer:
    """What one or two strategies propose from the scores of one model.

    Attributes:
        pool: the data set.
        rows: (N,) its rows that make up the pool.
        labelled: (L,) pool positions of the labelled set.
        scores: of all N rows.
        proposals: one per strategy.
    """

    pool: ImagePool
    rows: np.ndarray
    labelled: np.ndarray
    scores: PoolScores
    proposals: tuple[Proposal, ...]

    @property
    def overlap(self) -> Overlap:
        """Images that all strategies propose."""
        batches = [proposal.table["position"].to_numpy() for proposal in self.proposals]
        both, either = np.intersect1d(batches[0], batches[-1]), np.union1d(batches[0], batches[-1])
        return Overlap(both, len(both) / len(either))

    def why(self, position: int, *, reveal: bool = False) -> Why:
        """What is known about an image.

        Args:
            position: in the pool.
            reveal: also its true class.

        Raises:
            ConfigError: there is no such position.
        """
        if not 0 <= position < len(self.rows):
            raise ConfigError(f"position {position}: the pool has {len(self.rows)} images, counted from 0.")
        names, pool = np.array(self.pool.class_names), self.pool
        probs = self.scores.probs[position].numpy()
        order = np.argsort(-probs, kind="stable")
        known = self.labelled[self.labelled != position]
        one = torch.tensor([position])
        gap = distances(self.scores.features[one], self.scores.features[torch.from_numpy(known)])[0].numpy() / self.unit
        near = np.argsort(gap, kind="stable")[:NEIGHBOURS]
        rows = self.rows[known[near]]
        return Why(
            position=position,
            row=int(self.rows[position]),
            id=str(pool.ids[self.rows[position]]),
            classes=pd.DataFrame({"class": names[order], "probability": probs[order]}),
            neighbours=pd.DataFrame(
                {"row": rows, "position": known[near], "label": names[pool.labels[rows]], "distance": gap[near]}
            ),
            margin=float(self._uncertainty["margin"][position]),
            entropy=float(self._uncertainty["entropy"][position]),
            margin_percentile=self._percentile(self._uncertainty["margin"], position),
            entropy_percentile=self._percentile(self._uncertainty["entropy"], position),
            distance_percentile=self._percentile(self.to_label, position),
            ranks={proposal.strategy: _rank(proposal.table, position) for proposal in self.proposals},
            truth=str(names[pool.labels[self.rows[position]]]) if reveal else "",
        )

    @cached_property
    def unit(self) -> float:
        """Mean distance between two pool rows, as in `palkit.experiments.picks.describe`."""
        some = self.scores.features[:: max(1, len(self.rows) // PAIRS)]
        return float(distances(some, some).sum() / (len(some) * (len(some) - 1)))

    @cached_property
    def to_label(self) -> np.ndarray:
        """(N,) distance to the nearest label, in multiples of `unit`."""
        known = self.scores.features[torch.from_numpy(self.labelled)]
        return nearest(self.scores.features, known)[0].sqrt().numpy() / self.unit

    @cached_property
    def _uncertainty(self) -> dict[str, np.ndarray]:
        return {"margin": margin_scores(self.scores).numpy(), "entropy": entropy_scores(self.scores).numpy()}

    def _percentile(self, values: np.ndarray, position: int) -> float:
        free = np.delete(values, self.labelled)
        return float(100 * np.mean(free <= values[position]))


def propose(answer: Answer, name: str, picks: np.ndarray, scores: PoolScores) -> Proposal:
    """The table of what a strategy picked.

    Args:
        answer: its proposals do not matter.
        name: of the strategy.
        picks: (B,) positions.
        scores: those that the strategy saw.
    """
    rows, chosen = answer.rows[picks], torch.from_numpy(picks)
    predicted = answer.scores.predicted[chosen]
    measure, score = "", np.full(len(picks), np.nan)
    shown = get_strategy(name).measure
    if callable(shown):
        part = None if scores.stochastic_probs is None else scores.stochastic_probs[:, chosen]
        score = shown(PoolScores(scores.features[chosen], scores.probs[chosen], part)).numpy()
        measure = shown.__name__.removesuffix("_scores")
    elif shown is not None:
        measure, score = shown, answer.to_label[picks]
    table = pd.DataFrame(
        {
            "rank": np.arange(1, len(picks) + 1),
            "position": picks,
            "row": rows,
            "id": answer.pool.ids[rows],
            "predicted": np.array(answer.pool.class_names)[predicted.numpy()],
            "probability": answer.scores.probs[chosen, predicted].numpy(),
            "score": score,
        }
    )
    return Proposal(name, table, measure)


def _rank(table: pd.DataFrame, position: int) -> int | None:
    found = table.loc[table["position"] == position, "rank"]
    return None if found.empty else int(found.iloc[0])


def overlap_sentence(answer: Answer) -> str:
    """How many images two strategies have in common; "" for one.

    Args:
        answer: of one or two strategies.
    """
    if len(answer.proposals) < 2:
        return ""
    common, size = len(answer.overlap.positions), len(answer.proposals[0].table)
    return f"{common} of {size} in common ({100 * answer.overlap.jaccard:.0f} % of all proposed images)."
