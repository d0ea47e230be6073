"""A user's own images: every format, manifests, groups, missing labels, copies, files that cannot be read."""

import os
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dataset_helpers import noise, write_images
from PIL import Image

from palkit.__main__ import main
from palkit.config import config_from_dict
from palkit.datasets import ArrayImages, FileImages, hashes, head, load_dataset, unreadable
from palkit.datasets.files import read_image
from palkit.datasets.pool import UNLABELLED, grouped_split, make_pool, split_rows
from palkit.errors import ConfigError, DataError
from palkit.experiment import rounds

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


def manifest(path: Path, rows: list[str], header: str = "path,label,split,group") -> Path:
    path.write_text("\n".join([header, *rows]))
    return path


def test_groups_are_not_divided_and_classes_are_balanced(tmp_path: Path) -> None:
    write_images(tmp_path, count=60)
    rows = [f"{kind}/{n}.png,{kind},P{n % 20:02d}" for kind in ("cat", "dog") for n in range(60)]
    pool = load_dataset(str(manifest(tmp_path / "x.csv", rows, "path,label,group")))
    table = pd.DataFrame({"group": pool.groups, "split": pool.split})
    assert (table.groupby("group")["split"].nunique() == 1).all()
    shares = pool.counts().div(pool.counts().sum(axis=1), axis=0)
    assert np.allclose(shares, [0.6, 0.15, 0.25], atol=0.06)
    assert np.array_equal(load_dataset(str(tmp_path / "x.csv")).split, pool.split)


def test_groups_of_very_different_size_and_class_still_fill_every_split() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat([f"g{n}" for n in range(30)], rng.integers(1, 60, 30))
    labels = (rng.random(len(groups)) < np.repeat(rng.random(30), np.unique(groups, return_counts=True)[1])).astype(int)
    split = grouped_split(labels, groups)
    for group in np.unique(groups):
        assert len(np.unique(split[groups == group])) == 1
    for label in (0, 1):
        shares = [(split[labels == label] == part).mean() for part in ("pool", "val", "test")]
        assert np.allclose(shares, [0.6, 0.15, 0.25], atol=0.05)


def test_images_without_a_group_stand_alone() -> None:
    split = grouped_split(np.tile([0, 1], 100), np.full(200, ""))
    assert [(split == part).sum() for part in ("pool", "val", "test")] == [120, 30, 50]


def test_unlabelled_images_take_their_group_into_the_pool() -> None:
    labels, groups = np.tile([0, 1], 30), np.repeat([f"P{n}" for n in range(10)], 6)
    labels[0] = UNLABELLED
    split = split_rows(labels, groups)
    assert (split[:6] == "pool").all()
    assert set(split[6:]) == {"pool", "val", "test"}


def test_a_group_in_two_splits_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, count=3)
    rows = [f"{k}/{n}.png,{k},{s},P{n}{k}" for k in ("cat", "dog") for n, s in enumerate(("pool", "val", "test"))]
    assert len(load_dataset(str(manifest(tmp_path / "x.csv", rows)))) == 6
    rows[1] = "cat/1.png,cat,val,P0cat"
    with pytest.raises(DataError, match=r"x\.csv': group 'P0cat' has images in the splits pool, val"):
        load_dataset(str(manifest(tmp_path / "x.csv", rows)))


