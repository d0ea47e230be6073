"""Sizes, colours, markers, names, axes and files of all figures."""

import hashlib
import json
import logging
import re
import textwrap
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import ceil
from os.path import commonprefix
from pathlib import Path
from typing import Any, cast
from unicodedata import east_asian_width

import numpy as np
import pandas as pd
from matplotlib import rc_context, rc_params_from_file
from matplotlib.artist import allow_rasterization
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from palkit.storage.files import atomic_path
from palkit.storage.plugins import is_registered
from palkit.strategies import STRATEGIES

WIDTH = 7.0
PER_ROW = 4

# Strategies say themselves how they look: Okabe & Ito's colours for the first default sweep, Paul Tol's "muted" ones
# for the others: both sets are distinct for every kind of colour vision. More strategies than that cannot be told
# apart by colour, which is why each also has a marker. These are for those that do not say.
OTHER_COLOURS = ("#332288", "#117733", "#44AA99", "#882255", "#AA4499", "#661100", "#6699CC", "#999933")
OTHER_MARKERS = ("o", "s", "^", "D", "v", "<", ">", "P", "p", "h")

# Things that are no strategies (pooling, cost, classes) keep away from the strategies' meaning of colour.
SERIES_COLOURS = ("#004488", "#BB5566", "#DDAA33", "#000000", "#7799BB")
COST_COLOURS = {"fit_s": "#004488", "score_s": "#6699CC", "select_s": "#DDAA33"}
CLASS_COLOURS = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#AA4499", "#999933", "#882255", "#44AA99", "#888888",
)  # fmt: skip
CLASS_MARKERS = ("o", "^", "s", "D", "v")
CLASS_LINES = ("-", "--", ":", "-.")
INK = "#333333"
BLUES = LinearSegmentedColormap.from_list("palkit", ["#FFFFFF", "#6699CC", "#004488"])

METRIC_LABELS = {
    "accuracy": "accuracy (%)",
    "balanced_accuracy": "balanced accuracy (%)",
    "macro_f1": "macro F1 (%)",
    "kappa": "quadratic weighted kappa",
    "nll": "negative log-likelihood (nats)",
    "brier": "Brier score",
    "ece": "expected calibration error (%)",
    "adaptive_ece": "adaptive calibration error (%)",
    "recall": "recall (%)",
}
ADAPTERS = ("LoRA", "rsLoRA", "DoRA", "PiSSA", "AdaLoRA", "VeRA", "LoHa", "LoKr", "OFT", "BOFT", "BitFit", "VPT")
NAMES = {name.lower(): name for name in (*ADAPTERS, "BADGE", "BALD", "BAIT", "PCB")} | {"ia3": "IA³"}
BALANCES = frozenset({"pcb"})
OURS = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")  # names in palkit's own spelling
LONGEST = 24  # columns of a name at a tick or in a legend
LETTER = 0.055  # inches of one of them, about

FONT = "DejaVu Sans"
STYLE = rc_params_from_file(Path(__file__).with_name("palkit.mplstyle"), use_default_template=False)
# A decorator: figures are drawn under our settings whatever those of the caller are, and leave these as they were.
styled = rc_context(STYLE)


class PlainFigure(Figure):
    """A figure drawn under our settings and with the names in it as they are written, whoever draws it and when.

    Matplotlib makes some of the text only when it draws, and would take it for LaTeX if the reader's settings say so.
    """

    def __repr__(self) -> str:
        # As any other figure, in what a notebook stores.
        return super().__repr__().replace(type(self).__name__, Figure.__name__)

    @allow_rasterization
    def draw(self, renderer: RendererBase) -> None:
        with rc_context(STYLE), warnings.catch_warnings():
            # Said once, and by us, in `fonts_for`.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
            _give_glyphs(self)
            super().draw(renderer)


