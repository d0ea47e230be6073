"""Tests in a real browser: one JupyterLab for the session, one Chromium for a module, a fresh page for each test."""

import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lab import Lab, start_lab, stop_kernels, stop_lab
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from palkit.storage.files import REPOSITORY

ARTEFACTS = REPOSITORY / "artefacts" / "browser"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = (
    "NO BROWSER, SO NOTHING WAS TESTED IN JUPYTERLAB: install one (apt-get install chromium) "
    "or name it in PALKIT_CHROMIUM"
)
# WebGL without a graphics card; root (CI) has no sandbox.
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
expect.set_options(timeout=120_000)  # ms: it ends what hangs, and must not fail what is slow

# JupyterLab 4.6 by itself: a request to a kernel that was killed, and React taking away what is gone already. None of
# our scripts removes single nodes.
FOREIGN = re.compile("Canceled future for .* before replies were done|Failed to execute 'removeChild' on 'Node'")

FAILED = pytest.StashKey[bool]()


def _chromium() -> str | None:
    return os.environ.get("PALKIT_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab with a copy of the notebooks; started once."""
    if _chromium() is None:
        pytest.skip(NO_BROWSER)
    running = start_lab(tmp_path_factory.mktemp("lab"))
    yield running
    stop_lab(running)


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    """Chromium, which keeps JupyterLab's scripts from page to page.

    It ends with the module, as Playwright keeps an event loop running that other tests must not meet.
    """
    path = _chromium()
    if path is None:
        pytest.skip(NO_BROWSER)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=FLAGS) as running,
        running.new_context(viewport={"width": 1400, "height": 1000}) as context,
    ):
        yield context


@pytest.fixture
def page_errors() -> list[str]:
    """Errors in the page's console and uncaught exceptions so far, except those of JupyterLab itself."""
    return []


@pytest.fixture
def page(browser: BrowserContext, lab: Lab, page_errors: list[str], request: pytest.FixtureRequest) -> Iterator[Page]:
    """An empty page; its kernels end with it, and a failed test leaves its picture in artefacts/browser/."""

    def hear(text: str) -> None:
        if not FOREIGN.search(text):
            page_errors.append(text)

    def hear_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            hear(message.text)

    failure = f"failed-{request.node.name}"
    _path(failure).unlink(missing_ok=True)
    try:
        with browser.new_page() as fresh:
            fresh.on("console", hear_console)
            fresh.on("pageerror", lambda error: hear(str(error)))
            yield fresh
            if request.node.stash.get(FAILED, False):
                with suppress(PlaywrightError):  # the page may be what failed
                    _picture(fresh, failure)
    finally:
        stop_kernels(lab)


@pytest.fixture
def shot(page: Page) -> Callable[[str], Path]:
    """Saves what the page shows as artefacts/browser/<name>.png."""
    return lambda name: _picture(page, name)


def _path(name: str) -> Path:
    return ARTEFACTS / (re.sub(r"[^\w.-]+", "-", name) + ".png")


def _picture(page: Page, name: str) -> Path:
    page.screenshot(path=_path(name))
    return _path(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        used = getattr(item, "funcargs", {})
        if "lab" in used:
            report.sections.append(("JupyterLab's log", used["lab"].log.read_text()[-8000:]))
        if used.get("page_errors"):
            report.sections.append(("errors of the page", "\n".join(used["page_errors"])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NO_BROWSER in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"WARNING: {count} TESTS SKIPPED. {NO_BROWSER}", red=True, bold=True)
