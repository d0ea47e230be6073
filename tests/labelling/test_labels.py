"""The label log: nothing acknowledged is lost, whatever happens to its writers, and what follows from it."""

import json
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import palkit.labelling.labels
from palkit.errors import DataError
from palkit.labelling.labels import (
    Event,
    LabelLog,
    agreed,
    agreement,
    classes,
    disagreements,
    last_answer,
    now,
    skipped,
    standing,
)
from palkit.storage.checks import normal

TIME = "2026-11-25T10:00:00.000+00:00"
TEXT = st.text(min_size=1, max_size=8)


def event(annotator: str, action: str, id_: str = "", label: str = "") -> Event:
    return Event(TIME, annotator, action, id_, label)


def says(annotator: str, id_: str, label: str) -> Event:
    return event(annotator, "label", id_, label)


@settings(max_examples=40)
@given(st.lists(st.builds(Event, st.just(TIME), TEXT, st.sampled_from(["label", "undo", "class"]), TEXT, TEXT)))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    """Any text survives, line breaks of any script included, in one write or several; accents are read in one way."""
    path = tmp_path_factory.mktemp("log") / "labels.jsonl"
    writer, reader = LabelLog(path), LabelLog(path)
    for one in events[:2]:
        writer.append([one])
        reader.events()
    writer.append(events[2:])
    read = [replace(e, annotator=normal(e.annotator), id=normal(e.id), label=normal(e.label)) for e in events]
    assert reader.events() == read == LabelLog(path).events()
    assert [json.loads(line)["annotator"] for line in path.read_text().split("\n")[:-1]] == [
        event.annotator for event in events
    ]


def test_names_of_files_may_be_any_bytes(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    name = os.fsdecode(b"caf\xe9.png")
    log.append([says("a", name, "cat")])
    assert [one.id for one in log.events()] == [name]
    assert b"caf\xe9.png" in log.path.read_bytes()


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("Zoë", "a/b.png", "tumor"), event("Zoë", "undo")])
    first, second = log.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {
        "time": TIME, "annotator": "Zoë", "action": "label", "id": "a/b.png", "label": "tumor",
        "crc": json.loads(first)["crc"],
    }  # fmt: skip
    assert "Zoë" in first
    assert json.loads(second) == {"time": TIME, "annotator": "Zoë", "action": "undo", "crc": json.loads(second)["crc"]}


def test_a_line_that_was_changed_is_named_until_its_checksum_is_removed(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "cat"), says("a", "2", "cat")])
    first, second = log.path.read_text().splitlines()
    changed = second.replace('"cat"', '"cas"')
    log.path.write_text(f"{first}\n{changed}\n")
    with pytest.raises(DataError, match=r"labels\.jsonl, line 2: .*it was changed: if that was you, remove its 'crc'"):
        LabelLog(log.path).events()
    mended = {name: value for name, value in json.loads(changed).items() if name != "crc"}
    log.path.write_text(f"{first}\n{json.dumps(mended)}\n")
    assert [one.label for one in LabelLog(log.path).events()] == ["cat", "cas"]


@pytest.mark.parametrize("left", [0, 1, 0.5, -2], ids=["nothing", "a byte", "half", "all but a brace"])
def test_a_file_that_lost_its_end_is_named(tmp_path: Path, left: float) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "cat")])
    log.append([says("a", "2", "dog")])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[: int(left * len(whole)) if 0 < left < 1 else int(left)])
    for touch in (log.check, lambda: log.append([says("a", "3", "owl")])):
        with pytest.raises(DataError, match=r"labels\.jsonl has lost its end.*Restore.*delete \S+labels\.jsonl\.size$"):
            touch()
    log.path.write_bytes(whole)
    log.check()


def test_who_goes_on_with_what_is_left_deletes_the_size(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "cat"), says("a", "2", "dog")])
    log.path.write_bytes(log.path.read_bytes().splitlines(keepends=True)[0])
    (tmp_path / "labels.jsonl.size").unlink()
    LabelLog(log.path).append([says("a", "3", "owl")])
    assert [one.id for one in LabelLog(log.path).events()] == ["1", "3"]


