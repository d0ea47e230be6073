"""Grids of runs: one papermill notebook per run, fanned out over processes, resumed by hash."""

import hashlib
import itertools
import json
import os
import threading
import time
import traceback
from collections import deque
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
from palkit.config import ExperimentConfig, config_from_dict, nest, plain
from palkit.devices import MEMORY_VARIABLE, memory_limit
from palkit.devices import VARIABLE as DEVICE_VARIABLE
from palkit.errors import ConfigError, PalkitError, unknown_name
from palkit.experiment import rounds, run_directory, setting, settle
from palkit.files import REPOSITORY, atomic_path, write_text
from palkit.metrics import reliability_of
from palkit.notebooks import try_notebook
from palkit.runs import RunDirectory

RUN_NOTEBOOK = REPOSITORY / "notebooks" / "03_active_learning.ipynb"
SWEEPS = REPOSITORY / "notebooks" / "sweeps"
FIGURES = REPOSITORY / "figures"
KEYS = ("base", "grid", "variants")
TRACEBACK = "traceback.txt"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Sweep:
    """A grid of configs.

    Attributes:
        name: of its results folder, `figures/<name>/`.
        base: config values that all runs share; dotted keys allowed.
        grid: config key -> values, for their Cartesian product.
        variants: name -> config values; the sweep is every variant with every point of the grid.
    """

    name: str
    base: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def parameters(self) -> list[tuple[str | None, dict[str, Any]]]:
        """Name of the variant (None if there are none) and plain values of every run, in order."""
        variants: list[tuple[str | None, Mapping[str, Any]]] = [*self.variants.items()] or [(None, {})]
        return [
            (name, nest({**self.base, **dict(zip(self.grid, point, strict=True)), **variant}))
            for name, variant in variants
            for point in itertools.product(*self.grid.values())
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
        if key not in KEYS:
            raise unknown_name(f"key in {path.name}", key, KEYS)
    for key in KEYS:
        if not isinstance(content.get(key) or {}, dict):
            raise ConfigError(f"{path}: {key} must be a mapping, got {content[key]!r}.")
    grid = content.get("grid") or {}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: grid.{key} must be a list of values, got {values!r}.")
    variants = {str(name): values or {} for name, values in (content.get("variants") or {}).items()}
    for name, values in variants.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: variants.{name} must be a mapping of config values, got {values!r}.")
    return Sweep(path.stem, content.get("base") or {}, grid, variants)


@dataclass(frozen=True)
class Task:
    """One run of a sweep: its notebook parameters and where it goes.

    Attributes:
        parameters: of the run notebook, settled.
        config: None if the parameters do not make a valid config; the run then fails with the reason.
        directory: of the run.
        variant: its name, if the sweep has variants.
    """

    parameters: Mapping[str, Any]
    config: ExperimentConfig | None
    directory: RunDirectory
    variant: str | None = None

    @property
    def is_complete(self) -> bool:
        return self.config is not None and self.directory.is_complete(self.config.rounds)

    @property
    def label(self) -> str:
        """What tells this run from its siblings."""
        if self.config is None:
            return str(dict(self.parameters))
        parts = [self.config.dataset, self.config.adapter.name, self.config.strategy, f"seed {self.config.seed}"]
        return " / ".join([*parts, self.variant] if self.variant else parts)


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
    for variant, parameters in sweep.parameters():
        try:
            config = config_from_dict(parameters)
            # Settled here: workers have fewer threads, and could measure and choose otherwise.
            settled = settle(config, setting(config, device))
            tasks.append(Task(plain(settled), config, run_directory(settled, device), variant))
        except PalkitError:
            digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()
            tasks.append(Task(parameters, None, RunDirectory("invalid", digest[:16]), variant))
    runs = [task.directory.run for task in tasks]
    for task in tasks:
        if runs.count(task.directory.run) > 1:
            raise ConfigError(f"sweep {sweep.name!r} holds the same run twice: {task.label}.")
    return tasks


def run_sweep(
    sweep: Sweep, *, jobs: int | None = None, device: str = "cpu", console: Console, notebooks: bool = True
) -> list[Outcome]:
    """Execute what is missing of a sweep; a failing run does not stop the others.

    Args:
        sweep: the grid.
        jobs: processes at a time; None takes one per CPU, or one on a GPU. CPUs and memory are divided between them.
        device: for every run.
        console: where progress goes.
        notebooks: whether every run is an executed notebook; without them no kernel starts, which short runs feel.

    Returns:
        One outcome per run, in grid order. A failed run keeps its executed notebook, which holds the traceback.
    """
    cpus = os.cpu_count() or 1
    tasks = plan(sweep, device)
    todo = [task for task in tasks if not task.is_complete]
    jobs = max(1, min(jobs or (1 if device.startswith("cuda") else cpus), len(todo)))
    console.print(f"sweep [bold]{sweep.name}[/]: {len(tasks)} runs, {len(todo)} to do, {jobs} at a time")
    if not todo:
        return [Outcome(task, 0.0, None) for task in tasks]
    _fill_caches(todo, device, console)
    environment = _environment(device, jobs)
    processes = parallel_config("loky", n_jobs=jobs, inner_max_num_threads=max(1, cpus // jobs))
    with processes, _live(tasks, console):
        ended = Parallel(batch_size=1)(
            delayed(try_notebook)(RUN_NOTEBOOK, task.directory.notebook, task.parameters, environment)
            if notebooks
            else delayed(try_run)(task.directory.path / TRACEBACK, task.parameters, environment)
            for task in todo
        )
    executed = {task.directory.run: Outcome(task, *end) for task, end in zip(todo, ended, strict=True)}
    outcomes = [executed.get(task.directory.run, Outcome(task, 0.0, None)) for task in tasks]
    for outcome in outcomes:
        if outcome.error:
            console.print(f"[red]failed:[/] {outcome.task.label}: {outcome.error}", soft_wrap=True)
            where = outcome.task.directory.notebook if notebooks else outcome.task.directory.path / TRACEBACK
            console.print(f"  its {'notebook' if notebooks else 'traceback'}: {where}", soft_wrap=True)
    return outcomes


def _environment(device: str, jobs: int) -> dict[str, str]:
    """Variables of a process of the sweep: ours, the device, and its share of the memory.

    They are handed over with every run, because joblib keeps its processes, and their variables, from sweep to sweep.
    """
    ours = {name: value for name, value in os.environ.items() if name.startswith("PALKIT_")}
    return ours | {DEVICE_VARIABLE: device, MEMORY_VARIABLE: str(memory_limit() // jobs)}


def try_run(report: Path, parameters: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[float, str | None]:
    """A run without its notebook: seconds it took, and what went wrong, or None; the traceback is written to `report`.

    Args:
        report: text file.
        parameters: of the config, settled.
        environment: variables to set.
    """
    began, error = time.perf_counter(), None
    os.environ.update(environment)
    try:
        deque(rounds(config_from_dict(parameters), device=environment[DEVICE_VARIABLE]), maxlen=0)
    except Exception as exception:  # whatever stopped one run must not stop the sweep
        error = f"{type(exception).__name__}: {exception}"
        write_text(report, traceback.format_exc())
    return time.perf_counter() - began, error


def _fill_caches(tasks: Sequence[Task], device: str, console: Console) -> None:
    """Compute shared inputs once, with all CPUs, before the processes that need them start."""
    done = set()
    for config in [task.config for task in tasks if task.config is not None]:
        key = (config.dataset, config.pool_size, config.backbone, config.scoring, config.adapter)
        if key in done:
            continue
        done.add(key)
        # What is wrong with this config is the run's to report.
        with suppress(PalkitError), console.status(f"embedding {config.dataset} for {config.adapter.name}"):
            here = setting(config, device)
            here.cache.shards(here.backbone.depth)
            here.cache.shards(first_trained_block(config.adapter, here.backbone.depth))


@contextmanager
def _live(tasks: Sequence[Task], console: Console) -> Iterator[None]:
    """Show runs and rounds while they are computed: bars on a terminal, one line per finished run elsewhere."""
    seen_rounds = {task.directory.run: 0 for task in tasks}
    total = sum(task.config.rounds for task in tasks if task.config is not None)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stop = threading.Event()

    def refresh(progress: Progress, bars: dict[str, TaskID]) -> None:
        for task in tasks:
            if task.config is None or seen_rounds[task.directory.run] == task.config.rounds:
                continue
            key, wanted, seen = task.directory.run, task.config.rounds, task.directory.count_rounds()
            if seen == seen_rounds[key]:
                continue
            seen_rounds[key] = seen
            if key not in bars:
                bars[key] = progress.add_task(task.label, total=wanted)
            progress.update(bars[key], completed=seen, visible=seen < wanted)
            if seen == wanted:
                complete = sum(t.config is not None and seen_rounds[t.directory.run] == t.config.rounds for t in tasks)
                accuracy = task.directory.table()["accuracy"].iloc[-1]
                progress.print(f"{complete}/{len(tasks)}  {task.label}: accuracy {accuracy:.3f}")
        progress.update(bars["all"], completed=sum(seen_rounds.values()))

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


def collect(sweep: Sweep, device: str = "cpu") -> dict[str, pd.DataFrame]:
    """Tables of all complete runs of a sweep, each row saying which run it is of and what that run was.

    Args:
        sweep: some of its runs must be complete.
        device: that they ran on.

    Returns:
        `rounds`, one row per run and round; `selections`, per run and label bought; `reliability`, per run, round and
        bin of confidence (see `palkit.metrics.reliability_of`). Besides the usual columns there is one for every
        config field that differs between runs, under its dotted name, and `variant` if the sweep has some.

    Raises:
        ConfigError: no run is complete.
    """
    tasks = [task for task in plan(sweep, device) if task.is_complete]
    if not tasks:
        raise ConfigError(f"sweep {sweep.name!r} has no complete run yet; start it with `python -m palkit sweep`.")
    varied = _varied([plain(task.config) for task in tasks if task.config is not None])
    tables: dict[str, list[pd.DataFrame]] = {"rounds": [], "selections": [], "reliability": []}
    for task, values in zip(tasks, varied, strict=True):
        config = task.config
        assert config is not None, "complete"
        columns: dict[str, Any] = {
            "run": task.directory.run,
            "dataset": config.dataset,
            "backbone": config.backbone.name,
            "adapter": config.adapter.name,
            "strategy": config.strategy,
            "balance": config.balance or "none",
            "seed": config.seed,
            **({"variant": task.variant} if task.variant else {}),
            **values,
        }
        rounds = task.directory.table()
        found = {
            "rounds": rounds,
            "selections": task.directory.selections(),
            "reliability": _reliability(task.directory.predictions(config.rounds), rounds["labels"].tolist()),
        }
        for name, rows in found.items():
            tables[name].append(rows.assign(**columns)[[*columns, *rows.columns]])
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def _varied(parameters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each run, the values under dotted names that differ between runs and have no column of their own."""
    flat = [_flat(values) for values in parameters]
    names = sorted({name for values in flat for name in values} - {"dataset", "strategy", "balance", "seed"})
    names = [name for name in names if name not in ("backbone.name", "adapter.name")]
    shown = [{name: _cell(values.get(name)) for name in names} for values in flat]
    differing = [name for name in names if len({repr(values[name]) for values in shown}) > 1]
    return [{name: values[name] for name in differing} for values in shown]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _reliability(predictions: Sequence[pd.DataFrame], labels: Sequence[int]) -> pd.DataFrame:
    return pd.concat(
        [
            reliability_of(table["confidence"], table["predicted"] == table["label"]).assign(labels=bought)
            for table, bought in zip(predictions, labels, strict=True)
        ],
        ignore_index=True,
    )


def write_results(sweep: Sweep, device: str = "cpu") -> Path:
    """Store the tables of `collect` in `figures/<sweep>/`, and return that folder."""
    folder = FIGURES / sweep.name
    for name, table in collect(sweep, device).items():
        with atomic_path(folder / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)
    return folder
