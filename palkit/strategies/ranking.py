"""Small parts that strategies share: predictions, uncertainty of rows, the top of a score."""

from collections.abc import Callable

import torch
from torch import Tensor

from palkit.kernels import Rows, chunks, nearest_rows
from palkit.kmeans import group_sum, kmeans
from palkit.scores import LabelledSet, PoolScores
from palkit.ties import settled

RowScore = Callable[[Tensor], Tensor]


def top(score: Tensor, candidates: Tensor, count: int) -> Tensor:
    """(count,) candidates of the largest `score` (M,), best first; equal but for rounding: the earliest candidate.

    Args:
        score: (M,) one number per candidate.
        candidates: (M,) ascending positions.
        count: at most M.
    """
    order = settled(score).sort(descending=True, stable=True).indices[:count]
    return candidates[order.to(candidates.device)]


def per_row(score: RowScore, probs: Rows) -> Tensor:
    """(N,) float64 `score` of each row of `probs` (N, C), chunk by chunk in float64."""
    value = torch.empty(len(probs), dtype=torch.float64, device=probs.device)
    for part in chunks(*probs.shape):
        value[part] = score(probs[part].double())
    return value


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


def class_means(scores: PoolScores, labelled: LabelledSet) -> Tensor:
    """(C, D) float64 mean feature of the labelled rows of each class; NaN where a class has none."""
    rows = scores.features[labelled.positions.to(scores.features.device)].double()
    counted = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    sums = group_sum(counted, labelled.labels.to(rows.device), scores.probs.shape[1])
    return sums[:, :-1] / sums[:, -1:]


def cluster_centres(rows: Rows, count: int, rng: torch.Generator, weight: Tensor | None = None) -> Tensor:
    """(count,) int64 the nearest row to each centre of a k-means of `rows` into `count` clusters."""
    centres, _ = kmeans(rows, count, rng, weight)
    return nearest_rows(rows, centres)
