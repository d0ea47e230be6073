"""The solved head against its definition, and laws that it must obey."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from palkit.errors import ConfigError, DivergenceError
from palkit.models.adapters import AdaptedModel, AdapterConfig, attach
from palkit.models.backbones import Backbone
from palkit.models.training import TrainingConfig, cross_fitted_logits, fit
from palkit.strategies import heads
from palkit.strategies.heads import logistic, logistic_on_views

SOLVED = TrainingConfig(head="logistic")


def sample(seed: int, count: int = 40, width: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Features that overlap, and labels of all classes but the last two."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes - 2, (count,), generator=rng)
    return F.one_hot(labels, width) + torch.randn(count, width, generator=rng, dtype=torch.float64), labels


@pytest.mark.parametrize("decay", [0.01, 0.3])
def test_it_is_the_minimum(decay: float) -> None:
    """The gradient of the objective, written down anew and differentiated by torch, is 0."""
    x, labels = sample(0)
    weights = torch.rand(40, generator=torch.Generator().manual_seed(1)).double()
    targets = F.one_hot(labels, 5) * 0.9 + 0.02
    w, b = (part.clone().requires_grad_() for part in logistic(x, targets, weights, decay))
    entropy = -(targets * (x @ w.T + b).log_softmax(1)).sum(1)
    loss = (weights * entropy).sum() / weights.sum() + decay / 2 * ((w**2).sum() + (b**2).sum())
    for gradient in torch.autograd.grad(loss, (w, b)):
        assert gradient.abs().max() < 1e-7


def test_it_is_scikit_learns_where_both_can() -> None:
    """Every class has labels, and the bias is a column like the others: C = 1 / (decay N)."""
    x, _ = sample(1)
    labels = torch.arange(40) % 5
    w, b = logistic(x, F.one_hot(labels, 5), torch.ones(40), 0.05)
    columns = np.column_stack([x, np.ones(40)])
    peer = LogisticRegression(C=1 / (0.05 * 40), fit_intercept=False, tol=1e-8, max_iter=10_000).fit(columns, labels)
    np.testing.assert_allclose(torch.column_stack([w, b]), peer.coef_, atol=1e-5)


def test_classes_without_labels_share_a_small_probability() -> None:
    x, labels = sample(2)
    w, b = logistic(x, F.one_hot(labels, 5), torch.ones(40), 0.05)
    probs = (x @ w.T + b).softmax(1)
    torch.testing.assert_close(probs[:, 3], probs[:, 4], rtol=0, atol=1e-6)
    assert 0 < probs[:, 3].mean() < 0.05


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_orders_of_samples_and_classes_change_nothing(seed: int) -> None:
    x, labels = sample(seed)
    rng = torch.Generator().manual_seed(seed)
    samples, classes = torch.randperm(40, generator=rng), torch.randperm(5, generator=rng)
    targets, weights = F.one_hot(labels, 5), torch.rand(40, generator=rng) + 0.1
    w, b = logistic(x, targets, weights, 0.05)
    other_w, other_b = logistic(x[samples], targets[samples][:, classes], weights[samples], 0.05)
    torch.testing.assert_close(other_w, w[classes], rtol=0, atol=1e-6)
    torch.testing.assert_close(other_b, b[classes], rtol=0, atol=1e-6)


def test_images_as_they_are_weigh_as_much_as_all_views_of_them() -> None:
    x, labels = sample(3)
    targets = F.one_hot(labels, 5)
    views = x + 0.3 * torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = logistic_on_views(views, x, targets, torch.ones(40), 0.5)
    rows = torch.cat([x, x, x, x, *views])  # each image four times, beside its four views
    expected = logistic(rows, targets.repeat(8, 1), torch.ones(320), 0.5 / 40**0.5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    alone = logistic_on_views(x[None], None, targets, torch.ones(40), 0.5)
    twice = logistic_on_views(x[None], x, targets, torch.ones(40), 0.5)
    torch.testing.assert_close(alone[0], twice[0], rtol=0, atol=1e-6)


def made(backbone: Backbone, name: str = "linear_probe", classes: int = 9) -> AdaptedModel:
    return attach(backbone, AdapterConfig(name, start_block=3), classes, torch.zeros(backbone.width),
                  torch.ones(backbone.width), 0)  # fmt: skip


def labelled(backbone: Backbone, name: str = "linear_probe") -> tuple[Tensor, Tensor, Tensor]:
    """Two views of 30 noisy samples of nine classes, the samples themselves, and their labels."""
    rng = torch.Generator().manual_seed(3)
    shape = (backbone.width,) if name == "linear_probe" else (5, backbone.width)
    labels = torch.randint(7, (30,), generator=rng)
    plain = torch.randn(7, *shape, generator=rng)[labels] + 0.5 * torch.randn(30, *shape, generator=rng)
    return plain + 0.2 * torch.randn(2, 30, *shape, generator=rng), plain, labels


@pytest.mark.parametrize("options", [{}, {"class_weights": "balanced"}, {"label_smoothing": 0.1}], ids=str)
def test_a_probe_is_the_solution_whatever_the_seed_and_the_order(tiny: Backbone, options: dict[str, object]) -> None:
    views, plain, labels = labelled(tiny)
    config = dataclasses.replace(SOLVED, **options)  # type: ignore[arg-type]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    renumbered = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    one, other = made(tiny), made(tiny)
    fit(one, views, labels, config, 0, plain=plain)
    fit(other, views[:, order], renumbered[labels[order]], config, 1, plain=plain[order])
    with torch.inference_mode():
        expected, found = (model(plain)[1].softmax(1) for model in (one, other))
    torch.testing.assert_close(found[:, renumbered], expected, rtol=0, atol=1e-6)
    assert (expected.argmax(1) == labels).float().mean() > 0.9
    assert expected.min() > 1e-4, "smoothing or not, a class without labels is not ruled out"
    assert one.head.weight.dtype == torch.float32


def test_an_adapter_starts_from_the_solution(tiny: Backbone) -> None:
    views, plain, labels = labelled(tiny, "lora")
    model, still = made(tiny, "lora"), made(tiny, "lora")
    report = fit(model, views, labels, dataclasses.replace(SOLVED, epochs=3), 0, plain=plain)
    assert (report.steps, len(report.losses)) == (3, 3)
    slow = dataclasses.replace(SOLVED, epochs=1, head_lr=1e-9, adapter_lr=1e-9, weight_decay=0.0)
    fit(still, views, labels, slow, 0, plain=plain)
    with torch.inference_mode():
        frozen, features = (torch.stack([still.features(one) for one in part]) for part in (plain[None], views))
    weight, _ = logistic_on_views(features, frozen[0], F.one_hot(labels, 9), torch.ones(30), SOLVED.head_decay)
    torch.testing.assert_close(still.head.weight.detach().double(), weight, rtol=0, atol=1e-5)


def test_parts_and_one_class_and_refusals(tiny: Backbone) -> None:
    views, plain, labels = labelled(tiny)
    config = dataclasses.replace(SOLVED, temperature_folds=3)
    left, truth = cross_fitted_logits(lambda: made(tiny), views, plain, labels, config, 0)
    assert (left.argmax(1) == truth).float().mean() > 0.9
    model = made(tiny)
    fit(model, views, torch.full((30,), 2), SOLVED, 0, plain=plain)
    with torch.inference_mode():
        assert (model(plain)[1].argmax(1) == 2).all()
    for unfit in (dataclasses.replace(SOLVED, early_stopping=0.2), dataclasses.replace(SOLVED, calibration=1.0)):
        with pytest.raises(ConfigError, match="is solved, without epochs"):
            fit(made(tiny), views, labels, unfit, 0, plain=plain)
    views[0, 3] = float("nan")
    with pytest.raises(DivergenceError, match="not finite"):
        fit(made(tiny), views, labels, SOLVED, 0, plain=plain)


def test_pseudo_labels_are_scikit_learns_on_the_same_graph() -> None:
    """LabelSpreading on the graph from its definition, pair by pair; rows that no label reaches are left out."""
    from sklearn.semi_supervised import LabelSpreading

    rng = torch.Generator().manual_seed(0)
    near, far = torch.randn(60, 5, generator=rng) + 1, torch.randn(20, 5, generator=rng) - 30
    features = torch.cat([near, far])
    positions, labels = torch.tensor([7, 3, 50, 21]), torch.tensor([0, 2, 2, 0])
    unit = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    cosine = unit @ unit.T
    graph = np.zeros((80, 80))
    for row in range(80):
        for other in [i for i in np.argsort(-cosine[row]) if i != row][: heads.NEIGHBOURS]:
            graph[row, other] += max(cosine[row, other], 0) ** 3
            graph[other, row] += max(cosine[row, other], 0) ** 3
    given = np.full(80, -1)
    given[positions] = labels
    peer = LabelSpreading(kernel=lambda a, b: graph, alpha=heads.SPREAD, max_iter=1000, tol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows without a label divide by 0
        expected = peer.fit(np.zeros((80, 1)), given).label_distributions_
    found = heads.pseudo_labels(features, positions, labels, 4)
    reached = [row for row in range(60) if row not in positions]
    assert torch.equal(found.features, features[reached])
    np.testing.assert_allclose(found.targets[:, [0, 2]], expected[reached], atol=1e-6)
    assert (found.targets[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(found.weights, expected[reached].max(1) / expected[reached].max(1).sum(), atol=1e-6)


def test_pseudo_labels_do_not_hang_on_the_order_of_rows() -> None:
    rng = torch.Generator().manual_seed(0)
    features, order = torch.randn(50, 5, generator=rng), torch.randperm(50, generator=rng)
    positions, labels = torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])
    one = heads.pseudo_labels(features, positions, labels, 3)
    other = heads.pseudo_labels(features[order], order.argsort()[positions], labels, 3)
    back = order[~torch.isin(order, positions)] - 6
    np.testing.assert_allclose(other.targets, one.targets[back], atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pseudo_labels_of_a_pool_of_few(size: int) -> None:
    """A pool that is labelled already has none, and the head is as without."""
    features = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    found = heads.pseudo_labels(features, torch.arange(size), torch.zeros(size, dtype=torch.int64), 2)
    assert len(found.features) == 0
    views, targets = features[None], torch.eye(2)[torch.zeros(size, dtype=torch.int64)]
    for one, other in zip(
        heads.logistic_on_views(views, None, targets, torch.ones(size), 1.0, found),
        heads.logistic_on_views(views, None, targets, torch.ones(size), 1.0),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_pseudo_labels_count_as_much_as_they_are_to() -> None:
    """An image with a sure pseudo-label of weight 1 is worth what the only labelled one is."""
    features, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2)
    pseudo = heads.PseudoLabels(features[1:], labels[1:].double(), torch.ones(1).double())
    found = heads.logistic_on_views(features[None, :1], None, labels[:1], torch.ones(1), 1.0, pseudo)
    expected = heads.logistic(features, labels, torch.ones(2), 1.0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
