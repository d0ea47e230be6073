"""Whatever lies in a folder of images: each file is read, or counted and named; pixels come as they are meant."""

import io
import os
import re
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from palkit.cli import main
from palkit.data import IMAGE_SUFFIXES, ImagePool, load_dataset, read_image
from palkit.data.decoding import explain, without_metadata
from palkit.data.folders import DEBRIS, list_folder
from palkit.errors import DataError, DataNotice

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore::palkit.errors.DataNotice"),
    pytest.mark.filterwarnings(r"ignore:::PIL\."),
]


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, seed: int = 0) -> Path:
    """A small noisy image in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise(16, 16, seed))
    image.save(path, Image.registered_extensions()[path.suffix.lower()])
    return path


def two_classes(folder: Path, each: int = 6) -> Path:
    for place in range(2 * each):
        write(folder / ("stroma", "tumour")[place % 2] / f"{place}.png", place)
    return folder


def test_every_suffix_that_the_decoder_writes_is_read(tmp_path: Path) -> None:
    """Those that Pillow can both write and read, whatever their names: nobody keeps a list of them here."""
    Image.init()
    suffixes = [s for s, name in Image.registered_extensions().items() if name in Image.SAVE and s in IMAGE_SUFFIXES]
    written = []
    for suffix in suffixes:
        for number, name in enumerate((f"x{suffix}", f"Y{suffix.upper()}")):
            path = tmp_path / ("a", "b")[number] / name
            path.parent.mkdir(exist_ok=True)
            image = Image.fromarray(noise(32, 32, number))
            mode = {".xbm": "1", ".msp": "1", ".pbm": "1", ".pfm": "F"}.get(suffix, "RGB")
            try:
                image.convert(mode).save(path)
            except (OSError, ValueError, KeyError):  # the encoder is not in this build, or wants another mode
                path.unlink(missing_ok=True)
                continue
            written.append(path)
    assert len(written) > 40
    assert {".jfif", ".jpe", ".jp2", ".avif", ".webp", ".tif"} <= {path.suffix for path in written}
    pool = load_dataset(str(tmp_path), unlabelled=True)
    assert sorted(pool.ids) == sorted(str(path.relative_to(tmp_path)) for path in written)
    assert len(pool.images.decode(np.arange(len(pool)), 16)) == len(written)


def test_what_no_decoder_knows_is_counted_and_named(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "s")
    for number in range(3):
        (folder / "tumour" / f"{number}.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "tumour" / "IMG0001").write_bytes((folder / "tumour" / "1.png").read_bytes())
    (folder / "stroma" / "x.heic").write_bytes(b"heic")
    with pytest.warns(DataNotice, match=r"5 files are left out .*3 \.dcm.*PNG inside: rename.*PNG or TIFF") as said:
        pool = load_dataset(str(folder))
    assert len(pool) == 12
    assert [str(one.message) for one in said] == list(pool.notes)
    assert ".heic" in IMAGE_SUFFIXES or "pip install pillow-heif" in pool.notes[0]


def test_only_unknown_files_are_an_error_that_names_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scan.dcm").write_bytes(b"DICM")
    with pytest.raises(DataError, match=r"no image where one is expected .*2 \.dcm.*convert them to PNG"):
        load_dataset(str(tmp_path))


def test_images_at_any_depth_belong_to_their_class(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "s")
    for number in range(4):
        write(folder / "tumour" / "p1" / "slide 2" / f"{number}.png", 50 + number)
    write(folder / "necrosis" / "p1" / "x.png", 99)
    pool = load_dataset(str(folder))
    assert pool.class_names == ("necrosis", "stroma", "tumour")
    assert Counter(pool.label_names()) == {"stroma": 6, "tumour": 10, "necrosis": 1}
    (note,) = [note for note in pool.notes if "deeper" in note]
    assert note.startswith("5 of 17 images")
    grouped = load_dataset(str(folder), group=r"p\d|\d+\.png$")
    assert len(set(grouped.split[["p1" in id_ for id_ in grouped.ids]])) == 1, "no split divides a patient"


def test_empty_classes_are_named(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "s")
    (folder / "necrosis" / "later").mkdir(parents=True)
    (folder / "@eaDir").mkdir()
    pool = load_dataset(str(folder))
    assert pool.class_names == ("stroma", "tumour")
    assert pool.notes == (f"1 folder holds no image and is no class in {folder}: necrosis.",)


@pytest.mark.parametrize("names", ["train test", "Training Testing", "train valid test", "pool test"])
def test_the_names_others_give_to_splits(tmp_path: Path, names: str) -> None:
    for name in names.split():
        two_classes(tmp_path / name, 10)
    pool = load_dataset(str(tmp_path))
    assert pool.class_names == ("stroma", "tumour")
    counts = pool.counts()
    assert (counts > 0).all(axis=None)
    assert counts["test"].sum() == 20
    assert bool([note for note in pool.notes if "validation" in note]) == ("val" not in names)


def test_splits_without_a_test_set_and_images_beside_classes_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val"):
        two_classes(tmp_path / "a" / name)
    with pytest.raises(DataError, match="some but not all of pool, val, test"):
        load_dataset(str(tmp_path / "a"))
    for name in ("train", "test"):
        two_classes(tmp_path / "b" / name)
    write(tmp_path / "b" / "test" / "x.png")
    with pytest.raises(DataError, match=r"both beside and inside its class folders \(beside: test/x\.png\)"):
        load_dataset(str(tmp_path / "b"))


def test_debris_never_counts_as_images(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "s")
    for place, name in enumerate(sorted(DEBRIS - {"icon\r"})):
        write(folder / "tumour" / name.upper() / "deeper" / "x.png", place)
        write(folder / name / "y.JPG", place)
    for name in ("._1.png", "~$2.png", "SYNOFILE_THUMB_M.png"):
        write(folder / "tumour" / name)
    for unlabelled in (False, True):
        pool = load_dataset(str(folder), unlabelled=unlabelled)
        assert len(pool) == 12
        assert pool.notes == ()


def test_hidden_images_broken_links_and_loops_are_named(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "s")
    write(folder / "tumour" / ".secret.png")
    write(folder / ".old" / "x.png")
    (folder / "tumour" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "stroma" / "pipe.png")
    (folder / "tumour" / "self").symlink_to(folder)
    pool = load_dataset(str(folder))
    assert len(pool) == 12
    said = " ".join(pool.notes)
    assert re.search(r"2 files are left out \(hidden\)", said)
    assert re.search(r"2 files are left out \(links to nothing, or no regular files\)", said)
    assert re.search(r"1 file is left out \(links to a folder that holds them\)", said)


def test_a_folder_behind_two_links_is_read_twice(tmp_path: Path) -> None:
    real = two_classes(tmp_path / "real")
    for name in ("a", "b"):
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / "s" / name).symlink_to(real / "tumour")
    assert len(load_dataset(str(tmp_path / "s"))) == 12


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, scandir = two_classes(tmp_path / "real"), os.scandir

    def refuse(path: Path) -> object:  # as the system does for everybody but root
        if Path(path).name == "stroma":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"stroma cannot be opened \(Permission denied\)\. Make it readable"):
        load_dataset(str(real))


def test_a_tree_of_odd_files_is_accounted_for(tmp_path: Path) -> None:
    """At least 500 files of many kinds: every one is an image of the pool, or left out with a reason, or debris."""
    rng = np.random.default_rng(0)
    suffixes = [".png", ".PNG", ".jpg", ".jfif", ".avif", ".gif", ".tif", ".webp", ".bmp", ".jp2", ".pgm"]
    others = [".dcm", ".svs", ".txt", "", ".png~", ".jpg.part", ".nii.gz", ".heic_", ".pdf", ".zip"]
    places = ["a", "b", "a/deep", "b/p 1/s-2", "c/Ünï", ".hidden", "a/.cache", "@eaDir/a", "b/.ipynb_checkpoints", "d"]
    written: dict[str, str] = {}
    for number in range(600):
        place, kind = places[rng.integers(len(places))], rng.integers(4)
        suffix = suffixes[rng.integers(len(suffixes))] if kind < 2 else others[rng.integers(len(others))]
        name = f"{('', '.', '._', '')[rng.integers(4)]}{number}{suffix}"
        path = tmp_path / place / name
        if kind < 2:
            write(path, number)
        elif kind == 2:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.bytes(50))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path = path.with_name(f"link-{number}.png")
            path.symlink_to(tmp_path / ("nowhere" if number % 2 else "a"))
        debris = "@eaDir" in place or ".ipynb" in place or path.name.startswith("._")
        hidden = place.startswith(".") or "/." in place or path.name.startswith(".")
        image = kind < 2
        written[str(path.relative_to(tmp_path))] = (
            "debris" if debris else "left out" if hidden and image else "nothing" if hidden else
            "image" if image else "left out" if kind == 2 or number % 2 else "folder"
        )  # fmt: skip
    found = list_folder(tmp_path)
    images, left = {str(path) for path in found.images}, {str(path) for path, _ in found.left_out}
    expected = {state: {name for name, one in written.items() if one == state} for state in set(written.values())}
    assert len(written) >= 500
    assert images & set(written) == expected["image"]
    assert expected["left out"] <= left
    assert not (images | left) & expected["debris"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)
        pool = load_dataset(str(tmp_path), unlabelled=True)
    assert set(pool.ids) == images
    counts = [re.match(r"([\d,]+) files? (?:is|are) left out", note) for note in pool.notes]
    assert sum(int(one[1].replace(",", "")) for one in counts if one) == len(found.left_out)


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data) if checksum is None else checksum)
    )


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize("kind", b"tEXt zTXt iTXt iCCP pHYs gAMA cHRM sRGB tIME eXIf acTL fcTL hIST".split())
def test_rubbish_in_a_chunk_of_metadata_hides_no_png(kind: bytes) -> None:
    buffer, pixels = io.BytesIO(), noise(20, 30, 1)
    Image.fromarray(pixels).save(buffer, "PNG")
    png = buffer.getvalue()
    bomb = b"k\0\0" + zlib.compress(bytes(2**21))
    for data in (b"", b"x", bytes(range(40)), bomb):
        bad = chunk(kind, data)
        assert np.array_equal(np.asarray(read_image(io.BytesIO(png[:33] + bad + png[33:]))), pixels)
    bad = chunk(kind, b"key\0val", checksum=1)
    assert np.array_equal(np.asarray(read_image(io.BytesIO(png[:33] + bad + png[33:]))), pixels)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        read_image(io.BytesIO(png[:33] + bad + png[33 : len(png) // 2]))


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
def test_rubbish_in_a_segment_of_metadata_hides_no_jpeg(marker: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(20, 30, 1)).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    plain = np.asarray(read_image(io.BytesIO(jpeg)))
    for data in (b"", b"x", b"JFIF\0", b"Exif\0\0", b"Exif\0\0rubbish", b"ICC_PROFILE\0", b"Adobe", b"MPF\0rubbish",
                 b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\4abcd"):  # fmt: skip
        assert np.array_equal(np.asarray(read_image(io.BytesIO(jpeg[:2] + segment(marker, data) + jpeg[2:]))), plain)
    with pytest.raises(OSError, match=r"(?i)truncated"):
        read_image(io.BytesIO(jpeg[: len(jpeg) // 2]))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(without_metadata(jpeg)))), plain)


def test_rubbish_in_the_tags_of_a_tiff_hides_no_pixels() -> None:
    buffer, pixels = io.BytesIO(), noise(20, 30, 1)
    Image.fromarray(pixels).save(buffer, "TIFF")
    tiff = buffer.getvalue()
    at = struct.unpack("<I", tiff[4:8])[0]
    number = struct.unpack("<H", tiff[at : at + 2])[0]
    entries = [tiff[at + 2 + 12 * i :][:12] for i in range(number)]
    for tag in (270, 274, 305, 306, 700, 34665, 34675):
        for kind, value in ((2, b"abcd"), (5, b"\xff\xff\xff\x7f"), (12, b"\xff\xff\xff\xff"), (99, b"abcd")):
            other = [entry for entry in entries if struct.unpack("<H", entry[:2])[0] != tag]
            other.append(struct.pack("<HHI", tag, kind, 7 if kind == 5 else 1) + value)
            other.sort(key=lambda entry: struct.unpack("<H", entry[:2])[0])
            changed = (
                tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + struct.pack("<H", len(other)) + b"".join(other)
            )
            assert np.array_equal(np.asarray(read_image(io.BytesIO(changed + bytes(4)))), pixels), (tag, kind)


def deep_png(values: np.ndarray, colour: int) -> bytes:
    """16 bits a channel; Pillow writes grey only."""
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def deep_files(folder: Path, bits: int) -> dict[str, np.ndarray]:
    """Files with values of so many bits in 16, and what they hold."""
    rng = np.random.default_rng(bits)
    grey = rng.integers(0, 2**bits, (40, 50)).astype(np.uint16)
    colour = rng.integers(0, 2**bits, (40, 50, 3)).astype(np.uint16)
    opaque = np.full((40, 50, 1), 65535, np.uint16)
    files: dict[str, np.ndarray] = {}
    folder.mkdir(exist_ok=True)
    Image.fromarray(grey).save(folder / "g.png")
    Image.fromarray(grey).save(folder / "g.tif", compression="tiff_lzw")
    (folder / "c.png").write_bytes(deep_png(colour, 2))
    (folder / "ca.png").write_bytes(deep_png(np.concatenate([colour, opaque], 2), 6))
    (folder / "ga.png").write_bytes(deep_png(np.concatenate([grey[..., None], opaque], 2), 4))
    files |= {"g.png": grey, "g.tif": grey, "c.png": colour, "ca.png": colour, "ga.png": grey}
    for order in "<>":
        for name, options in {"plain": {}, "zip": {"compression": "zlib", "predictor": True}}.items():
            tifffile.imwrite(folder / f"{name}{order}.tif", colour, byteorder=order, photometric="rgb", **options)
            files[f"{name}{order}.tif"] = colour
    planes = np.moveaxis(colour, 2, 0)
    tifffile.imwrite(folder / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    return files | {"planes.tif": colour}


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_values_of_a_few_bits_in_sixteen_keep_their_levels(tmp_path: Path, bits: int) -> None:
    for name, values in deep_files(tmp_path, bits).items():
        top = 2**bits - 1
        known = np.asarray(read_image(tmp_path / name, (0, top))).astype(float)
        exact = values if values.ndim == 3 else values[..., None]
        assert np.abs(known - exact * (255 / top)).max() <= 0.5 + 1e-9, name
        assert len(np.unique(np.asarray(read_image(tmp_path / name)))) > 240, name


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int32, np.int16])
def test_other_kinds_of_values_and_hot_pixels(tmp_path: Path, kind: type) -> None:
    values = np.random.default_rng(0).random((64, 64)) * 1000
    values[0, 0] = 30_000
    tifffile.imwrite(tmp_path / "x.tif", values.astype(kind))
    found = np.asarray(read_image(tmp_path / "x.tif"))
    assert len(np.unique(found)) > 200, "one hot pixel does not make the rest black"
    assert found[0, 0].tolist() == [255] * 3


def deep_set(folder: Path, bits: int = 12) -> ImagePool:
    """Two classes of 16-bit images that differ in brightness alone, and one with eight bits."""
    for place in range(12):
        low = (200, 1500)[place % 2]
        values = np.random.default_rng(place).integers(low, low + 2500, (32, 32)) * 2**bits // 4096
        path = folder / ("dim", "bright")[place % 2] / f"{place}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint16)).save(path)
    write(folder / "dim" / "plain.png")
    return load_dataset(str(folder))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_data_set_is_scaled_by_its_own_range_as_a_whole(tmp_path: Path, bits: int) -> None:
    pool = deep_set(tmp_path / "s", bits)
    images = pool.images.decode(np.arange(len(pool)), 32).astype(float)
    dark, bright = (images[pool.label_names() == name] for name in ("dim", "bright"))
    assert len(np.unique(images)) > 240
    assert dark.mean() + 50 < bright.mean(), "images stay comparable"
    (note,) = pool.notes
    assert re.match(r"12 of 13 images have 16-bit values\. Their range in this data set, \d+.* to [\d,]+", note)
    kept = pool.images.take(np.flatnonzero(pool.label_names() == "dim"))
    assert np.array_equal(kept.decode(np.arange(len(kept)), 32), images[pool.label_names() == "dim"])


def test_the_range_is_recorded_in_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = deep_set(tmp_path / "s")
    assert main(["manifest", str(tmp_path / "s"), str(tmp_path / "all.csv")]) == 0
    assert "note: 12 of 13 images have 16-bit values" in capsys.readouterr().err
    header, *lines = (tmp_path / "all.csv").read_text().splitlines()
    assert header == "path,label,split,group,low,high,image_id"
    (tmp_path / "dim.csv").write_text("\n".join([header, *(line for line in lines if ",dim," in line)]))
    part = load_dataset(str(tmp_path / "all.csv"))
    assert part.images.checksum() == pool.images.checksum()
    with pytest.raises(DataError, match="has 1 class"):
        load_dataset(str(tmp_path / "dim.csv"))
    bare = "\n".join(",".join(line.split(",")[:2]) for line in [header, *lines])
    (tmp_path / "all.csv").write_text(
        bare.replace("path,label", "path,label,low,high").replace(",dim", ",dim,5,3").replace(",bright", ",bright,,")
    )
    with pytest.raises(DataError, match=r"line \d+: low '5' and high '3' are no range"):
        load_dataset(str(tmp_path / "all.csv"))


def test_a_manifest_of_decimal_values_is_the_folder_it_was_written_for(tmp_path: Path) -> None:
    """To the last bit of their range, which is part of the checksum."""
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "s" / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = rng.uniform(-1, 1, (8, 8)).astype(np.float32)
        values[0, 0] = -1.2459110021591187  # pandas reads another number
        Image.fromarray(values).save(path)
    with pytest.warns(DataNotice):
        pool = load_dataset(str(tmp_path / "s"))
    assert main(["manifest", str(tmp_path / "s"), str(tmp_path / "all.csv")]) == 0
    with pytest.warns(DataNotice):
        assert load_dataset(str(tmp_path / "all.csv")).images.checksum() == pool.images.checksum()


def test_several_pages_are_counted_and_named(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "s")
    pages = [Image.fromarray(noise(16, 16, seed)) for seed in range(3)]
    pages[0].save(folder / "tumour" / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(folder / "tumour" / "film.gif", save_all=True, append_images=pages[1:])
    pool = load_dataset(str(folder))
    (note,) = pool.notes
    assert re.match(r"2 of 14 files hold several pages or frames, of which the first is used; .*film\.gif \(3\)", note)


def test_more_channels_than_colours_say_so(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "x.tif", np.zeros((20, 30, 13), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(ValueError, match="20 x 30 x 13 values, and an image has 1 to 4 channels"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.int8])
@pytest.mark.parametrize("white", [False, True])
def test_grey_rises_with_the_values(tmp_path: Path, kind: type, white: bool) -> None:
    """Whatever their type and sign, and also where the file says that the lowest are white."""
    limits = (0.0, 1.0) if kind == np.float32 else (np.iinfo(kind).min, np.iinfo(kind).max)
    values = np.linspace(*limits, 1024).astype(kind).reshape(32, 32)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite" if white else "minisblack")
    grey = np.asarray(read_image(tmp_path / "x.tif"))[..., 0].reshape(-1).astype(int)
    steps = np.diff(grey)
    assert (steps <= 0).all() if white else (steps >= 0).all()
    assert len(np.unique(grey)) > 200


def test_three_colours_in_sixteen_bits_are_read() -> None:
    """A BMP of 5, 6 and 5 bits, which are no deep values."""
    pixels = struct.pack("<4H", 0xF800, 0x07E0, 0x001F, 0xFFFF)
    header = struct.pack("<IiiHHIIiiII", 40, 2, -2, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    start = struct.pack("<2sIHHI", b"BM", 66 + len(pixels), 0, 0, 66)
    found = np.asarray(read_image(io.BytesIO(start + header + masks + pixels)))
    assert found.reshape(-1, 3).tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


def test_complex_numbers_are_no_image_and_hide_no_other(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "s")
    tifffile.imwrite(folder / "tumour" / "k.tif", np.ones((32, 32), np.complex64))
    pool = load_dataset(str(folder), skip_unreadable=True)
    assert len(pool) == 12
    assert "complex64" in pool.notes[-1]


def test_writing_burned_into_one_image_leaves_the_others_their_levels(tmp_path: Path) -> None:
    for number in range(20):
        values = np.random.default_rng(number).integers(0, 4096, (40, 40)).astype(np.uint16)
        values[:3, :3] = 65535 if number == 7 else values[:3, :3]
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values).save(path)
    pool = load_dataset(str(tmp_path))
    for image in pool.images.decode(np.arange(20), 40):
        assert len(np.unique(image)) > 100


def test_places_without_data_are_black_and_no_part_of_the_range(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((40, 40)).astype(np.float32)
    values[:10] = -3.4e38
    tifffile.imwrite(tmp_path / "x.tif", values)
    found = np.asarray(read_image(tmp_path / "x.tif"))
    assert (found[:10] == 0).all()
    assert len(np.unique(found[10:])) > 200


def test_an_error_shows_no_address_in_memory() -> None:
    with pytest.raises(OSError, match="cannot identify") as caught:
        Image.open(io.BytesIO(b"no image"))
    assert "object at 0x" in str(caught.value)
    assert explain(caught.value) == "cannot identify image file"


def test_signed_bytes_of_a_data_set_have_one_range(tmp_path: Path) -> None:
    for number, name in enumerate(("dim", "bright") * 4):
        values = np.random.default_rng(number).integers(-100, 0, (32, 32)) + 100 * (name == "bright")
        (tmp_path / name).mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / name / f"{number}.tif", values.astype(np.int8))
    pool = load_dataset(str(tmp_path))
    images = pool.images.decode(np.arange(8), 32)
    assert images[pool.label_names() == "dim"].mean() + 80 < images[pool.label_names() == "bright"].mean()
    assert re.match(r"8 of 8 images have integer values", pool.notes[0])
