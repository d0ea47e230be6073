"""The scoring engine beside the bare network, in one run on one machine.

    python benchmarks/scoring.py [--images 1500] [--threads 2] [--parts rates variants stochastic precision probe]

Rates: the same timm blocks on the same batches in memory, nothing else (bare); palkit's pass over fp16 tokens on disk
with a merged LoRA, head and softmax (scoring); palkit's pass over decoded uint8 images on disk with resizing,
normalising and writing of shards (embedding), beside the bare network on pixels. Bare and palkit take turns, so that
a slow moment of the machine hits both. Then: what half-precision tokens change, what stochastic passes cost, bfloat16
and torch.compile, and whole runs of a linear probe.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from palkit.config import config_from_dict
from palkit.data import FileImages, ImagePool, load_dataset
from palkit.experiments.experiment import Learner, rounds
from palkit.experiments.setting import setting, settle
from palkit.models.adapters import AdaptedModel, AdapterConfig, attach, merge, trainable_parameters
from palkit.models.backbones import Backbone, BackboneConfig, load_backbone
from palkit.scoring.engine import ScoringConfig
from palkit.scoring.inputs import Embedding, InputCache, decoded
from palkit.scoring.scorer import score_pool
from palkit.strategies.scores import Dropout

TURNS = 7
PARTS = ("rates", "variants", "stochastic", "precision", "probe")
BATCH = ScoringConfig().rows


def turns(calls: dict[str, Callable[[], object]], images: int, times: int = TURNS) -> dict[str, float]:
    """Images per second of each call, the median of turns taken one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(times):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: images / statistics.median(taken) for name, taken in seconds.items()}


@torch.inference_mode()
def bare(function: Callable[[torch.Tensor], torch.Tensor], batches: tuple[torch.Tensor, ...]) -> None:
    for batch in batches:
        function(batch)


def adapted(backbone: Backbone, start_block: int) -> AdaptedModel:
    """With LoRA from a block on and a head of ten classes, on the backbone's device."""
    zeros = torch.zeros(backbone.width, device=backbone.device)
    return attach(backbone, AdapterConfig("lora", start_block=start_block), 10, zeros, zeros + 1, 0)


def rates(backbone: Backbone, pool: ImagePool, folder: Path) -> None:
    cache = InputCache(pool, backbone)
    model = adapted(backbone, 0)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.01 * torch.randn(parameter.shape)
    merge(model)
    shards = cache.shards(0)
    tokens = shards[:].float().split(BATCH)
    vit = backbone.vit
    calls: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(lambda x: vit.norm(vit.blocks(x)), tokens),
        "scoring": lambda: score_pool(model, shards),
    }
    found = turns(calls, len(pool))
    report(f"{backbone.depth} blocks, {backbone.config.image_size} px, from tokens", found, "scoring")

    paths = []
    for row, image in enumerate(pool.images.decode(np.arange(len(pool)), 0)):
        paths.append(folder / f"{row:05d}.png")
        Image.fromarray(image).save(paths[-1])
    size = backbone.config.image_size
    images = decoded(FileImages(tuple(paths)), size, f"benchmark-{folder.name}")
    embedding = Embedding(images, backbone, backbone.depth, ScoringConfig(), folder / "shards")
    pixels = backbone.preprocess(torch.from_numpy(images.decode(np.arange(len(pool)), size))).split(BATCH)
    calls = {
        "bare": lambda: bare(vit.forward_features, pixels),
        "embedding": lambda: [embedding.compute(number) for number in range(len(embedding.ranges))],
    }
    found = turns(calls, len(pool))
    report(f"{backbone.depth} blocks, {size} px, from decoded images", found, "embedding")


def report(what: str, found: dict[str, float], ours: str) -> None:
    share = 100 * found[ours] / found["bare"]
    print(f"{what:45} bare {found['bare']:7.1f} img/s  {ours} {found[ours]:7.1f} img/s  {share:5.1f} %")


