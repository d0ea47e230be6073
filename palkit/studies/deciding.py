"""What active testing saves, how rules for stopping did, and what it costs not to know the best strategy."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from palkit.errors import ConfigError
from palkit.strategies import get_strategy
from palkit.studies.statistics.intervals import with_ends
from palkit.studies.statistics.ranks import block_areas
from palkit.studies.statistics.tables import sign_of

SHARES = ("holds", "width", "recalls_hold", "calibration_holds")


def active_summary(testing: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Coverage and widths of intervals of all ways, and how many times as many labels others need for that width.

    Even draws without replacement have a variance that goes as 1 / n - 1 / N, so N counts: they use up a small pool.

    Args:
        testing: `figures/decide/testing.parquet`.
        by: columns that tell rows of the result apart.

    Returns:
        A row per group: `active` and `even` (share of intervals that hold the accuracy), `recalls` and `calibration`
        (of those of classes and of the calibration error), `width` (of active ones, in points), `saving` (labels that
        even draws with Wilson's interval need for that width, over those of active ones) and `draws` (the same for even
        draws with the estimate of active ones: what the draws alone save).
    """
    weighted = testing.assign(
        **{name: testing[name] * testing["models"] for name in SHARES},
        left=testing["models"] / testing["images"],
        drawn=testing["models"] / testing["labels"],
    )
    sums = weighted.groupby([*by, "way"])[[*SHARES, "left", "drawn", "models"]].sum()
    means = sums[[*SHARES, "left", "drawn"]].div(sums["models"], axis=0)
    active, even = (means.xs(way, level="way") for way in ("active", "even"))

    def saved(way: str) -> pd.Series:
        wider = means.xs(way, level="way")["width"] / active["width"]
        shrunk = (active["drawn"] - active["left"]) / wider**2
        return active["drawn"] / (shrunk + active["left"])

    return pd.DataFrame(
        {
            "active": active["holds"],
            "even": even["holds"],
            "recalls": active["recalls_hold"],
            "calibration": active["calibration_holds"],
            "width": 100 * active["width"],
            "saving": saved("even"),
            "draws": saved("expected"),
        }
    )


def stopping_summary(stopping: pd.DataFrame, by: Sequence[str] = ("rule",)) -> pd.DataFrame:
    """How rules with a target did, over all runs that reach it.

    Args:
        stopping: `figures/decide/stopping.parquet`.
        by: columns that tell rows of the result apart.

    Returns:
        A row per group: `runs` and targets that they reach; `stops` (share of them that the rule stops), `training` and
        `all labels` (median of the labels at the stop, without and with those of tests, over the training labels that
        were needed, of those that stop) and `wrong` (share of all stops, those of targets that the run never reaches
        among them, at which the accuracy is below the target).
    """
    rows = []
    for key, all_rows in stopping.dropna(subset="target").groupby(list(by)):
        reached, stopped = all_rows.dropna(subset="needed"), all_rows[all_rows["stopped"]]
        ended = reached[reached["stopped"]]
        wrong = int((stopped["accuracy"] < stopped["target"]).sum())
        rows.append(
            dict(zip(by, key, strict=True))
            | {
                "runs": len(reached),
                "stops": len(ended) / len(reached) if len(reached) else np.nan,
                "training": (ended["labels"] / ended["needed"]).median(),
                "all labels": ((ended["labels"] + ended["tests"]) / ended["needed"]).median(),
                "wrong": wrong / len(stopped) if len(stopped) else np.nan,
            }
        )
    return pd.DataFrame(rows).set_index(list(by))


def untargeted_summary(stopping: pd.DataFrame, by: Sequence[str] = ("rule",)) -> pd.DataFrame:
    """How rules without a target did.

    Returns:
        A row per group: `stops` (share of runs), `labels` (median at the stop, without tests), `lost` (mean points
        below the run's best round) and `worst` (most points).
    """
    rules = stopping[stopping["target"].isna()].assign(lost=lambda table: 100 * (table["best"] - table["accuracy"]))
    groups = rules.groupby(list(by))
    ended = rules[rules["stopped"]].groupby(list(by))
    return pd.DataFrame(
        {
            "stops": groups["stopped"].mean(),
            "labels": ended["labels"].median(),
            "lost": ended["lost"].mean(),
            "worst": ended["lost"].max(),
        }
    )


def regrets(rounds: pd.DataFrame, metric: str = "accuracy", baseline: str = "random") -> pd.DataFrame:
    """What every strategy gains over random choice on each data set, and what it falls short of the best single one.

    The best of several noisy means looks better than it is: the best single strategy of a seed is the one of the
    highest mean area on the other seeds. `auto` and oracles are no single strategies.

    Args:
        rounds: the table of rounds; every strategy with every seed, one adapter and budget.
        metric: column whose area under the budget curve is compared.
        baseline: strategy over which gains are.

    Returns:
        A row per data set and strategy: `gain`, `gain_low`, `gain_high`, `regret`, `regret_low`, `regret_high` (points
        of area, 95 % t intervals over paired seeds), `best` (the single strategy of the highest mean), `n_seeds`.

    Raises:
        ConfigError: a seed lacks a strategy, or there is one seed alone.
    """
    areas = 100 * sign_of(metric) * block_areas(rounds, metric)
    single = [name for name in map(str, areas) if name != "auto" and not get_strategy(name).is_oracle]
    rows = []
    for dataset, runs in areas.groupby("dataset", sort=False):
        if len(runs) < 2:
            raise ConfigError(f"{dataset} has one seed; the best strategy of a seed is found on the others.")
        others = (runs[single].sum() - runs[single]) / (len(runs) - 1)
        ideal = runs[single].to_numpy()[np.arange(len(runs)), others.to_numpy().argmax(axis=1)]
        for name in areas.columns.drop(baseline):
            ends = with_ends("gain", (runs[name] - runs[baseline]).to_numpy()) | with_ends("regret", ideal - runs[name])
            rows.append({"dataset": dataset, "strategy": name, **ends, "best": runs[single].mean().idxmax()})
            rows[-1]["n_seeds"] = len(runs)
    return pd.DataFrame(rows).set_index(["dataset", "strategy"])
