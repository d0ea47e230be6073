"""How good are these probabilities?"""

import numpy as np
from scipy.stats import binned_statistic
from sklearn import metrics as sk
from torch import Tensor

ECE_BINS = 15


def evaluate(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Quality and calibration of class probabilities.

    Args:
        probs: (N, C) float, rows sum to 1.
        labels: (N,) int64 true classes.

    Returns:
        accuracy, balanced_accuracy, macro_f1, kappa (quadratic weights, for ordinal classes), nll (nats),
        brier (0 to 2), ece (15 equal-width bins, top label).
    """
    classes = np.arange(probs.shape[1])
    # float64, renormalised: scikit-learn checks that rows sum to 1 more strictly than float32 can hold.
    p = probs.double().numpy()
    p = p / p.sum(axis=1, keepdims=True)
    y, predicted = labels.numpy(), p.argmax(axis=1)
    return {
        "accuracy": float(sk.accuracy_score(y, predicted)),
        "balanced_accuracy": float(sk.recall_score(y, predicted, labels=np.unique(y), average="macro")),
        "macro_f1": float(sk.f1_score(y, predicted, labels=classes, average="macro", zero_division=0)),
        "kappa": float(sk.cohen_kappa_score(y, predicted, labels=classes, weights="quadratic")),
        "nll": float(sk.log_loss(y, p, labels=classes)),
        "brier": float(np.square(p - np.eye(len(classes))[y]).sum(axis=1).mean()),
        "ece": _expected_calibration_error(p.max(axis=1), predicted == y),
    }


def _expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Share of rows times |accuracy - mean confidence|, summed over bins of confidence (Guo et al. 2017, eq. 3)."""
    gap = binned_statistic(confidence, correct - confidence, "sum", bins=ECE_BINS, range=(0, 1)).statistic
    return float(np.abs(gap).sum() / len(confidence))
