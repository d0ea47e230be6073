"""Fitting: it learns, it is deterministic, and it says when it cannot."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from breadth import thinned

from palkit.errors import ConfigError, DivergenceError
from palkit.models.adapters import AdaptedModel, AdapterConfig, attach, trainable_parameters
from palkit.models.backbones import Backbone
from palkit.models.training import (
    FitReport,
    TrainingConfig,
    _Loop,
    class_weights,
    contradictions,
    cross_fitted_logits,
    cross_fitted_temperature,
    fit,
)
from palkit.progress import silent
from palkit.strategies.calibration import calibration_loss, fit_temperature


def model_of(backbone: Backbone, name: str, classes: int) -> AdaptedModel:
    return attach(backbone, AdapterConfig(name, start_block=3), classes, torch.zeros(backbone.width),
                  torch.ones(backbone.width), 0)  # fmt: skip


def model_and_data(backbone: Backbone, name: str, classes: int = 3) -> tuple[AdaptedModel, torch.Tensor, torch.Tensor]:
    """A model and two views of twelve separable samples."""
    model = model_of(backbone, name, classes)
    labels = torch.arange(12) % 3
    generator = torch.Generator().manual_seed(0)
    shape = (backbone.width,) if name == "linear_probe" else (5, backbone.width)
    centres = torch.randn(3, *shape, generator=generator)
    return model, centres[labels] + 0.1 * torch.randn(2, 12, *shape, generator=generator), labels


@pytest.mark.parametrize("name", ["linear_probe", "lora", "full"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns(tiny: Backbone, name: str, optimizer: str) -> None:
    model, inputs, labels = model_and_data(tiny, name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = TrainingConfig(optimizer=optimizer, head_epochs=10, epochs=20, head_lr=0.05, adapter_lr=2e-3)
    report = fit(model, inputs, labels, config, seed=0)
    assert report.steps == 30
    assert report.losses[-1] < 0.2 < report.losses[0]
    with torch.inference_mode():
        assert torch.equal(model(inputs[0])[1].argmax(1), labels)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    learning = {key for key, value in model.named_parameters() if value.requires_grad}
    assert changed == learning, "exactly what may learn has moved"


def test_same_seed_same_model(tiny: Backbone) -> None:
    heads = []
    for seed in (0, 0, 1):
        model, inputs, labels = model_and_data(tiny, "lora")
        fit(model, inputs, labels, TrainingConfig(epochs=3, batch_size=4), seed)
        heads.append(model.head.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_global_random_state_is_left_alone(tiny: Backbone) -> None:
    model, inputs, labels = model_and_data(tiny, "lora")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model, inputs, labels, TrainingConfig(epochs=2), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_head_goes_first_on_frozen_features(tiny: Backbone) -> None:
    model, inputs, labels = model_and_data(tiny, "lora")
    report = fit(model, inputs, labels, TrainingConfig(epochs=1, head_epochs=40, head_lr=0.05), seed=0)
    assert report.steps == 41
    assert report.losses[39] < 0.2, "the head alone separates this data"


@pytest.mark.parametrize("options", [{}, {"temperature_folds": 3}, {"early_stopping": 0.3}, {"calibration": 1.0}])
def test_a_model_of_one_class_says_that_class(tiny: Backbone, options: dict[str, Any]) -> None:
    model, inputs, _ = model_and_data(tiny, "lora")
    fit(model, inputs, torch.full((12,), 2), TrainingConfig(**options), seed=0)
    with torch.inference_mode():
        assert (model(inputs[0])[1].argmax(1) == 2).all()


def test_copies_with_other_labels_are_counted() -> None:
    inputs = torch.tensor([[1.0], [2.0], [1.0], [3.0], [3.0], [1.0]])
    assert contradictions(inputs, torch.tensor([0, 1, 1, 2, 2, 0])) == 3
    assert contradictions(inputs, torch.tensor([0, 1, 0, 2, 2, 0])) == 0


def test_divergence_is_reported_with_the_learning_rates(tiny: Backbone) -> None:
    model, inputs, labels = model_and_data(tiny, "full")
    inputs[:, 3] = float("nan")
    with pytest.raises(DivergenceError, match=r"loss became nan in epoch 0 with head_lr=0.01"):
        fit(model, inputs, labels, TrainingConfig(head_lr=0.01, head_epochs=0), seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adma"),
        ("augmentation", "mixup"),
        ("class_weights", "inverse"),
        ("precision", "float8"),
        ("calibration_weighting", "even"),
        ("epochs", 0),
        ("batch_size", 0),
        ("patience", 0),
        ("head_epochs", -1),
        ("head_lr", 0.0),
        ("adapter_lr", -1.0),
        ("max_grad_norm", 0.0),
        ("label_smoothing", 1.0),
        ("early_stopping", 1.5),
        ("calibration", -0.5),
        ("temperature_folds", 1),
    ],
)
def test_bad_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{field} .*{value}"):
        TrainingConfig(**{field: value})


def test_the_adapters_own_learning_rate_is_the_default(tiny: Backbone) -> None:
    heads = []
    for lr in (None, 2e-3, 1e-4):
        model, inputs, labels = model_and_data(tiny, "lora")
        fit(model, inputs, labels, TrainingConfig(epochs=3, adapter_lr=lr), seed=0)
        heads.append(model.head.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_class_weights_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    assert class_weights(labels, 4, "none") is None
    balanced = class_weights(labels, 4, "balanced")
    assert balanced is not None
    inverse = torch.tensor([1 / 4, 1 / 2, 0, 1])
    torch.testing.assert_close(balanced, inverse * 3 / inverse.sum())
    effective = class_weights(labels, 4, "effective")
    assert effective is not None
    number = torch.tensor([(1 - 0.999**n) / 0.001 for n in (4, 2, 1, 1)])
    expected = torch.tensor([1.0, 1, 0, 1]) / number
    torch.testing.assert_close(effective, expected * 3 / expected.sum(), rtol=1e-3, atol=1e-4)


def test_class_weights_help_the_rare_class(tiny: Backbone) -> None:
    """Two classes on top of each other, 10 to 2: only weighted training predicts the rare one where both are."""
    shares = {}
    for kind in ("none", "balanced"):
        model = attach(tiny, AdapterConfig("linear_probe"), 2, torch.zeros(tiny.width), torch.ones(tiny.width), 0)
        labels = torch.tensor([0] * 10 + [1] * 2)
        inputs = torch.ones(1, 12, tiny.width) / 8
        fit(model, inputs, labels, TrainingConfig(head_epochs=0, epochs=300, head_lr=0.05, class_weights=kind), seed=0)
        with torch.inference_mode():
            shares[kind] = float(model(inputs[0])[1].softmax(1)[0, 1])
    assert shares["none"] == pytest.approx(2 / 12, abs=0.03)
    assert shares["balanced"] == pytest.approx(0.5, abs=0.03)


def test_label_smoothing_keeps_predictions_from_certainty(tiny: Backbone) -> None:
    sure = {}
    for smoothing in (0.0, 0.3):
        model, inputs, labels = model_and_data(tiny, "linear_probe")
        fit(model, inputs, labels, TrainingConfig(epochs=200, head_lr=0.05, label_smoothing=smoothing), seed=0)
        with torch.inference_mode():
            sure[smoothing] = float(model(inputs[0])[1].softmax(1).amax(1).mean())
    assert sure[0.0] > 0.99
    assert sure[0.3] == pytest.approx(0.8, abs=0.05), "1 - 0.3 + 0.3 / 3"


@pytest.mark.parametrize("name", ["lora", "full"])
def test_bfloat16_trains_too(tiny: Backbone, name: str) -> None:
    model, inputs, labels = model_and_data(tiny, name)
    config = TrainingConfig(precision="bfloat16", head_epochs=10, epochs=20, head_lr=0.05)
    assert fit(model, inputs, labels, config, seed=0).losses[-1] < 0.2
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_gradients_are_clipped(tiny: Backbone) -> None:
    """One plain SGD step of learning rate 1 is as long as the gradient is allowed to be."""
    moved = {}
    for norm in (1e-3, 1e9):
        model, inputs, labels = model_and_data(tiny, "linear_probe")
        config = TrainingConfig(optimizer="sgd", head_epochs=0, epochs=1, head_lr=1.0, weight_decay=0.0,
                                warmup_epochs=0, max_grad_norm=norm)  # fmt: skip
        fit(model, inputs, labels, config, seed=0)
        moved[norm] = float(torch.cat([p.detach().flatten() for p in model.head.parameters()]).norm())
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[1e9] > 0.1


def test_ending_worse_than_guessing_is_a_divergence(tiny: Backbone) -> None:
    model, inputs, labels = model_and_data(tiny, "linear_probe")
    labels = labels[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    config = TrainingConfig(optimizer="sgd", head_epochs=0, epochs=3, batch_size=1, head_lr=100.0, max_grad_norm=100.0)
    with pytest.raises(DivergenceError, match=r"ended at a loss of .* where guessing has 1\.1, with head_lr=100"):
        fit(model, inputs, labels, config, seed=0)


def test_smoothed_targets_of_many_classes_are_no_divergence(tiny: Backbone) -> None:
    """Three of a hundred classes are seen: the smoothed loss stays high however well they are learnt."""
    model, inputs, labels = model_and_data(tiny, "linear_probe", classes=100)
    report = fit(model, inputs, labels, TrainingConfig(label_smoothing=0.4, head_lr=0.05), seed=0)
    assert report.losses[-1] > 1.2 * torch.tensor(3.0).log()
    with torch.inference_mode():
        assert torch.equal(model(inputs[0])[1].argmax(1), labels)


def test_early_stopping_holds_out_and_keeps_the_best(tiny: Backbone) -> None:
    """Labels at random: nothing to learn, so held-out loss is best early and training stops."""
    model, inputs, _ = model_and_data(tiny, "lora")
    labels = torch.randint(3, (12,), generator=torch.Generator().manual_seed(1))
    config = TrainingConfig(head_epochs=0, epochs=100, head_lr=0.05, early_stopping=0.3, patience=4)
    report = fit(model, inputs, labels, config, seed=0)
    best = min(range(len(report.held_out)), key=report.held_out.__getitem__)
    assert len(report.held_out) == best + 1 + 4 < 100
    assert report.steps == len(report.held_out)
    longer = TrainingConfig(head_epochs=0, epochs=100, head_lr=0.05, early_stopping=0.3, patience=100)
    other, inputs, _ = model_and_data(tiny, "lora")
    fit(other, inputs, labels, longer, seed=0)
    assert torch.equal(model.head.weight, other.head.weight), "the best epoch, however long it went on"
    plain, inputs, _ = model_and_data(tiny, "lora")
    assert fit(plain, inputs, labels, TrainingConfig(epochs=3), seed=0).held_out == []


def test_calibration_loss_changes_the_fit(tiny: Backbone) -> None:
    """Overlapping classes, so that some predictions stay wrong: the loss is lower with its weight than without."""
    found = {}
    for weight in (0.0, 10.0):
        model = attach(tiny, AdapterConfig("linear_probe"), 3, torch.zeros(tiny.width), torch.ones(tiny.width), 0)
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(60) % 3
        inputs = torch.zeros(1, 60, tiny.width)
        inputs[..., 0] = labels + torch.randn(60, generator=generator)
        fit(model, inputs, labels, TrainingConfig(epochs=60, head_lr=0.05, calibration=weight), seed=0)
        with torch.inference_mode():
            found[weight] = float(calibration_loss(model(inputs[0])[1], labels))
    assert found[10.0] < found[0.0] - 0.005


def tokens_of(features: torch.Tensor) -> torch.Tensor:
    """(..., 5, D) tokens that all are the feature."""
    return features[..., None, :].expand(*features.shape[:-1], 5, features.shape[-1]).contiguous()


def test_cross_fitted_temperature_sees_what_the_fit_does_not(tiny: Backbone) -> None:
    """Labels that features do not tell: models are sure of what they have seen and wrong about the rest."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 30, tiny.width, generator=generator)
    inputs, labels = tokens_of(features), torch.arange(30) % 3
    make = partial(model_of, tiny, "lora", 3)
    config = TrainingConfig(epochs=60, head_lr=0.05, temperature_folds=3)
    first = cross_fitted_temperature(make, inputs, inputs[0], labels, config, 0)
    assert first > 3
    assert first == cross_fitted_temperature(make, inputs, inputs[0], labels, config, 0)
    clear = tokens_of(features + 30 * torch.nn.functional.one_hot(labels, tiny.width))
    left, truth = cross_fitted_logits(make, clear, clear[0], labels, config, 0)
    assert fit_temperature(left, truth) < 1
    assert cross_fitted_temperature(make, clear, clear[0], labels, config, 0) == 1, "it only softens"
    two = torch.tensor([0, 1])
    assert cross_fitted_temperature(make, inputs[:, :2], inputs[0, :2], two, config, 0) == 1, "nothing to fit to"
    probe = partial(model_of, tiny, "linear_probe", 3)
    assert cross_fitted_temperature(probe, features, features[0], labels, config, 0) == 1, "a probe keeps its own"
    assert len(cross_fitted_logits(probe, features, features[0], labels, config, 0)[0]) == 30


