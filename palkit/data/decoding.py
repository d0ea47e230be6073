"""Image files as pixels: whatever format they come in, whatever is wrong with their metadata, however deep they are."""

import importlib
import logging
import re
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

# HEIC and HEIF, where a decoder is installed: Pillow has none of its own.
for _plugin in ("pillow_heif", "pi_heif"):
    with suppress(ImportError):
        importlib.import_module(_plugin).register_heif_opener()
        break
Image.init()
# Pillow knows these too, but gives no pixels of them, or would have to execute a program for that.
NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN and name not in NO_PIXELS
) | {".mpo"}
# What is there more than once in these is one picture: previews of a photograph, layers, sizes of an icon.
ONE_PICTURE = {"MPO", "PSD", "ICNS", "ICO", "CUR"}
PNG, JPEG, TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", (b"II*\0", b"MM\0*")
PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}  # chunks without which there are none
ADOBE = 14  # bytes of the segment that says which colours a JPEG file has, with its length
COLOURS = {"RGB", "RGBA", "LA"}
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339  # tags of TIFF
WHITE_IS_ZERO, SIGNED, SIGNED_BYTES = 0, 2, "signed bytes"
BYTE_ORDERS = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # the other one of each
# Share of an image's pixels beyond its range on each side: one hot pixel must not make the rest black.
OUTERMOST = 0.001
NO_DATA = 1e30  # what is as far from 0 as that marks places that were not measured
BLOCK = 2**20  # values that are scaled at a time: all at once they would take eight times the image
# Of what metadata hold that nobody needs: remarks about each file would hide what matters.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # beyond twice that size it is an error
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Header:
    """Properties of an image file that are known without all of its pixels.

    Attributes:
        frames: pages or frames; 1 if it cannot be opened, 0 if nobody has looked.
        kind: of values that are not unsigned bytes: "16-bit", "integer" or "floating-point"; "" if there are none.
        low, high: range of such values, see `range_of`; NaN if there are none.
    """

    frames: int = 1
    kind: str = ""
    low: float = np.nan
    high: float = np.nan

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Range of values that is scaled to 8 bits; None if the values have 8 bits."""
        return (self.low, self.high) if self.kind else None


@dataclass(frozen=True)
class _Decoded:
    """An image as its file holds it: with 8 bits a channel, and in `deep` (H, W[, 3]) if the values have more."""

    image: Image.Image
    deep: np.ndarray | None
    frames: int
    orientation: Any = 1


def read_image(source: Path | BytesIO, value_range: tuple[float, float] | None = None) -> Image.Image:
    """An image file as RGB, turned as its EXIF says; of several frames or pages, the first.

    Transparency is laid on white. Values of more than 8 bits are scaled from a range to 0 to 255 and cut there.

    Args:
        source: path, or the content of a file.
        value_range: that is scaled; None for the image's own, see `range_of`.

    Raises:
        Exception: whatever a decoder raises; see `explain`.
    """
    return _upright(_decoded(source), value_range)


def _upright(found: "_Decoded", value_range: tuple[float, float] | None) -> Image.Image:
    """An image as `read_image` returns it."""
    image = found.image
    if found.deep is not None:
        low, high = range_of(found.deep) if value_range is None else value_range
        image = Image.fromarray(_scaled(found.deep, low, high)).convert("RGB")
        if found.image.mode in COLOURS and found.image.has_transparency_data:
            image.putalpha(found.image.convert("RGBA").getchannel("A"))
    rgb = _as_rgb(image)
    rgb.info.clear()
    rgb.getexif()[ExifTags.Base.Orientation] = found.orientation
    ImageOps.exif_transpose(rgb, in_place=True)  # a copy of the largest images would need half a gigabyte more
    return rgb


def inspect(source: Path | BytesIO) -> Header:
    """Properties of an image file, before it is decoded with others; pixels are read only if they are deep."""
    with suppress(Exception), Image.open(source) as file:  # the other decoders may be able to open it
        if not _rawmode(file):
            return Header(_frames(file))
    with suppress(Exception):  # if no decoder is, `read_image` says why
        return _header(_decoded(source))
    return Header()


def inspect_pixels(path: Path, source: Path | BytesIO) -> tuple[Header, str]:
    """Properties of an image file and the reason why it cannot be read, "" if it can: one decoding for both.

    Args:
        path: of the file.
        source: likewise, or its content.
    """
    with suppress(Exception):
        found = _by_pillow(source)
        header = _header(found)
        _upright(found, header.value_range)
        return header, ""
    return inspect(source), reason(path)


def reason(path: Path) -> str:
    """Reason why an image file cannot be read, "" if it can: it is decoded."""
    try:
        read_image(path)
    except Exception as error:  # a format's parser may raise anything when it stumbles
        return explain(error)
    return ""


def format_of(source: Path) -> str:
    """Format of an image file by its content, whatever its name; "" if it is none that is decoded."""
    with suppress(Exception), Image.open(source) as file:
        return "" if file.format in NO_PIXELS else file.format or ""
    return ""


def explain(error: Exception) -> str:
    """Reason why an image could not be read, in one line."""
    # Pillow names an object of ours by its address in memory, which says nothing.
    return " ".join(re.sub(r"<[\w.]+ object at 0x[0-9a-fA-F]+>", "", str(error)).split()) or type(error).__name__


def range_of(values: np.ndarray) -> tuple[float, float]:
    """Range of an image's values without the outermost 0.1 % on each side, or with them if nothing is left.

    What is not finite, or so large that it marks places without data, is left out.

    Args:
        values: any shape.

    Returns:
        Lowest and highest; NaN if no value is finite.
    """
    finite = values.reshape(-1)
    if values.dtype.kind == "f":
        finite = values[np.abs(values) <= min(NO_DATA, np.finfo(values.dtype).max)]
    if not finite.size:
        return np.nan, np.nan
    low = np.quantile(finite, OUTERMOST, method="higher")
    high = np.quantile(finite, 1 - OUTERMOST, method="lower")
    return (float(low), float(high)) if low < high else (float(finite.min()), float(finite.max()))


def _decoded(source: Path | BytesIO) -> _Decoded:
    """An image by Pillow; where that stumbles, once more without metadata, which pixels do not need, or by tifffile."""
    try:
        return _by_pillow(source)
    except Exception as error:
        content = source.getvalue() if isinstance(source, BytesIO) else source.read_bytes()
        bare = without_metadata(content)
        if not content.startswith(TIFF) and bare == content:
            raise
        try:
            return _by_tifffile(content) if content.startswith(TIFF) else _by_pillow(BytesIO(bare))
        except Exception as other:  # the first error says more of what is wrong
            raise (other if isinstance(other, _NoImage) else error) from None


class _NoImage(ValueError):
    """Values that are no image: it says more than the first decoder's error."""


