"""Image grids: every image once, in pandas' order; what the browser gets and asks for; pictures where nobody looks."""

import asyncio
import json
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets import Widget
from PIL import Image

from palkit.data import ArrayImages, FileImages, load_dataset
from palkit.errors import ConfigError, DataError
from palkit.widgets.grid import ImageGrid, caption_text
from palkit.widgets.tables import bought_table, image_table, mistakes, most_bought, show_most_bought
from palkit.widgets.thumbnails import COLUMNS, Thumbnails, fit_square, sheet

VALUES = {
    "number": st.none() | st.floats(allow_nan=True) | st.sampled_from([0.0, 1.0]),
    "whole": st.integers(-3, 3),
    "text": st.none() | st.text(max_size=3),
    "boolean": st.booleans(),
    "perhaps": st.none() | st.booleans(),
    "mixed": st.none() | st.integers(0, 12) | st.text("0123", max_size=2),
}


def grey(count: int, size: int = 6) -> ArrayImages:
    """Image i is a square of grey level i."""
    return ArrayImages(np.repeat(np.arange(count, dtype=np.uint8), size * size).reshape(count, size, size))


def table_of(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"row": rng.permutation(count), "p": rng.random(count), "name": [f"n{i % 7}" for i in range(count)]}
    )


def tell(grid: ImageGrid, **message: object) -> None:
    """As the browser does."""
    grid.widget._handle_custom_msg(message, [])


def cells_of(grid: ImageGrid) -> np.ndarray:
    """(n, side, side, 3) what the browser cuts out of the sheet."""
    page, whole = grid.widget.page, np.asarray(Image.open(BytesIO(grid.widget.sheet)))
    side, columns = page["side"], page["sheet_columns"]
    assert whole.shape[1] == side * columns
    places = [divmod(number, columns) for number in range(len(page["items"]))]
    return np.stack([whole[r * side : (r + 1) * side, c * side : (c + 1) * side] for r, c in places])


@pytest.mark.parametrize("kind", list(VALUES))
@given(data=st.data())
@settings(max_examples=30)
def test_pages_hold_every_image_once_in_order(kind: str, data: st.DataObject) -> None:
    """Against Python's own stable sort, with missing values set aside."""
    values = data.draw(st.lists(VALUES[kind], max_size=40))
    ascending, page_size = data.draw(st.booleans()), data.draw(st.integers(1, 12))
    table = pd.DataFrame({"row": range(len(values)), "x": pd.Series(values, dtype=object)})
    if kind in ("number", "whole", "boolean"):
        table["x"] = table["x"].astype({"number": float, "whole": int, "boolean": bool}[kind])
    grid = ImageGrid(grey(40), table, sort="x", ascending=ascending, page_size=page_size)
    pages = [grid.positions(number) for number in range(1, grid.pages + 1)]
    assert all(len(page) == page_size for page in pages[:-1])
    assert len(pages[-1]) >= (len(values) > 0)

    missing = [i for i, value in enumerate(values) if value is None or value != value]
    known = [i for i in range(len(values)) if i not in missing]
    as_text = kind == "mixed" and {type(values[i]) for i in known} == {int, str}

    def key(i: int) -> object:
        return str(values[i]) if as_text else values[i]

    # Python keeps ties in their order also when it sorts in reverse.
    expected = sorted(known, key=key, reverse=not ascending) + missing
    assert np.concatenate(pages).tolist() == expected


def test_without_a_column_the_table_gives_the_order() -> None:
    table = table_of(10)
    assert ImageGrid(grey(10), table).positions(1).tolist() == list(range(10))
    assert ImageGrid(grey(10), table, ascending=False).positions(1).tolist() == list(range(10))[::-1]


