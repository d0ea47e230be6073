"""Displays in a notebook: a widget where a page can show one, a picture elsewhere."""

import os
from collections.abc import Callable
from typing import Any, Literal

from IPython.core.getipython import get_ipython

from palkit.storage.checks import checked

VARIABLE = "PALKIT_WIDGETS"


def is_live() -> bool:
    """Whether the cell that is running was sent by a page that can show widgets.

    JupyterLab, Notebook 7 and VS Code send the id of the cell along, and Voila names itself; papermill, nbclient and
    nbval do neither, and get pictures instead. The variable PALKIT_WIDGETS ("live" or "static") overrides that.

    Raises:
        ConfigError: the variable has another value.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is not None:
        return checked(VARIABLE, wanted, Literal["live", "static"]) == "live"
    kernel = getattr(get_ipython(), "kernel", None)
    voila = os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
    return kernel is not None and (voila or "cellId" in kernel.get_parent("shell").get("metadata", {}))


class Display:
    """Something that is a widget or a picture; `widget` is made when it is first asked for."""

    widget: Any

    def _still(self, live: bool) -> dict[str, bytes]:
        """A picture by its MIME type, or nothing: shown where nobody can click, else stored with the notebook."""
        return {}

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        live = is_live()
        view = (self.widget._repr_mimebundle_() or {}) if live else {}
        view = view[0] if isinstance(view, tuple) else view  # anywidget hands out metadata too
        return {**view, "text/plain": repr(self), **self._still(live)}


class ImageDisplay(Display):
    """A display of images, one of which may be selected.

    Attributes:
        selected: position of the image that was chosen last, if any.
    """

    selected: int | None = None

    def __init__(self) -> None:
        self._listeners: list[Callable[[int], None]] = []

    @property
    def _live(self) -> Any:
        return self.__dict__.get("widget")  # without making it

    def on_select(self, listener: Callable[[int], None]) -> None:
        """Have `listener(position)` called with the position of an image that is clicked or chosen by key.

        Args:
            listener: must be quick, as the page waits.
        """
        self._listeners.append(listener)

    def select(self, position: int | None) -> None:
        """Mark an image, or none; listeners are not called.

        Args:
            position: of the image.
        """
        self.selected = position
        if self._live is not None:
            self._live.selected = position

    def _chosen(self, position: int) -> None:
        self.select(position)
        for listener in self._listeners:
            listener(position)
