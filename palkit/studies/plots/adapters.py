"""Figures of adapters: what each method gains for what it costs."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from palkit.studies.plots.style import (
    CLASS_COLOURS,
    INK,
    OTHER_MARKERS,
    check_table,
    interval_note,
    legend_below,
    metric_axis,
    side_by_side,
    styled,
    title_of,
)
from palkit.studies.statistics import pareto_front, sign_of

COSTS = {"trainable": "trainable numbers in the backbone", "seconds": "seconds per round (fit and score)"}


@styled
def cost_quality(table: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Quality of every adapter against its size and against its time, with the front that nothing beats.

    Args:
        table: one row per configuration: `adapter`, `blocks` (how many learn), `rank`, `trainable`, `seconds`,
            `mean`, `low`, `high` of the metric.
        metric: which one it is.

    Raises:
        ConfigError: columns are missing or there are no rows.
    """
    check_table(table, ["adapter", "blocks", "rank", *COSTS, "mean", "low", "high"], "table of adapters")
    names = list(dict.fromkeys(table["adapter"]))
    blocks = sorted(table["blocks"].unique())
    figure, panels = side_by_side(2, 3.4)
    for axes, (cost, label) in zip(panels, COSTS.items(), strict=True):
        for _, row in table.iterrows():
            colour, marker = _style(names.index(row["adapter"]))
            axes.errorbar(
                row[cost],
                row["mean"],
                yerr=[[row["mean"] - row["low"]], [row["high"] - row["mean"]]],
                color=colour,
                marker=marker,
                markersize=5,
                # Few blocks are hollow: the two families of points can be told apart without colour.
                markerfacecolor=colour if row["blocks"] == blocks[-1] else "white",
                elinewidth=0.5,
                alpha=0.9,
            )
        _front(axes, table[cost], table["mean"], sign_of(metric))
        axes.set_xlabel(label)
        axes.grid()
        metric_axis(axes, "y", metric, labelled=cost == "trainable")
    panels[0].set_xscale("symlog", linthresh=1000)
    panels[0].set_xticks([0, *(10**power for power in range(3, len(str(int(table["trainable"].max()))) + 1))])
    panels[0].xaxis.set_major_formatter(FuncFormatter(_thousands))
    panels[0].set_xlim(left=-200)
    panels[1].set_xlim(left=0)
    handles = [_handle(*_style(number), title_of(name)) for number, name in enumerate(names)]
    front = Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label="front")
    legend_below(figure, [*handles, front], interval_note("bars", table["low"], "of the mean over seeds"))
    return figure


def _style(number: int) -> tuple[str, str]:
    return CLASS_COLOURS[number % len(CLASS_COLOURS)], OTHER_MARKERS[(number // 2) % len(OTHER_MARKERS)]


def _handle(colour: str, marker: str, name: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5, label=name)


def _front(axes: Axes, cost: pd.Series, value: pd.Series, sign: int) -> None:
    best = pd.DataFrame({"cost": cost, "value": value})[pareto_front(cost, sign * value)].sort_values("cost")
    axes.plot(best["cost"], best["value"], color=INK, linewidth=0.8, linestyle=":", marker="", drawstyle="steps-post")


def _thousands(value: float, _: object) -> str:
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
