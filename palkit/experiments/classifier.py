"""A fitted model on its own: it predicts new images, and is saved and loaded again."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from palkit.config import ExperimentConfig, config_from_dict, plain
from palkit.data import (
    DATASETS,
    IMAGE_SUFFIXES,
    ArrayImages,
    FileImages,
    ImagePool,
    StoredFeatures,
    from_features,
    holds_features,
    load_dataset,
)
from palkit.data.pool import Images
from palkit.errors import ConfigError, DataError, brief
from palkit.experiments.runs import without_checksums
from palkit.experiments.setting import measured, pool_of, shared_backbone
from palkit.models.adapters import AdaptedModel, attach, first_trained_block, merge
from palkit.models.adapters.files import adapter_is_saved, load_adapter, save_adapter, saved_classes
from palkit.models.backbones import Backbone
from palkit.models.devices import choose_device
from palkit.progress import Progress, silent
from palkit.scoring.inputs import InputCache
from palkit.scoring.scorer import score_pool
from palkit.storage.files import read_json, write_text
from palkit.strategies.ties import Keys, predict

NewImages = str | Path | ImagePool | np.ndarray | torch.Tensor | Sequence[Any]


@dataclasses.dataclass(repr=False)
class Classifier:
    """A model fitted to the labels of a run or a session.

    Attributes:
        config: that it was fitted with.
        class_names: what the columns of its probabilities mean.
        backbone: frozen, without the adapter.
        model: backbone, adapter, head and temperature; predicting merges the adapter.

    >>> import palkit
    >>> run = palkit.run(dataset="digits", pool_size=100, adapter="linear_probe", rounds=1)
    >>> table = run.model().predict(palkit.load_dataset("digits"))
    >>> list(table.columns[:4]), len(table)
    (['id', 'predicted', 'probability', 'p(0)'], 1797)
    """

    config: ExperimentConfig
    class_names: tuple[str, ...]
    backbone: Backbone
    model: AdaptedModel

    def __repr__(self) -> str:
        names, backbone, adapter = ", ".join(self.class_names), self.config.backbone.name, self.config.adapter.name
        return f"Classifier: {backbone}, {adapter}, {len(self.class_names)} classes: {names[:100]}"

    def predict(self, images: NewImages, progress: Progress = silent) -> pd.DataFrame:
        """Classes and probabilities of new images; the temperature, where one was fitted, is in them.

        Args:
            images: a folder (its sub-folders mean nothing here), a manifest, the name of a data set, paths of files,
                a pool, or an array (N, H, W) or (N, H, W, 3) of uint8; features, (N, D), of a model of features.
                In place of an array a tensor, or a list of images or rows, as arrays, tensors, numbers or PIL images.
            progress: called with (stage, done, total).

        Returns:
            One row per image: `id` (its path or number), `predicted` (a class name), `probability` (of it), and
            `p(NAME)` for every class.

        Raises:
            DataError: there are no images, or one cannot be read; names it.
            ConfigError: what is given are no images.
        """
        pool = new_images(images, features=not self.backbone.depth)
        scoring = measured(self.config.scoring, self.backbone.config, str(self.backbone.device))
        cache = InputCache(pool, self.backbone, scoring, progress)
        start_block = first_trained_block(self.config.adapter, self.backbone.depth)
        inputs = cache.rows(start_block, np.arange(len(pool)))
        probs = score_pool(merge(self.model), inputs, cache.config, progress).probs  # (N, C)
        codes = predict(probs, Keys.of(map(str, pool.ids), self.class_names))
        table = pd.DataFrame({"id": pool.ids, "predicted": np.array(self.class_names, dtype=object)[codes]})
        table["probability"] = probs[torch.arange(len(codes)), codes].numpy()
        return table.assign(**{f"p({name})": probs[:, code].numpy() for code, name in enumerate(self.class_names)})

    def save(self, folder: Path | str) -> Path:
        """Write all that `load_model` needs but the backbone's pretrained weights.

        Args:
            folder: is made if it does not exist; a model in it is replaced.
        """
        folder = Path(folder)
        write_text(folder / "config.json", json.dumps(plain(self.config), indent=1))
        save_adapter(self.model, folder / "adapter", self.class_names)
        return folder


def load_model(folder: Path | str, device: str | None = None) -> Classifier:
    """The model of a complete run, or one that `Classifier.save` wrote.

    Args:
        folder: `runs/<data set>/<hash>`, or where it was saved.
        device: "cpu", "cuda" or "mps"; None for the best there is.

    Raises:
        DataError: there is no complete model in it.
        WeightsError: a file in it is damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not adapter_is_saved(folder / "adapter"):
        state = "holds no fitted model" if folder.exists() else "is not there"
        raise DataError(
            f"{folder} {state}. Give the folder of a complete run (runs/<data set>/<hash>), of a labelling session "
            "with a fit, or one that a model was saved to."
        )
    try:
        values = read_json(folder / "config.json")
        names = saved_classes(folder / "adapter")
        config = _config(without_checksums(values))
    except (OSError, ValueError) as error:
        raise DataError(f"the model in {folder} cannot be read: {error}") from error
    backbone = shared_backbone(config.backbone, choose_device(device))
    class_names = names or pool_of(config).class_names  # runs of earlier versions have none
    blank = torch.zeros(backbone.width, device=backbone.device)
    model = attach(backbone, config.adapter, len(class_names), blank, torch.ones_like(blank), seed=0)
    return Classifier(config, class_names, backbone, load_adapter(model, folder / "adapter"))


