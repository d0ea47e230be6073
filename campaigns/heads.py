"""Heads on frozen features, by the number of labels: accuracy, likelihood, calibration error and seconds.

    python campaigns/heads.py compare                     # every head, 10 to 400 labels, ten seeds, four data sets
    python campaigns/heads.py compare --sets fashion_mnist --split val --decays 0.1,0.3,0.5,1,3
    python campaigns/heads.py search                      # the probe's own trials, as many as LoRA had in notebook 07

Labels are drawn at random from the first 600 images of a pool; heads of a seed see the same ones. Features are those of
the embedded backbone as runs take them, of these images, eight augmented views of each, and 1,000 images of the split
that is measured; they are kept in .cache/heads. EuroSAT and histology need their images in .cache (docs: data).
A line of --out is one fit: set, head, labels, seed, accuracy, nll, ece, seconds.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor

from palkit.config import config_from_dict
from palkit.experiments.setting import setting
from palkit.models.adapters import AdaptedModel, AdapterConfig, attach
from palkit.models.backbones import Backbone, BackboneConfig, load_backbone
from palkit.models.metrics import evaluate
from palkit.models.training import TrainingConfig, fit
from palkit.scoring.inputs import augmenter, seeded
from palkit.storage.files import cache_dir
from palkit.strategies.kernels import column_moments

SIZES = {"fashion_mnist": 42, "digits": 42, "eurosat": 56, "histology": 56}  # pixels
LABELS = (10, 20, 30, 50, 70, 100, 200, 400)
POOL, DRAWN, MEASURED, VIEWS = 1000, 600, 1000, 8
DECAYS = (0.3, 0.5, 1.0)
RIDGES = np.logspace(0, 5, 11)
METRICS = ("accuracy", "nll", "ece")


@dataclass(frozen=True)
class Sample:
    """Standardised features of labelled images."""

    plain: Tensor  # (L, D)
    views: Tensor  # (V, L, D)
    labels: Tensor  # (L,)
    classes: int


Head = Callable[[Sample, Tensor, int], Tensor]  # features to predict, seed -> (M, C) probabilities


def features(name: str, kind: str = "crop") -> dict[str, NDArray]:
    """Standardised features of a data set: `plain`, `views` of a kind, `val` and `test`, with their labels."""
    path = cache_dir() / "heads" / f"{name}-{kind}.npz"
    if not path.exists():
        config = config_from_dict({"dataset": name, "backbone.image_size": SIZES[name], "pool_size": POOL})
        here = setting(config)
        pool, cache, depth = here.pool, here.cache, here.backbone.depth
        mean, variance = (moment.float() for moment in column_moments(cache.rows(depth, pool.rows("pool"))))
        parts = {"plain": pool.rows("pool")[:DRAWN]}
        parts |= {split: pool.rows(split)[:MEASURED] for split in ("val", "test")}
        found = {part: cache.rows(depth, rows)[:].float() for part, rows in parts.items()}
        pixels = here.backbone.preprocess(torch.from_numpy(pool.images.decode(parts["plain"], SIZES[name])))
        images = list(zip(pixels, pool.ids[parts["plain"]], strict=True))
        transform = augmenter(kind, SIZES[name])
        seen = [seeded(transform, image, (0, str(one), view)) for view in range(VIEWS) for image, one in images]
        with torch.inference_mode():
            batches = [here.backbone.inputs(batch, depth) for batch in torch.stack(seen).split(256)]
        found["views"] = torch.cat(batches).reshape(VIEWS, len(images), -1)
        arrays: dict[str, Any] = {
            key: ((x - mean) / variance.sqrt().clamp_min(1e-6)).numpy() for key, x in found.items()
        }
        arrays |= {f"y_{part}": pool.labels[rows] for part, rows in parts.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, classes=np.array(len(pool.class_names)), **arrays)
    with np.load(path) as stored:
        return {key: stored[key] for key in stored}


def probe(backbone: Backbone, **changes: object) -> Head:
    """palkit's linear probe with some settings of its training."""
    config = dataclasses.replace(TrainingConfig(), **changes)  # type: ignore[arg-type]

    def head(sample: Sample, new: Tensor, seed: int) -> Tensor:
        model = attached(backbone, sample.classes)
        fit(model, sample.views, sample.labels, config, seed, plain=sample.plain)
        with torch.inference_mode():
            return model(new)[1].softmax(1)

    return head


def attached(backbone: Backbone, classes: int) -> AdaptedModel:
    """A probe for features that are standardised already."""
    width = backbone.width
    return attach(backbone, AdapterConfig("linear_probe"), classes, torch.zeros(width), torch.ones(width), 0)


def plain_only(head: Head) -> Head:
    """The same head without augmented views."""
    return lambda sample, new, seed: head(dataclasses.replace(sample, views=sample.plain[None]), new, seed)


def shrinkage_lda(sample: Sample, new: Tensor, seed: int) -> Tensor:
    """Linear discriminant analysis with Ledoit and Wolf's shrinkage; classes without labels have probability 0."""
    found = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(sample.plain, sample.labels)
    return _spread(found.predict_proba(new.numpy()), found.classes_, sample.classes)


def ridge(sample: Sample, new: Tensor, seed: int) -> Tensor:
    """Ridge regression on one-hot labels, its strength by closed-form leave-one-out; no probabilities."""
    found = RidgeClassifierCV(RIDGES).fit(sample.plain, sample.labels)
    return _spread(np.eye(sample.classes)[found.predict(new.numpy())], np.arange(sample.classes), sample.classes)


def _spread(probs: NDArray, classes: NDArray, count: int) -> Tensor:
    full = np.zeros((len(probs), count), dtype=np.float32)
    full[:, classes] = probs
    return torch.from_numpy(full).clamp_min(1e-6)