def test_the_browser_gets_one_page_and_turns_it() -> None:
    table = table_of(100).set_index(np.arange(100) + 1000)
    grid = ImageGrid(grey(100), table, caption=["name"], bar="p", page_size=48, side=24, label="<Pool>")
    page = grid.widget.page
    assert (page["number"], page["pages"], page["first"], page["total"], page["label"]) == (1, 3, 1, 100, "<Pool>")
    assert page["columns"] == ["p", "name"]
    assert json.loads(json.dumps(page)) == page

    def levels() -> list[int]:
        return cells_of(grid)[:, 12, 12, 0].tolist()

    assert levels() == pytest.approx(table["row"][:48].tolist(), abs=2)
    for message, number in (
        ({"type": "turn", "by": 1}, 2),
        ({"type": "turn", "by": 1}, 3),
        ({"type": "turn", "by": 1}, 3),
        ({"type": "page", "number": 1}, 1),
        ({"type": "turn", "by": -1}, 1),
        ({"type": "page", "number": 99}, 3),
    ):
        tell(grid, **message)
        assert grid.number == grid.widget.page["number"] == number
    assert levels() == pytest.approx(table["row"][96:].tolist(), abs=2)
    tell(grid, type="sort", column="p", ascending=False)
    best = table.sort_values("p", ascending=False)
    assert grid.number == 1
    assert levels() == pytest.approx(best["row"][:48].tolist(), abs=2)
    items = grid.widget.page["items"]
    assert [item["caption"] for item in items] == [[name] for name in best["name"][:48]]
    assert [item["bar"] for item in items] == best["p"][:48].tolist()
    tell(grid, type="sort", column="no such", ascending=True)
    assert grid.sort == "p"


def test_selection_is_the_position_in_the_table_whatever_the_order() -> None:
    table, told = table_of(30), []
    grid = ImageGrid(grey(30), table, sort="p", page_size=10)
    grid.on_select(told.append)
    tell(grid, type="turn", by=1)
    page = grid.widget.page
    wanted = table["p"].argsort().to_numpy()[13]
    assert page["items"][3]["position"] == wanted
    tell(grid, type="select", position=int(wanted), generation=page["generation"])
    tell(grid, type="sort", column="name", ascending=False)
    assert told == [wanted]
    assert grid.selected == grid.widget.selected == wanted
    grid.show(table[:5])
    assert grid.selected is grid.widget.selected is None
    tell(grid, type="select", position=int(wanted), generation=page["generation"])
    assert told == [wanted], "a click on an image that has been replaced counts for nothing"


def test_other_images_keep_the_column_that_is_still_there() -> None:
    grid = ImageGrid(grey(30), table_of(30), sort="p", ascending=False, page_size=10)
    tell(grid, type="page", number=3)
    other = table_of(12).assign(p=np.arange(12) / 20)
    grid.show(other)
    assert (grid.sort, grid.number, len(grid)) == ("p", 1, 12)
    assert grid.positions(1).tolist() == list(range(11, 1, -1))
    grid.show(other.drop(columns="p"))
    assert (grid.sort, grid.widget.page["sort"]) == (None, None)
    assert grid.widget.page["columns"] == ["name"]


def test_an_empty_table_is_an_empty_grid() -> None:
    grid = ImageGrid(grey(3), pd.DataFrame({"row": [], "p": []}), bar="p")
    assert (repr(grid), grid.pages, grid.widget.page["total"], grid.widget.sheet) == (
        "ImageGrid of 0 images",
        1,
        0,
        b"",
    )
    assert "No images" in grid.widget.page["empty"]
    assert "No images" in grid.picture().texts[0].get_text()
    assert grid._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")


