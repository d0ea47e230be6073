"""Does a temperature that costs no labels make confidence more believable? Calibration error before and after.

    python campaigns/temperature.py                                        # the probe, ten seeds
    python campaigns/temperature.py --head logistic
    python campaigns/temperature.py --adapter lora --seeds 5 --sets fashion_mnist,digits --strategies random,entropy

Labels are bought ten at a time from the features of `heads.py`: at random, or by a probe that is fitted after every
batch. At 10, 30 and 70 labels the adapter is fitted and predicts 1,000 test images, and parts of the labels are
predicted by models fitted to the others. A line of --out is one of these: calibration errors, likelihoods and
temperatures with no temperature, with the best one of the parts ("folds"), and with the smallest one that the parts do
not speak against ("softening"); --logits keeps what they were computed from.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from heads import POOL, SIZES, attached, features
from torch import Tensor

from palkit.config import config_from_dict
from palkit.experiments.experiment import Learner
from palkit.experiments.setting import setting, settle
from palkit.models.adapters import AdaptedModel
from palkit.models.backbones import BackboneConfig, load_backbone
from palkit.models.metrics import evaluate
from palkit.models.training import TrainingConfig, cross_fitted_logits, fit
from palkit.strategies import select
from palkit.strategies.calibration import fit_temperature, softening
from palkit.strategies.scores import LabelledSet, PoolScores

BATCH, COUNTS = 10, (10, 30, 70)


class Probe:
    """A linear probe on stored features."""

    def __init__(self, name: str) -> None:
        arrays = features(name)
        self.plain, self.views = torch.from_numpy(arrays["plain"]), torch.from_numpy(arrays["views"])
        self.labels, self.classes = torch.from_numpy(arrays["y_plain"]).long(), int(arrays["classes"])
        self.test, self.test_labels = torch.from_numpy(arrays["test"]), torch.from_numpy(arrays["y_test"]).long()
        self.backbone = load_backbone(BackboneConfig(depth=1))  # every fit copies it, and no head needs its blocks

    def make(self) -> AdaptedModel:
        """Before it is fitted."""
        return attached(self.backbone, self.classes)

    def inputs(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Views of labelled images, and these as they are."""
        return self.views[:, positions], self.plain[positions]

    def logits(self, model: AdaptedModel) -> Tensor:
        """Of the test images."""
        with torch.inference_mode():
            return model(self.test)[1]

    def bought(self, strategy: str, seed: int, config: TrainingConfig) -> Tensor:
        """Positions in the order in which they are bought; the first batch is random."""
        rng = torch.Generator().manual_seed(seed)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self.labels)))
        if strategy == "random":
            return order[: max(COUNTS)]
        positions = order[:BATCH]
        while len(positions) < max(COUNTS):
            model = self.make()
            views, plain = self.inputs(positions)
            fit(model, views, self.labels[positions], config, seed, plain=plain)
            with torch.inference_mode():
                scores = PoolScores(self.plain, model(self.plain)[1].softmax(1))
            labelled = LabelledSet(positions, self.labels[positions])
            positions = torch.cat([positions, select(strategy, scores, labelled, BATCH, rng)])
        return positions


class Adapter(Probe):
    """An adapter on the same images, by the same positions."""

    def __init__(self, name: str, adapter: str, block: int) -> None:
        super().__init__(name)
        values = {"dataset": name, "backbone.image_size": SIZES[name], "pool_size": POOL}
        config = config_from_dict(values | {"adapter.name": adapter, "adapter.start_block": block})
        here = setting(config)
        self.learner = Learner(settle(config, here), here)

    def make(self) -> AdaptedModel:
        """Before it is fitted."""
        return self.learner._attach()

    def inputs(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Views of labelled images, and these as they are."""
        return self.learner._augmented(positions.numpy()), self.learner.inputs[positions].float()

    def logits(self, model: AdaptedModel) -> Tensor:
        """Of the test images."""
        return self.learner.evaluate(model)[: len(self.test_labels)].clamp_min(1e-12).log()


def measure(target: Probe, positions: Tensor, config: TrainingConfig, seed: int) -> dict[str, Any]:
    """Logits of test images by a model of all labels, and of the labelled ones by models of the others."""
    views, plain = target.inputs(positions)
    labels = target.labels[positions]
    model = target.make()
    fit(model, views, labels, config, seed, plain=plain)
    left, truth = cross_fitted_logits(target.make, views, plain, labels, config, seed)
    return {"test": target.logits(model), "test_labels": target.test_labels, "left": left, "left_labels": truth}


RULES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "none": lambda logits, labels: 1.0,
    "folds": fit_temperature,
    "softening": softening,
}


def main() -> None:
    """Measure, write a line for each case, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="fashion_mnist,eurosat")
    parser.add_argument("--strategies", default="random,entropy,margin")
    parser.add_argument("--adapter", default="linear_probe")
    parser.add_argument("--block", type=int, default=6, help="first of the 8 that an adapter trains")
    parser.add_argument("--head", default="optimizer", choices=["optimizer", "logistic"])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--out", type=Path, default=Path("temperature.jsonl"))
    parser.add_argument("--logits", type=Path, help="folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainingConfig(head=arguments.head, temperature_folds=arguments.folds)
    strategies, rows = arguments.strategies.split(","), []
    for name in arguments.sets.split(","):
        probe = Probe(name)
        target = probe
        if arguments.adapter != "linear_probe":
            target = Adapter(name, arguments.adapter, arguments.block)
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            for strategy in strategies:
                order = probe.bought(strategy, seed, config)
                for count in COUNTS:
                    if count == BATCH and strategy != strategies[0]:
                        continue  # the first batch is the same
                    found = measure(target, order[:count], config, seed)
                    case = {"set": name, "adapter": arguments.adapter, "head": arguments.head}
                    case |= {"folds": arguments.folds, "strategy": strategy, "labels": count, "seed": seed}
                    row = dict(case)
                    for rule, temperature_of in RULES.items():
                        temperature = temperature_of(found["left"], found["left_labels"])
                        metrics = evaluate((found["test"] / temperature).softmax(1), found["test_labels"])
                        row |= {f"ece_{rule}": metrics["ece"], f"nll_{rule}": metrics["nll"], f"t_{rule}": temperature}
                    rows.append(row)
                    with arguments.out.open("a") as file:
                        print(json.dumps(row), file=file)
                    if arguments.logits:
                        arguments.logits.mkdir(parents=True, exist_ok=True)
                        np.savez(arguments.logits / f"{'-'.join(map(str, case.values()))}.npz", **found)
    table = pd.DataFrame(rows)
    columns = [column for column in table if str(column).startswith(("t_", "ece", "nll"))]
    print(table.groupby(["set", "strategy", "labels"], sort=False)[columns].mean().round(3).to_string())


if __name__ == "__main__":
    main()