def _by_pillow(source: Path | BytesIO) -> _Decoded:
    with Image.open(source) as file:
        if file.format == "EPS":
            raise ValueError("it is a PostScript program, which is not executed")
        raw, tiles, frames = _rawmode(file), list(file.tile), _frames(file)
        if raw == SIGNED_BYTES:
            raise ValueError("its values are signed bytes")  # which Pillow takes for unsigned ones
        # A TIFF turns itself when it is loaded, and its tag goes: it must not be turned again by a copy of the tag.
        file.load()
        deep = None
        if raw:
            deep = _sixteen_bits(source, file, tiles, raw) if file.mode in COLOURS else np.asarray(file)
            if file.format == "TIFF":
                unsigned = file.mode == "I" and _tag(file, BITS_PER_SAMPLE) == 32 and _tag(file, SAMPLE_FORMAT) == 1
                deep = deep.view(np.uint32) if unsigned else deep
                deep = _inverted(deep) if _tag(file, PHOTOMETRIC) == WHITE_IS_ZERO else deep
        orientation: Any = 1
        with suppress(Exception):  # metadata that cannot be read say nothing
            orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
            hash(orientation)
        return _Decoded(file, deep, frames, orientation)


def _rawmode(file: Image.Image) -> str:
    """Pillow's name of the values of more than 8 bits, or with a sign, that a file holds; "" if it holds none."""
    if file.format == "TIFF" and _tag(file, BITS_PER_SAMPLE) == 8 and _tag(file, SAMPLE_FORMAT) == SIGNED:
        return SIGNED_BYTES
    if file.mode.startswith("I;16") or file.mode in ("I", "F"):
        return file.mode
    if file.mode not in COLOURS:
        return ""
    for tile in getattr(file, "tile", []):
        raw = tile[3] if isinstance(tile[3], str) else next((a for a in tile[3] or () if isinstance(a, str)), "")
        if raw.endswith((";16B", ";16L", ";16N")):  # ";16" alone is three colours in 16 bits
            return raw
    return "planes" if file.format == "TIFF" and _tag(file, BITS_PER_SAMPLE) > 8 else ""


def _tag(file: Image.Image, tag: int) -> int:
    """A number that a TIFF states, the first if it states several; 1 if none, as it is by default."""
    value = file.tag_v2.get(tag, 1)  # type: ignore[attr-defined]
    return int(value[0] if isinstance(value, tuple) else value)


