"""A labelling session, round by round: propose, label, fit; for a notebook, a script, or whatever asks an expert."""

import dataclasses
import hashlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from palkit.config import ExperimentConfig, config_from_dict
from palkit.data import DATASETS, UNLABELLED, StoredFeatures
from palkit.errors import ConfigError, DataError, unknown_name
from palkit.experiments import classifier
from palkit.experiments.classifier import Classifier
from palkit.experiments.experiment import seed_of
from palkit.experiments.runs import folder_name, provenance, without_checksums
from palkit.experiments.setting import looked_at_once, pool_of, width_of
from palkit.labelling.annotators import gains, judge, numbered, settled, unseen_probs
from palkit.labelling.answers import NONE, Answers
from palkit.labelling.extrapolation import Forecast, forecast
from palkit.labelling.labels import answered, now
from palkit.labelling.records import explained
from palkit.labelling.session_file import Drawn, Proposed, SessionFile, SessionRound, SessionState, curve_of
from palkit.labelling.session_learner import Fit, Fitted, SessionLearner
from palkit.labelling.session_tests import Tested, tested, wanted_tests
from palkit.models.adapters import AdapterConfig
from palkit.models.devices import choose_device, memory_explained
from palkit.progress import Progress, silent
from palkit.storage.checks import Count, Probability, checked, normal
from palkit.storage.files import read_json, runs_dir, write_json

ASKED = {"budget": Count | None, "test_share": Probability | None, "ask_again": bool}  # may change in a session
STORED: Literal["stored"] = "stored"
MODEL = ("backbone", "adapter", "training", "seed", "weights_sha256")  # fields of a config that a model hangs on
OURS = ("classes", "budget", "held_out", "test_share", "ask_again", "folder", "device")
AGAIN = "second opinion"  # purpose of an image that has a label and is proposed once more
PROPOSAL = ("id", "row", "rank", "predicted", "probability", "purpose")


@looked_at_once()  # the data set is wanted for the adapter, and then for the session
def open_session(dataset: str, annotator: str, **fields: Any) -> "Session":
    """A labelling session, a new one or the one that was begun on this data set.

    Args:
        dataset: name, folder or manifest.
        annotator: who labels.
        fields: `classes`, `budget`, `held_out`, `test_share`, `ask_again`, `folder` and `device` of `Session`; all
            others are fields of `ExperimentConfig`, such as `strategy="entropy"` or
            `adapter={"name": "lora", "rank": 8}`.

    Raises:
        ConfigError: a field that does not exist or does not fit.
        DataError: the images or the labels stored before cannot be used.

    >>> import tempfile
    >>> session = open_session("digits", "ana", folder=tempfile.mkdtemp(), strategy="margin")
    >>> session.annotator, session.rounds()
    ('ana', [])
    """
    known = [*OURS, *(field.name for field in dataclasses.fields(ExperimentConfig))]
    for name in fields:
        if name.partition(".")[0] not in known:
            raise unknown_name("field of a session", name, known)
    ours = {name: fields.pop(name) for name in OURS if name in fields}
    defaults = {"pool_size": None, "strategy": "auto", "initial": "centroid"}
    config = config_from_dict({"dataset": dataset, **defaults, **fields})
    if "adapter" not in [name.partition(".")[0] for name in fields] and width_of(pool_of(config)) is not None:
        config = dataclasses.replace(config, adapter=AdapterConfig("linear_probe"))  # of features there is no network
    return Session(config, annotator, **ours)


def load_model(folder: Path | str, device: str | None = None) -> Classifier:
    """The model of a labelling session's last fit, of a complete run, or one that was saved.

    Args:
        folder: `runs/labels/<data set>`, `runs/<data set>/<hash>` or its hash alone, or where `Classifier.save` wrote
            it.
        device: "cpu", "cuda" or "mps"; None for the best there is.

    Raises:
        DataError: there is no such model in it, or it cannot be read.
        ConfigError: the session has no fit yet.

    >>> import palkit, tempfile
    >>> run = palkit.run(dataset="digits", pool_size=100, adapter="linear_probe", rounds=1)
    >>> load_model(run.model().save(tempfile.mkdtemp())).class_names[:3]
    ('0', '1', '2')
    """
    session = stored_session(folder, device)
    return classifier.load_model(found_run(folder), device) if session is None else session.model()


