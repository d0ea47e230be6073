"""Input of a strategy: scores of every pool row, and the labels bought so far."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor

from palkit.errors import ConfigError, brief
from palkit.strategies.kernels import Rows
from palkit.strategies.options import Inside, Limit, check
from palkit.strategies.ties import Keys, predict

PASSES = 10_000  # more would not fit anywhere


@dataclass(frozen=True)
class Dropout:
    """How to make stochastic passes. Only what is random is computed again in each pass.

    Attributes:
        passes: how many, T.
        rate: probability with which a value is dropped.
        on: what is dropped. "features": entries of the pooled features, independently in each row and pass
            (Gal 2017; Gupte 2024). "shared_features": the same entries for all rows of a pass, so that a pass is one
            function and what it says of two rows can be joined (consistent dropout, Kirsch 2019). "head": weights of
            the head, likewise (DropConnect, Wan et al. 2013). "adapter": inputs of the low-rank path, in each adapted
            block (Gal 2017); the blocks before are computed once.
    """

    passes: Annotated[int, Limit(lambda number: 1 <= number <= PASSES, f"from 1 to {PASSES:,}")]
    rate: Inside
    on: Literal["features", "shared_features", "head", "adapter"] = "features"

    def __post_init__(self) -> None:
        for field in fields(self):
            option = field.name if field.name == "passes" else f"dropout_{field.name}"
            check(option, getattr(self, field.name), field.type)


@dataclass(frozen=True)
class PoolScores:
    """One scoring pass over the whole pool, labelled and unlabelled rows alike, in pool order.

    Attributes:
        features: (N, D) float32 pooled backbone features, what the head sees; shards where they exceed memory.
        probs: (N, C) float32 class probabilities, rows sum to 1.
        stochastic_probs: (T, N, C) float32, one pass per dropout mask, or None if nothing needed it.
        names: keys of the images and classes, which settle ties; None where positions and numbers are all there is.

    >>> scores = PoolScores(torch.zeros(3, 2), torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]))
    >>> len(scores), scores.predicted[:2]
    (3, tensor([0, 1]))
    """

    features: Rows
    probs: Tensor
    stochastic_probs: Tensor | None = None
    names: Keys | None = None

    def __post_init__(self) -> None:
        for name, axes in {"features": 2, "probs": 2, "stochastic_probs": 3}.items():
            rows = getattr(self, name)
            if rows is None and name == "stochastic_probs":
                continue
            if not isinstance(getattr(rows, "device", None), torch.device):
                raise ConfigError(f"scores: {name} must be a tensor, got {brief(rows)}.")
            if len(rows.shape) != axes or 0 in rows.shape[axes - 3 :]:  # the last of two axes, any of three
                raise ConfigError(f"scores need {axes}-D {name} that are not empty, got shape {tuple(rows.shape)}.")
        passes, names = self.stochastic_probs, self.names
        fits = {f"features of {len(self.features)} rows": len(self.features) == len(self.probs)}
        if passes is not None:
            fits[f"stochastic_probs of shape {tuple(passes.shape)}"] = passes.shape[1:] == self.probs.shape
        if names is not None:
            size = (len(names.rows), len(names.classes))
            fits[f"names of {size[0]} rows and {size[1]} classes"] = size == self.probs.shape
        for what, fitting in fits.items():
            if not fitting:
                shape = tuple(self.probs.shape)
                raise ConfigError(f"scores: {what} do not fit probs of shape {shape}; give both of the same rows.")

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def keys(self) -> Keys:
        """What settles ties between rows and between classes."""
        return self.names or Keys.of_positions(*self.probs.shape)

    @cached_property
    def predicted(self) -> Tensor:
        """(N,) int64 most probable class of each row."""
        return predict(self.probs, self.keys)


def are_classes(labels: Tensor, scores: PoolScores) -> bool:
    """Whether `labels` are one class for each row of the scores."""
    if labels.shape != (len(scores),) or labels.dtype != torch.int64:
        return False
    return bool(((labels >= 0) & (labels < scores.probs.shape[1])).all())


@dataclass(frozen=True)
class LabelledSet:
    """Labels bought so far.

    Attributes:
        positions: (L,) int64 pool positions, in order of purchase.
        labels: (L,) int64 class of each.

    >>> LabelledSet(torch.tensor([2, 0]), torch.tensor([1, 0])).unlabelled(4)
    tensor([1, 3])
    """

    positions: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def unlabelled(self, pool_size: int) -> Tensor:
        """(U,) int64 ascending positions of a pool of `pool_size` rows that carry no label yet."""
        mask = torch.ones(pool_size, dtype=torch.bool)
        mask[self.positions.cpu()] = False
        return mask.nonzero().squeeze(1)
