"""Results of a sweep: one table each of rounds, selections, reliability and recalls over all its runs."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from palkit.config import plain
from palkit.errors import ConfigError, DataError
from palkit.experiments.runs import without_checksums
from palkit.experiments.setting import looked_at_once, pool_of
from palkit.experiments.sweep import Sweep, Task, plan
from palkit.models.metrics import recalls_of, reliability_of
from palkit.storage.files import REPOSITORY, read_json, write_text
from palkit.storage.formats import read_table, write_table

FIGURES = REPOSITORY / "figures"  # of every profile its committed results, the reference
USUAL = ("dataset", "backbone", "adapter", "strategy", "balance")
RUNS = "runs.csv"  # in the folder of the results: every planned run
LISTED = ("dataset", "backbone.name", "adapter.name", "strategy", "balance", "seed")
MISSING = "missing.txt"  # in the folder of the results, if runs are
OTHER_FIELDS = ("initial", "batch_size", "pool_size", "rounds", "evaluate_on")


@looked_at_once()
def collect(sweep: Sweep, device: str | None = None) -> dict[str, pd.DataFrame]:
    """Tables of all complete runs of a sweep, each row saying which run it is of and what that run was.

    Args:
        sweep: some of its runs must be complete.
        device: that they ran on.

    Returns:
        `rounds`, one row per run and round; `selections`, per run and label bought; `reliability`, per run, round and
        bin of confidence (see `palkit.models.metrics.reliability_of`); `recalls`, per run, round and class. Besides the
        usual columns there is one for every config field that differs between runs, under its dotted name, and
        `variant` if the sweep has some.

    Raises:
        ConfigError: no run is complete.
    """
    planned = plan(sweep, device)
    return _collected(sweep, planned, [task for task in planned if task.is_complete])


def _collected(sweep: Sweep, planned: Sequence[Task], complete: Sequence[Task]) -> dict[str, pd.DataFrame]:
    """Tables of the complete ones among the tasks of a sweep, see `collect`."""
    if not complete:
        why = " ".join(missing_runs(sweep, planned, complete)) or "Its grid has no run."
        raise ConfigError(f"sweep {sweep.name!r} has no complete run yet. {why}")
    configs = [task.config for task in complete if task.config is not None]
    runs: list[dict[str, Any]] = []
    tables: dict[str, list[pd.DataFrame]] = {}
    for task, config, (usual, varied) in zip(complete, configs, _fields(map(plain, configs)), strict=True):
        columns = {"run": task.directory.run, **{name.removesuffix(".name"): value for name, value in usual.items()}}
        columns["balance"] = config.balance or "none"
        runs.append(columns | ({"variant": task.variant} if task.variant else {}) | varied)
        rounds, predictions = task.directory.table(), task.directory.predictions(config.rounds)
        labels, classes = rounds["labels"].tolist(), pool_of(config).class_names
        reliability = [
            reliability_of(table["confidence"], table["predicted"] == table["label"]).assign(labels=bought)
            for table, bought in zip(predictions, labels, strict=True)
        ]
        found = {
            "rounds": rounds,
            "selections": task.directory.selections(),
            "reliability": pd.concat(reliability, ignore_index=True),
            "recalls": recalls_of(predictions, labels, classes),
        }
        for name, rows in found.items():
            tables.setdefault(name, []).append(rows.assign(run=task.directory.run))
    return {name: pd.DataFrame(runs).merge(pd.concat(parts), on="run") for name, parts in tables.items()}


def _fields(parameters: Iterable[Mapping[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Of each run the fields that all tables have, and the others that differ between runs, under dotted names."""
    flat = [_flat(values) for values in parameters]
    others = sorted({name for values in flat for name in values} - {*LISTED})
    differing = [name for name in others if len({repr(values.get(name)) for values in flat}) > 1]
    usual, varied = ([{name: values.get(name) for name in names} for values in flat] for names in (LISTED, differing))
    return list(zip(usual, varied, strict=True))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted names; lists as text, to fit into a cell."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


