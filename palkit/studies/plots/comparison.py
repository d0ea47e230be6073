"""Figures that compare many configurations at once: their ranks, their recall of each class."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from palkit.strategies import STRATEGIES
from palkit.studies.plots import style
from palkit.studies.statistics import Ranking
from palkit.studies.statistics.tables import check_runs, counted

BLOCK_NAMES = {"seed": "pairs of setting and seed", "setting": "settings", "dataset": "data sets"}


@style.styled
def critical_difference(ranking: Ranking) -> Figure:
    """Critical-difference diagram: average ranks, with bars over strategies that Nemenyi's test cannot tell apart.

    Args:
        ranking: from `palkit.studies.statistics.rank_strategies`.

    Source: Demsar, JMLR 2006, figure 1.
    """
    # Imported here: it brings seaborn along, which takes a while.
    from scikit_posthocs import critical_difference_diagram

    names = [style.configuration_name(*str(name).split(" + ")) for name in ranking.ranks.index]
    shown = dict(zip(ranking.ranks.index, style.shown_names(names), strict=True))
    count = len(shown)
    width = min(style.WIDTH, 0.75 * style.WIDTH + 2 * style.excess(names, 16))
    figure, axes = style.one_panel(width, 1.3 + 0.15 * count)
    artists = critical_difference_diagram(
        ranking.ranks.rename(shown),
        ranking.p_values.rename(index=shown, columns=shown),
        alpha=ranking.alpha,
        ax=axes,
        label_fmt_left="{label} ({rank:.1f})",
        label_fmt_right="({rank:.1f}) {label}",
        elbow_props={"linewidth": 1, "marker": ""},
        crossbar_props={"color": style.INK, "marker": ""},
        color_palette={shown[name]: style.strategy_style(_strategy_of(str(name)))[0] for name in shown},
        text_h_margin=0.02 * count,
    )
    for line in axes.lines:
        if np.ptp(line.get_ydata()) == 0:
            # Bars come through a set of names, in another order in every process.
            line.set_xdata(np.sort(line.get_xdata()))
    for label in artists["labels"]:
        label.set_color(style.INK)  # the paler colours cannot be read as text
    axes.spines["top"].set_visible(True)
    axes.set_xlim(1, count)
    axes.set_xticks(range(1, count + 1))
    p = f"= {ranking.friedman_p:.3f}" if ranking.friedman_p >= 0.001 else "< 0.001"
    axes.set_title(
        f"average ranks over {ranking.n_blocks} {BLOCK_NAMES[ranking.blocks]}\n"
        f"Friedman p {p}, critical difference {ranking.critical_difference:.1f}"
    )
    return figure


@style.styled
def regret_strips(table: pd.DataFrame) -> Figure:
    """What every strategy falls short of the best single one: a point per data set, the mean as a bar.

    Args:
        table: of `palkit.studies.deciding.regrets`.
    """
    regret = table["regret"].unstack("dataset")
    order = regret.mean(axis=1).sort_values(ascending=False).index
    figure, axes = style.one_panel(0.75 * style.WIDTH, 0.9 + 0.26 * len(order))
    axes.axvline(0, color=style.INK, linewidth=0.8)
    for row, name in enumerate(order):
        colour, marker = style.strategy_style(_strategy_of(str(name)))
        axes.plot(regret.loc[name], [row] * regret.shape[1], linestyle="", marker=marker, color=colour, alpha=0.7)
        axes.plot([regret.loc[name].mean()] * 2, [row - 0.35, row + 0.35], color=style.INK, linewidth=1.5)
    style.name_ticks(axes, "y", [style.title_of(str(name)) for name in order])
    axes.set_xlabel(f"points of area below the best single strategy, {counted(regret.shape[1], 'data set')}")
    axes.grid(axis="x")
    return figure


def _strategy_of(treatment: str) -> str:
    """The strategy in the name of a treatment, which may name an adapter or a balance too."""
    parts = treatment.split(" + ")
    return next((part for part in parts if part in STRATEGIES), parts[0])


@style.styled
def class_recalls(recalls: pd.DataFrame, by: str = "strategy") -> Figure:
    """Recall of every class against labels bought, mean over seeds: one panel per strategy, one line per class.

    Args:
        recalls: columns `run`, `by`, `labels`, `class`, `recall` (see `palkit.models.metrics.recalls_of`) of one data
            set and, but for `by`, one configuration.
        by: column that tells panels apart.

    Raises:
        ConfigError: a panel has several runs of one seed.
    """
    check_runs(recalls, by, "table of recalls")
    names = sorted(recalls["class"].unique())
    looks = {name: style.class_look(number) for number, name in enumerate(names)}
    panel_names = sorted(recalls[by].unique(), key=style.random_first)
    figure, panels = style.side_by_side(len(panel_names), 2.1)
    handles: dict[object, Line2D] = {}
    for number, (axes, panel) in enumerate(zip(panels, panel_names, strict=True)):
        rows = recalls[recalls[by] == panel]
        for name, line in rows.groupby("class"):
            mean = line.groupby("labels")["recall"].mean()
            (handles[name],) = axes.plot(mean.index, mean, markersize=3, linewidth=1, label=str(name), **looks[name])
        axes.set_title(f"{style.title_of(str(panel))} ({counted(rows['seed'].nunique(), 'seed')})")
        style.label_axes(axes, number, "recall")
        axes.set_ylim(-0.03, 1.03)
        style.ticks_at(axes, rows["labels"])
    style.legend_below(figure, [handles[name] for name in names])
    return figure
