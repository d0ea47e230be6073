"""Pools of images: what can be labelled, what validates a choice, what tests the result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Protocol

import numpy as np
import pandas as pd

from palkit.errors import ConfigError, DataError

SPLITS = ("pool", "val", "test")
FRACTIONS = (0.6, 0.15, 0.25)  # of SPLITS, where a data set has none of its own
VAL_SHARE = 0.1  # of the training images, where a data set has a test set but no validation set
USUAL_SIZE = 1500  # images that a simulated pool has at most where nobody says how many
UNLABELLED = -1


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

    def checksums(self) -> list[str]:
        """SHA-256 of each image's pixels, or of its file."""
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
        return pixel_hash(self.array)

    def checksums(self) -> list[str]:
        return [pixel_hash(image) for image in self.array]


def pixel_hash(array: np.ndarray) -> str:
    """SHA-256 of what an array holds, without a copy of it."""
    return sha256(np.ascontiguousarray(array).data).hexdigest()


@dataclass(frozen=True)
class ImagePool:
    """A data set with fixed splits.

    Attributes:
        name: how the user called it.
        images: decodes rows on demand.
        labels: (N,) int64 classes, UNLABELLED (-1) where the class is not known.
        split: (N,) of "pool", "val", "test".
        ids: (N,) names of the rows that stay the same when rows move.
        class_names: one per class.
        groups: (N,) what belongs together, such as a patient, "" where nothing does; None if that is not known.
        notes: what was left out or decided when the images were read, a sentence each.

    >>> import palkit
    >>> pool = palkit.load_dataset("digits")
    >>> len(pool), pool.class_names[:3], len(pool.rows("test"))
    (1797, ('0', '1', '2'), 450)
    """

    name: str
    images: Images
    labels: np.ndarray
    split: np.ndarray
    ids: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_labelled(self) -> bool:
        """Whether the class of every image is known."""
        return bool((self.labels != UNLABELLED).all())

    def rows(self, split: str) -> np.ndarray:
        """Rows of a split, in stored order."""
        return np.flatnonzero(self.split == split)

    def label_names(self) -> np.ndarray:
        """(N,) class name of each image, "" where it is not known."""
        return np.array([*self.class_names, ""], dtype=object)[self.labels]

    def counts(self) -> pd.DataFrame:
        """Images per class (rows) and split (columns), with a row "(no label)" if there are such images."""
        names = self.class_names if self.is_labelled else (*self.class_names, "(no label)")
        codes = np.where(self.labels == UNLABELLED, len(self.class_names), self.labels)
        classes = pd.Categorical.from_codes(codes.tolist(), pd.Index(names))
        table = pd.crosstab(classes, pd.Categorical(self.split, SPLITS), dropna=False)
        return table.rename_axis(index="class", columns="split")

    def duplicates(self) -> pd.DataFrame:
        """Images that are there more than once, byte for byte, copies one after the other.

        Returns:
            Columns row, id, split, label ("" where not known) and checksum, which copies share.
        """
        columns = {"row": np.arange(len(self)), "id": self.ids, "split": self.split, "label": self.label_names()}
        table = pd.DataFrame(columns).assign(checksum=self.images.checksums())
        copies = table[table["checksum"].duplicated(keep=False)]
        return copies.sort_values(["checksum", "row"], ignore_index=True)

    def checksum(self) -> str:
        """SHA-256 over pixels, labels and splits: what a run used, whatever it was called."""
        return self._checksum

    @cached_property
    def pixels_checksum(self) -> str:
        """SHA-256 over pixels alone: what does not change when a label is corrected."""
        return self.images.checksum()

    @cached_property
    def _checksum(self) -> str:
        total = sha256(self.pixels_checksum.encode())
        total.update(self.labels.astype(np.int64).tobytes())
        total.update("".join(self.split).encode())
        return total.hexdigest()


def usable(pool: ImagePool) -> ImagePool:
    """The data set itself, refused where neither an experiment could run on it nor anybody label it.

    Raises:
        DataError: a validation or test image without a label, a group in two splits, or everything is labelled and
            there are too few classes, as a whole or in a split. It ends with the notes: what was left out may be what
            is lacking.
    """
    for problem in _problems(pool):
        raise DataError(" ".join([f"data set {pool.name!r}: {problem}", *pool.notes]))
    return pool


