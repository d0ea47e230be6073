"""Fitting of a model to a few dozen labels, starting from the pretrained weights."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from palkit.errors import ConfigError, DivergenceError
from palkit.models.adapters import ADAPTERS, AdaptedModel, Tuner, trainable_parameters
from palkit.models.devices import Precision, autocast, doubled, seeded_globally
from palkit.progress import Progress, silent
from palkit.storage.checks import Checked, Count
from palkit.strategies.calibration import calibration_loss, calibration_weight, effective_number, softening
from palkit.strategies.heads import PseudoLabels, logistic_on_views

Rate = Annotated[float, Field(gt=0, le=1e6)]  # float32 overflows soon after
Share = Annotated[float, Field(ge=0, lt=1)]
DIVERGED = 2.0  # times the loss of guessing: what ends there has learnt nothing but harm
Pseudo = Callable[[Tensor], PseudoLabels]  # what the labels of some images, (n,) of the labelled ones, say of the pool
Groups = list[tuple[nn.Module, float]]  # what learns, and its learning rate
LOWER_RATES = "Lower the learning rates, lengthen warmup_epochs, or lower max_grad_norm."


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """How a model is fitted in every round. Defaults were searched on validation data, see notebook 07.

    Attributes:
        optimizer: "adamw" or "sgd" (momentum 0.9).
        epochs: passes over the labelled set with head and adapter.
        batch_size: images per step.
        head_lr: peak learning rate of the head.
        adapter_lr: peak learning rate of all backbone parameters that learn; None takes the adapter's own.
        weight_decay: decoupled (adamw) or L2 (sgd), on matrices only.
        head_epochs: passes before that with the head alone on frozen features (LP-FT, Kumar et al. 2022).
        head: how the head alone is fitted: "optimizer" (in these passes) or "logistic" (solved, see
            `palkit.strategies.heads`: better and faster, docs/heads.md). A probe is then ready; with an adapter it is
            what both start from.
        head_decay: L2 penalty of a solved head at one label; it falls with the square root of their number.
        pseudo_labels: weight of the unlabelled pool, over that of the labels, in a solved head: each of its images
            counts for the classes of its neighbours (`palkit.strategies.heads.pseudo_labels`); 0 leaves it out.
        warmup_epochs: of linear warm-up before cosine decay.
        label_smoothing: mass spread over the other classes.
        class_weights: of the loss: "none", "balanced" (inverse to the class's share of the labels) or
            "effective" (inverse to its effective number, Cui et al. 2019, beta 0.999).
        augmentation: "none", "crop" or "crop_flip" (random resized crop, horizontal flip).
        views: augmented views per labelled image; each epoch sees one of them.
        max_grad_norm: gradients are scaled down to this norm.
        precision: of the products while fitting: "float32", "bfloat16", "float64" (the same fit on every processor)
            or "auto" (the faster one of the first two, measured).
        early_stopping: share of the labels held out to choose the best epoch by its loss; 0 trains on all of them.
        patience: epochs without a better one before early stopping ends the fit.
        calibration: peak weight of C-PEAL's calibration loss; 0 leaves it out.
        calibration_weighting: of right and wrong predictions in it: "balanced" or "effective".
        warm_start: whether a round of a run goes on from the weights of the round before instead of the pretrained
            ones (docs/recipe.md); a solved head is solved again, on the features as they are then.
        temperature_folds: parts of the labelled set of which each is predicted by a model fitted to the others, to
            find the temperature, 1 or more, that divides the final model's logits; 0 leaves them as they are. For
            adapters that change the backbone: a linear probe keeps temperature 1 (docs/heads.md).
    """

    part = "training."

    optimizer: Literal["adamw", "sgd"] = "adamw"
    epochs: Count = 20
    batch_size: Count = 32
    head_lr: Rate = 1e-3
    adapter_lr: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 1e-2
    head_epochs: Annotated[int, Field(ge=0)] = 60
    head: Literal["optimizer", "logistic"] = "optimizer"
    head_decay: Rate = 1.0
    pseudo_labels: Annotated[float, Field(ge=0, le=100)] = 0.0
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    label_smoothing: Share = 0.0
    class_weights: Literal["none", "balanced", "effective"] = "none"
    augmentation: Literal["none", "crop", "crop_flip"] = "crop"
    views: Annotated[int, Field(ge=1, le=1000)] = 8  # all of an image's are held in memory
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Precision = "float32"
    early_stopping: Share = 0.0
    patience: Count = 5
    calibration: Annotated[float, Field(ge=0)] = 0.0
    calibration_weighting: Literal["balanced", "effective"] = "balanced"
    warm_start: bool = False
    temperature_folds: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature_folds == 1:
            raise ConfigError("training.temperature_folds 1: must be 0 (none), or 2 or more.")
        if self.pseudo_labels and self.head != "logistic":
            raise ConfigError("training.pseudo_labels are for a head that is solved: training.head must be 'logistic'.")
        unseen = [name for name in ("early_stopping", "temperature_folds", "pseudo_labels") if getattr(self, name)]
        if self.warm_start and unseen:
            raise ConfigError(
                f"training.{' and '.join(unseen)} must be 0 with warm_start: the model has learnt from these labels in "
                "the round before."
            )


@dataclass
class FitReport:
    """Record of a fit.

    Attributes:
        losses: mean loss of each epoch, those of the head alone first.
        held_out: loss of the held-out labels after each epoch of the whole model; empty without early stopping.
        steps: optimiser steps.
    """

    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    steps: int = 0


def fit(
    model: AdaptedModel,
    inputs: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    seed: int,
    progress: Progress = silent,
    *,
    plain: Tensor | None = None,
    pseudo: Pseudo | None = None,
) -> FitReport:
    """Train head and adapter on the labelled set, in place.

    Args:
        model: freshly attached, with a warm start resumed.
        inputs: (V, L, ...) what `model` takes, V augmented views of L labelled images.
        labels: (L,) int64.
        config: optimiser, schedule, regularisation.
        seed: of the order of the images, of dropout and of what is held out.
        progress: called with ("fitting", epochs done, epochs in all); what it raises ends the fit.
        plain: (L, ...) the same images as they are; a solved head needs them beside augmented views.
        pseudo: what a solved head is to learn from beside them, by the images that it learns from: what is held out
            says nothing.

    A first batch may be of one class: the model is fitted, and the next batch is bought all the same.

    Raises:
        ConfigError: a probe is to be solved, and stopped early or fitted with the calibration loss.
        DivergenceError: the loss or a gradient is not finite, or the model ends far worse than guessing; says what
            to change.
    """
    report = FitReport()
    with seeded_globally(seed, inputs.device), doubled(model, config.precision):
        inputs = inputs.to(model.feature_mean.dtype)
        learn = ~_held_out(labels, config.early_stopping)
        weight = class_weights(labels[learn], model.head.out_features, config.class_weights)
        loop = _Loop(config, labels, learn, weight, report, progress)
        probe = model.start_block == model.backbone.depth
        if config.head == "logistic" and (config.head_epochs or probe):
            _solve_head(model, inputs, plain, pseudo, loop, probe)
        elif config.head_epochs or probe:
            _fit_head(model, inputs, loop, probe)
        if not probe:
            _fit_all(model, inputs, loop)
        model.eval()
    return report


def _fit_head(model: AdaptedModel, inputs: Tensor, loop: "_Loop", probe: bool) -> None:
    """Train the head alone on frozen features; of a probe that is all there is.

    In float64, on the CPU, which every machine has: in float32 the last bits of another processor grow through the
    optimiser until predictions differ. It costs nothing: a step is mostly overhead, and little of it with few labels.
    """
    config = loop.config
    features = _frozen_features(model, inputs, config.precision).cpu().double()
    head = copy.deepcopy(model.head).cpu().double()
    groups: Groups = [(head, config.head_lr)]
    written_out = config.optimizer == "adamw" and not config.calibration and bool(loop.learn.all())
    for epochs, choose in ((config.head_epochs, False), (config.epochs if probe else 0, True)):
        if epochs and written_out:
            loop.run_head(head, features, epochs, groups)
        elif epochs:
            loop.run(head, head, features, epochs, groups, choose=choose)
    model.head.load_state_dict(head.state_dict())


def _solve_head(
    model: AdaptedModel, inputs: Tensor, plain: Tensor | None, pseudo: Pseudo | None, loop: "_Loop", probe: bool
) -> None:
    """Put the solution of logistic regression on frozen features into the head."""
    config = loop.config
    if probe and (config.early_stopping or config.calibration):
        raise ConfigError(
            "training.head 'logistic' of a linear probe is solved, without epochs: early_stopping and calibration must "
            "be 0, or training.head 'optimizer'."
        )
    views = _frozen_features(model, inputs, config.precision)[:, loop.learn]
    images = None if plain is None else _frozen_features(model, plain[loop.learn][None], config.precision)[0]
    if not views.isfinite().all():
        raise DivergenceError("features of the labelled images are not finite: no head can be fitted to them.")
    labels, classes = loop.labels[loop.learn], model.head.out_features
    targets = F.one_hot(labels, classes) * (1 - config.label_smoothing) + config.label_smoothing / classes
    weights = torch.ones(len(labels)) if loop.weight is None else loop.weight[labels]
    others = None if pseudo is None else pseudo(loop.learn.nonzero().squeeze(1))
    solution = logistic_on_views(
        views.cpu(), images if images is None else images.cpu(), targets.cpu(), weights.cpu(), config.head_decay, others
    )
    with torch.no_grad():
        model.head.weight.copy_(solution[0])
        model.head.bias.copy_(solution[1])
    if probe:
        loop.progress("fitting", 1, 1)


def _fit_all(model: AdaptedModel, inputs: Tensor, loop: "_Loop") -> None:
    """Train head and adapter together; the head and the loss in float64 where the device has it.

    They sum over the classes: in float32 the number of a class would show in the last bits of every gradient.
    """
    config = loop.config
    dtype = torch.float32 if inputs.device.type == "mps" else torch.float64

    def forward(rows: Tensor) -> Tensor:
        with autocast(rows.device, config.precision):
            features = model.features(rows)
        return model.logits(features.to(dtype))

    adapter_lr = config.adapter_lr or ADAPTERS[model.config.name].adapter_lr
    groups: Groups = [(model.head, config.head_lr), (model.backbone, adapter_lr)]
    model.head.to(dtype)
    try:
        loop.run(model, forward, inputs, config.epochs, groups, choose=True)
    finally:
        model.head.to(model.feature_mean.dtype)


def class_weights(labels: Tensor, classes: int, kind: str) -> Tensor | None:
    """(C,) weights of the loss, mean 1 over the classes that have labels; None for "none".

    Args:
        labels: (L,) int64.
        classes: C.
        kind: "none", "balanced" or "effective" (Cui et al., Class-Balanced Loss, CVPR 2019, eq. 2).
    """
    if kind == "none":
        return None
    counts = labels.bincount(minlength=classes).double().cpu()  # in float32 sums would depend on the classes' order
    size = counts if kind == "balanced" else effective_number(counts)
    weight = torch.where(counts > 0, 1 / size.clamp_min(1e-12), torch.zeros_like(counts))
    return (weight * (counts > 0).sum() / weight.sum()).float().to(labels.device)


def cross_fitted_temperature(
    make: Callable[[], AdaptedModel],
    inputs: Tensor,
    plain: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    seed: int,
    pseudo: Pseudo | None = None,
) -> float:
    """Temperature that suits predictions of labels that a model has not seen: no label is spent on it.

    Parts are drawn at random and not by class: the only label of a class is then predicted by a model that does not
    know the class, and the share of such labels is what an image of an unseen class is as likely as (Good-Turing).
    Classes kept out of the parts would make the temperature blind to them, and too low where it matters most.

    It only softens predictions, no more than the labels compel, and only those of adapters that change the backbone,
    which are much too sure with few labels. Models of parts have fewer labels than the final one, and labels that a
    strategy bought are harder than the pool: a linear probe, which is not far from calibrated, is as often made worse
    as better (docs/heads.md).

    Args:
        make: a freshly attached model.
        inputs: (V, L, ...) as for `fit`.
        plain: (L, ...) the same images as they are.
        labels: (L,) int64.
        config: its `temperature_folds` says how many models are fitted.
        seed: of the parts and the fits.
        pseudo: as for `fit`; a part's labels say nothing of the pool to the model that predicts them.

    Returns:
        At least 1.0; 1.0 for a linear probe, or if no part leaves two classes to the others or all their fits diverge.
    """
    if make().config.name == "linear_probe":
        return 1.0
    logits, truth = cross_fitted_logits(make, inputs, plain, labels, config, seed, pseudo)
    return softening(logits, truth) if len(logits) else 1.0


def cross_fitted_logits(
    make: Callable[[], AdaptedModel],
    inputs: Tensor,
    plain: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    seed: int,
    pseudo: Pseudo | None = None,
) -> tuple[Tensor, Tensor]:
    """(M, C) logits of labelled images by models that did not see them, and their (M,) labels; arguments as above.

    Parts that leave one class to the others, or whose fit diverges, are left out.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    part = (order % config.temperature_folds).to(labels.device)
    logits, truth = [torch.empty(0, 1)], [torch.empty(0, dtype=torch.int64)]
    for fold in part.unique():
        left = part != fold
        if len(labels[left].unique()) < 2:
            continue
        model = make()
        part_pseudo = None if pseudo is None else partial(_of_some, pseudo, left.nonzero().squeeze(1))
        try:
            fit(model, inputs[:, left], labels[left], config, seed, plain=plain[left], pseudo=part_pseudo)
        except DivergenceError:
            continue  # the other parts say enough
        precision = config.precision
        with torch.inference_mode(), doubled(model, precision), autocast(plain.device, precision):
            logits.append(model(plain[~left].to(model.feature_mean.dtype))[1].float().cpu())
        truth.append(labels[~left].cpu())
    return torch.cat(logits[1:] or logits), torch.cat(truth)


def _of_some(pseudo: Pseudo, images: Tensor, rows: Tensor) -> PseudoLabels:
    """Pseudo-labels by rows of some images."""
    return pseudo(images[rows])


def contradictions(inputs: Tensor, labels: Tensor) -> int:
    """Number of labelled images that are the same to a model as one with another label: it cannot learn these.

    Args:
        inputs: (L, ...) of the images as they are.
        labels: (L,) classes.
    """
    same = inputs.flatten(1).unique(dim=0, return_inverse=True)[1]
    classes = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.bool, device=labels.device)
    classes[same, labels] = True
    return int((classes.sum(1) > 1)[same].sum())


