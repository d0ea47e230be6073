"""Errors a user can act on: each names the thing that is wrong and what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 200  # characters of a value in a message


class PalkitError(Exception):
    """Base of all errors that palkit raises on purpose."""


class ConfigError(PalkitError, ValueError):
    """A field of a config, or an argument, has a value that cannot work."""


class DataError(PalkitError):
    """An image, a manifest or a folder cannot be used as it is."""


class ChecksumError(PalkitError):
    """A file is not the file that was published."""


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


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> ConfigError:
    """Error for a name that is not registered, listing the valid ones and the nearest.

    Args:
        kind: what is named, e.g. `"strategy"`.
        name: the value given.
        valid: the names that exist.
    """
    names = sorted(valid)
    near = get_close_matches(name if isinstance(name, str) else brief(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {kind} {brief(name)}.{hint} Valid names: {', '.join(names)}.")
