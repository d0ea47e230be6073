"""Measurements of selection cost: read back, set beside the peer's, refused when broken."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from palkit.errors import DataError
from palkit.storage.files import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))
from scaling import along_axes, beside_peer, bound, exponents, growth, load_measurements

JOB = {"n": 1000, "d": 8, "c": 4, "b": 10, "bandwidth": 1e6, "flops": 1e9, "features": "noise"}


def line(strategy: str, library: str, **values: Any) -> str:
    return json.dumps({"strategy": strategy, "library": library, **JOB, **values})


def test_bound_counts_bytes_and_products() -> None:
    assert bound({**JOB, "strategy": "entropy"}) == 1000 * 4 * 4 / 1e6
    assert bound({**JOB, "strategy": "power_entropy"}) == 1000 * 4 * 4 / 1e6
    assert bound({**JOB, "strategy": "clue"}) == 1000 * 8 * 4 / 1e6
    assert bound({**JOB, "strategy": "coreset"}) == 10 * 1000 * 8 * 4 / 1e6
    assert bound({**JOB, "strategy": "badge"}) == 10 * 1000 * 12 * 4 / 1e6
    assert bound({**JOB, "strategy": "maxherding"}) == 1000 * 1000 * 8 / 1e9
    assert bound({**JOB, "strategy": "maxherding", "n": 10**6}) == 35_000**2 * 8 / 1e9


def test_beside_peer(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [
        line("badge", "palkit", seconds=0.5, bytes=2 * 2**20, picks=[1, 2, 3, 4]),
        line("badge", "scikit-activeml", seconds=5.0, bytes=40 * 2**20, picks=[4, 3, 9, 8]),
        line("coreset", "palkit", seconds=1.0, bytes=2**10, picks=[1]),
        line("coreset", "scikit-activeml", error="MemoryError"),
        line("random", "palkit", seconds=0.1, bytes=0, picks=[1]),
    ]
    path.write_text("\n".join(rows))
    table = beside_peer(load_measurements(path))
    assert table.index.tolist() == ["badge", "coreset"]
    assert table.loc["badge"].tolist() == [0.5, 5.0, 10.0, 2.0, 40.0, 20.0, 0.5]
    assert math.isnan(table.loc["coreset", "times faster"])
    path.write_text("\n".join([*rows, rows[0]]))
    with pytest.raises(DataError, match="more than once"):
        beside_peer(load_measurements(path))


@pytest.mark.parametrize("bad", ["{", "[]", '{"strategy": "badge"}'])
def test_broken_lines_are_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(line("badge", "palkit", seconds=1.0, bytes=1) + "\n" + bad)
    with pytest.raises(DataError, match=r"m\.jsonl, line 2"):
        load_measurements(path)
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read.*benchmarks/strategies\.py"):
        load_measurements(tmp_path / "none.jsonl")


def test_growth_is_told_along_each_axis() -> None:
    """Cost is 1e-6 N C^2 for one strategy, which takes no measurable memory, and 1e-3 B for another."""
    sizes = [(1_000, 10, 100), (10_000, 10, 100), (1_000, 100, 100), (1_000, 10, 10), (1_000, 10, 1_000)]
    rows = [
        {"strategy": name, "n": n, "c": c, "b": b, "seconds": seconds, "bytes": 1e8 * n if name == "coreset" else 1}
        for n, c, b in [*sizes, (5_000, 50, 50)]  # the last lies on no axis
        for name, seconds in (("epig", 1e-6 * n * c * c), ("coreset", 1e-3 * b))
    ]
    lines = along_axes(pd.DataFrame(rows))
    assert lines.groupby(["strategy", "axis"])["size"].agg(list).to_dict() == {
        (name, axis): sizes
        for name in ("coreset", "epig")
        for axis, sizes in (("n", [1_000, 10_000]), ("c", [10, 100]), ("b", [10, 100, 1_000]))
    }
    found = exponents(lines)
    assert found.loc["epig", "seconds"].tolist() == pytest.approx([1, 2, 0])
    assert found.loc["epig", "bytes"].isna().all(), "below what is told from what does not grow"
    assert found.loc["coreset", "bytes"].tolist() == pytest.approx([1, 0, 0])
    assert found.loc["coreset", ("seconds", "b")] == pytest.approx(1), "of the two that take long enough"
    first, second = growth(lines).axes
    assert [text.get_text() for text in first.texts] == ["N 0.0, C 0.0, B 1.0"]
    assert [len(line.get_xdata()) for line in second.lines] == [2, 2, 3]
