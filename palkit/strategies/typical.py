"""Strategies that choose rows typical of the clusters the pool falls into; they need no labels and no head."""

import torch
from torch import Tensor

from palkit.errors import ConfigError
from palkit.kernels import View, distances, knn
from palkit.kmeans import kmeans
from palkit.scores import LabelledSet, PoolScores
from palkit.strategies.ranking import cluster_centres
from palkit.strategies.registry import strategy
from palkit.ties import first_best


@strategy("centroid", cold_start=True)
def centroid(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) k-means of the unlabelled rows into B clusters, the row nearest to each centre.

    Features are scaled to unit length first. DropQuery (Gupte et al., 2024) finds this the best first
    batch for foundation-model features.
    """
    free = labelled.unlabelled(len(scores))
    return free[cluster_centres(View(scores.features, free, unit=True), batch_size, rng).cpu()]


@strategy("typiclust", cold_start=True)
def typiclust(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    max_clusters: int = 500,
    min_size: int = 5,
    neighbours: int = 20,
    normalize: bool = True,
) -> Tensor:
    """(B,) the most typical row of each of the largest clusters that hold no label (Hacohen et al., ICML 2022).

    The pool falls into min(L + B, max_clusters) k-means clusters. Each pick comes from the cluster with
    the fewest labels, counting the batch, and of these from the largest (ties to the lowest); its row of
    the highest typicality, 1 / mean distance to the nearest neighbours among the cluster's unlabelled
    rows. Clusters of fewer than `min_size` rows are left for when nothing else is.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        max_clusters: >= 1.
        min_size: rows that a cluster must have.
        neighbours: nearest neighbours that typicality looks at, or as many as the cluster has.
        normalize: scale features to unit length first, as the authors do.
    """
    if max_clusters < 1 or neighbours < 1:
        raise ConfigError(
            f"typiclust needs max_clusters >= 1 and neighbours >= 1, got {max_clusters} and {neighbours}."
        )
    rows = View(scores.features, unit=normalize)
    clusters = min(len(labelled) + batch_size, max_clusters)
    cluster = kmeans(rows, clusters, rng)[1].cpu()
    open_rows = cluster.clone()
    open_rows[labelled.positions.cpu()] = -1  # cluster of each row that can be picked
    size = torch.bincount(cluster, minlength=clusters).tolist()
    held = torch.bincount(cluster[labelled.positions.cpu()], minlength=clusters).tolist()
    picks: list[int] = []
    while len(picks) < batch_size:
        usable = [c for c in range(clusters) if size[c] > held[c]]
        best = min(usable, key=lambda c: (size[c] < min_size, held[c], -size[c]))
        members = (open_rows == best).nonzero().squeeze(1)
        picks.append(int(members[most_typical(rows[members.to(rows.device)].float(), neighbours)]))
        open_rows[picks[-1]] = -1
        held[best] += 1
    return torch.tensor(picks)


def most_typical(rows: Tensor, neighbours: int, finalists: int = 8) -> int:
    """Index of the row (n, D) of the smallest mean distance to its nearest neighbours; ties to the lowest index.

    All rows are judged in float32, the `finalists` best then in float64.
    """
    count = min(neighbours, len(rows) - 1) + 1  # a row's nearest neighbour is itself, at distance 0
    near = knn(rows, rows, count)[0].sum(1)
    best = near.topk(min(finalists, len(rows)), largest=False).indices.sort().values
    exact = distances(rows[best], rows).topk(count, largest=False).values.sum(1)
    return int(best[first_best(-exact)])
