"""Seconds that people wait: for a command, a selection, a fit, a round of LoRA, a first batch, a manifest.

    python benchmarks/waiting.py [--parts imports herding probe lora session files plans]

On a quiet machine; fits, scoring and the session on one thread. `lora` and `session` take the histology images and
`files` EuroSAT's, if they are there (docs/images.md), or else Fashion-MNIST, written to files. Beside what is limited
by something that can be measured, that stands too: the bare network on the same images, or their decoder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from scoring import bare
from strategies import make_features, make_head, palkit_call

from palkit.config import ExperimentConfig, config_from_dict
from palkit.data import FileImages, load_dataset
from palkit.data.hashes import in_threads
from palkit.errors import DataError
from palkit.experiments.experiment import Learner
from palkit.experiments.setting import setting, settle
from palkit.experiments.sweep import Sweep, plan
from palkit.labelling.session import open_session
from palkit.models.adapters import AdaptedModel
from palkit.models.backbones import BackboneConfig, load_backbone

DEFAULTS: dict[str, Any] = {"backbone": {"image_size": 56}, "adapter": {"name": "lora"}}
RECIPE = {"backbone": {"depth": 7, "image_size": 56}, "adapter": {"name": "lora", "start_block": 5},
          "training": {"head": "logistic", "head_decay": 0.3, "augmentation": "crop_flip"}}  # fmt: skip
FEW_EPOCHS = {**RECIPE, "training": {**RECIPE["training"], "epochs": 5}}
Rows = Iterator[tuple[str, float]]
COMMAND = Path(sys.executable).with_name("palkit")


def seconds(work: Callable[[], Any], times: int = 1) -> float:
    """The least of some tries."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def imports() -> Rows:
    commands = {"python, nothing": "pass", "import torch": "import torch", "import palkit": "import palkit",
                "import palkit.labelling.session": "import palkit.labelling.session"}  # fmt: skip
    for what, line in commands.items():
        yield what, seconds(lambda line=line: subprocess.run([sys.executable, "-c", line], check=True), 3)
    asked = [COMMAND, "--help"]
    yield "palkit --help", seconds(lambda: subprocess.run(asked, check=True, stdout=subprocess.DEVNULL), 3)


def herding() -> Rows:
    """100 of 20,000 rows of 384 numbers, on all processors."""
    features = make_features("clusters", 20_000, 384)
    head = make_head(features, 10)
    for name in ("maxherding", "uherding"):
        call = palkit_call(name, features, head, 100, 100)
        call()
        yield f"{name}, quiet", seconds(call, 3)
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            yield f"{name}, beside a busy process", seconds(call, 3)
        finally:
            busy.kill()


def learner_of(config: ExperimentConfig) -> Learner:
    here = setting(config)
    return Learner(settle(config, here), here)


def if_there(name: str) -> str:
    """A data set, or Fashion-MNIST where it was not downloaded."""
    try:
        load_dataset(name)
    except DataError:
        return "fashion_mnist"
    return name


def probe() -> Rows:
    """A fit to 100 labels, features of views being there."""
    torch.set_num_threads(1)
    for head in ("optimizer", "logistic"):
        values = {"dataset": "fashion_mnist", "adapter": "linear_probe", "training.head": head}
        learner = learner_of(config_from_dict(values))
        positions = learner.first_batch(100)
        learner.fit(positions, 0)
        yield f"probe, 100 labels, head {head}", seconds(partial(learner.fit, positions, 0), 3)


def lora() -> Rows:
    """A round with 80 labels, pool 2,000."""
    torch.set_num_threads(1)
    name = if_there("histology")
    asked = {"defaults": DEFAULTS, "recipe of docs/recipe.md": RECIPE, "recipe, 5 epochs": FEW_EPOCHS}
    for what, values in asked.items():
        learner = learner_of(config_from_dict({"dataset": name, "pool_size": 2000, **values}))
        positions = learner.first_batch(80)
        learner.fit(positions[:8], 0)
        model = learner.fit(positions, 0)
        yield f"{name}, {what}: fit", seconds(partial(learner.fit, positions, 0), 2)
        rows = len(learner.pool_rows) + len(learner.eval_labels)
        yield f"{name}, {what}: scoring of {rows:,} images", seconds(partial(scored, learner, model), 2)


