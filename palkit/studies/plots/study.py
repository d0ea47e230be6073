"""Figures of a study: runs of many adapters, strategies and seeds beside each other."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from palkit.errors import ConfigError
from palkit.studies.plots.style import (
    COST_COLOURS,
    INK,
    METRIC_LABELS,
    PER_ROW,
    WIDTH,
    PlainFigure,
    check_table,
    configuration_name,
    excess,
    filling,
    heatmap,
    interval_note,
    is_share,
    legend_below,
    metric_axis,
    name_configurations,
    name_ticks,
    panel_columns,
    random_first,
    seeds_of,
    shown_names,
    side_by_side,
    strategy_style,
    styled,
    ticks_at,
    title_of,
)
from palkit.studies.statistics import curves, iqm_curves, sign_of

MOST_SAVED = 10  # what a figure of savings shows; intervals go beyond its edges
AXIS_LABELS = {"labels": "labels bought", "fraction": "share of all labels bought (%)"}


@styled
def budget_curves(rounds: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Metric against labels bought: one panel per adapter, one line per strategy, bands of 95 % t intervals over seeds.

    Where runs differ in class balance, each has its own panel.

    Args:
        rounds: table of rounds of one data set and backbone (see `palkit.studies.statistics`).
        metric: column to draw.

    Raises:
        ConfigError: as `palkit.studies.statistics.curves`.
    """
    by = panel_columns(rounds)
    return _curve_panels(curves(rounds, metric, (*by, "strategy")), by, "mean", metric)


@styled
def iqm_budget_curves(
    rounds: pd.DataFrame,
    metric: str = "accuracy",
    tasks: Sequence[str] = ("dataset",),
    axis: str = "labels",
    label: str | None = None,
) -> Figure:
    """As `budget_curves`, with interquartile means over seeds and data sets, and their t intervals over seeds.

    Args:
        rounds: table of rounds, or of gains (see `palkit.studies.statistics.gains`), of one or more data sets.
        metric: column to draw.
        tasks: columns that tell data sets apart.
        axis: "labels" or "fraction" of the budget, see `palkit.studies.statistics.iqm_curves`.
        label: of the vertical axis, e.g. "gain over random (points)"; None names the metric.

    Raises:
        ConfigError: as `palkit.studies.statistics.iqm_curves`.
    """
    by = panel_columns(rounds)
    return _curve_panels(iqm_curves(rounds, metric, (*by, "strategy"), tasks, axis), by, "iqm", metric, axis, label)


def _curve_panels(
    table: pd.DataFrame, by: Sequence[str], value: str, metric: str, axis: str = "labels", label: str | None = None
) -> Figure:
    """One panel per value of `by`, one line per strategy."""
    panels_of = table.groupby(list(by))
    figure, panels = side_by_side(len(panels_of), 2.8)
    handles: dict[str, Line2D] = {}
    # As wide as a panel, a title would touch its neighbour's.
    room = 84 // len(panels[:PER_ROW])
    names = shown_names((configuration_name(*map(str, key)) for key, _ in panels_of), room)
    for number, (axes, name, (_, lines)) in enumerate(zip(panels, names, panels_of, strict=True)):
        for strategy, line in lines.groupby("strategy"):
            handles[str(strategy)] = _curve(axes, line, str(strategy), axis, value)
        count = seeds_of(lines["n_seeds"])
        if value == "iqm" and lines["n_tasks"].max() > 1:
            count += f", {lines['n_tasks'].max()} data sets"
        fits = len(name) + len(count) <= room
        axes.set_title(f"{name}{' ' if fits else chr(10)}({count})")
        axes.set_xlabel(AXIS_LABELS[axis])
        if axis == "fraction":
            axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=None))
        else:
            ticks_at(axes, lines[axis])
        metric_axis(axes, "y", metric, labelled=number % PER_ROW == 0)
        if label and number % PER_ROW == 0:
            axes.set_ylabel(label)
        elif is_share(metric) and (table[value] >= 0).all():
            axes.set_ylim(max(axes.get_ylim()[0], 0), min(axes.get_ylim()[1], 1))  # where a band goes beyond a share
        axes.grid()
    of = "of the mean over seeds"
    if value == "iqm":
        of = "of the interquartile mean over seeds and data sets, for these data sets"
    entries = [handles[name] for name in sorted(handles, key=random_first)]
    legend_below(figure, entries, interval_note("bands", table["low"], of))
    return figure


