"""Wrappers that even out the classes, or bound the groups, of a batch, around any strategy."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
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


def group_numbers(groups: Iterable[object]) -> Tensor:
    """(N,) int64 number of each name; -1 for "", None and NaN, images that stand each for itself.

    >>> group_numbers(["ann", "", "bob", "ann", None]).tolist()
    [1, -1, 2, 1, -1]
    """
    # NaN alone is not itself.
    names = np.array(["" if one is None or one != one else str(one) for one in groups], dtype=object)
    return torch.from_numpy(np.where(names == "", -1, np.unique(names, return_inverse=True)[1]))


def spread_over_groups(
    batch: Callable[[Tensor, LabelledSet, int], Tensor],
    shown: Tensor,
    labelled: LabelledSet,
    predicted: Tensor,
    groups: Tensor,
    batch_size: int,
    per_group: int,
    begun: Tensor,
) -> Tensor:
    """(B,) rows of a strategy, no more than so many of a group while there are others.

    What it takes beyond the bound is left out, and it is asked again for as many among the rows of other groups, with
    those taken as if they were labelled with their predicted class. Where all groups are full the bound rises by one.

    Args:
        batch: the strategy, as a function of the rows that it may see, the labelled set and the number wanted.
        shown: (M,) rows of the pool, all labelled ones among them.
        labelled: as for every strategy.
        predicted: (N,) class of each row of the pool.
        groups: (N,) int64, below 0 for a row that stands for itself.
        batch_size: B, no more than there are unlabelled rows among those shown.
        per_group: at least 1.
        begun: groups of what the batch has already.
    """
    positions, labels, predicted = labelled.positions.cpu(), labelled.labels.cpu(), predicted.cpu()
    taken: list[int] = []
    counts, bound = Counter[int](begun.tolist()), per_group
    while len(taken) < batch_size:
        fresh = torch.tensor(taken, dtype=torch.int64)
        known = LabelledSet(torch.cat([positions, fresh]), torch.cat([labels, predicted[fresh]]))
        full = torch.tensor([group for group, count in counts.items() if group >= 0 and count >= bound])
        rows = shown[~torch.isin(groups[shown], full) | torch.isin(shown, known.positions)]
        left = len(rows) - len(known)
        if not left:
            bound += 1
            continue
        for row in batch(rows, known, min(batch_size - len(taken), left)).tolist():
            group = int(groups[row])
            if group < 0 or counts[group] < bound:
                counts[group] += 1
                taken.append(row)
    return torch.tensor(taken)


BALANCES: dict[str, Callable[..., Tensor]] = {"pcb": pcb}
