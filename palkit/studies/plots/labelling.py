"""The figure of a labelling session: what the model has learnt, and what more labels would bring."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from palkit.labelling.extrapolation import Forecast
from palkit.studies.plots import style
from palkit.studies.statistics.tables import between

ACCURACY, GUESS = style.SERIES_COLOURS[:2]
SIZE = (5.0, 3.0)  # inches: a panel beside the images to label


@style.styled
def session_curve(curve: pd.DataFrame, forecast: Forecast | None = None) -> Figure:
    """Held-out accuracy of a session against its labels, with what more labels would bring.

    Bars are 95 % intervals of what so few held-out images say about all: those of the curve where images were drawn by
    unequal chances, else Wilson's, for images set aside at random. The forecast's band is of the next measurements on
    the same images, which is why it may be narrower than the bars.

    Args:
        curve: a row per round with the columns `labels`; `accuracy`, NaN where nothing was held out; `held_out`,
            images it was measured on; and `first_guess`, share of the proposed images whose class the model guessed
            before they were labelled, may be NaN. `low` and `high` may be there, the ends of the accuracy's interval.
        forecast: drawn if it has numbers.
    """
    figure, axes = style.one_panel(*SIZE)
    measured, guessed = curve.dropna(subset="accuracy"), curve.dropna(subset="first_guess")
    if len(guessed):
        axes.plot(guessed["labels"], guessed["first_guess"], color=GUESS, marker="s", markersize=3.5, linestyle=":",
                  label="proposed images guessed right")  # fmt: skip
    if len(measured):
        _draw_accuracy(axes, measured)
    shown = curve["labels"]
    if forecast is not None and np.isfinite(forecast.median).any():
        _draw_forecast(axes, forecast, measured)
        shown = pd.concat([shown, pd.Series(forecast.labels)])
    axes.set_xlabel("labels")
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 6))
    style.metric_axis(axes, "y", "accuracy")
    axes.grid(axis="y")
    style.ticks_at(axes, shown)
    axes.margins(x=0.06)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2, handlelength=2.2)
    return figure


def _draw_accuracy(axes: Axes, measured: pd.DataFrame) -> None:
    accuracy, images = measured["accuracy"].to_numpy(float), measured["held_out"].to_numpy(int)
    tests = [stats.binomtest(round(share * count), count) for share, count in zip(accuracy, images, strict=True)]
    wilson = pd.DataFrame([test.proportion_ci(method="wilson") for test in tests], measured.index, ["low", "high"])
    low, high = measured.reindex(columns=["low", "high"]).fillna(wilson).to_numpy(float).T
    # A share that is no whole number of images may leave its interval by rounding.
    bars = np.maximum([accuracy - low, high - accuracy], 0)
    axes.errorbar(measured["labels"], accuracy, yerr=bars, color=ACCURACY, marker="o", elinewidth=0.8, capsize=2,
                  label=f"accuracy on {between(images, 'held-out image')}")  # fmt: skip


def _draw_forecast(axes: Axes, forecast: Forecast, measured: pd.DataFrame) -> None:
    """From the last round on, where nothing is uncertain about what was measured."""
    labels = np.append(measured["labels"].iloc[-1], forecast.labels)
    median, low, high = (np.append(forecast.last, values) for values in (forecast.median, forecast.low, forecast.high))
    axes.plot(labels, median, color=ACCURACY, linestyle="--", label="forecast")
    axes.fill_between(labels, low, high, color=ACCURACY, alpha=0.2, linewidth=0,
                      label=f"{100 * forecast.coverage:.4g} % interval")  # fmt: skip


@style.styled
def test_savings(summary: pd.DataFrame) -> Figure:
    """Labels that even draws need for the width of active testing's intervals, over its own, against these.

    Args:
        summary: `palkit.studies.deciding.active_summary` by `band` (of accuracy, as "(0.6, 0.8]") and `labels`.
    """
    figure, axes = style.one_panel(*SIZE)
    axes.axhline(1, color=style.INK, linewidth=0.8)
    for number, (band, line) in enumerate(summary.reset_index().groupby("band")):
        low, high = (100 * float(end) for end in str(band).strip("(]").split(","))
        axes.plot(line["labels"], line["saving"], color=style.SERIES_COLOURS[number % len(style.SERIES_COLOURS)],
                  marker="o", label=f"accuracy {low:g} to {high:g} %")  # fmt: skip
    axes.set_xlabel("test labels")
    axes.set_ylabel("labels, even to active")
    axes.grid(axis="y")
    style.ticks_at(axes, summary.reset_index()["labels"])
    figure.legend(loc="outside upper left", ncols=2, handlelength=2.2)
    return figure