EDITORS = {
    "Windows line ends": lambda text: text.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "both": lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
    "spaces around lines": lambda text: text.replace(b"\n", b"  \n"),
    "blank lines": lambda text: text.replace(b"\n", b"\n \n\n"),
    "comments": lambda text: b"# by Ana\n" + text.replace(b"\n", b"\n  # seen\n"),
}


@pytest.mark.parametrize("saved", EDITORS.values(), ids=EDITORS)
def test_what_an_editor_adds_loses_nothing_and_is_said(tmp_path: Path, saved: Callable[[bytes], bytes]) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "cat"), says("a", "2", "dog")])
    watching = LabelLog(log.path)
    watching.events()
    log.path.write_bytes(saved(log.path.read_bytes()))
    with pytest.warns(UserWarning, match=r"labels\.jsonl was saved by an editor.*Nothing is lost"):
        assert [one.id for one in LabelLog(log.path).events()] == ["1", "2"]
    for number in ("3", "4"):
        LabelLog(log.path).append([says("a", number, "owl")])
    with pytest.warns(UserWarning, match="saved by an editor"):
        assert [one.id for one in watching.events()] == ["1", "2", "3", "4"]
    # Saved once more, by an editor that takes all of it away: that is not the loss of an end, and a loss still is.
    lines = log.path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    plain = b"".join(line.strip() + b"\n" for line in lines if line.strip().startswith(b"{"))
    for content in (plain, saved(plain)):
        log.path.write_bytes(content)
        log.check()
        log.path.write_bytes(saved(b"".join(plain.splitlines(keepends=True)[:-1])))
        with pytest.raises(DataError, match="lost its end"):
            log.check()


QUIET = {
    "no last line end": lambda text: text[:-1],
    "no last Windows line end": lambda text: text.replace(b"\n", b"\r\n")[:-2],
    "accents apart": lambda text: text.replace("é".encode(), "e\u0301".encode()),
    "escapes": lambda text: text.replace("é".encode(), b"\\u00e9"),
    "tabs": lambda text: text.replace(b" ", b"\t"),
    "shorter": lambda text: text.replace(b'": "', b'":"')[:-1],
}


@pytest.mark.parametrize("saved", QUIET.values(), ids=QUIET)
@pytest.mark.filterwarnings("ignore:.*saved by an editor")
def test_what_an_editor_changes_without_a_loss_is_read_and_a_loss_is_still_noticed(
    tmp_path: Path, saved: Callable[[bytes], bytes]
) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "café"), says("a", "2", "café")])
    whole = log.path.read_bytes()
    log.path.write_bytes(saved(whole))
    again = LabelLog(log.path)
    again.check()
    assert [(one.id, one.label) for one in again.events()] == [("1", "café"), ("2", "café")]
    again.append([says("a", "3", "owl")])
    again.append([says("a", "4", "owl")])
    for reader in (again, LabelLog(log.path)):
        reader.check()
        assert [one.id for one in reader.events()] == ["1", "2", "3", "4"]
    last = log.path.read_bytes()
    for left in (saved(whole), last[:-20], b"".join(last.splitlines(keepends=True)[1:])):
        log.path.write_bytes(left)
        with pytest.raises(DataError, match="lost its end"):
            LabelLog(log.path).check()
    # Blank lines, spaces and comments do not stand for what is missing.
    first = last.splitlines(keepends=True)[0]
    written = int((tmp_path / "labels.jsonl.size").read_text())
    for padding in (b"\n" * (written - len(first)), b"\n" * 999, b" " * 999 + b"\n", b"# all is well\n" * 99):
        log.path.write_bytes(first + padding)
        with pytest.raises(DataError, match="lost its end"):
            LabelLog(log.path).check()


def test_windows_line_ends_make_no_append_read_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", str(number), "cat") for number in range(5)])
    log.path.write_bytes(log.path.read_bytes().replace(b"\n", b"\r\n"))
    parsed = []
    monkeypatch.setattr(palkit.labelling.labels, "_parsed", parsed.append)
    log.append([says("a", "5", "cat")])
    log.check()
    assert not parsed
    assert len((tmp_path / "labels.jsonl").read_bytes().splitlines()) == 6


