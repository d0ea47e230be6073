"""Figures of quality against cost, with the front of configurations that nothing beats."""

from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from palkit.studies.plots import style
from palkit.studies.statistics import pareto_front, sign_of

COSTS = {"trainable": "trainable numbers in the backbone", "seconds": "seconds per round (fit and score)"}
# Of adapters beside the probe, which is hollow; told apart without colour, that being the strategy's.
FILLS = ("full", "left", "bottom", "right", "top")
DOT: dict[str, Any] = {"color": style.INK, "marker": "o"}
RING: dict[str, Any] = {**DOT, "markersize": 9, "fillstyle": "none", "markeredgewidth": 0.7}
FRONT: dict[str, Any] = {"color": style.INK, "marker": "", "linewidth": 0.8, "linestyle": ":"}


def _draw_front(axes: Axes, cost: pd.Series, value: pd.Series, metric: str) -> None:
    """Line through what has the best value of a metric at its cost or less."""
    best = np.flatnonzero(pareto_front(cost, sign_of(metric) * value))
    best = best[np.argsort(cost.to_numpy()[best], kind="stable")]
    axes.plot(cost.iloc[best], value.iloc[best], drawstyle="steps-post", **FRONT)


@style.styled
def cost_areas(table: pd.DataFrame) -> Figure:
    """Area under the budget curve against seconds per run, with the front that nothing beats.

    Colour and marker are the strategy's, filling the adapter's; a ring is class balance.

    Args:
        table: from `palkit.studies.statistics.area_costs` by `("adapter", "strategy")`, and `"balance"` where runs
        differ.
    """
    metric = table["metric"].iloc[0]
    adapters = sorted(table["adapter"].unique())
    others = [name for name in adapters if name != "linear_probe"]
    fills = {"linear_probe": "none"} | dict(zip(others, cycle(FILLS), strict=False))
    balanced = table.get("balance", pd.Series("none", table.index)) != "none"
    figure, axes = style.one_panel(4.6, 3.6)
    for (_, row), ringed in zip(table.iterrows(), balanced, strict=True):
        look = {**_strategy_look(row["strategy"]), "fillstyle": fills[row["adapter"]], "elinewidth": 0.6, "alpha": 0.9}
        style.error_bar(axes, row["seconds"], row["aubc"], (row["aubc_low"], row["aubc_high"]), "y", **look)
        if ringed:
            axes.plot(row["seconds"], row["aubc"], **RING)
    _draw_front(axes, table["seconds"], table["aubc"], metric)
    style.log_axis(axes, (1, 2, 5))
    axes.set_xlabel("seconds per run (fit, score, select)")
    style.metric_axis(axes, "y", metric)
    axes.set_ylabel(f"area under the budget curve, {axes.get_ylabel()}")
    axes.grid()
    strategies = sorted(table["strategy"].unique(), key=style.random_first)
    handles = [style.legend_key(style.title_of(name), **_strategy_look(name)) for name in strategies]
    half = {**DOT, "markersize": 6, "markerfacecoloralt": "white"}
    handles += [style.legend_key(style.title_of(name), fillstyle=fills[name], **half) for name in adapters]
    handles += [style.legend_key("class balance", **RING)] if balanced.any() else []
    note = style.interval_note("bars", table["aubc_low"], "over seeds, for this data set")
    style.legend_below(figure, [*handles, style.legend_key("front", **FRONT)], note)
    return figure


def _strategy_look(name: str) -> dict[str, Any]:
    colour, marker = style.strategy_style(name)
    return {"color": colour, "marker": marker, "markersize": 6, "markerfacecoloralt": "white"}


@style.styled
def cost_quality(table: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Quality of every adapter against its size and against its time, with the front that nothing beats.

    Args:
        table: one row per configuration: `adapter`, `blocks` (how many learn), `rank`, `trainable`, `seconds`,
            `mean`, `low`, `high` of the metric.
        metric: which one it is.
    """
    # Two colours share a marker.
    twice = np.repeat(style.OTHER_MARKERS, 2).tolist()
    names = zip(dict.fromkeys(table["adapter"]), cycle(style.CLASS_COLOURS), cycle(twice), strict=False)
    looks: dict[str, dict[str, Any]] = {
        name: {"color": colour, "marker": marker, "markersize": 5} for name, colour, marker in names
    }
    figure, panels = style.side_by_side(2, 3.4)
    for axes, (cost, label) in zip(panels, COSTS.items(), strict=True):
        for _, row in table.iterrows():
            look = looks[row["adapter"]]
            # Few blocks are hollow: the two families of points can be told apart without colour.
            inside = look["color"] if row["blocks"] == table["blocks"].max() else "white"
            more = {"markerfacecolor": inside, "elinewidth": 0.5, "alpha": 0.9}
            style.error_bar(axes, row[cost], row["mean"], (row["low"], row["high"]), "y", **look, **more)
        _draw_front(axes, table[cost], table["mean"], metric)
        axes.set_xlabel(label)
        axes.grid()
        style.metric_axis(axes, "y", metric, labelled=cost == "trainable")
    panels[0].set_xscale("symlog", linthresh=1000)
    panels[0].set_xticks([0, *(10**power for power in range(3, len(str(int(table["trainable"].max()))) + 1))])
    panels[0].xaxis.set_major_formatter(EngFormatter())
    panels[0].set_xlim(left=-200)
    panels[1].set_xlim(left=0)
    handles = [style.legend_key(style.title_of(name), **look) for name, look in looks.items()]
    note = style.interval_note("bars", table["low"], "of the mean over seeds")
    style.legend_below(figure, [*handles, style.legend_key("front", **FRONT)], note)
    return figure
