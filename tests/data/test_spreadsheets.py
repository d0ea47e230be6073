"""Manifests as spreadsheets write them, names as systems write them, and splits as benchmarks give them."""

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dataset_helpers import write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palkit.cli import main
from palkit.config import config_from_dict
from palkit.data import ImagePool, load_dataset
from palkit.data.pool import FRACTIONS, SPLITS, carve, stratified_split
from palkit.errors import ConfigError, DataError, DataNotice
from palkit.experiments.experiment import resolve, rounds
from palkit.storage.formats import read_csv

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore::palkit.errors.DataNotice"),
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "s", count=6)


def listed(folder: Path, labels: dict[str, str] | None = None) -> list[tuple[str, str]]:
    labels = labels or {"cat": "cat", "dog": "dog"}
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return [(path, labels[path.split("/")[0]]) for path in paths]


def load(folder: Path, text: str | bytes) -> ImagePool:
    manifest = folder / "m.csv"
    manifest.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_dataset(str(manifest))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("path,label\ncat/0.png,tumour, grade 1", r"line 2: 3 cells where the header has 2.*quotes"),
        ("path,label,\ncat/0.png,tumour, grade 1", r"line 2: 3 cells where the header has 2.*quotes"),
        ("path,label,split\ncat/0.png,tumour, grade 1,pool", r"line 2: 4 cells where the header has 3"),
        ("path;label\ncat/0.png;tumour; grade 1", r"line 2: 3 cells.*';' into double quotes"),
        ("path,label\n\n\n\ncat/0.png,cat\nnowhere.png,cat", r"line 6: there is no file .*nowhere"),
        ('path,label\ncat/0.png,"a\n\nb"\nnowhere.png,cat', r"line 5: there is no file .*nowhere"),
        ("path,label\ncat/0.png,cat\n,\n", r"line 3: the row is empty"),
        ("path,label\ncat/0.png,cat\n , \n", r"line 3: the row is empty"),
        ("path,label\ncat/0.png,cat\n,dog\n", r"line 3: the row has no path"),
        ("path,label\ncat,cat", r"line 2: there is no file .*/cat\."),
        ("path,label,Label\ncat/0.png,cat,dog", r"line 1: there are two columns 'label'"),
        ("\npath,label\ncat/0.png,cat\ncat/./0.png,dog", r"line 4: 'cat/\./0\.png'.*listed"),
        (
            "path,label,split\n\ncat/0.png,cat,trein",
            r"line 3: split 'trein' is none of pool, val, test \(train is pool\)",
        ),
        ("x" * 200_000 + "\na,b", r"cannot be read as a table \(line 1: field larger"),
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ('path,label\ncat/0.png,"cat', r"cannot be read as a table \(line 2"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_their_line(images: Path, rows: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(images, rows)


def test_latin_1_is_refused_by_its_line(images: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: the bytes are not UTF-8"):
        load(images, "path,label\ncat/0.png,cat\ncat/1.png,Bär".encode("latin-1"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le+"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_write_is_read(images: Path, separator: str, encoding: str, end: str) -> None:
    quoted = f'"a {separator} b\n""c"""'
    rows = [("Path ", "LABEL", ""), *((path, {"cat": quoted, "dog": "Bär"}[name], "") for path, name in listed(images))]
    text = end.join(separator.join(row) for row in [*rows[:3], ("",), *rows[3:], ("",)])
    content = b"\xff\xfe" + text.encode("utf-16-le") if encoding.endswith("+") else text.encode(encoding)
    pool = load(images, content)
    assert set(pool.class_names) == {f'a {separator} b\n"c"', "Bär"}
    assert len(pool) == 12


@pytest.mark.parametrize("row", ["cat/0.png", "cat/0.png,cat"])
def test_rows_that_lack_cells_are_refused(images: Path, row: str) -> None:
    """Where one row may lack its last cell, an unquoted comma in another would go unnoticed."""
    with pytest.raises(DataError, match=r"line 3: \d cells? where the header has 3.*write a ',' for each empty cell"):
        load(images, f"path,label,notes\ndog/0.png,carcinoma, in situ\n{row}\n")


@pytest.mark.parametrize("first", ["Images of 2024", "# path label", "a,b,c"])
def test_a_header_that_names_no_column_is_what_an_error_is_about(images: Path, first: str) -> None:
    with pytest.raises(DataError, match=r"line 1: none of the columns path, label.*first line must name"):
        load(images, f"{first}\npath,label\ncat/0.png,cat\n")


def test_the_separator_that_excel_is_told(images: Path) -> None:
    rows = "\n".join(f"{path};{label}" for path, label in listed(images))
    assert len(load(images, f"sep=;\npath;label\n{rows}")) == 12
    with pytest.raises(DataError, match=r"line 4: there is no file"):
        load(images, "sep=;\npath;label\ncat/0.png;cat\nnowhere.png;dog")


def test_parquet_columns_in_capitals(images: Path) -> None:
    table = pd.DataFrame(listed(images), columns=["Path", "LABEL"])
    table.to_parquet(images / "m.parquet")
    assert len(load_dataset(str(images / "m.parquet"))) == 12
    table.rename(columns={"Path": "file"}).to_parquet(images / "m.parquet")
    with pytest.raises(DataError, match=r"lacks the column path \(found: .*'file'"):
        load_dataset(str(images / "m.parquet"))


def test_an_error_says_what_was_left_out(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "s", ("a", "b"), 5)
    for path in (folder / "b").iterdir():
        path.rename(path.with_suffix(".dcm"))
    with pytest.raises(DataError, match=r"has 1 class \(a\).*5 files are left out .*5 \.dcm.*1 folder holds no image"):
        load_dataset(str(folder))
    nested = write_images(tmp_path / "zip" / "images", ("a", "b"), 5).parent
    with pytest.raises(DataError, match=r"has 1 class \(images\).*lie deeper than their class's folder"):
        load_dataset(str(nested))


def test_training_images_too_few_for_validation_say_so(images: Path) -> None:
    rows = [f"{p},{c},{'train' if n % 6 == 0 else 'test'}" for n, (p, c) in enumerate(listed(images))]
    with pytest.raises(DataError, match=r"no images for validation, and its training images are too few"):
        load(images, "path,label,split\n" + "\n".join(rows))


def test_spaces_and_backslashes_around_paths(images: Path) -> None:
    rows = listed(images)
    text = "\n".join(f" {path}\t ,{label}".replace("/", "\\") for path, label in rows)
    assert len(load(images, "path,label\n" + text)) == 12


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).map(str.strip).filter(bool)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=6), st.sampled_from(",;\t"), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_table_that_is_written_is_read(
    tmp_path: Path, rows: list[tuple[str, str]], separator: str, bom: bool
) -> None:
    path = tmp_path / "t.csv"
    table = pd.DataFrame(rows, columns=["path", "label"])
    table.to_csv(path, sep=separator, index=False, encoding="utf-8-sig" if bom else "utf-8", quoting=1)
    found = read_csv(path, ("path", "label"))
    assert list(found[["path", "label"]].itertuples(index=False, name=None)) == rows
    assert found.index.tolist() == [f"line {number}" for number in range(2, len(rows) + 2)]


def test_text_that_looks_the_same_is_the_same(tmp_path: Path) -> None:
    """A folder copied from a Mac, a table written on Linux, and classes of both."""
    both = [unicodedata.normalize(form, "Bärenfell é") for form in ("NFC", "NFD")]
    for split, name in (("pool", both[0]), ("val", both[1]), ("test", both[0])):
        write_images(tmp_path / "s" / split, (name, "dog"), 4)
    assert load_dataset(str(tmp_path / "s")).class_names == (both[0], "dog")
    for source, wanted in (both, reversed(both)):
        folder = write_images(tmp_path / f"m-{source!a}", (source, "dog"), 4)
        rows = [(f"{wanted}/{n}.png", both[n % 2]) for n in range(4)] + [(f"dog/{n}.png", "dog") for n in range(4)]
        grouped = [f"{path},{label},{both[n % 2]}{n % 4 % 3}" for n, (path, label) in enumerate(rows)]
        pool = load(folder, "path,label,group\n" + "\n".join(grouped))
        assert pool.class_names == (both[0], "dog")
        assert pool.ids[0] == f"{both[0]}/0.png"
        assert pool.groups is not None
        assert len(set(pool.groups)) == 3
        assert len(pool.images.decode(np.arange(len(pool)), 8)) == 8
    write_images(tmp_path / "twice", both, 1)
    with pytest.raises(DataError, match=r"looks like 'Ba\\u0308renfell.*rename"):
        load_dataset(str(tmp_path / "twice"))


def test_what_takes_no_room_makes_no_class_and_no_other_file(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "m", ("cat", "ca\u200bt", "dog"), 4)
    rows = ["cat/0.png,cat", *(f"ca\u200bt/{n}.png,\ufeff cat\u200b" for n in range(3))]
    rows += [f"dog/{n}.png,dog" for n in range(3)]
    with pytest.raises(DataError, match="looks like"):
        load(folder, "path,label\n" + "\n".join(rows))
    pool = load(folder, "path,label\n" + "\n".join(rows[1:]))
    assert pool.class_names == ("cat", "dog")
    assert pool.ids[0] == "cat/0.png"
    assert len(pool.images.decode(np.arange(len(pool)), 8)) == 6


def test_official_train_and_test_without_validation(images: Path) -> None:
    """As IDRiD and most benchmarks come: validation images are taken out of the training images, and that is said."""
    rows = listed(images)
    split = [("train", "Train", "training", "test")[n % 4] for n in range(len(rows))]
    text = "path,label,split\n" + "\n".join(f"{p},{c},{s}" for (p, c), s in zip(rows, split, strict=True))
    with pytest.warns(DataNotice, match=r"no images for validation: 2 of its 9 training images are taken"):
        pool = load(images, text)
    assert pool.split[[s == "test" for s in split]].tolist() == ["test"] * 3
    assert set(pool.labels[pool.split == "val"]) == {0, 1}
    assert load(images, text).split.tolist() == pool.split.tolist()
    with pytest.raises(DataError, match=r"test split holds 0 of 2 classes"):
        load(images, text.replace("test", "val"))


def test_validation_taken_out_divides_no_patient(images: Path) -> None:
    rows = listed(images)
    text = [f"{p},{c},{'test' if n % 6 == 5 else 'train'},p{n // 2}-{n % 6 == 5}" for n, (p, c) in enumerate(rows)]
    pool = load(images, "path,label,split,group\n" + "\n".join(text))
    assert pool.groups is not None
    for group in set(pool.groups):
        assert len(set(pool.split[pool.groups == group])) == 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_classes_large_enough_are_in_every_split(sizes: list[int]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = np.arange(len(labels)).astype(str)
    split = stratified_split(labels, names)
    for label, size in enumerate(sizes):
        counts = [(split[labels == label] == part).sum() for part in SPLITS]
        assert sum(counts) == size
        if size >= 3:
            assert min(counts) >= 1
            assert all(abs(count - share * size) <= 1.5 for count, share in zip(counts, FRACTIONS, strict=True))
        if size >= 2:
            assert set(carve(labels, names)[labels == label]) == {"pool", "val"}


def test_a_split_that_cannot_be_made_says_what_would_do(tmp_path: Path) -> None:
    few = write_images(tmp_path / "few", count=2)
    with pytest.raises(DataError, match=r"at least 3 images: 'cat' has 2, 'dog' has 2\. Add images, or give the split"):
        load_dataset(str(few))
    folder = write_images(tmp_path / "patients", count=8)
    rows = [f"{path},{label},{label}-{n % 2}" for n, (path, label) in enumerate(listed(folder))]
    with pytest.raises(DataError, match=r"at least 3 groups: 'cat' has 2, 'dog' has 2\. Add groups.*leave out group"):
        load(folder, "path,label,group\n" + "\n".join(rows))
    write_images(tmp_path / "rare", ("a", "b"), 20)
    for number in range(3, 20):
        (tmp_path / "rare" / "b" / f"{number}.png").unlink()
    assert (load_dataset(str(tmp_path / "rare")).counts() >= 1).all(axis=None), "200 : 3 has one in each"


def test_the_order_of_grades(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grades = ["normal", "mild", "severe"]
    folder = write_images(tmp_path / "s", tuple(grades), 5)
    assert load_dataset(str(folder)).class_names == ("mild", "normal", "severe"), "by the alphabet if nobody says"
    assert load_dataset(str(folder), classes=grades).class_names == tuple(grades)
    assert main(["manifest", str(folder), str(tmp_path / "m.csv"), "--classes", *grades]) == 0
    assert load_dataset(str(tmp_path / "m.csv")).class_names == tuple(grades), "kept beside the manifest"
    (folder / "classes.txt").write_text("normal\r\nmild\r\n\r\nsevere\r\nproliferative", encoding="utf-8-sig")
    pool = load_dataset(str(folder))
    assert pool.class_names == (*grades, "proliferative")
    assert pool.notes == ()
    assert pool.labels[pool.ids == "severe/0.png"].tolist() == [2]
    (folder / "classes.txt").write_text("normal\nmild")
    with pytest.raises(DataError, match=r"class 'severe' is not in the order of classes given \(normal, mild\)"):
        load_dataset(str(folder))
    (folder / "classes.txt").write_text("normal\nmild\nnormal")
    with pytest.raises(DataError, match=r"classes\.txt: class 'normal' is there twice"):
        load_dataset(str(folder))
    with pytest.raises(ConfigError, match="classes are for folders and manifests"):
        load_dataset("digits", classes=grades)


def test_numbers_as_classes_are_in_order_of_number(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "s", ("10", "2", "0"), 5)
    assert load_dataset(str(folder)).class_names == ("0", "2", "10")


def test_kappa_knows_the_order(tmp_path: Path, tiny_run: dict[str, Any]) -> None:
    folder = write_images(tmp_path / "s", ("a", "b", "c"), 12)
    values = {**tiny_run, "dataset": str(folder), "pool_size": None, "batch_size": 6, "rounds": 1, "seed": 1}
    found = {}
    for order in ("a b c", "b a c"):
        (folder / "classes.txt").write_text("\n".join(order.split()))
        (one,) = rounds(config_from_dict(values))
        found[order] = one.metrics
    assert found["a b c"]["kappa"] != found["b a c"]["kappa"]


def test_the_usual_size_of_a_pool_is_no_demand(tmp_path: Path, tiny_run: dict[str, Any]) -> None:
    """Nobody set 1,500, so nobody hears of it; who sets a size that is not there does."""
    folder = write_images(tmp_path / "s", count=10)
    values = {key: value for key, value in tiny_run.items() if key != "pool_size"} | {"dataset": str(folder)}
    assert resolve(config_from_dict(values)).config.pool_size is None
    assert resolve(config_from_dict({**values, "dataset": "fashion_mnist"})).config.pool_size == 1500
    with pytest.raises(ConfigError, match=r"pool_size 1500: the pool of .* has 12 images\. Lower it, or leave it out"):
        resolve(config_from_dict({**values, "pool_size": 1500}))
    with pytest.raises(ConfigError, match=r"the pool of .* has 12\. Lower rounds or batch_size\.$"):
        list(rounds(config_from_dict({**values, "rounds": 20})))
    with pytest.raises(ConfigError, match=r"pool_size is 'many' \(str\); it must be a valid integer or be 'auto'"):
        config_from_dict({"pool_size": "many"})


def test_an_order_of_classes_given_to_manifest_is_what_is_stored(images: Path, tmp_path: Path) -> None:
    for order in (["dog", "cat"], ["cat", "dog"], ["dog", "cat"]):
        assert main(["manifest", str(images), str(tmp_path / "m.csv"), "--classes", *order]) == 0
        assert load_dataset(str(tmp_path / "m.csv")).class_names == tuple(order)
    for bad in (["cat", "dog", "cat"], ["cat", "dog", ""]):
        with pytest.raises(ConfigError, match="names must differ and not be empty"):
            load_dataset(str(images), classes=bad)


def test_an_order_of_classes_that_somebody_put_beside_a_manifest_stays(images: Path, tmp_path: Path) -> None:
    (tmp_path / "m.classes.txt").write_text("dog\ncat")
    assert main(["manifest", str(images), str(tmp_path / "m.csv")]) == 0
    assert load_dataset(str(tmp_path / "m.csv")).class_names == ("dog", "cat")


def test_spaces_around_names_of_classes_mean_nothing(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "s", ("cat ", " dog", "dog"), 5)
    pool = load_dataset(str(folder))
    assert pool.class_names == ("cat", "dog")
    assert main(["manifest", str(folder), str(tmp_path / "m.csv")]) == 0
    assert load_dataset(str(tmp_path / "m.csv")).checksum() == pool.checksum()
