"""Checks, by pydantic, of values that come from outside: each is what its field declares, or an error names both."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, ClassVar, get_args, get_origin

import numpy as np
from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError

from palkit.errors import ConfigError, brief, unknown_name

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
WHOLE = 2**63  # what torch and numpy hold
EXACT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
# What takes no room and changes no letter: soft hyphen, zero-width space, word joiner and invisible
# operators, marks of direction, byte order mark. Not the joiners U+200C and U+200D, which change words in Persian and
# Indic scripts, nor variation selectors and tags: emoji are made of these.
UNSEEN = dict.fromkeys(
    (0xAD, 0x061C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
)


def normal(text: str) -> str:
    """Text as it is compared: one that looks the same is the same.

    Accents are composed (NFC, https://unicode.org/reports/tr15/), and `UNSEEN` characters are dropped.
    """
    return unicodedata.normalize("NFC", text.translate(UNSEEN))


class Checked:
    """A base for dataclasses whose fields must be what they declare, in type, range and choice.

    Raises:
        ConfigError: names the field, below the class's `part`.

    >>> from dataclasses import dataclass
    >>> from typing import Literal
    >>> @dataclass(frozen=True)
    ... class Door(Checked):
    ...     state: Literal["open", "shut"] = "shut"
    >>> Door("opn")
    Traceback (most recent call last):
    palkit.errors.ConfigError: unknown state 'opn'. Did you mean 'open'? Valid names: open, shut.
    """

    part: ClassVar[str] = ""  # of the config that the fields belong to, with a dot

    def __post_init__(self) -> None:
        assert is_dataclass(self)
        for field in fields(self):
            value = checked(f"{self.part}{field.name}", getattr(self, field.name), field.type)
            object.__setattr__(self, field.name, value)


def checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that a field declares.

    Args:
        name: of the field, for the error.
        value: from outside.
        hint: the field's annotation, as pydantic takes it; nothing is converted but lists to tuples and whole numbers
            to floats.

    Raises:
        ConfigError: another type or choice, or a number out of range, not finite or of more than 63 bits.
    """
    if isinstance(value, list) and get_origin(hint) is tuple:
        value = tuple(value)
    if isinstance(value, np.generic):  # a length, sum or comparison that numpy has made
        value = value.item()
    try:
        valid = _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise _explained(error, name, value, hint) from None
    if isinstance(value, int) and abs(value) >= WHOLE:
        raise ConfigError(f"{name} is {brief(value)}; it must be a finite number of at most 63 bits.")
    return valid


def _explained(error: ValidationError, name: str, value: Any, hint: Any) -> ConfigError:
    """What pydantic refuses about a value, in our words and with the place in it."""
    found = error.errors(include_url=False)
    if "[key]" in found[0]["loc"]:
        return ConfigError(f"a key of {name} is {brief(found[0]['input'])}; it must be a text. Put it into quotes.")
    given, kinds = found[0]["input"], {one["type"] for one in found}
    for step in found[0]["loc"]:
        try:
            value = value[step]
        except (TypeError, LookupError):  # the rest says which kind of a union it is not
            break
        name = f"{name}.{step}"
    if kinds == {"literal_error"} and isinstance(given, str):
        return refused_choice(name, found[0])
    wanted = " or ".join(dict.fromkeys(one["msg"].partition(" should ")[2] for one in found))
    inner = get_args(hint)[:1]
    many = "a list of texts" if inner == (str,) else "a list"
    wanted = wanted.replace("a valid tuple", many) + (" or nothing" if NoneType in get_args(hint) else "")
    is_text = kinds & {"string_type", "literal_error"} and not isinstance(given, str | list | dict)
    quotes = " In YAML, put it into quotes." if is_text else ""
    return ConfigError(f"{name} is {brief(given)} ({type(given).__name__}); it must {wanted}.{quotes}")


def refused_choice(name: str, finding: Mapping[str, Any]) -> ConfigError:
    """What pydantic finds about a text that is none of a Literal, with the one that was meant."""
    return unknown_name(name, finding["input"], re.findall("'([^']*)'", finding["ctx"]["expected"]))


@cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(InstanceOf[hint]) if is_dataclass(hint) else TypeAdapter(hint, config=EXACT)
