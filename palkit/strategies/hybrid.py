"""Strategies that weigh uncertainty and diversity together."""

import torch
from torch import Tensor

from palkit.strategies.kernels import chunks, draw, per_row
from palkit.strategies.kmeans import outer_kmeanspp
from palkit.strategies.options import NotNegative
from palkit.strategies.ranking import margin_gap
from palkit.strategies.registry import strategy
from palkit.strategies.scores import LabelledSet, PoolScores


@strategy("badge", style=("#D55E00", "v"))
def badge(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) k-means++ seeding on gradient embeddings (p - onehot(argmax p)) x h (Ash et al., ICLR 2020).

    First the row of the largest gradient, as in the authors' code, then rows drawn with probability
    proportional to the squared distance to the nearest chosen one.
    """
    residual = scores.probs[:].clone()  # (N, C) the loss gradient at the logits if the prediction is the label
    residual[torch.arange(len(residual)), scores.predicted] -= 1
    free = labelled.unlabelled(len(scores))
    return outer_kmeanspp(residual.to(scores.features.device), scores.features, free, batch_size, rng)


@strategy("falcun", style=("#88CCEE", "<"))
def falcun(
    scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator, exponent: NotNegative = 10.0
) -> Tensor:
    """(B,) rows drawn by uncertainty plus distance to the batch, both of probabilities alone.

    (Gilhuber et al., ECML PKDD 2024.) Each row is drawn with probability proportional to (u + d)^exponent,
    where u = 1 - (p1 - p2) and d, at first u, becomes `min(d, |p - q|_1)` after a pick q, scaled to [0, 1].

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        exponent: >= 0, the paper's gamma; 0 draws uniformly, the larger the greedier.
    """
    free = labelled.unlabelled(len(scores)).to(scores.probs.device)
    uncertain = per_row(margin_gap, scores.probs)[free]
    distance, open_rows = uncertain.clone(), torch.ones_like(uncertain)
    picks: list[int] = []
    while True:
        relevance = (uncertain + distance) ** exponent * open_rows
        picks.append(int(draw(relevance, rng, otherwise=open_rows)))
        if len(picks) == batch_size:
            return free[torch.tensor(picks, device=free.device)]
        open_rows[picks[-1]] = 0
        chosen = scores.probs[free[picks[-1:]]].double()
        gap = [torch.cdist(scores.probs[part].double(), chosen, p=1)[:, 0] for part in chunks(*scores.probs.shape)]
        distance = torch.minimum(distance, torch.cat(gap)[free])
        distance = distance / distance.max().clamp(min=1e-12)  # the smallest is 0, the pick's own
