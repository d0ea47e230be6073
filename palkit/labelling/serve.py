"""A labelling session as a machine-learning backend of Label Studio: predictions out, annotations in, live.

What Label Studio asks and expects is in its `ml/api_connector.py` and `ml/models.py`, what it tells of annotations in
its `webhooks/models.py`; https://labelstud.io/guide/ml.html says how a backend is connected. Its "uncertainty sampling"
(`projects/functions/next_task.py`) gives out the task next whose prediction has the lowest score, and knows no
predictions but those of the model version that is chosen in the project.
"""

import asyncio
import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any, TypeVar
from urllib.parse import quote

import pandas as pd
import requests
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from palkit.errors import ConfigError, DataError, PalkitError, brief, unknown_name
from palkit.labelling.exchange import (
    COLUMNS,
    ENCODED,
    Control,
    Row,
    ending,
    endings,
    given_label,
    image_name,
    read_control,
    result_of,
    write_label_studio,
)
from palkit.labelling.labels import Event, now
from palkit.labelling.records import Text, explained, record
from palkit.labelling.session import AGAIN, Session
from palkit.progress import Progress, silent
from palkit.storage.checks import normal
from palkit.storage.files import read_json, write_json

Kind = TypeVar("Kind")

ANNOTATOR = "Label Studio"  # of the session; who labels there has a number
NOBODY = "unknown"  # who labels there without one
NAMED = 5  # tasks in a line of the log
TRIES = 5  # a second apart: a project that is being connected knows its backend a moment later


@dataclass(frozen=True)
class View:
    """What Label Studio is told of the pool until the next fit.

    Attributes:
        version: names the fit and the batch; Label Studio asks again for predictions of another version only.
        predicted: class and its probability by image; empty before the first fit.
        order: place by image, from 0, of those to label next.
        classes: of the fit.
        unbiased: images of which nobody shall know the prediction: those to test on, and second opinions.
    """

    version: str
    predicted: dict[str, tuple[str, float]]
    order: dict[str, int]
    classes: int
    unbiased: frozenset[str]

    def score(self, image: str | None) -> float:
        """What Label Studio orders by, lowest first: what palkit asks next, in its order; then by probability.

        The most probable of C classes has 1 / C at least, so that places are scored below.

        Args:
            image: of the pool, or None.
        """
        if image in self.order:
            return self.order[image] / (len(self.order) * self.classes)
        return self.predicted[image][1] if image in self.predicted else 1.0

    def prediction(self, image: str | None, control: Control) -> dict[str, Any]:
        """A prediction as Label Studio takes it; without a result for an image that is not known.

        Args:
            image: of the pool, or None.
            control: that a choice is for.
        """
        name = self.predicted[image][0] if image in self.predicted and image not in self.unbiased else None
        result = [result_of("palkit", name, control)] if name in control.choices else []
        return {"result": result, "score": self.score(image), "model_version": self.version}


@dataclass(frozen=True)
class _Setup:
    schema: Text
    project: Text


@dataclass(frozen=True)
class _Predict:
    tasks: list[dict[str, Any]]
    label_config: Text


@dataclass(frozen=True)
class _Webhook:
    action: Text


@dataclass(frozen=True)
class _Project:
    label_config: Text


@dataclass(frozen=True)
class _Given:
    """An annotation and its task, or several."""

    annotation: dict[str, Any] | list[dict[str, Any]]
    task: dict[str, Any] | list[dict[str, Any]]
    project: _Project


@dataclass(frozen=True)
class _Deleted:
    annotations: list[dict[str, Any]]


