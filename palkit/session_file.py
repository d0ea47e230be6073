"""`session.json`: what was proposed in a labelling session, and its rounds; labels are not in it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from palkit.errors import ConfigError, DataError
from palkit.files import write_text

CURVE = ("round", "labels", "held_out", "accuracy", "balanced_accuracy", "first_guess", "guessed", "seconds")


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
        metrics: of `palkit.metrics.evaluate`; empty without held-out labels.
        guessed: proposed images that the model before had predicted and that were labelled then.
        first_guess: share of them that it had right: low by design, because what is proposed is hard.
        seconds: of fitting, scoring and evaluating.
        config, provenance: what was computed, with what.
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


def curve_of(rounds: Sequence[SessionRound]) -> pd.DataFrame:
    """Columns round, labels, held_out, accuracy and balanced_accuracy (NaN without held-out labels), first_guess,
    guessed, seconds; a row for each round.
    """
    rows = [
        (one.number, len(one.ids), one.held_out, one.metrics.get("accuracy"), one.metrics.get("balanced_accuracy"),
         one.first_guess, one.guessed, one.seconds)
        for one in rounds
    ]  # fmt: skip
    shares = ("accuracy", "balanced_accuracy", "first_guess")
    return pd.DataFrame(rows, columns=list(CURVE)).astype(dict.fromkeys(shares, np.float64))


class SessionFile:
    """The file, changed atomically and by one process at a time.

    Args:
        path: of the file, in a folder that may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, dataset: str, held_out: Sequence[str]) -> None:
        """Make the file if it is not there.

        Args:
            dataset: whose labels these are.
            held_out: ids of images to set aside, if the session begins now.

        Raises:
            ConfigError: it is there, for another data set.
            DataError: it is there and cannot be read.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not self.path.exists():
                self._write({"dataset": dataset, "held_out": list(held_out), "proposed": [], "rounds": []})
        stored = self.read()["dataset"]
        if stored != dataset:
            raise ConfigError(
                f"folder {self.path.parent} holds labels of data set {stored!r}, not of {dataset!r}. "
                "Give another folder."
            )

    def read(self) -> dict[str, Any]:
        """Keys dataset, held_out (ids), proposed (since the last fit: id, rank, predicted, probability, purpose) and
        rounds.

        Raises:
            DataError: it cannot be read.
        """
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
            if not {"dataset", "held_out", "proposed", "rounds"} <= state.keys():
                raise ValueError(f"it has only {', '.join(state)}")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"{self.path} cannot be read ({error}). The labels are in labels.jsonl beside it: move this file away "
                "to begin again with them."
            ) from error
        return state

    def rounds(self) -> list[SessionRound]:
        """All rounds, in order."""
        return [SessionRound(**one) for one in self.read()["rounds"]]

    def change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Replace what is stored by what `change` makes of it; returns that."""
        with self._lock():
            return self._write(change(self.read()))

    def _write(self, state: dict[str, Any]) -> dict[str, Any]:
        write_text(self.path, json.dumps(state, indent=1, ensure_ascii=False))
        return state

    def _lock(self) -> FileLock:
        return FileLock(f"{self.path}.lock")