def test_a_class_with_one_label_is_predicted_by_models_that_do_not_know_it(tiny: Backbone) -> None:
    """Ten clear classes of one label each: every held-out prediction is wrong, as for images of unseen classes."""
    labels = torch.arange(10)
    inputs = tokens_of(5 * torch.nn.functional.one_hot(labels, tiny.width).float()[None])
    config = TrainingConfig(epochs=60, head_lr=0.05, temperature_folds=5)
    make = partial(model_of, tiny, "lora", 10)
    assert cross_fitted_temperature(make, inputs, inputs[0], labels, config, 0) > 5


@pytest.mark.parametrize("name", ["adalora", "vera", "oft", "layernorm", "vpt"])
def test_every_kind_of_adapter_fits(tiny: Backbone, name: str) -> None:
    """AdaLoRA prunes and adds a penalty, VeRA shares matrices, OFT rotates, VPT adds tokens: one loop serves all."""
    model, inputs, labels = model_and_data(tiny, name)
    before = {key: value.detach().clone() for key, value in trainable_parameters(model).items()}
    fit(model, inputs, labels, TrainingConfig(head_epochs=20, epochs=20, head_lr=0.05), seed=0)
    with torch.inference_mode():
        assert torch.equal(model(inputs[0])[1].argmax(1), labels)
    moved = [key for key, value in trainable_parameters(model).items() if not torch.equal(value, before[key])]
    assert any(key.startswith("backbone.") for key in moved)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"optimizer": "sgd", "head_lr": 0.03},
    {"class_weights": "balanced"},
    {"class_weights": "effective"},
    {"early_stopping": 0.3},
    {"calibration": 1.0},
    {"label_smoothing": 0.1},
    {"temperature_folds": 3},
]


