"""A sweep is computed once, whatever dies: kernels, workers, the sweep itself; and warm kernels leave no trace."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil
import pytest
from dying import deadly, die_at_once
from pandas.testing import assert_frame_equal
from rich.console import Console

from palkit.config import config_from_dict
from palkit.errors import ConfigError, PalkitError
from palkit.experiments import dispatch
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.experiment import rounds
from palkit.experiments.notebooks import execute_notebook, stop_warm_kernel
from palkit.experiments.results import collect
from palkit.experiments.runs import COSTS
from palkit.experiments.sweep import Sweep, Task, plan
from palkit.experiments.worker import ATTEMPTS

QUIET = Console(quiet=True)
MEASURED = list(COSTS)  # not decided by the config


@pytest.fixture
def stub_run(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """The smallest run there is: a linear probe on 60 images."""
    probe = {"adapter": {"name": "linear_probe"}, "training": {"epochs": 1, "head_epochs": 1, "views": 1}}
    return {**tiny_run, **probe, "pool_size": 60, "batch_size": 8, "rounds": 2, "strategy": "random"}


@pytest.fixture(scope="module", autouse=True)
def _one_kernel() -> Iterator[None]:
    """A kernel for all tests that need one, after those of other files and no longer than this one."""
    stop_warm_kernel()
    yield
    stop_warm_kernel()


def kernels_of(pid: int) -> list[psutil.Process]:
    """Kernels that a process and its children have started."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def workers_of(pid: int) -> list[psutil.Process]:
    """joblib's processes."""
    return [c for c in psutil.Process(pid).children() if "popen_loky" in " ".join(c.cmdline())]


class Killer(threading.Thread):
    """Kills a process that `find` returns whenever `ready` says so, at most `times` times."""

    def __init__(self, find: Callable[[], list[psutil.Process]], ready: Callable[[int], bool], times: int) -> None:
        super().__init__(daemon=True)
        self.find, self.ready, self.times = find, ready, times
        self.kills, self.over = 0, threading.Event()

    def run(self) -> None:
        rng = random.Random(0)
        while self.kills < self.times and not self.over.wait(0.05):
            if not self.ready(self.kills):
                continue
            try:
                candidates = self.find()
                if candidates:
                    rng.choice(candidates).kill()
                    self.kills += 1
            except psutil.NoSuchProcess:
                continue


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=MEASURED).sort_values(["run", "round"]).reset_index(drop=True)


@pytest.mark.campaign  # what follows kills a worker, and a kernel; test_faults.py kills the sweep itself
@pytest.mark.parametrize(
    ("seeds", "notebooks", "kill_at"),
    [(50, False, [10, 50, 90, 130]), (6, True, [2, 8, 14])],
    ids=["200 runs without notebooks", "24 notebooks"],
)
def test_no_run_is_lost_or_doubled_while_processes_are_killed(
    stub_run: dict[str, Any],
    seeds: int,
    notebooks: bool,
    kill_at: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = {"strategy": ["random", "entropy", "margin", "featdist"], "seed": list(range(seeds))}
    sweep = Sweep("many", stub_run, grid)
    tasks = plan(sweep)
    assert len(tasks) == 4 * seeds

    def complete() -> int:
        return sum((task.directory.path / "rounds.parquet").exists() for task in tasks)

    def victims() -> list[psutil.Process]:
        """Workers and, if there are notebooks, kernels in turn."""
        return kernels_of(os.getpid()) if notebooks and killer.kills % 2 else workers_of(os.getpid())

    killer = Killer(victims, lambda kills: complete() >= kill_at[kills], len(kill_at))
    killer.start()
    outcomes = run_sweep(sweep, DispatchConfig(jobs=2, notebooks=notebooks), console=QUIET)
    killer.over.set()
    killer.join()
    assert killer.kills == len(kill_at), "processes were killed while it ran"

    assert [outcome.error for outcome in outcomes] == [None] * len(tasks)
    assert [outcome.task.directory.run for outcome in outcomes] == [task.directory.run for task in tasks]
    table = collect(sweep)["rounds"]
    assert table["run"].nunique() == len(tasks), "no run lost"
    assert not table.duplicated(["run", "round"]).any(), "no round doubled"
    assert len(table) == 2 * len(tasks)
    sessions = [task.directory.sessions() for task in tasks]
    begun_again = sum(len(session) - 1 for session in sessions)
    assert begun_again <= 2 * killer.kills, "only what was being computed when a process died was computed again"
    for session in sessions:
        starts = [begun["from_round"] for begun in session]
        assert starts == sorted(starts)
        assert starts[0] == 0
    assert all(task.directory.notebook.exists() == notebooks for task in tasks)
    assert not any(task.attempts.exists() for task in tasks)

    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "undisturbed"))
    undisturbed = run_sweep(sweep, DispatchConfig(jobs=1, notebooks=False), console=QUIET)
    assert [outcome.error for outcome in undisturbed] == [None] * len(tasks)
    assert_frame_equal(comparable(collect(sweep)["rounds"]), comparable(table), check_exact=True)