def _give_glyphs(figure: Figure) -> None:
    """Let text with characters that our font lacks use fonts that have them."""
    texts: list[Text] = figure.findobj(Text)
    axes = [(one, getattr(one, f"{which}axis").get_major_formatter()) for one in figure.axes for which in "xy"]
    # Labels of ticks are made from these when it is drawn.
    named = [(one, formatter.seq) for one, formatter in axes if isinstance(formatter, FixedFormatter)]
    written = "".join([text.get_text() for text in texts] + [str(name) for _, names in named for name in names])
    families = list(fonts_for(set(written)))
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
        for one, _ in named:
            one.tick_params(labelfontfamily=families)


def fonts_for(characters: Iterable[str]) -> tuple[str, ...]:
    """Families that have these characters: ours, then those of this machine for what ours lacks.

    What no font has is drawn as an empty box; that is logged once.
    """
    wanted = {ord(character) for character in characters if character.isprintable()}
    return (FONT, *_other_fonts(frozenset(wanted - _charmap(findfont(FONT)))))


@cache
def _other_fonts(missing: frozenset[int]) -> tuple[str, ...]:
    """As few families of this machine as have these characters."""
    if not missing:
        return ()
    best = max(findSystemFonts(), key=lambda path: (len(missing & _charmap(path)), "Regular" in path), default=None)
    if best is None or not missing & _charmap(best):
        logging.getLogger(__name__).warning(
            "No font of this machine has %s: figures show boxes. Install one that does, such as Noto.",
            "".join(map(chr, sorted(missing)[:10])),
        )
        return ()
    fontManager.addfont(best)
    return (FT2Font(best).family_name, *_other_fonts(missing - _charmap(best)))


@cache
def _charmap(path: str) -> frozenset[int]:
    """Characters of a font; none of one that cannot be read."""
    with suppress(RuntimeError, OSError):
        return frozenset(FT2Font(path).get_charmap())
    return frozenset()


def strategy_style(name: str) -> tuple[str, str]:
    """Colour and marker of a strategy, the same in every figure and process, also for names that nobody registered."""
    style = STRATEGIES[name].style if is_registered(name, STRATEGIES) else None
    if style is not None:
        return style
    # Unlike `hash`, a checksum of the name is the same in every process.
    marker, colour = divmod(zlib.crc32(name.encode()), len(OTHER_COLOURS))
    return OTHER_COLOURS[colour], OTHER_MARKERS[marker % len(OTHER_MARKERS)]