def _inverted(values: np.ndarray) -> np.ndarray:
    """Values of which the lowest are white, so that the highest are."""
    return -values if values.dtype.kind == "f" else ~values


def _sixteen_bits(source: Path | BytesIO, file: Image.Image, tiles: list[Any], raw: str) -> np.ndarray:
    """(H, W[, 3]) uint16 colours. Pillow keeps the upper byte of each, and in the other byte order the lower.

    Raises:
        Exception: it knows no other order, or would take the lower bytes of planes for the upper ones.
    """
    grey = raw == "LA;16B"  # the bytes of grey and transparency are those of four channels
    other = "RGBA" if grey else f"{raw[:-1]}{BYTE_ORDERS[raw[-1]]}"
    with Image.open(source) as again:
        again.tile = [  # type: ignore[attr-defined]
            tile._replace(args=other if tile[3] == raw else tuple(other if part == raw else part for part in tile[3]))
            for tile in tiles
        ]
        again.load()
        lower = np.asarray(again)
    upper = np.asarray(file)
    if grey:
        return upper[..., 0].astype(np.uint16) << 8 | lower[..., 1]
    return upper[..., :3].astype(np.uint16) << 8 | lower[..., :3]


def without_metadata(content: bytes) -> bytes:
    """A PNG or JPEG file with what its pixels need and nothing else; any other file as it is."""
    if content.startswith(PNG):
        kept, at = [PNG], len(PNG)
        while at < len(content):
            end = at + 12 + int.from_bytes(content[at : at + 4], "big")
            if content[at + 4 : at + 8] in PNG_PIXELS:
                kept.append(content[at:end])
            at = end
        return b"".join(kept)
    if content.startswith(JPEG):
        kept, at = [JPEG], len(JPEG)
        while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
            marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
            if not metadata or (marker == 0xEE and end - at - 2 == ADOBE):
                kept.append(content[at:end])
            at = end
        return b"".join([*kept, content[at:]])
    return content


def _by_tifffile(content: bytes) -> _Decoded:
    import tifffile

    with tifffile.TiffFile(BytesIO(content)) as file:
        page, frames = file.pages[0], len(file.pages)
        if page.size > 2 * 4 * (Image.MAX_IMAGE_PIXELS or np.inf):  # type: ignore[union-attr]
            raise ValueError("it could be a decompression bomb")
        values = page.asarray()
        values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values  # type: ignore[union-attr]
        tags = {code: tag.value for code in (PHOTOMETRIC, ORIENTATION) if (tag := page.tags.get(code))}  # type: ignore[union-attr]
    if values.dtype.kind not in "uifb":
        raise _NoImage(f"its values are {values.dtype.name} numbers, which are no grey levels")
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 2, 3, 4)):
        shape = " x ".join(map(str, values.shape))
        raise _NoImage(f"it has {shape} values, and an image has 1 to 4 channels: write three of them as RGB")
    if values.ndim == 3 and values.shape[2] < 3:
        values = values[..., 0]
    if values.dtype.kind == "b":
        values = values.astype(np.uint8) * 255
    if values.ndim == 2 and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = _inverted(values)
    turned = tags.get(ORIENTATION, 1)
    if values.dtype == np.uint8:
        return _Decoded(Image.fromarray(values), None, frames, turned)
    colours = values if values.ndim == 2 else values[..., :3]
    return _Decoded(Image.new("L", colours.shape[1::-1]), colours, frames, turned)


def _header(found: _Decoded) -> Header:
    if found.deep is None:
        return Header(found.frames)
    return Header(found.frames, _kind(found.deep), *range_of(found.deep))


def _frames(file: Image.Image) -> int:
    with suppress(Exception):
        return 1 if file.format in ONE_PICTURE else int(getattr(file, "n_frames", 1))
    return 1


def _kind(values: np.ndarray) -> str:
    if values.dtype.kind == "f":
        return "floating-point"
    return "16-bit" if values.dtype == np.uint16 else "integer"


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W[, 3]) uint8: `low` as 0, `high` as 255; black if there is no range."""
    result = np.zeros(values.shape, np.uint8)
    rows = max(1, BLOCK // (values[0].size or 1))
    for start in range(0, len(values) if high > low else 0, rows):
        block = np.nan_to_num(values[start : start + rows].astype(np.float64), nan=low, posinf=high, neginf=low)
        result[start : start + rows] = ((block.clip(low, high) - low) * (255 / (high - low))).round()
    return result
