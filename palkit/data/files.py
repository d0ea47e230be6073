"""Images in files: each decoded as it was when the data set was loaded, and those that cannot be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from palkit.data.decoding import explain, read_image, reason
from palkit.data.hashes import FileFacts, checked_hash, file_facts, file_hashes, in_threads, stamp_of
from palkit.data.pool import ArrayImages, pixel_hash
from palkit.errors import DataError

LONGEST = 100  # times its short side: what is further out is not looked at
# Of what `read_image` makes of a file: raise it when that changes, and whatever was computed from files is made anew.
DECODING = 3


@dataclass(frozen=True)
class FileImages:
    """Images in files, resized so that the short side fits and cropped at the centre when decoded.

    Attributes:
        paths: of the files.
        facts: of each, as it is when the data set is loaded: what is decoded later has to be of that content.
    """

    paths: tuple[Path, ...]
    facts: tuple[FileFacts, ...] = ()

    def __post_init__(self) -> None:
        if len(self.facts) != len(self.paths):
            object.__setattr__(self, "facts", tuple(with_one_range(file_facts(self.paths))))

    def __len__(self) -> int:
        return len(self.paths)

    def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
        return np.stack([_fitted(self.picture(row), size) for row in rows])

    def picture(self, row: int) -> Image.Image:
        """A whole image, RGB.

        Raises:
            DataError: it cannot be read, or is no longer the one that was loaded.
        """
        path, facts = self.paths[row], self.facts[row]
        try:
            content = path.read_bytes()
            if facts.sha256 == sha256(content).hexdigest():
                return read_image(BytesIO(content), facts.header.value_range)
        except Exception as error:  # a format's parser may raise anything when it stumbles
            raise DataError(
                f"{path} cannot be read as an image ({explain(error)}). Replace or remove it. "
                "`palkit manifest SOURCE OUT.csv` lists all such files, and with --skip-unreadable writes a "
                'manifest without them; in Python, load_dataset("SOURCE", skip_unreadable=True) leaves them out.'
            ) from error
        raise DataError(
            f"{path} has changed since the data set was loaded, and results would be stored for the image that it was. "
            "Start again, in a notebook from the cell that loads the data: the image that it is now will be used."
        )

    def ranged(self, ranges: np.ndarray) -> "FileImages":
        """The same images with the ranges of values (N, 2) that somebody recorded, NaN for those that stay."""
        given = zip(self.facts, ranges.tolist(), strict=True)
        return FileImages(self.paths, tuple(f if np.isnan(pair).any() else f.ranged(*pair) for f, pair in given))

    def take(self, rows: np.ndarray) -> "FileImages":
        return FileImages(tuple(self.paths[row] for row in rows), tuple(self.facts[row] for row in rows))

    def checksum(self) -> str:
        total = sha256(f"decoding {DECODING}".encode())
        for digest, facts in zip(self.checksums(), self.facts, strict=True):
            total.update(bytes.fromhex(digest))
            total.update(repr(facts.header.value_range).encode() if facts.header.kind else b"")
        return total.hexdigest()

    def checksums(self) -> list[str]:
        return [checked_hash(path, facts) for path, facts in zip(self.paths, self.facts, strict=True)]

    def is_current(self) -> bool:
        """Whether all files still are as they were when the data set was loaded."""
        pairs = list(zip(self.paths, self.facts, strict=True))
        if all(facts.settled and stamp_of(path) == facts.stamp for path, facts in pairs):
            return True
        return [facts.sha256 for facts in file_facts(self.paths)] == [facts.sha256 for facts in self.facts]


def with_one_range(facts: Sequence[FileFacts]) -> list[FileFacts]:
    """Facts in which all images of a data set with values of one kind have one range, so that they stay comparable."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in facts:
        found.setdefault(one.header.kind, []).append((one.header.low, one.header.high))
    ranges = {kind: _common_range(np.array(rows)) for kind, rows in found.items()}
    return [one.ranged(*ranges[one.header.kind]) for one in facts]


def _common_range(ranges: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of the ranges of images (N, 2), but no further out than the usual image is wide.

    Writing burned into a few images must not leave the others a handful of grey levels.
    """
    ranges = ranges[np.isfinite(ranges).all(axis=1)]
    if not len(ranges):
        return np.nan, np.nan
    low, high = np.median(ranges, axis=0)
    width = high - low if high > low else np.inf
    return float(max(ranges[:, 0].min(), low - width)), float(min(ranges[:, 1].max(), high + width))


@dataclass(frozen=True)
class StoredImages:
    """Rows of an (N, H, W) grey or (N, H, W, 3) RGB uint8 `.npy` file, memory-mapped: the file may exceed memory."""

    path: Path
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
        return ArrayImages(np.load(self.path, mmap_mode="r")).decode(self.rows[rows], size)

    def take(self, rows: np.ndarray) -> "StoredImages":
        return StoredImages(self.path, self.rows[rows])

    def checksum(self) -> str:
        return sha256(file_hashes([self.path])[0].encode() + self.rows.astype(np.int64).tobytes()).hexdigest()

    def checksums(self) -> list[str]:
        images = np.load(self.path, mmap_mode="r")
        return [pixel_hash(images[row]) for row in self.rows]


def _fitted(image: Image.Image, size: int) -> np.ndarray:
    image = _middle(image)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _middle(image: Image.Image) -> Image.Image:
    """The image without its ends if it is extremely long: scaled by its short side it would not fit into memory."""
    width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def unreadable(paths: Sequence[Path], facts: Sequence[FileFacts] = ()) -> pd.DataFrame:
    """Every file that cannot be read, found by decoding all of them.

    Args:
        paths: of the files.
        facts: of each, which say it already if the files were decoded when the data set was loaded.

    Returns:
        Columns row (into `paths`), path and reason.
    """
    known = [one.reason for one in facts if one.reason is not None]
    reasons = known if len(known) == len(paths) else in_threads(reason, paths)
    table = pd.DataFrame({"row": np.arange(len(paths)), "path": [str(path) for path in paths], "reason": reasons})
    return table[table["reason"] != ""].reset_index(drop=True)
