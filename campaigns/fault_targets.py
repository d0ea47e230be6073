"""What is disturbed: tiny work of every kind, its undisturbed result, and what of it must never be lost or doubled.

A `Bench` has targets by name. The job of each has up to three methods: `work` does it and returns all that came out of
it, `stored` says what is on the disk, and `check` counts what was acknowledged or stored and is lost or there twice.
"""

import json
import shutil
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from fault_processes import Ended, Tell, forked
from PIL import Image
from rich.console import Console

import palkit.experiments.results
import palkit.models.backbones
import palkit.storage.shards
import palkit.studies.execution
from palkit.config import config_from_dict
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.experiment import Learner, rounds, run_directory
from palkit.experiments.results import collect
from palkit.experiments.runs import COSTS, RunDirectory
from palkit.experiments.setting import pool_of, setting, settle
from palkit.experiments.sweep import Sweep, plan
from palkit.labelling.session import Session, open_session
from palkit.models.adapters.files import load_adapter
from palkit.models.backbones import BackboneConfig, embedded_weights, load_backbone
from palkit.storage.files import REPOSITORY

sys.path.append(str(REPOSITORY / "tests"))

from tiny_vit import save_tiny_vit, tiny_values

QUIET = Console(quiet=True)
SESSION_ROUNDS, SESSION_BATCH = 2, 6
Before = tuple[dict[str, Any], int]  # what was stored at a kill, and how many things had been told by then


class Bench:
    """Tiny data, weights and configs, and what undisturbed work on them gives.

    Args:
        root: an empty folder.
        jobs: runs of a sweep at a time; a single one needs no processes besides.
    """

    def __init__(self, root: Path, jobs: int = 2) -> None:
        self.root, self._count = root, 0
        import_module("peft")  # once here instead of in every forked process
        self.cache = root / "cache"
        weights = save_tiny_vit(root)
        self.images = root / "images"
        rng = np.random.default_rng(0)
        for number in range(96):
            path = self.images / f"class {number % 2}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
        self.run = tiny_values(weights)
        pool_of(config_from_dict(self.run))  # as do its libraries
        self.targets: dict[str, Target] = {
            "run": Target(self, Runs(self.run)),
            "fit": Target(self, Runs(self.run | {"training": {"epochs": 40, "head_epochs": 2, "views": 2}})),
            "scoring": Target(self, Runs(self.run | {"pool_size": 900, "strategy": "bald"})),
            "caching": Target(self, Caching(self.run | {"dataset": str(self.images), "pool_size": None}), shared=False),
            "labelling": Target(self, Labelling(self.run)),
            "weights": Target(self, Weights(), shared=False),
            "study": Target(self, Study(self.run)),
            "sweep": Target(self, SweepRuns(self.run, jobs), victims=whole_or_part),
            "notebooks": Target(self, SweepRuns(self.run, jobs, notebooks=True), victims=whole_or_part),
        }

    def folder(self, *, shared: bool = True) -> Path:
        """A new folder, with the cache of all or its own."""
        self._count += 1
        folder = self.root / f"{self._count:05d}"
        folder.mkdir()
        if shared:
            (folder / "shared-cache").write_text(str(self.cache))
        return folder


class Target:
    """Something that can be disturbed, and its undisturbed result."""

    def __init__(
        self,
        bench: Bench,
        job: Any,
        *,
        shared: bool = True,
        victims: Callable[[int], list[int]] = lambda pid: [pid],
    ) -> None:
        self.bench, self.job, self.shared, self.victims = bench, job, shared, victims
        self._undisturbed: tuple[Path, Ended] | None = None

    def folder(self) -> Path:
        return self.bench.folder(shared=self.shared)

    @property
    def undisturbed(self) -> Ended:
        return self._done()[1]

    @property
    def complete(self) -> Path:
        """A folder in which all of it has been done."""
        return self._done()[0]

    def _done(self) -> tuple[Path, Ended]:
        if self._undisturbed is None:
            if self.shared:
                forked(self.job.work, self.folder())  # fills the caches, so that the next one is timed without
            folder = self.folder()
            self._undisturbed = folder, forked(self.job.work, folder)
            if self._undisturbed[1].error:
                raise RuntimeError(self._undisturbed[1].error)
        return self._undisturbed


