"""Work beside the event loop: the newest wins, nothing replaced is delivered; and whether anybody looks."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from palkit.errors import ConfigError
from palkit.progress import Progress, silent
from palkit.widgets import frontend
from palkit.widgets.frontend import is_live
from palkit.widgets.jobs import REPORT_EVERY, Cancelled, Jobs


class Heard:
    """A listener for all that a job may say."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.errors: list[Exception] = []
        self.reports: list[tuple[str, int, int]] = []
        self.threads: set[int] = set()

    def submit(self, jobs: Jobs, work: Callable[[Progress], Any]) -> None:
        jobs.submit(work, self._done, self.errors.append, lambda *report: self.reports.append(report))

    def _done(self, result: Any) -> None:
        self.threads.add(threading.get_ident())
        self.results.append(result)

    async def wait(self) -> None:
        async with asyncio.timeout(300):
            while not (self.results or self.errors):
                await asyncio.sleep(0.005)


def endless(started: threading.Event) -> Callable[[Progress], None]:
    def work(progress: Progress) -> None:
        started.set()
        while True:
            progress("waiting", 0, 1)

    return work


def test_without_a_loop_work_is_done_at_once() -> None:
    heard = Heard()
    heard.submit(Jobs(), lambda progress: 3)
    assert heard.results == [3]
    heard.submit(Jobs(), lambda progress: 1 // 0)
    assert isinstance(heard.errors[0], ZeroDivisionError)


def test_results_come_to_the_loop_and_work_is_elsewhere() -> None:
    async def main() -> tuple[Heard, int]:
        heard = Heard()
        heard.submit(Jobs(), lambda progress: threading.get_ident())
        await heard.wait()
        return heard, threading.get_ident()

    heard, here = asyncio.run(main())
    assert heard.threads == {here}
    assert heard.results != [here]


def test_the_newest_request_wins_and_the_old_one_is_not_heard_of() -> None:
    async def main() -> tuple[Heard, Heard]:
        jobs, old, new, started = Jobs(), Heard(), Heard(), threading.Event()
        old.submit(jobs, endless(started))
        await asyncio.to_thread(started.wait)
        new.submit(jobs, lambda progress: "new")
        await new.wait()
        await asyncio.sleep(0.05)
        return old, new

    old, new = asyncio.run(main())
    assert new.results == ["new"]
    assert old.results == []
    assert old.errors == []


def test_work_that_cannot_be_stopped_is_not_delivered_once_it_is_replaced() -> None:
    async def main() -> tuple[Heard, Heard]:
        jobs, old, new, go = Jobs(), Heard(), Heard(), threading.Event()
        old.submit(jobs, lambda progress: go.wait())
        new.submit(jobs, lambda progress: "new")
        go.set()
        await new.wait()
        return old, new

    old, new = asyncio.run(main())
    assert (old.results, new.results) == ([], ["new"])


def test_cancel_is_heard() -> None:
    async def main() -> Heard:
        jobs, heard, started = Jobs(), Heard(), threading.Event()
        heard.submit(jobs, endless(started))
        await asyncio.to_thread(started.wait)
        jobs.cancel()
        await heard.wait()
        return heard

    heard = asyncio.run(main())
    assert [type(error) for error in heard.errors] == [Cancelled]
    assert heard.results == []


def test_reports_are_few_and_the_last_one_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    time = iter(range(100_000))
    monkeypatch.setattr("palkit.widgets.jobs.monotonic", lambda: next(time) * REPORT_EVERY / 10)
    heard = Heard()

    def work(progress: Progress) -> None:
        for done in range(1, 201):
            progress("counting", done, 200)

    heard.submit(Jobs(), work)
    assert 10 <= len(heard.reports) <= 45
    assert heard.reports[-1] == ("counting", 200, 200)
    assert heard.reports == sorted(heard.reports)


def test_silence_is_a_listener_too() -> None:
    Jobs().submit(lambda progress: progress("x", 1, 1), lambda result: None, lambda error: None, silent)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str] | None], None]:
    """Pretend that a cell runs, sent with such metadata, or (None) that there is no kernel."""
    for name in ("PALKIT_WIDGETS", "SERVER_SOFTWARE"):
        monkeypatch.delenv(name, raising=False)

    def run(metadata: dict[str, str] | None) -> None:
        kernel = SimpleNamespace(get_parent=lambda channel: {"metadata": metadata}) if metadata is not None else None
        monkeypatch.setattr(frontend, "get_ipython", lambda: SimpleNamespace(kernel=kernel))

    return run


def test_whether_anybody_looks(cell: Callable[[dict[str, str] | None], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cell(None)
    assert not is_live()
    cell({})
    assert not is_live()
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    assert is_live()
    monkeypatch.delenv("SERVER_SOFTWARE")
    cell({"cellId": "1"})
    assert is_live()
    monkeypatch.setenv("PALKIT_WIDGETS", "static")
    assert not is_live()
    cell({})
    monkeypatch.setenv("PALKIT_WIDGETS", "live")
    assert is_live()
    monkeypatch.setenv("PALKIT_WIDGETS", "lively")
    with pytest.raises(ConfigError, match=r"PALKIT_WIDGETS 'lively'\. Did you mean 'live'"):
        is_live()
