"""Which device computes."""

import os

import torch

from palkit.errors import ConfigError

VARIABLE = "PALKIT_DEVICE"


def choose_device(name: str | None = None) -> str:
    """`name`, else `$PALKIT_DEVICE`, else the fastest device there is: cuda, mps, cpu.

    Raises:
        ConfigError: the device asked for is not available here.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    chosen = name or os.environ.get(VARIABLE) or available[0]
    if chosen.split(":")[0] not in available:
        raise ConfigError(f"device {chosen!r} is not available on this machine; it has {', '.join(available)}.")
    return chosen
