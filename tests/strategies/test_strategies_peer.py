"""Beside scikit-activeml, where it has the same definition. Both choose; ours must be a best choice of theirs.

Peers break ties at random, so each of our picks is checked against the peer's utilities with our earlier
picks labelled. Where definitions differ on purpose:

* TypiClust: the peer takes the mean distance to 5 neighbours and keeps to clusters without labels; here it is the
  authors' mean squared distance to 20 or half the cluster. There is nothing to compare but the order of the clusters.
* ProbCover: the peer tries a grid of radii on the features as they are and its balls are closed; here the
  radius is exact, features are scaled and balls are open, as in the paper and the authors' code.
* MaxHerding: the peer's kernel width is scikit-learn's 1 / D; the authors' is 1.
* DropQuery: the peer clusters features as they are, wants more than half of the passes to differ however few rows do,
  and fills up with the least disputed; the authors scale features, want fewer passes if need be and fill up at random.
* BADGE: the peer keeps the squared norm, by which it takes the first pick, in the minimum of squared
  distances ever after, as if the origin were a pick too. Here, as in the paper's k-means++ and the
  authors' code, only picks count.
* BADGE and FALCUN draw; the probabilities they draw with are compared.
* k-means starts differently, so strategies that cluster are compared with the clusters given.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_strategies import generator, make_labelled, make_pool
from test_strategies_batches import passes_of, squared_distances, unit
from test_strategies_reference import SEEDS, direct, gradient_embeddings, problem

from palkit.strategies import clustered, kernels, ranking, select, typical
from palkit.strategies.scores import LabelledSet, PoolScores

pool_module = pytest.importorskip("skactiveml.pool")
base = pytest.importorskip("skactiveml.base")

Array = NDArray[Any]


class FixedHead(base.SkactivemlClassifier):  # type: ignore[misc, name-defined]
    """A fitted classifier that looks probabilities up by feature row; each call of predict takes the next."""

    def __init__(self, features: Array, probs: Array, passes: Array | None = None) -> None:
        super().__init__(classes=range(probs.shape[1]), missing_label=np.nan)
        self.features, self.probs, self.passes = features, probs, passes

    def fit(self, X: Array, y: Array, sample_weight: Array | None = None) -> "FixedHead":
        return self

    def predict_proba(self, X: Array) -> Array:
        row = {tuple(x): i for i, x in enumerate(self.features)}
        return self.probs[[row[tuple(x)] for x in X]]

    def predict(self, X: Array) -> Array:
        self.calls = getattr(self, "calls", -1) + 1
        return (self.predict_proba(X) if self.calls == 0 else self.passes[self.calls - 1]).argmax(1)


def labels_of(labelled: LabelledSet, n: int, also: list[int]) -> Array:
    y = np.full(n, np.nan)
    y[labelled.positions] = labelled.labels
    y[also] = 0
    return y


def check_each_pick(strategy: Any, features: Array, labelled: LabelledSet, picks: list[int], **query: Any) -> None:
    for number, pick in enumerate(picks):
        y = labels_of(labelled, len(features), picks[:number])
        _, utilities = strategy.query(features, y, batch_size=1, return_utilities=True, **query)
        assert utilities[0][pick] >= np.nanmax(utilities[0]) * (1 - 1e-6), number


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "method"),
    [("least_confidence", "least_confident"), ("margin", "margin_sampling"), ("entropy", "entropy")],
)
def test_uncertainty(name: str, method: str, seed: int) -> None:
    pool, labelled, features, probs, _, _ = problem(seed)
    peer = pool_module.UncertaintySampling(method, random_state=0)
    query = {"clf": FixedHead(features, probs), "fit_clf": False, "batch_size": 9}
    expected = peer.query(features, labels_of(labelled, len(pool), []), **query)
    assert select(name, pool, labelled, 9, generator()).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_coreset(seed: int) -> None:
    pool, labelled, features, _, _, _ = problem(seed)
    picks = select("coreset", pool, labelled, 12, generator()).tolist()
    check_each_pick(pool_module.CoreSet(random_state=0), features, labelled, picks)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bandwidth", [1.0, 4.0])
def test_maxherding(seed: int, bandwidth: float) -> None:
    pool, labelled, features, _, _, _ = problem(seed)
    picks = select("maxherding", pool, labelled, 12, generator(), bandwidth=bandwidth).tolist()
    peer = pool_module.MaxHerding(metric_dict={"gamma": bandwidth**-2}, random_state=0)
    check_each_pick(peer, features, labelled, picks)


@pytest.mark.filterwarnings("ignore:The maximum purity")
@pytest.mark.parametrize("seed", SEEDS)
def test_probcover(seed: int) -> None:
    pool, labelled, features, _, _, _ = problem(seed)
    values = np.unique(np.sqrt(squared_distances(features)))
    delta = float(values[len(values) // 7 : len(values) // 7 + 2].mean())
    picks = select("probcover", pool, labelled, 12, generator(), delta=delta, normalize=False).tolist()
    peer = pool_module.ProbCover(n_classes=3, deltas=[delta], random_state=0)
    check_each_pick(peer, features, labelled, picks, update=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_typiclust(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of different sizes, given to both: 20, 15, 12, ..., two of them with a label."""
    sizes = [20, 15, 12, 9, 7, 5, 4]
    cluster = np.repeat(np.arange(7), sizes)[np.random.default_rng(seed).permutation(sum(sizes))]
    pool = make_pool(len(cluster), 4, 3, seed)
    known = [int(np.flatnonzero(cluster == c)[0]) for c in (1, 4)]
    labelled = LabelledSet(torch.tensor(known), torch.tensor([0, 1]))
    monkeypatch.setattr(typical, "kmeans", lambda *_: (None, torch.from_numpy(cluster.copy())))

    class Given:
        def __init__(self, n_clusters: int) -> None:
            pass

        def fit_predict(self, X: Array) -> Array:
            return cluster

    picks = direct("typiclust", pool, labelled, 5, generator(), min_size=1)
    peer = pool_module.TypiClust(cluster_algo=Given, random_state=0)
    features = pool.features.double().numpy()
    expected = peer.query(features, labels_of(labelled, len(cluster), []), batch_size=5)
    assert cluster[picks].tolist() == cluster[expected].tolist()


