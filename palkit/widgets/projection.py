"""A pool as a map of 50,000 points and more: proposals on top, the image under the pointer beside it."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from palkit.data.pool import Decoder
from palkit.errors import PalkitError
from palkit.widgets.frontend import ImageDisplay
from palkit.widgets.thumbnails import Thumbnails, png_bytes

HERE = Path(__file__).parent
SIDE = 72  # of the image beside the pointer, in pixels
STATES = 5  # rest, labelled, A, B, both
Picks = Mapping[str, np.ndarray]
MARGIN = 0.04  # of the map, left free around the points


class ProjectionWidget(anywidget.AnyWidget):
    """What the browser sees of a `Projection`; it asks by {"type": "hover", "position"} and gets text and image."""

    _esm = HERE / "projection.js"
    _css = HERE / "projection.css"
    label = traitlets.Unicode("Map of the pool").tag(sync=True)
    legend = traitlets.List(traitlets.Unicode()).tag(sync=True)
    points = traitlets.Bytes().tag(sync=True)
    states = traitlets.Bytes().tag(sync=True)
    order = traitlets.List(traitlets.Int()).tag(sync=True)
    generation = traitlets.Int().tag(sync=True)
    selected = traitlets.Int(None, allow_none=True).tag(sync=True)


class Projection(ImageDisplay):
    """Points of a pool in a plane, told apart by colour, shape and size; hovering shows an image, a click selects it.

    Drawn on a plain canvas: no WebGL, which remote desktops and locked-down machines lack. Grey points are written as
    pixels, marks are drawn over them, so that a proposal is never hidden.
    """

    def __init__(
        self,
        images: Decoder,
        rows: np.ndarray,
        points: np.ndarray,
        labelled: np.ndarray,
        picks: Picks,
        describe: Callable[[int], str] = str,
    ) -> None:
        """See the class.

        Args:
            images: hands out the pixels.
            rows: (N,) of the images.
            points: (N, 2) places.
            labelled: (L,) positions of the labelled set.
            picks: one or two strategies -> (B,) positions in order of preference; the arrow keys go through them.
            describe: text about a position, shown beside its image.
        """
        super().__init__()
        self._describe = describe
        self.show(images, rows, points, labelled, picks)

    def show(self, images: Decoder, rows: np.ndarray, points: np.ndarray, labelled: np.ndarray, picks: Picks) -> None:
        """Show something else; what the browser has already is not sent again.

        Args:
            images, rows, points, labelled, picks: as before.
        """
        self.rows, self.points, self.labelled, self.picks = rows, points.astype(np.float64), labelled, picks
        self._thumbnails = Thumbnails(images, SIDE)
        self.selected = None
        if self._live is not None:
            self._send(self._live)

    def states(self) -> np.ndarray:
        """(N,) uint8 of 0 rest, 1 labelled, 2 proposed by the first strategy alone, 3 by the second, 4 by both."""
        state = np.zeros(len(self.rows), dtype=np.uint8)
        state[self.labelled] = 1
        for number, positions in enumerate(self.picks.values()):
            state[positions] += 2 + number
        return np.minimum(state, STATES - 1)

    @cached_property
    def widget(self) -> ProjectionWidget:
        """The live map, made when it is first asked for."""
        widget = ProjectionWidget()
        self._send(widget)
        widget.on_msg(self._told)
        return widget

    def _send(self, widget: ProjectionWidget) -> None:
        legend = ["not labelled", "labelled", *(f"proposed by {name}" for name in self.picks)]
        if len(self.picks) == 2:
            legend = [*legend[:2], *(f"{text} alone" for text in legend[2:]), "proposed by both"]
        ranked = np.concatenate(list(self.picks.values()))
        with widget.hold_sync():
            widget.legend = legend
            widget.points = scaled(self.points).tobytes()
            widget.states = self.states().tobytes()
            widget.order = list(dict.fromkeys(ranked.tolist()))
            widget.selected = self.selected
            widget.generation += 1  # texts about points may have changed

    def _told(self, widget: ProjectionWidget, message: Any, buffers: object) -> None:
        kind, position = message.get("type"), message.get("position")
        if not isinstance(position, int) or not 0 <= position < len(self.rows):
            return
        if kind == "select":
            self._chosen(position)
        if kind == "hover":
            text, image = self._describe(position), b""
            try:
                image = png_bytes(self._thumbnails.take(self.rows[[position]])[0])
            except PalkitError as error:
                text = f"{text} ({error})"
            answer = {"position": position, "text": text, "generation": widget.generation}
            widget.send({"type": "image", **answer}, [image])


def scaled(points: np.ndarray) -> np.ndarray:
    """(N, 2) float32 in [0, 1], both axes by the same factor, the second one upwards.

    Args:
        points: (N, 2).
    """
    low, high = points.min(axis=0), points.max(axis=0)
    middle, span = (low + high) / 2, max(float((high - low).max()), 1e-12)
    unit = (points - middle) / span * (1 - 2 * MARGIN) * [1, -1] + 0.5
    return np.ascontiguousarray(unit, dtype=np.float32)
