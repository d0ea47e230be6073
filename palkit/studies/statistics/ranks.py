"""Average ranks of strategies over many blocks, and which of them differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from palkit.errors import ConfigError
from palkit.studies.statistics import tables
from palkit.studies.statistics.intervals import areas_of

BLOCKS = {"seed": (*tables.SETTING, "seed"), "setting": tables.SETTING, "dataset": ("dataset",)}
DIGITS = 12  # areas that agree this far are equal: see TIE


@dataclass(frozen=True)
class Ranking:
    """Average ranks with Friedman's and Nemenyi's tests.

    Attributes:
        ranks: average rank of each treatment, best (1 is the lowest possible) first.
        p_values: (treatments, treatments) of Nemenyi's test that two have equal average ranks.
        friedman_p: of Friedman's test that all have equal average ranks; NaN if every block is one tie.
        critical_difference: of average ranks, at `alpha`.
        alpha: level.
        n_blocks: number of blocks.
        blocks: what a block is, a key of `BLOCKS`.
        metric: whose area under the budget curve was ranked.
    """

    ranks: pd.Series
    p_values: pd.DataFrame
    friedman_p: float
    critical_difference: float
    alpha: float
    n_blocks: int
    blocks: str
    metric: str


def block_areas(
    rounds: pd.DataFrame, metric: str = "accuracy", treatments: Sequence[str] = ("strategy",), blocks: str = "seed"
) -> pd.DataFrame:
    """Area under the budget curve of every treatment in every block.

    Args:
        rounds: the table of rounds.
        metric: column whose curves are taken.
        treatments: columns that tell treatments apart; names are joined by " + ", leaving out "none".
        blocks: "seed", every setting (data set, backbone, adapter, balance) and seed; "setting", the mean over its
            seeds; "dataset", the mean over all settings and seeds of a data set. Columns of `treatments` are no
            part of a block.

    Returns:
        (blocks, treatments)

    Raises:
        ConfigError: the table cannot be used, or a block lacks a treatment.
    """
    setting = [column for column in tables.SETTING if column not in treatments]
    parts = []
    for key, curves in tables.groups(rounds, metric, [*setting, *treatments]):
        treatment = " + ".join(str(key[column]) for column in treatments if key[column] != "none")
        areas = {"seed": curves.columns, "area": areas_of(curves)}
        parts.append(pd.DataFrame({column: key[column] for column in setting} | areas).assign(treatment=treatment))
    runs = pd.concat(parts).pivot(index=[*setting, "seed"], columns="treatment", values="area")
    unpaired = runs[runs.isna().any(axis=1)]
    if len(unpaired):
        first = tables.name_of(dict(zip([*setting, "seed"], unpaired.index[0], strict=True)))
        lacking = tables.some(unpaired.columns[unpaired.iloc[0].isna()])
        raise ConfigError(
            f"ranks need every treatment in every block; {first} lacks {lacking} ({len(unpaired)} of {len(runs)} "
            "blocks are incomplete). Run what is missing or drop these blocks."
        )
    return runs.groupby([name for name in runs.index.names if name in BLOCKS[blocks]], dropna=False).mean()


def rank_strategies(
    rounds: pd.DataFrame,
    metric: str = "accuracy",
    treatments: Sequence[str] = ("strategy",),
    blocks: str = "seed",
    alpha: float = 0.05,
) -> Ranking:
    """Average ranks of strategies by area under the budget curve, with Friedman's and Nemenyi's tests.

    Both tests take blocks as independent. Seeds of one data set are not independent data sets: with
    `blocks="seed"` the tests speak about these data sets with other seeds, and say more than is known about other
    data sets. `blocks="dataset"` is the use that Demsar describes, and needs many data sets to find anything (with 4
    data sets and 10 strategies two average ranks must differ by 6.8).

    Args:
        rounds: the table of rounds.
        metric: column whose area is ranked; for losses such as `nll`, lower is better.
        treatments: columns that tell what is ranked, e.g. `("strategy", "balance")`.
        blocks: as of `block_areas`.
        alpha: level of the critical difference.

    Raises:
        ConfigError: as `block_areas`, or fewer than 3 treatments or 2 blocks.

    Source: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, section 3.2.2.
    """
    areas = block_areas(rounds, metric, treatments, blocks).round(DIGITS)
    n_blocks, count = areas.shape
    if count < 3 or n_blocks < 2:
        raise ConfigError(
            f"ranks need 3 or more treatments and 2 or more blocks (by {blocks}); there are {count} "
            f"({tables.some(areas.columns)}) and {n_blocks}."
        )
    # Imported here: it brings seaborn along, which takes a while.
    from scikit_posthocs import posthoc_nemenyi_friedman

    ranks = areas.rank(axis=1, ascending=tables.sign_of(metric) < 0).mean().sort_values(kind="stable")
    with np.errstate(invalid="ignore"):
        friedman = stats.friedmanchisquare(*(areas[name] for name in areas))
    # For infinitely many degrees of freedom, the table of Demsar's section 3.2.2.
    quantile = stats.studentized_range.ppf(1 - alpha, count, np.inf) / np.sqrt(2)
    difference = float(quantile * np.sqrt(count * (count + 1) / (6 * n_blocks)))
    p_values = posthoc_nemenyi_friedman(areas.to_numpy()).set_axis(areas.columns).set_axis(areas.columns, axis=1)
    return Ranking(ranks, p_values, float(friedman.pvalue), difference, alpha, n_blocks, blocks, metric)
