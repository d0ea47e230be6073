"""peft on timm's vision transformers: wrapping layers in place, and AdaLoRA's schedule."""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palkit.errors import ConfigError
from palkit.models.adapters.qkv import linear_targets
from palkit.models.adapters.registry import AdapterConfig, Tuner, adapted_blocks
from palkit.models.backbones import Backbone

if TYPE_CHECKING:
    from peft import PeftModel

NAME = "default"  # what peft calls the only adapter of a model


def target_layers(backbone: Backbone, config: AdapterConfig) -> list[tuple[str, Any]]:
    """Targeted linear layers by name; a fused qkv of which a part is targeted is split."""
    blocks = adapted_blocks(config, backbone.depth)
    names = linear_targets(backbone.vit, blocks, config.targets, backbone.config.name)
    return [(name, backbone.vit.get_submodule(name)) for name in names]


def inject(
    backbone: Backbone, config: AdapterConfig, kind: str, names: Iterable[str] | None = None, **options: Any
) -> "PeftModel":
    """Wrap layers of the backbone in place, by default the targets.

    Args:
        backbone: frozen.
        config: blocks and targets.
        kind: name of peft's class of configs.
        names: of the layers.
        options: of peft's config.

    Raises:
        ConfigError: peft refuses the combination, or the network does not call a wrapped layer.
    """
    import peft  # takes seconds

    names = [name for name, _ in target_layers(backbone, config)] if names is None else names
    with quiet_peft():
        try:
            model = peft.PeftModel(backbone.vit, getattr(peft, kind)(target_modules=pattern(names), **options))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"adapter {config.name!r} does not fit {backbone.config.name!r}: {error}") from error
    _check_called(backbone, config)
    return model


def pattern(names: Iterable[str]) -> str:
    """Regular expression of exactly these names: peft takes a list as endings, and `norm` ends many."""
    return "|".join(map(re.escape, names))


@torch.no_grad()
def _check_called(backbone: Backbone, config: AdapterConfig) -> None:
    """Refuse layers that a pass of zeros does not call: some networks read their weight only."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    called: set[str] = set()
    modules = backbone.vit.named_modules()
    layers: dict[str, Any] = {name: module for name, module in modules if isinstance(module, BaseTunerLayer)}
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    tokens = torch.zeros(1, backbone.tokens, backbone.vit.embed_dim, device=backbone.device)
    backbone.suffix(tokens, adapted_blocks(config, backbone.depth).start)
    for hook in hooks:
        hook.remove()
    ignored = sorted(layers.keys() - called)
    if ignored:
        raise ConfigError(
            f"adapter target {ignored[0]!r} of {backbone.config.name!r} is never called: the network uses its weight "
            "without it, so an adapter there would have no effect. Choose other targets."
        )


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence the warnings of peft that do not matter here."""
    with warnings.catch_warnings():
        # Norms have no in and out features; peft looks for them and never uses them.
        warnings.filterwarnings("ignore", r"Unsupported layer type '<class 'timm\.layers\.norm")
        # AdaLoRA may prune a layer to rank 0, which peft takes for a tensor lost by DeepSpeed.
        warnings.filterwarnings("ignore", r"Adapter 'default': \d+ LoRA tensor\(s\) have invalid shape")
        yield


class AdaLora(Tuner):
    """Prunes the least important triplets while it trains; the ranks that are left differ from layer to layer."""

    prunes = False

    def begin(self, total_steps: int) -> None:
        # Importance is a running mean that starts at zero: without a few steps of warm-up pruning would be by chance.
        warm_up, fine_tuning = total_steps // 5, total_steps // 3
        self.prunes = warm_up >= 2
        if self.prunes:
            schedule = self._config
            schedule.total_step, schedule.tinit, schedule.tfinal = total_steps, warm_up, fine_tuning

    def penalty(self) -> Tensor | None:
        """Mean distance of the singular vectors from orthogonality, weighted (AdaLoRA, equation 4)."""
        distances = []
        for name, parameter in self._model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter  # (r, r)
                distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
        return self._config.orth_reg_weight * torch.stack(distances).mean()

    def after_backward(self, step: int) -> None:
        if self.prunes:
            self._model.update_and_allocate(step)

    def finish(self) -> None:
        # An optimiser step after the last pruning moves pruned triplets off zero; the file leaves them out.
        if self.prunes and self._config.rank_pattern:
            self._model.rankallocator.mask_using_rank_pattern(self._model.model, self._config.rank_pattern)

    @property
    def _model(self) -> Any:
        assert self.peft is not None
        return self.peft.base_model

    @property
    def _config(self) -> Any:
        return self._model.peft_config[NAME]
