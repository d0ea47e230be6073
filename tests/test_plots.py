"""Figures by the data behind them: positions, names and units, never pixels."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from palkit import plots
from palkit.errors import ConfigError
from palkit.statistics import curves, label_saving, penalty_matrix, summarise

# A warning from matplotlib or numpy would land in every notebook.
pytestmark = pytest.mark.filterwarnings("error")

STRATEGIES = ["random", "entropy", "margin", "featdist", "coreset", "badge"]
CLASSES = ["shirt", "ankle_boot", "bag"]


def table(seeds: int = 3) -> pd.DataFrame:
    """2 adapters x 6 strategies x seeds x 7 rounds."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "run": f"{adapter}-{strategy}-{seed}",
            "dataset": "toy",
            "backbone": "vit",
            "adapter": adapter,
            "strategy": strategy,
            "balance": "none",
            "seed": seed,
            "round": number,
            "labels": 10 * (number + 1),
            "accuracy": 0.3 + 0.06 * number + 0.01 * gain * (number > 0) + 0.01 * rng.random(),
            "nll": 2 - 0.2 * number,
            "fit_s": 10.0 + number,
            "score_s": 5.0,
            "select_s": 1.0 + gain,
        }
        for adapter in ("linear_probe", "lora")
        for gain, strategy in enumerate(STRATEGIES)
        for seed in range(seeds)
        for number in range(7)
    ]
    return pd.DataFrame(rows)


def depth_table() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"image_size": size, "depth": depth, "pooling": pooling, "probe": probe, "accuracy": accuracy}
            for size in (28, 56)
            for depth in (12, 8, 4)
            for number, pooling in enumerate(("cls", "mean"))
            for probe in ("kNN", "logistic")
            for accuracy in [0.5 + size / 1000 - 0.01 * abs(depth - 8) + 0.05 * number]
        ]
    )


def names(ticks: list) -> list[str]:
    return [tick.get_text() for tick in ticks]


def line_of(axes: Axes, label: str) -> matplotlib.lines.Line2D:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return line


def test_budget_curves_show_means_and_intervals() -> None:
    rounds = table()
    figure = plots.budget_curves(rounds)
    expected = curves(rounds).set_index(["adapter", "strategy"])
    probe, lora = figure.axes
    assert (probe.get_title(), lora.get_title()) == ("linear probe (3 seeds)", "LoRA (3 seeds)")
    for axes, adapter in ((probe, "linear_probe"), (lora, "lora")):
        assert axes.get_xlabel() == "labels bought"
        assert len(axes.lines) == 6
        for strategy, name in (("badge", "BADGE"), ("random", "random"), ("coreset", "coreset")):
            line, mean = line_of(axes, name), expected.loc[(adapter, strategy)]
            np.testing.assert_array_equal(line.get_xdata(), [10, 20, 30, 40, 50, 60, 70])
            np.testing.assert_allclose(line.get_ydata(), mean["mean"])
            assert line.get_color() == plots.strategy_style(strategy)[0]
            band = axes.collections[sorted(STRATEGIES).index(strategy)].get_paths()[0].vertices
            assert band[:, 1].min() == pytest.approx(mean["low"].min())
            assert band[:, 1].max() == pytest.approx(mean["high"].max())
    assert probe.get_ylabel() == "accuracy (%)"
    assert probe.yaxis.get_major_formatter()(0.625) == "62.5"
    assert probe.get_ylim() == lora.get_ylim()
    assert names(figure.legends[0].get_texts())[:2] == ["random", "BADGE"]


def test_budget_curves_of_a_loss_and_one_seed() -> None:
    figure = plots.budget_curves(table(seeds=1), "nll")
    assert figure.axes[0].get_ylabel() == "negative log-likelihood (nats)"
    assert figure.axes[0].get_title() == "linear probe (1 seed)"
    assert figure.axes[0].yaxis.get_major_formatter()(0.625) != "62.5"