def _problems(pool: ImagePool) -> Iterator[str]:
    """Problems of a data set, and what to do about each."""
    if pool.groups is not None:
        table = pd.DataFrame({"group": pool.groups, "split": pool.split})
        splits = table[table["group"] != ""].groupby("group")["split"].unique()
        for group, parts in splits[splits.map(len) > 1].items():
            yield (
                f"group {group!r} has images in the splits {', '.join(sorted(parts))}. Give all its images the same "
                "split, or leave the splits out to have them made."
            )
    for row in np.flatnonzero((pool.labels == UNLABELLED) & (pool.split != "pool")):
        yield (
            f"{pool.ids[row]} is in split {str(pool.split[row])!r} but has no label. Label it, or move it to split "
            "'pool': only images of the pool may lack one."
        )
    if not pool.is_labelled:
        return
    names = pool.class_names
    if len(names) < 2:
        yield f"it has {len(names)} class ({', '.join(names) or 'none'}); classification needs at least 2."
    what, units, remedy = "images", pool.ids, "."
    if pool.groups is not None:
        what, units, remedy = "groups", pool.groups, ", or leave out group."
    for part in SPLITS:
        present = np.unique(pool.labels[pool.split == part])
        if len(present) < 2:
            counts = [len(np.unique(units[pool.labels == label])) for label in range(len(names))]
            fewest = ", ".join(f"{name!r} has {count}" for count, name in sorted(zip(counts, names, strict=True))[:3])
            too_few = sum(count >= len(SPLITS) for count in counts) < 2
            more = f" That takes two classes or more with at least 3 {what}: {fewest}. Add {what}, or give"
            why = more if too_few else " Give"
            yield (
                f"its {part} split holds {len(present)} of {len(names)} classes, and each of pool, val and test needs "
                f"2.{why} the split in the column split of a manifest, or leave that column out to have it made{remedy}"
            )


def take(pool: ImagePool, rows: np.ndarray, name: str) -> ImagePool:
    """The data set with only some of its rows."""
    groups = None if pool.groups is None else pool.groups[rows]
    parts = pool.labels[rows], pool.split[rows], pool.ids[rows]
    return usable(ImagePool(name, pool.images.take(rows), *parts, pool.class_names, groups, pool.notes))


def without(pool: ImagePool, rows: np.ndarray, notes: Sequence[str] = ()) -> ImagePool:
    """The data set less some of its rows, with notes that say so."""
    rest = take(pool, np.setdiff1d(np.arange(len(pool)), rows), pool.name)
    return replace(rest, notes=(*rest.notes, *notes))


def usual_size(size: int | str | None, there: int) -> int | None:
    """Number of pool images that take part, None for all.

    Args:
        size: a number, None for all, or "auto": 1,500, or all where there are fewer.
        there: images in the pool.
    """
    if size == "auto":
        return USUAL_SIZE if there >= USUAL_SIZE else None
    assert not isinstance(size, str), "checked by the config"
    return size


def head(pool: ImagePool, size: int) -> ImagePool:
    """The data set with only `size` images of its pool split, drawn by their names: storage order may be the class.

    Raises:
        ConfigError: the pool is smaller.
    """
    rows = pool.rows("pool")
    if size > len(rows):
        raise ConfigError(
            f"pool_size {size}: the pool of {pool.name!r} has {len(rows)} images. Lower it, or leave it out."
        )
    drawn = rows[np.argsort(lots(pool.ids[rows]), kind="stable")]
    return without(pool, drawn[size:])