def solved_heads(backbone: Backbone, decays: tuple[float, ...]) -> dict[str, Head]:
    """Logistic regression of each strength."""
    return {f"logistic {decay:g}": probe(backbone, head="logistic", head_decay=decay) for decay in decays}


def heads(backbone: Backbone, decays: tuple[float, ...]) -> dict[str, Head]:
    """Every head that is compared."""
    solved = solved_heads(backbone, decays)
    middle = solved[f"logistic {decays[len(decays) // 2]:g}"]
    found: dict[str, Head] = {"adamw": probe(backbone), **solved}
    return {**found, "no views": plain_only(middle), "lda": shrinkage_lda, "ridge": ridge}


def trials(backbone: Backbone) -> dict[str, Head]:
    """As many settings of the probe as notebook 07 tried for LoRA: three rates of the head, and the same changes."""
    changes: dict[str, dict[str, object]] = {
        "default": {},
        "head_lr 5e-4": {"head_lr": 5e-4},
        "head_lr 2e-3": {"head_lr": 2e-3},
        "epochs 10": {"epochs": 10},
        "epochs 40": {"epochs": 40},
        "head_epochs 0": {"head_epochs": 0},
        "head_epochs 30": {"head_epochs": 30},
        "head_epochs 120": {"head_epochs": 120},
        "head_lr 3e-4": {"head_lr": 3e-4},
        "head_lr 3e-3": {"head_lr": 3e-3},
        "label_smoothing 0.1": {"label_smoothing": 0.1},
        "weight_decay 0": {"weight_decay": 0.0},
        "weight_decay 0.1": {"weight_decay": 0.1},
        "batch_size 16": {"batch_size": 16},
        "warmup_epochs 4": {"warmup_epochs": 4},
        "class_weights balanced": {"class_weights": "balanced"},
        "early_stopping 0.2": {"early_stopping": 0.2},
    }
    found = {name: probe(backbone, **change) for name, change in changes.items()}
    return {**found, "no augmentation": plain_only(found["default"]), **solved_heads(backbone, DECAYS)}


def rows(
    name: str, split: str, candidates: dict[str, Head], labels: tuple[int, ...], seeds: int, kind: str = "crop"
) -> Iterator[dict[str, object]]:
    """One row per fit; a head that cannot be fitted to these labels has none."""
    arrays = features(name, kind)
    new, truth = torch.from_numpy(arrays[split]), torch.from_numpy(arrays[f"y_{split}"]).long()
    y, classes = torch.from_numpy(arrays["y_plain"]).long(), int(arrays["classes"])
    plain, views = torch.from_numpy(arrays["plain"]), torch.from_numpy(arrays["views"])
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(y))
        for count in labels:
            chosen = torch.from_numpy(order[:count])
            sample = Sample(plain[chosen], views[:, chosen], y[chosen], classes)
            for title, head in candidates.items():
                began = time.perf_counter()
                try:
                    probs = head(sample, new, seed)
                except ValueError:  # scikit-learn: as many classes as labels, or one class
                    continue
                seconds = time.perf_counter() - began
                found = evaluate(probs / probs.sum(1, keepdim=True), truth)
                row: dict[str, object] = {"set": name, "split": split, "head": title, "labels": count, "seed": seed}
                yield row | {metric: found[metric] for metric in METRICS} | {"seconds": seconds}


def show(table: pd.DataFrame) -> None:
    """Means over seeds; of the accuracy also the difference from the first head, with its t interval."""
    first = table["head"].iloc[0]
    for name, part in table.groupby("set", sort=False):
        for metric in (*METRICS, "seconds"):
            print(f"\n{name}, {metric}")
            print(part.pivot_table(index="head", columns="labels", values=metric, sort=False).round(3).to_string())
        wide = part.pivot_table(index=["labels", "seed"], columns="head", values="accuracy", sort=False)
        gain = 100 * wide.sub(wide[first], axis=0)
        mean, error = gain.groupby("labels").mean().T, gain.groupby("labels").sem().T
        print(f"\n{name}, points of accuracy over {first}, and standard error over the seeds")
        print((mean.round(1).astype(str) + " (" + error.round(1).astype(str) + ")").to_string())


def main() -> None:
    """Measure, write a line for each fit, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "search"])
    parser.add_argument("--sets", default=",".join(SIZES), help="data sets to compare on")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--labels", default=",".join(map(str, LABELS)))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--heads", help="some of adamw, logistic 0.5, no views, lda, ridge; all if not given")
    parser.add_argument("--decays", default=",".join(map(str, DECAYS)), help="of the logistic head")
    parser.add_argument("--out", type=Path, default=Path("heads.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone(BackboneConfig(depth=1))  # every fit copies it, and no head needs its blocks
    labels = tuple(int(count) for count in arguments.labels.split(","))
    if arguments.what == "compare":
        decays = tuple(float(decay) for decay in arguments.decays.split(","))
        wanted = heads(backbone, decays)
        if arguments.heads:
            wanted = {name: wanted[name] for name in arguments.heads.split(",")}
        parts = [rows(name, arguments.split, wanted, labels, arguments.seeds) for name in arguments.sets.split(",")]
    else:
        flipped = {"crop_flip": probe(backbone)}
        parts = [
            rows("fashion_mnist", "val", trials(backbone), (60,), arguments.seeds),
            rows("fashion_mnist", "val", flipped, (60,), arguments.seeds, "crop_flip"),
        ]
    found = []
    with arguments.out.open("a") as file:
        for part in parts:
            for row in part:
                found.append(row)
                print(json.dumps(row), file=file, flush=True)
    show(pd.DataFrame(found))


if __name__ == "__main__":
    main()
