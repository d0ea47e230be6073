"""Calibration loss, its weight and the temperature against slow references and laws that they must obey."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from palkit.errors import ConfigError
from palkit.strategies.calibration import (
    WEIGHTINGS,
    calibration_loss,
    calibration_weight,
    fit_temperature,
    softening,
)

seeds = st.integers(0, 10_000)


def sample(n: int, classes: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """(N, C) double logits and labels drawn from their softmax."""
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=rng, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=rng)[:, 0]


# --- the loss


def slow_loss(logits: list[list[float]], labels: list[int], weighting: str) -> float:
    """METHODS section 1, sample by sample."""
    groups: dict[bool, list[float]] = {True: [], False: []}
    for row, label in zip(logits, labels, strict=True):
        mass = sum(math.exp(z) for z in row)
        probs = [math.exp(z) / mass for z in row]
        u = -sum(p * math.log(p + 1e-6) for p in probs)
        right = row.index(max(row)) == label
        groups[right].append(-math.log((1 - math.tanh(u) if right else math.tanh(u)) + 1e-6))
    right, wrong = len(groups[True]), len(groups[False])
    if not right or not wrong:
        return 0.0
    weights = {True: wrong / len(labels), False: right / len(labels)}
    if weighting == "effective":
        raw = {group: (1 - 0.999) / (1 - 0.999 ** len(terms)) for group, terms in groups.items()}
        weights = {group: value / sum(raw.values()) for group, value in raw.items()}
    return min(5.0, sum(weights[group] * sum(terms) / len(terms) for group, terms in groups.items()))


@settings(max_examples=50)
@given(seeds, st.integers(1, 300), st.integers(2, 8), st.sampled_from(WEIGHTINGS), st.sampled_from([0.1, 2.0, 8.0]))
def test_loss_by_its_definition(seed: int, n: int, classes: int, weighting: str, scale: float) -> None:
    logits, labels = sample(n, classes, seed, scale)
    loss = calibration_loss(logits, labels, weighting)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(slow_loss(logits.tolist(), labels.tolist(), weighting), rel=1e-5, abs=1e-7)
    assert float(calibration_loss(logits.float(), labels, weighting)) == pytest.approx(float(loss), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradient_of_the_loss(weighting: str) -> None:
    logits, labels = sample(12, 4, 0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: calibration_loss(z, labels, weighting), logits)
    calibration_loss(logits, labels, weighting).backward()
    assert logits.grad is not None
    step = logits.detach() - 1e-3 * logits.grad
    right = logits.argmax(dim=1) == labels
    change = entropy(step) - entropy(logits.detach())
    assert (change[right] < 0).all(), "right predictions become more certain"
    assert (change[~right] > 0).all(), "wrong ones less"


def entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_batch_of_one_group_has_no_loss(weighting: str) -> None:
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0]], requires_grad=True)
    for label in (0, 1):
        loss = calibration_loss(logits, torch.tensor([label, label]), weighting)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient.any()


def test_weightings_part_in_large_batches() -> None:
    """Effective numbers hold back the weight of the rare group."""
    logits = torch.tensor([[1.0, 0.0, 0.0]]).repeat(4000, 1)
    labels = (torch.arange(4000) < 200).long()
    u = math.tanh(float(entropy(logits[:1])))
    balanced, effective = (float(calibration_loss(logits, labels, weighting)) for weighting in WEIGHTINGS)
    right_term, wrong_term = -math.log(1 - u), -math.log(u)
    assert balanced == pytest.approx(0.05 * right_term + 0.95 * wrong_term, rel=1e-3)
    e_right, e_wrong = 1 - 0.999**3800, 1 - 0.999**200
    w_right = e_wrong / (e_right + e_wrong)
    assert effective == pytest.approx(w_right * right_term + (1 - w_right) * wrong_term, rel=1e-3)
    assert effective > 1.3 * balanced


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [20.0, 1e4])
def test_sure_and_wrong_is_cut_off_at_five(dtype: torch.dtype, size: float) -> None:
    logits = torch.tensor([[size, 0, 0], [size, 0, 0]], dtype=dtype, requires_grad=True)
    loss = calibration_loss(logits, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 5
    assert logits.grad is not None
    assert not logits.grad.any()


def test_sure_and_wrong_below_the_cut_stays_finite() -> None:
    logits = torch.tensor([[1e4, 0, 0]] * 10, requires_grad=True)
    loss = calibration_loss(logits, torch.tensor([0] + [1] * 9))
    loss.backward()
    # 1 right of 10: the wrong group has weight 0.1.
    assert loss.item() == pytest.approx(-0.1 * math.log(1e-6), rel=1e-4)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_unknown_weighting_names_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown calibration weighting 'balance'.*'balanced'.*effective"):
        calibration_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), "balance")


# --- its weight


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [1.0]), (2, [0.0, 1.0]), (3, [0.0, 0.01 + 0.99 * 0.4 / 0.9, 1.0]), (11, [0.0, 0.01, 0.12, 0.23])],
)
def test_weight_by_hand(epochs: int, expected: list[float]) -> None:
    assert [calibration_weight(epoch, epochs) for epoch in range(len(expected))] == pytest.approx(expected)


@settings(max_examples=50)
@given(st.integers(1, 200), st.floats(0.01, 10))
def test_weight_rises_to_its_peak(epochs: int, peak: float) -> None:
    weights = np.array([calibration_weight(epoch, epochs, peak) for epoch in range(epochs)])
    assert weights[-1] == peak
    assert (np.diff(weights) > 0).all()
    early = np.arange(epochs) <= 0.1 * (epochs - 1)
    if epochs > 1:
        assert weights[0] == 0
        assert (weights[early] <= peak / 100 * (1 + 1e-9)).all()
        assert (weights[~early] > peak / 100).all()
    np.testing.assert_allclose(np.diff(weights[~early], 2), 0, atol=1e-9)


@pytest.mark.parametrize(("epoch", "epochs"), [(-1, 5), (5, 5), (0, 0)])
def test_weight_of_no_epoch(epoch: int, epochs: int) -> None:
    with pytest.raises(ConfigError, match=f"epoch {epoch} of {epochs}"):
        calibration_weight(epoch, epochs)


# --- temperature


def nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return float(F.cross_entropy(logits.double() / temperature, labels))


@settings(max_examples=50)
@given(seeds, st.integers(1, 200), st.integers(2, 6), st.sampled_from([0.05, 1.0, 4.0, 30.0]))
def test_no_temperature_on_a_grid_is_better(seed: int, n: int, classes: int, stretch: float) -> None:
    logits, labels = sample(n, classes, seed)
    logits = stretch * logits
    best = fit_temperature(logits, labels)
    grid = np.geomspace(1 / 20, 20, 200)
    losses = [nll(logits, labels, temperature) for temperature in grid]
    assert 1 / 20 <= best <= 20
    assert nll(logits, labels, best) <= min(losses) + 1e-9
    nearest = np.argmin(losses)
    assert grid[max(nearest - 1, 0)] - 1e-9 <= best <= grid[min(nearest + 1, 199)] + 1e-9


def test_temperature_recovers_the_stretch() -> None:
    logits, labels = sample(20_000, 5, 0)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)


@settings(max_examples=50)
@given(seeds, st.floats(0.2, 5))
def test_temperature_scales_with_the_logits(seed: int, factor: float) -> None:
    logits, labels = sample(100, 4, seed)
    temperature = fit_temperature(logits, labels)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * temperature, rel=1e-8)
    shift = torch.linspace(-9, 9, 100, dtype=torch.float64)[:, None]
    assert fit_temperature(logits + shift, labels) == pytest.approx(temperature, rel=1e-8)
    assert fit_temperature(logits.log_softmax(dim=1), labels) == pytest.approx(temperature, rel=1e-8)
    assert (logits / temperature).argmax(dim=1).equal(logits.argmax(dim=1))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e5])
def test_temperature_at_its_bounds(size: float) -> None:
    logits = torch.tensor([[size, 0.0], [0.0, size]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == 1 / 20, "all right"
    assert fit_temperature(logits, torch.tensor([1, 0])) == 20, "all wrong"
    assert fit_temperature(logits, torch.tensor([0, 0])) == 20, "no better than chance"


def test_constant_logits_have_temperature_1() -> None:
    labels = torch.tensor([0, 1, 2])
    assert fit_temperature(torch.zeros(3, 3), labels) == 1
    assert fit_temperature(torch.tensor([[0.1], [7.3], [-2.0]]).repeat(1, 3), labels) == 1


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.zeros(0, 3), "0 samples"), (torch.tensor([[0.0, -math.inf, math.nan]]), "2 values that are not finite")],
)
def test_temperature_needs_finite_samples(logits: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64))


# --- how far labels compel


def slow_softening(logits: Tensor, labels: Tensor) -> float:
    """The first temperature of a fine grid whose likelihood is not rejected at 1 % against the best of the grid."""
    grid = np.linspace(1 / 20, 20, 20_000)
    loss = np.array([float(F.cross_entropy(logits / t, labels, reduction="sum")) for t in grid])
    return float(max(1.0, grid[2 * (loss - loss.min()) <= 6.634897][0]))


@pytest.mark.parametrize("scale", [0.7, 3.0, 8.0])
def test_softening_is_the_lower_end_of_the_likelihood_interval(scale: float) -> None:
    logits, labels = sample(60, 4, 0)
    assert softening(scale * logits, labels) == pytest.approx(slow_softening(scale * logits, labels), abs=2e-3)


@settings(max_examples=50)
@given(seeds, st.integers(1, 60), st.floats(0.2, 10))
def test_softening_is_never_more_than_the_best_temperature_nor_sharpens(seed: int, n: int, scale: float) -> None:
    logits, labels = sample(n, 4, seed)
    best = fit_temperature(scale * logits, labels)
    assert 1 <= softening(scale * logits, labels) <= max(1.0, best) + 1e-9


def test_softening_leaves_calibrated_predictions_alone_and_finds_what_many_labels_show() -> None:
    assert np.mean([softening(*sample(30, 4, seed)) == 1 for seed in range(200)]) >= 0.98
    logits, labels = sample(5000, 4, 1)
    assert softening(3 * logits, labels) == pytest.approx(3, rel=0.1)
