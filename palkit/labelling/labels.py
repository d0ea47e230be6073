"""Labels that people give: an append-only log of what they did, and what follows from it."""

import codecs
import json
import os
import re
import threading
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import IO, Literal

import pandas as pd
from filelock import FileLock
from sklearn.metrics import cohen_kappa_score

from palkit.errors import DataError
from palkit.storage.checks import normal
from palkit.storage.files import write_text

ANSWERS = ("label", "unsure", "skip")
NEEDED = {
    "label": ("annotator", "id", "label"),
    "unsure": ("annotator", "id"),
    "skip": ("annotator", "id"),
    "undo": ("annotator",),
    "class": ("annotator", "label"),
}
ACTIONS = tuple(NEEDED)
INCOMPLETE = b" (incomplete)"  # ends a line whose writer was killed in the middle of it
ENDS = (b"}\n", b")\n")  # of what palkit writes: an event, or an incomplete one
LONGEST = 2**16  # bytes of a line
CHECKSUM = "crc"  # of a line, by which a damaged one is told
SIZE = ".size"  # what the name of the file ends in that says how many bytes have been written
FILE_NAMES = "surrogateescape"  # a file's name may be any bytes
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # of UTF-32 too, whose little-endian mark begins with that of UTF-16
COLUMNS = ("id", "annotator", "answer", "label", "time")
COMMENT = b"#"  # begins a line that somebody wrote for people
BY_HAND = {  # what an editor, or who uses it, leaves in a file
    "Windows line ends": re.compile(rb"\r\n"),
    "spaces around lines": re.compile(rb"(?m)^[ \t]+\S|[ \t]\r?$"),
    "blank lines": re.compile(rb"(?m)^[ \t\r]*\n"),
    "comments": re.compile(rb"(?m)^[ \t]*#"),
}


@dataclass(frozen=True)
class Event:
    """One thing that somebody did.

    Attributes:
        time: ISO 8601 with offset.
        annotator: who.
        action: "label", "unsure" (seen, and no label can be given), "skip" (not now), "undo" (takes back the
            annotator's last answer that still stands) or "class" (there is a new class).
        id: of the image; "" for "undo" and "class".
        label: class name, for "label" and "class".
    """

    time: str
    annotator: str
    action: str
    id: str = ""
    label: str = ""


