"""Adapters and splitting on the families of timm's vision transformers, small and with random weights."""

import copy
from pathlib import Path

import peft
import pytest
import timm
import torch
from adapter_helpers import attached, perturbed
from breadth import thinned

from palkit.errors import ConfigError
from palkit.models.adapters import AdaptedModel, AdapterConfig, adapter_parameters, merge, peft_layers, qkv
from palkit.models.adapters.files import load_adapter, save_adapter
from palkit.models.adapters.prompts import PromptedBlock
from palkit.models.adapters.qkv import separate_qkv_bias, split_qkv
from palkit.models.backbones import Backbone, BackboneConfig

WIDTH, DEPTH = 48, 3
FAMILIES = {
    "dinov2": "vit_small_patch14_dinov2",
    "dinov2_registers": "vit_small_patch14_reg4_dinov2",
    "dinov2_swiglu": "vit_giant_patch14_dinov2",
    "dinov3": "vit_small_patch16_dinov3",
    "dinov3_qkv_bias": "vit_small_patch16_dinov3_qkvb",
    "deit": "deit_tiny_patch16_224",
    "deit_distilled": "deit_tiny_distilled_patch16_224",
    "deit3": "deit3_small_patch16_224",
    "clip": "vit_base_patch16_clip_224",
    "siglip": "vit_base_patch16_siglip_224",
    "eva02": "eva02_tiny_patch14_224",
    "eva02_separate": "eva02_base_patch16_clip_224",
    "rope_mixed": "vit_small_patch16_rope_mixed_224",
}
SEPARATE = {"eva02_separate"}
METHODS = ("lora", "dora", "ia3", "oft", "hra", "road", "hira", "delora", "miss", "fourierft")
METHODS += ("gralora", "waveft", "psoft", "peanut", "pvera", "adamss", "glora", "osf", "deft")
METHODS += ("layernorm", "bitfit", "vpt", "full")


def small_backbone(family: str) -> Backbone:
    """Three blocks of width 48 on 2 x 2 patches, with weights large enough that every part matters."""
    name = FAMILIES[family]
    size = 28 if "patch14" in name else 32
    torch.manual_seed(0)
    vit = timm.create_model(name, img_size=size, depth=DEPTH, embed_dim=WIDTH, num_heads=3, num_classes=0)
    with torch.no_grad():
        for key, parameter in vit.named_parameters():
            parameter.normal_(0, 0.15)
            parameter += float("gamma" in key or ("norm" in key and key.endswith("weight")))
    return Backbone(vit, BackboneConfig(name, size, None, "mean"), "").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    return {family: small_backbone(family) for family in FAMILIES}


def pixels(backbone: Backbone) -> torch.Tensor:
    size = backbone.config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(model: AdaptedModel, backbone: Backbone) -> torch.Tensor:
    return model.features(backbone.prefix(pixels(backbone), model.start_block))


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_and_suffix_compose_at_every_block(backbones: dict[str, Backbone], family: str) -> None:
    backbone = backbones[family]
    with torch.no_grad():
        tokens = backbone.vit.forward_features(pixels(backbone))
        assert tokens.shape[1] == backbone.tokens
        expected = tokens[:, backbone.vit.num_prefix_tokens :].mean(dim=1)
        for block in range(backbone.depth + 1):
            actual = backbone.suffix(backbone.prefix(pixels(backbone), block), block)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "method"), thinned(FAMILIES, METHODS, every=4))
def test_methods(backbones: dict[str, Backbone], family: str, method: str, tmp_path: Path) -> None:
    """Identity at the start, an effect after a step, merging, and files."""
    backbone = backbones[family]
    config = AdapterConfig(method, rank=4, start_block=1)
    model = attached(backbone, config)
    with torch.no_grad():
        frozen = backbone(pixels(backbone))
    if method != "vpt":
        torch.testing.assert_close(features(model, backbone), frozen, atol=1e-5, rtol=1e-5)
    trained = features(perturbed(model), backbone)
    assert not torch.allclose(trained, frozen, atol=1e-3)
    save_adapter(model, tmp_path)
    loaded = load_adapter(attached(backbone, config), tmp_path)
    torch.testing.assert_close(features(loaded, backbone), trained, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features(merge(model), backbone), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "method"), thinned(FAMILIES, METHODS, every=6))
def test_every_adapter_parameter_gets_a_gradient(backbones: dict[str, Backbone], family: str, method: str) -> None:
    backbone = backbones[family]
    model = perturbed(attached(backbone, AdapterConfig(method, rank=4, start_block=1)))
    model.features(backbone.prefix(pixels(backbone), 1)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter_parameters(model).values())


