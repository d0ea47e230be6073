"""The registered methods, each of which makes some parameters of a frozen backbone trainable."""

from typing import TYPE_CHECKING, Any

from torch import nn

from palkit.errors import ConfigError
from palkit.models.adapters.peft_layers import AdaLora, inject, pattern, target_layers
from palkit.models.adapters.prompts import PromptedBlock, initial_prompts
from palkit.models.adapters.registry import AdapterConfig, Tuner, adapted_blocks, adapter
from palkit.models.backbones import Backbone

if TYPE_CHECKING:
    from peft import PeftModel


@adapter("linear_probe", adapter_lr=0.0)
def _linear_probe(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Nothing but the head learns."""
    return Tuner()


@adapter("full", adapter_lr=1.3e-5)
def _full(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Every parameter of the adapted blocks learns, and of the final norm if they reach the end."""
    for _, module in _adapted_modules(backbone, config):
        module.requires_grad_(True)
    return Tuner()


@adapter("bitfit", adapter_lr=2.5e-4)
def _bitfit(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """The biases of what `full` trains (Ben Zaken et al. 2022, arXiv 2106.10199)."""
    for _, module in _adapted_modules(backbone, config):
        for name, parameter in module.named_parameters():
            # Eva models call theirs q_bias and v_bias.
            parameter.requires_grad_(name.endswith("bias"))
    return Tuner()


@adapter("layernorm", adapter_lr=2.5e-4)
def _layernorm(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Norms of the adapted blocks, and the final norm if they reach the end (Zhao et al. 2023, arXiv 2312.11420)."""
    from timm.layers import RmsNorm

    names = [
        f"{prefix}.{name}".strip(".")
        for prefix, parent in _adapted_modules(backbone, config)
        for name, module in parent.named_modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | RmsNorm)
    ]
    return Tuner(inject(backbone, config, "LNTuningConfig", names))


@adapter("vpt", adapter_lr=2.5e-3)
def _vpt(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """`rank` prompts in every adapted block (VPT-deep: Jia et al. 2022, arXiv 2203.12119)."""
    vit = backbone.vit
    for index in adapted_blocks(config, backbone.depth):
        prompts = initial_prompts(config.rank, vit.embed_dim, backbone.patch_size, backbone.device)
        vit.blocks[index] = PromptedBlock(vit.blocks[index], vit.num_prefix_tokens, prompts)
    return Tuner()


@adapter("lora", adapter_lr=2e-3)
def _lora(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Low-rank updates of the targets (Hu et al. 2022, arXiv 2106.09685; qkv only: PEAL, section 3)."""
    return Tuner(_inject_lora(backbone, config))


@adapter("rslora", adapter_lr=2.5e-4)
def _rslora(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """LoRA scaled by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732)."""
    return Tuner(_inject_lora(backbone, config, use_rslora=True))


@adapter("dora", adapter_lr=5e-4)
def _dora(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """LoRA of the direction, and a learned magnitude per output (Liu et al. 2024, arXiv 2402.09353)."""
    return Tuner(_inject_lora(backbone, config, use_dora=True))


@adapter("pissa", adapter_lr=2e-3)
def _pissa(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """LoRA that starts as the weights' largest singular triplets (Meng et al. 2024, arXiv 2404.02948)."""
    from peft import get_peft_model_state_dict

    for name, linear in target_layers(backbone, config):
        if config.rank > min(linear.weight.shape):
            raise ConfigError(
                f"adapter.rank {config.rank}: pissa takes singular values out of {name!r}, which has "
                f"{min(linear.weight.shape)}; lower the rank."
            )
    peft = _inject_lora(backbone, config, init_lora_weights="pissa")
    return Tuner(peft, {name: tensor.clone() for name, tensor in get_peft_model_state_dict(peft).items()})


@adapter("adalora", adapter_lr=2e-2)
def _adalora(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Singular triplets, pruned from 1.5 times to `rank` on average (Zhang et al. 2023, arXiv 2303.10512)."""
    ranks = {"init_r": config.rank + (config.rank + 1) // 2, "target_r": config.rank}
    size: dict[str, Any] = {**ranks, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    return AdaLora(inject(backbone, config, "AdaLoraConfig", **size, total_step=1))  # `begin` sets the schedule


@adapter("vera", adapter_lr=5e-3)
def _vera(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Learned scales of shared random projections (Kopiczko et al. 2024, arXiv 2310.11454)."""
    return Tuner(inject(backbone, config, "VeraConfig", r=config.rank, vera_dropout=config.dropout))


@adapter("ia3", adapter_lr=1e-2)
def _ia3(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Learned scales of the targets' outputs, of the inputs for `mlp.fc2` (Liu et al. 2022, arXiv 2205.05638)."""
    inputs = [name for name, _ in target_layers(backbone, config) if name.endswith(".mlp.fc2")]
    return Tuner(inject(backbone, config, "IA3Config", feedforward_modules=pattern(inputs) or []))


@adapter("loha", adapter_lr=2e-3)
def _loha(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Hadamard product of two low-rank updates (Hyeon-Woo et al. 2022, FedPara, arXiv 2108.06098)."""
    return Tuner(inject(backbone, config, "LoHaConfig", r=config.rank, alpha=config.alpha))


@adapter("lokr", adapter_lr=8e-3)
def _lokr(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Kronecker product of small matrices (Yeh et al. 2024, LyCORIS, arXiv 2309.14859)."""
    return Tuner(inject(backbone, config, "LoKrConfig", r=config.rank, alpha=config.alpha))


@adapter("oft", adapter_lr=4e-3)
def _oft(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Block-diagonal rotation of the targets' inputs, exact Cayley map (Qiu et al. 2023, arXiv 2306.07280)."""
    _check_rotation(backbone, config)
    return Tuner(inject(backbone, config, "OFTConfig", oft_block_size=config.rank, use_cayley_neumann=False))


@adapter("boft", adapter_lr=1e-3)
def _boft(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Rotation as in oft and a learned scale per output, one butterfly factor (Liu et al. 2024, arXiv 2311.06243)."""
    from peft.tuners.boft import layer as boft_layer

    _check_rotation(backbone, config)
    # Otherwise peft tries to compile a CUDA kernel for every layer, and prints so. It only saves time.
    vars(boft_layer)["_FBD_CUDA"] = False
    return Tuner(inject(backbone, config, "BOFTConfig", boft_block_size=config.rank))


@adapter("hra", adapter_lr=1.6e-2)
def _hra(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """`rank` Householder reflections of the targets' inputs, in pairs (Yuan et al. 2024, arXiv 2405.17484)."""
    if config.rank % 2:
        raise ConfigError(f"adapter.rank {config.rank}: hra starts from pairs of equal reflections; take an even rank.")
    return Tuner(inject(backbone, config, "HRAConfig", r=config.rank))


@adapter("road", adapter_lr=1.6e-2)
def _road(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """A rotation and a scale of each pair of the targets' outputs (Liao and Monz 2024, arXiv 2409.00119)."""
    return Tuner(inject(backbone, config, "RoadConfig", group_size=2))


@adapter("hira", adapter_lr=3e-2)
def _hira(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Hadamard product of the weights with a low-rank update (Huang et al., ICLR 2025)."""
    return Tuner(inject(backbone, config, "HiraConfig", r=config.rank, hira_dropout=config.dropout))


@adapter("delora", adapter_lr=1e-3)
def _delora(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Normalised low-rank update of learned strength, at first `alpha` (Bini et al. 2025, arXiv 2503.18225)."""
    return Tuner(inject(backbone, config, "DeloraConfig", r=config.rank, delora_lambda=config.alpha))


@adapter("miss", adapter_lr=2.5e-4)
def _miss(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """A matrix shared by groups of the targets' inputs (Kang and Yin 2024, arXiv 2409.15371)."""
    return Tuner(inject(backbone, config, "MissConfig", r=config.rank, miss_dropout=config.dropout))


@adapter("fourierft", adapter_lr=1e-1)
def _fourierft(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """`rank` times 100 Fourier coefficients of each update (Gao et al. 2024, arXiv 2405.03003)."""
    return Tuner(inject(backbone, config, "FourierFTConfig", n_frequency=100 * config.rank, init_weights=True))


def _adapted_modules(backbone: Backbone, config: AdapterConfig) -> list[tuple[str, nn.Module]]:
    """The adapted blocks, and the final norm if they reach the end, with their names."""
    blocks = adapted_blocks(config, backbone.depth)
    modules = [(f"blocks.{index}", backbone.vit.blocks[index]) for index in blocks]
    return [*modules, ("norm", backbone.vit.norm)] if blocks.stop == backbone.depth else modules


def _check_rotation(backbone: Backbone, config: AdapterConfig) -> None:
    for name, linear in target_layers(backbone, config):
        if config.rank < 2 or linear.in_features % config.rank:
            raise ConfigError(
                f"adapter.rank {config.rank}: {config.name} rotates blocks of so many inputs; it must be at least 2 "
                f"and divide the {linear.in_features} inputs of {name!r}."
            )


def _inject_lora(backbone: Backbone, config: AdapterConfig, **variant: Any) -> "PeftModel":
    size: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    return inject(backbone, config, "LoraConfig", **size, **variant)
