"""Figures of runs and sweeps, and saved files, by the data behind them: positions, names and units, never pixels."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from plots_helpers import STRATEGIES, line_of, names, table

from palkit.errors import ConfigError
from palkit.strategies import STRATEGIES as REGISTERED
from palkit.studies import plots
from palkit.studies.statistics import curves, label_saving, penalty_matrix, summarise

# A warning from matplotlib or numpy would land in every notebook.
pytestmark = pytest.mark.filterwarnings("error")


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
    assert axes.get_title() == "share of label counts summed over 2 settings at which row beats column, 5 seeds"


def test_pairwise_without_tests_says_so() -> None:
    (axes,) = plots.pairwise(penalty_matrix(table(seeds=1))).axes
    assert "no test" in axes.get_title()
    assert {text.get_text() for text in axes.texts} == {""}


def test_label_savings_are_sorted_with_their_intervals_and_without() -> None:
    savings = pd.DataFrame(
        {
            "adapter": ["lora", "linear_probe", "lora"],
            "strategy": ["badge", "random", "entropy"],
            "metric": "accuracy",
            "target_low": 0.55,
            "target_high": 0.7183,
            "saving": [2.0, 1.0, 0.8],
            "saving_low": [1.25, 1.0, np.nan],
            "saving_high": [31.0, 1.0, np.nan],
        }
    )
    (axes,) = plots.label_savings(savings).axes
    assert names(axes.get_yticklabels()) == ["LoRA, entropy", "linear probe, random", "LoRA, BADGE"]
    assert [text.get_text() for text in axes.texts] == ["0.80", "1.00 [1.00, 1.00]", "2.00 [1.25, 31.00]"]
    note = (
        "times fewer labels for the same accuracy,\nfrom 55.0 to 71.8 %\n"
        "(bars: 95 % t intervals over seeds, for this data set)"
    )
    assert axes.get_xlabel() == note
    points = {bar.lines[0].get_ydata()[0]: bar.lines[0].get_xdata()[0] for bar in axes.containers}
    assert points == {0: 0.8, 1: 1, 2: 2}
    bars = [segment.tolist() for bar in axes.containers for lines in bar.lines[2] for segment in lines.get_segments()]
    assert [[1.25, 2], [31.0, 2]] in bars
    low, high = axes.get_xlim()
    assert 0.5 < low < 0.8
    assert 10 < high < 100
    single = plots.label_savings(savings.assign(saving_low=np.nan, saving_high=np.nan)).axes[0]
    assert single.get_xlabel().endswith("\n(no bars: too few seeds for an interval)")


def test_label_savings_of_a_loss() -> None:
    (axes,) = plots.label_savings(label_saving(table(), metric="nll")).axes
    assert axes.get_xlabel().startswith("times fewer labels for the same negative log-likelihood (nats)")


@pytest.mark.parametrize(("seeds", "note"), [(3, "bands: 95 % t intervals of the mean over seeds"),
                                             (1, "no bands: too few seeds for an interval")])  # fmt: skip
def test_figures_say_what_their_intervals_speak_of(seeds: int, note: str) -> None:
    figure = plots.budget_curves(table(seeds=seeds))
    assert figure.legends[0].get_title().get_text() == note
    areas = plots.area_under_curves(summarise(table(seeds=seeds)))
    bars = "bars: 95 % t intervals over seeds, for this data set" if seeds > 1 else note.replace("bands", "bars")
    assert areas.get_supxlabel() == bars


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


def test_the_front_of_what_should_be_low_is_low() -> None:
    for axes in plots.cost_quality(adapters(), "nll").axes:
        (front,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert list(front.get_ydata()) == [0.60, 0.58]


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


def test_overlaps_are_written_as_shares() -> None:
    shared = pd.DataFrame([[1, 0.25], [0.25, 1]], index=["entropy", "badge"], columns=["entropy", "badge"])
    (axes,) = plots.overlaps(shared).axes
    assert [text.get_text() for text in axes.texts] == ["100%", "25%", "25%", "100%"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["entropy", "BADGE"]
    with pytest.raises(ConfigError, match="two or more configurations"):
        plots.overlaps(pd.DataFrame())


def test_unusable_tables_are_named() -> None:
    with pytest.raises(ConfigError, match="lacks the columns kappa"):
        plots.budget_curves(table(), "kappa")


def test_strategies_keep_their_style() -> None:
    rounds = table()
    colour = plots.strategy_style("badge")[0]
    assert line_of(plots.budget_curves(rounds).axes[0], "BADGE").get_color() == colour
    badges = summarise(rounds)[lambda rows: rows["strategy"] == "badge"]
    for container in plots.area_under_curves(badges).axes[0].containers:
        assert container.lines[0].get_color() == colour
    styles = [one.style for one in REGISTERED.values() if one.style is not None]
    assert len(set(styles)) == len(styles) >= 19
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
from palkit.studies import plots
rounds = pd.read_json(sys.argv[1], orient="records")
plots.save_figure(plots.budget_curves(rounds), sys.argv[2], {"sweep": "default"})
"""


@pytest.mark.campaign
def test_the_same_figure_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    rounds = table()
    rounds.to_json(tmp_path / "rounds.json", orient="records", double_precision=15)
    rounds = pd.read_json(tmp_path / "rounds.json", orient="records")
    here = plots.save_figure(plots.budget_curves(rounds), tmp_path / "here", {"sweep": "default"})
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "rounds.json"), str(tmp_path / "there")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    for path in here:
        assert path.read_bytes() == path.with_stem("there").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figure.png").write_text("old")

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("palkit.storage.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        plots.save_figure(plots.class_counts({"pool": pd.Series([1], ["a"])}), tmp_path / "figure", {})
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_text() == "old"
