"""Adapters: what learns, how many parameters, merging, files."""

from pathlib import Path

import pytest
import timm
import torch

from palkit.adapters import (
    ADAPTERS,
    AdaptedModel,
    AdapterConfig,
    attach,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
)
from palkit.backbones import Backbone, BackboneConfig
from palkit.errors import ConfigError, WeightsError


def attached(backbone: Backbone, config: AdapterConfig, seed: int = 0) -> AdaptedModel:
    return attach(backbone, config, 3, torch.zeros(backbone.width), torch.ones(backbone.width), seed)


def perturbed(model: AdaptedModel) -> AdaptedModel:
    """As if it had learnt something: every trainable parameter moved at random."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def tokens(backbone: Backbone, block: int) -> torch.Tensor:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return backbone.prefix(pixels, block).clone()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_small_patch14_dinov2", 18_432),
        ("vit_base_patch14_dinov2", 36_864),
        ("vit_large_patch14_dinov2", 98_304),
        ("vit_giant_patch14_dinov2", 245_760),
    ],
)
def test_rank_1_lora_has_the_papers_parameter_count(name: str, count: int) -> None:
    """PEAL reports 0.03 % for LoRA on qkv of every block; METHODS section 1 gives the counts."""
    with torch.device("meta"):
        backbone = Backbone(timm.create_model(name, num_classes=0), BackboneConfig(name, depth=None), "")
        backbone.requires_grad_(False)
        total = sum(parameter.numel() for parameter in backbone.parameters())
        ADAPTERS["lora"](backbone, AdapterConfig("lora", rank=1, alpha=1, start_block=0))
    learning = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    assert learning == count
    if name == "vit_large_patch14_dinov2":
        assert round(100 * learning / total, 4) == 0.0323


def test_what_learns(tiny: Backbone) -> None:
    head = {"head.weight", "head.bias"}
    assert set(trainable_parameters(attached(tiny, AdapterConfig("linear_probe")))) == head
    lora = set(trainable_parameters(attached(tiny, AdapterConfig("lora", start_block=3)))) - head
    assert len(lora) == 2
    assert all("blocks.3.attn.qkv.lora_" in name for name in lora)
    full = set(trainable_parameters(attached(tiny, AdapterConfig("full", start_block=3)))) - head
    assert full
    assert all(name.startswith(("backbone.vit.blocks.3.", "backbone.vit.norm.")) for name in full)


def test_attach_leaves_the_backbone_alone(tiny: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    merge(perturbed(attached(tiny, AdapterConfig("lora", start_block=1))))
    after = tiny.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_fresh_lora_computes_what_the_frozen_backbone_computes(tiny: Backbone) -> None:
    model = attached(tiny, AdapterConfig("lora", start_block=1)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model.features(tokens(tiny, 1)), tiny.suffix(tokens(tiny, 1), 1))


def test_same_seed_same_initial_weights(tiny: Backbone) -> None:
    one, same, other = (attached(tiny, AdapterConfig("lora", start_block=1), seed) for seed in (1, 1, 2))
    pairs = [(n, trainable_parameters(same)[n], trainable_parameters(other)[n]) for n in trainable_parameters(one)]
    assert all(torch.equal(trainable_parameters(one)[name], p) for name, p, _ in pairs)
    assert any(not torch.equal(trainable_parameters(one)[name], p) for name, _, p in pairs)


@pytest.mark.parametrize("rank", [1, 8])
def test_merging_changes_nothing_but_cost(tiny: Backbone, rank: int) -> None:
    model = perturbed(attached(tiny, AdapterConfig("lora", rank=rank, start_block=1))).eval()
    inputs = tokens(tiny, 1)
    with torch.inference_mode():
        before = model(inputs)[1]
        frozen = model.head(tiny.suffix(inputs, 1))
        after = merge(model)(inputs)[1]
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, frozen, atol=1e-3), "the adapter must matter, or the test proves nothing"


@pytest.mark.parametrize("name", ["linear_probe", "lora", "full"])
def test_save_and_load(tiny: Backbone, tmp_path: Path, name: str) -> None:
    config = AdapterConfig(name, start_block=2)
    model = perturbed(attached(tiny, config)).eval()
    inputs = tokens(tiny, model.start_block) if model.start_block < tiny.depth else torch.randn(4, tiny.width)
    save_adapter(model, tmp_path / "adapter.safetensors")
    loaded = load_adapter(attached(tiny, config, seed=9), tmp_path / "adapter.safetensors").eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs)[1], loaded(inputs)[1], atol=1e-5, rtol=1e-5)


def test_adapter_of_another_configuration_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    save_adapter(attached(tiny, AdapterConfig("lora", start_block=2)), tmp_path / "adapter.safetensors")
    with pytest.raises(WeightsError, match=r"adapter\.safetensors was saved from another adapter"):
        load_adapter(attached(tiny, AdapterConfig("lora", start_block=1)), tmp_path / "adapter.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdapterConfig("lorra"), r"unknown adapter 'lorra'. Did you mean 'lora'"),
        (
            AdapterConfig("lora", targets=("attn.query",), start_block=0),
            r"'blocks\.0\.attn\.query' is not a linear layer.*attn\.qkv",
        ),
        (AdapterConfig("lora", start_block=4), r"start_block 4: the backbone has blocks 0 to 3"),
        (AdapterConfig("lora", rank=0, start_block=0), "rank 0: must be at least 1"),
    ],
)
def test_bad_adapters_are_refused(tiny: Backbone, config: AdapterConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attached(tiny, config)
