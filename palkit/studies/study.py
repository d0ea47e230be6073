"""The notebooks of a study: what they show of a sweep, and their execution over its results if something changed."""

import ast
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256 as digest_of
from html import escape
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import nbformat
import pandas as pd
import papermill
from matplotlib.figure import Figure
from nbclient.exceptions import DeadKernelError
from pandas.io.formats.style import Styler
from papermill import PapermillExecutionError
from rich.console import Console
from rich.markup import escape as plain_text

from palkit.data import ORDINAL, ImagePool, load_dataset
from palkit.errors import ConfigError, PalkitError, brief
from palkit.experiments.notebooks import execute_notebook
from palkit.experiments.results import (
    FIGURES,
    MISSING,
    RUNS,
    parts,
    read_missing,
    reference_folder,
    short_paths,
    write_results,
)
from palkit.experiments.sweep import SUFFIXES, SWEEPS, Sweep, load_sweep, plan, sweep_file
from palkit.models.backbones import BackboneConfig
from palkit.storage.files import REPOSITORY, atomic_path, runs_dir, sha256, write_text
from palkit.storage.formats import read_table
from palkit.strategies import STRATEGIES
from palkit.studies import plots
from palkit.studies.peal import CLAIMS, judge
from palkit.studies.readouts import Readout, readout
from palkit.studies.report import write_report
from palkit.studies.reproduce import TABLE, Reproduction
from palkit.studies.reproduce import compare as compare_results
from palkit.studies.statistics import REFERENCE, Ranking, against, area_table, label_saving, rank_strategies
from palkit.studies.statistics.tables import interval_texts, matching

if TYPE_CHECKING:
    from IPython.display import Markdown

NOTEBOOKS = REPOSITORY / "notebooks"
KEPT = (".parquet", ".csv", ".tex", ".png", ".svg")  # of a study, in the reference
FILE_MAX = 60  # characters of a figure's name that say what it shows


Subject = TypeVar("Subject", ImagePool, Readout)
Made = TypeVar("Made")


def figures(sweep: str) -> Path:
    """Folder from which a notebook reads the tables of a sweep and into which it draws; prints whose results they are.

    A name stands for the committed reference in `figures/<name>/`: the folder is a copy of its tables, so that drawing
    leaves the checkout as it is. The YAML file, or the name of a profile without a reference, stands for your results.

    Args:
        sweep: its name or its YAML file.

    Raises:
        ConfigError: there is no such sweep.
    """
    located, reference = _located(sweep), _reference(sweep)
    if reference is None:
        print(f"Results: {located.studies}")
        return located.studies
    print(f"Results: figures/{located.name}, the committed reference")
    return _copy(sorted(reference.glob("*.parquet")), _drawings(located))


def _reference(sweep: str) -> Path | None:
    """Folder of the reference, if that is what a notebook reads that is given this name or file."""
    return None if Path(sweep).suffix.lower() in SUFFIXES else reference_folder(_located(sweep))


def _drawings(sweep: Sweep) -> Path:
    """Folder of what notebooks draw from the reference of a sweep."""
    return runs_dir() / "reference" / sweep.name


def _copy(files: Iterable[Path], folder: Path) -> Path:
    """Put copies of files into a folder, and return it."""
    for file in files:
        with atomic_path(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)
    return folder


def _located(sweep: str) -> Sweep:
    """Name and file of a sweep, whatever stands in the file."""
    file = sweep_file(sweep)
    return Sweep(file.stem, file=file)


def names_as_written() -> None:
    """Have pandas show names in full, and none of them as a formula."""
    pd.set_option("display.html.use_mathjax", False)
    pd.set_option("styler.html.mathjax", False)
    pd.set_option("display.max_colwidth", 200)


def attempt(make: Callable[[], Made], of: str = "") -> Made | None:
    """Result of a call; None, with the reason printed, if there is none.

    Args:
        make: a PalkitError or an OSError of it is a reason.
        of: what it is about, if that must be said.
    """
    try:
        return make()
    except (PalkitError, OSError) as error:
        print(f"Not shown{f' for {of}' if of else ''}: {error}")
        return None


