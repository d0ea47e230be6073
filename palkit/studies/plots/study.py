"""Figures of a study: runs of many adapters, strategies and seeds beside each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from palkit.errors import ConfigError
from palkit.studies import statistics
from palkit.studies.plots import style
from palkit.studies.statistics import curves, iqm_curves, sign_of
from palkit.studies.statistics.tables import between, interval_texts

MOST_SAVED = 10  # what a figure of savings shows; intervals go beyond its edges


@style.styled
def budget_curves(rounds: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Metric against labels bought: one panel per adapter, one line per strategy, bands of 95 % t intervals over seeds.

    Where runs differ in class balance, each has its own panel.

    Args:
        rounds: table of rounds of one data set and backbone (see `palkit.studies.statistics`).
        metric: column to draw.

    Raises:
        ConfigError: as `palkit.studies.statistics.curves`.
    """
    by = style.panel_columns(rounds)
    return _curve_panels(curves(rounds, metric, (*by, "strategy")), by, "mean", metric)


@style.styled
def iqm_budget_curves(rounds: pd.DataFrame, metric: str = "accuracy", axis: str = "labels") -> Figure:
    """As `budget_curves`, with interquartile means over seeds and data sets, and their t intervals over seeds.

    Args:
        rounds: table of rounds, or of gains (see `palkit.studies.statistics.gains`), of one or more data sets.
        metric: column to draw.
        axis: "labels" or "fraction" of the budget, see `palkit.studies.statistics.iqm_curves`.

    Raises:
        ConfigError: as `palkit.studies.statistics.iqm_curves`.
    """
    by = style.panel_columns(rounds)
    return _curve_panels(iqm_curves(rounds, metric, (*by, "strategy"), axis), by, "iqm", metric, axis)


def _curve_panels(table: pd.DataFrame, by: Sequence[str], value: str, metric: str, axis: str = "labels") -> Figure:
    """One panel per value of `by`, one line per strategy."""
    panels_of = table.groupby(list(by))
    figure, panels = style.side_by_side(len(panels_of), 2.8)
    handles: dict[str, Line2D] = {}
    # As wide as a panel, a title would touch its neighbour's.
    room = 84 // len(panels[: style.PER_ROW])
    names = style.shown_names((style.configuration_name(*map(str, key)) for key, _ in panels_of), room)
    for number, (axes, name, (_, lines)) in enumerate(zip(panels, names, panels_of, strict=True)):
        style.label_axes(axes, number, metric)
        for strategy, line in lines.groupby("strategy"):
            colour, marker = style.strategy_style(str(strategy))
            # The baseline is dashed: it is what every other line is read against.
            dashes = "--" if strategy == "random" else "-"
            look = {"color": colour, "marker": marker, "linestyle": dashes, "label": style.title_of(str(strategy))}
            handles[str(strategy)] = style.curve(axes, line, value, axis, **look)
        count = between(lines["n_seeds"], "seed")
        if value == "iqm" and lines["n_tasks"].max() > 1:
            count += f", {lines['n_tasks'].max()} data sets"
        fits = len(name) + len(count) <= room
        axes.set_title(f"{name}{' ' if fits else chr(10)}({count})")
        if axis == "fraction":
            axes.set_xlabel("share of all labels bought (%)")
            axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=None))
        else:
            style.ticks_at(axes, lines[axis])
    if style.is_share(metric) and (table[value] >= 0).all():  # where a band goes beyond a share; all have one axis
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, 0), min(high, 1))
    of = "of the mean over seeds"
    if value == "iqm":
        of = "of the interquartile mean over seeds and data sets, for these data sets"
    entries = [handles[name] for name in sorted(handles, key=style.random_first)]
    style.legend_below(figure, entries, style.interval_note("bands", table["low"], of))
    return figure


