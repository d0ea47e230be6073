"""What PEAL and C-PEAL claim, what a table of rounds says about it, and a verdict.

The rule: runs that differ in nothing but what a claim compares are paired, on the same data set, seed and label counts.
Each pair gives one difference of areas under the budget curve; pairs of a data set and seed are averaged, then seeds,
then data sets. The 95 % interval is a bootstrap that resamples the seeds within each data set. A claim is reproduced if
the whole interval is on the side that it names, and not reproduced otherwise.

What the rule cannot do: with few seeds the interval is too narrow (three seeds of one data set that agree in sign are
enough, which chance alone does once in eight times); the claims are many and are not corrected for that; data sets and
test images are taken as they are, so a verdict is about these images only.

Source: Lakshmi Narayanan et al., arXiv 2406.09296 (PEAL, which shows curves and no table of numbers), and
arXiv 2507.21521 (C-PEAL).
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from numpy.typing import NDArray
from scipy import stats

from palkit.adapters import AdapterConfig, attach, trainable_count
from palkit.backbones import EMBEDDED, EMBEDDED_ARCHITECTURE, Backbone, BackboneConfig
from palkit.config import ExperimentConfig
from palkit.statistics import TIE, sign_of, summarise

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "not reproduced", "not testable here"
STRATEGIES = ("random", "entropy", "featdist")
DATASETS = {"histology": "Histology", "aptos2019": "APTOS 2019", "eurosat": "EuroSAT"}
FEW_SEEDS = 5
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
Terms = Sequence[tuple[float, Columns]]  # weight of the mean area of the runs that have these column values


@dataclass(frozen=True)
class Finding:
    """What runs say about a claim: a sentence, a verdict, and the difference of areas in units of the metric."""

    evidence: str
    verdict: str = NOT_TESTABLE
    mean: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    n_seeds: int = 0
    n_datasets: int = 0


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, where it stands, and what finds evidence for it in (runs, metric)."""

    text: str
    source: str
    find: Callable[[pd.DataFrame, str], Finding]


def judge(rounds: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Every claim with our evidence and a verdict.

    Args:
        rounds: the table of rounds.
        metric: column that "beats" and "falls below" are about; for losses such as `nll`, lower is better.

    Returns:
        One row per claim: `claim`, `source`, `evidence`, `verdict`, `mean`, `low`, `high` (difference of areas and its
        95 % interval, in units of the metric), `n_seeds` (fewest on any data set), `n_datasets`.

    Raises:
        ConfigError: the table cannot be used; the message names columns or runs.
    """
    runs = describe_runs(rounds, metric)
    rows = [
        {"claim": claim.text, "source": claim.source, **dataclasses.asdict(claim.find(runs, metric))}
        for claim in CLAIMS
    ]
    return pd.DataFrame(rows)


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
    architecture = EMBEDDED_ARCHITECTURE if name == EMBEDDED else name
    if not timm.is_model(architecture):
        return None
    with torch.device("meta"):  # only shapes count
        return sum(parameter.numel() for parameter in timm.create_model(architecture, num_classes=0).parameters())


@cache
def lora_count(name: str) -> int:
    """Numbers that learn with LoRA of rank 1 on the fused qkv of every block of a timm model."""
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


def _count(runs: pd.DataFrame, metric: str) -> Finding:
    learning, size = lora_count(LARGE), backbone_size(LARGE)
    assert size is not None, "timm's"
    percent = 100 * learning / size
    return Finding(
        f"Rank 1 on the qkv of every block of {LARGE} trains {learning:,} of {size:,} parameters, {percent:.4f} %.",
        REPRODUCED if round(percent, 2) == PERCENT else NOT_REPRODUCED,
    )


def _compare(
    runs: pd.DataFrame, metric: str, *, terms: Terms, where: Columns, better: bool = True, of: str | None = None
) -> Finding:
    """Verdict on a weighted sum of areas.

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
        return Finding(missing)
    differences = _differences(runs, metric, terms, where)
    samples = [group.to_numpy() for _, group in differences.groupby(level="dataset")]
    if not samples:
        return Finding("The runs to compare have no data set, seed and label counts in common.")
    seeds = [len(sample) for sample in samples]
    if min(seeds) < 2:
        return Finding("A data set has a single seed, which gives no interval.", n_datasets=len(samples))
    towards = (1 if better else -1) * sign_of(metric)
    mean = float(_mean_of_means(*samples))
    low, high = _interval(samples)
    worst, best = sorted((towards * low, towards * high))
    reproduced = worst > TIE
    agreeing = sum(towards * sample.mean() > TIE for sample in samples)
    how = "" if reproduced else ": opposite" if best < -TIE else ": undecided"
    return Finding(
        f"{_amount(mean, low, high, metric)} of area under the {metric} curve; {_seeds(seeds)} on "
        f"{_plural(len(samples), 'data set')}, {agreeing} of {len(samples)} on the claimed side{how}.",
        REPRODUCED if reproduced else NOT_REPRODUCED,
        mean,
        low,
        high,
        min(seeds),
        len(samples),
    )


def _differences(runs: pd.DataFrame, metric: str, terms: Terms, where: Columns) -> pd.Series:
    """Weighted sums over runs that are alike in all that the terms do not set, mean by data set and seed."""
    compared = {column for _, side in terms for column in side}
    details = tuple(prefix for column in compared for prefix in DETAILS.get(column, ()))
    columns = [column for column in map(str, runs) if _is_config(column) and column not in compared]
    alike = [column for column in columns if not column.startswith(details)]
    parts = [
        _pick(runs, {**where, **side})[[*alike, metric]].rename(columns={metric: number})
        for number, (_, side) in enumerate(terms)
    ]
    paired = reduce(lambda left, right: left.merge(right, on=alike), parts)
    sums = sum(weight * paired[number] for number, (weight, _) in enumerate(terms))
    return paired.assign(difference=sums).groupby(["dataset", "seed"])["difference"].mean()


def _pick(runs: pd.DataFrame, config: Columns) -> pd.DataFrame:
    wanted = pd.Series(True, index=runs.index)
    for column, value in config.items():
        wanted &= runs[column] == value
    return runs[wanted]


def _missing(runs: pd.DataFrame, configs: Sequence[Columns], metric: str) -> str:
    """What the table lacks for a claim, as a sentence; empty if nothing."""
    wanted: dict[str, dict[Hashable, None]] = {}
    for config in configs:
        for column, value in config.items():
            wanted.setdefault(column, {})[value] = None
    absent = [column for column in (*wanted, metric) if column not in runs]
    if absent:
        return f"The table has no column {', '.join(absent)}: no runs to compare."
    unknown = [
        f"{column} {' or '.join(gone)} (only {', '.join(sorted(map(str, set(runs[column]))))})"
        for column, values in wanted.items()
        if (gone := [str(value) for value in values if value not in set(runs[column])])
    ]
    if unknown:
        return f"No run has {', nor '.join(unknown)}."
    lacking = [", ".join(map(str, config.values())) for config in configs if _pick(runs, config).empty]
    return f"No run is {'; or '.join(lacking)}, though each value occurs." if lacking else ""


def _mean_of_means(*samples: NDArray, axis: int = -1) -> NDArray:
    return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)


