"""palkit: parameter-efficient active learning for vision foundation models."""

__version__ = "0.1.0"
