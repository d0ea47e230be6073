"""Every figure of the notebooks: data in, a matplotlib Figure out.

Figures use the object-oriented interface, so nothing is registered with pyplot, shown or leaked; a notebook
displays a figure by returning it (after `%matplotlib inline`). They are 7 inches wide or less, the text width
of a page, in 8 point type. A strategy has the same colour and marker in every figure, and an adapter has its
own panel or its own filling, so that figures stay readable without colour.
"""

import json
import os
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from palkit.errors import ConfigError
from palkit.statistics import curves

Parameters = ParamSpec("Parameters")

WIDTH = 7.0
PER_ROW = 4

# Okabe & Ito's colours for the strategies of the default sweep, Paul Tol's "muted" ones for the others: both
# sets are distinct for every kind of colour vision. More strategies than that cannot be told apart by colour,
# which is why each also has a marker.
STRATEGY_STYLES = {
    "random": ("#595959", "X"),
    "entropy": ("#E69F00", "o"),
    "margin": ("#56B4E9", "s"),
    "featdist": ("#009E73", "^"),
    "coreset": ("#CC79A7", "D"),
    "badge": ("#D55E00", "v"),
    "least_confidence": ("#DDCC77", "P"),
    "bald": ("#0072B2", "<"),
    "batchbald": ("#332288", ">"),
    "bait": ("#882255", "p"),
    "typiclust": ("#117733", "h"),
    "probcover": ("#44AA99", "o"),
    "maxherding": ("#999933", "s"),
    "uherding": ("#AA4499", "^"),
    "dropquery": ("#661100", "D"),
    "alfamix": ("#6699CC", "v"),
    "cluster_margin": ("#888888", "P"),
    "falcun": ("#88CCEE", "<"),
    "clue": ("#CC6677", ">"),
}
OTHER_COLOURS = ("#332288", "#117733", "#44AA99", "#882255", "#AA4499", "#661100", "#6699CC", "#999933")
OTHER_MARKERS = ("o", "s", "^", "D", "v", "<", ">", "P", "p", "h")

# Things that are no strategies (pooling, cost, classes) keep away from the strategies' meaning of colour.
SERIES_COLOURS = ("#004488", "#BB5566", "#DDAA33", "#000000", "#7799BB")
COST_COLOURS = {"fit_s": "#004488", "score_s": "#6699CC", "select_s": "#DDAA33"}
CLASS_COLOURS = (
    "#332288",
    "#88CCEE",
    "#117733",
    "#DDCC77",
    "#CC6677",
    "#AA4499",
    "#999933",
    "#882255",
    "#44AA99",
    "#888888",
)
CLASS_MARKERS = ("o", "^", "s", "D", "v")
INK = "#333333"
BLUES = LinearSegmentedColormap.from_list("palkit", ["#FFFFFF", "#6699CC", "#004488"])

METRIC_LABELS = {
    "accuracy": "accuracy (%)",
    "balanced_accuracy": "balanced accuracy (%)",
    "macro_f1": "macro F1 (%)",
    "kappa": "quadratic weighted kappa",
    "nll": "negative log-likelihood (nats)",
    "brier": "Brier score",
    "ece": "expected calibration error (%)",
}
NAMES = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "badge": "BADGE", "bald": "BALD", "bait": "BAIT"}

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 200,
    # Without it the ids inside an SVG are random and no two files are equal.
    "svg.hashsalt": "palkit",
}


def _styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw under our settings whatever those of the caller are, and leave these as they were."""

    @wraps(draw)
    def inner(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return inner


def strategy_style(name: str) -> tuple[str, str]:
    """Colour and marker of a strategy, the same in every figure and process, also for names not listed."""
    if name in STRATEGY_STYLES:
        return STRATEGY_STYLES[name]
    # Unlike `hash`, a checksum of the name is the same in every process.
    marker, colour = divmod(zlib.crc32(name.encode()), len(OTHER_COLOURS))
    return OTHER_COLOURS[colour], OTHER_MARKERS[marker % len(OTHER_MARKERS)]


@_styled
def budget_curves(rounds: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Metric against labels bought: one panel per adapter, one line per strategy, bands of 95 % intervals.

    Args:
        rounds: table of rounds of one data set and backbone (see `palkit.statistics`).
        metric: column to draw.

    Raises:
        ConfigError: as `palkit.statistics.curves`.
    """
    table = curves(rounds, metric, ("adapter", "strategy"))
    adapters = sorted(table["adapter"].unique())
    figure, panels = _panels(len(adapters), 2.8)
    handles: dict[str, Line2D] = {}
    for number, (axes, adapter) in enumerate(zip(panels, adapters, strict=True)):
        lines = table[table["adapter"] == adapter]
        for strategy, line in lines.groupby("strategy"):
            handles[str(strategy)] = _curve(axes, line, str(strategy))
        axes.set_title(f"{_title(adapter)} ({_seeds(lines['n_seeds'])})")
        axes.set_xlabel("labels bought")
        _ticks_at(axes, lines["labels"])
        _metric_axis(axes, "y", metric, labelled=number % PER_ROW == 0)
        axes.grid()
    _legend_below(figure, [handles[name] for name in sorted(handles, key=_random_first)])
    return figure


