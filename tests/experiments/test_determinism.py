"""The same config gives the same run: in another process, beside others, from other chunks, on other processors.

What is compared to the last bit here runs on one machine with one thread. Other numbers of threads, batch sizes and
processors add in another order, so their last bits may differ; picks must not. Another processor is imitated by telling
MKL, oneDNN and torch to use the instructions that every x86 processor has; see docs/trust.md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console

from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.sweep import load_sweep
from palkit.storage.files import REPOSITORY

RUN = """
import sys
from rich.console import Console
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.sweep import load_sweep
config = DispatchConfig(jobs=1, notebooks=False)
outcomes = run_sweep(load_sweep(sys.argv[1]), config, console=Console(stderr=True))
sys.exit(any(outcome.error for outcome in outcomes))
"""
STRATEGIES = ("margin", "badge", "bald")
CONFIGS = 4  # LoRA with each, a linear probe with BALD
OLD_PROCESSOR = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
Tables = dict[tuple[str, str], tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]


# name -> processes, threads, images per batch, precision, instructions
WAYS: dict[str, tuple[int, int, int, str, dict[str, str]]] = {
    "first": (1, 1, 64, "float32", {}),
    "two processes": (2, 1, 64, "float32", {}),
    "small batches, two threads": (1, 2, 29, "float32", {}),
    "exact": (1, 1, 64, "float64", {}),
    "exact, old processor": (1, 1, 64, "float64", OLD_PROCESSOR),
}


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Callable[[str], Tables]:
    """Rounds, selections and predictions of the same four configs, computed in one of the ways, from empty caches.

    What needs no process of its own is computed in this one, as processes take longer to start than to compute.
    """
    folder = tmp_path_factory.mktemp("determinism")

    @cache
    def computed(name: str) -> Tables:
        processes, threads, batch, precision, instructions = WAYS[name]
        place = folder / name
        sweep = place / "sweep.yaml"
        place.mkdir()
        base: dict[str, Any] = {
            "dataset": "digits",
            "pool_size": 120,
            "rounds": 3,
            "backbone": {"name": "test_vit", "image_size": 32, "depth": 4, "checkpoint": str(tiny_checkpoint)},
            "adapter.start_block": 2,
            "training": {"epochs": 3, "head_epochs": 3, "views": 2, "precision": precision},
            "scoring": {"batch_size": batch, "precision": precision},
        }
        grid = {"adapter.name": ["linear_probe", "lora"], "strategy": list(STRATEGIES)}
        exclude = [{"adapter.name": "linear_probe", "strategy": ["margin", "badge"]}]
        sweep.write_text(yaml.safe_dump({"base": base, "grid": grid, "exclude": exclude}))
        variables = {
            "PALKIT_CACHE": str(place / "cache"),
            "PALKIT_RUNS": str(place / "runs"),
            "PALKIT_DEVICE": "cpu",
            "OMP_NUM_THREADS": str(threads),
            "PYTHONHASHSEED": str([*WAYS].index(name)),  # of the processes that are started
        }
        if not instructions:
            with pytest.MonkeyPatch.context() as patch, threads_of_torch(threads):
                for variable, value in variables.items():
                    patch.setenv(variable, value)
                config = DispatchConfig(jobs=processes, notebooks=False)
                outcomes = run_sweep(load_sweep(sweep), config, console=Console(quiet=True))
            assert [outcome.error for outcome in outcomes] == [None] * CONFIGS
        else:
            done = subprocess.run(
                [sys.executable, "-c", RUN, sweep],
                env=os.environ | variables | instructions,
                capture_output=True,
                text=True,
                cwd=REPOSITORY,
            )
            assert done.returncode == 0, done.stderr
        found = tables(place / "runs")
        assert len(found) == CONFIGS
        return found

    return computed


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """So many threads, whatever pytest was started with."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tables(runs: Path) -> Tables:
    """Tables of all runs by adapter and strategy, without what is measured."""
    found = {}
    for path in runs.glob("*/*/config.json"):
        config = json.loads(path.read_text())
        rounds, selections, predictions = (
            pd.read_parquet(path.with_name(f"{name}.parquet")) for name in ("rounds", "selections", "predictions")
        )
        rounds = rounds.drop(columns=["fit_s", "score_s", "select_s", "peak_mb"])
        found[config["adapter"]["name"], config["strategy"]] = rounds, selections, predictions
    return found


def test_what_is_compared(variant: Callable[[str], Tables]) -> None:
    first = variant("first").values()
    for rounds, selections, _ in first:
        assert rounds["round"].tolist() == [0, 1, 2]
        assert selections["position"].is_unique
    # Strategies differ, so equal picks below are no accident.
    assert len({tuple(selections["position"]) for _, selections, _ in first}) > len(STRATEGIES)


@pytest.mark.campaign
def test_two_processes_give_the_bits_of_one(variant: Callable[[str], Tables]) -> None:
    """Also with another hash seed and other caches."""
    for key, expected in variant("first").items():
        for mine, theirs in zip(expected, variant("two processes")[key], strict=True):
            pd.testing.assert_frame_equal(mine, theirs, check_exact=True)


def test_exact_runs_are_the_same_on_another_processor(variant: Callable[[str], Tables]) -> None:
    """The same images, predictions and metrics; confidences to the last but one bit of what is stored of them."""
    for key, (rounds, selections, predictions) in variant("exact").items():
        there, picked, predicted = variant("exact, old processor")[key]
        pd.testing.assert_frame_equal(selections, picked, check_exact=True)
        pd.testing.assert_frame_equal(rounds, there, rtol=1e-6)
        assert np.abs(predictions["confidence"] - predicted["confidence"]).max() < 1e-6
        assert predictions["predicted"].equals(predicted["predicted"])


def test_picks_do_not_depend_on_chunks_or_threads(variant: Callable[[str], Tables]) -> None:
    for key, (_, selections, predictions) in variant("first").items():
        _, picked, predicted = variant("small batches, two threads")[key]
        pd.testing.assert_frame_equal(selections, picked, check_exact=True)
        assert np.abs(predictions["confidence"] - predicted["confidence"]).max() < 1e-3
