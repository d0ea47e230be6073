"""The page on which somebody labels a pool by keyboard: what a session proposes, one by one or as a grid."""

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import anywidget
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from palkit.data import FileImages, ImagePool
from palkit.errors import DataError
from palkit.labelling.exchange import read_label_studio, read_labels_csv, write_label_studio, write_labels_csv
from palkit.labelling.session import Session
from palkit.progress import Progress
from palkit.studies.plots import image_grid, session_curve
from palkit.widgets.frontend import Display
from palkit.widgets.jobs import Cancelled, Jobs, sentence
from palkit.widgets.thumbnails import picture_bytes

HERE = Path(__file__).parent
LONG_SIDE = 1024  # pixels of a picture in the browser, at most
SMALL = 128  # pictures below are shown with their pixels as squares
PROPOSED, OPINIONS, DISPUTED = "proposed", "second opinion", "disputed"
EMPTY = {
    PROPOSED: "No image is waiting. Press n for the next round.",
    OPINIONS: "There is nothing that others have labelled and you have not.",
    DISPUTED: "Nobody disagrees.",
}


@dataclass(frozen=True)
class Picture:
    """An image file for the browser.

    Attributes:
        data: PNG or JPEG, empty if there is a problem.
        small: whether it is to be enlarged pixel by pixel.
        problem: why there is none.
    """

    data: bytes
    small: bool = False
    problem: str = ""


LOADING, NOT_ANSWERED = Picture(b"", problem="loading"), {"answer": "", "label": ""}


class LabellerWidget(anywidget.AnyWidget):
    """What the browser sees of a `Labeller`.

    It sends messages {"type": ..., "serial": n}: label, unsure and skip with an id (and a label), undo, class with a
    label, queue, next, cancel, export with a format, import with a name and a text. `view["seen"]` is the serial of the
    last one that has been dealt with.
    """

    _esm = HERE / "labeller.js"
    _css = HERE / "labeller.css"
    view = traitlets.Dict().tag(sync=True)
    pictures = traitlets.List(traitlets.Bytes()).tag(sync=True)
    curve = traitlets.Bytes().tag(sync=True)


