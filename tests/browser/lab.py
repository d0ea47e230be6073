"""A JupyterLab of its own for tests, and the hands and eyes of a user in it."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nbformat
import psutil
import requests
from playwright.sync_api import Locator, Page, expect

from palkit.storage.files import REPOSITORY, cache_dir

# A test fails by what it sees, never by how long it took: these only end one that hangs.
START_SECONDS = 300
PAGE_SECONDS = 300
IDLE_SECONDS = 300

# No news, no look for updates, no file written behind the test's back: what a person would click away.
DISABLED = ("@jupyterlab/apputils-extension:announcements", "@jupyterlab/extensionmanager-extension:plugin")
SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}

ROLES = ("button", "checkbox", "listbox", "option", "radio", "slider")
CONTROLS = ", ".join(["input, select, button, textarea, canvas", *(f"[role={role}]" for role in ROLES)])
BLANK = " \n\t\u200b"  # ipywidgets writes a zero-width space for "no description"

# The page counts the commands that are under way, so that nothing is idle too early.
EXECUTE = """([command, options]) => {
  window.palkitUnderWay = (window.palkitUnderWay ?? 0) + 1;
  window.jupyterapp.commands.execute(command, options).finally(() => { window.palkitUnderWay -= 1; });
}"""
NOTEBOOK = "window.jupyterapp.shell.currentWidget"
# Each of these may not be there yet.
KERNEL = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel"
STATUS = f"{KERNEL}?.status"

# Asked anew as long as there is no answer: what is asked of a kernel that is only just starting may be lost.
ANSWERS = f"""() => Promise.race([
  {KERNEL}?.requestKernelInfo().then(Boolean, () => false),
  new Promise(resolve => setTimeout(resolve, 2000, false)),
])"""

CONTRAST = """selector => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = colour => {  // any CSS colour, as the browser paints it
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = "transparent";  // stays if the next line names no colour, as "none" of SVG
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map(value => value / 255);
  };
  const over = (top, below) => {
    const alpha = top[3] + below[3] * (1 - top[3]);
    const mixed = [0, 1, 2].map(i => alpha && (top[i] * top[3] + below[i] * below[3] * (1 - top[3])) / alpha);
    return [...mixed, alpha];
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const measure = (element, text) => {
    const own = getComputedStyle(element);
    let ink = rgba(element instanceof SVGElement ? own.fill : own.color), paper = [0, 0, 0, 0];
    for (let under = element; under; under = under.parentElement) {
      const style = getComputedStyle(under), ground = rgba(style.backgroundColor);
      ink = over(ink, ground);
      paper = over(paper, ground);
      ink[3] *= style.opacity;
      paper[3] *= style.opacity;
    }
    const [dark, light] = [ink, paper].map(colour => luminance(over(colour, [1, 1, 1, 1]))).sort((a, b) => a - b);
    return { ratio: (light + 0.05) / (dark + 0.05), text, colour: own.color };
  };
  const seen = element => element.checkVisibility({ visibilityProperty: true, opacityProperty: true })
    && !element.closest(":disabled, [aria-disabled=true]");
  const found = [];
  for (const root of document.querySelectorAll(selector)) {
    const words = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    while (words.nextNode()) {
      const element = words.currentNode.parentElement;
      const text = words.currentNode.data.replace(/[\\s\\u200b]+/g, " ").trim();
      range.selectNodeContents(words.currentNode);
      const drawn = [...range.getClientRects()].some(box => box.width && box.height);
      if (text && drawn && seen(element)) found.push(measure(element, text));
    }
    const fields = "input:not([type=checkbox], [type=radio], [type=range]), textarea, select";
    for (const field of root.querySelectorAll(fields)) {
      if (field.value && seen(field)) found.push(measure(field, field.value));
    }
  }
  return found.sort((a, b) => a.ratio - b.ratio)[0] ?? null;
}"""


@dataclass(frozen=True)
class Contrast:
    """WCAG's contrast ratio (1 to 21) of a text, the text, and its colour in CSS."""

    ratio: float
    text: str
    colour: str


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: where it answers, the folder it shows, and the file that keeps what it said."""

    url: str
    token: str
    root: Path
    log: Path
    process: psutil.Popen

    def api(self, method: str, path: str) -> Any:
        """What the server answers to, say, ("GET", "kernels")."""
        headers = {"Authorization": f"token {self.token}"}
        answer = requests.request(method, f"{self.url}api/{path}", headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None


def start_lab(folder: Path) -> Lab:
    """Start JupyterLab on loopback with a copy of the committed notebooks.

    Args:
        folder: empty; gets home, settings, notebooks, runs and log of the server.

    Raises:
        RuntimeError: the server ended or did not answer; with its log.
    """
    root, log = folder / "notebooks", folder / "lab.log"
    shutil.copytree(REPOSITORY / "notebooks", root, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "executed"))
    _write(folder / "config/labconfig/page_config.json", {"disabledExtensions": dict.fromkeys(DISABLED, True)})
    for name, values in SETTINGS.items():
        _write(folder / f"config/lab/user-settings/{name}.jupyterlab-settings", values)
    foreign = ("JUPYTER", "IPYTHON", "PALKIT_", "PYTHONSTARTUP", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "HOME": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "PALKIT_CACHE": str(cache_dir().resolve()),
        "PALKIT_RUNS": str(folder / "runs"),
        "PALKIT_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": 0,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "ServerApp.root_dir": root,
        "ServerApp.terminals_enabled": False,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
        "LabApp.extension_manager": "readonly",
        "LabApp.news_url": "None",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with log.open("w") as output:
        process = psutil.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    # The server names its port in this file once it listens.
    answers = folder / f"runtime/jpserver-{process.pid}.json"
    deadline = time.monotonic() + START_SECONDS
    while not answers.exists() or not answers.read_text().endswith("}"):
        if process.poll() is not None or time.monotonic() > deadline:
            _end(process)
            raise RuntimeError(f"JupyterLab did not start; it said:\n{log.read_text()}")
        time.sleep(0.05)
    return Lab(json.loads(answers.read_text())["url"], token, root, log, process)


def stop_lab(lab: Lab) -> None:
    """End the server, politely first, and every kernel it started."""
    _end(lab.process)


def stop_kernels(lab: Lab) -> None:
    """Shut down all kernels with their sessions, so that the next test starts with none."""
    for session in lab.api("GET", "sessions"):
        lab.api("DELETE", f"sessions/{session['id']}")


def kernel_process(lab: Lab, other_than: int | None = None) -> psutil.Process:
    """The process of the only kernel, once it runs.

    Args:
        other_than: process id of one that was killed.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        (kernel,) = lab.api("GET", "kernels")
        connection = f"kernel-{kernel['id']}.json"
        found = [child for child in lab.process.children() if child.pid != other_than and _runs_on(child, connection)]
        if found:
            (process,) = found
            return process
        if time.monotonic() > deadline:
            raise RuntimeError(f"no kernel runs; JupyterLab said:\n{lab.log.read_text()}")
        time.sleep(0.05)


