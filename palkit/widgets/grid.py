"""Thousands of images as pages of thumbnails, sortable by what is known about them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from palkit.data.pool import Decoder
from palkit.errors import ConfigError, PalkitError, unknown_name
from palkit.progress import Progress
from palkit.storage.checks import Count, checked
from palkit.studies.plots import image_grid
from palkit.widgets.frontend import ImageDisplay
from palkit.widgets.jobs import Cancelled, Jobs
from palkit.widgets.thumbnails import COLUMNS, Thumbnails, picture_bytes, sheet

HERE = Path(__file__).parent
NO_IMAGES = "No images to show."


class GridWidget(anywidget.AnyWidget):
    """What the browser sees of an `ImageGrid`: one page, made by the kernel.

    The browser answers with messages: {"type": "turn", "by": n}, {"type": "page", "number": n},
    {"type": "sort", "column": name or None, "ascending": bool}, {"type": "select", "position": p, "generation": g}.
    """

    _esm = HERE / "grid.js"
    _css = HERE / "grid.css"
    page = traitlets.Dict().tag(sync=True)
    sheet = traitlets.Bytes().tag(sync=True)
    selected = traitlets.Int(None, allow_none=True).tag(sync=True)
    problem = traitlets.Unicode().tag(sync=True)


class ImageGrid(ImageDisplay):
    """Thousands of images as pages of thumbnails, sortable by any column of a table.

    Where a page can show widgets it is one; elsewhere (papermill, a script) it is a picture of its first page.

    Attributes:
        table: what is shown, numbered from 0.
        sort: column that it is sorted by, None for its own order.
        ascending: smallest first.
        number: of the page, counted from 1.
        selected: position in the table of the image that was chosen last, if any.

    >>> import palkit
    >>> pool = palkit.load_dataset("digits")
    >>> len(ImageGrid(pool.images, pd.DataFrame({"row": [3, 1], "label": ["3", "1"]}), caption=["label"]).table)
    2
    """

    def __init__(
        self,
        images: Decoder,
        table: pd.DataFrame,
        *,
        caption: Sequence[str] = (),
        bar: str | None = None,
        sort: str | None = None,
        ascending: bool = True,
        page_size: int = 48,
        side: int = 72,
        label: str = "Images",
    ) -> None:
        """A grid of all images of a table.

        Args:
            images: hands out the pixels.
            table: one row per image; column `row` is its row of `images`, the others can be sorted by.
            caption: columns whose values are written under each image.
            bar: column of values in [0, 1] that is drawn as a bar, with its percentage.
            sort: column to sort by at first. Missing values come last, equal ones in the order of the table.
            ascending: smallest first; False without `sort` turns the table upside down.
            page_size: images per page.
            side: of a thumbnail in pixels; an image is fitted into that square and padded, never cropped.
            label: heading.

        Raises:
            ConfigError: an unknown column, a row that `images` lacks, a bar outside [0, 1], or a size below 1.
        """
        super().__init__()
        self.caption, self.bar, self.label = tuple(caption), bar, label
        self.page_size = checked("page_size", page_size, Count)
        self._rows = len(images)
        self._thumbnails, self._jobs = Thumbnails(images, checked("side", side, Count)), Jobs()
        self._generation = 0
        self.table = self._checked(table)
        if sort is not None and sort not in self.columns:
            raise unknown_name("column to sort by", sort, self.columns)
        self._turn(sort, ascending, 1)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"ImageGrid of {len(self):,} image{'' if len(self) == 1 else 's'}"

    @property
    def columns(self) -> list[str]:
        """What the images can be sorted by."""
        return [str(name) for name in self.table if name != "row"]

    @property
    def pages(self) -> int:
        """How many pages there are; one, which is empty, of an empty table."""
        return max(1, ceil(len(self) / self.page_size))

    def positions(self, number: int) -> np.ndarray:
        """Positions in the table of what page `number`, counted from 1, shows, in order."""
        return self._order[(number - 1) * self.page_size : number * self.page_size]

    def show(self, table: pd.DataFrame) -> None:
        """Show other images from the first page on, sorted by the same column if there still is one of that name.

        Args:
            table: as before, of the same images.

        Raises:
            ConfigError: as before.
        """
        self.table = self._checked(table)
        self._generation += 1
        self.select(None)
        self._turn(self.sort if self.sort in self.columns else None, self.ascending, 1)

    def picture(self, limit: int = 48, columns: int = 8) -> Figure:
        """The first images in the present order as a figure.

        Args:
            limit: images at most.
            columns: images per row.

        Raises:
            DataError: an image cannot be read.
        """
        shown = self._order[:limit]
        if not len(shown):
            figure = Figure(figsize=(3, 0.4))
            figure.text(0, 0.5, NO_IMAGES, va="center", fontsize=8)
            return figure
        pixels = self._thumbnails.take(self.table["row"].to_numpy()[shown])
        titles = []
        for item in self._items(shown):
            bar = [] if item["bar"] is None else [f"{100 * item['bar']:.0f}\N{NO-BREAK SPACE}%"]
            titles.append(", ".join([*item["caption"], *bar]))
        return image_grid(list(pixels), titles if any(titles) else None, columns)

    def _still(self, live: bool) -> dict[str, bytes]:
        if not live:
            return {"image/png": picture_bytes(self.picture(self.page_size))}
        # A notebook that is saved in JupyterLab shows this on a code host. A figure would take most of a second.
        first = self.table["row"].to_numpy()[self.positions(1)]
        with suppress(PalkitError):  # the widget itself says which image cannot be read
            return {"image/jpeg": sheet(self._thumbnails.take(first))} if len(first) else {}
        return {}

    @cached_property
    def widget(self) -> GridWidget:
        """The live grid, made when it is first asked for."""
        widget = GridWidget(page=self._page([]))
        widget.on_msg(lambda _widget, content, _buffers: self._told(content))
        self._render(widget)
        return widget

    def _checked(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table, numbered from 0, if it can be shown."""
        table = table.reset_index(drop=True).rename(columns=str)
        names = list(map(str, table))
        if "row" not in names:
            found = ", ".join(names) or "none"
            raise ConfigError(f"image grid: the table lacks the column 'row', each image's row (columns: {found}).")
        for kind, column in [*(("caption", name) for name in self.caption), ("bar", self.bar)]:
            if column is not None and column not in names:
                raise unknown_name(f"column of the {kind}", column, names)
        if table.empty:
            return table
        rows, whole = table["row"], pd.api.types.is_integer_dtype(table["row"])
        wrong = rows[~rows.between(0, self._rows - 1)].tolist() if whole else [rows.dtype]
        if wrong:
            raise ConfigError(
                f"image grid: the column 'row' holds {wrong[0]}, but there are {self._rows} images: give integers from "
                f"0 to {self._rows - 1}."
            )
        if self.bar is not None:
            values = table[self.bar]
            outside = values[values.notna() & ~pd.to_numeric(values, errors="coerce").between(0, 1)].tolist()
            if outside:
                raise ConfigError(
                    f"image grid: the column {self.bar!r} of the bar holds {outside[0]}; give values in [0, 1]."
                )
        return table

    def _items(self, positions: np.ndarray) -> list[dict[str, Any]]:
        """Of each image its position, the values of its caption as text, and the length of its bar."""
        part = self.table.iloc[positions]
        texts = [[caption_text(value) for value in part[name]] for name in self.caption]
        values = [None] * len(part) if self.bar is None else part[self.bar]
        bars = [None if value is None or pd.isna(value) else float(value) for value in values]
        return [
            {"position": int(position), "caption": [text[i] for text in texts], "bar": bars[i]}
            for i, position in enumerate(positions)
        ]

    def _page(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "label": self.label,
            "columns": self.columns,
            "sort": self.sort,
            "ascending": self.ascending,
            "number": self.number,
            "pages": self.pages,
            "first": (self.number - 1) * self.page_size + 1,
            "total": len(self),
            "generation": self._generation,
            "side": self._thumbnails.side,
            "sheet_columns": COLUMNS,
            "caption": list(self.caption),
            "bar": self.bar,
            "items": items,
            "empty": NO_IMAGES,
        }

    def _turn(self, sort: str | None, ascending: bool, number: int) -> None:
        """Sort, and go to a page."""
        self.sort, self.ascending = sort, ascending
        self._order = sorted_positions(self.table, sort, ascending)
        self.number = min(max(number, 1), self.pages)
        if self._live is not None:
            self._render(self._live)

    def _render(self, widget: GridWidget) -> None:
        """Make the page beside the event loop and hand it to the browser; then decode the next one ahead."""
        rows = self.table["row"].to_numpy()
        shown, following = self.positions(self.number), self.positions(self.number + 1)
        page = self._page(self._items(shown))

        def make(progress: Progress) -> bytes:
            return sheet(self._thumbnails.take(rows[shown], progress)) if len(shown) else b""

        def ahead(progress: Progress) -> None:
            self._thumbnails.take(rows[following], progress)

        def made(image: bytes) -> None:
            with widget.hold_sync():  # one message
                widget.page, widget.sheet, widget.problem = page, image, ""
            self._jobs.submit(ahead)

        def failed(error: Exception) -> None:
            if not isinstance(error, Cancelled):
                widget.problem = f"This page cannot be shown: {error}"

        self._jobs.submit(make, made, failed)

    def _told(self, message: Mapping[str, Any]) -> None:
        """Do what the browser asks for; see `GridWidget`."""
        match message:
            case {"type": "turn", "by": int(by)}:
                self._turn(self.sort, self.ascending, self.number + by)
            case {"type": "page", "number": int(number)}:
                self._turn(self.sort, self.ascending, number)
            case {"type": "sort", "column": column, "ascending": bool(ascending)} if column in [None, *self.columns]:
                self._turn(column, ascending, 1)
            # Of another generation it is an image of a table that was replaced while the message was under way.
            case {"type": "select", "position": int(position), "generation": self._generation}:
                self._chosen(position)


def sorted_positions(table: pd.DataFrame, sort: str | None, ascending: bool) -> np.ndarray:
    """(n,) positions of a table's rows in order: missing values last, equal ones as they stand in the table.

    Args:
        table: numbered from 0.
        sort: column of numbers, booleans or text; mixed ones are sorted as text. None keeps the order.
        ascending: smallest first.
    """
    if sort is None:
        return table.index.to_numpy() if ascending else table.index.to_numpy()[::-1]
    values = table[sort]
    if values.dtype == object:
        values = values.convert_dtypes()
    if values.dtype == object:
        values = values.map(str, na_action="ignore")
    return values.sort_values(ascending=ascending, kind="stable", na_position="last").index.to_numpy()


def caption_text(value: Any) -> str:
    """A value as it is written under an image."""
    if not pd.api.types.is_list_like(value) and pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):  # a series hands out Python numbers
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
