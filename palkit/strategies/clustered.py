"""Strategies that pick out uncertain rows first and then spread the batch over clusters of them."""

import math

import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from palkit.errors import ConfigError
from palkit.kernels import View, chunks, column_mean
from palkit.scores import Dropout, LabelledSet, PoolScores
from palkit.strategies.ranking import (
    class_means,
    cluster_centres,
    margin_gap,
    per_row,
    shannon_entropy,
    top,
)
from palkit.strategies.registry import require_labels, require_positive, strategy
from palkit.ties import predict

MAX_LINKED = 10_000  # rows of agglomerative clustering, whose distances then take 400 MB
HEAD_ROWS = 20_000  # rows from which the linear head is recovered


@strategy("clue")
def clue(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) k-means of the unlabelled rows weighted by entropy, B clusters, the row nearest to each centre.

    (Prabhu et al., ICCV 2021.) If no row has any entropy, all weigh the same.
    """
    free = labelled.unlabelled(len(scores))
    weight = per_row(shannon_entropy, View(scores.probs, free))
    rows = View(scores.features, free)
    return free[cluster_centres(rows, batch_size, rng, weight if weight.any() else None).cpu()]


@strategy("dropquery", needs={"stochastic_probs"}, dropout=Dropout(passes=3, rate=0.75))
def dropquery(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) k-means into B clusters of the rows whose prediction dropout changes in more than half the passes.

    The row nearest to each centre is picked, of features scaled to unit length; if too few predictions
    change, all these are taken and the rest is random. (Gupte et al., TMLR 2024; the passes are M = 3
    masks that drop features with probability 0.75.)
    """
    passes = scores.stochastic_probs
    assert passes is not None
    changed = torch.stack([predict(p, scores.keys) != scores.predicted for p in passes]).sum(0)
    free = labelled.unlabelled(len(scores))
    return spread(scores, free, (2 * changed > len(passes)).cpu()[free], batch_size, rng)


@strategy("alfamix")
def alfamix(
    scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator, eps: float = 0.2
) -> Tensor:
    """(B,) k-means into B clusters of the rows whose prediction flips when mixed with a class anchor.

    A row h is mixed with the mean z of the labelled rows of each class, by the step that raises the loss
    of its prediction most, in closed form: h + eps / sqrt(D) * |z - h| * g / |g| with the loss gradient g
    (Parvaneh et al., CVPR 2022). The row nearest to each centre is picked, of features scaled to unit
    length; if too few predictions flip, all these are taken and the rest is random.

    The head is taken to be linear in the features; its weights are recovered from features and
    probabilities by least squares. Along g a flip stays a flip as the step grows, so only the farthest
    anchor matters, and logits move by the C x C Gram matrix of the weights: no mixed row is ever formed.

    Args:
        scores, labelled, batch_size, rng: as for every strategy; at least one label.
        eps: > 0, the largest step relative to the distance to the anchor, times sqrt(D).
    """
    require_labels(labelled, "alfamix")
    require_positive("eps", eps)
    free = labelled.unlabelled(len(scores))
    weights = linear_head(scores)  # (C, D)
    gram = weights @ weights.T
    rows, probs = View(scores.features, free), View(scores.probs, free)
    means = class_means(scores, labelled)
    anchors = means[means.isfinite().all(1)].float()  # (A, D)
    step = eps / math.sqrt(rows.shape[1])
    predicted = scores.predicted[free.to(probs.device)]
    flips = []
    for part in chunks(len(free), rows.shape[1] + probs.shape[1] + len(anchors)):
        p = probs[part].double()
        first = predicted[part, None]
        residual = p.scatter_add(1, first, torch.full_like(p[:, :1], -1))  # dL/dlogits
        moved = residual @ gram.to(p.device)
        norm = (moved * residual).sum(1).clamp(min=0).sqrt()  # |g|
        reach = torch.cdist(rows[part].float(), anchors).amax(1).double().to(p.device)
        logit = p.log().clamp(min=-100) + moved * (step * reach / norm.clamp(min=1e-30))[:, None]
        flips.append(logit.argmax(1) != first[:, 0])
    return spread(scores, free, torch.cat(flips).cpu(), batch_size, rng)


@strategy("cluster_margin")
def cluster_margin(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    factor: int = 10,
    clusters: int | None = None,
) -> Tensor:
    """(B,) the rows of smallest margin, spread round-robin over average-linkage clusters of them.

    (Citovsky et al., NeurIPS 2021.) Clusters are visited from the smallest to the largest, again and
    again, and each time give one of their rows at random.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        factor: >= 1; the factor * B rows of smallest margin are clustered, or MAX_LINKED if that is less.
        clusters: how many, or None for B, that is `factor` rows each on average.
    """
    if factor < 1 or (clusters is not None and clusters < 1):
        raise ConfigError(f"factor and clusters must be >= 1, got {factor!r} and {clusters!r}.")
    free = labelled.unlabelled(len(scores))
    size = max(batch_size, min(factor * batch_size, MAX_LINKED))
    candidates = top(per_row(margin_gap, View(scores.probs, free)).cpu(), free, size)
    if len(candidates) < 2:
        return candidates
    rows = scores.features[candidates.to(scores.features.device)].double().cpu().numpy()
    wanted = min(clusters or batch_size, len(rows))
    label = fcluster(linkage(rows, "average"), wanted, criterion="maxclust")
    groups = [candidates[torch.from_numpy(label == c)] for c in sorted(set(label.tolist()))]
    groups = [group[torch.randperm(len(group), generator=rng)] for group in sorted(groups, key=len)]
    rounds = [torch.stack([g[i] for g in groups if len(g) > i]) for i in range(len(groups[-1]))]
    return torch.cat(rounds)[:batch_size]


def spread(scores: PoolScores, free: Tensor, chosen: Tensor, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) rows nearest to the centres of B clusters of the chosen rows, topped up at random.

    Args:
        scores: as for every strategy; unit-length features are clustered.
        free: (U,) unlabelled positions.
        chosen: (U,) bool, which of them to choose from.
        batch_size: B <= U.
        rng: CPU generator.
    """
    wanted, others = free[chosen], free[~chosen]
    if len(wanted) > batch_size:
        return wanted[cluster_centres(View(scores.features, wanted, unit=True), batch_size, rng).cpu()]
    extra = others[torch.randperm(len(others), generator=rng)[: batch_size - len(wanted)]]
    return torch.cat([wanted, extra])


def linear_head(scores: PoolScores) -> Tensor:
    """(C, D) float64 weights W of the linear head under the probs, up to what no row of the pool can tell.

    log p = W h + b + a number per row: centring the log-probabilities of a row removes that number (and
    the mean of W over classes, which changes no prediction), and least squares gives the rest; the
    minimum-norm solution where features are dependent.
    """
    index = torch.arange(0, len(scores), max(1, len(scores) // HEAD_ROWS), device=scores.features.device)
    rows = View(scores.features, index)
    mean = column_mean(rows)
    square = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    cross = torch.zeros(rows.shape[1], scores.probs.shape[1], dtype=torch.float64, device=rows.device)
    for part in chunks(len(index), rows.shape[1] + scores.probs.shape[1]):
        x = rows[part].double() - mean  # the intercept falls away
        logit = scores.probs[index[part].to(scores.probs.device)].double().log().clamp_(min=-100)
        square += x.T @ x
        cross += x.T @ (logit - logit.mean(1, keepdim=True)).to(x.device)
    return (torch.linalg.pinv(square, hermitian=True) @ cross).T
