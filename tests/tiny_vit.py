"""The smallest vision transformer of timm, random but fixed, and an experiment with it, for tests and campaigns."""

from pathlib import Path
from typing import Any


def save_tiny_vit(folder: Path) -> Path:
    """Its weights, as a file in a folder."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = folder / "test_vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def tiny_values(checkpoint: Path) -> dict[str, Any]:
    """Plain values of an experiment that takes a second or two."""
    return {
        "dataset": "digits",
        "pool_size": 200,
        "backbone": {"name": "test_vit", "image_size": 32, "depth": 4, "checkpoint": str(checkpoint)},
        "adapter": {"name": "lora", "start_block": 2},
        "training": {"epochs": 2, "head_epochs": 2, "views": 2},
        "strategy": "badge",
        "rounds": 3,
        "evaluate_on": "val",
    }
