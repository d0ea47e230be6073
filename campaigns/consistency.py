"""Does LoRA learn from unlabelled images? Consistency of views, and labels spread over the pool: figures/consistency.

    python campaigns/consistency.py tune       # trials on validation images of histology, other seeds
    python campaigns/consistency.py confirm    # what was chosen, on test images of two other sets

Labels are random, one to eight per class on average, and the same for all ways of a seed; the recipe is LoRA's of the
sweep `ood`. Beside the labels some ways see UNLABELLED other images of the pool, in batches of BATCH at every step:

- "lora": the recipe;
- "longer": the recipe for at least STEPS steps, as the two that follow;
- "consistency": FixMatch (Sohn et al., NeurIPS 2020, eq. 4): what the model takes an image for as it is, where it is
  sure of that by the threshold, is the label of an augmented view of it;
- "propagation": `palkit.strategies.heads.pseudo_labels`, found once on frozen features, are the labels of these views;
- "head": the recipe from a head solved with `training.pseudo_labels`.

A row of the table is one fit; what is in it already is not computed again. EuroSAT and histology have to be there, see
docs/images.md.
"""

import dataclasses
import math
import sys
import time
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from palkit.config import config_from_dict
from palkit.data.pool import without
from palkit.experiments.experiment import Learner, seed_of
from palkit.experiments.results import FIGURES
from palkit.experiments.setting import Setting, pool_of, setting, settle
from palkit.models.adapters import AdaptedModel, merge
from palkit.models.adapters.registry import Tuner
from palkit.models.metrics import evaluate
from palkit.models.training import TrainingConfig, fit
from palkit.progress import silent
from palkit.storage.files import atomic_path
from palkit.strategies.heads import PseudoLabels, pseudo_labels
from palkit.studies.statistics import mean_interval

RECIPE = {
    "backbone.image_size": 56, "backbone.depth": 7, "adapter.name": "lora", "adapter.start_block": 5,
    "training.head": "logistic", "training.head_decay": 0.3, "training.augmentation": "crop_flip",
}  # fmt: skip
PER_CLASS, MEASURED, UNLABELLED, VIEWS, BATCH, STEPS = (1, 2, 4, 8), 1000, 256, 2, 32, 40
PSEUDO = 0.5  # `training.pseudo_labels` of the way "head", as docs/heads.md has it
Trial = tuple[str, float, float]  # way, weight of the unlabelled images, threshold
ALONE: list[Trial] = [("lora", 0, 0), ("longer", 0, 0)]
TRIALS: list[Trial] = [
    *ALONE, ("consistency", 1, 0.95), ("consistency", 1, 0.8), ("consistency", 0.3, 0.95), ("consistency", 0.3, 0.8),
    ("propagation", 1, 0), ("propagation", 0.3, 0),
]  # fmt: skip
# Of each way the trial with the highest mean accuracy in "tune".
CHOSEN: list[Trial] = [*ALONE, ("head", 0, 0), ("propagation", 1, 0), ("consistency", 0.3, 0.8)]
# Split that is measured, data sets, seeds, labels per class, trials.
STAGES = {
    "tune": ("val", ["histology"], range(100, 102), (1, 4), TRIALS),
    "confirm": ("test", ["fashion_mnist", "eurosat_5k"], range(6), PER_CLASS, CHOSEN),
}
TABLE = FIGURES / "consistency" / "fits.csv"
KEYS = ["stage", "dataset", "seed", "per_class", "way", "weight", "threshold"]


def view_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over views of cross entropy times weight.

    Args:
        logits: (B, C) of the views.
        targets: (B,) int64 classes, or (B, C) probabilities.
        weights: (B,) of the images, 0 for those that teach nothing.
    """
    return (weights * F.cross_entropy(logits, targets, reduction="none")).mean()


@dataclass
class Unlabelled(Tuner):
    """A tuner whose penalty at every step is the loss of a batch of unlabelled views.

    Attributes:
        model: that learns.
        images: (U, ...) its inputs of the images as they are.
        views: (V, U, ...) of augmented views.
        weight: of the loss beside that of the labels.
        threshold: from which probability on the model's own class is a label.
        given: labels instead of these: (U, C) probabilities and (U,) weights.
    """

    model: AdaptedModel = field(kw_only=True)
    images: Tensor = field(kw_only=True)
    views: Tensor = field(kw_only=True)
    weight: float = field(kw_only=True)
    threshold: float = field(kw_only=True)
    given: tuple[Tensor, Tensor] | None = None
    rng: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))  # not that of the labels

    def penalty(self) -> Tensor:
        """Weighted loss of the next batch."""
        rows = torch.randperm(len(self.images), generator=self.rng)[:BATCH]
        view = torch.randint(len(self.views), rows.shape, generator=self.rng)
        if self.given is None:
            with torch.no_grad():
                sure, targets = self._logits(self.images[rows]).softmax(1).max(1)
            weights = (sure >= self.threshold).to(sure)
        else:
            targets, weights = self.given[0][rows], self.given[1][rows]
        return self.weight * view_loss(self._logits(self.views[view, rows]), targets, weights)

    def _logits(self, inputs: Tensor) -> Tensor:
        """In the precision of the head, which is float64 while it learns with the adapter."""
        return self.model.logits(self.model.features(inputs).to(self.model.head.weight.dtype))


def loaded(name: str) -> Setting:
    """The recipe's setting of a data set, with no more than MEASURED images of val and test."""
    config = config_from_dict({**RECIPE, "dataset": name})
    pool = pool_of(config)
    beyond = [np.random.default_rng(0).permutation(pool.rows(split))[MEASURED:] for split in ("val", "test")]
    return setting(config, pool=without(pool, np.concatenate(beyond)))


