"""Fit a model to a few dozen labels, starting from the pretrained weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from palkit.adapters import AdaptedModel
from palkit.errors import ConfigError, DivergenceError


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is fitted in every round.

    Attributes:
        optimizer: "adamw" or "sgd" (momentum 0.9).
        epochs: passes over the labelled set with head and adapter.
        batch_size: images per step.
        head_lr: peak learning rate of the head.
        adapter_lr: peak learning rate of all backbone parameters that learn.
        weight_decay: decoupled (adamw) or L2 (sgd), on matrices only.
        head_epochs: passes before that with the head alone on frozen features (LP-FT, Kumar et al. 2022).
        warmup_epochs: of linear warm-up before cosine decay.
        label_smoothing: mass spread over the other classes.
        augmentation: "none", "crop" or "crop_flip" (random resized crop, horizontal flip).
        views: augmented views per labelled image; each epoch sees one of them.
    """

    optimizer: str = "adamw"
    epochs: int = 20
    batch_size: int = 32
    head_lr: float = 1e-3
    adapter_lr: float = 2e-3
    weight_decay: float = 1e-2
    head_epochs: int = 60
    warmup_epochs: int = 1
    label_smoothing: float = 0.0
    augmentation: str = "crop"
    views: int = 8

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ConfigError(f"training.optimizer {self.optimizer!r}: must be 'adamw' or 'sgd'.")
        if self.augmentation not in ("none", "crop", "crop_flip"):
            raise ConfigError(f"training.augmentation {self.augmentation!r}: must be 'none', 'crop' or 'crop_flip'.")
        for field in ("epochs", "batch_size", "views"):
            if getattr(self, field) < 1:
                raise ConfigError(f"training.{field} {getattr(self, field)}: must be at least 1.")


@dataclass(frozen=True)
class FitReport:
    """What fitting did: mean loss per epoch, steps taken."""

    losses: tuple[float, ...]
    steps: int


def fit(model: AdaptedModel, inputs: Tensor, labels: Tensor, config: TrainingConfig, seed: int) -> FitReport:
    """Train head and adapter on the labelled set, in place.

    Args:
        model: freshly attached.
        inputs: (V, L, ...) what `model` takes, V augmented views of L labelled images.
        labels: (L,) int64.
        config: optimiser, schedule, regularisation.
        seed: of the order of the images and of dropout.

    Raises:
        ConfigError: fewer than two classes among the labels.
        DivergenceError: the loss is not finite; says which step and what to change.
    """
    if len(labels.unique()) < 2:
        raise ConfigError(
            f"the labelled set holds one class only ({len(labels)} labels, all of class {int(labels[0])}): nothing to "
            "tell apart. Buy a larger first batch (batch_size), or another one (seed)."
        )
    losses: list[float] = []
    with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
        torch.manual_seed(seed)
        model.train()
        if config.head_epochs:
            features = _frozen_features(model, inputs)
            losses += _epochs(model.head, features, labels, config, config.head_epochs, [(model.head, config.head_lr)])
        groups: list[tuple[nn.Module, float]] = [
            (model.head, config.head_lr),
            (model.backbone, config.adapter_lr),
        ]
        losses += _epochs(model, inputs, labels, config, config.epochs, groups)
        model.eval()
    steps = len(losses) * math.ceil(len(labels) / config.batch_size)
    return FitReport(tuple(losses), steps)


def _frozen_features(model: AdaptedModel, inputs: Tensor) -> Tensor:
    """(V, L, D) features of an adapter that has not learnt anything yet."""
    model.eval()
    with torch.inference_mode():
        views = [model.features(view) for view in inputs]
    model.train()
    return torch.stack(views).clone()


def _epochs(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    epochs: int,
    groups: list[tuple[nn.Module, float]],
) -> list[float]:
    """Mean loss of each epoch. `inputs` is (V, L, ...); epoch e sees view e mod V."""
    optimizer = _optimizer(groups, config)
    steps_per_epoch = math.ceil(len(labels) / config.batch_size)
    scheduler = _warmup_cosine(optimizer, config.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    losses = []
    for epoch in range(epochs):
        view, total = inputs[epoch % len(inputs)], 0.0
        for rows in torch.randperm(len(labels), device=labels.device).split(config.batch_size):
            outputs = module(view[rows])
            logits = outputs[1] if isinstance(outputs, tuple) else outputs
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=config.label_smoothing)
            if not torch.isfinite(loss):
                raise DivergenceError(
                    f"the loss became {loss.item()} in epoch {epoch} with head_lr={config.head_lr} and "
                    f"adapter_lr={config.adapter_lr}. Lower the learning rates or lengthen warmup_epochs."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(rows)
        losses.append(total / len(labels))
    return losses


def _optimizer(groups: list[tuple[nn.Module, float]], config: TrainingConfig) -> torch.optim.Optimizer:
    """Optimiser with one group per learning rate and decay; biases and norms are not decayed."""
    settings = []
    for module, lr in groups:
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in learning if parameter.ndim > 1]
        vectors = [parameter for parameter in learning if parameter.ndim <= 1]
        settings += [{"params": matrices, "lr": lr, "weight_decay": config.weight_decay}] if matrices else []
        settings += [{"params": vectors, "lr": lr, "weight_decay": 0.0}] if vectors else []
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, momentum=0.9)
    return torch.optim.AdamW(settings)


def _warmup_cosine(optimizer: torch.optim.Optimizer, warmup: int, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