def _interval(samples: Sequence[NDArray]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over data sets of the mean over seeds, always the same."""
    interval = stats.bootstrap(samples, _mean_of_means, method="percentile", rng=0).confidence_interval
    return float(interval.low), float(interval.high)


def _amount(mean: float, low: float, high: float, metric: str) -> str:
    """The numbers in points, or as they are for a metric that is no share of 1."""
    if metric == "nll":
        return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def _seeds(counts: Sequence[int]) -> str:
    fewest, most = min(counts), max(counts)
    text = f"{fewest} seeds" if fewest == most else f"{fewest} to {most} seeds"
    return f"only {text}" if fewest < FEW_SEEDS else text


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


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
CURVES = "PEAL, accuracy curves"
CLAIMS = (
    *(
        Claim(
            f"LoRA beats a linear probe with {name} selection.",
            CURVES,
            partial(_compare, terms=_adapted(name), where=PLAIN),
        )
        for name in STRATEGIES
    ),
    Claim(
        "LoRA beats a linear probe on average over random, entropy and featdist.",
        "PEAL, abstract and accuracy curves",
        partial(_compare, terms=OVERALL, where=PLAIN),
    ),
    *(
        Claim(
            f"With a linear probe, {name} falls below random.",
            CURVES,
            partial(_compare, terms=_selected("linear_probe", name), where=PLAIN, better=False),
        )
        for name in STRATEGIES[1:]
    ),
    *(
        Claim(
            f"With LoRA, {name} beats random.",
            CURVES,
            partial(_compare, terms=_selected("lora", name), where=PLAIN),
        )
        for name in STRATEGIES[1:]
    ),
    Claim(
        "Adapting the features helps featdist more than it helps random.",
        "PEAL, method",
        partial(
            _compare,
            terms=(*_selected("lora", "featdist"), *((-w, side) for w, side in _selected("linear_probe", "featdist"))),
            where=PLAIN,
        ),
    ),
    Claim(
        "Class-balanced sampling (here PCB) beats the same strategy without it.",
        CURVES,
        partial(_compare, terms=_minus({"balance": "pcb"}, {"balance": "none"}), where={}),
    ),
    Claim(f"LoRA on qkv trains about {PERCENT} % of the backbone's parameters.", "PEAL, method", _count),
    Claim(
        f"LoRA that trains {SMALL_SHARE} of the backbone's parameters beats a linear probe.",
        "PEAL, method and accuracy curves",
        partial(_compare, terms=TINY, where=PLAIN),
    ),
    *(
        Claim(
            f"LoRA beats a linear probe on {title} with DINOv2 weights.",
            CURVES,
            partial(_compare, terms=OVERALL, where={**PLAIN, "dataset": name, "backbone.weights": "DINOv2"}),
        )
        for name, title in DATASETS.items()
    ),
    Claim(
        "With LoRA, a calibration loss lowers the expected calibration error.",
        "C-PEAL, abstract and method",
        partial(
            _compare,
            terms=_minus({"training.calibration": True}, {"training.calibration": False}),
            where={**PLAIN, "adapter": "lora"},
            of="ece",
        ),
    ),
)
