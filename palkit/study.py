"""Execute the notebooks of a study over the results of a sweep, and only if something changed."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from palkit.files import REPOSITORY, runs_dir, sha256, write_text
from palkit.notebooks import execute_notebook
from palkit.report import write_report
from palkit.results import FIGURES, write_results
from palkit.sweep import load_sweep, plan

NOTEBOOKS = REPOSITORY / "notebooks"


def figures(sweep: str) -> Path:
    """Folder of the figures and tables of a sweep, given its name or its YAML file."""
    return FIGURES / Path(sweep).name.removesuffix(".yaml")


def _folder(sweep: str) -> Path:
    """Folder of the executed notebooks and the report of a sweep, given its name."""
    return runs_dir() / "studies" / sweep


def execute(name: str, *, in_place: bool, device: str, console: Console) -> Iterator[Path]:
    """Execute 01, 02 and 04 for a sweep, 03 too if in place; yields each executed notebook.

    Args:
        name: of the sweep; its results must be there.
        in_place: refresh the committed notebooks, with their own parameters, instead of writing copies.
        device: that the runs were computed on.
        console: where progress goes.
    """
    sweep = load_sweep(name)
    results = write_results(sweep, device) / "rounds.parquet"
    parameters: dict[str, dict[str, str]] = {"01_data": {}, "02_backbone": {}, "04_study": {"sweep": sweep.name}}
    if "dataset" in sweep.base:
        parameters["01_data"] = parameters["02_backbone"] = {"dataset": sweep.base["dataset"]}
    if in_place:
        parameters = {path.stem: {} for path in sorted(NOTEBOOKS.glob("0*.ipynb"))}
    for stem, values in parameters.items():
        source = NOTEBOOKS / f"{stem}.ipynb"
        target = source if in_place else _folder(sweep.name) / source.name
        stamp = target.with_suffix(".json")
        state = json.dumps({"notebook": sha256(source), "results": sha256(results), "parameters": values})
        if in_place or not (target.exists() and stamp.exists() and stamp.read_text() == state):
            with console.status(f"executing {source.name}"):
                execute_notebook(source, target, values)
            if not in_place:
                write_text(stamp, state)
        yield target


def report(name: str, *, device: str) -> Path:
    """The executed 04 as one HTML page; written again only if that notebook changed.

    Args:
        name: of the sweep; `execute` must have been called for it.
        device: that the runs were computed on.

    Raises:
        DataError: the provenance of a run cannot be read.
    """
    sweep = load_sweep(name)
    tasks = plan(sweep, device)
    runs = [task.directory for task in tasks if task.is_complete]
    return write_report(_folder(sweep.name) / "04_study.ipynb", sweep.name, runs, len(tasks))
