"""The registered methods, each of which makes some parameters of a frozen backbone trainable."""

from collections.abc import Callable
from typing import Any

from torch import nn

from palkit.errors import ConfigError
from palkit.models.adapters.peft_layers import AdaLora, inject, pattern, target_layers
from palkit.models.adapters.prompts import PromptedBlock, initial_prompts
from palkit.models.adapters.registry import AdapterConfig, Tuner, adapted_blocks, adapter
from palkit.models.backbones import Backbone


def _peft(name: str, adapter_lr: float, kind: str, settings: Callable[[AdapterConfig], dict[str, Any]]) -> None:
    """Register a method that is peft's class of configs with some settings."""
    adapter(name, adapter_lr)(lambda backbone, config: Tuner(inject(backbone, config, kind, **settings(config))))


def _low_rank(config: AdapterConfig) -> dict[str, Any]:
    return {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}


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


# Low-rank updates of the targets (Hu et al. 2022, arXiv 2106.09685; qkv only: PEAL, section 3).
_peft("lora", 2e-3, "LoraConfig", _low_rank)
# LoRA scaled by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).
_peft("rslora", 2.5e-4, "LoraConfig", lambda one: _low_rank(one) | {"use_rslora": True})
# LoRA of the direction, and a learned magnitude per output (Liu et al. 2024, arXiv 2402.09353).
_peft("dora", 5e-4, "LoraConfig", lambda one: _low_rank(one) | {"use_dora": True})