def _curve(axes: Axes, line: pd.DataFrame, strategy: str, x: str, value: str) -> Line2D:
    colour, marker = strategy_style(strategy)
    axes.fill_between(line[x], line["low"], line["high"], color=colour, alpha=0.13, linewidth=0)
    # The baseline is dashed: it is what every other line is read against.
    (handle,) = axes.plot(
        line[x],
        line[value],
        color=colour,
        marker=marker,
        linestyle="--" if strategy == "random" else "-",
        markeredgecolor="white",
        markeredgewidth=0.4,
        label=title_of(strategy),
    )
    return handle


@styled
def area_under_curves(summary: pd.DataFrame) -> Figure:
    """Area under the budget curve and final value of every configuration, best area first, with intervals.

    Args:
        summary: from `palkit.studies.statistics.summarise` by `("adapter", "strategy")`, and `"balance"` where runs
        differ.

    Raises:
        ConfigError: columns are missing or there are no rows.
    """
    intervals = [f"{value}{end}" for value in ("aubc", "final") for end in ("", "_low", "_high")]
    check_table(summary, ["adapter", "strategy", "metric", *intervals], "summary")
    metric = summary["metric"].iloc[0]
    table = summary.sort_values("aubc", kind="stable", key=lambda areas: sign_of(metric) * areas)
    figure, panels = side_by_side(2, 0.8 + 0.19 * len(table))
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
                markerfacecolor=filling(line["adapter"], colour),
                elinewidth=1,
            )
        axes.set_title(title)
        axes.grid()
        metric_axis(axes, "x", metric)
    name_configurations(panels[0], table)
    figure.supxlabel(interval_note("bars", table["aubc_low"], "over seeds, for this data set"), fontsize=7)
    return figure


@styled
def pairwise(penalties: pd.DataFrame) -> Figure:
    """Pairwise penalty matrix, strategies with the lowest column mean (beaten least) first.

    Args:
        penalties: from `palkit.studies.statistics.penalty_matrix`, with its `attrs`.

    Raises:
        ConfigError: there is one strategy only.
    """
    if len(penalties) < 2:
        raise ConfigError(f"there is one strategy, {', '.join(map(str, penalties.index))}: nothing is compared.")
    off_diagonal = penalties.mask(np.eye(len(penalties), dtype=bool))
    means = off_diagonal.mean().sort_values(kind="stable")
    order = list(means.index)
    shown = pd.concat([off_diagonal.loc[order, order], means.to_frame("mean").T])
    figure = PlainFigure(figsize=(0.9 + 0.5 * len(order), 1.0 + 0.36 * len(order)), layout="constrained")
    axes = figure.subplots()
    text = shown.map(lambda value: "" if np.isnan(value) else f"{value:.2g}")
    heatmap(axes, shown.to_numpy(), text.to_numpy())
    # Undefined pairs and the diagonal are grey: nothing was compared there.
    axes.set_facecolor("#EEEEEE")
    axes.axhline(len(order) - 0.5, color=INK, linewidth=1.2)
    name_ticks(axes, "x", map(title_of, order))
    name_ticks(axes, "y", [*map(title_of, order), "mean"])
    axes.set_xlabel("is beaten")
    axes.set_ylabel("beats")
    settings, seeds = penalties.attrs["settings"], penalties.attrs["n_seeds"]
    tested = f"{seeds} seeds" if seeds else "no test: too few seeds"
    over = f" summed over {settings} settings" if settings > 1 else ""
    axes.set_title(f"share of label counts{over} at which row beats column, {tested}")
    return figure


