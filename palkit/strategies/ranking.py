"""Small parts that strategies share: predictions, uncertainty of rows, the top of a score."""

import torch
from torch import Tensor

from palkit.strategies.kernels import Rows, nearest_rows
from palkit.strategies.kmeans import add_by_group, kmeans
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies.ties import settled


def top(score: Tensor, candidates: Tensor, count: int) -> Tensor:
    """(count,) candidates of the largest `score` (M,), best first; equal but for rounding: the earliest candidate.

    Args:
        score: (M,) one number per candidate.
        candidates: (M,) ascending positions.
        count: at most M.
    """
    order = settled(score).sort(descending=True, stable=True).indices[:count]
    return candidates[order.to(candidates.device)]


def once_per_pool(scores: PoolScores, limit: int) -> tuple[Tensor, torch.Generator]:
    """(M,) positions, the same images in every round, and a generator: for what a strategy finds out once and keeps.

    Both hang on the keys of the images alone, that is on their names and the seed of a run: what is computed from them,
    with features that stay as they are, is the same in all its rounds; not if `select` shows a `subsample`, another one
    each time.

    Args:
        scores: of the pool.
        limit: at most this many rows, drawn uniformly.
    """
    keys = scores.keys.rows
    rng = torch.Generator().manual_seed(int(keys.sum()) % 2**63)  # int64 sums wrap around: no order of adding matters
    return keys.argsort()[:limit], rng


def confidence_gap(probs: Tensor) -> Tensor:
    """(n,) 1 - max p of (n, C)."""
    return 1 - probs.amax(1)


def margin_gap(probs: Tensor) -> Tensor:
    """(n,) 1 - (p1 - p2) of (n, C), p1 >= p2 the two largest; 0 if there is only one class."""
    if probs.shape[1] == 1:
        return torch.zeros_like(probs[:, 0])
    first, second = probs.topk(2).values.unbind(1)
    return 1 - (first - second)


def shannon_entropy(probs: Tensor) -> Tensor:
    """(..., n) -sum p log p over the last axis, in nats."""
    return -torch.xlogy(probs, probs).sum(-1)


def class_means(rows: Rows, labelled: LabelledSet, classes: int) -> Tensor:
    """(C, D) float64 mean of the labelled ones of `rows` (N, D) of each class; NaN where a class has none."""
    known = rows[labelled.positions.to(rows.device)].double()
    counted = torch.cat([known, torch.ones_like(known[:, :1])], 1)
    sums = counted.new_zeros(classes, counted.shape[1])
    add_by_group(sums, counted, labelled.labels.to(known.device))
    return sums[:, :-1] / sums[:, -1:]


def cluster_centres(rows: Rows, count: int, rng: torch.Generator, weight: Tensor | None = None) -> Tensor:
    """(count,) int64 the nearest row to each centre of a k-means of `rows` into `count` clusters."""
    centres, _ = kmeans(rows, count, rng, weight)
    return nearest_rows(rows, centres)
