"""Strategies that look at labels nobody has bought yet: yardsticks for ablations, never for real use."""

import torch
from torch import Tensor

from palkit.errors import ConfigError
from palkit.strategies.registry import strategy
from palkit.strategies.scores import LabelledSet, PoolScores, are_classes


@strategy("class_balanced_oracle", cold_start=True, blind=True)
def class_balanced_oracle(
    scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator, labels: Tensor | None = None
) -> Tensor:
    """(B,) random rows that even out the TRUE classes. Cheats: it reads the labels of the whole pool.

    One by one, a random row of the class with the fewest labels so far, counting the batch. What balanced classes
    alone are worth, as an upper bound for ablations.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        labels: (N,) int64 true class of every pool row. Required, so that nobody cheats unawares.
    """
    classes = scores.probs.shape[1]
    if labels is None or not are_classes(labels, scores):
        raise ConfigError(
            "class_balanced_oracle reads the true labels: pass labels, an int64 tensor with one of the "
            f"{classes} classes per pool row ({len(scores)})."
        )
    free = labelled.unlabelled(len(scores))
    shuffled = free[torch.randperm(len(free), generator=rng)]
    truth = labels.cpu()
    queues = [shuffled[truth[shuffled] == c].tolist() for c in range(classes)]
    counts = torch.bincount(truth[labelled.positions.cpu()], minlength=classes).tolist()
    picks: list[int] = []
    for _ in range(batch_size):
        scarce = min((c for c in range(classes) if queues[c]), key=lambda c: counts[c])
        picks.append(queues[scarce].pop())
        counts[scarce] += 1
    return torch.tensor(picks)