def show(draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame, path: Path, *, divided: bool = True) -> None:
    """Draw a table, display the figures, and store each as PNG and SVG with the runs that it shows.

    Args:
        draw: makes one figure; an error says why the table cannot be drawn, and is printed instead.
        table: with the columns `run`, `dataset`, `backbone`.
        path: of the files, without suffix; the name of the part is added if there are several.
        divided: draw every data set and backbone apart.
    """
    from IPython.display import display

    if table.empty:
        print("Not shown: no run of the sweep is of this kind.")
        return
    drawn = parts(table) if divided else {"": table}
    names = _file_names(path.name, list(drawn))
    for part, rows in drawn.items():
        figure = attempt(partial(draw, rows), part)
        if figure is None:
            continue
        if part:
            plots.entitle(figure, part)
        metadata = {"sweep": path.parent.name, "runs": sorted(rows["run"].unique())}
        plots.save_figure(figure, path.with_name(names[part]), metadata)
        display(figure)


def _file_names(stem: str, parts: Sequence[str]) -> dict[str, str]:
    """A file name for each part: what it is called, with a checksum where that is long or another part's too."""
    room = len(stem) + FILE_MAX
    slugs = {part: re.sub(r"[^\w.]+", "-", f"{stem} {part}".strip()) for part in parts}
    marked = {part: f"{slug[:room]}-{digest_of(part.encode()).hexdigest()[:8]}" for part, slug in slugs.items()}
    alike = Counter(slugs.values())
    return {part: slug if len(slug) <= room and alike[slug] == 1 else marked[part] for part, slug in slugs.items()}


def pools_of(datasets: Sequence[str]) -> list[ImagePool]:
    """Data sets by name; of one that cannot be loaded the reason is printed."""
    found = (attempt(partial(load_dataset, name), name) for name in datasets)
    return [pool for pool in found if pool is not None]


def readouts(datasets: Sequence[str], backbones: Sequence[Mapping[str, Any]], **options: Any) -> list[Readout]:
    """Readouts of every backbone's frozen features on every data set; of one that cannot be made the reason is printed.

    Args:
        datasets: names.
        backbones: fields of `BackboneConfig` that differ from the default.
        options: of `palkit.studies.readouts.readout`.
    """

    def one(dataset: str, config: BackboneConfig) -> Readout:
        return readout(load_dataset(dataset), config, **options)

    pairs = product(datasets, (BackboneConfig(**fields) for fields in backbones))
    found = (attempt(partial(one, dataset, config), f"{dataset}, {config.name}") for dataset, config in pairs)
    return [one for one in found if one is not None]


def show_each(subjects: Sequence[Subject], make: Callable[[Subject], object]) -> None:
    """Display what is made of every subject, under its name if there are several; the reason where it cannot be made.

    Args:
        subjects: pools or readouts.
        make: gives text, which is printed, or what Jupyter displays.
    """
    from IPython.display import HTML, display

    for subject in subjects:
        if len(subjects) > 1:
            display(HTML(f'<h4 class="tex2jax_ignore mathjax_ignore" dir="auto">{escape(subject.name)}</h4>'))
        made = attempt(partial(make, subject))
        if isinstance(made, str):
            print(made)
        elif made is not None:
            display(made)


def overview(rounds: pd.DataFrame) -> pd.DataFrame:
    """Numbers of runs, configurations, seeds and labels in a sweep, for every data set and backbone."""
    configurations = rounds[["adapter", "strategy", "balance"]].apply(tuple, axis=1)
    groups = rounds.assign(configurations=configurations).groupby(["dataset", "backbone"], sort=False)
    table = groups[["run", "configurations", "seed"]].nunique()
    table["labels"] = groups["labels"].agg(lambda labels: f"{labels.min()} to {labels.max()}")
    return table.reset_index().rename(columns={"dataset": "data set", "run": "runs", "seed": "seeds"})


def compare(rounds: pd.DataFrame, column: str, reference: str) -> pd.DataFrame | None:
    """`against` for reading, in points; None, with the reason printed, if nothing can be compared."""
    table = attempt(lambda: against(rounds, column, reference))
    if table is None:
        return None
    for name, title in {"aubc": "over the budget", "final": "after the last round"}.items():
        table[title] = interval_texts(table, name, "+.1f", scale=100)
        table = table.drop(columns=[name, f"{name}_low", f"{name}_high"])
    table["p (Holm)"] = [f"{p:.3f}" if p == p else "" for p in table["p_holm"]]
    return table.drop(columns=["n_seeds", "p_holm"])