def _runs_on(process: psutil.Process, connection: str) -> bool:
    try:
        return any(connection in word for word in process.cmdline())
    except psutil.Error:  # it has just ended, and nobody has asked after it yet
        return False


def kill_kernel(lab: Lab) -> int:
    """End the only kernel without notice (SIGKILL), as when memory runs out; returns the process id it had."""
    process = kernel_process(lab)
    process.kill()
    process.wait(START_SECONDS)
    return process.pid


def write_notebook(lab: Lab, name: str, *cells: str) -> str:
    """Write a notebook of code cells, to be opened by the name that is returned."""
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(notebook, lab.root / name)
    return name


def open_notebook(page: Page, lab: Lab, name: str, theme: Literal["light", "dark"] = "light") -> None:
    """Open a notebook in a workspace of its own and wait for its kernel.

    Args:
        name: path under the lab's root.
    """
    page.goto(f"{lab.url}lab/workspaces/test-{secrets.token_hex(4)}/tree/{name}?token={lab.token}")
    page.wait_for_function(f"{STATUS} === 'idle'", timeout=PAGE_SECONDS * 1000)
    set_theme(page, dark=theme == "dark")


def set_theme(page: Page, dark: bool) -> None:
    """Change JupyterLab's theme; the server keeps it for the next page."""
    theme = "JupyterLab Dark" if dark else "JupyterLab Light"
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    # JupyterLab hides itself for a frame once the theme is there, and nothing can be measured in it.
    expect(page.locator(f"body[data-jp-theme-name='{theme}'] #main")).to_be_visible()


def run_all(page: Page) -> None:
    """Start all cells; `wait_idle` waits for them."""
    page.evaluate(EXECUTE, ["notebook:run-all-cells", {}])