class Runs:
    """One run, round by round."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def work(self, folder: Path, tell: Tell) -> dict[str, str]:
        """Compute what is missing; returns all that came out of it."""
        config = config_from_dict(self.values)
        for round_ in rounds(config):
            tell(("round", round_.number))
        directory = run_directory(config)
        self._load_adapter(directory)
        return {
            **result_of(directory),
            "config": json.dumps(directory.config()),
            "provenance": json.dumps([one | {"started": ""} for one in directory.sessions()][:1]),
        }

    def _load_adapter(self, directory: RunDirectory) -> None:
        config = config_from_dict(self.values)
        here = setting(config)
        load_adapter(Learner(settle(config, here), here)._attach(), directory.adapter)

    def stored(self, folder: Path) -> dict[str, Any]:
        """Processes that began every run so far, and its complete rounds, by folder."""
        paths = [path for path in (folder / "runs").glob("*/*") if (path / "provenance.json").exists()]
        return {str(path): (len(_sessions(path)), _complete(path)) for path in paths}

    def check(self, folder: Path, told: list[Any], before: list[Before]) -> dict[str, int]:
        """Rounds lost and doubled, given what was told and what was stored at each kill."""
        doubled, lost = 0, 0
        for path in (folder / "runs").glob("*/*"):
            starts = [one["from_round"] for one in _sessions(path)]
            for stored, heard in before:
                began, complete = stored.get(str(path), (0, 0))
                acknowledged = [content[1] + 1 for content in told[:heard] if content[0] == "round"]
                lost += max(0, max(acknowledged, default=0) - complete)
                # Whoever began after a kill went on from what was there then, or later.
                doubled += sum(max(0, complete - start) for start in starts[began:])
                lost += max(0, complete - _complete(path))
        return {"rounds": lost, "doubled": doubled}


def _sessions(path: Path) -> list[dict[str, Any]]:
    last = json.loads((path / "provenance.json").read_text())
    return [*last.pop("earlier", []), last]


def _complete(path: Path) -> int:
    return len(pd.read_parquet(path / "rounds.parquet")) if (path / "rounds.parquet").exists() else 0


def result_of(directory: RunDirectory) -> dict[str, str]:
    """Everything that a run leaves and its config decides, as text; floats in full."""
    count = directory.count_rounds()
    tables = {
        "rounds": directory.table().drop(columns=list(COSTS)),
        "selections": directory.selections(),
        "predictions": pd.concat(directory.predictions(count)),
    }
    adapter = {path.name: path.read_bytes().hex() for path in sorted(directory.adapter.iterdir())}
    return {name: table.to_csv(index=False) for name, table in tables.items()} | adapter


class SweepRuns(Runs):
    """A sweep of four runs, or two with notebooks."""

    def __init__(self, values: dict[str, Any], jobs: int, notebooks: bool = False) -> None:
        super().__init__(values)
        grid = {"strategy": ["random", "margin"], "seed": [0] if notebooks else [0, 1]}
        self.sweep, self.config = Sweep("faults", values, grid), DispatchConfig(jobs=jobs, notebooks=notebooks)

    def work(self, folder: Path, tell: Tell) -> dict[str, str]:
        outcomes = run_sweep(self.sweep, self.config, console=QUIET)
        for outcome in outcomes:
            if outcome.error:
                raise RuntimeError(outcome.error)
        tables = collect(self.sweep)
        tables["rounds"] = tables["rounds"].drop(columns=list(COSTS))
        assert all(task.is_complete for task in plan(self.sweep))
        return {name: table.to_csv(index=False) for name, table in tables.items()}


class Caching:
    """Decoded pixels, tokens and features of a folder of images, in shards of 16 rows."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values | {"scoring": {"batch_size": 16}}

    def work(self, folder: Path, tell: Tell) -> dict[str, str]:
        palkit.storage.shards.SHARD_BYTES = 2**14
        here = setting(config_from_dict(self.values), progress=lambda *_: None)
        there = {}
        for block in (2, here.backbone.depth):
            there[str(block)] = here.cache.shards(block)[:].numpy().tobytes().hex()
        images = here.cache.images()
        there["images"] = images.decode(np.arange(len(here.pool)), 32).tobytes().hex()
        return there

    def stored(self, folder: Path) -> dict[str, int]:
        return {str(path): path.stat().st_ino for path in (folder / "cache").rglob("[0-9]*.npy")}

    def check(self, folder: Path, told: list[Any], before: list[Before]) -> dict[str, int]:
        now = self.stored(folder)
        last = before[-1][0] if before else {}
        return {"doubled": sum(now.get(path) != inode for path, inode in last.items())}


