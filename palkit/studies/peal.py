"""The claims of PEAL and C-PEAL, what a table of rounds says about each, and a verdict.

The rule: runs that differ in nothing but what a claim compares are paired, on the same data set, seed and label counts.
Each pair gives one difference of areas under the budget curve; pairs of a data set and seed are averaged, then seeds,
then data sets. The interval is Student's t at 95 %; over data sets Welch's, each with its own spread over seeds. A
claim is reproduced, or its opposite is, if a two-sided test at 5 % finds the difference after Holm's correction for all
claims that the table can test, and no data set says the contrary; else it is undecided. Beside it stands the smallest
true difference that such a design finds with probability 80 %, at the level of Holm's first step, 5 % over the number
of claims: an undecided claim says little about differences below that.

A verdict speaks of these data sets with other seeds. For data sets in general the data sets are the sample: that
interval, of the mean of their differences, is given too, and with a handful of data sets it is wide.

Source: Lakshmi Narayanan et al., arXiv 2406.09296 (PEAL, which shows curves and no table of numbers), and
arXiv 2507.21521 (C-PEAL).
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from palkit.config import ExperimentConfig
from palkit.models.adapters import AdapterConfig, attach, trainable_count
from palkit.models.backbones import EMBEDDED, EMBEDDED_ARCHITECTURE, Backbone, BackboneConfig
from palkit.studies.statistics import TIE, Estimate, estimate, holm, sign_of, summarise
from palkit.studies.statistics.tables import between, counted, matching

REPRODUCED, OPPOSITE, UNDECIDED, NOT_TESTABLE = "reproduced", "opposite", "undecided", "not testable here"
LEVEL, POWER = 0.05, 0.8
CAPTION = (
    "Difference of areas under the budget curve with a 95 % t interval over the seeds of the data sets that were run; "
    "where data sets in general are named, the data sets are the sample. Verdicts are on the data sets that were run, "
    "at 5 % after Holm's correction for all claims tested; detectable is what such a design finds four times in five."
)
STRATEGIES = ("random", "entropy", "featdist")
DATASETS = {"histology": "Histology", "aptos2019": "APTOS 2019", "eurosat": "EuroSAT"}
FEW_SEEDS = 10  # fewer are too few for a claim
MANY = 5  # more are not listed one by one
PERCENT = 0.03  # of the backbone's parameters, as the paper reports
LARGE = "vit_large_patch14_dinov2"
SMALL_SHARE = f"at most {PERCENT} %"

FIELDS = {field.name for field in dataclasses.fields(ExperimentConfig)}
# Columns that say more about a compared column, and so may differ between the two runs of a pair.
DETAILS = {
    "adapter": ("adapter.", "training.adapter_lr"),
    "strategy": ("strategy_options.",),
    "training.calibration": ("training.calibration_weighting",),
}

Columns = Mapping[str, Hashable]
COLUMNS = (
    "claim", "source", "evidence", "verdict", "mean", "low", "high", "general_low", "general_high", "detectable",
    "p", "p_holm", "n_seeds", "n_datasets",
)  # fmt: skip

Terms = Sequence[tuple[float, Columns]]  # weight of the mean area of the runs that have these column values


@dataclass(frozen=True)
class Comparison:
    """Differences of areas that a claim is about, in units of a metric.

    Attributes:
        metric: whose areas.
        towards: 1 if the claim is that the difference is above 0, -1 if below.
        samples: of each data set, a difference per seed.
        here: over the seeds of these data sets.
        left_out: what could not be compared and why, as a sentence; empty if nothing.
    """

    metric: str
    towards: int
    samples: Sequence[NDArray]
    here: Estimate
    left_out: str = ""


class Remark(NamedTuple):
    """Evidence and verdict of a claim for which no areas are compared."""

    evidence: str
    verdict: str


class Claim(NamedTuple):
    """A sentence of the paper, where it stands, and what finds evidence for it in (runs, metric)."""

    text: str
    source: str
    find: Callable[[pd.DataFrame, str], Comparison | Remark]


def judge(rounds: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Every claim with our evidence and a verdict.

    Args:
        rounds: the table of rounds.
        metric: column that "beats" and "falls below" are about; for losses such as `nll`, lower is better.

    Returns:
        One row per claim: `claim`, `source`, `evidence`, `verdict`; the difference of areas in units of the metric as
        `mean`, `low`, `high` (95 % on these data sets), `general_low`, `general_high` (on data sets in general) and
        `detectable` (smallest true difference that the design finds four times in five); `p` and `p_holm` (corrected
        for the family); `n_seeds` (fewest on any data set), `n_datasets`. NaN and 0 where there is nothing to compare.
        `attrs["caption"]` says what the intervals speak of.

    Raises:
        ConfigError: the table cannot be used; the message names columns or runs.
    """
    runs = describe_runs(rounds, metric)
    found = [claim.find(runs, metric) for claim in CLAIMS]
    tested = [one for one in found if isinstance(one, Comparison)]
    corrected = iter(holm([float(one.here.p_value) for one in tested]))
    rows = []
    for claim, one in zip(CLAIMS, found, strict=True):
        nothing = {"n_seeds": 0, "n_datasets": 0}
        said = one._asdict() | nothing if isinstance(one, Remark) else _judged(one, next(corrected), len(tested))
        rows.append({"claim": claim.text, "source": claim.source, **said})
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["caption"] = CAPTION
    return table


