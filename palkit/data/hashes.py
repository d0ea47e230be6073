"""Facts about files by their content: SHA-256, and of images their header; looked up by path, size and times.

Content decides. The system's record of a file (size, times, inode) is a shortcut only where it is safe: not for a file
that was changed so lately that it could change again within the same tick of the clock.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from hashlib import sha256 as of_bytes
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import pandas as pd

from palkit.data.decoding import Header, inspect, inspect_pixels, reason
from palkit.errors import DataError
from palkit.storage.files import cache_dir, locked, sha256
from palkit.storage.formats import read_table, write_table

RACY_NS = 2 * 10**9  # a file this young may change again within the same tick of the clock
# Of `decoding.inspect`: raise it when that changes, and files are looked at anew.
VERSION = 1
STAMP = ("size", "mtime_ns", "ctime_ns", "inode")  # the time of change of the record tells files that changed places
HEADER = ("frames", "kind", "low", "high")
IN_MEMORY = 2**24  # bytes of a file that is read once; a larger one, such as a slide, is hashed and opened by its path
Stamp = tuple[int, ...]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileFacts:
    """A file as it was when it was looked at.

    Attributes:
        sha256: of its content; "" if it could not be read.
        header: of the image.
        stamp: the system's record of it.
        settled: whether the record would tell a change since then.
        reason: why the image cannot be read; "" if it can, None if it has not been decoded.
    """

    sha256: str
    header: Header
    stamp: Stamp
    settled: bool
    reason: str | None = None

    def ranged(self, low: float, high: float) -> "FileFacts":
        """The same, its values scaled from another range if it has values that are scaled."""
        return replace(self, header=replace(self.header, low=low, high=high)) if self.header.kind else self


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, see `file_facts`.

    Raises:
        DataError: a file is not there or cannot be read; names it.
    """
    return [checked_hash(path, facts) for path, facts in zip(paths, file_facts(paths, images=False), strict=True)]


def checked_hash(path: Path, facts: FileFacts) -> str:
    """SHA-256 of a file.

    Raises:
        DataError: it could not be read; names it.
    """
    if not facts.sha256:
        raise DataError(f"{path} cannot be read. Restore it or make it readable, then load the data set again.")
    return facts.sha256


def file_facts(paths: Sequence[Path], *, images: bool = True, decode: bool = False) -> list[FileFacts]:
    """Facts about each file; several threads look at what is new or has changed, the rest is known from before.

    It is kept in `cache_dir()/hashes`, one table per common folder. Processes that want the same wait for the first.

    Args:
        paths: of the files.
        images: whether they are images, whose headers are wanted.
        decode: look at all of them, known or not, and decode them, for `FileFacts.reason`.
    """
    if not paths:
        return []
    absolute = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    table = cache_dir() / "hashes" / f"{of_bytes(os.fsencode(common)).hexdigest()[:16]}.parquet"
    with locked(table.with_suffix(".lock")):
        stamps = [stamp_of(path) for path in absolute]
        known = _read(table)
        wanted = dict(zip(absolute, stamps, strict=True))
        new = [
            path
            for path, stamp in wanted.items()
            if decode or path not in known or known[path].stamp != stamp or (images and not known[path].header.frames)
        ]
        if new:
            looked = in_threads(lambda path: _look(Path(path), wanted[path], images, decode), new)
            known |= dict(zip(new, looked, strict=True))
            _write(table, {path: facts for path, facts in known.items() if facts.settled and facts.sha256})
    return [known[path] for path in absolute]


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Results for all items, in order, by a thread for each processor.

    Each takes the next item when it is done with one: a future for each would cost as much as a small file.
    """
    found: dict[int, Result] = {}
    places = iter(range(len(items)))

    def some() -> None:
        for place in places:
            found[place] = work(items[place])

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            for done in as_completed([threads.submit(some) for _ in range(os.cpu_count() or 1)]):
                done.result()
        finally:
            deque(places, 0)  # of an error or an interrupt the other threads learn by finding nothing more to do
    return [found[place] for place in range(len(items))]


def stamp_of(path: Path | str) -> Stamp:
    """The system's record of a file, behind any links; zeros if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _look(path: Path, stamp: Stamp, images: bool, decode: bool) -> FileFacts:
    now = time.time_ns()
    source: Path | BytesIO = path
    try:
        if stamp[0] > IN_MEMORY:
            digest = sha256(path)
        else:
            content = path.read_bytes()
            digest, source = of_bytes(content).hexdigest(), BytesIO(content)
    except OSError:
        return FileFacts("", Header(), stamp, False, reason(path) if decode else None)
    settled = now - max(stamp[1:3]) > RACY_NS
    if decode:
        header, why = inspect_pixels(path, source)
        return FileFacts(digest, header, stamp, settled, why)
    return FileFacts(digest, inspect(source) if images else Header(frames=0), stamp, settled)


def _read(path: Path) -> dict[str, FileFacts]:
    """Facts that are kept; none if the table is missing, older or damaged, since it can be made again."""
    try:
        table = read_table(path)
        rows = table[["path", "sha256", *HEADER, *STAMP]].itertuples(index=False, name=None)
        if not (table["version"] == VERSION).all():
            return {}
    except (OSError, ValueError, KeyError):
        return {}
    end = 2 + len(HEADER)
    return {row[0]: FileFacts(row[1], Header(*row[2:end]), row[end:], True) for row in rows}


def _write(table: Path, known: dict[str, FileFacts]) -> None:
    header = attrgetter(*HEADER)
    rows = [(path, *facts.stamp, facts.sha256, *header(facts.header), VERSION) for path, facts in known.items()]
    write_table(pd.DataFrame(rows, columns=["path", *STAMP, "sha256", *HEADER, "version"]), table)
