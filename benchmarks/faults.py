"""Break palkit in every way a machine can, and count what is lost: labels, rounds, runs, or the truth.

    OMP_NUM_THREADS=1 python benchmarks/faults.py [--kills 100] [--seed 0] [--only NAME]

Faults: SIGKILL at random moments and before every change of a file; full disks; read-only folders; files cut short or
with one bit flipped; clocks that jump; two processes on one folder; memory that runs out. Everything happens in
forked processes and temporary folders. After a fault the same call is made again, and must give, bit for bit, what an
undisturbed one gives; or raise an error of palkit's own that names the file, after which doing what it says must.
Where memory is short, batches are halved, and the size of a batch shows in the last bits of its sums: there, numbers
may differ by 1e-6. Full disks and read-only folders are small file systems in memory, and left out where this user may
not mount them; a limit on the size of files needs no permission.

Columns of the report, also in `figures/trust/faults.csv`:

- same: the same result, without a word; told: the same result, after a clear error and what it said to do;
- died: of the same, those whose process a library ended or let wait for ever, as they do when there is no memory for
  even a thread; the next call gave the same;
- wrong: another result and no error, an error that nobody can act on, or a repair that did not help;
- labels, rounds, doubled: acknowledged labels and rounds that are gone; rounds, shards or labels computed or stored
  once more although they were on the disk.

The exit status is 1 if anything was wrong, lost or doubled.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache, partial
from importlib import import_module
from io import StringIO
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

import palkit.backbones
import palkit.engine
import palkit.labels
import palkit.results
import palkit.runs
import palkit.shards
import palkit.study
from palkit.adapter_files import load_adapter
from palkit.backbones import BackboneConfig, embedded_weights, load_backbone
from palkit.config import config_from_dict
from palkit.dispatch import DispatchConfig, run_sweep
from palkit.errors import PalkitError
from palkit.experiment import Learner, rounds, run_directory
from palkit.files import REPOSITORY
from palkit.results import collect
from palkit.runs import COSTS, RunDirectory
from palkit.session import Session, open_session
from palkit.setting import pool_of, setting, settle
from palkit.sweep import Sweep, plan

REPORT = REPOSITORY / "figures" / "trust" / "faults.csv"
QUIET = Console(quiet=True)
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.truncate")  # audit events of what changes a folder
BAD = ("wrong", "labels", "rounds", "doubled")
SESSION_ROUNDS, SESSION_BATCH = 2, 6
PATIENCE = 600.0  # seconds after which something hangs
TOLERANCE = 1e-6  # of probabilities and metrics
Tell = Callable[[Any], None]
Work = Callable[[Path, Tell], Any]
Before = tuple[dict[str, Any], int]  # what was stored at a kill, and how many things had been told by then


@dataclass(frozen=True)
class Trial:
    """One fault and what became of it. `note` says what was wrong, if anything."""

    fault: str
    target: str
    end: str
    labels: int = 0
    rounds: int = 0
    doubled: int = 0
    died: int = 0
    note: str = ""


@dataclass
class Ended:
    """How a forked process ended: with a value, an error or a signal, and what it had told before."""

    value: Any = None
    error: str = ""
    clear: bool = False
    signal: int = 0
    pid: int = 0
    told: list[Any] = field(default_factory=list)
    seconds: float = 0.0


def forked(
    work: Work,
    folder: Path,
    *,
    kill_after: float | None = None,
    kill_before: int | None = None,
    victims: Callable[[int], list[int]] = lambda pid: [pid],
    patience: float = PATIENCE,
) -> Ended:
    """Do some work in a forked process with caches and runs in `folder`.

    Args:
        work: called with the folder and a function that tells this process something.
        folder: that `PALKIT_RUNS` and `PALKIT_CACHE` lie in.
        kill_after: seconds after which it is killed.
        kill_before: number of the change of a file before which it kills itself, from 1.
        victims: of the process's id, the processes to kill.
        patience: seconds after which it is killed because it hangs.
    """
    here, there = Pipe(duplex=False)
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        here.close()
        _child(work, folder, kill_before, there)
    there.close()
    ended, deadline = Ended(), began + (patience if kill_after is None else kill_after)
    while True:
        if not here.poll(max(0.0, deadline - time.perf_counter())):
            for victim in victims(pid):
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            ended.error = "it hangs" if kill_after is None else ""
            deadline = time.perf_counter() + patience
            continue
        try:
            kind, content = here.recv()
        except (EOFError, OSError):
            break
        if kind == "told":
            ended.told.append(content)
        elif kind == "value":
            ended.value = content
        else:
            ended.error, ended.clear = content
    _, status = os.waitpid(pid, 0)
    ended.signal, ended.pid, ended.seconds = os.WTERMSIG(status), pid, time.perf_counter() - began
    return ended


def _child(work: Work, folder: Path, kill_before: int | None, there: Any) -> None:
    """What a forked process does; never returns."""
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.setsid()
        os.environ |= surroundings(folder)
        changes = Changes(folder, kill_before)
        sys.addaudithook(changes)
        try:
            end = "value", work(folder, lambda content: there.send(("told", content)))
        except BaseException as error:
            end = "error", (f"{type(error).__name__}: {error}", isinstance(error, PalkitError))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        there.send(("told", ("changes", changes.seen)))
        there.send(end)
    finally:
        os._exit(0)


def surroundings(folder: Path) -> dict[str, str]:
    """Variables under which everything is kept in a folder; a cache that is shared is beside it."""
    shared = folder / "shared-cache"
    cache = shared.read_text() if shared.exists() else str(folder / "cache")
    return {"PALKIT_RUNS": str(folder / "runs"), "PALKIT_CACHE": cache, "PALKIT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


class Changes:
    """An audit hook that counts changes of files below a folder, and kills the process before one of them."""

    def __init__(self, folder: Path, kill_before: int | None) -> None:
        self.folder, self.kill_before, self.seen = str(folder), kill_before, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3):
            return
        if not str(arguments[0]).startswith(self.folder):
            return
        self.seen += 1
        if self.seen == self.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)


# What is disturbed


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
        torch.manual_seed(0)
        weights = root / "test_vit.safetensors"
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
        self.images = root / "images"
        rng = np.random.default_rng(0)
        for number in range(96):
            path = self.images / f"class {number % 2}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
        self.run: dict[str, Any] = {
            "dataset": "digits",
            "pool_size": 200,
            "backbone": {"name": "test_vit", "image_size": 32, "depth": 4, "checkpoint": str(weights)},
            "adapter": {"name": "lora", "start_block": 2},
            "training": {"epochs": 2, "head_epochs": 2, "views": 2},
            "strategy": "badge",
            "rounds": 3,
            "evaluate_on": "val",
        }
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
        palkit.shards.SHARD_BYTES = 2**14
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
        palkit.backbones._fetch_embedded = lambda path: shutil.copy(self.copy, path)
        return {"checksum": load_backbone(BackboneConfig(depth=1)).checksum}


class Study:
    """The notebooks of a study; what executes them is replaced by a copy of their source."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.sweep = Sweep("faults", values, {"strategy": ["random", "margin"]})

    def work(self, folder: Path, tell: Tell) -> dict[str, str]:
        palkit.study.load_sweep = lambda name: self.sweep
        palkit.study.execute_notebook = lambda source, target, *_, **__: shutil.copy(source, target)
        palkit.results.FIGURES = folder / "figures"
        if not (folder / "runs" / "studies").exists():  # only once: what is damaged are notebooks
            (folder / "runs" / "studies" / "faults").mkdir(parents=True)
            for task in plan(self.sweep):
                deque(rounds(task.config), maxlen=0)
        notebooks = list(palkit.study.execute("faults", in_place=False, device="cpu", console=QUIET))
        return {path.name: path.read_text() for path in notebooks}


