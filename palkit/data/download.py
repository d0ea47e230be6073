"""Downloads that continue where they were cut, are verified, and unpack completely or not at all."""

import errno
import hashlib
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from palkit.errors import DataError
from palkit.storage.files import atomic_folder, cache_dir, locked, move_into_place, storing

ATTEMPTS = 5  # in a row that bring nothing, before a download is given up
BACKOFF_SECONDS = 1.0  # before the second attempt, doubled before each further one
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 2**16  # what a cut connection loses at most
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
TAR_FILTER: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 has it, 3.11.2 not yet
LOOPBACK = {"127.0.0.1", "::1", "localhost"}

console = Console(stderr=True)


@dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        url: https, or http on this machine.
        checksum: as published, "md5:..." or "sha256:...".
        name: of the file.
    """

    url: str
    checksum: str
    name: str


class Failed(Exception):
    """A failed attempt to download.

    Attributes:
        again: whether another one may bring more: the connection was cut, or the server is busy.
    """

    def __init__(self, reason: object, again: bool = False) -> None:
        super().__init__(str(reason))
        self.again = again


def dataset_dir(name: str) -> Path:
    """Folder of a downloaded data set."""
    return cache_dir() / "datasets" / name


def fetched(remote: Remote, folder: Path) -> Path:
    """The file in `folder`, verified; downloaded first if it is not there.

    A cut connection or a killed process leaves a `.part` file, which the next call continues; it gets its name
    when its checksum is right. Put into `folder` by hand, the file is verified and used.

    Raises:
        DataError: it cannot be had, or is not the published file; names URL, file and what to do.
    """
    path, part = folder / remote.name, folder / f"{remote.name}.part"
    with locked(folder / f".{remote.name}.lock"):
        try:
            if path.exists():
                problem = _mismatch(path, remote, "Delete it to have it downloaded")
            else:
                _download(secure(remote.url), part)
                problem = _mismatch(part, remote, "Try again")
                if problem:
                    part.unlink()
                else:
                    move_into_place(part, path)
        except Failed as error:
            network = "Check the network and try again, which continues where it stopped"
            remedy = network if error.again else "Try again later"
            problem = f"{remote.name} could not be downloaded from {remote.url}: {error}. {remedy}"
        if problem:
            raise DataError(f"{problem}, or download {remote.url} by hand and put it at {path}.")
    return path


def _mismatch(path: Path, remote: Remote, remedy: str) -> str:
    """Difference between the file and the published one, and what to do about it; "" if there is none."""
    algorithm, expected = remote.checksum.split(":")
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    if actual == expected:
        return ""
    return f"{path} is not the published file (its {algorithm.upper()} is {actual}, expected {expected}). {remedy}"


def secure(url: str) -> str:
    """The URL over https, unless it points to this machine."""
    return url if urlsplit(url).hostname in LOOPBACK else url.replace("http://", "https://", 1)


def _download(url: str, part: Path) -> None:
    """Fill `part` in as many attempts as it takes.

    Raises:
        Failed: see `_attempt`; or ATTEMPTS attempts in a row brought nothing.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(part.stem, total=None)
        failures, most = 0, _size(part)
        while True:
            try:
                return _attempt(url, part, lambda done, total: bars.update(task, completed=done, total=total))
            except Failed as error:
                # A server that cannot continue begins anew: only more than ever before is progress.
                failures = 0 if _size(part) > most else failures + 1
                most = max(most, _size(part))
                if failures == ATTEMPTS or not error.again:
                    raise
                time.sleep(BACKOFF_SECONDS * 2 ** max(failures - 1, 0))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    """Append what is missing of `part`, or write it anew where the server cannot continue.

    Raises:
        Failed: the connection was cut, the server says no, or the disk is full.
    """
    import requests

    done = _size(part)
    # A server that compresses on the way would count bytes that are not those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            insecure = [hop.url for hop in (*response.history, response) if secure(hop.url) != hop.url]
            if insecure:
                raise Failed(f"it leads to {insecure[0]}, which is not https")
            status, there = response.status_code, response.headers.get("Content-Range", "")
            if status == requests.codes.requested_range_not_satisfiable:
                if there == f"bytes */{done}":
                    return  # complete: a process was killed before it had verified it
                part.unlink()  # longer than the file on the server
            if not response.ok:
                busy = status >= 500 or status in (requests.codes.too_many_requests, 416)
                raise Failed(f"the server answers {status} {response.reason}", busy)
            resumed = there.startswith(f"bytes {done}-")
            done = done if resumed else 0
            length = response.headers.get("Content-Length")
            total = None if length is None else done + int(length)
            needed, free = (total or done) - done, shutil.disk_usage(part.parent).free
            if free < needed:
                raise Failed(f"it needs {needed / 1e9:.1f} GB in {part.parent}, where {free / 1e9:.1f} GB are free")
            with open(part, "ab" if resumed else "wb") as file:
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    done += len(chunk)
                    progress(done, total)
    except OSError as error:  # requests' own are among them: a cut connection, a loop of redirects; or the disk is full
        cut = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
        raise Failed(error, isinstance(error, cut)) from error


def unpacked(remote: Remote, folder: Path, name: str) -> Path:
    """`folder / name` with what the archive holds; downloaded and unpacked the first time.

    The archive stays where it is and is not needed any more once the folder is there.

    Raises:
        DataError: see `fetched` and `unpack`.
    """
    target = folder / name
    return target if target.exists() else unpack(fetched(remote, folder), target)


@contextmanager
def reading(name: str, folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a downloaded data set is read into an error that says what to do.

    Raises:
        DataError: in place of an error of the block.
    """
    try:
        yield
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"data set {name!r} in {folder} is damaged or incomplete ({error}). "
            f"Delete {dataset_dir(name)} to have it downloaded again."
        ) from error


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a zip or tar archive into a new folder `target`, which appears when all of it is there.

    Raises:
        DataError: the archive is damaged, or holds a path or link that leads out of the folder.
    """
    with locked(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return target  # another process has done it
        try:
            with atomic_folder(target) as temporary:
                _extract(archive, temporary)
        except Exception as error:  # a damaged archive may raise anything in the libraries that read it
            if isinstance(error, OSError) and error.errno in DISK:
                with storing(target):  # the archive is not to blame
                    raise
            reason = " ".join(str(error).split())
            raise DataError(f"{archive} cannot be unpacked ({reason}). Delete it and try again.") from error
    return target


def _extract(archive: Path, folder: Path) -> None:
    """Put what an archive holds into a folder; nothing if anything in it leads out of there."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            # zipfile would drop the dots and write somewhere inside: an archive with such a path is not to be trusted.
            _trusted(folder, [(one.filename, not stat.S_ISLNK(one.external_attr >> 16)) for one in file.infolist()])
            file.extractall(folder)
    else:
        with tarfile.open(archive) as tar:
            _trusted(folder, [(one.name, one.isfile() or one.isdir()) for one in tar])
            tar.extractall(folder, **TAR_FILTER)


def _trusted(folder: Path, members: Sequence[tuple[str, bool]]) -> None:
    """Refuse an archive of which a member would lie outside the folder, or is not plain: a link or a device."""
    root = folder.resolve()
    for name, plain in members:
        if not plain or not (root / name).resolve().is_relative_to(root):
            raise ValueError(f"{name!r} leads out of the folder, or is a link or a device")
