"""Configurations two by two: which beats which, by how much, and what they buy in common."""

import warnings
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from palkit.errors import ConfigError
from palkit.studies.statistics import tables
from palkit.studies.statistics.intervals import holm, paired_difference

LEVEL = 0.05  # of a test


def penalty_matrix(rounds: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Pairwise penalty matrix: entry (i, j) tells in how many settings strategy i beats strategy j.

    A setting is one data set, backbone, adapter and balance. At each label count after the first round (the
    first is shared, no strategy has chosen anything yet) i beats j if a two-sided paired t-test over the
    seeds that both have rejects at 5 %; that adds 1 / (label counts of the setting) to the entry,
    so an entry lies between 0 and the number of settings. Lower column means are better. The paper has
    n = 5 seeds and p < 0.05, `|t| > 2.776`; with n = 3 seeds the same level needs `|t| > 4.303`, so expect few
    wins. Unlike the paper, every label count enters (there only budgets doubling from the first, and none
    where random is within 1 % of its final accuracy).

    Args:
        rounds: the table of rounds.
        metric: column to compare; for losses such as `nll`, lower is better.

    Returns:
        (strategies, strategies), named by strategy, 0 on the diagonal, NaN for a pair that shares two seeds
        in no setting. `attrs` holds `settings` (their number) and `n_seeds` (fewest that any test had, 0 if
        none was made).

    Raises:
        ConfigError: the table cannot be used; the message names columns or runs.

    Source: Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, ICLR 2020.
    """
    tables.validate(rounds, ["strategy", *tables.SETTING], metric)
    strategies = sorted(map(str, rounds["strategy"].unique()))
    wins = np.where(np.eye(len(strategies)), 0.0, np.nan)
    settings = list(tables.rows_by(rounds, tables.SETTING))
    seed_counts: list[int] = []
    for key, setting in settings:
        curves = {
            str(strategy): tables.seed_curves(rows, metric, tables.name_of({**key, "strategy": strategy}))
            for strategy, rows in setting.groupby("strategy")
        }
        chosen = pd.Index(sorted(setting["labels"].unique())[1:])
        for i, j in combinations(curves, 2):
            seeds = curves[i].columns.intersection(curves[j].columns)
            if len(seeds) < 2 or not len(chosen):
                continue
            labels = curves[i].index.intersection(curves[j].index).intersection(chosen)
            better = tables.sign_of(metric) * (curves[i].loc[labels, seeds] - curves[j].loc[labels, seeds])
            at = strategies.index(i), strategies.index(j)
            with warnings.catch_warnings():
                # Equal differences on all seeds have no variance: t is then infinite or, for no difference, NaN.
                warnings.simplefilter("ignore", RuntimeWarning)
                test = stats.ttest_1samp(better.to_numpy(), 0.0, axis=1)
            for place, side in ((at, test.statistic > 0), (at[::-1], test.statistic < 0)):
                wins[place] = np.nan_to_num(wins[place]) + (side & (test.pvalue < LEVEL)).sum() / len(chosen)
            seed_counts.append(len(seeds))
    penalties = pd.DataFrame(wins, index=strategies, columns=strategies)
    penalties.attrs = {"settings": len(settings), "n_seeds": min(seed_counts, default=0)}
    return penalties


def selection_overlap(selections: pd.DataFrame, by: str = "strategy") -> pd.DataFrame:
    """Share of the images bought after the shared initial set that two configurations have in common.

    Args:
        selections: one row per run and image bought, with `run`, `by`, `seed`, `round` and `position`; one run per
            seed in each group.
        by: column that tells configurations apart.

    Returns:
        (groups, groups) mean over the seeds that both have; 1 on the diagonal, NaN for a pair without a common seed.

    Raises:
        ConfigError: the table is empty, nothing was bought after the initial set, or a group has two runs of one seed.
    """
    tables.check_table(selections, ["run", by, "seed", "round", "position"], "table of selections")
    chosen = selections[selections["round"] > 0]
    if chosen.empty:
        raise ConfigError(f"no {by} chose anything after the initial set.")
    tables.check_runs(chosen, by, "table of selections")
    shares = []
    for _, rows in chosen.groupby("seed"):
        bought = pd.crosstab(rows[by], rows["position"]).clip(upper=1)
        sizes = bought.sum(axis=1).to_numpy()
        shares.append(bought @ bought.T / np.minimum.outer(sizes, sizes))
    names = list(dict.fromkeys(chosen[by]))
    return pd.concat(shares).groupby(level=0).mean().loc[names, names].rename_axis(index=None, columns=None)


def gains(rounds: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """The table of rounds with the metric replaced by its difference to the run with random choice of the same seed.

    That run has the setting (data set, backbone, adapter, balance) and the label count of the row too. Differences make
    data sets of different difficulty comparable. For losses such as `nll`, a negative difference is the better one.

    Args:
        rounds: the table of rounds.
        metric: column to compare.

    Raises:
        ConfigError: the table cannot be used, or a run has no random one, or several.
    """
    tables.validate(rounds, ["strategy", *tables.SETTING], metric)
    keys = [*tables.SETTING, "seed", "labels"]
    base = tables.pick(rounds, {"strategy": "random"})
    twice = base.loc[base.duplicated(keys), "run"].unique()
    if len(twice):
        raise ConfigError(f"random choice has several runs of one setting and seed: filter {tables.some(twice)}.")
    found = rounds[keys].merge(base[[*keys, metric]], on=keys, how="left", validate="many_to_one")[metric].to_numpy()
    alone = rounds.loc[np.isnan(found), "run"].unique()
    if len(alone):
        raise ConfigError(f"no run with strategy=random has the setting, seed and labels of {tables.some(alone)}.")
    return rounds.assign(**{metric: rounds[metric].to_numpy() - found})


def against(rounds: pd.DataFrame, column: str, reference: str, metric: str = "accuracy") -> pd.DataFrame:
    """Paired difference of every configuration to the one that has `reference` in `column` and is like it otherwise.

    Args:
        rounds: the table of rounds.
        column: what is compared: `strategy` or one of the setting.
        reference: its value to compare with.
        metric: column to compare.

    Returns:
        One row per configuration: data set, backbone, adapter, strategy and balance (those that vary), `aubc`,
        `aubc_low`, `aubc_high`, `final`, `final_low`, `final_high` (differences with 95 % t intervals over the seeds of
        that data set), `wins`, `losses` (seeds, by area), `n_seeds` and `p_holm` (by area, corrected for
        all rows).

    Raises:
        ConfigError: nothing to compare, or the table cannot be used.
    """
    columns = list(dict.fromkeys([*tables.SETTING, "strategy"]))
    tables.validate(rounds, columns, metric)
    rows = []
    for same, group in tables.rows_by(rounds, [name for name in columns if name != column]):
        if reference not in set(group[column]):
            continue
        for other in sorted(set(group[column]) - {reference}):
            found = paired_difference(group, {column: other}, {column: reference}, metric)
            row, area = {**same, column: other}, found.loc["aubc"]
            for name, measure in found.iterrows():
                row |= {str(name): measure["mean"], f"{name}_low": measure["low"], f"{name}_high": measure["high"]}
            rows.append(row | {name: area[name] for name in ("wins", "losses", "n_seeds", "p")})
    if not rows:
        raise ConfigError(f"nothing here differs in {column} alone from runs with {column}={reference}.")
    table = pd.DataFrame(rows)
    table = table[[*columns, *table.columns.difference(columns, sort=False)]]
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    table = table.drop(columns="p")
    constant = [name for name in columns if table[name].nunique() == 1 and name != column]
    return table.drop(columns=constant).astype({"wins": int, "losses": int, "n_seeds": int})
