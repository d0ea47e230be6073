"""An estimate of what a sweep costs before it is started: its grid; time and memory as finished runs of a kind took."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from palkit.config import ExperimentConfig, config_from_dict, plain
from palkit.errors import ConfigError, PalkitError
from palkit.experiments.dispatch import share_of_machine
from palkit.experiments.runs import SECONDS
from palkit.experiments.sweep import Sweep
from palkit.experiments.watch import duration
from palkit.storage.files import read_json, runs_dir
from palkit.storage.formats import read_table

OVERHEAD_SECONDS = 2.0  # of a notebook in a warm kernel, see benchmarks/sweeps.py
RECENT = 500  # runs that are looked at
KIND = ("backbone", "image_size", "depth", "adapter")
COLUMNS = ["dataset", *KIND, "seconds", "peak_mb"]


def expected(sweep: Sweep, device: str, jobs: int | None = None) -> Iterator[str]:
    """Lines of text: the grid, its size, and time and memory as far as runs of the same kind are complete.

    A kind is a backbone, its image size and depth, and an adapter. Runs on the same data set count before those on
    others. Nothing is loaded, downloaded or started.

    Args:
        sweep: the grid.
        device: for every run.
        jobs: runs at a time, as for `palkit.experiments.dispatch.run_sweep`.

    Raises:
        PalkitError: a config of the grid is not valid; after the lines on those that are.
    """
    configs, wrong = [], []
    for _, values in sweep.parameters():
        try:
            configs.append(config_from_dict(values))
        except PalkitError as error:
            wrong.append(error)
    if not configs:
        raise wrong[0]
    yield from _grid(sweep, configs)
    workers, threads = share_of_machine(jobs, len(configs), device)
    yield f"on {device}: {workers} runs at a time with {threads} thread{'s' if threads > 1 else ''} each"
    done, seconds, memory, unknown = finished(), 0.0, 0.0, 0
    kinds = [(config.dataset, *_kind(plain(config)), config.rounds) for config in configs]
    table = pd.DataFrame(kinds, columns=["dataset", *KIND, "rounds"])
    for kind, members in table.groupby(["dataset", *KIND]):
        alike = done[(done[list(KIND)] == kind[1:]).all(axis=1)]
        here = alike[alike["dataset"] == kind[0]] if (alike["dataset"] == kind[0]).any() else alike
        name = f"  {kind[0]}, {kind[1]}, {kind[4]}: {len(members)} runs"
        if here.empty:
            unknown += len(members)
            yield f"{name}, cost not known: no run of this kind is complete"
            continue
        spent = members["rounds"] * here["seconds"].median() + OVERHEAD_SECONDS
        seconds, memory = seconds + spent.sum(), max(memory, here["peak_mb"].max())
        yield f"{name} of {spent.mean():,.0f} s, {here['peak_mb'].max():,.0f} MB, as {len(here)} finished ones took"
    if unknown < len(configs):
        yield f"memory: {workers * memory / 1024:,.1f} GB with {workers} runs at a time"
        more = f", and what {unknown} runs of unknown cost take" if unknown else ""
        yield f"time:   about {duration(seconds / workers)} from nothing{more}; what is complete is not repeated"
    if wrong:
        raise ConfigError(f"{len(wrong)} more runs are not valid, the first: {wrong[0]}")


def finished() -> pd.DataFrame:
    """Kind, mean seconds of a round and peak memory of the latest runs here that have any complete round."""
    paths = sorted(runs_dir().glob("*/*/rounds.parquet"), key=lambda path: path.stat().st_mtime)[-RECENT:]
    rows = []
    for path in paths:
        try:
            config, rounds = read_json(path.parent / "config.json"), read_table(path)
            seconds = float(rounds[list(SECONDS)].sum(axis=1).mean())
            rows.append((config["dataset"], *_kind(config), seconds, float(rounds["peak_mb"].max())))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # whoever needs that run is told what is wrong with it
    return pd.DataFrame(rows, columns=COLUMNS)


def _kind(config: Mapping[str, Any]) -> tuple[str, str, str, str]:
    backbone = config["backbone"]
    return backbone["name"], str(backbone["image_size"]), str(backbone["depth"]), config["adapter"]["name"]


def _grid(sweep: Sweep, configs: list[ExperimentConfig]) -> Iterator[str]:
    rounds = sum(config.rounds for config in configs)
    yield f"sweep {sweep.name}: {len(configs)} runs, {rounds:,} rounds"
    for key, values in sweep.grid.items():
        yield f"  {key}: {', '.join('none' if value is None else str(value) for value in values)}"
    if sweep.variants:
        yield f"  variants: {', '.join(sweep.variants)}"
    for key, value in sweep.base.items():
        yield f"  {key} = {value}"
