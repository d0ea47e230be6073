"""Figures and tables over data sets, ranks, costs and classes, by the data behind them."""

import hashlib
import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from palkit.errors import ConfigError
from palkit.studies import plots, statistics

pytestmark = pytest.mark.filterwarnings("error")
STRATEGIES = ("random", "badge", "margin", "entropy")
BY_BALANCE = ("adapter", "strategy", "balance")


def study(datasets: str = "ab", balances: tuple[str, ...] = ("none",)) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    grid = itertools.product(datasets, ("linear_probe", "lora"), STRATEGIES, balances, range(5), range(4))
    return pd.DataFrame(
        {
            "run": f"{dataset}-{adapter}-{strategy}-{balance}-{seed}",
            "dataset": dataset,
            "backbone": "vit",
            "adapter": adapter,
            "strategy": strategy,
            "balance": balance,
            "seed": seed,
            "round": number,
            "labels": 10 * (number + 1),
            "accuracy": 0.4 + 0.05 * number + 0.02 * STRATEGIES.index(strategy) + 0.01 * rng.random(),
            "fit_s": 9.0 if adapter == "lora" else 1.0,
            "score_s": 1.0,
            "select_s": 0.1 * STRATEGIES.index(strategy),
        }
        for dataset, adapter, strategy, balance, seed, number in grid
    )


def texts(items: list) -> list[str]:
    return [item.get_text() for item in items]


def test_iqm_curves_over_data_sets() -> None:
    rounds = study()
    figure = plots.iqm_budget_curves(rounds)
    assert [axes.get_title() for axes in figure.axes] == [
        "linear probe (5 seeds, 2 data sets)",
        "LoRA (5 seeds, 2 data sets)",
    ]
    expected = statistics.iqm_curves(rounds).query("adapter == 'lora' and strategy == 'badge'")
    (line,) = (line for line in figure.axes[1].lines if line.get_label() == "BADGE")
    np.testing.assert_allclose(line.get_xydata(), expected[["labels", "iqm"]])
    assert line.get_color() == plots.strategy_style("badge")[0]
    share = plots.iqm_budget_curves(statistics.gains(rounds), axis="fraction").axes[0]
    assert (share.get_xlabel(), share.get_ylabel()) == ("share of all labels bought (%)", "accuracy (%)")


def test_balances_have_panels_and_names_of_their_own() -> None:
    rounds = study("a", ("none", "pcb"))
    titles = [axes.get_title().replace("\n", " ") for axes in plots.budget_curves(rounds).axes]
    assert titles == [
        "linear probe (5 seeds)", "linear probe + PCB (5 seeds)", "LoRA (5 seeds)", "LoRA + PCB (5 seeds)",
    ]  # fmt: skip
    areas = plots.area_under_curves(statistics.summarise(rounds, by=BY_BALANCE))
    assert "LoRA, entropy + PCB" in texts(areas.axes[0].get_yticklabels())
    assert "LoRA, entropy" in texts(areas.axes[0].get_yticklabels())


def test_configuration_names() -> None:
    assert plots.configuration_name("lora", "entropy", "pcb") == "LoRA, entropy + PCB"
    assert plots.configuration_name("linear_probe", "badge", "none") == "linear probe, BADGE"
    assert plots.configuration_name("lora", "pcb") == "LoRA + PCB"


def test_critical_difference_names_ranks_and_tests() -> None:
    ranking = statistics.rank_strategies(study())
    (axes,) = plots.critical_difference(ranking).axes
    assert axes.get_title().startswith("average ranks over 20 pairs of setting and seed\nFriedman p < 0.001")
    shown = " ".join(texts(axes.texts))
    assert all(name in shown for name in ("random", "BADGE", "margin", "entropy"))
    assert f"({ranking.ranks['badge']:.1f})" in shown
    points = {tuple(matplotlib.colors.to_rgb(c.get_facecolor()[0])): c.get_offsets()[0][0] for c in axes.collections}
    for name, rank in ranking.ranks.items():
        assert points[matplotlib.colors.to_rgb(plots.strategy_style(str(name))[0])] == pytest.approx(rank)


def test_cost_areas_draw_every_configuration_and_the_front() -> None:
    table = statistics.area_costs(study("a", ("none", "pcb")), by=BY_BALANCE)
    figure = plots.cost_areas(table)
    (axes,) = figure.axes
    drawn = {tuple(container.lines[0].get_xydata()[0]) for container in axes.containers}
    assert drawn == set(zip(table["seconds"], table["aubc"], strict=True))
    (front,) = (line for line in axes.lines if line.get_linestyle() == ":")
    best = table[statistics.pareto_front(table["seconds"], table["aubc"])]
    np.testing.assert_allclose(front.get_xdata(), sorted(best["seconds"]))
    legend = texts(figure.legends[0].get_texts())
    assert legend == ["random", "BADGE", "entropy", "margin", "linear probe", "LoRA", "class balance", "front"]


def test_the_best_comes_first_where_lower_is_better() -> None:
    rounds = study("a")
    for metric, best in (("accuracy", "max"), ("nll", "min")):
        summary = statistics.summarise(rounds.assign(nll=1 - rounds["accuracy"]), metric)
        (axes, _) = plots.area_under_curves(summary).axes
        shown = [line.get_xdata()[0] for container in axes.containers for line in [container.lines[0]]]
        assert shown[-1] == getattr(summary["aubc"], best)(), "the last row is on top"