@style.styled
def gain_curves(rounds: pd.DataFrame, reference: str, metric: str = "accuracy", by: str = "variant") -> Figure:
    """How much better every configuration is than the reference, against the labels: one panel per data set.

    A bar on the line of no gain is the 95 % interval of the crossing, where that is known.

    Args:
        rounds: see `palkit.studies.statistics.crossings`.
        reference: likewise.
        metric: column that is compared.
        by: column that tells configurations apart.

    Raises:
        ConfigError: as `palkit.studies.statistics.crossings`.
    """
    table, found = (of(rounds, reference, metric, by) for of in (statistics.gain_curves, statistics.crossings))
    panels_of, names = table.groupby("dataset"), sorted(table[by].unique())
    figure, panels = style.side_by_side(len(panels_of), 2.6)
    handles: dict[str, Line2D] = {}
    for number, (axes, (dataset, lines)) in enumerate(zip(panels, panels_of, strict=True)):
        style.label_axes(axes, number, metric)
        axes.axhline(0, color=style.INK, linewidth=0.8)
        for name, line in lines.groupby(by):
            colour = style.SERIES_COLOURS[names.index(name) % len(style.SERIES_COLOURS)]
            handles[str(name)] = style.curve(axes, line, color=colour, marker="o", label=style.title_of(str(name)))
            crossed = found[(found["dataset"] == dataset) & (found[by] == name)].iloc[0]
            fewest, most = line["labels"].min(), line["labels"].max()
            if np.isfinite(crossed["high"]) and fewest <= crossed["labels"] <= most:
                ends = np.clip([crossed["low"], crossed["high"]], fewest, most)
                axes.plot(ends, [0, 0], color=colour, linewidth=3, alpha=0.5, solid_capstyle="butt")
        axes.set_title(f"{style.title_of(str(dataset))} ({between(lines['n_seeds'], 'seed')})")
        if number % style.PER_ROW == 0:
            unit = "points" if style.is_share(metric) else style.METRIC_LABELS.get(metric, metric)
            axes.set_ylabel(f"gain over {style.title_of(reference)} ({unit})")
        style.log_axis(axes, (1, 2, 5))
    note = style.interval_note("bands", table["low"], "of the mean over seeds")
    style.legend_below(figure, [handles[name] for name in names if name in handles], note)
    return figure


def _configuration(axes: Axes, row: int, line: pd.Series, value: str) -> None:
    """A configuration's value with its interval, in a row of a panel."""
    colour, _ = style.strategy_style(line["strategy"])
    # The baseline adapter is hollow, so that it can be told from the others at a glance.
    inside = "white" if line["adapter"] == "linear_probe" else colour
    look = {"color": colour, "marker": "o", "markersize": 4.5, "markerfacecolor": inside, "elinewidth": 1}
    style.error_bar(axes, line[value], row, (line[f"{value}_low"], line[f"{value}_high"]), "x", **look)


@style.styled
def area_under_curves(summary: pd.DataFrame) -> Figure:
    """Area under the budget curve and final value of every configuration, best area first, with intervals.

    Args:
        summary: from `palkit.studies.statistics.summarise` by `("adapter", "strategy")`, and `"balance"` where runs
        differ.
    """
    metric = summary["metric"].iloc[0]
    table = summary.sort_values("aubc", kind="stable", key=lambda areas: sign_of(metric) * areas)
    figure, panels = style.side_by_side(2, 0.8 + 0.19 * len(table))
    titles = {"aubc": "area under the budget curve", "final": "after the last round"}
    for axes, (value, title) in zip(panels, titles.items(), strict=True):
        for row, (_, line) in enumerate(table.iterrows()):
            _configuration(axes, row, line, value)
        axes.set_title(title)
        axes.grid()
        style.metric_axis(axes, "x", metric)
    style.name_configurations(panels[0], table)
    figure.supxlabel(style.interval_note("bars", table["aubc_low"], "over seeds, for this data set"), fontsize=7)
    return figure


@style.styled
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
    figure, axes = style.one_panel(0.9 + 0.5 * len(order), 1.0 + 0.36 * len(order))
    text = shown.map(lambda value: "" if np.isnan(value) else f"{value:.2g}")
    style.heatmap(axes, shown.to_numpy(), text.to_numpy())
    # Undefined pairs and the diagonal are grey: nothing was compared there.
    axes.set_facecolor("#EEEEEE")
    axes.axhline(len(order) - 0.5, color=style.INK, linewidth=1.2)
    style.name_ticks(axes, "x", map(style.title_of, order))
    style.name_ticks(axes, "y", [*map(style.title_of, order), "mean"])
    axes.set_xlabel("is beaten")
    axes.set_ylabel("beats")
    settings, seeds = penalties.attrs["settings"], penalties.attrs["n_seeds"]
    tested = f"{seeds} seeds" if seeds else "no test: too few seeds"
    over = f" summed over {settings} settings" if settings > 1 else ""
    axes.set_title(f"share of label counts{over} at which row beats column, {tested}")
    return figure


