"""Image pools: what can be labelled, what validates a choice, what tests the result. Knows no model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from palkit.errors import ConfigError, DataError, unknown_name
from palkit.files import REPOSITORY, verify

SPLITS = ("pool", "val", "test")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
FASHION_MNIST_SHA256 = "e94841e8a133640b95a7607fdae0429aa1dbc22a186ba6e48790a1e1fc678035"
FASHION_MNIST_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


class Decoder(Protocol):
    """Hands out pixels."""

    def __len__(self) -> int: ...

    def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
        """(n, H, W, 3) uint8 images of `rows`. Files come as `size` x `size`, arrays at their own size."""
        ...


class Images(Decoder, Protocol):
    """Images that are decoded when asked for."""

    def take(self, rows: np.ndarray) -> "Images":
        """Only these rows."""
        ...

    def checksum(self) -> str:
        """SHA-256 of all pixels, or of the files that hold them."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images held in memory: (N, H, W) grey or (N, H, W, 3) RGB, uint8."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
        images = self.array[rows]
        return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)

    def take(self, rows: np.ndarray) -> "ArrayImages":
        return ArrayImages(self.array[rows])

    def checksum(self) -> str:
        return hashlib.sha256(self.array.tobytes()).hexdigest()


@dataclass(frozen=True)
class FileImages:
    """Images in files, resized so that the short side fits and cropped at the centre when decoded."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
        return np.stack([_decode_file(self.paths[row], size) for row in rows])

    def take(self, rows: np.ndarray) -> "FileImages":
        return FileImages(tuple(self.paths[row] for row in rows))

    def checksum(self) -> str:
        total = hashlib.sha256()
        for path in self.paths:
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


def _decode_file(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}). Replace the file, or remove it from the folder or manifest."
        ) from error
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@dataclass(frozen=True)
class ImagePool:
    """A data set with fixed splits.

    Attributes:
        name: how the user called it.
        images: decodes rows on demand.
        labels: (N,) int64 classes.
        split: (N,) of "pool", "val", "test".
        ids: (N,) names of the rows that stay the same when rows move.
        class_names: one per class.
    """

    name: str
    images: Images
    labels: np.ndarray
    split: np.ndarray
    ids: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split, in stored order."""
        return np.flatnonzero(self.split == split)

    def counts(self) -> pd.DataFrame:
        """Images per class (rows) and split (columns)."""
        table = pd.crosstab(
            pd.Categorical(np.array(self.class_names)[self.labels], self.class_names),
            pd.Categorical(self.split, SPLITS),
            dropna=False,
        )
        return table.rename_axis(index="class", columns="split")

    def checksum(self) -> str:
        """SHA-256 over pixels, labels and splits: what a run used, whatever it was called."""
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        total = hashlib.sha256(self.images.checksum().encode())
        total.update(self.labels.astype(np.int64).tobytes())
        total.update("".join(self.split).encode())
        return total.hexdigest()


def _pool(
    name: str,
    images: Images,
    labels: np.ndarray,
    split: np.ndarray,
    ids: np.ndarray,
    class_names: Sequence[str],
) -> ImagePool:
    """An ImagePool, refused where no experiment could run on it."""
    pool = ImagePool(name, images, labels.astype(np.int64), split, ids, tuple(class_names))
    if len(class_names) < 2:
        raise DataError(
            f"data set {name!r} has {len(class_names)} class ({', '.join(class_names) or 'none'}); "
            "classification needs at least 2."
        )
    for part in SPLITS:
        present = np.unique(pool.labels[pool.split == part])
        if len(present) < 2:
            raise DataError(
                f"data set {name!r}: its {part} split holds {len(present)} of {len(class_names)} classes; "
                "every split (pool, val, test) needs at least 2."
            )
    return pool


def _fashion_mnist(name: str = "fashion_mnist") -> ImagePool:
    path = REPOSITORY / "data" / "fashion_mnist.npz"
    if not path.exists():
        raise DataError(f"{path} is missing. It is part of the repository: restore it with `git checkout data`.")
    verify(path, FASHION_MNIST_SHA256, "Restore it with `git checkout data/fashion_mnist.npz`.")
    with np.load(path) as file:
        images, labels, split, source = (file[key] for key in ("images", "labels", "split", "source_row"))
    origin = np.where(split == 2, "t10k", "train")
    ids = np.array([f"{part}-{row:05d}" for part, row in zip(origin, source, strict=True)])
    return _pool(name, ArrayImages(images), labels, np.array(SPLITS)[split], ids, FASHION_MNIST_CLASSES)


def head(pool: ImagePool, size: int) -> ImagePool:
    """The data set with only the first `size` images of its pool split.

    Raises:
        ConfigError: the pool is smaller.
    """
    rows = pool.rows("pool")
    if size > len(rows):
        raise ConfigError(f"pool_size {size}: the pool of {pool.name!r} has {len(rows)} images.")
    return take(pool, np.setdiff1d(np.arange(len(pool)), rows[size:]), pool.name)


def take(pool: ImagePool, rows: np.ndarray, name: str) -> ImagePool:
    """The data set with only some of its rows."""
    return _pool(name, pool.images.take(rows), pool.labels[rows], pool.split[rows], pool.ids[rows], pool.class_names)


