"""explore.ipynb as a reader turns its controls: what is shown is what the engine answers, on grids, map and panel."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from lab import Lab, cell_output, contrast, open_notebook, run_all, run_cell, set_theme, unlabelled_controls, wait_idle
from playwright.sync_api import Locator, Page, expect

from palkit.config import config_from_dict
from palkit.labelling.explore import Exploration, Question, summary
from palkit.labelling.proposals import Answer, overlap_sentence
from palkit.widgets.grid import caption_text
from palkit.widgets.projection import scaled

PARAMETERS, EXPLORER, SHARED = 1, 3, 5  # cells of explore.ipynb
POOL = 150
BEGIN = Question(
    config_from_dict({"dataset": "fashion_mnist", "adapter": "linear_probe", "pool_size": POOL, "batch_size": 20}),
    strategies=("entropy", "badge"),
    round=1,
)
LORA = config_from_dict({"adapter": "lora"}).adapter


@pytest.fixture(scope="module")
def engine() -> Exploration:
    """Answers without any page."""
    return Exploration()


@pytest.fixture
def notebook(lab: Lab) -> str:
    """The notebook on a small pool."""
    small = nbformat.read(lab.root / "explore.ipynb", as_version=4)
    source = small.cells[PARAMETERS].source
    small.cells[PARAMETERS].source = re.sub(r"pool_size = \d+", f"pool_size = {POOL}", source)
    nbformat.write(small, lab.root / "explore_small.ipynb")
    return "explore_small.ipynb"


def explorer(page: Page) -> Locator:
    desk = page.locator(".palkit-explorer")
    desk.scroll_into_view_if_needed()
    return desk


def thumbnails(desk: Locator, number: int) -> Locator:
    """Those of strategy A (0) or B (1)."""
    return desk.locator(".palkit-grid").nth(number).get_by_role("listbox").get_by_role("option")


def expect_shown(desk: Locator, question: Question, answer: Answer) -> None:
    """Wait until status, grids, overlap and legend of the map say what the engine answered."""
    status = desk.get_by_role("status").first
    labels = len(answer.labelled)
    expect(status).to_have_text(f"Shown: {summary(question)}; {labels} labels.", timeout=60_000)
    grids = desk.locator(".palkit-grid")
    expect(grids).to_have_count(len(answer.proposals))
    for number, proposal in enumerate(answer.proposals):
        table = proposal.table
        names = [
            f"rank {rank}, predicted {predicted}, score {caption_text(score) or 'unknown'}, probability {100 * p:.0f} %"
            for rank, predicted, score, p in zip(
                table["rank"], table["predicted"], table["score"].tolist(), table["probability"], strict=True
            )
        ]
        images = thumbnails(desk, number)
        expect(images).to_have_count(len(names))
        for place_, name in enumerate(names):  # a page of thumbnails comes a little after the status
            expect(images.nth(place_)).to_have_attribute("aria-label", name)
        expect(grids.nth(number).locator("strong")).to_contain_text(f"{'AB'[number]}: {proposal.strategy}")
    expect(desk).to_contain_text(overlap_sentence(answer))
    expect(desk.locator(".palkit-map-legend")).to_contain_text(f"labelled ({labels})")


def place(desk: Locator, points: np.ndarray, position: int) -> dict[str, float]:
    """Where the map draws a point while all is shown, in pixels of its canvas."""
    box = desk.locator("canvas[role=application]").bounding_box()
    assert box is not None
    side = min(box["width"], box["height"])
    x, y = scaled(points)[position].tolist()
    return {"x": x * side + (box["width"] - side) / 2, "y": y * side + (box["height"] - side) / 2}


def loneliest(points: np.ndarray, among: np.ndarray, marked: np.ndarray) -> int:
    """The position of `among` that lies farthest from all other marks, so that a click means no other."""
    gaps = np.linalg.norm(points[among][:, None] - points[marked][None], axis=2)
    gaps[among[:, None] == marked[None]] = np.inf
    return int(among[gaps.min(axis=1).argmax()])


@pytest.mark.campaign  # without a browser: test_widgets_explorer.py
def test_every_control_shows_what_the_engine_answers(
    page: Page, lab: Lab, page_errors: list[str], shot: Callable[[str], Path], notebook: str, engine: Exploration
) -> None:
    open_notebook(page, lab, notebook)
    run_all(page)
    wait_idle(page, 120)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    cell_output(page, EXPLORER)
    desk = explorer(page)
    question = BEGIN
    expect_shown(desk, question, engine.answer(question))
    shot("explore-1-first")

    def config(question: Question, **values: Any) -> Question:
        return replace(question, config=replace(question.config, **values))

    def select(label: str, option: str) -> None:
        desk.get_by_label(label, exact=True).select_option(option)

    def fill(label: str, text: str) -> None:
        field = desk.get_by_label(label, exact=True)
        field.fill(text)
        field.press("Enter")

    seen = set()
    for change, following in (
        (lambda: select("Strategy A", "margin"), lambda old: replace(old, strategies=("margin", "badge"))),
        (lambda: select("Strategy B", "coreset"), lambda old: replace(old, strategies=("margin", "coreset"))),
        (lambda: select("Round", "3"), lambda old: replace(old, round=3)),
        (lambda: fill("Batch size", "12"), lambda old: config(old, batch_size=12)),
        (lambda: select("Balance", "pcb"), lambda old: config(old, balance="pcb")),
        (lambda: fill("Seed", "4"), lambda old: config(old, seed=4)),
        (lambda: select("Labels bought", "by strategy A"), lambda old: replace(old, history="own")),
        (lambda: select("Strategy B", "none"), lambda old: replace(old, strategies=("margin",))),
        (lambda: select("Adapter", "lora"), lambda old: config(old, adapter=LORA)),
        (lambda: fill("Data set", "digits"), lambda old: config(old, dataset="digits", pool_size=None)),
    ):
        change()
        question = following(question)
        answer = engine.answer(question)
        expect_shown(desk, question, answer)
        seen.add(answer.proposals[0].table["id"].str.cat())
    assert len(seen) == 8, "each change but those of B alone gives A another batch"

    # A mistake is a sentence, and what was shown stays.
    fill("Data set", "digit")
    expect(desk.get_by_role("status").first).to_contain_text("Did you mean 'digits'")
    expect(desk.get_by_role("status").first).to_contain_text(f"Still shown: {summary(question)}")
    expect(thumbnails(desk, 0)).to_have_count(12)
    assert page_errors == []


@pytest.mark.campaign
def test_map_reasons_and_a_fit_that_is_cancelled(
    page: Page, lab: Lab, page_errors: list[str], shot: Callable[[str], Path], notebook: str, engine: Exploration
) -> None:
    answer, points = engine.answer(BEGIN), engine.projection(BEGIN)
    tables = [proposal.table for proposal in answer.proposals]
    open_notebook(page, lab, notebook)
    for index in (PARAMETERS, EXPLORER):
        run_cell(page, index)
    wait_idle(page)
    desk = explorer(page)
    expect_shown(desk, BEGIN, answer)
    canvas, tip = desk.locator("canvas[role=application]"), desk.locator(".palkit-map-tip")

    def expect_why(position: int) -> None:
        """The panel names the image and shows it, its classes, and its nearest labelled images."""
        why = answer.why(position)
        expect(desk.get_by_text(f"{why.id}:")).to_be_visible()
        for strategy, rank in why.ranks.items():
            expect(desk).to_contain_text(f"number {rank} of {strategy}" if rank else f"not proposed by {strategy}")
        first = desk.get_by_role("table", name="Class probabilities").get_by_role("row").first
        expect(first).to_have_text(f"{why.classes['class'][0]}{100 * why.classes['probability'][0]:.1f} %")
        expect(desk.locator(".palkit-near figcaption").first).to_contain_text(why.neighbours["label"][0])

    expect(desk).to_contain_text("Click an image")
    thumbnails(desk, 1).nth(2).click()
    expect_why(int(tables[1]["position"][2]))
    thumbnails(desk, 0).first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect_why(int(tables[0]["position"][1]))

    # The map, by mouse.
    canvas.scroll_into_view_if_needed()
    picks = np.unique(np.concatenate([table["position"] for table in tables]))
    marked = np.union1d(picks, answer.labelled)
    position = loneliest(points, picks, marked)
    canvas.hover(position=place(desk, points, position))
    expect(tip).to_be_visible()
    probability, predicted = answer.scores.probs[position].max(0)
    expect(tip).to_contain_text(
        f"predicted {answer.pool.class_names[int(predicted)]}, {100 * float(probability):.0f} %"
    )
    expect(tip.locator("img")).to_have_js_property("naturalWidth", 72)
    canvas.click(position=place(desk, points, position))
    expect_why(position)
    labelled = loneliest(points, answer.labelled, marked)
    canvas.hover(position=place(desk, points, labelled))
    expect(tip).to_contain_text(f"labelled {answer.pool.class_names[answer.pool.labels[answer.rows[labelled]]]}")

    # ... and by keyboard, where a point is brought into sight if need be.
    order = list(dict.fromkeys([*tables[0]["position"], *tables[1]["position"]]))
    canvas.focus()
    for key in ("+", "+", "+", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    expect(tip).to_contain_text("number 2")
    page.keyboard.press("Enter")
    expect_why(order[1])
    page.keyboard.press("0")
    canvas.click(position=place(desk, points, position))
    expect_why(position)
    assert page.locator(".jp-Notebook .jp-Cell").count() > 3, "JupyterLab heard none of the keys"

    # It can be read in both themes, and has names for all that can be used.
    for dark in (True, False):
        set_theme(page, dark)
        worst = contrast(page, ".palkit-explorer")
        assert worst is not None
        assert worst.ratio >= 4.5, (dark, worst)
        assert unlabelled_controls(page, ".palkit-explorer") == []
        if dark:
            shot("explore-2-dark")

    # A fit that takes its time: the page answers meanwhile, and it can be stopped.
    desk.get_by_label("Adapter", exact=True).select_option("lora")
    status, cancel = desk.get_by_role("status").first, desk.get_by_role("button", name="Cancel")
    expect(status).to_have_text(re.compile("Computing: .*(train|fit)", re.I))
    desk.get_by_label("Show the true class").check()
    truth = answer.why(position, reveal=True).truth
    expect(desk).to_contain_text(f"Its true class is {truth}.")
    canvas.hover(position=place(desk, points, labelled))
    expect(tip).to_contain_text("labelled")
    expect(status).to_contain_text("Computing")
    cancel.click()
    expect(status).to_have_text(f"Cancelled. Still shown: {summary(BEGIN)}.")
    expect(desk.get_by_label("Adapter", exact=True)).to_have_value("linear_probe")
    expect(cancel).to_be_disabled()
    assert page_errors == []
