"""Data sets: embedded ones as documented, folders and manifests, and every way they can be wrong."""

from pathlib import Path

import numpy as np
import pytest
from dataset_helpers import write_images

from palkit.data import embedded, head, load_dataset, long_tail
from palkit.data.pool import take
from palkit.errors import ChecksumError, ConfigError, DataError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_fashion_mnist_is_what_the_data_card_says() -> None:
    pool = load_dataset("fashion_mnist")
    counts = pool.counts()
    assert counts.loc[:, ["pool", "val", "test"]].to_numpy().tolist() == [[600, 100, 100]] * 10
    assert len(set(pool.ids)) == len(pool) == 8000
    assert np.array_equal(pool.labels[:20], np.tile(np.arange(10), 2)), "rows are class-interleaved"


def test_no_image_is_in_two_splits() -> None:
    pool = load_dataset("fashion_mnist")
    pixels = pool.images.decode(np.arange(len(pool)), 28)[..., 0].reshape(len(pool), -1)
    test = {row.tobytes() for row in pixels[pool.rows("test")]}
    assert not any(row.tobytes() in test for row in pixels[pool.rows("pool")])


def test_long_tail_thins_the_pool_only() -> None:
    full, tail = load_dataset("fashion_mnist"), load_dataset("fashion_mnist_lt")
    counts = tail.counts()
    expected = [round(600 * 50 ** (-c / 9)) for c in range(10)]
    assert counts["pool"].tolist() == expected
    assert expected[0] == 600
    assert expected[-1] == 12
    assert counts[["val", "test"]].equals(full.counts()[["val", "test"]])
    assert set(tail.ids) < set(full.ids)


def test_a_long_tail_is_the_same_however_rows_are_stored() -> None:
    pool = load_dataset("digits")
    shuffled = take(pool, np.random.default_rng(0).permutation(len(pool)), "shuffled")
    assert set(long_tail(shuffled, 20).ids) == set(load_dataset("digits_lt").ids)
    assert set(long_tail(pool, 20).ids) != set(long_tail(pool, 10).ids)


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("fashion_mnist", "1c0b4ce5e389334ebdff1eab13e49fb7"),
        ("fashion_mnist_lt", "69ae5b62fd27d3dbc08b1ee5efe10de5"),
        ("digits", "14caa2ec6828761cfc9a962fa251918a"),
        ("digits_lt", "cb1b1258d4c03d5954a7c4f25f179e9e"),
    ],
)
def test_embedded_sets_stay_what_finished_runs_used(name: str, begin: str) -> None:
    assert load_dataset(name).checksum().startswith(begin)


def test_digits_are_split_per_class() -> None:
    pool = load_dataset("digits")
    assert len(pool) == 1797
    shares = pool.counts().div(pool.counts().sum(axis=1), axis=0)
    assert np.allclose(shares, [0.6, 0.15, 0.25], atol=0.01)
    assert np.array_equal(load_dataset("digits").split, pool.split)


def test_head_draws_pool_rows_by_name_and_keeps_other_splits() -> None:
    pool = load_dataset("fashion_mnist")
    small = head(pool, 100)
    assert len(small.rows("pool")) == 100
    assert set(small.ids[small.rows("pool")]) < set(head(pool, 300).ids)
    backwards = take(pool, np.arange(len(pool))[::-1], "backwards")
    assert set(small.ids) == set(head(backwards, 100).ids)
    assert np.array_equal(small.ids[small.rows("test")], pool.ids[pool.rows("test")])
    assert small.checksum() != pool.checksum()
    with pytest.raises(ConfigError, match=r"pool_size 7000.*6000 images"):
        head(pool, 7000)


def test_folder_per_class(tmp_path: Path) -> None:
    pool = load_dataset(str(write_images(tmp_path / "pets")))
    assert pool.class_names == ("cat", "dog")
    assert pool.counts().to_numpy().tolist() == [[6, 2, 2]] * 2
    decoded = pool.images.decode(np.arange(3), 24)
    assert decoded.shape == (3, 24, 24, 3)
    assert decoded.dtype == np.uint8


def test_folder_with_splits_keeps_them(tmp_path: Path) -> None:
    for split in ("pool", "val", "test"):
        write_images(tmp_path / split, count=3)
    assert load_dataset(str(tmp_path)).counts().to_numpy().tolist() == [[3, 3, 3]] * 2


def test_manifest(tmp_path: Path) -> None:
    write_images(tmp_path, count=3)
    lines = [f"{c}/{i}.png,{c},{s}" for c in ("cat", "dog") for i, s in enumerate(("pool", "val", "test"))]
    manifest = tmp_path / "images.csv"
    manifest.write_text("\n".join(["path,label,split", *lines]))
    pool = load_dataset(str(manifest))
    assert pool.counts().to_numpy().tolist() == [[1, 1, 1]] * 2
    assert pool.ids[0] == "cat/0.png"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("file,label\ncat/0.png,cat", "lacks the column path"),
        ("path,label\ncat/0.png,cat\nnowhere.png,dog", r"line 3: there is no file .*nowhere\.png"),
        ("path,label,split\ncat/0.png,cat,trian", r"line 2: split 'trian' is none of pool, val, test"),
    ],
)
def test_bad_manifest_names_the_line(tmp_path: Path, lines: str, message: str) -> None:
    write_images(tmp_path, count=3)
    (tmp_path / "images.csv").write_text(lines)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path / "images.csv"))


def test_unknown_name_lists_names_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset 'fashion_mnits'.*mean 'fashion_mnist'.*digits"):
        load_dataset("fashion_mnits")


def test_missing_folder_explains_the_layout() -> None:
    with pytest.raises(DataError, match=r"no folder or manifest /nowhere/slides.*FOLDER/CLASS/IMAGE"):
        load_dataset("/nowhere/slides")


def test_folder_without_images_explains_the_layout(tmp_path: Path) -> None:
    (tmp_path / "slide.svs").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no image where one is expected \(found: slide.svs\).*FOLDER/CLASS"):
        load_dataset(str(tmp_path))


def test_incomplete_splits_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "pool")
    write_images(tmp_path / "val")
    with pytest.raises(DataError, match="some but not all of pool, val, test"):
        load_dataset(str(tmp_path))


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 1 class \(cat\).*at least 2"):
        load_dataset(str(write_images(tmp_path, classes=("cat",))))


def test_corrupt_image_is_named_when_read(tmp_path: Path) -> None:
    write_images(tmp_path)
    bad = tmp_path / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:100])
    pool = load_dataset(str(tmp_path))
    with pytest.raises(DataError, match=r"cat/3\.png cannot be read as an image"):
        pool.images.decode(np.arange(len(pool)), 24)


def test_damaged_embedded_data_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray((embedded.REPOSITORY / "data" / "fashion_mnist.npz").read_bytes())
    content[1000] ^= 1
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fashion_mnist.npz").write_bytes(content)
    monkeypatch.setattr(embedded, "REPOSITORY", tmp_path)
    with pytest.raises(ChecksumError, match=r"fashion_mnist\.npz is damaged.*git checkout"):
        load_dataset("fashion_mnist")
