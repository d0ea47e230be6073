"""Dispatch of the runs that a sweep lacks: over processes of this machine or a Ray cluster, whatever dies there."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Literal

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from palkit.errors import ConfigError, PalkitError
from palkit.experiments.setting import setting
from palkit.experiments.sweep import Sweep, Task, plan
from palkit.experiments.watch import POLL_SECONDS, Board, Status, duration, live_table
from palkit.experiments.worker import TRACEBACK, End, Job, attempt, attempt_numbered, begun_attempts
from palkit.models.adapters import first_trained_block
from palkit.models.devices import MEMORY_VARIABLE, choose_device, memory_limit
from palkit.models.devices import VARIABLE as DEVICE_VARIABLE
from palkit.scoring.cluster import over_ray
from palkit.storage.checks import Checked, Count
from palkit.storage.plugins import FOLDER_VARIABLE

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class DispatchConfig(Checked):
    """How runs are computed; nothing here changes what they give.

    Attributes:
        jobs: runs at a time; None takes one per CPU, or one if each has a GPU of this machine for itself.
        engine: "local" (joblib's loky processes) or "ray".
        address: of a running Ray cluster; None starts Ray on this machine.
        gpus: share of a GPU per run (ray); None takes a whole one if the device is cuda.
        time_limit: seconds that a run may take; None has no limit.
        notebooks: whether every run is an executed notebook.
        watch: show a table of runs instead of a line for each that is complete.
    """

    jobs: Count | None = None
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None
    time_limit: Annotated[float, Field(gt=0)] | None = None
    notebooks: bool = True
    watch: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "local" and (self.address or self.gpus):
            raise ConfigError("an address or a GPU share needs the engine ray.")


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `error` is None if all its rounds are on disk."""

    task: Task
    seconds: float
    error: str | None


def run_sweep(
    sweep: Sweep, config: DispatchConfig | None = None, *, device: str | None = None, console: Console
) -> list[Outcome]:
    """Execute what is missing of a sweep; a failing run does not stop the others.

    A run whose kernel or process dies goes on after its last complete round, at most ATTEMPTS times in all. A
    second call, or one after this process was killed, does what is missing then.

    Args:
        sweep: the grid.
        config: how.
        device: for every run; None for the best there is.
        console: where progress goes.

    Returns:
        One outcome per run, in grid order. A failed run keeps its executed notebook, which holds the traceback.

    Raises:
        ConfigError: two runs are the same, or Ray cannot be had.
        PalkitError: worker processes die before they begin any run.
    """
    config = config or DispatchConfig()
    device = choose_device(device)
    tasks = plan(sweep, device)
    todo = [task for task in tasks if task.absent is None and not task.is_complete]
    for task in todo:
        task.attempts.unlink(missing_ok=True)
    without = {task.absent for task in tasks if task.absent is not None}
    for reason in sorted(without):
        console.print(f"[red]not begun:[/] {escape(reason)}", soft_wrap=True)
    if not todo:
        console.print(f"sweep [bold]{escape(sweep.name)}[/]: {len(tasks)} runs, nothing to do")
        return [Outcome(task, 0.0, task.absent) for task in tasks]
    workers, threads = share_of_machine(config.jobs, len(todo), device)
    console.print(f"sweep [bold]{escape(sweep.name)}[/]: {len(tasks)} runs, {len(todo)} to do, {workers} at a time")
    _fill_caches(todo, device, console)
    environment = _environment(device, workers, threads)
    jobs = [
        Job(
            parameters=task.parameters,
            folder=task.directory.path,
            attempts=task.attempts,
            environment=environment,
            notebook=config.notebooks,
            threads=threads,
            time_limit=config.time_limit,
        )
        for task in todo
    ]
    if config.engine == "local":
        ends = _over_processes(jobs, workers, threads)
    else:
        gpus = config.gpus if config.gpus is not None else float(device.startswith("cuda"))
        ends = over_ray(attempt, jobs, workers=workers, cpus=threads, gpus=gpus, address=config.address)
    ended: dict[str, Outcome] = {}
    with _shown(tasks, workers, config.watch, console):
        for number, (seconds, error) in ends:
            task = todo[number]
            ended[task.directory.run] = Outcome(task, seconds, error)
    for outcome in ended.values():
        if outcome.error:
            folder = outcome.task.directory
            told = f"notebook: {folder.notebook}" if config.notebooks else f"traceback: {folder.path / TRACEBACK}"
            console.print(f"[red]failed:[/] {escape(outcome.task.label)}: {escape(outcome.error)}", soft_wrap=True)
            console.print(f"  its {escape(told)}", soft_wrap=True)
    return [ended.get(task.directory.run, Outcome(task, 0.0, task.absent)) for task in tasks]


def share_of_machine(jobs: int | None, runs: int, device: str) -> tuple[int, int]:
    """Runs at a time, and threads of each: one per CPU, but on a GPU one run that has all of them.

    The variable OMP_NUM_THREADS is the most threads of a run: with 1, a run is the same bit for bit however many run
    beside it.

    Args:
        jobs: runs at a time if they are given.
        runs: to do.
        device: cpu, cuda or mps.

    Raises:
        ConfigError: OMP_NUM_THREADS is no number.
    """
    cpus = os.cpu_count() or 1
    workers = min(jobs or (cpus if device == "cpu" else 1), runs)
    most = os.environ.get(THREADS) or str(cpus)
    if not most.isdecimal() or int(most) < 1:
        raise ConfigError(f"{THREADS}={most}: it must be a number of threads, 1 or more, or not set.")
    return workers, max(1, min(cpus // workers, int(most)))


def _environment(device: str, workers: int, threads: int) -> dict[str, str]:
    """Variables of a run: ours, the device, its share of the CPUs and of the memory.

    They are handed over with every run, because processes, and their variables, are kept from sweep to sweep.
    """
    ours = {name: value for name, value in os.environ.items() if name.startswith("PALKIT_")}
    return ours | {
        DEVICE_VARIABLE: device,
        MEMORY_VARIABLE: str(memory_limit() // workers),
        THREADS: str(threads),
        FOLDER_VARIABLE: os.environ.get(FOLDER_VARIABLE) or os.getcwd(),
    }


def _over_processes(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[tuple[int, End]]:
    """Number and end of each job, as they end.

    When a process dies, joblib ends the others as well. What they had begun is then done one at a time, each in a
    process of its own: a run that kills its process must not use up the attempts of those beside it.
    """
    left, idle = dict(enumerate(jobs)), 0
    while left:
        # With one job joblib would stay in this process, which is only for those who asked for it.
        count = 1 if workers == 1 else max(2, min(workers, len(left)))
        try:
            with parallel_config("loky", n_jobs=count, inner_max_num_threads=threads):
                parallel = Parallel(batch_size=1, return_as="generator_unordered")
                for number, end in parallel(delayed(attempt_numbered)(*job) for job in list(left.items())):
                    del left[number]
                    idle = 0
                    yield number, end
        except BrokenProcessPool as error:
            begun = [number for number, job in left.items() if begun_attempts(job.attempts)]
            idle = 0 if begun else idle + 1
            if idle > 1:  # once may be chance: a process was killed between two runs
                raise _nothing_begins(error) from error
            for number in begun:
                left[number].attempts.unlink(missing_ok=True)  # another sweep of the same run may have done so
                yield _alone(number, left.pop(number), threads)


def _alone(number: int, job: Job, threads: int) -> tuple[int, End]:
    """Number and end of a job in a process of its own, and in another one if that dies."""
    known = 0
    while True:
        try:
            with ProcessPoolExecutor(max_workers=1, env={THREADS: str(threads)}) as process:
                return process.submit(attempt_numbered, number, job).result()
        except BrokenProcessPool as error:
            before, known = known, begun_attempts(job.attempts)
            if known <= before:
                raise _nothing_begins(error) from error


def _nothing_begins(error: BrokenProcessPool) -> PalkitError:
    return PalkitError(f"worker processes die before they begin a run ({error}). Free some memory, or take --jobs 1.")


def _fill_caches(tasks: Sequence[Task], device: str, console: Console) -> None:
    """Compute shared inputs once, with all CPUs, before the processes that need them start."""
    configs = [task.config for task in tasks if task.config is not None]
    distinct = {(one.dataset, one.pool_size, one.backbone, one.scoring, one.adapter): one for one in configs}
    for config in distinct.values():
        # What is wrong with this config is the run's to report.
        with suppress(PalkitError), console.status(f"embedding {escape(config.dataset)} for {config.adapter.name}"):
            here = setting(config, device)
            if not here.backbone.depth:  # features that are there already
                continue
            here.cache.shards(first_trained_block(config.adapter, here.backbone.depth))
            here.cache.shards(here.backbone.depth)


@contextmanager
def _shown(tasks: Sequence[Task], workers: int, as_table: bool, console: Console) -> Iterator[None]:
    """Show runs and rounds while they are computed: a table, or a bar and one line per finished run."""
    board = Board(tasks, workers)
    board.refresh()
    with live_table(board, console) if as_table else _lines(board, console) as update:
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(POLL_SECONDS):
                update(board.refresh())
            update(board.refresh())

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            stop.set()
            follower.join()


@contextmanager
def _lines(board: Board, console: Console) -> Iterator[Callable[[list[Status]], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    def update(completed: list[Status]) -> None:
        for run in completed:
            progress.print(f"{escape(run.task.label)}: accuracy {run.accuracy:.3f}", soft_wrap=True)
        left = board.seconds_left()
        text = "rounds" if left is None else f"rounds, about {duration(left)} left"
        progress.update(bar, completed=sum(run.rounds for run in board.runs), description=text)

    total = sum(run.wanted for run in board.runs)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("rounds", total=total)
        yield update
