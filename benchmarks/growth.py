"""How the cost of a choice grows: CPU seconds and memory of every strategy against N, C and B, with exponents.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/growth.py            # about 20 minutes of one core
    OMP_NUM_THREADS=1 python benchmarks/growth.py --strategies badge,bait --out /tmp/growth
    python benchmarks/growth.py --draw                                 # the figure anew, from the table

One of N (rows), C (classes) and B (batch size) grows while the others stay; features are clusters of D = 64 numbers,
100 rows are labelled. A measurement is a process of its own, on one thread: CPU seconds of the call alone, which hold
beside other work, the best of three unless it is slow, after one call on a small pool; and the peak of resident memory
above what the process held before, which includes features, probabilities and stochastic passes. A point that would
take more than --limit seconds, by the two points before it, is skipped, and so is what comes after one that has run out
of memory; the table says which. Linux only.
"""

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scaling import COVERAGE
from strategies import dropout_passes, make_features, make_head, peak_bytes, probabilities, reset_peak

from palkit.models.devices import is_out_of_memory
from palkit.storage.files import REPOSITORY
from palkit.storage.formats import read_table, write_table
from palkit.strategies import STRATEGIES, select
from palkit.strategies.coverage import MAX_ROWS
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.studies.plots import save_figure, style

WIDTH, KNOWN = 64, 100
SIZES = {
    "n": (1_000, 3_162, 10_000, 31_623, 100_000, 1_000_000),
    "c": (10, 32, 100, 316, 1_000, 10_000),
    "b": (10, 32, 100, 316, 1_000),
}
AXES = {"n": "rows N", "c": "classes C", "b": "batch size B"}
SAMPLING = {*COVERAGE, "auto", "best_batch_oracle"}  # these see a sample of MAX_ROWS, and some a whole pool beside it
PASSES_ROWS = 2_000  # against C, for strategies that look at stochastic passes: 1.6 GB of them
FLOORS = {"seconds": 0.05, "bytes": 2**24}  # below these a cost is mostly what does not grow
TABLE, FIGURE = "measurements.parquet", "growth"


class Point(NamedTuple):
    """One measurement: strategy, rows, classes and batch size."""

    strategy: str
    n: int = 10_000
    c: int = 10
    b: int = 100


def chosen(point: Point, scores: PoolScores) -> torch.Tensor:
    """The strategy's picks from these scores, of which the first KNOWN rows are labelled."""
    labelled = LabelledSet(torch.arange(KNOWN), torch.arange(KNOWN) % point.c)
    truth = {"labels": torch.arange(point.n) % point.c} if STRATEGIES[point.strategy].is_oracle else {}
    return select(point.strategy, scores, labelled, point.b, torch.Generator().manual_seed(0), **truth)


def scores_of(point: Point) -> PoolScores:
    """Clustered features, the probabilities of a linear head, and stochastic passes if the strategy looks at them."""
    features = make_features("clusters", point.n, WIDTH)
    head, dropout = make_head(features, point.c), STRATEGIES[point.strategy].dropout
    passes = None if dropout is None else dropout_passes(features, head, dropout.passes, dropout.rate)
    return PoolScores(torch.from_numpy(features), torch.from_numpy(probabilities(features, head)), passes)


