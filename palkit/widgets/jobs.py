"""Work behind a widget: in one thread, the newest request only, with progress and cancel."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TypeVar

from palkit.progress import Progress, silent

Result = TypeVar("Result")

REPORT_EVERY = 0.1  # seconds between two reports of progress: a browser need not see more


class Cancelled(Exception):
    """The work was cancelled, or a newer request replaced it."""


def _nobody(result: object) -> None:
    """A listener to work that nobody waits for: if it fails, the next request that needs it says why."""


class Jobs:
    """Runs one piece of work at a time beside the event loop, so that a widget answers while it computes.

    A new request cancels the one before. Work notices at its next report of progress; what it returns afterwards is
    dropped. Listeners are called by the event loop of the notebook's kernel, where widgets may be changed; without a
    running loop (a script, a test) work is done at once and listeners are called before `submit` returns.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="palkit-widget")
        self._stop = threading.Event()

    def submit(
        self,
        work: Callable[[Progress], Result],
        done: Callable[[Result], None] = _nobody,
        failed: Callable[[Exception], None] = _nobody,
        progress: Progress = silent,
    ) -> None:
        """Compute `work(progress)` and hand its result to `done`.

        Args:
            work: reports to the listener it gets, which raises `Cancelled` once nobody wants the result any more.
            done: called with the result.
            failed: called with what was raised; with `Cancelled` only if nothing newer was requested.
            progress: called with (stage, done, total), ten times a second at most.
        """
        self._stop.set()
        stop = self._stop = threading.Event()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            _work(work, done, failed, _Reports(stop, progress, lambda call, *arguments: call(*arguments)))
            return

        def later(call: Callable[..., None], *arguments: object) -> None:
            loop.call_soon_threadsafe(lambda: None if stop is not self._stop else call(*arguments))

        self._thread.submit(_work, work, done, failed, _Reports(stop, progress, later))

    def cancel(self) -> None:
        """Stop what is being computed; its `failed` is called with `Cancelled`."""
        self._stop.set()


class _Reports:
    """A progress listener that also carries the wish to stop."""

    def __init__(self, stop: threading.Event, progress: Progress, later: Callable[..., None]) -> None:
        self.stop, self.progress, self.later = stop, progress, later
        self._next = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.check()
        if monotonic() >= self._next or done == total:
            self._next = monotonic() + REPORT_EVERY
            self.later(self.progress, stage, done, total)

    def check(self) -> None:
        if self.stop.is_set():
            raise Cancelled("cancelled")


def _work(
    work: Callable[[Progress], Result],
    done: Callable[[Result], None],
    failed: Callable[[Exception], None],
    reports: _Reports,
) -> None:
    try:
        reports.check()
        result = work(reports)
        reports.check()
    except Exception as error:  # a thread must not lose it
        reports.later(failed, error)
    else:
        reports.later(done, result)