def _curve(axes: Axes, line: pd.DataFrame, strategy: str) -> Line2D:
    colour, marker = strategy_style(strategy)
    axes.fill_between(line["labels"], line["low"], line["high"], color=colour, alpha=0.13, linewidth=0)
    # The baseline is dashed: it is what every other line is read against.
    (handle,) = axes.plot(
        line["labels"],
        line["mean"],
        color=colour,
        marker=marker,
        linestyle="--" if strategy == "random" else "-",
        markeredgecolor="white",
        markeredgewidth=0.4,
        label=_title(strategy),
    )
    return handle


@_styled
def area_under_curves(summary: pd.DataFrame) -> Figure:
    """Area under the budget curve and final value of every configuration, best area first, with intervals.

    Args:
        summary: from `palkit.statistics.summarise` by `("adapter", "strategy")`.

    Raises:
        ConfigError: columns are missing or there are no rows.
    """
    intervals = [f"{value}{end}" for value in ("aubc", "final") for end in ("", "_low", "_high")]
    _check(summary, ["adapter", "strategy", "metric", *intervals], "summary")
    metric = summary["metric"].iloc[0]
    table = summary.sort_values("aubc", kind="stable")
    figure, panels = _panels(2, 0.8 + 0.19 * len(table))
    for axes, value, title in zip(
        panels, ("aubc", "final"), ("area under the budget curve", "after the last round"), strict=True
    ):
        for row, (_, line) in enumerate(table.iterrows()):
            colour, _ = strategy_style(line["strategy"])
            spread = [[line[value] - line[f"{value}_low"]], [line[f"{value}_high"] - line[value]]]
            axes.errorbar(
                line[value],
                row,
                xerr=spread,
                color=colour,
                marker="o",
                markersize=4.5,
                markerfacecolor=_filling(line["adapter"], colour),
                elinewidth=1,
            )
        axes.set_title(title)
        axes.grid()
        _metric_axis(axes, "x", metric)
    _configurations(panels[0], table)
    return figure


@_styled
def pairwise(penalties: pd.DataFrame) -> Figure:
    """Pairwise penalty matrix, strategies with the lowest column mean (beaten least) first.

    Args:
        penalties: from `palkit.statistics.penalty_matrix`, with its `attrs`.
    """
    off_diagonal = penalties.mask(np.eye(len(penalties), dtype=bool))
    means = off_diagonal.mean().sort_values(kind="stable")
    order = list(means.index)
    shown = pd.concat([off_diagonal.loc[order, order], means.to_frame("mean").T])
    figure = Figure(figsize=(0.9 + 0.5 * len(order), 1.0 + 0.36 * len(order)), layout="constrained")
    axes = figure.subplots()
    text = shown.map(lambda value: "" if np.isnan(value) else f"{value:.2g}")
    _heatmap(axes, shown.to_numpy(), text.to_numpy())
    # Undefined pairs and the diagonal are grey: nothing was compared there.
    axes.set_facecolor("#EEEEEE")
    axes.axhline(len(order) - 0.5, color=INK, linewidth=1.2)
    _name_ticks(axes, "x", map(_title, order))
    _name_ticks(axes, "y", [*map(_title, order), "mean"])
    axes.set_xlabel("is beaten")
    axes.set_ylabel("beats")
    settings, seeds = penalties.attrs["settings"], penalties.attrs["n_seeds"]
    tested = f"{seeds} seeds" if seeds else "no test: too few seeds"
    axes.set_title(f"settings (of {settings}) in which row beats column, {tested}")
    return figure