def _held_out(labels: Tensor, share: float) -> Tensor:
    """(L,) bool, every class of two or more labels giving about `share` of them, but never its last one."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    if share:
        for label in dict.fromkeys(labels.tolist()):  # as bought: the draws must not depend on the classes' numbers
            rows = (labels == label).nonzero().squeeze(1)
            number = min(len(rows) - 1, max(1, round(share * len(rows))))
            chosen[rows[torch.randperm(len(rows)).to(rows.device)[:number]]] = True
    return chosen


def _frozen_features(model: AdaptedModel, inputs: Tensor, precision: str) -> Tensor:
    """(V, L, D) features of an adapter as it is before this fit."""
    model.eval()
    with torch.inference_mode(), autocast(inputs.device, precision):
        dtype = model.feature_mean.dtype
        views = [model.features(view.to(dtype)).to(dtype) for view in inputs]
    return torch.stack(views).clone()


@dataclass
class _Loop:
    """Epochs over the labelled set: of the head alone, or of head and adapter."""

    config: TrainingConfig
    labels: Tensor
    learn: Tensor
    weight: Tensor | None
    report: FitReport
    progress: Progress

    def run(
        self,
        net: nn.Module,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,
        epochs: int,
        groups: Groups,
        *,
        choose: bool = False,
    ) -> None:
        """Train for some epochs.

        Args:
            net: all that learns.
            forward: (B, ...) inputs to (B, C) logits.
            inputs: (V, L, ...); epoch e sees view e mod V of the rows to learn from.
            epochs: how many.
            groups: parts of `net` and their learning rates.
            choose: keep the epoch that held-out labels find best, if there are such labels.
        """
        config, tuner = self.config, net.tuner if isinstance(net, AdaptedModel) else Tuner()
        labels, learn = self.labels.to(inputs.device), self.learn.to(inputs.device)
        rows_to_learn = learn.nonzero().squeeze(1)
        choose = choose and not learn.all()
        optimizer = _optimizer(groups, config)
        steps = math.ceil(len(rows_to_learn) / config.batch_size)
        factor = partial(_warmup_cosine, warmup=config.warmup_epochs * steps, total=epochs * steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        lowest, waited, best = math.inf, 0, dict[str, Tensor]()  # of the held-out labels: loss, epochs since, weights
        net.train()
        tuner.begin(epochs * steps)
        step, error = 0, 0.0
        for epoch in range(epochs):
            view, total, error = inputs[epoch % len(inputs)], 0.0, 0.0
            calibration = calibration_weight(epoch, epochs, config.calibration)
            order = torch.randperm(len(rows_to_learn)).to(labels.device)
            for rows in rows_to_learn[order].split(config.batch_size):
                logits = forward(view[rows])
                loss = self._cross_entropy(logits, labels[rows], config.label_smoothing)
                # Smoothed targets cannot be met, so what they cost tells nothing of divergence.
                mistake = self._cross_entropy(logits.detach(), labels[rows])
                if calibration:
                    loss = loss + calibration * calibration_loss(logits, labels[rows], config.calibration_weighting)
                if (penalty := tuner.penalty()) is not None:
                    loss = loss + penalty
                self._check(loss, "loss", epoch, groups)
                optimizer.zero_grad()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, max_norm=config.max_grad_norm)
                self._check(norm, "gradient", epoch, groups)
                optimizer.step()
                tuner.after_backward(step)
                scheduler.step()
                step += 1
                total += loss.item() * len(rows) / len(rows_to_learn)
                error += mistake.item() * len(rows) / len(rows_to_learn)
            self._epoch_done(total)
            if not choose:
                continue
            held_out, waited = self._held_out_loss(net, forward, inputs, labels, ~learn), waited + 1
            if held_out < lowest:
                lowest, waited = held_out, 0
                best = {name: p.detach().clone() for name, p in trainable_parameters(net).items()}
            if waited >= config.patience:
                break
        self.report.steps += step
        if best:
            net.load_state_dict(best, strict=False)
        else:
            self._check_end(error, logits.shape[1], groups)

    def run_head(self, head: nn.Linear, inputs: Tensor, epochs: int, groups: Groups) -> None:
        """Train a head as `run` does with AdamW where nothing is held out, its gradient and steps written out.

        A step is a hundred thousand products: autograd, an optimiser and a scheduler take five times as long as these.

        Args:
            head: in float64, on the CPU.
            inputs: (V, L, D).
            epochs: how many.
            groups: the head and its learning rate.
        """
        config, labels, classes = self.config, self.labels.cpu().numpy(), head.out_features
        weight = np.ones(classes) if self.weight is None else self.weight.cpu().double().numpy()
        own, smooth = weight[labels], config.label_smoothing  # (L,)
        targets = (1 - smooth) * np.eye(classes)[labels] * own[:, None] + smooth / classes * weight  # (L, C)
        views = F.pad(inputs, (0, 1), value=1.0).numpy()  # (V, L, D + 1): the bias is one more weight
        theta = torch.cat([head.weight, head.bias[:, None]], dim=1).detach().numpy()  # (C, D + 1)
        decay = np.full_like(theta, config.weight_decay)
        decay[:, -1] = 0
        mean, square = np.zeros_like(theta), np.zeros_like(theta)
        steps, step, error = math.ceil(len(labels) / config.batch_size), 0, 0.0
        for epoch in range(epochs):
            view, total, error = views[epoch % len(views)], 0.0, 0.0
            order = torch.randperm(len(labels)).numpy()
            for begin in range(0, len(order), config.batch_size):
                rows = order[begin : begin + config.batch_size]
                lr = groups[0][1] * _warmup_cosine(step, config.warmup_epochs * steps, epochs * steps)
                step += 1
                x, target, mass = view[rows], targets[rows], own[rows].sum()
                logs = x @ theta.T
                logs -= logs.max(axis=1, keepdims=True)
                odds = np.exp(logs)
                sums = odds.sum(axis=1, keepdims=True)
                logs -= np.log(sums)
                share = len(rows) / len(labels) / mass
                total -= share * float((target * logs).sum())
                error -= share * float(own[rows] @ logs[np.arange(len(rows)), labels[rows]])
                gradient = ((odds / sums * target.sum(axis=1, keepdims=True) - target) / mass).T @ x  # (C, D + 1)
                gradient *= min(1.0, config.max_grad_norm / (math.sqrt(np.vdot(gradient, gradient)) + 1e-6))
                mean += 0.1 * (gradient - mean)  # AdamW with PyTorch's defaults
                square += 0.001 * (gradient * gradient - square)
                theta *= 1 - lr * decay
                theta -= lr / (1 - 0.9**step) * mean / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
            self._check(torch.tensor(total), "loss", epoch, groups)
            self._epoch_done(total)
        self.report.steps += step
        self._check_end(error, classes, groups)
        head.load_state_dict({"weight": torch.from_numpy(theta[:, :-1]), "bias": torch.from_numpy(theta[:, -1])})

    def _epoch_done(self, loss: float) -> None:
        self.report.losses.append(loss)
        self.progress("fitting", len(self.report.losses), self.config.head_epochs + self.config.epochs)

    def _check_end(self, error: float, classes: int, groups: Groups) -> None:
        guessing = math.log(classes)  # among all classes, also those that no label is of yet
        if error > DIVERGED * guessing:
            losses = f"a loss of {error:.3g}, where guessing has {guessing:.3g}"
            raise DivergenceError(f"training ended at {losses}, {_rates(groups)}. {LOWER_RATES}")

    def _cross_entropy(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        weight = None if self.weight is None else self.weight.to(logits)
        return F.cross_entropy(logits, labels, weight, label_smoothing=smoothing)

    @torch.no_grad()
    def _held_out_loss(
        self, net: nn.Module, forward: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, rows: Tensor
    ) -> float:
        net.eval()
        smoothing = self.config.label_smoothing
        losses = [self._cross_entropy(forward(view[rows]), labels[rows], smoothing) for view in inputs]
        net.train()
        self.report.held_out.append(float(torch.stack(losses).mean()))
        return self.report.held_out[-1]

    def _check(self, value: Tensor, what: str, epoch: int, groups: Groups) -> None:
        if not torch.isfinite(value):
            raise DivergenceError(f"the {what} became {value.item()} in epoch {epoch} {_rates(groups)}. {LOWER_RATES}")


def _rates(groups: Groups) -> str:
    names = ("head_lr", "adapter_lr")
    return "with " + " and ".join(f"{name}={lr:g}" for name, (_, lr) in zip(names, groups, strict=False))


def _optimizer(groups: Groups, config: TrainingConfig) -> torch.optim.Optimizer:
    """Optimiser with one group per learning rate and decay; biases and norms are not decayed."""
    settings = []
    for module, lr in groups:
        learning = trainable_parameters(module).values()
        matrices = [parameter for parameter in learning if parameter.ndim > 1]
        vectors = [parameter for parameter in learning if parameter.ndim <= 1]
        settings.append({"params": matrices, "lr": lr, "weight_decay": config.weight_decay})
        settings.append({"params": vectors, "lr": lr, "weight_decay": 0.0})
    settings = [group for group in settings if group["params"]]
    return torch.optim.SGD(settings, momentum=0.9) if config.optimizer == "sgd" else torch.optim.AdamW(settings)


def _warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
