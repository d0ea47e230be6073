"""How long a user waits in JupyterLab: a label on disk, a changed control, the first grid, a map of 50,000 points.

    python benchmarks/lab.py

Starts JupyterLab and the system's Chromium as the tests in tests/browser do. Times are those of the page, except that a
label counts as stored when labels.jsonl was written last.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from playwright.sync_api import Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from conftest import FLAGS, _chromium
from lab import Lab, open_notebook, run_cell, start_lab, stop_kernels, stop_lab, wait_idle, write_notebook

POOL, POINTS, KEYS = 6000, 50_000, 30
EXPLORER = f"""
from palkit.widgets import Explorer
Explorer(dataset="fashion_mnist", pool_size={POOL}, adapter="linear_probe", strategies=("entropy", "badge"),
         batch_size=20, round=1)
"""
LABELLER = """
from palkit.labelling.session import open_session
from palkit.widgets import Labeller
Labeller(open_session("fashion_mnist", "me", pool_size=1500, adapter="linear_probe", batch_size=40))
"""
GRID = f"""
from palkit.data import head, load_dataset
from palkit.widgets import ImageGrid
from palkit.widgets.tables import image_table
pool = head(load_dataset("fashion_mnist"), {POOL})
ImageGrid(pool.images, image_table(pool), caption=["class"])
"""
MAP = f"""
import numpy as np
from palkit.data import load_dataset
from palkit.widgets.projection import Projection
rng = np.random.default_rng(0)
points = rng.normal(size=({POINTS}, 2)) + rng.integers(0, 5, ({POINTS}, 1))
rows = rng.integers(0, 6000, {POINTS})
Projection(load_dataset("fashion_mnist").images, rows, points, np.arange(50),
           {{"a": np.arange(100, 120), "b": np.arange(110, 130)}}).widget
"""
FRAMES = """async () => {
  const times = [];
  await new Promise(done => {
    const step = now => { times.push(now); times.length < 122 ? requestAnimationFrame(step) : done(); };
    requestAnimationFrame(step);
  });
  return times.slice(1).map((time, i) => time - times[i]);
}"""


def grids(page: Page, lab: Lab) -> list[tuple[str, float]]:
    open_notebook(page, lab, write_notebook(lab, "grid.ipynb", GRID, GRID))
    found = []
    for index, name in ((0, "first grid of 6,000 images, kernel just started"), (1, "the same, imports done")):
        begin = time.perf_counter()
        run_cell(page, index)
        images = page.locator(".palkit-grid").nth(index).locator("[role=option]")
        expect(images).to_have_count(48)
        found.append((name, time.perf_counter() - begin))
        wait_idle(page)
    return found


def labels(page: Page, lab: Lab) -> list[tuple[str, float]]:
    open_notebook(page, lab, write_notebook(lab, "label_.ipynb", LABELLER))
    run_cell(page, 0)
    desk = page.locator(".palkit-labeller")
    image = desk.locator(".palkit-labeller-single img")
    expect(image).to_be_visible(timeout=120_000)
    wait_idle(page)
    desk.focus()
    log = lab.root.parent / "runs" / "labels" / "fashion_mnist" / "labels.jsonl"
    page.evaluate("() => addEventListener('keydown', () => { window.pressed = Date.now(); }, true)")
    waits = []
    for number in range(KEYS):
        page.keyboard.press(str(1 + number % 9))
        expect(desk.locator("label").first).to_have_text(f"{number + 1} labels")
        waits.append(log.stat().st_mtime - page.evaluate("window.pressed") / 1000)
    return [("label on disk after the key, median", float(np.median(waits))), ("the same, worst of 30", max(waits))]


def refreshes(page: Page, lab: Lab) -> list[tuple[str, float]]:
    open_notebook(page, lab, write_notebook(lab, "explore_.ipynb", EXPLORER))
    begin = time.perf_counter()
    run_cell(page, 0)
    desk = page.locator(".palkit-explorer")
    status = desk.get_by_role("status").first
    expect(status).to_contain_text("Shown:", timeout=120_000)
    expect(desk.locator("[role=option]").first).to_be_visible()
    found = [("first proposals, kernel just started", time.perf_counter() - begin)]
    changes = [
        ("Strategy A", "margin"), ("Strategy B", "coreset"), ("Batch size", "30"), ("Strategy A", "featdist"),
        ("Round", "2"), ("Seed", "1"), ("Labels bought", "by strategy A"), ("Balance", "pcb"), ("Balance", "none"),
        ("Strategy B", "none"),
    ]  # fmt: skip
    for label, value in changes:
        page.wait_for_timeout(3000)  # a reader looks at it, and the explorer prepares what may come next
        old = status.inner_text()
        control = desk.get_by_label(label, exact=True)
        begin = time.perf_counter()
        if label in ("Batch size", "Seed"):
            control.fill(value)
            control.press("Enter")
        else:
            control.select_option(value)
        expect(status).not_to_have_text(old)
        expect(status).to_contain_text("Shown:", timeout=60_000)
        found.append((f"proposals after {label} = {value}", time.perf_counter() - begin))
    return found


def frames(page: Page, lab: Lab) -> list[tuple[str, float]]:
    open_notebook(page, lab, write_notebook(lab, "map_.ipynb", MAP))
    run_cell(page, 0)
    canvas = page.locator("canvas[role=application]")
    expect(canvas).to_be_visible(timeout=60_000)
    wait_idle(page)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    canvas.focus()
    page.keyboard.press("+")
    page.evaluate(f"() => {{ window.gaps = ({FRAMES})(); }}")
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(60):
        page.mouse.move(x + 60 * np.sin(step / 5), y + 60 * np.cos(step / 5))
    page.mouse.up()
    gaps = page.evaluate("() => window.gaps")
    return [(f"frame while 50,000 points are dragged, {q} %", float(np.percentile(gaps, q)) / 1000) for q in (50, 95)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    rows: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        lab = start_lab(Path(folder))
        try:
            with playwright.chromium.launch(executable_path=_chromium(), args=FLAGS) as browser:
                for measure in (grids, labels, refreshes, frames):
                    page = browser.new_page(viewport={"width": 1400, "height": 1000})
                    rows += measure(page, lab)
                    page.close()
                    stop_kernels(lab)
        finally:
            stop_lab(lab)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print(pd.DataFrame(rows, columns=["what", "seconds"]).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
