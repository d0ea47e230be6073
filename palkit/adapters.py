"""Adapters: which backbone parameters may learn. `attach` makes the model; merge, save and load go with it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palkit.backbones import Backbone
from palkit.errors import ConfigError, WeightsError, unknown_name
from palkit.files import atomic_path


@dataclass(frozen=True)
class AdapterConfig:
    """Which parameter-efficient method, how large and where.

    Attributes:
        name: a key of `ADAPTERS`.
        rank: rank of the low-rank update (lora).
        alpha: the update is scaled by alpha / rank (lora).
        dropout: probability of dropping an input of the low-rank path while training (lora).
        targets: modules inside a block that get the update (lora), by their names in timm.
        start_block: first block that learns; earlier blocks stay frozen and are computed once (lora, full).
    """

    name: str = "lora"
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attn.qkv",)
    start_block: int = 4


Attach = Callable[[Backbone, AdapterConfig], None]
ADAPTERS: dict[str, Attach] = {}


def adapter(name: str) -> Callable[[Attach], Attach]:
    """Register the decorated function, which makes some parameters of a frozen backbone trainable, in place."""

    def register(function: Attach) -> Attach:
        ADAPTERS[name] = function
        return function

    return register


@adapter("linear_probe")
def _linear_probe(backbone: Backbone, config: AdapterConfig) -> None:
    """Nothing but the head learns."""


@adapter("full")
def _full(backbone: Backbone, config: AdapterConfig) -> None:
    """Every parameter from `start_block` on learns."""
    for module in (*backbone.vit.blocks[config.start_block :], backbone.vit.norm):
        module.requires_grad_(True)


@adapter("lora")
def _lora(backbone: Backbone, config: AdapterConfig) -> None:
    """Low-rank updates of the targeted linear maps (Hu et al. 2022; qkv only: PEAL, section 3)."""
    from peft import LoraConfig, inject_adapter_in_model

    blocks = range(config.start_block, backbone.depth)
    targets = [f"blocks.{block}.{target}" for block in blocks for target in config.targets]
    modules = dict(backbone.vit.named_modules())
    for target in targets:
        if not isinstance(modules.get(target), nn.Linear):
            linear = [name.split(".", 2)[2] for name, module in modules.items() if _is_block_linear(name, module)]
            raise ConfigError(
                f"adapter target {target!r} is not a linear layer of {backbone.config.name!r}; "
                f"its blocks have {', '.join(dict.fromkeys(linear))}."
            )
    if config.rank < 1:
        raise ConfigError(f"adapter rank {config.rank}: must be at least 1.")
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets)
    inject_adapter_in_model(lora, backbone.vit)


def _is_block_linear(name: str, module: nn.Module) -> bool:
    return name.startswith("blocks.") and isinstance(module, nn.Linear)


class AdaptedModel(nn.Module):
    """Backbone suffix with its adapter, fixed feature standardisation, and a linear head.

    Attributes:
        start_block: tokens that enter this block are the model's input; the whole depth for a linear probe,
            whose input is the pooled feature vector itself.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, backbone: Backbone, config: AdapterConfig, classes: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.start_block = first_trained_block(config, backbone.depth)
        self.register_buffer("feature_mean", mean.clone())
        self.register_buffer("feature_std", std.clone())
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

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) features and (B, C) logits."""
        features = self.features(inputs)
        return features, self.head(features)


def first_trained_block(config: AdapterConfig, depth: int) -> int:
    """The block at which the frozen prefix ends: `depth` for a linear probe."""
    if config.name not in ADAPTERS:
        raise unknown_name("adapter", config.name, ADAPTERS)
    if config.name == "linear_probe":
        return depth
    if not 0 <= config.start_block < depth:
        raise ConfigError(f"adapter start_block {config.start_block}: the backbone has blocks 0 to {depth - 1}.")
    return config.start_block


def attach(
    backbone: Backbone,
    config: AdapterConfig,
    classes: int,
    feature_mean: Tensor,
    feature_std: Tensor,
    seed: int,
) -> AdaptedModel:
    """A model ready to fit: a copy of the backbone with the adapter in it and a zero head.

    Args:
        backbone: frozen; not changed.
        config: the adapter.
        classes: number of classes C.
        feature_mean, feature_std: (D,) statistics of the frozen features over the unlabelled pool.
        seed: of the adapter's initial weights, so that strategies can be compared from the same start.

    Raises:
        ConfigError: unknown adapter, or one that does not fit the backbone.
    """
    first_trained_block(config, backbone.depth)
    adapted = copy.deepcopy(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ADAPTERS[config.name](adapted, config)
    return AdaptedModel(adapted, config, classes, feature_mean, feature_std).to(feature_mean.device)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge(model: AdaptedModel) -> AdaptedModel:
    """Fold the low-rank updates into the weights they update, in place: scoring then costs what the bare ViT costs."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and not module.merged:
            module.merge()
    return model


def save_adapter(model: AdaptedModel, path: Path) -> None:
    """Write what was learnt (adapter, head) and the feature statistics as safetensors, atomically."""
    state = {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}
    state |= {name: getattr(model, name) for name in ("feature_mean", "feature_std")}
    with atomic_path(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, temporary)


def load_adapter(model: AdaptedModel, path: Path) -> AdaptedModel:
    """Load what `save_adapter` wrote into a freshly attached model of the same configuration.

    Raises:
        WeightsError: the file holds other tensors than the model learns.
    """
    state = load_file(path)
    expected = {*trainable_parameters(model), "feature_mean", "feature_std"}
    if state.keys() != expected:
        wrong = sorted(state.keys() ^ expected)[:3]
        raise WeightsError(f"{path} was saved from another adapter or backbone: {', '.join(wrong)} do not match.")
    model.load_state_dict(state, strict=False)
    return model