class Results(NamedTuple):
    """Tables of a sweep, see `collect`."""

    rounds: pd.DataFrame
    selections: pd.DataFrame
    recalls: pd.DataFrame


def read_results(folder: Path) -> Results:
    """Rounds, selections and recalls as `write_results` stored them, each configuration with a name of its own.

    Where runs differ in more than data set, backbone, adapter, strategy, balance and seed, the strategy's name is
    extended by its options, and the adapter's by the variant or by the other fields that differ.

    Args:
        folder: of the results of a sweep.

    Raises:
        DataError: a table is missing.

    >>> from palkit.storage.files import REPOSITORY
    >>> rounds, bought, recalls = read_results(REPOSITORY / "figures" / "quick")
    >>> sorted(rounds["dataset"].unique())
    ['fashion_mnist']
    """
    tables = read_tables(folder, Results._fields)
    names = named(tables[0])
    return Results(*(table.drop(columns=["adapter", "strategy"]).join(names, on="run") for table in tables))


def read_tables(folder: Path, names: Iterable[str]) -> tuple[pd.DataFrame, ...]:
    """Some of the tables of `collect`, as they were stored in a folder.

    Raises:
        DataError: a table is missing or damaged.
    """
    tables = []
    if not folder.is_dir():
        raise DataError(f"there are no results in {folder}. Compute them first: `palkit sweep NAME_OR_FILE`.")
    for name in names:
        path = folder / f"{name}.parquet"
        again = "with `palkit study` and the name of the sweep, or its file."
        if folder.is_relative_to(FIGURES):
            again = f"with `git restore {path}`."
        try:
            tables.append(read_table(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is missing or cannot be read ({error}). Write it {again}") from error
    return tuple(tables)


def named(rounds: pd.DataFrame) -> pd.DataFrame:
    """Of each run, the names of adapter and strategy, with what it takes to tell it from runs that look the same."""
    runs = rounds.drop_duplicates("run").set_index("run")
    same, names = [*USUAL, "seed"], ["adapter", "strategy"]
    if not runs.duplicated(same).any():
        return runs[names]
    options = [name for name in map(str, runs) if name.startswith("strategy_options.")]
    texts = runs[options].apply(lambda column: column.name.partition(".")[2] + "=" + column.astype(str))
    runs = runs.assign(strategy=_joined(runs["strategy"], texts.mask(runs[options].isna(), "")))
    if not runs.duplicated(same).any():
        return runs[names]
    fields = ["variant"] if "variant" in runs else []
    if not fields or runs.duplicated([*same, "variant"]).any():
        others = [name for name in map(str, runs) if ("." in name or name in OTHER_FIELDS) and name not in options]
        # What a variant says already is not said twice.
        fields += [name for name in others if not fields or runs.groupby("variant")[name].nunique().max() > 1]
    texts = runs[fields].astype(str)
    short = runs.assign(adapter=_joined(runs["adapter"], texts.mask(runs[fields].isna(), "")))
    told = runs.assign(adapter=_joined(runs["adapter"], texts)) if short.duplicated(same).any() else short
    return told[names]


def _joined(first: pd.Series, texts: pd.DataFrame) -> pd.Series:
    """Each name, with the texts of its row that are not empty; once where these begin with it."""
    names = []
    for name, row in zip(first, texts.to_numpy(), strict=True):
        told = [text for text in row if text]
        names.append(", ".join(told if told and told[0].startswith(name) else [name, *told]))
    return pd.Series(names, first.index)


def parts(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table divided by data set and backbone, under names that tell the parts apart; "" if there is only one."""
    columns = [name for name in ("dataset", "backbone") if table[name].nunique() > 1]
    if not columns:
        return {"": table}
    short = table.assign(**{name: table[name].map(short_paths(table[name].unique())) for name in columns})
    return {", ".join(map(str, key)): table.loc[rows.index] for key, rows in short.groupby(columns, sort=False)}


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """Of each data set or backbone, as much of the end of its path as tells it from the others; names stay names.

    Args:
        paths: distinct ones.
    """
    pieces = {path: [piece for piece in path.split("/") if piece] or [path] for path in map(str, paths)}
    short = {}
    for path, own in pieces.items():
        ends = ("/".join(own[-count:]) for count in range(1, len(own) + 1))
        others = ["/" + "/".join(other) for name, other in pieces.items() if name != path]
        short[path] = next((end for end in ends if not any(other.endswith(f"/{end}") for other in others)), path)
    return short


def reference_folder(sweep: Sweep) -> Path | None:
    """Folder of the committed results of a sweep, `figures/<name>/`; None for a sweep that has none, as yours."""
    folder = FIGURES / sweep.name
    return folder if sweep.is_profile and (folder / "rounds.parquet").exists() else None


@looked_at_once()
def write_results(sweep: Sweep, device: str | None = None) -> Path:
    """Store the tables of `collect` in the folder of the sweep's study with what is missing; returns that folder."""
    folder, planned = sweep.studies, plan(sweep, device)
    complete = [task for task in planned if task.is_complete]
    for name, table in _collected(sweep, planned, complete).items():
        write_table(table, folder / f"{name}.parquet")
    # The manifest: of every planned run what tells it from the others, its name and where it is.
    runs = {task.directory.run for task in complete}
    listed = pd.DataFrame([usual | varied for usual, varied in _fields([task.parameters for task in planned])]).assign(
        variant=[task.variant or "" for task in planned],
        run=[task.directory.run for task in planned],
        complete=[task.directory.run in runs for task in planned],
        folder=[str(task.directory.path) for task in planned],
    )
    write_text(folder / RUNS, listed.to_csv(index=False))
    lines = missing_runs(sweep, planned, complete)
    if lines:
        write_text(folder / MISSING, "\n".join(lines))
    else:
        (folder / MISSING).unlink(missing_ok=True)
    return folder


def read_missing(folder: Path) -> list[str]:
    """How many planned runs are not among the results in a folder, and why, a sentence each; none if all are there."""
    path = folder / MISSING
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def missing_runs(sweep: Sweep, tasks: Sequence[Task], complete: Sequence[Task]) -> list[str]:
    """How many tasks of a sweep are not complete, and why, a sentence each; none if all are."""
    runs = {task.directory.run for task in complete}
    missing = [task for task in tasks if task.directory.run not in runs]
    if not missing:
        return []
    stored: dict[Path, list[dict[str, Any]]] = {}
    reasons = Counter(" ".join((task.absent or _why_missing(task, stored)).split()) for task in missing)
    name = sweep.name if sweep.is_profile else str(sweep.file)
    return [
        f"{len(missing)} of {len(tasks)} planned runs are missing. To compute them, start the sweep again: "
        f"`palkit sweep {shlex.quote(name)}`.",
        *(f"Missing: {count}. {reason}" for reason, count in reasons.items()),
    ]


def _why_missing(task: Task, stored: dict[Path, list[dict[str, Any]]]) -> str:
    """Why a run that could be had is not there; `stored` keeps the configs of runs by folder, less their checksums."""
    if task.config is None:
        return "Not a valid config; the sweep says why."
    if task.directory.path.exists():
        return "Begun but not finished, or with damaged files."
    folder = task.directory.path.parent
    if folder not in stored:
        stored[folder] = [_without_sums(path) for path in sorted(folder.glob("*/config.json"))]
    if json.loads(json.dumps(task.parameters)) in stored[folder]:
        return "Computed before, but not for the data and weights as they are now: these have changed since."
    return "Not begun."


def _without_sums(path: Path) -> dict[str, Any]:
    """The config of a run without the checksums of data and weights; empty if it cannot be read."""
    try:
        return without_checksums(read_json(path))
    except (OSError, ValueError):
        return {}
