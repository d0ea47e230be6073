"""Configuration of an adapter, the blocks it changes, and the registry of methods."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor

from palkit.errors import ConfigError, unknown_name
from palkit.models.backbones import Backbone
from palkit.storage.checks import Checked
from palkit.storage.plugins import is_registered, refuse_taken

if TYPE_CHECKING:
    from peft import PeftModel


Size = Annotated[int, Field(ge=1, le=2**14)]  # no backbone is wider


@dataclass(frozen=True)
class AdapterConfig(Checked):
    """Which parameter-efficient method, how large and where.

    Attributes:
        name: a key of `ADAPTERS`.
        rank: size of the method: rank of the update (lora, rslora, dora, pissa, vera, loha, lokr, hira, delora,
            gralora, peanut, pvera, glora, deft; the mean rank kept by adalora), singular directions that it learns
            within (psoft, adamss) or leaves alone (osf), side of the rotated blocks (oft, boft), reflections (hra),
            rows of the shared matrix (miss), hundreds of coefficients (fourierft, waveft), prompts per block (vpt).
            Not used by ia3 and road.
        alpha: the update is scaled by alpha / rank, or alpha / sqrt(rank) for rslora; its strength at first for
            delora. Used by lora, rslora, dora, pissa, adalora, loha, lokr, delora and gralora.
        dropout: probability of dropping an input of the low-rank path while training (lora, rslora, dora, pissa,
            adalora, vera, hira, miss, gralora, psoft, pvera, deft).
        targets: linear layers inside a block that are adapted, by their names in timm; `attn.q`, `attn.k` and
            `attn.v` are the separate projections. Not used by bitfit, layernorm, vpt and full.
        start_block: first block that learns, from the end if negative; earlier blocks are frozen and computed once.
        stop_block: block after the last that learns, from the end if negative; None is the end.

    Raises:
        ConfigError: a value that cannot work.
    """

    part = "adapter."

    name: str = "lora"
    rank: Size = 8
    alpha: Size = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: tuple[str, ...] = ("attn.qkv",)
    start_block: int = 4
    stop_block: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_registered(self.name, ADAPTERS):
            raise unknown_name("adapter", self.name, ADAPTERS)
        if not self.targets:
            raise ConfigError("adapter.targets is empty: name at least one layer of a block, e.g. 'attn.qkv'.")


def adapted_blocks(config: AdapterConfig, depth: int) -> range:
    """Blocks that learn: `range(depth, depth)` for a linear probe.

    Args:
        config: negative blocks count from the end.
        depth: number of blocks of the backbone.

    Raises:
        ConfigError: a block that the backbone does not have, or no block at all.
    """
    if config.name == "linear_probe":
        return range(depth, depth)
    stop_block = depth if config.stop_block is None else config.stop_block
    start, stop = (block + depth if block < 0 else block for block in (config.start_block, stop_block))
    if not 0 <= start < stop <= depth:
        given = f"adapter.start_block {config.start_block} and adapter.stop_block {config.stop_block}"
        raise ConfigError(f"{given}: the backbone has blocks 0 to {depth - 1}; leave stop_block out for the end.")
    return range(start, stop)


def first_trained_block(config: AdapterConfig, depth: int) -> int:
    """The block at which the frozen prefix ends: `depth` for a linear probe. Raises as `adapted_blocks` does."""
    return adapted_blocks(config, depth).start


@dataclass
class Tuner:
    """State of a method besides its parameters, and hooks into training, which do nothing for most methods.

    Attributes:
        peft: wraps the same timm model that the backbone holds; None for methods without peft.
        initial: adapter tensors before training, by peft's names, of a method that takes them out of the base weights.
    """

    peft: "PeftModel | None" = None
    initial: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, total_steps: int) -> None:
        """Hook before the first step."""

    def penalty(self) -> Tensor | None:
        """Scalar to add to the loss, or None."""
        return None

    def after_backward(self, step: int) -> None:
        """Hook while the gradients of `step`, counted from 0, are still there."""

    def finish(self) -> None:
        """Hook before the model is merged or saved."""


Attach = Callable[[Backbone, AdapterConfig], Tuner]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: its key in `ADAPTERS`.
        attach: makes some parameters of a frozen backbone trainable, in place.
        adapter_lr: peak learning rate of its parameters with AdamW.
    """

    name: str
    attach: Attach
    adapter_lr: float


ADAPTERS: dict[str, Method] = {}


def adapter(name: str, adapter_lr: float) -> Callable[[Attach], Attach]:
    """Register the decorated function as a method.

    Raises:
        ConfigError: another module has registered the name.

    >>> @adapter("none", adapter_lr=1e-3)
    ... def none(backbone, config):
    ...     return Tuner()
    >>> ADAPTERS.pop("none").adapter_lr
    0.001
    """

    def register(function: Attach) -> Attach:
        refuse_taken("adapter", name, ADAPTERS[name].attach if name in ADAPTERS else None, function)
        ADAPTERS[name] = Method(name, function, adapter_lr)
        return function

    return register
