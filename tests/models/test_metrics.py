"""Calibration metrics against slow, obvious references and against torchmetrics where the definition is the same."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from palkit.models.metrics import (
    adaptive_calibration_error,
    calibration_error,
    confidence_table,
    evaluate,
    pooled_reliability,
    reliability_of,
)

sizes = st.tuples(st.integers(1, 60), st.integers(2, 6), st.integers(0, 10_000))


def sample(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """(N, C) probabilities and (N,) labels."""
    n, classes, seed = size
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=rng)
    return logits.softmax(dim=1), torch.randint(classes, (n,), generator=rng)


def top_label(probs: Tensor, labels: Tensor) -> tuple[list[float], list[bool]]:
    rows = [[float(value) for value in row] for row in probs]
    best = [row.index(max(row)) for row in rows]
    return [max(row) for row in rows], [b == int(y) for b, y in zip(best, labels, strict=True)]


def slow_error(groups: list[list[tuple[float, bool]]]) -> float:
    """Share of the samples times |accuracy - mean confidence|, summed over groups."""
    total = sum(map(len, groups))
    gaps = [abs(np.mean([hit for _, hit in g]) - np.mean([c for c, _ in g])) * len(g) for g in groups if g]
    return float(sum(gaps) / total)


@settings(max_examples=50)
@given(sizes)
def test_ece_by_its_definition(size: tuple[int, int, int]) -> None:
    probs, labels = sample(size)
    confidence, correct = top_label(probs, labels)
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for pair in zip(confidence, correct, strict=True):
        groups[min(math.floor(15 * pair[0]), 14)].append(pair)
    assert evaluate_quietly(probs, labels)["ece"] == pytest.approx(slow_error(groups), abs=1e-6)


@settings(max_examples=50)
@given(sizes)
def test_adaptive_ece_by_its_definition(size: tuple[int, int, int]) -> None:
    probs, labels = sample(size)
    ordered = sorted(zip(*top_label(probs, labels), strict=True), key=lambda pair: pair[0])
    share, extra = divmod(len(ordered), 15)
    groups = [[ordered.pop(0) for _ in range(share + (number < extra))] for number in range(15)]
    assert not ordered
    assert evaluate_quietly(probs, labels)["adaptive_ece"] == pytest.approx(slow_error(groups), abs=1e-6)


@settings(max_examples=50)
@given(sizes)
def test_ece_is_that_of_torchmetrics_below_confidence_1(size: tuple[int, int, int]) -> None:
    probs, labels = sample(size)
    probs = 0.99 * probs + 0.01 / probs.shape[1]
    peer = float(multiclass_calibration_error(probs, labels, probs.shape[1], n_bins=15, norm="l1"))
    assert evaluate_quietly(probs, labels)["ece"] == pytest.approx(peer, abs=1e-5)


def test_torchmetrics_has_a_sixteenth_bin() -> None:
    """Why the calibration error is our own: a softmax in float32 does give confidences of exactly 1."""
    probs, labels = torch.tensor([[1.0, 0.0], [0.95, 0.05]]), torch.tensor([1, 0])
    assert evaluate(probs, labels)["ece"] == pytest.approx((1 - 0.05) / 2)
    assert float(multiclass_calibration_error(probs, labels, 2)) == pytest.approx((1 + 0.05) / 2)


def reliability(probs: Tensor, labels: Tensor) -> pd.DataFrame:
    samples = confidence_table(probs, labels)
    return reliability_of(samples["confidence"], samples["predicted"] == samples["label"])


def evaluate_quietly(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Kappa is undefined, and scikit-learn warns of it, where one class is all there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.metrics.cohen_kappa_score", lambda *_, **__: 0.0)
        return evaluate(probs, labels)


@settings(max_examples=50)
@given(sizes)
def test_reliability_holds_every_sample_and_the_ece(size: tuple[int, int, int]) -> None:
    probs, labels = sample(size)
    table = reliability(probs, labels)
    metrics = evaluate_quietly(probs, labels)
    assert list(table["bin"]) == list(range(15))
    assert table["count"].sum() == len(labels)
    assert (table["accuracy"].isna() == (table["count"] == 0)).all()
    gap = (table["count"] * (table["accuracy"] - table["confidence"]).abs()).sum() / len(labels)
    assert gap == metrics["ece"] == calibration_error(table)
    hits = (table["count"] * table["accuracy"]).sum() / len(labels)
    assert hits == pytest.approx(metrics["accuracy"])
    inside = table.dropna()
    assert (inside["confidence"] >= inside["bin"] / 15 - 1e-6).all()
    assert (inside["confidence"] <= (inside["bin"] + 1) / 15 + 1e-6).all()


def test_edges_belong_to_the_bin_that_they_open() -> None:
    edges = np.arange(16) / 15
    table = reliability_of(edges, np.ones(16, dtype=bool))
    assert list(table["count"]) == [1] * 14 + [2], "1 belongs to the last bin"
    np.testing.assert_allclose(table["confidence"][:14], edges[:14], atol=1e-7)
    just_below = np.nextafter(edges[1:15].astype(np.float32), np.float32(0))
    assert list(reliability_of(just_below, np.ones(14, dtype=bool))["count"]) == [1] * 14 + [0]
    probs = torch.tensor([[0.2] * 5, [1.0, 0, 0, 0, 0]])
    assert list(reliability(probs, torch.tensor([0, 0])).query("count > 0")["bin"]) == [3, 14]


def test_confidence_table_is_small_and_gives_the_same_reliability() -> None:
    probs, labels = sample((500, 10, 0))
    stored = confidence_table(probs, labels)
    assert stored.dtypes.astype(str).to_dict() == {"label": "int16", "predicted": "int16", "confidence": "float32"}
    assert list(stored["predicted"]) == probs.argmax(dim=1).tolist()
    again = reliability_of(stored["confidence"], stored["predicted"] == stored["label"])
    pd.testing.assert_frame_equal(again, reliability(probs, labels))


def test_samples_of_several_runs_can_be_pooled() -> None:
    """Over-confident in one run and under-confident in the other is calibrated on the whole."""
    over, under = (np.full(4, 0.5), [1, 0, 0, 0]), (np.full(4, 0.5), [1, 1, 1, 0])
    pooled = reliability_of(np.concatenate([over[0], under[0]]), over[1] + under[1])
    assert calibration_error(reliability_of(*over)) == calibration_error(reliability_of(*under)) == 0.25
    assert calibration_error(pooled) == 0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_one_sample() -> None:
    metrics = evaluate(torch.tensor([[0.1, 0.9]]), torch.tensor([1]))
    assert metrics["ece"] == metrics["adaptive_ece"] == pytest.approx(0.1)
    assert math.isnan(metrics["kappa"])
    assert all(math.isfinite(value) for name, value in metrics.items() if name != "kappa")


def test_one_class_predicted_always() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1]]).repeat(100, 1)
    metrics = evaluate(probs, torch.arange(100) % 2)
    assert metrics["ece"] == pytest.approx(0.1)
    # Equal confidences are split in order, so every bin of 6 or 7 has an accuracy of 3/6, 3/7 or 4/7.
    assert 0.1 <= metrics["adaptive_ece"] <= 0.6 - 3 / 7
    assert metrics["kappa"] == 0
    assert all(type(value) is float for value in metrics.values())


def test_adaptive_ece_follows_the_samples_where_equal_bins_do_not() -> None:
    """All confidences in one equal-width bin: their errors cancel there and show in bins of equal count."""
    confidence = np.linspace(0.94, 0.99, 300)
    correct = np.arange(300) < 290
    one_bin = calibration_error(reliability_of(confidence, correct))
    assert one_bin == pytest.approx(abs(correct.mean() - confidence.mean()), abs=1e-6)
    assert adaptive_calibration_error(confidence, correct) > 3 * one_bin


def test_pooled_reliability_is_that_of_all_samples_together() -> None:
    parts = [sample((40, 4, seed)) for seed in range(3)]
    tables = pd.concat([reliability(*part).assign(variant="a", seed=seed) for seed, part in enumerate(parts)])
    other = reliability(*sample((9, 3, 5))).assign(variant="b", seed=0)
    pooled = pooled_reliability(pd.concat([tables, other]), ["variant"])
    together = reliability(torch.cat([probs for probs, _ in parts]), torch.cat([labels for _, labels in parts]))
    first = pooled[pooled["variant"] == "a"].drop(columns="variant").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, together, check_dtype=False)
    second = pooled[pooled["variant"] == "b"].drop(columns="variant").reset_index(drop=True)
    pd.testing.assert_frame_equal(second, reliability(*sample((9, 3, 5))), check_dtype=False)
