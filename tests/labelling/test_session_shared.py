"""Sessions while other things happen: other annotators, images that go, folders of one name, cancelled fits."""

import dataclasses
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from palkit.data import load_dataset
from palkit.errors import ConfigError, DataError
from palkit.labelling.answers import Answers
from palkit.labelling.exchange import read_label_studio
from palkit.labelling.session import Session, open_session


@pytest.fixture
def fields(tiny_run: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: value for key, value in tiny_run.items() if key not in ("dataset", "rounds", "pool_size", "batch_size")
    }
    return kept | {"adapter": {"name": "linear_probe"}, "batch_size": 4}


def images(folder: Path, brightness: int = 0) -> Path:
    """A folder of 20 images without labels, light and dark in turn."""
    rng = np.random.default_rng(brightness)
    folder.mkdir(parents=True)
    for number in range(20):
        pixels = rng.integers(0, 100, (40, 40, 3), dtype=np.uint8) + 120 * (number % 2) + brightness
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def answer(session: Session) -> list[str]:
    ids = session.open()["id"].tolist()
    session.label(ids, ["light" if int(name[:3]) % 2 else "dark" for name in ids])
    return ids


def test_two_who_propose_at_once_get_one_batch(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = images(tmp_path / "images")
    ana, ben = (
        open_session(str(folder), name, classes=["light", "dark"], budget=4, **fields) for name in ("ana", "ben")
    )
    choose = ana._choose

    def while_the_other_does(*arguments: Any) -> Any:
        ben.propose()
        return choose(*arguments)

    monkeypatch.setattr(ana, "_choose", while_the_other_does)
    batch = ana.propose()["id"].tolist()
    assert len(batch) == len(set(batch)) == 4
    assert ben.open()["id"].tolist() == batch
    assert len(ana.file.read().proposed) == 4


def test_an_image_that_went_after_it_was_labelled_is_left_out(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = images(tmp_path / "images")
    session = open_session(str(folder), "ana", classes=["light", "dark"], **fields)
    session.propose()
    first = answer(session)
    session.fit()
    dark = [int(name[:3]) % 2 == 0 for name in first]
    gone = first[dark.index(sum(dark) >= 2)]  # of the class that has more
    (folder / gone).unlink()
    with pytest.warns(UserWarning, match=f"1 labelled images are not in the pool.*{gone}"):
        again = open_session(str(folder), "ana", classes=["light", "dark"], **fields)
    assert len(again.pool) == 19
    batch = again.propose()["id"].tolist()
    assert len(batch) == 4
    assert not {*batch} & {*first}
    answer(again)
    assert len(again.fit().ids) == 7


def test_a_held_out_image_that_was_skipped_comes_back_after_the_next_fit(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    folder = images(tmp_path / "images")
    session = open_session(str(folder), "ana", classes=["light", "dark"], held_out=3, **fields)
    skipped = session.held_out[0]
    session.propose()
    session.skip(skipped)
    assert skipped not in session.open()["id"].tolist()
    answer(session)
    session.fit()
    assert session.open()["id"].tolist() == [skipped]


def test_folders_of_one_name_have_sessions_of_their_own(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "one" / "images")
    images(tmp_path / "other" / "images", brightness=30)
    monkeypatch.chdir(tmp_path / "one")
    first = open_session("images", "ana", classes=["light", "dark"], **fields)
    first.label("000.png", "dark")
    pixels = first.pool.checksum()
    monkeypatch.chdir(tmp_path / "other")
    second = open_session("images", "ana", classes=["light", "dark"], **fields)
    assert second.labels() == {}
    assert second.pool.checksum() != pixels
    again = open_session(str(tmp_path / "one" / "images"), "ana", classes=["light", "dark"], **fields)
    assert again.folder == first.folder
    assert again.labels() == {"000.png": "dark"}
    with pytest.raises(ConfigError, match=r"if the images have moved, move .*session\.json away"):
        open_session("images", "ana", classes=["light", "dark"], folder=first.folder, **fields)


def test_scores_beyond_memory_outlive_a_fit_that_was_cancelled(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALKIT_MEMORY", "1K")
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))
    folder = images(tmp_path / "images")
    adapter = {"adapter": {"name": "lora", "start_block": 2}}  # features that a fit changes
    session = open_session(str(folder), "ana", classes=["light", "dark"], **{**fields, **adapter})
    session.propose()
    answer(session)
    session.fit()
    assert session._fit is not None
    before = session._fit[1].scores.features[:].clone()
    session.propose()
    answer(session)

    def cancelled(stage: str, done: int, total: int) -> None:
        if stage == "scoring" and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.fit(cancelled)
    assert np.array_equal(session._fit[1].scores.features[:], before)
    session.fit()
    assert not np.array_equal(session._fit[1].scores.features[:], before)
    folders = list((tmp_path / "cache").glob("scores-*/*"))
    assert len(folders) <= 2, "one for each scores that are in use, one of the cancelled pass"


def test_an_imported_label_is_no_second_thought(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = images(tmp_path / "images")
    session = open_session(str(folder), "ana", classes=["light", "dark"], **fields)
    session.label("000.png", "dark")
    table = session.label_table().assign(label="light", time="2001-01-01T00:00:00+00:00")
    assert session.import_labels(table) == 0
    assert session.labels() == {"000.png": "dark"}
    assert session.import_labels(table.assign(time="")) == 1, "a label of now is newer"
    assert session.labels() == {"000.png": "light"}


def test_accents_may_be_typed_in_either_way(tmp_path: Path, fields: dict[str, Any]) -> None:
    """macOS decomposes the names of files, keyboards compose what is typed."""
    folder, apart = tmp_path / "images", "e\u0301"
    images(folder)
    for number in range(10):
        (folder / f"{number:03d}.png").rename(folder / f"{number:03d}{apart}.png")
    ana = open_session(str(folder), f"Am{apart}lie", classes=[f"caf{apart}", "dark"], **fields)
    assert ana.annotator == "Am\u00e9lie"
    assert ana.class_names == ("caf\u00e9", "dark")
    ana.label(["000\u00e9.png", f"001{apart}.png", "010.png"], ["caf\u00e9", f"caf{apart}", "dark"])
    with pytest.raises(ConfigError, match="exists already"):
        ana.add_class(f"caf{apart}")
    table = ana.label_table()
    assert table["annotator"].nunique() == 1
    decomposed = table.map(lambda text: unicodedata.normalize("NFD", text))
    assert ana.import_labels(decomposed) == 0
    again = open_session(str(folder), "Am\u00e9lie", classes=["caf\u00e9"], **fields)
    assert again.class_names == ("caf\u00e9", "dark")
    round_ = again.fit()
    assert sorted(round_.ids) == ["000\u00e9.png", "001\u00e9.png", "010.png"]
    again.propose()
    assert set(again.open()["id"]) <= again.row_of.keys()


def test_a_class_that_nobody_can_tell_from_another_is_not_added(tmp_path: Path, fields: dict[str, Any]) -> None:
    session = open_session(str(images(tmp_path / "images")), "ana", classes=["light grey", "dark"], **fields)
    for name in ("light\u00a0grey", "dark\u200b", "da\u00adrk", "light  grey"):
        with pytest.raises(ConfigError, match=r"looks like .* and differs in (spaces|characters that cannot be seen)"):
            session.add_class(name)
    session.add_class("Dark")
    assert session.class_names == ("light grey", "dark", "Dark")


def test_two_images_whose_names_look_the_same_are_refused(tmp_path: Path) -> None:
    pool = load_dataset("digits")
    ids = pool.ids.copy()
    ids[:2] = "caf\u00e9.png", "cafe\u0301.png"
    pool = dataclasses.replace(pool, ids=ids)
    with pytest.raises(DataError, match=r"'caf\\xe9\.png' and 'cafe\\u0301\.png' have names that look the same"):
        Answers(pool, range(5), "ana", (), tmp_path / "labels.jsonl")


def test_labels_from_a_label_studio_whose_root_lies_above_the_folder(tmp_path: Path, fields: dict[str, Any]) -> None:
    session = open_session(str(images(tmp_path / "images")), "ana", classes=["light", "dark"], **fields)
    path = tmp_path / "export.csv"
    path.write_text(
        "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at\n"
        "2,ben,light,2025-03-01T10:00:00Z,7,/data/local-files/?d=images/001.png,3.1,2025-03-01T10:00:00Z\n"
    )
    with pytest.warns(UserWarning, match=r"'images/001\.png' is '001\.png'"):
        assert session.import_labels(read_label_studio(path)) == 1
    assert session.label_table()[["id", "label", "annotator"]].values.tolist() == [["001.png", "light", "ben"]]
