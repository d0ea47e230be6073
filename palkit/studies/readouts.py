"""Simple readouts of frozen features at every depth: what the features are worth, on validation data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from palkit.data import ImagePool, StoredFeatures, head
from palkit.errors import ConfigError
from palkit.models.backbones import Backbone, BackboneConfig, Pooling, load_backbone
from palkit.studies.statistics.tables import counted

BATCH = 128  # images per forward pass
NEIGHBOURS = 10
RIDGE = 100.0  # closed form: hundreds of probes in seconds
STRONG_RIDGE = 1000.0  # for all labels at once
SIZES = (2 / 3, 1, 4 / 3)  # of the backbone's own image size: less, the same, more
SETTING = ["image_size", "depth", "pooling", "cost"]
TIE = 1e-12  # means of the same accuracies may differ in the last bits
PERPLEXITY = 30  # of t-SNE, about the number of neighbours that count


@torch.inference_mode()
def features_by_depth(backbone: Backbone, pool: ImagePool, rows: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    """Pooled features after every block, from one forward pass; only the mean where there is no class token.

    Args:
        backbone: with the blocks to look at.
        pool: images.
        rows: (n,) which of them.

    Returns:
        (depth, pooling) -> (n, D) float32, after the backbone's final norm.
    """
    found: dict[tuple[int, str], list[Tensor]] = {}
    poolings = [pooling for pooling in get_args(Pooling) if pooling == "mean" or backbone.vit.cls_token is not None]
    for chunk in np.array_split(rows, range(BATCH, len(rows), BATCH)):
        images = torch.from_numpy(pool.images.decode(chunk, backbone.config.image_size)).to(backbone.device)
        tokens = backbone.prefix(backbone.preprocess(images), 0)
        for depth in range(1, backbone.depth + 1):
            tokens = backbone.block(tokens, depth - 1)
            for pooling in poolings:
                found.setdefault((depth, pooling), []).append(backbone.pool(backbone.vit.norm(tokens), pooling).cpu())
    return {key: torch.cat(parts).numpy() for key, parts in found.items()}


@dataclass(frozen=True)
class Readout:
    """Readouts of the frozen features of one backbone on one data set.

    Attributes:
        pool: with as many pool images as were used.
        config: of the backbone, as runs take it.
        blocks: of the whole network.
        table: accuracies of both readouts, see `readout_table`.
        labels: of the few-label readout.
        draws: of these labels, which its accuracy is the mean of.
        features: (n, D) float32 of the pool images at the depth and pooling of `config`, standardised.
        val_features: (m, D) float32 of the validation images, by the pool's mean and deviation.
    """

    pool: ImagePool
    config: BackboneConfig
    blocks: int
    table: pd.DataFrame
    labels: int
    draws: int
    features: np.ndarray
    val_features: np.ndarray

    @property
    def name(self) -> str:
        """Data set and backbone."""
        config, depth = self.config, counted(self.depth, "block")
        return f"{self.pool.name}, {config.name}, {config.image_size} px, {depth}, {config.pooling}"

    @property
    def depth(self) -> int:
        """Blocks that runs keep."""
        return self.config.depth or self.blocks

    @property
    def few(self) -> str:
        """Name of the few-label readout in the table."""
        return f"linear, {self.labels} labels"

    @property
    def wide(self) -> pd.DataFrame:
        """Accuracy of both readouts, indexed by image_size, depth, pooling and cost."""
        return self.table.pivot_table(index=SETTING, columns="probe", values="accuracy")

    def best(self, count: int = 10) -> pd.DataFrame:
        """The best settings by the few-label readout."""
        return self.wide.sort_values(self.few, ascending=False).head(count)

    def chosen(self) -> pd.DataFrame:
        """The setting of the runs first, and the same with the class token alone and with all blocks."""
        here = self.wide.xs(self.config.image_size, level="image_size", drop_level=False).reset_index()
        other_depth, other_pooling = here["depth"] != self.depth, here["pooling"] != self.config.pooling
        kept = here["depth"].isin([self.depth, self.blocks]) & here["pooling"].isin([self.config.pooling, "cls"])
        order = here.assign(first=other_depth, second=other_pooling)[kept].sort_values(["first", "second"])
        return order.drop(columns=["first", "second"]).set_index(SETTING)

    def decisions(self) -> np.ndarray:
        """(m, C) scores of the classes for the validation images, by a linear readout of all labels used.

        Classes of which no label was used have -inf.

        Raises:
            ConfigError: all labels are of one class.
        """
        y = self.pool.labels[self.pool.rows("pool")]
        if len(np.unique(y)) < 2:
            raise ConfigError(f"all {len(y)} pool images that were used are of one class.")
        probe = RidgeClassifier(alpha=STRONG_RIDGE).fit(self.features, y)
        scores = probe.decision_function(self.val_features)
        found = np.full((len(scores), len(self.pool.class_names)), -np.inf)
        found[:, probe.classes_] = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
        return found

    def findings(self) -> str:
        """Sentences on depth, pooling and image size."""
        size, accuracy = self.config.image_size, self.table[self.table["probe"] == self.few]
        here = accuracy[accuracy["image_size"] == size].set_index(["depth", "pooling"])["accuracy"]
        own = here.xs(self.config.pooling, level="pooling")
        depths = own.index[own >= own.max() - TIE].tolist()
        others = here.xs(depths[0], level="depth").drop(self.config.pooling)
        best = accuracy.loc[accuracy.groupby("image_size")["accuracy"].idxmax()]
        sizes = [f"{row.image_size} px {row.accuracy:.3f} (cost {row.cost})" for row in best.itertuples()]
        top = best[best["image_size"] == size].iloc[0]
        better = "Nothing is better at that size."
        if top["accuracy"] > here[self.depth, self.config.pooling] + TIE:
            what = f"{counted(top['depth'], 'block')}, {top['pooling']} pooling"
            better = f"Best at that size: {what}, {top['accuracy']:.3f}."
        blocks, best_of = counted(self.blocks, "block"), f"{own.max():.3f}"
        after = f"the same ({best_of}) after each of {blocks}."
        if len(depths) < len(own):
            last = f"after the last it is at {own.loc[self.blocks]:.3f}."
            after = f"best after {_listed(depths)} of {blocks} ({best_of}); {last}"
        pooled = "".join(f", {pooling} {value:.3f}" for pooling, value in others.items())
        validation = len(self.pool.rows("val"))
        lines = [
            f"Depth: with {self.config.pooling} pooling at {size} px the few-label readout is {after}",
            f"Pooling, after {counted(depths[0], 'block')}: {self.config.pooling} {best_of}{pooled}.",
            f"Image size, each at its best: {', '.join(sizes)}.",
            f"Runs take {counted(self.depth, 'block')} and {self.config.pooling} pooling at {size} px: "
            f"{here[self.depth, self.config.pooling]:.3f}. {better}",
            f"Accuracies are means over {counted(self.draws, 'draw')} of {counted(self.labels, 'label')} on "
            f"{counted(validation, 'validation image')}; the number of these alone gives a standard error of up to "
            f"{50 / validation**0.5:.1f} points.",
        ]
        return "\n".join(lines)

    def confusions(self, count: int = 5) -> str:
        """Accuracy of the linear readout of all labels used, and the classes that it confuses most."""
        val, decisions = self.pool.rows("val"), self.decisions()
        truth, predicted = self.pool.labels[val], decisions.argmax(axis=1)
        wrong = pd.DataFrame({"true": truth, "taken": predicted})[truth != predicted]
        names = self.pool.class_names
        pairs = [
            f"{names[true]} for {names[taken]} ({images})"
            for (true, taken), images in wrong.value_counts(sort=True).head(count).items()
        ]
        share = (truth == predicted).mean()
        return (
            f"Linear readout of {len(self.features)} labels: validation accuracy {share:.3f}.\n"
            f"Most often taken for another, images: {'; '.join(pairs) or 'none'}."
        )


def readout(
    pool: ImagePool,
    config: BackboneConfig,
    *,
    images: int,
    labels_per_class: int,
    draws: int,
    image_sizes: Sequence[int] | None = None,
) -> Readout:
    """Measure readouts of a backbone's frozen features on the validation images of a data set.

    Args:
        pool: its pool split trains, its val split measures; the test split is not touched.
        config: the backbone as runs take it.
        images: pool images used, or all if there are fewer.
        labels_per_class: labels of the few-label readout over the number of classes; at most half of the images.
        draws: repetitions of the few-label readout.
        image_sizes: in pixels; None takes that of the backbone, about a third less and a third more.

    Raises:
        ConfigError: an image size does not fit the backbone, or the data set holds features.
        WeightsError: its weights cannot be had.
    """
    if isinstance(pool.images, StoredFeatures):
        raise ConfigError(f"{pool.name!r} holds features, so there is no backbone to read at every depth.")
    used = head(pool, min(images, len(pool.rows("pool"))))
    rows = used.rows("pool")
    labels = max(1, min(labels_per_class * len(used.class_names), len(rows) // 2))
    patch = load_backbone(config).patch_size  # sizes are whole patches
    sizes = image_sizes or [max(1, round(share * config.image_size / patch)) * patch for share in SIZES]
    # The size of the runs is always among them: what is said about the runs is read from the table.
    table, x = readout_table(used, config, {*sizes, config.image_size}, labels=labels, draws=draws)
    return Readout(used, config, int(table["depth"].max()), table, labels, draws, x[: len(rows)], x[len(rows) :])


def readout_table(
    pool: ImagePool, config: BackboneConfig, image_sizes: Iterable[int], *, labels: int, draws: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Validation accuracy of readouts of frozen features, for every image size, depth and pooling; and own features.

    Args:
        pool: its pool split trains, its val split measures; the test split is not touched.
        config: of the backbone.
        image_sizes: in pixels, that of the backbone among them.
        labels: for the few-label readout, drawn at random.
        draws: repetitions of the few-label readout; the same draws for every row of the table.

    Returns:
        Columns image_size, depth, pooling, tokens, cost (tokens times blocks, to which time is about
        proportional), probe (name of the readout), accuracy; and (n + m, D) float32 features of the n pool and m
        validation images at the setting of `config`, standardised by the pool's mean and deviation.
    """
    train, val = pool.rows("pool"), pool.rows("val")
    y_train, y_val = pool.labels[train], pool.labels[val]
    neighbours = min(NEIGHBOURS, len(train))
    chosen_rows = [np.random.default_rng(draw).permutation(len(train))[:labels] for draw in range(draws)]
    rows = []
    for image_size in sorted(image_sizes):
        backbone = load_backbone(replace(config, image_size=image_size, depth=None, pooling="mean"))
        for (depth, pooling), features in features_by_depth(backbone, pool, np.concatenate([train, val])).items():
            own_pool = features[: len(train)]
            x = (features - own_pool.mean(axis=0)) / (own_pool.std(axis=0) + 1e-6)
            if (image_size, depth, pooling) == (config.image_size, config.depth or backbone.depth, config.pooling):
                own = x
            x_train, x_val = x[: len(train)], x[len(train) :]
            knn = KNeighborsClassifier(neighbours, metric="cosine").fit(x_train, y_train)
            probes = {f"{neighbours}-NN, {len(train)} labels": [knn.score(x_val, y_val)]}
            linear = [_linear_accuracy(x_train[chosen], y_train[chosen], x_val, y_val) for chosen in chosen_rows]
            probes[f"linear, {labels} labels"] = linear
            setting = (image_size, depth, pooling, backbone.tokens, backbone.tokens * depth)
            rows += [(*setting, probe, float(np.mean(accuracies))) for probe, accuracies in probes.items()]
    return pd.DataFrame(rows, columns=["image_size", "depth", "pooling", "tokens", "cost", "probe", "accuracy"]), own


def _linear_accuracy(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> float:
    """Accuracy of a linear readout; of labels of one class, that of always answering it."""
    if len(np.unique(y)) == 1:
        return float((y_val == y[0]).mean())
    return RidgeClassifier(alpha=RIDGE).fit(x, y).score(x_val, y_val)


def map_2d(features: np.ndarray) -> np.ndarray:
    """(n, 2) t-SNE map of (n, D) features, started from their first principal components."""
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)  # t-SNE's own advice for few images
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)


def _listed(numbers: Sequence[int]) -> str:
    """Numbers in a sentence: "1, 3 and 4"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last
