"""The harness itself: what it sees in a page, and that keys, kernels and widgets behave as for a user."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import (
    Lab,
    cell,
    cell_output,
    contrast,
    kill_kernel,
    open_notebook,
    restart_kernel,
    run_all,
    run_cell,
    set_theme,
    unlabelled_controls,
    wait_busy,
    wait_idle,
    wait_restarted,
    write_notebook,
)
from playwright.sync_api import Page, expect

from palkit.storage.files import REPOSITORY

WIDGETS = """
import anywidget, traitlets
import ipywidgets as widgets

size, twice = widgets.IntSlider(value=3, description="Size"), widgets.Label("not moved")
size.observe(lambda change: setattr(twice, "value", f"twice is {2 * change['new']}"), "value")

class Keys(anywidget.AnyWidget):
    _esm = '''export default { render({ model, el }) {
      el.tabIndex = 0;
      el.className = "keys";
      el.dataset.lmSuppressShortcuts = "true";
      el.textContent = "press a key";
      el.addEventListener("keydown", event => {
        model.set("key", model.get("key") + event.key);
        model.save_changes();
      });
    } }'''
    key = traitlets.Unicode("").tag(sync=True)

keys, told = Keys(), widgets.Label("no key yet")
keys.observe(lambda change: setattr(told, "value", f"heard {change['new']}"), "key")
widgets.VBox([size, twice, keys, told])
"""

SAMPLE = """
<style>body { background: #fff; color: #000; font-size: 14px }</style>
<div id="good" style="background: #111">
  <label for="a" style="color: #fff">A</label><input id="a" value="seen">
  <label style="color: #eee">B <select><option>b</option></select></label>
  <button style="background: #fff; color: #767676" title="C">C</button>
  <div role="slider" tabindex="0" aria-label="D"></div> <canvas aria-label="E"></canvas>
  <canvas aria-hidden="true"></canvas> <input type="checkbox" style="display: none">
  <button disabled style="background: #fff; color: #ddd">off</button> <span hidden style="color: #111">hidden</span>
</div>
<div id="bad">
  <div style="background: rgba(0, 0, 0, 0.5)"><span style="color: #777">grey on half black</span></div>
  <p style="opacity: 0.5">faded</p>
  <label>\u200b</label><input id="f" value="x"> <label>G</label><textarea id="g"></textarea>
  <button id="h"><i></i></button> <div id="i" role="slider" tabindex="0"></div> <canvas id="j"></canvas>
  <label for="k">\u200b</label><input id="k" type="checkbox">
</div>
"""


@pytest.mark.campaign
def test_widgets_answer_to_the_keyboard_and_lab_does_not(
    page: Page, lab: Lab, page_errors: list[str], shot: Callable[[str], Path]
) -> None:
    where = "import palkit, sys\nsys.executable, palkit.__file__"
    open_notebook(page, lab, write_notebook(lab, "widgets.ipynb", WIDGETS, where))
    run_all(page)
    wait_idle(page)
    output = cell_output(page, 0)
    expect(output).to_contain_text("not moved")
    expect(cell_output(page, 1)).to_contain_text(sys.executable)
    expect(cell_output(page, 1)).to_contain_text(str(REPOSITORY / "palkit/__init__.py"))

    slider = output.get_by_role("slider")
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    expect(output).to_contain_text("twice is 10")

    # In command mode "a" and "b" add cells, "dd" deletes one, "m" turns it into Markdown.
    count = page.locator(".jp-Notebook .jp-Cell").count()
    output.locator(".keys").focus()
    for key in "abddm1":
        page.keyboard.press(key)
    expect(output).to_contain_text("heard abddm1")
    assert page.locator(".jp-Notebook .jp-Cell").count() == count
    expect(page.locator(".jp-MarkdownCell")).to_have_count(0)

    # ... as they do outside the widget, or the lines above would prove nothing.
    cell(page, 1).locator(".jp-InputPrompt").click()
    page.keyboard.press("b")
    expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(count + 1)

    # ipywidgets 8 ties no label to a slider: a flaw of a real page, and found.
    (unnamed,) = unlabelled_controls(page, ".jp-OutputArea-output")
    assert 'role="slider"' in unnamed

    picture = shot("harness")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert page_errors == []


@pytest.mark.campaign  # test_browser_label.py kills one, and goes on after it
@pytest.mark.campaign  # test_browser_label.py kills one
def test_a_killed_kernel_comes_back_empty(page: Page, lab: Lab, page_errors: list[str]) -> None:
    endless = "import time\nwhile True:\n    time.sleep(0.1)"
    open_notebook(page, lab, write_notebook(lab, "killed.ipynb", "known = 'still here'", "known", endless))
    run_cell(page, 0)
    run_cell(page, 1)
    wait_idle(page)
    expect(cell_output(page, 1)).to_contain_text("still here")
    run_cell(page, 2)
    wait_busy(page)
    wait_restarted(page, lab, kill_kernel(lab))
    run_cell(page, 1)
    wait_idle(page)
    expect(cell_output(page, 1)).to_contain_text("NameError")
    run_cell(page, 0)
    run_cell(page, 1)
    wait_idle(page)
    expect(cell_output(page, 1)).to_contain_text("still here")
    restart_kernel(page)
    run_cell(page, 1)
    wait_idle(page)
    expect(cell_output(page, 1)).to_contain_text("NameError")
    assert page_errors == []


@pytest.mark.campaign
def test_both_themes(page: Page, lab: Lab) -> None:
    dark_grey = "<p class=planted style='color: #444'>dark grey</p><p class=own>own</p>"
    source = f"from IPython.display import HTML\nHTML({dark_grey!r})"
    open_notebook(page, lab, write_notebook(lab, "themes.ipynb", source), theme="dark")
    run_cell(page, 0)
    wait_idle(page)
    expect(cell_output(page, 0)).to_contain_text("dark grey")
    for dark in (True, False):
        set_theme(page, dark)
        assert (contrast(page, ".planted").ratio < 3) == dark
        assert contrast(page, ".own").ratio > 4.5
        ground = page.evaluate("() => getComputedStyle(document.body).getPropertyValue('--jp-layout-color0')")
        assert ground == ("#111" if dark else "white")


def test_pages_have_webgl(page: Page) -> None:
    assert page.evaluate("() => document.createElement('canvas').getContext('webgl2') !== null")


def test_committed_notebooks_are_copies(lab: Lab) -> None:
    assert not lab.root.is_relative_to(REPOSITORY)
    assert (lab.root / "01_data.ipynb").is_file()
    assert not (lab.root / "01_data.ipynb").is_symlink()


def test_contrast_is_that_of_the_worst_text(page: Page) -> None:
    page.set_content(SAMPLE)
    good = contrast(page, "#good")
    assert good.text == "C"
    assert good.ratio == pytest.approx(4.54, abs=0.01)  # the grey that just passes on white, in every WCAG guide
    bad = contrast(page, "#bad")
    assert bad.text == "grey on half black"
    assert contrast(page, "#bad p").ratio == pytest.approx(3.95, abs=0.05)  # black at half strength: #808080
    assert contrast(page, "#nowhere") is None


def test_controls_without_a_name_are_found(page: Page) -> None:
    page.set_content(SAMPLE)
    assert unlabelled_controls(page, "#good") == []
    assert [tag.split('id="')[1][0] for tag in unlabelled_controls(page, "#bad")] == list("fghijk")