def test_many_adapters_take_more_rows() -> None:
    one = table()[lambda rows: rows["adapter"] == "lora"]
    many = pd.concat([one.assign(adapter=f"a{i}", run=one["run"] + str(i)) for i in range(6)])
    assert len(plots.budget_curves(many).axes) == 6
    ylabels = [axes.get_ylabel() for axes in plots.budget_curves(many).axes]
    assert [bool(label) for label in ylabels] == [True, False, False, False, True, False]


def test_different_numbers_of_seeds_are_admitted() -> None:
    rounds = table()
    fewer = rounds[(rounds["strategy"] != "badge") | (rounds["seed"] == 0)]
    assert plots.budget_curves(fewer).axes[0].get_title() == "linear probe (1 to 3 seeds)"


def test_areas_are_sorted_with_their_intervals() -> None:
    summary = summarise(table())
    figure = plots.area_under_curves(summary)
    area, final = figure.axes
    assert (area.get_title(), final.get_title()) == ("area under the budget curve", "after the last round")
    assert area.get_xlabel() == final.get_xlabel() == "accuracy (%)"
    ordered = summary.sort_values("aubc")
    shown = [container.lines[0].get_xdata()[0] for container in area.containers]
    np.testing.assert_allclose(shown, ordered["aubc"])
    np.testing.assert_allclose([c.lines[0].get_xdata()[0] for c in final.containers], ordered["final"])
    for container, (_, row) in zip(area.containers, ordered.iterrows(), strict=True):
        (ends,) = container.lines[2][0].get_segments()
        np.testing.assert_allclose(ends[:, 0], [row["aubc_low"], row["aubc_high"]])
    best = ordered.iloc[-1]
    adapter = "LoRA" if best["adapter"] == "lora" else "linear probe"
    assert names(area.get_yticklabels())[-1] == f"{adapter}, BADGE" == f"{adapter}, {best['strategy'].upper()}"


def test_pairwise_shows_the_matrix_best_first() -> None:
    penalties = pd.DataFrame([[0, 0, 0], [2, 0, 1], [0.5, 0, 0]], index=["random", "badge", "margin"]).set_axis(
        ["random", "badge", "margin"], axis=1
    )
    penalties.attrs = {"settings": 2, "n_seeds": 5}
    (axes,) = plots.pairwise(penalties).axes
    assert names(axes.get_xticklabels()) == ["BADGE", "margin", "random"]
    assert names(axes.get_yticklabels()) == ["BADGE", "margin", "random", "mean"]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    expected = [[np.nan, 1, 2], [0, np.nan, 0.5], [0, 0, np.nan], [0, 0.5, 1.25]]
    np.testing.assert_allclose(shown, expected)
    assert [text.get_text() for text in axes.texts[-3:]] == ["0", "0.5", "1.2"]
    assert axes.get_title() == "settings (of 2) in which row beats column, 5 seeds"


def test_pairwise_without_tests_says_so() -> None:
    (axes,) = plots.pairwise(penalty_matrix(table(seeds=1))).axes
    assert "no test" in axes.get_title()
    assert {text.get_text() for text in axes.texts} == {""}


def test_label_savings_are_sorted_and_admit_what_was_not_reached() -> None:
    savings = pd.DataFrame(
        {
            "adapter": ["lora", "linear_probe", "lora"],
            "strategy": ["badge", "random", "entropy"],
            "metric": "accuracy",
            "target": 0.7183,
            "labels_needed": [35.2, 70, np.nan],
            "saving": [70 / 35.2, 1, np.nan],
        }
    )
    (axes,) = plots.label_savings(savings).axes
    assert names(axes.get_yticklabels()) == ["LoRA, entropy", "linear probe, random", "LoRA, BADGE"]
    assert [text.get_text() for text in axes.texts] == ["not reached", "70 labels", "35 labels"]
    assert axes.get_xlabel() == "times fewer labels to reach 71.8% accuracy"
    ends = {line.get_ydata()[0]: line.get_xdata()[1] for line in axes.lines if line.get_marker() == "o"}
    assert ends == {1: 1, 2: pytest.approx(70 / 35.2)}
    low, high = axes.get_xlim()
    assert low < 1
    assert high > 70 / 35.2