def test_an_empty_grid_shows_images_that_come_later() -> None:
    grid = ImageGrid(grey(3), pd.DataFrame({"row": []}))
    grid.show(pd.DataFrame({"row": [2, 1]}))
    assert len(grid.widget.page["items"]) == 2


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t.drop(columns="row"), {}, r"lacks the column 'row'.*columns: p, name"),
        (lambda t: t, {"caption": ["nmae"]}, "column of the caption 'nmae'.*Did you mean 'name'"),
        (lambda t: t, {"bar": "pp"}, "column of the bar 'pp'"),
        (lambda t: t, {"sort": "nam"}, "sort by 'nam'.*Did you mean 'name'"),
        (lambda t: t, {"sort": "row"}, "sort by 'row'"),
        (lambda t: t.assign(p=1.5), {"bar": "p"}, r"'p' of the bar holds 1.5.*\[0, 1\]"),
        (lambda t: t, {"bar": "name"}, "'name' of the bar holds n0"),
        (lambda t: t.assign(row=t["row"] + 1), {}, "'row' holds 8, but there are 8 images"),
        (lambda t: t.assign(row=-1), {}, "'row' holds -1"),
        (lambda t: t.assign(row=0.5), {}, "'row' holds float64"),
        (lambda t: t, {"page_size": 0}, "page_size is 0"),
        (lambda t: t, {"side": 0}, "side is 0"),
    ],
)
def test_what_cannot_be_shown_is_refused(change, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageGrid(grey(8), change(table_of(8)), **options)


def test_bars_may_be_missing() -> None:
    grid = ImageGrid(grey(2), pd.DataFrame({"row": [0, 1], "p": [np.nan, 1.0]}), bar="p")
    assert [item["bar"] for item in grid.widget.page["items"]] == [None, 1.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.123"),
        (1234.5678, "1,235"),
        (7, "7"),
        (True, "yes"),
        ("<b>", "<b>"),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_captions_are_short(value: object, text: str) -> None:
    assert caption_text(value) == text


def test_nobody_looking_means_no_widget(monkeypatch: pytest.MonkeyPatch) -> None:
    """papermill and nbclient would store it in the notebook."""
    opened, open_ = [], Widget.open
    monkeypatch.setattr(Widget, "open", lambda self: (opened.append(self), open_(self)))
    grid = ImageGrid(grey(80), table_of(80), caption=["name"], bar="p")
    bundle = grid._repr_mimebundle_()
    grid.show(table_of(40))
    grid.picture()
    assert set(bundle) == {"text/plain", "image/png"}
    assert bundle["text/plain"] == "ImageGrid of 80 images"
    assert not opened
    monkeypatch.setenv("PALKIT_WIDGETS", "live")
    live = grid._repr_mimebundle_()
    assert grid.widget in opened
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == grid.widget.model_id
    assert set(live) == {"text/plain", "image/jpeg", "application/vnd.jupyter.widget-view+json"}


def test_pictures_are_small_and_the_same_every_time() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (48, 9, 9, 3), dtype=np.uint8)
    photos = np.stack(
        [np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC)) for image in smooth]
    )
    grid = [ImageGrid(ArrayImages(photos), table_of(48), caption=["name"], bar="p") for _ in range(2)]
    first, second = (g._repr_mimebundle_()["image/png"] for g in grid)
    assert first == second
    assert len(first) < 150_000
    titles = [text.get_text() for text in grid[0].picture(limit=5, columns=3).axes[0].texts]
    assert len(titles) == 5
    assert titles[0] == f"n0, {100 * table_of(48)['p'][0]:.0f}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize("shape", [(28, 28), (10, 40), (40, 10), (100, 200), (72, 72), (1, 300)])
def test_thumbnails_keep_their_shape(shape: tuple[int, int]) -> None:
    """White on a black square of another shape would show; so would an image that is cropped."""
    square = fit_square(np.zeros((2, *shape, 3), dtype=np.uint8), 72)
    assert square.shape == (2, 72, 72, 3)
    dark = (square[0, ..., 0] == 0).nonzero()
    height, width = (np.ptp(axis) + 1 for axis in dark)
    assert max(height, width) == 72
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.15) or 1 in (height, width)
    assert abs((dark[0].min() + dark[0].max()) - 71) <= 1, "in the middle"
    assert abs((dark[1].min() + dark[1].max()) - 71) <= 1


def test_small_images_stay_crisp_and_large_ones_are_averaged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    assert (fit_square(image, 12)[0] == image[0].repeat(3, 0).repeat(3, 1)).all()
    board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)[None, ..., None].repeat(3, -1)
    assert np.unique(fit_square(board, 4)) == pytest.approx(127.5, abs=1)


def test_a_sheet_holds_the_thumbnails_and_neighbours_do_not_run_into_each_other() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (COLUMNS + 3, 3, 3, 3), dtype=np.uint8)
    thumbnails = fit_square(coarse, 24)
    whole = np.asarray(Image.open(BytesIO(sheet(thumbnails)))).astype(int)
    assert whole.shape == (48, 24 * COLUMNS, 3)
    for number, thumbnail in enumerate(thumbnails):
        row, column = divmod(number, COLUMNS)
        cell = whole[24 * row :, 24 * column :][:24, :24]
        assert np.abs(cell - thumbnail).mean() < 3
        assert np.abs(cell - thumbnail).max() < 40


def test_thumbnails_are_decoded_once() -> None:
    asked: list[int] = []

    class Counting(ArrayImages):
        def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
            asked.extend(rows.tolist())
            return super().decode(rows, size)

    thumbnails = Thumbnails(Counting(grey(50).array), 8)
    rows = np.array([5, 3, 5, 40])
    assert thumbnails.take(rows)[:, 4, 4, 0].tolist() == rows.tolist()
    assert thumbnails.take(np.array([3, 4]))[:, 4, 4, 0].tolist() == [3, 4]
    assert sorted(asked) == [3, 4, 5, 40]


