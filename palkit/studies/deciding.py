"""Tables of `campaigns/decide.py` in short: labels that active testing saves, and how rules for stopping did."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

SHARES = ("holds", "width", "recalls_hold", "calibration_holds")


def active_summary(testing: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Coverage and widths of intervals of both ways of drawing, and the ratio of their squares.

    That is how many times as many labels even draws would need from a pool without end; from a small one they need
    fewer, as they use it up. Active draws' intervals use expected errors too, even draws' are Wilson's: the ratio is of
    both ways as they are, not of the draws alone.

    Args:
        testing: `figures/decide/testing.parquet`.
        by: columns that tell rows of the result apart.

    Returns:
        A row per group: `active` and `even` (share of intervals that hold the accuracy), `recalls` and `calibration`
        (of those of classes and of the calibration error), `width` (of active ones, in points) and `saving` (squared
        ratio of the widths, even to active).
    """
    weighted = testing.assign(**{name: testing[name] * testing["models"] for name in SHARES})
    sums = weighted.groupby([*by, "way"])[[*SHARES, "models"]].sum()
    means = sums[list(SHARES)].div(sums["models"], axis=0)
    active, even = (means.xs(way, level="way") for way in ("active", "even"))
    return pd.DataFrame(
        {
            "active": active["holds"],
            "even": even["holds"],
            "recalls": active["recalls_hold"],
            "calibration": active["calibration_holds"],
            "width": 100 * active["width"],
            "saving": (even["width"] / active["width"]) ** 2,
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