def class_look(number: int) -> dict[str, Any]:
    """Colour, marker and line style of a class; the first 200 numbers have each their own."""
    colours, markers = len(CLASS_COLOURS), len(CLASS_MARKERS)
    # Each time the colours begin again, so do the markers, one further on.
    marker = CLASS_MARKERS[(number + number // colours) % markers]
    dashes = CLASS_LINES[number // (colours * markers) % len(CLASS_LINES)]
    return {"color": CLASS_COLOURS[number % colours], "marker": marker, "linestyle": dashes}


def save_figure(figure: Figure, path: Path | str, metadata: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG, so that the same figure always gives the same bytes.

    Either file is complete or as it was: it is written beside its place, flushed to disk and moved there.

    Args:
        figure: what to save.
        path: where, without suffix; the folder is created.
        metadata: what the figure came from, e.g. run hashes and the name of the sweep. In the PNG each is a
            text chunk of its own; SVG knows only Dublin Core, so there all of it is JSON in the description.
            `runs`, a list of hashes or one string with commas, comes with `runs_count` and `runs_sha256` (of the
            distinct hashes, sorted, one a line), so that a long list (17 kB for 1,000 runs) can be compared.

    Returns:
        The paths of the PNG and the SVG.
    """
    known = {**metadata, **(run_digest(metadata["runs"]) if "runs" in metadata else {})}
    text = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in known.items()}
    described = json.dumps(text, sort_keys=True)
    # A date would make every file differ.
    formats = {"png": text, "svg": {"Date": None, "Description": described}}
    paths = []
    for suffix, chunks in formats.items():
        paths.append(Path(path).with_name(f"{Path(path).name}.{suffix}"))
        with rc_context(STYLE), atomic_path(paths[-1]) as temporary:
            figure.savefig(temporary, format=suffix, metadata=chunks)
    return paths[0], paths[1]


def run_digest(runs: str | Iterable[str]) -> dict[str, object]:
    """Number and SHA-256 of distinct run hashes, whatever their order; see `save_figure`."""
    distinct = sorted({*map(str, runs.split(",") if isinstance(runs, str) else runs)})
    return {"runs_count": len(distinct), "runs_sha256": hashlib.sha256("\n".join(distinct).encode()).hexdigest()}


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one panel."""
    figure = PlainFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def side_by_side(
    count: int, height: float, columns: int = 0, *, sharex: bool = False, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
    """Panels in rows.

    Args:
        count: of panels.
        height: of a row in inches.
        columns: panels in a row; 0 takes as many as there are, up to `PER_ROW`.
        sharex: all have one horizontal axis.
        sharey: all have one vertical axis.
    """
    # A single panel as wide as the page would be stretched.
    width = 4.2 if count == 1 and not columns else WIDTH
    columns = columns or min(count, PER_ROW)
    rows = ceil(count / columns)
    figure = PlainFigure(figsize=(width, height * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).ravel())
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def label_outer(panels: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Names of the axes left of each row and below each column, whose lowest panel has numbers, too.

    Args:
        panels: of `side_by_side`, in rows.
        columns: panels in a row.
        x: name of the horizontal axis.
        y: name of the vertical axis.
    """
    for number, axes in enumerate(panels):
        if number % columns == 0:
            axes.set_ylabel(y)
        if number + columns >= len(panels):
            axes.set_xlabel(x)
            axes.tick_params(labelbottom=True)


def error_bar(axes: Axes, x: float, y: float, ends: tuple[float, float], which: str, **look: Any) -> None:
    """A point with the interval of its x or y value.

    Args:
        axes: where.
        x: of the point.
        y: of the point.
        ends: of the interval; NaN for none.
        which: "x" or "y", of which the interval is.
        look: of matplotlib's error bars.
    """
    value, (low, high) = x if which == "x" else y, ends
    look[f"{which}err"] = [[value - low], [high - value]]
    axes.errorbar(x, y, **look)


def curve(axes: Axes, line: pd.DataFrame, value: str = "mean", at: str = "labels", **look: Any) -> Line2D:
    """A curve and its band.

    Args:
        axes: where.
        line: columns `at`, `value`, and `low` and `high` of the band, NaN for none.
        value: column to draw.
        at: column to draw it against.
        look: of the line; the band has its colour.
    """
    axes.fill_between(line[at], line["low"], line["high"], color=look["color"], alpha=0.13, linewidth=0)
    (handle,) = axes.plot(line[at], line[value], markeredgecolor="white", markeredgewidth=0.4, **look)
    return handle


def label_axes(axes: Axes, number: int, metric: str) -> None:
    """Axes of the panel with that number in `side_by_side`: a metric against labels bought."""
    axes.set_xlabel("labels bought")
    metric_axis(axes, "y", metric, labelled=number % PER_ROW == 0)
    axes.grid()


def legend_key(name: str, **look: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=name, **{"linestyle": "", **look})


def ticks_at(axes: Axes, values: pd.Series) -> None:
    """Ticks at the values that occur, if they are few enough to be read."""
    distinct = sorted(values.unique())
    if len(distinct) <= 10:
        axes.set_xticks(distinct)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def name_ticks(axes: Axes, which: str, names: Iterable) -> None:
    """Names along an axis of a matrix, slanted below it, smaller where they are many."""
    shown = shown_names(names)
    size = min(7.0, 250 / len(shown))
    if which == "x":
        axes.set_xticks(range(len(shown)), shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    else:
        axes.set_yticks(range(len(shown)), shown, fontsize=size)


def name_configurations(axes: Axes, table: pd.DataFrame) -> None:
    """Rows named by adapter, strategy and, if the table has it, balance."""
    names = shown_names(configuration_names(table), 2 * LONGEST)
    figure = cast(Figure, axes.get_figure(root=True))
    figure.set_figwidth(min(WIDTH, figure.get_figwidth() + excess(names, LONGEST, 2 * LONGEST)))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)


def configuration_name(*parts: str) -> str:
    """Display name of a configuration: "LoRA, entropy + PCB" of "lora", "entropy", "pcb"; "none" is left out.

    Args:
        parts: values of columns such as adapter, strategy, balance. A balance is added to what comes before it.
    """
    name = ""
    for part in parts:
        if part != "none":
            name += (" + " if part in BALANCES else ", ") * bool(name) + title_of(part)
    return name


def configuration_names(table: pd.DataFrame) -> list[str]:
    """Display name of every row, from those of the columns adapter, strategy and balance that the table has."""
    columns = [column for column in ("adapter", "strategy", "balance") if column in table.columns]
    return [configuration_name(*map(str, row)) for row in table[columns].itertuples(index=False)]


def panel_columns(rounds: pd.DataFrame) -> tuple[str, ...]:
    """Columns that give a panel its own configuration: adapter, and balance where runs differ in it."""
    balanced = "balance" in rounds.columns and rounds["balance"].nunique() > 1
    return ("adapter", "balance") if balanced else ("adapter",)


def configuration_columns(rounds: pd.DataFrame) -> tuple[str, ...]:
    """Columns that tell configurations apart: those of a panel, and the strategy."""
    return (*panel_columns(rounds), "strategy")


def interval_note(look: str, low: pd.Series, of: str) -> str:
    """Note on what the intervals of a figure speak of.

    Args:
        look: what they look like, "bars" or "bands".
        low: their lower ends, NaN where there is none.
        of: of what, over what.
    """
    return f"{look}: 95 % t intervals {of}" if low.notna().any() else f"no {look}: too few seeds for an interval"


def title_of(name: str) -> str:
    """A strategy or adapter as readers know it; what follows its name is a user's, and stays as it is."""
    own, comma, rest = name.partition(", ")
    return NAMES.get(own, own.replace("_", " ") if OURS.fullmatch(own) else own) + comma + rest


def shown_names(names: Iterable[object], longest: int = LONGEST) -> list[str]:
    """Names in one line each, the middle of long ones left out, but not the part in which two differ.

    They are numbered where that is not enough, such as where they differ in spaces alone.

    Args:
        names: any text.
        longest: columns of a name; letters of East Asia take two.
    """
    written = [str(name) for name in names]
    short = {name: _short(one_line(name), longest) for name in written}
    for group in _alike(short):
        short |= _told_apart(group, longest)
    for group in _alike(short):
        short |= {name: f"{short[name]} ({number})" for number, name in enumerate(group, start=1)}
    return [short[name] for name in written]


def _alike(short: Mapping[str, str]) -> list[list[str]]:
    """Names that are shown as others are, together with these."""
    groups: dict[str, list[str]] = {}
    for name, shown in short.items():
        groups.setdefault(shown, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _told_apart(names: Sequence[str], longest: int) -> dict[str, str]:
    """Short forms of long names: how they begin, then from where they differ."""
    lines = {name: one_line(name) for name in names}
    if len(set(lines.values())) == 1:
        return {name: _short(line, longest) for name, line in lines.items()}
    common = len(commonprefix(list(lines.values())))  # noqa: RUF071  characters are meant
    shown = {}
    for name, line in lines.items():
        head = _fitting(line[:common], longest // 3)
        word = max(line.rfind(" ", 0, common) + 1, len(head))  # a word is not begun in its middle, if there is room
        start = word if columns_of(line[word:common]) <= longest // 4 else common
        shown[name] = f"{head}…{_short(line[start:], longest - longest // 3 - 1)}"
    for group in _alike(shown):
        if len(group) < len(names):
            shown |= _told_apart(group, longest)
    return shown


def _fitting(line: str, columns: int) -> str:
    """As much of the beginning of a line as fits."""
    while columns_of(line) > columns:
        line = line[:-1]
    return line


def one_line(name: str) -> str:
    """A name without line breaks, and with bytes written out that are no text, as names of files may hold."""
    text = name.encode(errors="backslashreplace").decode()
    return re.sub(r"[^\S\N{NO-BREAK SPACE}]+", " ", text).strip()


def _short(line: str, longest: int) -> str:
    """A line of at most so many columns, its middle left out."""
    if columns_of(line) <= longest:
        return line
    tail = _fitting(line[::-1], longest - longest * 2 // 3 - 1)[::-1]
    return f"{_fitting(line, longest * 2 // 3)}…{tail}"


def columns_of(text: str) -> int:
    """Width of a line, in letters."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def excess(names: Iterable[object], usual: int = 12, longest: int = LONGEST) -> float:
    """Inches that the longest of the names at an axis needs beyond a usual one; see `shown_names`."""
    return LETTER * max([0, *(columns_of(name) - usual for name in shown_names(names, longest))])


@styled
def entitle(figure: Figure, title: str) -> None:
    """Write a line above all panels."""
    figure.suptitle(shown_names([title], int(figure.get_figwidth() / (1.2 * LETTER)))[0], fontsize=8)


def random_first(name: str) -> tuple[bool, str]:
    """Sorting key of strategies: the reference, then the others by name."""
    return name != "random", name


def is_share(metric: str) -> bool:
    """Whether a metric is shown as per cent."""
    return METRIC_LABELS.get(metric, metric).endswith("(%)")


def log_axis(axes: Axes, subs: Sequence[float]) -> None:
    """Horizontal axis with ticks at these numbers and their powers of ten, written out."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def metric_axis(axes: Axes, which: str, metric: str, labelled: bool = True) -> None:
    """Label the x or y axis with the name of a metric, and show shares as per cent."""
    label = METRIC_LABELS.get(metric, metric)
    axis = axes.xaxis if which == "x" else axes.yaxis
    if labelled:
        axis.set_label_text(label)
    if is_share(metric):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


def legend(figure: Figure, handles: Sequence, columns: int, **options: Any) -> None:
    """A legend of a figure, which names each handle whatever its label begins with.

    Args:
        figure: where.
        handles: what has a label.
        columns: entries side by side.
        options: of matplotlib's legend.
    """
    # Matplotlib leaves out labels that begin with an underscore.
    drawn = figure.legend(handles=handles, labels=["name"] * len(handles), ncols=columns, **options)
    for text, name in zip(drawn.get_texts(), shown_names(handle.get_label() for handle in handles), strict=True):
        text.set_text(name)


def legend_below(figure: Figure, handles: Sequence, title: str | None = None) -> None:
    """One legend for all axes, below them, in as many columns as fit; many rows make the figure higher."""
    longest = max(map(columns_of, shown_names(handle.get_label() for handle in handles)))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / max(1.1, 0.45 + LETTER * longest))))
    rows = ceil(len(handles) / columns)
    if title is not None:
        title = textwrap.fill(title, int(13 * figure.get_figwidth()))
    lines = 0 if title is None else 1 + title.count("\n")
    figure.set_figheight(figure.get_figheight() + 0.15 * (max(0, rows - 3) + lines))
    legend(figure, handles, columns, loc="outside lower center", handlelength=2.2, title=title)


def heatmap(axes: Axes, values: NDArray, text: NDArray) -> None:
    """Shaded cells separated by thin white lines, with numbers unless there are too many to read."""
    top = float(np.nanmax(values, initial=0)) or 1.0
    axes.imshow(values, cmap=BLUES, vmin=0, vmax=top, aspect="auto")
    if max(values.shape) <= 25:
        for (row, column), value in np.ndenumerate(values):
            # Relative luminance below 0.18 contrasts more with white than with black (WCAG 2).
            dark = np.dot(np.power(BLUES(value / top)[:3], 2.2), (0.2126, 0.7152, 0.0722)) < 0.18
            ink = "white" if dark else "black"
            written = axes.text(column, row, str(text[row, column]), fontsize=6.5, color=ink)
            written.set(ha="center", va="center_baseline")
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
