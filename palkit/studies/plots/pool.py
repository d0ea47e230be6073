"""Figures of a pool: its images, classes and features."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from palkit.errors import ConfigError
from palkit.studies.plots import style

GAP = 0.03  # inches between images
TITLE = 30  # letters of an image's title: what three lines hold where eight images share a page


@style.styled
def image_grid(images: Sequence[NDArray], titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Images in rows, each with its title.

    Args:
        images: one or more uint8 arrays (H, W) or (H, W, 3); sizes may differ.
        titles: one per image; long ones are wrapped.
        columns: images per row.
    """
    columns = min(columns, len(images))
    rows = ceil(len(images) / columns)
    # 8 columns fill the width of a page; fewer keep the size of an image instead of blowing it up.
    cell = min(style.WIDTH / columns, 1.1)
    wrapped = [_wrapped(title, cell) for title in style.shown_names(titles or [], TITLE)]
    lines = max((title.count("\n") + 1 for title in wrapped), default=0)
    figure = style.PlainFigure(figsize=(cell * columns, (cell + 0.12 * lines) * rows))
    # One axes, in inches, for all of them: seventy take longer than the rounds of a probe.
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        x, y = cell * (column + 0.5), height - (row + 1) * height / rows + cell / 2  # the middle
        high, wide = (np.array(image.shape[:2]) / max(image.shape[:2]) * (cell - GAP)).tolist()
        extent = (x - wide / 2, x + wide / 2, y - high / 2, y + high / 2)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent, aspect="auto")
        if wrapped:
            axes.text(x, y + high / 2 + GAP, wrapped[number], fontsize=7, ha="center", va="bottom")
    return figure


def _wrapped(title: str, width: float) -> str:
    """A title in lines of so many inches, three at most."""
    letters = int(width * 17 * len(title) / max(1, style.columns_of(title)))
    return textwrap.fill(title, max(letters, 6), max_lines=3, placeholder="…")


@style.styled
def class_counts(counts: pd.DataFrame | Mapping[str, pd.Series]) -> Figure:
    """Images per class, one panel per split, each with its own scale.

    Args:
        counts: for every split a series of counts indexed by class name, or such a table.
    """
    table = pd.DataFrame(counts).fillna(0)
    figure, panels = style.side_by_side(len(table.columns), 0.8 + 0.18 * len(table))
    for axes, split in zip(panels, table, strict=True):
        bars = axes.barh(range(len(table)), table[split], color=style.SERIES_COLOURS[0], height=0.7)
        axes.bar_label(bars, fmt="{:.0f}", padding=2, fontsize=6.5)
        axes.margins(x=0.18)
        axes.set_title(f"{split} ({table[split].sum():.0f})")
        axes.set_xlabel("images")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    panels[0].set_yticks(range(len(table)), style.shown_names(table.index))
    panels[0].invert_yaxis()
    return figure


@style.styled
def depth_curves(table: pd.DataFrame) -> Figure:
    """Accuracy of frozen features by depth: columns of image size, rows of readout, lines of pooling.

    The best point of every readout is ringed.

    Args:
        table: columns `image_size`, `depth` (blocks), `pooling`, `probe` (name of the readout), `accuracy`.
    """
    sizes, probes = sorted(table["image_size"].unique()), list(dict.fromkeys(table["probe"]))
    poolings = list(dict.fromkeys(table["pooling"]))
    size = (max(style.WIDTH * min(len(sizes), 3) / 3, 3.5), 0.7 + 1.45 * len(probes))
    figure = style.PlainFigure(figsize=size, layout="constrained")
    grid = figure.subplots(len(probes), len(sizes), sharex=True, sharey="row", squeeze=False)
    for axes_row, probe in zip(grid, probes, strict=True):
        rows = table[table["probe"] == probe]
        best = rows.loc[rows["accuracy"].idxmax()]
        for axes, pixels in zip(axes_row, sizes, strict=True):
            looks = zip(cycle(style.SERIES_COLOURS), cycle(style.OTHER_MARKERS), strict=False)
            for pooling, (colour, marker) in zip(poolings, looks, strict=False):
                line = rows[(rows["image_size"] == pixels) & (rows["pooling"] == pooling)].sort_values("depth")
                axes.plot(line["depth"], line["accuracy"], color=colour, marker=marker, label=str(pooling))
            if pixels == best["image_size"]:
                axes.plot(best["depth"], best["accuracy"], "o", ms=9, mfc="none", mec=style.INK, label="best")
            style.ticks_at(axes, table["depth"])
            axes.margins(y=0.12)
            axes.grid()
        style.metric_axis(axes_row[0], "y", "accuracy")
        axes_row[0].set_ylabel(f"{probe}\naccuracy (%)")
    for axes, pixels in zip(grid[0], sizes, strict=True):
        axes.set_title(f"{pixels} px")
    for axes in grid[-1]:
        axes.set_xlabel("depth (blocks)")
    handles = {handle.get_label(): handle for axes in grid.ravel() for handle in axes.lines}
    style.legend_below(figure, list(handles.values()))
    return figure


@style.styled
def projection(points_2d: ArrayLike, labels: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Scatter of a pool projected to a plane, coloured by class.

    Args:
        points_2d: (N, 2) positions.
        labels: (N,) class indices.
        class_names: (C,) names.

    Raises:
        ConfigError: a label has no name.
    """
    points, classes = np.asarray(points_2d, dtype=float), np.asarray(labels)
    if classes.size and (classes.min() < 0 or classes.max() >= len(class_names)):
        raise ConfigError(f"labels of a projection must lie in 0..{len(class_names) - 1}: others would not be drawn.")
    beside = ceil(len(class_names) / 20)  # columns of a legend on the right, where two are the most
    figure, axes = style.one_panel(min(3.8 + (1.4 + style.excess(class_names)) * min(beside, 2), style.WIDTH), 3.8)
    look: dict[str, Any] = {"markersize": 3, "markeredgewidth": 0, "linestyle": "", "alpha": 0.8}
    handles = []
    for number, name in enumerate(class_names):
        here = points[classes == number]
        turn, colour = divmod(number, len(style.CLASS_COLOURS))
        marker = style.CLASS_MARKERS[turn % len(style.CLASS_MARKERS)]
        handles += axes.plot(*here.T, color=style.CLASS_COLOURS[colour], marker=marker, label=str(name), **look)
    axes.set(xticks=[], yticks=[])
    looks = len(style.CLASS_COLOURS) * len(style.CLASS_MARKERS)
    alike = f"; {len(class_names)} classes share {looks} looks" if len(class_names) > looks else ""
    axes.set_xlabel(f"first axis of the projection{alike}")
    axes.set_ylabel("second axis of the projection")
    if beside > 2:
        style.legend_below(figure, handles)
    else:
        style.legend(figure, handles, beside, loc="outside right upper", markerscale=1.6)
    return figure


@style.styled
def confusion(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Confusion matrix: counts as numbers, shares of the true class as shades.

    Args:
        matrix: (C, C) counts, rows are true classes, columns predicted ones.
        class_names: (C,) names.
    """
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(1.2 + 0.34 * len(class_names) + style.excess(class_names), style.WIDTH - 0.4)
    figure, axes = style.one_panel(size + 0.4, size)
    style.heatmap(axes, shares, np.where(counts > 0, counts.astype(int).astype(str), ""))
    style.name_ticks(axes, "x", class_names)
    style.name_ticks(axes, "y", class_names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure
