"""Records of files and tables: pydantic validates their fields, and errors say what is wrong in palkit's words."""

import typing
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from palkit.errors import DataError, PalkitError, brief, unknown_name
from palkit.storage.checks import normal, refused_choice

Kind = TypeVar("Kind")


def _filled(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _with_offset(time: str) -> str:
    try:
        known = datetime.fromisoformat(time).tzinfo is not None
    except ValueError:
        known = False
    if not known:
        raise ValueError("is not ISO 8601 with an offset, as in 2026-01-31T12:00:00+00:00")
    return time


Text = Annotated[str, Field(strict=True)]
# In the form in which names are compared; ASCII is, and a session file may hold many thousands of names.
Name = Annotated[Text, AfterValidator(lambda text: text if text.isascii() else normal(text))]
FilledText = Annotated[Text, AfterValidator(_filled)]
Moment = Annotated[Text, AfterValidator(_with_offset)]
Time = Annotated[Text, AfterValidator(lambda time: time and _with_offset(time))]  # "" where it is not known
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]


def record(kind: type[Kind], values: Any) -> Kind:
    """A dataclass made of the values of a file, validated.

    Args:
        kind: the dataclass, its fields annotated as pydantic takes them.
        values: a mapping of its fields.

    Raises:
        ValueError: they do not fit; says in palkit's words which field, its value, and what it must be.
    """
    try:
        return _adapter(typing.cast(Hashable, kind)).validate_python(values)
    except ValidationError as error:
        raise ValueError(_reason(error, kind)) from None


@contextmanager
def explained(where: str, remedy: str, error: type[PalkitError] = DataError) -> Iterator[None]:
    """Turn a ValueError of the block, those of `record` among them, into an error that says where and what to do.

    Args:
        where: file and line, say.
        remedy: a sentence.
        error: its type.
    """
    try:
        yield
    except PalkitError:
        raise
    except ValueError as wrong:
        raise error(f"{where}: {str(wrong).removesuffix('.')}. {remedy}") from wrong


def _reason(error: ValidationError, kind: Any) -> str:
    """The first of pydantic's findings in our words."""
    first = error.errors(include_url=False)[0]
    path, what, value = ".".join(map(str, first["loc"])), first["type"], first["input"]
    path = f"value {int(path) + 1}" if path.isdecimal() else path  # of a list
    if what == "missing":
        return f"the field {path!r} is missing"
    if what in ("unexpected_keyword_argument", "extra_forbidden"):
        names = [field.name for field in fields(kind)]
        return str(unknown_name("field", path, names)) if len(first["loc"]) == 1 else f"there is no field {path!r}"
    if what == "literal_error":
        return str(refused_choice(path, first))
    whole = isinstance(value, dict | list)  # a record is not shown: the reason would come after all of it
    if what == "value_error":
        text = str(first["ctx"]["error"])
        if whole or not path:
            return f"the {path}: {text}" if path else text
        return f"the {path}{f' {brief(value)}' if value else ''} {text}"
    text = first["msg"].replace("Input should be", "must be").replace("a valid string", "text")
    text = "must be an object with named fields" if what == "dataclass_type" else text
    subject = f"the {path}" if path else "the value" * whole
    return f"{subject}{'' if whole else f' {brief(value)}'} {text}".lstrip()


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)
