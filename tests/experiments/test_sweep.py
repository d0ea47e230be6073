"""Sweeps: a grid becomes papermill notebooks, failures are isolated, finished work is not repeated."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import yaml
from rich.console import Console

from palkit.cli import main
from palkit.data import DATASETS, ImagePool
from palkit.errors import ConfigError, DataError
from palkit.experiments import results
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.results import collect
from palkit.experiments.sweep import Sweep, load_sweep, plan
from palkit.models.metrics import calibration_error

QUIET = Console(quiet=True)


@pytest.fixture
def tiny_sweep(tiny_run: dict[str, Any]) -> Sweep:
    return Sweep("tiny", {**tiny_run, "rounds": 2}, {"strategy": ["random", "entropy"], "seed": [0]})


def test_the_default_sweep_is_the_one_the_readme_promises() -> None:
    tasks = plan(load_sweep("default"))
    configs = [task.config for task in tasks if task.config is not None]
    assert len(configs) == len(tasks) == 100
    strong = {"badge", "margin", "typiclust", "maxherding", "uherding"}
    assert {c.strategy for c in configs if c.adapter.name == "linear_probe"} == {
        "random",
        "entropy",
        "featdist",
    } | strong
    assert {c.strategy for c in configs if c.adapter.name == "lora"} == {"random", "featdist"}
    assert {c.seed for c in configs} == {*range(100, 110)}
    assert {(c.scoring.precision, c.training.precision) for c in configs} == {("float64", "float64")}
    assert {c.rounds for c in configs} == {7}
    assert {c.evaluate_on for c in configs} == {"test"}


@pytest.mark.campaign  # test_dispatch.py has a notebook that fails
@pytest.mark.parametrize("jobs", [1, 2])
def test_failures_do_not_stop_other_runs_and_leave_their_notebook(tiny_run: dict[str, Any], jobs: int) -> None:
    sweep = Sweep("mixed", {**tiny_run, "rounds": 2}, {"strategy": ["random", "entropie"], "batch_size": [10, 150]})
    outcomes = run_sweep(sweep, DispatchConfig(jobs=jobs), console=QUIET)
    errors = [outcome.error for outcome in outcomes]
    assert errors[0] is None, errors[0]
    assert "300 images, but the pool of 'digits' has 200" in str(errors[1])
    assert all("unknown strategy 'entropie'" in str(error) for error in errors[2:])
    for outcome in outcomes:
        notebook = nbformat.read(outcome.task.directory.notebook, as_version=4)
        failed = [o for c in notebook.cells for o in c.get("outputs", []) if o["output_type"] == "error"]
        assert bool(failed) == bool(outcome.error)
    tables = collect(sweep)
    rounds, selections = tables["rounds"], tables["selections"]
    assert rounds["run"].nunique() == 1
    assert rounds["labels"].tolist() == [10, 20]
    assert len(selections) == 20

    seconds = [run.task.directory.notebook.stat().st_mtime_ns for run in outcomes]
    again = run_sweep(sweep, DispatchConfig(jobs=jobs), console=QUIET)
    assert [outcome.error is None for outcome in again] == [True, False, False, False]
    moved = [run.task.directory.notebook.stat().st_mtime_ns != s for run, s in zip(again, seconds, strict=True)]
    assert moved == [False, True, True, True], "only what failed is tried again"


def test_runs_without_data_are_not_begun_and_asked_for_once(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def absent() -> ImagePool:
        asked.append(1)
        raise DataError("nowhere.zip cannot be downloaded.")

    monkeypatch.setitem(DATASETS, "nowhere", absent)
    sweep = Sweep("absent", {**tiny_run, "rounds": 1}, {"dataset": ["digits", "nowhere"], "seed": [0, 1]})
    console = Console(stderr=True, soft_wrap=True)
    errors = [o.error for o in run_sweep(sweep, DispatchConfig(jobs=1, notebooks=False), console=console)]
    assert errors == [None, None, *["DataError: nowhere.zip cannot be downloaded."] * 2]
    assert len(asked) == 1
    assert capsys.readouterr().err.count("nowhere.zip cannot be downloaded") == 1


@pytest.mark.campaign  # test_faults.py kills one at a random moment
def test_killed_sweep_resumes(tiny_sweep: Sweep, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    base = {**tiny_sweep.base, "training": {"epochs": 60, "head_epochs": 0, "views": 1}}
    path.write_text(yaml.safe_dump({"base": base, "grid": dict(tiny_sweep.grid)}))
    sweep = load_sweep(path)
    process = subprocess.Popen(
        [sys.executable, "-m", "palkit", "sweep", str(path), "--jobs", "1"],
        stderr=subprocess.DEVNULL, env=os.environ.copy(), start_new_session=True,
    )  # fmt: skip
    tasks = plan(sweep)
    deadline = time.monotonic() + 600
    while not any(task.directory.count_rounds() for task in tasks):
        assert time.monotonic() < deadline, "no round within ten minutes"
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {task.directory.run: task.directory.table() for task in tasks if task.directory.count_rounds()}
    outcomes = run_sweep(sweep, DispatchConfig(jobs=1), console=QUIET)
    assert [outcome.error for outcome in outcomes] == [None, None]
    for task in tasks:
        table = task.directory.table()
        assert table["round"].tolist() == [0, 1]
        if task.directory.run in kept:
            earlier = kept[task.directory.run]
            pd.testing.assert_frame_equal(table.head(len(earlier)), earlier, check_exact=True)


def test_variants_and_what_differs_become_columns(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FIGURES", tmp_path / "figures")
    path = tmp_path / "variants.yaml"
    variants = {"plain": None, "smooth": {"training.label_smoothing": 0.1}, "small": {"adapter.rank": 2}}
    base = {**tiny_run, "rounds": 2, "strategy": "entropy"}
    path.write_text(yaml.safe_dump({"base": base, "grid": {"seed": [0, 1]}, "variants": variants}, sort_keys=False))
    sweep = load_sweep(path)
    assert [task.variant for task in plan(sweep)] == ["plain", "plain", "smooth", "smooth", "small", "small"]
    outcomes = run_sweep(sweep, DispatchConfig(jobs=1, notebooks=False), console=QUIET)
    assert [outcome.error for outcome in outcomes] == [None] * 6
    assert not any(task.directory.notebook.exists() for task in plan(sweep))
    tables = {name: pd.read_parquet(results.write_results(sweep) / f"{name}.parquet") for name in collect(sweep)}
    assert tables.keys() == {"rounds", "selections", "reliability", "recalls"}
    rounds = tables["rounds"]
    assert rounds.groupby("variant")["training.label_smoothing"].unique().str[0].to_dict() == {
        "plain": 0.0, "smooth": 0.1, "small": 0.0,
    }  # fmt: skip
    assert rounds.groupby("variant")["adapter.rank"].unique().str[0].to_dict() == {"plain": 8, "smooth": 8, "small": 2}
    assert not {"adapter.alpha", "training.epochs"} & set(rounds), "the same in every run"
    reliability = tables["reliability"]
    assert len(reliability) == 6 * 2 * 15
    pooled = reliability.groupby(["run", "labels"])
    ece = pooled.apply(calibration_error, include_groups=False)
    assert ece.to_dict() == pytest.approx(rounds.set_index(["run", "labels"])["ece"].to_dict())
    assert run_sweep(sweep, DispatchConfig(notebooks=False), console=QUIET)[0].seconds == 0, "found by hash"


def test_a_failure_without_notebooks_is_isolated_too(tiny_run: dict[str, Any]) -> None:
    sweep = Sweep("mixed", {**tiny_run, "rounds": 2, "strategy": "random"}, {"batch_size": [150, 10]})
    errors = [o.error for o in run_sweep(sweep, DispatchConfig(jobs=1, notebooks=False), console=QUIET)]
    assert "ConfigError: 2 rounds of 150 labels" in str(errors[0])
    assert errors[1] is None
    report = plan(sweep)[0].directory.path / "traceback.txt"
    assert "in _compute" in report.read_text()


def test_command_line_exits_non_zero_after_a_failure(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FIGURES", tmp_path / "figures")
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"base": {**tiny_run, "rounds": 99}, "grid": {"seed": [0]}}))
    assert main(["sweep", str(path), "--jobs", "1"]) == 1
    error = capsys.readouterr().err
    assert "99 rounds of 10 labels" in error
    assert "notebook.ipynb" in error
    assert "0 complete, 1 failed" in error


def test_command_line_run(tiny_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    values = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in tiny_run.items()]
    assert main(["run", *[value.removesuffix("\n...") for value in values]]) == 0
    assert "round 2: 30 labels" in capsys.readouterr().err
    assert main(["run", "strategy=entropie"]) == 1
    assert "Did you mean 'entropy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: {seed: 0}\ngird: {seed: [0]}", r"unknown key in bad.yaml 'gird'. Did you mean 'grid'"),
        ("grid: {seed: 0}", r"bad\.yaml: grid\.seed is 0 \(int\); it must be a valid list"),
        ("grid: [", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("variants: {a: 1}", r"bad\.yaml: variants\.a is 1 \(int\); it must be a valid dictionary"),
        ("variants: [a]", r"variants is \['a'\] \(list\); it must be a valid dictionary"),
        ("base: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_bad_sweep_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_sweep(path)


def test_unknown_sweep_lists_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown sweep 'defualt'. Did you mean 'default'"):
        load_sweep("defualt")


def test_same_run_twice_is_refused(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="holds the same run twice"):
        plan(Sweep("twice", tiny_run, {"seed": [0, 0]}))


def test_points_of_the_grid_can_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    grid = "grid:\n  adapter.name: [linear_probe, lora]\n  strategy: [random, margin, badge]\n  seed: [0, 1]\n"
    file.write_text(
        grid + "exclude:\n- adapter.name: lora\n  strategy: [margin, badge]\n- {strategy: badge, seed: 1}\n"
    )
    points = [
        (values["adapter"]["name"], values["strategy"], values["seed"]) for _, values in load_sweep(file).parameters()
    ]
    assert points == [
        ("linear_probe", "random", 0), ("linear_probe", "random", 1), ("linear_probe", "margin", 0),
        ("linear_probe", "margin", 1), ("linear_probe", "badge", 0), ("lora", "random", 0), ("lora", "random", 1),
    ]  # fmt: skip
    file.write_text("grid: {seed: [0, 1]}\nvariants: {one: {}, two: {rounds: 2}}\nexclude: [{variant: two, seed: 1}]\n")
    assert [(name, values["seed"]) for name, values in load_sweep(file).parameters()] == [
        ("one", 0), ("one", 1), ("two", 0),
    ]  # fmt: skip
    for text, message in {
        "exclude:\n- {strategi: badge}\n": "strategi.*Did you mean 'strategy'",
        "exclude:\n- {strategy: badgee}\n": "value of exclude.strategy .*Did you mean 'badge'",
        "exclude:\n- {seed: []}\n": "value of exclude.seed",
        "exclude: {strategy: badge}\n": "exclude is {.*must be a valid list",
        "exclude: [badge]\n": "exclude.0 is 'badge' .*must be a valid dictionary",
        "exclude: [{}]\n": "exclude.0 is {} .*must have at least 1 item",
    }.items():
        file.write_text(grid + text)
        with pytest.raises(ConfigError, match=message):
            load_sweep(file)


def test_the_manifest_of_a_sweep_names_every_run_and_its_folder(tiny_run: dict[str, Any]) -> None:
    grid = {"strategy": ["random", "entropie"], "training.epochs": [3, 4]}
    sweep = Sweep("listed", {**tiny_run, "rounds": 1}, grid)
    tasks = plan(sweep)
    run_sweep(sweep, DispatchConfig(jobs=1, notebooks=False), console=QUIET)
    table = pd.read_csv(results.write_results(sweep) / "runs.csv")
    assert table["strategy"].tolist() == ["random", "random", "entropie", "entropie"]
    assert table["training.epochs"].tolist() == [3, 4, 3, 4]
    assert table["run"].tolist() == [task.directory.run for task in tasks]
    assert table["complete"].tolist() == [True, True, False, False]
    assert all((Path(folder) / "rounds.parquet").exists() for folder in table["folder"][:2])
