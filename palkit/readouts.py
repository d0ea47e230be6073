"""What frozen features are worth: simple readouts at every depth, on validation data."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from palkit.backbones import POOLINGS, Backbone, BackboneConfig, load_backbone
from palkit.datasets import ImagePool

BATCH = 128  # images per forward pass
NEIGHBOURS = 10
RIDGE = 100.0  # closed form: hundreds of probes in seconds


@torch.inference_mode()
def features_by_depth(backbone: Backbone, pool: ImagePool, rows: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    """Pooled features after every block, from one forward pass.

    Args:
        backbone: with the blocks to look at.
        pool: images.
        rows: (n,) which of them.

    Returns:
        (depth, pooling) -> (n, D) float32, after the backbone's final norm.
    """
    found: dict[tuple[int, str], list[Tensor]] = {}
    for chunk in np.array_split(rows, range(BATCH, len(rows), BATCH)):
        images = torch.from_numpy(pool.images.decode(chunk, backbone.config.image_size)).to(backbone.device)
        tokens = backbone.prefix(backbone.preprocess(images), 0)
        for depth in range(1, backbone.depth + 1):
            tokens = backbone.block(tokens, depth - 1)
            for pooling in POOLINGS:
                found.setdefault((depth, pooling), []).append(backbone.pool(backbone.vit.norm(tokens), pooling).cpu())
    return {key: torch.cat(parts).numpy() for key, parts in found.items()}


def readout_table(
    pool: ImagePool, name: str, image_sizes: Sequence[int], *, images: int, labels: int, draws: int
) -> pd.DataFrame:
    """Validation accuracy of readouts of frozen features, for every image size, depth and pooling.

    Args:
        pool: its pool split trains, its val split measures; the test split is not touched.
        name: backbone.
        image_sizes: in pixels.
        images: pool images used.
        labels: for the few-label probe, drawn at random.
        draws: repetitions of the few-label probe; the same draws for every row of the table.

    Returns:
        Columns image_size, depth, pooling, tokens, cost (tokens times blocks, to which time is about
        proportional), probe (name of the readout), accuracy.
    """
    train, val = pool.rows("pool")[:images], pool.rows("val")
    y_train, y_val = pool.labels[train], pool.labels[val]
    rows = []
    for image_size in image_sizes:
        backbone = load_backbone(BackboneConfig(name, image_size, None, "cls+mean"))
        tokens = backbone.tokens
        for (depth, pooling), features in features_by_depth(backbone, pool, np.concatenate([train, val])).items():
            x = (features - features[: len(train)].mean(axis=0)) / (features[: len(train)].std(axis=0) + 1e-6)
            knn = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(x[: len(train)], y_train)
            probes = {
                f"{NEIGHBOURS}-NN, {images} labels": [knn.score(x[len(train) :], y_val)],
                f"linear, {labels} labels": [
                    RidgeClassifier(alpha=RIDGE).fit(x[chosen], y_train[chosen]).score(x[len(train) :], y_val)
                    for chosen in _draws(y_train, labels, draws)
                ],
            }
            for probe, accuracies in probes.items():
                rows.append((image_size, depth, pooling, tokens, tokens * depth, probe, float(np.mean(accuracies))))
    return pd.DataFrame(rows, columns=["image_size", "depth", "pooling", "tokens", "cost", "probe", "accuracy"])


def _draws(y: np.ndarray, labels: int, draws: int) -> Iterator[np.ndarray]:
    for draw in range(draws):
        yield np.random.default_rng(draw).permutation(len(y))[:labels]


def map_2d(features: np.ndarray) -> np.ndarray:
    """(n, 2) t-SNE map of (n, D) features, started from their first principal components."""
    return TSNE(perplexity=30, init="pca", random_state=0).fit_transform(features)
