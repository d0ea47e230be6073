"""Adapters, the backbone parameters that may learn: attaching, merging and dropout."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import palkit.models.adapters.methods  # noqa: F401  fills ADAPTERS
from palkit.errors import ConfigError
from palkit.models.adapters.registry import ADAPTERS, AdapterConfig, Tuner, first_trained_block
from palkit.models.backbones import Backbone
from palkit.models.devices import seeded_globally

# Methods that drop inputs of their low-rank path, and where peft's layers keep their dropout.
WITH_DROPOUT = {
    **dict.fromkeys(("lora", "rslora", "dora", "pissa", "adalora"), "lora_dropout"),
    "vera": "vera_dropout",
    "hira": "hira_dropout",
    "miss": "miss_dropout",
}


class AdaptedModel(nn.Module):
    """Backbone suffix with its adapter, fixed feature standardisation, and a linear head.

    Attributes:
        start_block: tokens that enter this block are the model's input; the whole depth for a linear probe,
            whose input is the pooled feature vector itself.
        temperature: scalar that divides the logits; 1 until something is calibrated.
        tuner: peft's view of the backbone, and what the method does at each step of training.
    """

    feature_mean: Tensor
    feature_std: Tensor
    temperature: Tensor

    def __init__(
        self, backbone: Backbone, config: AdapterConfig, tuner: Tuner, classes: int, mean: Tensor, std: Tensor
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.tuner = tuner
        self.start_block = first_trained_block(config, backbone.depth)
        self.register_buffer("feature_mean", mean.clone())
        self.register_buffer("feature_std", std.clone())
        self.register_buffer("temperature", torch.tensor(1.0))
        self.head = nn.Linear(backbone.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, inputs: Tensor) -> Tensor:
        """Standardised features, what the head sees.

        Args:
            inputs: (B, T, E) tokens that enter `start_block`, or (B, D) pooled features for a linear probe.

        Returns:
            (B, D) float.
        """
        pooled = inputs if self.start_block == self.backbone.depth else self.backbone.suffix(inputs, self.start_block)
        return (pooled - self.feature_mean) / self.feature_std

    def logits(self, features: Tensor) -> Tensor:
        """(..., C) logits of (..., D) standardised features."""
        return self.head(features) / self.temperature

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) features and (B, C) logits."""
        features = self.features(inputs)
        return features, self.logits(features)


def attach(
    backbone: Backbone, config: AdapterConfig, classes: int, feature_mean: Tensor, feature_std: Tensor, seed: int
) -> AdaptedModel:
    """A model ready to fit: a copy of the backbone with the adapter in it (a probe shares it), and a zero head.

    Args:
        backbone: frozen; not changed.
        config: the adapter.
        classes: number of classes C.
        feature_mean, feature_std: (D,) statistics of the frozen features over the pool, labelled rows included.
        seed: of the adapter's initial weights, so that strategies can be compared from the same start.

    Raises:
        ConfigError: an adapter that does not fit the backbone.
    """
    probe = first_trained_block(config, backbone.depth) == backbone.depth
    adapted = _frozen(backbone) if probe else copy.deepcopy(backbone)
    with seeded_globally(seed):
        tuner = ADAPTERS[config.name].attach(adapted, config)
        model = AdaptedModel(adapted, config, tuner, classes, feature_mean, feature_std)
    return model.to(feature_mean.device)


def _frozen(backbone: Backbone) -> Backbone:
    """The backbone of a probe: its network is shared, not copied, and no part of what learns or changes precision."""
    shared = copy.copy(backbone)
    shared.__dict__.update(backbone._modules)
    shared._modules, shared._buffers = {}, dict(backbone._buffers)
    return shared


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_parameters(model: AdaptedModel) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name, without the head's."""
    return {name: parameter for name, parameter in trainable_parameters(model).items() if name.startswith("backbone.")}


def trainable_count(model: AdaptedModel) -> int:
    """Number of trainable values in the backbone, the head not counted."""
    return sum(parameter.numel() for parameter in adapter_parameters(model).values())


def resume(model: AdaptedModel, before: AdaptedModel) -> None:
    """Give a model, in place, what an earlier one of the same kind has learnt; the earlier one may be merged."""
    model.load_state_dict(trainable_parameters(before), strict=False)


@torch.no_grad()
def merge(model: AdaptedModel) -> AdaptedModel:
    """Fold updates into the weights they update, in place: scoring then costs what the bare ViT costs.

    Methods without such updates, and merged models, stay as they are.
    """
    model.tuner.finish()
    if model.tuner.peft is None:
        return model
    from peft.tuners.ln_tuning.layer import LNTuningLayer  # takes seconds
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        # A merged norm saves nothing, and swaps its trained weights with the pretrained ones.
        if isinstance(module, BaseTunerLayer) and not isinstance(module, LNTuningLayer) and not module.merged:
            module.merge()
    return model


@contextmanager
def adapter_dropout(model: AdaptedModel, rate: float) -> Iterator[None]:
    """Context in which the low-rank path drops its inputs and all else is in eval mode; restores both afterwards.

    Masks come from torch's global generator, as in training.

    Args:
        model: not merged.
        rate: probability of dropping an input, in place of the config's.

    Raises:
        ConfigError: the model has no low-rank path, or is merged.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if model.config.name not in WITH_DROPOUT or any(layer.merged for layer in layers):
        state = "is merged" if model.config.name in WITH_DROPOUT else f"is none of {', '.join(WITH_DROPOUT)}"
        raise ConfigError(f"dropout of adapter {model.config.name!r}: it {state}, so it has no low-rank path.")
    drops = [getattr(layer, WITH_DROPOUT[model.config.name]) for layer in layers]
    configured = [dict(drop) for drop in drops]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for layer, drop in zip(layers, drops, strict=True):
            # The layer's own flag too: DoRA looks at it.
            layer.training = True
            drop.update({name: nn.Dropout(rate).train() for name in drop})
        yield
    finally:
        for drop, modules in zip(drops, configured, strict=True):
            drop.update(modules)
        for module, mode in modes.items():
            module.training = mode
