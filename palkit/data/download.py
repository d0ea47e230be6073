"""Downloads that continue where they were cut, are verified, and unpack completely or not at all."""

import errno
import hashlib
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from palkit.errors import DataError
from palkit.storage.files import TEMPORARY, cache_dir, move_folder_into_place, move_into_place, storing

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


class Interrupted(Exception):
    """A download was cut, or the server is busy: it is worth another attempt."""


class Refused(Exception):
    """The download cannot work, however often it is tried."""


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
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = f"or download {remote.url} by hand and put it at {path}."
    with FileLock(folder / f".{remote.name}.lock"):
        if path.exists():
            wrong = _mismatch(path, remote)
            if wrong:
                raise DataError(
                    f"{path} is not the published file ({wrong}). Delete it to have it downloaded, {by_hand}"
                )
            return path
        try:
            _download(secure(remote.url), part)
        except Interrupted as error:
            raise DataError(
                f"{remote.name} could not be downloaded from {remote.url}: {error}. "
                f"Check the network and try again, which continues where it stopped, {by_hand}"
            ) from error
        except Refused as error:
            raise DataError(
                f"{remote.name} could not be downloaded from {remote.url}: {error}. Try again later, {by_hand}"
            ) from error
        wrong = _mismatch(part, remote)
        if wrong:
            part.unlink()
            raise DataError(
                f"{remote.name} from {remote.url} is not the published file ({wrong}). Try again, {by_hand}"
            )
        move_into_place(part, path)
    return path


def _mismatch(path: Path, remote: Remote) -> str:
    """How the file differs from the published one, "" if it does not."""
    algorithm, expected = remote.checksum.split(":")
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, algorithm).hexdigest()
    return "" if actual == expected else f"its {algorithm.upper()} is {actual}, expected {expected}"


def secure(url: str) -> str:
    """The URL over https, unless it points to this machine."""
    return url if urlsplit(url).hostname in LOOPBACK else url.replace("http://", "https://", 1)


def _download(url: str, part: Path) -> None:
    """Fill `part` in as many attempts as it takes.

    Raises:
        Interrupted: ATTEMPTS attempts in a row brought nothing.
        Refused: see `_attempt`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(part.stem, total=None)
        failures, most = 0, _size(part)
        while True:
            try:
                return _attempt(url, part, lambda done, total: bars.update(task, completed=done, total=total))
            except Interrupted:
                # A server that cannot continue begins anew: only more than ever before is progress.
                failures = 0 if _size(part) > most else failures + 1
                most = max(most, _size(part))
                if failures == ATTEMPTS:
                    raise
                time.sleep(BACKOFF_SECONDS * 2 ** max(failures - 1, 0))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, part: Path, progress: Callable[[int, int | None], None]) -> None:
    """Append what is missing of `part`, or write it anew where the server cannot continue.

    Raises:
        Interrupted: the connection failed, or the server is overloaded.
        Refused: the server says no, or the disk is full.
    """
    import requests

    done = _size(part)
    # A server that compresses on the way would count bytes that are not those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            for hop in (*response.history, response):
                if secure(hop.url) != hop.url:
                    raise Refused(f"it leads to {hop.url}, which is not https")
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                if response.headers.get("Content-Range") == f"bytes */{done}":
                    return  # complete: a process was killed before it had verified it
                part.unlink()
                raise Interrupted("the file on the server is shorter than what was there already")
            if response.status_code >= 500 or response.status_code == requests.codes.too_many_requests:
                raise Interrupted(f"the server answers {response.status_code} {response.reason}")
            if not response.ok:
                raise Refused(f"the server answers {response.status_code} {response.reason}")
            resumed = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
            done = done if resumed else 0
            length = response.headers.get("Content-Length")
            total = None if length is None else done + int(length)
            _check_room(part, (total or done) - done)
            with open(part, "ab" if resumed else "wb") as file:
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    done += len(chunk)
                    progress(done, total)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise Interrupted(str(error)) from error
    except OSError as error:  # requests' own are among them: a loop of redirects, say; or the disk is full
        raise Refused(str(error)) from error


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise Refused(f"it needs {needed / 1e9:.1f} GB in {part.parent}, where {free / 1e9:.1f} GB are free")


def unpacked(remote: Remote, folder: Path, name: str) -> Path:
    """`folder / name` with what the archive holds; downloaded and unpacked the first time.

    The archive stays where it is and is not needed any more once the folder is there.

    Raises:
        DataError: see `fetched` and `unpack`.
    """
    target = folder / name
    return target if target.exists() else unpack(fetched(remote, folder), target)


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a zip or tar archive into a new folder `target`, which appears when all of it is there.

    Raises:
        DataError: the archive is damaged, or holds a path or link that leads out of the folder.
    """
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return target  # another process has done it
        leftovers = f"{TEMPORARY}{target.name}-"
        for left in target.parent.glob(f"{leftovers}*"):
            shutil.rmtree(left)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=leftovers))
        try:
            if zipfile.is_zipfile(archive):
                _unzip(archive, temporary)
            else:
                _untar(archive, temporary)
            move_folder_into_place(temporary, target)
        except Exception as error:  # a damaged archive may raise anything in the libraries that read it
            if isinstance(error, OSError) and error.errno in DISK:
                with storing(target):  # the archive is not to blame
                    raise
            reason = " ".join(str(error).split())
            raise DataError(f"{archive} cannot be unpacked ({reason}). Delete it and try again.") from error
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(temporary)
    return target


def _leads_out(root: Path, name: str) -> bool:
    """Whether a file of that name in an archive would lie outside the folder `root`, which is resolved."""
    return not (root / name).resolve().is_relative_to(root)


def _untar(archive: Path, folder: Path) -> None:
    root = folder.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            if _leads_out(root, member.name) or not (member.isfile() or member.isdir()):
                raise tarfile.TarError(f"{member.name!r} leads out of the folder, or is a link or a device")
        tar.extractall(folder, **TAR_FILTER)


def _unzip(archive: Path, folder: Path) -> None:
    root = folder.resolve()
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            # zipfile would drop the dots and write somewhere inside: an archive with such a path is not to be trusted.
            if _leads_out(root, member.filename) or stat.S_ISLNK(member.external_attr >> 16):
                raise zipfile.BadZipFile(f"{member.filename!r} leads out of the folder")
        file.extractall(folder)