@dataclass(frozen=True)
class Studio:
    """A Label Studio server that is told to order a project's tasks by new predictions.

    Attributes:
        url: where it runs.
        key: personal access token, or legacy token, of a user who may change the project.
    """

    url: str
    key: str

    def order_by(self, project: str, version: str) -> None:
        """Have a project fetch predictions, and choose their version.

        Args:
            project: its number.
            version: of `View`.

        Raises:
            DataError: it cannot be reached, or refuses.
        """
        fetch = {"selectedItems": {"all": True, "excluded": []}, "project": project}
        for left in reversed(range(TRIES)):
            try:
                self._call("POST", f"dm/actions?id=retrieve_tasks_predictions&project={project}", fetch)
                self._call("PATCH", f"projects/{project}", {"model_version": version})
                return
            except requests.RequestException as error:
                if not left:
                    said = error.response.text[:200] if error.response is not None else ""
                    raise DataError(
                        f"Label Studio at {self.url} did not take over the predictions ({error}) {said}. Check "
                        "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
                    ) from error
                time.sleep(1)

    def _call(self, method: str, path: str, content: dict[str, Any]) -> None:
        authorization = f"Token {self.key}"
        if self.key.count(".") == 2:  # a personal access token is exchanged for another that holds for minutes
            answer = requests.post(f"{self.url}/api/token/refresh", json={"refresh": self.key}, timeout=30)
            answer.raise_for_status()
            authorization = f"Bearer {answer.json()['access']}"
        headers = {"Authorization": authorization}
        answer = requests.request(method, f"{self.url}/api/{path}", json=content, headers=headers, timeout=600)
        answer.raise_for_status()


