"""Execution of a study's notebooks over the results of a sweep, if something changed; its reference and its report."""

import ast
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill import PapermillExecutionError
from rich.console import Console
from rich.markup import escape as plain_text

from palkit.errors import ConfigError, brief
from palkit.experiments.notebooks import execute_notebook
from palkit.experiments.results import FIGURES, MISSING, RUNS, read_missing, reference_folder, write_results
from palkit.experiments.sweep import SWEEPS, Sweep, load_sweep, plan
from palkit.storage.files import REPOSITORY, sha256, write_text
from palkit.storage.formats import write_table
from palkit.strategies import STRATEGIES
from palkit.studies.deciding import stops_of
from palkit.studies.report import write_report
from palkit.studies.reproduce import TABLE, Reproduction, compare
from palkit.studies.study import STOPS, copied, drawings

NOTEBOOKS = REPOSITORY / "notebooks"
KEPT = (".parquet", ".csv", ".tex", ".png", ".svg")  # of a study, in the reference


class Executed(NamedTuple):
    """A notebook of a study.

    Attributes:
        path: of the executed copy.
        error: the cell that failed and why, if one did.
    """

    path: Path
    error: str | None = None


def execute(name: str, *, device: str, console: Console) -> Iterator[Executed]:
    """Execute copies of 01, 02 and 04 for a sweep, if something changed; yields each, also one of which a cell failed.

    Args:
        name: of the sweep, or its YAML file; its results must be there.
        device: that the runs were computed on.
        console: where progress goes.

    Raises:
        ConfigError: there is no such sweep, or no run of it is complete.
    """
    sweep = load_sweep(name)
    styles = sorted((name, one.style) for name, one in STRATEGIES.items() if one.style is not None)
    results = write_results(sweep, device) / "rounds.parquet"
    stops = results.with_name(STOPS)
    if sweep.stop is None:
        stops.unlink(missing_ok=True)
    else:
        write_table(stops_of(sweep, device, stops), stops)
    for stem, values in _parameters(sweep, device).items():
        source, target = NOTEBOOKS / f"{stem}.ipynb", sweep.studies / f"{stem}.ipynb"
        stamp = target.with_suffix(".json")
        tables = (results, results.with_name(MISSING), stops)
        seen = _state((source, *tables, sweep.conclusion), {**values, "styles": styles})
        # With the executed copy's own checksum: a damaged one is executed again.
        if stamp.exists() and target.exists() and stamp.read_text(errors="replace") == seen + sha256(target):
            yield Executed(target)
            continue
        # Own images may be named as seen from here.
        executed = _execute(source, target, values, console, folder=Path.cwd(), warm=True)
        if executed.error is None:
            write_text(stamp, seen + sha256(target))  # of what it saw, not of what changed meanwhile
        yield executed


def _execute(source: Path, target: Path, values: Mapping[str, Any], console: Console, **options: Any) -> Executed:
    """Execute a notebook to its end, whatever fails, with options of `execute_notebook`."""
    error = None
    with console.status(f"executing {plain_text(source.name)}"):
        try:
            execute_notebook(source, target, values, keep_going=True, **options)
        except PapermillExecutionError:
            error = _first_error(target)
        except DeadKernelError as failure:
            error = f"its kernel died ({brief_line(str(failure))}); mostly memory is short"
    return Executed(target, error)


def _first_error(notebook: Path) -> str:
    """First cell that failed; the rest may fail for want of it, and papermill names the last."""
    cells = nbformat.read(notebook, as_version=4).cells
    count, failure = next(
        (cell.execution_count, output)
        for cell in cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    )
    return f"cell In [{count}]: {failure.ename}: {brief_line(failure.evalue)}"


