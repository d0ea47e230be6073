"""Adapter folders: round trips, the same bytes, plain peft, and refusals."""

import copy
import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from adapter_helpers import (
    METHODS,
    PEFT_METHODS,
    attached,
    config_of,
    features,
    inputs_of,
    lively,
    perturbed,
    pixels,
    train,
)

from palkit.errors import WeightsError
from palkit.models.adapters import merge
from palkit.models.adapters.files import adapter_is_saved, load_adapter, save_adapter
from palkit.models.backbones import Backbone


@pytest.fixture(scope="module")
def backbone(tiny: Backbone) -> Backbone:
    return lively(tiny)


def plain_peft(backbone: Backbone, folder: Path) -> torch.Tensor:
    """Tokens of timm's own model with the adapter that peft alone loads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type")
        warnings.filterwarnings("ignore", "The following rank_pattern keys")  # read by AdaLoRA, not by the matching
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(backbone.vit), folder).eval()
    with torch.no_grad():
        return loaded.get_base_model().forward_features(pixels())


@pytest.mark.parametrize("merged_first", [pytest.param(False, marks=pytest.mark.campaign), True])  # True saves both
@pytest.mark.parametrize("name", METHODS)
def test_save_and_load(backbone: Backbone, tmp_path: Path, name: str, merged_first: bool) -> None:
    """Loading gives the same logits, and the same model gives the same bytes, merged or not."""
    model = perturbed(attached(backbone, config_of(name)))
    model.temperature.fill_(1.7)
    inputs = inputs_of(model, backbone)
    with torch.no_grad():
        expected = model(inputs)[1]
    if merged_first:
        save_adapter(model, tmp_path / "unmerged")
        merge(model)
    assert not adapter_is_saved(tmp_path / "adapter")
    save_adapter(model, tmp_path / "adapter")
    assert adapter_is_saved(tmp_path / "adapter")
    loaded = load_adapter(attached(backbone, config_of(name), seed=9), tmp_path / "adapter")
    assert loaded.temperature == model.temperature
    for trained in (loaded, merge(loaded)):
        with torch.no_grad():
            torch.testing.assert_close(trained(inputs)[1], expected, atol=1e-5, rtol=1e-5)

    save_adapter(model if merged_first else copy.deepcopy(model), tmp_path / "again")
    folders = [tmp_path / "again", tmp_path / "unmerged"] if merged_first else [tmp_path / "again"]
    for folder in folders:
        files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    config = tmp_path / "adapter" / "adapter_config.json"
    assert not config.exists() or str(tmp_path.anchor + "work") not in config.read_text()


@pytest.mark.parametrize("name", PEFT_METHODS)
def test_plain_peft_loads_the_file(backbone: Backbone, tmp_path: Path, name: str) -> None:
    model = perturbed(attached(backbone, config_of(name, targets=("attn.qkv", "mlp.fc2"))))
    with torch.no_grad():
        expected = model.backbone.vit.forward_features(pixels())
        assert not torch.allclose(expected, backbone.vit.forward_features(pixels()), atol=1e-3)
    save_adapter(merge(model), tmp_path)
    torch.testing.assert_close(plain_peft(backbone, tmp_path), expected, atol=1e-5, rtol=1e-5)


def test_pissa_loads_where_another_part_was_taken_out_of_the_weights(backbone: Backbone, tmp_path: Path) -> None:
    """Another machine's singular value decomposition need not agree in the last digits, or in the order of ties."""
    model = perturbed(attached(backbone, config_of("pissa")))
    save_adapter(model, tmp_path)
    elsewhere = attached(backbone, config_of("pissa"))
    with torch.no_grad():
        for layer in (elsewhere.backbone.vit.blocks[block].attn.qkv for block in (1, 2, 3)):
            layer.base_layer.weight += 0.5 * layer.get_delta_weight("default")
            layer.lora_A["default"].weight *= 0.5
    scales = {name: 0.5 if ".lora_A." in name else 1.0 for name in elsewhere.tuner.initial}
    elsewhere.tuner.initial = {name: scales[name] * tensor for name, tensor in elsewhere.tuner.initial.items()}
    load_adapter(elsewhere, tmp_path)
    torch.testing.assert_close(features(elsewhere, backbone), features(model, backbone), atol=1e-5, rtol=1e-5)
    save_adapter(elsewhere, tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "adapter_model.safetensors"
    ).read_bytes()


def test_adalora_prunes_to_its_rank_and_keeps_it_in_the_file(backbone: Backbone, tmp_path: Path) -> None:
    model = attached(backbone, config_of("adalora", rank=2, targets=("attn.qkv", "attn.proj"))).train()
    train(model, backbone, steps=30)
    model.eval()
    merged = merge(copy.deepcopy(model))
    kept = [int(p.count_nonzero()) for key, p in merged.named_parameters() if "lora_E" in key]
    assert sum(kept) == 2 * len(kept) == 12
    save_adapter(model, tmp_path)
    pattern = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert sorted(sum(ranks) for ranks in pattern.values()) == sorted(kept)
    loaded = load_adapter(attached(backbone, model.config), tmp_path)
    expected = features(merged, backbone)
    torch.testing.assert_close(features(loaded, backbone), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features(merge(loaded), backbone), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        tokens = merged.backbone.vit.forward_features(pixels())
    torch.testing.assert_close(plain_peft(backbone, tmp_path), tokens, atol=1e-5, rtol=1e-5)
    save_adapter(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        {"start_block": 2},
        {"rank": 2, "alpha": 4},
        {"alpha": 16},
        {"name": "rslora"},
        {"name": "bitfit"},
        {"targets": ("attn.proj",)},
    ],
)
def test_adapter_of_another_configuration_is_refused(backbone: Backbone, tmp_path: Path, other: dict) -> None:
    save_adapter(attached(backbone, config_of("lora")), tmp_path / "adapter")
    with pytest.raises(WeightsError, match=r"/adapter was saved from another adapter or backbone"):
        load_adapter(attached(backbone, config_of(**{"name": "lora"} | other)), tmp_path / "adapter")


def test_incomplete_and_damaged_folders_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    model = attached(backbone, config_of("bitfit"))
    save_adapter(model, tmp_path)
    damaged = tmp_path / "backbone.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"backbone\.safetensors is damaged"):
        load_adapter(model, tmp_path)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no complete adapter \(head\.safetensors is missing\)"):
        load_adapter(model, tmp_path)


def test_a_killed_save_is_not_complete(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an older adapter was complete."""
    from palkit.models.adapters import files as adapter_files

    model = attached(backbone, config_of("lora"))
    save_adapter(model, tmp_path)
    monkeypatch.setattr(adapter_files, "_peft_state", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_adapter(model, tmp_path)
    assert not adapter_is_saved(tmp_path)
