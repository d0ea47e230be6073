"""`session.json`: what was proposed in a labelling session, and its rounds; labels are not in it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palkit.errors import ConfigError, DataError, brief
from palkit.storage.checks import checked, normal
from palkit.storage.files import locked, read_json, write_json

CURVE = ("round", "labels", "held_out", "accuracy", "balanced_accuracy", "first_guess", "guessed", "seconds")


# What JSON makes of the fields of a round, and of what is proposed.
TEXTS = tuple[str, ...]
ROUND = {
    "number": int, "time": str, "ids": TEXTS, "labels": TEXTS, "class_names": TEXTS, "proposed": TEXTS, "held_out": int,
    "metrics": Mapping[str, Any], "guessed": int, "first_guess": float | None, "seconds": float,
    "config": Mapping[str, Any], "provenance": Mapping[str, Any], "events": int,
}  # fmt: skip
PROPOSED = {
    "id": str, "rank": int, "predicted": str, "probability": float | None, "purpose": str, "time": str, "events": int,
}  # fmt: skip
OPTIONAL = {"events"}  # older files lack it


@dataclass(frozen=True)
class SessionRound:
    """One fit of a session.

    Attributes:
        number: from 0.
        time: when it was done, ISO 8601.
        ids: images that it was trained on, in order of labelling.
        labels: their class names.
        class_names: all classes at that time.
        proposed: images proposed before it and since the fit before.
        held_out: images that the metrics were measured on; 0 if there are none.
        metrics: of `palkit.models.metrics.evaluate`; empty without held-out labels.
        guessed: proposed images that the model before had predicted and that were labelled then.
        first_guess: share of them that it had right: low by design, because what is proposed is hard.
        seconds: of fitting, scoring and evaluating.
        config, provenance: what was computed, with what.
        events: length of the log of answers when it was fitted.
    """

    number: int
    time: str
    ids: list[str]
    labels: list[str]
    class_names: list[str]
    proposed: list[str]
    held_out: int
    metrics: dict[str, float]
    guessed: int
    first_guess: float | None
    seconds: float
    config: dict[str, Any]
    provenance: dict[str, Any]
    events: int = 0


def curve_of(rounds: Sequence[SessionRound]) -> pd.DataFrame:
    """One row per round.

    Returns:
        Columns round, labels, held_out, accuracy and balanced_accuracy (NaN without held-out labels), first_guess,
        guessed, seconds.
    """
    rows = [
        (one.number, len(one.ids), one.held_out, one.metrics.get("accuracy"), one.metrics.get("balanced_accuracy"),
         one.first_guess, one.guessed, one.seconds)
        for one in rounds
    ]  # fmt: skip
    shares = ("accuracy", "balanced_accuracy", "first_guess")
    return pd.DataFrame(rows, columns=list(CURVE)).astype(dict.fromkeys(shares, np.float64))


class SessionFile:
    """The file, changed atomically and by one process at a time; a copy beside it takes its place if it is damaged.

    Args:
        path: of the file, in a folder that may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.copy = path.with_name(f"{path.name}.copy")

    def begin(self, dataset: str, held_out: Sequence[str]) -> None:
        """Make the file if it is not there.

        Args:
            dataset: whose labels these are.
            held_out: ids of images to set aside, if the session begins now.

        Raises:
            ConfigError: it is there, for another data set.
            DataError: it is there and cannot be read.
            StorageError: it cannot be written.
        """
        with self._lock():
            if not self.path.exists():
                self._write({"dataset": dataset, "held_out": list(held_out), "proposed": [], "rounds": []})
        stored = self.read()["dataset"]
        if normal(stored) != normal(dataset):
            raise ConfigError(
                f"folder {self.path.parent} holds labels of data set {stored!r}, not of {dataset!r}. "
                f"Give another folder; or, if the images have moved, move {self.path} away, then rounds begin again "
                "with the labels that are there."
            )

    def read(self) -> dict[str, Any]:
        """Keys dataset, held_out (ids), proposed (since the last fit: id, rank, predicted, probability, purpose) and
        rounds.

        Raises:
            DataError: neither it nor its copy can be read.
        """
        try:
            return _state(self.path)
        except (OSError, ValueError) as error:
            try:
                return _state(self.copy)
            except (OSError, ValueError):
                raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path} cannot be read ({error}). The labels are in labels.jsonl beside it: move this file away to "
            "begin again with them."
        )

    def rounds(self) -> list[SessionRound]:
        """All rounds, in order."""
        try:
            return [_round(number, one) for number, one in enumerate(self.read()["rounds"])]
        except ValueError as error:
            raise self._unreadable(error) from error

    def change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Replace what is stored by what `change` makes of it; returns that."""
        with self._lock():
            return self._write(change(self.read()))

    def _write(self, state: dict[str, Any]) -> dict[str, Any]:
        # The copy comes first: a kill in between leaves the file as it was, which is read first.
        write_json(self.copy, state)
        write_json(self.path, state)
        return state

    def _lock(self) -> AbstractContextManager[None]:
        return locked(Path(f"{self.path}.lock"))


def _state(path: Path) -> dict[str, Any]:
    state = read_json(path)
    if not {"dataset", "held_out", "proposed", "rounds"} <= state.keys():
        raise ValueError(f"it has only {', '.join(state)}")
    checked("dataset", state["dataset"], str)
    checked("held_out", state["held_out"], tuple[str, ...])
    for name in ("proposed", "rounds"):
        checked(name, state[name], list)
    for one in state["proposed"]:
        _check_record("proposed", one, PROPOSED)
        one |= {"id": normal(one["id"]), "predicted": normal(one["predicted"])}
    return state | {"held_out": [normal(name) for name in state["held_out"]]}


def _round(number: int, stored: Any) -> SessionRound:
    """A round as it was stored; ValueError if it cannot have been."""
    _check_record(f"round {number}", stored, ROUND)
    texts = {name: [normal(text) for text in stored[name]] for name in ("ids", "labels", "class_names", "proposed")}
    one = SessionRound(**stored | texts)
    if one.number != number or not one.ids or len(one.ids) != len(one.labels):
        raise ValueError(f"round {number} has the number {one.number}, {len(one.ids)} ids and {len(one.labels)} labels")
    numbers = all(isinstance(value, int | float) for value in one.metrics.values())
    if not numbers or not all(0 <= one.metrics.get(name, 0) <= 1 for name in ("accuracy", "balanced_accuracy")):
        raise ValueError(f"round {number} has the metrics {brief(one.metrics)}")
    return one


def _check_record(what: str, record: Any, fields: Mapping[str, Any]) -> None:
    """ValueError if something is no object of these fields, or of others too."""
    if not isinstance(record, dict) or not fields.keys() - OPTIONAL <= record.keys() <= fields.keys() | OPTIONAL:
        raise ValueError(f"{what} must have {', '.join(fields)}, and is {brief(record)}")
    for name, value in record.items():
        checked(f"{what}: {name}", value, fields[name])
