"""Label images round by round: propose, label, fit. For a notebook, a script, or whatever else asks an expert."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palkit.config import ExperimentConfig, config_from_dict
from palkit.datasets import UNLABELLED, ImagePool
from palkit.engine import Progress, silent
from palkit.errors import ConfigError, unknown_name
from palkit.experiment import pool_of, seed_of
from palkit.extrapolation import Forecast, forecast
from palkit.files import runs_dir
from palkit.labels import Event, LabelLog, agreed, agreement, classes, disagreements, last_answer, now, standing
from palkit.runs import folder_name, provenance
from palkit.session_file import SessionFile, SessionRound, curve_of
from palkit.session_learner import Fit, SessionLearner

OURS = ("classes", "budget", "held_out", "folder", "device")
PROPOSAL = ("id", "rank", "predicted", "probability", "purpose")


def open_session(dataset: str, annotator: str, **fields: Any) -> "Session":
    """A labelling session, a new one or the one that was begun on this data set.

    Args:
        dataset: name, folder or manifest.
        annotator: who labels.
        fields: `classes`, `budget`, `held_out`, `folder` and `device` of `Session`; all others are fields of
            `ExperimentConfig`, such as `strategy="entropy"` or `adapter={"name": "lora", "rank": 8}`.

    Raises:
        ConfigError: a field that does not exist or does not fit.
        DataError: the images or the labels stored before cannot be used.
    """
    ours = {name: fields.pop(name) for name in OURS if name in fields}
    defaults = {"pool_size": None, "strategy": "badge", "initial": "centroid"}
    return Session(config_from_dict({"dataset": dataset, **defaults, **fields}), annotator, **ours)


class Session:
    """Labels of one pool as they grow, the models fitted to them, and what to label next.

    All that matters is on disk: `labels.jsonl`, to which every answer is appended before the call returns (see
    `palkit.labels`), and `session.json` with the rounds and what is proposed. Whoever opens the folder again, after a
    crash or on another day, goes on where it was left; several annotators may work on it at once.

    Labels that a data set has for its pool are hidden if all are known (it is for practice then) and count as given
    if only some are. Its other splits serve as held-out labels; where there are none, `held_out` sets images aside
    to be labelled and never trained on.

    Attributes:
        pool: the images; labels are those known without anybody's answer.
        row_of: row of the pool by image.
        log, file, folder: where all is kept.

    Args:
        config: backbone, adapter, strategy, batch size and seed; `rounds` means nothing here.
        annotator: whose answers are recorded.
        classes: names beyond those of the data set; more may be added at any time.
        budget: labels wanted in all, or None.
        held_out: images of the pool to set aside, drawn at random when the session begins.
        folder: where it is kept; None for `runs/labels/<data set>`.
        device: as for `palkit.experiment.rounds`.

    Raises:
        ConfigError: an oracle as strategy, an empty name, or a folder with labels of another data set.
        DataError: images, or what is in the folder, cannot be used.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        annotator: str,
        *,
        classes: Sequence[str] = (),
        budget: int | None = None,
        held_out: int = 0,
        folder: Path | str | None = None,
        device: str = "cpu",
    ) -> None:
        if budget is not None and budget < 1:
            raise ConfigError(f"budget {budget}: must be at least 1, or nothing.")
        self.config, self.budget, self.annotator = config, budget, _name("annotator", annotator)
        pool = pool_of(config)
        known = np.where(pool.split == "pool", UNLABELLED, pool.labels) if pool.is_labelled else pool.labels
        self.pool: ImagePool = dataclasses.replace(pool, labels=known)
        self.learner = SessionLearner(config, self.pool, device)
        self.folder = Path(folder) if folder is not None else runs_dir() / "labels" / folder_name(config.dataset)
        self.log = LabelLog(self.folder / "labels.jsonl")
        self.file = SessionFile(self.folder / "session.json")
        self.row_of = {str(pool.ids[row]): int(row) for row in self.learner.rows}
        self._known = (*pool.class_names, *(_name("class", name) for name in classes))
        self._fit: tuple[int, Fit] | None = None
        self._standing: tuple[tuple[int, int], pd.DataFrame] | None = None
        self._begin(held_out)
        self._report_strangers()

    def _begin(self, held_out: int) -> None:
        free = [name for name, row in self.row_of.items() if self.pool.labels[row] == UNLABELLED]
        if not 0 <= held_out <= len(free) // 2:
            raise ConfigError(
                f"held_out {held_out}: must lie between 0 and half of the {len(free)} images without a label."
            )
        rng = np.random.default_rng(seed_of(self.config.seed, "held out", 0))
        self.file.begin(self.config.dataset, [free[place] for place in rng.permutation(len(free))[:held_out]])

    def _report_strangers(self) -> None:
        missing = [name for name in self.answers()["id"].unique() if name not in self.row_of]
        if missing:
            warnings.warn(
                f"{len(missing)} labelled images are not in the pool of {self.config.dataset!r} any more and are left "
                f"out, the first is {missing[0]!r}. Their labels stay in {self.log.path}.",
                stacklevel=3,
            )

    # What people have said

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes: those of the data set, those given, those added."""
        return classes(self.log.events(), self._known)

    def answers(self) -> pd.DataFrame:
        """What stands, one row per image and annotator, see `palkit.labels.standing`."""
        events = self.log.events()
        state = self.log.shortened, len(events)
        if self._standing is None or self._standing[0] != state:
            self._standing = state, standing(events)
        return self._standing[1]

    def labels(self) -> dict[str, str]:
        """Label of each image on which annotators agree, in order of labelling; those of the data set come first."""
        names = self.pool.label_names()
        known = {name: str(names[row]) for name, row in self.row_of.items() if names[row]}
        return known | {name: label for name, label in agreed(self.answers()).items() if name in self.row_of}

    def training_labels(self) -> dict[str, str]:
        """Those of `labels` that models are fitted to."""
        held_out = set(self.held_out)
        return {name: label for name, label in self.labels().items() if name not in held_out}

    @property
    def held_out(self) -> list[str]:
        """Images of the pool set aside for evaluation."""
        return self.file.read()["held_out"]

    def label(self, ids: str | Sequence[str], labels: str | Sequence[str]) -> None:
        """Record labels; they are on the disk when this returns.

        Args:
            ids: one image or several.
            labels: class name of each.

        Raises:
            ConfigError: an image or a class that is not there (see `add_class`), or numbers that differ.
            DataError: the file cannot be written.
        """
        names, wanted = _listed(ids), _listed(labels)
        if len(names) != len(wanted):
            raise ConfigError(f"{len(wanted)} labels for {len(names)} images; give one each.")
        known = self.class_names
        for label in wanted:
            if label not in known:
                raise unknown_name("class", label, known)
        self._answer("label", names, wanted)

    def unsure(self, ids: str | Sequence[str]) -> None:
        """Record that no label can be given; the images are not proposed again."""
        names = _listed(ids)
        self._answer("unsure", names, [""] * len(names))

    def skip(self, ids: str | Sequence[str]) -> None:
        """Leave images for later: they may be proposed again after the next fit."""
        names = _listed(ids)
        self._answer("skip", names, [""] * len(names))

    def undo(self) -> Event | None:
        """Take back the last answer of this annotator that still stands; returns it, or None if there is none."""
        last = last_answer(self.log.events(), self.annotator)
        if last is not None:
            self.log.append([Event(now(), self.annotator, "undo")])
        return last

    def add_class(self, name: str) -> None:
        """Add a class, for everybody who works on this folder.

        Raises:
            ConfigError: an empty name, or one that exists.
        """
        if _name("class", name) in self.class_names:
            raise ConfigError(f"class {name!r} exists already.")
        self.log.append([Event(now(), self.annotator, "class", label=name.strip())])

    def _answer(self, action: str, ids: Sequence[str], labels: Sequence[str]) -> None:
        for name in ids:
            if name not in self.row_of:
                raise ConfigError(f"there is no image {name!r} in the pool of {self.config.dataset!r}.")
        moment = now()
        self.log.append(
            [Event(moment, self.annotator, action, name, label) for name, label in zip(ids, labels, strict=True)]
        )

    def label_table(self) -> pd.DataFrame:
        """Everybody's labels, for `palkit.exchange`. Columns id, label, annotator, time."""
        answers = self.answers()
        return answers.loc[answers["answer"] == "label", ["id", "label", "annotator", "time"]].reset_index(drop=True)

    def import_labels(self, table: pd.DataFrame, *, add_classes: bool = False) -> int:
        """Take over labels from elsewhere; those that stand already and images without one are left out.

        Args:
            table: of `palkit.exchange`: id, label, annotator and time, "" where that is not known.
            add_classes: add classes that do not exist, instead of refusing them.

        Returns:
            How many were new.

        Raises:
            ConfigError: an image or a class that is not there; nothing is taken over then.
        """
        known, standing_ = self.class_names, self.label_table()
        there = set(zip(standing_["id"], standing_["label"], standing_["annotator"], strict=True))
        moment, events = now(), []
        for one in table[table["label"] != ""].to_dict("records"):
            annotator = one["annotator"] or self.annotator
            if one["id"] not in self.row_of:
                raise ConfigError(f"there is no image {one['id']!r} in the pool of {self.config.dataset!r}.")
            if one["label"] not in known and not add_classes:
                raise unknown_name("class", one["label"], known)
            if (one["id"], one["label"], annotator) not in there:
                events.append(Event(one["time"] or moment, annotator, "label", one["id"], one["label"]))
        self.log.append(events)
        return len(events)

    def disagreements(self) -> pd.DataFrame:
        """Images with different labels, which are not trained on; see `palkit.labels.disagreements`."""
        return disagreements(self.answers())

    def agreement(self) -> pd.DataFrame:
        """Agreement of every two annotators; see `palkit.labels.agreement`."""
        return agreement(self.answers())

    # What to label next

    def propose(self, batch_size: int | None = None, progress: Progress = silent) -> pd.DataFrame:
        """Images to label now: those set aside, and what was proposed and not answered yet, else a new batch.

        Args:
            batch_size: images of a new batch; None for the config's, or one per class. A budget bounds it.
            progress: see `palkit.experiment.rounds`.

        Returns:
            Columns id, row (of the pool), rank, predicted (class name, "" before the first fit), probability (of it),
            purpose ("train" or "held out"). Empty if the budget is spent or nothing is left.

        Raises:
            ConfigError: a batch size below 1.
        """
        size = self.learner.batch_size(self.class_names) if batch_size is None else batch_size
        if size < 1:
            raise ConfigError(f"batch_size {size}: must be at least 1.")
        waiting = self.open()
        if (waiting["purpose"] == "train").any():
            return waiting
        if self.budget is not None:
            size = min(size, self.budget - len(self.training_labels()))
        if size > 0:
            chosen = self._choose(size, progress)
            self.file.change(lambda state: state | {"proposed": [*state["proposed"], *chosen]})
        return self.open()

    def open(self) -> pd.DataFrame:
        """What was proposed and still waits for an answer; computes nothing. Columns as of `propose`."""
        state, answers = self.file.read(), self.answers()
        done = set(answers.loc[answers["answer"] != "skip", "id"])
        mine = answers[(answers["answer"] == "skip") & (answers["annotator"] == self.annotator)]
        skipped = dict(zip(mine["id"], mine["time"], strict=True))
        held_out = [
            {"id": name, "rank": rank, "predicted": "", "probability": None, "purpose": "held out", "time": ""}
            for rank, name in enumerate(state["held_out"], start=1)
        ]
        waiting = [
            one
            for one in [*held_out, *state["proposed"]]
            if one["id"] in self.row_of and one["id"] not in done and skipped.get(one["id"], "") <= one["time"]
        ]
        table = pd.DataFrame(waiting, columns=list(PROPOSAL))
        table.insert(1, "row", [self.row_of[one["id"]] for one in waiting])
        return table.astype({"row": np.int64, "rank": np.int64, "probability": np.float64})

    def second_opinions(self) -> pd.DataFrame:
        """Images that others have labelled and this annotator has not answered yet. Columns id and row."""
        answers = self.answers()
        mine = set(answers.loc[answers["annotator"] == self.annotator, "id"])
        names = answers.loc[answers["answer"] == "label", "id"].drop_duplicates()
        wanted = [name for name in names if name not in mine and name in self.row_of]
        return pd.DataFrame({"id": wanted, "row": np.array([self.row_of[name] for name in wanted], dtype=np.int64)})

    def _choose(self, size: int, progress: Progress) -> list[dict[str, Any]]:
        rounds, labels, answers = self.rounds(), self.training_labels(), self.answers()
        # What was skipped since the last fit is not asked again before the next.
        asked_again = (answers["answer"] == "skip") & (answers["time"] <= (rounds[-1].time if rounds else ""))
        refused = {*answers.loc[~asked_again, "id"], *self.held_out}
        fit = self._restored(rounds[-1], progress) if rounds else None
        positions = self.learner.choose(fit, labels, self.class_names, refused, size, len(rounds), progress)
        moment = now()
        return [
            {"rank": rank, "time": moment, "purpose": "train", **self._guess(position, fit)}
            for rank, position in enumerate(positions, start=1)
        ]

    def _guess(self, position: int, fit: Fit | None) -> dict[str, Any]:
        name = str(self.pool.ids[self.learner.rows[position]])
        if fit is None:
            return {"id": name, "predicted": "", "probability": None}
        probability, code = fit.scores.probs[position].max(0)
        return {"id": name, "predicted": fit.class_names[int(code)], "probability": float(probability)}

    def _restored(self, last: SessionRound, progress: Progress) -> Fit:
        """The last round's fit, made again if this process did not make it."""
        if self._fit is None or self._fit[0] != last.number:
            labels = dict(zip(last.ids, last.labels, strict=True))
            self._fit = last.number, self.learner.fit(labels, last.class_names, last.number, {}, progress)
        return self._fit[1]

    # Rounds

    def fit(self, progress: Progress = silent) -> SessionRound:
        """Fit a model to all labels so far, evaluate it, and forget what was proposed and not labelled.

        Args:
            progress: see `palkit.experiment.rounds`; what it raises leaves the session as it was.

        Raises:
            ConfigError: labels of fewer than two classes.
            DivergenceError: the loss is not finite.
        """
        labels, names, given, state = self.training_labels(), self.class_names, self.labels(), self.file.read()
        if len(set(labels.values())) < 2:
            raise ConfigError(
                f"a model needs training labels of at least two classes; so far there are {len(labels)}"
                + "".join(f", all of class {name!r}" for name in set(labels.values()))
                + ". Label more of what is proposed."
            )
        began, number = time.perf_counter(), len(state["rounds"])
        held_out = {name: given[name] for name in self.held_out if name in given}
        fit = self.learner.fit(labels, names, number, held_out, progress)
        right = [
            one["predicted"] == given[one["id"]] for one in state["proposed"] if one["predicted"] and one["id"] in given
        ]
        round_ = SessionRound(
            number=number,
            time=now(),
            ids=list(labels),
            labels=list(labels.values()),
            class_names=list(names),
            proposed=[one["id"] for one in state["proposed"]],
            held_out=fit.held_out,
            metrics=fit.metrics,
            guessed=len(right),
            first_guess=sum(right) / len(right) if right else None,
            seconds=round(time.perf_counter() - began, 3),
            config=self.learner.record(),
            provenance=provenance(),
        )

        def add(state: dict[str, Any]) -> dict[str, Any]:
            # Somebody else may have fitted meanwhile: no round is lost, this one comes after it.
            last = asdict(round_) | {"number": len(state["rounds"])}
            return state | {"proposed": [], "rounds": [*state["rounds"], last]}

        stored = self.file.change(add)["rounds"][-1]
        if stored["number"] == number:
            self._fit = number, fit
        return SessionRound(**stored)

    def rounds(self) -> list[SessionRound]:
        """All fits so far."""
        return self.file.rounds()

    def curve(self) -> pd.DataFrame:
        """One row per fit, see `palkit.session_file.curve_of`."""
        return curve_of(self.rounds())

    def forecast(self, more: int | None = None) -> Forecast:
        """What `more` labels would bring; None for another batch. See `palkit.extrapolation.forecast`."""
        curve = self.curve()
        # Labels may have been taken back since, or a fit repeated: of each number of labels the last one counts.
        measured = curve[curve["held_out"] > 0].drop_duplicates("labels", keep="last").sort_values("labels")
        more = self.learner.batch_size(self.class_names) if more is None else more
        at = [int(measured["labels"].iloc[-1]) + more] if len(measured) else []
        return forecast(measured["labels"], measured["accuracy"], measured["held_out"].clip(lower=1), at)


def _listed(values: str | Sequence[str]) -> list[str]:
    return [values] if isinstance(values, str) else [str(value) for value in values]


def _name(what: str, value: str) -> str:
    name = value.strip()
    if not name:
        raise ConfigError(f"{what} {value!r}: give a name.")
    return name
