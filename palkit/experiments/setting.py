"""The setting of a run: its data and its network, and the config with everything filled in that hangs on them.

The name of a run hangs on them too. What it takes of a network, and of a data set that is held in memory, is kept in
`cache_dir()/known`, so that a finished run is found without loading either.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import palkit.data
from palkit.config import ExperimentConfig
from palkit.data import (
    DATASETS,
    FileImages,
    ImagePool,
    StoredFeatures,
    head,
    is_features,
    list_folder,
    load_dataset,
    usual_size,
)
from palkit.data.hashes import file_hashes, stamp_of
from palkit.data.own import order_file
from palkit.errors import ConfigError, DataError, StorageError
from palkit.models.adapters import ADAPTERS, AdapterConfig
from palkit.models.adapters.registry import adapted_blocks
from palkit.models.backbones import NO_NETWORK, Backbone, BackboneConfig, load_backbone, no_network, weights_file
from palkit.models.devices import Probe, choose_device, probe
from palkit.progress import Progress, silent
from palkit.scoring.engine import ScoringConfig
from palkit.scoring.inputs import InputCache
from palkit.storage.files import cache_dir, read_json, sha256, short_hash, write_json

# Modules whose data sets are held in memory: there are no files of theirs whose stamps could tell a change.
IN_MEMORY = ("palkit.data.embedded", "palkit.data.cifar")
FEATURES_AT_A_TIME = 4096  # that are scored, where no network decides
version = cache(installed_version)  # of packages; it parses a file
# The code that makes them, as it was loaded: a kernel may outlive an update, and must not sign old facts as new ones.
SOURCE = hashlib.sha256(
    b"".join(p.read_bytes() for p in sorted(Path(palkit.data.__path__[0]).glob("*.py")))
).hexdigest()


@dataclass(frozen=True)
class Facts:
    """Facts of the data and the network of a run that its config is settled by, and its name.

    Attributes:
        data_sha256: of pixels, labels and splits.
        classes: how many.
        images: of the pool.
        features: of each image, where the data set holds features; None where it holds images.
        weights_sha256: of the backbone.
        depth: its number of blocks.
    """

    data_sha256: str
    classes: int
    images: int
    features: int | None
    weights_sha256: str
    depth: int


@dataclass(frozen=True)
class Setting:
    """Data, network and inputs of a run: loaded once, shared by the runs of a process."""

    pool: ImagePool
    backbone: Backbone
    cache: InputCache

    @property
    def facts(self) -> Facts:
        """The facts of what is loaded."""
        return Facts(**_facts_of_pool(self.pool), **_facts_of_network(self.backbone))


def setting(
    config: ExperimentConfig, device: str | None = None, progress: Progress = silent, pool: ImagePool | None = None
) -> Setting:
    """Load data and backbone of a config.

    Args:
        config: of a run.
        device: see `palkit.experiments.experiment.rounds`.
        progress: likewise.
        pool: the data, if they are loaded already and must stay as they are.
    """
    pool = pool_of(config) if pool is None else pool
    config, device = suited(config, width_of(pool)), choose_device(device)
    backbone = shared_backbone(config.backbone, device)
    scoring = measured(config.scoring, config.backbone, device)
    return Setting(pool, backbone, InputCache(pool, backbone, scoring, progress))


def suited(config: ExperimentConfig, features: int | None) -> ExperimentConfig:
    """The config as the data allow it: features have no network before them, and no views.

    Args:
        config: of a run.
        features: see `Facts`.

    Raises:
        ConfigError: an adapter, where there is nothing that it could adapt.
    """
    if features is None:
        return config
    if config.adapter.name != "linear_probe":
        raise ConfigError(
            f"adapter {config.adapter.name!r} adapts a network, and data set {config.dataset!r} holds features. "
            "Set adapter to linear_probe."
        )
    training = dataclasses.replace(config.training, augmentation="none", views=1)
    return dataclasses.replace(config, backbone=no_network(features), training=training)


def width_of(pool: ImagePool) -> int | None:
    """Features of each row of a data set of features, None for images."""
    return pool.images.width if isinstance(pool.images, StoredFeatures) else None


def pool_of(config: ExperimentConfig) -> ImagePool:
    """The data set of a config, without a backbone."""
    return _once(_current, config.dataset, config.pool_size)


_found: ContextVar[dict[tuple, Any] | None] = ContextVar("_found", default=None)


def _once(find: Callable[..., Any], *arguments: Any) -> Any:
    """What `find` finds now, or found first where things are looked at once."""
    found = _found.get()
    if found is None:
        return find(*arguments)
    if (find, *arguments) not in found:
        found[find, *arguments] = find(*arguments)
    return found[find, *arguments]


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Take every data set as it is found first: for work over many runs that is done in a moment."""
    before = _found.set({})
    try:
        yield
    finally:
        _found.reset(before)