def whole_or_part(pid: int) -> list[int]:
    """A process with all its children, or some of them: which, its id decides."""
    children = [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return [[pid, *children], [pid], children[:1] or [pid], children[-1:] or [pid]][pid % 4]


# Faults


def kills(bench: Bench, rng: random.Random, times: int) -> Iterator[Trial]:
    """SIGKILL at random moments: again and again until the work is done all the same."""
    shares = {"fit": 25, "scoring": 20, "labelling": 20, "caching": 15, "sweep": 15, "notebooks": 5}
    for name, share in shares.items():
        yield from killed_at_random(bench.targets[name], name, rng, max(1, round(times * share / 100)))


def killed_at_random(target: Target, name: str, rng: random.Random, times: int) -> Iterator[Trial]:
    done, span = 0, target.undisturbed.seconds
    while done < times:
        folder, hits, told, before, groups = target.folder(), 0, [], [], []
        while True:
            moment = rng.uniform(0, span) if done + hits < times else None
            ended = forked(target.job.work, folder, kill_after=moment, victims=target.victims)
            told += ended.told
            groups.append(ended.pid)
            if ended.value is not None or ended.error:
                break
            hits += 1
            before.append((target.job.stored(folder), len(told)))
        for group in groups:
            clear_away(group)
        done += hits
        counts = target.job.check(folder, told, before)
        for _ in range(hits):
            yield judged("kill at random", name, ended, target, folder, **counts)
            counts = {}


def clear_away(group: int) -> None:
    """End the workers that outlived their sweep, and delete what joblib's own process for that cannot when killed."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for path in Path("/dev/shm").glob(f"sem.loky-{group}-*"):
        path.unlink(missing_ok=True)
    for path in Path("/dev/shm").glob(f"joblib_memmapping_folder_{group}_*"):
        shutil.rmtree(path, ignore_errors=True)


def kills_before_changes(bench: Bench, rng: random.Random, times: int) -> Iterator[Trial]:
    """SIGKILL before the first, second, ... change of a file, then the work is done in peace."""
    for name in ("run", "caching", "labelling"):
        target = bench.targets[name]
        changes = next(content[1] for content in target.undisturbed.told if content[0] == "changes")
        numbers = range(1, changes + 1)
        for number in numbers if times >= changes else sorted(rng.sample(numbers, times)):
            folder = target.folder()
            first = forked(target.job.work, folder, kill_before=number)
            before = [(target.job.stored(folder), len(first.told))]
            ended = forked(target.job.work, folder)
            counts = target.job.check(folder, first.told + ended.told, before)
            yield judged("kill before a change", name, ended, target, folder, **counts)


def full_disks(bench: Bench, rng: random.Random, times: int) -> Iterator[Trial]:
    """A disk with room for a part of what is to be written; then there is room."""
    for name in ("run", "caching", "labelling"):
        target = bench.targets[name]
        needed = sum(path.stat().st_size for path in target.complete.rglob("*") if path.is_file())
        for _ in range(times if may_mount() else 0):
            folder = target.folder()
            with small_disk(folder, 2 * needed + 2**22) as ballast:
                ballast(rng.randrange(needed))
                ended = forked(target.job.work, folder)
                ballast(None)
                before = target.job.stored(folder), len(ended.told)
                yield repaired("full disk", name, ended, target, folder, str(folder), before=before)
    for name in ("run", "caching", "labelling"):
        target = bench.targets[name]
        largest = max(path.stat().st_size for path in target.complete.rglob("*") if path.is_file())
        for _ in range(times):
            folder = target.folder()
            ended = forked(partial(limited_files, target.job.work, rng.randrange(largest)), folder)
            before = target.job.stored(folder), len(ended.told)
            yield repaired("file too large", name, ended, target, folder, str(folder), before=before)


def limited_files(work: Work, size: int, folder: Path, tell: Tell) -> Any:
    """Some work in a process that may not write more than so many bytes to a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return work(folder, tell)


@lru_cache
def may_mount() -> bool:
    """Whether this user may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int | None], None]]:
    """Mount a file system of so many bytes over a folder; what comes out leaves only so much room, or all (None)."""
    shared = (folder / "shared-cache").read_text() if (folder / "shared-cache").exists() else None
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)

    def leave(room: int | None) -> None:
        (folder / "ballast").unlink(missing_ok=True)
        if room is not None:
            (folder / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(folder).free - room)))

    if shared is not None:
        (folder / "shared-cache").write_text(shared)
    try:
        yield leave
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def read_only(bench: Bench, rng: random.Random, times: int) -> Iterator[Trial]:
    """A folder that can no longer be written once a part is done; then it can again."""
    for name in ("run", "caching", "labelling"):
        target = bench.targets[name]
        changes = next(content[1] for content in target.undisturbed.told if content[0] == "changes")
        for _ in range(times if may_mount() else 0):
            folder = target.folder()
            with small_disk(folder, 2**26):
                first = forked(target.job.work, folder, kill_before=rng.randrange(1, changes + 1))
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
                ended = forked(target.job.work, folder)
                subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
                ended.told = first.told + ended.told
                before = target.job.stored(folder), len(ended.told)
                yield repaired("read-only", name, ended, target, folder, str(folder), before=before)


def damages(bench: Bench, rng: random.Random, times: int) -> Iterator[Trial]:
    """Files cut short, or with one bit flipped."""
    for name in ("run", "caching", "labelling", "weights", "study"):
        target = bench.targets[name]
        complete = target.complete
        # The runs of the study are no other runs.
        inside = complete / "runs" / "studies" if name == "study" else complete
        for kind, files in sorted(kinds_of_files(complete, inside).items()):
            first = rng.randrange(2)
            for number in range(first, first + times):
                folder = target.folder()
                shutil.copytree(complete, folder, dirs_exist_ok=True)
                path = folder / rng.choice(files)
                how = damage(path, rng, cut=number % 2 == 0)
                ended = forked(target.job.work, folder)
                backup = complete / path.relative_to(folder)
                yield repaired(how, kind, ended, target, folder, str(path), backup)


def kinds_of_files(folder: Path, inside: Path) -> dict[str, list[Path]]:
    """Files of a folder that are inside another, by what they are."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(inside.rglob("*")):
        if path.is_file() and path.stat().st_size and path.name != "shared-cache":
            place = path.relative_to(folder)
            several = place.parts[0] == "cache" or place.parts[1] == "studies"
            kind = f"{place.parts[1]} {place.suffix}" if several else place.name
            kinds.setdefault(kind, []).append(place)
    return kinds


def damage(path: Path, rng: random.Random, *, cut: bool) -> str:
    """Cut a file short or flip one bit of it; returns which."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if cut:
        del content[place:]
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return "cut short" if cut else "bit flipped"


class JumpingClock(datetime):
    """A clock that is set forward and back by years between one look and the next."""

    looks = 0
    jumps = (0, 3650, -3650, 1, -1, 36500, -20000)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        cls.looks += 1
        return datetime.now(tz) + timedelta(days=cls.jumps[cls.looks % len(cls.jumps)])


class Skipping(Labelling):
    """An expert who leaves every third image for later, and sees what is asked again."""

    def answer(self, session: Session, number: int, name: str, label: str, tell: Tell) -> None:
        if number % 3 == 2:
            session.skip(name)
            assert name not in set(session.open()["id"]), f"{name} was skipped and is asked again at once"
        else:
            super().answer(session, number, name, label, tell)


def clocks(bench: Bench, rng: random.Random, times: int) -> Iterator[Trial]:
    """Clocks that jump between labels and between rounds."""
    for name in ("run", "labelling"):
        target = Target(bench, Skipping(bench.run)) if name == "labelling" else bench.targets[name]
        for _ in range(times):
            folder = target.folder()
            ended = forked(partial(with_jumps, target.job.work, rng.randrange(100)), folder)
            counts = target.job.check(folder, ended.told, []) if not ended.error else {}
            yield judged("clock jumps", name, ended, target, folder, **counts)


def with_jumps(work: Work, start: int, folder: Path, tell: Tell) -> Any:
    """Some work under a clock that jumps."""
    JumpingClock.looks = start
    true_time, true_time_ns = time.time, time.time_ns
    for module in (palkit.labels, palkit.runs):
        module.datetime = JumpingClock
    time.time = lambda: true_time() + 86400 * JumpingClock.jumps[int(true_time() * 10) % len(JumpingClock.jumps)]
    time.time_ns = lambda: true_time_ns() + int(1e9 * (time.time() - true_time()))
    return work(folder, tell)


def together(bench: Bench, rng: random.Random, times: int) -> Iterator[Trial]:
    """Two processes that do the same thing in one folder at once."""
    for name in ("run", "caching", "sweep"):
        target = bench.targets[name]
        for _ in range(times if name != "sweep" else 1 + times // 4):
            folder, delay = target.folder(), rng.uniform(0, target.undisturbed.seconds)
            for ended in both(target.job.work, folder, delay):
                counts = target.job.check(folder, ended.told, [])
                yield judged("two at once", name, ended, target, folder, **counts)
    for _ in range(times):
        folder = bench.folder()
        first, second = both(partial(annotate, bench.run), folder, 0.0)
        given = {tuple(content) for ended in (first, second) for content in ended.told if content[0] == "label"}
        lines = [json.loads(line) for line in next(folder.rglob("labels.jsonl")).read_text().splitlines()]
        kept = [("label", one["annotator"], one["id"]) for one in lines]
        lost, doubled = len(given - set(kept)), len(kept) - len(set(kept))
        error = first.error or second.error
        yield Trial("two at once", "labels", "wrong" if error else "same", labels=lost, doubled=doubled, note=error)


def both(work: Work, folder: Path, delay: float) -> list[Ended]:
    """How two processes end that do the same, one of them a little later."""

    def later(folder: Path, tell: Tell) -> Any:
        time.sleep(delay)
        return work(folder, tell)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(partial(forked, folder=folder), [work, later]))


def annotate(values: dict[str, Any], folder: Path, tell: Tell) -> bool:
    """Label 40 images one by one, as somebody with a name of their own."""
    values = {k: v for k, v in values.items() if k not in ("rounds", "dataset")}
    session = open_session("digits", f"annotator {os.getpid()}", **values)
    for name in list(session.row_of)[:40]:
        session.label(name, session.class_names[0])
        tell(("label", session.annotator, name))
    return True


def memory(bench: Bench, rng: random.Random, times: int) -> Iterator[Trial]:
    """Memory that runs out for some batches, or for good."""
    for name in ("run", "caching"):
        target = bench.targets[name]
        for number in range(times):
            folder = target.folder()
            ended = forked(partial(with_little_memory, target.job.work, 1 + number, rng.randrange(2, 5)), folder)
            yield judged("a batch too large", name, ended, target, folder, tolerance=TOLERANCE)
    target = bench.targets["scoring"]
    for _ in range(times):
        folder = target.folder()
        spare = int(2**20 * rng.uniform(0, 30))
        ended = forked(partial(with_address_space, target.job, spare), folder, patience=120)
        if ended.signal:
            again = forked(target.job.work, folder)
            yield replace(judged("memory used up", "scoring", again, target, folder, tolerance=TOLERANCE), died=1)
        else:
            yield repaired("memory used up", "scoring", ended, target, folder, "memory", tolerance=TOLERANCE)


def with_little_memory(work: Work, first: int, calls: int, folder: Path, tell: Tell) -> Any:
    """Some work in which memory runs out at some calls of the forward pass, beginning with the first given."""
    true_call, seen = palkit.engine.Halving.__call__, [0]

    def call(self: Any, rows: int, todo: Callable[[slice], None]) -> None:
        def limited(part: slice) -> None:
            seen[0] += 1
            if first <= seen[0] < first + calls and part.stop - part.start > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            todo(part)

        true_call(self, rows, limited)

    palkit.engine.Halving.__call__ = call  # type: ignore[method-assign]
    return work(folder, tell)


def with_address_space(job: Runs, spare: int, folder: Path, tell: Tell) -> Any:
    """A run whose process may take only so many bytes more than it has; what it gave is read without that limit."""
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    deque(rounds(config_from_dict(job.values)), maxlen=0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return job.work(folder, tell)


# What became of it


def judged(
    fault: str, name: str, ended: Ended, target: Target, folder: Path, *, tolerance: float = 0.0, **counts: int
) -> Trial:
    """The trial of work that was done in the end; numbers of its tables may differ by the tolerance."""
    wrong = _difference(ended, target.undisturbed, tolerance)
    _forget(folder)
    return Trial(fault, name, "wrong" if wrong else "same", note=wrong, **counts)


def repaired(
    fault: str,
    name: str,
    ended: Ended,
    target: Target,
    folder: Path,
    path: str,
    backup: Path | None = None,
    *,
    before: Before | None = None,
    tolerance: float = 0.0,
) -> Trial:
    """The trial of work that may have ended with an error: if it was clear, what it says is done, and all is well.

    Args:
        fault, name, ended, target, folder: see `Trial` and `forked`.
        path: that the error has to name.
        backup: an undamaged copy.
        before: what was stored after the fault, if all that had been told by then must be there.
        tolerance: see `judged`.
    """
    end = "same"
    if ended.error:
        named = any(part in ended.error for part in (path, str(Path(path).parent)))
        if not ended.clear or not named:
            _forget(folder)
            return Trial(fault, name, "wrong", note=f"unclear: {ended.error[:300]}")
        repair(ended.error, Path(path), backup)
        again = forked(target.job.work, folder)
        again.told, end = ended.told + again.told, "told"
    else:
        again = ended
    counts = target.job.check(folder, again.told, [before]) if before is not None else {}
    trial = judged(fault, name, again, target, folder, tolerance=tolerance, **counts)
    if trial.end == "wrong":
        return replace(trial, note=f"after {ended.error[:300]!r} still {trial.note}" if ended.error else trial.note)
    return replace(trial, end=end)


def repair(message: str, path: Path, backup: Path | None) -> None:
    """Do what an error message says."""
    for place in re.findall(r"[Dd]elete (?:the (?:folder|file) )?(/\S*[^\s.,;:)])", message):
        if Path(place).is_dir():
            shutil.rmtree(place)
        else:
            Path(place).unlink(missing_ok=True)
    if backup is not None and re.search(r"Mend or remove the line|backup", message):
        shutil.copy(backup, path)


def _difference(ended: Ended, undisturbed: Ended, tolerance: float) -> str:
    if ended.signal:
        return f"signal {ended.signal}"
    if ended.error:
        return f"an error: {ended.error[:300]}"
    there, expected = ended.value, undisturbed.value
    names = [n for n in expected if there.get(n) != expected[n] and not _close(there.get(n), expected[n], tolerance)]
    return f"different: {', '.join(names)}" if names else ""


def _close(text: str | None, expected: str, tolerance: float) -> bool:
    """Whether two tables are the same but for the last bits of their fractions."""
    if not tolerance or text is None:
        return False
    try:
        tables = [pd.read_csv(StringIO(one)) for one in (text, expected)]
        pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=0, atol=tolerance)
    except (AssertionError, ValueError):
        return False
    return True


def _forget(folder: Path) -> None:
    if not os.path.ismount(folder):
        shutil.rmtree(folder, ignore_errors=True)


FAULTS: dict[str, tuple[Callable[[Bench, random.Random, int], Iterator[Trial]], float]] = {
    # and how often, relative to the number of kills
    "kills": (kills, 1.0),
    "changes": (kills_before_changes, 1.0),
    "disk": (full_disks, 0.1),
    "readonly": (read_only, 0.05),
    "damage": (damages, 0.08),
    "clock": (clocks, 0.03),
    "together": (together, 0.05),
    "memory": (memory, 0.05),
}


def campaign(bench: Bench, names: list[str], times: int, seed: int) -> Iterator[Trial]:
    """All trials of some kinds of faults; each kind has its own random numbers."""
    for name in names:
        fault, share = FAULTS[name]
        yield from fault(bench, random.Random(f"{seed} {name}"), max(1, round(times * share)))


def report(trials: list[Trial]) -> pd.DataFrame:
    """Counts per fault and target."""
    table = pd.DataFrame([asdict(trial) for trial in trials])
    for end in ("same", "told", "wrong"):
        table[end] = (table["end"] == end).astype(int)
    table["times"] = 1
    columns = ["times", "same", "told", "died", *BAD]
    return table.groupby(["fault", "target"], sort=False)[columns].sum().reset_index()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trials = []
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        for name in [options.only] if options.only else FAULTS:
            began = time.perf_counter()
            trials += campaign(bench, [name], options.kills, options.seed)
            print(f"{name}: {len(trials)} trials so far, {time.perf_counter() - began:.0f} s", flush=True)
    for note in sorted({f"{t.fault}, {t.target}: {t.note}" for t in trials if t.note}):
        print(note)
    table = report(trials)
    print(table.to_string(index=False))
    if not options.only:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(REPORT, index=False)
    return int(table[list(BAD)].to_numpy().any())


if __name__ == "__main__":
    sys.exit(main())