def areas(rounds: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Areas under budget curves of every configuration and data set for reading; also as CSV and LaTeX.

    Args:
        rounds: the table of rounds.
        path: of the files, without suffix; the backbone's name is added if there are several.

    Raises:
        ConfigError: as `palkit.studies.statistics.area_table`.
    """
    titles = short_paths(rounds["dataset"].unique())
    several = rounds["backbone"].nunique() > 1
    shown = {}
    for backbone, rows in rounds.groupby("backbone", sort=False):
        cells, clear = (table.rename(columns=titles) for table in plots.wide_areas(area_table(rows)))
        (name,) = _file_names(path.name, [str(backbone) if several else ""]).values()
        plots.table_files(cells, path.with_name(name), bold=clear)
        shown[str(backbone)] = cells.rename_axis(index=None, columns=None)
    return pd.concat(shown) if several else next(iter(shown.values()))


def last_rounds(rounds: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics at the last round of every configuration, mean over seeds; kappa too where classes are grades.

    Args:
        rounds: the table of rounds.
        metrics: columns.
    """
    graded = not ORDINAL.isdisjoint(rounds["dataset"]) and "kappa" not in metrics
    columns = [*metrics, "kappa"] if graded else [*metrics]
    last = rounds[rounds["round"] == rounds.groupby("run")["round"].transform("max")]
    varied = [name for name in ("backbone", "balance") if rounds[name].nunique() > 1]
    table = last.groupby(["dataset", "adapter", "strategy", *varied])[columns].mean()
    if graded:
        table["kappa"] = table["kappa"].where(table.index.isin(ORDINAL, level="dataset"))
    return table


def savings(rounds: pd.DataFrame) -> pd.DataFrame:
    """Labels saved by every configuration of a data set against random choice with a linear probe, unbalanced.

    Where there is no linear probe, and one other adapter alone, random choice with that one is compared with.

    Raises:
        ConfigError: there are no such runs to compare with, or as `palkit.studies.statistics.label_saving`.
    """
    by = plots.configuration_columns(rounds)
    reference = {**REFERENCE, **({"balance": "none"} if "balance" in by else {})}
    if "linear_probe" not in set(rounds["adapter"]) and rounds["adapter"].nunique() == 1:
        reference["adapter"] = rounds["adapter"].iloc[0]
        print(f"Compared with random choice with {reference['adapter']}: there is no linear probe.")
    if matching(rounds, reference).empty:
        raise ConfigError("no run chooses at random with a linear probe, so there is nothing to compare with.")
    return label_saving(rounds, reference, by=by)


def ranking(rounds: pd.DataFrame) -> Ranking:
    """Average ranks of the strategies, or of the adapters where there are hardly any strategies to rank."""
    adapters = rounds["strategy"].nunique() < 3 <= rounds["adapter"].nunique()
    return rank_strategies(rounds, treatments=("adapter" if adapters else "strategy",))


def missing(sweep: str) -> list[str]:
    """Sentences on planned runs that are not among the results that a notebook reads: their number, and the reasons.

    Args:
        sweep: its name or its YAML file.

    Raises:
        ConfigError: there is no such sweep.
    """
    return read_missing(_reference(sweep) or _located(sweep).studies)


def one_configuration(rounds: pd.DataFrame) -> frozenset[str]:
    """Runs of every data set and backbone that differ in strategy and seed alone; prints which these are.

    They have no class balance where there are such runs, else the balance that is the first in the alphabet, and of
    these the adapter that is the last.

    Args:
        rounds: the table of rounds.
    """
    chosen: list[str] = []
    for part, rows in parts(rounds).items():
        balance = "none" if (rows["balance"] == "none").any() else rows["balance"].min()
        balanced = rows[rows["balance"] == balance]
        adapter = balanced["adapter"].max()
        name = plots.configuration_name(adapter, balance) + (", without class balance" if balance == "none" else "")
        print(f"Shown{f' of {part}' if part else ''}: {name}")
        chosen += balanced.loc[balanced["adapter"] == adapter, "run"].unique().tolist()
    return frozenset(chosen)


def picks(selections: pd.DataFrame) -> pd.DataFrame:
    """Labels bought per strategy and class of a data set, mean over runs; named for `plots.picks_by_class`."""
    classes = load_dataset(selections["dataset"].iloc[0]).class_names
    counts = selections.groupby(["run", "strategy", "label"]).size().unstack(fill_value=0)
    return (
        counts.reindex(columns=range(len(classes)), fill_value=0).set_axis(classes, axis=1).groupby("strategy").mean()
    )


def claims_of(folder: Path, rounds: pd.DataFrame | None = None) -> Styler:
    """The paper's claims, the evidence for each and verdicts; also as CSV and LaTeX.

    Args:
        folder: of a sweep's results.
        rounds: those of its rounds that the claims are about; None for all.

    Raises:
        ConfigError: as `palkit.studies.peal.judge`.
    """
    rounds = read_table(folder / "rounds.parquet") if rounds is None else rounds
    claims = judge(rounds)[["claim", "evidence", "verdict"]]
    plots.table_files(claims, folder / "claims")
    look = claims.style.set_uuid("claims").hide(axis="index").format(escape="html")
    return look.set_properties(None, **{"text-align": "left"})


def claims_by_set(rounds: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Every claim of the paper that can be tested, judged on each data set alone, after Holm's correction within it.

    Args:
        rounds: the table of rounds.
        metric: whose areas, a share; data sets that do not have it are left out.

    Returns:
        One row per claim and one column per data set: the difference of areas in points with its 95 % t interval, the
        verdict, and in brackets the true difference that the design finds four times in five.

    Raises:
        ConfigError: as `palkit.studies.peal.judge`.
    """
    columns = {}
    has_it = rounds[metric].notna().groupby(rounds["dataset"]).transform("any")
    for dataset, rows in rounds[has_it].groupby("dataset", sort=False):
        found = judge(rows, metric).set_index("claim").dropna(subset="mean")
        texts = interval_texts(
            found.rename(columns={"low": "mean_low", "high": "mean_high"}), "mean", "+.1f", scale=100
        )
        cells = zip(texts, found["verdict"], 100 * found["detectable"], strict=True)
        columns[dataset] = pd.Series([f"{text} {verdict} ({size:.1f})" for text, verdict, size in cells], found.index)
    order = [claim.text for claim in CLAIMS if any(claim.text in found for found in columns.values())]
    return pd.DataFrame(columns).reindex(order).fillna("").rename_axis(index=None)


def conclusion(sweep: str) -> "Markdown":
    """Conclusion that a person wrote into a file beside the sweep, with its name and the suffix `.md`, if any.

    Args:
        sweep: its name or its YAML file.

    Raises:
        ConfigError: there is no such sweep.
    """
    from IPython.display import Markdown

    located = _located(sweep)
    if located.conclusion.exists():
        own = _reference(sweep) is None and reference_folder(located)
        about = "Written about the committed reference:\n\n" if own else ""
        return Markdown(about + located.conclusion.read_text(encoding="utf-8"))
    return Markdown("Nobody has written a conclusion yet: put one into a file beside the sweep, with the suffix `.md`.")


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
    for stem, values in _parameters(sweep, device).items():
        source, target = NOTEBOOKS / f"{stem}.ipynb", sweep.studies / f"{stem}.ipynb"
        stamp = target.with_suffix(".json")
        seen = _state((source, results, results.with_name(MISSING), sweep.conclusion), {**values, "styles": styles})
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
    _copy(_kept(sweep.studies), reference)
    shutil.rmtree(_drawings(sweep), ignore_errors=True)
    for source in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        if _sweep_of(source) == sweep.name:
            yield _execute(source, source, {}, console)
    _copy(_kept(_drawings(sweep)), reference)


def _kept(folder: Path) -> list[Path]:
    """Tables and figures in a folder, without what is of this machine: its folders, and how it compares."""
    return [file for file in sorted(folder.glob("*")) if file.suffix in KEPT and file.name not in (TABLE, RUNS)]


def _sweep_of(notebook: Path) -> str:
    """Name of the sweep that a committed notebook reads."""
    sweep = papermill.inspect_notebook(notebook).get("sweep", {"default": "'default'"})
    return str(ast.literal_eval(sweep["default"]))


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
        found = compare_results(results, reference)
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
