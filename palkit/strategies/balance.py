"""Wrappers that even out the classes, or bound the groups, of a batch, around any strategy."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
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


def group_numbers(groups: Sequence[str] | np.ndarray) -> Tensor:
    """(N,) int64 number of each name, -1 for "", an image that stands for itself.

    >>> group_numbers(["ann", "", "bob", "ann"]).tolist()
    [1, -1, 2, 1]
    """
    names = np.asarray(groups, dtype=str)
    return torch.from_numpy(np.where(names == "", -1, np.unique(names, return_inverse=True)[1]))


def spread_over_groups(propose: Propose, groups: Tensor, batch_size: int, per_group: int, most: int) -> Tensor:
    """(B,) rows of a strategy, no more than so many of a group while there are others.

    The strategy is asked for more and more candidates until enough of them are within the bound; where there are none
    left, those beyond it follow.

    Args:
        propose: the strategy, as a function of the number of candidates wanted.
        groups: (N,) int64, below 0 for a row that stands for itself.
        batch_size: B.
        per_group: at least 1.
        most: candidates that there are.
    """
    wanted = batch_size
    while True:
        candidates = propose(wanted)
        counts: dict[int, int] = {}
        within = torch.ones(len(candidates), dtype=torch.bool)
        for place, group in enumerate(groups[candidates].tolist()):
            counts[group] = counts.get(group, 0) + 1
            within[place] = group < 0 or counts[group] <= per_group
        if within.sum() >= batch_size or wanted >= most:
            return torch.cat([candidates[within], candidates[~within]])[:batch_size]
        wanted = min(2 * wanted, most)


BALANCES: dict[str, Callable[..., Tensor]] = {"pcb": pcb}
