"""Bars on a terminal: stage, count, rate; a stage that begins again starts from nothing; silence elsewhere."""

from io import StringIO

from rich.console import Console

from palkit.progress import bars


def test_bars_show_stage_count_and_rate() -> None:
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    with bars(console) as progress:
        for done in (10, 20, 30):
            progress("embedding", done, 100)
    text = output.getvalue()
    assert "embedding" in text
    assert "30/100" in text
    assert "/s" in text
    assert "left" in text


def test_a_stage_that_begins_again_is_not_finished() -> None:
    output = StringIO()
    with bars(Console(file=output, force_terminal=True, width=120)) as progress:
        progress("scoring", 100, 100)
        progress("scoring", 40, 100)
    assert "40/100" in output.getvalue()


def test_nothing_is_drawn_where_there_is_no_terminal() -> None:
    output = StringIO()
    with bars(Console(file=output, force_terminal=False)) as progress:
        progress("embedding", 10, 100)
    assert not output.getvalue().strip()
