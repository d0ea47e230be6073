"""The table of rounds: what it must hold, and how it becomes curves by configuration and seed."""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from palkit.errors import ConfigError

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


def check_table(table: pd.DataFrame, columns: Iterable[str], name: str) -> None:
    """A ConfigError that names the table, unless it has these columns, and rows."""
    missing = [column for column in dict.fromkeys(columns) if column not in table.columns]
    if missing:
        there = ", ".join(map(str, table.columns)) or "none"
        raise ConfigError(f"the {name} lacks the columns {', '.join(missing)}; it has {there}.")
    if table.empty:
        raise ConfigError(f"the {name} is empty.")


def check_runs(table: pd.DataFrame, by: str, name: str) -> None:
    """A ConfigError unless each value of a column has one run of every seed."""
    repeated = table.groupby([by, "seed"])["run"].nunique() > 1
    if repeated.any():
        value, seed = repeated[repeated].index[0]
        raise ConfigError(f"{by}={value} has several runs of seed {seed}: filter the {name}.")


def validate(rounds: pd.DataFrame, columns: Sequence[str], metric: str) -> None:
    """A ConfigError unless the table has these columns, and finite values of the metric."""
    check_table(rounds, ["run", "seed", "round", "labels", *columns, metric], "table of rounds")
    undefined = rounds[~np.isfinite(rounds[metric].astype(float))]
    if len(undefined):
        where = some(f"run {row.run} round {row.round}" for row in undefined.itertuples())
        raise ConfigError(f"{metric} is not a finite number in {where}; drop or repeat these runs.")


def some(items: Iterable[str], most: int = 5) -> str:
    """The first few of many things, so that a message stays a paragraph."""
    names = list(items)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(count: int, noun: str) -> str:
    """A number of things in words: "1 seed", "2 seeds"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def between(counts: Collection[int], noun: str) -> str:
    """The range of some counts in words: "1 seed", "2 to 5 seeds"."""
    fewest, most = min(counts), max(counts)
    return counted(most, noun) if fewest == most else f"{fewest} to {most} {noun}s"


def matching(table: pd.DataFrame, config: Mapping[str, Hashable]) -> pd.DataFrame:
    """The rows with these column values."""
    return table[(table[list(config)] == pd.Series(config, dtype=object)).all(axis=1)]


def pick(rounds: pd.DataFrame, config: Mapping[str, Hashable]) -> pd.DataFrame:
    """The rows with these column values; a ConfigError that lists what there is if there are none."""
    rows = matching(rounds, config)
    if rows.empty:
        there = {name: " or ".join(map(str, rounds[name].unique())) for name in config}
        raise ConfigError(f"no run has {name_of(config)}; there are {name_of(there)}.")
    return rows


def rows_by(rounds: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, Hashable], pd.DataFrame]]:
    """Each group's column values and its rows, sorted by those values."""
    for values, rows in rounds.groupby(list(by), dropna=False):
        yield dict(zip(by, values, strict=True)), rows


def groups(rounds: pd.DataFrame, metric: str, by: Sequence[str]) -> Iterator[tuple[dict[str, Hashable], pd.DataFrame]]:
    """Each group's column values and its curves by seed, sorted by those values."""
    validate(rounds, by, metric)
    for key, rows in rows_by(rounds, by):
        yield key, seed_curves(rows, metric, name_of(key))


def interval_texts(
    table: pd.DataFrame, name: str, form: str = ".1f", *, scale: float = 1, share: bool = False
) -> list[str]:
    """Values and their intervals as "61.0 [59.2, 62.8]", without brackets where there is no interval.

    Args:
        table: columns `name`, `name_low`, `name_high`.
        name: of the value.
        form: of each number.
        scale: what they are multiplied by.
        share: they are shares of 1, beyond which no interval goes.
    """
    values, ends = table[name], table[[f"{name}_low", f"{name}_high"]].to_numpy(float)
    ends = scale * (ends.clip(0, 1) if share else ends)
    return [
        f"{scale * value:{form}}" + (f" [{low:{form}}, {high:{form}}]" if low == low else "")  # a single seed has none
        for value, (low, high) in zip(values, ends, strict=True)
    ]


def check_pairs(a: Mapping[str, Hashable], left: pd.DataFrame, b: Mapping[str, Hashable], right: pd.DataFrame) -> None:
    """A ConfigError unless the curves of two configurations are of the same seeds."""
    here, there = set(left.columns), set(right.columns)
    if here != there:
        raise ConfigError(
            f"{name_of(a)} and {name_of(b)} do not pair: seeds {sorted(here - there)} only in the first, "
            f"{sorted(there - here)} only in the second. Run the missing seeds or drop them from the table."
        )


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
        raise ConfigError(f"{name}: run {run} is there twice, or its label counts do not increase.")
    counts, row = np.unique(labels, return_inverse=True)
    columns, column = np.unique(seeds, return_inverse=True)
    values = np.full((len(counts), len(columns)), np.nan)
    values[row, column] = ordered[metric]
    table = pd.DataFrame(values, pd.Index(counts, name="labels"), pd.Index(columns, name="seed"))
    short = table.columns[table.isna().any()]
    if len(short):
        raise ConfigError(
            f"{name}: seeds {list(short)} lack label counts that other seeds have, their runs are unfinished "
            "or have another budget. Finish these runs or drop them from the table."
        )
    return table
