"""Features of a network of one's own as a data set: they stand in the place of pixels, and no backbone is loaded."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from pyarrow import ArrowException, parquet

from palkit.data.files import FileImages
from palkit.data.hashes import file_hashes
from palkit.data.own import COLUMNS, SPLIT_NAMES, located_files, of_table
from palkit.data.pool import ImagePool, pixel_hash
from palkit.errors import DataError, PalkitError, brief
from palkit.storage.checks import normal
from palkit.storage.files import atomic_path, cache_dir
from palkit.storage.formats import new_array

SUFFIXES = (".npy", ".npz", ".parquet")
FEATURES = "features"  # column or array that tells such a file from a manifest
PROBS = "probs"
PLURALS = {"ids": "image_id", "id": "image_id", **{f"{name}s": name for name in ("path", "label", "split", "group")}}
CLASSES = "classes"
COLUMN_OF = {name: name for name in COLUMNS} | PLURALS  # of a manifest, by the name of an array
KNOWN = {*COLUMN_OF, PROBS, CLASSES}  # beside the features; a file may hold more
LARGEST = 10**9  # number of a class
BLOCK = 2**13  # rows that are read at a time
LAYOUT = (
    "Features are a .npy array (N, D); or a .npz archive with the array features, or a Parquet table with the column "
    "features (a list of numbers a row), and as wanted ids, labels (names or numbers), splits, groups, paths of the "
    "images, and probs (N, C) of a model of your own."
)


@dataclass(frozen=True)
class StoredFeatures:
    """Rows of an array in the place of images.

    Attributes:
        array: (M, D) numbers, in memory or mapped from a file; used as float32.
        index: (N,) its rows, in order.
        pictures: the images that the features are of; None if nobody says where they are.
        file: a `.npy` file that holds exactly `array`, and that nobody writes to; None if there is none.
    """

    array: np.ndarray
    index: np.ndarray
    pictures: FileImages | None = field(default=None, compare=False)
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.file is None:
            with np.errstate(over="ignore"):
                object.__setattr__(self, "array", np.require(self.array, np.float32, ["C", "W"]))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        """Features of a row, D."""
        return self.array.shape[1]

    def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
        """(n, size, size, 3) uint8 pictures to look at, grey where there are none; no model sees them."""
        if self.pictures is None:
            return np.full((len(rows), size, size, 3), 128, np.uint8)
        return self.pictures.decode(rows, size)

    def take(self, rows: np.ndarray) -> "StoredFeatures":
        return replace(self, index=self.index[rows], pictures=self.pictures and self.pictures.take(rows))

    def checksum(self) -> str:
        return self._checksum

    def checksums(self) -> list[str]:
        return [pixel_hash(self.array[row]) for row in self.index]

    @cached_property
    def _checksum(self) -> str:
        """Of the whole array, whose file is not read again if it is as it was, and of the rows."""
        whole = pixel_hash(self.array) if self.file is None else file_hashes([self.file])[0]
        return sha256(whole.encode() + self.index.astype("<i8").tobytes()).hexdigest()


def is_features(path: Path) -> bool:
    """Whether a file is of features, by its suffix; of Parquet, by its columns."""
    if path.suffix.lower() != ".parquet":
        return path.suffix.lower() in SUFFIXES
    try:
        return FEATURES in parquet.read_schema(path).names
    except (OSError, ValueError, ArrowException):
        return False  # whoever reads it says what is wrong


def holds_features(name: str) -> bool:
    """Whether the data set of that name is a file of features."""
    path = Path(name).expanduser()
    return os.path.isfile(path) and is_features(path)  # unlike the method, it takes a name that no file can have


def from_features(
    path: Path, classes: Sequence[str] | None = None, *, splits: bool = True, labels: bool = True
) -> ImagePool:
    """The data set of a file of features.

    Without ids, images are called by their paths, or else by their numbers. Labels, splits and groups are as in a
    manifest; a label that is empty, or a number below 0, is none. Numbers are those of the classes, where these have
    names. The array is copied to the cache as float32, once.

    Args:
        path: see `LAYOUT`.
        classes: all class names in their order; None for those in the file.
        splits: make splits where the file has none; else all rows are of the pool then.
        labels: False leaves out what the file says of labels, splits and groups.

    Raises:
        DataError: the file cannot be read, or an array does not fit, or every row of the pool has a label; names it.
    """
    with _reading(path):
        found, others = _opened(path)
        copy = _copied(path, found)
        names = classes or (_texts(f"{path}: {CLASSES}", others[CLASSES], None) if CLASSES in others else None)
    with _reading(copy):
        array = np.load(copy, mmap_mode="r")
    table = pd.DataFrame(index=[f"row {row}" for row in range(1, len(array) + 1)])
    with _reading(path):
        for given, column in COLUMN_OF.items():
            if given in others and (labels or column in ("path", "image_id")):
                what, values, rows = f"{path}: {given}", others[given], len(array)
                texts = _labels(what, values, names, rows) if column == "label" else _texts(what, values, rows)
                table[column] = texts if column == "path" else [normal(text).strip() for text in texts]
    if "label" not in table:
        table["label"] = ""
    if "split" not in table and not splits:
        table["split"] = "pool"
        if (table["label"] != "").all():
            raise DataError(f"every row of {path} has a label: there is none to choose.")
    pictures = FileImages(located_files(str(path), table, path.parent)) if "path" in table else None
    notes = []
    if pictures is None:
        notes.append(f"{path} names no images (paths): where images are shown, grey squares stand for them.")
    if "image_id" not in table:
        if pictures is None:
            notes.append(f"{path} has no ids: images are called by their numbers, so their order must stay as it is.")
        table["image_id"] = table["path"] if "path" in table else np.arange(len(table)).astype(str)
    _check(path, table)
    images = StoredFeatures(array, np.arange(len(array)), pictures, copy)
    return of_table(str(path), table, images, names, notes)


def probs_of(path: Path) -> tuple[np.ndarray | None, list[str], list[str]]:
    """(N, C) class probabilities in a `.npy` array, or of that name in a file of features.

    Returns:
        They, the names of their columns, and the ids of their rows; no names where the file has none.

    Raises:
        DataError: the file cannot be read, or they are no array of numbers (N, C).
    """
    with _reading(path):
        found, others = _opened(path)
        names = _texts(f"{path}: {CLASSES}", others[CLASSES], None) if CLASSES in others else []
        values = found if isinstance(found, np.ndarray) else others.get(PROBS)
        probs = None if values is None else np.array([np.asarray(row, dtype=np.float64) for row in values])
        given = next((name for name in ("image_id", "ids", "id") if name in others), None)
        ids = (
            [] if given is None else [normal(text).strip() for text in _texts(f"{path}: {given}", others[given], None)]
        )
    if probs is not None and probs.ndim != 2:
        raise DataError(f"{path}: {PROBS} must be one row of probabilities an image, are {probs.shape}.")
    return probs, names, ids


def _check(path: Path, table: pd.DataFrame) -> None:
    """Refuse names that are missing or there twice, and unknown splits."""
    names = table["image_id"]
    for bad, problem in (
        (names.str.strip() == "", "has no id that can be used"),
        (names.duplicated(), "has the id of another row"),
        (
            ~table.get("split", pd.Series("pool", table.index)).str.lower().isin(SPLIT_NAMES),
            "has no split that can be used",
        ),
    ):
        if bad.any():
            at = bad.idxmax()
            raise DataError(f"{path}, {at} ({brief(names[at])}) {problem}. {LAYOUT}")


def _texts(what: str, values: Any, rows: int | None) -> list[str]:
    """Entries as text, "" where there is nothing; as many as there are rows, if that is given."""
    if np.ndim(values) != 1 or (rows is not None and len(values) != rows):
        shape = f"{len(values):,} entries" if np.ndim(values) == 1 else f"the shape {np.shape(values)}"
        raise DataError(f"{what} has {shape}{f' for {rows:,} rows of features' if rows else ', not one entry each'}.")
    return [
        "" if one is None or one != one else one.decode() if isinstance(one, bytes) else str(one)
        for one in list(values)
    ]


def _labels(what: str, values: Any, names: Sequence[str] | None, rows: int) -> list[str]:
    """Class name of every row, "" where it is not known."""
    texts = _texts(what, values, rows)
    numbers = pd.Series(list(values))
    if numbers.dtype.kind not in "iuf":
        return texts
    array = numbers.fillna(-1).to_numpy()  # labels with gaps, as pandas keeps them
    odd = array[(array != np.round(array)) | (np.abs(array) > LARGEST)]
    if len(odd):
        raise DataError(f"{what} are numbers such as {odd[0]}; give whole ones, or names.")
    array = array.astype(np.int64)
    if names is not None and len(array) and array.max() >= len(names):
        raise DataError(f"{what}: there is a label {array.max()}, and the names of {len(names)} classes.")
    return ["" if code < 0 else str(code) if names is None else names[code] for code in array.tolist()]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a library raises that reads a file into an error that says what is expected.

    Raises:
        DataError: in its place.
    """
    try:
        yield
    except PalkitError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile, ArrowException) as error:
        hint = " If it is a NumPy file at all, give text as text: names.astype(str)." if "pickle" in str(error) else ""
        raise DataError(f"{path} cannot be read ({error}).{hint} {LAYOUT}") from error