def renew_reference(name: str, *, device: str, console: Console) -> Iterator[Executed]:
    """Make your results of a profile the committed reference; yields the notebooks that it executes.

    The sweep is studied, if that was not done. Its tables and figures replace those in `figures/<name>/`. Then the
    committed notebooks that read them are executed in place, and what these draw is added; notebooks that read no sweep
    are taken to be about `default`.

    Args:
        name: of a sweep in `notebooks/sweeps/`.
        device: that the runs were computed on.
        console: where progress goes.

    Raises:
        ConfigError: it is not one of `notebooks/sweeps/`, or runs are missing, or a notebook of the study failed.
    """
    sweep = load_sweep(name)
    if not sweep.is_profile:
        raise ConfigError(f"{name} has no reference: only a sweep in {SWEEPS} has one.")
    reference, lines = FIGURES / sweep.name, read_missing(write_results(sweep, device))
    if lines:
        raise ConfigError(f"{reference} stays as it was. {lines[0]}")
    for executed in execute(name, device=device, console=console):
        yield executed
        if executed.error is not None:
            raise ConfigError(f"{reference} stays as it was: {executed.path} failed.")
    for old in _kept(reference):
        old.unlink()
    copied(_kept(sweep.studies), reference)
    shutil.rmtree(drawings(sweep), ignore_errors=True)
    for source in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        read = papermill.inspect_notebook(source).get("sweep", {"default": "'default'"})
        if ast.literal_eval(read["default"]) == sweep.name:
            yield _execute(source, source, {}, console)
    copied(_kept(drawings(sweep)), reference)


def _kept(folder: Path) -> list[Path]:
    """Tables and figures in a folder, without what is of this machine: its folders, and how it compares."""
    return [file for file in sorted(folder.glob("*")) if file.suffix in KEPT and file.name not in (TABLE, RUNS)]


def _parameters(sweep: Sweep, device: str) -> dict[str, dict[str, Any]]:
    """Of each notebook of a study, what it is about: the data sets and backbones of complete runs."""
    configs = [task.config for task in plan(sweep, device) if task.config is not None and task.is_complete]
    datasets = list(dict.fromkeys(config.dataset for config in configs))
    backbones = [asdict(backbone) for backbone in dict.fromkeys(config.backbone for config in configs)]
    return {
        "01_data": {"datasets": datasets},
        "02_backbone": {"datasets": datasets, "backbones": backbones},
        "04_study": {"sweep": str(sweep.file or sweep.name)},  # the file: these results, not the reference
    }


def brief_line(text: str) -> str:
    """The first line of a message, cut where nobody reads on."""
    return brief(next(iter(text.strip().splitlines()), "")).strip("'\"")


def _state(files: Sequence[Path], parameters: Mapping[str, Any]) -> str:
    """Checksums of the files that exist, and parameters."""
    sums = [[path.name, sha256(path)] for path in files if path.exists()]
    return json.dumps({"files": sums, "parameters": parameters})


def reproduction(name: str, results: Path | None = None, reference: Path | None = None) -> Reproduction:
    """The results of a sweep beside the committed reference; the table goes into their folder, if they are not one.

    Args:
        name: of the sweep, or its YAML file.
        results: folder to compare instead of that of the sweep's study.
        reference: folder to compare with instead of `figures/<name>/`.

    Raises:
        ConfigError: there is no such sweep.
        DataError: a table is missing or cannot be read.
    """
    sweep = load_sweep(name)
    results, reference = results or sweep.studies, reference or reference_folder(sweep)
    if reference is None:
        found = Reproduction(
            f"Nothing to compare with: the sweep {sweep.name} has no committed reference in {FIGURES}. Profiles have, "
            "by their names: " + ", ".join(sorted(path.parent.name for path in FIGURES.glob("*/rounds.parquet"))) + "."
        )
    else:
        found = compare(results, reference)
    if not results.resolve().is_relative_to(FIGURES):
        found.write(results)
    return found


def report(name: str, found: Reproduction, *, device: str) -> Path | None:
    """The executed 04 as one HTML page; written again only if that notebook or the comparison changed.

    Args:
        name: of the sweep, or its YAML file; `execute` must have been called for it.
        found: how its results compare with the reference.
        device: that the runs were computed on.

    Returns:
        None if there is no such notebook.

    Raises:
        DataError: the provenance of a run cannot be read.
    """
    sweep = load_sweep(name)
    notebook = sweep.studies / "04_study.ipynb"
    if not notebook.exists():
        return None
    tasks = plan(sweep, device)
    runs = [task.directory for task in tasks if task.is_complete]
    return write_report(notebook, sweep.name, runs, len(tasks), read_missing(sweep.studies), found.html())