def test_label_savings_of_a_loss() -> None:
    (axes,) = plots.label_savings(label_saving(table(), metric="nll")).axes
    assert axes.get_xlabel() == "times fewer labels to reach negative log-likelihood (nats) 0.8"


def test_round_costs_stack_mean_seconds() -> None:
    figure = plots.round_costs(table())
    probe, _ = figure.axes
    fit, score, select = probe.containers
    rows = names(probe.get_yticklabels())
    assert rows[-1] == "random"
    row = rows.index("BADGE")
    assert (fit[row].get_x(), fit[row].get_width()) == (0, pytest.approx(13))
    assert (score[row].get_x(), score[row].get_width()) == (pytest.approx(13), pytest.approx(5))
    assert (select[row].get_x(), select[row].get_width()) == (pytest.approx(18), pytest.approx(6))
    assert probe.get_xlabel() == "seconds per round"
    assert names(figure.legends[0].get_texts()) == ["fit", "score", "select"]


def test_round_costs_leave_a_gap_for_what_was_not_run() -> None:
    rounds = table()
    rounds = rounds[(rounds["adapter"] == "lora") | (rounds["strategy"] != "badge")]
    probe, lora = plots.round_costs(rounds).axes
    row = names(probe.get_yticklabels()).index("BADGE")
    assert probe.containers[0][row].get_width() == 0
    assert lora.containers[0][row].get_width() == pytest.approx(13)