@adapter("pissa", adapter_lr=2e-3)
def _pissa(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """LoRA that starts as the weights' largest singular triplets (Meng et al. 2024, arXiv 2404.02948)."""
    from peft import get_peft_model_state_dict

    for name, linear in target_layers(backbone, config):
        if config.rank > min(linear.weight.shape):
            values = min(linear.weight.shape)
            raise ConfigError(f"adapter.rank {config.rank}: {name!r} has {values} singular values for pissa, no more.")
    peft = inject(backbone, config, "LoraConfig", init_lora_weights="pissa", **_low_rank(config))
    return Tuner(peft, {name: tensor.clone() for name, tensor in get_peft_model_state_dict(peft).items()})


@adapter("adalora", adapter_lr=2e-2)
def _adalora(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Singular triplets, pruned from 1.5 times to `rank` on average (Zhang et al. 2023, arXiv 2303.10512)."""
    ranks = {"init_r": config.rank + (config.rank + 1) // 2, "target_r": config.rank}
    size: dict[str, Any] = {**ranks, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    return AdaLora(inject(backbone, config, "AdaLoraConfig", **size, total_step=1))  # `begin` sets the schedule


# Learned scales of shared random projections (Kopiczko et al. 2024, arXiv 2310.11454).
_peft("vera", 5e-3, "VeraConfig", lambda one: {"r": one.rank, "vera_dropout": one.dropout})


@adapter("ia3", adapter_lr=1e-2)
def _ia3(backbone: Backbone, config: AdapterConfig) -> Tuner:
    """Learned scales of the targets' outputs, of the inputs for `mlp.fc2` (Liu et al. 2022, arXiv 2205.05638)."""
    inputs = [name for name, _ in target_layers(backbone, config) if name.endswith(".mlp.fc2")]
    return Tuner(inject(backbone, config, "IA3Config", feedforward_modules=pattern(inputs) or []))


# Hadamard product of two low-rank updates (Hyeon-Woo et al. 2022, FedPara, arXiv 2108.06098).
_peft("loha", 2e-3, "LoHaConfig", lambda one: {"r": one.rank, "alpha": one.alpha})
# Kronecker product of small matrices (Yeh et al. 2024, LyCORIS, arXiv 2309.14859).
_peft("lokr", 8e-3, "LoKrConfig", lambda one: {"r": one.rank, "alpha": one.alpha})


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


# A rotation and a scale of each pair of the targets' outputs (Liao and Monz 2024, arXiv 2409.00119).
_peft("road", 1.6e-2, "RoadConfig", lambda one: {"group_size": 2})
# Hadamard product of the weights with a low-rank update (Huang et al., ICLR 2025).
_peft("hira", 3e-2, "HiraConfig", lambda one: {"r": one.rank, "hira_dropout": one.dropout})
# Normalised low-rank update of learned strength, at first `alpha` (Bini et al. 2025, arXiv 2503.18225).
_peft("delora", 1e-3, "DeloraConfig", lambda one: {"r": one.rank, "delora_lambda": one.alpha})
# A matrix shared by groups of the targets' inputs (Kang and Yin 2024, arXiv 2409.15371).
_peft("miss", 2.5e-4, "MissConfig", lambda one: {"r": one.rank, "miss_dropout": one.dropout})
# `rank` times 100 Fourier coefficients of each update (Gao et al. 2024, arXiv 2405.03003).
_peft("fourierft", 1e-1, "FourierFTConfig", lambda one: {"n_frequency": 100 * one.rank, "init_weights": True})
# Low-rank updates of four blocks of the weights, two by two (GraLoRA; arXiv 2505.20355).
_peft("gralora", 2e-3, "GraloraConfig", lambda one: {"r": one.rank, "alpha": one.alpha, "gralora_dropout": one.dropout})
# `rank` times 100 wavelet coefficients of each update (WaveFT; arXiv 2505.12532).
_peft("waveft", 2e-4, "WaveFTConfig", lambda one: {"n_frequency": 100 * one.rank})
# A rotation and scales within the `rank` largest singular directions (PSOFT, ICLR 2026).
_peft("psoft", 1.6e-2, "PsoftConfig", lambda c: {"r": c.rank, "psoft_alpha": c.rank, "psoft_dropout": c.dropout})
# An update that a small network makes of the weights themselves (PEANuT; arXiv 2410.01870).
_peft("peanut", 1e-3, "PeanutConfig", lambda one: {"r": one.rank})
# vera with scales that are drawn while it learns (PVeRA; arXiv 2512.07703).
_peft("pvera", 2.5e-2, "PveraConfig", lambda one: {"r": one.rank, "pvera_dropout": one.dropout})
# Updates within five clusters of the `rank` largest singular directions (AdaMSS, NeurIPS 2025).
_peft("adamss", 1.6e-2, "AdamssConfig", lambda one: {"r": one.rank})
# Low-rank changes of a target's weights, relative and absolute, and of its bias (GLoRA; arXiv 2306.07967).
_peft("glora", 5e-4, "GloraConfig", lambda one: {"r": one.rank})
# All but the `rank` largest singular directions, and nothing along these (OSF, in peft's documentation).
_peft("osf", 5e-5, "OSFConfig", lambda one: {"effective_rank": one.rank})
# A low-rank update in place of what a projection takes away (DEFT, NeurIPS 2025).
_peft("deft", 8e-3, "DeftConfig", lambda one: {"r": one.rank, "deft_dropout": one.dropout})


def _adapted_modules(backbone: Backbone, config: AdapterConfig) -> list[tuple[str, nn.Module]]:
    """The adapted blocks, and the final norm if they reach the end, with their names."""
    blocks = adapted_blocks(config, backbone.depth)
    modules = [(f"blocks.{index}", backbone.vit.blocks[index]) for index in blocks]
    return [*modules, ("norm", backbone.vit.norm)] if blocks.stop == backbone.depth else modules


def _check_rotation(backbone: Backbone, config: AdapterConfig) -> None:
    for name, linear in target_layers(backbone, config):
        if config.rank < 2 or linear.in_features % config.rank:
            size = f"adapter.rank {config.rank}: {config.name} rotates blocks of that side, which must be at least 2"
            raise ConfigError(f"{size} and divide the {linear.in_features} inputs of {name!r}.")
