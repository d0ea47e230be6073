"""Errors a user can act on: each names the thing that is wrong and what to do about it."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 200  # characters of a value in a message


class PalkitError(Exception):
    """Base of all errors that palkit raises on purpose.

    >>> import palkit
    >>> try:
    ...     palkit.load_dataset("digit")
    ... except palkit.PalkitError as error:
    ...     print(str(error)[:51])
    unknown dataset 'digit'. Did you mean 'digits'? Val
    """


class DataNotice(UserWarning):
    """Something about a data set that its user should know: what was left out of it, or decided for them."""


class ConfigError(PalkitError, ValueError):
    """A field of a config, or an argument, has a value that cannot work."""


class DataError(PalkitError):
    """An image, a manifest or a folder cannot be used as it is."""


class ChecksumError(PalkitError):
    """A file is not the file that was published."""


class TimeLimitError(PalkitError):
    """A run took longer than it may."""


class StorageError(PalkitError, OSError):
    """A file cannot be written: no room, or no permission."""


class WeightsError(PalkitError):
    """Pretrained weights cannot be had or do not fit the model."""


class DivergenceError(PalkitError):
    """Training produced a loss that is not finite."""


class OutOfMemoryError(PalkitError, MemoryError):
    """Not even one image fits into the device's memory."""


def brief(value: object) -> str:
    """A value as it may stand in a message, cut where nobody reads on."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print numbers of thousands of digits
        text = f"{type(value).__name__} of more than 4,300 digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def seen(text: str) -> str:
    """What a reader sees of a text: accents composed, spaces alike, and nothing of what takes no room."""
    shown = (char for char in unicodedata.normalize("NFC", text) if unicodedata.category(char) != "Cf")
    return " ".join("".join(shown).split())


def hidden_difference(name: str, other: str) -> str:
    """What tells a name from another that looks like it, "" if a reader sees the difference.

    Args:
        name: one.
        other: the other; capitals do not count as seen.
    """
    if name == other:
        return ""
    if seen(name).casefold() != seen(other).casefold():
        return _other_script(name, other)
    if seen(name) != seen(other):
        return "capital and small letters"
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
        return f"how its accents are stored: {name!a} and {other!a}"
    unseen = sorted({char for char in name + other if unicodedata.category(char) == "Cf"})
    if unseen:
        return "characters that cannot be seen: " + ", ".join(f"U+{ord(char):04X}" for char in unseen)
    return f"spaces: {name!a} and {other!a}"


def _other_script(name: str, other: str) -> str:
    """The first letter of a name that is of another script than the one in its place, if no other letters differ."""
    pairs = [(a, b) for a, b in zip(name, other, strict=False) if a != b]
    named = [[unicodedata.name(char, "?").split() for char in pair] for pair in pairs if "".join(pair).isalpha()]
    alike = len(name) == len(other) and 0 < len(pairs) == len(named) and all(a[0] != b[0] for a, b in named)
    # A word with no letter of the other script in common is another word, unless all its letters have the same names.
    if not alike or (len(pairs) == len(name) and any(a[1:] != b[1:] for a, b in named)):
        return ""
    first, second = map(" ".join, named[0])
    return f"the letter {first}, which is {second} there"


def unknown_name(kind: str, name: object, valid: Iterable[str], further: Iterable[str] = ()) -> ConfigError:
    """Error for a name that is not registered, listing the valid ones and the nearest.

    Args:
        kind: what is named, e.g. `"strategy"`.
        name: the value given.
        valid: the names that exist.
        further: more of them, which may have been meant and are too many to list.
    """
    names = sorted(valid)
    given = name if isinstance(name, str) else brief(name)
    hidden = ((other, hidden_difference(given, other)) for other in names)
    twin, difference = next(((other, why) for other, why in hidden if why), ("", ""))
    near = get_close_matches(given, [*names, *further], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if twin:
        hint = f" It differs from {twin!r} in {difference}."
    return ConfigError(f"unknown {kind} {brief(name)}.{hint} Valid names: {', '.join(names)}.")
