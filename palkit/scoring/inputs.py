"""Inputs of models, computed once: decoded pixels, tokens behind the frozen blocks, augmented views."""

import copy
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
import torch
from torch import Tensor

from palkit.data import Decoder, FileImages, ImagePool, StoredFeatures
from palkit.errors import ConfigError, StorageError, WeightsError
from palkit.models.backbones import Backbone, NoNetwork
from palkit.models.devices import autocast, memory_limit, require_float64, seeded_globally
from palkit.progress import Progress, silent
from palkit.scoring.engine import Halving, ScoringConfig, ahead, pinned
from palkit.storage.files import atomic_path, cache_dir, short_hash, storing
from palkit.storage.formats import new_array, read_table, save_array, write_table
from palkit.storage.shards import (
    SHARD_BYTES,
    Shards,
    are_whole,
    filled,
    is_shard,
    open_shards,
    shard_path,
    shard_ranges,
)
from palkit.strategies.kernels import Rows, View

Transform = Callable[[Tensor], Tensor]

# Of what decoding, resizing, augmenting, normalising and the frozen blocks do: raise it when they change, and caches
# are made anew.
VERSION = 2
AT_ONCE = 8  # images that a thread decodes at a time: one by one, small ones took a quarter longer


@dataclass(frozen=True)
class Embedding:
    """One pass of a pool through the frozen blocks, cut into shards that can be computed anywhere in any order.

    Attributes:
        images: of all rows.
        backbone: frozen.
        start_block: tokens (T, E) that enter this block are stored, or pooled features (D,) if it is the depth.
        config: precision, batch size, stored type.
        folder: of the shards and their manifest.
    """

    images: Decoder
    backbone: Backbone
    start_block: int
    config: ScoringConfig
    folder: Path

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of what is stored of one image."""
        if self.start_block == self.backbone.depth:
            return (self.backbone.width,)
        return (self.backbone.tokens, self.backbone.vit.embed_dim)

    @property
    def dtype(self) -> np.dtype:
        """Pooled features are small and are what strategies compare, so they keep full precision."""
        return np.dtype(np.float32 if self.start_block == self.backbone.depth else self.config.cache_dtype)

    @cached_property
    def ranges(self) -> list[range]:
        """Rows of each shard, cut once: an embedding that is sent to another process is cut the same there."""
        row_bytes = int(np.prod(self.row_shape)) * self.dtype.itemsize
        return shard_ranges(len(self.images), row_bytes, self.config.rows)

    def missing(self) -> list[int]:
        """Shards that are not there, or not whole."""
        return [
            number
            for number, rows in enumerate(self.ranges)
            if not is_shard(shard_path(self.folder, number), len(rows), self.row_shape, self.dtype)
        ]

    def compute(
        self,
        number: int,
        progress: Callable[[int], None] = lambda done: None,
        features: np.ndarray | None = None,
    ) -> Path:
        """Compute one shard and write it atomically.

        Args:
            number: of the shard.
            progress: called with the rows of it that are done.
            features: (N, D) float32 memory of pooled features of all rows, to be filled in the same pass; None for
                none.

        Raises:
            DataError: an image cannot be read.
            WeightsError: tokens exceed the range of the stored type.
        """
        rows, path, backbone = self.ranges[number], shard_path(self.folder, number), self.backbone
        size = backbone.config.image_size
        forward = torch.compile(backbone.inputs) if self.config.compile else backbone.inputs
        blocks = [rows[i : i + self.config.rows] for i in range(0, len(rows), self.config.rows)]

        def read(block: range) -> Tensor:
            return pinned(torch.from_numpy(self.images.decode(np.asarray(block), size)), backbone.device)

        def work(output: np.ndarray, done: int, images: Tensor, part: slice) -> None:
            pixels = backbone.preprocess(images[part].to(backbone.device, non_blocking=True))
            with autocast(backbone.device, self.config.precision):
                inputs = forward(pixels, self.start_block)
                if features is not None:
                    pooled = backbone.suffix(inputs, self.start_block).float().cpu().numpy()
                    features[rows.start + done + part.start : rows.start + done + part.stop] = pooled
            tokens = inputs.float().cpu().numpy()
            here = slice(done + part.start, done + part.stop)
            with np.errstate(over="ignore"):
                output[here] = tokens
            if not np.isfinite(output[here]).all():
                raise WeightsError(
                    f"tokens that enter block {self.start_block} of {backbone.config.name!r} are not finite as "
                    f"{self.dtype.name}. Set scoring.cache_dtype to float32; if that does not help, the weights or "
                    f"the images {rows[here.start]} to {rows[here.stop - 1]} are broken."
                )

        halving, done = Halving(self.config.rows), 0
        with torch.inference_mode(), atomic_path(path) as temporary:
            output = new_array(temporary, self.dtype, (len(rows), *self.row_shape))
            for images in ahead(read, blocks):
                halving(len(images), partial(work, output, done, images))
                done += len(images)
                progress(done)
            output.flush()
        return path


def compute_here(
    embedding: Embedding, missing: list[int], progress: Progress, features: np.ndarray | None = None
) -> None:
    """Compute the missing shards one after the other in this process; `features` as for `Embedding.compute`."""
    ranges, total = embedding.ranges, len(embedding.images)
    before = total - sum(len(ranges[number]) for number in missing)

    def report(done: int) -> None:
        progress("embedding", before + done, total)

    for number in missing:
        embedding.compute(number, report, features)
        before += len(ranges[number])


Executor = Callable[[Embedding, list[int], Progress], None]


@dataclass(eq=False)
class InputCache:
    """Inputs of models that learn from some block on, computed once, shared by all processes as shards on disk.

    Folders are named by all that their content depends on: pixels, weights, backbone configuration, block,
    precision. The first process that needs one computes it, the others wait; a killed one loses one shard.
    """

    pool: ImagePool
    backbone: Backbone
    config: ScoringConfig = field(default_factory=ScoringConfig)
    progress: Progress = silent

    def __post_init__(self) -> None:
        images = self.pool.images
        needed = self.backbone.width if isinstance(self.backbone, NoNetwork) else None
        there = images.width if isinstance(images, StoredFeatures) else None
        if needed != there:
            takes, holds = (f"{width} features each" if width else "images" for width in (needed, there))
            raise ConfigError(f"the model takes {takes}, and {self.pool.name!r} holds {holds}.")

    def rows(self, start_block: int, rows: np.ndarray) -> Rows:
        """Inputs of some rows, as stored: in RAM if they are within `memory_limit`, else read when asked for.

        Args:
            start_block: (n, T, E) tokens that enter it, or (n, D) frozen features if it is the depth.
            rows: (n,) rows of the pool.
        """
        if isinstance(self.pool.images, StoredFeatures):
            return _given(self.pool.images, rows)
        shards = self.shards(start_block)
        index = torch.from_numpy(rows)
        size = len(rows) * int(np.prod(shards.shape[1:])) * shards.stored.itemsize
        return shards[index] if size <= memory_limit() else View(shards, index)

    @cached_property
    def network(self) -> Backbone:
        """The backbone in the precision of the config: a copy, if that is float64."""
        if self.config.precision != "float64":
            return self.backbone
        require_float64(self.backbone.device)
        return copy.deepcopy(self.backbone).double()

    @cached_property
    def names_checksum(self) -> str:
        """Of the names of all images, in order."""
        return short_hash([str(name) for name in self.pool.ids])

    def features(self) -> Rows:
        """(N, D) float32 pooled features of the frozen backbone, of all rows."""
        return self.rows(self.backbone.depth, np.arange(len(self.pool)))

    def shards(self, start_block: int, execute: Executor = compute_here) -> Shards:
        """Inputs of all rows, on disk.

        Who learns from tokens needs the frozen features too: one pass over the images makes both.

        Args:
            start_block: see `rows`.
            execute: computes what is missing, here or elsewhere.
        """
        folder = self.folder(start_block)

        def fill() -> int:
            # Elsewhere every worker decodes its own rows.
            images = self.images() if execute is compute_here else self.pool.images
            embedding = Embedding(images, self.network, start_block, self.config, folder)
            missing = embedding.missing()
            all_of_it_here = execute is compute_here and len(missing) == len(embedding.ranges)
            features = self._room_for_features(start_block) if all_of_it_here else None
            if features is not None:
                compute_here(embedding, missing, self.progress, features)
                self._keep(features)
            elif missing:
                execute(embedding, missing, self.progress)
            return len(embedding.ranges)

        return filled(folder, self._made_from(start_block), fill)

    def _room_for_features(self, start_block: int) -> np.ndarray | None:
        """(N, D) memory; None if they are what is computed, are there, are too large, or would be of other bits."""
        depth, shape = self.backbone.depth, (len(self.pool), self.backbone.width)
        if start_block == depth or self.config.compile or 4 * math.prod(shape) > memory_limit():
            return None
        return None if are_whole(self.folder(depth)) else np.empty(shape, np.float32)

    def _keep(self, features: np.ndarray) -> None:
        """Write the shards of features; what is not finite is left to a pass of its own, which says where it is."""
        depth = self.backbone.depth
        embedding = Embedding(self.pool.images, self.network, depth, self.config, self.folder(depth))

        def write() -> int:
            for number, rows in enumerate(embedding.ranges):
                with atomic_path(shard_path(embedding.folder, number)) as temporary:
                    save_array(features[rows.start : rows.stop], temporary)
            return len(embedding.ranges)

        if np.isfinite(features).all():
            filled(embedding.folder, self._made_from(depth), write)

    def folder(self, start_block: int) -> Path:
        """Folder of the inputs of all rows, there or not."""
        return cache_dir() / "inputs" / short_hash(self._made_from(start_block))

    def images(self) -> Decoder:
        """The pool's images, decoded once if they lie in files and the disk has room."""
        if not isinstance(self.pool.images, FileImages):
            return self.pool.images
        return decoded(self.pool.images, self.backbone.config.image_size, self.pool.pixels_checksum, self.progress)

    def augmented(
        self, start_block: int, rows: np.ndarray, augmentation: str, views: int, seed: int, progress: Progress = silent
    ) -> Tensor:
        """Inputs of augmented views, the same ones for the same image and seed whatever else is asked for.

        Args:
            start_block: see `rows`.
            rows: (L,) rows of the pool.
            augmentation: "crop" or "crop_flip"; "none" gives the cached inputs as the only view.
            views: number of views V.
            seed: of the views.
            progress: called with ("augmenting", images done, images in all).

        Returns:
            (V, L, T, E) or (V, L, D) on the backbone's device.
        """
        device = self.backbone.device
        if augmentation == "none" or len(rows) == 0:
            return self.rows(start_block, rows)[:].float().to(device)[None]
        size, names = self.backbone.config.image_size, [str(name) for name in self.pool.ids[rows]]
        transform = augmenter(augmentation, size)
        found: dict[str, Tensor] = {}
        # Pooled features are a few kB an image, and all runs of a seed share them; tokens are large.
        kept = self._views_folder(transform, views, seed) if start_block == self.backbone.depth else None
        if kept is not None:
            read = {name: _read_views(_views_file(kept, name), (views, self.backbone.width)) for name in names}
            found = {name: features for name, features in read.items() if features is not None}
        missing = [number for number, name in enumerate(names) if name not in found]
        if missing:
            images = torch.from_numpy(self._decoder(size).decode(rows[missing], size)).to(device)
            # The views of an image are a batch of their own: the last bits of a product depend on the batch, and a
            # resumed run asks for many images at once.
            for number, image in zip(missing, self.network.preprocess(images), strict=True):
                name = names[number]
                seen = [seeded(transform, image, (seed, name, view)) for view in range(views)]
                found[name] = self._forward(torch.stack(seen), start_block)
                if kept is not None:
                    table = pd.DataFrame({"feature": found[name].cpu().numpy().ravel()})
                    with suppress(StorageError):  # kept where the cache can be written
                        write_table(table, _views_file(kept, name))
                progress("augmenting", len(found), len(names))
        return torch.stack([found[name].to(device) for name in names], dim=1)

    def _views_folder(self, transform: Transform, views: int, seed: int) -> Path:
        """Folder of the pooled features of views, an image a file.

        The views of an image hang on its name; which pixels a name has, all names and all pixels in order say.
        """
        import torchvision

        made_from = {
            **self._made_from(self.backbone.depth), "names": self.names_checksum, "views": views, "seed": seed,
            "augmentation": [repr(transform), torchvision.__version__],
        }  # fmt: skip
        return cache_dir() / "views" / short_hash(made_from)

    def _decoder(self, size: int) -> Decoder:
        """Decoded images if they are there already; for a handful, the whole pool is not decoded."""
        folder = decoded_folder(self.pool.pixels_checksum, size)
        there = isinstance(self.pool.images, FileImages) and are_whole(folder)
        return DecodedImages(open_shards(folder)) if there else self.pool.images

    @torch.inference_mode()
    def _forward(self, pixels: Tensor, start_block: int) -> Tensor:
        parts = []
        for chunk in pixels.split(self.config.rows):
            with autocast(self.backbone.device, self.config.precision):
                parts.append(self.network.inputs(chunk, start_block).float())
        return torch.cat(parts)

    def _made_from(self, start_block: int) -> dict[str, Any]:
        config, depth = self.backbone.config, self.backbone.depth
        return {
            "pixels_sha256": self.pool.pixels_checksum,
            "weights_sha256": self.backbone.checksum,
            "backbone": config.name,
            "image_size": config.image_size,
            "start_block": start_block,
            "pooling": config.pooling if start_block == depth else None,
            "precision": self.config.precision,
            "batch_size": self.config.rows,
            "compile": self.config.compile,
            "versions": [VERSION, torch.__version__, version("timm")],
            "dtype": "float32" if start_block == depth else self.config.cache_dtype,
        }


