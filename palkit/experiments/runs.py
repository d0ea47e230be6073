"""Run directories: what was asked, with what, and every complete round. Nothing here computes a round."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pyarrow import parquet

from palkit.config import ExperimentConfig, plain
from palkit.errors import DataError, OutOfMemoryError
from palkit.models.adapters.files import adapter_is_saved
from palkit.models.devices import device_name
from palkit.storage.files import (
    IS_CHECKOUT,
    REPOSITORY,
    read_json,
    remove_leftovers,
    runs_dir,
    short_hash,
    storing,
    write_json,
    write_text,
)
from palkit.storage.formats import read_table, write_table

SECONDS = ("fit_s", "score_s", "select_s")  # what a round takes
COSTS = (*SECONDS, "peak_mb", "trainable")
NAME_BYTES = 100  # systems allow 255 at most, encrypted folders 143, and some names have something added
CHECKSUMS = ("data_sha256", "weights_sha256")  # that stand beside the fields of a config
PACKAGES = ("numpy", "pandas", "peft", "scikit-learn", "scipy", "timm", "torch", "torchvision")


@dataclass(frozen=True)
class Round:
    """One complete round: labels were bought, a model fitted, everything scored and evaluated.

    Attributes:
        number: from 0, the round of the initial set.
        labels: labels bought so far.
        bought: pool positions bought at the start of this round.
        metrics: of `palkit.models.metrics.evaluate` on the evaluation split, and the temperature of the logits.
        costs: fit_s, score_s, select_s (of the next batch) in seconds; peak_mb of the process; trainable numbers of
            the backbone, the head not counted.
    """

    number: int
    labels: int
    bought: tuple[int, ...]
    metrics: Mapping[str, float]
    costs: Mapping[str, float]


def folder_name(dataset: str) -> str:
    """A data set's name, or path, as the name of a folder; the end of a long one and a mark of all of it."""
    name = re.sub(r"[^\w.-]+", "_", dataset).strip("_.") or "dataset"
    if len(name.encode()) <= NAME_BYTES:
        return name
    mark = hashlib.sha256(os.fsencode(dataset)).hexdigest()[:16]
    return f"{name.encode()[len(mark) + 1 - NAME_BYTES :].decode(errors='ignore').lstrip('_.')}-{mark}"


@dataclass(frozen=True)
class Resolved:
    """A config with everything filled in, and what it was filled in from: all that a run is a function of.

    Attributes:
        config: settled, see `palkit.experiments.setting.settle`.
        data_sha256: of pixels, labels and splits.
        weights_sha256: of the backbone.
    """

    config: ExperimentConfig
    data_sha256: str
    weights_sha256: str

    def plain(self) -> dict[str, Any]:
        """JSON values, as they are stored with the run; its hash is made of them."""
        return plain(self.config) | {"data_sha256": self.data_sha256, "weights_sha256": self.weights_sha256}

    @cached_property
    def run(self) -> str:
        """Name of the run's folder: equal exactly for equal resolved configs."""
        return short_hash(self.plain())

    @property
    def directory(self) -> "RunDirectory":
        """Where the run is, or will be."""
        return RunDirectory(self.config.dataset, self.run)


