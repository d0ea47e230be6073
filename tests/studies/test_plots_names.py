"""Names of classes, data sets, variants and sweeps are text: in figures, legends and LaTeX they stay as they are."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from breadth import some
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from plots_helpers import names, table

from palkit.studies import plots
from palkit.studies.plots.style import FONT, LONGEST, columns_of, fonts_for, shown_names, title_of
from palkit.studies.statistics import area_costs, label_saving, rank_strategies, summarise

# A warning from matplotlib or numpy would land in every notebook.
pytestmark = pytest.mark.filterwarnings("error")
ODD = ["a_b$", "$x^$", r"\frac{1}$ $", "_hidden", "<x>", "a & b", "100 %", "{}", "^~", "# *md* `c`", "עברית", "العربية"]
LONG = ["x" * 80, "x" * 40 + "y" + "x" * 39, "中文" * 40]
NAMES = [*ODD, *LONG, "two\nlines", "\udcff"]


@pytest.fixture(autouse=True)
def _latex_of_the_reader() -> Iterator[None]:
    """What a matplotlibrc may say; this machine need not even have LaTeX."""
    with matplotlib.rc_context({"text.usetex": True}):
        yield


def rounds() -> pd.DataFrame:
    variants = {"linear_probe": "linear_probe, _$v$ " + "x" * 80, "lora": "lora, {} <b> a_b"}
    runs = table(2)
    return runs.assign(adapter=runs["adapter"].map(variants))


def recalls() -> pd.DataFrame:
    runs = table(2).query("adapter == 'lora' and strategy in ('random', 'margin')")
    return pd.concat([runs.assign(**{"class": name, "recall": 0.5}) for name in NAMES])


def picks() -> pd.DataFrame:
    return pd.DataFrame(1, index=["random", "margin"], columns=NAMES)


COUNT = len(NAMES)
FIGURES: dict[str, Callable[[], Figure]] = {
    "projection": lambda: plots.projection(np.eye(COUNT)[:, :2], np.arange(COUNT), NAMES),
    "projection, 100 classes": lambda: plots.projection(np.zeros((1, 2)), [0], [f"class {i}" for i in range(100)]),
    "confusion": lambda: plots.confusion(np.eye(COUNT, dtype=int), NAMES),
    "confusion of two": lambda: plots.confusion(np.eye(2, dtype=int), LONG[:2]),
    "counts": lambda: plots.class_counts(pd.DataFrame({"pool": 1, "val": 1, "test": 1}, index=NAMES)),
    "picks": lambda: plots.picks_by_class(picks()),
    "images": lambda: plots.image_grid([np.zeros((4, 4), np.uint8)] * COUNT, NAMES),
    "strips": lambda: plots.pick_strips({"margin": [np.zeros((4, 4), np.uint8)] * COUNT}, {"margin": NAMES}),
    "recalls": lambda: plots.class_recalls(recalls()),
    "curves": lambda: plots.budget_curves(rounds()),
    "areas": lambda: plots.area_under_curves(summarise(rounds())),
    "round costs": lambda: plots.round_costs(rounds()),
    "cost": lambda: plots.cost_areas(area_costs(rounds())),
    "saving": lambda: plots.label_savings(
        label_saving(rounds(), {"strategy": "random", "adapter": "lora, {} <b> a_b"}),
    ),
    "ranks": lambda: plots.critical_difference(rank_strategies(rounds(), treatments=("adapter", "strategy"))),
}


@pytest.mark.parametrize("figure", some(FIGURES, every=2))
def test_any_name_is_drawn_as_it_is(figure: str, tmp_path: Path) -> None:
    drawn = FIGURES[figure]()
    plots.entitle(drawn, "/home/$user_/" + "x" * 200)
    for path in plots.save_figure(drawn, tmp_path / "figure", {"runs": ["a"]}):
        assert path.stat().st_size
    assert len(print_figure(drawn)), "as a notebook shows it"
    assert not any(text.get_usetex() or text.get_parse_math() for text in drawn.findobj(Text))
    assert drawn.get_figheight() < 12
    shares = [axes.get_position() for axes in drawn.axes]
    assert all(share.width > 0.02 and share.height > 0.02 for share in shares), "names leave room for what they name"


@pytest.mark.parametrize("figure", ["projection", "recalls"])
def test_legends_name_every_class(figure: str) -> None:
    (legend,) = FIGURES[figure]().legends
    assert set(ODD) < set(names(legend.get_texts()))
    assert len(set(names(legend.get_texts()))) == COUNT


def test_ticks_name_every_class() -> None:
    (axes,) = plots.confusion(np.eye(COUNT, dtype=int), NAMES).axes
    assert names(axes.get_xticklabels())[: len(ODD)] == ODD
    assert len(set(names(axes.get_yticklabels()))) == COUNT


def test_long_names_lose_their_middle_and_stay_distinct() -> None:
    shown = shown_names([*LONG, LONG[0]], 20)
    assert shown[0] == shown[3]
    assert len(set(shown[:3])) == 3
    assert shown[2].startswith("中文")
    assert columns_of(shown[2]) <= 20
    assert shown_names(ODD, 20) == ODD


@pytest.mark.parametrize(
    ("long", "parts"),
    [
        (
            ["squamous cell carcinoma keratinising", "squamous cell carcinoma non-keratinising"],
            ["keratinising", "non-kera"],
        ),
        ([f"tumour of the nervous system, type {i}, resected" for i in (1, 12, 13)], ["1,", "12,", "13,"]),
        (["x" * 80, "x" * 40 + "y" + "x" * 39, "x" * 40 + "yz" + "x" * 38], ["xx", "yx", "yz"]),
    ],
)
def test_long_names_keep_what_tells_them_apart(long: list[str], parts: list[str]) -> None:
    shown = shown_names(long)
    assert all(part in name.split("…", 1)[1] for part, name in zip(parts, shown, strict=True)), shown
    assert len(set(shown)) == len(long)
    assert max(map(columns_of, shown)) <= LONGEST
    assert not any("(" in name for name in shown), "no number that nobody explains"


def test_names_that_differ_in_spaces_are_numbered() -> None:
    assert shown_names(["a  b", "a b", "c"]) == ["a b (1)", "a b (2)", "c"]


def test_only_our_own_names_are_spelt_out() -> None:
    assert title_of("linear_probe") == "linear probe"
    assert title_of("linear_probe, a_b") == "linear probe, a_b"
    assert title_of("my_$") == "my_$"


def test_characters_that_our_font_lacks_come_from_one_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = (FT2Font(findfont(name)) for name in (FONT, "STIXGeneral"))
    lacking = sorted(set(other.get_charmap()) - set(ours.get_charmap()))
    monkeypatch.setattr("palkit.studies.plots.style.findSystemFonts", lambda: [findfont(FONT), findfont("STIXGeneral")])
    character = chr(next(code for code in lacking if chr(code).isprintable()))
    assert fonts_for(f"a{character}") == (FONT, "STIXGeneral")
    assert fonts_for("aé\n") == (FONT,)
    figure = plots.confusion(np.eye(2, dtype=int), ["a", character])
    print_figure(figure)
    assert figure.axes[0].get_xticklabels()[1].get_fontfamily() == [FONT, "STIXGeneral"]


def test_a_character_that_no_font_has_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("palkit.studies.plots.style.findSystemFonts", list)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            print_figure(plots.confusion(np.eye(2, dtype=int), ["a", "𒀀"]))
    assert [record.getMessage()[:36] for record in caplog.records] == ["No font of this machine has 𒀀: figur"]


LATEX: dict[str, str] = {
    "a_b$": r"a\_b\$",
    "<x>": r"\textless{}x\textgreater{}",
    "50 % & #": r"50 \% \& \#",
    r"\x{}": r"\textbackslash x\{\}",
    "[a|b]": r"{[}a\textbar{}b]",
    "*": "{*}",
    'say "hi"': r"say \textquotedbl{}hi\textquotedbl{}",
    "two\nlines": "two lines",
    "中文": "中文",
}


@pytest.mark.parametrize("where", ["index", "columns", "cell"])
def test_names_in_latex_are_text(where: str, tmp_path: Path) -> None:
    """A row that begins with [ or * would be an option of the line break before it."""
    written: dict[str, Any] = {
        "index": pd.DataFrame({"x": 0.5}, index=list(LATEX)),
        "columns": pd.DataFrame([[0.5] * len(LATEX)], index=["row"], columns=list(LATEX)),
        "cell": pd.DataFrame({"x": list(LATEX)}),
    }
    _, path = plots.table_files(written[where], tmp_path / "table")
    text = path.read_text(encoding="utf-8")
    for escaped in LATEX.values():
        assert escaped in text
    assert not any(line.startswith(("[", "*")) for line in text.splitlines())
    assert ("0.500" in text) == (where != "cell")