@pytest.mark.parametrize("targets", [("attn.qkv",), ("attn.q", "attn.v")])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_the_file(
    backbones: dict[str, Backbone], family: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    """Into timm's own model, prepared by `palkit.models.adapters.qkv` where the docstring of `save_adapter` says so."""
    backbone = backbones[family]
    model = perturbed(attached(backbone, AdapterConfig("lora", rank=4, start_block=1, targets=targets)))
    save_adapter(model, tmp_path)
    vit = copy.deepcopy(backbone.vit)
    if targets == ("attn.qkv",):
        separate_qkv_bias(vit)
    else:
        split_qkv(vit, range(1, DEPTH))
    loaded = peft.PeftModel.from_pretrained(vit, tmp_path).eval()
    with torch.no_grad():
        expected = model.backbone.vit.forward_features(pixels(backbone))
        actual = loaded.get_base_model().forward_features(pixels(backbone))
        frozen = backbone.vit.forward_features(pixels(backbone))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(actual, frozen, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_separate_projections(backbones: dict[str, Backbone], family: str) -> None:
    """Three maps compute what the fused one computes, and learn twice three matrices a block."""
    backbone = backbones[family]
    model = attached(backbone, AdapterConfig("lora", rank=4, start_block=1, targets=("attn.q", "attn.k", "attn.v")))
    with torch.no_grad():
        torch.testing.assert_close(features(model, backbone), backbone(pixels(backbone)), atol=1e-5, rtol=1e-5)
    names = {key.split(".lora_")[0] for key in adapter_parameters(model)}
    local = [f"{part}_proj" for part in "qkv"] if family in SEPARATE else [f"qkv.{part}" for part in "qkv"]
    assert names == {f"backbone.vit.blocks.{block}.attn.{name}" for block in (1, 2) for name in local}


def test_fused_target_means_all_three_of_separate_projections(backbones: dict[str, Backbone]) -> None:
    one, three = (
        attached(backbones["eva02_separate"], AdapterConfig("lora", start_block=1, targets=targets))
        for targets in [("attn.qkv",), ("attn.q", "attn.k", "attn.v")]
    )
    assert adapter_parameters(one).keys() == adapter_parameters(three).keys()


def test_splitting_twice_is_splitting_once(backbones: dict[str, Backbone]) -> None:
    vit = copy.deepcopy(backbones["dinov2"].vit)
    split_qkv(vit, [0])
    names = set(vit.state_dict())
    split_qkv(vit, [0])
    assert set(vit.state_dict()) == names
    assert {name for name in names if ".attn.qkv." in name and name.endswith("weight")} == {
        *(f"blocks.0.attn.qkv.{part}.weight" for part in "qkv"),
        "blocks.1.attn.qkv.weight",
        "blocks.2.attn.qkv.weight",
    }


def test_an_adapter_that_the_network_would_ignore_is_refused(
    backbones: dict[str, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's Eva attention with a fused bias multiplies by `qkv.weight` and never calls `qkv`."""
    monkeypatch.setattr(qkv, "separate_qkv_bias", lambda vit: None)
    with pytest.raises(ConfigError, match=r"'blocks\.1\.attn\.qkv'.*is never called"):
        attached(backbones["dinov3_qkv_bias"], AdapterConfig("lora", start_block=1))


def test_separating_the_bias_changes_nothing(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["dinov3_qkv_bias"]
    vit = copy.deepcopy(backbone.vit)
    assert vit.blocks[0].attn.q_bias.abs().max() > 0.1
    separate_qkv_bias(vit)
    with torch.no_grad():
        expected = backbone.vit.forward_features(pixels(backbone))
        torch.testing.assert_close(vit.forward_features(pixels(backbone)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_take_no_position_from_the_patches(backbones: dict[str, Backbone], family: str) -> None:
    """If nobody may look at the prompts, the other tokens are what they are without: rotary embeddings included."""
    backbone = copy.deepcopy(backbones[family])
    first = backbone.vit.num_prefix_tokens
    with torch.no_grad():
        tokens = backbone.prefix(pixels(backbone), 1)
        expected = backbone.block(tokens, 1)
        block = PromptedBlock(backbone.vit.blocks[1], first, torch.randn(5, WIDTH))
        backbone.vit.blocks[1] = block
        assert not torch.allclose(backbone.block(tokens, 1), expected, atol=1e-3)
        visible = torch.ones(backbone.tokens + 5, dtype=torch.bool)
        visible[first : first + 5] = False
        options = {} if backbone.rope is None else {"rope": backbone.rope}
        if getattr(backbone.vit, "rope_mixed", False):
            options = {"rope": backbone.rope[1]}
        mask = visible.expand(1, 1, len(visible), -1)  # (1, 1, T, T), the same for every query
        torch.testing.assert_close(block(tokens, attn_mask=mask, **options), expected, atol=1e-5, rtol=1e-5)


def test_prompts_come_after_class_and_registers(backbones: dict[str, Backbone]) -> None:
    class Recorder(torch.nn.Module):
        attn = None

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            self.seen = tokens
            return tokens

    tokens = torch.arange(6.0).view(1, 6, 1)
    block = PromptedBlock(Recorder(), 2, torch.full((3, 1), -1.0))
    assert torch.equal(block(tokens), tokens)
    assert block.block.seen.flatten().tolist() == [0, 1, -1, -1, -1, 2, 3, 4, 5]


def test_blocks_of_another_make_are_refused_with_what_they_have() -> None:
    vit = timm.create_model("vit_small_patch16_18x2_224", img_size=32, depth=2, embed_dim=48, num_heads=3)
    backbone = Backbone(vit, BackboneConfig("vit_small_patch16_18x2_224", 32, None), "").requires_grad_(False)
    for targets in (("attn.qkv",), ("attn.q",)):
        with pytest.raises(ConfigError, match=r"is not a linear layer.*attns\.0\.attn\.qkv"):
            attached(backbone, AdapterConfig("lora", start_block=0, targets=targets))
    attached(backbone, AdapterConfig("lora", start_block=0, targets=("attns.0.attn.qkv",)))


def test_peft_saying_no_becomes_a_config_error(backbones: dict[str, Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, **options: object) -> None:
            raise ValueError("the reason")

    monkeypatch.setattr("peft.LoraConfig", Refusing)
    with pytest.raises(ConfigError, match=r"adapter 'lora' does not fit 'vit_small_patch14_dinov2': the reason"):
        peft_layers.inject(copy.deepcopy(backbones["dinov2"]), AdapterConfig("lora", start_block=1), "LoraConfig")
