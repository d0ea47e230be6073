"""Dry runs: a grid and measured estimates, and nothing started."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palkit.cli import main
from palkit.config import config_from_dict
from palkit.errors import ConfigError
from palkit.experiments.estimate import Cost, Size, expected, measure, run_seconds, size_of
from palkit.experiments.sweep import Sweep, load_sweep

COST = Cost(
    prefix_s=0.1, suffix_s=0.01, head_s=0.001, train_s=0.03, base_mb=500, image_mb=2, input_numbers=1, pretrained=True
)
SIZE = Size(pool=1000, evaluated=200, total=1300, classes=10, counted=True)


def test_seconds_of_a_run_are_the_sum_of_its_parts() -> None:
    values = {"adapter": "lora", "strategy": "entropy", "rounds": 2, "training": {"epochs": 5, "head_epochs": 4}}
    config = config_from_dict(values)
    views = config.training.views
    first = views * 10 * 0.1 + (4 * 0.001 + views * 10 * 0.01) + 5 * 10 * 0.03 + 1200 * 0.01
    second = views * 10 * 0.1 + (4 * 0.001 + views * 20 * 0.01) + 5 * 20 * 0.03 + 200 * 0.01
    assert run_seconds(config, SIZE, COST) - 2.0 == pytest.approx(first + second)


def test_what_random_does_not_look_at_costs_nothing() -> None:
    random = config_from_dict({"strategy": "random"})
    assert run_seconds(random, SIZE, COST) == run_seconds(random, replace(SIZE, pool=10**6), COST)
    entropy = config_from_dict({"strategy": "entropy"})
    assert run_seconds(entropy, SIZE, COST) < run_seconds(entropy, replace(SIZE, pool=10**6), COST)


def test_size_is_counted(tiny_run: dict[str, Any]) -> None:
    size = size_of(config_from_dict(tiny_run))
    assert (size.pool, size.evaluated, size.total, size.classes, size.counted) == (200, 269, 200 + 269 + 450, 10, True)


def test_measured_costs_are_those_of_the_network(tiny_run: dict[str, Any]) -> None:
    lora = measure(config_from_dict(tiny_run), "cpu", 1, 10)
    probe = measure(config_from_dict({**tiny_run, "adapter": "linear_probe"}), "cpu", 1, 10)
    assert all(value > 0 for value in (lora.prefix_s, lora.suffix_s, lora.train_s, lora.base_mb))
    assert lora.pretrained
    assert probe.input_numbers == 64, "a feature of test_vit"
    assert lora.input_numbers == 64 * (1 + 2 * 2), "tokens of it"


def test_nothing_is_downloaded_for_an_estimate(own_cache: None) -> None:
    backbone = {"name": "test_vit2", "image_size": 32, "depth": None}
    cost = measure(config_from_dict({"backbone": backbone, "adapter": "lora"}), "cpu", 1, 10)
    assert not cost.pretrained
    assert cost.train_s > 0


def test_forecast_names_the_grid_and_starts_nothing(
    tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    grid = "{adapter.name: [linear_probe, lora], strategy: [random, entropie, margin], balance: [null, pcb]}"
    path.write_text(f"base: {tiny_run}\ngrid: {grid}")
    assert main(["sweep", str(path), "--dry-run"]) == 0
    text = capsys.readouterr().err
    assert "sweep small: 8 runs, 24 rounds" in text
    assert "balance: none, pcb" in text
    assert "4 runs are not valid, the first: unknown strategy 'entropie'" in text
    assert "test_vit, linear_probe: 4 runs of" in text
    assert "test_vit, lora: 4 runs of" in text
    assert "time:" in text
    assert "memory:" in text
    assert not Path(os.environ["PALKIT_RUNS"]).exists()


def test_a_grid_without_a_valid_run_says_why(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'entropie'"):
        list(expected(Sweep("bad", {**tiny_run, "strategy": "entropie"}), "cpu"))


def test_the_paper_profile_is_the_paper() -> None:
    configs = [config_from_dict(values) for _, values in load_sweep("paper").parameters()]
    assert len(configs) == 2 * 3 * 2 * 3 * 2 * 5
    assert {c.dataset for c in configs} == {"histology", "aptos2019", "eurosat"}
    assert {c.backbone.name for c in configs} == {"vit_giant_patch14_dinov2", "vit_large_patch14_dinov2"}
    assert {c.backbone.depth for c in configs} == {None}
    lora = next(c for c in configs if c.adapter.name == "lora")
    assert (lora.adapter.rank, lora.adapter.alpha, lora.adapter.dropout) == (4, 4, 0.25)
    assert lora.adapter.targets == ("attn.qkv",)
    assert (lora.training.optimizer, lora.training.adapter_lr, lora.training.batch_size) == ("sgd", 0.002, 32)
    assert {c.seed for c in configs} == {0, 1, 2, 3, 4}
    assert {c.rounds for c in configs} == {10}


def test_published_sizes_need_no_download(own_cache: None) -> None:
    size = size_of(config_from_dict({"dataset": "eurosat", "pool_size": None}))
    assert (size.total, size.classes, size.counted) == (27_000, 10, False)
