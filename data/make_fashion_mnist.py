"""Make `fashion_mnist.npz`, the embedded subset, from the four IDX files of Fashion-MNIST.

    python data/make_fashion_mnist.py /usr/share/datasets/fashion-mnist   # Debian: dataset-fashion-mnist

Pool and validation images come from the training file, test images from the test file. Rows are
class-interleaved (0, 1, ..., 9, 0, 1, ...), so that any multiple of ten leading rows of a split is balanced.
"""

import gzip
import sys
from pathlib import Path

import numpy as np

POOL, VAL, TEST = 600, 100, 100  # images per class


def read_idx(path: Path, header: int, shape: tuple[int, ...]) -> np.ndarray:
    """Array of an IDX file of uint8 whose header takes `header` bytes."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header).reshape(shape)


def interleaved(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(classes, rows) shuffled source rows per class, as many as the smallest class has."""
    rows = [rng.permutation(np.flatnonzero(labels == c)) for c in range(10)]
    return np.stack([r[: min(map(len, rows))] for r in rows])


def main(folder: Path) -> None:
    rng = np.random.default_rng(20240613)
    train_images = read_idx(folder / "train-images-idx3-ubyte.gz", 16, (60_000, 28, 28))
    train_labels = read_idx(folder / "train-labels-idx1-ubyte.gz", 8, (60_000,))
    test_images = read_idx(folder / "t10k-images-idx3-ubyte.gz", 16, (10_000, 28, 28))
    test_labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz", 8, (10_000,))

    train = interleaved(train_labels, rng)
    pool, val = train[:, :POOL].T.ravel(), train[:, POOL : POOL + VAL].T.ravel()
    test = interleaved(test_labels, rng)[:, :TEST].T.ravel()

    np.savez_compressed(
        Path(__file__).with_name("fashion_mnist.npz"),
        images=np.concatenate([train_images[pool], train_images[val], test_images[test]]),
        labels=np.concatenate([train_labels[pool], train_labels[val], test_labels[test]]),
        source_row=np.concatenate([pool, val, test]).astype(np.int32),
        split=np.repeat(np.array([0, 1, 2], np.uint8), [len(pool), len(val), len(test)]),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
