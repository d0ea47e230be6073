"""What is read is what was written, or an error: one bit flipped anywhere in files of every format with a checksum."""

import errno
import os
import pickle
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from palkit.errors import DataError, OutOfMemoryError, StorageError
from palkit.labelling.labels import Event, LabelLog
from palkit.models.devices import memory_explained
from palkit.storage.files import atomic_folder, atomic_path, locked, read_json, storing, write_json
from palkit.storage.formats import new_array, read_table, save_array, write_table
from palkit.storage.shards import are_whole, filled, shard_path

TABLE = pd.DataFrame({"round": [0, 1, 2], "accuracy": [0.5, np.nan, 0.75], "id": ["a", "b", None]})


def flipped(path: Path, step: int = 1) -> Iterator[None]:
    """One bit after the other of a file is wrong; which bit of a byte changes from byte to byte."""
    content = path.read_bytes()
    for place in range(0, len(content), step):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        yield
    path.write_bytes(content)


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_table(TABLE, path)
    assert_frame_equal(read_table(path), TABLE)
    refused = 0
    for _ in flipped(path):
        try:
            assert_frame_equal(read_table(path), TABLE)
        except (OSError, ValueError, MemoryError):
            refused += 1
    assert refused > 100
    assert_frame_equal(read_table(path), TABLE)


def test_tables_of_others_are_read_too(tmp_path: Path) -> None:
    TABLE.to_parquet(tmp_path / "table.parquet")
    assert_frame_equal(read_table(tmp_path / "table.parquet"), TABLE)


def test_json(tmp_path: Path) -> None:
    path, content = tmp_path / "state.json", {"names": ["é", "b"], "rounds": {"3": 0.1}, "nothing": None}
    write_json(path, {"names": ["é", "b"], "rounds": {3: 0.1}, "nothing": None})
    assert read_json(path) == content
    refused = 0
    for _ in flipped(path):
        try:
            # Whoever calls the checksum by another name still gets the content.
            assert read_json(path).items() >= content.items()
        except ValueError:
            refused += 1
    assert refused > 50
    path.write_text('["a list"]')
    with pytest.raises(ValueError, match="not a JSON object"):
        read_json(path)


def checked(log: LabelLog) -> list[Event]:
    log.check()
    return log.events()


def test_logs_of_labels(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    events = [Event("2026-11-25T10:00:00+00:00", "ana", "label", name, "cat") for name in "ab"]
    log.append(events)
    for _ in flipped(log.path):
        reader = LabelLog(log.path)
        with pytest.raises(DataError, match=r"labels\.jsonl"):
            checked(reader)
    assert LabelLog(log.path).events() == events


def test_damaged_shards_are_computed_again_and_no_others(tmp_path: Path) -> None:
    written: list[int] = []

    def fill() -> int:
        for number in range(3):
            if not shard_path(tmp_path, number).exists():
                np.save(shard_path(tmp_path, number), np.full((2, 2), number, np.float32))
                written.append(number)
        return 3

    rows = filled(tmp_path, {}, fill)[:]
    assert are_whole(tmp_path)
    for _ in flipped(shard_path(tmp_path, 1), step=10):
        written.clear()
        assert not are_whole(tmp_path)
        assert (filled(tmp_path, {}, fill)[:] == rows).all()
        assert written == [1]
    shard_path(tmp_path, 2).unlink()
    assert (filled(tmp_path, {}, fill)[:] == rows).all()
    written.clear()
    (tmp_path / "manifest.json").write_text("{")
    assert (filled(tmp_path, {}, fill)[:] == rows).all()
    assert written == [0, 1, 2], "nobody knows any more which of them are whole"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EROFS, "Make it writable"),
        (errno.EFBIG, "Raise the limit"),
        (errno.ENAMETOOLONG, "Give it a shorter name"),
    ],
)
def test_what_cannot_be_written_is_named_with_a_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    text = rf"file\.txt cannot be written \({os.strerror(number)}\). {remedy}"
    with pytest.raises(StorageError, match=text) as caught, atomic_path(path):
        raise OSError(number, os.strerror(number))
    assert [str(error) for error in (caught.value, pickle.loads(pickle.dumps(caught.value)))] == [str(caught.value)] * 2
    assert [one.name for one in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077], ids=oct)
def test_the_umask_decides_who_may_read_and_change_what_is_written(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "file.txt") as temporary:
            temporary.write_text("new")
            meanwhile = temporary.stat().st_mode
        with atomic_folder(tmp_path / "folder") as made:
            (made / "part").write_text("new")
        write_json(tmp_path / "new folder" / "file.json", {})
        with locked(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {
        "file.txt": files, "lock": files, "folder": folders, "folder/part": files,
        "new folder": folders, "new folder/file.json": files,
    }  # fmt: skip
    assert stat.S_IMODE(meanwhile) == files, "neither looser nor narrower than it will be"


def test_a_folder_of_a_group_stays_one(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    with atomic_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize(
    ("place", "named"), [("runs/a/b", "PALKIT_RUNS"), ("cache/a", "PALKIT_CACHE"), ("runs-of-others/a", None)]
)
def test_only_a_folder_that_can_be_chosen_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, named: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALKIT_RUNS", "runs")
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(StorageError) as caught, storing(tmp_path / place):
        raise OSError(errno.ENOSPC, "full")
    assert re.findall("PALKIT_[A-Z]+", str(caught.value)) == ([named] if named else [])


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/\.lock cannot be written"), locked(tmp_path / "file" / ".lock"):
        pass


def test_the_place_of_an_array_is_reserved(tmp_path: Path) -> None:
    array = new_array(tmp_path / "array.npy", np.float32, (1000, 100))
    assert (tmp_path / "array.npy").stat().st_blocks * 512 >= array.nbytes
    assert np.load(tmp_path / "array.npy").shape == (1000, 100)


def test_no_array_is_cut_short_without_an_error(tmp_path: Path) -> None:
    """The last hundred bytes, with a limit in place of a full disk: `numpy.save` leaves them out in silence."""
    code = (
        "import resource, sys, numpy as np; from palkit.storage.formats import save_array\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (15400, resource.RLIM_INFINITY))\n"
        "save_array(np.ones(15360, np.uint8), sys.argv[1])"
    )
    path = tmp_path / "array.npy"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in done.stderr
    save_array(np.arange(6).reshape(2, 3), path)
    assert np.load(path).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("could not create a primitive"), OSError(12, "Cannot allocate memory")]
)
def test_memory_that_ran_out_is_explained(error: Exception) -> None:
    with (
        pytest.raises(OutOfMemoryError, match=r"memory ran out.*PALKIT_MEMORY.*goes on where it was"),
        memory_explained(),
    ):
        raise error
    with pytest.raises(RuntimeError, match="other"), memory_explained():
        raise RuntimeError("other")
