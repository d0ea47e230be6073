"""Advice on a strategy: which one gained over random choice on data sets of the same kind, in the studies at hand."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from palkit.storage.files import REPOSITORY
from palkit.storage.formats import read_table
from palkit.studies.statistics import paired_difference
from palkit.studies.statistics.tables import counted

EVIDENCE = REPOSITORY / "figures" / "advice" / "gains.parquet"
LONG_TAIL = 5.0  # times as many images in the largest class as in the smallest
FEW = 3  # labels per class

Budget = Literal["few", "more"]
SPANS: Mapping[Budget, str] = {"few": f"up to {FEW} labels per class", "more": "more"}
MANY = 4  # strategies that make a choice
COLUMNS = (
    "dataset", "classes", "imbalance", "adapter", "strategy", "budget", "gain", "low", "high", "n_seeds",
)  # fmt: skip
KINDS = {"if no class is rare": 1.0, "with a long tail": LONG_TAIL}


def gains_of(rounds: pd.DataFrame, classes: Mapping[str, int], imbalance: Mapping[str, float]) -> pd.DataFrame:
    """Gain of every strategy over random choice without class balance, data set by data set.

    Args:
        rounds: the table of rounds of configurations that differ in data set, adapter, strategy and balance.
        classes: of each data set, how many.
        imbalance: of each data set, images of the largest class of its pool over those of the smallest.

    Returns:
        One row per data set, adapter, strategy (with `+ pcb` if its batches are balanced) and budget ("few", up to
        `FEW` labels per class, or "more", all that were bought): `dataset`, `classes`, `imbalance`, `adapter`,
        `strategy`, `budget`, `gain`, `low`, `high` (area, points, 95 % t interval), `n_seeds`.

    Raises:
        ConfigError: as `palkit.studies.statistics.paired_difference`.
    """
    balanced = rounds["balance"].mask(rounds["balance"] == "none")
    plain = rounds.assign(strategy=rounds["strategy"] + (" + " + balanced).fillna(""), balance="none")
    few = plain[plain["labels"] <= FEW * plain["dataset"].map(classes)]
    found = []
    for budget, rows in {"few": few, "more": plain}.items():
        for (dataset, adapter), part in rows.groupby(["dataset", "adapter"], sort=False):
            baseline = part[part["strategy"] == "random"]
            for strategy, own in part[part["strategy"] != "random"].groupby("strategy"):
                pair = pd.concat([own, baseline[baseline["seed"].isin(own["seed"])]])
                gain = paired_difference(pair, {"strategy": strategy}, {"strategy": "random"}).loc["aubc"]
                low, mean, high = (100 * gain[name] for name in ("low", "mean", "high"))
                of = (dataset, classes[str(dataset)], imbalance[str(dataset)], adapter, strategy, budget)
                found.append((*of, mean, low, high, gain["n_seeds"]))
    return pd.DataFrame(found, columns=COLUMNS).astype({"n_seeds": int})


def advice(imbalance: float, budget: Budget, adapted: bool, evidence: pd.DataFrame | None = None) -> pd.DataFrame:
    """How every strategy did on the data sets of a kind, the best first.

    Args:
        imbalance: images of the largest class over those of the smallest.
        budget: "few" labels (up to `FEW` per class), or "more" (all that were bought, seven to ten).
        adapted: whether the backbone learns too.
        evidence: of `gains_of`; None for that in the repository.

    Returns:
        One row per strategy that every data set of the kind has: `strategy`, `gain` (points of area over random, mean
        over data sets), `worst` (on a data set), `above`, `below` (data sets on which the 95 % interval excludes 0),
        `datasets` (how many). Empty where there is no data set of the kind.
    """
    evidence = read_table(EVIDENCE) if evidence is None else evidence
    tail = evidence["imbalance"] >= LONG_TAIL
    same = (evidence["budget"] == budget) & ((evidence["adapter"] != "linear_probe") == adapted)
    rows = evidence[same & (tail == (imbalance >= LONG_TAIL))]
    rows = rows.assign(above=rows["low"] > 0, below=rows["high"] < 0)
    # Several adapters on a data set are no several data sets.
    each = rows.groupby(["dataset", "strategy"]).agg({"gain": "mean", "above": "all", "below": "any"})
    table = each.groupby("strategy").agg(
        gain=("gain", "mean"), worst=("gain", "min"), above=("above", "sum"), below=("below", "sum"),
        datasets=("gain", "size"),
    )  # fmt: skip
    everywhere = table[table["datasets"] == rows["dataset"].nunique()]
    return everywhere.sort_values("gain", ascending=False).reset_index()


def recommended(table: pd.DataFrame) -> str:
    """The strategy to take: the highest mean gain of those beyond chance above random on half of the data sets.

    None that is below random beyond chance on any is taken.

    Args:
        table: of `advice`.

    Returns:
        Its name; "random" where there is none.
    """
    good = table[(table["below"] == 0) & (2 * table["above"] >= table["datasets"])]
    return "random" if good.empty else str(good["strategy"].iloc[0])


def advised(labels: np.ndarray, adapted: bool, evidence: pd.DataFrame | None = None) -> str:
    """Sentences on which strategy to take for few labels and for more, and what speaks for it.

    Args:
        labels: (N,) codes of the classes of a pool; -1 for images that nobody has labelled.
        adapted: see `advice`.
        evidence: likewise.
    """
    known = labels[labels >= 0]
    if not len(known):
        return "; ".join(f"{name}: {_said(number, adapted, evidence)}" for name, number in KINDS.items())
    return _said(imbalance_of(known), adapted, evidence)


def _said(imbalance: float, adapted: bool, evidence: pd.DataFrame | None) -> str:
    """What to take for data of a kind."""
    said = []
    for budget, span in SPANS.items():
        table = advice(imbalance, budget, adapted, evidence)
        if table.empty:
            return "nothing was tried on all data of this kind that were studied; random choice is the safe one"
        name = recommended(table)
        gains = table[table["strategy"] == name]
        texts = [f" ({row.gain:+.1f} points over random, at worst {row.worst:+.1f})" for row in gains.itertuples()]
        said.append(f"{name.replace(' + ', ' balance=')} for {span}{''.join(texts)}")
    tried = "" if len(table) >= MANY else f", where only {', '.join(sorted(table['strategy']))} was tried beside it"
    return f"{', '.join(said)}, on {counted(int(table['datasets'].max()), 'data set')}{tried}"


def imbalance_of(labels: np.ndarray) -> float:
    """Images of the largest class over those of the smallest that has any.

    Args:
        labels: (N,) codes of classes, one or more.
    """
    counts = np.unique(labels, return_counts=True)[1]
    return float(counts.max() / counts.min())
