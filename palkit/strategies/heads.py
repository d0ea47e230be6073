"""A head that is solved instead of stepped towards: logistic regression on frozen features."""

import numpy as np
import torch
from torch import Tensor

PLAIN = 0.5  # weight of the images as they are, beside all augmented views of them
GRADIENT = 1e-8  # largest entry at the solution: weights are then exact to what float32 holds
STEPS = 10_000
MEMORY = 20  # pairs of L-BFGS; more than SciPy's 10, because a step costs more than what is remembered


def logistic(features: Tensor, targets: Tensor, weights: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an L2 penalty, solved to convergence in float64 by L-BFGS.

    It minimises the weighted mean cross entropy plus decay / 2 times the sum of all squared weights. Biases are
    penalised like weights: the problem is then strictly convex also for classes without samples, which all get the
    same small probability, and its one solution depends neither on the order of samples nor on that of classes.

    Args:
        features: (N, D), about standardised.
        targets: (N, C), rows sum to 1.
        weights: (N,) of the samples, at least 0; their scale does not matter.
        decay: strength of the penalty, above 0.

    Returns:
        (C, D) weights and (C,) biases, float64.
    """
    from scipy.optimize import minimize

    x = np.column_stack([features.double().cpu().numpy(), np.ones(len(features))])  # (N, D + 1)
    y, w = targets.double().cpu().numpy(), weights.double().cpu().numpy()
    w = w / w.sum()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x @ flat.reshape(y.shape[1], -1).T  # (N, C)
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        total = odds.sum(axis=1, keepdims=True)
        entropy = w @ (np.log(total[:, 0]) - (y * logits).sum(axis=1))
        gradient = (w[:, None] * (odds / total - y)).T @ x
        return entropy + decay / 2 * (flat @ flat), gradient.ravel() + decay * flat

    options = {"maxiter": STEPS, "maxfun": STEPS, "maxcor": MEMORY, "ftol": 0.0, "gtol": GRADIENT}
    found = minimize(loss, np.zeros(y.shape[1] * x.shape[1]), jac=True, method="L-BFGS-B", options=options)
    solution = torch.from_numpy(found.x.reshape(y.shape[1], -1))
    return solution[:, :-1], solution[:, -1]


def logistic_on_views(
    views: Tensor, plain: Tensor | None, targets: Tensor, weights: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """Logistic regression on augmented views and the images as they are, each half of the weight.

    Views alone are further from the images that are to be predicted than these are from each other, which costs more
    the more labels there are; images alone are few, which costs more the fewer there are (docs/heads.md).

    Args:
        views: (V, L, D) features of V augmented views.
        plain: (L, D) features of the images as they are; None if the views are these.
        targets: (L, C), rows sum to 1.
        weights: (L,) of the images.
        decay: at one label; it falls with the square root of their number.

    Returns:
        As `logistic`.
    """
    rows, share = views.flatten(0, 1), weights.repeat(len(views)) / len(views)
    if plain is not None:
        rows = torch.cat([rows, plain])
        share = torch.cat([(1 - PLAIN) * share, PLAIN * weights])
    count = len(views) + (plain is not None)
    return logistic(rows, targets.repeat(count, 1), share, decay / len(targets) ** 0.5)
