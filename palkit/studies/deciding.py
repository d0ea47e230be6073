"""Tables of `campaigns/decide.py` in short: labels that active testing saves, and how rules for stopping did."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

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
