"""The scoring pass: every pool and evaluation row once per round, from cached inputs, with merged adapters."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.transforms import v2

from palkit.adapters import AdaptedModel
from palkit.backbones import Backbone
from palkit.datasets import ImagePool
from palkit.files import atomic_path, cache_dir
from palkit.scores import Dropout, PoolScores

CHUNK = 128  # rows per forward pass; fixed, because the last bits of a product may depend on it
FULL_PRECISION_BYTES = 2 * 2**30  # larger caches are kept as float16

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """A progress listener that does nothing."""


class InputCache:
    """What a model that learns from block `start_block` on takes as input, computed once and memory-mapped.

    Tokens (N, T, E) that enter the block, and pooled frozen features (N, D), are files named by all that they
    depend on: pixels, weights, backbone configuration, block. Processes share them; the first one computes.
    """

    def __init__(self, pool: ImagePool, backbone: Backbone, progress: Progress = silent) -> None:
        self.pool = pool
        self.backbone = backbone
        self.progress = progress
        self.data_checksum = pool.checksum()

    def inputs(self, start_block: int) -> Tensor:
        """(N, T, E) tokens that enter `start_block`, or (N, D) frozen features if that is the depth."""
        if start_block == self.backbone.depth:
            return self.features()
        return self._load(start_block)

    def features(self) -> Tensor:
        """(N, D) float32 pooled features of the frozen backbone."""
        return self._load(self.backbone.depth)

    def augmented(self, start_block: int, rows: np.ndarray, augmentation: str, views: int, seed: int) -> Tensor:
        """Inputs of augmented views, the same ones for the same image and seed whatever else is asked for.

        Args:
            start_block: as in `inputs`.
            rows: (L,) rows of the pool.
            augmentation: "crop" or "crop_flip"; "none" gives the cached inputs as the only view.
            views: number of views V.
            seed: of the views.

        Returns:
            (V, L, T, E) or (V, L, D) on the backbone's device.
        """
        device = self.backbone.device
        if augmentation == "none" or len(rows) == 0:
            return self.inputs(start_block)[torch.from_numpy(rows)].float().to(device)[None]
        images = torch.from_numpy(self.pool.images.decode(rows, self.backbone.config.image_size)).to(device)
        pixels = self.backbone.preprocess(images)
        transform = _augmentation(augmentation, self.backbone.config.image_size)
        batches = []
        for view in range(views):
            augmented = [_seeded(transform, pixels[i], (seed, int(row), view)) for i, row in enumerate(rows)]
            chunks = [self._forward(chunk, start_block) for chunk in torch.stack(augmented).split(CHUNK)]
            batches.append(torch.cat(chunks))
        return torch.stack(batches)

    @torch.inference_mode()
    def _forward(self, pixels: Tensor, start_block: int) -> Tensor:
        tokens = self.backbone.prefix(pixels, start_block)
        return self.backbone.suffix(tokens, start_block) if start_block == self.backbone.depth else tokens

    def _load(self, start_block: int) -> Tensor:
        path = self._path(start_block)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    self._compute(start_block, path)
        # Copy-on-write, because torch refuses read-only memory.
        return torch.from_numpy(np.load(path, mmap_mode="c"))

    def _path(self, start_block: int) -> Path:
        config = self.backbone.config
        pooled = config.pooling if start_block == self.backbone.depth else None
        parts = [
            self.data_checksum,
            self.backbone.checksum,
            config.name,
            config.image_size,
            start_block,
            pooled,
            CHUNK,
        ]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return cache_dir() / "inputs" / f"{key}.npy"

    def _compute(self, start_block: int, path: Path) -> None:
        total = len(self.pool)
        with atomic_path(path) as temporary:
            output: np.memmap | None = None
            for rows in np.array_split(np.arange(total), range(CHUNK, total, CHUNK)):
                images = self.pool.images.decode(rows, self.backbone.config.image_size)
                pixels = self.backbone.preprocess(torch.from_numpy(images).to(self.backbone.device))
                chunk = self._forward(pixels, start_block).cpu().numpy()
                if output is None:
                    shape = (total, *chunk.shape[1:])
                    small = 4 * np.prod(shape, dtype=np.int64) <= FULL_PRECISION_BYTES
                    output = np.lib.format.open_memmap(temporary, "w+", np.float32 if small else np.float16, shape)
                output[rows] = chunk
                self.progress("embedding", int(rows[-1]) + 1, total)
            assert output is not None
            output.flush()


def _augmentation(name: str, size: int) -> v2.Transform:
    crop = v2.RandomResizedCrop(size, scale=(0.6, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()]) if name == "crop_flip" else crop


def _seeded(transform: v2.Transform, image: Tensor, key: tuple[int, ...]) -> Tensor:
    """Transform one image under a seed made from `key`; the transforms know the global generator only."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        return transform(image)


@torch.inference_mode()
def score_pool(
    model: AdaptedModel,
    inputs: Tensor,
    progress: Progress = silent,
    *,
    dropout: Dropout | None = None,
    rng: torch.Generator | None = None,
) -> PoolScores:
    """Features and probabilities of every row, chunk by chunk.

    Args:
        model: fitted and merged.
        inputs: (N, T, E) or (N, D) cached inputs of the model's start block, in RAM or memory-mapped.
        progress: called with ("scoring", rows done, rows in all).
        dropout: stochastic passes wanted, or None. Features are dropped before the head, so that a pass
            repeats a matrix product and not the network (Gal 2017, last layer only; Gupte 2024).
        rng: CPU generator of the dropout masks; needed with `dropout`.

    Returns:
        PoolScores on the CPU with (N, D) features, (N, C) probs and, if wanted, (T, N, C) stochastic_probs.
    """
    model.eval()
    device = model.feature_mean.device
    features = torch.empty(len(inputs), model.backbone.width)
    probs = torch.empty(len(inputs), model.head.out_features)
    stochastic = None if dropout is None else torch.empty(dropout.passes, *probs.shape)
    for begin in range(0, len(inputs), CHUNK):
        rows = slice(begin, begin + CHUNK)
        chunk, logits = model(inputs[rows].to(device).float())
        features[rows], probs[rows] = chunk.cpu(), logits.softmax(dim=1).cpu()
        if stochastic is not None and dropout is not None:
            masks = torch.rand(dropout.passes, *chunk.shape, generator=rng) >= dropout.rate
            kept = chunk * masks.to(device) / (1 - dropout.rate)  # (T, B, D)
            stochastic[:, rows] = model.head(kept).softmax(dim=2).cpu()
        progress("scoring", min(begin + CHUNK, len(inputs)), len(inputs))
    return PoolScores(features, probs, stochastic)