def recalls(classes: int = 10) -> pd.DataFrame:
    rows = itertools.product(STRATEGIES, range(2), (10, 20, 30), [f"class {number}" for number in range(classes)])
    table = pd.DataFrame(rows, columns=["strategy", "seed", "labels", "class"])
    return table.assign(run=table["strategy"] + table["seed"].astype(str), dataset="a",
                        recall=np.linspace(0, 1, len(table)))  # fmt: skip


def test_class_recalls_are_means_over_seeds() -> None:
    table = recalls()
    figure = plots.class_recalls(table)
    assert [axes.get_title() for axes in figure.axes] == [
        "random (2 seeds)", "BADGE (2 seeds)", "entropy (2 seeds)", "margin (2 seeds)",
    ]  # fmt: skip
    expected = table.query("strategy == 'badge' and `class` == 'class 3'").groupby("labels")["recall"].mean()
    (line,) = (line for line in figure.axes[1].lines if line.get_label() == "class 3")
    np.testing.assert_allclose(line.get_ydata(), expected)
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 10
    with pytest.raises(ConfigError, match="several runs of seed 0"):
        plots.class_recalls(pd.concat([table, table.assign(run="other")]))


@pytest.mark.parametrize("classes", [11, 18, 60, 200])
def test_no_two_classes_look_the_same(classes: int) -> None:
    figure = plots.class_recalls(recalls(classes))
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == classes


# --- files


def test_tables_are_written_for_machines_and_for_latex(tmp_path: Path) -> None:
    areas = statistics.area_table(study().replace({"dataset": {"a": "data_1"}}))
    cells, bold = plots.wide_areas(areas)
    assert list(cells.columns) == ["b", "data_1"]
    assert bold.to_numpy().sum() == areas["clear"].sum()
    row = areas.query("adapter == 'lora' and strategy == 'badge' and dataset == 'b'").iloc[0]
    assert cells.loc["LoRA, BADGE", "b"] == (
        f"{100 * row['mean']:.1f} [{100 * row['mean_low']:.1f}, {100 * row['mean_high']:.1f}]"
    )
    csv, tex = plots.table_files(cells, tmp_path / "new" / "v1.2 areas", bold)
    pd.testing.assert_frame_equal(pd.read_csv(csv, index_col=0), cells, check_names=False)
    text = tex.read_text()
    assert r"\toprule" in text
    assert r"data\_1" in text
    assert text.count(r"\textbf{") == areas["clear"].sum()
    said = "ean accuracy (%) over the budget [95 % t interval over the seeds of that data set]"
    assert rf"\caption{{M{said.replace('%', chr(92) + '%')}. Bold: best, with a paired 95 \% t interval" in text
    assert csv.read_text().startswith(f"configuration: m{said},b,data_1\n")
    single, _ = plots.wide_areas(statistics.area_table(study()[lambda rounds: rounds["seed"] == 0]))
    assert single.index.name == "configuration: mean accuracy (%) over the budget, one seed"
    areas.attrs["caption"] = "50 % of a_b & $c"
    csv, tex = plots.table_files(areas, tmp_path / "long")
    pd.testing.assert_frame_equal(pd.read_csv(csv, keep_default_na=False), areas)
    assert r"\caption{50 \% of a\_b \& \$c}" in tex.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.csv", "long.tex", "new"]


def test_intervals_of_shares_stay_within_0_and_100_per_cent() -> None:
    """Of two seeds 0.1 apart, the t interval is 127 points wide; differences of shares may have all of it."""
    rounds = study("a")[lambda table: table["seed"] < 2]

    def cell(**metric: pd.Series) -> str:
        return plots.wide_areas(statistics.area_table(rounds.assign(**metric), *metric))[0].iloc[0, 0]

    assert cell(accuracy=0.99 - 0.1 * rounds["seed"]) == "94.0 [30.5, 100.0]"
    assert cell(ece=0.01 + 0.1 * rounds["seed"]) == "6.0 [0.0, 69.5]"
    assert cell(nll=0.01 + 0.1 * rounds["seed"]) == "0.060 [-0.575, 0.695]"
    assert cell(accuracy=-0.1 * rounds["seed"]) == "-5.0 [-68.5, 58.5]"


@pytest.mark.parametrize("count", [3, 1000])
def test_figures_hold_the_hashes_of_their_runs(count: int, tmp_path: Path) -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in range(count)]
    digest = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    figure = plots.class_counts({"pool": pd.Series([1], ["a"])})
    png, svg = plots.save_figure(figure, tmp_path / "listed", {"runs": hashes})
    with Image.open(png) as image:
        chunks = dict(image.text)
    described = next(
        element.text or "" for element in ElementTree.parse(svg).iter() if element.tag.endswith("description")
    )
    for found in (chunks, json.loads(described)):
        assert json.loads(found["runs"]) == hashes
        assert int(found["runs_count"]) == count
        assert found["runs_sha256"] == digest
    bare, _ = plots.save_figure(figure, tmp_path / "bare", {})
    assert png.stat().st_size - bare.stat().st_size < 200 + 22 * count
    # The notebooks join the hashes by commas; order and repetition change nothing.
    assert plots.run_digest(",".join(reversed([*hashes, hashes[0]]))) == plots.run_digest(hashes)
