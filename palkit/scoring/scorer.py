"""The scoring pass: every row once per round, from cached inputs, with merged adapters."""

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from palkit.errors import ConfigError
from palkit.models.adapters import AdaptedModel, adapter_dropout
from palkit.models.devices import autocast, doubled, landing, seeded_globally
from palkit.progress import Progress, silent
from palkit.scoring.engine import Halving, ScoringConfig, ahead, pinned
from palkit.storage.files import storing
from palkit.storage.formats import new_array
from palkit.storage.shards import Shards
from palkit.strategies.kernels import Rows
from palkit.strategies.scores import Dropout, PoolScores
from palkit.strategies.ties import Keys, drawn

BEHIND = 1  # batches computed on the device while the results of earlier ones are on their way


@torch.inference_mode()
def score_pool(
    model: AdaptedModel,
    inputs: Rows,
    config: ScoringConfig | None = None,
    progress: Progress = silent,
    *,
    dropout: Dropout | None = None,
    rng: torch.Generator | None = None,
    folder: Path | None = None,
    names: Keys | None = None,
) -> PoolScores:
    """Features and probabilities of every row, batch by batch.

    Args:
        model: fitted, and merged unless the adapter itself is dropped out.
        inputs: (N, T, E) or (N, D) inputs of the model's start block, in RAM or read when asked for.
        config: batch size and precision.
        progress: called with ("scoring", rows done, rows in all).
        dropout: stochastic passes wanted, or None.
        rng: CPU generator of what is dropped; needed with `dropout`.
        folder: where features and stochastic passes go if they exceed memory; None keeps them in RAM.
        names: keys of the rows and classes; which features are dropped of a row hangs on its key alone. What is
            dropped inside an adapter is drawn batch by batch.

    Returns:
        PoolScores on the CPU with (N, D) features, (N, C) probs and, if wanted, (T, N, C) stochastic_probs.

    Raises:
        ConfigError: the adapter has no path that dropout could act on, or there is no generator.
        OutOfMemoryError: not even one row fits.
    """
    config = config or ScoringConfig()
    model.eval()
    device, total = model.feature_mean.device, len(inputs)
    features = _storage(folder, "features", (total, model.backbone.width))
    probs = torch.empty(total, model.head.out_features)
    if dropout is not None and rng is None:
        raise ConfigError("stochastic passes need a generator: give rng.")
    stochastic = None if dropout is None else _storage(folder, "passes", (dropout.passes, *probs.shape))
    heads = _dropped_heads(model, dropout, rng)
    keys = names or Keys.of_positions(total, probs.shape[1])
    seed = 0 if rng is None else int(torch.randint(2**62, (), generator=rng))
    shared = None
    if dropout is not None and dropout.on == "shared_features":
        shared = torch.rand(dropout.passes, model.backbone.width, generator=rng) >= dropout.rate
    forward = torch.compile(model) if config.compile else model
    arriving: deque[tuple[Callable[[], None], slice, list[Tensor]]] = deque()

    def keep(behind: int) -> None:
        while len(arriving) > behind:
            landed, rows, results = arriving[0]
            landed()
            features[rows], probs[rows] = results[:2]
            if stochastic is not None:
                stochastic[:, rows] = results[2]
            arriving.popleft()  # not before: where memory runs out, this is called again

    def read(begin: int) -> tuple[Tensor, Tensor | None]:
        rows = pinned(inputs[begin : begin + config.rows], device)
        if dropout is None or dropout.on != "features":
            return rows, None if shared is None else shared.expand(len(rows), -1, -1)
        own = keys.rows[begin : begin + len(rows)]
        masks = drawn(own, seed, dropout.passes * model.backbone.width, 1 - dropout.rate)
        return rows, masks.unflatten(1, (dropout.passes, -1))

    def work(begin: int, block: Tensor, masks: Tensor | None, part: slice) -> None:
        rows = slice(begin + part.start, begin + part.stop)
        inputs_here = block[part].to(device, non_blocking=True).to(dtype)
        with autocast(device, config.precision):
            # The head stays in full precision: it costs nothing.
            chunk = forward(inputs_here)[0].to(dtype)
        results = [chunk, model.logits(chunk).softmax(dim=1)]
        if masks is not None and dropout is not None:
            kept = chunk[:, None] * masks[part].to(device) / (1 - dropout.rate)  # (B, T, D)
            results.append(model.logits(kept).softmax(dim=2).transpose(0, 1))
        elif heads is not None:
            logits = torch.einsum("bd,tcd->tbc", chunk, heads.to(dtype)) + model.head.bias
            results.append((logits / model.temperature).softmax(dim=2))
        elif dropout is not None:
            with autocast(device, config.precision):
                results.append(_adapter_passes(model, inputs_here, dropout, seed + rows.start))
        results = [result.to("cpu", non_blocking=device.type == "cuda") for result in results]
        arriving.append((landing(device), rows, results))
        keep(BEHIND)

    halving = Halving(config.rows)
    starts = range(0, total, config.rows)
    with doubled(model, config.precision):
        dtype = model.feature_mean.dtype
        for begin, (block, masks) in zip(starts, ahead(read, starts), strict=True):
            halving(len(block), partial(work, begin, block, masks))
            progress("scoring", begin + len(block), total)
        keep(0)
    return PoolScores(features if folder is None else Shards([folder / "features.npy"]), probs, stochastic, names)


def _adapter_passes(model: AdaptedModel, inputs: Tensor, dropout: Dropout, seed: int) -> Tensor:
    """(T, B, C) probabilities under dropout in the low-rank paths."""
    with seeded_globally(seed, inputs.device), adapter_dropout(model, dropout.rate):
        logits = torch.stack([model(inputs)[1] for _ in range(dropout.passes)])  # (T, B, C)
    return logits.to(model.feature_mean.dtype).softmax(dim=2)


def _dropped_heads(model: AdaptedModel, dropout: Dropout | None, rng: torch.Generator | None) -> Tensor | None:
    """(T, C, D) weights of the head with some of them dropped, one set for each pass."""
    if dropout is None or dropout.on != "head":
        return None
    weight = model.head.weight
    masks = torch.rand(dropout.passes, *weight.shape, generator=rng) >= dropout.rate
    return weight * masks.to(weight.device) / (1 - dropout.rate)


def _storage(folder: Path | None, name: str, shape: tuple[int, ...]) -> Tensor:
    """Float32 memory, or a file that serves as memory."""
    if folder is None:
        return torch.empty(shape)
    path = folder / f"{name}.npy"
    with storing(path):
        folder.mkdir(parents=True, exist_ok=True)
        return torch.from_numpy(new_array(path, np.float32, shape))