def test_a_lost_end_is_not_confused_with_a_line_that_is_no_event(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "café"), says("a", "2", "owl")])
    log.path.write_bytes(log.path.read_bytes().replace("é".encode(), b"\xe9"))
    with pytest.raises(DataError, match=r"labels\.jsonl, line 1: .*it was changed"):
        log.check()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_log_that_was_saved_as_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "cat")])
    changed = log.path.read_text(encoding="utf-8").encode(encoding)
    log.path.write_bytes(changed)
    for touch in (LabelLog(log.path).events, log.check, lambda: log.append([says("a", "2", "dog")])):
        with pytest.raises(
            DataError, match=r"labels\.jsonl was saved by an editor as UTF-16 .*save it once more as UTF-8"
        ):
            touch()
    assert log.path.read_bytes() == changed


def test_names_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    """macOS decomposes accents, keyboards mostly do not."""
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("Zoe\u0308", "cafe\u0301.png", "cafe\u0301"), says("Zo\u00eb", "caf\u00e9.png", "caf\u00e9")])
    table = standing(log.events())
    assert table[["id", "annotator", "label"]].values.tolist() == [["caf\u00e9.png", "Zo\u00eb", "caf\u00e9"]]
    assert classes(log.events()) == ("caf\u00e9",)
    assert last_answer(log.events(), "Zo\u00eb") == log.events()[-1]


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder of a group; pytest's own is for one user only."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 1501, 2000)
        os.chmod(folder, 0o2775)
        yield Path(folder)


def as_user(number: int, umask: int, act: Callable[[], object]) -> str:
    """Let another user do something in a process of its own; what went wrong, or ""."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.setgroups([])
        os.setgid(2000)
        os.setuid(number)
        os.umask(umask)
        said = ""
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                act()
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
        os.write(writing, (said + "".join(str(one.message) for one in warned)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become two users")
@pytest.mark.parametrize("size_mode", [0o664, 0o644], ids=["as it is made", "of a user with a narrow umask"])
def test_two_users_of_a_group_notice_what_is_lost(shared_folder: Path, size_mode: int) -> None:
    path = shared_folder / "labels.jsonl"
    assert as_user(1501, 0o002, lambda: LabelLog(path).append([says("ana", "1", "cat")])) == ""
    size = shared_folder / "labels.jsonl.size"
    size.chmod(size_mode)
    assert as_user(1502, 0o002, lambda: LabelLog(path).append([says("ben", "2", "dog")])) == ""
    assert as_user(1501, 0o002, lambda: LabelLog(path).append([says("ana", "3", "owl")])) == ""
    assert int(size.read_text()) == path.stat().st_size
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert "lost its end" in as_user(1502, 0o002, LabelLog(path).check)


def test_an_answer_while_a_log_is_checked_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else answers just after the file has been read, and before anything is compared with it."""
    log, other, read = LabelLog(tmp_path / "labels.jsonl"), LabelLog(tmp_path / "labels.jsonl"), LabelLog._read
    log.append([says("ana", "1", "cat")])

    def then_another(self: LabelLog) -> bytes:
        content = read(self)
        if self is log:
            other.append([says("ben", "2", "dog")])
        return content

    monkeypatch.setattr(LabelLog, "_read", then_another)
    log.check()
    assert [one.id for one in other.events()] == ["1", "2"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become two users")
def test_a_size_that_cannot_be_kept_or_read_is_said(shared_folder: Path) -> None:
    path, size = shared_folder / "labels.jsonl", shared_folder / "labels.jsonl.size"
    as_user(1501, 0o002, lambda: LabelLog(path).append([says("ana", "1", "cat")]))
    size.chmod(0o644)
    shared_folder.chmod(0o755)
    said = as_user(1502, 0o002, lambda: LabelLog(path).append([says("ben", "2", "dog")]))
    assert "labels.jsonl.size cannot be written" in said
    assert "What you did is stored" in said
    assert [one.id for one in LabelLog(path).events()] == ["1", "2"]
    size.chmod(0o600)
    assert "labels.jsonl.size cannot be read (Permission denied)" in as_user(1502, 0o002, LabelLog(path).check)


def test_skips_have_places_in_the_log_and_no_times() -> None:
    events = [says("a", "1", "cat"), event("a", "skip", "2"), event("b", "skip", "1"), event("a", "skip", "3")]
    assert skipped(events) == {("2", "a"): 1, ("1", "b"): 2, ("3", "a"): 3}
    assert skipped([*events, event("a", "undo"), says("b", "1", "cat")]) == {("2", "a"): 1}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_line_costs_only_itself(tmp_path: Path, cut: int) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "cat"), says("a", "2", "dog")])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-cut])
    (tmp_path / "labels.jsonl.size").unlink()  # whoever was killed did not come to that
    LabelLog(log.path).append([says("a", "3", "owl")])
    # One byte less is the line break alone: the line is complete and counts.
    expected = ["1", "2", "3"] if cut == 1 else ["1", "3"]
    assert [one.id for one in LabelLog(log.path).events()] == expected
    assert log.path.read_bytes().startswith(whole[:-cut]), "append-only"


