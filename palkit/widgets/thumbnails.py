"""Thumbnails: images of any size as small squares, many of them in one file."""

import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from palkit.data.pool import Decoder
from palkit.progress import Progress, silent

COLUMNS = 8  # of a sheet
# Between two chunks a request can be cancelled. Large ones would leave threads without work.
CHUNK = 6
KEPT = 1000  # thumbnails in memory: 15 MB at 72 pixels
PADDING = 255
# A page of 48 photographs takes 590 kB and 60 ms as PNG, 85 kB and 26 ms or more as WebP, 160 kB and 5 ms as JPEG;
# 200 of them 2.5 MB and 400 ms, 365 kB and 140 ms, 650 kB and 11 ms (72 pixels, 2 cores). The kernel is beside the
# browser more often than far away, so milliseconds decide.
# Subsampled colours would run into the neighbour.
JPEG: dict[str, Any] = {"format": "JPEG", "quality": 90, "subsampling": 0}
# A page of photographs in true colours exceeds half a megabyte, with 128 colours 150 kB.
PICTURE_COLOURS = 128
PICTURE_DPI = 100


def fit_square(images: np.ndarray, side: int) -> np.ndarray:
    """Images as squares: scaled until the long side fits, and padded with white; nothing is cut off.

    Where they are smaller than that, pixels are repeated, so that a 28 x 28 image stays crisp; otherwise averaged.

    Args:
        images: (n, H, W, 3) uint8.
        side: of the squares, in pixels.

    Returns:
        (n, side, side, 3) uint8.
    """
    height, width = images.shape[1:3]
    scale = side / max(height, width)
    new = [max(1, round(length * scale)) for length in (height, width)]
    if scale >= 1:
        y, x = (np.arange(n) * old // n for n, old in zip(new, (height, width), strict=True))
        scaled = images[:, y[:, None], x]
    else:
        size = (new[1], new[0])
        scaled = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])
    square = np.full((len(images), side, side, 3), PADDING, dtype=np.uint8)
    top, left = ((side - length) // 2 for length in new)
    square[:, top : top + new[0], left : left + new[1]] = scaled
    return square


class Thumbnails:
    """Thumbnails of a decoder's images, of which the last ones made are kept.

    Args:
        images: what is decoded.
        side: of a thumbnail, in pixels.
    """

    def __init__(self, images: Decoder, side: int) -> None:
        self.images, self.side = images, side
        self._kept: dict[int, np.ndarray] = {}

    def take(self, rows: np.ndarray, progress: Progress = silent) -> np.ndarray:
        """(n, side, side, 3) uint8 thumbnails of `rows`.

        Args:
            rows: of the images.
            progress: called with ("images", done, total); what it raises stops the decoding.

        Raises:
            DataError: an image cannot be read.
        """
        wanted = rows.tolist()
        found = {row: self._kept[row] for row in wanted if row in self._kept}
        missing = [row for row in dict.fromkeys(wanted) if row not in found]
        chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
        threads = ThreadPoolExecutor(os.cpu_count())
        try:
            for chunk, squares in zip(chunks, threads.map(self._decode, chunks), strict=True):
                found.update(zip(chunk, squares, strict=True))
                progress("images", len(found), len(wanted))
        finally:
            threads.shutdown(cancel_futures=True)  # else what nobody wants any more is decoded to the end
        # What was asked for last is kept longest; a new dictionary, as another thread may read the old one.
        older = [(row, square) for row, square in self._kept.items() if row not in found]
        self._kept = dict([*older, *found.items()][-max(KEPT, len(found)) :])
        return np.stack([found[row] for row in wanted]) if wanted else np.empty((0, self.side, self.side, 3), np.uint8)

    def _decode(self, rows: list[int]) -> np.ndarray:
        return fit_square(self.images.decode(np.array(rows), self.side), self.side)


def sheet(thumbnails: np.ndarray) -> bytes:
    """One JPEG with all thumbnails, row by row in `COLUMNS` columns.

    Args:
        thumbnails: (n, side, side, 3) uint8, n >= 1.
    """
    count, side = thumbnails.shape[:2]
    rows = ceil(count / COLUMNS)
    cells = np.full((rows * COLUMNS, side, side, 3), PADDING, dtype=np.uint8)
    cells[:count] = thumbnails
    whole = cells.reshape(rows, COLUMNS, side, side, 3).swapaxes(1, 2).reshape(rows * side, COLUMNS * side, 3)
    buffer = BytesIO()
    Image.fromarray(whole).save(buffer, **JPEG)
    return buffer.getvalue()


def png_bytes(image: np.ndarray) -> bytes:
    """An image (side, side, 3) as a PNG that is made quickly."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def picture_bytes(figure: Figure) -> bytes:
    """A figure as a small PNG: the same figure always gives the same bytes."""
    drawn, stored = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=PICTURE_DPI)
    few = Image.open(drawn).convert("RGB").quantize(PICTURE_COLOURS, dither=Image.Dither.NONE)
    few.save(stored, "PNG", optimize=True)
    return stored.getvalue()
