"""SHA-256 of files, computed once: kept by path, size and time of change."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256 as of_text
from pathlib import Path

import pandas as pd

from palkit.errors import DataError
from palkit.files import cache_dir, locked, sha256
from palkit.formats import read_table, write_table

RACY_NS = 2 * 10**9  # a file this young may change again within the same tick of the clock, so it is not kept
KEY = ("path", "size", "mtime_ns", "ctime_ns")  # the last tells files that changed places
Key = tuple[str, int, int, int]


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file; several threads hash what is new or has changed, the rest is known from before.

    They are kept in `cache_dir()/hashes`, one table per common folder. Processes that want the same ones wait
    for the first.

    Raises:
        DataError: a file is not there or cannot be read; names it.
    """
    if not paths:
        return []
    absolute = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    table = cache_dir() / "hashes" / f"{of_text(common.encode()).hexdigest()[:16]}.parquet"
    with locked(table.with_suffix(".lock")):
        keys = [_key(path) for path in absolute]
        known = _read(table)
        new = sorted(set(keys) - known.keys())
        if new:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                found = dict(zip(new, threads.map(_hash, [path for path, *_ in new]), strict=True))
            now = time.time_ns()
            changed = {path for path, *_ in new}
            kept = {key: digest for key, digest in known.items() if key[0] not in changed}
            _write(table, kept | {key: digest for key, digest in found.items() if now - max(key[2:]) > RACY_NS})
            known |= found
    return [known[key] for key in keys]


def _key(path: str) -> Key:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Restore it, or load the data set again.") from error
    return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hash(path: str) -> str:
    try:
        return sha256(Path(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Restore it, or load the data set again.") from error


def _read(table: Path) -> dict[Key, str]:
    """What is kept; nothing if the table is missing or damaged, since it can be computed again."""
    try:
        columns = read_table(table)
        keys = zip(*(columns[name].tolist() for name in KEY), strict=True)
        return dict(zip(keys, columns["sha256"], strict=True))
    except (OSError, ValueError, KeyError):
        return {}


def _write(table: Path, known: dict[Key, str]) -> None:
    rows = [(*key, digest) for key, digest in known.items()]
    write_table(pd.DataFrame(rows, columns=[*KEY, "sha256"]), table)
