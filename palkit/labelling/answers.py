"""Answers of people about the images of a pool: labels, doubts, second thoughts, and where they disagree.

Names of images, classes and annotators are compared by `palkit.storage.checks.normal`: those that look the same are the
same.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from palkit.data import ImagePool
from palkit.errors import ConfigError, DataError, brief, hidden_difference, seen, unknown_name
from palkit.labelling.annotators import consensus, judge, numbered, shared
from palkit.labelling.exchange import check_labels, located
from palkit.labelling.labels import (
    Event,
    LabelLog,
    agreement,
    classes,
    disagreements,
    last_answer,
    now,
    skipped,
    standing,
)
from palkit.storage.checks import checked, normal

NONE = "none of these"  # class of images that belong to no other


class _Stands(NamedTuple):
    """What stands; see `palkit.labelling.labels.standing`, `skipped`, and `consensus`."""

    answers: pd.DataFrame
    skips: dict[tuple[str, str], int]
    labels: dict[str, str]


class Answers:
    """A log of answers to one pool, and what stands in it; every answer is on the disk before the call returns.

    Attributes:
        pool: the images; labels are those known without anybody's answer.
        row_of: row of the pool by image.
        log: where all is kept.

    Args:
        pool: the images.
        rows: (n,) of the pool that may be asked for.
        annotator: who answers.
        class_names: names beyond those of the data set.
        path: of the log.

    Raises:
        ConfigError: an empty name.
        DataError: what is in the log cannot be used, or two images have names that look the same.
    """

    def __init__(
        self, pool: ImagePool, rows: Iterable[int], annotator: str, class_names: Sequence[str], path: Path
    ) -> None:
        self.pool = pool
        self.row_of: dict[str, int] = {}
        for row in map(int, rows):
            other = self.row_of.setdefault(normal(str(pool.ids[row])), row)
            if other != row:
                raise DataError(
                    f"the images {str(pool.ids[other])!a} and {str(pool.ids[row])!a} have names that look the same, "
                    "so nobody could tell whose label is whose. Rename one of them."
                )
        self.annotator = named("annotator", annotator)
        self.log = LabelLog(path)
        self._known = (*map(normal, pool.class_names), *(named("class", name) for name in class_names))
        self._standing: tuple[list[Event], _Stands] | None = None
        self.log.check()

    @property
    def held_out(self) -> list[str]:
        """Images of the pool set aside for evaluation."""
        return []

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes: those of the data set, those given, those added."""
        return classes(self.log.events(), self._known)

    def answers(self) -> pd.DataFrame:
        """What stands, one row per image and annotator, see `palkit.labelling.labels.standing`."""
        return self._stands().answers

    def _stands(self) -> _Stands:
        """Made again only when there is something new."""
        events = self.log.events()
        if self._standing is None or self._standing[0] is not events:
            table = standing(events)
            # Answers to images that a model is tested on must not decide whose word counts in what it is trained on.
            test = table["id"].isin(self.held_out)
            labels = consensus(table[~test])
            if test.any():
                every = consensus(table)
                labels |= {name: every[name] for name in table.loc[test, "id"].unique() if name in every}
            self._standing = events, _Stands(table, skipped(events), labels)
        return self._standing[1]

    def labels(self) -> dict[str, str]:
        """Label of each image, in order of labelling; those of the data set come first.

        Where annotators contradict each other, see `palkit.labelling.annotators.consensus`.
        """
        names = self.pool.label_names()
        known = {name: normal(str(names[row])) for name, row in self.row_of.items() if names[row]}
        return known | {name: label for name, label in self._stands().labels.items() if name in self.row_of}

    def label(self, ids: str | Sequence[str], labels: str | Sequence[str]) -> None:
        """Record labels; they are on the disk when this returns.

        Args:
            ids: one image or several.
            labels: class name of each.

        Raises:
            ConfigError: an image or a class that is not there (see `add_class`), or numbers that differ.
            DataError: the file cannot be written.
        """
        wanted = _listed("labels", labels)
        self._check_classes(wanted)
        self._answer("label", ids, wanted)

    def unsure(self, ids: str | Sequence[str]) -> None:
        """Record that no label can be given; the images are not proposed again."""
        self._answer("unsure", ids)

    def none_of_these(self, ids: str | Sequence[str]) -> None:
        """Record that images are of none of the classes, as the class NONE, which is added when it is first used.

        The model learns to know them, and what it takes for one is not proposed any more (`Session.propose`).
        """
        if NONE not in self.class_names:
            self.add_class(NONE)
        self.label(ids, [NONE] * len(_listed("ids", ids)))

    def skip(self, ids: str | Sequence[str]) -> None:
        """Leave images for later: they may be proposed again after the next fit."""
        self._answer("skip", ids)

    def undo(self) -> Event | None:
        """Take back the last answer of this annotator that still stands; returns it, or None if there is none."""
        last = last_answer(self.log.events(), self.annotator)
        if last is not None:
            self.log.append([Event(now(), self.annotator, "undo")])
        return last

    def add_class(self, name: str) -> None:
        """Add a class, for everybody who works on this folder.

        Raises:
            ConfigError: an empty name, one that exists, or one that nobody can tell from one that exists.
        """
        new = named("class", name)
        for other in self.class_names:
            difference = hidden_difference(unicodedata.normalize("NFC", name).strip(), other)
            if new == other and not difference:
                raise ConfigError(f"class {name!r} exists already.")
            if seen(new) == seen(other):
                raise ConfigError(f"class {name!r} looks like {other!r} and differs in {difference}. Use that one.")
        self.log.append([Event(now(), self.annotator, "class", label=new)])

    def _check_classes(self, labels: Iterable[str]) -> None:
        known = self.class_names
        for label in labels:
            if label not in known:
                raise unknown_name("class", label, known)

    def _answer(self, action: str, ids: str | Sequence[str], labels: Sequence[str] | None = None) -> None:
        names = _listed("ids", ids)
        labels = [""] * len(names) if labels is None else labels
        if len(names) != len(labels):
            raise ConfigError(f"{len(labels)} labels for {len(names)} images; give one each.")
        for name in names:
            if name not in self.row_of:
                raise ConfigError(f"there is no image {brief(name)} in the pool of {self.pool.name!r}.")
        moment = now()
        answers = zip(names, labels, strict=True)
        self.log.append([Event(moment, self.annotator, action, name, label) for name, label in answers])

    def label_table(self) -> pd.DataFrame:
        """Everybody's labels, for `palkit.labelling.exchange`. Columns id, label, annotator, time."""
        answers = self.answers()
        return answers.loc[answers["answer"] == "label", ["id", "label", "annotator", "time"]].reset_index(drop=True)

    def import_labels(self, table: pd.DataFrame, *, add_classes: bool = False) -> int:
        """Take over labels from elsewhere; those that stand already and images without one are left out.

        So are labels older than what the same annotator has said here of the image. An id may be the image's whole
        address, or the end of its path, if that is true of one image only; a warning says so.

        Args:
            table: of `palkit.labelling.exchange`: id, label, annotator and time, "" where that is not known.
            add_classes: add classes that do not exist, instead of refusing them.

        Returns:
            How many were new.

        Raises:
            ConfigError: no table of labels, or an image or a class that is not there or that several could be;
                nothing is taken over then.
        """
        rows = [row for row in check_labels(table, distinct=False) if row.label]
        images = located([row.id for row in rows], self.row_of, self.pool.name)
        if not add_classes:
            self._check_classes(normal(row.label) for row in rows)
        moment, events = now(), []
        answers: dict[Any, Any] = {(one.id, one.annotator): one for one in self.answers().itertuples()}
        for row in rows:
            image, label, annotator = images[row.id], normal(row.label), normal(row.annotator) or self.annotator
            stands = answers.get((image, annotator))
            if stands is None or (
                (stands.answer, stands.label) != ("label", label)
                and not (row.time and datetime.fromisoformat(stands.time) > datetime.fromisoformat(row.time))
            ):
                events.append(Event(row.time or moment, annotator, "label", image, label))
        self.log.append(events)
        return len(events)

    def disagreements(self) -> pd.DataFrame:
        """Images with different labels; see `palkit.labelling.labels.disagreements`."""
        return disagreements(self.answers())

    def agreement(self) -> pd.DataFrame:
        """Agreement of every two annotators; see `palkit.labelling.labels.agreement`."""
        return agreement(self.answers())

    def annotators(self) -> pd.DataFrame:
        """How often each annotator is right, and what is taken for what, as far as answers to the same images tell.

        Returns:
            One row per annotator and two classes, of the annotators who labelled images that others did, too, and the
            classes that they named there: annotator, quality (probability that an answer of theirs is right), true,
            said, labels (expected number of images of the first class of which they said the second). See
            `palkit.labelling.annotators.judge`.
        """
        answers, _, people, classes = numbered(shared(self.answers()))
        judged = judge(answers)
        names = pd.MultiIndex.from_product([people, classes, classes], names=["annotator", "true", "said"])
        rows = names.to_frame(index=False).assign(labels=judged.confusions.ravel())
        rows.insert(1, "quality", judged.quality.repeat(len(classes) ** 2))
        return rows


def _listed(what: str, values: str | Sequence[str]) -> list[str]:
    if not isinstance(values, Iterable):
        raise ConfigError(f"{what}: one text or several are needed, got {brief(values)}.")
    texts = [values] if isinstance(values, str) else values
    return [normal(text) if isinstance(text, str) else brief(text) for text in texts]


def named(what: str, value: str) -> str:
    """A name as it is compared, without spaces around it; a ConfigError if nothing is left."""
    name = normal(checked(what, value, str)).strip()
    if not name:
        raise ConfigError(f"{what} {value!r}: give a name.")
    return name
