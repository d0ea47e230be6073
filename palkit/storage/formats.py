"""Tables and arrays as files: what is read is what was written, and a full disk is an error, not a crash."""

import codecs
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from palkit.errors import DataError, brief
from palkit.storage.files import atomic_path

CHECKSUM = b"palkit_sha256"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet, atomically, with a checksum of its content. Columns only: the index is not kept.

    Raises:
        StorageError: it cannot be written.
    """
    content = pa.Table.from_pandas(table, preserve_index=False)
    content = content.replace_schema_metadata({**(content.schema.metadata or {}), CHECKSUM: _digest(content)})
    with atomic_path(path) as temporary:
        parquet.write_table(content, temporary)


def read_table(path: Path) -> pd.DataFrame:
    """Read what `write_table` wrote; a table without a checksum is taken as it is.

    Raises:
        OSError: there is no such file.
        MemoryError: it does not fit, or is damaged and seems not to.
        ValueError: it is no Parquet file, or its content is not what was written.
    """
    try:
        # In this thread: Arrow waits for ever for one that it could not start because memory was short.
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            content = file.read(use_threads=False)
        expected = (content.schema.metadata or {}).get(CHECKSUM)
        if expected is not None and expected != _digest(content):
            raise ValueError("its checksum does not fit its content")
        # What pandas notes about columns is not covered by the checksum.
        return content.to_pandas(ignore_metadata=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail anywhere in the library that reads it
        raise ValueError(str(error) or type(error).__name__) from error


def _digest(table: pa.Table) -> bytes:
    """SHA-256 of names, types and values; of the values as numpy has them, which no version of Arrow changes."""
    total = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_numpy()
        total.update(f"{name} {values.dtype.str} {len(values)}\n".encode(errors="surrogateescape"))
        text = values.dtype == object
        total.update(json.dumps(values.tolist(), default=str).encode() if text else np.ascontiguousarray(values).data)
    return total.hexdigest().encode()


def save_array(array: np.ndarray, path: Path | str) -> None:
    """Write a `.npy` file. `numpy.save` says nothing about a last block for which a disk had no room.

    Raises:
        OSError: there is no room.
    """
    stored = new_array(Path(path), array.dtype, array.shape)
    stored[...] = array
    stored.flush()


def new_array(path: Path, dtype: np.typing.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` file as an array, its place on the disk reserved.

    Without that a disk that becomes full while the array is written to kills the process.

    Raises:
        OSError: there is no room.
    """
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array


def read_text(path: Path) -> str:
    """The text of a file as editors and spreadsheets write it: UTF-8, or UTF-16 with its mark; without the mark.

    Raises:
        DataError: it cannot be read, or is in another encoding; names the line.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check the name and its permissions.") from error
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        form = "UTF-16, as the file begins" if marked else "UTF-8"
        raise DataError(f"{path}, line {line}: the bytes are not {form}. Save the file again as UTF-8.") from error


def read_csv(path: Path, known: Sequence[str]) -> pd.DataFrame:
    """A table of text as spreadsheets write it: commas, semicolons or tabs, cells of several lines, blank lines.

    Args:
        path: of the file.
        known: names of columns, in lower case; the separator is the one by which most of them are in the header.

    Returns:
        The columns, all of text, those that are known under that name; the index says "line 7" where a row begins.

    Raises:
        DataError: the file cannot be read, is no such table, or a row does not fit its header; names the line.
    """
    text = read_text(path)
    if said := re.match(r"sep=(.)\r?\n", text):  # how Excel is told, and nobody else
        text = "\n" + text[said.end() :]
    sign = said[1] if said else separator(text, known)
    records = csv_records(path, text, sign)
    header = [name.strip() for name in next(iter(records.values()), [])]
    names = [name.lower() if name.lower() in known else name for name in header]
    while names and not names[-1]:
        names.pop()
    for line, problem in _problems(text, records, names, known, sign):
        raise DataError(f"{path}, line {line}: {problem}")
    rows = [cells[: len(names)] for cells in records.values()]
    return pd.DataFrame(rows[1:], [f"line {line}" for line in records][1:], names, dtype=object)


def _problems(
    text: str, records: Mapping[int, Sequence[str]], names: Sequence[str], known: Collection[str], sign: str
) -> Iterator[tuple[int, str]]:
    """Lines of a table that cannot be meant, each with what is to be done.

    Args:
        text: of the table.
        records: cells of each row, the header first, by the line that it begins in.
        names: of the columns.
        known: see `read_csv`.
        sign: what stands between cells.
    """
    if "\0" in text:
        yield text[: text.index("\0")].count("\n") + 1, "there is a character of no text (NUL). Save it again as UTF-8."
    first = next(iter(records), 1)
    if not records:
        yield first, "the file is empty. Its first line must name the columns."
    if not set(names) & set(known):
        found = f"none of the columns {', '.join(known)} is named here (found: {brief(text[:60])})"
        yield first, f"{found}. The first line must name the columns."
    for name in names:
        if name and names.count(name) > 1:
            yield first, f"there are two columns {name!r}. Remove or rename one."
    for line, cells in records.items():
        if not any(map(str.strip, cells)):
            yield line, "the row is empty. Remove it."
        if len(cells) < len(names) or (line > first and any(map(str.strip, cells[len(names) :]))):
            remedy = f"Put a cell that holds {sign!r} into double quotes, and write a {sign!r} for each empty cell."
            yield line, f"{len(cells)} cells where the header has {len(names)}. {remedy}"


def separator(text: str, known: Collection[str]) -> str:
    """Sign between cells, comma, semicolon or tab: the one by which most of the known names are in the header.

    Args:
        text: of a table.
        known: names of columns, in lower case.
    """
    header = re.search(r"\S[^\r\n]*", text)
    line = header[0].lower() if header else ""
    return max(",;\t", key=lambda sign: len({*known} & {cell.strip('" \t') for cell in line.split(sign)}))


def csv_records(path: Path, text: str, sign: str) -> dict[int, list[str]]:
    """Cells of every row that is not blank, by the line that it begins in."""
    reader, line, records = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True), 1, {}
    try:
        for cells in reader:
            if cells:
                records[line] = cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table (line {line}: {error}). Save it again as CSV.") from error
    return records
