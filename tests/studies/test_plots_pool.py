"""Figures of a pool and what is picked from it, by the data behind them: positions, names and units, never pixels."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from plots_helpers import CLASSES, depth_table, line_of, names

from palkit.errors import ConfigError
from palkit.studies import plots

# A warning from matplotlib or numpy would land in every notebook.
pytestmark = pytest.mark.filterwarnings("error")


def test_image_grid_shows_every_kind_of_image() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    images = [grey, np.full((5, 5, 3), 7, np.uint8), grey.T, np.full((2, 2, 3), [255, 0, 0], np.uint8)]
    figure = plots.image_grid(images, ["a", "b", "c", "a title too long for its image"], columns=3)
    (axes,) = figure.axes
    shown = [image.get_array() for image in axes.images]
    assert len(shown) == 4
    np.testing.assert_array_equal(shown[0], grey)
    np.testing.assert_array_equal(shown[2], grey.T)
    np.testing.assert_array_equal(shown[3][0, 0], [255, 0, 0])
    assert axes.images[0].get_clim() == (0, 255)
    assert names(axes.texts)[:3] == ["a", "b", "c"]
    assert axes.texts[3].get_text().replace("\n", " ") == "a title too long for its image"
    assert not axes.axison


def test_image_grid_keeps_shapes_and_overlaps_nothing() -> None:
    shapes = [(4, 4), (2, 8), (9, 3), (5, 5), (1, 1)]
    figure = plots.image_grid([np.zeros(shape, np.uint8) for shape in shapes], list("abcde"), columns=2)
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    images, texts = ([one.get_window_extent(renderer) for one in some] for some in (axes.images, axes.texts))
    for box, (height, width) in zip(images, shapes, strict=True):
        assert box.width / box.height == pytest.approx(width / height)
    boxes = [*images, *texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert [image.y0 < text.y0 for image, text in zip(images, texts, strict=True)] == [True] * 5


def test_class_counts_by_split() -> None:
    counts = {
        "pool": pd.Series([30, 20, 10], CLASSES),
        "test": pd.Series([5, 5], CLASSES[:2]),
    }
    pool, test = plots.class_counts(counts).axes
    assert [bar.get_width() for bar in pool.containers[0]] == [
        counts["pool"][name.get_text()] for name in pool.get_yticklabels()
    ]
    assert sorted(names(pool.get_yticklabels())) == sorted(CLASSES)
    assert sorted(bar.get_width() for bar in test.containers[0]) == [0, 5, 5]
    assert (pool.get_title(), test.get_title(), pool.get_xlabel()) == ("pool (60)", "test (10)", "images")


def test_class_counts_keep_the_order_of_classes() -> None:
    same = {"pool": pd.Series([1, 2, 3], CLASSES), "test": pd.Series([3, 2, 1], CLASSES)}
    for counts in (same, pd.DataFrame(same)):
        axes = plots.class_counts(counts).axes[0]
        assert names(axes.get_yticklabels()) == CLASSES
        assert axes.yaxis_inverted()


def test_depth_curves_and_the_best_of_each_readout() -> None:
    figure = plots.depth_curves(depth_table())
    grid = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title() for axes in grid[0]] == ["28 px", "56 px"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["kNN\naccuracy (%)", "logistic\naccuracy (%)"]
    assert [axes.get_xlabel() for axes in grid[1]] == ["depth (blocks)"] * 2
    for axes in grid[:, 1]:
        line = line_of(axes, "mean")
        np.testing.assert_array_equal(line.get_xdata(), [4, 8, 12])
        np.testing.assert_allclose(line.get_ydata(), [0.566, 0.606, 0.566])
        best = line_of(axes, "best")
        assert (best.get_xdata()[0], best.get_ydata()[0]) == (8, pytest.approx(0.606))
    assert names(figure.legends[0].get_texts()) == ["cls", "mean", "best"]


def test_projection_shows_classes() -> None:
    points = np.arange(12.0).reshape(6, 2)
    for label in (-1, len(CLASSES)):
        with pytest.raises(ConfigError, match=r"labels of a projection must lie in 0\.\."):
            plots.projection(points, [0, 1, 2, 0, 1, label], CLASSES)
    figure = plots.projection(points, [0, 1, 2, 0, 1, 2], CLASSES)
    (axes,) = figure.axes
    np.testing.assert_array_equal(line_of(axes, "ankle_boot").get_xydata(), points[[1, 4]])
    assert names(figure.legends[0].get_texts()) == CLASSES


def test_confusion_shades_shares_and_prints_counts() -> None:
    (axes,) = plots.confusion([[3, 1, 0], [0, 10, 0], [0, 0, 0]], CLASSES).axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert [text.get_text() for text in axes.texts] == ["3", "1", "", "", "10", "", "", "", ""]
    # Class names are the user's and stay as they are.
    assert names(axes.get_xticklabels()) == names(axes.get_yticklabels()) == CLASSES
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_confusion_of_many_classes_has_no_numbers() -> None:
    many = [f"class {number}" for number in range(40)]
    assert not plots.confusion(np.eye(40, dtype=int), many).axes[0].texts


def test_picks_by_class() -> None:
    counts = pd.DataFrame([[4, 0, 6], [3.5, 3.5, 3]], ["random", "badge"], CLASSES)
    (axes,) = plots.picks_by_class(counts).axes
    np.testing.assert_allclose(axes.images[0].get_array(), counts)
    assert names(axes.get_yticklabels()) == ["random", "BADGE"]
    assert names(axes.get_xticklabels()) == CLASSES
    assert [text.get_text() for text in axes.texts][:3] == ["4.0", "0.0", "6.0"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("class (labels bought)", "strategy")
    by_round = counts.iloc[:1].rename_axis("round")
    (axes,) = plots.picks_by_class(by_round).axes
    assert axes.get_ylabel() == "round"
    assert [text.get_text() for text in axes.texts] == ["4", "0", "6"]


def test_numbers_in_cells_can_be_read() -> None:
    counts = pd.DataFrame([np.arange(20)])
    (axes,) = plots.picks_by_class(counts).axes

    def luminance(colour: object) -> float:
        parts = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for text, value in zip(axes.texts, range(20), strict=True):
        inks = sorted([luminance(text.get_color()), luminance(plots.style.BLUES(value / 19))])
        assert (inks[1] + 0.05) / (inks[0] + 0.05) >= 4.5


def test_pick_maps_and_strips_show_every_strategy() -> None:
    rng = np.random.default_rng(0)
    names = ["random", "badge", "margin", "coreset", "entropy", "typiclust"]
    picks = {name: rng.permutation(50)[:8] for name in names}
    maps = plots.pick_maps(rng.normal(size=(50, 2)), [1, 2], picks)
    assert [axes.get_title() for axes in maps.axes] == ["random", "BADGE", "margin", "coreset", "entropy", "typiclust"]
    assert [text.get_text() for text in maps.axes[0].texts] == ["1", "2", "3", "4", "5"]
    images = {name: np.zeros((3, 5, 5), dtype=np.uint8) for name in names[:2]}
    strips = plots.pick_strips(images, {name: ["a", "b", "c"] for name in images})
    assert len(strips.axes) == 6
    assert strips.axes[3].get_ylabel() == "BADGE"


def test_selection_times_draws_what_was_measured() -> None:
    rows = [("badge", library, n, n * 1e-6, n * 1e-7) for library in ("palkit", "peer") for n in (1000, 10_000)]
    rows.append(("badge", "peer", 100_000, float("nan"), 0.01))
    table = pd.DataFrame(rows, columns=["strategy", "library", "n", "seconds", "bound"])
    (axes,) = plots.selection_times(table).axes
    assert axes.get_title() == "BADGE"
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2, 2]
    assert axes.get_yscale() == "log"
