"""The committed results hold: runs of the default sweep, computed again, against the committed table.

It is computed in float64, so that another processor or number of threads buys the same images in every round.
"""

from pathlib import Path

import pandas as pd
import pytest

from palkit.experiments.experiment import rounds, run_directory
from palkit.experiments.sweep import load_sweep, plan
from palkit.models.adapters import ADAPTERS
from palkit.storage.files import REPOSITORY

TOLERANCE = 0.0011  # accuracy: one of 1,000 test images, on which two classes may be as close as float32 can tell
RESULTS = REPOSITORY / "figures" / "default"


@pytest.mark.parametrize(
    ("adapter", "strategy", "seed", "count"),
    [
        ("linear_probe", "margin", 104, 7),
        # Notebook 03 buys with LoRA and BADGE, and is compared with what it bought.
        pytest.param("linear_probe", "badge", 100, 7, marks=pytest.mark.campaign),
        pytest.param("lora", "featdist", 101, 2, marks=pytest.mark.campaign),
    ],
)
def test_committed_results_hold(
    adapter: str, strategy: str, seed: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path))
    table, selections = (pd.read_parquet(RESULTS / f"{name}.parquet") for name in ("rounds", "selections"))
    configs = [task.config for task in plan(load_sweep("default"))]
    (config,) = [
        c for c in configs if c is not None and (c.adapter.name, c.strategy, c.seed) == (adapter, strategy, seed)
    ]
    run = run_directory(config).run
    stored = table[table["run"] == run]
    assert len(stored) == 7, "the committed results are of another config, data or weights: run the sweep again"
    bought = selections[selections["run"] == run].groupby("round")["position"].agg(list)
    for (_, expected), round_ in zip(stored.head(count).iterrows(), rounds(config), strict=False):
        assert sorted(round_.bought) == sorted(bought[round_.number])
        assert round_.metrics["accuracy"] == pytest.approx(expected["accuracy"], abs=TOLERANCE)
    assert round_.number >= count - 1


def test_committed_sweep_is_complete() -> None:
    table = pd.read_parquet(RESULTS / "rounds.parquet")
    assert table.groupby("run").size().tolist() == [7] * 100
    initial = table[table["round"] == 0].groupby(["adapter", "seed"])["accuracy"].nunique()
    assert (initial == 1).all(), "strategies of one adapter and seed start from the same model"


def test_learning_rates_are_those_that_the_search_found() -> None:
    """Of every adapter the rate of highest validation accuracy, of lowest NLL among equals (notebook 07)."""
    sweeps = [REPOSITORY / "figures" / name / "rounds.parquet" for name in ("search", "search-more")]
    table = pd.concat(map(pd.read_parquet, sweeps))
    searched = table[~table["variant"].str.contains(",") & (table["adapter"] != "linear_probe")]
    found = searched.groupby(["adapter", "training.adapter_lr"])[["accuracy", "nll"]].mean().round(6).reset_index()
    best = found.sort_values(["accuracy", "nll"], ascending=[False, True]).groupby("adapter").first()
    chosen = {name: method.adapter_lr for name, method in ADAPTERS.items() if name != "linear_probe"}
    assert best["training.adapter_lr"].to_dict() == pytest.approx(chosen)
