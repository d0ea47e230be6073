"""Tables of `decide` and `choice` in short, by hand; and the committed ones, which hold what is said of them."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from statistics_helpers import run, table

from palkit.errors import ConfigError
from palkit.experiments.results import FIGURES
from palkit.storage.formats import read_table
from palkit.studies import plots
from palkit.studies.deciding import active_summary, regrets, stopping_summary, untargeted_summary


def model_of(way: str, models: int, **values: float) -> dict:
    usual = {"dataset": "a", "band": "(0.6, 0.8]", "labels": 50, "images": 1e9, "recalls_hold": 1.0}
    usual |= {"calibration_holds": 1.0}
    return {**usual, "way": way, "models": models, **values}


def test_groups_weigh_as_many_models_as_they_have() -> None:
    rows = [
        model_of("active", 1, holds=1.0, width=0.1),
        model_of("active", 3, holds=0.6, width=0.3, band="(0.8, 0.9]"),
        model_of("even", 1, holds=1.0, width=0.5),
        model_of("even", 3, holds=1.0, width=0.5, band="(0.8, 0.9]"),
        model_of("expected", 4, holds=1.0, width=0.5 / 2**0.5),
    ]
    summary = active_summary(pd.DataFrame(rows), ["labels"]).loc[50]
    assert summary["active"] == pytest.approx(0.7)
    assert summary["width"] == pytest.approx(25)
    assert summary["saving"] == pytest.approx(4)
    assert summary["draws"] == pytest.approx(2)


def test_even_draws_use_up_a_small_pool() -> None:
    """Even draws whose intervals at 50 of 100 images are twice as wide need 80 of them, not 200."""
    ways = {"active": 0.1, "even": 0.2, "expected": 0.1}
    rows = [model_of(way, 1, holds=1.0, width=width) | {"images": 100} for way, width in ways.items()]
    summary = active_summary(pd.DataFrame(rows), ["labels"]).loc[50]
    assert pytest.approx((1 / 50 - 1 / 100) / 4) == 1 / 80 - 1 / 100
    assert summary["saving"] == pytest.approx(80 / 50)
    assert summary["draws"] == pytest.approx(1)


RUNS = pd.DataFrame(
    [
        # rule, target, stopped, needed, labels, tests, accuracy, best
        ("g", 0.8, True, 100, 150, 150, 0.85, 0.9),
        ("g", 0.8, True, 100, 100, 100, 0.79, 0.9),
        ("g", 0.9, False, 200, None, None, None, 0.9),
        ("g", 0.95, True, None, 300, 300, 0.9, 0.9),  # the run never reaches it
        ("kappa", None, True, None, 60, 0, 0.7, 0.9),
        ("kappa", None, False, None, None, None, None, 0.9),
    ],
    columns=["rule", "target", "stopped", "needed", "labels", "tests", "accuracy", "best"],
)


def test_stops_beside_what_was_needed() -> None:
    found = stopping_summary(RUNS).loc["g"]
    assert found["runs"] == 3
    assert found["stops"] == pytest.approx(2 / 3)
    assert found["training"] == pytest.approx(1.25)
    assert found["all labels"] == pytest.approx(2.5)
    assert found["wrong"] == pytest.approx(2 / 3), "also where the run never reaches the target"


def test_rules_without_a_target_beside_the_best_round() -> None:
    found = untargeted_summary(RUNS).loc["kappa"]
    assert found.tolist() == pytest.approx([0.5, 60, 20, 20])


def test_committed_tables_cover() -> None:
    """Nominal 95 %: no data set is below 93, and the guarantee is broken in 5 % of the stops at most."""
    testing = read_table(FIGURES / "decide" / "testing.parquet")
    assert active_summary(testing, ["dataset"])["active"].min() > 0.93
    assert active_summary(testing, ["labels"])[["recalls", "calibration"]].to_numpy().min() > 0.95
    stopping = read_table(FIGURES / "decide" / "stopping.parquet")
    guaranteed = stopping_summary(stopping).filter(like="guarantee", axis=0)
    assert len(guaranteed) == 2
    assert guaranteed["wrong"].max() < 0.05
    interval = stopping_summary(stopping).loc["interval, 75% tests"]
    assert interval["wrong"] < 0.05
    assert interval["training"] <= 1.3


def test_savings_have_a_line_per_band() -> None:
    testing = read_table(FIGURES / "decide" / "testing.parquet")
    summary = active_summary(testing, ["band", "labels"])
    (axes,) = plots.test_savings(summary).axes
    lines = {line.get_label(): line for line in axes.lines}
    for band in summary.index.get_level_values("band").unique():
        low, high = (round(100 * float(end)) for end in band.strip("(]").split(","))
        drawn = lines[f"accuracy {low} to {high} %"].get_ydata()
        assert np.asarray(drawn) == pytest.approx(summary.loc[band, "saving"].to_numpy())


def areas(values: dict[str, list[float]], dataset: str = "a") -> pd.DataFrame:
    """Flat curves, of these areas by strategy and seed."""
    return table(
        *(
            run([area] * 3, seed=seed, strategy=name, dataset=dataset)
            for name, seeds in values.items()
            for seed, area in enumerate(seeds)
        )
    )


def test_regret_by_hand() -> None:
    """The best of a seed is that of the others: margin for the first two, badge for the third."""
    values = {
        "random": [0.5, 0.5, 0.5],
        "margin": [0.6, 0.8, 0.8],
        "badge": [0.9, 0.6, 0.4],
        "auto": [0.7, 0.7, 0.7],
        "best_batch_oracle": [1.0, 1.0, 1.0],
    }
    found = regrets(pd.concat([areas(values), areas({name: [0.5] * 3 for name in values}, "b")])).loc["a"]
    against = {"auto": [-0.1, 0.1, -0.3], "best_batch_oracle": [-0.4, -0.2, -0.6], "margin": [0.0, 0.0, -0.4]}
    for name, differences in against.items():
        interval = ttest_1samp(differences, 0).confidence_interval()
        row = found.loc[name]
        expected = [100 * number for number in (np.mean(differences), interval.low, interval.high)]
        assert row[["regret", "regret_low", "regret_high"]].tolist() == pytest.approx(expected)
        assert row["gain"] == pytest.approx(100 * (np.mean(values[name]) - 0.5))
        assert (row["best"], row["n_seeds"]) == ("margin", 3)
    assert "random" not in found.index


def test_the_best_of_noise_is_no_better_than_noise() -> None:
    """Ten strategies that are one: none has a regret, though the best of their means is above them all."""
    rng = np.random.default_rng(0)
    found = []
    for dataset in range(40):
        names = ("random", "auto", "margin", "badge", "entropy", "coreset", "typiclust", "uherding", "bait", "clue")
        found.append(areas({name: list(0.5 + 0.1 * rng.normal(size=5)) for name in names}, str(dataset)))
    regret = regrets(pd.concat(found)).xs("auto", level="strategy")
    assert abs(regret["regret"].mean()) < 3 * regret["regret"].std() / 40**0.5
    assert ((regret["regret_low"] <= 0) & (regret["regret_high"] >= 0)).mean() >= 0.8


def test_strips_show_every_data_set_and_the_mean() -> None:
    values = {"random": [0.5, 0.4], "margin": [0.6, 0.7], "auto": [0.5, 0.6]}
    table = regrets(pd.concat([areas(values), areas({**values, "auto": [0.6, 0.7]}, "b")]))
    (axes,) = plots.regret_strips(table).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["auto", "margin"]
    _, points, mean, others, _ = axes.lines
    assert sorted(points.get_xdata()) == pytest.approx([0, 10])
    assert list(mean.get_xdata()) == pytest.approx([5, 5])
    assert list(others.get_xdata()) == pytest.approx([0, 0])


def test_one_seed_has_no_others() -> None:
    with pytest.raises(ConfigError, match="a has one seed"):
        regrets(areas({"random": [0.5], "margin": [0.6], "auto": [0.6]}))