def long_tail(pool: ImagePool, imbalance: float = 50.0) -> ImagePool:
    """Thin the pool split so that class sizes fall exponentially; val and test stay as they are.

    Class c of C keeps n_max * imbalance^(-c / (C - 1)) of its rows, the first ones in stored order
    (Cui et al., Class-Balanced Loss, CVPR 2019, the usual long-tailed CIFAR recipe).

    Args:
        pool: a data set whose pool split is about balanced.
        imbalance: size of the largest class over the size of the smallest.
    """
    classes = len(pool.class_names)
    keep = pool.split != "pool"
    for label in range(classes):
        rows = pool.rows("pool")[pool.labels[pool.rows("pool")] == label]
        keep[rows[: max(1, round(len(rows) * imbalance ** (-label / (classes - 1))))]] = True
    return take(pool, np.flatnonzero(keep), f"{pool.name}_lt")


def _digits() -> ImagePool:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    split = _stratified_split(digits.target, fractions=(0.6, 0.15, 0.25))
    ids = np.array([f"digit-{row:04d}" for row in range(len(images))])
    return _pool("digits", ArrayImages(images), digits.target, split, ids, [str(d) for d in range(10)])


def _stratified_split(labels: np.ndarray, fractions: tuple[float, float, float]) -> np.ndarray:
    """(N,) of SPLITS, each class divided by `fractions`; the same for the same labels."""
    rng = np.random.default_rng(0)
    split = np.empty(len(labels), dtype=f"<U{max(map(len, SPLITS))}")
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum([round(fraction * len(rows)) for fraction in fractions[:2]])
        for part, chosen in zip(SPLITS, np.split(rows, cuts), strict=True):
            split[chosen] = part
    return split


LAYOUT = (
    "Expected FOLDER/CLASS/IMAGE, which is split 60/15/25 into pool, val and test, "
    "or FOLDER/{pool,val,test}/CLASS/IMAGE, "
    "or a CSV file with the columns path, label and optionally split (pool, val or test)."
)


def from_folder(folder: Path) -> ImagePool:
    """Images in one folder per class, with or without fixed splits.

    Raises:
        DataError: wrong layout, naming what was found and what is expected.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. {LAYOUT}")
    children = sorted(path.name for path in folder.iterdir() if path.is_dir())
    has_splits = set(children) == set(SPLITS)
    if not has_splits and set(children) & set(SPLITS):
        raise DataError(f"{folder} holds {', '.join(children)}: some but not all of {', '.join(SPLITS)}. {LAYOUT}")
    pattern = "*/*/*" if has_splits else "*/*"
    paths = sorted(path for path in folder.glob(pattern) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(f"{folder} holds no image where one is expected (found: {found}). {LAYOUT}")
    classes, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    split = (
        np.array([path.parent.parent.name for path in paths])
        if has_splits
        else _stratified_split(labels, fractions=(0.6, 0.15, 0.25))
    )
    ids = np.array([path.relative_to(folder).as_posix() for path in paths])
    return _pool(str(folder), FileImages(tuple(paths)), labels, split, ids, classes.tolist())


def from_csv(manifest: Path) -> ImagePool:
    """Images listed in a CSV file with the columns path (relative to it), label and optionally split.

    Raises:
        DataError: a missing column, an unknown split or a missing file, each with its line.
    """
    table = pd.read_csv(manifest, dtype=str)
    missing = {"path", "label"} - set(table.columns)
    if missing:
        raise DataError(f"{manifest} lacks the column {', '.join(sorted(missing))}. {LAYOUT}")
    paths = [manifest.parent / path for path in table["path"].fillna("")]
    for line, path in enumerate(paths, start=2):
        if not path.is_file():
            raise DataError(f"{manifest}, line {line}: there is no file {path}. Paths are relative to the manifest.")
    unlabelled = table["label"].isna()
    if unlabelled.any():
        raise DataError(f"{manifest}, line {int(unlabelled.argmax()) + 2}: the label is empty.")
    classes, labels = np.unique(table["label"].to_numpy(dtype=str), return_inverse=True)
    if "split" in table:
        wrong = ~table["split"].isin(SPLITS)
        if wrong.any():
            line = int(wrong.argmax())
            raise DataError(
                f"{manifest}, line {line + 2}: split {table['split'][line]!r} is none of {', '.join(SPLITS)}."
            )
        split = table["split"].to_numpy(dtype=str)
    else:
        split = _stratified_split(labels, fractions=(0.6, 0.15, 0.25))
    ids = table["path"].to_numpy(dtype=str)
    return _pool(str(manifest), FileImages(tuple(paths)), labels, split, ids, classes.tolist())


DATASETS: dict[str, Callable[[], ImagePool]] = {
    "fashion_mnist": _fashion_mnist,
    "fashion_mnist_lt": lambda: long_tail(_fashion_mnist()),
    "digits": _digits,
    "digits_lt": lambda: long_tail(_digits(), imbalance=20),
}


def load_dataset(name: str) -> ImagePool:
    """The data set of that name, or of that folder or CSV manifest.

    Args:
        name: a key of `DATASETS`, a folder (see `from_folder`) or a `.csv` file (see `from_csv`).

    Raises:
        ConfigError: neither a known name nor an existing path.
        DataError: the data cannot be used; the message names the file and the fix.
    """
    if name in DATASETS:
        return DATASETS[name]()
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".csv":
        return from_csv(path)
    if path.exists():
        return from_folder(path)
    if len(path.parts) > 1:
        raise DataError(f"there is no folder or CSV file {path}. {LAYOUT}")
    raise unknown_name("dataset", name, DATASETS)