def now() -> str:
    """The time of an event, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class LabelLog:
    """A file to which events are appended, one JSON object a line; several processes and users may do so at once.

    An editor may leave a byte order mark, Windows line ends, spaces and blank lines in it, compose accents or take them
    apart, and take the last line end away; lines that begin with # are comments. Two names that look the same are the
    same, however they were typed.

    Attributes:
        edited: how often somebody has changed the file by hand; as long as nobody does, events are only added.

    Args:
        path: of the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.edited = 0
        self._reading = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._events: list[Event] = []
        self._size = 0  # bytes that have been read
        self._lines = 0
        self._modified = 0  # when, in nanoseconds

    def append(self, events: Sequence[Event]) -> None:
        """Write events; when this returns they are on the disk.

        Raises:
            DataError: the file cannot be written, or has lost its end; nothing of them is in it then.
        """
        lines = b"".join(_line(event) for event in events)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), open(self.path, "ab+") as file:
                before = file.seek(0, os.SEEK_END)
                added = self.check()
                try:
                    file.write(_mend(file, before) + lines)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), before)  # a full disk must not keep half of a line
                    raise
                self._record(file.tell() - added)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written ({error}); what you did last is not stored. Make room on the disk, or "
                "make the file writable, and do it again."
            ) from error

    def events(self) -> list[Event]:
        """All events so far, those of other processes included; only what is new is read.

        Raises:
            DataError: the file cannot be read, or a line is not an event; names it.
        """
        with self._reading:
            state = self.path.stat() if self.path.exists() else None
            size, modified = (state.st_size, state.st_mtime_ns) if state else (0, 0)
            if self._is_edited(size, modified):
                self.edited += 1
                self._forget()
            self._modified = modified
            if size > self._size:
                new = self._read_from(self._size)
                if not self._size:
                    self._refuse_wide(new)
                    mark, new = _divided(new)
                    self._warn_of_editor(mark, new[: new.rfind(b"\n") + 1])
                    self._size = len(mark)
                # What follows the last line break may still be being written.
                complete = new[: new.rfind(b"\n") + 1]
                numbered = enumerate(complete.split(b"\n")[:-1], start=self._lines + 1)
                self._events += [
                    _event(line, f"{self.path}, line {number}") for number, line in numbered if _is_event(line)
                ]
                self._lines += complete.count(b"\n")
                self._size += len(complete)
                last = new[len(complete) :]
                if _is_whole(last):  # an editor took the line end away
                    return [*self._events, _event(last, "")]
            return list(self._events)

    def _is_edited(self, size: int, modified: int) -> bool:
        """Whether somebody has changed by hand what has been read already, as far as that can be seen cheaply."""
        if size == self._size:
            return modified != self._modified
        return size < self._size or bool(self._size and self._read_from(self._size - 1)[:1] != b"\n")

    def check(self) -> int:
        """Compare the file's end with what has been written so far.

        Returns:
            Bytes that an editor has added to it, less those that it took away: a byte order mark, carriage returns,
            spaces, comments and so on. The lines are counted as palkit writes them.

        Raises:
            DataError: something is missing, or the file is not UTF-8 any more.
        """
        written = self._written()
        there = self.path.stat().st_size if self.path.exists() else 0
        if there == written and (not there or self._read_from(there - 2) in ENDS):
            return 0
        content = self._read_from(0) if there else b""
        self._refuse_wide(content)
        text = _divided(content)[1]
        plain = text.replace(b"\r\n", b"\n")
        if len(plain) == written and plain.endswith(ENDS):
            return len(content) - written
        *lines, last = text.split(b"\n")
        whole = _is_whole(last)
        kept = sum(map(_written_size, [*lines, *[last] * whole]))
        if kept < written:
            for number, line in enumerate(lines, 1):
                if _is_event(line):
                    _event(line, f"{self.path}, line {number}")  # one that somebody damaged is not lost, but named
            raise DataError(
                f"{self.path} has lost its end, or lines before it: of {written} bytes that had been written {kept} "
                "are there, and labels may be missing. Restore the file from a backup. To go on with what is left, or "
                f"if you shortened it yourself, delete {self._size_path}"
            )
        # The next line to be written ends the last one, as whoever wrote that had done.
        return len(content) + whole - kept - len(last) * (not whole)

    def _refuse_wide(self, content: bytes) -> None:
        """DataError if an editor has saved the file as UTF-16 or UTF-32."""
        if content.startswith(WIDE) or b"\0" in content[:4]:
            raise DataError(
                f"{self.path} was saved by an editor as UTF-16 or UTF-32 (Notepad calls it Unicode). Nothing is lost: "
                "save it once more as UTF-8."
            )

    def _warn_of_editor(self, mark: bytes, lines: bytes) -> None:
        found = ["a byte order mark"] * bool(mark) + [name for name, sign in BY_HAND.items() if sign.search(lines)]
        if found:
            warnings.warn(
                f"{self.path} was saved by an editor, with {', '.join(found)}. Nothing is lost by that: all lines are "
                "read, and what comes is added.",
                stacklevel=3,
            )

    @property
    def _size_path(self) -> Path:
        return self.path.with_name(self.path.name + SIZE)

    def _written(self) -> int:
        """Bytes known to have been written, as palkit writes them; 0 if nobody knows.

        Raises:
            DataError: this user may not read it.
        """
        try:
            return int(self._size_path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return 0
        except OSError as error:
            raise DataError(
                f"{self._size_path} cannot be read ({error.strerror}), so nobody would notice labels that are lost. "
                "Make it readable for all who label here."
            ) from error

    def _record(self, size: int) -> None:
        """Note how many bytes have been written; without room for that the labels are stored all the same."""
        text = f"{size:020d}\n"
        try:
            try:
                # A number of one length is overwritten in place: killed in between, it is the old or the new one.
                with open(os.open(self._size_path, os.O_WRONLY | os.O_CREAT, 0o666), "w", encoding="ascii") as file:
                    file.write(text)
            except PermissionError:  # another user's, made under a narrow umask: the folder is what both may change
                write_text(self._size_path, text)
        except OSError as error:
            warnings.warn(
                f"{self._size_path} cannot be written ({error}). What you did is stored, but if the end of "
                f"{self.path.name} is lost, nobody notices. Make room, or make it writable for all who label here.",
                stacklevel=3,
            )

    def _read_from(self, start: int) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error}). Make it a readable file.") from error


