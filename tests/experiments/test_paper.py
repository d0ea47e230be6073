"""The recipes of the paper's sweep do what they are for: LoRA moves weights, and with them predictions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import save_file

from palkit.config import config_from_dict
from palkit.data import load_dataset
from palkit.experiments.experiment import Run
from palkit.experiments.setting import shared_backbone
from palkit.experiments.sweep import load_sweep
from palkit.models.backbones import EMBEDDED
from palkit.studies.peal import LARGE

SWEEP = load_sweep("paper")
ADAPTED = [name for name in SWEEP.variants if name.startswith("LoRA")]
CPU = {"scoring.precision": "float32", "scoring.batch_size": 16}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of sixty images of three classes."""
    digits, folder = load_dataset("digits"), tmp_path_factory.mktemp("photographs")
    for label in range(3):
        (folder / str(label)).mkdir()
        for row in np.flatnonzero(digits.labels == label)[:20]:
            Image.fromarray(digits.images.decode(np.array([row]), 56)[0]).save(folder / str(label) / f"{row}.png")
    return str(folder)


def moved(variant: str, dataset: str, **backbone: Any) -> tuple[list[float], float, int]:
    """Norms of the updates after one round, the largest change of a probability by them (as a share of the range
    of all), and how much learns."""
    small = {"dataset": dataset, "rounds": 1, "strategy": "featdist", **CPU}
    base = {**SWEEP.base, **small, **{f"backbone.{name}": value for name, value in backbone.items()}}
    config = config_from_dict(dict(replace(SWEEP, base=base, grid={}).parameters())[variant])
    run = Run(config)
    (end,) = run
    model = run.model().model
    norms = [
        float(layer.get_delta_weight("default").detach().norm())
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    frozen = shared_backbone(config.backbone, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    pixels = frozen.preprocess(torch.from_numpy(images))
    with torch.inference_mode():
        adapted, plain = (model.logits(network(pixels)).softmax(1) for network in (model.backbone, frozen))
    # The head of C-PEAL's recipe hardly leaves zero on a label per class: what counts is the share of what it says.
    change = (adapted - plain).abs().max() / (plain.max() - plain.min())
    return norms, float(change), int(end.costs["trainable"])


@pytest.mark.parametrize(
    "variant",
    # The recipe of rank 4 is that of rank 1 but for the rank.
    [pytest.param(name, marks=[pytest.mark.campaign] if name == "LoRA rank 4" else []) for name in ADAPTED],
)
def test_every_recipe_moves_the_embedded_backbone(variant: str, photographs: str) -> None:
    norms, change, _ = moved(variant, photographs, name=EMBEDDED, image_size=42)
    assert len(norms) == 12, "every block"
    assert min(norms) > 0
    assert change > 1e-4, "far beyond rounding"


@pytest.mark.campaign
@pytest.mark.parametrize("variant", ADAPTED)
def test_every_recipe_moves_the_papers_architecture(variant: str, photographs: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "random.safetensors"
    state = timm.create_model(LARGE, num_classes=0).state_dict()
    # As they begin, the layer scales let next to nothing of a block through; trained ones do.
    save_file({name: torch.ones_like(one) if name.endswith("gamma") else one for name, one in state.items()}, path)
    norms, change, learning = moved(variant, photographs, name=LARGE, image_size=56, checkpoint=str(path))
    assert len(norms) == 24
    assert min(norms) > 0
    assert change > 1e-5, "far beyond rounding"
    rank = 1 if "rank 1" in variant else 4
    assert learning == rank * 24 * (1024 + 3 * 1024)
