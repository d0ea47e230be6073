"""Calibration of confidence: the calibration loss of C-PEAL while fitting, temperature scaling afterwards."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from palkit.errors import ConfigError, unknown_name

WEIGHTINGS = ("balanced", "effective")
EFFECTIVE_BETA = 0.999
EPSILON = 1e-6
LOSS_LIMIT = 5.0
TEMPERATURE_LIMIT = 20.0
SURE = 0.99  # of the likelihood interval beyond whose lower end predictions are not softened


def calibration_loss(logits: Tensor, labels: Tensor, weighting: str = "balanced") -> Tensor:
    """Loss that is low when right predictions are certain and wrong ones uncertain.

    With u the predictive entropy, it is w_right * mean over right predictions of -log(1 - tanh u), plus w_wrong *
    mean over wrong ones of -log(tanh u). Gradients flow through u alone. Above 5 the loss is cut off, and its
    gradient is 0.

    A group's weight is the other group's share of the batch: the rarer counts more, and a batch that is all right or
    all wrong has loss 0. Shares are of plain counts ("balanced"), or of effective numbers (1 - beta^n) / (1 - beta),
    beta = 0.999 ("effective"; weights inverse to those, scaled to sum to 1). In a batch of 64 the two weightings differ
    by 0.003 at most, in one of 1000 by 0.05.

    Args:
        logits: (B, C) float.
        labels: (B,) int64 true classes.
        weighting: one of `WEIGHTINGS`.

    Returns:
        Scalar, at most 5.

    Raises:
        ConfigError: no such weighting.

    Source: C-PEAL, arXiv 2507.21521; effective numbers from Cui et al., CVPR 2019, eq. 2.
    """
    if weighting not in WEIGHTINGS:
        raise unknown_name("calibration weighting", weighting, WEIGHTINGS)
    probs = logits.softmax(dim=1)  # (B, C)
    # The epsilon can take the entropy of a sure prediction just below 0, where rounding could make the last
    # logarithm NaN.
    entropy = -(probs * (probs + EPSILON).log()).sum(dim=1).clamp_max(0)  # (B,)
    doubt = entropy.tanh()  # (B,)
    right = logits.argmax(dim=1) == labels  # (B,)
    n_right, n_wrong = right.sum(), (~right).sum()
    size_right, size_wrong = n_right, n_wrong
    if weighting == "effective":
        size_right, size_wrong = effective_number(n_right), effective_number(n_wrong)
    total = size_right + size_wrong
    weights = torch.where(right, size_wrong / total / n_right, size_right / total / n_wrong)  # (B,)
    wanted = torch.where(right, 1 - doubt, doubt)  # (B,)
    return (weights * -(wanted + EPSILON).log()).sum().clamp_max(LOSS_LIMIT)


def effective_number(n: Tensor) -> Tensor:
    """(1 - beta^n) / (1 - beta) for counts n, beta = 0.999 (Cui et al., CVPR 2019, eq. 2)."""
    # beta is so close to 1 that float32 would lose digits in 1 - beta^n.
    return -torch.expm1(n * math.log(EFFECTIVE_BETA)) / (1 - EFFECTIVE_BETA)


def calibration_weight(epoch: int, epochs: int, peak: float = 1.0) -> float:
    """Weight of the calibration loss in an epoch: small while predictions are poor, full at the end.

    Piecewise linear in the share of training done: 0 in the first epoch, peak / 100 after a tenth, peak in the last
    epoch. A single epoch is the last one.

    Args:
        epoch: 0 to epochs - 1.
        epochs: how many there are.
        peak: weight in the last epoch.

    Raises:
        ConfigError: there is no such epoch.

    Source: C-PEAL, arXiv 2507.21521.
    """
    if not 0 <= epoch < epochs:
        raise ConfigError(f"epoch {epoch} of {epochs}: must be from 0 to {epochs - 1}.")
    done = epoch / (epochs - 1) if epochs > 1 else 1.0
    return float(np.interp(done, [0, 0.1, 1], [0, peak / 100, peak]))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Temperature T that minimises the negative log-likelihood of softmax(logits / T).

    The likelihood is concave in 1/T, so T is where its slope crosses 0. T stays within 1/20 to 20: predictions that
    are all right would drive it to 0 and give 1/20; predictions worse than chance give 20. Logits that are constant
    in every row say nothing and give 1.

    Args:
        logits: (N, C) float, of samples that the model was not fitted to. Log-probabilities do as well.
        labels: (N,) int64 true classes.

    Raises:
        ConfigError: no samples, or logits that are not finite.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    if not len(logits) or not logits.isfinite().all():
        raise ConfigError(
            f"a temperature needs at least one sample and finite logits, got {len(logits)} samples and "
            f"{int((~logits.isfinite()).sum())} values that are not finite. Clamp log-probabilities away from log 0."
        )
    lead = logits.double() - logits.double().gather(1, labels[:, None])  # (N, C) over the true class
    if not lead.any():
        return 1.0

    def slope(log_temperature: float) -> float:
        """Of the negative log-likelihood in 1/T; never rises with T."""
        return float(((lead / math.exp(log_temperature)).softmax(dim=1) * lead).sum(dim=1).mean())

    from scipy.optimize import brentq

    limit = math.log(TEMPERATURE_LIMIT)
    if slope(-limit) <= 0:
        return 1 / TEMPERATURE_LIMIT
    if slope(limit) >= 0:
        return TEMPERATURE_LIMIT
    return math.exp(brentq(slope, -limit, limit))


def softening(logits: Tensor, labels: Tensor) -> float:
    """The smallest temperature of 1 or more that the labels do not speak against.

    A few dozen labels tell little about a temperature, and predictions by models of fewer labels are worse than those
    that are to be calibrated. So predictions are softened only as far as the labels compel: to the lower end of the
    likelihood-ratio interval of 99 %, and not at all if that holds 1.

    Args:
        logits: (N, C) float, as for `fit_temperature`.
        labels: (N,) int64 true classes.

    Raises:
        ConfigError: no samples, or logits that are not finite.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2

    best = fit_temperature(logits, labels)
    allowed = _log_loss(logits, labels, best) + float(chi2.ppf(SURE, 1)) / 2

    def excess(temperature: float) -> float:
        return _log_loss(logits, labels, temperature) - allowed

    return 1.0 if best <= 1 or excess(1.0) <= 0 else float(brentq(excess, 1.0, best))


def _log_loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Negative log-likelihood of all labels together."""
    return float(F.cross_entropy(logits.double() / temperature, labels, reduction="sum"))
