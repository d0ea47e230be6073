"""Images in files: decoding whatever format they come in, their checksums, and those that cannot be read."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from palkit.datasets.hashes import file_hashes
from palkit.datasets.pool import pixel_hash
from palkit.errors import DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"}
BLOCK = 2**20  # pixels of grey that are scaled at a time
LONGEST = 100  # times its short side: what is further out is not looked at
# Of what `read_image` makes of a file: raise it when that changes, and whatever was computed from files is made anew.
DECODING = 2


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
        total = sha256(f"decoding {DECODING}".encode())
        for digest in self.checksums():
            total.update(bytes.fromhex(digest))
        return total.hexdigest()

    def checksums(self) -> list[str]:
        return file_hashes(self.paths)


@dataclass(frozen=True)
class StoredImages:
    """Rows of an (N, H, W) grey or (N, H, W, 3) RGB uint8 `.npy` file, memory-mapped: the file may exceed memory."""

    path: Path
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
        images = np.load(self.path, mmap_mode="r")[self.rows[rows]]
        return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)

    def take(self, rows: np.ndarray) -> "StoredImages":
        return StoredImages(self.path, self.rows[rows])

    def checksum(self) -> str:
        return sha256(file_hashes([self.path])[0].encode() + self.rows.astype(np.int64).tobytes()).hexdigest()

    def checksums(self) -> list[str]:
        images = np.load(self.path, mmap_mode="r")
        return [pixel_hash(images[row]) for row in self.rows]


def read_image(source: Path | BytesIO) -> Image.Image:
    """An image file as RGB, turned as its EXIF says; of several frames or pages, the first.

    Transparency is laid on white. 16-bit grey is scaled by the range of the type, so that images of a set stay
    comparable; 32-bit and floating-point grey has no such range and is scaled from its own least to its own
    largest finite value.

    Raises:
        Exception: whatever PIL raises; see `explain`.
    """
    with Image.open(source) as file:
        if file.format == "EPS":
            raise ValueError("it is a PostScript program, which is not executed")
        # A TIFF turns itself when it is loaded, and its tag goes: it must not be turned again by a copy of the tag.
        file.load()
        return _as_rgb(ImageOps.exif_transpose(file))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_grey(np.asarray(image), 0.0, 65_535.0)
    if image.mode in {"I", "F"}:
        values = np.asarray(image)
        finite = values[np.isfinite(values)]
        return _from_grey(values, *((float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_grey(values: np.ndarray, low: float, high: float) -> Image.Image:
    grey = np.zeros(values.shape, np.uint8)
    rows = max(1, BLOCK // values.shape[1])  # all at once they would take eight times the image
    for start in range(0, len(values) if high > low else 0, rows):
        block = np.nan_to_num(values[start : start + rows].astype(np.float64), nan=low, posinf=high, neginf=low)
        grey[start : start + rows] = ((block - low) * (255 / (high - low))).round().astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def explain(error: Exception) -> str:
    """Why an image could not be read, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _decode_file(path: Path, size: int) -> np.ndarray:
    try:
        image = read_image(path)
    except Exception as error:  # a format's parser may raise anything when it stumbles
        raise DataError(
            f"{path} cannot be read as an image ({explain(error)}). Replace or remove it. "
            "`python -m palkit manifest SOURCE OUT.csv` lists all such files, and with --skip-unreadable writes a "
            'manifest without them; in Python, load_dataset("SOURCE", skip_unreadable=True) leaves them out.'
        ) from error
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


def unreadable(paths: Sequence[Path]) -> pd.DataFrame:
    """Every file that cannot be read, found by decoding all of them.

    Returns:
        Columns row (into `paths`), path and reason.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        reasons = list(threads.map(_reason, paths))
    table = pd.DataFrame({"row": np.arange(len(paths)), "path": [str(path) for path in paths], "reason": reasons})
    return table[table["reason"] != ""].reset_index(drop=True)


def _reason(path: Path) -> str:
    try:
        read_image(path)
    except Exception as error:  # as in `_decode_file`
        return explain(error)
    return ""