def _current(name: str, pool_size: int | str | None) -> ImagePool:
    """A data set as it is now: images that were replaced, came or went are noticed in a process that goes on."""
    pool = _loaded(name, pool_size, *_version(name))
    if isinstance(pool.images, FileImages) and not pool.images.is_current():
        _loaded.cache_clear()
        pool = _loaded(name, pool_size, *_version(name))
    return pool


@lru_cache(maxsize=8)
def _loaded(name: str, pool_size: int | str | None, *version: object) -> ImagePool:
    pool = load_dataset(name)
    size = usual_size(pool_size, len(pool.rows("pool")))
    return pool if size is None else head(pool, size)


def _version(name: str) -> list[object]:
    """Where own images lie, which there are, and what is said of them: nothing for a data set with a name."""
    path = Path(name).expanduser()
    if name in DATASETS or not os.path.exists(path):  # unlike the method, it takes a name that no file can have
        return []
    files = [order_file(path), *([] if path.is_dir() else [path])]
    content = [stamp_of(str(file)) if is_features(file) else sha256(file) for file in files if os.path.isfile(file)]
    return [path.resolve(), *content, list_folder(path) if path.is_dir() else None]


def shared_backbone(config: BackboneConfig, device: str) -> Backbone:
    """The backbone, loaded once for all that use it in a process; nobody may change it."""
    file = weights_file(config)
    there = file is not None and os.path.isfile(file)  # unlike a stamp, it takes a name that no file can have
    return _backbone(config, device, stamp_of(str(file)) if there else None)


@lru_cache(maxsize=2)  # a sweep over large networks must not hold them all
def _backbone(config: BackboneConfig, device: str, stamp: tuple[int, ...] | None) -> Backbone:
    return load_backbone(config, device)


def known_facts(config: ExperimentConfig, device: str) -> Facts:
    """The facts of a config's data and network as these are now; what is not known yet is loaded.

    Raises:
        PalkitError: data or weights cannot be had.
    """
    pool = _known_of_pool(config)
    return Facts(**pool, **_known_of_network(suited(config, pool["features"]).backbone, device))


def forget_facts(config: ExperimentConfig) -> None:
    """Forget what is known of a config's data and network: it has turned out not to be what is loaded here."""
    for record in (_pool_record(config), _network_record(config.backbone)):
        with suppress(OSError):
            record.unlink(missing_ok=True)


def _facts_of_pool(pool: ImagePool) -> dict[str, Any]:
    classes, images = len(pool.class_names), len(pool.rows("pool"))
    return {"data_sha256": pool.checksum(), "classes": classes, "images": images, "features": width_of(pool)}


def _facts_of_network(backbone: Backbone) -> dict[str, Any]:
    return {"weights_sha256": backbone.checksum, "depth": backbone.depth}


def _known_of_pool(config: ExperimentConfig) -> dict[str, Any]:
    """Those of images in files are not kept: they are looked up by the stamps of the files, see `file_hashes`."""
    loader = DATASETS.get(config.dataset)
    if loader is None or loader.__module__ not in IN_MEMORY:
        return _facts_of_pool(pool_of(config))
    names = ("data_sha256", "classes", "images", "features")
    return _kept(_pool_record(config), lambda: _facts_of_pool(pool_of(config)), names)


