"""The strategy for those who do not want to choose one."""

import torch
from torch import Tensor

from palkit.strategies.coverage import uherding
from palkit.strategies.diversity import featdist
from palkit.strategies.registry import strategy
from palkit.strategies.scores import LabelledSet, PoolScores

SEARCH = 2  # labels per class from which on a class without any is rare, and looked for


@strategy("auto", cold_start=True, style=("#000000", "*"))
def auto(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) `uherding`, taking turns with `featdist` while there is a class that should have been met by now.

    That is: while one of the classes has no label though there are SEARCH labels per class. What is nearest to no
    label is then worth half of the batch; as a strategy of its own it is below random choice on most data sets. With
    ten labels a round this is level with `uherding` alone, with fifty it finds what that misses (docs/decide.md).

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
    """
    picks = uherding(scores, labelled, batch_size, rng)
    classes = scores.probs.shape[1]
    if len(labelled) < SEARCH * classes or len(labelled.labels.unique()) == classes:
        return picks
    turns = torch.stack([picks, featdist(scores, labelled, batch_size, rng)], 1)
    if len(labelled) % 2:  # else one that buys image by image would never look
        turns = turns.flip(1)
    return torch.tensor(list(dict.fromkeys(turns.flatten().tolist()))[:batch_size])
