"""Numbers that others have published, from their protocols; METHODS, section 6."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from palkit.config import config_from_dict
from palkit.experiments.sweep import load_sweep
from palkit.models.adapters import ADAPTERS, AdapterConfig
from palkit.models.backbones import Backbone, BackboneConfig
from palkit.storage.files import REPOSITORY

DATA = Path(os.environ.get("PALKIT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
SEEDS = 20
SURE = 0.99  # of each comparison below: the published numbers are a draw of 20 seeds as well

# Labels -> mean and standard deviation of the test accuracy, in percent (github.com/fbickfordsmith/vae-embeddings).
VAE = {10: (44.30, 5.34), 50: (72.68, 2.71), 100: (81.75, 1.74), 200: (86.95, 0.80), 500: (90.24, 0.52)}


@pytest.mark.skipif(not (DATA / "mnist_vae.npz").exists(), reason=f"no mnist_vae.npz in {DATA}")
@pytest.mark.parametrize("labels", VAE)
def test_mnist_from_vae_embeddings(labels: int) -> None:
    """Random labels, as many of each class, logistic regression of C = 1, all 10,000 test images.

    Means agree by Welch's t test and deviations by the F test, both at 1 %: at 10 labels within 3.8 points, at 500
    within 0.42.
    """
    with np.load(DATA / "mnist_vae.npz") as arrays:
        x, y, x_test, y_test = (
            arrays[f"{name}_{part}"] for part in ("train", "test") for name in ("features", "labels")
        )
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    accuracies = []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(y))
        chosen = np.concatenate([order[y[order] == label][: labels // 10] for label in range(10)])
        probe = LogisticRegression(C=1.0, max_iter=1000).fit(x[chosen], y[chosen])
        accuracies.append(100 * probe.score(x_test, y_test))
    here, spread = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    published, published_spread = VAE[labels]
    same = stats.ttest_ind_from_stats(here, spread, SEEDS, published, published_spread, SEEDS, equal_var=False)
    assert same.pvalue > 1 - SURE, f"{here:.2f} against {published}"
    low, high = stats.f.ppf([(1 - SURE) / 2, (1 + SURE) / 2], SEEDS - 1, SEEDS - 1)
    assert low < (spread / published_spread) ** 2 < high, f"{spread:.2f} against {published_spread}"


def test_lora_of_a_vit_with_a_head_of_100_classes() -> None:
    """Rank 8 on separate q, k and v of ViT-S/16: 221,184 of the adapter and 38,500 of the head."""
    targets = ("attn.q", "attn.k", "attn.v")
    with torch.device("meta"):
        network: Any = timm.create_model("vit_small_patch16_224", num_classes=0)
        backbone = Backbone(network, BackboneConfig("vit_small_patch16_224", image_size=224, depth=None), "")
        backbone.requires_grad_(False)
        ADAPTERS["lora"].attach(backbone, AdapterConfig("lora", rank=8, targets=targets, start_block=0))
        head = torch.nn.Linear(backbone.width, 100)
    learning = [p for module in (backbone, head) for p in module.parameters() if p.requires_grad]
    assert sum(parameter.numel() for parameter in learning) == 259_684


def test_the_dal_toolbox_sweep_is_its_protocol() -> None:
    """The sweep itself needs a network; what it would run does not."""
    configs = [config_from_dict(values) for _, values in load_sweep("dal-toolbox").parameters()]
    strategies = {"random", "margin", "typiclust", "badge", "bait", "coreset", "dropquery", "alfamix"}
    assert {(c.strategy, c.seed) for c in configs} == {(name, seed) for name in strategies for seed in range(10)}
    assert len(configs) == 80
    (rest,) = {repr((c.dataset, c.pool_size, c.backbone, c.training, c.initial, c.balance)) for c in configs}
    assert "cifar10" in rest
    for c in configs:
        assert (c.backbone.name, c.backbone.depth, c.backbone.pooling) == ("vit_small_patch14_dinov2", None, "cls")
        assert (c.adapter.name, c.initial, c.evaluate_on) == ("linear_probe", "random", "test")
        assert (c.batch_size, c.rounds) == (10, 21), "10 labels, then 20 rounds of 10"
        assert c.strategy_options == {"subsample": 1000}
        training = c.training
        assert (training.optimizer, training.head_lr, training.weight_decay) == ("sgd", 1e-2, 5e-4)
        assert (training.epochs, training.head_epochs, training.augmentation) == (200, 0, "none")
