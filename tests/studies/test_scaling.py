"""Measurements of selection cost: read back, set beside the peer's, refused when broken."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from palkit.errors import DataError
from palkit.storage.files import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))
from scaling import beside_peer, bound, load_measurements

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
