"""Work behind a widget: in one thread, the newest request only, with progress and cancel."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TypeVar

from palkit.errors import PalkitError
from palkit.progress import Progress, silent

Result = TypeVar("Result")

REPORT_EVERY = 0.1  # seconds between two reports of progress: a browser need not see more


class Cancelled(Exception):
    """The work was cancelled, or a newer request replaced it."""


def sentence(error: Exception) -> str:
    """An error as a reader of the page can use it."""
    return str(error) if isinstance(error, PalkitError) else f"{type(error).__name__}: {error}"


def _nobody(result: object) -> None:
    """A listener to work that nobody waits for: if it fails, the next request that needs it says why."""


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs here, beside which work is done; None in a script or a test, which wait for it."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


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
        loop, due = running_loop(), 0.0

        def tell(call: Callable[..., None], *arguments: object) -> None:
            if loop is None:
                call(*arguments)
            else:
                loop.call_soon_threadsafe(lambda: None if stop is not self._stop else call(*arguments))

        def check() -> None:
            if stop.is_set():
                raise Cancelled("cancelled")

        def report(stage: str, count: int, total: int) -> None:
            nonlocal due
            check()
            if monotonic() >= due or count == total:
                due = monotonic() + REPORT_EVERY
                tell(progress, stage, count, total)

        def run() -> None:
            try:
                check()
                result = work(report)
                check()
            except Exception as error:  # a thread must not lose it
                tell(failed, error)
            else:
                tell(done, result)

        if loop is None:
            run()
        else:
            self._thread.submit(run)

    def cancel(self) -> None:
        """Stop what is being computed; its `failed` is called with `Cancelled`."""
        self._stop.set()
