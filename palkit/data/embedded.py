"""Data sets that come with the repository or with its packages."""

import numpy as np

from palkit.data.pool import SPLITS, ArrayImages, ImagePool, long_tail, stratified_split, usable
from palkit.errors import DataError
from palkit.storage.files import REPOSITORY, verify

FASHION_MNIST_SHA256 = "e94841e8a133640b95a7607fdae0429aa1dbc22a186ba6e48790a1e1fc678035"
FASHION_MNIST_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def fashion_mnist() -> ImagePool:
    """8,000 grey images of clothes, see data/README.md.

    Raises:
        DataError: the file is not there.
        ChecksumError: it is damaged.
    """
    path = REPOSITORY / "data" / "fashion_mnist.npz"
    if not path.exists():
        raise DataError(f"{path} is missing. It is part of the repository: restore it with `git checkout data`.")
    verify(path, FASHION_MNIST_SHA256, "Restore it with `git checkout data/fashion_mnist.npz`.")
    with np.load(path) as file:
        images, labels, split, source = (file[key] for key in ("images", "labels", "split", "source_row"))
    origin = np.where(split == 2, "t10k", "train")
    ids = np.array([f"{part}-{row:05d}" for part, row in zip(origin, source, strict=True)])
    labels, split = labels.astype(np.int64), np.array(SPLITS)[split]
    return usable(ImagePool("fashion_mnist", ArrayImages(images), labels, split, ids, FASHION_MNIST_CLASSES))


def fashion_mnist_lt() -> ImagePool:
    """Fashion-MNIST whose pool has class sizes from 600 to 12."""
    return long_tail(fashion_mnist())


def digits() -> ImagePool:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * (255 / 16)).round().astype(np.uint8)
    ids = np.array([f"digit-{row:04d}" for row in range(len(images))])
    split = stratified_split(found.target, ids)
    return usable(ImagePool("digits", ArrayImages(images), found.target, split, ids, tuple("0123456789")))


def digits_lt() -> ImagePool:
    """The digits with a pool whose largest class is 20 times the smallest."""
    return long_tail(digits(), imbalance=20)
