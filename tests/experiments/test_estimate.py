"""Dry runs: a grid, what finished runs of its kinds took, and nothing started."""

import os
from pathlib import Path
from typing import Any

import pytest

from palkit.cli import main
from palkit.config import config_from_dict
from palkit.errors import ConfigError
from palkit.experiments.dispatch import share_of_machine
from palkit.experiments.estimate import OVERHEAD_SECONDS, expected, finished
from palkit.experiments.experiment import rounds, run_directory
from palkit.experiments.sweep import Sweep, load_sweep


def test_the_grid_is_named_and_nothing_is_started(
    tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    grid = "{adapter.name: [linear_probe, lora], strategy: [random, entropie, margin], balance: [null, pcb]}"
    path.write_text(f"base: {tiny_run}\ngrid: {grid}")
    assert main(["sweep", str(path), "--dry-run"]) == 1
    text = capsys.readouterr().err
    assert "sweep small: 8 runs, 24 rounds" in text
    assert "balance: none, pcb" in text
    assert "4 more runs are not valid, the first: unknown strategy 'entropie'" in text
    assert "test_vit, linear_probe: 4 runs, cost not known: no run of this kind is complete" in text
    assert "test_vit, lora: 4 runs, cost not known" in text
    assert "time:" not in text
    assert not Path(os.environ["PALKIT_RUNS"]).exists()


def test_finished_runs_say_what_others_will_take(tiny_run: dict[str, Any]) -> None:
    probe = {**tiny_run, "adapter": "linear_probe"}
    config = config_from_dict({**probe, "rounds": 2})
    assert len(list(rounds(config))) == 2
    table = run_directory(config).table()
    seconds = table[["fit_s", "score_s", "select_s"]].sum(axis=1).mean()
    grid = {"adapter.name": ["linear_probe", "lora"], "seed": [1, 2, 3], "rounds": [4]}
    sweep = Sweep("more", {name: value for name, value in tiny_run.items() if name != "adapter"}, grid)
    lines = list(expected(sweep, "cpu", 1))
    (line,) = [line for line in lines if "linear_probe" in line and "runs" in line]
    assert f"3 runs of {4 * seconds + OVERHEAD_SECONDS:,.0f} s, {table['peak_mb'].max():,.0f} MB, as 1 finished" in line
    assert "lora: 3 runs, cost not known" in "".join(lines)
    assert "and what 3 runs of unknown cost take" in lines[-1]
    # On another data set, what is known of this one is better than nothing.
    other = Sweep("other", {**probe, "dataset": "fashion_mnist", "seed": 0})
    assert "as 1 finished" in "".join(expected(other, "cpu"))
    # A damaged run is the trouble of who needs it.
    (run_directory(config).path / "rounds.parquet").write_bytes(b"no")
    assert finished().empty


def test_a_grid_without_a_valid_run_says_why(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'entropie'"):
        list(expected(Sweep("bad", {**tiny_run, "strategy": "entropie"}), "cpu"))
    assert share_of_machine(1, 5, "cpu")[0] == 1


def test_no_data_or_weights_are_needed(own_cache: None) -> None:
    """The paper's sets would have to be downloaded, and its networks have gigabytes."""
    lines = list(expected(load_sweep("paper"), "cpu"))
    assert "sweep paper: 900 runs" in lines[0]
    assert sum("cost not known" in line for line in lines) == 12


def test_the_paper_profile_is_the_paper() -> None:
    configs = [config_from_dict(values) for _, values in load_sweep("paper").parameters()]
    assert len(configs) == 5 * 2 * 3 * 3 * 2 * 5
    assert {c.dataset for c in configs} == {"histology", "aptos2019", "eurosat"}
    assert {c.backbone.name for c in configs} == {"vit_giant_patch14_dinov2", "vit_large_patch14_dinov2"}
    assert {c.backbone.depth for c in configs} == {None}
    lora = config_from_dict(dict(load_sweep("paper").parameters())["LoRA C-PEAL"])
    assert (lora.adapter.rank, lora.adapter.alpha, lora.adapter.dropout) == (4, 4, 0.25)
    assert lora.adapter.targets == ("attn.qkv",)
    assert (lora.training.optimizer, lora.training.adapter_lr, lora.training.batch_size) == ("sgd", 0.002, 32)
    assert {c.seed for c in configs} == {0, 1, 2, 3, 4}
    assert {c.rounds for c in configs} == {10}
