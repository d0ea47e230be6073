"""The explorer: what one or two strategies would label next, where it lies in the pool, and why."""

from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from palkit.config import config_from_dict
from palkit.labelling.explore import Exploration, Question, summary
from palkit.labelling.proposals import Answer
from palkit.progress import Progress, silent
from palkit.studies.plots import pick_maps, pick_strips
from palkit.widgets.frontend import Display
from palkit.widgets.thumbnails import fit_square, picture_bytes

STRIP = 10  # proposals of each strategy in a picture
STRIP_SIDE = 56


class Explorer(Display):
    """Choose data, adapter and strategies; see their next batches side by side, on a map, and why.

    Where a page can show widgets it is one; elsewhere it is a picture of the same answer. `answer` is for programs.

    >>> Explorer(dataset="digits", strategies=("entropy", "coreset"))
    Explorer: entropy and coreset on digits, linear_probe, round 0 (labels bought at random), seed 0
    """

    def __init__(self, question: Question | None = None, /, **values: Any) -> None:
        """See the class.

        Args:
            question: what to begin with.
            values: or its parts: `strategies` (one or two names), `round`, `history`, and values of
                `palkit.config.ExperimentConfig` such as dataset, adapter, batch_size, balance, seed.

        Raises:
            ConfigError: a value that cannot work.
        """
        self.exploration = Exploration()
        self.question = question or question_of(values)
        self._answered: tuple[Question, Answer] | None = None

    def __repr__(self) -> str:
        return f"Explorer: {summary(self.question)}"

    def answer(self, progress: Progress = silent) -> Answer:
        """What the strategies propose; computed once.

        Args:
            progress: called with (stage, done, total).

        Raises:
            PalkitError: see `palkit.labelling.explore.Exploration.answer`.
        """
        if self._answered is None or self._answered[0] is not self.question:
            self._answered = (self.question, self.exploration.answer(self.question, progress))
        return self._answered[1]

    def keep(self, question: Question, answer: Answer) -> None:
        """Take an answer that was computed elsewhere.

        Args:
            question: that becomes the present one.
            answer: to it.
        """
        self.question, self._answered = question, (question, answer)

    @cached_property
    def view(self) -> Any:
        """Controls and displays, made when they are first asked for; see `palkit.widgets.explorer_view`."""
        from palkit.widgets.explorer_view import ExplorerView  # not where nobody is looking

        return ExplorerView(self.exploration, self.question, self.keep)

    @property
    def widget(self) -> Any:
        """The live explorer."""
        return self.view.widget

    def figures(self) -> tuple[Figure, Figure]:
        """The first proposals as strips, and the map of the pool."""
        answer = self.answer()
        strips: dict[str, list[np.ndarray]] = {}
        titles: dict[str, list[str]] = {}
        for proposal in answer.proposals:
            table = proposal.table.head(STRIP)
            images = answer.pool.images.decode(table["row"].to_numpy(), STRIP_SIDE)
            strips[proposal.strategy] = list(fit_square(images, STRIP_SIDE))
            titles[proposal.strategy] = [
                f"{name}\n{100 * p:.0f} %" for name, p in zip(table["predicted"], table["probability"], strict=True)
            ]
        picks = {proposal.strategy: proposal.table["position"].to_numpy() for proposal in answer.proposals}
        points = self.exploration.projection(self.question)
        return pick_strips(strips, titles), pick_maps(points, answer.labelled, picks)

    def _still(self, live: bool) -> dict[str, bytes]:
        # A page must not wait for the first answer to have its picture.
        return {} if live and self._answered is None else {"image/png": stacked(self.figures())}


def question_of(values: dict[str, Any]) -> Question:
    """A question from plain values, see `Explorer`.

    Args:
        values: not changed.
    """
    config = dict(values)
    own = {name: config.pop(name) for name in ("strategies", "round", "history") if name in config}
    if "strategies" in own:
        own["strategies"] = (own["strategies"],) if isinstance(own["strategies"], str) else tuple(own["strategies"])
    return Question(config_from_dict({"adapter": "linear_probe", "pool_size": None, **config}), **own)


def stacked(figures: tuple[Figure, ...]) -> bytes:
    """Figures one below the other as one PNG.

    Args:
        figures: at least one.
    """
    images = [Image.open(BytesIO(picture_bytes(figure))).convert("RGB") for figure in figures]
    whole = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    buffer = BytesIO()
    whole.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
