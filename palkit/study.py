"""Execute the notebooks of a study over the results of a sweep, and only if something changed."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256 as digest_of
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pandas as pd
from matplotlib.figure import Figure
from nbclient.exceptions import DeadKernelError
from pandas.io.formats.style import Styler
from papermill import PapermillExecutionError
from rich.console import Console
from rich.markup import escape as plain_text

from palkit.backbones import BackboneConfig
from palkit.claims import judge
from palkit.datasets import ImagePool, load_dataset
from palkit.errors import ConfigError, PalkitError, brief
from palkit.files import REPOSITORY, sha256, write_text
from palkit.formats import read_table
from palkit.notebooks import execute_notebook
from palkit.plots import configuration_columns, configuration_name, entitle, save_figure, table_files, wide_areas
from palkit.readouts import Readout, readout
from palkit.report import write_report
from palkit.results import MISSING, parts, read_missing, results_folder, short_paths, write_results
from palkit.statistics import REFERENCE, Ranking, against, area_table, label_saving_intervals, rank_strategies
from palkit.sweep import Sweep, load_sweep, plan, sweep_file

if TYPE_CHECKING:
    from IPython.display import Markdown

NOTEBOOKS = REPOSITORY / "notebooks"


FILE_MAX = 60  # characters of a figure's name that say what it shows


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str:
        """What readers call it."""
        ...


Subject = TypeVar("Subject", bound=Named)
Made = TypeVar("Made")


def figures(sweep: str) -> Path:
    """Folder of the figures and tables of a sweep, given its name or its YAML file.

    Raises:
        ConfigError: there is no such sweep.
    """
    return results_folder(_located(sweep))


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
    """What a call makes; None, with the reason printed, if it cannot.

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
        figure = attempt(lambda rows=rows: draw(rows), part)  # type: ignore[misc]
        if figure is None:
            continue
        if part:
            entitle(figure, part)
        metadata = {"sweep": path.parent.name, "runs": sorted(rows["run"].unique())}
        save_figure(figure, path.with_name(names[part]), metadata)
        display(figure)


def _file_names(stem: str, parts: Sequence[str]) -> dict[str, str]:
    """A file name for each part: what it is called, with a checksum where that is long or another part's too."""
    slugs = {part: re.sub(r"[^\w.]+", "-", f"{stem} {part}".strip()) for part in parts}
    unique = {part: slug for part, slug in slugs.items() if len(slug) <= len(stem) + FILE_MAX}
    taken = list(unique.values())
    return {
        part: slug
        if taken.count(slug) == 1
        else f"{slug[: len(stem) + FILE_MAX]}-{digest_of(part.encode()).hexdigest()[:8]}"
        for part, slug in slugs.items()
    }


def pools_of(datasets: Sequence[str]) -> list[ImagePool]:
    """Data sets by name; of one that cannot be loaded the reason is printed."""
    found = (attempt(lambda name=name: load_dataset(name), name) for name in datasets)  # type: ignore[misc]
    return [pool for pool in found if pool is not None]


def readouts(datasets: Sequence[str], backbones: Sequence[Mapping[str, Any]], **options: Any) -> list[Readout]:
    """What every backbone's frozen features are worth on every data set; why not, where that cannot be found out.

    Args:
        datasets: names.
        backbones: fields of `BackboneConfig` that differ from the default.
        options: of `palkit.readouts.readout`.
    """
    found = []
    for dataset in datasets:
        for fields in backbones:
            config = BackboneConfig(**fields)
            of = f"{dataset}, {config.name}"
            found.append(attempt(lambda d=dataset, c=config: readout(load_dataset(d), c, **options), of))  # type: ignore[misc]
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
        made = attempt(lambda subject=subject: make(subject))  # type: ignore[misc]
        if isinstance(made, str):
            print(made)
        elif made is not None:
            display(made)


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
    table = attempt(lambda: against(rounds, column, reference))
    if table is None:
        return None
    for name, title in {"aubc": "over the budget", "final": "after the last round"}.items():
        ends = 100 * table[[name, f"{name}_low", f"{name}_high"]]
        table[title] = [
            f"{mean:+.1f}" + (f" [{low:+.1f}, {high:+.1f}]" if low == low else "")  # one seed has no interval
            for mean, low, high in ends.itertuples(index=False)
        ]
        table = table.drop(columns=list(ends))
    return table.drop(columns="n_seeds")