class Bench:
    """A data set and a seed: random labels, and unlabelled images with their views."""

    def __init__(self, here: Setting, seed: int, split: str) -> None:
        config = config_from_dict({**RECIPE, "dataset": here.pool.name, "seed": seed, "evaluate_on": split})
        self.learner = learner = Learner(settle(config, here), here)
        self.classes = len(here.pool.class_names)
        self.order = torch.from_numpy(learner.first_batch(max(PER_CLASS) * self.classes))
        others = np.setdiff1d(np.arange(len(learner.pool_rows)), self.order)
        self.others = np.random.default_rng(seed).permutation(others)[:UNLABELLED]
        self.images = learner.inputs[torch.from_numpy(self.others)].float()
        rows, kind = learner.pool_rows[self.others], learner.config.training.augmentation
        self.views = here.cache.augmented(learner.start_block, rows, kind, VIEWS, seed)
        learner._augmented(self.order.numpy(), silent)  # once, so that no fit is timed with it
        self.once = cache(self.measured)

    def measured(self, per_class: int, way: str, weight: float, threshold: float) -> dict[str, float]:
        """Accuracy and likelihood after a fit to the first labels, and its seconds."""
        training, rows = self.learner.config.training, self.order[: per_class * self.classes]
        steps = math.ceil(len(rows) / training.batch_size)
        longer = dataclasses.replace(training, epochs=max(training.epochs, math.ceil(STEPS / steps)))
        if way == "longer" and longer == training:  # it would be the same fit
            return self.once(per_class, *ALONE[0])
        began = time.perf_counter()
        model = self.fitted(rows, training if way in ("lora", "head") else longer, way, weight, threshold)
        seconds = time.perf_counter() - began
        found = evaluate(self.learner.evaluate(model), self.learner.eval_labels)
        return {"accuracy": found["accuracy"], "nll": found["nll"], "seconds": seconds}

    def fitted(self, rows: Tensor, training: TrainingConfig, way: str, weight: float, threshold: float) -> AdaptedModel:
        """LoRA, fitted in one of the ways to these labels."""
        learner = self.learner
        model = learner._attach()

        def pseudo(images: Tensor) -> PseudoLabels:
            """By the labels of some of the rows."""
            some = rows[images]
            found = pseudo_labels(learner.frozen, some, learner.pool_labels[some], self.classes)
            return found._replace(weights=PSEUDO * found.weights)

        if way in ("consistency", "propagation"):
            model.tuner = Unlabelled(
                model.tuner.peft, model=model, images=self.images, views=self.views, weight=weight, threshold=threshold,
                given=self.given(pseudo(torch.arange(len(rows)))) if way == "propagation" else None,
            )  # fmt: skip
        fit(
            model, learner._augmented(rows.numpy(), silent), learner.pool_labels[rows], training,
            seed_of(learner.config.seed, "fit", 0), plain=learner.inputs[rows].float(),
            pseudo=pseudo if way == "head" else None,
        )  # fmt: skip
        return merge(model)

    def given(self, pseudo: PseudoLabels) -> tuple[Tensor, Tensor]:
        """Targets of the unlabelled images and weights of mean 1, or 0 where no label reaches."""
        frozen = self.learner.frozen[torch.from_numpy(self.others)].double()
        gap, found = torch.cdist(frozen, pseudo.features.double()).min(1)  # 0, or the image is none of these
        weights = torch.where(gap < 1e-3, pseudo.weights[found], 0.0)
        return pseudo.targets[found], weights / weights.mean()


def measured(stage: str) -> pd.DataFrame:
    """The table with all fits of a stage, each written as it is done."""
    split, names, seeds, per_class, trials = STAGES[stage]
    table = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=KEYS)
    for seed in seeds:
        for name in names:
            cases = [(stage, name, seed, count, *trial) for count in per_class for trial in trials]
            there = set(table[KEYS].itertuples(index=False, name=None))
            missing = [case for case in cases if case not in there]
            if not missing:
                continue
            bench = Bench(loaded(name), seed, split)
            for case in missing:
                row = dict(zip(KEYS, case, strict=True)) | bench.once(*case[3:])
                table = pd.concat([table, pd.DataFrame([row]).round(4)], ignore_index=True)
                with atomic_path(TABLE) as temporary:
                    table.to_csv(temporary, index=False)
    return table[table["stage"] == stage]


def show(table: pd.DataFrame) -> None:
    """Accuracy and seconds, then points over "lora" and "longer" with 95 % t intervals over seeds."""
    trial = ["way", "weight", "threshold"]
    print(table.pivot_table(index=["dataset", *trial], columns="per_class", values=["accuracy", "seconds"]).round(3))
    wide = table.pivot_table(index=["dataset", "seed"], columns=[*trial, "per_class"], values="accuracy") * 100
    for name, part in wide.groupby("dataset"):
        for way in wide.columns.droplevel(-1).unique():
            for reference in ALONE:
                gain = pd.DataFrame(part[way] - part[reference])
                gain["mean"] = gain.mean(axis=1)
                low, high = mean_interval(gain.to_numpy())
                ends = zip(gain.columns, gain.mean(), low, high, strict=True)
                shown = (f"{key}: {mean:+.1f} [{below:+.1f}, {above:+.1f}]" for key, mean, below, above in ends)
                print(name, *way, "over", reference[0], *shown)


if __name__ == "__main__":
    torch.set_num_threads(1)
    show(measured(sys.argv[1]))
