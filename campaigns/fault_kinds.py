"""The kinds of faults: kills, disks, damaged files, clocks, two processes at once, memory.

Each is a function of a bench, random numbers and how many times, and gives trials.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import psutil
import torch
from fault_processes import Ended, Tell, Work, begin, end_of, forked
from fault_targets import Bench, Labelling, Runs, Target
from fault_verdicts import Trial, judged, repaired

import palkit.experiments.runs
import palkit.labelling.labels
import palkit.scoring.engine
from palkit.config import config_from_dict
from palkit.experiments.experiment import rounds
from palkit.labelling.session import Session, open_session

TOLERANCE = 1e-6  # of probabilities and metrics


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
    for module in (palkit.labelling.labels, palkit.experiments.runs):
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

    # Not in threads: a process that forks while another of its threads is at work can break the child.
    return [end_of(process) for process in [begin(one, folder) for one in (work, later)]]


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
    true_call, seen = palkit.scoring.engine.Halving.__call__, [0]

    def call(self: Any, rows: int, todo: Callable[[slice], None]) -> None:
        def limited(part: slice) -> None:
            seen[0] += 1
            if first <= seen[0] < first + calls and part.stop - part.start > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            todo(part)

        true_call(self, rows, limited)

    palkit.scoring.engine.Halving.__call__ = call  # type: ignore[method-assign]
    return work(folder, tell)


def with_address_space(job: Runs, spare: int, folder: Path, tell: Tell) -> Any:
    """A run whose process may take only so many bytes more than it has; what it gave is read without that limit."""
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))
    deque(rounds(config_from_dict(job.values)), maxlen=0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return job.work(folder, tell)
