"""Visual prompt tuning: learned tokens that a block sees beside the image's own."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class PromptedBlock(nn.Module):
    """A transformer block with its own prompts, inserted after the prefix tokens and dropped after the block.

    The deep variant of Jia et al. 2022 (arXiv 2203.12119). With rotary embeddings the prompts count as prefix tokens,
    which have no position.

    Args:
        block: of a timm vision transformer; its attention is told about the prompts, in place.
        prefix_tokens: class and register tokens, which come first.
        prompts: (P, E) initial values.
    """

    def __init__(self, block: nn.Module, prefix_tokens: int, prompts: Tensor) -> None:
        super().__init__()
        self.block = block
        self.prefix_tokens = prefix_tokens
        self.prompts = nn.Parameter(prompts)
        attention: Any = block.attn
        if hasattr(attention, "num_prefix_tokens"):
            attention.num_prefix_tokens += len(prompts)

    def forward(self, tokens: Tensor, **options: Tensor) -> Tensor:
        """(B, T, E) tokens that leave the block; `options` go to it as they are."""
        first = self.prefix_tokens
        prompts = self.prompts.expand(len(tokens), -1, -1)  # (B, P, E)
        tokens = self.block(torch.cat([tokens[:, :first], prompts, tokens[:, first:]], dim=1), **options)
        return torch.cat([tokens[:, :first], tokens[:, first + len(self.prompts) :]], dim=1)


def initial_prompts(count: int, width: int, patch_size: int, device: torch.device) -> Tensor:
    """(count, width) uniform values in the range that Jia et al. 2022 draw from. Args: patch_size in pixels."""
    bound = math.sqrt(6 / (3 * patch_size**2 + width))
    # Drawn on the CPU: the same on every device.
    return torch.empty(count, width).uniform_(-bound, bound).to(device)