def _divided(content: bytes) -> tuple[bytes, bytes]:
    """The byte order mark that an editor may have put first, and the rest."""
    rest = content.removeprefix(codecs.BOM_UTF8)
    return content[: len(content) - len(rest)], rest


def _mend(file: IO[bytes], size: int) -> bytes:
    """What a file must get first whose last line lacks its end because its writer was killed."""
    file.seek(max(0, size - LONGEST))
    tail = file.read().rsplit(b"\n", 1)[-1]
    if not tail:
        return b""
    return b"\n" if _is_whole(tail) else INCOMPLETE + b"\n"


def _is_event(line: bytes) -> bool:
    """Whether a line must be an event: it is not blank, no comment, and its writer came to its end."""
    return not (not line.strip() or line.lstrip().startswith(COMMENT) or line.rstrip().endswith(INCOMPLETE))


def _is_whole(line: bytes) -> bool:
    """Whether a line without an end is an event all the same."""
    try:
        _event(line, "")
    except DataError:
        return False
    return True


def _written_size(line: bytes) -> int:
    """Bytes of a line and its end as palkit has written them, whatever an editor has made of it."""
    if not line.rstrip().endswith(INCOMPLETE) and not _is_event(line):
        return 0
    try:
        return len(_line(_as_written(line, "")))
    except DataError:
        return len(line.rstrip()) + 1


def _line(event: Event) -> bytes:
    return _packed({**_plain(event), CHECKSUM: _checksum(event)}) + b"\n"


def _plain(event: Event) -> dict[str, str]:
    return {name: value for name, value in asdict(event).items() if value}