def areas(rounds: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Areas under budget curves of every configuration and data set for reading; also as CSV and LaTeX.

    Args:
        rounds: the table of rounds.
        path: of the files, without suffix; the backbone's name is added if there are several.

    Raises:
        ConfigError: as `palkit.statistics.area_table`.
    """
    titles = short_paths(rounds["dataset"].unique())
    several = rounds["backbone"].nunique() > 1
    shown = {}
    for backbone, rows in rounds.groupby("backbone", sort=False):
        cells, clear = (table.rename(columns=titles) for table in wide_areas(area_table(rows)))
        (name,) = _file_names(path.name, [str(backbone) if several else ""]).values()
        table_files(cells, path.with_name(name), bold=clear)
        shown[str(backbone)] = cells.rename_axis(index=None, columns=None)
    return pd.concat(shown) if several else next(iter(shown.values()))


def last_rounds(rounds: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics at the last round of every configuration, mean over seeds.

    Args:
        rounds: the table of rounds.
        metrics: columns.
    """
    last = rounds[rounds["round"] == rounds.groupby("run")["round"].transform("max")]
    varied = [name for name in ("backbone", "balance") if rounds[name].nunique() > 1]
    return last.groupby(["dataset", "adapter", "strategy", *varied])[list(metrics)].mean()


def savings(rounds: pd.DataFrame) -> pd.DataFrame:
    """Labels saved by every configuration of a data set against random choice with a linear probe, unbalanced.

    Raises:
        ConfigError: there are no such runs to compare with, or as `palkit.statistics.label_saving_intervals`.
    """
    by = configuration_columns(rounds)
    reference = {**REFERENCE, **({"balance": "none"} if "balance" in by else {})}
    if not (rounds[list(reference)] == pd.Series(reference)).all(axis=1).any():
        raise ConfigError("no run chooses at random with a linear probe, so there is nothing to compare with.")
    return label_saving_intervals(rounds, reference, by=by)


def ranking(rounds: pd.DataFrame) -> Ranking:
    """Average ranks of the strategies, or of the adapters where there are hardly any strategies to rank."""
    adapters = rounds["strategy"].nunique() < 3 <= rounds["adapter"].nunique()
    return rank_strategies(rounds, treatments=("adapter" if adapters else "strategy",))


def missing(sweep: str) -> list[str]:
    """How many planned runs are not among the stored results of a sweep, and why, a sentence each; none if all are.

    Args:
        sweep: its name or its YAML file.

    Raises:
        ConfigError: there is no such sweep.
    """
    return read_missing(figures(sweep))


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
        name = configuration_name(adapter, balance) + (", without class balance" if balance == "none" else "")
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


def claims_of(folder: Path) -> Styler:
    """The paper's claims, the evidence in the stored rounds of a sweep, and verdicts; also as CSV and LaTeX.

    Raises:
        ConfigError: as `palkit.claims.judge`.
    """
    claims = judge(read_table(folder / "rounds.parquet"))[["claim", "evidence", "verdict"]]
    table_files(claims, folder / "claims")
    look = claims.style.set_uuid("claims").hide(axis="index").format(escape="html")
    return look.set_properties(None, **{"text-align": "left"})


def conclusion(sweep: str) -> "Markdown":
    """What a person wrote about a sweep in a file beside it that has its name and the suffix `.md`, if anything.

    Args:
        sweep: its name or its YAML file.

    Raises:
        ConfigError: there is no such sweep.
    """
    from IPython.display import Markdown

    path = _located(sweep).conclusion
    if path.exists():
        return Markdown(path.read_text(encoding="utf-8"))
    return Markdown("Nobody has written a conclusion yet: put one into a file beside the sweep, with the suffix `.md`.")


@dataclass(frozen=True)
class Executed:
    """A notebook of a study.

    Attributes:
        path: of the executed copy.
        error: the cell that failed and why, if one did.
    """

    path: Path
    error: str | None = None


def execute(name: str, *, in_place: bool, device: str, console: Console) -> Iterator[Executed]:
    """Execute 01, 02 and 04 for a sweep, 03 too if in place; yields each, also one of which a cell failed.

    Args:
        name: of the sweep, or its YAML file; its results must be there.
        in_place: refresh the committed notebooks, with their own parameters, instead of writing copies.
        device: that the runs were computed on.
        console: where progress goes.

    Raises:
        ConfigError: there is no such sweep, or no run of it is complete.
    """
    sweep = load_sweep(name)
    results = write_results(sweep, device) / "rounds.parquet"
    parameters: dict[str, dict[str, Any]] = _parameters(sweep, device)
    if in_place:
        parameters = {path.stem: {} for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))}
    for stem, values in parameters.items():
        source = NOTEBOOKS / f"{stem}.ipynb"
        target = source if in_place else sweep.studies / source.name
        stamp = target.with_suffix(".json")
        # With the executed copy's own checksum: a damaged one is executed again.
        files = (source, results, results.with_name(MISSING), sweep.conclusion, target)
        error = None
        if in_place or not (stamp.exists() and stamp.read_text(errors="replace") == _state(files, values)):
            with console.status(f"executing {plain_text(source.name)}"):
                try:
                    # Own images may be named as seen from here; committed notebooks know only their own folder.
                    execute_notebook(
                        source,
                        target,
                        values,
                        folder=None if in_place else Path.cwd(),
                        warm=not in_place,
                        keep_going=True,
                    )
                except PapermillExecutionError as failure:
                    error = f"cell In [{failure.exec_count}]: {failure.ename}: {brief_line(failure.evalue)}"
                except DeadKernelError as failure:
                    error = f"its kernel died ({brief_line(str(failure))}); mostly memory is short"
            if not in_place and error is None:
                write_text(stamp, _state(files, values))
        yield Executed(target, error)


