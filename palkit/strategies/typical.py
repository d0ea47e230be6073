"""Strategies that choose rows typical of the clusters the pool falls into; they need no labels and no head."""

from collections import deque

import torch
from torch import Tensor

from palkit.strategies.kernels import View, distances, knn, unit_length
from palkit.strategies.kmeans import kmeans
from palkit.strategies.options import Count
from palkit.strategies.ranking import cluster_centres
from palkit.strategies.registry import strategy
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies.ties import first_best


@strategy("centroid", cold_start=True, measure="distance")
def centroid(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) k-means of the unlabelled rows into B clusters, the row nearest to each centre.

    Features are scaled to unit length first. DropQuery (Gupte et al., 2024) finds this the best first
    batch for foundation-model features.
    """
    free = labelled.unlabelled(len(scores))
    return free[cluster_centres(View(scores.features, free, unit_length), batch_size, rng).cpu()]


@strategy("typiclust", cold_start=True, measure="distance", style=("#117733", "h"))
def typiclust(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    max_clusters: Count = 500,
    min_size: int = 5,
    neighbours: Count = 20,
    normalize: bool = True,
) -> Tensor:
    """(B,) the most typical row of each of the largest clusters that hold no label (Hacohen et al., ICML 2022).

    The pool falls into min(L + B, max_clusters) k-means clusters. As in the authors' code these are sorted once, those
    with the fewest labels first and of these the largest, and visited in turn, again from the first if need be. Each
    gives its unlabelled row of the highest typicality, 1 / mean squared distance to the nearest neighbours among the
    cluster's unlabelled rows. Clusters of at most `min_size` rows are left for when nothing else is.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        max_clusters: >= 1.
        min_size: rows that a cluster must have more of.
        neighbours: nearest neighbours that typicality looks at, or half as many as there are rows if that is less.
        normalize: scale features to unit length first, as the authors do.
    """
    rows = View(scores.features, change=unit_length if normalize else None)
    clusters = min(len(labelled) + batch_size, max_clusters)
    cluster = kmeans(rows, clusters, rng)[1].cpu()
    size = torch.bincount(cluster, minlength=clusters).tolist()
    held = torch.bincount(cluster[labelled.positions.cpu()], minlength=clusters).tolist()
    cluster[labelled.positions.cpu()] = -1  # what is left to pick from
    turn = sorted(range(clusters), key=lambda c: (held[c], -size[c]))
    waiting = deque(c for c in turn if size[c] > min_size)
    small = [c for c in turn if size[c] <= min_size]
    picks: list[int] = []
    while len(picks) < batch_size:
        waiting = waiting or deque(small)
        members = (cluster == waiting[0]).nonzero().squeeze(1)
        if not len(members):
            waiting.popleft()
            continue
        picks.append(int(members[most_typical(rows[members.to(rows.device)].float(), neighbours)]))
        cluster[picks[-1]] = -1
        waiting.rotate(-1)
    return torch.tensor(picks)


def most_typical(rows: Tensor, neighbours: int, finalists: int = 8) -> int:
    """Index of the row (n, D) of the smallest mean squared distance to its nearest neighbours; ties to the lowest.

    There are `neighbours` of these, or n // 2 if that is less. All rows are judged in float32, to its accuracy, the
    first `finalists` of the best then in float64.
    """
    count = min(neighbours, len(rows) // 2) + 1  # a row's nearest neighbour is itself, at distance 0
    near = knn(rows, rows, count)[0].square().sum(1)
    rounding = 1e-13 * count * float(rows.square().sum(1).max())  # of scaling to unit length: copies are equal
    accuracy = max(4e-6 * count * float((rows - rows.mean(0)).square().sum(1).max()), rounding, 1e-30)
    best = (near / accuracy).round().sort(stable=True).indices[:finalists].sort().values
    exact = distances(rows[best], rows).topk(count, largest=False).values.square().sum(1)
    return int(best[first_best(-exact.clamp(min=rounding))])