@style.styled
def label_savings(table: pd.DataFrame) -> Figure:
    """Labels that each configuration saves against the reference, as a factor with its interval.

    Args:
        table: from `label_saving` by `("adapter", "strategy")`, and `"balance"` where runs differ in it.
    """
    ends = ["saving_low", "saving", "saving_high"]
    ordered = table.sort_values("saving", kind="stable")
    texts = interval_texts(ordered, "saving", ".2f")
    figure, (axes,) = style.side_by_side(1, 0.95 + 0.19 * len(ordered))
    for row, (_, line) in enumerate(ordered.iterrows()):
        _configuration(axes, row, line, "saving")
        place = (min(line[ends].max(), MOST_SAVED), row)
        look: dict[str, Any] = {"textcoords": "offset points", "va": "center_baseline", "fontsize": 7}
        axes.annotate(texts[row], place, xytext=(6, 0), **look)
    axes.axvline(1, color=style.INK, linewidth=0.8)
    shown = ordered[ends].clip(1 / MOST_SAVED, MOST_SAVED)
    left, right = min(shown.min().min(), 0.9), max(shown.max().max(), 1.1)
    # As many as have room for their numbers.
    style.log_axis(axes, (1, 1.5, 2, 3, 5, 7) if right / left < 20 else (1, 3))
    # Room on the right for the numbers.
    axes.set_xlim(left / (right / left) ** 0.05, right * (right / left) ** 0.5)
    style.name_configurations(axes, ordered)
    axes.grid(axis="x")
    metric = ordered["metric"].iloc[0]
    note = style.interval_note("bars", ordered["saving_low"], "over seeds, for this data set")
    low, high = ordered["target_low"].min(), ordered["target_high"].max()
    targets = f"{100 * low:.1f} to {100 * high:.1f} %" if style.is_share(metric) else f"{low:.3g} to {high:.3g}"
    name = style.METRIC_LABELS.get(metric, metric).removesuffix(" (%)")
    axes.set_xlabel(f"times fewer labels for the same {name},\nfrom {targets}\n({note})")
    return figure


@style.styled
def round_costs(rounds: pd.DataFrame) -> Figure:
    """Mean seconds per round spent on fitting, scoring and selecting, one panel per adapter.

    Panels have their own scale: a LoRA round costs many times a probe's.

    Args:
        rounds: the table of rounds with `fit_s`, `score_s`, `select_s`.
    """
    costs = rounds.groupby(["adapter", "strategy"])[list(style.COST_COLOURS)].mean()
    adapters = sorted(costs.index.unique("adapter"))
    strategies = sorted(costs.index.unique("strategy"), key=style.random_first)[::-1]
    figure, panels = style.side_by_side(len(adapters), 0.7 + 0.2 * len(strategies))
    for axes, adapter in zip(panels, adapters, strict=True):
        seconds = costs.loc[adapter].reindex(strategies)
        left = np.zeros(len(strategies))
        for part, colour in style.COST_COLOURS.items():
            width = seconds[part].fillna(0).to_numpy()
            axes.barh(range(len(strategies)), width, left=left, color=colour, height=0.65, label=part[:-2])
            left = left + width
        axes.set_title(style.shown_names([style.title_of(adapter)], 84 // len(panels[: style.PER_ROW]))[0])
        axes.set_xlabel("seconds per round")
        axes.grid(axis="x")
    style.name_ticks(panels[0], "y", map(style.title_of, strategies))
    style.legend_below(figure, panels[0].containers)
    return figure


@style.styled
def overlaps(shared: pd.DataFrame) -> Figure:
    """Share of labels that two configurations bought in common.

    Args:
        shared: from `palkit.studies.statistics.selection_overlap`.

    Raises:
        ConfigError: there are fewer than two configurations.
    """
    size = len(shared)
    if size < 2:
        raise ConfigError("two or more configurations are needed to have bought something in common.")
    figure, axes = style.one_panel(1.6 + 0.55 * size, 1.1 + 0.36 * size)
    style.heatmap(axes, shared.to_numpy(float), np.vectorize("{:.0%}".format)(shared.to_numpy(float)))
    style.name_ticks(axes, "x", map(style.title_of, map(str, shared.columns)))
    style.name_ticks(axes, "y", map(style.title_of, map(str, shared.index)))
    axes.set_xlabel("labels bought after the initial set, in common")
    return figure


@style.styled
def picks_by_class(counts: pd.DataFrame) -> Figure:
    """Labels bought per class, one row per strategy (or round, or run).

    Args:
        counts: index of strategies, columns of class names, values of labels bought (means over seeds, or
            counts); the index name, if any, names the vertical axis.
    """
    rows, columns = counts.shape
    height = 1.1 + 0.27 * rows + style.excess(counts.columns)
    figure, axes = style.one_panel(min(1.8 + 0.42 * columns, style.WIDTH), height)
    values = counts.to_numpy(float)
    whole = (values == values.round()).all()
    style.heatmap(axes, values, np.vectorize(f"{{:.{0 if whole else 1}f}}".format)(values))
    style.name_ticks(axes, "x", counts.columns)
    style.name_ticks(axes, "y", [style.title_of(str(name)) for name in counts.index])
    axes.set_xlabel("class (labels bought)")
    axes.set_ylabel(str(counts.index.name or "strategy"))
    return figure
