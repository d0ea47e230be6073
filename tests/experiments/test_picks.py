"""Batches of several strategies from the same scores."""

from typing import Any

import numpy as np
import pytest
import torch

from palkit.config import config_from_dict
from palkit.errors import ConfigError
from palkit.experiments.picks import Comparison, compare, describe
from palkit.strategies.scores import PoolScores


def test_all_choose_from_the_same_scores(tiny_run: dict[str, Any]) -> None:
    config = config_from_dict(tiny_run)
    comparison = compare(config, ["random", "entropy", "bald"], 15, 6)
    assert len(comparison.labelled) == 15
    assert {name: len(picks) for name, picks in comparison.picks.items()} == {"random": 6, "entropy": 6, "bald": 6}
    for picks in comparison.picks.values():
        assert not set(picks) & set(comparison.labelled)
    p = comparison.scores.probs.double().numpy()
    entropy = -(p * np.log(p)).sum(1)
    entropy[comparison.labelled] = -1
    assert set(comparison.picks["entropy"].tolist()) == set(np.argsort(-entropy, kind="stable")[:6].tolist())
    again = compare(config, ["bald"], 15, 6)
    assert np.array_equal(again.picks["bald"], comparison.picks["bald"])
    with pytest.raises(ConfigError, match="entrpy"):
        compare(config, ["entrpy"], 15, 6)


def test_description_against_the_obvious() -> None:
    rng = np.random.default_rng(0)
    x, p = rng.normal(size=(30, 4)), rng.dirichlet(np.ones(3), 30)
    truth = rng.integers(3, size=30)
    known, picks = np.array([0, 5]), np.array([7, 9, 22])
    scores = PoolScores(torch.from_numpy(x).float(), torch.from_numpy(p).float())
    row = describe(Comparison(scores, np.arange(30), known, {"some": picks}), truth).loc["some"]
    gap = np.linalg.norm(x[:, None] - x[None], axis=2)
    unit = gap[~np.eye(30, dtype=bool)].mean()
    others = [min(gap[i, j] for j in picks if j != i) for i in picks]
    assert row["redundancy"] == pytest.approx(np.mean(others) / unit, rel=1e-5)
    assert row["novelty"] == pytest.approx(gap[picks][:, known].min(1).mean() / unit, rel=1e-5)
    assert row["cover"] == pytest.approx(gap[:, [*known, *picks]].min(1).mean() / unit, rel=1e-5)
    best = np.sort(p[picks], axis=1)
    assert row["margin"] == pytest.approx((best[:, 2] - best[:, 1]).mean(), rel=1e-5)
    assert row["error"] == pytest.approx(np.mean(p[picks].argmax(1) != truth[picks]))
    assert row["classes"] == len(set(truth[picks]))


def test_batches_come_from_the_fitted_model_whatever_the_config_strategy(tiny_run: dict) -> None:
    """A config whose strategy looks at nothing still gets its pool scored."""
    for strategy in ("random", "entropy"):
        comparison = compare(config_from_dict({**tiny_run, "strategy": strategy}), ["entropy"], 20, 5)
        assert comparison.scores.probs.std(dim=0).min() > 0
        if strategy == "random":
            picks = comparison.picks["entropy"]
    assert picks.tolist() == comparison.picks["entropy"].tolist()
