"""Measurements of selection cost by `strategies.py`, beside what the machine allows; notebook 05 reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from palkit.errors import DataError
from palkit.strategies.coverage import MAX_ROWS

PALKIT, PEER = "palkit", "scikit-activeml"
ON_PROBS = (
    "entropy",
    "margin",
    "least_confidence",
    "power_entropy",
    "power_margin",
    "power_least_confidence",
    "falcun",
)
COVERAGE = ("probcover", "maxherding", "uherding")
MEGABYTE = 2**20


def bound(job: Mapping[str, Any]) -> float:
    """Seconds that the machine needs at least for one selection by the plain algorithm.

    `coreset` reads the features once per pick and `badge` features and probabilities; coverage multiplies
    every pair of rows once; what looks at probabilities only reads them once, and the rest reads the
    features once.

    Args:
        job: `strategy`, `n`, `d`, `c`, `b`, and the machine's `bandwidth` (bytes/s) and `flops` (1/s).
    """
    name, n, d, c = job["strategy"], job["n"], job["d"], job["c"]
    if name == "random":
        return 0.0
    if name in COVERAGE:
        return min(n, MAX_ROWS) ** 2 * d / job["flops"]
    columns = {"coreset": job["b"] * d, "badge": job["b"] * (c + d)}.get(
        name, c if name.removeprefix("power_") in ON_PROBS else d
    )
    return 4 * n * columns / job["bandwidth"]


def load_measurements(path: Path | str) -> pd.DataFrame:
    """One row per measurement: what was measured, `seconds` and `bytes` (NaN where it failed), `error`, `bound`.

    Raises:
        DataError: the file is missing or has a line that is not a measurement; names file and line.
    """
    rows = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error}); make it by: python benchmarks/strategies.py --out {path}"
        ) from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({"seconds": None, "bytes": None, "error": None, "picks": None, **row, "bound": bound(row)})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}, is not a measurement ({error!r}).") from error
    return pd.DataFrame(rows).astype({"seconds": float, "bytes": float})


def beside_peer(table: pd.DataFrame) -> pd.DataFrame:
    """Both libraries' seconds and MB per strategy, the ratios, and the share of picks in common.

    Args:
        table: of `load_measurements`, at most one measurement per strategy and library.

    Raises:
        DataError: a strategy was measured twice.
    """
    if table.duplicated(["strategy", "library"]).any():
        raise DataError("a strategy was measured more than once; select one pool size and number of classes.")
    sides = {library: table[table["library"] == library].set_index("strategy") for library in (PALKIT, PEER)}
    ours, theirs = (side.reindex(sorted(sides[PEER].index)) for side in sides.values())
    common = [
        len(set(a) & set(b)) / len(a) if isinstance(a, list) and isinstance(b, list) else float("nan")
        for a, b in zip(ours["picks"], theirs["picks"], strict=True)
    ]
    columns = {"s": ours["seconds"], "peer s": theirs["seconds"], "times faster": theirs["seconds"] / ours["seconds"]}
    columns |= {"MB": ours["bytes"] / MEGABYTE, "peer MB": theirs["bytes"] / MEGABYTE}
    columns["MB ratio"] = columns["peer MB"] / columns["MB"].clip(lower=1)
    return pd.DataFrame(columns).assign(**{"picks in common": common})
