"""Embedding through a real Ray instance with two workers: the same bits, whatever happens to the workers."""

import importlib.util
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from pandas.testing import assert_frame_equal
from PIL import Image
from rich.console import Console

from palkit.data import Decoder, FileImages, load_dataset
from palkit.errors import ConfigError, DataError
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.results import collect
from palkit.experiments.runs import COSTS
from palkit.experiments.sweep import Sweep, plan
from palkit.models.backbones import Backbone
from palkit.progress import silent
from palkit.scoring.cluster import WorkerLostError, cluster, compute_on_ray
from palkit.scoring.engine import ScoringConfig
from palkit.scoring.inputs import Embedding, InputCache, compute_here
from palkit.storage import shards

WORKERS = 2
ROWS = 32  # per batch
SHARD = 2 * ROWS

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="RAY IS NOT INSTALLED: the cluster path is untested here. Install the extra: pip install palkit[cluster]",
)
on_two_workers = partial(compute_on_ray, workers=WORKERS)


@pytest.fixture(autouse=True)
def _small_shards(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", SHARD * tiny.tokens * tiny.width * np.dtype(np.float16).itemsize)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """Ray takes seconds to start: once for all tests but the one of starting it."""
    with cluster(None, cpus=WORKERS * torch.get_num_threads()):
        yield


def embedding(images: Decoder, backbone: Backbone, folder: Path) -> Embedding:
    folder.mkdir(parents=True, exist_ok=True)
    return Embedding(images, backbone, 2, ScoringConfig(batch_size=ROWS), folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file but the lock and what a killed worker had begun, which `InputCache` clears away."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def test_ray_is_missing(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install palkit\[cluster\]"):
        on_two_workers(embedding(load_dataset("digits").images, tiny, tmp_path), [0], silent)


def test_shards_travel_as_paths(tmp_path: Path) -> None:
    """A decoded pool of a terabyte must not be sent to the workers."""
    path = tmp_path / "00000.npy"
    np.save(path, np.arange(2_000_000, dtype=np.uint8).reshape(1000, 2000))
    sent = pickle.dumps(shards.Shards([path], dtype=None))
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)[5:9], shards.Shards([path], dtype=None)[5:9])


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "host:port"])
def test_no_cluster_at_the_address(address: str) -> None:
    with pytest.raises(ConfigError, match=f"no Ray cluster can be reached at '{address}'"), cluster(address, cpus=1):
        pytest.fail("joined nothing")


@needs_ray
def test_a_folder_for_temporary_files_with_a_long_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(ConfigError, match=rf"AF_UNIX.*{folder}.*Set TMPDIR"), cluster(None, 1):
        pass


@needs_ray
@pytest.mark.campaign
def test_own_instance_is_local_and_ends_when_interrupted(tiny: Backbone, tmp_path: Path) -> None:
    import ray

    task = embedding(load_dataset("digits").images, tiny, tmp_path)
    started: list[psutil.Process] = []
    commands: list[str] = []
    listening: set[str] = set()

    def interrupt(stage: str, done: int, total: int) -> None:
        started.extend(set(psutil.Process().children(recursive=True)) - before)
        for process in started:
            commands.append(" ".join(process.cmdline()))
            listening.update(c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)
        raise KeyboardInterrupt

    before = set(psutil.Process().children(recursive=True))  # joblib keeps its processes from earlier tests
    assert not ray.is_initialized()
    with pytest.raises(KeyboardInterrupt):
        compute_on_ray(task, task.missing(), interrupt, workers=1)
    assert sum("raylet/raylet" in command for command in commands) == 1
    assert not any("dashboard/dashboard.py" in command for command in commands)  # it would use the network
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not ray.is_initialized()
    assert psutil.wait_procs(started, timeout=120)[1] == []
    assert 0 < len(task.missing()) < len(task.ranges)


@needs_ray
def test_same_bytes_as_here(two_workers: None, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    pool, config = load_dataset("digits"), ScoringConfig(batch_size=ROWS)
    reports: list[tuple[str, int, int]] = []
    folders: list[Path] = []
    for execute in (compute_here, on_two_workers):
        monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / str(len(folders))))
        reports.clear()
        cache = InputCache(pool, tiny, config, lambda *report: reports.append(report))
        rows = cache.shards(2, execute)
        assert len(rows.maps) == -(-len(pool) // SHARD) > 10
        folders.append(cache.folder(2))
    here, there = map(contents, folders)
    assert here == there
    assert [done for _, done, _ in reports] == sorted({done for _, done, _ in reports})
    assert len(reports) == len(rows.maps)
    assert reports[-1] == ("embedding", len(pool), len(pool))
    assert ray.is_initialized()  # it was there before


@needs_ray
@pytest.mark.campaign
def test_killed_worker_is_replaced(two_workers: None, tiny: Backbone, tmp_path: Path) -> None:
    """The first worker that comes to row FATAL, in the middle of shard 5, waits there for its SIGKILL."""
    images, attempts = load_dataset("digits").images, tmp_path / "attempts"
    attempts.mkdir()
    fatal = 5 * SHARD + ROWS + 7
    there = embedding(images, tiny, tmp_path / "there")
    killed: dict[int, tuple[str, list[int]]] = {}

    class Waiting:  # local, so that Ray sends the class itself: workers cannot import this file
        def __len__(self) -> int:
            return len(images)

        def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
            if fatal in rows:
                (attempts / str(os.getpid())).touch()
                until = time.monotonic() + 300
                while len(list(attempts.iterdir())) == 1 and time.monotonic() < until:
                    time.sleep(0.01)
            return images.decode(rows, size)

    def kill() -> None:
        while not list(attempts.iterdir()):
            time.sleep(0.01)
        process = psutil.Process(int(next(attempts.iterdir()).name))
        killed[process.pid] = (process.cmdline()[0], there.missing())
        process.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    on_two_workers(replace(there, images=Waiting()), there.missing(), silent)
    thread.join(timeout=120)

    ((pid, (name, missing)),) = killed.items()
    assert name.startswith("ray::_compute")
    assert 5 in missing
    assert not psutil.pid_exists(pid)
    tried = [int(path.name) for path in attempts.iterdir()]
    assert len(tried) == 2
    assert pid in tried
    here = embedding(images, tiny, tmp_path / "here")
    compute_here(here, here.missing(), silent)
    assert contents(here.folder) == contents(there.folder)


@needs_ray
@pytest.mark.campaign
def test_broken_image_then_mended(two_workers: None, tiny: Backbone, tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{row:03d}.png" for row in range(6 * SHARD))
    for path, pixels in zip(paths, load_dataset("digits").images.decode(np.arange(len(paths)), 8), strict=True):
        Image.fromarray(pixels).save(path)
    broken = paths[3 * SHARD + 11]
    whole = broken.read_bytes()
    task = embedding(FileImages(paths), tiny, tmp_path / "shards")
    broken.write_bytes(whole[:40])
    with pytest.raises(DataError, match=f"^{broken} has changed since the data set was loaded") as caught:
        on_two_workers(task, task.missing(), silent)
    assert type(caught.value) is DataError
    missing = task.missing()
    assert 3 in missing
    assert len(missing) <= 4  # shard 3 began when two of the first three were finished

    broken.write_bytes(whole)
    before = {path: path.stat().st_mtime_ns for path in task.folder.glob("[0-9]*.npy")}
    reports: list[int] = []
    on_two_workers(task, missing, lambda stage, done, total: reports.append(done))
    assert reports[0] == (6 - len(missing) + 1) * SHARD
    assert len(reports) == len(missing)
    assert task.missing() == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


@needs_ray
def test_node_without_what_a_worker_needs(two_workers: None, tiny: Backbone, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="No node of the cluster has them"):
        on_two_workers(embedding(load_dataset("digits").images, tiny, tmp_path), [0], silent, gpus=1)


@needs_ray
@pytest.mark.campaign
def test_sweep_on_ray_gives_what_processes_give_though_a_worker_is_killed(
    two_workers: None, tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**tiny_run, "adapter": {"name": "lora", "start_block": 2}, "training": {"epochs": 20, "views": 1}}
    sweep = Sweep("ray", values, {"strategy": ["random", "entropy", "entropie"], "seed": [0, 1]})
    tasks = plan(sweep)

    def kill_a_worker() -> None:
        while not any(task.directory.count_rounds() for task in tasks if task.config):
            time.sleep(0.02)
        next(p for p in psutil.process_iter() if p.name() == "ray::attempt").kill()

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    quiet = Console(quiet=True)
    config = DispatchConfig(jobs=WORKERS, engine="ray", notebooks=False)
    outcomes = run_sweep(sweep, config, console=quiet)
    killer.join(timeout=120)
    assert not killer.is_alive(), "a worker was killed"
    assert [outcome.error is None for outcome in outcomes] == [True] * 4 + [False] * 2
    assert "unknown strategy 'entropie'" in str(outcomes[4].error)
    assert sum(len(task.directory.sessions()) for task in tasks[:4]) == 5, "the killed run was begun again"
    on_ray = collect(sweep)["rounds"].drop(columns=list(COSTS))
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "here"))
    run_sweep(sweep, DispatchConfig(jobs=WORKERS, notebooks=False), console=quiet)
    assert_frame_equal(on_ray, collect(sweep)["rounds"].drop(columns=list(COSTS)), check_exact=True)


@needs_ray
@pytest.mark.parametrize("notebooks", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_a_run_on_ray(two_workers: None, tiny_run: dict[str, Any], notebooks: bool) -> None:
    sweep = Sweep("ray", {**tiny_run, "adapter": {"name": "linear_probe"}, "rounds": 1}, {"seed": [0]})
    config = DispatchConfig(jobs=1, engine="ray", notebooks=notebooks)
    (outcome,) = run_sweep(sweep, config, console=Console(quiet=True))
    assert outcome.error is None
    assert outcome.task.directory.is_complete(1)
    assert outcome.task.directory.notebook.exists() == notebooks


@needs_ray
def test_sweep_that_wants_more_gpu_than_there_is(two_workers: None, tiny_run: dict[str, Any]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"0\.25 GPUs. No node of the cluster has them"):
        run_sweep(Sweep("ray", tiny_run), DispatchConfig(engine="ray", gpus=0.25), console=Console(quiet=True))


@needs_ray
def test_shard_that_loses_every_worker(
    two_workers: None, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly:
        def __len__(self) -> int:
            return SHARD

        def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    monkeypatch.setattr(
        "palkit.scoring.cluster.RETRIES", 0
    )  # last in this file, for the next test would wait for a new one
    with pytest.raises(WorkerLostError, match="shard 0 was given up after 1 workers"):
        on_two_workers(embedding(Deadly(), tiny, tmp_path), [0], silent)
