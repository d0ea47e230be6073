"""The panel "Why this one?": what is known about one image of a pool, in words, bars and neighbours."""

from base64 import b64encode
from collections.abc import Callable
from html import escape

import ipywidgets
import numpy as np

from palkit.data import ImagePool
from palkit.errors import PalkitError
from palkit.labelling.proposals import Answer, Why
from palkit.widgets.thumbnails import fit_square, png_bytes

SIDE = 112  # of the image itself, in pixels
NEAR_SIDE = 56
CLASSES = 10  # shown, the others are summed up
HINT = "Click an image, here or in the map, to see why it is proposed, or why not."


class WhyPanel:
    """The panel beside the map.

    Args:
        changed: called when the user wants to see the true class, or not any more.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.reveal = ipywidgets.Checkbox(description="Show the true class", value=False, indent=False)
        self.reveal.observe(lambda change: changed(), "value")
        self.text = ipywidgets.HTML(f"<p>{HINT}</p>")
        title = ipywidgets.HTML("<h4>Why this one?</h4>")
        layout = ipywidgets.Layout(flex="1 1 320px", min_width="300px", padding="0 0 0 12px")
        self.widget = ipywidgets.VBox([title, self.reveal, self.text], layout=layout)

    def clear(self) -> None:
        """Show no image."""
        self.text.value = f"<p>{HINT}</p>"

    def show(self, answer: Answer, position: int) -> None:
        """Show an image.

        Args:
            answer: with what is known.
            position: of the pool.
        """
        why = answer.why(position, reveal=self.reveal.value)
        try:
            picture = image_tag(answer.pool, why.row, SIDE)
            near = neighbours(answer.pool, why)
        except PalkitError as error:  # an image that cannot be read
            picture, near = f"<p>{escape(str(error))}</p>", ""
        self.text.value = f"{picture}{words(why)}{bars(why)}{near}"


def words(why: Why) -> str:
    """Where the image stands, as HTML.

    Args:
        why: of the image.
    """
    ranks = [
        f"number {rank} of {escape(name)}" if rank else f"not proposed by {escape(name)}"
        for name, rank in why.ranks.items()
    ]
    truth = f" Its true class is <b>{escape(why.truth)}</b>." if why.truth else ""
    return (
        f"<p><b>{escape(why.id)}</b>: {', '.join(ranks)}.{truth}</p>"
        f"<p>Of the unlabelled images, {why.margin_percentile:.0f} % are at most as uncertain by margin, "
        f"{why.entropy_percentile:.0f} % by entropy, and {why.distance_percentile:.0f} % lie at most as far from a "
        "label.</p>"
    )


def bars(why: Why) -> str:
    """Class probabilities as an HTML table with bars.

    Args:
        why: of the image.
    """
    shown = [(str(name), float(p)) for name, p in why.classes.head(CLASSES).itertuples(index=False)]
    if len(why.classes) > CLASSES:
        others = len(why.classes) - CLASSES
        shown.append((f"{others} others", 1 - sum(p for _, p in shown)))
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td><div style='width:{120 * p:.0f}px'></div></td>"
        f"<td>{100 * p:.1f} %</td></tr>"
        for name, p in shown
    )
    return f"<table class='palkit-classes' aria-label='Class probabilities'>{rows}</table>"


def neighbours(pool: ImagePool, why: Why) -> str:
    """The nearest labelled images with class and distance, as HTML.

    Args:
        pool: of the image.
        why: of the image.
    """
    figures = "".join(
        f"<figure>{image_tag(pool, int(row), NEAR_SIDE)}<figcaption>{escape(str(label))}<br>{distance:.2f}</figcaption>"
        "</figure>"
        for row, label, distance in why.neighbours[["row", "label", "distance"]].itertuples(index=False)
    )
    return (
        "<p>Nearest labelled images, with their labels and distances (1: as far apart as two images of the pool on "
        f"average):</p><div class='palkit-near'>{figures}</div>"
    )


def image_tag(pool: ImagePool, row: int, side: int) -> str:
    """An HTML image.

    Args:
        pool: that it is of.
        row: of the pool.
        side: in pixels.
    """
    square = fit_square(pool.images.decode(np.array([row]), side), side)[0]
    data = b64encode(png_bytes(square)).decode()
    name = escape(str(pool.ids[row]), quote=True)
    return f"<img alt='{name}' width='{side}' height='{side}' src='data:image/png;base64,{data}'>"