def test_image_grid_shows_every_kind_of_image() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    images = [grey, np.full((5, 5, 3), 7, np.uint8), Image.fromarray(grey), Image.new("RGBA", (2, 2), "red")]
    figure = plots.image_grid(images, ["a", "b", "c", "a title too long for its image"], columns=3)
    assert len(figure.axes) == 4
    shown = [axes.images[0].get_array() for axes in figure.axes[:4]]
    np.testing.assert_array_equal(shown[0], grey)
    np.testing.assert_array_equal(shown[2], grey)
    np.testing.assert_array_equal(shown[3][0, 0], [255, 0, 0])
    assert figure.axes[0].images[0].get_clim() == (0, 255)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "c"]
    assert figure.axes[3].get_title().replace("\n", " ") == "a title too long for its image"
    assert not any(axes.axison for axes in figure.axes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "got 0 images"),
        (([np.zeros((2, 2), np.uint8)], None, 0), "0 columns"),
        (([np.zeros((2, 2), np.uint8)], ["a", "b"]), "2 titles for 1 images"),
        (([np.zeros((2, 2))],), "image 0 of the grid is float64"),
        (([np.zeros((2, 2, 4), np.uint8)],), r"shape \(2, 2, 4\)"),
    ],
)
def test_image_grid_rejects(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plots.image_grid(*arguments)


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


def test_depth_curves_reject_repeated_rows() -> None:
    twice = pd.concat([depth_table(), depth_table().head(1)])
    with pytest.raises(ConfigError, match="image_size 28, depth 12, pooling cls, probe kNN"):
        plots.depth_curves(twice)


def test_projection_shows_classes_and_numbers_picks() -> None:
    points = np.arange(12.0).reshape(6, 2)
    figure = plots.projection(points, [0, 1, 2, 0, 1, 2], CLASSES, picks=[4, 0])
    (axes,) = figure.axes
    np.testing.assert_array_equal(line_of(axes, "ankle_boot").get_xydata(), points[[1, 4]])
    assert [text.get_text() for text in axes.texts] == ["1", "2"]
    np.testing.assert_array_equal([text.xy for text in axes.texts], points[[4, 0]])
    assert names(figure.legends[0].get_texts()) == CLASSES
    assert not plots.projection(points, [0] * 6, CLASSES).axes[0].texts


@pytest.mark.parametrize(
    ("points", "labels", "picks", "message"),
    [
        (np.zeros((3, 3)), [0, 0, 0], None, r"got shapes \(3, 3\)"),
        (np.zeros((3, 2)), [0, 0], None, r"and \(2,\)"),
        (np.zeros((3, 2)), [0, 0, 3], None, r"labels must lie in 0\.\.2, got 0\.\.3"),
        (np.zeros((3, 2)), [0, 0, 0], [-1], r"picks must lie in 0\.\.2"),
    ],
)
def test_projection_rejects(points: np.ndarray, labels: list, picks: list | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plots.projection(points, labels, CLASSES, picks)


def test_confusion_shades_shares_and_prints_counts() -> None:
    (axes,) = plots.confusion([[3, 1, 0], [0, 10, 0], [0, 0, 0]], CLASSES).axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert [text.get_text() for text in axes.texts] == ["3", "1", "", "", "10", "", "", "", ""]
    # Class names are the user's and stay as they are.
    assert names(axes.get_xticklabels()) == names(axes.get_yticklabels()) == CLASSES
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    with pytest.raises(ConfigError, match="3 classes"):
        plots.confusion(np.eye(2), CLASSES)


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


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.area_under_curves(pd.DataFrame({"adapter": []})), "summary to draw lacks .*strategy"),
        (lambda: plots.area_under_curves(summarise(table()).head(0)), "summary to draw is empty"),
        (lambda: plots.label_savings(summarise(table())), "lacks the columns target, labels_needed, saving"),
        (lambda: plots.round_costs(table().drop(columns="fit_s")), "lacks the columns fit_s"),
        (lambda: plots.depth_curves(depth_table().drop(columns="probe")), "lacks the columns probe"),
        (lambda: plots.budget_curves(table(), "kappa"), "lacks the columns kappa"),
        (lambda: plots.class_counts({}), "empty"),
        (lambda: plots.picks_by_class(pd.DataFrame()), "empty"),
    ],
)
def test_unusable_tables_are_named(draw: Callable[[], Figure], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw()


def test_strategies_keep_their_style() -> None:
    rounds = table()
    colour = plots.strategy_style("badge")[0]
    assert line_of(plots.budget_curves(rounds).axes[0], "BADGE").get_color() == colour
    badges = summarise(rounds)[lambda rows: rows["strategy"] == "badge"]
    for container in plots.area_under_curves(badges).axes[0].containers:
        assert container.lines[0].get_color() == colour
    assert len(set(plots.STRATEGY_STYLES.values())) == len(plots.STRATEGY_STYLES)
    assert len({plots.strategy_style(name)[0] for name in STRATEGIES}) == 6
    # Pinned: another process must not choose another style for a name that is not listed.
    assert plots.strategy_style("my_own") == ("#6699CC", "<")


def test_settings_of_the_caller_stay() -> None:
    with matplotlib.rc_context({"font.size": 17}):
        assert plots.budget_curves(table()).axes[0].title.get_fontsize() == 8
        assert matplotlib.rcParams["font.size"] == 17


def test_no_figure_is_registered_with_pyplot() -> None:
    import matplotlib.pyplot as plt

    plots.budget_curves(table())
    assert plt.get_fignums() == []


# --- saving

METADATA = {"sweep": "default", "runs": ["a1", "b2"], "note": "naïve ≥"}


def test_saved_files_carry_metadata(tmp_path: Path) -> None:
    png, svg = plots.save_figure(plots.budget_curves(table()), tmp_path / "new" / "v1.2 curves", METADATA)
    assert (png.name, svg.name) == ("v1.2 curves.png", "v1.2 curves.svg")
    with Image.open(png) as image:
        assert image.size[0] == 1400
        assert image.text["sweep"] == "default"
        assert json.loads(image.text["runs"]) == ["a1", "b2"]
        assert image.text["note"] == "naïve ≥"
    described = next(
        element.text or "" for element in ElementTree.parse(svg).iter() if element.tag.endswith("description")
    )
    assert json.loads(described)["sweep"] == "default"
    assert sorted(path.name for path in png.parent.iterdir()) == [png.name, svg.name]


SCRIPT = """
import sys
import pandas as pd
from palkit import plots
rounds = pd.read_json(sys.argv[1], orient="records")
plots.save_figure(plots.budget_curves(rounds), sys.argv[2], {"sweep": "default"})
"""


def test_the_same_figure_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    rounds = table()
    rounds.to_json(tmp_path / "rounds.json", orient="records", double_precision=15)
    rounds = pd.read_json(tmp_path / "rounds.json", orient="records")
    here = plots.save_figure(plots.budget_curves(rounds), tmp_path / "here", {"sweep": "default"})
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rounds.json"), str(tmp_path / "there")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    for path in here:
        assert path.read_bytes() == path.with_stem("there").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figure.png").write_text("old")

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("palkit.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        plots.save_figure(plots.class_counts({"pool": pd.Series([1], ["a"])}), tmp_path / "figure", {})
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_text() == "old"


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
    with pytest.raises(ConfigError, match="same number"):
        plots.pick_strips({**images, "margin": images["random"][:2]}, {name: ["a"] * 3 for name in names})
    with pytest.raises(ConfigError, match=r"\(N, 2\)"):
        plots.pick_maps(np.zeros((4, 3)), [], picks)


def test_selection_times_draws_what_was_measured() -> None:
    rows = [("badge", library, n, n * 1e-6, n * 1e-7) for library in ("palkit", "peer") for n in (1000, 10_000)]
    rows.append(("badge", "peer", 100_000, float("nan"), 0.01))
    table = pd.DataFrame(rows, columns=["strategy", "library", "n", "seconds", "bound"])
    (axes,) = plots.selection_times(table).axes
    assert axes.get_title() == "BADGE"
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2, 2]
    assert axes.get_yscale() == "log"
    with pytest.raises(ConfigError, match="bound"):
        plots.selection_times(table.drop(columns="bound"))


def adapters() -> pd.DataFrame:
    """A probe, and two methods in two or four blocks."""
    rows = [("linear_probe", 0, 0, 0, 0.5, 0.60)]
    for blocks in (2, 4):
        rows += [
            ("lora", blocks, 8, 12_288 * blocks, 1.0 * blocks, 0.62),
            ("full", blocks, 8, 1_770_000 * blocks, 2.0 * blocks, 0.58),
        ]
    columns = ["adapter", "blocks", "rank", "trainable", "seconds", "mean"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(low=frame["mean"] - 0.01, high=frame["mean"] + 0.01)


def test_cost_quality_draws_every_adapter_against_both_costs_and_the_front() -> None:
    figure = plots.cost_quality(adapters())
    size, time = figure.axes
    assert size.get_xlabel() == "trainable numbers in the backbone"
    assert time.get_xlabel().startswith("seconds per round")
    for axes, column in ((size, "trainable"), (time, "seconds")):
        points = {
            (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
            for line in axes.lines
            if len(line.get_xdata()) == 1
        }
        assert points == set(zip(adapters()[column].astype(float), adapters()["mean"], strict=True))
        (front,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert list(front.get_ydata()) == [0.60, 0.62]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["linear probe", "LoRA", "full", "front"]
    with pytest.raises(ConfigError, match="lacks the columns seconds"):
        plots.cost_quality(adapters().drop(columns="seconds"))


def test_overlaps_are_written_as_shares() -> None:
    shared = pd.DataFrame([[1, 0.25], [0.25, 1]], index=["entropy", "badge"], columns=["entropy", "badge"])
    (axes,) = plots.overlaps(shared).axes
    assert [text.get_text() for text in axes.texts] == ["100%", "25%", "25%", "100%"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["entropy", "BADGE"]
    with pytest.raises(ConfigError, match="empty"):
        plots.overlaps(pd.DataFrame())
