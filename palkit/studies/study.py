"""What the notebooks of a study show of a sweep."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256 as digest_of
from html import escape
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from palkit.data import ORDINAL, ImagePool, load_dataset
from palkit.errors import ConfigError, PalkitError
from palkit.experiments.results import parts, read_missing, reference_folder, short_paths
from palkit.experiments.sweep import SUFFIXES, Sweep, sweep_file
from palkit.models.backbones import BackboneConfig
from palkit.storage.files import atomic_path, runs_dir
from palkit.storage.formats import read_table
from palkit.studies import plots
from palkit.studies.peal import CLAIMS, judge
from palkit.studies.readouts import Readout, readout
from palkit.studies.statistics import REFERENCE, Ranking, against, area_table, label_saving, rank_strategies
from palkit.studies.statistics.tables import interval_texts, matching

if TYPE_CHECKING:
    from IPython.display import Markdown

FILE_MAX = 60  # characters of a figure's name that say what it shows
STOPS = "stops.parquet"  # in the folder of the results, if the sweep has rules to stop by

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
    return copied(sorted(reference.glob("*.parquet")), drawings(located))


def _reference(sweep: str) -> Path | None:
    """Folder of the reference, if that is what a notebook reads that is given this name or file."""
    return None if Path(sweep).suffix.lower() in SUFFIXES else reference_folder(_located(sweep))


def drawings(sweep: Sweep) -> Path:
    """Folder of what notebooks draw from the reference of a sweep."""
    return runs_dir() / "reference" / sweep.name


def copied(files: Iterable[Path], folder: Path) -> Path:
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


def stops(folder: Path, rounds: pd.DataFrame) -> pd.DataFrame:
    """How the rules of a sweep's `stop:` did with every configuration.

    Args:
        folder: of its results.
        rounds: the table of rounds.

    Returns:
        A row per configuration, rule and target: `runs`; `needed` and `reach` (median of the training labels at which
        the accuracy first is what is wanted, and share of runs in which it ever is); `stop` (share of runs that the
        rule stops) and of these the medians of `labels` (to train on) and `tests`, the mean `accuracy` in % and, of
        rules with a target, `wrong` (share of stops below it).

    Raises:
        ConfigError: the sweep has no rules.
    """
    if not (folder / STOPS).exists():
        raise ConfigError("the sweep has no `stop:`, such as {accuracy: [0.8, 0.9]}, see docs/sweeps.md.")
    by = [name for name in ("dataset", "backbone", "adapter", "strategy", "balance") if rounds[name].nunique() > 1]
    runs = rounds.drop_duplicates("run")[["run", *by]]
    table = read_table(folder / STOPS).merge(runs, on="run")
    table = table.assign(
        accuracy=100 * table["accuracy"].astype(float),
        reaches=table["needed"].notna().astype(float).where(table["target"].notna()),
        wrong=(table["accuracy"] < table["target"]).astype(float).where(table["stopped"] & table["target"].notna()),
    )
    return table.groupby([*by, "rule", "target"], sort=False, dropna=False).agg(
        runs=("run", "nunique"),
        reach=("reaches", "mean"),
        needed=("needed", "median"),
        stop=("stopped", "mean"),
        labels=("labels", "median"),
        tests=("tests", "median"),
        accuracy=("accuracy", "mean"),
        wrong=("wrong", "mean"),
    )


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
    counts = counts.reindex(columns=range(len(classes)), fill_value=0).set_axis(classes, axis=1)
    return counts.groupby("strategy").mean()


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
        ends = found.rename(columns={"low": "mean_low", "high": "mean_high"})
        texts = interval_texts(ends, "mean", "+.1f", scale=100)
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