def _config(values: dict[str, Any]) -> ExperimentConfig:
    """The config of a model, whose strategy may be a plugin's that is not here: predicting needs none."""
    try:
        return config_from_dict(values)
    except ConfigError:
        buying = {"plugins", "strategy", "strategy_options", "balance", "initial"}
        return config_from_dict({name: value for name, value in values.items() if name not in buying})


def new_images(images: NewImages, *, skip_unreadable: bool = False, features: bool = False) -> ImagePool:
    """New images as a pool; values of more than 8 bits are scaled from the range of these images.

    Args:
        images: see `Classifier.predict`.
        skip_unreadable: leave out files of a folder or manifest that cannot be read, with a warning.
        features: an array of two axes holds features, one row an image.
    """
    if isinstance(images, ImagePool):
        return images
    if isinstance(images, str | Path) and Path(images).suffix.lower() in IMAGE_SUFFIXES and Path(images).is_file():
        images = [images]
    if isinstance(images, str | Path):
        name = str(images)
        if name not in DATASETS and holds_features(name):
            return from_features(Path(name).expanduser(), labels=False)
        if name not in DATASETS and not name.startswith("hf:") and not os.path.exists(os.path.expanduser(name)):
            raise DataError(f"there is no folder, manifest or image {brief(name)}, nor a data set of that name.")
        return load_dataset(name, unlabelled=Path(images).expanduser().is_dir(), skip_unreadable=skip_unreadable)
    if not len(images):
        raise DataError("there are no images to predict.")
    if isinstance(images, torch.Tensor):
        images = (images.float() if images.is_floating_point() else images).numpy(force=True)
    elif not isinstance(images, np.ndarray) and not all(isinstance(one, str | Path) for one in images):
        if odd := sorted({one.mode for one in images if isinstance(one, Image.Image)} - {"L", "RGB"}):
            raise ConfigError(f"images are of mode {odd[0]!r}. Convert them by image.convert('RGB'), or give paths.")
        try:
            images = np.stack([np.asarray(one) for one in images])
        except (ValueError, TypeError) as error:
            raise ConfigError(f"images are neither all paths nor arrays of one shape ({error}).") from error
    if features and isinstance(images, np.ndarray) and images.ndim == 2 and images.dtype.kind in "fiu":
        stored = StoredFeatures(images, np.arange(len(images)))
        found: Images = stored
        bad = ~np.isfinite(stored.array).all(axis=1)
        if bad.any():
            raise DataError(f"features of row {bad.argmax()} are not all finite numbers of float32.")
        ids = [str(number) for number in range(len(images))]
    elif isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            wanted = "(N, D) of numbers" if features else "(N, H, W) or (N, H, W, 3) of uint8"
            raise ConfigError(f"an array {images.shape} of {images.dtype}; it must be {wanted}.")
        if images.ndim == 3 and images.shape[2] == 3:
            raise ConfigError(f"images are an array {images.shape}: one in colour? Give images[None], (1, H, W, 3).")
        found = ArrayImages(images)
        ids = [str(number) for number in range(len(images))]
    else:
        ids = [str(path) for path in images]
        found = FileImages(tuple(Path(path).expanduser() for path in images))
    labels = np.full(len(ids), -1, dtype=np.int64)
    return ImagePool("new images", found, labels, np.full(len(ids), "pool"), np.array(ids, dtype=object), ())
