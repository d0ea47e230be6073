"""Grids of runs: one papermill notebook per run, fanned out over processes, resumed by hash."""

import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from joblib import Parallel, delayed, parallel_config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from palkit.adapters import first_trained_block
from palkit.errors import ConfigError, PalkitError, unknown_name
from palkit.experiment import ExperimentConfig, config_from_dict, nest, plain, run_directory, setting
from palkit.files import REPOSITORY, atomic_path
from palkit.notebooks import try_notebook
from palkit.runs import RunDirectory

RUN_NOTEBOOK = REPOSITORY / "notebooks" / "03_active_learning.ipynb"
SWEEPS = REPOSITORY / "notebooks" / "sweeps"
FIGURES = REPOSITORY / "figures"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Sweep:
    """A grid of configs.

    Attributes:
        name: of its results folder, `figures/<name>/`.
        base: config values that all runs share; dotted keys allowed.
        grid: config key -> values; the sweep is their Cartesian product.
    """

    name: str
    base: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, list[Any]] = field(default_factory=dict)

    def parameters(self) -> list[dict[str, Any]]:
        """Plain values of every run, in grid order."""
        return [
            {**self.base, **dict(zip(self.grid, values, strict=True))}
            for values in itertools.product(*self.grid.values())
        ]


def load_sweep(name: str | Path) -> Sweep:
    """The sweep of a YAML file, or of a name in `notebooks/sweeps/`.

    Raises:
        ConfigError: no such file, not valid YAML, or fields that do not fit.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        path = SWEEPS / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("sweep", str(name), [file.stem for file in SWEEPS.glob("*.yaml")])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping with the keys base and grid.")
    for key in content:
        if key not in ("base", "grid"):
            raise unknown_name(f"key in {path.name}", key, ["base", "grid"])
    grid = content.get("grid") or {}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: grid.{key} must be a list of values, got {values!r}.")
    return Sweep(path.stem, content.get("base") or {}, grid)


@dataclass(frozen=True)
class Task:
    """One run of a sweep: its notebook parameters and where it goes.

    Attributes:
        parameters: of the run notebook.
        config: None if the parameters do not make a valid config; the run then fails with the reason.
        directory: of the run.
    """

    parameters: Mapping[str, Any]
    config: ExperimentConfig | None
    directory: RunDirectory

    @property
    def is_complete(self) -> bool:
        return self.config is not None and self.directory.is_complete(self.config.rounds)

    @property
    def label(self) -> str:
        """What tells this run from its siblings."""
        if self.config is None:
            return str(dict(self.parameters))
        parts = [self.config.dataset, self.config.adapter.name, self.config.strategy, f"seed {self.config.seed}"]
        return " / ".join(parts)


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `error` is None if all its rounds are on disk."""

    task: Task
    seconds: float
    error: str | None


def plan(sweep: Sweep, device: str = "cpu") -> list[Task]:
    """The tasks of a sweep, in grid order. A bad config becomes a task that will fail and say why.

    Raises:
        ConfigError: two runs of the grid have the same config.
    """
    tasks = []
    for parameters in sweep.parameters():
        try:
            config = config_from_dict(parameters)
            tasks.append(Task(plain(config), config, run_directory(config, device)))
        except PalkitError:
            digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()
            tasks.append(Task(nest(parameters), None, RunDirectory("invalid", digest[:16])))
    runs = [task.directory.run for task in tasks]
    for task in tasks:
        if runs.count(task.directory.run) > 1:
            raise ConfigError(f"sweep {sweep.name!r} holds the same run twice: {task.label}.")
    return tasks


