"""Widgets for JupyterLab and its kin; pictures where nobody can click."""

from palkit.widgets.grid import ImageGrid
from palkit.widgets.labeller import Labeller

__all__ = ["ImageGrid", "Labeller"]
