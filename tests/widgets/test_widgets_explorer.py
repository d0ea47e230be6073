"""The explorer on a page: controls, tables, status, map and reasons; and as a picture where there is no page."""

import asyncio
from collections.abc import Callable
from io import BytesIO
from typing import Any

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from palkit.config import config_from_dict
from palkit.data import ArrayImages
from palkit.errors import ConfigError
from palkit.labelling.explore import Exploration, Question
from palkit.labelling.proposals import Answer, overlap_sentence
from palkit.widgets.explorer import Explorer
from palkit.widgets.explorer_view import ExplorerView
from palkit.widgets.jobs import Cancelled
from palkit.widgets.projection import Projection, scaled
from palkit.widgets.why import bars


@pytest.fixture
def values(tiny_run: dict[str, Any]) -> dict[str, Any]:
    run = {key: value for key, value in tiny_run.items() if key != "strategy"}
    return {**run, "adapter": "linear_probe", "strategies": ("entropy", "coreset"), "batch_size": 6, "rounds": 4}


@pytest.fixture
def explorer(values: dict[str, Any]) -> Explorer:
    return Explorer(**values)


def expected(explorer: Explorer, **changes: Any) -> Answer:
    """The answer by the engine alone, nothing of it kept from before."""
    config = {"pool_size": 200, "batch_size": 6, "balance": None, "seed": 0}
    own = {"strategies": ("entropy", "coreset"), "round": 0, "history": "random"}
    for name, value in changes.items():
        (own if name in own else config)[name] = value
    base = explorer.question.config
    plain = {"dataset": "digits", "adapter": base.adapter, "training": base.training, "backbone": base.backbone}
    merged = {**plain, **config, "rounds": base.rounds, "evaluate_on": base.evaluate_on}
    return Exploration().answer(Question(type(base)(**merged), **own))


def shows(view: ExplorerView, answer: Answer) -> bool:
    grids = zip(view.grids, answer.proposals, strict=True)
    return all(grid.table.equals(proposal.table) for grid, proposal in grids)


