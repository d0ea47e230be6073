"""Features of a network of one's own as a data set: they stand in the place of pixels, and no backbone is loaded."""

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from palkit.data.files import FileImages
from palkit.data.hashes import file_hashes
from palkit.data.own import COLUMNS, SPLIT_NAMES, located_files, of_table
from palkit.data.pool import ImagePool, pixel_hash
from palkit.errors import DataError, brief
from palkit.storage.files import atomic_path, cache_dir, locked, storing
from palkit.storage.formats import new_array

SUFFIXES = (".npy", ".npz", ".parquet")
FEATURES = "features"  # column or array that tells such a file from a manifest
PROBS = "probs"
PLURALS = {"ids": "image_id", "id": "image_id", **{f"{name}s": name for name in ("path", "label", "split", "group")}}
CLASSES = "classes"
BLOCK = 2**13  # rows that are read at a time
Source = tuple[int, Iterator[np.ndarray]]
LAYOUT = (
    "Features are a .npy array (N, D); or a .npz archive with the array features, or a Parquet table with the column "
    "features (a list of numbers a row), and as wanted ids, labels (names or numbers), splits, groups, paths of the "
    "images, and probs (N, C) of a model of your own."
)


@dataclass(frozen=True)
class StoredFeatures:
    """Rows of an array in the place of images.

    Attributes:
        array: (M, D) float32, in memory or mapped from a file.
        index: (N,) its rows, in order.
        pictures: the images that the features are of; None if nobody says where they are.
    """

    array: np.ndarray
    index: np.ndarray
    pictures: FileImages | None = field(default=None, compare=False)

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
        file = getattr(self.array, "filename", None)
        whole = pixel_hash(self.array) if file is None else file_hashes([Path(file)])[0]
        return sha256(whole.encode() + self.index.astype("<i8").tobytes()).hexdigest()


def is_features(path: Path) -> bool:
    """Whether a file is of features, by its suffix; of Parquet, by its columns."""
    if path.suffix.lower() != ".parquet":
        return path.suffix.lower() in SUFFIXES
    try:
        return FEATURES in parquet.read_schema(path).names
    except (OSError, ValueError, pa.ArrowException):
        return False  # whoever reads it says what is wrong


def holds_features(name: str) -> bool:
    """Whether the data set of that name is a file of features."""
    path = Path(name).expanduser()
    return os.path.isfile(path) and is_features(path)  # unlike the method, it takes a name that no file can have


def from_features(path: Path, classes: Sequence[str] | None = None) -> ImagePool:
    """The data set of a file of features.

    Without ids, images are called by their paths, or else by their numbers. Labels, splits and groups are as in a
    manifest; a label that is empty, or a number below 0, is none. Numbers are those of `classes`, where the file names
    any. An array of float32 in a `.npy` file is used where it lies; others are copied to the cache as such.

    Args:
        path: see `LAYOUT`.
        classes: all class names in their order.

    Raises:
        DataError: the file cannot be read, or an array does not fit; names it.
    """
    array, others = _read(path)
    names = _texts(others[CLASSES]) if CLASSES in others else None
    table = pd.DataFrame(index=[f"row {row}" for row in range(1, len(array) + 1)])
    for given, column in ({name: name for name in COLUMNS} | PLURALS).items():
        if given in others:
            values = others[given]
            if len(values) != len(array):
                raise DataError(f"{path}: {given} has {len(values):,} entries for {len(array):,} rows of features.")
            texts = _labels(path, values, names) if column == "label" else _texts(values)
            table[column] = texts if column in ("path", "image_id") else [text.strip() for text in texts]
    if "label" not in table:
        table["label"] = ""
    pictures = FileImages(located_files(str(path), table, path.parent)) if "path" in table else None
    if "image_id" not in table:
        table["image_id"] = table["path"] if "path" in table else np.arange(len(table)).astype(str)
    _check(path, table)
    blank = f"{path} names no images (paths): where images are shown, grey squares stand for them."
    images = StoredFeatures(array, np.arange(len(array)), pictures)
    return of_table(str(path), table, images, classes or names, [] if pictures else [blank])


def probs_of(path: Path) -> np.ndarray | None:
    """(N, C) class probabilities that a file of features holds beside them, or a `.npy` array; None if it has none.

    Raises:
        DataError: the file cannot be read, or they are no array of numbers (N, C).
    """
    values = _array(path) if path.suffix.lower() == ".npy" else _read(path)[1].get(PROBS)
    if values is None:
        return None
    try:
        probs = np.array([np.asarray(row, dtype=np.float64) for row in values])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {PROBS} are no table of numbers ({error}).") from error
    if probs.ndim != 2:
        raise DataError(f"{path}: {PROBS} must be one row of probabilities an image, are {probs.shape}.")
    return probs


