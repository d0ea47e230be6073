"""Wrappers that even out the classes of a batch, around any strategy."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from palkit.errors import ConfigError
from palkit.scores import LabelledSet, PoolScores

Propose = Callable[[int], Tensor]


def pcb(
    propose: Propose,
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    gamma: float = 0.1,
) -> Tensor:
    """Pseudo-class balance (Bang et al., CVPR 2024).

    The strategy proposes max(batch_size, gamma * U) candidates, best first. The batch is filled one by
    one with the best candidate of the predicted class that has the fewest labels so far, counting the
    batch; ties go to the lowest class. If no candidate of that class is left, a random candidate is
    taken instead, and counts for its own predicted class.

    Args:
        propose: the strategy, as a function of the number of candidates wanted.
        scores, labelled, batch_size, rng: as for every strategy.
        gamma: share of the unlabelled pool to consider, in (0, 1].

    Returns:
        (B,) int64 positions in the order in which the batch was filled.
    """
    if not 0 < gamma <= 1:
        raise ConfigError(f"gamma must be in (0, 1], got {gamma!r}.")
    unlabelled = len(scores) - len(labelled)
    candidates = propose(max(batch_size, math.ceil(gamma * unlabelled)))
    classes = scores.probs.shape[1]
    predicted = scores.predicted.cpu()[candidates]
    queues = [(predicted == c).nonzero().squeeze(1).flip(0).tolist() for c in range(classes)]
    counts = torch.bincount(labelled.labels.cpu(), minlength=classes)
    batch: list[int] = []
    for _ in range(batch_size):
        scarce = int(counts.argmin())
        if not queues[scarce]:
            left = [i for queue in queues for i in queue]
            drawn = left[int(torch.randint(len(left), (1,), generator=rng))]
            scarce = int(predicted[drawn])
            queues[scarce].remove(drawn)
            queues[scarce].append(drawn)
        batch.append(queues[scarce].pop())
        counts[scarce] += 1
    return candidates[torch.tensor(batch)]


BALANCES: dict[str, Callable[..., Tensor]] = {"pcb": pcb}
