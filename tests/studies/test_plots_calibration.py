"""Figures of calibration by the data behind them: positions, names and units, never pixels."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from breadth import some
from matplotlib.axes import Axes
from PIL import Image

from palkit.errors import ConfigError
from palkit.models.metrics import calibration_error, reliability_of
from palkit.studies import plots
from palkit.studies.statistics import curves

pytestmark = pytest.mark.filterwarnings("error")

VARIANTS = ["cross entropy", "C-PEAL loss", "temperature", "label smoothing"]


def tables(variants: list[str]) -> pd.DataFrame:
    """Over-confident at first, under-confident at last; confidence above 0.3, so that some bins are empty."""
    rng = np.random.default_rng(0)
    parts = []
    for bias, variant in zip(np.linspace(-0.2, 0.1, len(variants)), variants, strict=True):
        confidence = rng.uniform(0.3, 1, 400)
        table = reliability_of(confidence, rng.random(400) < confidence + bias)
        parts.append(table.assign(variant=variant))
    return pd.concat(parts)


def strip_of(axes: Axes) -> Axes:
    (strip,) = axes.child_axes
    return strip


def test_reliability_diagrams_show_bins_gaps_and_shares() -> None:
    table = tables(VARIANTS)
    figure = plots.reliability_diagrams(table.sample(frac=1, random_state=0).sort_values("variant", kind="stable"))
    assert [axes.get_title() for axes in figure.axes] == sorted(VARIANTS)
    for axes in figure.axes:
        expected = table[table["variant"] == axes.get_title()].sort_values("bin")
        filled = expected.fillna(0)
        accuracy, gap = axes.containers
        np.testing.assert_allclose([bar.get_x() for bar in accuracy], np.arange(15) / 15)
        np.testing.assert_allclose([bar.get_height() for bar in accuracy], filled["accuracy"])
        np.testing.assert_allclose([bar.get_y() for bar in gap], filled["accuracy"])
        np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in gap], filled["confidence"])
        (shares,) = strip_of(axes).containers
        np.testing.assert_allclose([bar.get_height() for bar in shares], expected["count"] / 400)
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 0], [1, 1]])
        (text,) = axes.texts
        assert text.get_text() == f"ECE {100 * calibration_error(expected):.1f} %"
        assert strip_of(axes).get_xlim() == axes.get_xlim() == axes.get_ylim() == (0, 1)
    assert len({strip_of(axes).get_ylim() for axes in figure.axes}) == 1
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["accuracy", "gap to mean confidence", "accuracy = confidence", "share of samples"]


def test_reliability_diagrams_keep_the_order_and_name_axes_once_a_row() -> None:
    names = [f"{adapter}, {variant}" for adapter in ("probe", "LoRA") for variant in VARIANTS]
    figure = plots.reliability_diagrams(tables(names))
    assert [axes.get_title() for axes in figure.axes] == names
    labelled = [(axes.get_ylabel(), strip_of(axes).get_ylabel()) for axes in figure.axes]
    assert labelled == [("accuracy (%)", "share (%)"), *[("", "")] * 3] * 2
    assert {strip_of(axes).get_xlabel() for axes in figure.axes} == {"confidence (%)"}
    assert figure.axes[0].yaxis.get_major_formatter()(0.25) == "25"
    assert figure.get_figwidth() == 7


@pytest.mark.parametrize("count", some([8, 1, 3, 2], every=2))
def test_nothing_in_a_reliability_diagram_overlaps(count: int, tmp_path: Path) -> None:
    figure = plots.reliability_diagrams(tables([f"variant {number}" for number in range(count)]))
    png, _ = plots.save_figure(figure, tmp_path / "diagram", {})
    with Image.open(png) as image:
        assert image.size[0] <= 1400
    for axes in figure.axes:
        assert strip_of(axes).get_window_extent().y1 < axes.get_window_extent().y0
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes.append(figure.legends[0].get_window_extent())
    for number, box in enumerate(boxes):
        assert not any(box.shrunk(0.98, 0.98).overlaps(other) for other in boxes[number + 1 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="variant"), "lacks the columns variant"),
        (lambda table: table.head(0), "is empty"),
        (lambda table: pd.concat([table, table]), r"variant 'temperature' .* 30 rows"),
        (lambda table: table.query("bin != 3"), r"variant 'temperature' .* 14 rows"),
        (lambda table: table.assign(count=0), "0 samples"),
    ],
)
def test_unusable_reliability_tables_are_named(change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plots.reliability_diagrams(change(tables(["temperature"])))


def rounds(strategies: tuple[str, ...] = ("random", "badge"), seeds: int = 3) -> pd.DataFrame:
    """Temperature scaling is a variant of the very runs that cross entropy trained."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "run": f"{strategy}-{'loss' if variant == 'C-PEAL loss' else 'plain'}-{seed}",
                "adapter": "lora",
                "strategy": strategy,
                "seed": seed,
                "round": number,
                "labels": 10 * (number + 1),
                "variant": variant,
                "ece": 0.3 - 0.02 * number - 0.05 * gain + 0.01 * rng.random(),
                "nll": 2.0 - gain,
            }
            for strategy in strategies
            for gain, variant in enumerate(VARIANTS[:3])
            for seed in range(seeds)
            for number in range(4)
        ]
    )


