"""Widgets for JupyterLab and its kin; pictures where nobody can click."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palkit.widgets.explorer import Explorer
    from palkit.widgets.grid import ImageGrid
    from palkit.widgets.labeller import Labeller

__all__ = ["Explorer", "ImageGrid", "Labeller"]

HOMES = {"Explorer": "explorer", "ImageGrid": "grid", "Labeller": "labeller"}


def __getattr__(name: str) -> Any:
    """Import a widget when it is asked for: a grid of images must not wait for all that fits models."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
