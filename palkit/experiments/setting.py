"""What a run works on, and the config with everything filled in that hangs on it."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from palkit.config import ExperimentConfig
from palkit.data import DATASETS, FileImages, ImagePool, head, list_folder, load_dataset, usual_size
from palkit.data.own import order_file
from palkit.models.adapters import ADAPTERS, AdapterConfig, adapted_blocks
from palkit.models.backbones import Backbone, BackboneConfig, load_backbone
from palkit.models.devices import Probe, choose_device, probe
from palkit.progress import Progress, silent
from palkit.scoring.engine import ScoringConfig
from palkit.scoring.inputs import InputCache
from palkit.storage.files import sha256


@dataclass(frozen=True)
class Setting:
    """What a run works on: loaded once, shared by the runs of a process."""

    pool: ImagePool
    backbone: Backbone
    cache: InputCache


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
    backbone = shared_backbone(config.backbone, choose_device(device))
    return Setting(pool, backbone, InputCache(pool, backbone, measured(config.scoring, backbone), progress))


def pool_of(config: ExperimentConfig) -> ImagePool:
    """The data set of a config, without a backbone."""
    return _dataset(config.dataset, config.pool_size)


_found: ContextVar[dict[tuple, ImagePool] | None] = ContextVar("_found", default=None)


@contextmanager
def looked_at_once() -> Iterator[None]:
    """Take every data set as it is found first: for work over many runs that is done in a moment."""
    before = _found.set({})
    try:
        yield
    finally:
        _found.reset(before)


def _dataset(name: str, pool_size: int | str | None) -> ImagePool:
    found = _found.get()
    if found is None:
        return _current(name, pool_size)
    if (name, pool_size) not in found:
        found[name, pool_size] = _current(name, pool_size)
    return found[name, pool_size]


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
    content = [sha256(file) for file in files if os.path.isfile(file)]
    return [path.resolve(), *content, list_folder(path) if path.is_dir() else None]


@lru_cache(maxsize=2)  # a sweep over large networks must not hold them all
def shared_backbone(config: BackboneConfig, device: str) -> Backbone:
    """The backbone, loaded once for all that use it in a process; nobody may change it."""
    return load_backbone(config, device)


def probe_backbone(backbone: Backbone, *, again: bool = False) -> Probe:
    """Measured speed of a backbone on its device, see `palkit.models.devices.probe`."""
    name = json.dumps(dataclasses.asdict(backbone.config) | {"checkpoint": None}, sort_keys=True)
    return probe(name, backbone, backbone.config.image_size, backbone.device, again=again)


def measured(config: ScoringConfig, backbone: Backbone) -> ScoringConfig:
    """The config with what is to be measured filled in; the answer of the first time on this machine stays."""
    if config.precision != "auto" and config.batch_size is not None:
        return config
    found = probe_backbone(backbone)
    precision: Any = found.precision if config.precision == "auto" else config.precision
    return dataclasses.replace(config, precision=precision, batch_size=config.batch_size or found.batch_size)


def settle(config: ExperimentConfig, here: Setting) -> ExperimentConfig:
    """The config with everything filled in that hangs on the data, the backbone, the adapter or the machine.

    Raises:
        ConfigError: blocks that the backbone does not have.
    """
    adapter, training = config.adapter, config.training
    if adapter.name == "linear_probe":
        adapter = AdapterConfig(adapter.name)  # nothing else about it matters
        training = dataclasses.replace(training, adapter_lr=None)
    else:
        blocks = adapted_blocks(adapter, here.backbone.depth)
        adapter = dataclasses.replace(adapter, start_block=blocks.start, stop_block=blocks.stop)
        adapter_lr = training.adapter_lr or ADAPTERS[adapter.name].adapter_lr
        training = dataclasses.replace(training, adapter_lr=adapter_lr)
    if training.precision == "auto":
        precision: Any = probe_backbone(here.backbone).precision
        training = dataclasses.replace(training, precision=precision)
    return dataclasses.replace(
        config,
        adapter=adapter,
        training=training,
        scoring=here.cache.config,
        batch_size=config.batch_size or len(here.pool.class_names),
        pool_size=usual_size(config.pool_size, len(here.pool.rows("pool"))),
    )
