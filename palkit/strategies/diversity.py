"""Strategies that look for rows far from what is labelled."""

from typing import Literal

import torch
from torch import Tensor

from palkit.strategies.kernels import Rows, View, chunks, k_center, nearest
from palkit.strategies.options import Share
from palkit.strategies.ranking import class_means, top
from palkit.strategies.registry import require_labels, strategy
from palkit.strategies.scores import LabelledSet, PoolScores


@strategy("coreset", cold_start=True, measure="distance", style=("#CC79A7", "D"))
def coreset(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) greedy k-center: each time the row farthest from all labelled and all chosen rows.

    Without labels the first row is the one nearest to the mean of the pool. (Sener & Savarese 2018.)
    """
    return k_center(scores.features, labelled.positions, labelled.unlabelled(len(scores)), batch_size)


@strategy("featdist", measure="distance", style=("#009E73", "^"))
def featdist(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    reference: Literal["nearest", "class_mean"] = "nearest",
    space: Literal["logits", "features"] = "logits",
    unseen_share: Share = 0.0,
) -> Tensor:
    """(B,) rows farthest from the labelled ones, all measured before the batch.

    Args:
        scores, labelled, batch_size, rng: as for every strategy; at least one label.
        reference: `"nearest"`, the distance to the nearest labelled row's features (PEAL, arXiv 2406.09296),
            or `"class_mean"`, the distance to the mean of the labelled rows of the class predicted for the
            row (C-PEAL, arXiv 2507.21521).
        space: with `class_mean`, what the distance is of: `"logits"`, as in the authors' code, or `"features"`.
            Logits are log-probabilities less their mean over the classes, which no probability can tell.
        unseen_share: with `class_mean`, the share of the batch given to rows whose predicted class has no
            labelled row, drawn at random; they have no distance, and otherwise come last.
    """
    require_labels(labelled, "featdist")
    candidates = labelled.unlabelled(len(scores))
    if reference == "nearest":
        known = scores.features[labelled.positions.to(scores.features.device)]
        return top(nearest(scores.features, known)[0].cpu()[candidates], candidates, batch_size)
    rows = scores.features if space == "features" else View(scores.probs, change=centred_logits)
    distance = class_mean_distance(rows, scores, labelled)[candidates]
    unseen = candidates[distance.isinf()]
    unseen = unseen[torch.randperm(len(unseen), generator=rng)]
    seen = candidates[distance.isfinite()]
    wanted = min(len(unseen), max(round(unseen_share * batch_size), batch_size - len(seen)))
    ranked = top(distance[distance.isfinite()], seen, batch_size - wanted)
    return torch.cat([ranked, unseen[:wanted]])


def centred_logits(probs: Tensor) -> Tensor:
    """(n, C) float64 log-probabilities less their mean over the classes."""
    logits = probs.double().log().clamp_(min=-100)
    return logits - logits.mean(1, keepdim=True)


def class_mean_distance(rows: Rows, scores: PoolScores, labelled: LabelledSet) -> Tensor:
    """(N,) float64 squared distance of `rows` (N, D) to the labelled mean of the predicted class; inf if none."""
    means = class_means(rows, labelled, scores.probs.shape[1])
    predicted = scores.predicted.to(means.device)
    distance = torch.empty(len(scores), dtype=torch.float64, device=means.device)
    for part in chunks(*rows.shape):
        distance[part] = (rows[part] - means[predicted[part]]).square_().sum(1)
    return distance.nan_to_num_(nan=torch.inf).cpu()
