"""What the tests of adapters share: a lively backbone, attaching without a word from peft, a few training steps."""

import copy
import warnings

import torch
from torch.nn import functional as F

from palkit.models.adapters import ADAPTERS, AdaptedModel, AdapterConfig, attach, trainable_parameters
from palkit.models.backbones import Backbone

METHODS = list(ADAPTERS)
PEFT_METHODS = [name for name in METHODS if name not in ("linear_probe", "full", "bitfit", "vpt")]


def lively(tiny: Backbone) -> Backbone:
    """A copy with weights large enough that every part matters; four blocks."""
    copied, generator = copy.deepcopy(tiny), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return copied


def config_of(name: str, **options: object) -> AdapterConfig:
    return AdapterConfig(**{"name": name, "rank": 4, "alpha": 8, "start_block": 1} | options)  # type: ignore[arg-type]


def attached(backbone: Backbone, config: AdapterConfig, seed: int = 0) -> AdaptedModel:
    """In eval mode; whatever peft has to say is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return attach(backbone, config, 3, torch.zeros(backbone.width), torch.ones(backbone.width), seed).eval()


def perturbed(model: AdaptedModel) -> AdaptedModel:
    """As if it had learnt something: every trainable parameter moved at random."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def pixels() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def inputs_of(model: AdaptedModel, backbone: Backbone) -> torch.Tensor:
    tokens = backbone.prefix(pixels(), model.start_block)
    return backbone.suffix(tokens, backbone.depth) if model.start_block == backbone.depth else tokens


@torch.no_grad()
def features(model: AdaptedModel, backbone: Backbone) -> torch.Tensor:
    return model.features(inputs_of(model, backbone))


def train(model: AdaptedModel, backbone: Backbone, steps: int, lr: float = 1e-2) -> list[float]:
    """Losses of a few steps, with the adapter's own parts of the loop."""
    inputs, labels = inputs_of(model, backbone), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=lr, weight_decay=0.0)
    torch.nn.init.normal_(model.head.weight, std=0.1)  # a zero head passes no gradient on
    model.tuner.begin(steps)
    losses = []
    for step in range(steps):
        loss = F.cross_entropy(model(inputs)[1], labels)
        losses.append(loss.item())
        penalty = model.tuner.penalty()
        (loss if penalty is None else loss + penalty).backward()
        model.tuner.after_backward(step)
        optimizer.step()
        optimizer.zero_grad()
    return losses
