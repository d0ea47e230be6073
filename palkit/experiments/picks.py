"""Picks of several strategies from the same scores, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from palkit.config import ExperimentConfig
from palkit.experiments.experiment import Learner
from palkit.experiments.setting import setting, settle
from palkit.strategies.kernels import distances
from palkit.strategies.scores import PoolScores
from palkit.strategies.uncertainty import margin_scores

PAIRS = 500  # rows between whose pairs the unit of distance is taken


@dataclass(frozen=True)
class Comparison:
    """One fitted model's scores of a pool, and the next batch of each strategy.

    Attributes:
        scores: of the whole pool.
        rows: (N,) rows of the image pool, for its images and labels.
        labelled: (L,) pool positions of the labels that the model was fitted to.
        picks: strategy -> (B,) pool positions, in order.
    """

    scores: PoolScores
    rows: np.ndarray
    labelled: np.ndarray
    picks: Mapping[str, np.ndarray]


def compare(config: ExperimentConfig, strategies: Sequence[str], labels: int, batch_size: int) -> Comparison:
    """Fit one model to `labels` initial labels and let every strategy choose the next batch from its scores.

    Args:
        config: of the model; its strategy is replaced by each of `strategies`.
        strategies: registered names.
        labels: size of the initial set, bought by `config.initial`.
        batch_size: labels that each strategy chooses.

    Raises:
        ConfigError: unknown strategy, or more labels than images.
    """
    here = setting(config)
    config = settle(config, here)
    learner = Learner(config, here)
    labelled = learner.first_batch(labels)
    model = learner.fit(labelled, 0)
    shared = learner.score_pool(model, 0)
    picks = {}
    for name in strategies:
        chooser = Learner(replace(config, strategy=name), here)
        scores = chooser.score_pool(model, 0) if chooser.dropout else shared
        picks[name] = chooser.next_batch(scores, labelled, batch_size, 1)
    return Comparison(shared, learner.pool_rows, labelled, picks)


def describe(comparison: Comparison, labels: np.ndarray) -> pd.DataFrame:
    """What is characteristic of each strategy's batch, one row per strategy.

    Distances are between features, in units of the mean distance of two pool rows.

    Args:
        comparison: the batches.
        labels: (N,) true classes of the pool.

    Returns:
        Columns: `redundancy`, mean distance of a pick to the nearest other pick (small: near-copies);
        `novelty`, mean distance of a pick to the nearest labelled row; `cover`, mean distance of all pool
        rows to the nearest label or pick; `margin`, mean of p1 - p2 of the picks; `error`, share of picks
        that the model gets wrong; `classes`, number of true classes among them.
    """
    features = comparison.scores.features[:]
    labelled = torch.from_numpy(comparison.labelled)
    some = features[:: max(1, len(features) // PAIRS)]
    unit = float(distances(some, some).sum() / (len(some) * (len(some) - 1)))
    margin = 1 - margin_scores(comparison.scores)
    wrong = (comparison.scores.predicted != torch.from_numpy(labels)).double()
    rows = {}
    for name, positions in comparison.picks.items():
        picks = torch.from_numpy(positions)
        among = distances(features[picks], features[picks]).fill_diagonal_(torch.inf)
        known = torch.cat([labelled, picks])
        rows[name] = {
            "redundancy": float(among.amin(1).mean()) / unit,
            "novelty": float(distances(features[picks], features[labelled]).amin(1).mean()) / unit,
            "cover": float(distances(features, features[known]).amin(1).mean()) / unit,
            "margin": float(margin[picks].mean()),
            "error": float(wrong[picks].mean()),
            "classes": len(np.unique(labels[positions])),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("strategy")