def test_groups_from_paths(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    for kind in ("stroma", "tumour"):
        for n in range(40):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            noise(n).save(folder / kind / f"P{n % 8}_{n}.png")
    pool = load_dataset(str(folder), group=r"/(P\d)_")
    assert pool.groups is not None
    assert set(pool.groups) == {f"P{n}" for n in range(8)}
    assert (pd.DataFrame({"g": pool.groups, "s": pool.split}).groupby("g")["s"].nunique() == 1).all()
    with pytest.raises(ConfigError, match=r"'Q\\d' matches nothing in 'stroma/P0_0\.png'"):
        load_dataset(str(folder), group=r"Q\d")
    with pytest.raises(ConfigError, match=r"group '\(' is not a regular expression"):
        load_dataset(str(folder), group="(")


def test_parquet_manifest_with_numbers_and_gaps(tmp_path: Path) -> None:
    write_images(tmp_path, count=4)
    paths = [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(4)]
    splits = ["pool", "pool", "val", "test"] * 2
    labels = pd.array([None, 1, 1, 1, 0, 0, 0, 0], dtype="Int64")
    pd.DataFrame({"path": paths, "label": labels, "split": splits}).to_parquet(tmp_path / "x.parquet")
    pool = load_dataset(str(tmp_path / "x.parquet"))
    assert pool.class_names == ("0", "1")
    assert pool.labels.tolist() == [UNLABELLED, 1, 1, 1, 0, 0, 0, 0]
    assert pool.counts().loc["(no label)"].tolist() == [1, 0, 0]
    assert not pool.is_labelled


def test_a_class_may_be_called_na(tmp_path: Path) -> None:
    write_images(tmp_path, count=3)
    names = {"cat": "NA", "dog": "None"}
    rows = [f"{k}/{n}.png, {names[k]},{s}" for k in names for n, s in enumerate(("pool", "val", "test"))]
    (tmp_path / "x.csv").write_text("\ufeffpath,label,split\n" + "\n".join(rows), encoding="utf-8")
    pool = load_dataset(str(tmp_path / "x.csv"))
    assert pool.class_names == ("NA", "None")
    assert pool.is_labelled


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path;label", ["a;b"], r"lacks the column label, path \(found: path;label\)"),
        ("path,label", ["cat/0.png,cat", "cat/0.png,dog"], r"line 3: 'cat/0\.png' is listed twice"),
        (
            "path,label,split",
            ["cat/0.png,,test"],
            r"cat/0\.png is in split 'test' but has no label.*move it to split 'pool'",
        ),
        ("path,label", [], "has 0 class"),
        ('path,"label', ["x"], r"x\.csv cannot be read as a table"),
    ],
)
def test_bad_manifests(tmp_path: Path, header: str, rows: list[str], message: str) -> None:
    write_images(tmp_path, count=1)
    with pytest.raises(DataError, match=message):
        load_dataset(str(manifest(tmp_path / "x.csv", rows, header)))


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
    with pytest.raises(DataError, match=r"both beside and inside its 2 folders \(beside: loose\.png\)"):
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
    pool = make_pool("x", ArrayImages(array), np.arange(6) % 2, split, np.arange(6).astype(str), ["a", "b"])
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
    hashed: list[str] = []
    monkeypatch.setattr(hashes, "sha256", lambda path: hashed.append(path.name) or "00" * 32)
    assert load_dataset(str(folder)).checksum() == checksum
    assert hashed == []
    noise(77).save(folder / "cat" / "3.png")
    assert load_dataset(str(folder)).checksum() != checksum
    assert hashed == ["3.png"]


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
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read"):
        missing.images.checksum()


def test_manifest_command_writes_what_loads_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "pets")
    out = tmp_path / "lists" / "pets.csv"
    assert main(["manifest", str(folder), str(out)]) == 0
    report = capsys.readouterr().err
    assert "20 images, 2 classes" in report
    assert "files that cannot be read: 0" in report
    table = pd.read_csv(out, dtype=str, na_filter=False)
    assert table.columns.tolist() == ["path", "label", "split", "group"]
    assert table["path"][0] == "../pets/cat/0.png"
    assert load_dataset(str(out)).checksum() == load_dataset(str(folder)).checksum()
    assert main(["manifest", str(out), str(tmp_path / "again.parquet")]) == 0
    assert load_dataset(str(tmp_path / "again.parquet")).checksum() == load_dataset(str(folder)).checksum()


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


def test_manifest_command_reports_and_drops_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, count=12)
    splits = ["pool", "pool", "val", "test"] * 3
    for copy, original in (("cat/2.png", "cat/0.png"), ("dog/5.png", "dog/4.png"), ("dog/8.png", "cat/8.png")):
        (tmp_path / copy).write_bytes((tmp_path / original).read_bytes())
    rows = [f"{k}/{n}.png,{k},{s}," for k in ("cat", "dog") for n, s in enumerate(splits)]
    rows[16] = "dog/4.png,,pool,"
    source, out = manifest(tmp_path / "x.csv", rows), tmp_path / "clean.csv"
    assert main(["manifest", str(source), str(out), "--drop-duplicates"]) == 0
    report = capsys.readouterr().err
    assert "images that are there more than once: 6" in report
    assert "cat/0.png (pool, cat) = cat/2.png (val, cat): in different splits\n" in report
    assert "cat/8.png (pool, cat) = dog/8.png (pool, dog): with different labels\n" in report
    assert "dog/4.png (pool, no label) = dog/5.png (pool, dog)\n" in report
    gone = set(load_dataset(str(source)).ids) - set(load_dataset(str(out)).ids)
    assert gone == {"cat/2.png", "cat/8.png", "dog/8.png", "dog/4.png"}


def test_manifest_command_keeps_groups_together(tmp_path: Path) -> None:
    folder, out = write_images(tmp_path / "pets", count=30), tmp_path / "pets.csv"
    assert main(["manifest", str(folder), str(out), "--group", r"/(\d)\d*\.png"]) == 0
    table = pd.read_csv(out, dtype=str)
    assert table["group"].nunique() == 10
    assert (table.groupby("group")["split"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "x.csv"], "'digits' holds arrays, not files"),
        (["nowhere/slides", "x.csv"], "no folder or manifest nowhere/slides"),
        (["digits", "x.txt"], r"manifest x.txt: the name must end in .csv or .parquet"),
    ],
)
def test_manifest_command_explains(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_importing_data_sets_stays_light() -> None:
    code = (
        "import sys, palkit.datasets; "
        "heavy = {'torch', 'torchvision', 'medmnist', 'datasets', 'sklearn', 'pooch', 'requests'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    root = Path(hashes.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(root)}, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
