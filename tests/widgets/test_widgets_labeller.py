"""The labeller, driven by the messages that its page sends."""

import asyncio
import json
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from palkit.data import load_dataset
from palkit.labelling.exchange import read_label_studio, read_labels_csv
from palkit.labelling.session import Session, open_session
from palkit.widgets.labeller import DISPUTED, OPINIONS, Labeller


@pytest.fixture
def fields(tiny_run: dict[str, Any]) -> dict[str, Any]:
    wanted = ("pool_size", "backbone", "training", "strategy", "evaluate_on")
    return {name: tiny_run[name] for name in wanted} | {"adapter": {"name": "linear_probe"}}


@pytest.fixture
def session(fields: dict[str, Any]) -> Session:
    return open_session("digits", "ana", budget=25, **fields)


@pytest.fixture
def truth() -> dict[str, str]:
    pool = load_dataset("digits")
    return {str(name): str(label) for name, label in zip(pool.ids, pool.label_names(), strict=True)}


class Page:
    """What a browser does: sends messages, sees the view."""

    def __init__(self, labeller: Labeller) -> None:
        self.labeller, self.widget = labeller, labeller.widget
        self.serial = 0
        self.files: list[dict[str, Any]] = []
        self.widget.send = lambda content, buffers=None: self.files.append(content)  # type: ignore[method-assign]

    @property
    def view(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.widget.view))  # it must be plain

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.view["items"]]

    def tell(self, type_: str, **content: Any) -> dict[str, Any]:
        self.serial += 1
        self.widget._handle_custom_msg({"type": type_, "serial": self.serial, **content}, [])
        assert self.view["seen"] == self.serial
        return self.view

    def label_all(self, truth: dict[str, str]) -> None:
        for name in self.ids:
            self.tell("label", id=name, label=truth[name])


def test_answers_are_stored_before_they_are_shown(session: Session, truth: dict[str, str]) -> None:
    page = Page(Labeller(session))
    first, second, third = page.ids[:3]
    assert len(page.ids) == len(page.widget.pictures) == 10
    view = page.tell("label", id=first, label=truth[first])
    assert view["items"][0]["answer"] == "label"
    assert view["items"][0]["label"] == truth[first]
    assert view["progress"] == {"done": 1, "budget": 25}
    page.tell("unsure", id=second)
    page.tell("skip", id=third)
    assert [item["answer"] for item in page.view["items"][:4]] == ["label", "unsure", "skip", ""]
    assert page.view["queues"][0] == ["proposed", 7]
    lines = [json.loads(line) for line in session.log.path.read_text().splitlines()]
    assert [(line["action"], line["id"]) for line in lines] == [("label", first), ("unsure", second), ("skip", third)]
    view = page.tell("undo")
    assert view["undone"] == third
    assert view["items"][2]["answer"] == ""
    assert page.tell("label", id=first, label=truth[second])["items"][0]["label"] == truth[second], "changed one's mind"


