"""Strategies that weigh what a whole batch of labels would tell about the weights."""

import torch
from torch import Tensor

from palkit.errors import ConfigError
from palkit.strategies.kernels import chunks, draw
from palkit.strategies.options import Count
from palkit.strategies.ranking import shannon_entropy, top
from palkit.strategies.registry import strategy
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies.ties import first_best
from palkit.strategies.uncertainty import SHARED, bald_scores


@strategy("batchbald", **SHARED, measure=bald_scores, style=("#332288", ">"))
def batchbald(
    scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator, samples: Count = 1000
) -> Tensor:
    """(B,) greedy: the row that most raises the mutual information of the batch's labels and the weights.

    (Kirsch et al., NeurIPS 2019.) Each joint outcome of the labels chosen so far stands for a posterior
    over the T stochastic passes; a row's worth is the mean over outcomes of the entropy of its prediction
    under that posterior, minus its mean entropy over passes. While there are at most `samples` outcomes
    this is exact, after that they are drawn, each label given the ones before: an unbiased estimate at
    any batch size, with no joint probability that could underflow. A pick costs samples * U * C * T.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        samples: >= 1, the most joint outcomes to keep.
    """
    passes = scores.stochastic_probs
    assert passes is not None
    number, _, classes = passes.shape
    free = labelled.unlabelled(len(scores)).to(passes.device)
    own = torch.cat([shannon_entropy(passes[:, free[p]].double()).mean(0) for p in chunks(len(free), number * classes)])
    posterior = torch.full((1, number), 1 / number, dtype=torch.float64, device=passes.device)  # (S, T)
    weight = torch.ones(1, dtype=torch.float64, device=passes.device)  # (S,)
    open_rows = torch.ones(len(free), dtype=torch.bool, device=passes.device)
    picks: list[int] = []
    while True:
        worth = expected_entropy(passes, free, posterior, weight) - own
        picks.append(first_best(worth.masked_fill(~open_rows, -torch.inf)))
        if len(picks) == batch_size:
            return free[torch.tensor(picks, device=free.device)]
        open_rows[picks[-1]] = False
        posterior, weight = condition(posterior, weight, passes[:, free[picks[-1]]].double(), samples, rng)


@strategy("epig", **SHARED, style=("#661100", "d"))
def epig(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    target: Tensor | list | None = None,
    targets: Count = 100,
) -> Tensor:
    """(B,) largest expected predictive information gain: what a row's label tells about the labels of target rows.

    (Bickford Smith et al., AISTATS 2023.) The mutual information of both labels, over the stochastic passes, mean over
    target rows. Unlike `bald` it does not buy what tells about weights alone, such as rows unlike any that are to be
    predicted. Costs N * targets * C^2 * T.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        target: rows of the kind that predictions are for, (N,) bool or, as in a config, names of images; None for the
            unlabelled pool.
        targets: rows drawn from these, at most.
    """
    passes = scores.stochastic_probs
    assert passes is not None
    number, size, classes = passes.shape
    free = labelled.unlabelled(len(scores))
    if target is None:
        aims = free
    elif isinstance(target, Tensor) and target.shape == (size,) and target.dtype == torch.bool and target.any():
        aims = target.cpu().nonzero().squeeze(1)
    else:
        raise ConfigError(
            f"epig: target must say true or false of each of the {size} pool rows, and true of some, or name images."
        )
    aims = aims[torch.randperm(len(aims), generator=rng)[:targets]]
    aimed = passes[:, aims.to(passes.device)].float()  # (T, M, C)
    of_aims = shannon_entropy(aimed.mean(0))  # (M,)
    parts = []
    for part in chunks(len(free), len(aims) * classes**2):
        own = passes[:, free[part].to(passes.device)].float()  # (T, n, C)
        joint = (own.flatten(1).T @ aimed.flatten(1) / number).view(-1, classes, len(aims), classes)  # (n, C, M, C)
        both = -torch.xlogy(joint, joint).sum((1, 3))  # (n, M)
        parts.append((shannon_entropy(own.mean(0))[:, None] + of_aims - both).double().mean(1))
    return top(torch.cat(parts), free, batch_size)


def expected_entropy(passes: Tensor, rows: Tensor, posterior: Tensor, weight: Tensor) -> Tensor:
    """(M,) float64 mean over outcomes of the entropy of each row's prediction, to float32 accuracy.

    Args:
        passes: (T, N, C).
        rows: (M,) positions.
        posterior: (S, T), each row sums to 1.
        weight: (S,), sums to 1.
    """
    parts = []
    for part in chunks(len(rows), max(len(posterior), len(passes)) * passes.shape[2]):
        p = passes[:, rows[part]].float().flatten(1)  # (T, m C)
        mixed = (posterior.float() @ p).view(len(posterior), -1, passes.shape[2])  # (S, m, C)
        parts.append(weight @ shannon_entropy(mixed).double())
    return torch.cat(parts)


def condition(
    posterior: Tensor, weight: Tensor, probs: Tensor, samples: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Posteriors and weights once a row's label is part of each outcome: all labels, or a drawn one.

    Args:
        posterior: (S, T).
        weight: (S,).
        probs: (T, C) of the row.
        samples: most outcomes to return.
        rng: CPU generator.
    """
    classes = probs.shape[1]
    joint = posterior[:, None] * probs.T  # (S, C, T)
    if len(weight) * classes <= samples:
        share = joint.sum(2)  # (S, C) probability of each label given the outcome
        weight, joint = (weight[:, None] * share).flatten(), joint.flatten(0, 1)
        possible = weight > 0
        weight, joint = weight[possible], joint[possible]
        return joint / joint.sum(1, keepdim=True), weight
    if len(weight) < samples or (weight != weight[0]).any():  # go over from exact outcomes to drawn ones
        joint = joint[draw(weight, rng, samples).to(joint.device)]
    total = joint.sum(2).cumsum(1)
    aim = torch.rand(len(joint), 1, generator=rng, dtype=torch.float64).to(total.device) * total[:, -1:]
    last = torch.searchsorted(total, total[:, -1:].contiguous())  # an impossible label must not be drawn
    label = torch.minimum(torch.searchsorted(total, aim, right=True), last)
    joint = joint.gather(1, label[:, :, None].expand(-1, -1, joint.shape[2]))[:, 0]
    size = len(joint)
    return joint / joint.sum(1, keepdim=True), torch.full((size,), 1 / size, dtype=torch.float64, device=joint.device)