def test_headless_it_is_a_picture_and_no_widget(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(ipywidgets.Widget, "open", lambda self: opened.append(self))
    bundle = explorer._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
    assert bundle["text/plain"].startswith("Explorer: entropy and coreset on digits, linear_probe, round 0")
    picture = Image.open(BytesIO(bundle["image/png"]))
    assert picture.width > 400
    assert len(picture.getcolors(maxcolors=256)) > 10
    assert bundle["image/png"] == explorer._repr_mimebundle_()["image/png"]
    assert opened == []
    assert "view" not in explorer.__dict__


def test_live_it_is_a_widget_with_the_picture_beside_it(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALKIT_WIDGETS", "live")
    bundle = explorer._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.widget.model_id
    assert {"text/plain", "image/png"} < set(bundle)


def test_every_control_changes_what_is_shown(explorer: Explorer) -> None:
    view = explorer.view
    assert shows(view, expected(explorer))
    state: dict[str, Any] = {}
    for name, value, change in (
        ("second", "badge", {"strategies": ("entropy", "badge")}),
        ("first", "margin", {"strategies": ("margin", "badge")}),
        ("round", 2, {"round": 2}),
        ("batch_size", 9, {"batch_size": 9}),
        ("balance", "pcb", {"balance": "pcb"}),
        ("seed", 4, {"seed": 4}),
        ("history", "own", {"history": "own"}),
        ("second", "none", {"strategies": ("margin",)}),
    ):
        view.controls[name].value = value
        state |= change
        wanted = expected(explorer, **state)
        assert shows(view, wanted), name
        assert view.status.text.startswith("Shown: margin" if "margin" in view.status.text else "Shown: entropy")
        assert view.status.kind == "idle"
        assert overlap_sentence(wanted) in view.overlap.value
        chosen = {proposal.strategy: proposal.table["position"].tolist() for proposal in wanted.proposals}
        assert {name: p.tolist() for name, p in view.map.picks.items()} == chosen
        assert view.map.labelled.tolist() == wanted.labelled.tolist()
    assert len(view.grids) == 1
    assert "margin" in view.grids[0].widget.page["label"]


def test_every_control_has_a_label(explorer: Explorer) -> None:
    view = explorer.view
    labels = [control.description for control in [*view.controls.values(), view.map_kind, view.cancel, view.why.reveal]]
    assert all(labels)
    assert len(set(labels)) == len(labels)


def test_another_data_set(explorer: Explorer) -> None:
    view = explorer.view
    view._look_at(3)
    view.controls["dataset"].value = "digits_lt"
    assert view.answer.pool.name == "digits_lt"
    assert explorer.question.config.pool_size is None
    assert shows(view, Exploration().answer(explorer.question))
    assert view.position is None
    assert len(view.map.rows) == len(view.answer.rows)


def test_a_mistake_is_a_sentence_and_the_display_stays(explorer: Explorer) -> None:
    view = explorer.view
    for name, value, message in (
        ("dataset", "digit", "Did you mean 'digits'"),
        ("second", "entropy", "give one, or two different ones"),
    ):
        before = view.controls[name].value
        view.controls[name].value = value
        assert view.status.kind == "problem"
        assert message in view.status.text
        assert "Still shown: entropy and coreset on digits" in view.status.text
        assert "Traceback" not in view.status.text
        assert view.cancel.disabled
        assert shows(view, expected(explorer))
        view.controls[name].value = before
        assert view.status.kind == "idle"


def test_cancel_turns_the_controls_back(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    view, real = explorer.view, Exploration.answer

    def cancelled(self: Exploration, question: Question, progress: Callable[[str, int, int], None]) -> Answer:
        view.cancel.click()  # somebody does while it computes
        return real(self, question, progress)

    monkeypatch.setattr(Exploration, "answer", cancelled)
    view.controls["round"].value = 3
    assert view.status.text.startswith("Cancelled. Still shown: entropy and coreset on digits, linear_probe, round 0")
    assert view.controls["round"].value == 0
    assert explorer.question.round == 0
    monkeypatch.setattr(Exploration, "answer", real)
    view.controls["round"].value = 3
    assert shows(view, expected(explorer, round=3))


def test_the_page_answers_while_it_computes_and_the_newest_wins(values: dict[str, Any]) -> None:
    """With a running loop: two changes at once show the second one alone, and progress is told."""

    async def drive() -> tuple[Explorer, list[str], list[str]]:
        explorer = Explorer(**values)
        view = explorer.view
        said: list[str] = []
        shown: list[str] = []
        view.status.observe(lambda change: said.append(change["new"]), "kind")
        real = view._show
        view._show = lambda question, *rest: (shown.append(question.config.seed), real(question, *rest))
        assert view.answer is None, "nothing is computed before the page is back"
        view.controls["seed"].value = 7
        view.controls["seed"].value = 8
        async with asyncio.timeout(300):
            while not shown:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        return explorer, said, shown

    explorer, said, shown = asyncio.run(drive())
    assert shown == [8]
    assert shows(explorer.view, expected(explorer, seed=8))
    assert said[-1] == "idle"


def test_why_panel(explorer: Explorer) -> None:
    view = explorer.view
    view.grids[1].widget._handle_custom_msg({"type": "select", "position": 2, "generation": 0}, [])
    position = int(view.answer.proposals[1].table["position"][2])
    assert view.position == position
    assert view.map.selected == position
    why = view.answer.why(position)
    assert why.id in view.why.text.value
    assert "number 3 of coreset" in view.why.text.value
    for label in why.neighbours["label"]:
        assert f"<figcaption>{label}<br>" in view.why.text.value
    assert view.why.text.value.count("<img") == 6
    assert "true class" not in view.why.text.value
    view.why.reveal.value = True
    truth = view.answer.pool.labels[why.row]
    assert f"true class is <b>{truth}</b>" in view.why.text.value
    view.map.widget._handle_custom_msg({"type": "select", "position": 5}, [])
    assert view.position == 5
    assert view.answer.why(5).id in view.why.text.value


def test_names_are_escaped(explorer: Explorer) -> None:
    why = explorer.answer().why(0)
    why.classes.loc[0, "class"] = "<script>alert(1)</script>"
    assert "<script>" not in bars(why)
    assert "&lt;script&gt;" in bars(why)


def some_map() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    images = ArrayImages(rng.integers(0, 255, (50, 8, 8)).astype(np.uint8))
    picks = {"entropy": np.array([5, 1, 2]), "badge": np.array([2, 7])}
    return images, np.arange(10, 40), rng.normal(size=(30, 2)) * [5, 1], np.array([0, 3]), picks


def test_projection_tells_the_browser_what_to_draw() -> None:
    projection = Projection(*some_map(), describe=lambda position: f"this is {position}")
    widget = projection.widget
    assert list(widget.states[:8]) == [1, 2, 4, 1, 0, 2, 0, 3]
    assert widget.order == [5, 1, 2, 7]
    points = np.frombuffer(widget.points, dtype=np.float32).reshape(-1, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    true = projection.points
    assert np.corrcoef(points[:, 0], true[:, 0])[0, 1] == pytest.approx(1, abs=1e-5)
    assert np.corrcoef(points[:, 1], true[:, 1])[0, 1] == pytest.approx(-1, abs=1e-5), "y grows downwards in a browser"
    assert np.ptp(points[:, 0]) / np.ptp(points[:, 1]) == pytest.approx(np.ptp(true[:, 0]) / np.ptp(true[:, 1]), 1e-4)
    sent: list[tuple[dict, list[bytes]]] = []
    widget.send = lambda content, buffers: sent.append((content, buffers))
    widget._handle_custom_msg({"type": "hover", "position": 4}, [])
    ((content, (png,)),) = sent
    assert (content["position"], content["text"]) == (4, "this is 4")
    shown = np.asarray(Image.open(BytesIO(png)))
    assert np.array_equal(shown[::9, ::9], some_map()[0].decode(np.array([14]), 8)[0]), "row 14 is at position 4"
    heard: list[int] = []
    projection.on_select(heard.append)
    for position in (6, 30, -1, "6", None):
        widget._handle_custom_msg({"type": "select", "position": position}, [])
    assert heard == [6]
    assert widget.selected == 6


def test_points_in_one_place_have_a_map() -> None:
    assert np.isfinite(scaled(np.zeros((4, 2)))).all()


def test_cancelled_map_goes_back_to_what_is_shown(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    view = explorer.view

    def never(*args: Any) -> None:
        raise Cancelled("cancelled")

    before = view.map.points.copy()
    monkeypatch.setattr("palkit.labelling.explore.tsne", never)
    monkeypatch.setenv("PALKIT_CACHE", "/nowhere")
    view.map_kind.value = "tsne"
    assert view.status.text.startswith("Cancelled. Still shown")
    assert view.map_kind.value == "pca"
    assert np.array_equal(view.map.points, before)


def test_words_and_values_make_the_same_question(values: dict[str, Any]) -> None:
    own = ("strategies", "round", "history")
    config = config_from_dict({key: value for key, value in values.items() if key not in own})
    assert Explorer(**values).question == Question(config, ("entropy", "coreset"))
    question = Question(config, ("badge",), 1, "own")
    assert Explorer(question).question is question
    assert Explorer(strategies="badge", dataset="digits").question.strategies == ("badge",)
    with pytest.raises(ConfigError, match="datset"):
        Explorer(datset="digits")