def _parameters(sweep: Sweep, device: str) -> dict[str, dict[str, Any]]:
    """Of each notebook of a study, what it is about: the data sets and backbones of complete runs."""
    configs = [task.config for task in plan(sweep, device) if task.config is not None and task.is_complete]
    datasets = list(dict.fromkeys(config.dataset for config in configs))
    backbones = [asdict(backbone) for backbone in dict.fromkeys(config.backbone for config in configs)]
    own = None if sweep.is_profile else sweep.file
    return {
        "01_data": {"datasets": datasets},
        "02_backbone": {"datasets": datasets, "backbones": backbones},
        "04_study": {"sweep": sweep.name if own is None else str(own)},
    }


def brief_line(text: str) -> str:
    """The first line of a message, cut where nobody reads on."""
    return brief(next(iter(text.strip().splitlines()), "")).strip("'\"")


def _state(files: Sequence[Path], parameters: Mapping[str, Any]) -> str:
    """Checksums of the files that exist, and parameters."""
    sums = [[path.name, sha256(path)] for path in files if path.exists()]
    return json.dumps({"files": sums, "parameters": parameters})


def report(name: str, *, device: str) -> Path | None:
    """The executed 04 as one HTML page; written again only if that notebook changed. None if there is no such notebook.

    Args:
        name: of the sweep, or its YAML file; `execute` must have been called for it.
        device: that the runs were computed on.

    Raises:
        DataError: the provenance of a run cannot be read.
    """
    sweep = load_sweep(name)
    notebook = sweep.studies / "04_study.ipynb"
    if not notebook.exists():
        return None
    tasks = plan(sweep, device)
    runs = [task.directory for task in tasks if task.is_complete]
    return write_report(notebook, sweep.name, runs, len(tasks), read_missing(results_folder(sweep)))
