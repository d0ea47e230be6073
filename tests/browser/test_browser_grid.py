"""01_data.ipynb in the browser: thousands of thumbnails by mouse and keyboard, and what is saved of them."""

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from lab import Lab, cell, contrast, open_notebook, run_cell, set_theme, unlabelled_controls, wait_idle
from playwright.sync_api import Page, expect

# Cells of 01_data.ipynb; the last has the grids of all images, one of each data set.
PARAMETERS, POOLS, WHOLE_POOL = 1, 2, 8


@pytest.mark.campaign
def test_a_grid_of_the_whole_pool(page: Page, lab: Lab, page_errors: list[str], shot: Callable[[str], Path]) -> None:
    open_notebook(page, lab, "01_data.ipynb")
    for index in (PARAMETERS, POOLS, WHOLE_POOL):
        run_cell(page, index)
    wait_idle(page, 120)
    grid = cell(page, WHOLE_POOL).locator(".palkit-grid").first
    images, status = grid.locator("[role=option]"), grid.get_by_role("status")
    expect(images).to_have_count(48)
    expect(status).to_contain_text(re.compile(r"\b1.48 of 8,000"))
    grid.get_by_role("button", name="Next page").click()
    expect(status).to_contain_text(re.compile(r"\b49.96 of 8,000"))
    expect(images.first).to_be_visible()
    images.first.focus()
    page.keyboard.press("PageDown")
    expect(status).to_contain_text(re.compile(r"\b97.144 of 8,000"))
    grid.get_by_label("Page", exact=True).fill("167")
    grid.get_by_label("Page", exact=True).press("Enter")
    expect(status).to_contain_text(re.compile(r"\b7,969.8,000 of 8,000"))
    grid.get_by_label("Sort by").select_option("class")
    expect(status).to_contain_text(re.compile(r"\b1.48 of 8,000"))
    expect(images.first).to_have_attribute("aria-label", "class T-shirt, split pool")
    images.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(images.nth(1)).to_have_attribute("aria-selected", "true")
    for dark in (True, False):
        set_theme(page, dark)
        worst = contrast(page, ".palkit-grid")
        assert worst is not None
        assert worst.ratio >= 4.5, (dark, worst)
    assert unlabelled_controls(page, ".palkit-grid") == []
    shot("grid-1-sorted")

    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    saved = nbformat.read(lab.root / "01_data.ipynb", as_version=4)
    assert "widgets" not in saved.metadata
    shown = [set(output.data) for output in saved.cells[WHOLE_POOL].outputs if "data" in output]
    assert sum("image/jpeg" in kinds for kinds in shown) == 2, "a code host shows pictures"
    assert (lab.root / "01_data.ipynb").stat().st_size <= 1.5 * 2**20
    assert page_errors == []
