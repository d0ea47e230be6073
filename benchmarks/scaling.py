"""Measurements of selection cost by `strategies.py`, beside what the machine allows; notebook 05 reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from palkit.errors import DataError
from palkit.strategies.coverage import MAX_ROWS
from palkit.studies.plots import style
from palkit.studies.plots.selection import PANELS_PER_ROW

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
AXES = {"n": ("#0072B2", "o"), "c": ("#D55E00", "s"), "b": ("#009E73", "^")}  # colour and marker
FLOORS = {"seconds": 0.05, "bytes": 16 * MEGABYTE}  # below these a cost is mostly what does not grow


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


def along_axes(table: pd.DataFrame) -> pd.DataFrame:
    """Measurements in which one of N, C and B differs from the commonest values: `axis` and `size` beside the rest.

    Those at the commonest values are on every axis.
    """
    common = table[list(AXES)].mode().iloc[0]
    lines = []
    for axis in AXES:
        others = [other for other in AXES if other != axis]
        line = table[(table[others] == common[others]).all(axis=1)]
        lines.append(line.assign(axis=axis, size=line[axis]))
    return pd.concat(lines, ignore_index=True).sort_values(["strategy", "axis", "size"])


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Powers of N, C and B by which each strategy's `seconds` and `bytes` grow; NaN where too little is measured.

    Least squares over the logarithms of costs above `FLOORS`, of which there must be two, to one decimal.

    Args:
        table: of `along_axes`.
    """
    found = {}
    for cost, floor in FLOORS.items():
        for (name, axis), line in table[table[cost] >= floor].groupby(["strategy", "axis"]):
            if len(line) > 1:
                found[name, cost, axis] = np.polyfit(np.log(line["size"]), np.log(line[cost]), 1)[0]
    columns = pd.MultiIndex.from_product([FLOORS, AXES])
    powers = pd.Series(found).unstack([1, 2]).reindex(index=sorted(table["strategy"].unique()), columns=columns)
    return powers.round(1) + 0  # no -0.0


@style.styled
def growth(table: pd.DataFrame) -> Figure:
    """Seconds of a selection against N, C and B, one panel per strategy, with the exponents in which they grow.

    Args:
        table: of `along_axes`.
    """
    powers = exponents(table)["seconds"]
    figure, panels = style.side_by_side(len(powers), 1.35, PANELS_PER_ROW, sharex=True)
    for axes, name in zip(panels, powers.index, strict=True):
        for axis, (colour, marker) in AXES.items():
            line = table[(table["strategy"] == name) & (table["axis"] == axis)]
            axes.plot(line["size"], line["seconds"], color=colour, marker=marker, markersize=3)
        text = ", ".join(f"{axis.upper()} {power:.1f}" for axis, power in powers.loc[name].dropna().items())
        axes.text(0.04, 0.95, text, transform=axes.transAxes, va="top", fontsize=6)
        axes.set(xscale="log", yscale="log", ylim=(1e-3, 1e3))
        axes.set_xticks((10, 1_000, 100_000), ("10", "1,000", "100,000"))
        axes.set_yticks((0.01, 1, 100), ("0.01", "1", "100"))
        axes.minorticks_off()
        axes.set_title(style.title_of(name), pad=2)
        axes.grid(visible=True)
    style.label_outer(panels, PANELS_PER_ROW, "N, C or B", "seconds")
    keys = [style.legend_key(axis.upper(), color=colour, marker=marker) for axis, (colour, marker) in AXES.items()]
    style.legend_below(figure, keys)
    return figure
