"""The file `session.json`: what was proposed in a labelling session, and its rounds; labels are not in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, model_validator

from palkit.errors import ConfigError, DataError, brief
from palkit.labelling.records import Count, Name, Number, Share, Text, record
from palkit.storage.checks import normal
from palkit.storage.files import locked, read_json, write_json

CURVE = (
    "round", "labels", "held_out", "accuracy", "low", "high", "balanced_accuracy", "first_guess", "guessed", "seconds",
)  # fmt: skip
MEASURED = ("accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy")
SHARES = ("accuracy", "balanced_accuracy")


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
        metrics: of `palkit.models.metrics.evaluate`; empty without held-out labels. Where these were drawn,
            `accuracy`, the ends of its interval `accuracy_low` and `accuracy_high`, and `accuracy_at_least`, see
            `palkit.labelling.stopping`.
        guessed: proposed images that the model before had predicted and that were labelled then.
        first_guess: share of them that it had right: low by design, because what is proposed is hard.
        seconds: of fitting, scoring and evaluating.
        config, provenance: what was computed, with what.
        events: length of the log of answers when it was fitted.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    number: Count
    time: Text
    ids: Annotated[list[Name], Field(min_length=1)]
    labels: list[Name]
    class_names: list[Name]
    proposed: list[Name]
    held_out: Count
    metrics: dict[str, Annotated[float, Field(strict=True)]]
    guessed: Count
    first_guess: Number | None
    seconds: Number
    config: dict[str, Any]
    provenance: dict[str, Any]
    events: Count = 0  # older files lack it

    @model_validator(mode="after")
    def _fits(self) -> "SessionRound":
        if len(self.ids) != len(self.labels):
            raise ValueError(f"round {self.number} has {len(self.ids)} ids and {len(self.labels)} labels")
        if not all(0 <= self.metrics.get(name, 0) <= 1 for name in SHARES):
            raise ValueError(f"round {self.number} has the metrics {brief(self.metrics)}")
        return self


@dataclass(frozen=True)
class Proposed:
    """An image that somebody is to label.

    Attributes:
        id: of the image.
        rank: in its batch, from 1.
        predicted: class name, "" before the first fit.
        probability: of that class.
        purpose: "train", "held out", or "second opinion" of an image that others have labelled.
        time: when it was proposed, ISO 8601.
        events: length of the log of answers then.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Name
    rank: Count
    predicted: Name
    probability: Number | None
    purpose: Text
    time: Text
    events: Count = 0


@dataclass(frozen=True)
class Drawn:
    """A held-out image that was drawn to be labelled, see `palkit.labelling.testing.Draws`.

    Attributes:
        id: of the image.
        chance: with which it was drawn.
        least: chance of the least likely image then.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: Name
    chance: Share
    least: Share


@dataclass(frozen=True)
class Asked:
    """What is asked for in a session, as somebody gave it last.

    Attributes:
        budget, test_share, ask_again: see `palkit.labelling.session.Session`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    budget: Count | None = None
    test_share: Share | None = None
    ask_again: bool = False


@dataclass(frozen=True)
class SessionState:
    """All that the file holds.

    Attributes:
        dataset: whose labels these are.
        held_out: ids of images set aside.
        proposed: since the last fit.
        rounds: all fits, in order.
        drawn: those set aside that are to be labelled, in order; none if all are. Older files lack it.
        asked: what is asked for. Older files lack it.
    """

    dataset: Text
    held_out: list[Name]
    proposed: list[Proposed]
    rounds: list[SessionRound]
    drawn: list[Drawn] = field(default_factory=list)
    asked: Asked = field(default_factory=Asked)

    @model_validator(mode="after")
    def _counted(self) -> "SessionState":
        for number, one in enumerate(self.rounds):
            if one.number != number:
                raise ValueError(f"round {number} has the number {one.number}")
        return self


def curve_of(rounds: Sequence[SessionRound]) -> pd.DataFrame:
    """One row per round.

    Returns:
        Columns round, labels, held_out, accuracy and balanced_accuracy (NaN without held-out labels), low and high
        (ends of the accuracy's 95 % interval, weighted as the images were drawn, at one look; NaN where all held-out
        images are labelled, for which any interval of a share will do), first_guess, guessed, seconds.
    """
    rows = [
        (one.number, len(one.ids), one.held_out, *map(one.metrics.get, MEASURED), one.first_guess, one.guessed,
         one.seconds)
        for one in rounds
    ]  # fmt: skip
    shares = dict.fromkeys(("accuracy", "low", "high", "balanced_accuracy", "first_guess"), np.float64)
    return pd.DataFrame(rows, columns=list(CURVE)).astype(shares)


class SessionFile:
    """The file, changed atomically and by one process at a time; a copy beside it takes its place if it is damaged.

    Args:
        path: of the file, in a folder that may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.copy = path.with_name(f"{path.name}.copy")
        self._lock = path.with_name(f"{path.name}.lock")

    def begin(self, dataset: str, held_out: Sequence[str], asked: Mapping[str, Any]) -> Asked:
        """Make the file if it is not there; returns what is asked for.

        Args:
            dataset: whose labels these are.
            held_out: ids of images to set aside, if the session begins now.
            asked: fields of `Asked` that are given now; the others stay as they are stored.

        Raises:
            ConfigError: it is there, for another data set.
            DataError: it is there and cannot be read.
            StorageError: it cannot be written.
        """
        with locked(self._lock):
            if not self.path.exists():
                self._write(SessionState(dataset, list(held_out), [], []))
        stored = self.read()
        if normal(stored.dataset) != normal(dataset):
            raise ConfigError(
                f"folder {self.path.parent} holds labels of data set {stored.dataset!r}, not of {dataset!r}. "
                f"Give another folder; or, if the images have moved, move {self.path} away, then rounds begin again "
                "with the labels that are there."
            )
        if replace(stored.asked, **asked) != stored.asked:
            stored = self.change(lambda state: replace(state, asked=replace(state.asked, **asked)))
        return stored.asked

    def read(self) -> SessionState:
        """What is stored.

        Raises:
            DataError: neither the file nor its copy can be read.
        """
        try:
            return record(SessionState, read_json(self.path))
        except (OSError, ValueError) as error:
            try:
                return record(SessionState, read_json(self.copy))
            except (OSError, ValueError):
                raise DataError(
                    f"{self.path} cannot be read ({error}). The labels are in labels.jsonl beside it: move this file "
                    "away to begin again with them."
                ) from error

    def change(self, change: Callable[[SessionState], SessionState]) -> SessionState:
        """Replace what is stored by what `change` makes of it; returns that."""
        with locked(self._lock):
            return self._write(change(self.read()))

    def _write(self, state: SessionState) -> SessionState:
        # The copy comes first: a kill in between leaves the file as it was, which is read first.
        content = asdict(state)
        write_json(self.copy, content)
        write_json(self.path, content)
        return state
