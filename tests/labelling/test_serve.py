"""`palkit serve` over a real socket, asked as Label Studio 1.23.2 asks; campaigns/label_studio.py asks that server."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from palkit.cli import main
from palkit.errors import ConfigError, DataError
from palkit.labelling import serve
from palkit.labelling.exchange import label_studio_config, read_label_studio
from palkit.labelling.labels import Event, now
from palkit.labelling.serve import ANNOTATOR, Backend, Studio, bind, write_tasks
from palkit.labelling.session import AGAIN, Session, open_session, stored_session
from palkit.labelling.session_file import Proposed

CLASSES = ("dark", "light")
CONFIG = label_studio_config(CLASSES)
FIRST_CLASS = CONFIG.replace('<Choice value="light" />', "")
TIMES = {"created_at": "2026-11-28T12:15:59.454647Z", "updated_at": "2026-11-28T12:15:59.932493Z"}


def truth(image: str) -> str:
    return CLASSES[int(image[-7:-4]) % 2]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A folder of 20 images without labels in two folders, light and dark in turn."""
    rng, folder = np.random.default_rng(0), tmp_path / "slides"
    for number in range(20):
        path = folder / "ward" / f"{number // 10}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (40, 40, 3), dtype=np.uint8) + 120 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def fields(tiny_run: dict[str, Any]) -> dict[str, Any]:
    kept = {key: tiny_run[key] for key in ("backbone", "training")}
    return kept | {"classes": CLASSES, "adapter": "linear_probe", "batch_size": 4, "strategy": "margin"}


@pytest.fixture
def session(slides: Path, fields: dict[str, Any]) -> Session:
    manifest = slides.parent / "slides.csv"  # without labels: the folders are no classes
    names = sorted(str(path.relative_to(slides.parent)) for path in slides.rglob("*.png"))
    manifest.write_text("path,label\n" + "".join(f"{name},\n" for name in names))
    return open_session(str(manifest), ANNOTATOR, folder=slides.parent / "session", **fields)