def test_only_the_newest_page_is_made_and_the_loop_is_free_meanwhile() -> None:
    """Ten pages asked for at once, of a decoder that needs a while: few of their images are decoded."""
    asked: list[int] = []

    class Slow(ArrayImages):
        def decode(self, rows: np.ndarray, size: int) -> np.ndarray:
            assert threading.current_thread() is not threading.main_thread()
            time.sleep(0.01)
            asked.extend(rows.tolist())
            return super().decode(rows, size)

    grid = ImageGrid(Slow(grey(240).array), pd.DataFrame({"row": range(240)}), page_size=20)

    async def browse() -> None:
        seen = []
        grid.widget.observe(lambda change: seen.append(change["new"]["number"]), "page")
        for _ in range(9):
            tell(grid, type="turn", by=1)
        assert not seen
        while grid.widget.page["number"] != 10:
            await asyncio.sleep(0.005)
        assert seen == [10]

    asyncio.run(browse())
    assert {*range(180, 200)} <= set(asked)
    assert len(asked) < 120


def test_a_bad_file_is_named_and_other_pages_still_show(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{i}.png" for i in range(4))
    for path in paths[:3]:
        Image.new("RGB", (90, 60), "red").save(path)
    paths[3].write_bytes(b"no image")
    grid = ImageGrid(FileImages(paths), pd.DataFrame({"row": range(4)}), page_size=2, side=16)
    assert not grid.widget.problem
    tell(grid, type="turn", by=1)
    assert "3.png cannot be read" in grid.widget.problem
    tell(grid, type="turn", by=-1)
    assert not grid.widget.problem
    assert cells_of(grid).mean(axis=(0, 1, 2)) == pytest.approx([254, 0, 0], abs=3)


def test_mistakes_are_the_wrong_ones_surest_first() -> None:
    pool = load_dataset("digits")
    rows = np.arange(6)
    decisions = np.zeros((6, 10))
    decisions[np.arange(6), pool.labels[rows]] = 1
    for i, score in ((2, 3.0), (4, 5.0)):
        decisions[i, (pool.labels[i] + 1) % 10] = score
    table = mistakes(pool, rows, decisions)
    assert table["row"].tolist() == [4, 2]
    assert table["margin"].tolist() == [4.0, 2.0]
    assert table["class"].tolist() == [pool.class_names[pool.labels[i]] for i in (4, 2)]
    assert table["predicted"].tolist() == [pool.class_names[(pool.labels[i] + 1) % 10] for i in (4, 2)]


def test_what_was_bought_is_found_by_id(capsys: pytest.CaptureFixture[str]) -> None:
    pool = load_dataset("digits")
    a, b, c, d = (pool.ids[i] for i in (7, 3, 5, 9))
    bought = [("r1", "badge", 0, a), ("r1", "badge", 1, b), ("r1", "badge", 2, c)]
    bought += [("r2", "random", 0, a), ("r2", "random", 1, d), ("r2", "random", 2, b)]
    selections = pd.DataFrame(bought, columns=["run", "strategy", "round", "id"]).assign(dataset="digits")
    table = most_bought(pool, selections)
    assert table["row"].tolist() == [3, 9, 5], "by runs, then earliest; the first batch does not count"
    assert table["runs"].tolist() == table["strategies"].tolist() == [2, 1, 1]
    assert table["share"].tolist() == [1, 0.5, 0.5]
    assert table["first"].tolist() == [1, 1, 2]
    one = bought_table(pool, selections[:3].assign(label=pool.labels[[7, 3, 5]]))
    assert one["row"].tolist() == [7, 3, 5]
    assert one["answer"].tolist() == image_table(pool, np.array([7, 3, 5]))["class"].tolist()
    with pytest.raises(DataError, match="has no image elsewhere"):
        most_bought(pool, selections.assign(id="elsewhere"))

    gone = selections.assign(dataset="/no/such/folder")
    show_most_bought(pd.concat([gone, selections]))
    shown = capsys.readouterr().out
    assert "Not shown for /no/such/folder: there is no folder" in shown
    assert "ImageGrid of 3 images" in shown