def test_a_line_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    LabelLog(path).append([says("a", "1", "cat"), says("a", "2", "dog")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    reader = LabelLog(path)
    assert [one.id for one in reader.events()] == ["1"]
    path.write_bytes(whole)
    assert [one.id for one in reader.events()] == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "line 2: it is not a line of a label log (Expecting value). Mend"),
        (b"[1]", "must be an object"),
        (b'{"time": "2026-01-01T12:00:00+00:00", "annotator": "a", "action": "fly"}', "unknown action 'fly'"),
        (b'{"time": "today", "annotator": "a", "action": "undo"}', "the time 'today' is not ISO 8601"),
        (b'{"time": "2026-01-01T12:00:00+00:00", "annotator": 3, "action": "undo"}', "the annotator 3 must be text"),
        (
            b'{"time": "2026-01-01T12:00:00+00:00", "annotator": "a", "action": "undo", "who": ""}',
            "unknown field 'who'",
        ),
        (b"\xff\xfe", "Expecting value"),
        (b'{"time": "2026-01-01T12:00:00+00:00", "annotator": "a", "action": "class"}', "line 2: action 'class' needs"),
    ],
)
def test_a_broken_line_is_named_and_not_passed_over(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "labels.jsonl"
    LabelLog(path).append([says("a", "1", "cat")])
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    with pytest.raises(DataError, match=r"labels\.jsonl, line 2: ") as caught:
        LabelLog(path).events()
    assert reason in str(caught.value)


def test_a_file_shortened_by_hand_is_read_anew(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "cat"), says("a", "2", "dog")])
    assert len(log.events()) == 2
    log.path.write_bytes(log.path.read_bytes().splitlines(keepends=True)[1])
    assert [one.id for one in log.events()] == ["2"]


def test_a_failed_write_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LabelLog(tmp_path / "labels.jsonl")
    log.append([says("a", "1", "cat")])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"not stored.*\bdo it again"):
            log.append([says("a", "2", "dog")])
    log.append([says("a", "3", "owl")])
    assert [one.id for one in log.events()] == ["1", "3"]


