"""Figures that compare many configurations at once: their ranks, their costs, their recall of each class."""

from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from palkit.errors import ConfigError
from palkit.strategies import STRATEGIES
from palkit.studies.plots.style import (
    CLASS_LOOKS,
    INK,
    PER_ROW,
    WIDTH,
    PlainFigure,
    check_table,
    class_look,
    configuration_name,
    excess,
    interval_note,
    legend_below,
    metric_axis,
    random_first,
    seeds_of,
    shown_names,
    side_by_side,
    strategy_style,
    styled,
    ticks_at,
    title_of,
)
from palkit.studies.statistics import Ranking, pareto_front, sign_of

BLOCK_NAMES = {"seed": "pairs of setting and seed", "setting": "settings", "dataset": "data sets"}
# Of adapters beside the probe, which is hollow; told apart without colour, that being the strategy's.
FILLS = ("full", "left", "bottom", "right", "top")
RING: dict[str, Any] = {"markersize": 9, "fillstyle": "none", "markeredgewidth": 0.7}


@styled
def critical_difference(ranking: Ranking) -> Figure:
    """Critical-difference diagram: average ranks, with bars over strategies that Nemenyi's test cannot tell apart.

    Args:
        ranking: from `palkit.studies.statistics.rank_strategies`.

    Source: Demsar, JMLR 2006, figure 1.
    """
    # Imported here: it brings seaborn along, which takes a while.
    from scikit_posthocs import critical_difference_diagram

    names = [configuration_name(*str(name).split(" + ")) for name in ranking.ranks.index]
    shown = dict(zip(ranking.ranks.index, shown_names(names), strict=True))
    count = len(shown)
    width = min(WIDTH, 0.75 * WIDTH + 2 * excess(names, 16))
    figure = PlainFigure(figsize=(width, 1.3 + 0.15 * count), layout="constrained")
    axes = figure.subplots()
    artists = critical_difference_diagram(
        ranking.ranks.rename(shown),
        ranking.p_values.rename(index=shown, columns=shown),
        alpha=ranking.alpha,
        ax=axes,
        label_fmt_left="{label} ({rank:.1f})",
        label_fmt_right="({rank:.1f}) {label}",
        elbow_props={"linewidth": 1, "marker": ""},
        crossbar_props={"color": INK, "marker": ""},
        color_palette={shown[name]: strategy_style(_strategy_of(str(name)))[0] for name in shown},
        text_h_margin=0.02 * count,
    )
    for line in axes.lines:
        if np.ptp(line.get_ydata()) == 0:
            # Bars come through a set of names, in another order in every process.
            line.set_xdata(np.sort(line.get_xdata()))
    for label in artists["labels"]:
        label.set_color(INK)  # the paler colours cannot be read as text
    axes.spines["top"].set_visible(True)
    axes.set_xlim(1, count)
    axes.set_xticks(range(1, count + 1))
    p = f"= {ranking.friedman_p:.3f}" if ranking.friedman_p >= 0.001 else "< 0.001"
    axes.set_title(
        f"average ranks over {ranking.n_blocks} {BLOCK_NAMES[ranking.blocks]}\n"
        f"Friedman p {p}, critical difference {ranking.critical_difference:.1f}"
    )
    return figure


def _strategy_of(treatment: str) -> str:
    """The strategy in the name of a treatment, which may name an adapter or a balance too."""
    parts = treatment.split(" + ")
    return next((part for part in parts if part in STRATEGIES), parts[0])


