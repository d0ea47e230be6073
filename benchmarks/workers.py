"""What one and two workers of Ray gain over this process: seconds of an embedding and of a sweep, one thread each.

python benchmarks/workers.py [--images 6000] [--runs 12]

Efficiency is the time of this process over that of the workers, times their number. Ray is started before the clock,
and a small embedding has been computed by then, so that workers have imported what they need.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch
from rich.console import Console

from palkit.config import config_from_dict
from palkit.data import head, load_dataset
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.experiment import rounds
from palkit.experiments.sweep import Sweep
from palkit.models.backbones import BackboneConfig, load_backbone
from palkit.scoring.cluster import cluster, compute_on_ray
from palkit.scoring.inputs import Executor, InputCache, compute_here
from palkit.storage import shards
from palkit.storage.files import cache_dir

WORKERS = (1, 2)
SHARD_BYTES = 2**18  # some dozens of shards, as a large pool has


@contextmanager
def empty_cache() -> Iterator[None]:
    """A cache and runs of their own, but for the weights, which would be downloaded again; workers inherit it."""
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(cache_dir().resolve() / "weights", f"{folder}/weights")
        with patch.dict(os.environ, {"PALKIT_CACHE": folder, "PALKIT_RUNS": f"{folder}/runs"}):
            yield


def embedding(images: int, execute: Executor) -> float:
    """Seconds of the tokens of so many images behind all 12 blocks, at 56 pixels."""
    backbone, pool = load_backbone(BackboneConfig(image_size=56)), load_dataset("fashion_mnist")
    for size in (300, images):  # the first only warms up
        cache = InputCache(head(pool, size), backbone)
        began = time.perf_counter()
        cache.shards(backbone.depth, execute)  # of tokens: this process alone would make the features as well
        seconds = time.perf_counter() - began
    return seconds


def sweep(runs: int, config: DispatchConfig) -> float:
    """Seconds of so many runs of ten rounds of a probe, whose images have been embedded."""
    base = {"dataset": "fashion_mnist", "pool_size": 2000, "adapter": "linear_probe", "rounds": 10}
    list(rounds(config_from_dict(base | {"seed": runs, "rounds": 1})))
    began = time.perf_counter()
    outcomes = run_sweep(Sweep("workers", base, {"seed": list(range(runs))}), config, console=Console(quiet=True))
    assert all(outcome.error is None for outcome in outcomes)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--runs", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"PALKIT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}  # else one run at a time has all processors
    shards.SHARD_BYTES = SHARD_BYTES
    with empty_cache():
        here = {
            "embedding": embedding(options.images, compute_here),
            "sweep": sweep(options.runs, DispatchConfig(jobs=1, notebooks=False)),
        }
    for what, seconds in here.items():
        print(f"{what:10} this process {seconds:7.1f} s", flush=True)
    for workers in WORKERS:
        with empty_cache(), cluster(None, workers):
            taken = {
                "embedding": embedding(options.images, partial(compute_on_ray, workers=workers)),
                "sweep": sweep(options.runs, DispatchConfig(jobs=workers, engine="ray", notebooks=False)),
            }
        for what, seconds in taken.items():
            efficiency = 100 * here[what] / seconds / workers
            print(f"{what:10} {workers} of Ray     {seconds:7.1f} s  efficiency {efficiency:4.0f} %", flush=True)


if __name__ == "__main__":
    main()
