"""Does a GPU choose what the CPU chooses, does it choose it twice, and how fast is it?

    python benchmarks/gpu.py [--parts strategies precision runs memory rates speed] [--device cuda] [--out figures/gpu]

`strategies`: every strategy on the same scores, as tensors of the CPU and of the device, there twice. `precision`:
features beside those in float64. `runs`: whole runs on both, the device's twice, each with caches of its own. `memory`:
batches that do not fit, and a device that does not hold one image. `rates`: the scoring pass beside the bare network,
from tokens on disk, for networks with random weights (which cost what others cost). `speed`: seconds of a selection
from a large pool on both.
"""

import argparse
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from scoring import adapted, bare, turns
from strategies import dropout_passes, make_features, make_head, probabilities

from palkit.config import config_from_dict
from palkit.errors import OutOfMemoryError
from palkit.experiments.experiment import rounds
from palkit.experiments.setting import setting
from palkit.models.adapters import AdaptedModel, merge
from palkit.models.backbones import BackboneConfig, load_backbone
from palkit.models.devices import PRECISIONS, autocast, device_name, synchronize
from palkit.scoring.engine import ScoringConfig
from palkit.scoring.scorer import score_pool
from palkit.storage.files import REPOSITORY, atomic_path, cache_dir
from palkit.storage.shards import Shards
from palkit.strategies import STRATEGIES, select
from palkit.strategies.scores import LabelledSet, PoolScores

KNOWN, BATCH, CLASSES = 50, 20, 10
ROWS = 512  # images per pass on the device
TOKENS = 257  # of an image of 224 pixels
LARGE = 100_000
FAST = ("entropy", "coreset", "badge", "typiclust", "probcover", "maxherding", "uherding", "clue")
RUNS = [("linear_probe", name) for name in ("entropy", "badge", "coreset", "typiclust")] + [
    ("lora", name) for name in ("random", "entropy", "badge", "bald")
]
NETWORKS = {
    "ViT-S/14, 8 blocks, 42 px": BackboneConfig(),
    "ViT-B/14, 12 blocks, 224 px": BackboneConfig("vit_base_patch14_dinov2", 224, None),
    "ViT-L/14, 24 blocks, 224 px": BackboneConfig("vit_large_patch14_dinov2", 224, None),
}
IMAGES = {(42, "float32"): 65_536, (42, "bfloat16"): 65_536, (224, "float32"): 1024, (224, "bfloat16"): 8192}
Row = dict[str, object]


def scores_of(n: int, stochastic: bool) -> PoolScores:
    """Clustered features and what a linear head and dropout make of them, on the CPU."""
    features = make_features("clusters", n, 384)
    head = make_head(features, CLASSES)
    passes = dropout_passes(features, head, 10, 0.5) if stochastic else None
    return PoolScores(torch.from_numpy(features), torch.from_numpy(probabilities(features, head)), passes)


def moved(scores: PoolScores, device: torch.device) -> PoolScores:
    passes = scores.stochastic_probs
    features = scores.features[:]
    return PoolScores(features.to(device), scores.probs.to(device), None if passes is None else passes.to(device))


def picks(name: str, scores: PoolScores) -> list[int]:
    labelled = LabelledSet(torch.arange(KNOWN), torch.arange(KNOWN) % CLASSES)
    options = {"labels": torch.arange(len(scores)) % CLASSES} if STRATEGIES[name].is_oracle else {}
    return select(name, scores, labelled, BATCH, torch.Generator().manual_seed(0), **options).tolist()


def strategies(device: torch.device) -> Iterator[Row]:
    """How many of the picks agree, of each strategy."""
    here = scores_of(2000, True)
    there = moved(here, device)
    for name in sorted(STRATEGIES):
        on_cpu = picks(name, here)
        try:
            once, twice = picks(name, there), picks(name, there)
        except Exception as error:
            yield {"strategy": name, "error": repr(error)[:300]}
            continue
        in_order = next((i for i, (a, b) in enumerate(zip(on_cpu, once, strict=True)) if a != b), BATCH)
        common = len(set(on_cpu) & set(once))
        yield {"strategy": name, "picks": BATCH, "common": common, "in_order": in_order, "again": once == twice}


def speed(device: torch.device) -> Iterator[Row]:
    """Seconds of one selection, the best of up to three."""
    here = scores_of(LARGE, False)
    there = moved(here, device)
    for name in FAST:
        row: Row = {"strategy": name, "rows": LARGE}
        for where, scores in (("cpu_s", here), ("device_s", there)):
            taken: list[float] = []
            while len(taken) < 3 and sum(taken) < 4:
                synchronize(device)
                began = time.perf_counter()
                picks(name, scores)
                synchronize(device)
                taken.append(time.perf_counter() - began)
            row[where] = min(taken)
        yield row