def heaviest(rows: kernels.Rows, count: int, rng: object, weight: torch.Tensor | None = None) -> Any:
    """Stands in for k-means: centres near the heaviest (or largest) rows, whatever their order."""
    x = rows[:].double()
    order = (x[:, 0] if weight is None else weight.double()).argsort(descending=True)[:count]
    return x[order] + 0.01, None


class Heaviest:
    def __init__(self, n_clusters: int) -> None:
        self.n_clusters = n_clusters

    def fit_transform(self, X: Array, y: object = None, sample_weight: Array | None = None) -> Array:
        weight = None if sample_weight is None else torch.from_numpy(sample_weight)
        centres, _ = heaviest(torch.from_numpy(X), self.n_clusters, None, weight)
        return np.linalg.norm(X[:, None] - centres.numpy()[None], axis=2)


@pytest.mark.parametrize("seed", SEEDS)
def test_clue(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "kmeans", heaviest)
    pool, labelled, features, probs, _, _ = problem(seed)
    picks = select("clue", pool, labelled, 8, generator()).tolist()
    peer = pool_module.Clue(cluster_algo=Heaviest, random_state=0)
    query = {"estimator": FixedHead(features, probs), "fit_estimator": False, "batch_size": 8}
    assert picks == peer.query(features, labels_of(labelled, len(pool), []), **query).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_dropquery(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "kmeans", heaviest)
    monkeypatch.setattr(clustered, "CANDIDATES", 0)
    pool, labelled, features, probs, free, _ = problem(seed)
    x = unit(features).astype(np.float32)
    scaled = PoolScores(torch.from_numpy(x), pool.probs, pool.stochastic_probs)
    picks = select("dropquery", scaled, labelled, 3, generator()).tolist()
    head = FixedHead(x, probs, passes_of(pool)[:, free])
    peer = pool_module.DropQuery(cluster_algo=Heaviest, n_dropout_samples=5, random_state=0)
    # The pool reaches predict as candidates once, then with features dropped, which no row matches.
    monkeypatch.setattr(FixedHead, "predict_proba", lambda self, X: probs[free])
    query = {"clf": head, "fit_clf": False, "batch_size": 3}
    assert picks == peer.query(x, labels_of(labelled, len(pool), []), **query).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_batchbald(seed: int) -> None:
    pool, labelled = make_pool(25, 3, 3, seed), make_labelled(25, 4, 3, seed)
    free = labelled.unlabelled(25)
    utilities = pool_module.batch_bald(passes_of(pool)[:, free], 4, n_MC_samples=1000, random_state=0)
    picks = select("batchbald", pool, labelled, 4, generator()).tolist()
    assert picks == [int(free[np.nanargmax(u)]) for u in utilities]


@pytest.mark.parametrize("seed", SEEDS)
def test_badge(seed: int) -> None:
    """The same first pick; then the peer's probabilities are ours but for its cap at the squared norm."""
    pool, labelled, features, probs, free, _ = problem(seed)
    query = {"clf": FixedHead(features, probs), "fit_clf": False, "batch_size": 2, "return_utilities": True}
    peer = pool_module.Badge(random_state=0)
    picks, utilities = peer.query(features, labels_of(labelled, len(pool), []), **query)
    assert int(select("badge", pool, labelled, 1, generator())[0]) == picks[0]
    embedding = gradient_embeddings(features, probs)
    gap = np.sum((embedding - embedding[picks[0]]) ** 2, axis=1)
    weight = np.minimum(gap, (embedding**2).sum(1))[free]
    left = [i for i, position in enumerate(free) if position != picks[0]]
    theirs = utilities[1][free][left]
    np.testing.assert_allclose(theirs, (weight / weight.sum())[left], rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_falcun_draws_with_the_peers_probabilities(seed: int) -> None:
    """The peer's probabilities of the second pick given its first; test_falcun holds ours to the same."""
    pool, labelled, features, probs, free, _ = problem(seed)
    query = {"clf": FixedHead(features, probs), "fit_clf": False, "batch_size": 2, "return_utilities": True}
    picks, utilities = pool_module.Falcun(random_state=0).query(features, labels_of(labelled, len(pool), []), **query)
    p = np.sort(probs[free], axis=1)
    u = 1 - (p[:, -1] - p[:, -2])
    np.testing.assert_allclose(utilities[0][free], (2 * u) ** 10 / ((2 * u) ** 10).sum(), rtol=1e-6)
    d = np.minimum(u, np.abs(probs[free] - probs[picks[0]]).sum(1))
    weight = (u + (d - d.min()) / (d.max() - d.min())) ** 10
    left = np.array(free) != picks[0]
    np.testing.assert_allclose(utilities[1][free][left], weight[left] / weight[left].sum(), rtol=1e-6)
