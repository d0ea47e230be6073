"""Execute the notebooks of a study over the results of a sweep, and only if something changed."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from rich.console import Console

from palkit.claims import judge
from palkit.datasets import load_dataset
from palkit.errors import ConfigError
from palkit.files import REPOSITORY, runs_dir, sha256, write_text
from palkit.formats import read_table
from palkit.notebooks import execute_notebook
from palkit.plots import configuration_columns, save_figure, table_files
from palkit.report import write_report
from palkit.results import FIGURES, parts, write_results
from palkit.statistics import REFERENCE, Ranking, against, label_saving_intervals, rank_strategies
from palkit.sweep import SWEEPS, load_sweep, plan

if TYPE_CHECKING:
    from IPython.display import Markdown

NOTEBOOKS = REPOSITORY / "notebooks"


def figures(sweep: str) -> Path:
    """Folder of the figures and tables of a sweep, given its name or its YAML file."""
    return FIGURES / Path(sweep).name.removesuffix(".yaml")


def show(draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame, path: Path, *, divided: bool = True) -> None:
    """Draw a table, display the figures, and store each as PNG and SVG with the runs that it shows.

    Args:
        draw: makes one figure; a ConfigError says why the table cannot be drawn, and is printed instead.
        table: with the columns `run`, `dataset`, `backbone`.
        path: of the files, without suffix; the name of the part is added if there are several.
        divided: draw every data set and backbone apart.
    """
    from IPython.display import display

    for part, rows in (parts(table) if divided else {"": table}).items():
        try:
            figure = draw(rows)
        except ConfigError as error:
            print(f"Not shown{f' for {part}' if part else ''}: {error}")
            continue
        if part:
            figure.suptitle(part, fontsize=8)
        name = re.sub(r"[^\w.]+", "-", f"{path.name} {part}".strip())
        metadata = {"sweep": path.parent.name, "runs": sorted(rows["run"].unique())}
        save_figure(figure, path.with_name(name), metadata)
        display(figure)


def overview(rounds: pd.DataFrame) -> pd.DataFrame:
    """What a sweep holds: of every data set and backbone the numbers of runs, configurations, seeds and labels."""
    return pd.DataFrame(
        [
            {
                "data set": rows["dataset"].iloc[0],
                "backbone": rows["backbone"].iloc[0],
                "runs": rows["run"].nunique(),
                "configurations": len(rows[["adapter", "strategy", "balance"]].drop_duplicates()),
                "seeds": rows["seed"].nunique(),
                "labels": f"{rows['labels'].min()} to {rows['labels'].max()}",
            }
            for rows in parts(rounds).values()
        ]
    )


def compare(rounds: pd.DataFrame, column: str, reference: str) -> pd.DataFrame | None:
    """`palkit.statistics.against` for reading, in points; None, with the reason printed, if nothing can be compared."""
    try:
        table = against(rounds, column, reference)
    except ConfigError as error:
        print(f"Not shown: {error}")
        return None
    for name, title in {"aubc": "over the budget", "final": "after the last round"}.items():
        ends = 100 * table[[name, f"{name}_low", f"{name}_high"]]
        table[title] = [f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" for mean, low, high in ends.itertuples(index=False)]
        table = table.drop(columns=list(ends))
    return table.drop(columns="n_seeds")


def savings(rounds: pd.DataFrame) -> pd.DataFrame:
    """Labels saved by every configuration of a data set against random choice with a linear probe, unbalanced."""
    by = configuration_columns(rounds)
    return label_saving_intervals(rounds, {**REFERENCE, **({"balance": "none"} if "balance" in by else {})}, by=by)


def ranking(rounds: pd.DataFrame) -> Ranking:
    """Average ranks of the strategies, or of the adapters where there are hardly any strategies to rank."""
    adapters = rounds["strategy"].nunique() < 3 <= rounds["adapter"].nunique()
    return rank_strategies(rounds, treatments=("adapter" if adapters else "strategy",))


def picks(selections: pd.DataFrame) -> pd.DataFrame:
    """Labels bought per strategy and class of a data set, mean over runs; named for `plots.picks_by_class`."""
    classes = load_dataset(selections["dataset"].iloc[0]).class_names
    counts = selections.groupby(["run", "strategy", "label"]).size().unstack(fill_value=0)
    return (
        counts.reindex(columns=range(len(classes)), fill_value=0).set_axis(classes, axis=1).groupby("strategy").mean()
    )


def claims_of(folder: Path) -> Styler:
    """The paper's claims, the evidence in the stored rounds of a sweep, and verdicts; also as CSV and LaTeX."""
    claims = judge(read_table(folder / "rounds.parquet"))[["claim", "evidence", "verdict"]]
    table_files(claims, folder / "claims")
    look = claims.style.set_uuid("claims").hide(axis="index").format(escape="html")
    return look.set_properties(None, **{"text-align": "left"})


def conclusion(sweep: str) -> "Markdown":
    """What a person wrote about a sweep in `notebooks/sweeps/<sweep>.md`, if anything."""
    from IPython.display import Markdown

    path = SWEEPS / f"{sweep}.md"
    if path.exists():
        return Markdown(path.read_text(encoding="utf-8"))
    return Markdown("Nobody has written a conclusion yet: put one into a file beside the sweep, with the suffix `.md`.")


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
        parameters = {path.stem: {} for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))}
    for stem, values in parameters.items():
        source = NOTEBOOKS / f"{stem}.ipynb"
        target = source if in_place else _folder(sweep.name) / source.name
        stamp = target.with_suffix(".json")
        written = SWEEPS / f"{sweep.name}.md"
        # With the executed copy's own checksum: a damaged one is executed again.
        files = (source, results, written, target)
        if in_place or not (stamp.exists() and stamp.read_text(errors="replace") == _state(files, values)):
            with console.status(f"executing {source.name}"):
                # Own images may be named as seen from here; committed notebooks know only their own folder.
                execute_notebook(source, target, values, folder=None if in_place else Path.cwd(), warm=not in_place)
            if not in_place:
                write_text(stamp, _state(files, values))
        yield target


def _state(files: Sequence[Path], parameters: Mapping[str, str]) -> str:
    """Checksums of the files that exist, and parameters."""
    sums = [[path.name, sha256(path)] for path in files if path.exists()]
    return json.dumps({"files": sums, "parameters": parameters})


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
