"""Which picks stay the same when a run is repeated, and when what should not matter is changed?

    python campaigns/determinism.py [--grid small|default|...] [--precision float64] [--variants NAMES] [--out FILE]

Every variant runs the same configs in a process of its own with a hash seed of its own, and is compared with the first
one: one thread, batches of 256, its own empty cache. The small grid is Fashion-MNIST, 300 images, three rounds, eight
strategies, linear probe and LoRA; `default` is the first default sweep: 1,500 images, seven rounds, six strategies,
three seeds; `settings` is the same 36 runs with the settings of the default sweep of now, which says float64 itself.

`again`: the same. `two processes`: `palkit sweep --jobs 2`. `batches of N`: images per batch of the scoring pass and of
the embedding, which changes the config's hash and nothing else. `N threads`: of torch. The others imitate a processor:
MKL, oneDNN and torch are told to use other instructions. Matrix kernels for other shapes, threads and instructions add
in another order: the last bits of features and fits may differ, and where two candidates are as close as that, so may
the picks. On an Intel machine AVX2 modes do not give an AMD machine's bits; `any x86` should give one answer on both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import yaml

from palkit.experiments.runs import Round, RunDirectory
from palkit.experiments.sweep import load_sweep
from palkit.storage.files import REPOSITORY, atomic_path, cache_dir

Runs = Mapping[tuple[str, str, int], RunDirectory]  # by adapter, strategy and seed
RUN = """
import sys
from rich.console import Console
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.sweep import load_sweep
config = DispatchConfig(jobs=int(sys.argv[2]), notebooks=False)
outcomes = run_sweep(load_sweep(sys.argv[1]), config, console=Console(stderr=True))
sys.exit(any(outcome.error for outcome in outcomes))
"""
GRIDS: dict[str, dict[str, Any]] = {
    "small": {
        "base": {
            "dataset": "fashion_mnist",
            "pool_size": 300,
            "rounds": 3,
            "adapter.start_block": 6,
            "training.epochs": 10,
        },
        "grid": {
            "adapter.name": ["linear_probe", "lora"],
            "strategy": ["entropy", "margin", "bald", "coreset", "typiclust", "probcover", "badge", "bait"],
            "seed": [0],
        },
    },
    "default": {
        "base": {"dataset": "fashion_mnist", "pool_size": 1500, "rounds": 7},
        "grid": {
            "adapter.name": ["linear_probe", "lora"],
            "strategy": ["random", "entropy", "margin", "featdist", "coreset", "badge"],
            "seed": [0, 1, 2],
        },
    },
}
GRIDS["settings"] = {"base": dict(load_sweep("default").base), "grid": GRIDS["default"]["grid"]}
# name -> threads, images per batch, processes, instructions
VARIANTS: dict[str, tuple[int, int, int, dict[str, str]]] = {
    "first": (1, 256, 1, {}),
    "again": (1, 256, 1, {}),
    "two processes": (1, 256, 2, {}),
    "batches of 64": (1, 64, 1, {}),
    "batches of 17": (1, 17, 1, {}),
    "2 threads": (2, 256, 1, {}),
    "MKL with AVX2": (1, 256, 1, {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "torch without vectors": (1, 256, 1, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "AVX2 everywhere": (
        1,
        256,
        1,
        {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    ),
    "any x86": (
        1,
        256,
        1,
        {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=GRIDS, default="small")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--variants", default=",".join(list(VARIANTS)[1:]))
    parser.add_argument("--jobs", type=int, help="processes at a time, instead of each variant's own number")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "figures/trust/determinism.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:

        def runs(name: str) -> Runs:
            return computed(Path(folder), name, GRIDS[options.grid], options.precision, options.jobs)

        first, rows = runs("first"), []
        for name in options.variants.split(","):
            found = runs(name)
            for adapter in ("linear_probe", "lora"):
                rows.append({"variant": name, "adapter": adapter, **compared(first, found, adapter)})
            print(pd.DataFrame(rows).to_string(index=False), flush=True)
            with atomic_path(options.out) as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)


def computed(folder: Path, name: str, grid: Mapping[str, Any], precision: str, jobs: int | None) -> Runs:
    """The runs of a variant."""
    threads, batch, processes, instructions = VARIANTS[name]
    place = folder / name.replace(" ", "-")
    cache, sweep = place / "cache", place / "determinism.yaml"
    cache.mkdir(parents=True)
    (cache / "weights").symlink_to(cache_dir().resolve() / "weights")
    exact = {"scoring.precision": precision, "training.precision": precision, "scoring.batch_size": batch}
    sweep.write_text(yaml.safe_dump({**grid, "base": {**grid["base"], **exact}}))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": str(list(VARIANTS).index(name)),
        "PALKIT_CACHE": str(cache),
        "PALKIT_RUNS": str(place / "runs"),
        "PALKIT_DEVICE": "cpu",
        **instructions,
    }
    command = [sys.executable, "-c", RUN, sweep, str(jobs or processes)]
    subprocess.run(command, env=environment, check=True, cwd=REPOSITORY)
    runs = {}
    for path in sorted(place.glob("runs/*/*/config.json")):
        config = json.loads(path.read_text())
        with mock.patch.dict(os.environ, environment):
            directory = RunDirectory(config["dataset"], path.parent.name)
        runs[config["adapter"]["name"], config["strategy"], config["seed"]] = directory
    assert len(runs) == np.prod([len(values) for values in grid["grid"].values()]), f"{name}: {len(runs)} runs"
    return runs


def compared(first: Runs, found: Runs, adapter: str) -> dict[str, object]:
    """How far the runs with an adapter agree with those of the first variant.

    Returns:
        runs; equal: runs with the same picks in every round; identical: of these, runs whose metrics and predictions
        are the same to the last bit; changed: strategies of the others; first_change: the earliest round with another
        pick; area: largest change of the area under their accuracy curves, in points; confidence: largest difference of
        a probability among the equal runs.
    """
    keys = [key for key in first if key[0] == adapter]
    equal, identical, changed, first_change, area, confidence = 0, 0, [], [], 0.0, 0.0
    for key in keys:
        here, there = first[key].rounds(), found[key].rounds()
        differ = [a.number for a, b in zip(here, there, strict=True) if set(a.bought) != set(b.bought)]
        if differ:
            changed.append(f"{key[1]} {key[2]}")
            first_change.append(differ[0])
            area = max(area, abs(area_of(here) - area_of(there)))
            continue
        equal += 1
        one, other = (pd.concat(run[key].predictions(len(here)))["confidence"].to_numpy() for run in (first, found))
        confidence = max(confidence, float(np.abs(one - other).max()))
        identical += all(a.metrics == b.metrics for a, b in zip(here, there, strict=True)) and np.array_equal(
            one, other
        )
    return {
        "runs": len(keys),
        "equal": equal,
        "identical": identical,
        "changed": ", ".join(changed),
        "first_change": min(first_change, default=np.nan),
        "area": area,
        "confidence": confidence,
    }


def area_of(rounds: Sequence[Round]) -> float:
    """Area under the accuracy curve, in points."""
    labels = np.array([round_.labels for round_ in rounds])
    accuracy = np.array([round_.metrics["accuracy"] for round_ in rounds])
    return float(100 * np.trapezoid(accuracy, labels) / (labels[-1] - labels[0]))


if __name__ == "__main__":
    main()