@styled
def cost_areas(table: pd.DataFrame) -> Figure:
    """Area under the budget curve against seconds per run, with the front that nothing beats.

    Colour and marker are the strategy's, filling the adapter's; a ring is class balance.

    Args:
        table: from `palkit.studies.statistics.area_costs` by `("adapter", "strategy")`, and `"balance"` where runs
        differ.

    Raises:
        ConfigError: columns are missing or there are no rows.
    """
    check_table(table, ["adapter", "strategy", "metric", "seconds", "aubc", "aubc_low", "aubc_high"], "table of costs")
    metric = table["metric"].iloc[0]
    adapters = sorted(table["adapter"].unique())
    others = [name for name in adapters if name != "linear_probe"]
    fills = {"linear_probe": "none"} | dict(zip(others, cycle(FILLS), strict=False))
    balances = table.get("balance", pd.Series("none", table.index))
    figure = PlainFigure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (_, row), balance in zip(table.iterrows(), balances, strict=True):
        colour, marker = strategy_style(row["strategy"])
        axes.errorbar(
            row["seconds"],
            row["aubc"],
            yerr=[[row["aubc"] - row["aubc_low"]], [row["aubc_high"] - row["aubc"]]],
            color=colour,
            marker=marker,
            markersize=6,
            fillstyle=fills[row["adapter"]],
            markerfacecoloralt="white",
            elinewidth=0.6,
            alpha=0.9,
        )
        if balance != "none":
            axes.plot(row["seconds"], row["aubc"], color=INK, marker="o", **RING)
    front = table[pareto_front(table["seconds"], sign_of(metric) * table["aubc"])].sort_values("seconds")
    axes.plot(front["seconds"], front["aubc"], color=INK, linewidth=0.8, linestyle=":", drawstyle="steps-post")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("seconds per run (fit, score, select)")
    metric_axis(axes, "y", metric)
    axes.set_ylabel(f"area under the budget curve, {axes.get_ylabel()}")
    axes.grid()
    strategies = sorted(table["strategy"].unique(), key=random_first)
    handles = [_key(title_of(name), *strategy_style(name)) for name in strategies]
    handles += [_key(title_of(name), INK, "o", fillstyle=fills[name]) for name in adapters]
    if (balances != "none").any():
        handles.append(_key("class balance", INK, "o", **RING))
    handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label="front"))
    legend_below(figure, handles, interval_note("bars", table["aubc_low"], "over seeds, for this data set"))
    return figure


def _key(name: str, colour: str, marker: str, **look: Any) -> Line2D:
    """A legend's entry of points."""
    shown = {"markersize": 6, "markerfacecoloralt": "white", **look}
    return Line2D([], [], color=colour, marker=marker, linestyle="", label=name, **shown)


@styled
def class_recalls(recalls: pd.DataFrame, by: str = "strategy") -> Figure:
    """Recall of every class against labels bought, mean over seeds: one panel per strategy, one line per class.

    Args:
        recalls: columns `run`, `by`, `labels`, `class`, `recall` (see `palkit.models.metrics.recalls_of`) of one data
            set and, but for `by`, one configuration.
        by: column that tells panels apart.

    Raises:
        ConfigError: columns are missing, there are no rows, several data sets or runs of one seed in a panel, or more
            classes than there are looks.
    """
    check_table(recalls, ["run", "seed", by, "labels", "class", "recall"], "table of recalls")
    if "dataset" in recalls.columns and recalls["dataset"].nunique() > 1:
        raise ConfigError(f"recalls are of {recalls['dataset'].nunique()} data sets, whose classes differ: take one.")
    repeated = recalls.groupby([by, "seed"])["run"].nunique() > 1
    if repeated.any():
        panel, seed = repeated[repeated].index[0]
        raise ConfigError(f"{by}={panel} has several runs of seed {seed}: filter the table of recalls.")
    names = sorted(recalls["class"].unique())
    if len(names) > CLASS_LOOKS:
        raise ConfigError(
            f"the lines of {len(names)} classes cannot be told apart in one figure, {CLASS_LOOKS} are the most; take "
            "some of them from the table of recalls."
        )
    looks = {name: class_look(number) for number, name in enumerate(names)}
    panel_names = sorted(recalls[by].unique(), key=random_first)
    figure, panels = side_by_side(len(panel_names), 2.1)
    handles: dict[object, Line2D] = {}
    for number, (axes, panel) in enumerate(zip(panels, panel_names, strict=True)):
        rows = recalls[recalls[by] == panel]
        for name, line in rows.groupby("class"):
            mean = line.groupby("labels")["recall"].mean()
            colour, marker, dashes = looks[name]
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dashes}
            (handles[name],) = axes.plot(mean.index, mean, markersize=3, linewidth=1, label=str(name), **look)
        axes.set_title(f"{title_of(str(panel))} ({seeds_of(pd.Series(rows['seed'].nunique()))})")
        axes.set_xlabel("labels bought")
        axes.set_ylim(-0.03, 1.03)
        ticks_at(axes, rows["labels"])
        metric_axis(axes, "y", "recall", labelled=number % PER_ROW == 0)
        axes.grid()
    legend_below(figure, [handles[name] for name in names])
    return figure
