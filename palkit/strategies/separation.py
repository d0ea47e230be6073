"""Strategies for rare classes: labels where one class ends and the others begin."""

import torch
from torch import Tensor

from palkit.strategies.registry import strategy
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies.ties import settled


@strategy("direct", style=("#CC6677", "v"))
def direct(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) for each class in turn, the row nearest to where its labels end, in the order of how much it is preferred.

    (DIRECT: Nuggehalli et al., ICML 2025, arXiv 2312.09196.) Rows are ranked by p_k - max of the other classes. The
    threshold of class k is the cut of this ranking above which the labelled rows of k outnumber the others most; an
    unlabelled row is the nearer to it the fewer rows lie between. The class with the fewest labels begins. Rows above
    and below a threshold take turns, as labels of a round come together: the authors' search for it label by label
    needs an answer after each.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
    """
    number, classes = scores.probs.shape
    labels, known = labelled.labels.cpu(), labelled.positions.cpu()
    free = torch.ones(number, dtype=torch.bool)
    free[known] = False
    few = torch.bincount(labels, minlength=classes).argsort(stable=True).tolist()
    best = scores.probs.topk(min(2, classes))

    def lead(one: int) -> Tensor:
        """(N,) by how much a class is preferred to the best of the others, or to nothing if it is the only one."""
        others = torch.where(best.indices[:, 0] == one, best.values[:, 1:].sum(1), best.values[:, 0])
        return scores.probs[:, one] - others

    taken = len(known) + batch_size  # rows of a queue that may be passed over
    queues = [iter(_from_threshold(lead(c), labels == c, known)[:taken].tolist()) for c in few[:batch_size]]
    picks: list[int] = []
    while len(picks) < batch_size:
        for queue in queues[: batch_size - len(picks)]:
            picks.append(next(row for row in queue if free[row]))
            free[picks[-1]] = False
    return torch.tensor(picks)


def _from_threshold(lead: Tensor, own: Tensor, known: Tensor) -> Tensor:
    """(N,) rows in the order of their distance in rank from the threshold of a class.

    Args:
        lead: (N,) of the class.
        own: (L,) bool, whether each label is of it.
        known: (L,) labelled positions.
    """
    order = settled(lead).sort(descending=True, stable=True).indices.cpu()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    excess = torch.zeros(len(order) + 1, dtype=torch.int64)  # labelled rows of the class above a cut, less the others
    excess[rank[known] + 1] = 2 * own.long() - 1
    cut = int(excess.cumsum(0).argmax())
    away = torch.arange(len(order)) - cut
    return order[torch.where(away < 0, -2 * away - 1, 2 * away).argsort()]
