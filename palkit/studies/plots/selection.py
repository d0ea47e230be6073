"""Figures of selection: what strategies pick, and what picking costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray

from palkit.studies.plots import style

PANELS_PER_ROW = 5
NUMBERED = 5


@style.styled
def pick_maps(points_2d: ArrayLike, labelled: ArrayLike, picks: Mapping[str, ArrayLike]) -> Figure:
    """The pool projected to a plane once per strategy: labels bought before as crosses, picks as dots.

    The first picks are larger and numbered in order.

    Args:
        points_2d: (N, 2) positions.
        labelled: (L,) pool positions labelled before.
        picks: of one or more strategies, (B,) pool positions in order.
    """
    points, known = np.asarray(points_2d, dtype=float), np.asarray(labelled, dtype=int)
    figure, panels = style.side_by_side(len(picks), 1.3, PANELS_PER_ROW, sharey=False)
    for axes, (name, positions) in zip(panels, picks.items(), strict=True):
        chosen = points[np.asarray(positions, dtype=int)]
        axes.plot(points[:, 0], points[:, 1], ".", ms=1.2, color="#C8C8C8", markeredgewidth=0, rasterized=True)
        axes.plot(points[known, 0], points[known, 1], "x", ms=3, mew=0.8, color="black")
        colour = style.strategy_style(name)[0]
        axes.plot(chosen[:, 0], chosen[:, 1], "o", ms=4, color=colour, mec="white", mew=0.4)
        for number, (x, y) in enumerate(chosen[:NUMBERED], start=1):
            layer = 5 - number / NUMBERED  # the first pick on top
            axes.plot(x, y, "o", ms=6.5, color="white", mec=colour, mew=1.1, zorder=layer)
            axes.annotate(str(number), (x, y), ha="center", va="center_baseline", fontsize=4.5, zorder=layer)
        axes.set_title(style.title_of(name), pad=2)
        axes.set(xticks=[], yticks=[])
    return figure


@style.styled
def pick_strips(images: Mapping[str, Sequence[NDArray]], titles: Mapping[str, Sequence[str]]) -> Figure:
    """A row of picked images per strategy, in order of picking from the left.

    Args:
        images: of one or more strategies, uint8 images (H, W) or (H, W, 3), the same number for each.
        titles: strategy -> one short title per image.
    """
    columns = len(next(iter(images.values())))
    tight = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    figure = style.PlainFigure(figsize=(style.WIDTH, 0.62 * len(images)), layout=tight)
    panels = figure.subplots(len(images), columns, squeeze=False)
    for row, (name, pictures) in zip(panels, images.items(), strict=True):
        row[0].set_ylabel(style.title_of(name), rotation=0, ha="right", va="center")
        shown = style.shown_names(titles[name], style.LONGEST // 2)
        for axes, picture, title in zip(row, pictures, shown, strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, fontsize=5.5, pad=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


@style.styled
def selection_times(table: pd.DataFrame) -> Figure:
    """Seconds of one selection against pool size, one panel per strategy, the peer and the machine's bound beside it.

    Args:
        table: columns `strategy`, `library` ("palkit" or a peer's name), `n`, `seconds`, `bound` (seconds that
            the machine needs at least, or NaN). Rows without seconds are left out.
    """
    measured = table.dropna(subset=["seconds"])
    names = sorted(measured["strategy"].unique())
    figure, panels = style.side_by_side(len(names), 1.35, PANELS_PER_ROW, sharex=True)
    peer: dict[str, Any] = {"color": style.INK, "marker": "x", "linestyle": "--"}
    bound: dict[str, Any] = {"color": "#999999", "linestyle": ":"}
    for axes, name in zip(panels, names, strict=True):
        here = measured[measured["strategy"] == name].sort_values("n")
        colour, marker = style.strategy_style(name)
        for library, line in here.groupby("library"):
            look = {"color": colour, "marker": marker} if library == "palkit" else peer
            axes.plot(line["n"], line["seconds"], **look)
        ours = here[here["library"] == "palkit"]
        axes.plot(ours["n"], ours["bound"], linewidth=1, **bound)
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(style.title_of(name), pad=2)
        axes.grid(visible=True)
    style.label_outer(panels, PANELS_PER_ROW, "pool size", "seconds")
    peers = sorted(set(measured["library"]) - {"palkit"})
    handles = [style.legend_key("palkit", color=style.INK, marker="o", linestyle="-")]
    handles += [style.legend_key(name, **peer) for name in peers]
    style.legend_below(figure, [*handles, style.legend_key("bound of this machine", **bound)])
    return figure