class Client:
    """What Label Studio sends; fields that nobody reads are left out of the project."""

    def __init__(self, port: int, lines: list[str]) -> None:
        self.url, self.lines = f"http://127.0.0.1:{port}", lines

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.url}/{path}", timeout=30)

    def post(self, path: str, content: dict[str, Any]) -> requests.Response:
        return requests.post(f"{self.url}/{path}", json=content, timeout=30)

    def setup(self, config: str = CONFIG) -> requests.Response:
        content = {"project": "4.1795868120", "schema": config, "hostname": "http://localhost:8099"}
        return self.post("setup", content | {"access_token": "0123456789abcdef", "extra_params": None})

    def predict(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        params = {"login": None, "password": None, "context": None}
        content = {"tasks": tasks, "project": "4.1795868120", "label_config": CONFIG, "params": params}
        answer = self.post("predict", content)
        assert answer.status_code == 200, answer.text
        assert {one["model_version"] for one in answer.json()["results"]} == {answer.json()["model_version"]}
        return answer.json()["results"]

    def webhook(self, action: str, **content: Any) -> requests.Response:
        return self.post("webhook", {"action": action, **content, "project": {"id": 4, "label_config": CONFIG}})

    def annotated(
        self, image: str, label: str | None, number: int = 6, by: int = 1, action: str = "ANNOTATION_CREATED"
    ) -> requests.Response:
        return self.webhook(action, annotation=annotation(label, number, by), task=task(image))


def annotation(label: str | None, number: int = 6, by: int = 1) -> dict[str, Any]:
    choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
    cancelled = {"was_cancelled": label is None, "ground_truth": False, "prediction": {}, "task": 75, "project": 4}
    return {
        "id": number,
        "result": [choice] if label else [],
        "completed_by": by,
        "updated_by": by,
        **cancelled,
        **TIMES,
    }


def task(image: str, **further: Any) -> dict[str, Any]:
    data = {"image": f"/data/local-files/?d={image}", "palkit_id": image}
    return {"id": 75, "data": data, "meta": {}, "is_labeled": False, "overlap": 1, "project": 4, **TIMES, **further}


@pytest.fixture
def answering() -> Iterator[Callable[..., Client]]:
    """Serves a session in a thread."""
    running = []

    def answer(session: Session, studio: Studio | None = None) -> Client:
        lines: list[str] = []
        sockets, loop = bind("127.0.0.1", 0), asyncio.new_event_loop()
        served = loop.create_task(serve.serve(Backend(session, lines.append, studio), sockets))

        def run() -> None:
            with pytest.raises(asyncio.CancelledError):
                loop.run_until_complete(served)

        thread = threading.Thread(target=run)
        thread.start()
        running.append((loop, served, thread))
        return Client(sockets[0].getsockname()[1], lines)

    yield answer
    for loop, served, thread in running:
        loop.call_soon_threadsafe(served.cancel)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()


def until(met: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end
        time.sleep(0.05)


def idle(client: Client) -> bool:
    return not client.get("health").json()["fitting"]


def in_order(session: Session, results: list[dict[str, Any]]) -> list[str]:
    scores = {image: one["score"] for image, one in zip(session.row_of, results, strict=True)}
    assert all(0 <= score <= 1 for score in scores.values())
    return sorted(scores, key=scores.__getitem__)


def test_tasks_are_in_the_order_of_proposals_before_and_after_a_fit(
    session: Session, answering: Callable[[Session], Client]
) -> None:
    client, tasks = answering(session), [task(image) for image in session.row_of]
    version = client.setup().json()["model_version"]
    before = client.predict(tasks)
    assert {len(one["result"]) for one in before} == {0}
    assert in_order(session, before)[:4] == session.open()["id"].tolist()
    for number, image in enumerate(session.open()["id"]):
        assert client.annotated(image, truth(image), number).json() == {"status": "taken over"}
    until(lambda: client.setup().json()["model_version"] != version)
    after = client.predict(tasks)
    waiting = session.open()
    assert len(session.rounds()) == 1
    assert in_order(session, after)[:4] == waiting["id"].tolist()
    guesses = session.predictions().set_index("id")
    for image, one in zip(session.row_of, after, strict=True):
        (result,) = one["result"]
        assert (result["from_name"], result["to_name"], result["type"]) == ("label", "image", "choices")
        assert result["value"]["choices"] == [guesses["predicted"][image]]
        if image not in set(waiting["id"]):
            assert one["score"] == guesses["probability"][image]


def test_labels_come_change_and_go(session: Session, answering: Callable[[Session], Client]) -> None:
    client = answering(session)
    first, second, *_ = session.row_of
    client.annotated(first, "dark", 6)
    client.annotated(second, "light", 7, by=2)
    assert session.labels() == {first: "dark", second: "light"}
    assert session.label_table()["annotator"].tolist() == ["1", "2"]
    client.annotated(first, "light", 6, action="ANNOTATION_UPDATED")
    assert session.labels() == {first: "light", second: "light"}
    client.webhook("ANNOTATIONS_DELETED", annotations=[{"id": 6}])
    assert session.labels() == {second: "light"}, "the label before the change does not come back"
    client.annotated(second, None, 8, by=2)
    assert session.labels() == {}
    client.annotated(first, "dark", 9)
    assert session.labels() == {first: "dark"}
    client.webhook("ANNOTATIONS_DELETED", annotations=[{"id": 999}])
    assert session.labels() == {first: "dark"}
    assert client.lines[-1] == "annotations were deleted that did not come here: 999"


def test_a_deleted_annotation_is_known_after_a_restart(
    session: Session, answering: Callable[[Session], Client]
) -> None:
    image = next(iter(session.row_of))
    answering(session).annotated(image, "dark", 6)
    answering(session).webhook("ANNOTATIONS_DELETED", annotations=[{"id": 6}])
    assert session.labels() == {}


def test_several_annotations_at_once(session: Session, answering: Callable[[Session], Client]) -> None:
    """As when predictions become annotations."""
    images = list(session.row_of)[:3]
    given = {"annotation": [annotation(truth(image), number) for number, image in enumerate(images)]}
    answering(session).webhook("ANNOTATIONS_CREATED", **given, task=[task(image) for image in images])
    assert session.labels() == {image: truth(image) for image in images}


def test_labels_that_were_missed_come_with_the_tasks(session: Session, answering: Callable[[Session], Client]) -> None:
    client = answering(session)
    first, second, third, *_ = session.row_of
    client.annotated(third, "light", 8)
    older = annotation("dark", 8)
    client.predict(
        [task(first, annotations=[annotation("dark", 6)]), task(second, annotations=[annotation(None, 7)]),
         task(third, annotations=[older])]
    )  # fmt: skip
    assert session.labels() == {third: "light", first: "dark"}, "what is newer here stands"
    assert session.label_table().set_index("id")["time"][first].startswith("2026-11-28T12:15:59.932")


def test_images_are_found_by_their_paths(session: Session, answering: Callable[[Session], Client]) -> None:
    client = answering(session)
    image, first = session.open()["id"][1], next(iter(session.row_of))
    file = Path(image).name
    addresses = [f"/data/local-files/?d=root/{image}", f"/data/upload/4/1a2b3c4d-{file}", "s3://bucket/ward/9/000.png"]
    tasks = [{"id": number, "data": {"image": address}} for number, address in enumerate(addresses)]
    scores = [one["score"] for one in client.predict([*tasks, task("nowhere.png"), {"id": 9, "data": {"text": "a"}}])]
    assert scores == [0.25, 0.25, 1.0, 1.0, 1.0]
    pool = f"in the pool of {session.pool.name!r}; ids there are as {first!r}."
    assert client.lines == [
        f"3 of 5 tasks cannot be used: task 2: there is no image 'ward/9/000.png' {pool} task 75: there is no image "
        f"'nowhere.png' {pool} task 9: there is neither 'palkit_id' nor 'image' in its data, so nobody knows the "
        "image; it has 'text'. Name the image 'image' in the tasks."
    ]


def test_a_fit_blocks_nobody(
    session: Session, answering: Callable[[Session], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tasks = answering(session), [task(image) for image in session.row_of]
    began, go_on, fit = threading.Event(), threading.Event(), session.learner.fit

    def slow(*arguments: Any) -> Any:
        began.set()
        assert go_on.wait(60)
        return fit(*arguments)

    monkeypatch.setattr(session.learner, "fit", slow)
    for number, image in enumerate(session.open()["id"][:3]):
        client.annotated(image, truth(image), number)
    before = client.predict(tasks)
    assert client.webhook("START_TRAINING").json()["status"] == "fitting"
    assert began.wait(60)
    assert client.get("health").json()["fitting"]
    assert client.predict(tasks) == before
    assert client.post("train", {}).reason.startswith("a fit is under way already")
    late = session.open()["id"][0]
    client.annotated(late, truth(late), 9)
    go_on.set()
    until(lambda: idle(client))
    assert late in session.labels()
    assert late not in session.rounds()[0].ids
    assert client.predict(tasks) != before


def test_a_fit_that_cannot_be_is_refused_with_the_reason(
    session: Session, answering: Callable[[Session], Client]
) -> None:
    client = answering(session)
    refused = client.webhook("START_TRAINING")
    reason = (
        "a model needs training labels of at least two classes; so far there are 0. Label more of what is proposed."
    )
    assert (refused.status_code, refused.reason, refused.json()) == (400, reason, {"error": reason})
    assert client.lines == [f"refused /webhook: {reason}"]
    assert session.rounds() == []


def test_a_batch_of_one_class_is_followed_by_another(session: Session, answering: Callable[[Session], Client]) -> None:
    client, first = answering(session), session.open()["id"].tolist()
    version = client.setup().json()["model_version"]
    for number, image in enumerate(first):
        client.annotated(image, "dark" if number else None, number)
    until(lambda: idle(client) and client.setup().json()["model_version"] != version)
    assert session.rounds() == []
    assert len(session.open()) == 4
    assert not {*session.open()["id"]} & {*first}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FIRST_CLASS, "of the choices of 'label', 'light' missing"),
        (CONFIG.replace('"light"', '"bright"'), "'bright' no class of the session and 'light' missing"),
        ("<View><Image name='image' value='$image'/></View>", "it has no Choices"),
        (CONFIG.replace("</View>", CONFIG[len("<View>") :]), "2 tags have the classes as choices"),
        ("<View>", "is not XML"),
        (CONFIG.replace('"single"', '"multiple"'), "'label' has choice=\"multiple\", and an image has one class. Set"),
    ],
)
def test_a_configuration_with_other_classes_is_refused(
    session: Session, answering: Callable[[Session], Client], config: str, reason: str
) -> None:
    refused = answering(session).setup(config)
    assert refused.status_code == 400
    assert reason in refused.reason


def test_names_of_tags_are_those_of_the_project(session: Session) -> None:
    config = (
        "<View><Image name='picture' value='$url'/>"
        "<Choices name='quality' toName='picture'><Choice value='good'/></Choices>"
        "<Choices name='choice' toName='picture'><Choice alias='dark' value='D'/><Choice value='light'/></Choices>"
        "</View>"
    )
    control = serve.read_control(config, session.class_names)
    assert (control.name, control.to_name) == ("choice", "picture")


def test_what_is_no_request_is_refused(session: Session, answering: Callable[[Session], Client]) -> None:
    client = answering(session)
    image = next(iter(session.row_of))
    refused = [
        client.post("predict", {"label_config": CONFIG}),
        client.post("webhook", {}),
        client.annotated("nowhere.png", "dark"),
        client.annotated(image, "grey"),
    ]
    assert {one.status_code for one in refused} == {400}
    assert [one.json()["error"] for one in refused[:2]] == [
        f"the request is not as Label Studio sends it: the field {name!r} is missing. It was tested with version 1.23."
        for name in ("tasks", "action")
    ]
    assert "there is no image 'nowhere.png'" in refused[2].reason
    assert "unknown class 'grey'" in refused[3].reason
    text = {"Content-Type": "text/plain"}
    sent = requests.post(f"{client.url}/train", data=json.dumps({}), headers=text, timeout=30)
    assert sent.status_code == 415, "a page of any web site may send that"
    assert session.labels() == {}


def test_tasks_to_import(session: Session, tmp_path: Path) -> None:
    first = next(iter(session.row_of))
    session.label(first, "dark")
    write_tasks(session, tmp_path / "tasks.json", "/data/local-files/?d=")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert sorted(one["data"]["palkit_id"] for one in tasks) == sorted(session.row_of)
    assert read_label_studio(tmp_path / "tasks.json")[["id", "label"]].values.tolist() == [[first, "dark"]]


def test_a_label_studio_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "TRIES", 1)
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DataError, match=r"Label Studio at .* did not take over .* Check LABEL_STUDIO_URL"):
            Studio(url, "0123").order_by("4", "palkit 1")


def test_a_port_that_is_taken_is_named() -> None:
    (taken,) = bind("127.0.0.1", 0)
    with taken, pytest.raises(ConfigError, match=r"cannot serve at 127\.0\.0\.1, port \d+ .* --port"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_the_command_begins_a_session_and_goes_on_with_it(
    slides: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    answering: Callable[[Session | None], Client],
) -> None:
    flat = slides.parent / "flat"
    flat.mkdir()
    for path in slides.rglob("*.png"):
        path.rename(flat / path.name)
    backbone = f"backbone={{name: test_vit, image_size: 32, depth: 4, checkpoint: {tiny_checkpoint}}}"
    command = ["serve", str(flat), "adapter=linear_probe", "batch_size=4", "training.head_epochs=2", backbone]
    assert main(command) == 1
    assert "has no classes yet. Name them, as in classes=[tumour,stroma]" in capsys.readouterr().err
    folder, tasks = slides.parent / "session", slides.parent / "tasks.json"
    with served([*command, "classes=[dark, light]", f"folder={folder}", "--tasks", str(tasks)]) as client:
        first = json.loads(tasks.read_text())[0]["data"]
        assert first["image"] == f"/data/local-files/?d=flat/{first['palkit_id']}"
        answer_all(client, [f"{number:03d}.png" for number in range(3)])
        client.post("train", {})
        until(lambda: idle(client))
    assert main(["serve", str(folder), "seed=1"]) == 1
    assert "is a session, which goes on as it was: leave out seed=1" in capsys.readouterr().err
    opened = stored_session(folder, annotator=ANNOTATOR)
    assert opened is not None
    assert opened.class_names == CLASSES
    assert len(opened.labels()) == 3
    tasks.unlink()
    with served(["serve", str(folder), "budget=8", "--tasks", str(tasks)]) as client:
        placed = {one["data"]["palkit_id"]: one["data"]["image"] for one in json.loads(tasks.read_text())}
        assert placed == {name: f"/data/local-files/?d=flat/{name}" for name in opened.row_of}
        batch = opened.open()["id"].tolist()
        assert len(batch) == 4
        answer_all(client, batch, 10)
        until(lambda: idle(client) and len(opened.rounds()) == 2)
        assert len(opened.open()) == 1, "of the budget one label is left"
    client = answering(stored_session(folder, annotator=ANNOTATOR))
    answer_all(client, opened.open()["id"], 20)
    until(lambda: idle(client) and len(opened.rounds()) == 3)
    assert opened.open().empty, "the budget is that of before"


@contextmanager
def served(command: list[str]) -> Iterator[Client]:
    """`palkit serve` in a process of its own, until it is interrupted."""
    (reserved,) = bind("127.0.0.1", 0)
    port = reserved.getsockname()[1]
    reserved.close()
    # Who runs the tests in the background may have had interrupts ignored, which processes inherit.
    palkit = [sys.executable, "-c", "import signal, runpy; signal.signal(2, signal.default_int_handler); "
              "runpy.run_module('palkit', run_name='__main__', alter_sys=True)"]  # fmt: skip
    process = subprocess.Popen([*palkit, *command, "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        client = Client(port, [])
        until(lambda: process.poll() is None and is_there(client))
        yield client
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said == CONFIG


def is_there(client: Client) -> bool:
    try:
        return client.get("health").ok
    except requests.ConnectionError:
        return False


def answer_all(client: Client, images: Iterable[str], first: int = 0) -> None:
    for number, image in enumerate(images, start=first):
        assert client.annotated(image, truth(image), number).ok


def test_who_labels_without_a_number_takes_nobodys_label(session: Session, answering: Callable[..., Client]) -> None:
    client, (image, other, *_) = answering(session), session.open()["id"]
    nameless = annotation("dark", 7) | {"completed_by": None}
    assert client.webhook("ANNOTATION_CREATED", annotation=nameless, task=task(image)).ok
    skipped = annotation(None, 8) | {"completed_by": None}
    assert client.webhook("ANNOTATION_CREATED", annotation=skipped, task=task(other)).ok
    assert client.annotated(image, None, 9, by=7).ok, "somebody else skips it"
    assert session.labels() == {image: "dark"}
    with pytest.raises(ValueError, match="needs annotator"):
        session.log.append([Event("2026-01-01T00:00:00+00:00", "", "skip", image)])
    assert session.labels() == {image: "dark"}


class SlowStudio(Studio):
    """A server that is told of a model version, and answers when it may go on."""

    def __init__(self, *place: str) -> None:
        super().__init__(*place)
        self.told, self.go_on = threading.Event(), threading.Event()

    def order_by(self, project: str, version: str) -> None:
        self.told.set()
        assert self.go_on.wait(60)


def test_a_batch_is_followed_whenever_it_was_answered(
    session: Session, slides: Path, fields: dict[str, Any], answering: Callable[..., Client]
) -> None:
    """By labels that come with tasks; while nobody served it; and while a slow server is told of the batch before."""
    client = answering(session)
    images = session.open()["id"].tolist()
    client.predict([task(image, annotations=[annotation(truth(image), n)]) for n, image in enumerate(images)])
    until(lambda: idle(client) and len(session.rounds()) == 1)
    batch = session.open()["id"].tolist()
    assert len(batch) == 4
    session.label(batch, [truth(image) for image in batch])
    spent = Session(session.config, ANNOTATOR, classes=CLASSES, folder=session.folder, budget=8)
    again = answering(spent)
    until(lambda: idle(again))
    assert len(spent.rounds()) == 2, "the budget is spent: nothing is left to be asked, and the model is there"
    spent.budget = None
    studio = SlowStudio("http://nowhere", "key")
    slow = answering(spent, studio)
    slow.setup()
    assert studio.told.wait(60)
    answer_all(slow, spent.open()["id"], 20)
    studio.go_on.set()
    until(lambda: idle(slow) and len(spent.rounds()) == 3)
    assert len(spent.open()) == 4


def test_a_fit_may_be_wished_for_while_label_studio_is_waited_for(
    session: Session, answering: Callable[..., Client]
) -> None:
    studio = SlowStudio("http://nowhere", "key")
    client = answering(session, studio)
    answer_all(client, session.open()["id"][:3])
    client.setup()
    assert studio.told.wait(60)
    assert idle(client)
    assert client.webhook("START_TRAINING").json()["status"] == "fitting"
    assert not idle(client)
    assert client.webhook("START_TRAINING").reason.startswith("a fit is under way already")
    studio.go_on.set()
    until(lambda: idle(client))
    assert len(session.rounds()) == 1


def test_a_second_opinion_that_nobody_gives_keeps_nobody_waiting(
    session: Session, answering: Callable[..., Client]
) -> None:
    client, images = answering(session), session.open()["id"].tolist()
    answer_all(client, images)
    until(lambda: idle(client) and len(session.rounds()) == 1)
    again = Proposed(images[0], 1, "", None, AGAIN, now(), len(session.log.events()))
    session.file.change(lambda state: replace(state, proposed=[*state.proposed, again]))
    open_ = session.open()
    assert open_["purpose"].tolist().count(AGAIN) == 1
    answer_all(client, open_.loc[open_["purpose"] == "train", "id"], 10)
    until(lambda: idle(client) and len(session.rounds()) == 2)


def test_a_second_opinion_is_asked_for_after_a_restart(session: Session, answering: Callable[..., Client]) -> None:
    client, images = answering(session), session.open()["id"].tolist()
    answer_all(client, images)
    until(lambda: idle(client) and len(session.rounds()) == 1)
    again = Proposed(images[0], 1, "", None, AGAIN, now(), len(session.log.events()))
    session.file.change(lambda state: replace(state, proposed=[again, *state.proposed]))
    reopened = stored_session(session.folder, annotator=ANNOTATOR)
    assert reopened is not None
    client = answering(reopened)
    results = dict(zip(session.row_of, client.predict([task(image) for image in session.row_of]), strict=True))
    assert {image for image, one in results.items() if not one["result"]} == {images[0]}, "lest it sways"
    assert in_order(session, [*results.values()])[0] == images[0]
    client.annotated(images[0], truth(images[0]), 20, by=2)
    assert reopened.open()["purpose"].tolist() == ["train"] * 4
    assert reopened.label_table().query("id == @images[0]")["annotator"].tolist() == ["1", "2"]
    answer_all(client, reopened.open()["id"], 30)
    until(lambda: idle(client) and len(session.rounds()) == 2)


def test_a_class_that_is_added_elsewhere_stops_nobody(session: Session, answering: Callable[..., Client]) -> None:
    client = answering(session)
    image = session.open()["id"].iloc[0]
    session.add_class("grey")
    assert client.annotated(image, truth(image)).ok
    assert session.labels() == {image: truth(image)}
    client.predict([task(image)])
    assert [line for line in client.lines if "grey" in line] == [client.lines[0]], "said once"
    assert "'grey' missing" in client.setup().reason


def test_nobody_is_shown_what_the_model_says_of_test_images(
    session: Session, slides: Path, answering: Callable[..., Client]
) -> None:
    tested = Session(session.config, ANNOTATOR, classes=CLASSES, folder=slides.parent / "tested", held_out=6)
    client = answering(tested)
    open_ = tested.open()
    answer_all(client, open_.loc[open_["purpose"] == "train", "id"])
    until(lambda: idle(client) and len(tested.rounds()) == 1)
    results = dict(zip(tested.row_of, client.predict([task(image) for image in tested.row_of]), strict=True))
    assert {image for image, one in results.items() if not one["result"]} == {*tested.held_out}


def test_what_is_odd_spares_the_others(session: Session, answering: Callable[..., Client]) -> None:
    client, (image, other, *_) = answering(session), session.open()["id"]
    odd = [task(image) | {"data": data} for data in ({"image": "http://[x/1.png"}, {"palkit_id": ["a"]})]
    both = annotation("dark", 2, by=2)
    both["result"][0]["value"]["choices"] = ["dark", "light"]
    results = client.predict([*odd, task(other, annotations=[both, annotation("light", 1)])])
    assert [one["score"] for one in results[:2]] == [1.0, 1.0]
    assert session.labels() == {other: "light"}
    assert "3 of 3 tasks cannot be used" in client.lines[-1]


def test_of_several_annotations_the_bad_one_alone_is_refused(
    session: Session, answering: Callable[..., Client]
) -> None:
    client, images = answering(session), session.open()["id"].tolist()[:3]
    given = [annotation("grey", 1), annotation("light", 2), annotation("dark", 3)]
    answer = client.webhook("ANNOTATIONS_CREATED", annotation=given[:2], task=[task(image) for image in images[:2]])
    assert answer.status_code == 400
    assert "unknown class 'grey'" in answer.reason
    assert session.labels() == {images[1]: "light"}
    answer = client.webhook("ANNOTATIONS_CREATED", annotation=given[1:], task=[task(images[2])])
    assert answer.status_code == 400
    assert "2 annotations came with 1 tasks" in answer.reason
    assert session.labels() == {images[1]: "light"}


def test_who_annotated_twice_has_said_it_when_one_is_deleted(
    session: Session, answering: Callable[..., Client]
) -> None:
    client, image = answering(session), session.open()["id"].iloc[0]
    answer_all(client, [image, image])
    for number, labels in ((0, {image: truth(image)}), (1, {})):
        client.webhook("ANNOTATIONS_DELETED", annotations=[{"id": number}])
        assert session.labels() == labels


@pytest.mark.parametrize(("url", "name"), [("s3://bucket/", "ü 1%.png"), ("https://x/", "%C3%BC%201%25.png")])
def test_keys_of_a_bucket_are_as_they_are(url: str, name: str, slides: Path, fields: dict[str, Any]) -> None:
    folder = slides.parent / "odd"
    folder.mkdir()
    next(slides.rglob("*.png")).rename(folder / "ü 1%.png")
    next(slides.rglob("*.png")).rename(folder / "b.png")
    session = open_session(str(folder), ANNOTATOR, folder=slides.parent / "session", **fields)
    write_tasks(session, slides.parent / "tasks.json", url)
    tasks = json.loads((slides.parent / "tasks.json").read_text())
    assert {one["data"]["image"] for one in tasks} == {url + name, url + "b.png"}