def _opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """A file that holds features, of which none are read yet, and what else it says of the rows."""
    if path.suffix.lower() == ".parquet":
        file = parquet.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name.strip().lower() in KNOWN]
        table = file.read(columns=columns, use_threads=False)
        return file, {name.strip().lower(): table[name].to_pylist() for name in columns}
    found = np.load(path, mmap_mode="r")
    arrays = [] if isinstance(found, np.ndarray) else found.files
    return found, {name.lower(): found[name] for name in arrays if name.lower() in KNOWN}


def _blocks(found: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Number of all rows of an opened file, with their features block by block."""
    if isinstance(found, parquet.ParquetFile):
        for batch in found.iter_batches(BLOCK, columns=[FEATURES], use_threads=False):
            column = batch.column(0)
            if not hasattr(column, "value_lengths"):
                raise ValueError(f"{FEATURES} must be a list of numbers a row, are {column.type}")
            widths = np.unique(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
            if len(widths) > 1:
                raise ValueError(f"rows of {FEATURES} differ in length: {', '.join(map(str, widths))}")
            rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            yield found.metadata.num_rows, rows
    else:
        array = found if isinstance(found, np.ndarray) else found[FEATURES]
        for start in range(0, len(array), BLOCK):
            yield len(array), array[start : start + BLOCK]


def _copied(path: Path, found: Any) -> Path:
    """A copy of the features of an opened file in the cache, (N, D) float32, made once for a file of this content.

    A damaged one is made again.
    """
    from palkit.storage.shards import filled, shard_path  # torch, which data sets of images do without

    content = file_hashes([path])[0]
    folder = cache_dir() / "features" / content
    copy = shard_path(folder, 0)

    def fill() -> int:
        if copy.exists():
            return 1
        with atomic_path(copy) as temporary:
            output: Any = np.empty((0, 0))
            done = 0
            for rows, block in _blocks(found):
                if block.ndim != 2 or block.dtype.kind not in "fiu" or (done and block.shape[1] != output.shape[1]):
                    raise ValueError(f"{FEATURES} must be rows of numbers (N, D), are {block.shape} {block.dtype}")
                if not done:
                    output = new_array(temporary, np.float32, (rows, block.shape[1]))
                with np.errstate(over="ignore"):
                    output[done : done + len(block)] = block
                bad = ~np.isfinite(output[done : done + len(block)]).all(axis=1)
                if bad.any():
                    raise DataError(
                        f"{path}, row {done + bad.argmax() + 1}: a feature is not a finite number of float32. Remove "
                        "the row, or compute it again."
                    )
                done += len(block)
            if not output.size:
                raise ValueError("it holds no features")
            output.flush()
        return 1

    filled(folder, {"file": content}, fill)
    return copy