def _write_for_ever(path: Path, annotator: str, acknowledged: Path) -> None:
    log = LabelLog(path)
    with open(acknowledged, "a") as told:
        for number in range(10**6):
            log.append([says(annotator, str(number), "x" * 50)])
            told.write(f"{number}\n")
            told.flush()


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line] if file.exists() else []


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Three annotators label as fast as they can, each killed at another moment, again and again."""
    path, context = tmp_path / "labels.jsonl", multiprocessing.get_context("fork")
    told = {name: tmp_path / name for name in ("ana", "ben", "eve")}
    for turn in range(3):
        workers = [context.Process(target=_write_for_ever, args=(path, name, file)) for name, file in told.items()]
        for worker in workers:
            worker.start()
        before = {name: len(_lines(file)) for name, file in told.items()}
        for worker, (name, file) in zip(workers, told.items(), strict=True):
            while len(_lines(file)) < before[name] + 3:
                time.sleep(0.01)
            time.sleep(0.03 * turn)
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
    events = LabelLog(path).events()
    for name, file in told.items():
        acknowledged = _lines(file)
        written = [one.id for one in events if one.annotator == name]
        # The last number of a turn may have been written and not acknowledged; the acknowledging file may be torn.
        assert len(acknowledged) > 5
        assert len(written) - len(acknowledged) in range(4)
        assert set(acknowledged) <= set(written)


def _reference(events: list[Event]) -> dict[tuple[str, str], tuple[str, str]]:
    """What stands, by dropping undone answers one by one from the whole history."""
    left = list(events)
    while any(one.action == "undo" for one in left):
        place = next(i for i, one in enumerate(left) if one.action == "undo")
        earlier = [
            i for i, one in enumerate(left[:place])
            if one.annotator == left[place].annotator and one.action in ("label", "skip", "unsure")
        ]  # fmt: skip
        del left[place]
        if earlier:
            del left[earlier[-1]]
    return {(one.id, one.annotator): (one.action, one.label) for one in left if one.action != "class"}


ACTION = st.sampled_from(["label", "label", "label", "unsure", "skip", "undo", "class"])


@given(st.lists(st.builds(event, st.sampled_from("ab"), ACTION, st.sampled_from("123"), st.sampled_from("xy"))))
def test_what_stands_is_what_a_slow_replay_leaves(events: list[Event]) -> None:
    table = standing(events)
    found = {(one.id, one.annotator): (one.answer, one.label) for one in table.itertuples()}
    assert found == _reference(events)
    for annotator in "ab":
        last = last_answer(events, annotator)
        after = _reference([*events, event(annotator, "undo")])
        if last is None:
            assert after == _reference(events)
        else:
            assert after == _reference([one for one in events if one is not last])


def test_more_voices_win_and_a_tie_is_disputed() -> None:
    events = [says("a", "1", "x"), says("b", "1", "x"), says("c", "1", "y")]
    events += [says("a", "2", "x"), says("b", "2", "y"), says("a", "3", "y"), event("b", "unsure", "3")]
    table = standing(events)
    assert agreed(table) == {"1": "x", "3": "y"}
    expected = pd.DataFrame({"a": ["x", "x"], "b": ["x", "y"], "c": ["y", ""]}, index=pd.Index(["1", "2"], name="id"))
    pd.testing.assert_frame_equal(disagreements(table), expected)
    assert agreed(standing([*events, says("b", "2", "x")])) == {"1": "x", "2": "x", "3": "y"}


def test_agreement_is_cohens_kappa_by_hand() -> None:
    first, second = "xxxxyyyyzz", "xxyxyyyxzz"
    events = [says("a", str(i), label) for i, label in enumerate(first)]
    events += [says("b", str(i), label) for i, label in enumerate(second)] + [says("c", "0", "x")]
    table = agreement(standing(events)).set_index(["first", "second"])
    same = np.mean([one == other for one, other in zip(first, second, strict=True)])
    chance = sum(first.count(c) * second.count(c) for c in "xyz") / 100
    assert table.loc[("a", "b"), "images"] == 10
    assert table.loc[("a", "b"), "same"] == pytest.approx(same)
    assert table.loc[("a", "b"), "kappa"] == pytest.approx((same - chance) / (1 - chance))
    assert np.isnan(table.loc[("a", "c"), "kappa"])
    assert agreement(standing([])).empty
    assert disagreements(standing([])).empty
    assert agreed(standing([])) == {}


def test_classes_keep_their_order() -> None:
    events = [event("a", "class", label="owl"), says("a", "1", "cat"), event("b", "class", label="ant")]
    assert classes(events, ["dog", "cat"]) == ("dog", "cat", "owl", "ant")


def test_now_is_utc_with_milliseconds() -> None:
    assert len(now()) == len(TIME)
    assert now().endswith("+00:00")