def _judged(found: Comparison, p_holm: float, family: int) -> dict[str, Any]:
    """Evidence, verdict and numbers of a comparison that is one of a family."""
    mean, p = float(found.here.mean), float(found.here.p_value)
    low, high = map(float, found.here.interval())
    means = [float(sample.mean()) for sample in found.samples]
    seeds = [len(sample) for sample in found.samples]
    general_low, general_high = map(float, estimate([means]).interval())
    detectable = found.here.detectable(LEVEL / family, POWER)
    sides = [_side(found.towards * one) for one in means]
    disagree = {-1, 1} <= set(sides)
    verdict = UNDECIDED
    if p_holm < LEVEL and not disagree:
        verdict = {1: REPRODUCED, -1: OPPOSITE, 0: UNDECIDED}[_side(found.towards * mean)]
    count = len(means)
    several = "" if count == 1 else f"; data sets in general {_ends((general_low, general_high), found.metric)}"
    unsure = " The data sets disagree." if disagree else ""
    evidence = (
        f"{_amount(mean, found.metric)} {_ends((low, high), found.metric)} of area under the "
        f"{found.metric} curve on {counted(count, 'data set')}, {_seeds(seeds)}{several}; {sides.count(1)} of "
        f"{count} on the claimed side; Holm p {'< 0.001' if p_holm < 0.001 else f'{p_holm:.3f}'}; detectable "
        f"{_amount(detectable, found.metric).removeprefix('+')}.{unsure}{found.left_out}"
    )
    numbers = (mean, low, high, general_low, general_high, detectable, p, p_holm, min(seeds), count)
    return dict(zip(COLUMNS[2:], (evidence, verdict, *numbers), strict=True))