def test_what_goes_wrong_is_a_sentence_and_nothing_is_shown_as_stored(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(Labeller(session))
    first = page.ids[0]
    assert "unknown class 'eleven'" in page.tell("label", id=first, label="eleven")["news"]
    assert "no image 'nowhere'" in page.tell("label", id="nowhere", label="3")["news"]
    assert "AttributeError" in page.tell("explode")["news"]
    assert "exists already" in page.tell("class", label="3")["news"]
    session.log.path.mkdir()
    assert "cannot be read" in page.tell("label", id=first, label="3")["news"]
    session.log.path.rmdir()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("palkit.labelling.labels.os.fsync", full)
        assert "is not stored" in page.tell("label", id=first, label="3")["news"]
    assert page.tell("undo")["news"] == "Nothing to take back."
    assert page.view["items"][0]["answer"] == ""


def test_the_next_round_trains_and_the_curve_grows(session: Session, truth: dict[str, str]) -> None:
    page = Page(Labeller(session))
    assert not page.widget.curve
    assert "begins" in page.view["outlook"]
    batch = page.view["batch"]
    page.label_all(truth)
    assert "All images here are answered" in page.view["news"]
    before = page.ids
    page.tell("next")
    assert page.view["batch"] > batch
    assert not set(page.ids) & set(before)
    assert len(page.ids) == 10
    assert not any(item["answer"] for item in page.view["items"])
    assert page.view["undo"], "of the batch before"
    assert "at 10 labels" in page.view["curve"]
    assert "One round" in page.view["outlook"]
    assert Image.open(BytesIO(page.widget.curve)).format == "PNG"
    page.label_all(truth)
    page.tell("next")
    assert "at 20 labels" in page.view["curve"]
    assert page.view["outlook"].startswith("Another 10 labels")
    assert len(page.ids) == 5, "the budget bounds the batch"
    page.label_all(truth)
    page.tell("next")
    assert page.ids == []
    assert page.view["news"] == "The budget of 25 labels is spent."
    last = page.tell("undo")["undone"]
    assert page.ids == [last], "of an earlier batch, but open again"


def test_tests_are_among_what_is_asked_and_what_they_guarantee_is_said(
    fields: dict[str, Any], truth: dict[str, str]
) -> None:
    page = Page(Labeller(open_session("digits", "ana", held_out=80, test_share=0.8, **fields)))
    assert len(page.ids) == 50, "ten to train on, and forty to test on"
    for _ in range(2):
        page.label_all(truth)
        page.tell("next")
    least = page.labeller.session.rounds()[-1].metrics["accuracy_at_least"]
    assert least == pytest.approx(page.labeller.session.curve()["accuracy"].iloc[-1]), "all 80 are labelled"
    assert page.view["outlook"].endswith(
        f"At least {least:.0%} are right, with 95 % confidence for all rounds together."
    )


def test_with_one_class_more_is_proposed_instead_of_trained(session: Session) -> None:
    page = Page(Labeller(session))
    first = page.ids
    for name in first:
        page.tell("label", id=name, label="3")
    page.tell("next")
    assert "two classes" in page.view["news"]
    assert session.rounds() == []
    assert not set(page.ids) & set(first)


def test_two_annotators_and_what_they_dispute(session: Session, fields: dict[str, Any], truth: dict[str, str]) -> None:
    ana = Page(Labeller(session))
    first = ana.ids
    ana.label_all(truth)
    ben = Page(Labeller(open_session("digits", "ben", budget=25, **fields)))
    ben.tell("queue", queue=OPINIONS)
    assert ben.ids == first
    assert [item["answer"] for item in ben.view["items"]] == [""] * 10
    wrong = next(name for name in ben.view["names"] if name != truth[first[0]])
    ben.tell("label", id=first[0], label=wrong)
    view = ben.tell("label", id=first[1], label=truth[first[1]])
    assert view["agreement"].startswith("ana and ben agree on 50% of 2 images")
    assert "1 disputed images are not trained on" in view["agreement"]
    ana.tell("queue", queue=DISPUTED)
    assert ana.ids == [first[0]]
    assert ana.view["items"][0]["said"] == f"ana: {truth[first[0]]}, ben: {wrong}"
    assert ana.tell("label", id=first[0], label=wrong)["queues"][2] == [DISPUTED, 0]


def test_second_opinions_come_with_the_batch_and_without_a_guess(fields: dict[str, Any], truth: dict[str, str]) -> None:
    ana = open_session("digits", "ana", batch_size=40, **fields)
    ids = ana.propose()["id"].tolist()
    ana.label(ids, [truth[name] for name in ids])
    cho = open_session("digits", "cho", **fields)
    cho.label(ids[:10], [next(one for one in cho.class_names if one != truth[name]) for name in ids[:10]])
    ana.fit()
    page = Page(Labeller(open_session("digits", "ben", batch_size=10, ask_again=True, **fields)))
    again = [item for item in page.view["items"] if item["purpose"] == "second opinion"]
    assert {item["id"] for item in again} <= {*ids}
    assert len(again) == 5 == len(page.ids) - 5
    assert {(item["predicted"], item["answer"]) for item in again} == {("", "")}


def test_a_new_class_and_keys_for_it(session: Session) -> None:
    page = Page(Labeller(session))
    assert page.tell("class", label="<b>smudge</b>")["names"][-1] == "<b>smudge</b>"
    assert page.tell("label", id=page.ids[0], label="<b>smudge</b>")["items"][0]["label"] == "<b>smudge</b>"


def test_files_out_and_in(session: Session, fields: dict[str, Any], truth: dict[str, str], tmp_path: Path) -> None:
    page = Page(Labeller(session))
    page.label_all(truth)
    page.tell("next")
    for kind, reader in (("csv", read_labels_csv), ("json", read_label_studio)):
        page.tell("export", format=kind)
        file = page.files[-1]
        (tmp_path / file["name"]).write_text(file["text"], encoding="utf-8")
        read = reader(tmp_path / file["name"])
        given = dict(zip(read["id"], read["label"], strict=True))
        assert {name: label for name, label in given.items() if label} == session.labels()
        other = Page(Labeller(open_session("digits", "ben", folder=tmp_path / kind, **fields)))
        view = other.tell("import", name=f"../../labels.{kind.upper()}", text=file["text"])
        assert view["news"].startswith("10 of ")
        assert other.labeller.session.labels() == session.labels()
    tasks = json.loads(page.files[-1]["text"])
    assert len(tasks) == 20, "labelled ones and those proposed"
    assert sum("predictions" in task for task in tasks) == 10
    before = session.log.path.read_bytes()
    for text in ("", "id|label", "{", "[1]"):
        name = "x.csv" if "|" in text else "x.json"
        assert page.tell("import", name=name, text=text)["news"].startswith(name), "and no folder of palkit's own"
    assert session.log.path.read_bytes() == before


def test_large_images_come_whole_and_a_broken_one_does_not_stop_the_others(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    folder, rng = tmp_path / "slides", np.random.default_rng(0)
    folder.mkdir()
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (300, 2400, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    fields = fields | {"pool_size": None, "evaluate_on": "test"}
    session = open_session(str(folder), "ana", classes=["a", "b"], batch_size=6, **fields)
    session.propose()
    (folder / "2.png").write_bytes(b"no image")
    page = Page(Labeller(session))
    for item, picture in zip(page.view["items"], page.widget.pictures, strict=True):
        if item["id"] == "2.png":
            assert "cannot be shown" in item["problem"]
            assert not picture
        else:
            assert Image.open(BytesIO(picture)).size == (1024, 128)
            assert not item["small"]


def test_a_fit_can_be_cancelled_and_labels_be_given_meanwhile(
    session: Session, truth: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitting, stored = threading.Event(), session.file.path

    def slow(progress: Any) -> None:
        fitting.set()
        while True:
            progress("fitting", 1, 2)

    async def main() -> None:
        page = Page(labeller)
        page.label_all(truth)
        monkeypatch.setattr(session, "fit", slow)
        before = stored.read_bytes()
        page.tell("next")
        assert page.view["busy"] is not None
        await asyncio.to_thread(fitting.wait, 300)
        changed = page.ids[0]
        page.tell("label", id=changed, label=next(name for name in page.view["names"] if name != truth[changed]))
        assert session.labels()[changed] != truth[changed]
        page.tell("cancel")
        async with asyncio.timeout(300):
            while page.view["busy"] is not None:
                await asyncio.sleep(0.005)
        assert page.view["news"] == "Cancelled; nothing has changed."
        assert stored.read_bytes() == before

    labeller = Labeller(session)
    session.propose()
    asyncio.run(main())


def test_nobody_looking_makes_no_widget(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(ipywidgets.widgets.widget._instances)
    labeller = Labeller(session)
    bundle = labeller._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
    assert bundle["text/plain"] == "Labeller of 'digits' by ana"
    assert Image.open(BytesIO(bundle["image/png"])).format == "PNG"
    assert "widget" not in labeller.__dict__
    assert len(ipywidgets.widgets.widget._instances) == count
    monkeypatch.setenv("PALKIT_WIDGETS", "live")
    assert "application/vnd.jupyter.widget-view+json" in labeller._repr_mimebundle_()


def test_a_finished_session_is_a_picture_of_its_curve(session: Session, truth: dict[str, str]) -> None:
    for _ in range(3):
        ids = session.propose()["id"]
        session.label(ids, [truth[name] for name in ids])
        session.fit()
    assert session.propose().empty
    assert Image.open(BytesIO(Labeller(session)._repr_mimebundle_()["image/png"])).width > 300
