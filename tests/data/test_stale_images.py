"""Images that change under their names: what is computed is of the pixels that its checksum says, or is refused."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_helpers import noise, write_images

from palkit.config import ExperimentConfig, config_from_dict
from palkit.data import FileImages, hashes, load_dataset
from palkit.errors import DataError
from palkit.experiments.experiment import resolve
from palkit.experiments.setting import pool_of, setting
from palkit.labelling.session import open_session
from palkit.models.backbones import Backbone
from palkit.scoring.inputs import InputCache

pytestmark = pytest.mark.usefixtures("own_cache")

NEW = 10_000  # seeds of images that replace others


def overwritten(path: Path, seed: int) -> None:
    """In place, as `rsync --inplace`, `cp` and image editors do."""
    content = new_content(path, seed)
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(content)


def renamed_over(path: Path, seed: int) -> None:
    other = path.with_name("other")
    other.write_bytes(new_content(path, seed))
    os.replace(other, path)


def with_equal_size_and_time(path: Path, seed: int) -> None:
    before = path.stat()
    path.write_bytes(new_content(path, seed)[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swapped(path: Path, seed: int) -> None:
    other = path.with_name("1.png") if path.name != "1.png" else path.with_name("2.png")
    spare = path.with_name("spare")
    os.rename(path, spare)
    os.rename(other, path)
    os.rename(spare, other)


def behind_the_link(path: Path, seed: int) -> None:
    renamed_over(Path(os.path.realpath(path)), seed)


def linked_elsewhere(path: Path, seed: int) -> None:
    other = path.parents[2] / f"other-{seed}.png"
    other.write_bytes(new_content(path, seed))
    path.unlink()
    path.symlink_to(other)


def new_content(path: Path, seed: int) -> bytes:
    """A file of the same size that holds other pixels: a bitmap, whose size hangs on its sides alone."""
    buffer = BytesIO()
    noise(NEW + seed, (20, 30)).save(buffer, "BMP")
    return buffer.getvalue()


WAYS: list[Callable[[Path, int], None]] = [
    overwritten, renamed_over, with_equal_size_and_time, swapped, behind_the_link, linked_elsewhere,
]  # fmt: skip


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record is old enough to be trusted: the harder case, in which nothing is looked at twice."""
    monkeypatch.setattr(hashes, "RACY_NS", -(10**19))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bitmaps(tmp_path / "s", 12)


def bitmaps(folder: Path, count: int) -> Path:
    """Images of two classes, all files of one size."""
    for place, path in enumerate(sorted(write_images(folder, count=count).rglob("*.png"))):
        path.write_bytes(new_content(path, -1 - place))
    return folder


def linked(folder: Path) -> Path:
    """A folder whose classes are links to those of another."""
    links = folder.parent / "links"
    links.mkdir()
    for name in ("cat", "dog"):
        (links / name).symlink_to(folder / name)
    return links


def config(folder: Path, tiny_run: dict[str, Any]) -> ExperimentConfig:
    return config_from_dict(tiny_run | {"dataset": str(folder), "pool_size": None})


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("change", WAYS)
@pytest.mark.parametrize("form", ["folder", "manifest", "links"])
def test_a_running_process_notices(
    folder: Path, tiny_run: dict[str, Any], change: Callable[[Path, int], None], form: str
) -> None:
    source = folder
    if form == "manifest":
        rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
        source = folder / "m.csv"
        source.write_text("\n".join(["path,label", *rows]))
    if form == "links":
        source = linked(folder)
    run = config(source, tiny_run)
    before = setting(run)
    (row,) = np.flatnonzero(before.pool.ids == "cat/0.png")
    known, feature = resolve(run).data_sha256, before.cache.features()[:][row]
    time.sleep(0.01)  # more than a tick of the file system's clock
    change(folder / "cat" / "0.png", 1)
    after = setting(run)
    assert resolve(run).data_sha256 != known
    assert not np.array_equal(after.cache.features()[:][row], feature)
    assert setting(run).pool is after.pool, "and what has not changed is not loaded again"