class Labeller(Display):
    """Label what a session proposes, watch its curve, and ask for the next round.

    Where no page can show widgets (papermill, a script) it is a picture of what is to be labelled.

    Args:
        session: what is labelled, and by whom.

    >>> import palkit, tempfile
    >>> Labeller(palkit.open_session("digits", "ana", folder=tempfile.mkdtemp()))
    Labeller of 'digits' by ana
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._jobs, self._drawing = Jobs(), Jobs()
        self._queue = PROPOSED
        self._batch = 0
        self._items = pd.DataFrame(columns=["id", "row"])
        self._pictures: dict[str, Picture] = {}
        self._busy: dict[str, Any] | None = None
        self._news = ""
        self._undone: str | None = None
        self._seen = 0
        self._outlook = self._alternative = ""

    def __repr__(self) -> str:
        return f"Labeller of {self.session.config.dataset!r} by {self.session.annotator}"

    def _still(self, live: bool) -> dict[str, bytes]:
        # While somebody waits for the page, nothing is computed for a picture of it.
        return {} if live and self.session.open().empty else {"image/png": picture_bytes(self.picture())}

    def picture(self) -> Figure:
        """What is to be labelled now, best first; the curve once nothing is left."""
        session, pool = self.session, self.session.pool
        table = session.propose()
        if table.empty:
            return session_curve(session.curve(), session.forecast())
        guesses = [f"{rank} {guess}" for rank, guess in zip(table["rank"], table["predicted"], strict=True)]
        return image_grid(list(pool.images.decode(table["row"].to_numpy(), 64)), guesses)

    @cached_property
    def widget(self) -> LabellerWidget:
        """The live page, made when it is first asked for."""
        widget = LabellerWidget()
        self.__dict__["widget"] = widget  # what follows may ask for it
        widget.on_msg(lambda _, content, buffers: self._told(content))
        self._open_queue()
        if not (self.session.open()["purpose"] == "train").any():
            self._compute(self._first)
        self._show_curve()
        return widget

    # What the browser asks for

    def _told(self, message: Mapping[str, Any]) -> None:
        """Deal with a message; whatever goes wrong becomes a sentence on the page."""
        self._news, self._undone = "", None
        try:
            getattr(self, f"_on_{message['type']}")(message)
        except Exception as error:  # nobody would see it elsewhere
            self._news = sentence(error)
        self._seen = int(message["serial"])
        try:
            self._show()
        except Exception as error:  # labels.jsonl cannot be read, say: what was shown last stays
            self.widget.view = {**self.widget.view, "news": self._news or sentence(error), "seen": self._seen}

    def _on_label(self, message: Mapping[str, Any]) -> None:
        self.session.label(message["id"], message["label"])

    def _on_unsure(self, message: Mapping[str, Any]) -> None:
        self.session.unsure(message["id"])

    def _on_skip(self, message: Mapping[str, Any]) -> None:
        self.session.skip(message["id"])

    def _on_undo(self, message: Mapping[str, Any]) -> None:
        last = self.session.undo()
        self._undone = last.id if last else None
        self._news = f"Taken back: {last.label or last.action} for {last.id}." if last else "Nothing to take back."
        if last and last.id not in set(self._items["id"]) and last.id in self.session.row_of:
            self._open_queue(also=last.id)

    def _on_class(self, message: Mapping[str, Any]) -> None:
        self.session.add_class(message["label"])
        self._news = f"New class {message['label']}."

    def _on_queue(self, message: Mapping[str, Any]) -> None:
        if message["queue"] in EMPTY:
            self._queue = message["queue"]
            self._open_queue()

    def _on_next(self, message: Mapping[str, Any]) -> None:
        self._compute(self._next)

    def _on_cancel(self, message: Mapping[str, Any]) -> None:
        self._jobs.cancel()

    def _on_export(self, message: Mapping[str, Any]) -> None:
        session = self.session
        table = session.label_table()
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"labels.{message['format']}"
            if message["format"] == "csv":
                write_labels_csv(table, path)
            else:
                waiting = session.open()
                guesses = waiting[waiting["predicted"] != ""].rename(columns={"predicted": "label"})
                tasks = pd.concat([table, waiting[["id"]]]).fillna("")
                urls = {"image_url": lambda name: f"/data/local-files/?d={quote(name)}"}
                write_label_studio(tasks, path, class_names=session.class_names, predictions=guesses, **urls)
            text = path.read_text(encoding="utf-8")
        self.widget.send({"type": "file", "name": path.name, "text": text})
        self._news = f"{len(table)} labels exported to {path.name}."

    def _on_import(self, message: Mapping[str, Any]) -> None:
        with TemporaryDirectory() as folder:
            # The name comes from a browser: only its last part, and of that its suffix, has a meaning.
            suffix = Path(str(message["name"]).lower()).suffix
            is_table = suffix in (".csv", ".tsv")
            path = Path(folder) / f"labels{suffix if is_table else '.json'}"
            path.write_text(message["text"], encoding="utf-8")
            with warnings.catch_warnings(record=True) as said:  # nobody would see them elsewhere
                warnings.simplefilter("always")
                try:
                    table = (read_labels_csv if is_table else read_label_studio)(path)
                    new = self.session.import_labels(table)
                except DataError as error:
                    raise DataError(str(error).replace(str(path), str(message["name"]))) from error
        told = [str(one.message).replace(str(path), str(message["name"])) for one in said]
        self._news = " ".join([f"{new} of {len(table)} labels in {message['name']} are new.", *told])
        self._open_queue()

    # What takes time

    def _first(self, progress: Progress) -> str:
        table = self.session.propose(progress=progress)
        return "" if len(table) else self._over()

    def _next(self, progress: Progress) -> str:
        session, news = self.session, ""
        waiting = len(session.open())
        if len(set(session.training_labels().values())) < 2:
            news = "A model needs labels of two classes at least; until then more images are proposed. "
        else:
            session.fit(progress)
            if waiting:
                news = f"{waiting} images of the round before were left without an answer. "
        table = session.propose(progress=progress)
        return news + ("" if len(table) else self._over())

    def _over(self) -> str:
        session = self.session
        labels = len(session.training_labels())
        if session.budget is not None and labels >= session.budget:
            return f"The budget of {session.budget} labels is spent."
        return "No image is left to propose."

    def _compute(self, work: Callable[[Progress], str]) -> None:
        self._busy = {"stage": "starting", "done": 0, "total": 0}
        self._jobs.submit(work, self._done, self._failed, self._report)

    def _done(self, news: str) -> None:
        self._busy, self._news, self._queue = None, news, PROPOSED
        self._open_queue()
        self._show_curve()

    def _failed(self, error: Exception) -> None:
        self._busy = None
        self._news = "Cancelled; nothing has changed." if isinstance(error, Cancelled) else sentence(error)
        self._show()

    def _report(self, stage: str, done: int, total: int) -> None:
        self._busy = {"stage": stage, "done": done, "total": total}
        self._news = f"{stage}: {done:,} of {total:,}"
        self._show()

    # What the browser is shown

    def _open_queue(self, also: str | None = None) -> None:
        """Show the images of the queue, and one of an earlier batch if wanted, their pictures once these are made."""
        self._items = self._queued()[self._queue]
        if also is not None and also not in set(self._items["id"]):
            earlier = pd.DataFrame({"id": [also], "row": [self.session.row_of[also]], "predicted": "", "purpose": ""})
            self._items = pd.concat([earlier, self._items], ignore_index=True)
        self._batch += 1
        self.widget.pictures = []  # else those of the batch before would go under the names of this one
        self._show()
        items, kept, pool = self._items, self._pictures, self.session.pool

        def make(progress: Progress) -> dict[str, Picture]:
            made: dict[str, Picture] = {}
            for name, row in zip(items["id"], items["row"], strict=True):
                progress("pictures", len(made), len(items))
                made[name] = kept.get(name) or picture_of(pool, int(row))
            return made

        self._drawing.submit(make, self._show_pictures, self._failed)

    def _show_pictures(self, pictures: dict[str, Picture]) -> None:
        self._pictures = pictures
        self._show()
        self.widget.pictures = [picture.data for picture in pictures.values()]

    def _queued(self) -> dict[str, pd.DataFrame]:
        session = self.session
        return {PROPOSED: session.open(), OPINIONS: session.second_opinions(), DISPUTED: disputed(session)}

    def _show(self) -> None:
        session, answers = self.session, self.session.answers()
        mine = answers[answers["annotator"] == session.annotator]
        shown = mine[mine["id"].isin(self._items["id"])].set_index("id").to_dict("index")
        items = [self._item(one, shown) for one in self._items.to_dict("records")]
        self.widget.view = {
            "batch": self._batch,
            "items": items,
            "names": list(session.class_names),
            "progress": {"done": len(session.training_labels()), "budget": session.budget},
            "queues": [[name, len(table)] for name, table in self._queued().items()],
            "queue": self._queue,
            "empty": EMPTY[self._queue],
            "news": self._news or _advice(items, len(session.class_names)),
            "busy": self._busy,
            "undo": len(mine) > 0,
            "undone": self._undone,
            "seen": self._seen,
            "outlook": self._outlook,
            "curve": self._alternative,
            "agreement": _agreement(session),
        }

    def _item(self, one: Mapping[Hashable, Any], mine: Mapping[Hashable, Any]) -> dict[str, Any]:
        name = one["id"]
        answered, picture = mine.get(name, NOT_ANSWERED), self._pictures.get(name, LOADING)
        return {
            "id": name,
            "purpose": one.get("purpose", ""),
            "predicted": one.get("predicted", ""),
            "probability": one.get("probability", 0.0) if one.get("predicted") else 0.0,
            "said": one.get("said", ""),
            "answer": answered["answer"],
            "label": answered["label"],
            "small": picture.small,
            "problem": picture.problem,
        }

    def _show_curve(self) -> None:
        curve = self.session.curve()
        if curve.empty:
            self._outlook = "The curve begins when the first round is trained."
        else:
            forecast = self.session.forecast()
            least = self.session.rounds()[-1].metrics.get("accuracy_at_least")
            sure = f" At least {least:.0%} are right, with 95 % confidence for all rounds together." if least else ""
            self._outlook = forecast.sentence + sure
            points = [f"{row.accuracy:.1%} at {row.labels} labels" for row in curve.itertuples() if row.held_out]
            self._alternative = "Accuracy on held-out images: " + (", ".join(points) or "not measured") + "."
            self.widget.curve = picture_bytes(session_curve(curve, forecast))
        self._show()


def disputed(session: Session) -> pd.DataFrame:
    """Images to which annotators gave different labels: columns id, row, said (who said what)."""
    table = session.disagreements()
    rows = [
        (name, session.row_of[name], ", ".join(f"{who}: {label}" for who, label in given.items() if label))
        for name, given in table.iterrows()
        if name in session.row_of
    ]
    return pd.DataFrame(rows, columns=["id", "row", "said"])


def picture_of(pool: ImagePool, row: int) -> Picture:
    """An image as large as a browser needs it: whole, not cropped as a model sees it."""
    try:
        if isinstance(pool.images, FileImages):
            image = pool.images.picture(row)
            image.thumbnail((LONG_SIDE, LONG_SIDE))
        else:
            image = Image.fromarray(pool.images.decode(np.array([row]), LONG_SIDE)[0])
    except Exception as error:  # a format's parser may raise anything; one image must not stop the others
        return Picture(b"", problem=f"This image cannot be shown: {sentence(error)}")
    buffer, small = BytesIO(), max(image.size) <= SMALL
    image.save(buffer, "PNG") if small else image.save(buffer, "JPEG", quality=92)
    return Picture(buffer.getvalue(), small)


def _advice(items: list[dict[str, Any]], classes: int) -> str:
    left = sum(not item["answer"] for item in items)
    if items and not left:
        return "All images here are answered. Press n to train on them and get the next ones."
    return "" if classes else "Add the first classes under “New class”."


def _agreement(session: Session) -> str:
    parts = [
        f"{first} and {second} agree on {same:.0%} of {images} images"
        + ("" if np.isnan(kappa) else f" (kappa {kappa:.2f})")
        for first, second, images, same, kappa in session.agreement().itertuples(index=False, name=None)
    ]
    count = len(set(session.disagreements().index) - session.labels().keys())
    if count:
        parts.append(f"{count} disputed images are not trained on")
    return "; ".join(parts) + "." * bool(parts)
