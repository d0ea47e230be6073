"""Adapters: every registered method learns and merges; counts, schedules, dropout and refusals."""

import pytest
import timm
import torch
from adapter_helpers import METHODS, attached, config_of, features, inputs_of, lively, perturbed, pixels, train

from palkit.errors import ConfigError
from palkit.models import adapters
from palkit.models.adapters import (
    ADAPTERS,
    AdapterConfig,
    adapter_dropout,
    adapter_parameters,
    first_trained_block,
    merge,
    resume,
    trainable_count,
    trainable_parameters,
)
from palkit.models.adapters.registry import adapted_blocks
from palkit.models.backbones import Backbone, BackboneConfig

LEARNING = [name for name in METHODS if name != "linear_probe"]
WITH_NORM = {"full", "bitfit", "layernorm"}
RANDOM_START = {"vpt", "lora", "rslora", "dora", "adalora", "loha", "lokr", "hra", "hira", "delora"}
RANDOM_START |= {"gralora", "peanut", "adamss", "glora", "deft"}


@pytest.fixture(scope="module")
def backbone(tiny: Backbone) -> Backbone:
    return lively(tiny)


@pytest.mark.parametrize(
    ("name", "targets", "count", "percent"),
    [
        ("vit_small_patch14_dinov2", ("attn.qkv",), 18_432, 0.0836),
        ("vit_base_patch14_dinov2", ("attn.qkv",), 36_864, 0.0426),
        ("vit_large_patch14_dinov2", ("attn.qkv",), 98_304, 0.0323),
        ("vit_giant_patch14_dinov2", ("attn.qkv",), 245_760, 0.0216),
        ("vit_giant_patch14_dinov2", ("attn.q", "attn.k", "attn.v"), 368_640, 0.0324),
    ],
)
def test_rank_1_lora_has_the_papers_parameter_count(name: str, targets: tuple, count: int, percent: float) -> None:
    """PEAL reports 0.03 % for LoRA on qkv of every block; METHODS section 1 gives the counts."""
    with torch.device("meta"):
        backbone = Backbone(timm.create_model(name, num_classes=0), BackboneConfig(name, depth=None), "")
        backbone.requires_grad_(False)
        total = sum(parameter.numel() for parameter in backbone.parameters())
        ADAPTERS["lora"].attach(backbone, AdapterConfig("lora", rank=1, alpha=1, targets=targets, start_block=0))
    learning = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    assert learning == count
    assert round(100 * learning / total, 4) == percent


def test_names_and_learning_rates() -> None:
    expected = (
        "linear_probe lora rslora dora pissa adalora vera ia3 loha lokr oft boft hra road hira delora miss fourierft "
        "gralora waveft psoft peanut pvera adamss glora osf deft "
        "bitfit layernorm vpt full"
    )
    assert set(METHODS) == set(expected.split())
    assert all(method.name == name for name, method in ADAPTERS.items())
    assert ADAPTERS["lora"].adapter_lr == 2e-3
    assert all(ADAPTERS[name].adapter_lr > 0 for name in LEARNING)


@pytest.mark.parametrize(
    ("start", "stop", "blocks"),
    [(0, None, range(12)), (-2, None, range(10, 12)), (3, 5, range(3, 5)), (-4, -1, range(8, 11))],
)
def test_adapted_blocks(start: int, stop: int | None, blocks: range) -> None:
    config = AdapterConfig("lora", start_block=start, stop_block=stop)
    assert adapted_blocks(config, 12) == blocks
    assert first_trained_block(config, 12) == blocks.start
    assert first_trained_block(AdapterConfig("linear_probe", start_block=start), 12) == 12


@pytest.mark.parametrize("name", METHODS)
def test_what_learns(backbone: Backbone, name: str) -> None:
    """Nothing outside the adapted blocks but the final norm, where they reach the end and the method says so."""
    inside = adapter_parameters(attached(backbone, config_of(name, stop_block=3)))
    assert all(key.startswith(("backbone.vit.blocks.1.", "backbone.vit.blocks.2.")) for key in inside)
    assert {key.split(".")[3] for key in inside} == ({"1", "2"} if name != "linear_probe" else set())

    model = attached(backbone, config_of(name, start_block=-1))
    to_the_end = adapter_parameters(model)
    norm = {key for key in to_the_end if key.startswith("backbone.vit.norm.")}
    assert bool(norm) == (name in WITH_NORM)
    assert all(key.startswith("backbone.vit.blocks.3.") for key in to_the_end.keys() - norm)
    assert trainable_parameters(model).keys() == to_the_end.keys() | {"head.weight", "head.bias"}
    assert trainable_count(model) == sum(parameter.numel() for parameter in to_the_end.values())


