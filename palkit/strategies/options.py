"""Limits of what a strategy takes as an option, said in its annotation and checked before anything is computed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch

from palkit.errors import ConfigError, brief, unknown_name

NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", NoneType: "nothing"}


@dataclass(frozen=True)
class Limit:
    """A limit of a number.

    Attributes:
        holds: whether a number is within it.
        text: says so after "a number".
    """

    holds: Callable[[Any], bool]
    text: str


Count = Annotated[int, Limit(lambda number: number >= 1, "of at least 1")]
Positive = Annotated[float, Limit(lambda number: number > 0, "above 0")]
NotNegative = Annotated[float, Limit(lambda number: number >= 0, "of at least 0")]
Share = Annotated[float, Limit(lambda number: 0 <= number <= 1, "from 0 to 1")]
Inside = Annotated[float, Limit(lambda number: 0 < number < 1, "above 0 and below 1")]


def check(what: str, value: Any, hint: Any) -> None:
    """Check a value against an annotation.

    Args:
        what: it is, for the error.
        value: given.
        hint: a class, a `Literal` of texts, a number with a limit as `Count`, or a union of them.

    Raises:
        ConfigError: it is of another type, beyond a limit, or a number that is not finite.

    >>> check("batch_size", 0, Count)
    Traceback (most recent call last):
    palkit.errors.ConfigError: batch_size is 0; it must be a whole number of at least 1.
    """
    if _fits(value, hint):
        return
    if get_origin(hint) is Literal:
        raise unknown_name(what, value, get_args(hint))
    raise ConfigError(f"{what} is {brief(value)}; it must be {_wanted(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Annotated:
        kind, *more = get_args(hint)  # of which others than ours say nothing here
        return _fits(value, kind) and all(limit.holds(value) for limit in more if isinstance(limit, Limit))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and (abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value))
    kind = get_origin(hint) or hint  # of list[int] that it is a list
    return not isinstance(kind, type) or isinstance(value, kind)


def _wanted(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_wanted, get_args(hint)))
    if get_origin(hint) is Annotated:
        kind, *more = get_args(hint)
        return " ".join([_wanted(kind), *(limit.text for limit in more if isinstance(limit, Limit))])
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return NAMES.get(hint) or f"of type {getattr(hint, '__name__', hint)}"


def named_rows(options: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Any]:
    """The options, (N,) bool of the pool's rows in place of a list of images' names.

    Raises:
        ConfigError: no image of the pool is called so.

    >>> named_rows({"target": ["b"]}, ["a", "b"])
    {'target': tensor([False,  True])}
    """
    named = {option: set(map(str, names)) for option, names in options.items() if isinstance(names, list)}
    for option, names in named.items():
        if unknown := names.difference(ids):
            raise ConfigError(f"{option}: {brief(min(unknown))} is no image of the pool: name them as it does.")
    return {**options, **{option: torch.tensor([one in names for one in ids]) for option, names in named.items()}}
