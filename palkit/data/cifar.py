"""CIFAR-10 and CIFAR-100 from their binary archives: the usual ones are pickles, which run what is in them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from palkit.data.download import Remote, dataset_dir, reading, unpacked
from palkit.data.pool import ArrayImages, ImagePool, carve, usable

SIDE = 32  # pixels; a record is its labels, one byte each, and the image as channels x rows x columns


class Cifar(NamedTuple):
    """One of the two archives.

    Attributes:
        remote: the published file; the checksum is TensorFlow Datasets'.
        folder: inside the archive.
        train, test: files of records, in order.
        names: text file of the class names, a line each.
        labels: bytes before an image; the last is the class.
    """

    remote: Remote
    folder: str
    train: Sequence[str]
    test: str
    names: str
    labels: int


def _archive(file: str, checksum: str) -> Remote:
    return Remote(f"https://www.cs.toronto.edu/~kriz/{file}", f"sha256:{checksum}", file)


CIFAR10 = Cifar(
    _archive("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    folder="cifar-10-batches-bin",
    train=[f"data_batch_{number}.bin" for number in range(1, 6)],
    test="test_batch.bin",
    names="batches.meta.txt",
    labels=1,
)
CIFAR100 = Cifar(
    _archive("cifar-100-binary.tar.gz", "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    folder="cifar-100-binary",
    train=["train.bin"],
    test="test.bin",
    names="fine_label_names.txt",
    labels=2,
)


def cifar10() -> ImagePool:
    """60,000 photographs of 32 x 32 pixels, 10 classes; the official test set, a tenth of train for validation.

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    return _read("cifar10", CIFAR10)


def cifar100() -> ImagePool:
    """The same as `cifar10` with 100 (fine) classes.

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    return _read("cifar100", CIFAR100)


def _read(name: str, source: Cifar) -> ImagePool:
    folder = unpacked(source.remote, dataset_dir(name), "unpacked") / source.folder
    with reading(name, folder):
        content = [[np.fromfile(folder / file, np.uint8) for file in files] for files in (source.train, [source.test])]
        train, test = (np.concatenate(part).reshape(-1, source.labels + 3 * SIDE**2) for part in content)
        names = (folder / source.names).read_text(encoding="ascii").split()
    labels = np.concatenate([train, test])[:, source.labels - 1].astype(np.int64)
    pixels = np.concatenate([train, test])[:, source.labels :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    ids = np.array([f"{part}-{n:05d}" for part, rows in (("train", train), ("test", test)) for n in range(len(rows))])
    split = np.concatenate([carve(labels[: len(train)], ids[: len(train)]), np.full(len(test), "test")])
    return usable(ImagePool(name, ArrayImages(np.ascontiguousarray(pixels)), labels, split, ids, tuple(names)))
