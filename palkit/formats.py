"""Tables and arrays as files: what is read is what was written, and a full disk is an error, not a crash."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from palkit.files import atomic_path

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