def run_cell(page: Page, index: int) -> None:
    """Start one cell; `wait_idle` waits for it (and `expect` for what it shows, which is drawn a little later).

    Args:
        index: counts all cells, Markdown too, from 0.
    """
    page.evaluate(f"index => {{ {NOTEBOOK}.content.activeCellIndex = index; }}", index)
    page.evaluate(EXECUTE, ["notebook:run-cell", {}])


def wait_idle(page: Page, timeout: float = IDLE_SECONDS) -> None:
    """Wait until every cell that was started has ended and the kernel has nothing to do.

    Args:
        timeout: seconds.
    """
    page.wait_for_function(f"!window.palkitUnderWay && {STATUS} === 'idle'", timeout=timeout * 1000)


def cell(page: Page, index: int) -> Locator:
    """A cell, scrolled into view: JupyterLab keeps cells far away out of the page."""
    page.evaluate(f"index => {NOTEBOOK}.content.scrollToItem(index, 'smart')", index)
    return page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{index}']")


def cell_output(page: Page, index: int) -> Locator:
    """What a cell shows under its code."""
    return cell(page, index).locator(".jp-Cell-outputArea")


def wait_busy(page: Page) -> None:
    """Wait until the kernel is at work."""
    page.wait_for_function(f"{STATUS} === 'busy'", timeout=IDLE_SECONDS * 1000)


def restart_kernel(page: Page) -> None:
    """Restart the kernel as its menu does, without the question; what was computed is lost."""
    page.evaluate(f"() => {NOTEBOOK}.context.sessionContext.restartKernel()")
    _wait_for_answer(page)


def wait_restarted(page: Page, lab: Lab, killed: int) -> None:
    """After `kill_kernel`: wait for JupyterLab's word that the kernel died and its new one, and close the dialog.

    Args:
        killed: what `kill_kernel` returned.
    """
    dialog = page.locator(".jp-Dialog", has_text="Kernel Restarting")
    expect(dialog).to_be_visible(timeout=IDLE_SECONDS * 1000)
    dialog.get_by_role("button", name="Ok").click()
    kernel_process(lab, other_than=killed)
    _wait_for_answer(page)


def _wait_for_answer(page: Page) -> None:
    """Wait until the kernel answers and has nothing to do: the page calls it idle for a moment before it connects."""
    deadline = time.monotonic() + IDLE_SECONDS
    while not page.evaluate(ANSWERS):
        assert time.monotonic() < deadline, "the kernel does not answer"
    wait_idle(page)


def contrast(page: Page, selector: str) -> Contrast | None:
    """The text that is hardest to read, by WCAG's contrast ratio; none without visible text.

    Text on a picture or gradient is measured against the plain colour under it. Disabled controls are left out, as in
    WCAG.

    Args:
        selector: CSS; all its matches are searched.
    """
    found = page.evaluate(CONTRAST, selector)
    return Contrast(**found) if found else None


def unlabelled_controls(page: Page, selector: str) -> list[str]:
    """Opening tags of the controls that have no name for a screen reader, as Chromium computes names.

    Args:
        selector: CSS; all its matches are searched. Hidden controls (aria-hidden too) are left out.
    """
    session = page.context.new_cdp_session(page)
    try:
        session.send("Accessibility.enable")
        search = f"[...document.querySelectorAll({json.dumps(f':is({selector}) :is({CONTROLS})')})]"
        found = session.send("Runtime.evaluate", {"expression": search})["result"]["objectId"]
        unlabelled = []
        for entry in session.send("Runtime.getProperties", {"objectId": found, "ownProperties": True})["result"]:
            if not entry["name"].isdigit():
                continue
            control = {"objectId": entry["value"]["objectId"]}
            (node,) = session.send("Accessibility.getPartialAXTree", control | {"fetchRelatives": False})["nodes"]
            if not node["ignored"] and not node.get("name", {}).get("value", "").strip(BLANK):
                tag = {"functionDeclaration": "function() { return this.cloneNode().outerHTML; }"}
                unlabelled.append(session.send("Runtime.callFunctionOn", control | tag)["result"]["value"])
        return unlabelled
    finally:
        session.detach()


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def _end(process: psutil.Popen) -> None:
    family = [process, *process.children(recursive=True)] if process.is_running() else []
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for left in alive:
        left.kill()
    psutil.wait_procs(alive, timeout=10)
