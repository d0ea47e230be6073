"""Figures of selection: what strategies pick, and what picking costs."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray

from palkit.errors import ConfigError
from palkit.studies.plots.style import (
    INK,
    LONGEST,
    WIDTH,
    PlainFigure,
    check_table,
    legend_below,
    shown_names,
    strategy_style,
    styled,
    title_of,
)

PANELS_PER_ROW = 5
NUMBERED = 5


@styled
def pick_maps(points_2d: ArrayLike, labelled: ArrayLike, picks: Mapping[str, ArrayLike]) -> Figure:
    """The pool projected to a plane once per strategy: labels bought before as crosses, picks as dots.

    The first picks are larger and numbered in order.

    Args:
        points_2d: (N, 2) positions.
        labelled: (L,) pool positions labelled before.
        picks: strategy -> (B,) pool positions in order.

    Raises:
        ConfigError: no picks, or points that are not (N, 2).
    """
    points, known = np.asarray(points_2d, dtype=float), np.asarray(labelled, dtype=int)
    if not picks or points.ndim != 2 or points.shape[1] != 2:
        raise ConfigError(f"pick maps need picks and (N, 2) points, got {len(picks)} and shape {points.shape}.")
    figure, panels = _small_multiples(len(picks), 1.3)
    for axes, (name, positions) in zip(panels, picks.items(), strict=False):
        chosen = points[np.asarray(positions, dtype=int)]
        axes.plot(points[:, 0], points[:, 1], ".", ms=1.2, color="#C8C8C8", markeredgewidth=0, rasterized=True)
        axes.plot(points[known, 0], points[known, 1], "x", ms=3, mew=0.8, color="black")
        colour = strategy_style(name)[0]
        axes.plot(chosen[:, 0], chosen[:, 1], "o", ms=4, color=colour, mec="white", mew=0.4)
        for number, (x, y) in enumerate(chosen[:NUMBERED], start=1):
            layer = 5 - number / NUMBERED  # the first pick on top
            axes.plot(x, y, "o", ms=6.5, color="white", mec=colour, mew=1.1, zorder=layer)
            axes.annotate(str(number), (x, y), ha="center", va="center_baseline", fontsize=4.5, zorder=layer)
        axes.set_title(title_of(name), pad=2)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


@styled
def pick_strips(images: Mapping[str, Sequence[NDArray]], titles: Mapping[str, Sequence[str]]) -> Figure:
    """A row of picked images per strategy, in order of picking from the left.

    Args:
        images: strategy -> uint8 images (H, W) or (H, W, 3), the same number for each.
        titles: strategy -> one short title per image.

    Raises:
        ConfigError: no images, or rows of different lengths.
    """
    lengths = {len(row) for row in images.values()}
    if len(lengths) != 1 or {len(titles[name]) for name in images} != lengths:
        raise ConfigError("pick strips need the same number of images and titles for every strategy, at least one.")
    columns = lengths.pop()
    tight = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    figure = PlainFigure(figsize=(WIDTH, 0.62 * len(images)), layout=tight)
    panels = figure.subplots(len(images), columns, squeeze=False)
    for row, (name, pictures) in zip(panels, images.items(), strict=True):
        row[0].set_ylabel(title_of(name), rotation=0, ha="right", va="center")
        for axes, picture, title in zip(row, pictures, shown_names(titles[name], LONGEST // 2), strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, fontsize=5.5, pad=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
    return figure


@styled
def selection_times(table: pd.DataFrame) -> Figure:
    """Seconds of one selection against pool size, one panel per strategy, the peer and the machine's bound beside it.

    Args:
        table: columns `strategy`, `library` ("palkit" or a peer's name), `n`, `seconds`, `bound` (seconds that
            the machine needs at least, or NaN). Rows without seconds are left out.

    Raises:
        ConfigError: the table lacks a column or is empty.
    """
    check_table(table, ["strategy", "library", "n", "seconds", "bound"], "measurements")
    measured = table.dropna(subset=["seconds"])
    names = sorted(measured["strategy"].unique())
    figure, panels = _small_multiples(len(names), 1.35, sharey=True)
    peers = sorted(set(measured["library"]) - {"palkit"})
    for axes, name in zip(panels, names, strict=True):
        here = measured[measured["strategy"] == name].sort_values("n")
        colour, marker = strategy_style(name)
        for library, line in here.groupby("library"):
            look = (colour, marker, "-") if library == "palkit" else (INK, "x", "--")
            axes.plot(line["n"], line["seconds"], color=look[0], marker=look[1], linestyle=look[2])
        bound = here[here["library"] == "palkit"]
        axes.plot(bound["n"], bound["bound"], color="#999999", linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(title_of(name), pad=2)
        axes.grid(visible=True)
    _outer_labels(panels, "pool size", "seconds")
    handles = [Line2D([], [], color=INK, marker="o", label="palkit")]
    handles += [Line2D([], [], color=INK, linestyle="--", marker="x", label=peer) for peer in peers]
    handles.append(Line2D([], [], color="#999999", linestyle=":", label="bound of this machine"))
    legend_below(figure, handles)
    return figure


def _small_multiples(count: int, height: float, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    rows = ceil(count / PANELS_PER_ROW)
    figure = PlainFigure(figsize=(WIDTH, height * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, PANELS_PER_ROW, squeeze=False, sharex=sharey, sharey=sharey)
    panels = list(grid.ravel())
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _outer_labels(panels: Sequence[Axes], x: str, y: str) -> None:
    for number, axes in enumerate(panels):
        if number % PANELS_PER_ROW == 0:
            axes.set_ylabel(y)
        if number + PANELS_PER_ROW >= len(panels):
            axes.set_xlabel(x)
            axes.tick_params(labelbottom=True)