def without_checksums(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config as it was stored with a run or a round of a session."""
    return {name: value for name, value in stored.items() if name not in CHECKSUMS}


class RunDirectory:
    """`runs/<dataset>/<hash>/`, written so that a kill at any moment loses at most the round in progress."""

    def __init__(self, dataset: str, run: str) -> None:
        self.run = run
        self.path = runs_dir() / folder_name(dataset) / run

    @property
    def notebook(self) -> Path:
        return self.path / "notebook.ipynb"

    @property
    def adapter(self) -> Path:
        """Folder of the adapter and head of the last round."""
        return self.path / "adapter"

    def start(self, resolved: Resolved, from_round: int, device: torch.device | str) -> None:
        """Record the resolved config and where it is being computed, after whoever computed the rounds before."""
        path, earlier = self.path / "provenance.json", []
        if path.exists():
            earlier = self.sessions()
        write_text(self.path / "config.json", json.dumps(resolved.plain(), indent=1))
        write_json(path, provenance(device) | {"from_round": from_round, "earlier": earlier})

    def remove_leftovers(self) -> None:
        """Delete what killed processes left; to be called by who holds the lock of the run.

        Counts of attempts are written without it.
        """
        with storing(self.path):
            for suffix in (".parquet", ".json"):
                remove_leftovers(self.path, suffix)
            remove_leftovers(self.adapter)

    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return _guarded(self._config, self.path / "config.json")

    def _config(self, path: Path) -> dict[str, Any]:
        config = read_json(path)
        if short_hash(config) != self.run:
            raise ValueError("it is not the config that the folder is named after")
        return config

    def sessions(self) -> list[dict[str, Any]]:
        """Provenance of every process that worked on the run, in order, each with the round it went on from."""
        last = _guarded(read_json, self.path / "provenance.json")
        return [*last.pop("earlier", []), last]

    def rounds(self) -> list[Round]:
        """The complete rounds, in order."""
        if not (self.path / "rounds.parquet").exists():
            return []
        table, bought = self.table(), self.selections()
        metrics = [name for name in map(str, table) if name not in {"round", "labels", *COSTS}]
        return [
            Round(
                number=int(row["round"]),
                labels=int(row["labels"]),
                bought=tuple(bought.loc[bought["round"] == row["round"], "position"]),
                metrics={name: row[name] for name in metrics},
                costs={name: row[name] for name in COSTS},
            )
            for row in table.to_dict("records")
        ]

    def table(self) -> pd.DataFrame:
        """One row per complete round: round, labels, metrics, costs."""
        return _guarded(read_table, self.path / "rounds.parquet")

    def count_rounds(self) -> int:
        """Number of complete rounds, without reading them."""
        path = self.path / "rounds.parquet"
        return _guarded(parquet.read_metadata, path).num_rows if path.exists() else 0

    def selections(self) -> pd.DataFrame:
        """Columns round, position, id, label: everything bought, one batch more than there are complete rounds."""
        return _guarded(read_table, self.path / "selections.parquet")

    def predictions(self, rounds: int) -> list[pd.DataFrame]:
        """Columns label, predicted, confidence, round of the evaluation rows: a table for each of the first rounds."""
        if not rounds:
            return []
        table = _guarded(read_table, self.path / "predictions.parquet")
        return [table[table["round"] == number] for number in range(rounds)]

    def write(self, rounds: list[Round], selections: pd.DataFrame, predictions: list[pd.DataFrame]) -> None:
        """Store complete rounds and what was bought, the batch of the next round included.

        Rounds go last: a kill between the files leaves a batch or predictions too many, which are ignored, never
        a round whose successor's batch is unknown.
        """
        table = pd.DataFrame([{"round": r.number, "labels": r.labels, **r.metrics, **r.costs} for r in rounds])
        files = {"selections": selections, "predictions": pd.concat(predictions, ignore_index=True), "rounds": table}
        for name, content in files.items():
            write_table(content, self.path / f"{name}.parquet")

    def is_complete(self, rounds: int) -> bool:
        """Whether that many rounds are stored and the final adapter with them."""
        return self.count_rounds() >= rounds and adapter_is_saved(self.adapter)


def _guarded(reader: Callable[[Path], Any], path: Path) -> Any:
    try:
        return reader(path)
    except MemoryError as error:
        raise OutOfMemoryError(
            f"{path} does not fit into memory ({error}). Free some and start again. If there is plenty, the file is "
            f"damaged: delete the folder {path.parent} to compute this run again."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Delete the folder {path.parent} to compute this run again."
        ) from error


def provenance(device: torch.device | str) -> dict[str, Any]:
    """Software, hardware and source state that produced a run, computed on a device."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("palkit", *PACKAGES)},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
    }


def _version(package: str) -> str:
    """Of an installed package; palkit may also be imported from a folder."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_state() -> dict[str, Any] | None:
    """Commit and whether the tree differs from it; None outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    if not IS_CHECKOUT:
        return None  # a repository around the environment is somebody else's
    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", "palkit")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