def _given(images: StoredFeatures, rows: np.ndarray) -> Rows:
    """(n, D) features that a data set holds; in RAM if they are within `memory_limit`, else read when asked for."""
    index = torch.from_numpy(images.index[rows])
    stored = torch.from_numpy(images.array) if images.file is None else Shards([images.file])
    return stored[index] if len(rows) * images.width * 4 <= memory_limit() else View(stored, index)


def _views_file(folder: Path, name: str) -> Path:
    return folder / f"{short_hash(name)}.parquet"


def _read_views(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The (V, D) features that were kept; None if they are not there, or damaged."""
    try:
        return torch.from_numpy(read_table(path)["feature"].to_numpy().reshape(shape))
    except (OSError, MemoryError, ValueError, KeyError):
        return None


@dataclass(frozen=True)
class DecodedImages:
    """Images in uint8 shards."""

    shards: Shards

    def __len__(self) -> int:
        return len(self.shards)

    def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
        return self.shards[torch.from_numpy(rows)].numpy()


def _decoded_from(checksum: str, size: int) -> dict[str, Any]:
    return {"data_sha256": checksum, "image_size": size, "versions": [VERSION, PIL.__version__]}


def decoded_folder(checksum: str, size: int) -> Path:
    """Folder of a pool's images decoded to `size` x `size`, there or not."""
    return cache_dir() / "images" / short_hash(_decoded_from(checksum, size))


def decoded(images: FileImages, size: int, checksum: str, progress: Progress = silent) -> Decoder:
    """The images decoded to `size` x `size` once and kept as uint8 shards; the files themselves if the disk is short.

    Args:
        images: in files.
        size: side in pixels.
        checksum: of the pool they belong to.
        progress: called with ("decoding", images done, images in all).

    Raises:
        DataError: a file is not an image; names it.
    """
    folder = decoded_folder(checksum, size)
    if not are_whole(folder):
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < 2 * 3 * size**2 * len(images) + SHARD_BYTES:
            return images
    fill = partial(_decode_all, images, size, folder, progress)
    return DecodedImages(filled(folder, _decoded_from(checksum, size), fill))


def _decode_all(images: FileImages, size: int, folder: Path, progress: Progress) -> int:
    """Write the shards that are missing; returns how many there are."""
    shape = (size, size, 3)
    ranges = shard_ranges(len(images), int(np.prod(shape)), 1)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for number, rows in enumerate(ranges):
            path = shard_path(folder, number)
            if is_shard(path, len(rows), shape, np.dtype(np.uint8)):
                continue
            output = np.empty((len(rows), *shape), np.uint8)
            blocks = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
            parts = threads.map(lambda block: images.decode(np.array(block), size), blocks)
            for block, part in zip(blocks, parts, strict=True):
                output[block.start - rows.start : block.stop - rows.start] = part
                for row in block:
                    progress("decoding", row + 1, len(images))
            with atomic_path(path) as temporary:
                save_array(output, temporary)
    return len(ranges)


def augmenter(name: str, size: int) -> Transform:
    """The random transform of that name for images of side `size`."""
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, scale=(0.6, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()]) if name == "crop_flip" else crop


def seeded(transform: Transform, image: Tensor, key: tuple[int | str, ...]) -> Tensor:
    """Transform one image under a seed made from `key`; the transforms know the global generator only."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    with seeded_globally(int.from_bytes(digest[:7], "little")):
        return transform(image)
