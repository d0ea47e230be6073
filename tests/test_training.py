"""Fitting: it learns, it is deterministic, and it says when it cannot."""

import pytest
import torch

from palkit.adapters import AdaptedModel, AdapterConfig, attach
from palkit.backbones import Backbone
from palkit.errors import ConfigError, DivergenceError
from palkit.training import TrainingConfig, fit


def model_and_data(backbone: Backbone, name: str, classes: int = 3) -> tuple[AdaptedModel, torch.Tensor, torch.Tensor]:
    """A model and two views of twelve separable samples."""
    model = attach(backbone, AdapterConfig(name, start_block=3), classes, torch.zeros(backbone.width),
                   torch.ones(backbone.width), 0)  # fmt: skip
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
    config = TrainingConfig(optimizer=optimizer, head_epochs=10, epochs=20, head_lr=0.05)
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


def test_one_class_is_refused(tiny: Backbone) -> None:
    model, inputs, _ = model_and_data(tiny, "lora")
    with pytest.raises(ConfigError, match=r"one class only \(12 labels, all of class 2\).*batch_size.*seed"):
        fit(model, inputs, torch.full((12,), 2), TrainingConfig(), seed=0)


def test_divergence_is_reported_with_the_learning_rates(tiny: Backbone) -> None:
    model, inputs, labels = model_and_data(tiny, "full")
    inputs[:, 3] = float("nan")
    with pytest.raises(DivergenceError, match=r"loss became nan in epoch 0 with head_lr=0.01"):
        fit(model, inputs, labels, TrainingConfig(head_lr=0.01, head_epochs=0), seed=0)


@pytest.mark.parametrize(
    ("field", "value"), [("optimizer", "adma"), ("augmentation", "mixup"), ("epochs", 0), ("batch_size", 0)]
)
def test_bad_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{field} .*{value}"):
        TrainingConfig(**{field: value})