class Backend:
    """What Label Studio asks and tells, answered from a session; fits happen in a thread of their own.

    Labels go by the number that Label Studio gives each of its users, as in its exports. When all that was proposed is
    answered, a model is fitted and the next batch proposed.

    Attributes:
        session: whose labels these are.
        view: that is answered now.
        say: takes the lines of the log.

    Args:
        session: with classes.
        say: takes the lines of the log.
        studio: that is told of new predictions; None if somebody has it fetch them by hand.
        progress: of the first look at the pool, see `palkit.experiments.experiment.rounds`.
    """

    def __init__(
        self, session: Session, say: Callable[[str], None], studio: Studio | None = None, progress: Progress = silent
    ) -> None:
        self.session, self.say, self._studio = session, say, studio
        self._ends = endings(session.row_of)
        # Image and annotator of each annotation: when one is deleted, its number is all that is sent.
        self._path = session.folder / "label_studio.json"
        self._given: dict[str, list[str]] = read_json(self._path) if self._path.exists() else {}
        self._told: dict[str, str] = {}  # version that was taken over, by project
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="palkit-serve")
        self._busy, self._lock = False, threading.Lock()
        self._fitting = self._wished = False  # a fit is computed, or the next thing to be; it was wished for meanwhile
        self._closed = threading.Event()
        last = session.rounds()[-1:]
        self._followed = {name: label for one in last for name, label in zip(one.ids, one.labels, strict=True)}
        self._odd = ""  # difference between the project's choices and the classes that was last told
        if self._answered():  # while nobody served it
            self._follow(progress)
        self.view = self._look(progress)

    def close(self) -> None:
        """Give up what is being computed."""
        self._closed.set()
        self._worker.shutdown(cancel_futures=True)

    # What Label Studio asks

    def health(self) -> dict[str, Any]:
        """That the backend is there, and whether it fits."""
        return {"status": "UP", "model_version": self.view.version, "fitting": self._fitting}

    def setup(self, request: Any) -> dict[str, Any]:
        """The model version, for a project whose labelling configuration fits.

        Raises:
            DataError: it does not.
        """
        asked = _read(_Setup, request)
        read_control(asked.schema, self.session.class_names)
        self._told.setdefault(asked.project.partition(".")[0], "")  # of "project.time"
        if not self._busy and set(self._told.values()) != {self.view.version}:
            self._submit(self._tell)
        return {"model_version": self.view.version}

    def predict(self, request: Any) -> dict[str, Any]:
        """A prediction for every task; labels that come with tasks are taken over.

        Raises:
            DataError: the request or its labelling configuration cannot be used.
        """
        asked, view, strange = _read(_Predict, request), self.view, list[str]()
        names = self.session.class_names
        control = self._control(asked.label_config, names)
        results: list[dict[str, Any]] = []
        given: dict[str, Row] = {}
        for task in asked.tasks:
            image, rows = self._told_by(task, task.get("annotations") or (), control, names, strange)
            given |= rows
            results.append(view.prediction(image, control))
        if new := self._take_over(given):
            self.say(f"{new} labels came with the tasks")
            self._follow_if_answered()
        if strange:
            more = f" And {len(strange) - NAMED} more." * (len(strange) > NAMED)
            self.say(f"{len(strange)} of {len(results)} tasks cannot be used: {' '.join(strange[:NAMED])}{more}")
        return {"results": results, "model_version": view.version}

    def train(self, request: Any = None) -> dict[str, Any]:
        """Begin a fit, or have one follow what is done now, such as waiting for Label Studio.

        Raises:
            ConfigError: there are labels of fewer than two classes, or a fit is under way.
        """
        self.session.fittable_labels()
        with self._lock:
            if self._fitting:
                raise ConfigError("a fit is under way already. Wait for it; the next one has the labels given since.")
            self._fitting, self._wished = True, self._busy
            free = not self._busy
        if free:
            self._submit(self._fit)
        return {"status": "fitting", "model_version": self.view.version}

    def webhook(self, request: Any) -> dict[str, Any]:
        """Take over what was done in Label Studio: an annotation, several, a deleted one, or the wish for a fit.

        Raises:
            DataError: an annotation cannot be used, or its image or class is not that of the session; the others have
                been taken over.
            ConfigError: see `train`.
        """
        strange: list[str] = []
        action = _read(_Webhook, request).action
        if action == "START_TRAINING":
            return self.train()
        if action == "ANNOTATIONS_DELETED":
            self._take_back(_read(_Deleted, request).annotations)
        elif action in ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED"):
            given = _read(_Given, request)
            tasks, annotations = _listed(given.task), _listed(given.annotation)
            if len(tasks) != len(annotations):
                raise DataError(f"{len(annotations)} annotations came with {len(tasks)} tasks: each needs its own.")
            names, rows = self.session.class_names, dict[str, Row]()
            control = self._control(given.project.label_config, names)
            for task, annotation in zip(tasks, annotations, strict=True):
                rows |= self._told_by(task, [annotation], control, names, strange)[1]
            # It happens now: clocks of two machines do not matter, and who gives no label leaves the image for later.
            self._take_over({number: dataclasses.replace(row, time="") for number, row in rows.items()})
            for row in rows.values():
                self.say(f"{row.id}: {brief(row.label) if row.label else 'no label'} by {row.annotator}")
            self._skip([row.id, row.annotator] for row in rows.values() if not row.label)
        else:
            return {"status": "ignored"}
        self._follow_if_answered()
        if strange:
            raise DataError(" ".join(strange))
        return {"status": "taken over"}

    # Labels

    def _image(self, task: Mapping[str, Any]) -> str:
        """The image of the pool that a task is about."""
        place, data, session = f"task {task.get('id')}", task.get("data"), self.session
        if not isinstance(data, Mapping):
            raise DataError(f"{place}: it has no data. Correct it in Label Studio.")
        try:
            given = image_name(place, data)
        except ValueError as error:  # an address that is none
            raise DataError(f"{place}: the address of its image cannot be read ({error}).") from error
        if not isinstance(given, str):
            raise DataError(f"{place}: palkit_id {brief(given)} is no text. Correct it in Label Studio.")
        name = normal(given)
        try:
            return name if name in session.row_of else ending(name, session.row_of, self._ends, session.pool.name)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error

    def _control(self, config: str, names: Sequence[str]) -> Control:
        """The tag whose choices are classes; a class that was added since is not missed by those who label."""
        control = read_control(config, names, exact=False)
        odd = ", ".join(sorted(control.choices ^ {*map(normal, names)}))
        if odd and odd != self._odd:
            self.say(f"not among both the classes and the project's choices, which should be the same: {odd}")
        self._odd = odd
        return control

    def _told_by(
        self,
        task: dict[str, Any],
        annotations: Iterable[Any],
        control: Control,
        names: Sequence[str],
        strange: list[str],
    ) -> tuple[str | None, dict[str, Row]]:
        """Image of a task, None if it is not of the pool, and what annotations say of it, by their numbers.

        What cannot be used is added to `strange`.
        """
        rows: dict[str, Row] = {}
        try:
            image = self._image(task)
        except PalkitError as error:
            strange.append(str(error))
            return None, rows
        for annotation in annotations:
            try:
                row = given_label(f"task {task.get('id')}", task["data"], annotation, control)
                if row.label and normal(row.label) not in names:
                    raise unknown_name("class", row.label, names)
            except PalkitError as error:  # the others can be used
                strange.append(str(error))
                continue
            annotator = normal(row.annotator).strip() or NOBODY
            rows[str(annotation.get("id"))] = dataclasses.replace(row, id=image, annotator=annotator)
        return image, rows

    def _take_over(self, given: Mapping[str, Row]) -> int:
        """Record labels, and whose annotations they are; returns how many are new."""
        labels = sorted((row for row in given.values() if row.label), key=lambda row: row.time)
        numbers = {number: [row.id, row.annotator] for number, row in given.items()}
        if not numbers.items() <= self._given.items():
            self._given |= numbers
            write_json(self._path, self._given)
        return self.session.import_labels(pd.DataFrame(labels, columns=COLUMNS, dtype=object))

    def _take_back(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        numbers = [str(one.get("id")) for one in annotations]
        unknown = [number for number in numbers if number not in self._given]
        if unknown:
            self.say(f"annotations were deleted that did not come here: {', '.join(unknown)}")
        known = [self._given.pop(number) for number in numbers if number in self._given]
        write_json(self._path, self._given)
        for image, annotator in known:
            self.say(f"{image}: the label by {annotator} was deleted")
        self._skip([one for one in known if one not in self._given.values()])  # who annotated twice has said it twice

    def _skip(self, given: Iterable[Sequence[str]]) -> None:
        """Whatever an annotator said of an image does not stand any more; nobody is asked again before the next fit."""
        for image, annotator in given:
            whose = dict.fromkeys((annotator, self.session.annotator))
            self.session.log.append([Event(now(), who, "skip", image) for who in whose])

    # What takes time

    def _answered(self) -> bool:
        """Whether a batch is answered, and what follows has not been done."""
        waiting = self.session.open()["purpose"] == "train"  # a task is given out again only where projects ask for it
        return not waiting.any() and self.session.training_labels() != self._followed

    def _follow_if_answered(self) -> None:
        with self._lock:
            follows = not self._busy and self._answered()
        if follows:
            self._submit(self._follow)

    def _submit(self, work: Callable[[], None]) -> None:
        """Have something done in the other thread, and then what follows the answers given meanwhile."""

        def explained_work() -> None:
            wanted: Callable[[], None] | None = work
            while wanted is not None:
                try:
                    wanted()
                except CancelledError:  # the session is as it was
                    return
                except Exception as error:  # nobody would see it elsewhere
                    self.say(f"error: {error}" if isinstance(error, PalkitError) else f"error: {error!r}")
                with self._lock:
                    self._fitting, wanted = self._wished, self._fit if self._wished else None
                    if wanted is None:
                        with suppress(PalkitError):  # the next request says so
                            wanted = self._follow if self._answered() else None
                    self._busy = wanted is not None

        self._busy = True
        self._worker.submit(explained_work)

    def _while_open(self, stage: str, done: int, total: int) -> None:
        if self._closed.is_set():
            raise CancelledError  # which leaves the session as it was

    def _follow(self, progress: Progress | None = None) -> None:
        """The next round, or if there are too few labels for it, more images to label."""
        self._followed = self.session.training_labels()
        try:
            self.session.fittable_labels()
        except ConfigError:
            self._propose(progress)
        else:
            self._fit(progress)

    def _fit(self, progress: Progress | None = None) -> None:
        with self._lock:
            self._fitting, self._wished = True, False
        self.say("fitting")
        self._followed = self.session.training_labels()
        round_ = self.session.fit(progress or self._while_open)
        accuracy = f", accuracy {round_.metrics['accuracy']:.3f}" if "accuracy" in round_.metrics else ""
        self.say(f"fit {round_.number}: {len(round_.ids)} labels{accuracy}, {round_.seconds:.1f} s")
        self._propose(progress)

    def _propose(self, progress: Progress | None = None) -> None:
        self.view = self._look(progress or self._while_open)
        with self._lock:
            self._fitting = self._wished
        self.say(f"model version {self.view.version}: {len(self.view.order)} images to label next")
        self._tell()

    def _look(self, progress: Progress) -> View:
        """What is to be labelled next, and what the last fit says of all images."""
        waiting = self.session.propose(progress=progress)
        guesses = self.session.predictions(progress).itertuples(index=False, name=None)
        state = self.session.file.read()
        times = [*(one.time for one in state.rounds[-1:]), *(one.time for one in state.proposed[-1:])]
        return View(
            version=" ".join(["palkit", str(len(state.rounds)), *times[-1:]]),
            predicted={name: (predicted, probability) for name, predicted, probability in guesses},
            order={name: place for place, name in enumerate(waiting["id"])},
            classes=len(state.rounds[-1].class_names) if state.rounds else 1,
            unbiased=frozenset({*state.held_out, *waiting.loc[waiting["purpose"] == AGAIN, "id"]}),
        )

    def _tell(self) -> None:
        """Have every project fetch the predictions and choose their version."""
        version = self.view.version
        for project in [name for name, told in self._told.items() if told != version]:
            self._told[project] = version
            if self._studio is None:
                self.say(f"project {project}: Retrieve Predictions, then choose the model version {version!r}")
                continue
            try:
                self._studio.order_by(project, version)
                self.say(f"project {project}: tasks are ordered by {version!r}")
            except DataError as error:  # the next project may be there
                self.say(f"project {project}: {error}")


def _read(kind: type[Kind], request: Any) -> Kind:
    with explained("the request is not as Label Studio sends it", "It was tested with version 1.23."):
        return record(kind, request)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def write_tasks(session: Session, path: Path, images_url: str) -> None:
    """Write a task for every image of the pool, with its labels, for import into Label Studio.

    Args:
        session: with classes.
        path: of the JSON file.
        images_url: what the ids of images are appended to, so that a browser finds them.

    Raises:
        ConfigError: no classes.
        DataError: the file cannot be written.
    """
    table = session.label_table()
    labelled = {*table["id"]}
    others = [name for name in session.row_of if name not in labelled]
    tasks = pd.concat([table, pd.DataFrame({"id": others})]).fillna("")
    scheme, is_url, _ = images_url.partition("://")
    coded = quote if not is_url or scheme.lower() in ENCODED else str  # keys of a bucket are as they are
    write_label_studio(tasks, path, image_url=lambda name: images_url + coded(name), class_names=session.class_names)


class _Get(RequestHandler):
    """Something that Label Studio asks."""

    def initialize(self, answer: Callable[[], dict[str, Any]]) -> None:
        self._answer = answer

    def get(self) -> None:
        self.write(self._answer())


class _Post(RequestHandler):
    """Something that Label Studio sends."""

    def initialize(self, answer: Callable[[Any], dict[str, Any]], say: Callable[[str], None]) -> None:
        self._answer, self._say = answer, say

    def post(self) -> None:
        # A page in a browser must ask before it sends this type to another server, and gets no answer.
        if self.request.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            self.send_error(415)
            return
        try:
            self.write(self._answer(json.loads(self.request.body)))
        except (PalkitError, ValueError) as error:
            # The reason is all that Label Studio shows of an answer that is an error.
            self.set_status(400, re.sub("[^ -;=-~]", "?", str(error)))
            self.write({"error": str(error)})
            self._say(f"refused {self.request.path}: {error}")


def bind(host: str, port: int) -> list[socket]:
    """Sockets to serve at.

    Raises:
        ConfigError: there is another server, or no such address.
    """
    try:
        return bind_sockets(port, host)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot serve at {host}, port {port} ({error}). Give another by --port or --host."
        ) from error


async def serve(backend: Backend, sockets: Sequence[socket]) -> None:
    """Answer Label Studio until cancelled.

    Args:
        backend: that answers.
        sockets: of `bind`.
    """
    posts = (backend.setup, backend.predict, backend.train, backend.webhook)
    answers = [(f"/{one.__name__}", _Post, {"answer": one, "say": backend.say}) for one in posts]
    server = HTTPServer(Application([("/health", _Get, {"answer": backend.health}), *answers]))
    server.add_sockets(sockets)
    try:
        await asyncio.Event().wait()
    finally:
        server.stop()
        backend.close()
