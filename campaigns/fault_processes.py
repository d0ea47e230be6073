"""Work in forked processes, killed at a moment or before a change of a file, and what it had told by then."""

import faulthandler
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import IO, Any

from palkit.errors import PalkitError

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.truncate")  # audit events of what changes a folder
PATIENCE = 600.0  # seconds after which something hangs
Tell = Callable[[Any], None]
Work = Callable[[Path, Tell], Any]


@dataclass
class Ended:
    """How a forked process ended: with a value, an error, or a signal or exit status, and what it had told before.

    What it wrote to its standard error, ends of stacks among it, is there for a signal that nobody sent.
    """

    value: Any = None
    error: str = ""
    clear: bool = False
    signal: int = 0
    words: str = ""
    pid: int = 0
    told: list[Any] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Begun:
    """A forked process: its id, what it tells through, what its standard error goes to, and when it began."""

    pid: int
    here: Any
    words: IO[bytes]
    began: float


def forked(work: Work, folder: Path, *, kill_before: int | None = None, **until: Any) -> Ended:
    """Do some work in a forked process with caches and runs in `folder`; arguments as for `begin` and `end_of`."""
    return end_of(begin(work, folder, kill_before), **until)


def begin(work: Work, folder: Path, kill_before: int | None = None) -> Begun:
    """Begin some work in a forked process with caches and runs in `folder`.

    Args:
        work: called with the folder and a function that tells this process something.
        folder: that `PALKIT_RUNS` and `PALKIT_CACHE` lie in.
        kill_before: number of the change of a file before which it kills itself, from 1.
    """
    here, there = Pipe(duplex=False)
    words = tempfile.TemporaryFile()  # noqa: SIM115  (closed after its child has ended)
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        here.close()
        _child(work, folder, kill_before, there, words)
    there.close()
    return Begun(pid, here, words, began)


def end_of(
    process: Begun,
    *,
    kill_after: float | None = None,
    victims: Callable[[int], list[int]] = lambda pid: [pid],
    patience: float = PATIENCE,
) -> Ended:
    """How a forked process ends.

    Args:
        process: that was begun.
        kill_after: seconds after its beginning at which it is killed.
        victims: of the process's id, the processes to kill.
        patience: seconds after which it is killed because it hangs.
    """
    pid, here = process.pid, process.here
    end, deadline = Ended(pid=pid), process.began + (patience if kill_after is None else kill_after)
    while True:
        if not here.poll(max(0.0, deadline - time.perf_counter())):
            for victim in victims(pid):
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            end.error = "it hangs" if kill_after is None else ""
            deadline = time.perf_counter() + patience
            continue
        try:
            kind, content = here.recv()
        except (EOFError, OSError):
            break
        if kind == "told":
            end.told.append(content)
        elif kind == "value":
            end.value = content
        else:
            end.error, end.clear = content
    _, status = os.waitpid(pid, 0)
    # The C library has an exit status of its own for "no memory for another thread".
    end.signal = os.WTERMSIG(status) or os.WEXITSTATUS(status)
    with process.words as words:
        words.seek(0)
        end.words = words.read().decode(errors="replace") if end.signal not in (0, signal.SIGKILL) else ""
    if not (end.error or end.value or end.signal):
        end.error = "it ended without a word"
    end.seconds = time.perf_counter() - process.began
    return end


def _child(work: Work, folder: Path, kill_before: int | None, there: Any, words: IO[bytes]) -> None:
    """What a forked process does; never returns."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(words.fileno(), 2)
        faulthandler.enable(words)
        os.setsid()
        os.environ |= surroundings(folder)
        changes = Changes(folder, kill_before)
        sys.addaudithook(changes)
        try:
            end = "value", work(folder, lambda content: there.send(("told", content)))
        except BaseException as error:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # to say it
            end = "error", (f"{type(error).__name__}: {error}", isinstance(error, PalkitError))
        there.send(("told", ("changes", changes.seen)))
        there.send(end)
    finally:
        os._exit(0)


def surroundings(folder: Path) -> dict[str, str]:
    """Variables under which everything is kept in a folder; a cache that is shared is beside it."""
    shared = folder / "shared-cache"
    cache = shared.read_text() if shared.exists() else str(folder / "cache")
    return {"PALKIT_RUNS": str(folder / "runs"), "PALKIT_CACHE": cache, "PALKIT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


class Changes:
    """An audit hook that counts changes of files below a folder, and kills the process before one of them."""

    def __init__(self, folder: Path, kill_before: int | None) -> None:
        self.folder, self.kill_before, self.seen = str(folder), kill_before, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3):
            return
        if not str(arguments[0]).startswith(self.folder):
            return
        self.seen += 1
        if self.seen == self.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