@styled
def label_savings(table: pd.DataFrame) -> Figure:
    """How many times fewer labels each configuration needs than the reference, with intervals.

    Args:
        table: from `label_saving` by `("adapter", "strategy")`, and `"balance"` where runs differ in it.

    Raises:
        ConfigError: columns are missing or there are no rows.
    """
    ends = ["saving_low", "saving", "saving_high"]
    check_table(table, ["adapter", "strategy", "metric", "target_low", "target_high", *ends], "label savings")
    ordered = table.sort_values("saving", kind="stable")
    figure, (axes,) = side_by_side(1, 0.95 + 0.19 * len(ordered))
    for row, (_, line) in enumerate(ordered.iterrows()):
        colour, _ = strategy_style(line["strategy"])
        low, middle, high = line[ends]
        axes.errorbar(
            middle,
            row,
            xerr=[[middle - low], [high - middle]],
            color=colour,
            marker="o",
            markersize=4.5,
            markerfacecolor=filling(line["adapter"], colour),
            elinewidth=1,
        )
        text = f"{middle:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else "")
        axes.annotate(
            text,
            (min(np.fmax(middle, high), MOST_SAVED), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=7,
        )
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    shown = ordered[ends].clip(1 / MOST_SAVED, MOST_SAVED)
    left, right = min(shown.min().min(), 0.9), max(shown.max().max(), 1.1)
    # As many as have room for their numbers.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if right / left < 20 else (1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    # Room on the right for the numbers.
    axes.set_xlim(left / (right / left) ** 0.05, right * (right / left) ** 0.5)
    name_configurations(axes, ordered)
    axes.grid(axis="x")
    metric = METRIC_LABELS.get(ordered["metric"].iloc[0], ordered["metric"].iloc[0]).removesuffix(" (%)")
    note = interval_note("bars", ordered["saving_low"], "over seeds, for this data set")
    low, high = ordered["target_low"].min(), ordered["target_high"].max()
    targets = (
        f"{100 * low:.1f} to {100 * high:.1f} %" if is_share(ordered["metric"].iloc[0]) else f"{low:.3g} to {high:.3g}"
    )
    axes.set_xlabel(f"times fewer labels for the same {metric},\nfrom {targets}\n({note})")
    return figure


@styled
def round_costs(rounds: pd.DataFrame) -> Figure:
    """Mean seconds per round spent on fitting, scoring and selecting, one panel per adapter.

    Panels have their own scale: a LoRA round costs many times a probe's.

    Args:
        rounds: the table of rounds with `fit_s`, `score_s`, `select_s`.

    Raises:
        ConfigError: columns are missing or there are no rows.
    """
    check_table(rounds, ["adapter", "strategy", *COST_COLOURS], "table of rounds")
    costs = rounds.groupby(["adapter", "strategy"])[list(COST_COLOURS)].mean()
    adapters = sorted(costs.index.unique("adapter"))
    strategies = sorted(costs.index.unique("strategy"), key=random_first)[::-1]
    figure, panels = side_by_side(len(adapters), 0.7 + 0.2 * len(strategies))
    for axes, adapter in zip(panels, adapters, strict=True):
        seconds = costs.loc[adapter].reindex(strategies)
        left = np.zeros(len(strategies))
        for part, colour in COST_COLOURS.items():
            width = seconds[part].fillna(0).to_numpy()
            axes.barh(range(len(strategies)), width, left=left, color=colour, height=0.65, label=part[:-2])
            left = left + width
        axes.set_title(shown_names([title_of(adapter)], 84 // len(panels[:PER_ROW]))[0])
        axes.set_xlabel("seconds per round")
        axes.grid(axis="x")
    name_ticks(panels[0], "y", map(title_of, strategies))
    legend_below(figure, panels[0].containers)
    return figure


@styled
def overlaps(shared: pd.DataFrame) -> Figure:
    """Share of labels that two configurations bought in common.

    Args:
        shared: from `palkit.studies.statistics.selection_overlap`.

    Raises:
        ConfigError: there are fewer than two configurations.
    """
    if len(shared) < 2:
        raise ConfigError(
            "two or more configurations are needed to have bought something in common; there is "
            + ("none." if shared.empty else f"one, {title_of(str(shared.index[0]))}.")
        )
    size = len(shared)
    figure = PlainFigure(figsize=(1.6 + 0.55 * size, 1.1 + 0.36 * size), layout="constrained")
    axes = figure.subplots()
    heatmap(axes, shared.to_numpy(float), np.vectorize("{:.0%}".format)(shared.to_numpy(float)))
    name_ticks(axes, "x", map(title_of, map(str, shared.columns)))
    name_ticks(axes, "y", map(title_of, map(str, shared.index)))
    axes.set_xlabel("labels bought after the initial set, in common")
    return figure


@styled
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
    size = min(1.8 + 0.42 * columns, WIDTH), 1.1 + 0.27 * rows + excess(counts.columns)
    figure = PlainFigure(figsize=size, layout="constrained")
    axes = figure.subplots()
    values = counts.to_numpy(float)
    whole = (values == values.round()).all()
    heatmap(axes, values, np.vectorize(lambda value: f"{value:.{0 if whole else 1}f}")(values))
    name_ticks(axes, "x", counts.columns)
    name_ticks(axes, "y", [title_of(str(name)) for name in counts.index])
    axes.set_xlabel("class (labels bought)")
    axes.set_ylabel(str(counts.index.name or "strategy"))
    return figure
