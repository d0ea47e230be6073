"""Which picks stay the same when a run is repeated, and when what should not matter is changed?

    python benchmarks/determinism.py [--strategies margin,badge,...] [--out figures/trust/determinism.csv]

Every variant runs the same configs (Fashion-MNIST, 300 images, three rounds, linear probe and LoRA) in a process of its
own with a hash seed of its own, and is compared with the first one: one thread, batches of 256, its own empty cache.

`again`: the same. `two processes`: `palkit sweep --jobs 2`. `batches of N`: images per batch of the scoring pass and of
the embedding, which changes the config's hash and nothing else. `N threads`: of torch. Torch picks other matrix
kernels for other shapes and numbers of threads, and these add in another order: the last bits of features and fits may
differ, and where two candidates are as close as that, so may the picks.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import yaml

from palkit.files import REPOSITORY, atomic_path, cache_dir
from palkit.runs import RunDirectory

Runs = Mapping[tuple[str, str], RunDirectory]  # by adapter and strategy
ROUNDS = 3
RUN = """
import sys
from rich.console import Console
from palkit.dispatch import DispatchConfig, run_sweep
from palkit.sweep import load_sweep
config = DispatchConfig(jobs=int(sys.argv[2]), notebooks=False)
outcomes = run_sweep(load_sweep(sys.argv[1]), config, console=Console(stderr=True))
sys.exit(any(outcome.error for outcome in outcomes))
"""
BASE = {
    "dataset": "fashion_mnist",
    "pool_size": 300,
    "rounds": ROUNDS,
    "seed": 0,
    "adapter.start_block": 6,
    "training.epochs": 10,
    "scoring.precision": "float32",
    "training.precision": "float32",
}
STRATEGIES = "entropy,margin,bald,coreset,typiclust,probcover,badge,bait"
# name -> threads, images per batch, processes
VARIANTS = {
    "first": (1, 256, 1),
    "again": (1, 256, 1),
    "two processes": (1, 256, 2),
    "batches of 64": (1, 64, 1),
    "batches of 17": (1, 17, 1),
    "2 threads": (2, 256, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", default=STRATEGIES)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "figures/trust/determinism.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: computed(Path(folder), name, options.strategies.split(",")) for name in VARIANTS}
        first = results.pop("first")
        rows = pd.DataFrame(
            {"variant": name, "adapter": adapter, **compared(first, found, adapter)}
            for name, found in results.items()
            for adapter in ("linear_probe", "lora")
        )
    print(rows.to_string(index=False))
    with atomic_path(options.out) as temporary:
        rows.to_csv(temporary, index=False)


def computed(folder: Path, name: str, strategies: list[str]) -> Runs:
    """The runs of a variant."""
    threads, batch, processes = VARIANTS[name]
    place = folder / name.replace(" ", "-")
    cache, sweep = place / "cache", place / "determinism.yaml"
    cache.mkdir(parents=True)
    (cache / "weights").symlink_to(cache_dir().resolve() / "weights")
    grid = {"adapter.name": ["linear_probe", "lora"], "strategy": strategies}
    sweep.write_text(yaml.safe_dump({"base": {**BASE, "scoring.batch_size": batch}, "grid": grid}))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": str(list(VARIANTS).index(name)),
        "PALKIT_CACHE": str(cache),
        "PALKIT_RUNS": str(place / "runs"),
        "PALKIT_DEVICE": "cpu",
    }
    subprocess.run([sys.executable, "-c", RUN, sweep, str(processes)], env=environment, check=True, cwd=REPOSITORY)
    runs = {}
    for path in sorted(place.glob("runs/*/*/config.json")):
        config = json.loads(path.read_text())
        key = config["adapter"]["name"], config["strategy"]
        with mock.patch.dict(os.environ, environment):
            runs[key] = RunDirectory(config["dataset"], path.parent.name)
    assert len(runs) == 2 * len(strategies), f"{name}: {len(runs)} runs"
    return runs


def compared(first: Runs, found: Runs, adapter: str) -> dict[str, object]:
    """How far the runs with an adapter agree with those of the first variant.

    Returns:
        runs; equal: runs with the same picks in the same order, in every round; identical: of these, runs whose
        metrics and predictions are the same to the last bit; changed: strategies of the others; first_change: the
        earliest round with another pick; confidence: largest difference of a probability among the equal runs.
    """
    keys = [key for key in first if key[0] == adapter]
    equal, identical, changed, first_change, confidence = 0, 0, [], [], 0.0
    for key in keys:
        here, there = first[key].rounds(), found[key].rounds()
        differ = [a.number for a, b in zip(here, there, strict=True) if a.bought != b.bought]
        if differ:
            changed.append(key[1])
            first_change.append(differ[0])
            continue
        equal += 1
        one, other = (pd.concat(run[key].predictions(ROUNDS))["confidence"].to_numpy() for run in (first, found))
        confidence = max(confidence, float(np.abs(one - other).max()))
        identical += all(a.metrics == b.metrics for a, b in zip(here, there, strict=True)) and np.array_equal(
            one, other
        )
    return {
        "runs": len(keys),
        "equal": equal,
        "identical": identical,
        "changed": " ".join(changed),
        "first_change": min(first_change, default=np.nan),
        "confidence": confidence,
    }


if __name__ == "__main__":
    main()
