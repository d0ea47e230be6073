"""A head that is solved instead of stepped towards: logistic regression on frozen features."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from palkit.strategies.kernels import Rows, View, chunks, square_gaps, unit_length

PLAIN = 0.5  # weight of the images as they are, beside all augmented views of them
GRADIENT = 1e-8  # largest entry at the solution: weights are then exact to what float32 holds
STEPS = 10_000
NEIGHBOURS = 10
SPREAD = 0.5  # share of its neighbours' labels in a row's own
STEPS_SPREAD = 30  # 0.5^30 is nothing
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


def even_rows(features: Rows, positions: Tensor | None = None) -> View:
    """(n, D) float64 rows of norm sqrt(D), which suits the penalty of `logistic`, of any features (N, D)."""
    scale = features.shape[1] ** 0.5
    return View(features, positions, lambda some: unit_length(some).double() * scale)


class PseudoLabels(NamedTuple):
    """What the labels say of other images of the pool.

    Attributes:
        features: (M, D) of these, standardised.
        targets: (M, C) float64, rows sum to 1.
        weights: (M,) float64, of which 1 is that of all labelled images.
    """

    features: Tensor
    targets: Tensor
    weights: Tensor


def pseudo_labels(features: Rows, positions: Tensor, labels: Tensor, classes: int) -> PseudoLabels:
    """Labels spread over a graph of nearest neighbours, as far as they reach.

    Each row is joined to its NEIGHBOURS nearest by the cube of their cosine; labels then flow along the edges, scaled
    by the degrees of both ends (Zhou et al., Learning with Local and Global Consistency, NeurIPS 2003). A row weighs
    as much as its likeliest class is likely, all together 1.

    Args:
        features: (N, D) standardised.
        positions: (L,) int64 of the labelled rows.
        labels: (L,) int64.
        classes: C.
    """
    from scipy.sparse import csr_array, diags_array

    x = View(features, change=unit_length)[:].cpu().double()
    square, size = x.square().sum(1), len(x)
    near = min(NEIGHBOURS + 1, size)  # the first is the row itself, or a copy
    parts = [square_gaps(x[part], square[part], x, square).topk(near, largest=False) for part in chunks(size, size)]
    gaps, found = (torch.cat(some).flatten() for some in zip(*parts, strict=True))
    alike = (1 - gaps / 2).clamp(min=0).pow(3)
    edges = csr_array((alike.numpy(), found.numpy(), np.arange(size + 1) * near), (size, size))
    edges.setdiag(0)
    edges = edges + edges.T
    scale = diags_array(1 / np.sqrt(np.maximum(edges.sum(axis=1), 1e-12)))
    edges = scale @ edges @ scale
    known = positions.cpu().numpy()
    given = np.zeros((size, classes))
    given[known, labels.cpu().numpy()] = 1
    spread = given
    for _ in range(STEPS_SPREAD):
        spread = SPREAD * (edges @ spread) + (1 - SPREAD) * given
    total = spread.sum(axis=1)
    total[known] = 0
    reached = np.flatnonzero(total > 1e-9)
    targets = torch.from_numpy(spread[reached] / total[reached, None])
    weights = targets.amax(1)
    return PseudoLabels(features[torch.from_numpy(reached).to(features.device)], targets, weights / weights.sum())


def logistic_on_views(
    views: Tensor,
    plain: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    decay: float,
    pseudo: PseudoLabels | None = None,
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
        pseudo: other images of the pool; None for none.

    Returns:
        As `logistic`.
    """
    rows, share = views.flatten(0, 1), weights.repeat(len(views)) / len(views)
    if plain is not None:
        rows = torch.cat([rows, plain])
        share = torch.cat([(1 - PLAIN) * share, PLAIN * weights])
    count = len(views) + (plain is not None)
    decay, targets = decay / len(targets) ** 0.5, targets.repeat(count, 1).double()
    if pseudo is not None and len(pseudo.features):
        share = torch.cat([share / share.sum(), pseudo.weights])
        rows, targets = torch.cat([rows, pseudo.features.cpu()]), torch.cat([targets, pseudo.targets])
    return logistic(rows, targets, share, decay)
