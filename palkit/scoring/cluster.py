"""Work in several processes or on several machines, through Ray (the extra `cluster`)."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from logging import ERROR
from typing import Any
from unittest.mock import DEFAULT, patch

import torch

from palkit.errors import ConfigError, PalkitError
from palkit.progress import Progress
from palkit.scoring.inputs import Embedding

RETRIES = 5  # a shard that took this many workers more with it is no accident
QUIET: dict[str, Any] = {"logging_level": ERROR, "log_to_driver": False}


class WorkerLostError(PalkitError):
    """Every worker that was given a certain shard was lost."""


def compute_on_ray(
    embedding: Embedding,
    missing: list[int],
    progress: Progress,
    *,
    workers: int,
    address: str | None = None,
    gpus: float = 0.0,
) -> None:
    """Compute the missing shards in Ray tasks; with `workers` bound it is an `Executor`.

    Workers write their shards themselves: `embedding.folder`, and image files if there are any, must have the same
    path on every node, and every node the same palkit. Workers use as many threads as this process, so that equal
    processors give the same bits as `compute_here`. Ray carries objects between its processes only; nothing is
    pickled to a file. A lost worker or node costs the shard it was at, which another one computes.

    Args:
        embedding: sent once to each worker.
        missing: shards to compute.
        progress: called with ("embedding", rows done, rows in all) as shards complete.
        workers: shards computed at a time.
        address: of a running cluster, "auto" for the one that this machine is part of; None starts Ray on this
            machine, not reachable from others, and ends it afterwards. Not used if this process is in a cluster.
        gpus: share of a GPU per worker, as 1 or 0.25; 0 computes on the CPU.

    Raises:
        ConfigError: Ray is not installed or not reachable, or no node has what a worker needs.
        WorkerLostError: a shard lost RETRIES workers more than the first.
        PalkitError: what a worker raised, e.g. DataError for a broken image; finished shards stay.
    """
    threads, device = torch.get_num_threads(), "cuda" if gpus else "cpu"
    shipped = replace(embedding, backbone=deepcopy(embedding.backbone).cpu())
    ranges, total = shipped.ranges, len(shipped.images)  # cut here, so that workers get this cut with it
    done = total - sum(len(ranges[number]) for number in missing)
    with cluster(address, workers * threads):
        # A reference in a tuple is one that Ray hands over as it is, not fetched for each task anew.
        reference = _ray().put(shipped)
        tasks = [(reference, number, threads, device) for number in missing]
        names = [f"shard {number}" for number in missing]
        for position, _ in over_ray(_compute, tasks, workers=workers, cpus=threads, gpus=gpus, names=names):
            done += len(ranges[missing[position]])
            progress("embedding", done, total)


def over_ray(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    workers: int,
    cpus: int,
    gpus: float = 0.0,
    address: str | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Number and result of `function` for each item, as they come, each in a Ray task.

    An item whose worker or node is lost is begun again elsewhere.

    Args:
        function: of a module that every node has; it should know by itself what was done before it was begun again.
        items: of the calls.
        workers: tasks at a time.
        cpus: of one task.
        gpus: share of a GPU of one task, as 1 or 0.25.
        address: as for `compute_on_ray`.
        names: of the items, for an error.

    Raises:
        ConfigError: Ray is not installed or not reachable, or no node has what a task needs.
        WorkerLostError: an item lost RETRIES workers more than the first.
    """
    ray = _ray()
    with cluster(address, workers * cpus):
        _check_nodes(cpus, gpus)
        # By default (max_calls=1) Ray ends a worker with a GPU after each task, and the backbone with it.
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(function)
        waiting, running = iter(enumerate(items)), dict[Any, int]()
        try:
            while True:
                running |= {task.remote(item): number for number, item in islice(waiting, workers - len(running))}
                if not running:
                    return
                (reference,), _ = ray.wait(list(running))
                number = running[reference]
                result = _result(reference, names[number] if names else f"item {number}")
                del running[reference]
                yield number, result
        except Exception:
            # Let the others finish what they are at. ray.cancel is no choice: now and then it aborts this whole process
            # ("Tried to complete task that was not pending", Ray 2.60).
            for reference in running:
                ray.wait([reference])
            raise


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed, so nothing can be computed on a cluster. Install the extra: "
            "`pip install palkit[cluster]`, or everything that requirements.lock pins."
        ) from error
    return ray


@contextmanager
def cluster(address: str | None, cpus: int) -> Iterator[None]:
    """Context in a cluster: the one this process is in already, or else one that it leaves at the end.

    Args:
        address: of a running cluster or "auto"; None starts Ray on this machine, not reachable from others.
        cpus: that Ray on this machine hands out, more than there are if need be.

    Raises:
        ConfigError: Ray is not installed, or not reachable.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            _start(cpus)
        else:
            _join(address)
        yield
    finally:
        ray.shutdown()


def _start(cpus: int) -> None:
    import ray
    from ray._private import ray_constants
    from ray._private.node import Node

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    limits = {"task_oom_retries": RETRIES}  # endless otherwise
    # Ray 2.60 has no public means for either of these. It listens on all interfaces, whatever address it is given,
    # unless RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 is set before anyone imports Ray, and then `ray start` inherits it.
    loopback = patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False)
    # With include_dashboard=False a dashboard process starts all the same, to report usage; with reports off it still
    # asks the network which cloud this is. Autoscaler and log monitor have nothing to do, and slow the start.
    helpers = patch.multiple(Node, start_api_server=DEFAULT, start_monitor=DEFAULT, start_log_monitor=DEFAULT)
    with loopback, helpers:
        try:
            ray.init("local", num_cpus=cpus, include_dashboard=False, _system_config=limits, **QUIET)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"Ray cannot be started on this machine ({error}). Its sockets lie in the folder for temporary files, "
                f"{tempfile.gettempdir()}, whose path may have about 35 characters. Set TMPDIR, or RAY_TMPDIR, to a "
                "short one that this user may write to, as /tmp."
            ) from error


def _join(address: str) -> None:
    import ray

    try:
        if address != "auto":  # Ray itself would try for a quarter of an hour
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, **QUIET)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster can be reached at {address!r} ({error}). Give HOST:PORT as `ray start --head` printed it, "
            "or leave the address out to use this machine."
        ) from error


def _check_nodes(cpus: int, gpus: float) -> None:
    """A task that fits on no node would wait for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(
            f"a worker needs {cpus} CPUs, as many as this process has threads, and {gpus:g} GPUs. No node of the "
            f"cluster has them ({has}). Set OMP_NUM_THREADS, or the GPU share, to what a node has."
        )


def _result(reference: Any, what: str) -> Any:
    """Return what a task returned, or raise what it raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise WorkerLostError(
            f"{what} was given up after {RETRIES + 1} workers were lost with it: {error} Mostly memory is short: take "
            "fewer workers or a smaller scoring.batch_size. What is finished stays, start again to go on."
        ) from error


def _compute(task: tuple[Any, int, int, str]) -> None:
    """Compute one shard in a worker. Args: the embedding's reference, the shard's number, threads, device."""
    reference, number, threads, device = task
    _received(reference, threads, device).compute(number)


@lru_cache(maxsize=1)
def _received(reference: Any, threads: int, device: str) -> Embedding:
    """The embedding, fetched and moved to its device once per worker process."""
    import ray

    torch.set_num_threads(threads)
    embedding = ray.get(reference)
    embedding.backbone.to(device)
    return embedding
