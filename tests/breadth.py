"""Which of many cases run each time: the others are for `./run_all.sh campaign`."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], every: int) -> list[Any]:
    """All cases, of which one in `every` runs each time."""
    return [pytest.param(case, marks=pytest.mark.campaign if i % every else []) for i, case in enumerate(cases)]


def thinned(rows: Iterable[Any], columns: Iterable[Any], every: int) -> list[Any]:
    """All pairs, of which one in `every` runs each time: of each row and each column as many."""
    columns = list(columns)
    return [
        pytest.param(row, column, marks=[] if (i + j) % every == 0 else pytest.mark.campaign)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