def run_sweep(sweep: Sweep, *, jobs: int | None = None, device: str = "cpu", console: Console) -> list[Outcome]:
    """Execute what is missing of a sweep; a failing run does not stop the others.

    Args:
        sweep: the grid.
        jobs: processes at a time; None takes one per CPU. The CPUs are divided between them.
        device: for every run.
        console: where progress goes.

    Returns:
        One outcome per run, in grid order. A failed run keeps its executed notebook, which holds the traceback.
    """
    cpus = os.cpu_count() or 1
    tasks = plan(sweep, device)
    todo = [task for task in tasks if not task.is_complete]
    jobs = max(1, min(jobs or cpus, len(todo)))
    console.print(f"sweep [bold]{sweep.name}[/]: {len(tasks)} runs, {len(todo)} to do, {jobs} at a time")
    if not todo:
        return [Outcome(task, 0.0, None) for task in tasks]
    _fill_caches(todo, device, console)
    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=max(1, cpus // jobs)), _live(tasks, console):
        ended = Parallel(batch_size=1)(
            delayed(try_notebook)(RUN_NOTEBOOK, task.directory.notebook, task.parameters, device) for task in todo
        )
    executed = {task.directory.run: Outcome(task, *end) for task, end in zip(todo, ended, strict=True)}
    outcomes = [executed.get(task.directory.run, Outcome(task, 0.0, None)) for task in tasks]
    for outcome in outcomes:
        if outcome.error:
            console.print(f"[red]failed:[/] {outcome.task.label}: {outcome.error}", soft_wrap=True)
            console.print(f"  its notebook: {outcome.task.directory.notebook}", soft_wrap=True)
    return outcomes


def _fill_caches(tasks: Sequence[Task], device: str, console: Console) -> None:
    """Compute shared inputs once, with all CPUs, before the processes that need them start."""
    done = set()
    for config in [task.config for task in tasks if task.config is not None]:
        key = (config.dataset, config.pool_size, config.backbone, config.adapter.name, config.adapter.start_block)
        if key in done:
            continue
        done.add(key)
        # What is wrong with this config is the run's to report.
        with suppress(PalkitError), console.status(f"embedding {config.dataset} for {config.adapter.name}"):
            here = setting(config, device)
            here.cache.features()
            here.cache.inputs(first_trained_block(config.adapter, here.backbone.depth))


@contextmanager
def _live(tasks: Sequence[Task], console: Console) -> Iterator[None]:
    """Show runs and rounds while they are computed: bars on a terminal, one line per finished run elsewhere."""
    rounds = {task.directory.run: 0 for task in tasks}
    total = sum(task.config.rounds for task in tasks if task.config is not None)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stop = threading.Event()

    def refresh(progress: Progress, bars: dict[str, TaskID]) -> None:
        for task in tasks:
            if task.config is None or rounds[task.directory.run] == task.config.rounds:
                continue
            key, wanted, seen = task.directory.run, task.config.rounds, task.directory.count_rounds()
            if seen == rounds[key]:
                continue
            rounds[key] = seen
            if key not in bars:
                bars[key] = progress.add_task(task.label, total=wanted)
            progress.update(bars[key], completed=seen, visible=seen < wanted)
            if seen == wanted:
                complete = sum(t.config is not None and rounds[t.directory.run] == t.config.rounds for t in tasks)
                accuracy = task.directory.table()["accuracy"].iloc[-1]
                progress.print(f"{complete}/{len(tasks)}  {task.label}: accuracy {accuracy:.3f}")
        progress.update(bars["all"], completed=sum(rounds.values()))

    def watch(progress: Progress, bars: dict[str, TaskID]) -> None:
        while not stop.wait(POLL_SECONDS):
            refresh(progress, bars)
        refresh(progress, bars)

    with Progress(*columns, console=console) as progress:
        bars = {"all": progress.add_task("rounds, all runs", total=total)}
        watcher = threading.Thread(target=watch, args=(progress, bars), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def collect(sweep: Sweep, device: str = "cpu") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rounds and selections of all complete runs of a sweep, one row per run and round, per run and image."""
    tables: dict[str, list[pd.DataFrame]] = {"rounds": [], "selections": []}
    for task in plan(sweep, device):
        if task.config is None or not task.is_complete:
            continue
        config = task.config
        columns: dict[str, Any] = {
            "run": task.directory.run,
            "dataset": config.dataset,
            "backbone": config.backbone.name,
            "adapter": config.adapter.name,
            "strategy": config.strategy,
            "balance": config.balance or "none",
            "seed": config.seed,
        }
        for name, rows in {"rounds": task.directory.table(), "selections": task.directory.selections()}.items():
            tables[name].append(rows.assign(**columns)[[*columns, *rows.columns]])
    if not tables["rounds"]:
        raise ConfigError(f"sweep {sweep.name!r} has no complete run yet; start it with `python -m palkit sweep`.")
    return pd.concat(tables["rounds"], ignore_index=True), pd.concat(tables["selections"], ignore_index=True)


def write_results(sweep: Sweep, device: str = "cpu") -> Path:
    """Store the tables of `collect` in `figures/<sweep>/`, and return that folder."""
    folder = FIGURES / sweep.name
    for name, table in zip(("rounds", "selections"), collect(sweep, device), strict=True):
        with atomic_path(folder / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    return folder