def fitted(backbone: Backbone, name: str, labels: torch.Tensor, options: dict[str, Any]) -> AdaptedModel:
    """Fitted to 40 noisy samples of nine classes, seven of which have labels."""
    generator = torch.Generator().manual_seed(3)
    shape = (backbone.width,) if name == "linear_probe" else (5, backbone.width)
    inputs = torch.randn(2, 40, *shape, generator=generator)

    def make() -> AdaptedModel:
        return attach(backbone, AdapterConfig(name, start_block=3, dropout=0.1 if name == "lora" else 0.0), 9,
                      torch.zeros(backbone.width), torch.ones(backbone.width), 0)  # fmt: skip

    config, model = TrainingConfig(**({"head_lr": 0.02} | options)), make()
    fit(model, inputs, labels, config, seed=0)
    if config.temperature_folds:
        model.temperature.fill_(cross_fitted_temperature(make, inputs, inputs[0], labels, config, 0))
    return model


@pytest.mark.parametrize(("options", "name"), thinned(OPTIONS, ["linear_probe", "lora"], every=2), ids=str)
def test_how_classes_are_numbered_changes_nothing(tiny: Backbone, name: str, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(7, (40,), generator=generator)
    renumbered = torch.randperm(9, generator=generator)
    shape = (64, tiny.width) if name == "linear_probe" else (64, 5, tiny.width)
    new = torch.randn(*shape, generator=generator)
    one = fitted(tiny, name, labels, options)
    other = fitted(tiny, name, renumbered[labels], options)
    with torch.inference_mode():
        expected, found = (model(new)[1].softmax(1) for model in (one, other))
    torch.testing.assert_close(found[:, renumbered], expected, rtol=0, atol=1e-6)


def test_a_head_is_fitted_in_float64(tiny: Backbone) -> None:
    """The same steps by hand, without an optimiser of torch: in float32 they part in the fifth digit."""
    model, inputs, labels = model_and_data(tiny, "linear_probe")
    config = TrainingConfig(head_epochs=0, epochs=200, warmup_epochs=0, head_lr=0.05, batch_size=12)
    fit(model, inputs, labels, config, seed=0)
    x, y = inputs.double().numpy(), np.eye(3)[labels.numpy()]
    weight, moments = np.zeros((3, tiny.width + 1)), np.zeros((2, 3, tiny.width + 1))  # the bias is the last column
    for step in range(200):
        rows = np.concatenate([x[step % 2], np.ones((12, 1))], axis=1)
        odds = np.exp(rows @ weight.T)
        gradient = (odds / odds.sum(1, keepdims=True) - y).T @ rows / 12
        gradient *= min(1.0, config.max_grad_norm / (np.linalg.norm(gradient) + 1e-6))
        moments[0] = 0.9 * moments[0] + 0.1 * gradient
        moments[1] = 0.999 * moments[1] + 0.001 * gradient**2
        first, second = moments[0] / (1 - 0.9 ** (step + 1)), moments[1] / (1 - 0.999 ** (step + 1))
        rate = 0.05 * 0.5 * (1 + np.cos(np.pi * step / 200))
        weight[:, :-1] *= 1 - rate * config.weight_decay
        weight -= rate * first / (np.sqrt(second) + 1e-8)
    np.testing.assert_allclose(model.head.weight.detach().numpy(), weight[:, :-1], rtol=2e-7)  # stored as float32


@pytest.mark.parametrize("name", ["linear_probe", "lora", "dora"])
def test_a_fit_in_float64_goes_on_where_float32_stops(tiny: Backbone, name: str) -> None:
    """Close to the fit in float32 but not the same, and float32 again in the end."""
    fits = {}
    for precision in ("float32", "float64"):
        model, inputs, labels = model_and_data(tiny, name)
        fit(model, inputs, labels, TrainingConfig(epochs=5, head_epochs=5, precision=precision), seed=0)
        assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
        fits[precision] = model(inputs[0])[1].detach()
    torch.testing.assert_close(fits["float32"], fits["float64"], atol=1e-3, rtol=1e-3)
    assert name == "linear_probe" or not torch.equal(fits["float32"], fits["float64"])


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_steps_of_a_head_that_are_written_out_are_those_of_autograd(
    classes: int, smoothing: float, weights: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = 2 * torch.randn(3, 45, 20, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (45,), generator=generator)
    config = TrainingConfig(
        batch_size=8, label_smoothing=smoothing, class_weights=weights, weight_decay=0.3, max_grad_norm=0.3
    )
    found = []
    for name in ("run", "run_head"):
        torch.manual_seed(1)
        head, report = torch.nn.Linear(20, classes).double(), FitReport()
        weight = class_weights(labels, classes, weights)
        loop = _Loop(config, labels, torch.ones(45, dtype=torch.bool), weight, report, silent)
        run = partial(loop.run, head) if name == "run" else loop.run_head
        run(head, inputs, 30, [(head, 0.05)])
        losses = torch.tensor(report.losses, dtype=torch.float64)
        found.append([head.weight.detach(), head.bias.detach(), losses, torch.tensor(report.steps)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