def half_precision(seeds: int = 3) -> None:
    """What tokens in float16 change: probabilities of the same fitted model, and batches chosen from them."""
    names = ("entropy", "margin", "badge", "coreset")
    differences, common = [], dict.fromkeys(names, 0.0)
    for seed in range(seeds):
        found = {}
        for dtype in ("float16", "float32"):
            config = config_from_dict({"adapter": {"name": "lora", "start_block": -3}, "seed": seed,
                                       "scoring.cache_dtype": dtype, "training.augmentation": "crop"})  # fmt: skip
            here = setting(config)
            learner = Learner(settle(config, here), here)
            positions = learner.first_batch(30)
            scores = learner.score_pool(learner.fit(positions, 0), 0)
            picks = {}
            for name in names:
                chooser = config_from_dict({"adapter": {"name": "lora", "start_block": -3}, "seed": seed,
                                            "scoring.cache_dtype": dtype, "strategy": name})  # fmt: skip
                picks[name] = set(Learner(settle(chooser, here), here).next_batch(scores, positions, 10, 1).tolist())
            found[dtype] = scores.probs, picks
        differences.append(float((found["float16"][0] - found["float32"][0]).abs().max()))
        for name in names:
            common[name] += len(found["float16"][1][name] & found["float32"][1][name]) / 10 / seeds
    shared = ", ".join(f"{name} {100 * share:.0f} %" for name, share in common.items())
    print(f"float16 tokens, last third of blocks: probabilities differ by at most {max(differences):.1e}; "
          f"picks in common over {seeds} seeds: {shared}")  # fmt: skip


def stochastic(backbone: Backbone, pool: ImagePool) -> None:
    model = adapted(backbone, backbone.depth - 2)
    inputs = InputCache(pool, backbone).rows(model.start_block, np.arange(2 * BATCH))
    rng = torch.Generator()
    calls: dict[str, Callable[[], object]] = {"none": lambda: score_pool(model, inputs)}
    for on in ("features", "head", "adapter"):
        calls[on] = lambda on=on: score_pool(model, inputs, dropout=Dropout(20, 0.2, on), rng=rng)
    found = turns(calls, len(inputs))
    print("20 stochastic passes, LoRA in the last 2 blocks, times the cost of the certain pass alone: "
          + ", ".join(f"{on} {found['none'] / found[on]:.2f}" for on in list(calls)[1:]))  # fmt: skip


def variants(backbone: Backbone, pool: ImagePool) -> None:
    model = merge(adapted(backbone, 0))
    inputs = InputCache(pool, backbone).rows(0, np.arange(4 * BATCH))
    configs = {
        "float32": ScoringConfig(),
        "bfloat16": ScoringConfig(precision="bfloat16"),
        "compiled": ScoringConfig(compile=True),
    }
    found = turns({name: lambda c=c: score_pool(model, inputs, c) for name, c in configs.items()}, len(inputs))
    print("scoring pass, img/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in found.items()))


def linear_probe_run() -> None:
    """10 rounds on a pool of 6,000, once its features are cached; then the same run again."""
    for strategy in ("random", "entropy", "badge", "typiclust"):
        config = config_from_dict({"adapter": "linear_probe", "strategy": strategy, "pool_size": 6000, "rounds": 10})
        setting(config).cache.features()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["PALKIT_RUNS"] = folder
            taken = []
            for _ in range(2):
                began = time.perf_counter()
                last = list(rounds(config))[-1]
                taken.append(time.perf_counter() - began)
            del os.environ["PALKIT_RUNS"]
        print(f"linear probe, {strategy}, 10 rounds, 6,000 images: {taken[0]:.1f} s "
              f"(accuracy {last.metrics['accuracy']:.3f}); the same config again: {taken[1]:.2f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.images} images, batches of {BATCH}")
    data = load_dataset("fashion_mnist")
    images = data.images.take(np.arange(options.images))
    pool = ImagePool("benchmark", images, data.labels[: options.images], data.split[: options.images],
                     data.ids[: options.images], data.class_names)  # fmt: skip
    if "rates" in options.parts:
        for config in (BackboneConfig(), BackboneConfig(depth=12), BackboneConfig(image_size=84)):
            with tempfile.TemporaryDirectory() as folder:
                rates(load_backbone(config), pool, Path(folder))
    if "variants" in options.parts:
        variants(load_backbone(BackboneConfig()), pool)
    if "stochastic" in options.parts:
        stochastic(load_backbone(BackboneConfig()), pool)
    if "precision" in options.parts:
        half_precision()
    if "probe" in options.parts:
        linear_probe_run()


if __name__ == "__main__":
    main()