def _known_of_network(config: BackboneConfig, device: str) -> dict[str, Any]:
    """The checksum of weights is that of their file as it is now; only what they do not decide is kept."""
    checksum = _once(_weights_checksum, weights_file(config))
    if checksum is None:  # whoever loads them says what to do, or asks the hub
        return _facts_of_network(shared_backbone(config, device))
    kept = _kept(_network_record(config), lambda: {"depth": shared_backbone(config, device).depth}, ("depth",))
    return kept | {"weights_sha256": checksum}


def _weights_checksum(file: str | None) -> str | None:
    """SHA-256 of a file of weights; None if there is none."""
    if file is None or not os.path.isfile(file):
        return None
    try:
        return file_hashes([Path(file)])[0]
    except StorageError:  # a cache that nobody here can write to
        return sha256(Path(file))
    except DataError:
        return None


def _pool_record(config: ExperimentConfig) -> Path:
    return _record(config.dataset, config.pool_size, SOURCE, version("scikit-learn"))


def _network_record(config: BackboneConfig) -> Path:
    return _record(dataclasses.asdict(config) | {"checkpoint": None}, version("timm"))


def _record(*made_from: Any) -> Path:
    return cache_dir() / "known" / f"{short_hash(made_from)}.json"


def _kept(record: Path, find_out: Callable[[], dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Facts, kept from when they were found out first; what has other names is of another version."""
    with suppress(OSError, ValueError):  # not there, or damaged
        kept = read_json(record)
        if kept.keys() == {*names}:
            return kept
    facts = find_out()
    with suppress(StorageError):  # then they are found out again
        write_json(record, facts)
    return facts


def probe_backbone(config: BackboneConfig, device: str, *, again: bool = False) -> Probe:
    """Measured speed of a backbone on a device, see `palkit.models.devices.probe`; loaded only to be measured."""

    def forward(pixels: Tensor) -> Tensor:
        return shared_backbone(config, device)(pixels)

    name = json.dumps(dataclasses.asdict(config) | {"checkpoint": None}, sort_keys=True)
    return probe(name, forward, config.image_size, torch.device(device), again=again)


def measured(config: ScoringConfig, backbone: BackboneConfig, device: str) -> ScoringConfig:
    """The config with what is to be measured filled in; the answer of the first time on this machine stays."""
    if config.precision != "auto" and config.batch_size is not None:
        return config
    if backbone.name.startswith(NO_NETWORK):
        config = dataclasses.replace(config, batch_size=config.batch_size or FEATURES_AT_A_TIME)
        return dataclasses.replace(config, precision="float32") if config.precision == "auto" else config
    found = probe_backbone(backbone, device)
    precision = found.precision if config.precision == "auto" else config.precision
    return dataclasses.replace(config, precision=precision, batch_size=config.batch_size or found.batch_size)


def settle(config: ExperimentConfig, here: Setting) -> ExperimentConfig:
    """The config with everything filled in that hangs on the data, the backbone, the adapter or the machine.

    Raises:
        ConfigError: blocks that the backbone does not have.
    """
    return settled(config, here.facts, str(here.backbone.device))


def settled(config: ExperimentConfig, facts: Facts, device: str) -> ExperimentConfig:
    """As `settle`, from the facts alone.

    Args:
        config: of a run.
        facts: of its data and network.
        device: that it runs on.
    """
    config = suited(config, facts.features)
    adapter, training = config.adapter, config.training
    if adapter.name == "linear_probe":
        adapter = AdapterConfig(adapter.name)  # nothing else about it matters
        training = dataclasses.replace(training, adapter_lr=None)
    else:
        blocks = adapted_blocks(adapter, facts.depth)
        adapter = dataclasses.replace(adapter, start_block=blocks.start, stop_block=blocks.stop)
        adapter_lr = training.adapter_lr or ADAPTERS[adapter.name].adapter_lr
        training = dataclasses.replace(training, adapter_lr=adapter_lr)
    if training.precision == "auto" and facts.features is not None:
        training = dataclasses.replace(training, precision="float32")
    elif training.precision == "auto":
        training = dataclasses.replace(training, precision=probe_backbone(config.backbone, device).precision)
    return dataclasses.replace(
        config,
        adapter=adapter,
        training=training,
        scoring=measured(config.scoring, config.backbone, device),
        batch_size=config.batch_size or facts.classes or None,
        pool_size=usual_size(config.pool_size, facts.images),
    )