@pytest.mark.parametrize("form", ["folder", "links"])
def test_a_running_process_notices_what_comes_and_goes(folder: Path, tiny_run: dict[str, Any], form: str) -> None:
    source = folder
    if form == "links":
        source = linked(folder)
    run = config(source, tiny_run)
    assert len(pool_of(run)) == 24
    noise(NEW).save(folder / "cat" / "new.png")
    assert len(pool_of(run)) == 25
    (folder / "cat" / "new.png").unlink()
    assert len(pool_of(run)) == 24
    for order in (("dog", "cat"), ("cat", "dog"), ("dog", "cat")):
        (source / "classes.txt").write_text("\n".join(order))
        assert pool_of(run).class_names == order


def test_a_file_that_is_touched_is_the_same(folder: Path, tiny_run: dict[str, Any]) -> None:
    run = config(folder, tiny_run)
    before = resolve(run)
    for path in folder.rglob("*.png"):
        os.utime(path)
    assert resolve(run) == before


@pytest.mark.parametrize("change", WAYS)
def test_between_loading_and_decoding(tiny: Backbone, folder: Path, change: Callable[[Path, int], None]) -> None:
    pool = load_dataset(str(folder))
    change(folder / "dog" / "3.png", 2)
    with pytest.raises(DataError, match=r"\.png has changed since the data set was loaded"):
        InputCache(pool, tiny).features()
    with pytest.raises(DataError, match="has changed since"):
        pool.images.decode(np.arange(len(pool)), 8)
    fresh = load_dataset(str(folder))
    assert fresh.checksum() != pool.checksum()
    assert len(InputCache(fresh, tiny).features()) == len(fresh)


def test_no_wrong_feature_is_ever_served(tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign of random replacements between the steps, some within one tick of the clock.

    Whatever the shared cache serves for a folder is what an empty cache would give for the pixels that are there.
    """
    rng, folder, mirror = np.random.default_rng(0), bitmaps(tmp_path / "s", 4), tmp_path / "colleague"
    paths, refused = sorted(folder.rglob("*.png")), 0
    for step in range(40):
        WAYS[step % len(WAYS)](paths[rng.integers(len(paths))], 2 * step)
        pool = load_dataset(str(folder))
        if replaced := rng.random() < 0.5:
            WAYS[rng.integers(len(WAYS))](paths[rng.integers(len(paths))], 2 * step + 1)
        try:
            InputCache(pool, tiny).features()
        except DataError:
            assert replaced
            refused += 1
        shutil.rmtree(mirror, ignore_errors=True)
        shutil.copytree(folder, mirror)  # pixels as they are now, under names that were never seen
        found = InputCache(load_dataset(str(mirror)), tiny).features()[:]
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("PALKIT_CACHE", str(tmp_path / f"empty-{step}"))
            assert np.array_equal(found, InputCache(load_dataset(str(mirror)), tiny).features()[:])
    assert refused > 10


def test_hashes_of_young_files_are_not_kept(tmp_path: Path) -> None:
    """Two changes within a tick leave the same record: what is as young as that is looked at again."""
    folder = write_images(tmp_path / "s", count=3)
    images = load_dataset(str(folder)).images
    assert isinstance(images, FileImages)
    assert not any(facts.settled for facts in images.facts)
    assert images.is_current()


def test_a_labelling_session_keeps_to_the_images_it_was_opened_on(folder: Path, tiny_run: dict[str, Any]) -> None:
    """Renamed, gone or new images must not move the others by a row between labels and features."""
    run = {key: tiny_run[key] for key in ("backbone", "scoring", "training", "adapter") if key in tiny_run}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    for place, change in enumerate((lambda p: p.rename(p.with_name("900.png")), lambda p: p.unlink(), lambda p: None)):
        here = folder.parent / f"flat-{place}"
        here.mkdir()
        for name in names:
            shutil.copy(folder / name, here / name.replace("/", "-"))
        session = open_session(str(here), "ana", classes=["cat", "dog"], folder=here.parent / f"labels-{place}", **run)
        change(here / "cat-0.png")
        chosen = ["cat-3.png", "cat-5.png", "dog-3.png", "dog-7.png"]
        session.label(chosen, [name[:3] for name in chosen])
        with pytest.raises(DataError, match=r"cat-0\.png cannot be read") if place < 2 else nullcontext():
            session.fit()
        assert session.learner.pool.ids.tolist() == session.pool.ids.tolist()