def scored(learner: Learner, model: AdaptedModel) -> None:
    learner.score_pool(model, 0)
    learner.evaluate(model)


def written(folder: Path, name: str, most: int) -> Path:
    """Images of a data set in files in one folder: links, or else PNG."""
    pool = load_dataset(name)
    folder.mkdir()
    for row in range(min(len(pool), most)):
        if isinstance(pool.images, FileImages):
            path = pool.images.paths[row]
            os.symlink(path.resolve(), folder / f"{row:05}{path.suffix}")
        else:
            Image.fromarray(np.asarray(pool.images[row])).save(folder / f"{row:05}.png")
    return folder


def session() -> Rows:
    """LoRA on 5,000 images of a folder that palkit has never seen, ten labels a round."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = written(Path(place) / "images", if_there("histology"), 5000)
        classes = {"classes": ["a", "b"], "device": "cpu", "batch_size": 10}
        for what, values in {"defaults": DEFAULTS, "recipe, 5 epochs": FEW_EPOCHS}.items():
            os.environ["PALKIT_CACHE"] = f"{place}/{what}"
            load_backbone(BackboneConfig(image_size=56))  # whose weights are unpacked into the cache
            began = time.perf_counter()
            mine = open_session(str(folder), "ana", folder=f"{place}/{what} labels", **values, **classes)
            batch = mine.propose()
            yield f"session, {what}: first proposal", time.perf_counter() - began
            for number in range(1, 3):
                mine.label(batch["id"], ["ab"[row % 2] for row in range(len(batch))])
                began = time.perf_counter()
                mine.fit()
                batch = mine.propose()
                yield f"session, {what}: fit {number} and the next proposal", time.perf_counter() - began
        network = load_backbone(BackboneConfig(image_size=56))
        pixels = torch.rand(100, 3, 56, 56)
        yield "the bare network on as many images", 50 * seconds(lambda: bare(network, (pixels,)), 3)
        files = sorted(folder.iterdir())
        yield "their decoder", seconds(lambda: [np.asarray(Image.open(path).convert("RGB")) for path in files])


def files() -> Rows:
    """A manifest of up to 27,000 images that palkit has never seen, on all processors."""
    with tempfile.TemporaryDirectory() as place:
        folder = written(Path(place) / "images", if_there("eurosat"), 27_000)
        os.environ["PALKIT_CACHE"] = f"{place}/cache"
        images = sorted(folder.iterdir())

        def decode(path: Path) -> None:
            np.asarray(Image.open(BytesIO(path.read_bytes())).convert("RGB"))

        yield f"decoder, {len(images):,} files", seconds(lambda: in_threads(decode, images))
        command = [Path(sys.executable).with_name("palkit"), "manifest", folder, f"{place}/images.csv"]
        yield "palkit manifest", seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def plans() -> Rows:
    strategies = ["random", "entropy", "margin", "badge", "featdist"]
    grid = {"seed": list(range(36)), "adapter.name": ["linear_probe", "lora"], "strategy": strategies}
    sweep = Sweep("plan", {"pool_size": 300}, grid)
    plan(sweep)
    yield "planning of 360 runs, their data set being known", seconds(lambda: plan(sweep))


PARTS = {part.__name__: part for part in (imports, herding, probe, lora, session, files, plans)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    for part in parser.parse_args().parts:
        with mock.patch.dict(os.environ):  # a part may have a cache of its own
            for what, taken in PARTS[part]():
                print(f"{part:8} {what:55} {taken:8.2f} s", flush=True)


if __name__ == "__main__":
    main()