@pytest.mark.campaign
def test_a_run_that_kills_its_worker_every_time_is_given_up_and_the_others_are_not(
    stub_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first is still loading the network's libraries when the second, which loads none, dies.
    sweep = Sweep("deadly", stub_run, {"seed": [0, 1, 2]})
    monkeypatch.setattr(dispatch, "attempt_numbered", deadly)
    outcomes = run_sweep(sweep, DispatchConfig(jobs=2, notebooks=False), console=QUIET)
    errors = [outcome.error for outcome in outcomes]
    assert [errors[0], errors[2]] == [None, None]
    assert f"given up after {ATTEMPTS} attempts" in str(errors[1])
    assert (plan(sweep)[1].directory.path / "begun").read_text() == "x" * (1 + ATTEMPTS), (
        "once beside others, then alone"
    )


def test_workers_that_begin_nothing_end_the_sweep_with_a_reason(
    stub_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "attempt_numbered", die_at_once)
    with pytest.raises(PalkitError, match="die before they begin a run"):
        run_sweep(Sweep("dead", stub_run, {"seed": [0, 1]}), DispatchConfig(jobs=2, notebooks=False), console=QUIET)


@pytest.mark.campaign
def test_a_dead_kernel_is_replaced_and_the_run_goes_on_after_its_last_round(stub_run: dict[str, Any]) -> None:
    training = {"epochs": 30, "head_epochs": 0, "views": 1}
    adapter = {"name": "bitfit", "start_block": 2}  # loads no peft, in either kernel
    sweep = Sweep("dying", {**stub_run, "adapter": adapter, "training": training, "rounds": 3}, {"seed": [0]})
    (task,) = plan(sweep)
    killer = Killer(lambda: kernels_of(os.getpid()), lambda _: task.directory.count_rounds() == 1, 1)
    killer.start()
    (outcome,) = run_sweep(sweep, DispatchConfig(jobs=1), console=QUIET)
    assert killer.kills == 1
    assert outcome.error is None
    assert [session["from_round"] for session in task.directory.sessions()] == [0, 1]
    assert task.directory.table()["round"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("notebooks", [pytest.param(True, marks=pytest.mark.campaign), False])
def test_the_time_limit_ends_a_run_for_good_and_keeps_its_rounds(stub_run: dict[str, Any], notebooks: bool) -> None:
    slow = {
        "adapter": {"name": "bitfit", "start_block": 0},
        "training": {"epochs": 100_000, "head_epochs": 0, "views": 1},
    }
    sweep = Sweep("slow", stub_run, variants={"slow": slow, "quick": {}})
    (slow_task, _) = plan(sweep)
    # Long enough for the quick one on a busy machine; the slow one would take hours.
    config = DispatchConfig(jobs=1, notebooks=notebooks, time_limit=20 if notebooks else 5)
    slow_run, quick_run = run_sweep(sweep, config, console=QUIET)
    assert "TimeLimitError: stopped after the time limit" in str(slow_run.error)
    assert quick_run.error is None
    assert len(slow_task.directory.sessions()) == 1, "not tried again"


def test_a_warm_kernel_gives_what_a_fresh_one_gives(tmp_path: Path) -> None:
    """Names, counters, figures and variables of one notebook do not reach the next."""
    cells = [
        nbformat.v4.new_code_cell("number = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "%matplotlib inline\nimport os\nfrom matplotlib import pyplot\n"
            "print('left_over' in globals(), pyplot.get_fignums(), number, os.environ.get('PALKIT_MARK'))\n"
            "left_over = pyplot.figure(); os.environ['PALKIT_MARK'] = 'changed'"
        ),
        nbformat.v4.new_code_cell("os.getpid()"),
    ]
    source = tmp_path / "source.ipynb"
    language = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=language), source)

    def execute(number: int, warm: bool) -> tuple[str, str, list[int]]:
        target = tmp_path / f"{number}.ipynb"
        environment = {"PALKIT_MARK": f"mark {number}"} if warm else None
        execute_notebook(source, target, {"number": number}, environment=environment, warm=warm)
        code = [cell for cell in nbformat.read(target, as_version=4).cells if cell.cell_type == "code"]
        counts = [cell.execution_count for cell in code]
        return code[-2].outputs[0]["text"].strip(), code[-1].outputs[0]["data"]["text/plain"], counts

    first, second, cold_run = execute(1, True), execute(2, True), execute(3, False)
    assert first[0] == "False [] 1 mark 1"
    assert second[0] == "False [] 2 mark 2"
    assert cold_run[0] == "False [] 3 None"
    assert first[1] == second[1] != cold_run[1], "the warm kernel was the same process"
    assert first[2] == second[2] == cold_run[2] == [1, 2, 3, 4]


