"""The query, key and value projections of a timm block, as separate linear maps that an adapter can wrap."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from palkit.errors import ConfigError

PARTS = ("q", "k", "v")


class SplitQKV(nn.Module):
    """Three linear maps that compute what one fused map computes.

    Args:
        fused: weight (3 A, E); its parameters are copied.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = (_part(fused, part) for part in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, 3 A) queries, keys and values of (B, T, E) tokens."""
        return torch.cat([self.q(tokens), self.k(tokens), self.v(tokens)], dim=-1)


def _part(fused: nn.Linear, part: int) -> nn.Linear:
    weight, size = fused.weight, (fused.in_features, fused.out_features // 3)
    linear = nn.Linear(*size, fused.bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            parameter.copy_(getattr(fused, name).chunk(3)[part])
    return linear.requires_grad_(weight.requires_grad)


def split_qkv(vit: Any, blocks: Iterable[int]) -> None:
    """Replace the fused qkv map of some blocks by separate ones, `attn.qkv.q`, `.k` and `.v`, in place.

    Plain peft needs the same before it loads an adapter of separate projections. Blocks whose projections are
    separate already stay as they are.

    Args:
        vit: a timm vision transformer.
        blocks: indices of the blocks.
    """
    separate_qkv_bias(vit)
    for index in blocks:
        attention: Any = getattr(vit.blocks[index], "attn", None)
        if isinstance(getattr(attention, "qkv", None), nn.Linear):
            attention.qkv = SplitQKV(attention.qkv)


def separate_qkv_bias(vit: nn.Module) -> None:
    """Let the attention of Eva models call its qkv map, in place; the result is the same.

    With the bias inside one product timm reads `qkv.weight` only, and an adapter around `qkv` would be ignored.
    """
    from timm.models.eva import EvaAttention

    for module in vit.modules():
        if isinstance(module, EvaAttention):
            module.qkv_bias_separate = True


def linear_targets(vit: nn.Module, blocks: range, targets: Collection[str], model_name: str) -> list[str]:
    """Full names of the linear layers that `targets` mean, with fused qkv maps split where a target asks for a part.

    Args:
        vit: a timm vision transformer; changed in place.
        blocks: indices of the adapted blocks.
        targets: names inside a block. `attn.qkv` means all three of separate projections; `attn.q`, `attn.k` and
            `attn.v` mean one of them.
        model_name: for the message.

    Raises:
        ConfigError: a target that is not a linear layer, or lies inside another one.
    """
    separate_qkv_bias(vit)
    parts = [target for target in targets if target in _PART_TARGETS]
    if parts and "attn.qkv" in targets:
        raise ConfigError(f"adapter targets 'attn.qkv' and {parts[0]!r} overlap: name the whole or its parts.")
    if parts:
        split_qkv(vit, blocks)
    modules = dict(vit.named_modules())
    local = [name for target in targets for name in _local_names(modules, blocks.start, target)]
    names = [f"blocks.{block}.{name}" for block in blocks for name in dict.fromkeys(local)]
    for name in names:
        if not isinstance(modules.get(name), nn.Linear):
            inside = [key for key in modules if key.startswith("blocks.") and isinstance(modules[key], nn.Linear)]
            linear = dict.fromkeys(key.split(".", 2)[2] for key in inside)
            raise ConfigError(
                f"adapter target {name!r} is not a linear layer of {model_name!r}; its blocks have {', '.join(linear)}."
            )
    return names


_PART_TARGETS = {f"attn.{part}": part for part in PARTS}


def _local_names(modules: dict[str, nn.Module], block: int, target: str) -> list[str]:
    """Names inside a block that a target means there."""
    separate = f"blocks.{block}.attn.q_proj" in modules
    if target == "attn.qkv" and separate:
        return [f"attn.{part}_proj" for part in PARTS]
    if target in _PART_TARGETS:
        part = _PART_TARGETS[target]
        return [f"attn.{part}_proj" if separate else f"attn.qkv.{part}"]
    return [target]
