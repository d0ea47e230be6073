"""Files: where they live, checksums, and writes that are either complete or absent."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palkit.errors import ChecksumError

TEMPORARY = ".writing-"  # how names of files begin that are not complete
REPOSITORY = Path(__file__).resolve().parents[1]


def cache_dir() -> Path:
    """Folder for converted weights and cached features: `$PALKIT_CACHE` or `<repository>/.cache`."""
    return Path(os.environ.get("PALKIT_CACHE", REPOSITORY / ".cache"))


def runs_dir() -> Path:
    """Folder for run directories: `$PALKIT_RUNS` or `<repository>/runs`."""
    return Path(os.environ.get("PALKIT_RUNS", REPOSITORY / "runs"))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
        _fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder in which nobody writes now."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _fsync_directory(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
