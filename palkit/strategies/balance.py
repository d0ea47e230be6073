"""Wrappers that even out the classes of a batch, around any strategy."""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from palkit.strategies.options import Limit
from palkit.strategies.scores import LabelledSet, PoolScores

Propose = Callable[[int], Tensor]


def pcb(
    propose: Propose,
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    gamma: Annotated[float, Limit(lambda share: 0 < share <= 1, "above 0, 1 at most")] = 0.1,
) -> Tensor:
    """Pseudo-class balance (Bang et al., CVPR 2024).

    The strategy proposes max(batch_size, gamma * U) candidates. The batch is filled one by one from the
    predicted class that has the fewest labels so far, counting the batch, with one of its candidates drawn
    at random. If none of that class is left, any candidate is drawn, and counts for its own predicted class.

    Args:
        propose: the strategy, as a function of the number of candidates wanted.
        scores, labelled, batch_size, rng: as for every strategy.
        gamma: share of the unlabelled pool to consider, in (0, 1].

    Returns:
        (B,) int64 positions in the order in which the batch was filled.
    """
    unlabelled = len(scores) - len(labelled)
    candidates = propose(max(batch_size, math.ceil(gamma * unlabelled)))
    classes = scores.probs.shape[1]
    predicted = scores.predicted.cpu()[candidates]
    order = torch.randperm(len(candidates), generator=rng)
    counts = torch.bincount(labelled.labels.cpu(), minlength=classes)
    batch: list[int] = []
    for _ in range(batch_size):
        own = (predicted[order] == counts.argmin()).nonzero()
        place = int(own[0]) if len(own) else 0
        batch.append(int(order[place]))
        counts[predicted[batch[-1]]] += 1
        order = torch.cat([order[:place], order[place + 1 :]])
    return candidates[torch.tensor(batch)]


BALANCES: dict[str, Callable[..., Tensor]] = {"pcb": pcb}
