"""Tables of `campaigns/decide.py` in short, by hand; and the committed ones, which hold what is said of them."""

import numpy as np
import pandas as pd
import pytest

from palkit.experiments.results import FIGURES
from palkit.storage.formats import read_table
from palkit.studies import plots
from palkit.studies.deciding import active_summary, stopping_summary, untargeted_summary


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


def test_savings_have_a_line_per_band() -> None:
    testing = read_table(FIGURES / "decide" / "testing.parquet")
    summary = active_summary(testing, ["band", "labels"])
    (axes,) = plots.test_savings(summary).axes
    lines = {line.get_label(): line for line in axes.lines}
    for band in summary.index.get_level_values("band").unique():
        low, high = (round(100 * float(end)) for end in band.strip("(]").split(","))
        drawn = lines[f"accuracy {low} to {high} %"].get_ydata()
        assert np.asarray(drawn) == pytest.approx(summary.loc[band, "saving"].to_numpy())
