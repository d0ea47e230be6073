"""Strategies that look at labels nobody has bought yet: yardsticks for ablations, never for real use."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from palkit.errors import ConfigError
from palkit.strategies.heads import even_rows, logistic
from palkit.strategies.kernels import per_row
from palkit.strategies.registry import STRATEGIES, strategy
from palkit.strategies.scores import LabelledSet, PoolScores, are_classes

CANDIDATES = ("random", "margin", "entropy", "badge", "typiclust", "uherding")


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
    truth, classes = _truth("class_balanced_oracle", labels, scores), scores.probs.shape[1]
    free = labelled.unlabelled(len(scores))
    shuffled = free[torch.randperm(len(free), generator=rng)]
    queues = [shuffled[truth[shuffled] == c].tolist() for c in range(classes)]
    counts = torch.bincount(truth[labelled.positions.cpu()], minlength=classes).tolist()
    picks: list[int] = []
    for _ in range(batch_size):
        scarce = min((c for c in range(classes) if queues[c]), key=lambda c: counts[c])
        picks.append(queues[scarce].pop())
        counts[scarce] += 1
    return torch.tensor(picks)


@strategy("best_batch_oracle")
def best_batch_oracle(
    scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator, labels: Tensor | None = None
) -> Tensor:
    """(B,) of the batches that CANDIDATES propose the one that a head learns most from. Cheats: it reads all labels.

    After each batch a logistic head is solved on the features, and judged by the mean over classes of the share of
    their rows in the pool that it finds. What choosing the strategy anew in every round could be worth: a yardstick,
    no bound, because the best batch of a round need not lead to the best rounds after it.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        labels: as of `class_balanced_oracle`.
    """
    truth, classes = _truth("best_batch_oracle", labels, scores), scores.probs.shape[1]
    rows = even_rows(scores.features)

    def found(batch: Tensor) -> float:
        known = torch.cat([labelled.positions.cpu(), batch])
        weight, bias = logistic(rows[known], one_hot(truth[known], classes), torch.ones(len(known)), 1 / len(known))
        weight, bias = weight.to(rows.device), bias.to(rows.device)
        predicted = per_row(lambda some: (some @ weight.T + bias).argmax(1), rows).cpu()
        right, of = torch.bincount(truth, predicted == truth, classes), torch.bincount(truth, minlength=classes)
        return float((right[of > 0] / of[of > 0]).mean())

    batches = [STRATEGIES[name].function(scores, labelled, batch_size, rng).cpu() for name in CANDIDATES]
    return max(batches, key=found)


def _truth(name: str, labels: Tensor | None, scores: PoolScores) -> Tensor:
    """(N,) labels, on the CPU."""
    if labels is None or not are_classes(labels, scores):
        raise ConfigError(f"{name} reads the true labels: give labels (int64) of all {len(scores)} rows.")
    return labels.cpu()
