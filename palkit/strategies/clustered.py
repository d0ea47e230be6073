"""Strategies that pick out uncertain rows first and then spread the batch over clusters of them."""

import math
from functools import reduce

import torch
from torch import Tensor

from palkit.strategies.kernels import TIE, View, chunks, column_mean, nearest, per_row, unit_length
from palkit.strategies.options import Count, Positive
from palkit.strategies.ranking import class_means, cluster_centres, margin_gap, once_per_pool, shannon_entropy, top
from palkit.strategies.registry import require_labels, strategy
from palkit.strategies.scores import Dropout, LabelledSet, PoolScores
from palkit.strategies.ties import predict
from palkit.strategies.uncertainty import margin_scores

MAX_LINKED = 3_000  # rows of agglomerative clustering: 3 s on one core at 384 features, and 36 MB of distances
CANDIDATES = 25  # per row of the batch that DropQuery wants
LARGEST_EPS = 1.0  # up to which ALFA-Mix raises its step
HEAD_ROWS = 20_000  # rows from which the linear head is recovered


@strategy("clue", style=("#CC6677", ">"))
def clue(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) k-means of the unlabelled rows weighted by entropy, B clusters, the row nearest to each centre.

    (Prabhu et al., ICCV 2021.) If no row has any entropy, all weigh the same.
    """
    free = labelled.unlabelled(len(scores))
    weight = per_row(shannon_entropy, View(scores.probs, free))
    rows = View(scores.features, free)
    return free[cluster_centres(rows, batch_size, rng, weight if weight.any() else None).cpu()]


@strategy("dropquery", needs={"stochastic_probs"}, dropout=Dropout(passes=3, rate=0.75), style=("#661100", "D"))
def dropquery(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) k-means into B clusters of the rows whose prediction dropout changes in more than half the passes.

    The row nearest to each centre is picked, of features scaled to unit length. While fewer than 25 B rows
    change so often, one change less is asked for, but never none; if there are too few even then, all these
    are taken and the rest is random. (Gupte et al., TMLR 2024, and the authors' code; the passes are M = 3
    masks that drop features with probability 0.75.)
    """
    passes = scores.stochastic_probs
    assert passes is not None
    changed = torch.stack([predict(p, scores.keys) != scores.predicted for p in passes]).sum(0)
    free = labelled.unlabelled(len(scores))
    changed = changed.cpu()[free]
    wanted = next((n for n in range(len(passes) // 2, 0, -1) if (changed > n).sum() >= CANDIDATES * batch_size), 0)
    return spread(scores, free, changed > wanted, batch_size, rng)


@strategy("alfamix", style=("#6699CC", "v"))
def alfamix(
    scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator, eps: Positive = 0.2
) -> Tensor:
    """(B,) k-means into B clusters of the rows whose prediction flips when mixed with a class anchor.

    A row h is mixed with the mean z of the labelled rows of each class, by the step that raises the loss
    of its prediction most, in closed form: `h + eps / sqrt(D) * |z - h| * g / |g|` with the loss gradient g
    (Parvaneh et al., CVPR 2022). As in the authors' code, a class without labels is anchored at the mean of
    all labelled rows, and eps is doubled, tripled and so on until more than B predictions flip or it has
    reached 1. The row nearest to each centre is picked, of features scaled to unit length; if too few
    predictions flip, all these are taken and the rest is random.

    The head is taken to be linear in the features; its weights are recovered from features and
    probabilities by least squares. Along g a flip stays a flip as the step grows, so only the farthest
    anchor matters, and logits move by the Gram matrix of the weights: no mixed row is ever formed.

    Args:
        scores, labelled, batch_size, rng: as for every strategy; at least one label.
        eps: > 0, the first step relative to the distance to the anchor, times sqrt(D).
    """
    require_labels(labelled, "alfamix")
    free = labelled.unlabelled(len(scores))
    weights = linear_head(scores)  # (C, D)
    gram = [weights @ weights.T] if len(weights) <= 2 * weights.shape[1] else [weights, weights.T]  # fewer products
    rows, probs = View(scores.features, free), View(scores.probs, free)
    means = class_means(scores.features, labelled, probs.shape[1])
    overall = scores.features[labelled.positions.to(means.device)].double().mean(0)
    anchors = torch.where(means.isfinite(), means, overall).unique(dim=0).float()  # (A, D)
    predicted = scores.predicted[free.to(probs.device)]
    needed = torch.empty(len(free), dtype=torch.float64)  # eps beyond which each prediction flips
    for part in chunks(len(free), rows.shape[1] + probs.shape[1] + len(anchors)):
        p = probs[part].double()
        first = predicted[part, None]
        residual = p.scatter_add(1, first, torch.full_like(p[:, :1], -1))  # dL/dlogits
        moved = reduce(torch.matmul, (factor.to(p.device) for factor in gram), residual)
        norm = (moved * residual).sum(1).clamp(min=0).sqrt()  # |g|
        reach = torch.cdist(rows[part].float(), anchors).amax(1).double().to(p.device)
        gain = (moved - moved.gather(1, first)) * (reach / norm.clamp(min=1e-30) / math.sqrt(rows.shape[1]))[:, None]
        logit = probs[part].double().log().clamp(min=-100)
        lead = (logit.gather(1, first) - logit).clamp(min=0)
        gain[gain <= TIE * gain.amax(1, keepdim=True)] = 0  # what rises by no more than rounding
        needed[part] = torch.where(gain > 0, lead / gain, torch.inf).amin(1).cpu()
    return spread(scores, free, needed < raised(eps, needed, batch_size), batch_size, rng)


def raised(eps: float, needed: Tensor, batch_size: int) -> float:
    """First multiple of eps that more than `batch_size` of the `needed` (U,) are less than, at most the first >= 1."""
    most = math.ceil(LARGEST_EPS / eps)
    last = float(needed.sort().values[batch_size]) if batch_size < len(needed) else math.inf
    return eps * (most if last >= eps * most else math.floor(last / eps) + 1)


@strategy("cluster_margin", measure=margin_scores, style=("#888888", "P"))
def cluster_margin(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    factor: Count = 10,
    clusters: Count | None = None,
) -> Tensor:
    """(B,) the rows of smallest margin, spread round-robin over average-linkage clusters of the pool.

    (Citovsky et al., NeurIPS 2021.) Clusters are visited from the one with the fewest of these rows to that
    with the most, again and again, and each time give one of them at random.

    The clusters hang on the pool and the seed of the run: while features stay as they are, they are the same in
    all rounds. Of a pool of more than MAX_LINKED rows so many are clustered, drawn once; any other row is of the
    cluster of the one nearest to it.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        factor: >= 1; the factor * B rows of smallest margin are considered.
        clusters: how many, or None for B.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    free = labelled.unlabelled(len(scores))
    candidates = top(per_row(margin_gap, View(scores.probs, free)).cpu(), free, factor * batch_size)
    if len(candidates) < 2:
        return candidates
    linked, _ = once_per_pool(scores, MAX_LINKED)
    rows = scores.features[linked.to(scores.features.device)]
    wanted = min(clusters or batch_size, len(rows))
    merges = linkage(rows.double().cpu().numpy(), "average")
    label = torch.from_numpy(fcluster(merges, wanted, criterion="maxclust"))
    own = label[nearest(View(scores.features, candidates), rows)[1].cpu()]
    groups = [candidates[own == c] for c in own.unique()]
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
        return wanted[cluster_centres(View(scores.features, wanted, unit_length), batch_size, rng).cpu()]
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