@pytest.mark.parametrize("name", METHODS)
def test_attaching_touches_neither_backbone_nor_global_generator_nor_terminal(
    backbone: Backbone, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    generator = torch.get_rng_state()
    model = attached(backbone, config_of(name, dropout=0.1))
    assert torch.equal(torch.get_rng_state(), generator)
    assert capfd.readouterr() == ("", "")
    merge(perturbed(model))
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_fresh_adapter_computes_what_the_frozen_backbone_computes(backbone: Backbone, name: str) -> None:
    """But for prompts, which start at random (Jia et al. 2022)."""
    tolerance = 1e-4 if name == "pissa" else 1e-6
    actual = features(attached(backbone, config_of(name)), backbone)
    with torch.no_grad():
        expected = backbone(pixels())
    assert torch.allclose(actual, expected, atol=tolerance, rtol=tolerance) == (name != "vpt")


@pytest.mark.parametrize("name", METHODS)
def test_seed_decides_the_start(backbone: Backbone, name: str) -> None:
    one, same, other = (trainable_parameters(attached(backbone, config_of(name), seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert all(torch.equal(one[key], other[key]) for key in one) == (name not in RANDOM_START)


@pytest.mark.parametrize("name", LEARNING)
def test_training_moves_the_features_and_nothing_frozen(backbone: Backbone, name: str) -> None:
    model = attached(backbone, config_of(name)).train()
    start = features(model, backbone)
    frozen = {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}
    learning = {key: p.detach().clone() for key, p in adapter_parameters(model).items()}
    losses = train(model, backbone, steps=8)
    assert losses[-1] < losses[0]
    assert not torch.allclose(start, features(model.eval(), backbone), atol=1e-4)
    now = dict(model.named_parameters())
    assert all(torch.equal(value, now[key]) for key, value in frozen.items())
    assert all(not torch.equal(value, now[key]) for key, value in learning.items())


@pytest.mark.parametrize("name", METHODS)
def test_merging_changes_nothing_but_cost(backbone: Backbone, name: str) -> None:
    model = perturbed(attached(backbone, config_of(name)))
    before = features(model, backbone)
    with torch.no_grad():
        moved = not torch.allclose(before, backbone(pixels()), atol=1e-3)
    assert moved == (name != "linear_probe"), "the adapter must matter, or the test proves nothing"
    for _ in range(2):  # merging again changes nothing
        torch.testing.assert_close(features(merge(model), backbone), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_resumes_where_a_merged_one_ended(backbone: Backbone, name: str) -> None:
    before = attached(backbone, config_of(name))
    train(before, backbone, 2)
    merge(before.eval())
    model = attached(backbone, config_of(name))
    resume(model, before)
    inputs = inputs_of(model, backbone)
    with torch.no_grad():
        for one, two in zip(model(inputs), before(inputs), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("steps", "rank"), [(1, 6), (9, 6), (10, 4), (15, 4)])
def test_adalora_needs_ten_steps_to_prune(backbone: Backbone, steps: int, rank: int) -> None:
    """It starts with 1.5 times the rank; fewer steps do not tell which triplets matter."""
    model = attached(backbone, config_of("adalora", rank=4)).train()
    train(model, backbone, steps)
    kept = [p.count_nonzero() for key, p in merge(model).named_parameters() if "lora_E" in key]
    assert sum(kept) == 3 * rank


def test_penalty_is_adaloras_distance_from_orthogonality(backbone: Backbone) -> None:
    model = attached(backbone, config_of("adalora"))
    with torch.no_grad():
        for key, parameter in adapter_parameters(model).items():
            if "lora_A" in key or "lora_B" in key:
                torch.nn.init.orthogonal_(parameter)
    penalty = model.tuner.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(0, abs=1e-4)
    assert penalty.requires_grad
    with torch.no_grad():
        for key, parameter in adapter_parameters(model).items():
            if "lora_A" in key:
                parameter *= 2**0.5  # A A^T = 2 I, of rank 6: distance sqrt(6); B stays
    assert model.tuner.penalty().item() == pytest.approx(0.5 * 6**0.5 / 2, rel=1e-3)
    assert attached(backbone, config_of("lora")).tuner.penalty() is None


@pytest.mark.parametrize("name", adapters.WITH_DROPOUT)
def test_adapter_dropout(backbone: Backbone, name: str) -> None:
    """On at the given rate inside, whatever the config says and whatever mode the model is in; as before afterwards."""
    model = perturbed(attached(backbone, config_of(name, dropout=0.25))).train()
    modes = {key: module.training for key, module in model.named_modules()}
    model.eval()
    expected = features(model, backbone)
    model.train()
    with adapter_dropout(model, 0.5):
        assert not model.training
        assert not model.backbone.vit.norm.training
        assert not torch.allclose(features(model, backbone), features(model, backbone), atol=1e-4)
    with adapter_dropout(model, 0.0):
        torch.testing.assert_close(features(model, backbone), expected, atol=1e-5, rtol=1e-5)
    assert {key: module.training for key, module in model.named_modules()} == modes
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p} == {0.25}
    torch.testing.assert_close(features(model.eval(), backbone), expected, atol=1e-5, rtol=1e-5)


def test_adapter_dropout_is_refused_without_a_low_rank_path(backbone: Backbone) -> None:
    with (
        pytest.raises(ConfigError, match=r"'boft': it is none of lora, rslora.*no low-rank path"),
        adapter_dropout(attached(backbone, config_of("boft")), 0.5),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"'lora': it is merged"),
        adapter_dropout(merge(attached(backbone, config_of("lora"))), 0.5),
    ):
        pass


def test_temperature_divides_the_logits(backbone: Backbone) -> None:
    model = perturbed(attached(backbone, config_of("lora")))
    feature, logits = model(inputs_of(model, backbone))
    model.temperature.fill_(2.0)
    torch.testing.assert_close(model.logits(feature), logits / 2)
    torch.testing.assert_close(model(inputs_of(model, backbone))[1], logits / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lorra"}, r"unknown adapter 'lorra'. Did you mean 'lora'"),
        ({"targets": ("attn.qkv", "attn.q")}, r"'attn\.qkv' and 'attn\.q' overlap"),
        ({"targets": ("attn.query",)}, r"'blocks\.1\.attn\.query' is not a linear layer.*attn\.qkv, attn\.proj"),
        ({"targets": ()}, r"adapter\.targets is empty"),
        ({"start_block": 4}, r"adapter\.start_block 4 .*0 to 3"),
        ({"start_block": -5}, r"adapter\.start_block -5 .*0 to 3"),
        ({"start_block": 2, "stop_block": 2}, r"adapter\.stop_block 2: the backbone has blocks 0 to 3"),
        ({"stop_block": 5}, r"adapter\.stop_block 5: the backbone has blocks 0 to 3"),
        ({"rank": 0}, r"adapter\.rank is 0 .*must be greater than or equal to 1"),
        ({"alpha": 0}, r"adapter\.alpha is 0 .*must be greater than or equal to 1"),
        ({"dropout": 1.0}, r"adapter\.dropout is 1.0 .*must be less than 1"),
        ({"name": "pissa", "rank": 65}, r"adapter\.rank 65: .*has 64 singular values for pissa"),
        ({"name": "oft", "rank": 5}, r"adapter\.rank 5: oft.*divide the 64 inputs of 'blocks\.1\.attn\.qkv'"),
        ({"name": "boft", "rank": 1}, r"adapter\.rank 1: boft.*must be at least 2"),
        ({"name": "hra", "rank": 3}, r"adapter\.rank 3: hra.*even rank"),
    ],
)
def test_bad_adapters_are_refused(backbone: Backbone, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attached(backbone, config_of(**{"name": "lora"} | options))
