"""A real but tiny vision transformer, and folders for caches and runs that vanish with the test."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from tiny_vit import save_tiny_vit, tiny_values

# What takes seconds to load is loaded by who needs it: the process that hands out the tests needs nothing of it.
if TYPE_CHECKING:
    from palkit.data import ImagePool
    from palkit.models.backbones import Backbone, BackboneConfig

settings.register_profile("palkit", deadline=None)  # no test fails by how long it took
settings.load_profile("palkit")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PALKIT_DEVICE", "cpu")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches that no other test fills."""
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def pool() -> "ImagePool":
    """Handwritten digits: 150 of them in the pool, 60 in each of the other splits."""
    from palkit.data import head, load_dataset, without

    digits = head(load_dataset("digits"), 150)
    return without(digits, np.concatenate([digits.rows(split)[60:] for split in ("val", "test")]))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's smallest ViT, random but fixed."""
    return save_tiny_vit(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tiny_config(tiny_checkpoint: Path) -> "BackboneConfig":
    from palkit.models.backbones import BackboneConfig

    return BackboneConfig("test_vit", image_size=32, depth=4, pooling="mean", checkpoint=str(tiny_checkpoint))


@pytest.fixture(scope="session")
def tiny(tiny_config: "BackboneConfig") -> "Backbone":
    from palkit.models.backbones import load_backbone

    return load_backbone(tiny_config)


@pytest.fixture
def tiny_run(tiny_checkpoint: Path) -> dict[str, Any]:
    """Plain values of an experiment that takes a second or two."""
    return tiny_values(tiny_checkpoint)