@_styled
def label_savings(table: pd.DataFrame) -> Figure:
    """How many times fewer labels each configuration needs to reach the reference's final value.

    Args:
        table: from `palkit.statistics.label_saving` by `("adapter", "strategy")`.

    Raises:
        ConfigError: columns are missing or there are no rows.
    """
    _check(table, ["adapter", "strategy", "metric", "target", "labels_needed", "saving"], "label savings")
    # Not reached sorts last in the table, and so lands at the bottom of the figure.
    ordered = table.sort_values("saving", kind="stable", na_position="first")
    savings = ordered["saving"].fillna(1)
    figure, (axes,) = _panels(1, 0.8 + 0.19 * len(ordered))
    for row, (_, line) in enumerate(ordered.iterrows()):
        colour, _ = strategy_style(line["strategy"])
        text = "not reached"
        if not np.isnan(line["saving"]):
            text = f"{line['labels_needed']:.0f} labels"
            axes.plot(
                [1, line["saving"]],
                [row, row],
                color=colour,
                marker="o",
                markevery=[1],
                markerfacecolor=_filling(line["adapter"], colour),
            )
        axes.annotate(
            text,
            (max(savings.iloc[row], 1), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=7,
        )
    axes.axvline(1, color=INK, linewidth=0.8)
    low, high = min(savings.min(), 1), max(savings.max(), 1.1)
    # Room on the right for the numbers.
    axes.set_xlim(low - 0.05 * (high - low), high + 0.3 * (high - low))
    _configurations(axes, ordered)
    axes.grid(axis="x")
    target = _value(ordered["metric"].iloc[0], ordered["target"].iloc[0])
    axes.set_xlabel(f"times fewer labels to reach {target}")
    return figure


@_styled
def round_costs(rounds: pd.DataFrame) -> Figure:
    """Mean seconds per round spent on fitting, scoring and selecting, one panel per adapter.

    Panels have their own scale: a LoRA round costs many times a probe's.

    Args:
        rounds: the table of rounds with `fit_s`, `score_s`, `select_s`.

    Raises:
        ConfigError: columns are missing or there are no rows.
    """
    _check(rounds, ["adapter", "strategy", *COST_COLOURS], "table of rounds")
    costs = rounds.groupby(["adapter", "strategy"])[list(COST_COLOURS)].mean()
    adapters = sorted(costs.index.unique("adapter"))
    strategies = sorted(costs.index.unique("strategy"), key=_random_first)[::-1]
    figure, panels = _panels(len(adapters), 0.7 + 0.2 * len(strategies))
    for axes, adapter in zip(panels, adapters, strict=True):
        seconds = costs.loc[adapter].reindex(strategies)
        left = np.zeros(len(strategies))
        for part, colour in COST_COLOURS.items():
            width = seconds[part].fillna(0).to_numpy()
            axes.barh(range(len(strategies)), width, left=left, color=colour, height=0.65, label=part[:-2])
            left = left + width
        axes.set_title(_title(adapter))
        axes.set_xlabel("seconds per round")
        axes.grid(axis="x")
    _name_ticks(panels[0], "y", map(_title, strategies))
    _legend_below(figure, panels[0].containers)
    return figure


@_styled
def image_grid(
    images: Sequence[NDArray | Image.Image], titles: Sequence[str] | None = None, columns: int = 8
) -> Figure:
    """Images in rows, each with its title.

    Args:
        images: uint8 arrays (H, W) or (H, W, 3), or PIL images; sizes may differ.
        titles: one per image; long ones are wrapped.
        columns: images per row.

    Raises:
        ConfigError: no images, another array type or shape, columns < 1, or titles that do not match.
    """
    if not len(images) or columns < 1:
        raise ConfigError(f"an image grid needs images and columns, got {len(images)} images, {columns} columns.")
    if titles is not None and len(titles) != len(images):
        raise ConfigError(f"{len(titles)} titles for {len(images)} images; give one each.")
    arrays = [_pixels(image, number) for number, image in enumerate(images)]
    columns = min(columns, len(arrays))
    rows = ceil(len(arrays) / columns)
    # 8 columns fill the width of a page; fewer keep the size of an image instead of blowing it up.
    cell = min(WIDTH / columns, 1.1)
    wrapped = [textwrap.fill(str(title), max(int(cell * 17), 6)) for title in titles or []]
    lines = max((title.count("\n") + 1 for title in wrapped), default=0)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(cell * columns, (cell + 0.12 * lines) * rows), layout=tight)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, array in zip(panels, arrays, strict=False):
        axes.imshow(array, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for axes, title in zip(panels, wrapped, strict=False):
        axes.set_title(title, fontsize=7, pad=2)
    return figure


def _pixels(image: NDArray | Image.Image, number: int) -> NDArray:
    if isinstance(image, Image.Image):
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ConfigError(
            f"image {number} of the grid is {array.dtype} of shape {array.shape}; "
            "give uint8 of shape (H, W) or (H, W, 3)."
        )
    return array


@_styled
def class_counts(counts: pd.DataFrame | Mapping[str, pd.Series]) -> Figure:
    """Images per class, one panel per split, each with its own scale.

    Args:
        counts: for every split a series of counts indexed by class name, or such a table.

    Raises:
        ConfigError: no splits or no classes.
    """
    table = pd.DataFrame(counts).fillna(0)
    if table.empty:
        raise ConfigError("class counts are empty; give a series of counts per split.")
    figure, panels = _panels(len(table.columns), 0.8 + 0.18 * len(table))
    for axes, split in zip(panels, table, strict=True):
        bars = axes.barh(range(len(table)), table[split], color=SERIES_COLOURS[0], height=0.7)
        axes.bar_label(bars, fmt="{:.0f}", padding=2, fontsize=6.5)
        axes.margins(x=0.18)
        axes.set_title(f"{split} ({table[split].sum():.0f})")
        axes.set_xlabel("images")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    panels[0].set_yticks(range(len(table)), [str(name) for name in table.index])
    panels[0].invert_yaxis()
    return figure


@_styled
def depth_curves(table: pd.DataFrame) -> Figure:
    """Accuracy of frozen features by depth: columns of image size, rows of readout, lines of pooling.

    The best point of every readout is ringed.

    Args:
        table: columns `image_size`, `depth` (blocks), `pooling`, `probe` (name of the readout), `accuracy`.

    Raises:
        ConfigError: columns are missing, there are no rows, or a combination occurs twice.
    """
    keys = ["image_size", "depth", "pooling", "probe"]
    _check(table, [*keys, "accuracy"], "depth table")
    if table.duplicated(keys).any():
        twice = table[table.duplicated(keys)].iloc[0]
        raise ConfigError(
            "the depth table has more than one row for " + ", ".join(f"{key} {twice[key]}" for key in keys)
        )
    sizes, probes = sorted(table["image_size"].unique()), list(dict.fromkeys(table["probe"]))
    poolings = list(dict.fromkeys(table["pooling"]))
    figure = Figure(figsize=(max(WIDTH * min(len(sizes), 3) / 3, 3.5), 0.7 + 1.45 * len(probes)), layout="constrained")
    grid = figure.subplots(len(probes), len(sizes), sharex=True, sharey="row", squeeze=False)
    for axes_row, probe in zip(grid, probes, strict=True):
        rows = table[table["probe"] == probe]
        best = rows.loc[rows["accuracy"].idxmax()]
        for axes, size in zip(axes_row, sizes, strict=True):
            for number, pooling in enumerate(poolings):
                line = rows[(rows["image_size"] == size) & (rows["pooling"] == pooling)].sort_values("depth")
                axes.plot(
                    line["depth"],
                    line["accuracy"],
                    color=SERIES_COLOURS[number % len(SERIES_COLOURS)],
                    marker=OTHER_MARKERS[number % len(OTHER_MARKERS)],
                    label=str(pooling),
                )
            if size == best["image_size"]:
                axes.plot(best["depth"], best["accuracy"], "o", ms=9, mfc="none", mec=INK, label="best")
            _ticks_at(axes, table["depth"])
            axes.margins(y=0.12)
            axes.grid()
        _metric_axis(axes_row[0], "y", "accuracy")
        axes_row[0].set_ylabel(f"{probe}\naccuracy (%)")
    for axes, size in zip(grid[0], sizes, strict=True):
        axes.set_title(f"{size} px")
    for axes in grid[-1]:
        axes.set_xlabel("depth (blocks)")
    handles = {handle.get_label(): handle for axes in grid.ravel() for handle in axes.lines}
    _legend_below(figure, list(handles.values()))
    return figure


@_styled
def projection(
    points_2d: ArrayLike, labels: ArrayLike, class_names: Sequence[str], picks: ArrayLike | None = None
) -> Figure:
    """Scatter of a pool projected to a plane, coloured by class, the picks numbered in order from 1.

    Args:
        points_2d: (N, 2) positions.
        labels: (N,) class indices.
        class_names: (C,) names.
        picks: pool positions in order of purchase.

    Raises:
        ConfigError: shapes do not match, or a label or a pick is out of range.
    """
    points, classes = np.asarray(points_2d, dtype=float), np.asarray(labels)
    chosen = np.asarray([] if picks is None else picks, dtype=int)
    if points.ndim != 2 or points.shape[1] != 2 or classes.shape != points.shape[:1]:
        raise ConfigError(
            f"a projection needs (N, 2) points and (N,) labels, got shapes {points.shape} and {classes.shape}."
        )
    for what, values, limit in (("labels", classes, len(class_names)), ("picks", chosen, len(points))):
        if values.size and (values.min() < 0 or values.max() >= limit):
            raise ConfigError(f"{what} must lie in 0..{limit - 1}, got {values.min()}..{values.max()} in a projection.")
    legend_columns = ceil(len(class_names) / 20)
    figure = Figure(figsize=(min(3.8 + 1.4 * legend_columns, WIDTH), 3.8), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(class_names):
        here = points[classes == number]
        axes.plot(
            here[:, 0],
            here[:, 1],
            linestyle="",
            marker=CLASS_MARKERS[number // len(CLASS_COLOURS) % len(CLASS_MARKERS)],
            markersize=3,
            markeredgewidth=0,
            color=CLASS_COLOURS[number % len(CLASS_COLOURS)],
            # Picks must stand out from the pool.
            alpha=0.5 if chosen.size else 0.8,
            label=str(name),
        )
    for order, pick in enumerate(chosen, start=1):
        x, y = points[pick]
        # A later pick covers an earlier one with its number, so that at least one of them can be read.
        layer = 3 + order
        axes.plot(x, y, "o", ms=8.5, mfc="white", mec=INK, mew=0.7, zorder=layer)
        axes.annotate(str(order), (x, y), ha="center", va="center_baseline", fontsize=5.5, zorder=layer)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("first axis of the projection")
    axes.set_ylabel("second axis of the projection")
    figure.legend(loc="outside right upper", markerscale=1.6, ncols=legend_columns)
    return figure


@_styled
def confusion(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Confusion matrix: counts as numbers, shares of the true class as shades.

    Args:
        matrix: (C, C) counts, rows are true classes, columns predicted ones.
        class_names: (C,) names.

    Raises:
        ConfigError: the matrix does not fit the names.
    """
    counts = np.asarray(matrix)
    if counts.shape != (len(class_names), len(class_names)):
        raise ConfigError(f"a confusion matrix of {len(class_names)} classes cannot be {counts.shape}.")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(1.2 + 0.34 * len(class_names), WIDTH - 0.4)
    figure = Figure(figsize=(size + 0.4, size), layout="constrained")
    axes = figure.subplots()
    _heatmap(axes, shares, np.where(counts > 0, counts.astype(int).astype(str), ""))
    _name_ticks(axes, "x", class_names)
    _name_ticks(axes, "y", class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


@_styled
def picks_by_class(counts: pd.DataFrame) -> Figure:
    """Labels bought per class, one row per strategy (or round, or run).

    Args:
        counts: index of strategies, columns of class names, values of labels bought (means over seeds, or
            counts); the index name, if any, names the vertical axis.

    Raises:
        ConfigError: the table is empty.
    """
    if counts.empty:
        raise ConfigError("the table of picks by class is empty; give one row per strategy.")
    rows, columns = counts.shape
    figure = Figure(figsize=(min(1.8 + 0.42 * columns, WIDTH), 1.1 + 0.27 * rows), layout="constrained")
    axes = figure.subplots()
    values = counts.to_numpy(float)
    whole = (values == values.round()).all()
    _heatmap(axes, values, np.vectorize(lambda value: f"{value:.{0 if whole else 1}f}")(values))
    _name_ticks(axes, "x", counts.columns)
    _name_ticks(axes, "y", [_title(str(name)) for name in counts.index])
    axes.set_xlabel("class (labels bought)")
    axes.set_ylabel(str(counts.index.name or "strategy"))
    return figure


def save_figure(figure: Figure, path: Path | str, metadata: Mapping[str, object]) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG, so that the same figure always gives the same bytes.

    Either file is complete or as it was: it is written beside its place, flushed to disk and moved there.

    Args:
        figure: what to save.
        path: where, without suffix; the folder is created.
        metadata: what the figure came from, e.g. run hashes and the name of the sweep. In the PNG each is a
            text chunk of its own; SVG knows only Dublin Core, so there all of it is JSON in the description.

    Returns:
        The paths of the PNG and the SVG.
    """
    folder, name = Path(path).parent, Path(path).name
    folder.mkdir(parents=True, exist_ok=True)
    text = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in metadata.items()}
    described = json.dumps(text, sort_keys=True)
    # A date would make every file differ.
    formats = {"png": text, "svg": {"Date": None, "Description": described}}
    paths = []
    for suffix, chunks in formats.items():
        buffer = BytesIO()
        with rc_context(STYLE):
            figure.savefig(buffer, format=suffix, metadata=chunks)
        paths.append(folder / f"{name}.{suffix}")
        _write_atomically(paths[-1], buffer.getvalue())
    return paths[0], paths[1]


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share their vertical axis; `height` is that of a row in inches."""
    columns, rows = min(count, PER_ROW), ceil(count / PER_ROW)
    # A single panel as wide as the page would be stretched.
    width = 4.2 if count == 1 else WIDTH
    figure = Figure(figsize=(width, height * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).ravel())
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _ticks_at(axes: Axes, values: pd.Series) -> None:
    """Ticks at the values that occur, if they are few enough to be read."""
    distinct = sorted(values.unique())
    if len(distinct) <= 10:
        axes.set_xticks(distinct)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _name_ticks(axes: Axes, which: str, names: Iterable) -> None:
    """Names along an axis of a matrix, slanted below it, smaller where they are many."""
    shown = [str(name) for name in names]
    size = min(7.0, 250 / len(shown))
    if which == "x":
        axes.set_xticks(range(len(shown)), shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    else:
        axes.set_yticks(range(len(shown)), shown, fontsize=size)


def _configurations(axes: Axes, table: pd.DataFrame) -> None:
    """Rows named by adapter and strategy."""
    names = [f"{_title(a)}, {_title(s)}" for a, s in zip(table["adapter"], table["strategy"], strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)


def _filling(adapter: str, colour: str) -> str:
    """The baseline adapter is hollow, so that it can be told from the others at a glance."""
    return "white" if adapter == "linear_probe" else colour


def _seeds(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    if low < high:
        return f"{low} to {high} seeds"
    return f"{high} seeds" if high > 1 else "1 seed"


def _title(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def _random_first(name: str) -> tuple[bool, str]:
    return name != "random", name


def _metric_axis(axes: Axes, which: str, metric: str, labelled: bool = True) -> None:
    label = METRIC_LABELS.get(metric, metric)
    axis = axes.xaxis if which == "x" else axes.yaxis
    if labelled:
        axis.set_label_text(label)
    if label.endswith("(%)"):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def _value(metric: str, value: float) -> str:
    """A value with the name and unit of its metric, for running text."""
    label = METRIC_LABELS.get(metric, metric)
    if label.endswith("(%)"):
        return f"{value:.1%} {label.removesuffix(' (%)')}"
    return f"{label} {value:.3g}"


def _legend_below(figure: Figure, handles: Sequence) -> None:
    columns = min(len(handles), int(figure.get_figwidth() / 1.1))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.2)


def _heatmap(axes: Axes, values: NDArray, text: NDArray) -> None:
    """Shaded cells separated by thin white lines, with numbers unless there are too many to read."""
    top = float(np.nanmax(values, initial=0)) or 1.0
    axes.imshow(values, cmap=BLUES, vmin=0, vmax=top, aspect="auto")
    if max(values.shape) <= 25:
        for (row, column), value in np.ndenumerate(values):
            # Relative luminance below 0.18 contrasts more with white than with black (WCAG 2).
            dark = np.dot(np.power(BLUES(value / top)[:3], 2.2), (0.2126, 0.7152, 0.0722)) < 0.18
            axes.text(
                column,
                row,
                str(text[row, column]),
                ha="center",
                va="center_baseline",
                fontsize=6.5,
                color="white" if dark else "black",
            )
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)


def _check(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ConfigError(f"the {name} to draw lacks the columns {', '.join(missing)}.")
    if table.empty:
        raise ConfigError(f"the {name} to draw is empty.")
