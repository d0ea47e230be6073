"""Figures of calibration: can the confidence of a prediction be believed?"""

from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from palkit.errors import ConfigError
from palkit.models.metrics import ECE_BINS, calibration_error
from palkit.studies.plots import style
from palkit.studies.statistics import curves
from palkit.studies.statistics.tables import between, check_table

ACCURACY_COLOUR, GAP_COLOUR = style.CLASS_COLOURS[1], style.SERIES_COLOURS[1]
VARIANT_COLOURS = (*style.SERIES_COLOURS, *style.OTHER_COLOURS[1:6])
QUARTERS = (0, 0.25, 0.5, 0.75, 1)

# As parts of a panel's height.
STRIP_HEIGHT, STRIP_GAP = 0.2, 0.06


@style.styled
def reliability_diagrams(tables: pd.DataFrame) -> Figure:
    """Accuracy against confidence, one panel per variant, with the share of samples per bin below.

    Shaded is the gap between accuracy and mean confidence: above a bar where confidence is too high, in it where it is
    too low. The calibration error written in a panel is the mean gap over its samples.

    Args:
        tables: `variant` and the columns of `palkit.models.metrics.reliability_of`, 15 rows per variant; panels are in
            order of appearance. For several seeds, give the table of all their samples together.

    Raises:
        ConfigError: columns or rows are missing, or a variant has a bin more than once or no samples.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, figure 1.
    """
    check_table(tables, ["variant", "bin", "count", "confidence", "accuracy"], "reliability table")
    variants = {str(name): table.sort_values("bin") for name, table in tables.groupby("variant", sort=False)}
    for name, table in variants.items():
        if list(table["bin"]) != list(range(ECE_BINS)) or not table["count"].sum():
            raise ConfigError(
                f"the reliability table of variant {name!r} must have each bin from 0 to {ECE_BINS - 1} once and at "
                f"least one sample; it has {len(table)} rows and {table['count'].sum()} samples. Make one table per "
                "variant, of all its samples, with palkit.models.metrics.reliability_of."
            )
    # One or two panels are wide, and the diagonal should not lie flat.
    figure, panels = style.side_by_side(len(variants), 2.3 if len(variants) > 2 else 3.2)
    strips = []
    titles = style.shown_names(variants)
    for number, (axes, title, table) in enumerate(zip(panels, titles, variants.values(), strict=True)):
        axes.set_title(title)
        _draw_accuracy(axes, table)
        strips.append(_draw_shares(axes, table))
        if number % style.PER_ROW == 0:
            axes.set_ylabel("accuracy (%)")
            strips[-1].set_ylabel("share (%)")
        else:
            strips[-1].tick_params(labelleft=False)
    top = max(strip.get_ylim()[1] for strip in strips)
    for strip in strips:
        strip.set_ylim(0, top)
    style.legend_below(figure, [*panels[0].containers, *panels[0].lines, *strips[0].containers])
    return figure


def _draw_accuracy(axes: Axes, table: pd.DataFrame) -> None:
    accuracy, confidence = table["accuracy"].fillna(0), table["confidence"].fillna(0)
    _bars(axes, accuracy, color=ACCURACY_COLOUR, edgecolor="white", label="accuracy")
    # Hatched, so that it can be told from the bars without colour.
    look = {"facecolor": (GAP_COLOUR, 0.3), "edgecolor": GAP_COLOUR, "hatch": "/////"}
    _bars(axes, confidence - accuracy, bottom=accuracy, label="gap to mean confidence", **look)
    axes.plot([0, 1], [0, 1], color=style.INK, linestyle="--", linewidth=0.8, label="accuracy = confidence")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.annotate(f"ECE {100 * calibration_error(table):.1f} %", (0.04, 0.96), va="top", bbox=box)
    axes.set(ylim=(0, 1), yticks=QUARTERS)
    axes.tick_params(labelbottom=False)


def _draw_shares(axes: Axes, table: pd.DataFrame) -> Axes:
    """Share of samples per bin in a strip of its own below a panel."""
    strip = axes.inset_axes((0, -STRIP_HEIGHT - STRIP_GAP, 1, STRIP_HEIGHT))
    _bars(strip, table["count"] / table["count"].sum(), color=style.INK, edgecolor="white", label="share of samples")
    strip.set_xlabel("confidence (%)")
    strip.yaxis.set_major_locator(MaxNLocator(2, steps=(1, 2, 5, 10)))
    return strip


def _bars(axes: Axes, heights: pd.Series, **look: Any) -> None:
    """One bar over the width of each bin, both axes in per cent."""
    axes.bar(np.arange(ECE_BINS) / ECE_BINS, heights, 1 / ECE_BINS, align="edge", linewidth=0.4, **look)
    axes.set(xlim=(0, 1), xticks=QUARTERS)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=None))


@style.styled
def calibration_curves(rounds: pd.DataFrame, metric: str = "ece", by: str = "variant") -> Figure:
    """Metric against labels bought: one panel per adapter and strategy, one line per variant, 95 % intervals as bands.

    Args:
        rounds: table of rounds of one data set and backbone (see `palkit.studies.statistics`) with the column `by`; a
            variant made after fitting, such as temperature scaling, may repeat the run of the one that it was made
            from.
        metric: column to draw.
        by: column that names the variants.

    Raises:
        ConfigError: as `palkit.studies.statistics.curves`.
    """
    check_table(rounds, ["run", by], "table of rounds")
    # Run and round alone would count such a repetition as a run read twice.
    named = rounds.assign(run=rounds["run"].astype(str) + "/" + rounds[by].astype(str))
    table = curves(named, metric, ("adapter", "strategy", by))
    variants = rounds[by].unique()
    styles = dict(zip(variants, cycle(zip(VARIANT_COLOURS, style.OTHER_MARKERS, strict=True)), strict=False))
    panels_of = table.groupby(["adapter", "strategy"])
    figure, panels = style.side_by_side(len(panels_of), 2.6)
    handles = {}
    for number, (axes, ((adapter, strategy), lines)) in enumerate(zip(panels, panels_of, strict=True)):
        for variant, line in lines.groupby(by):
            colour, marker = styles[variant]
            handles[variant] = style.curve(axes, line, color=colour, marker=marker, label=str(variant))
        names = f"{style.title_of(str(adapter))}\n{style.title_of(str(strategy))}"
        axes.set_title(f"{names} ({between(lines['n_seeds'], 'seed')})")
        style.label_axes(axes, number, metric)
        style.ticks_at(axes, lines["labels"])
    note = style.interval_note("bands", table["low"], "of the mean over seeds")
    style.legend_below(figure, [handles[variant] for variant in variants], note)
    return figure
