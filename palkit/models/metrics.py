"""Quality and calibration of class probabilities."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from palkit.strategies.ties import Keys, predict

ECE_BINS = 15


def evaluate(probs: Tensor, labels: Tensor, keys: Keys | None = None) -> dict[str, float]:
    """Quality and calibration of class probabilities.

    Args:
        probs: (N, C) float, rows sum to 1.
        labels: (N,) int64 true classes.
        keys: of rows and classes, which settle what is predicted where classes tie; by default their positions.

    Returns:
        accuracy, balanced_accuracy, macro_f1, kappa (quadratic weights, for ordinal classes), nll (nats),
        brier (0 to 2), ece (15 equal-width bins, top label), adaptive_ece (15 bins of equal count, top label).
    """
    from sklearn import metrics as sk

    classes = np.arange(probs.shape[1])
    p, samples = _normalised(probs), confidence_table(probs, labels, keys)
    y, predicted = labels.numpy(), samples["predicted"].to_numpy()
    confidence, correct = samples["confidence"].to_numpy(), predicted == y
    return {
        "accuracy": float(sk.accuracy_score(y, predicted)),
        "balanced_accuracy": float(sk.recall_score(y, predicted, labels=np.unique(y), average="macro")),
        "macro_f1": float(sk.f1_score(y, predicted, labels=classes, average="macro", zero_division=0)),
        "kappa": _kappa(y, predicted, classes),
        "nll": float(sk.log_loss(y, p, labels=classes)),
        "brier": float(np.square(p - np.eye(len(classes))[y]).sum(axis=1).mean()),
        "ece": calibration_error(reliability_of(confidence, correct)),
        "adaptive_ece": adaptive_calibration_error(confidence, correct),
    }


def _kappa(y: NDArray, predicted: NDArray, classes: NDArray) -> float:
    """Cohen's, with quadratic weights; NaN if all are of one class and predicted so."""
    from sklearn.exceptions import UndefinedMetricWarning
    from sklearn.metrics import cohen_kappa_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        return float(cohen_kappa_score(y, predicted, labels=classes, weights="quadratic"))


def confidence_table(probs: Tensor, labels: Tensor, keys: Keys | None = None) -> pd.DataFrame:
    """Label, prediction and confidence of each sample, small enough to be stored; reliability needs no more.

    Args:
        probs: (N, C) float, rows sum to 1.
        labels: (N,) int64 true classes.
        keys: as for `evaluate`.

    Returns:
        One row per sample: `label` and `predicted` (int16), `confidence` (float32, probability of `predicted`).
    """
    predicted = predict(probs, keys or Keys.of_positions(*probs.shape)).numpy()
    table = pd.DataFrame({"label": labels.numpy(), "predicted": predicted}, dtype=np.int16)
    return table.assign(confidence=_normalised(probs).max(axis=1).astype(np.float32))


def reliability_of(confidence: ArrayLike, correct: ArrayLike) -> pd.DataFrame:
    """Accuracy beside confidence in 15 equal-width bins of confidence, from stored confidences.

    A bin holds its lower edge; the last one holds 1 too.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool, whether that class is the true one.

    Returns:
        One row per bin: `bin` (0 to 14), `count`, mean `confidence` and `accuracy` (NaN where the bin is empty).

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    """
    confidence = np.asarray(confidence, dtype=np.float32)
    bins = np.digitize(confidence, np.linspace(0, 1, ECE_BINS + 1)[1:-1])
    count = np.bincount(bins, minlength=ECE_BINS)
    divisor = np.where(count, count, np.nan)
    table = pd.DataFrame({"bin": np.arange(ECE_BINS), "count": count})
    for name, values in (("confidence", confidence), ("accuracy", np.asarray(correct, dtype=float))):
        table[name] = np.bincount(bins, values, ECE_BINS) / divisor
    return table


def pooled_reliability(tables: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The reliability table of all samples together, of every group of runs.

    Args:
        tables: rows of `reliability_of` of several runs, and columns that tell them apart.
        by: columns that tell the groups apart; groups keep their order.

    Returns:
        `by`, `bin`, `count`, `confidence`, `accuracy`, 15 rows per group.
    """
    means = ["confidence", "accuracy"]
    sums = tables.assign(**{name: (tables["count"] * tables[name]).fillna(0) for name in means})
    pooled = sums.groupby([*by, "bin"], sort=False, as_index=False)[["count", *means]].sum()
    pooled[means] = pooled[means].div(pooled["count"].where(pooled["count"] > 0), axis=0)
    return pooled


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error: `|accuracy - confidence|`, averaged over the samples' bins.

    torchmetrics gives confidences of exactly 1 a sixteenth bin and sums in float32; this follows the definition.

    Args:
        table: from `reliability_of`; one with the samples of several runs gives the error of all of them together.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3.
    """
    gap = (table["accuracy"] - table["confidence"]).abs()
    return float((table["count"] * gap).sum() / table["count"].sum())


def adaptive_calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Calibration error over 15 bins of equal count (up to one sample), so that no bin is nearly empty.

    Samples of equal confidence share what they are right and wrong, so that their order does not matter.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool, whether that class is the true one.

    Source: Nixon et al., Measuring Calibration in Deep Learning, CVPR Workshops 2019, section 3; top label only.
    """
    confidence = np.asarray(confidence, dtype=float)
    value, group = np.unique(confidence, return_inverse=True)  # values are sorted
    right = np.bincount(group, np.asarray(correct, dtype=float)) / np.bincount(group)
    surplus = (right - value)[np.sort(group)]
    return float(sum(abs(part.sum()) for part in np.array_split(surplus, ECE_BINS)) / len(surplus))


def recalls_of(
    predictions: Sequence[pd.DataFrame], labels: Sequence[int], classes: Sequence[str] | None = None
) -> pd.DataFrame:
    """Recall of every class in every round, from stored predictions.

    Args:
        predictions: a table per round with columns `label`, `predicted`, `round`; see `RunDirectory.predictions`.
        labels: bought up to each of these rounds.
        classes: names; None shows numbers.

    Returns:
        One row per round and class that occurs among the true labels: `round`, `labels`, `class`, `count` (samples of
        the class), `recall`.
    """
    parts = []
    for table, bought in zip(predictions, labels, strict=True):
        right = (table["predicted"] == table["label"]).groupby(table["label"]).agg(["size", "mean"])
        names = right.index if classes is None else [classes[number] for number in right.index]
        columns = {"class": names, "count": right["size"].to_numpy(), "recall": right["mean"].to_numpy()}
        parts.append(pd.DataFrame({"round": table["round"].iloc[0], "labels": bought, **columns}))
    return pd.concat(parts, ignore_index=True)


def _normalised(probs: Tensor) -> NDArray[np.float64]:
    """Float64 probabilities, renormalised: scikit-learn checks sums of rows more strictly than float32 can hold."""
    p = probs.double().numpy()
    return p / p.sum(axis=1, keepdims=True)
