"""Files: where they live, checksums, and writes that are either complete or absent."""

import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from palkit.errors import ChecksumError, PalkitError, StorageError

CHECKSUM = "sha256"  # key of a JSON object's own checksum
TEMPORARY = ".writing-"  # how names of files begin that are not complete
CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CHECKOUT / "run_all.sh").is_file()  # else palkit was installed, and brings along what it needs of it
REPOSITORY = CHECKOUT if IS_CHECKOUT else Path(__file__).resolve().parents[1] / "shipped"
WRITABLE = "Make it writable for this user (users who share a folder need umask 002)"
LIMIT = "Raise the limit on this user's files"
# Remedies where a file cannot be written, but for making room.
REMEDIES = {
    errno.EROFS: WRITABLE, errno.EACCES: WRITABLE, errno.EPERM: WRITABLE, errno.EFBIG: LIMIT, errno.EDQUOT: LIMIT,
    errno.ENAMETOOLONG: "Give it a shorter name: most systems allow 255 bytes, fewer letters where they are not ASCII",
}  # fmt: skip


def cache_dir() -> Path:
    """Folder for converted weights and cached features: `$PALKIT_CACHE` or `.cache`, as of `_own`."""
    return Path(os.environ.get("PALKIT_CACHE") or _own(".cache"))


def runs_dir() -> Path:
    """Folder for run directories: `$PALKIT_RUNS` or `runs`, as of `_own`."""
    return Path(os.environ.get("PALKIT_RUNS") or _own("runs"))


def _own(name: str) -> Path:
    """A folder in the checkout, or in the working directory where palkit was installed."""
    return (CHECKOUT if IS_CHECKOUT else Path.cwd()) / name


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(made_from: Any) -> str:
    """16 hex digits that name what is made from values of JSON: equal exactly for equal values."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def verify(path: Path, expected: str, remedy: str) -> None:
    """Check a file against its published SHA-256.

    Raises:
        ChecksumError: names the file, both sums and `remedy`.
    """
    actual = sha256(path)
    if actual != expected:
        raise ChecksumError(
            f"{path} is damaged or not the published file: SHA-256 is {actual}, expected {expected}. {remedy}"
        )


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Temporary path beside `path` that replaces it when the block ends well, after an fsync.

    A reader, or a process that is killed at any moment, sees the old file or the new one, never a part.
    The temporary name keeps the suffix, because writers choose formats by it.

    Raises:
        StorageError: the system refuses; the old file is as it was.
    """
    path = Path(path)
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
        # Made as any new file is, so that the umask and the folder's own rules decide who may read and change it, from
        # the first byte on; `tempfile` makes files for one user only, who would have to widen their rights later.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield temporary
            move_into_place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def move_into_place(temporary: Path, path: Path) -> None:
    """Give a file that is complete its name, once it is on the disk."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _fsync_directory(path.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Temporary folder beside `folder` that becomes it when the block ends well, once all in it is on the disk.

    Only one process at a time may make a folder of that name: what a killed one left is deleted.
    """
    prefix = f"{TEMPORARY}{folder.name}-"
    for left in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(left)
    temporary = folder.with_name(f"{prefix}{secrets.token_hex(8)}")
    temporary.mkdir()  # as any new folder is, see `atomic_path`
    try:
        yield temporary
        os.sync()
        os.replace(temporary, folder)
        _fsync_directory(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write a file or folder into an error that says what to do.

    Raises:
        StorageError: in place of an OSError of the block.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, PalkitError):
            raise
        remedy = REMEDIES.get(error.errno or 0, "Make room on the disk")
        for variable, folder in (("PALKIT_RUNS", runs_dir()), ("PALKIT_CACHE", cache_dir())):
            if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
                remedy += f", or set {variable} to a folder elsewhere"
        reason = error.strerror or error
        raise StorageError(f"{path} cannot be written ({reason}). {remedy}; then start again, it goes on.") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, a file that is made with its folder if need be; other processes wait for it.

    Raises:
        StorageError: the file cannot be made.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path).acquire()
    with lock:
        yield


def remove_leftovers(folder: Path, suffix: str = "") -> None:
    """Delete what killed writers left in a folder in which nobody writes files of that suffix now."""
    for path in folder.glob(f"{TEMPORARY}*{suffix}"):
        path.unlink(missing_ok=True)


def owned(prefix: str) -> str:
    """Beginning of the name of a folder that only this process uses: with machine and process."""
    return f"{prefix}{platform.node()}-{os.getpid()}-"


def remove_orphans(folder: Path, prefix: str) -> None:
    """Delete the folders, named by `owned`, of processes of this machine that are no more."""
    for path in folder.glob(f"{owned(prefix).rsplit('-', 2)[0]}-*"):
        process = path.name.removeprefix(f"{prefix}{platform.node()}-").split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, its checksum in it."""
    write_text(path, json.dumps({**content, CHECKSUM: _digest(content)}, indent=1, ensure_ascii=False))


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote, without the checksum; an object that has none is taken as it is.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or not what was written.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    expected = content.pop(CHECKSUM, None)
    if expected is not None and expected != _digest(content):
        raise ValueError("its checksum does not fit its content")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(dict(content)))  # keys are text then
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _fsync_directory(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