def measured(point: Point, limit: float, memory: float) -> dict[str, Any]:
    """CPU seconds and bytes of a point, in this process, which is not to be used for anything else."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    small = Point(point.strategy, n=500, b=5)
    chosen(small, scores_of(small))  # what is imported late
    scores = scores_of(point)
    reset_peak()
    held, times = peak_bytes(), list[float]()
    try:
        while len(times) < 3 and sum(times) < 3:
            began = time.process_time()
            chosen(point, scores)
            times.append(time.process_time() - began)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {"note": "memory"}
    return {"seconds": min(times), "bytes": peak_bytes() - held, "note": ""}


def expected(sizes: list[int], seconds: list[float], size: int) -> float:
    """Seconds at the next size, by the last two measurements; by one, in proportion."""
    slope = 1.0
    if len({*sizes[-2:]}) > 1:
        slope = max(0.0, math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2]))
    return seconds[-1] * (size / sizes[-1]) ** slope


def sweep(name: str, limit: float, memory: float) -> Iterator[dict[str, Any]]:
    """Every measurement of a strategy; a point that lies on two axes is measured once."""
    known: dict[Point, dict[str, Any]] = {}
    for axis, sizes in SIZES.items():
        rows = {"n": PASSES_ROWS} if axis == "c" and STRATEGIES[name].dropout else {}
        done: list[int] = []
        seconds: list[float] = []
        note = ""
        for size in sizes:
            point = Point(name)._replace(**rows)._replace(**{axis: size})
            seen = min(size, MAX_ROWS) if axis == "n" and name in SAMPLING else size
            if not note and done and (guess := expected(done, seconds, seen)) > limit:
                note = f"about {guess:.0f} s"
            if note:
                found = {"note": note}
            elif point in known:
                found = known[point]
            else:
                with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
                    try:
                        found = process.submit(measured, point, limit, memory).result()
                    except BrokenProcessPool:
                        found = {"note": "killed"}
            known[point], note = found, found["note"]
            if not note:
                done, seconds = [*done, seen], [*seconds, found["seconds"]]
            yield {**point._asdict(), "axis": axis, "size": size, "seconds": math.nan, "bytes": math.nan, **found}


def slopes(line: pd.DataFrame, cost: str) -> tuple[float, float]:
    """Exponent of a cost, by least squares over the logarithms of what is above its floor, and of its steepest step.

    Args:
        line: columns `size` and the cost, one strategy against one axis; NaN where it was not measured.
        cost: "seconds" or "bytes".
    """
    upper = line[line[cost] >= FLOORS[cost]].sort_values("size")
    if len(upper) < 2:
        return math.nan, math.nan
    x, y = np.log(upper["size"].to_numpy(float)), np.log(upper[cost].to_numpy(float))
    return float(np.polyfit(x, y, 1)[0]), float((np.diff(y) / np.diff(x)).max())


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """One row per strategy, axis and cost: `exponent` and `steepest`; NaN if fewer than two points are large enough."""
    rows = []
    for (strategy, axis), line in table.groupby(["strategy", "axis"]):
        for cost in FLOORS:
            exponent, steepest = slopes(line, cost)
            rows.append((strategy, axis, cost, exponent, steepest))
    return pd.DataFrame(rows, columns=["strategy", "axis", "cost", "exponent", "steepest"])


@style.styled
def draw(table: pd.DataFrame) -> Figure:
    """A row per strategy: exponents of time and memory in N, C and B, and the seconds of the largest pool."""
    found = exponents(table)
    against_n = table[(table["axis"] == "n") & table["seconds"].notna()].sort_values("size")
    largest = against_n.groupby("strategy").last()
    names = list((largest["seconds"] / largest["size"]).sort_values(ascending=False).index)
    figure = style.PlainFigure(figsize=(style.WIDTH, 0.17 * len(names) + 1.1), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 4, sharey=True, width_ratios=(1.2, 1.2, 1.2, 1)))
    for axes, (axis, label) in zip(panels, AXES.items(), strict=False):
        for place, name in enumerate(names):
            colour, marker = style.strategy_style(name)
            for cost, shift in (("seconds", 0.15), ("bytes", -0.15)):
                here = (found["strategy"] == name) & (found["axis"] == axis) & (found["cost"] == cost)
                exponent, steepest = found.loc[here, ["exponent", "steepest"]].to_numpy()[0]
                if cost == "seconds":
                    axes.plot([exponent, steepest], [place + shift] * 2, color=colour, linewidth=0.8)
                face = colour if cost == "seconds" else "white"
                axes.plot(exponent, place + shift, marker, color=colour, markerfacecolor=face, markersize=4)
        for power in (1, 2):
            axes.axvline(power, color="#BBBBBB", linewidth=0.7, zorder=0)
        axes.set(xlabel=f"exponent in {label}", xlim=(-0.35, 2.6), xticks=(0, 1, 2))
        axes.grid(visible=True, axis="y", linewidth=0.3)
    for place, name in enumerate(names):
        colour, marker = style.strategy_style(name)
        size, seconds = largest.loc[name, ["size", "seconds"]]
        panels[3].plot(seconds, place, marker, color=colour, markersize=4)
        if size < max(SIZES["n"]):
            panels[3].annotate(f"{size:,.0f} rows", (seconds, place), (-5, 0), textcoords="offset points",
                               ha="right", va="center_baseline", fontsize=6)  # fmt: skip
    style.log_axis(panels[3], (1.0,))
    panels[3].set_xlabel("seconds, $10^6$ rows")
    panels[3].grid(visible=True, axis="both", linewidth=0.3)
    panels[0].set_yticks(range(len(names)), style.shown_names(map(style.title_of, names)))
    panels[0].set_ylim(-0.7, len(names) - 0.3)
    look: dict[str, Any] = {"color": style.INK, "marker": "o", "markersize": 4}
    time_key = style.legend_key("time, to steepest step", **look, linestyle="-")
    memory_key = style.legend_key("memory beyond the scores", **look, markerfacecolor="white")
    style.legend_below(figure, [time_key, memory_key])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", help="names, comma separated; all")
    parser.add_argument("--limit", type=float, default=60, help="CPU seconds of one selection")
    parser.add_argument("--memory", type=float, default=6, help="GB of one measurement, scores included")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw the table that is there")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "figures/growth")
    options = parser.parse_args()
    if not options.draw:
        rows = []
        for name in options.strategies.split(",") if options.strategies else sorted(STRATEGIES):
            for row in sweep(name, options.limit, options.memory):
                rows.append(row)
                cost = f"{row['seconds']:8.3f} s {row['bytes'] / 2**20:6.0f} MB"
                print(f"{name:22} {row['axis']} = {row['size']:<9,} {row['note'] or cost}", flush=True)
            write_table(pd.DataFrame(rows), options.out / TABLE)
    table = read_table(options.out / TABLE)
    save_figure(draw(table), options.out / FIGURE, {"made_from": TABLE})
    shown = exponents(table).pivot(index="strategy", columns=["cost", "axis"], values="exponent")
    print(shown.round(2).to_string())


if __name__ == "__main__":
    main()