def _check(path: Path, table: pd.DataFrame) -> None:
    """Refuse names that are missing or there twice, and unknown splits."""
    names = table["image_id"]
    for bad, problem in (
        (names.str.strip() == "", "has no id"),
        (names.duplicated(), "has the id of another row"),
        (~table.get("split", pd.Series("pool", table.index)).str.lower().isin(SPLIT_NAMES), "has no split"),
    ):
        if bad.any():
            at = bad.idxmax()
            raise DataError(f"{path}, {at} ({brief(names[at])}) {problem} that can be used. {LAYOUT}")


def _texts(values: Any) -> list[str]:
    """Entries as text, "" where there is nothing."""
    return ["" if one is None else one.decode() if isinstance(one, bytes) else str(one) for one in list(values)]


def _labels(path: Path, values: Any, names: Sequence[str] | None) -> list[str]:
    """Class name of every row, "" where it is not known."""
    numbers = pd.Series(list(values))
    if numbers.dtype.kind not in "iuf":
        return _texts(values)
    array = numbers.fillna(-1).to_numpy()  # labels with gaps, as pandas keeps them
    if (array != np.round(array)).any():
        raise DataError(f"{path}: labels are numbers such as {array[array != np.round(array)][0]}; give whole ones.")
    array = array.astype(np.int64)
    if names is not None and len(array) and array.max() >= len(names):
        raise DataError(f"{path}: there is a label {array.max()}, and the names of {len(names)} classes.")
    return ["" if code < 0 else str(code) if names is None else names[code] for code in array.tolist()]


def _read(path: Path) -> tuple[np.ndarray, Mapping[str, Any]]:
    """(N, D) float32 features, and what else the file says of the rows."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            array = _matrix(path, _array(path))
            if array.dtype != np.float32 or not array.flags.c_contiguous:
                return _copied(path, lambda: (len(array), _blocks(array))), {}
            for start, block in zip(range(0, len(array), BLOCK), _blocks(array), strict=True):
                _finite(path, block, start)
            return array, {}
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                if FEATURES not in archive.files:
                    raise DataError(f"{path} has no array {FEATURES} (found: {', '.join(archive.files)}). {LAYOUT}")

                def stored() -> Source:
                    array = _matrix(path, archive[FEATURES])
                    return len(array), _blocks(array)

                others = {name.lower(): archive[name] for name in archive.files if name != FEATURES}
                return _copied(path, stored), others
        return _read_parquet(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as features ({error}). {LAYOUT}") from error


def _array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an array ({error}). {LAYOUT}") from error


def _matrix(path: Path, array: np.ndarray) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
        raise DataError(f"{path}: features must be rows of numbers (N, D), are {array.shape} {array.dtype}. {LAYOUT}")
    return array


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[start : start + BLOCK] for start in range(0, len(array), BLOCK))


def _read_parquet(path: Path) -> tuple[np.ndarray, Mapping[str, Any]]:
    with parquet.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name != FEATURES]
        table = file.read(columns=names, use_threads=False)

        def blocks() -> Iterator[np.ndarray]:
            for batch in file.iter_batches(BLOCK, columns=[FEATURES], use_threads=False):
                column = batch.column(0)
                widths = np.unique(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
                if len(widths) > 1:
                    raise DataError(f"{path}: rows of {FEATURES} differ in length ({', '.join(map(str, widths))}).")
                yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

        others = {name.strip().lower(): table[name].to_pylist() for name in names}
        return _copied(path, lambda: (file.metadata.num_rows, blocks())), others


def _copied(path: Path, source: Callable[[], Source]) -> np.ndarray:
    """A copy in the cache, (N, D) float32, made once for a file of this content.

    Args:
        path: of the file.
        source: opens it: the number of rows, and these block by block.
    """
    copy = cache_dir() / "features" / f"{file_hashes([path])[0]}.npy"
    with storing(copy):
        copy.parent.mkdir(parents=True, exist_ok=True)
    with locked(copy.with_suffix(".lock")):
        if not copy.exists():
            rows, blocks = source()
            with atomic_path(copy) as temporary:
                output, start = None, 0
                for block in blocks:
                    if output is None:
                        output = new_array(temporary, np.float32, (rows, block.shape[1]))
                    if block.shape[1] != output.shape[1]:
                        raise DataError(f"{path}: rows of {FEATURES} differ in length.")
                    with np.errstate(over="ignore"):
                        output[start : start + len(block)] = block
                    _finite(path, output[start : start + len(block)], start)
                    start += len(block)
                if output is None or not output.size:
                    raise DataError(f"{path} holds no features. {LAYOUT}")
                output.flush()
    return _array(copy)


def _finite(path: Path, block: np.ndarray, start: int) -> None:
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        raise DataError(
            f"{path}, row {start + bad.argmax() + 1}: a feature is not a finite number of float32. Remove the row, or "
            "compute it again."
        )