def _packed(values: dict[str, str]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode(errors=FILE_NAMES)


def _checksum(event: Event) -> str:
    return f"{zlib.crc32(_packed(_plain(event))):08x}"


def _event(line: bytes, where: str) -> Event:
    """The event of a line, its names as they are compared."""
    event = _as_written(line, where)
    return replace(event, annotator=normal(event.annotator), id=normal(event.id), label=normal(event.label))


def _as_written(line: bytes, where: str) -> Event:
    """The event of a line with the names that were written: an editor may have composed accents, or taken them apart.

    Raises:
        DataError: it is none, or was changed.
    """
    try:
        values = json.loads(line.decode(errors=FILE_NAMES))
        checksum = values.pop(CHECKSUM, None) if isinstance(values, dict) else None
        event = Event(**values)
        if event.action not in ACTIONS:
            raise ValueError(f"action {event.action!r} is none of {', '.join(ACTIONS)}")
        if not all(isinstance(value, str) for value in asdict(event).values()):
            raise ValueError("all values must be text")
        if datetime.fromisoformat(event.time).tzinfo is None:
            raise ValueError(f"the time {event.time!r} has no offset")
        lacking = [name for name in NEEDED[event.action] if not getattr(event, name)]
        if lacking:
            raise ValueError(f"action {event.action!r} needs {' and '.join(lacking)}")
        forms = [event, *(Event(**_in_form(form, event)) for form in ("NFC", "NFD"))]
        found = next((one for one in forms if checksum in (None, _checksum(one))), None)
        if found is None:
            raise ValueError(f"it was changed: if that was you, remove its {CHECKSUM!r}")
    except (ValueError, TypeError) as error:  # JSON and Unicode errors are ValueErrors
        raise DataError(
            f"{where}: this is not a line of a label log ({error}): {line[:200].decode(errors='replace')!r}. Mend or "
            "remove the line; the others stand."
        ) from error
    return found


def _in_form(form: Literal["NFC", "NFD"], event: Event) -> dict[str, str]:
    return {name: unicodedata.normalize(form, value) for name, value in asdict(event).items()}


def classes(events: Iterable[Event], known: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of all classes: the known ones, then those that were added or used, in order."""
    named = [event.label for event in events if event.action in ("class", "label")]
    return tuple(dict.fromkeys([*known, *named]))


def standing(events: Iterable[Event]) -> pd.DataFrame:
    """What stands after undoing, corrections and second thoughts.

    Returns:
        One row per image and annotator, in order of time of answering: id, annotator, answer ("label", "unsure" or
        "skip"), label ("" unless there is one), time.
    """
    rows = [(event.id, event.annotator, event.action, event.label, event.time) for _, event in _last_answers(events)]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def skipped(events: Iterable[Event]) -> dict[tuple[str, str], int]:
    """Image and annotator of every "skip" that stands, and its place in the log: clocks can jump, the log cannot."""
    return {(one.id, one.annotator): place for place, one in _last_answers(events) if one.action == "skip"}


def _last_answers(events: Iterable[Event]) -> list[tuple[int, Event]]:
    """Place and event of what stands for each image and annotator, in order."""
    answers: dict[str, list[tuple[int, Event]]] = {}
    for place, event in enumerate(events):
        mine = answers.setdefault(event.annotator, [])
        if event.action in ANSWERS:
            mine.append((place, event))
        elif event.action == "undo" and mine:
            mine.pop()
    last = {(event.id, event.annotator): (place, event) for mine in answers.values() for place, event in mine}
    return sorted(last.values(), key=lambda answer: answer[0])


def last_answer(events: Iterable[Event], annotator: str) -> Event | None:
    """What an undo of this annotator would take back."""
    mine: list[Event] = []
    for event in events:
        if event.annotator != annotator:
            continue
        if event.action in ANSWERS:
            mine.append(event)
        elif event.action == "undo" and mine:
            mine.pop()
    return mine[-1] if mine else None


def agreed(table: pd.DataFrame) -> dict[str, str]:
    """Label of each image on which more annotators agree than on any other; disputed images have none.

    Args:
        table: of `standing`.
    """
    given = table[table["answer"] == "label"]
    votes: dict[str, list[str]] = {}
    for name, label in zip(given["id"], given["label"], strict=True):
        votes.setdefault(name, []).append(label)
    labels = {}
    for name, ballot in votes.items():
        first, *others = Counter(ballot).most_common(2) if len(ballot) > 1 else [(ballot[0], 1)]
        if not others or first[1] > others[0][1]:
            labels[name] = first[0]
    return labels


def disagreements(table: pd.DataFrame) -> pd.DataFrame:
    """Images to which annotators gave different labels: one row per image, one column per annotator ("" for none).

    Args:
        table: of `standing`.
    """
    given = table[table["answer"] == "label"]
    different = given.groupby("id")["label"].nunique()
    disputed = given[given["id"].isin(different[different > 1].index)]
    return disputed.pivot(index="id", columns="annotator", values="label").fillna("").rename_axis(columns=None)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How far every two annotators agree on the images that both have labelled.

    Args:
        table: of `standing`.

    Returns:
        Columns first, second (annotators), images, same (share), kappa (Cohen 1960; NaN where both gave one label
        only, so that chance alone explains it).
    """
    given = table[table["answer"] == "label"]
    wide = given.pivot(index="id", columns="annotator", values="label")
    rows = []
    for first, second in combinations(wide.columns, 2):
        both = wide[[first, second]].dropna()
        if both.empty:
            continue
        one, other = both[first].to_numpy(str), both[second].to_numpy(str)
        constant = len(set(one) | set(other)) == 1
        kappa = float("nan") if constant else float(cohen_kappa_score(one, other))
        rows.append((first, second, len(both), float((one == other).mean()), kappa))
    return pd.DataFrame(rows, columns=["first", "second", "images", "same", "kappa"])