class Labelling:
    """A labelling session with an expert who is never wrong."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = {k: v for k, v in values.items() if k != "rounds"} | {"batch_size": SESSION_BATCH}

    def work(self, folder: Path, tell: Tell) -> dict[str, str]:
        values = dict(self.values)
        session = open_session(values.pop("dataset"), "ana", **values)
        truth = dict(zip(session.pool.ids, pool_of(session.config).label_names(), strict=True))
        while len(session.rounds()) < SESSION_ROUNDS:
            if len(session.training_labels()) < SESSION_BATCH * (len(session.rounds()) + 1):
                for number, name in enumerate(session.propose()["id"]):
                    self.answer(session, number, name, truth[name], tell)
            else:
                tell(("session round", session.fit().number))
        return session_result(session)

    def answer(self, session: Session, number: int, name: str, label: str, tell: Tell) -> None:
        session.label(name, label)
        tell(("label", name, label))

    def stored(self, folder: Path) -> dict[str, Any]:
        """Labels, as often as they are there, and the number of rounds."""
        place = folder / "runs" / "labels" / "digits"
        lines = (place / "labels.jsonl").read_text().splitlines() if (place / "labels.jsonl").exists() else []
        found = [_event(line) for line in lines]
        state = json.loads((place / "session.json").read_text()) if (place / "session.json").exists() else {}
        return {
            "labels": [(one["id"], one["label"]) for one in found if one.get("action") == "label"],
            "rounds": len(state.get("rounds", [])),
        }

    def check(self, folder: Path, told: list[Any], before: list[Before]) -> dict[str, int]:
        """What had been told and was gone by then: an expert who is asked again hides a loss. What is there twice."""
        last = self.stored(folder)
        lost, rounds_lost = 0, 0
        for stored, heard in [*before, (last, len(told))]:
            acknowledged = {content[1:] for content in told[:heard] if content[0] == "label"}
            numbers = [content[1] + 1 for content in told[:heard] if content[0] == "session round"]
            lost = max(lost, len(acknowledged - set(stored["labels"])))
            rounds_lost = max(rounds_lost, max(numbers, default=0) - stored["rounds"])
        twice = len(last["labels"]) - len(set(last["labels"]))
        return {"labels": lost, "rounds": rounds_lost, "doubled": twice + max(0, last["rounds"] - SESSION_ROUNDS)}


def _event(line: str) -> dict[str, Any]:
    """A line of a log; nothing if its writer did not finish it."""
    try:
        return json.loads(line)
    except ValueError:
        return {}


def session_result(session: Session) -> dict[str, str]:
    """What stands, and the rounds without what clocks and machines decide."""
    answers = session.answers().drop(columns="time")
    whens = ("time", "seconds", "provenance")
    each = [{k: v for k, v in asdict(one).items() if k not in whens} for one in session.rounds()]
    # Where the log was: skips and undone answers are in it, and differ where they must.
    return {"answers": answers.to_csv(index=False), "rounds": json.dumps([one | {"events": 0} for one in each])}


class Weights:
    """The embedded backbone, whose file comes from a copy of this machine's instead of the package index."""

    def __init__(self) -> None:
        self.copy = embedded_weights()

    def work(self, folder: Path, tell: Tell) -> dict[str, str]:
        palkit.models.backbones._fetch_embedded = lambda path: shutil.copy(self.copy, path)
        return {"checksum": load_backbone(BackboneConfig(depth=1)).checksum}


class Study:
    """The notebooks of a study; what executes them is replaced by a copy of their source."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.sweep = Sweep("faults", values, {"strategy": ["random", "margin"]})

    def work(self, folder: Path, tell: Tell) -> dict[str, str]:
        palkit.studies.execution.load_sweep = lambda name: self.sweep
        palkit.studies.execution.execute_notebook = lambda source, target, *_, **__: shutil.copy(source, target)
        palkit.experiments.results.FIGURES = folder / "figures"
        if not (folder / "runs" / "studies").exists():  # only once: what is damaged are notebooks
            (folder / "runs" / "studies" / "faults").mkdir(parents=True)
            for task in plan(self.sweep):
                deque(rounds(task.config), maxlen=0)
        notebooks = list(palkit.studies.execution.execute("faults", device="cpu", console=QUIET))
        return {notebook.path.name: notebook.path.read_text() for notebook in notebooks}


def whole_or_part(pid: int) -> list[int]:
    """A process with all its children, or some of them: which, its id decides."""
    children = [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return [[pid, *children], [pid], children[:1] or [pid], children[-1:] or [pid]][pid % 4]
