"""label.ipynb as an annotator uses it: by keyboard, over the death of the kernel, round after round."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from lab import (
    Lab,
    contrast,
    kill_kernel,
    open_notebook,
    run_cell,
    set_theme,
    unlabelled_controls,
    wait_idle,
    wait_restarted,
)
from playwright.sync_api import Locator, Page, expect

from palkit.data import load_dataset
from palkit.labelling.labels import LabelLog, agreed, standing

PARAMETERS, START = 1, 2  # cells of label.ipynb
KEYS = "123456789a"  # of the ten classes
COMPUTING = 120_000  # ms


@pytest.fixture(scope="module")
def truth() -> dict[str, str]:
    """Key of the class of each image, which the test knows as an expert does."""
    pool = load_dataset("fashion_mnist")
    return {str(name): KEYS[label] for name, label in zip(pool.ids, pool.labels, strict=True)}


def start(page: Page) -> Locator:
    for index in (PARAMETERS, START):
        run_cell(page, index)
    wait_idle(page, 120)
    desk = page.locator(".palkit-labeller")
    expect(desk.locator(".palkit-labeller-single img")).to_be_visible(timeout=COMPUTING)
    desk.scroll_into_view_if_needed()
    return desk


def shown(desk: Locator) -> str:
    """Id of the image that is shown."""
    alt = desk.locator(".palkit-labeller-single img").get_attribute("alt") or ""
    return alt.removeprefix("image ")


def labels(log: Path) -> dict[str, str]:
    return agreed(standing(LabelLog(log).events())) if log.exists() else {}


def press(page: Page, desk: Locator, key: str, labelled: int) -> None:
    """Press a key and wait until the page says how many labels there are."""
    page.keyboard.press(key)
    expect(desk.locator("label").first).to_have_text(f"{labelled} of 80 labels")


def by_everybody(page: Page, desk: Locator, shot: Callable[[str], Path], truth: dict[str, str], log: Path) -> None:
    """Contrast in both themes, names of all controls, a new class, answers by mouse, and how long a label takes."""
    for dark in (False, True):
        set_theme(page, dark)
        for view in ("one", "grid"):
            worst = contrast(page, ".palkit-labeller")
            assert worst is not None
            assert worst.ratio >= 4.5, (dark, view, worst)
            assert unlabelled_controls(page, ".palkit-labeller") == []
            desk.focus()
            page.keyboard.press("g")
    shot("label-4-dark")
    set_theme(page, dark=False)
    desk.get_by_label("New class").fill("<b>hat</b>")
    desk.get_by_label("New class").press("Enter")
    expect(desk.get_by_role("button", name="<b>hat</b>")).to_be_visible()
    before = shown(desk)
    desk.get_by_role("button", name="<b>hat</b>").click()
    expect(desk.locator(".palkit-labeller-single img")).not_to_have_attribute("alt", f"image {before}")
    expect(desk.get_by_text("New class <b>hat</b>")).to_have_count(0)
    assert labels(log)[before] == "<b>hat</b>"
    page.keyboard.press("z")
    expect(desk.locator(".palkit-labeller-single img")).to_have_attribute("alt", f"image {before}")

    waits = []
    for _ in range(5):
        name = shown(desk)
        pressed = page.evaluate("Date.now()")
        press(page, desk, truth[name], len(labels(log)) + 1)
        event = LabelLog(log).events()[-1]
        assert event.id == name
        waits.append(datetime.fromisoformat(event.time).timestamp() * 1000 - pressed)
    (shot("label-5-timed").parent / "label-waits.json").write_text(json.dumps(waits))


def test_an_annotator_labels_over_the_death_of_the_kernel_and_everybody_can(
    page: Page, lab: Lab, page_errors: list[str], shot: Callable[[str], Path], truth: dict[str, str]
) -> None:
    log = lab.root.parent / "runs" / "labels" / "fashion_mnist" / "labels.jsonl"
    open_notebook(page, lab, "label.ipynb")
    desk = start(page)
    desk.focus()
    shot("label-1-first-image")

    # Three labels, of which one is taken back, one image that nobody could tell, and one for later.
    given = {}
    for number in range(1, 4):
        given[shown(desk)] = truth[shown(desk)]
        press(page, desk, truth[shown(desk)], number)
    last = list(given)[-1]
    press(page, desk, "z", 2)
    expect(desk.locator(".palkit-labeller-single img")).to_have_attribute("alt", f"image {last}")
    assert last not in labels(log)
    press(page, desk, truth[last], 3)
    unsure = shown(desk)
    page.keyboard.press("u")
    page.keyboard.press("s")
    expect(desk.get_by_text("6 of 10")).to_be_visible()
    expect(desk.get_by_label("Images", exact=True)).to_contain_text("proposed (5)")
    answers = standing(LabelLog(log).events()).set_index("id")["answer"]
    assert answers[unsure] == "unsure"
    assert answers.tolist().count("skip") == 1
    page.keyboard.press("g")
    expect(desk.locator(".palkit-labeller-tile")).to_have_count(10)
    shot("label-2-grid")
    page.keyboard.press("g")
    names = load_dataset("fashion_mnist").class_names
    assert labels(log) == {name: names[KEYS.index(key)] for name, key in given.items()}

    # The kernel dies; what was labelled is there again, and only that is asked which is open.
    wait_restarted(page, lab, kill_kernel(lab))
    desk = start(page)
    expect(desk.locator("label").first).to_have_text("3 of 80 labels")
    expect(desk.get_by_text("1 of 5")).to_be_visible()
    desk.focus()
    for number in range(4, 9):
        assert shown(desk) not in given
        given[shown(desk)] = truth[shown(desk)]
        press(page, desk, truth[shown(desk)], number)
    expect(desk.get_by_text("All images here are answered")).to_be_visible()

    # Two rounds: the curve comes, and grows.
    curve = desk.locator(".palkit-labeller-curve")
    page.keyboard.press("n")
    expect(curve).to_have_attribute("alt", re.compile("at 8 labels"), timeout=COMPUTING)
    expect(desk.get_by_text("1 of 10")).to_be_visible(timeout=COMPUTING)
    desk.focus()
    for number in range(9, 19):
        given[shown(desk)] = truth[shown(desk)]
        press(page, desk, truth[shown(desk)], number)
    page.keyboard.press("n")
    expect(curve).to_have_attribute("alt", re.compile("at 8 labels, .* at 18 labels"), timeout=COMPUTING)
    expect(desk.locator(".palkit-labeller-outlook")).to_contain_text("Another 10 labels")
    expect(desk.locator(".palkit-labeller-single img")).to_be_visible()
    shot("label-3-second-round")
    assert labels(log) == {name: names[KEYS.index(key)] for name, key in given.items()}

    by_everybody(page, desk, shot, truth, log)
    assert page_errors == []