def lots(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """(N,) uint64 numbers drawn for names, the same wherever these stand."""
    digests = (sha256(str(name).encode("utf-8", "surrogatepass")).digest() for name in ids)
    return np.array([int.from_bytes(digest[:8], "big") for digest in digests], dtype=np.uint64)


def long_tail(pool: ImagePool, imbalance: float = 50.0) -> ImagePool:
    """Thin the pool split so that class sizes fall exponentially; val and test stay as they are.

    Class c of C keeps n_max * imbalance^(-c / (C - 1)) of its rows, drawn by their names (Cui et al., Class-Balanced
    Loss, CVPR 2019, the usual long-tailed CIFAR recipe).

    Args:
        pool: a data set whose pool split is about balanced.
        imbalance: size of the largest class over the size of the smallest.
    """
    classes = len(pool.class_names)
    keep = pool.split != "pool"
    drawn = pool.rows("pool")[np.argsort(lots(pool.ids[pool.rows("pool")]), kind="stable")]
    for label in range(classes):
        rows = drawn[pool.labels[drawn] == label]
        keep[rows[: max(1, round(len(rows) * imbalance ** (-label / (classes - 1))))]] = True
    return take(pool, np.flatnonzero(keep), f"{pool.name}_lt")


def stratified_split(
    labels: np.ndarray, ids: np.ndarray, fractions: tuple[float, float, float] = FRACTIONS
) -> np.ndarray:
    """(N,) of SPLITS, each class divided by `fractions`; by the images' names, wherever they stand.

    A class with enough images has one in every wanted part, however small its share.
    """
    order = np.argsort(lots(ids), kind="stable")
    split = np.empty(len(labels), dtype=np.array(SPLITS).dtype)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        wanted = [place for place, fraction in enumerate(fractions) if fraction > 0]
        sizes = np.array([round(fraction * len(rows)) for fraction in fractions])
        sizes[wanted[-1]] += len(rows) - sizes.sum()
        for place in wanted if len(rows) >= len(wanted) else ():
            if sizes[place] == 0:
                sizes[sizes.argmax()] -= 1
                sizes[place] = 1
        split[rows] = np.repeat(SPLITS, sizes)
    return split


def grouped_split(
    labels: np.ndarray, groups: np.ndarray, ids: np.ndarray, fractions: tuple[float, float, float] = FRACTIONS
) -> np.ndarray:
    """(N,) of SPLITS, no group in two of them and classes divided about by `fractions`; by names alone.

    Large groups come first, each goes where it brings the class counts nearest to the wanted ones (in chi-square),
    which is how scikit-learn's StratifiedGroupKFold works for folds of equal size.

    Args:
        labels: (N,) integers >= 0.
        groups: (N,) strings; images of "" stand each for itself.
        ids: (N,) names of the images.
        fractions: wanted of each split.
    """
    alone = np.char.add("\0", ids.astype(str))  # no group of a user is called like this
    names, member = np.unique(np.where(groups == "", alone, groups), return_inverse=True)
    counts = np.zeros((len(names), labels.max() + 1))
    np.add.at(counts, (member, labels), 1)
    # Groups of a size come in random order: their names may follow a hospital or a date. Classes as groups bring them.
    order = np.argsort(lots(names), kind="stable")
    counts = counts[:, np.lexsort(counts[order][::-1])]
    wanted = np.outer(fractions, counts.sum(axis=0))  # (3, C)
    weight = 1 / np.maximum(wanted, 1e-9)
    filled, place = np.zeros_like(wanted), np.zeros(len(names), dtype=np.int64)
    for group in order[np.argsort(-counts[order].sum(axis=1), kind="stable")]:
        before = (filled - wanted) ** 2 * weight
        after = (filled + counts[group] - wanted) ** 2 * weight
        place[group] = (after - before).sum(axis=1).argmin()
        filled[place[group]] += counts[group]
    _fill_gaps(place, counts > 0, [part for part, fraction in enumerate(fractions) if fraction > 0])
    return np.array(SPLITS)[place[member]]


def _fill_gaps(place: np.ndarray, has: np.ndarray, parts: Sequence[int]) -> None:
    """Move groups so that a class with enough of them is in every part, if it can be without leaving another.

    Args:
        place: (G,) part of each group, changed.
        has: (G, C) whether a group holds images of a class.
        parts: that are wanted.
    """
    for label in np.flatnonzero(has.sum(axis=0) >= len(parts)):
        for part in parts:
            if has[place == part, label].any():
                continue
            for group in np.flatnonzero(has[:, label])[np.argsort(has[has[:, label]].sum(axis=1), kind="stable")]:
                left = (place == place[group]) & (np.arange(len(place)) != group)
                if not (has[group] & ~has[left].any(axis=0)).any():
                    place[group] = part
                    break


def split_rows(
    labels: np.ndarray, groups: np.ndarray | None, ids: np.ndarray, fractions: tuple[float, float, float] = FRACTIONS
) -> np.ndarray:
    """(N,) of SPLITS where there are none: unlabelled images go to the pool, with all of their group.

    Args:
        labels: (N,) integers, UNLABELLED where not known.
        groups: (N,) strings, see ImagePool.
        ids: (N,) names of the images.
        fractions: wanted of each split.
    """
    split = np.full(len(labels), "pool", dtype=np.array(SPLITS).dtype)
    known = labels != UNLABELLED
    if groups is not None:
        known &= ~np.isin(groups, np.setdiff1d(groups[~known], [""]))
    if groups is None:
        split[known] = stratified_split(labels[known], ids[known], fractions)
    elif known.any():
        split[known] = grouped_split(labels[known], groups[known], ids[known], fractions)
    return split


def carve(labels: np.ndarray, ids: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """(N,) of "pool" and "val": a validation set taken out of the labelled training images, each class alike.

    Args:
        labels: (N,) integers, UNLABELLED where not known.
        ids: (N,) names of the images.
        groups: (N,) strings that no split divides, see ImagePool.
    """
    return np.where(split_rows(labels, groups, ids, (1 - VAL_SHARE, VAL_SHARE, 0.0)) == "pool", "pool", "val")
