"""What a table of rounds says: areas under budget curves, intervals, paired comparisons, labels saved.

Every function takes the table of rounds, one row per run and round, and changes nothing. Columns: `run`
(hash of the config), what was run (`dataset`, `backbone`, `adapter`, `strategy`, `balance`, `seed`), `round`,
`labels` (bought so far), the metrics and the timings. Runs of one seed share their initial set, so
differences between configurations are taken seed by seed.

Functions that group rows expect one run per seed in each group: averaging over data sets, or over runs that
differ in something the table does not show, would be a number about nothing. They say so and name the runs.
"""

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, stats

from palkit.errors import ConfigError, unknown_name

GROUP = ("adapter", "strategy")
SETTING = ("dataset", "backbone", "adapter", "balance")
REFERENCE: Mapping[str, Hashable] = {"adapter": "linear_probe", "strategy": "random"}
LOWER_IS_BETTER = frozenset({"nll", "brier", "ece", "adaptive_ece"})

# Means of a few values in different orders differ in the last bits; no metric is measured this finely.
TIE = 1e-12


def area_under_curve(labels: ArrayLike, metric: ArrayLike) -> float:
    """Area under the budget curve by the trapezoid rule, divided by the range of labels.

    The result has the metric's own scale: a constant curve has its own value.

    Args:
        labels: (R,) labels bought, strictly increasing.
        metric: (R,) value of the metric at each.

    Raises:
        ConfigError: the two differ in length, there are fewer than two points, or labels do not increase.

    Source: Zhan et al., A Comparative Survey: Benchmarking for Pool-based Active Learning, IJCAI 2021.
    """
    x, y = np.asarray(labels, dtype=float), np.asarray(metric, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ConfigError(
            "an area under the budget curve needs two or more rounds, each with a label count and a value; "
            f"got shapes {x.shape} and {y.shape}."
        )
    if not (np.diff(x) > 0).all():
        raise ConfigError(f"label counts must increase from round to round, got {x.tolist()}.")
    return float(integrate.trapezoid(y, x) / (x[-1] - x[0]))


def bootstrap_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[NDArray, NDArray]:
    """Percentile bootstrap interval of the mean over the first axis, the same for the same values.

    With n values there are only n^n resamples (27 for 3 seeds), and the interval cannot reach beyond the
    smallest and largest value: for few seeds it is far too narrow (for 3, nearly the range of the seeds).

    Args:
        values: (seeds, ...) one row per seed.
        confidence: coverage asked for.

    Returns:
        low and high, each of the shape of one row; NaN for a single seed.

    Source: Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 1979.
    """
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        nan = np.full(array.shape[1:], np.nan)
        return nan, nan
    interval = stats.bootstrap(
        (array,), np.mean, axis=0, confidence_level=confidence, method="percentile", rng=0
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


def summarise(rounds: pd.DataFrame, metric: str = "accuracy", by: Sequence[str] = GROUP) -> pd.DataFrame:
    """Final value and area under the budget curve of every group, with 95 % bootstrap intervals over seeds.

    With 3 seeds an interval is hardly more than the range of the three values (see `bootstrap_interval`):
    it shows the spread, it does not support a claim of significance.

    Args:
        rounds: the table of rounds.
        metric: column to summarise.
        by: columns that tell groups apart.

    Returns:
        One row per group: `by`, `metric` (its name), `n_seeds`, `labels` (bought at the end), `final`,
        `final_low`, `final_high`, `aubc`, `aubc_low`, `aubc_high`; intervals are NaN for one seed.

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    rows = []
    for key, table in _groups(rounds, metric, by):
        final, areas = table.iloc[-1].to_numpy(), _areas(table)
        final_low, final_high = bootstrap_interval(final)
        aubc_low, aubc_high = bootstrap_interval(areas)
        rows.append(
            {
                **key,
                "metric": metric,
                "n_seeds": table.shape[1],
                "labels": table.index[-1],
                "final": final.mean(),
                "final_low": float(final_low),
                "final_high": float(final_high),
                "aubc": areas.mean(),
                "aubc_low": float(aubc_low),
                "aubc_high": float(aubc_high),
            }
        )
    return pd.DataFrame(rows)


def curves(rounds: pd.DataFrame, metric: str = "accuracy", by: Sequence[str] = GROUP) -> pd.DataFrame:
    """Mean budget curve of every group with pointwise 95 % bootstrap intervals over seeds.

    Args:
        rounds: the table of rounds.
        metric: column to average.
        by: columns that tell groups apart.

    Returns:
        One row per group and label count: `by`, `labels`, `mean`, `low`, `high`, `n_seeds`.

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    parts = []
    for key, table in _groups(rounds, metric, by):
        low, high = bootstrap_interval(table.to_numpy().T)
        mean = table.mean(axis=1).to_numpy()
        band = {"labels": table.index, "mean": mean, "low": low, "high": high, "n_seeds": table.shape[1]}
        parts.append(pd.DataFrame({**key, **band}))
    return pd.concat(parts, ignore_index=True)


def paired_difference(
    rounds: pd.DataFrame,
    a: Mapping[str, Hashable],
    b: Mapping[str, Hashable],
    metric: str = "accuracy",
) -> pd.DataFrame:
    """Difference a - b on the same seeds, of the area under the budget curve and of the final value.

    Args:
        rounds: the table of rounds.
        a: column values that pick one configuration, e.g. `{"adapter": "lora", "strategy": "badge"}`.
        b: the same for the other configuration.
        metric: column to compare.

    Returns:
        Rows `aubc` and `final`; columns `mean` (of a - b), `low`, `high` (95 % bootstrap over seeds, NaN for
        one seed), `wins`, `ties`, `losses` (seeds on which a is better, the same, worse; for losses such as
        `nll`, lower is better) and `n_seeds`.

    Raises:
        ConfigError: a value does not occur, or a and b lack a common set of seeds or label counts.
    """
    _validate(rounds, [*a, *b], metric)
    left = _seed_curves(_pick(rounds, a), metric, _name(a))
    right = _seed_curves(_pick(rounds, b), metric, _name(b))
    if set(left.columns) != set(right.columns):
        raise ConfigError(
            f"{_name(a)} and {_name(b)} do not pair: seeds {_missing(left.columns, right.columns)} only in "
            f"the first, {_missing(right.columns, left.columns)} only in the second. Run the missing seeds "
            "or drop them from the table."
        )
    if list(left.index) != list(right.index):
        raise ConfigError(
            f"{_name(a)} and {_name(b)} do not pair: label counts {list(left.index)} and {list(right.index)} "
            "differ. Compare runs with the same budget."
        )
    sign = _sign(metric)
    rows = []
    for measure, difference in (
        ("aubc", _areas(left) - _areas(right)),
        ("final", left.iloc[-1].to_numpy() - right.iloc[-1].to_numpy()),
    ):
        low, high = bootstrap_interval(difference)
        rows.append(
            {
                "measure": measure,
                "mean": difference.mean(),
                "low": float(low),
                "high": float(high),
                "wins": int((sign * difference > TIE).sum()),
                "ties": int((abs(difference) <= TIE).sum()),
                "losses": int((sign * difference < -TIE).sum()),
                "n_seeds": len(difference),
            }
        )
    return pd.DataFrame(rows).set_index("measure")


def label_saving(
    rounds: pd.DataFrame,
    reference: Mapping[str, Hashable] = REFERENCE,
    metric: str = "accuracy",
    by: Sequence[str] = GROUP,
) -> pd.DataFrame:
    """How many times fewer labels a group needs to reach the final value of the reference.

    Both counts are where the mean curve first reaches the target, linearly between rounds. A group that is
    there at its first round counts its initial labels, so its saving is a lower bound. A reference whose
    curve passes its own final value earlier counts from there.

    Args:
        rounds: the table of rounds.
        reference: column values that pick the reference configuration.
        metric: column to compare.
        by: columns that tell groups apart.

    Returns:
        One row per group: `by`, `metric` (its name), `target`, `reference_labels`, `labels_needed`, `saving`
        (`reference_labels / labels_needed`); the last two are NaN if the group never reaches the target.

    Raises:
        ConfigError: the table cannot be used, or the reference is not in it.
    """
    _validate(rounds, [*by, *reference], metric)
    reference_curve = _seed_curves(_pick(rounds, reference), metric, _name(reference)).mean(axis=1)
    target = float(reference_curve.iloc[-1])
    reference_labels = _labels_to_reach(reference_curve, target, _sign(metric))
    rows = []
    for key, table in _groups(rounds, metric, by):
        needed = _labels_to_reach(table.mean(axis=1), target, _sign(metric))
        rows.append(
            {
                **key,
                "metric": metric,
                "target": target,
                "reference_labels": reference_labels,
                "labels_needed": needed,
                "saving": reference_labels / needed,
            }
        )
    return pd.DataFrame(rows)


def penalty_matrix(rounds: pd.DataFrame, metric: str = "accuracy", confidence: float = 0.95) -> pd.DataFrame:
    """Pairwise penalty matrix: entry (i, j) tells in how many settings strategy i beats strategy j.

    A setting is one data set, backbone, adapter and balance. At each label count after the first round (the
    first is shared, no strategy has chosen anything yet) i beats j if a two-sided paired t-test over the
    seeds that both have rejects at `confidence`; that adds 1 / (label counts of the setting) to the entry,
    so an entry lies between 0 and the number of settings. Lower column means are better. The paper has
    n = 5 seeds and p < 0.05, |t| > 2.776; with n = 3 seeds the same level needs |t| > 4.303, so expect few
    wins. Unlike the paper, every label count enters (there only budgets doubling from the first, and none
    where random is within 1 % of its final accuracy).

    Args:
        rounds: the table of rounds.
        metric: column to compare; for losses such as `nll`, lower is better.
        confidence: level of the test.

    Returns:
        (strategies, strategies), named by strategy, 0 on the diagonal, NaN for a pair that shares two seeds
        in no setting. `attrs` holds `settings` (their number), `n_seeds` (fewest that any test had, 0 if
        none was made), `confidence` and `metric`.

    Raises:
        ConfigError: the table cannot be used; the message names columns or runs.

    Source: Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, ICLR 2020.
    """
    _validate(rounds, ["strategy", *SETTING], metric)
    strategies = sorted(map(str, rounds["strategy"].unique()))
    wins = np.full((len(strategies), len(strategies)), np.nan)
    np.fill_diagonal(wins, 0.0)
    settings = list(rounds.groupby(list(SETTING), dropna=False))
    seed_counts: list[int] = []
    for key, setting in settings:
        name = _name(dict(zip(SETTING, key, strict=True)))
        tables = {
            str(strategy): _seed_curves(rows, metric, f"{name}, strategy={strategy}")
            for strategy, rows in setting.groupby("strategy")
        }
        chosen = pd.Index(sorted(setting["labels"].unique())[1:])
        for i, j in permutations(tables, 2):
            seeds = tables[i].columns.intersection(tables[j].columns)
            if len(seeds) < 2 or not len(chosen):
                continue
            labels = tables[i].index.intersection(tables[j].index).intersection(chosen)
            better = _sign(metric) * (tables[i].loc[labels, seeds] - tables[j].loc[labels, seeds])
            entry = strategies.index(i), strategies.index(j)
            wins[entry] = np.nan_to_num(wins[entry]) + _significant(better, confidence) / len(chosen)
            seed_counts.append(len(seeds))
    penalties = pd.DataFrame(wins, index=strategies, columns=strategies)
    penalties.attrs = {
        "settings": len(settings),
        "n_seeds": min(seed_counts, default=0),
        "confidence": confidence,
        "metric": metric,
    }
    return penalties


def selection_overlap(selections: pd.DataFrame, by: str = "strategy") -> pd.DataFrame:
    """Share of the images bought after the shared initial set that two configurations have in common.

    Args:
        selections: one row per run and image bought, with `by`, `seed`, `round` and `position`; one run per seed in
            each group.
        by: column that tells configurations apart.

    Returns:
        (groups, groups) mean over the seeds that both have; 1 on the diagonal, NaN for a pair without a common seed.

    Raises:
        ConfigError: a group bought nothing, or has two runs of one seed.
    """
    chosen = selections[selections["round"] > 0]
    repeated = chosen.duplicated([by, "seed", "position"])
    if chosen.empty or repeated.any():
        raise ConfigError(
            f"no {by} chose anything after the initial set."
            if chosen.empty
            else f"{by}={chosen[by][repeated].iloc[0]} has several runs of one seed: filter the table."
        )
    bought = {key: frozenset(rows["position"]) for key, rows in chosen.groupby([by, "seed"], sort=False)}
    names, seeds = list(dict.fromkeys(chosen[by])), sorted(chosen["seed"].unique())
    shared = pd.DataFrame(np.nan, index=names, columns=names)
    for a in names:
        for b in names:
            pairs = [
                (bought[a, seed], bought[b, seed]) for seed in seeds if (a, seed) in bought and (b, seed) in bought
            ]
            if pairs:
                shared.loc[a, b] = np.mean([len(one & two) / min(len(one), len(two)) for one, two in pairs])
    return shared


def pareto_front(cost: ArrayLike, value: ArrayLike) -> NDArray[np.bool_]:
    """(n,) whether no other configuration has more value at no more cost, or the same value at less.

    Args:
        cost: (n,) lower is better.
        value: (n,) higher is better.
    """
    c, v = np.asarray(cost, dtype=float), np.asarray(value, dtype=float)
    worse = ((c[None] <= c[:, None]) & (v[None] > v[:, None])) | ((c[None] < c[:, None]) & (v[None] >= v[:, None]))
    return np.logical_not(worse.any(axis=1))


def _significant(differences: pd.DataFrame, confidence: float) -> int:
    """Rows of (label counts, seeds) whose mean is above 0 by a two-sided t-test at `confidence`."""
    with warnings.catch_warnings():
        # Equal differences on all seeds have no variance: t is then infinite or, for no difference, NaN.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_1samp(differences.to_numpy(float), 0.0, axis=1)
    return int(((test.statistic > 0) & (test.pvalue < 1 - confidence)).sum())


def _sign(metric: str) -> int:
    return -1 if metric in LOWER_IS_BETTER else 1


def _name(config: Mapping[str, Hashable]) -> str:
    return ", ".join(f"{column}={value}" for column, value in config.items())


def _missing(here: pd.Index, there: pd.Index) -> list:
    return sorted(set(here) - set(there))


def _areas(table: pd.DataFrame) -> NDArray:
    return np.array([area_under_curve(table.index, table[seed]) for seed in table])


def _labels_to_reach(curve: pd.Series, target: float, sign: int) -> float:
    """Label count at which a curve first reaches the target, linearly between rounds; NaN if it does not."""
    labels, values, goal = curve.index.to_numpy(float), sign * curve.to_numpy(), sign * target
    reached = values >= goal - TIE
    if not reached.any():
        return float("nan")
    first = int(reached.argmax())
    span = slice(max(first - 1, 0), first + 1)
    return float(np.interp(goal, values[span], labels[span]))


def _validate(rounds: pd.DataFrame, columns: Sequence[str], metric: str) -> None:
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
            + _some(f"run {row.run} round {row.round}" for row in repeated.itertuples())
            + "; read every run once."
        )
    undefined = rounds[~np.isfinite(rounds[metric].to_numpy(float))]
    if len(undefined):
        raise ConfigError(
            f"{metric} is not a finite number in "
            + _some(f"run {row.run} round {row.round}" for row in undefined.itertuples())
            + "; drop these runs or repeat them."
        )


def _some(items: Iterable[str], most: int = 5) -> str:
    """The first few of many things, so that a message stays a paragraph."""
    names = list(items)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _pick(rounds: pd.DataFrame, config: Mapping[str, Hashable]) -> pd.DataFrame:
    rows = rounds
    for column, value in config.items():
        if value not in set(rounds[column]):
            raise unknown_name(column, value, map(str, rounds[column].unique()))
        rows = rows[rows[column] == value]
    if rows.empty:
        raise ConfigError(f"no run has {_name(config)}; each value occurs, but never together.")
    return rows


def _groups(rounds: pd.DataFrame, metric: str, by: Sequence[str]) -> Iterator[tuple[dict[str, Hashable], pd.DataFrame]]:
    """Each group's column values and its curves by seed, sorted by those values."""
    if isinstance(by, str) or not by:
        raise ConfigError(f"`by` must list one or more columns, got {by!r}.")
    _validate(rounds, by, metric)
    for values, rows in rounds.groupby(list(by), dropna=False):
        key = dict(zip(by, values, strict=True))
        yield key, _seed_curves(rows, metric, _name(key))


def _seed_curves(rows: pd.DataFrame, metric: str, name: str) -> pd.DataFrame:
    """Values of one configuration, (label counts, seeds), after checking that it is one configuration."""
    runs = rows.groupby("seed")["run"].unique()
    for seed, hashes in runs.items():
        if len(hashes) > 1:
            raise ConfigError(
                f"{name}: seed {seed} has several runs ({_some(map(str, hashes))}), so they differ in "
                "something else. Filter the table, or name the column in which they differ in `by`."
            )
    steps = rows.sort_values("round").groupby("run")["labels"].diff()
    if (steps <= 0).any():
        run = rows.loc[steps[steps <= 0].index[0], "run"]
        raise ConfigError(f"{name}: run {run} has label counts that do not increase from round to round.")
    table = rows.pivot(index="labels", columns="seed", values=metric)
    short = table.columns[table.isna().any()]
    if len(short):
        raise ConfigError(
            f"{name}: seeds {list(short)} lack label counts that other seeds have, their runs are unfinished "
            "or have another budget. Finish these runs or drop them from the table."
        )
    return table