def found_run(folder: Path | str) -> Path:
    """The folder, or that of the run of which it is the hash alone."""
    found = [] if Path(folder).exists() else [*runs_dir().glob(f"*/{Path(folder).name}")]
    return found[0] if len(found) == 1 else Path(folder)


def stored_session(
    folder: Path | str, device: str | None = None, annotator: str = "predict", **asked: Any
) -> "Session | None":
    """The labelling session in a folder, with the config of its last fit; None if there is none."""
    file = SessionFile(Path(folder) / "session.json")
    if not file.path.exists():
        return None
    state = file.read()
    fields = without_checksums(state.rounds[-1].config) if state.rounds else {}
    config = config_from_dict({**fields, "dataset": state.dataset})
    classes = state.rounds[-1].class_names if state.rounds else ()
    return Session(config, annotator, classes=classes, folder=folder, device=device, **asked)


class Session(Answers):
    """Labels of one pool as they grow, the models fitted to them, and what to label next.

    All that matters is on disk: `labels.jsonl`, to which every answer is appended before the call returns (see
    `palkit.labelling.labels`), and `session.json` with the rounds and what is proposed. Whoever opens the folder again,
    after a crash or on another day, goes on where it was left; several annotators may work on it at once.

    Labels that a data set has for its pool are hidden if all are known (it is for practice then) and count as given
    if only some are. Its other splits serve as held-out labels; where there are none, `held_out` sets images aside
    to be labelled and never trained on: all of them first of all, or, with `test_share`, few, which are drawn round by
    round where the model is likely to be wrong (`palkit.labelling.testing`). The curve then has an interval for the
    accuracy over all that were set aside, and `reached` a guarantee to stop by.

    Attributes:
        pool, row_of, log: see `palkit.labelling.answers.Answers`.
        file, folder: where all is kept.

    Args:
        config: backbone, adapter, strategy, batch size and seed; `rounds` means nothing here.
        annotator: whose answers are recorded.
        classes: names beyond those of the data set; more may be added at any time.
        budget: labels to train on that are wanted in all, or None; those of tests and second opinions come on top. As
            `test_share` and `ask_again`, it is stored for all who open the session later; "stored" is what was given
            last, or else None.
        held_out: images of the pool to set aside, drawn at random when the session begins.
        test_share: share of the labels asked for from now on that goes to images set aside; None asks for all of
            these, or, where some were drawn before, for those alone.
        ask_again: in the place of up to half of a batch, propose images that others have labelled, or dispute, where
            this annotator's answer is worth more than one to a new image, see `doubts`.
        folder: where it is kept; None for `runs/labels/<data set>`, with a mark of the place for own images.
        device: as for `palkit.experiments.experiment.rounds`.

    Raises:
        ConfigError: an oracle as strategy, `per_group` without groups, an empty name, or a folder with labels of
            another data set.
        DataError: images, or what is in the folder, cannot be used.

    >>> import tempfile
    >>> session = open_session("digits", "ana", folder=tempfile.mkdtemp())
    >>> session.propose(3)[["id", "purpose"]].shape
    (3, 2)
    """

    def __init__(
        self,
        config: ExperimentConfig,
        annotator: str,
        *,
        classes: Sequence[str] = (),
        budget: int | Literal["stored"] | None = STORED,
        held_out: int = 0,
        test_share: float | Literal["stored"] | None = STORED,
        ask_again: bool | Literal["stored"] = STORED,
        folder: Path | str | None = None,
        device: str | None = None,
    ) -> None:
        given = {"budget": budget, "test_share": test_share, "ask_again": ask_again}
        given = {name: value for name, value in given.items() if not (isinstance(value, str) and value == STORED)}
        asked = {name: checked(name, value, ASKED[name]) for name, value in given.items()}
        checked("held_out", held_out, int)
        checked("classes", classes, tuple[str, ...])
        checked("folder", folder, str | Path | None)
        self.config = config
        pool = pool_of(config)
        known = np.where(pool.split == "pool", UNLABELLED, pool.labels) if pool.is_labelled else pool.labels
        hidden = dataclasses.replace(pool, labels=known)
        self.learner = SessionLearner(config, hidden, choose_device(device))
        self.folder = Path(folder) if folder is not None else runs_dir() / "labels" / _folder_name(config.dataset)
        self.file = SessionFile(self.folder / "session.json")
        self._fit: tuple[int, Fit] | None = None
        super().__init__(hidden, self.learner.rows, annotator, classes, self.folder / "labels.jsonl")
        self._begin(held_out, asked)
        self._refuse_moved_rows()
        self._report_strangers()
        self._report_new_classes(classes)

    def _begin(self, held_out: int, asked: Mapping[str, Any]) -> None:
        free = [name for name, row in self.row_of.items() if self.pool.labels[row] == UNLABELLED]
        if not 0 <= held_out <= len(free) // 2:
            raise ConfigError(
                f"held_out {held_out}: must lie between 0 and half of the {len(free)} images without a label."
            )
        aside = self.file.read().held_out if self.file.path.exists() else held_out
        if asked.get("test_share") is not None and not aside:
            raise ConfigError("test_share: no images are set aside to be tested on. Begin a session with held_out.")
        rng = np.random.default_rng(seed_of(self.config.seed, "held out", 0))
        name = str(_place(self.config.dataset) or self.config.dataset)
        order = [free[place] for place in rng.permutation(len(free))]
        new = [] if self.file.path.exists() else self._set_aside(order, held_out)
        stands = self.file.begin(name, new, asked)
        self.budget, self.test_share, self.ask_again = stands.budget, stands.test_share, stands.ask_again
        self._held_out = self.file.read().held_out  # which nobody changes once the session has begun

    def _set_aside(self, order: list[str], number: int) -> list[str]:
        """The first so many of these images: with their copies, and none with a copy that has a label.

        A model that has learnt an image by heart would be tested on it.
        """
        if not number:
            return []
        copies = self.pool.duplicates()
        names = copies["id"].map(str).map(normal).groupby(copies["checksum"]).agg(list)
        together = {name: group for group in names for name in group}
        free, aside = set(order), dict[str, None]()
        for name in order:
            group = together.get(name, [name])
            if name not in aside and len(aside) + len(group) <= number and free.issuperset(group):
                aside |= dict.fromkeys(group)
            if len(aside) == number:
                break
        return list(aside)

    def _refuse_moved_rows(self) -> None:
        """Compare labelled rows of features that are called by their numbers with what they were when they were seen.

        Raises:
            DataError: they hold other features.
        """
        images, path = self.pool.images, self.folder / "rows.json"
        if not isinstance(images, StoredFeatures) or self.pool.ids.tolist() != images.index.astype(str).tolist():
            return
        seen: dict[str, Any] = {"all": "", "rows": {}}
        if path.exists():
            with explained(f"{path} cannot be read", "If the features are as they were, delete it."):
                seen = read_json(path)
        if seen["all"] == images.checksum():
            return
        rows = dict(zip(self.pool.ids.tolist(), images.checksums(), strict=True))
        labelled = [name for name in self.answers()["id"].unique() if name in rows]
        if changed := [name for name in labelled if seen["rows"].get(name, rows[name]) != rows[name]]:
            raise DataError(
                f"{len(changed)} labelled rows of {self.config.dataset!r}, the first is {changed[0]!r}, hold other "
                "features than when they were labelled. Rows without ids are called by their numbers: if they have "
                "moved, their labels are those of others now. Bring the file back as it was. If features of the same "
                f"images in the same order were computed anew, delete {path}."
            )
        write_json(path, {"all": images.checksum(), "rows": seen["rows"] | rows})

    def _report_strangers(self) -> None:
        missing = [name for name in self.answers()["id"].unique() if name not in self.row_of]
        if missing:
            warnings.warn(
                f"{len(missing)} labelled images are not in the pool of {self.config.dataset!r} any more and are left "
                f"out, the first is {missing[0]!r}. Their labels stay in {self.log.path}.",
                stacklevel=3,
            )
        if gone := [name for name in self.held_out if name not in self.row_of]:
            warnings.warn(
                f"{len(gone)} images that were set aside are not in the pool of {self.config.dataset!r} any more, the "
                f"first is {gone[0]!r}: what is said of a model from now on is about the others.",
                stacklevel=3,
            )

    def _report_new_classes(self, given: Sequence[str]) -> None:
        used = set(self.answers()["label"]) - {""}
        spelt = {name.casefold(): name for name in used}
        for name in map(normal, given):
            if name not in used and (other := spelt.get(name.casefold())):
                warnings.warn(
                    f"class {name!r} is added, and {other!r} has labels. If they were meant to be the same, give that.",
                    stacklevel=3,
                )
        if used and given and used.isdisjoint(map(normal, given)):
            warnings.warn(
                f"none of the classes given ({', '.join(given)}) is among those that were labelled so far "
                f"({', '.join(sorted(used))}); they are added. If they were meant to be the same, give these names.",
                stacklevel=3,
            )

    # What models are fitted to

    def training_labels(self) -> dict[str, str]:
        """Those of `labels` that models are fitted to."""
        held_out = set(self.held_out)
        return {name: label for name, label in self.labels().items() if name not in held_out}

    def fittable_labels(self) -> dict[str, str]:
        """Those of `training_labels`, if a model can be fitted to them.

        Raises:
            ConfigError: labels of fewer than two classes.
        """
        labels = self.training_labels()
        if len(set(labels.values())) < 2:
            raise ConfigError(
                f"a model needs training labels of at least two classes; so far there are {len(labels)}"
                + "".join(f", all of class {name!r}" for name in set(labels.values()))
                + ". Label more of what is proposed."
            )
        return labels

    @property
    def held_out(self) -> list[str]:
        """Images of the pool set aside for evaluation."""
        return list(self._held_out)

    # What to label next

    @memory_explained()
    def propose(self, batch_size: int | None = None, progress: Progress = silent) -> pd.DataFrame:
        """Images to label now: those set aside, and what was proposed and not answered yet, else a new batch.

        Args:
            batch_size: images of a new batch; None for the config's, or one per class. A budget bounds it.
            progress: see `palkit.experiments.experiment.rounds`.

        Returns:
            Columns id, row (of the pool), rank, predicted (class name, "" before the first fit), probability (of it),
            purpose ("train", "held out", or "second opinion", for which no class is predicted lest it sways). Empty if
            the budget is spent or nothing is left. Images that the model takes for `NONE` are not proposed.

        Raises:
            ConfigError: a batch size below 1.
        """
        checked("batch_size", batch_size, Count | None)
        size = self.learner.batch_size(self.class_names) if batch_size is None else batch_size
        waiting = self.open()
        if (waiting["purpose"] != "held out").any():
            return waiting
        if self.budget is not None:
            size = min(size, self.budget - len(self.training_labels()))
        if size > 0:
            rounds = self.rounds()
            fit = self._restored(rounds[-1], progress) if rounds else None
            chosen = self._choose(fit, size, progress)

            def add(state: SessionState) -> SessionState:
                # Another annotator may have proposed a batch meanwhile: then everybody has that one.
                if (self.open()["purpose"] != "held out").any():
                    return state
                new = sum(one.purpose == "train" for one in chosen)
                return dataclasses.replace(
                    state, proposed=[*state.proposed, *chosen], drawn=self._tests(fit, state, new)
                )

            self.file.change(add)
        return self.open()

    def open(self) -> pd.DataFrame:
        """What was proposed and still waits for an answer; computes nothing. Columns as of `propose`."""
        state, stands = self.file.read(), self._stands()
        again = {one.id: one.events for one in state.proposed if one.purpose == AGAIN}
        done = set(stands.answers.loc[stands.answers["answer"] != "skip", "id"]) - again.keys()
        if again:  # a second opinion is given by this annotator, or was since it was asked for
            places = answered(self.log.events()).items()
            done |= {name for (name, who), place in places if who == self.annotator or place >= again.get(name, place)}
        mine = {name: place for (name, annotator), place in stands.skips.items() if annotator == self.annotator}
        fitted_at = max((one.events for one in state.rounds), default=0)
        drawn = self.test_share is not None or state.drawn
        asked = [one.id for one in state.drawn] if drawn else state.held_out
        held_out = [
            Proposed(name, rank, "", None, "held out", "", fitted_at) for rank, name in enumerate(asked, start=1)
        ]
        waiting = [
            (one.id, self.row_of[one.id], one.rank, one.predicted, one.probability, one.purpose)
            for one in [*held_out, *state.proposed]
            if one.id in self.row_of and one.id not in done and mine.get(one.id, -1) < one.events
        ]
        table = pd.DataFrame(waiting, columns=list(PROPOSAL))
        return table.astype({"row": np.int64, "rank": np.int64, "probability": np.float64})

    def second_opinions(self) -> pd.DataFrame:
        """Images that others have labelled and this annotator has not answered yet. Columns id and row.

        What this annotator has skipped comes again after the next fit.
        """
        answers, since = self.answers(), max((one.events for one in self.rounds()), default=0)
        own = answers[answers["annotator"] == self.annotator]
        mine = set(own.loc[own["answer"] != "skip", "id"])
        mine |= {name for (name, who), at in self._stands().skips.items() if who == self.annotator and at >= since}
        names = answers.loc[answers["answer"] == "label", "id"].drop_duplicates()
        wanted = [name for name in names if name not in mine and name in self.row_of]
        return pd.DataFrame({"id": wanted, "row": np.array([self.row_of[name] for name in wanted], dtype=np.int64)})

    @memory_explained()
    def doubts(self, progress: Progress = silent) -> pd.DataFrame:
        """Labelled and disputed images, those first whose next answer is worth most.

        What an image is follows from its answers, the quality of who gave them, and heads that were fitted to the
        labels of other images (`palkit.labelling.annotators`). Compare ActiveLab (Goh & Mueller, 2023), which has one
        score for labelled and new images, too, and active label cleaning (Bernhardt et al., 2022).

        Args:
            progress: see `palkit.experiments.experiment.rounds`.

        Returns:
            Columns id, row, label ("" where it is disputed), likeliest (class), wrong (probability that the label is,
            or else the likeliest class), worth (of an answer of this annotator, or of one in place of theirs,
            see `palkit.labelling.annotators.gains`, beyond that of one to a new image, while there are some).

        Raises:
            ConfigError: nothing has been fitted yet.
        """
        return self._doubts(self._restored(self._last(), progress))

    def _doubts(self, fit: Fit) -> pd.DataFrame:
        answers, labels, taught = self.answers(), self.labels(), self.training_labels()
        inside = answers["id"].isin(self.learner.position) & ~answers["id"].isin(self.held_out)
        given, ids, people, names = numbered(answers[inside], [self.annotator], labels.values())
        images = [*dict.fromkeys([*ids, *taught])]  # labels that the data set has teach the heads, too
        have = np.array([names.index(taught[name]) if name in taught else -1 for name in images], dtype=np.int64)
        positions = np.array([self.learner.position[name] for name in images], dtype=np.int64)
        keys = fit.scores.keys.rows.numpy()[positions]
        judged = judge(given, unseen_probs(fit.scores.features, positions, have, keys, given.counts[2])[: len(ids)])
        by = people.index(self.annotator)
        quality, before = float(judged.quality[by]), settled(given)
        likeliest = judged.probs.argmax(axis=1)
        said = judged.probs[np.arange(len(ids)), np.where(before[:, 0] < 0, likeliest, before[:, 0])]
        unseen = self.learner.position.keys() - {*answers["id"], *taught, *self.held_out}
        new = 2 * quality - 1 if unseen else 0.0  # that of an answer to a new image
        table = pd.DataFrame(
            {
                "id": ids,
                "row": [self.row_of[name] for name in ids],
                "label": [labels.get(name, "") for name in ids],
                "likeliest": [names[code] for code in likeliest],
                "wrong": 1 - said,
                "worth": gains(judged.probs, before, settled(given, by), quality) - new,
            }
        )
        return table.sort_values("worth", ascending=False, kind="stable", ignore_index=True)

    def _tests(self, fit: Fit | None, state: SessionState, more: int) -> list[Drawn]:
        """Images set aside that are to be labelled, with those that `more` training labels call for."""
        if self.test_share is None:
            return state.drawn
        number = wanted_tests(self.test_share, len(self.training_labels()) + more) - len(state.drawn)
        return [*state.drawn, *self._tested(fit, state).more(max(number, 0), seed_of(self.config.seed, "tests", 0))]

    def _tested(self, fit: Fit | None, state: SessionState) -> Tested:
        answers = self.answers()
        known = set(answers.loc[answers["answer"] != "skip", "id"])
        return tested(state, fit, self.learner.position, self.labels(), known)

    def _choose(self, fit: Fit | None, size: int, progress: Progress) -> list[Proposed]:
        state, labels, stands = self.file.read(), self.training_labels(), self._stands()
        rounds, answers, skips = state.rounds, stands.answers, stands.skips
        # What was skipped since the last fit is not asked again before the next.
        since = rounds[-1].events if rounds else 0
        lately = {name for (name, _), place in skips.items() if place >= since}
        refused = {*answers.loc[answers["answer"] != "skip", "id"], *lately, *self.held_out}
        if fit is not None and NONE in fit.class_names:
            foreign = fit.scores.probs[:, fit.class_names.index(NONE)] > 0.5
            refused |= {name for name, position in self.learner.position.items() if foreign[position]}
        again: list[str] = []
        others = set(self.second_opinions()["id"]) - {one.id for one in state.proposed} if self.ask_again else set()
        if fit is not None and others:
            table = self._doubts(fit)
            wanted = table.loc[(table["worth"] > 0) & table["id"].isin(others), "id"].tolist()
            new = self.learner.position.keys() - labels.keys() - refused
            again = self.learner.spread(wanted)[: size // 2 if new else size]
        positions = self.learner.choose(
            fit, labels, self.class_names, refused, size - len(again), len(rounds), progress, again
        )
        moment, events = now(), len(self.log.events())
        proposed = [Proposed(name, rank, "", None, AGAIN, moment, events) for rank, name in enumerate(again, start=1)]
        for rank, position in enumerate(positions, start=len(again) + 1):
            name = normal(str(self.pool.ids[self.learner.rows[position]]))
            predicted, probability = fit.guess(position) if fit else ("", None)
            proposed.append(Proposed(name, rank, predicted, probability, "train", moment, events))
        return proposed

    def _restored(self, last: SessionRound, progress: Progress) -> Fit:
        """The last round's fit, made again if this process did not make it."""
        if self._fit is None or self._fit[0] != last.number:
            self._fit = last.number, self.learner.score(self._refitted(last, progress), {}, progress)
        return self._fit[1]

    def _refitted(self, last: SessionRound, progress: Progress) -> Fitted:
        """The model of a round, made again from its labels."""
        labels = dict(zip(last.ids, last.labels, strict=True))
        fitted = self.learner.fit(labels, last.class_names, last.number, progress)
        before, after = (pd.json_normalize(one).iloc[0].map(str) for one in (last.config, self.learner.record()))
        # Both have them: a file of an earlier version lacks what has come since.
        both = [name for name in before.index if name in after.index and name.partition(".")[0] in MODEL]
        if changed := [name for name in both if before[name] != after[name]]:
            warnings.warn(
                f"the last fit had another {', '.join(changed)}: its labels are fitted with that of now, and this "
                "is the model that predicts and proposes. The curve, and what was reached, are of the last fit; fit "
                "again.",
                stacklevel=2,
            )
        return fitted

    # Rounds

    @memory_explained()
    def fit(self, progress: Progress = silent) -> SessionRound:
        """Fit a model to all labels so far, evaluate it, and forget what was proposed and not labelled.

        Args:
            progress: see `palkit.experiments.experiment.rounds`; what it raises leaves the session as it was.

        Raises:
            ConfigError: labels of fewer than two classes.
            DivergenceError: the loss is not finite.
        """
        labels, names, given, state = self.fittable_labels(), self.class_names, self.labels(), self.file.read()
        began, number = time.perf_counter(), len(state.rounds)
        held_out = {} if state.drawn else {name: given[name] for name in self.held_out if name in given}
        fit = self.learner.score(self.learner.fit(labels, names, number, progress), held_out, progress)
        found = self._tested(fit, state) if state.drawn else None
        if found is not None:
            fit = dataclasses.replace(fit, metrics=found.metrics(number), held_out=len(found.wrong))
        right = [one.predicted == given[one.id] for one in state.proposed if one.predicted and one.id in given]
        round_ = SessionRound(
            number=number,
            time=now(),
            ids=list(labels),
            labels=list(labels.values()),
            class_names=list(names),
            proposed=[one.id for one in state.proposed],
            held_out=fit.held_out,
            metrics=fit.metrics,
            guessed=len(right),
            first_guess=sum(right) / len(right) if right else None,
            seconds=round(time.perf_counter() - began, 3),
            config=self.learner.record(),
            provenance=provenance(self.learner.device),
            events=len(self.log.events()),
        )

        def add(state: SessionState) -> SessionState:
            # Somebody else may have fitted meanwhile: no round is lost, this one comes after it.
            last = dataclasses.replace(round_, number=len(state.rounds))
            if found is not None and last.number != number:  # the risk that a guarantee may take is that of its round
                last = dataclasses.replace(last, metrics=found.metrics(last.number))
            return dataclasses.replace(state, proposed=[], rounds=[*state.rounds, last])

        stored = self.file.change(add).rounds[-1]
        if stored.number == number:
            self._fit = number, fit
        return stored

    def rounds(self) -> list[SessionRound]:
        """All fits so far."""
        return self.file.read().rounds

    @memory_explained()
    def model(self, progress: Progress = silent) -> Classifier:
        """The model of the last fit, made again from its labels: it predicts images and can be saved.

        Args:
            progress: see `palkit.experiments.experiment.rounds`.

        Raises:
            ConfigError: nothing has been fitted yet.
        """
        return self._refitted(self._last(), progress).classifier()

    def _last(self) -> SessionRound:
        rounds = self.rounds()
        if not rounds:
            raise ConfigError(f"the session in {self.folder} has no fit yet. Label some images and fit first.")
        return rounds[-1]

    @memory_explained()
    def predictions(self, progress: Progress = silent) -> pd.DataFrame:
        """What the last fit takes every image of the pool for, one row each; none before the first fit.

        Args:
            progress: see `palkit.experiments.experiment.rounds`.

        Returns:
            Columns id, predicted (class name), probability (of it).
        """
        rounds = self.rounds()
        guesses = []
        if rounds:
            fit = self._restored(rounds[-1], progress)
            guesses = [(name, *fit.guess(position)) for name, position in self.learner.position.items()]
        return pd.DataFrame(guesses, columns=["id", "predicted", "probability"])

    def curve(self) -> pd.DataFrame:
        """One row per fit, see `palkit.labelling.session_file.curve_of`."""
        return curve_of(self.rounds())

    def measured(self, progress: Progress = silent) -> pd.DataFrame:
        """What the labels of images drawn to be tested on say of the last fit, over all images set aside.

        Args:
            progress: see `palkit.experiments.experiment.rounds`.

        Returns:
            Rows accuracy, calibration error and "recall of" each class; columns value, low, high (95 % intervals, each
            at one look) and labels (that it rests on).

        Raises:
            ConfigError: nothing has been fitted yet, or no image was drawn.
        """
        state = self._drawn()
        fit = self._restored(self._last(), progress)
        return self._tested(fit, state).table(fit.class_names)

    def reached(self, accuracy: float) -> bool:
        """Whether the last fit is at least so accurate over all images set aside, with 95 % confidence for all rounds.

        A session that ends as soon as this is so has been wrong about it once in twenty sessions at most, however often
        it was asked, see `palkit.labelling.stopping.accuracy_at_least`.

        Args:
            accuracy: share of right predictions.

        Raises:
            ConfigError: no image was drawn to be tested on.
        """
        checked("accuracy", accuracy, Annotated[float, Field(ge=0, le=1)])
        rounds = self.rounds()
        least = rounds[-1].metrics.get("accuracy_at_least", 0.0) if rounds else 0.0
        self._drawn()
        return least >= accuracy

    def _drawn(self) -> SessionState:
        """The session's state, with images that were drawn to be tested on."""
        state = self.file.read()
        if not state.drawn:
            raise ConfigError(
                "no image has been drawn to be tested on yet: begin the session with held_out and test_share, label "
                "what is proposed, and fit."
            )
        return state

    def forecast(self, more: int | None = None) -> Forecast:
        """What `more` labels would bring; None for another batch. See `palkit.labelling.extrapolation.forecast`."""
        checked("more", more, int | None)
        curve = self.curve()
        # Labels may have been taken back since, or a fit repeated: of each number of labels the last one counts.
        measured = curve[curve["held_out"] > 0].drop_duplicates("labels", keep="last").sort_values("labels")
        more = self.learner.batch_size(self.class_names) if more is None else more
        at = [int(measured["labels"].iloc[-1]) + more] if len(measured) else []
        return forecast(measured["labels"], measured["accuracy"], measured["held_out"].clip(lower=1), at)


def _place(dataset: str) -> Path | None:
    """Where own images lie, however they were called; None for a data set with a name."""
    path = Path(dataset).expanduser()
    return path.resolve() if dataset not in DATASETS and path.exists() else None


def _folder_name(dataset: str) -> str:
    """Folder of a session: two projects may both have a folder `images`."""
    place = _place(dataset)
    if place is None:
        return folder_name(dataset)
    return f"{folder_name(place.name)}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
