"""Values that come from outside: what a field declares is what it gets, or an error names both."""

import math
import types
import typing
import unicodedata
from collections.abc import Mapping
from typing import Any

from palkit.errors import ConfigError, brief, unknown_name

WHOLE = 2**63  # what torch and numpy hold
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


def checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that a field declares.

    Args:
        name: of the field, for the error.
        value: from outside.
        hint: the field's annotation: bool, int, float, str, None, tuple[str, ...], a Mapping, another class, or a
            union of them; or a Literal of texts, alone or in a union.

    Raises:
        ConfigError: another type, or a number that is not finite or has more than 63 bits.
    """
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise unknown_name(name, value, typing.get_args(hint))
        return value
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = tuple(one for hint in typing.get_args(hint) for one in _said(hint)) if union else (hint,)
    if isinstance(value, str) and value in (one for one in options if isinstance(one, str)):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and type(None) in options:
        return None
    if tuple[str, ...] in options and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if bool in options and isinstance(value, bool):
        return value
    if number and (float in options or (int in options and isinstance(value, int))):
        if not (abs(value) < WHOLE if isinstance(value, int) else math.isfinite(value)):
            raise ConfigError(f"{name} is {brief(value)}; it must be a finite number of at most 63 bits.")
        return float(value) if float in options else value
    if str in options and isinstance(value, str):
        return value
    if any(isinstance(o, type) and o not in (bool, int, float, str) and isinstance(value, o) for o in options):
        return value
    if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
        return {checked(f"a key of {name}", key, str): inner for key, inner in value.items()}
    names = {type(None): "nothing", tuple[str, ...]: "a list of texts"}
    wanted = " or ".join(
        names[o] if o in names else repr(o) if isinstance(o, str) else getattr(o, "__name__", str(o)) for o in options
    )
    quotes = " In YAML, put it into quotes." if str in options and not isinstance(value, list | dict) else ""
    raise ConfigError(f"{name} is {brief(value)} ({type(value).__name__}); it must be {wanted}.{quotes}")


def _said(hint: Any) -> tuple[Any, ...]:
    """The texts of a Literal, or a type as it is."""
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else (hint,)