def describe_runs(rounds: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per run: what it was, and the areas under its curves of `metric` and, if recorded, `ece`.

    Added to the config's columns are `rounds.labels` (bought in each), `backbone.weights` and `adapter.share`.

    Args:
        rounds: the table of rounds.
        metric: column of which to take the area.

    Raises:
        ConfigError: the table cannot be used; the message names columns or runs.
    """
    metrics = {metric, "ece"} & {metric, *rounds.columns}
    areas = {name: summarise(rounds, name, by=["run"]).set_index("run")["aubc"] for name in metrics}
    grouped = rounds.sort_values("round").groupby("run")
    runs = grouped.first()[[column for column in rounds.columns if _is_config(column)]]
    if "training.calibration" in runs:
        runs["training.calibration"] = runs["training.calibration"] > 0
    runs["rounds.labels"] = grouped["labels"].agg(lambda labels: ", ".join(map(str, labels)))
    runs["backbone.weights"] = ["DINOv2" if "dinov2" in name else name for name in runs["backbone"]]
    trainable = grouped["trainable"].first() if "trainable" in rounds else pd.Series(np.nan, runs.index)
    runs["adapter.share"] = [_share(*pair) for pair in zip(trainable, runs["backbone"], strict=True)]
    return runs.assign(**areas)


@cache
def backbone_size(name: str) -> int | None:
    """Parameters of a whole backbone, classifier not counted; None for a name that timm does not know."""
    import timm

    architecture = EMBEDDED_ARCHITECTURE if name == EMBEDDED else name
    if not timm.is_model(architecture):
        return None
    with torch.device("meta"):  # only shapes count
        return sum(parameter.numel() for parameter in timm.create_model(architecture, num_classes=0).parameters())


@cache
def lora_count(name: str) -> int:
    """Numbers that learn with LoRA of rank 1 on the fused qkv of every block of a timm model."""
    import timm

    with torch.device("meta"):
        vit: Any = timm.create_model(name, num_classes=0)
        backbone = Backbone(vit, BackboneConfig(name, depth=None), "").requires_grad_(False)
        config = AdapterConfig("lora", rank=1, alpha=1, start_block=0)
        model = attach(backbone, config, 2, torch.zeros(backbone.width), torch.ones(backbone.width), seed=0)
    return trainable_count(model)


def _share(trainable: float, backbone: str) -> str:
    """Class of the share that learns. The table does not say where a backbone was cut, so the whole one counts."""
    size = backbone_size(backbone)
    if size is None or np.isnan(trainable):
        return "unknown"
    percent = 100 * trainable / size
    if percent == 0:
        return "none"
    return SMALL_SHARE if round(percent, 2) <= PERCENT else "more"


def _is_config(column: str) -> bool:
    return column.split(".")[0] in FIELDS


def _count(runs: pd.DataFrame, metric: str) -> Remark:
    learning, size = lora_count(LARGE), backbone_size(LARGE)
    assert size is not None, "timm's"
    percent = 100 * learning / size
    return Remark(
        f"Rank 1 on the qkv of every block of {LARGE} trains {learning:,} of {size:,} parameters, {percent:.4f} %: a "
        "count, which says nothing about accuracy.",
        REPRODUCED if round(percent, 2) == PERCENT else OPPOSITE,
    )


def _compare(
    runs: pd.DataFrame, metric: str, *, terms: Terms, where: Columns, better: bool = True, of: str | None = None
) -> Comparison | Remark:
    """A weighted sum of areas, or why there is none.

    Args:
        runs: of `describe_runs`.
        metric: whose areas to compare.
        terms: weight and column values of each summand.
        where: column values that all summands share.
        better: whether the claim is that the sum is better, or worse, than nothing.
        of: a metric to take instead.
    """
    metric = of or metric
    missing = _missing(runs, [{**side, **where} for _, side in terms], metric)
    if missing:
        return Remark(missing, NOT_TESTABLE)
    differences, lacking = _differences(runs, metric, terms, where)
    if differences.empty:
        return Remark("The runs to compare have no data set, seed and label counts in common.", NOT_TESTABLE)
    groups = {name: group.to_numpy() for name, group in differences.groupby(level="dataset")}
    alone = [str(name) for name, sample in groups.items() if len(sample) < 2]
    samples = [sample for sample in groups.values() if len(sample) > 1]
    left_out = f" Not compared, since one side has no such runs: {_listed(lacking)}." if lacking else ""
    left_out += f" Left out, a single seed gives no interval: {', '.join(alone)}." if alone else ""
    if not samples:
        return Remark(f"No data set has two seeds, so there is no interval.{left_out}", NOT_TESTABLE)
    return Comparison(metric, (1 if better else -1) * sign_of(metric), samples, estimate(samples), left_out)


def _differences(
    runs: pd.DataFrame, metric: str, terms: Terms, where: Columns
) -> tuple[pd.Series, list[tuple[str, int]]]:
    """Weighted sums over runs that are alike in all that the terms do not set, mean by data set and seed.

    A seed that lacks a setting which others of its data set have would be the mean of other things: it is left out, and
    named.
    """
    compared = {column for _, side in terms for column in side}
    details = tuple(prefix for column in compared for prefix in DETAILS.get(column, ()))
    columns = [column for column in map(str, runs) if _is_config(column) and column not in compared]
    alike = [column for column in columns if not column.startswith(details)]
    parts = [
        matching(runs, {**where, **side})[[*alike, metric]].rename(columns={metric: number})
        for number, (_, side) in enumerate(terms)
    ]
    paired = reduce(lambda left, right: left.merge(right, on=alike), parts)
    sums = sum(weight * paired[number] for number, (weight, _) in enumerate(terms))
    settings = [column for column in alike if column not in ("dataset", "seed")]
    setting = paired.groupby(settings, dropna=False).ngroup()
    blocks = paired.assign(difference=sums, setting=setting).groupby(["dataset", "seed"])
    found, there = blocks["difference"].mean(), blocks["setting"].nunique()
    complete = there == there.groupby(level="dataset").transform("max")
    wanted = pd.concat([part[["dataset", "seed"]] for part in parts]).drop_duplicates()
    lacking = set(wanted.itertuples(index=False, name=None)) - set(found.index[complete])
    return found[complete], sorted(lacking)


def _listed(lacking: Sequence[tuple[str, int]]) -> str:
    """Data sets and seeds in words: one by one, or counted where they are many."""
    if len(lacking) <= MANY:
        return ", ".join(f"{dataset} seed {seed}" for dataset, seed in lacking)
    numbers = Counter(dataset for dataset, _ in lacking)
    return ", ".join(f"{number} seeds of {dataset}" for dataset, number in numbers.items())


def _missing(runs: pd.DataFrame, configs: Sequence[Columns], metric: str) -> str:
    """Sentence on what the table lacks for a claim; empty if nothing."""
    wanted = pd.DataFrame(configs)
    absent = [column for column in (*wanted, metric) if column not in runs]
    if absent:
        return f"The table has no column {', '.join(absent)}: no runs to compare."
    unknown = [
        f"{column} {' or '.join(map(str, gone))} (only {', '.join(sorted(map(str, set(runs[column]))))})"
        for column in wanted
        if len(gone := wanted[column][~wanted[column].isin(runs[column])].unique())
    ]
    if unknown:
        return f"No run has {', nor '.join(unknown)}."
    lacking = [", ".join(map(str, config.values())) for config in configs if matching(runs, config).empty]
    return f"No run is {'; or '.join(lacking)}, though each value occurs." if lacking else ""


def _side(difference: float) -> int:
    return int(difference > TIE) - int(difference < -TIE)


def _amount(value: float, metric: str) -> str:
    """A difference in points, or as it is for a metric that is no share of 1."""
    return f"{value:+.3f}" if metric == "nll" else f"{100 * value:+.1f} points"


def _ends(ends: tuple[float, float], metric: str) -> str:
    """An interval as the amounts in it, without their unit."""
    return "[" + ", ".join(_amount(end, metric).removesuffix(" points") for end in ends) + "]"


def _seeds(counts: Sequence[int]) -> str:
    text = between(counts, "seed")
    return f"only {text}" if min(counts) < FEW_SEEDS else text


def _minus(a: Columns, b: Columns) -> Terms:
    return (1.0, a), (-1.0, b)


def _adapted(strategy: str) -> Terms:
    """LoRA minus linear probe with one strategy."""
    sides = ({"adapter": adapter, "strategy": strategy} for adapter in ("lora", "linear_probe"))
    return _minus(*sides)


def _selected(adapter: str, strategy: str) -> Terms:
    """A strategy minus random with one adapter."""
    return _minus({"adapter": adapter, "strategy": strategy}, {"adapter": adapter, "strategy": "random"})


PLAIN = {"balance": "none"}
OVERALL: Terms = tuple((weight / len(STRATEGIES), side) for name in STRATEGIES for weight, side in _adapted(name))
TINY = _minus({"adapter": "lora", "adapter.share": SMALL_SHARE}, {"adapter": "linear_probe", "adapter.share": "none"})
MORE = (*_selected("lora", "featdist"), *((-weight, side) for weight, side in _selected("linear_probe", "featdist")))
PCB = _minus({"balance": "pcb"}, {"balance": "none"})
CALIBRATED = _minus({"training.calibration": True}, {"training.calibration": False})
CURVES = "PEAL, accuracy curves"


def _claim(text: str, terms: Terms, source: str = CURVES, where: Columns = PLAIN, **how: Any) -> Claim:
    """A claim about a weighted sum of areas, see `_compare`."""
    return Claim(text, source, partial(_compare, terms=terms, where=where, **how))


CLAIMS = (
    *(_claim(f"LoRA beats a linear probe with {name} selection.", _adapted(name)) for name in STRATEGIES),
    _claim(
        "LoRA beats a linear probe on average over random, entropy and featdist.",
        OVERALL,
        "PEAL, abstract and accuracy curves",
    ),
    *(
        _claim(f"With a linear probe, {name} falls below random.", _selected("linear_probe", name), better=False)
        for name in STRATEGIES[1:]
    ),
    *(_claim(f"With LoRA, {name} beats random.", _selected("lora", name)) for name in STRATEGIES[1:]),
    _claim("Adapting the features helps featdist more than it helps random.", MORE, "PEAL, method"),
    _claim("Class-balanced sampling (here PCB) beats the same strategy without it.", PCB, where={}),
    Claim(f"LoRA on qkv trains about {PERCENT} % of the backbone's parameters.", "PEAL, method", _count),
    _claim(
        f"LoRA that trains {SMALL_SHARE} of the backbone's parameters beats a linear probe.",
        TINY,
        "PEAL, method and accuracy curves",
    ),
    *(
        _claim(
            f"LoRA beats a linear probe on {title} with DINOv2 weights.",
            OVERALL,
            where={**PLAIN, "dataset": name, "backbone.weights": "DINOv2"},
        )
        for name, title in DATASETS.items()
    ),
    _claim(
        "With LoRA, a calibration loss lowers the expected calibration error.",
        CALIBRATED,
        "C-PEAL, abstract and method",
        {**PLAIN, "adapter": "lora"},
        of="ece",
    ),
)
