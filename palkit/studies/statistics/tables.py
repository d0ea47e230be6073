"""The table of rounds: what it must hold, and how it becomes curves by configuration and seed."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from palkit.errors import ConfigError, unknown_name

GROUP = ("adapter", "strategy")
SETTING = ("dataset", "backbone", "adapter", "balance")
REFERENCE: Mapping[str, Hashable] = {"adapter": "linear_probe", "strategy": "random"}
LOWER_IS_BETTER = frozenset({"nll", "brier", "ece", "adaptive_ece"})

# Means of a few values in different orders differ in the last bits; no metric is measured this finely.
TIE = 1e-12


def sign_of(metric: str) -> int:
    """1 if larger values are better, -1 if smaller ones are."""
    return -1 if metric in LOWER_IS_BETTER else 1


def name_of(config: Mapping[str, Hashable]) -> str:
    """Column values in one line, for messages."""
    return ", ".join(f"{column}={value}" for column, value in config.items())


def validate(rounds: pd.DataFrame, columns: Sequence[str], metric: str) -> None:
    """A ConfigError unless the table has these columns, one row per run and round, and finite values of the metric."""
    needed = dict.fromkeys(["run", "seed", "round", "labels", *columns, metric])
    missing = [column for column in needed if column not in rounds.columns]
    if missing:
        raise ConfigError(
            f"the table of rounds lacks the columns {', '.join(missing)}; it has {', '.join(map(str, rounds.columns))}."
        )
    if rounds.empty:
        raise ConfigError("the table of rounds is empty: no run has finished a round yet.")
    repeated = rounds[rounds.duplicated(["run", "round"])]
    if len(repeated):
        raise ConfigError(
            "the table of rounds has more than one row for "
            + some(f"run {row.run} round {row.round}" for row in repeated.itertuples())
            + "; read every run once."
        )
    undefined = rounds[~np.isfinite(rounds[metric].to_numpy(float))]
    if len(undefined):
        raise ConfigError(
            f"{metric} is not a finite number in "
            + some(f"run {row.run} round {row.round}" for row in undefined.itertuples())
            + "; drop these runs or repeat them."
        )


def some(items: Iterable[str], most: int = 5) -> str:
    """The first few of many things, so that a message stays a paragraph."""
    names = list(items)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def pick(rounds: pd.DataFrame, config: Mapping[str, Hashable]) -> pd.DataFrame:
    """The rows with these column values; a ConfigError that lists what there is if there are none."""
    rows = rounds
    for column, value in config.items():
        if value not in set(rounds[column]):
            raise unknown_name(column, value, map(str, rounds[column].unique()))
        rows = rows[rows[column] == value]
    if rows.empty:
        raise ConfigError(f"no run has {name_of(config)}; each value occurs, but never together.")
    return rows


def groups(rounds: pd.DataFrame, metric: str, by: Sequence[str]) -> Iterator[tuple[dict[str, Hashable], pd.DataFrame]]:
    """Each group's column values and its curves by seed, sorted by those values."""
    if isinstance(by, str) or not by:
        raise ConfigError(f"`by` must list one or more columns, got {by!r}.")
    validate(rounds, by, metric)
    for values, rows in rounds.groupby(list(by), dropna=False):
        key = dict(zip(by, values, strict=True))
        yield key, seed_curves(rows, metric, name_of(key))


def seed_curves(rows: pd.DataFrame, metric: str, name: str) -> pd.DataFrame:
    """Values of one configuration, (label counts, seeds), after checking that it is one configuration."""
    # Plain arrays: a study calls this thousands of times.
    ordered = rows.sort_values(["seed", "round"])
    seeds, runs, labels = (ordered[column].to_numpy() for column in ("seed", "run", "labels"))
    within = seeds[1:] == seeds[:-1]
    mixed = within & (runs[1:] != runs[:-1])
    if mixed.any():
        seed = seeds[1:][mixed][0]
        hashes = some(map(str, rows.loc[rows["seed"] == seed, "run"].unique()))
        raise ConfigError(
            f"{name}: seed {seed} has several runs ({hashes}), so they differ in something else. Filter the table, or "
            "group by the column in which they differ too."
        )
    stalled = within & (np.diff(labels) <= 0)
    if stalled.any():
        run = runs[1:][stalled][0]
        raise ConfigError(f"{name}: run {run} has label counts that do not increase from round to round.")
    table = rows.pivot(index="labels", columns="seed", values=metric)
    short = table.columns[table.isna().any()]
    if len(short):
        raise ConfigError(
            f"{name}: seeds {list(short)} lack label counts that other seeds have, their runs are unfinished "
            "or have another budget. Finish these runs or drop them from the table."
        )
    return table
