"""A user's own images: every format, missing labels, copies, hashes, files that cannot be read."""

import os
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_helpers import noise, write_images
from PIL import Image

from palkit.cli import main
from palkit.config import config_from_dict
from palkit.data import ArrayImages, FileImages, hashes, head, load_dataset, read_image, unreadable
from palkit.data.pool import UNLABELLED, ImagePool, usable
from palkit.errors import ConfigError, DataError
from palkit.experiments.experiment import rounds

pytestmark = pytest.mark.usefixtures("own_cache")


def decoded(path: Path, size: int = 8) -> np.ndarray:
    return FileImages((path,)).decode(np.array([0]), size)[0]


@pytest.mark.parametrize(
    ("mode", "suffixes"),
    [
        ("1", "png tiff jpg bmp gif"),
        ("L", "png tiff jpg bmp gif webp"),
        ("RGB", "png tiff jpg bmp gif webp"),
        ("CMYK", "tiff jpg"),
    ],
)
def test_plain_formats_come_as_rgb(tmp_path: Path, mode: str, suffixes: str) -> None:
    for suffix in suffixes.split():
        path = tmp_path / f"x.{suffix}"
        image = Image.new("RGB", (9, 12), "white")
        image.paste("black", (0, 0, 9, 6))
        image.convert(mode).save(path)
        assert decoded(path).shape == (8, 8, 3)
        assert decoded(path)[:2].max() < 60, "CMYK black is not quite black"
        assert decoded(path)[-2:].min() > 250


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        index = image.getpixel((7, 0))
        image.putpixel((0, 0), index)
        image.save(tmp_path / "x.png", transparency=index)
        assert (decoded(tmp_path / "x.png") == 255).all(), "black as a whole, and black is transparent"
        return
    image.convert(mode).save(tmp_path / "x.png")
    assert (decoded(tmp_path / "x.png")[:, :4] == 0).all()
    assert (decoded(tmp_path / "x.png")[:, 4:] == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_by_the_range_of_the_type(tmp_path: Path, suffix: str) -> None:
    values = np.repeat(np.array([[0, 257, 32_896, 65_535]], np.uint16), 4, axis=0)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert decoded(tmp_path / f"x.{suffix}", 4)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_grey_is_scaled_by_its_own_range(tmp_path: Path, dtype: type) -> None:
    values = np.repeat(np.array([[-100, -20, 60, 100]], dtype), 4, axis=0)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    assert decoded(tmp_path / "x.tiff", 4)[0, :, 0].tolist() == [0, 102, 204, 255]
    Image.fromarray(np.full((4, 4), 7, dtype)).save(tmp_path / "flat.tiff")
    assert (decoded(tmp_path / "flat.tiff") == 0).all()


def test_not_a_number_does_not_spoil_the_rest(tmp_path: Path) -> None:
    values = np.array([[np.nan, 0, 1, np.inf]] * 4, np.float32)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    assert decoded(tmp_path / "x.tiff", 4)[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_images_are_turned_as_exif_says(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (16, 32))
    image.paste("white", (0, 0, 16, 16))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: up becomes right
    image.save(tmp_path / f"x.{suffix}", exif=exif)
    turned = np.asarray(read_image(tmp_path / f"x.{suffix}"))
    assert turned.shape == (16, 32, 3)
    assert turned[:, :14].mean() < 10
    assert turned[:, 18:].mean() > 245


@pytest.mark.parametrize("suffix", ["gif", "tiff", "png", "webp"])
def test_of_several_frames_the_first(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (decoded(tmp_path / f"x.{suffix}") == 255).all()


def test_the_short_side_fits_and_the_centre_stays(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 20))
    image.paste("white", (20, 0, 40, 20))
    image.save(tmp_path / "x.png")
    assert (decoded(tmp_path / "x.png", 20) == 255).all()


def bomb() -> bytes:
    """A PNG whose head claims a billion pixels."""
    buffer = BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 40_000, 40_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Forty images, one cut, one of text, one empty, one bomb."""
    folder = write_images(tmp_path / "pets", count=20)
    cut = folder / "cat" / "3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "cat" / "4.png").write_text("no image")
    (folder / "dog" / "5.png").write_bytes(b"")
    (folder / "dog" / "6.png").write_bytes(bomb())
    return folder


def test_an_unreadable_file_is_named_with_what_to_do(broken: Path) -> None:
    pool = load_dataset(str(broken))
    for name, reason in (
        ("cat/3.png", "truncated"),
        ("cat/4.png", "cannot identify"),
        ("dog/6.png", "decompression bomb"),
    ):
        row = np.flatnonzero(pool.ids == name)
        with pytest.raises(
            DataError, match=rf"{name} cannot be read as an image \(.*{reason}.*palkit manifest.*skip_unre"
        ):
            pool.images.decode(row, 8)


def test_all_unreadable_files_are_listed(broken: Path) -> None:
    pool = load_dataset(str(broken))
    assert isinstance(pool.images, FileImages)
    found = unreadable(pool.images.paths)
    assert [Path(path).relative_to(broken).as_posix() for path in found["path"]] == [
        "cat/3.png", "cat/4.png", "dog/5.png", "dog/6.png",
    ]  # fmt: skip
    assert pool.ids[found["row"]].tolist() == ["cat/3.png", "cat/4.png", "dog/5.png", "dog/6.png"]
    assert (found["reason"] != "").all()


def test_unreadable_files_are_left_out_on_request(broken: Path) -> None:
    full = load_dataset(str(broken))
    with pytest.warns(UserWarning, match=r"4 of 40 images.*cat/3\.png"):
        pool = load_dataset(str(broken), skip_unreadable=True)
    assert len(pool) == 36
    split = dict(zip(full.ids, full.split, strict=True))
    assert all(split[name] == part for name, part in zip(pool.ids, pool.split, strict=True)), "the others stay put"
    pool.images.decode(np.arange(36), 8)


def test_manifest_command_refuses_unreadable_files(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = broken.parent / "pets.csv"
    assert main(["manifest", str(broken), str(out)]) == 1
    report = capsys.readouterr().err
    assert not out.exists()
    assert "files that cannot be read: 4" in report
    assert all(name in report for name in ("cat/3.png", "cat/4.png", "dog/5.png", "dog/6.png"))
    assert "pets.csv was not written: 4 files" in report
    assert main(["manifest", str(broken), str(out), "--skip-unreadable"]) == 0
    pool = load_dataset(str(out))
    assert len(pool) == 36
    pool.images.decode(np.arange(36), 8)


def test_a_flat_folder_is_a_pool_without_labels(tmp_path: Path, tiny_run: dict[str, object]) -> None:
    for n in range(5):
        noise(n).save(tmp_path / f"{n}.png")
    (tmp_path / "._0.png").write_bytes(b"what macOS leaves in archives")
    pool = load_dataset(str(tmp_path))
    assert pool.class_names == ()
    assert pool.labels.tolist() == [UNLABELLED] * 5
    assert pool.split.tolist() == ["pool"] * 5
    assert pool.counts().to_numpy().tolist() == [[5, 0, 0]]
    assert pool.images.decode(np.arange(5), 8).shape == (5, 8, 8, 3)
    with pytest.raises(ConfigError, match=rf"dataset '{tmp_path}' has images without a label; a run simulates"):
        next(rounds(config_from_dict({**tiny_run, "dataset": str(tmp_path), "pool_size": None, "batch_size": 1})))


def test_sub_folders_without_labels_on_request(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "visits", classes=("monday", "friday"), count=2)
    noise(9).save(folder / "loose.png")
    with pytest.raises(DataError, match=r"both beside and inside its class folders \(beside: loose\.png\)"):
        load_dataset(str(folder))
    pool = load_dataset(str(folder), unlabelled=True)
    assert pool.ids.tolist() == ["friday/0.png", "friday/1.png", "loose.png", "monday/0.png", "monday/1.png"]
    assert not pool.is_labelled


def test_copies_are_found(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "pets", count=10)
    (folder / "dog" / "0.png").write_bytes((folder / "cat" / "7.png").read_bytes())
    pool = load_dataset(str(folder))
    found = pool.duplicates()
    assert found["id"].tolist() == ["cat/7.png", "dog/0.png"]
    assert found["label"].tolist() == ["cat", "dog"]
    assert found["checksum"].nunique() == 1
    assert found["split"].tolist() == pool.split[found["row"]].tolist()


def test_copies_in_arrays_are_found_by_pixels() -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    array[5] = array[2]
    split = np.array(["pool", "pool", "val", "val", "test", "test"])
    pool = usable(ImagePool("x", ArrayImages(array), np.arange(6) % 2, split, np.arange(6).astype(str), ("a", "b")))
    assert pool.duplicates()["row"].tolist() == [2, 5]
    assert set(pool.duplicates()["split"]) == {"val", "test"}


def aged(folder: Path) -> None:
    """As if written long ago."""
    for path in folder.rglob("*.png"):
        os.utime(path, (1e9, 1e9))


def test_files_that_changed_places_are_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles out of an archive have the same size and time."""
    monkeypatch.setattr(hashes, "RACY_NS", 0)
    one, two = tmp_path / "1.bmp", tmp_path / "2.bmp"
    for number, path in enumerate((one, two)):
        noise(number).save(path)
        os.utime(path, (1e9, 1e9))
    first, second = hashes.file_hashes([one, two])
    one.rename(tmp_path / "3.bmp")
    two.rename(one)
    (tmp_path / "3.bmp").rename(two)
    assert hashes.file_hashes([one, two]) == [second, first]


def test_the_head_of_a_folder_has_all_classes(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for number in range(4):
        (folder / f"class {number}").mkdir(parents=True)
        for image in range(20):
            noise(100 * number + image).save(folder / f"class {number}" / f"{image}.png")
    pool = load_dataset(str(folder))
    part = head(pool, 24)
    assert len(part.rows("pool")) == 24
    assert set(part.labels[part.rows("pool")]) == {0, 1, 2, 3}
    assert part.ids.tolist() == head(pool, 24).ids.tolist()
    assert len(part.rows("test")) == len(pool.rows("test"))


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "pets")
    monkeypatch.setattr(hashes, "RACY_NS", 0)
    checksum = load_dataset(str(folder)).checksum()
    read = reads(monkeypatch)
    assert load_dataset(str(folder)).checksum() == checksum
    assert read == []
    noise(77).save(folder / "cat" / "3.png")
    assert load_dataset(str(folder)).checksum() != checksum
    assert read == [folder / "cat" / "3.png"]


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The image files that are opened from now on, each as often as it is."""
    found: list[Path] = []
    read_bytes, opened = Path.read_bytes, Image.open

    def open_image(source: Path | BytesIO, *rest: Any) -> Image.Image:
        found.extend([source] if isinstance(source, Path) else [])
        return opened(source, *rest)

    monkeypatch.setattr(Path, "read_bytes", lambda path: found.append(path) or read_bytes(path))
    monkeypatch.setattr(Image, "open", open_image)
    return found


def test_a_manifest_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(tmp_path / "pets")
    read = reads(monkeypatch)
    assert main(["manifest", str(folder), str(tmp_path / "pets.csv")]) == 0
    assert sorted(read) == sorted(folder.rglob("*.png"))


def test_large_files_are_not_held_in_memory_and_are_the_same(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_dataset(str(broken), decode=True).images
    monkeypatch.setattr(hashes, "IN_MEMORY", 0)
    large = load_dataset(str(broken), decode=True).images
    assert isinstance(small, FileImages)
    assert isinstance(large, FileImages)
    assert repr(large.facts) == repr(small.facts)
    assert unreadable(large.paths, large.facts).equals(unreadable(large.paths))


def test_threads_leave_the_rest_when_one_of_them_fails() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 5:
            raise ValueError("five")
        time.sleep(0.001)
        done.append(item)

    with pytest.raises(ValueError, match="five"):
        hashes.in_threads(work, range(100_000))
    assert len(done) < 100_000
    assert hashes.in_threads(str, range(100)) == [str(item) for item in range(100)]


def test_a_file_just_written_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"one")
    stamp = path.stat().st_mtime_ns
    first = hashes.file_hashes([path])
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp, stamp))
    assert hashes.file_hashes([path]) != first


def test_a_damaged_table_of_hashes_is_made_anew(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "pets")
    aged(folder)
    checksum = load_dataset(str(folder)).checksum()
    for table in (tmp_path / "cache" / "hashes").glob("*.parquet"):
        table.write_bytes(b"damaged")
    assert load_dataset(str(folder)).checksum() == checksum


def test_the_checksum_tells_pixels_labels_and_splits_apart(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "pets")
    before = load_dataset(str(folder)).checksum()
    assert load_dataset(str(folder)).checksum() == before
    one, two = folder / "cat" / "1.png", folder / "cat" / "2.png"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert load_dataset(str(folder)).checksum() != before
    missing = load_dataset(str(folder))
    one.unlink()
    assert not missing.images.is_current()
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read"):
        missing.images.decode(np.array([missing.ids.tolist().index("cat/1.png")]), 8)


def test_importing_data_sets_stays_light() -> None:
    code = (
        "import sys, palkit.data; "
        "heavy = {'torch', 'torchvision', 'medmnist', 'datasets', 'sklearn', 'requests'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    root = Path(hashes.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(root)}, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
