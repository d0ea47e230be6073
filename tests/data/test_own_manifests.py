"""A user's own manifests: groups that stay together, gaps, bad tables, and the command that writes them."""

import os
import sys
from pathlib import Path
from random import Random
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from dataset_helpers import noise, write_images
from hypothesis import given
from PIL import Image

from palkit.cli import main
from palkit.data import from_folder, load_dataset
from palkit.data.pool import UNLABELLED, grouped_split, split_rows
from palkit.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("own_cache")


def names_of(rows: Any) -> np.ndarray:
    """A name for each of some rows."""
    return np.array([f"image {number}" for number in range(len(rows))])


def manifest(path: Path, rows: list[str], header: str = "path,label,split,group") -> Path:
    path.write_text("\n".join([header, *rows]))
    return path


@pytest.mark.parametrize("cell", ["1_0", "\uff11\uff10", "ten"])
def test_a_range_is_of_plain_numbers(cell: str, tmp_path: Path) -> None:
    write_images(tmp_path, count=1)
    with pytest.raises(DataError, match=rf"x\.csv, line 2: low {cell!r} and high '100' are no range"):
        load_dataset(str(manifest(tmp_path / "x.csv", [f"cat/0.png,cat,{cell},100"], "path,label,low,high")))


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(DataError, match=f"{name} cannot be opened"):
            from_folder(tmp_path / name)


def test_an_order_of_no_class_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, count=3)
    (tmp_path / "classes.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"not in the order of classes given \(\), by option or in classes\.txt"):
        load_dataset(str(tmp_path))


def test_splits_that_were_given_are_not_said_to_need_more_images(tmp_path: Path) -> None:
    write_images(tmp_path, count=10)
    rows = [f"{kind}/{n}.png,{kind},train" for kind in ("cat", "dog") for n in range(10)]
    with pytest.raises(DataError, match=r"its val split holds 0 of 2 classes, and each of .* needs 2\. Give the split"):
        load_dataset(str(manifest(tmp_path / "x.csv", rows, "path,label,split")))


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
    split = grouped_split(labels, groups, names_of(labels))
    for group in np.unique(groups):
        assert len(np.unique(split[groups == group])) == 1
    for label in (0, 1):
        shares = [(split[labels == label] == part).mean() for part in ("pool", "val", "test")]
        assert np.allclose(shares, [0.6, 0.15, 0.25], atol=0.05)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "a", "b", "c", "d", "e"])), min_size=1, max_size=60),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_splits_are_of_names_and_not_of_places_or_numbers(
    rows: list[tuple[int, str]], grouped: bool, random: Random
) -> None:
    labels, groups, names = np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), names_of(rows)
    split = split_rows(labels, groups if grouped else None, names)
    order, number = np.array(random.sample(range(len(rows)), len(rows))), np.array(random.sample(range(4), 4))
    moved = split_rows(number[labels[order]], groups[order] if grouped else None, names[order])
    assert (moved == split[order]).all()


def test_images_without_a_group_stand_alone() -> None:
    split = grouped_split(np.tile([0, 1], 100), np.full(200, ""), names_of(range(200)))
    assert [(split == part).sum() for part in ("pool", "val", "test")] == [120, 30, 50]


def test_unlabelled_images_take_their_group_into_the_pool() -> None:
    labels, groups = np.tile([0, 1], 30), np.repeat([f"P{n}" for n in range(10)], 6)
    labels[0] = UNLABELLED
    split = split_rows(labels, groups, names_of(labels))
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


def test_another_spelling_of_a_path_changes_nothing(tmp_path: Path) -> None:
    write_images(tmp_path, count=9)
    paths = [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(9)]
    pools = []
    for name, spelt in (("plain", "{}"), ("dotted", "./{}"), ("doubled", ".//{}"), ("detour", "cat/../{}")):
        rows = "".join(f"{spelt.format(path)},{path[:3]}\n" for path in paths)
        (tmp_path / f"{name}.csv").write_text(f"path,label\n{rows}")
        pools.append(load_dataset(str(tmp_path / f"{name}.csv")))
    for pool in pools:
        assert pool.ids.tolist() == pools[0].ids.tolist()
        assert pool.split.tolist() == pools[0].split.tolist()


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
        ("path|label", ["a|b"], r"line 1: none of the columns path, label.*'path\|label"),
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


@pytest.mark.skipif(sys.platform == "darwin", reason="file systems there refuse such names")
def test_a_name_that_no_table_can_hold_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(DataError, match=r"caf.*is not UTF-8.*Rename it"):
        load_dataset(str(tmp_path))


def test_manifest_command_writes_what_loads_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "pets")
    out = tmp_path / "lists" / "pets.csv"
    assert main(["manifest", str(folder), str(out)]) == 0
    report = capsys.readouterr().err
    assert "20 images, 2 classes" in report
    assert "files that cannot be read: 0" in report
    table = pd.read_csv(out, dtype=str, na_filter=False)
    assert table.columns.tolist() == ["path", "label", "split", "group", "image_id"]
    assert table["image_id"][0] == "cat/0.png"
    assert table["path"][0] == "../pets/cat/0.png"
    assert load_dataset(str(out)).checksum() == load_dataset(str(folder)).checksum()
    assert main(["manifest", str(out), str(tmp_path / "again.parquet")]) == 0
    assert load_dataset(str(tmp_path / "again.parquet")).checksum() == load_dataset(str(folder)).checksum()


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


def test_a_manifest_elsewhere_stands_for_its_folder(tmp_path: Path) -> None:
    """Splits, draws and labels hang on the names of images: those of the folder, wherever its table is written."""
    folder = tmp_path / "slides"
    for number in range(24):
        path = folder / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), 10 * number, dtype=np.uint8)).save(path)
    pool = load_dataset(str(folder))
    (tmp_path / "lists").mkdir()
    for name in ("slides/in.csv", "beside.csv", "lists/away.parquet"):
        assert main(["manifest", str(folder), str(tmp_path / name)]) == 0
        again = load_dataset(str(tmp_path / name))
        assert again.ids.tolist() == pool.ids.tolist(), name
        assert again.split.tolist() == pool.split.tolist(), name
        assert again.checksum() == pool.checksum(), name
    rest = load_dataset(str(tmp_path / "beside.csv"))
    assert main(["manifest", str(tmp_path / "beside.csv"), str(tmp_path / "lists" / "again.csv")]) == 0
    assert load_dataset(str(tmp_path / "lists" / "again.csv")).ids.tolist() == rest.ids.tolist()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "", "c"], "line 3: the image_id is missing. Each image needs one of its own"),
        (["a", "b", "a"], "line 4: 'a' is the image_id of line 2 too"),
    ],
)
def test_names_that_name_no_image(ids: list[str], message: str, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("L", (9, 9), 50 * number).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,x,{name}" for number, name in enumerate(ids)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,image_id", *rows]))
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path / "list.csv"))