def test_a_failed_notebook_leaves_the_warm_kernel_to_the_others_which_compute_what_rounds_compute(
    stub_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep("mixed", stub_run, {"strategy": ["entropy", "entropie", "margin"]})
    outcomes = run_sweep(sweep, DispatchConfig(jobs=1), console=QUIET)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "ConfigError: unknown strategy 'entropie'" in str(outcomes[1].error)
    notebook = nbformat.read(outcomes[1].task.directory.notebook, as_version=4)
    assert any(o["output_type"] == "error" for c in notebook.cells for o in c.get("outputs", []))

    with_notebooks = comparable(collect(sweep)["rounds"])
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "other"))
    for outcome in (outcomes[0], outcomes[2]):
        list(rounds(config_from_dict(outcome.task.parameters)))
    assert_frame_equal(comparable(collect(sweep)["rounds"]), with_notebooks, check_exact=True)


def test_the_environment_of_this_process_is_left_as_it_was(stub_run: dict[str, Any]) -> None:
    before = dict(os.environ)
    run_sweep(Sweep("one", stub_run), DispatchConfig(jobs=1, notebooks=False), console=QUIET)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "slurm"}, "unknown engine 'slurm'"),
        ({"jobs": 0}, "jobs is 0 .*must be greater than or equal to 1"),
        ({"time_limit": 0}, "time_limit is 0 .*must be greater than 0"),
        ({"gpus": 0.5}, "need.* the engine ray"),
    ],
)
def test_bad_dispatch(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DispatchConfig(**values)


def test_stale_counts_of_attempts_do_not_count(stub_run: dict[str, Any]) -> None:
    """They are of a sweep that was killed itself."""
    sweep = Sweep("stale", stub_run)
    task: Task = plan(sweep)[0]
    task.attempts.parent.mkdir(parents=True)
    task.attempts.write_text(str(ATTEMPTS))
    assert run_sweep(sweep, DispatchConfig(jobs=1, notebooks=False), console=QUIET)[0].error is None
