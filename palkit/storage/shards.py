"""Arrays larger than memory: `.npy` shards, read through the page cache as they are needed."""

import errno
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palkit.errors import DataError
from palkit.storage.files import locked, read_json, remove_leftovers, sha256, write_json

MANIFEST = "manifest.json"
SHARD_BYTES = 2**26  # a shard is lost and written as a whole: about a second's work
MAX_SHARDS = 256  # each takes a file descriptor, and systems mostly allow 1024


class Shards:
    """The rows of several `.npy` files, one after the other, as if they were one (N, ...) tensor.

    Strategies take one as the features of their scores and give the same selection as from a tensor,
    since every kernel reads `rows[a:b]` and `rows[index]` only. Files are memory-mapped: what is read
    lies in the page cache, which the system takes back when memory is short.

    Args:
        paths: arrays (n_i, ...) of one row shape and type, in order.
        dtype: of the tensors handed out; None for the stored one.

    Raises:
        DataError: there is no shard, or one is not an array like the first; names the file.
    """

    device = torch.device("cpu")

    def __init__(self, paths: Sequence[str | Path], dtype: torch.dtype | None = torch.float32) -> None:
        if not paths:
            raise DataError("no shards given.")
        self.maps = [_mapped(path) for path in paths]
        stored, shape = self.maps[0].dtype, self.maps[0].shape[1:]
        for path, array in zip(paths, self.maps, strict=True):
            found = f"{array.shape[1:]} {array.dtype}"
            if array.ndim < 2 or stored not in (np.float16, np.float32, np.uint8):
                raise DataError(f"{path} must hold rows of float16, float32 or uint8 numbers, holds {found}.")
            if array.shape[1:] != shape or array.dtype != stored:
                raise DataError(f"{path} holds rows of shape {found}, {paths[0]} of shape {shape} {stored}.")
        self.stored = stored
        self.dtype = dtype or torch.from_numpy(np.empty(0, stored)).dtype
        self._out = np.dtype(str(self.dtype).removeprefix("torch."))
        self.starts = np.cumsum([0] + [len(array) for array in self.maps])
        self.shape = torch.Size((int(self.starts[-1]), *shape))
        self.ndim = len(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the paths and maps the files itself; numpy would send what they hold."""
        return Shards, ([array.filename for array in self.maps], self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return self[torch.arange(start, stop, step)]
            parts = [
                array[max(start - first, 0) : max(stop - first, 0)]
                for first, array in zip(self.starts, self.maps, strict=False)
                if first < stop and start < first + len(array)
            ]
            empty = np.empty((0, *self.shape[1:]), self._out)
            return torch.from_numpy(np.concatenate([empty, *parts], dtype=self._out))
        wanted = index.numpy()
        shard = np.searchsorted(self.starts, wanted, side="right") - 1
        rows = np.empty((len(wanted), *self.shape[1:]), dtype=self._out)
        for number in np.unique(shard):
            here = shard == number
            rows[here] = self.maps[number][wanted[here] - self.starts[number]]
        return torch.from_numpy(rows)


def _mapped(path: str | Path) -> np.memmap:
    try:
        return np.lib.format.open_memmap(path, mode="r")  # of an array only: no pickle, no archive
    except Exception as error:  # the parser of a damaged header may raise anything
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            raise  # nothing is wrong with the file
        raise DataError(f"{path} cannot be read as a shard ({error}). Delete it to have it computed again.") from error


def shard_ranges(rows: int, row_bytes: int, multiple: int) -> list[range]:
    """Rows of each shard: a multiple of `multiple`, so that shards end where batches do.

    Shards are about SHARD_BYTES large, or as large as it takes for MAX_SHARDS of them to hold everything.
    """
    step = max(1, SHARD_BYTES // max(1, row_bytes * multiple), -(-rows // (MAX_SHARDS * multiple))) * multiple
    return [range(start, min(start + step, rows)) for start in range(0, rows, step)]


def shard_path(folder: Path, number: int) -> Path:
    """File of a shard."""
    return folder / f"{number:05d}.npy"


def is_shard(path: Path, rows: int, row_shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether the file is a whole shard of that many rows."""
    try:
        array = _mapped(path)
    except DataError:
        return False
    return array.shape == (rows, *row_shape) and array.dtype == dtype


def write_manifest(folder: Path, shards: int, made_from: Mapping[str, Any]) -> None:
    """Describe a complete folder of shards: what it was made from, and each file with its rows and checksum."""
    paths = [shard_path(folder, number) for number in range(shards)]
    rows = Shards(paths, dtype=None)
    files = [
        {"file": path.name, "rows": len(array), "sha256": sha256(path)}
        for path, array in zip(paths, rows.maps, strict=True)
    ]
    content = {"shape": list(rows.shape), "dtype": rows.stored.name, "shards": files, "made_from": dict(made_from)}
    write_json(folder / MANIFEST, content)


def filled(folder: Path, made_from: Mapping[str, Any], fill: Callable[[], int]) -> Shards:
    """The shards of a folder, written by the first process that needs them while others wait; damaged ones anew.

    Args:
        folder: created if need be.
        made_from: what its content depends on, for the manifest.
        fill: writes the shards that are not there and returns how many there are in all.
    """
    if not are_whole(folder):
        with locked(folder / ".lock"):
            if damaged := _damaged(folder):
                for path in damaged:
                    path.unlink(missing_ok=True)
                shards = fill()
                remove_leftovers(folder)
                write_manifest(folder, shards, made_from)
    return open_shards(folder)


def are_whole(folder: Path) -> bool:
    """Whether a folder is complete and every shard what was written, read and compared once per process."""
    return not _damaged(folder)


def _damaged(folder: Path) -> list[Path]:
    """Files that are not what was written, or not there; all if nobody can tell, and the manifest last.

    Without a manifest, what is there is taken for the good work of a process that was killed.
    """
    try:
        checksums, _ = _manifest(folder)
    except FileNotFoundError:
        return [folder / MANIFEST]
    except (OSError, ValueError):
        return [*folder.glob("*.npy"), folder / MANIFEST]
    with ThreadPoolExecutor() as threads:
        whole = threads.map(_is_whole, checksums, checksums.values())
        return [path for path, good in zip(checksums, whole, strict=True) if not good]


def _manifest(folder: Path) -> tuple[dict[Path, str], tuple[int, ...]]:
    """Checksum of every shard, and the shape of all rows.

    Raises:
        OSError: there is no manifest, or it cannot be read.
        ValueError: it is damaged.
    """
    content = read_json(folder / MANIFEST)
    try:
        return {folder / one["file"]: str(one["sha256"]) for one in content["shards"]}, tuple(content["shape"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is not complete: {error!r}") from error


def _is_whole(path: Path, checksum: str) -> bool:
    try:
        status = path.stat()
        return _known_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns) == checksum
    except OSError:
        return False


@lru_cache(maxsize=2**14)
def _known_sha256(path: Path, inode: int, size: int, changed: int) -> str:
    return sha256(path)


def open_shards(folder: Path, dtype: torch.dtype | None = None) -> Shards:
    """The shards that a folder's manifest lists.

    Raises:
        DataError: the manifest or a shard cannot be read, or they do not agree; names the file.
    """
    try:
        checksums, shape = _manifest(folder)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder / MANIFEST} is no manifest of shards ({error}). Delete {folder} to have it computed again."
        ) from error
    shards = Shards(list(checksums), dtype)
    if shards.shape != shape:
        raise DataError(f"{folder} holds {tuple(shards.shape)}, its manifest says {shape}. Delete the folder.")
    return shards