def test_calibration_curves_show_means_and_intervals() -> None:
    table = rounds()
    figure = plots.calibration_curves(table)
    badge, random = figure.axes
    assert (badge.get_title(), random.get_title()) == ("LoRA\nBADGE (3 seeds)", "LoRA\nrandom (3 seeds)")
    assert (badge.get_ylabel(), random.get_ylabel()) == ("expected calibration error (%)", "")
    assert badge.get_xlabel() == "labels bought"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == VARIANTS[:3]
    for axes, strategy in ((badge, "badge"), (random, "random")):
        for line, band in zip(axes.lines, axes.collections, strict=True):
            variant = line.get_label()
            alone = table[(table["strategy"] == strategy) & (table["variant"] == variant)]
            expected = curves(alone, "ece")
            np.testing.assert_array_equal(line.get_xdata(), expected["labels"])
            np.testing.assert_allclose(line.get_ydata(), expected["mean"])
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == pytest.approx((expected["low"].min(), expected["high"].max()))
        assert sorted(str(line.get_label()) for line in axes.lines) == sorted(VARIANTS[:3])
        assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 3


def test_calibration_curves_of_another_metric_and_column() -> None:
    table = rounds(("random",), seeds=1).rename(columns={"variant": "loss"})
    (axes,) = plots.calibration_curves(table, "nll", by="loss").axes
    assert axes.get_title() == "LoRA\nrandom (1 seed)"
    assert axes.get_ylabel() == "negative log-likelihood (nats)"
    assert sorted(line.get_ydata()[0] for line in axes.lines) == [0, 1, 2]


def test_variants_keep_their_look_over_panels_where_one_is_missing() -> None:
    table = rounds()
    some = table[(table["strategy"] != "badge") | (table["variant"] != "cross entropy")]
    badge, random = plots.calibration_curves(some).axes
    looks = [{line.get_label(): line.get_color() for line in axes.lines} for axes in (badge, random)]
    assert len(looks[0]) == 2
    assert looks[0].items() <= looks[1].items()


def test_unusable_rounds_are_named() -> None:
    table = rounds()
    with pytest.raises(ConfigError, match="lacks the columns variant"):
        plots.calibration_curves(table.drop(columns="variant"))
    with pytest.raises(ConfigError, match="lacks the columns kappa"):
        plots.calibration_curves(table, "kappa")
    with pytest.raises(ConfigError, match=re.escape("random-plain-0/cross entropy is there twice")):
        plots.calibration_curves(pd.concat([table, table.head(1)]))
