"""Selection from arrays: the door for those who have features and probabilities of a model of their own."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palkit.errors import ConfigError, brief
from palkit.strategies.balance import group_numbers
from palkit.strategies.options import named_rows
from palkit.strategies.registry import STRATEGIES, check_options, get_strategy
from palkit.strategies.registry import select as select_positions
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies.ties import Keys

Array = np.ndarray | Tensor | Sequence
Labels = Mapping[Any, Any] | tuple[Array, Array]


def select(
    strategy: str,
    features: Array,
    probs: Array | None = None,
    labelled: Labels | None = None,
    batch_size: int = 10,
    *,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    stochastic_probs: Array | None = None,
    balance: str | None = None,
    subsample: int | None = None,
    groups: Sequence[str] | None = None,
    per_group: int | None = None,
    **options: Any,
) -> np.ndarray:
    """Images whose labels to buy next, chosen from features and probabilities of any model.

    Args:
        strategy: name of a registered strategy, see `palkit.STRATEGIES`.
        features: (N, D) of the whole pool, labelled images too; numpy, torch, or nested lists.
        probs: (N, C) class probabilities, rows sum to 1; None before there is a model, for cold-start strategies.
        labelled: what is labelled so far: `{image: class}`, or images and classes as two sequences of one length. An
            image is its position, or its id where there are ids; a class is its number, or its name where there are
            names.
        batch_size: images wanted; fewer come back where fewer are left.
        seed: of whatever is drawn, ties between equal images among them.
        ids: (N,) names of the images: then ties are settled by name and seed, whatever the order of the rows.
        classes: (C,) names of the columns of `probs`.
        stochastic_probs: (T, N, C), for strategies that compare passes with dropout, such as bald.
        balance: "pcb" to even out classes, or None.
        subsample: rows shown to the strategy at most, or None for all.
        groups: (N,) what each image is of, such as a patient; "" for one that stands for itself.
        per_group: images of a group in the batch, at most, while there are others; None for no bound.
        options: of the strategy, e.g. `reference="class_mean"` of featdist.

    Returns:
        (B,) positions (int64) in the strategy's order, or their ids if there are ids.

    Raises:
        ConfigError: a name, an option, or an array that cannot be used; says which and why.

    >>> import numpy as np
    >>> import palkit
    >>> features = np.array([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0], [9.0, 9.0]])
    >>> palkit.select("coreset", features, labelled={0: 1}, batch_size=2).tolist()
    [3, 2]
    >>> probs = np.array([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [1.0, 0.0]])
    >>> palkit.select("entropy", features, probs, {"a": "sick"}, 2, ids=list("abcd"), classes=["well", "sick"]).tolist()
    ['b', 'c']
    """
    chosen = get_strategy(strategy)
    if probs is None and not chosen.cold_start:
        starting = ", ".join(sorted(name for name, one in STRATEGIES.items() if one.cold_start))
        raise ConfigError(f"strategy {strategy!r} looks at probs; give them. Without a model choose by: {starting}.")
    batch_size, seed = _integer("batch_size", batch_size), _integer("seed", seed)
    ids, classes = (None if names is None else [str(name) for name in names] for names in (ids, classes))
    rows = _tensor("features", features)
    images, labels = _pairs(labelled)
    if ids is not None:
        images = _numbers("images", images, ids, len(rows))
    if classes is not None:
        labels = _numbers("classes", labels, classes, len(classes))
    known = LabelledSet(_whole("labelled images", images), _whole("labels", labels))
    columns = max([len(classes or ()), 1, *(known.labels + 1).tolist()])
    known_probs = torch.full((len(rows), columns), 1 / columns) if probs is None else _tensor("probs", probs)
    passes = None if stochastic_probs is None else _tensor("stochastic_probs", stochastic_probs)
    scores = PoolScores(rows, known_probs, passes)
    default = Keys.of_positions(*scores.probs.shape)
    named = Keys.of(ids or (), classes or ())
    names = Keys(default.rows if ids is None else named.rows, default.classes if classes is None else named.classes)
    scores, generator = replace(scores, names=names), torch.Generator().manual_seed(seed)
    given: dict[str, Any] = {"balance": balance, "subsample": subsample}
    given["groups"] = None if groups is None else group_numbers(groups)
    given["per_group"] = None if per_group is None else _integer("per_group", per_group)
    own = {key: torch.from_numpy(one) if isinstance(one, np.ndarray) else one for key, one in options.items()}
    check_options(chosen, balance, own)
    given |= own if ids is None else named_rows(own, ids)
    picks = select_positions(strategy, scores, known, batch_size, generator, **given).numpy()
    return picks if ids is None else np.asarray(ids)[picks]


def _tensor(name: str, values: Array) -> Tensor:
    """The values as a floating-point tensor; memory of arrays is shared, not copied."""
    try:
        rows = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {brief(values)} is no array of numbers ({error}).") from error
    return rows if rows.is_floating_point() else rows.float()


def _integer(name: str, value: Any) -> int:
    """A whole number of Python, numpy or torch."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise ConfigError(f"{name} must be a whole number, got {brief(value)}.") from error


def _pairs(labelled: Labels | None) -> tuple[list, list]:
    if labelled is None:
        return [], []
    to_dict = getattr(labelled, "to_dict", None)
    if to_dict is not None:  # a Series of pandas
        labelled = to_dict()
    if isinstance(labelled, Mapping):
        return list(labelled), list(labelled.values())
    if not isinstance(labelled, tuple | list) or len(labelled) != 2 or not all(map(np.ndim, labelled)):
        raise ConfigError(f"labelled is {brief(labelled)}; give {{image: class}}, or images and classes as a pair.")
    return list(labelled[0]), list(labelled[1])


def _numbers(what: str, given: Iterable[Any], names: Sequence[str], size: int) -> list[int]:
    """Positions of names among the names there are."""
    if len(names) != size:
        raise ConfigError(f"there are {len(names)} names of {what} for {size} rows; give one for each.")
    place = {name: number for number, name in enumerate(names)}
    given = list(map(str, given))
    for name in given:
        if name not in place:
            near = get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" They are called like {names[0]!r}."
            raise ConfigError(f"labelled: {brief(name)} is not among the {len(names)} names of {what}.{hint}")
    return [place[name] for name in given]


def _whole(name: str, values: Sequence[Any]) -> Tensor:
    """(L,) int64."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ConfigError(f"{name}: {brief(values)} are no whole numbers; to use names, give ids and classes.")
    return torch.from_numpy(array.astype(np.int64))
