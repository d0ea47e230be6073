"""The loss of unlabelled views in `campaigns/consistency.py`, against its definition image by image."""

import sys

import numpy as np
import pytest
import torch

from palkit.models.adapters import AdaptedModel, AdapterConfig, attach
from palkit.models.backbones import Backbone
from palkit.models.training import TrainingConfig, fit
from palkit.storage.files import REPOSITORY

sys.path.append(str(REPOSITORY / "campaigns"))

import consistency

CLASSES, LABELLED, OTHERS = 3, 6, 20
LABELS = torch.arange(LABELLED) % CLASSES
STILL = TrainingConfig(
    head="logistic", head_decay=0.01, head_lr=1e-9, adapter_lr=1e-9, epochs=1, views=1
)  # one step, to nowhere


def drawn(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of labelled images, of others, and of a view of each of these."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(LABELLED + OTHERS, 5, backbone.width, generator=rng)
    tokens[torch.arange(len(tokens)), 0, torch.arange(len(tokens)) % CLASSES] += 4
    noise = torch.randn(OTHERS, 5, backbone.width, generator=rng)
    return tokens[:LABELLED], tokens[LABELLED:], tokens[LABELLED:] + noise


def probabilities(model: AdaptedModel, inputs: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return model(inputs)[1].double().softmax(1).numpy()


@pytest.mark.parametrize("kind", ["consistency", "propagation"])
def test_the_loss_of_a_step_is_that_of_the_labels_and_of_unlabelled_views(tiny: Backbone, kind: str) -> None:
    labelled, images, views = drawn(tiny)
    rng = np.random.default_rng(0)
    targets, shares = rng.dirichlet(np.ones(CLASSES), OTHERS), rng.random(OTHERS)
    losses = []
    for weight in (0.0, 0.7):
        config, width = AdapterConfig("lora", start_block=3), tiny.width
        model = attach(tiny, config, CLASSES, torch.zeros(width), torch.ones(width), 0)
        model.tuner = consistency.Unlabelled(
            model.tuner.peft, model=model, images=images, views=views[None], weight=weight, threshold=0.6,
            given=(torch.from_numpy(targets), torch.from_numpy(shares)) if kind == "propagation" else None,
        )  # fmt: skip
        losses += fit(model, labelled[None], LABELS, STILL, 0).losses
    seen, shown = probabilities(model, images), probabilities(model, views)
    sure = seen.max(axis=1) >= 0.6
    assert 0 < sure.sum() < OTHERS
    terms = []
    for one in range(OTHERS):
        if kind == "propagation":
            terms.append(-shares[one] * sum(targets[one, c] * np.log(shown[one, c]) for c in range(CLASSES)))
        else:
            terms.append(-np.log(shown[one, seen[one].argmax()]) if sure[one] else 0.0)
    assert losses[1] - losses[0] == pytest.approx(0.7 * sum(terms) / OTHERS, rel=1e-4)


def test_unlabelled_images_are_drawn_without_touching_the_order_of_the_labels(tiny: Backbone) -> None:
    _, images, views = drawn(tiny)
    model = attach(
        tiny, AdapterConfig("lora", start_block=3), CLASSES, torch.zeros(tiny.width), torch.ones(tiny.width), 0
    )
    tuner = consistency.Unlabelled(model=model, images=images, views=views[None], weight=1.0, threshold=0.0)
    before = torch.get_rng_state()
    tuner.penalty()
    assert torch.equal(before, torch.get_rng_state())