def runs(device: torch.device) -> Iterator[Row]:
    """Runs on the CPU, on the device, and there once more."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for where, name in (("cpu", "cpu"), ("device", str(device)), ("again", str(device))):
            place = Path(folder) / where
            (place / "cache").mkdir(parents=True)
            (place / "cache" / "weights").symlink_to(cache_dir().resolve() / "weights")
            with mock.patch.dict(os.environ, PALKIT_CACHE=str(place / "cache"), PALKIT_RUNS=str(place / "runs")):
                for adapter, strategy in RUNS:
                    config = config_from_dict({"adapter": adapter, "strategy": strategy, "pool_size": 2000,
                                               "rounds": 5, "seed": 0, "scoring.batch_size": 128})  # fmt: skip
                    began = time.perf_counter()
                    found[where, adapter, strategy] = list(rounds(config, device=name)), time.perf_counter() - began
                found[where] = setting(config, name).cache.features()
    print(f"frozen features, the device's twice: equal {torch.equal(found['device'][:], found['again'][:])}")
    for adapter, strategy in RUNS:
        (cpu, cpu_s), (there, there_s), (again, _) = (found[w, adapter, strategy] for w in ("cpu", "device", "again"))
        bought = [np.concatenate([r.bought for r in run]) for run in (cpu, there)]
        yield {
            "adapter": adapter,
            "strategy": strategy,
            "labels": len(bought[0]),
            "common": len(np.intersect1d(*bought)),
            "again": [(r.bought, r.metrics) for r in there] == [(r.bought, r.metrics) for r in again],
            "accuracy_cpu": cpu[-1].metrics["accuracy"],
            "accuracy_device": there[-1].metrics["accuracy"],
            "cpu_s": cpu_s,
            "device_s": there_s,
        }


def precision(device: torch.device) -> Iterator[Row]:
    """How far features are from those in float64 on the CPU, relative to the largest of them."""
    config = BackboneConfig(depth=12)
    here = setting(config_from_dict({"pool_size": 256}))
    images = torch.from_numpy(here.pool.images.decode(np.arange(256), config.image_size))
    exact = load_backbone(config, "cpu").double()
    truth = exact(exact.preprocess(images).double()).float()
    for where in ("cpu", str(device)):
        backbone = load_backbone(config, where)
        for name in PRECISIONS:
            with torch.inference_mode(), autocast(backbone.device, name):
                found = backbone(backbone.preprocess(images.to(where))).float().cpu()
            yield {"device": where, "precision": name, "error": float((found - truth).abs().max() / truth.abs().max())}


def rates(device: torch.device) -> Iterator[Row]:
    """Images per second of the bare blocks on tokens that lie on the device, and of palkit's pass over them on disk."""
    for name, config in NETWORKS.items():
        backbone = load_backbone(config, device, pretrained=False)
        model = merge(adapted(backbone, 0))
        for precision in PRECISIONS:
            count = IMAGES[config.image_size, precision]
            yield {"network": name, "precision": precision, "images": count, **rates_of(model, precision, count)}


def rates_of(model: AdaptedModel, precision: str, count: int) -> Row:
    """Of one network in one precision."""
    backbone, vit, device = model.backbone, model.backbone.vit, model.feature_mean.device
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.npy"
        shape = (count, backbone.tokens, vit.embed_dim)
        np.save(path, np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(np.float16))
        shards = Shards([path], None)
        tokens = tuple(part.to(device).float() for part in shards[:].split(ROWS))

        def alone() -> None:
            with autocast(device, precision):
                bare(lambda x: vit.norm(vit.blocks(x)), tokens)
            synchronize(device)

        ours = partial(score_pool, model, shards, ScoringConfig(precision, batch_size=ROWS))
        speeds = turns({"bare": alone, "scoring": ours}, count, 3)
        return {**speeds, "share": speeds["scoring"] / speeds["bare"]}


def memory(device: torch.device) -> Iterator[Row]:
    """A pass whose batches do not fit gives what a pass with small ones gives; one that cannot fit says so."""
    backbone = load_backbone(NETWORKS["ViT-B/14, 12 blocks, 224 px"], device, pretrained=False)
    model = merge(adapted(backbone, 0))
    total = torch.cuda.get_device_properties(device).total_memory
    for images, count, room in ((1024, backbone.tokens, 1e9), (1024, backbone.tokens, 3e8), (4, 100 * TOKENS, 3e8)):
        tokens = torch.randn(images, count, backbone.vit.embed_dim)
        free = score_pool(model, tokens, ScoringConfig(batch_size=16)).features[:]
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated(device) + room) / total)
        row: Row = {"images": images, "tokens": count, "room_mb": room / 1e6}
        try:
            gap = (score_pool(model, tokens, ScoringConfig(batch_size=1024)).features[:] - free).abs().max()
            row["outcome"] = f"features differ by at most {float(gap / free.abs().max()):.1e} of the largest"
        except OutOfMemoryError as error:
            row["outcome"] = str(error)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        yield row


PARTS: dict[str, Callable[[torch.device], Iterator[Row]]] = {
    "strategies": strategies,
    "precision": precision,
    "runs": runs,
    "memory": memory,
    "rates": rates,
    "speed": speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "figures/gpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{device_name(device)} beside {device_name('cpu')}, torch {torch.__version__}")
    for part in options.parts:
        began, rows = time.perf_counter(), []
        try:
            for row in PARTS[part](device):
                rows.append(row)
                print(part, row, flush=True)
        except Exception:  # the next part is worth its time on a machine that is lent
            traceback.print_exc()
        with atomic_path(options.out / f"{part}.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
