"""BAIT against brute force, and parts of strategies one by one where a whole selection would hide a slip."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster import hierarchy
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from test_strategies import generator, make_labelled, make_pool, stored_otherwise
from test_strategies_batches import linear_pool, squared_distances
from test_strategies_reference import SEEDS, Array, direct, largest

from palkit.errors import DataNotice
from palkit.strategies import bait, bayesian, clustered, coverage, kernels, ranking, select, uncertainty
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies.ties import Keys, mixed


def fisher(h: Array, p: Array) -> Array:
    return np.kron(np.diag(p) - np.outer(p, p), np.outer(h, h))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("n", "d", "c", "batch", "regulariser"), [(30, 4, 3, 4, 1.0), (30, 4, 3, 20, 1.0), (50, 6, 4, 4, 0.1)]
)
def test_bait(n: int, d: int, c: int, batch: int, regulariser: float, seed: int) -> None:
    """Every candidate's matrix inverted afresh; a batch of more than half of what is left included.

    The last case has rows so different that a longer forward selection would end in another batch.
    """
    pool, labelled = make_pool(n, d, c, seed), make_labelled(n, 6, c, seed)
    if regulariser < 1:
        size = 3 * torch.rand(n, 1, generator=generator(seed))
        pool = PoolScores(pool.features * size, pool.probs)
    h, p = pool.features.double().numpy(), pool.probs.double().numpy()
    single = [fisher(h[i], p[i]) for i in range(n)]
    target = np.mean(single, axis=0)
    matrix = regulariser * np.eye(len(target)) + sum(single[i] for i in labelled.positions.tolist()) / (6 + batch)
    share, free, picks = batch / (6 + batch), labelled.unlabelled(n).tolist(), list[int]()
    for _ in range(min(2 * batch, len(free))):
        trace = {i: -np.trace(np.linalg.solve(matrix + share * single[i], target)) for i in free if i not in picks}
        picks += largest(trace, 1)
        matrix = matrix + share * single[picks[-1]]
    while len(picks) > batch:
        trace = {i: -np.trace(np.linalg.solve(matrix - share * single[i], target)) for i in picks}
        worst = largest(trace, 1)[0]
        picks.remove(worst)
        matrix = matrix - share * single[worst]
    assert select("bait", pool, labelled, batch, generator(), regulariser=regulariser).tolist() == picks


def test_bait_in_fewer_dimensions_keeps_what_matters() -> None:
    """Features of rank 3 in 12 dimensions: 3 principal axes give the picks of all 12."""
    rng = generator(4)
    features = torch.randn(40, 3, generator=rng) @ torch.linalg.qr(torch.randn(12, 3, generator=rng)).Q.T
    pool, labelled = make_pool(40, 12, 3, 4, features), make_labelled(40, 6, 3, 4)
    full = select("bait", pool, labelled, 5, generator())
    assert torch.equal(full, select("bait", pool, labelled, 5, generator(), max_size=9))
    assert torch.equal(full, select("bait", pool, labelled, 5, generator(), max_rank=3))
    assert len(select("bait", pool, labelled, 5, generator(), max_rank=1)) == 5


@pytest.mark.parametrize("labels", [0, 1, 2, 4, 9])
def test_bait_starts_from_the_inverse_of_the_labelled_rows(labels: int) -> None:
    """Whether few labelled rows, whose columns are taken, or many."""
    pool = make_pool(30, 5, 4, 0)
    h, p = pool.features[:].double(), pool.probs.double()
    fisher = bait.mean_fisher(h, p, 4)
    matrix = 0.5 * torch.eye(20, dtype=torch.float64)
    for x, q in zip(h[:labels], p[:labels], strict=True):
        matrix += torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(x, x)) / 11
    inverse, middle = bait.started(fisher, h[:labels], p[:labels], 0.5, 11, 4)
    expected = torch.linalg.inv(matrix)
    torch.testing.assert_close(inverse, expected)
    torch.testing.assert_close(middle, expected @ fisher @ expected)


def test_bait_needs_one_dimension_at_least() -> None:
    """A limit below the number of classes leaves the first principal axis."""
    pool, labelled = make_pool(40, 5, 4, 0), make_labelled(40, 6, 4, 0)
    one, four, eight = (select("bait", pool, labelled, 7, generator(), max_size=size).tolist() for size in (1, 4, 8))
    assert one == four
    assert one != eight


@pytest.mark.parametrize("seed", range(3))
def test_bait_chunk_by_chunk(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, labelled = make_pool(40, 5, 4, seed), make_labelled(40, 6, 4, seed)
    whole = select("bait", pool, labelled, 7, generator(), max_size=12, max_rank=3)
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 40)
    monkeypatch.setattr(bait, "CHUNK", 300)
    assert torch.equal(whole, select("bait", pool, labelled, 7, generator(), max_size=12, max_rank=3))


@pytest.mark.parametrize("samples", [8, 27, 4000])
def test_batchbald_outcomes_stand_for_the_joint_distribution(samples: int) -> None:
    """Whether enumerated or drawn, weights and posteriors sum to 1, and what they predict is right on average."""
    rng = generator(3)
    passes = (2 * torch.randn(6, 30, 3, generator=rng)).softmax(2).double()
    posterior, weight = torch.full((1, 6), 1 / 6, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    exact, share = posterior, weight
    for row in (4, 9, 20, 11, 2):
        posterior, weight = bayesian.condition(posterior, weight, passes[:, row], samples, rng)
        exact, share = bayesian.condition(exact, share, passes[:, row], 3**5, rng)
        assert len(weight) <= samples
        torch.testing.assert_close(posterior.sum(1), torch.ones(len(weight), dtype=torch.float64))
        assert float(weight.sum()) == pytest.approx(1)
    assert len(share) == 3**5
    rows = torch.arange(30)
    truth = bayesian.expected_entropy(passes, rows, exact, share)
    found = bayesian.expected_entropy(passes, rows, posterior, weight)
    brute = [
        sum(
            float(w) * -sum(q * np.log(q) for q in (p @ passes[:, i]).tolist())
            for p, w in zip(exact, share, strict=True)
        )
        for i in (0, 7)
    ]
    np.testing.assert_allclose(truth[[0, 7]].numpy(), brute, rtol=1e-5)
    assert float((found - truth).abs().mean()) < {8: 0.2, 27: 0.1, 4000: 0.01}[samples]


@pytest.mark.parametrize("samples", [9, 10, 30])
@pytest.mark.parametrize("sharpness", [2.0, -2.0, 0.0])
def test_batchbald_is_exact_up_to_its_limit_and_then_unbiased(samples: int, sharpness: float) -> None:
    """Two rows of 3 classes have 9 outcomes. The mean posterior over outcomes is the prior, drawn or not."""
    passes = (sharpness * torch.randn(4, 3, 3, generator=generator(1)).sort().values).softmax(2).double()
    means = []
    for seed in range(200):
        rng = generator(seed)
        posterior, weight = torch.full((1, 4), 0.25, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        for row, outcomes in enumerate((3, 9, 27)):
            posterior, weight = bayesian.condition(posterior, weight, passes[:, row], samples, rng)
            assert len(weight) == min(outcomes, samples)
            if outcomes <= samples:
                torch.testing.assert_close(weight @ posterior, torch.full((4,), 0.25, dtype=torch.float64))
        means.append((weight @ posterior).numpy())
    error = np.abs(np.mean(means, axis=0) - 0.25)
    assert (error <= 4 * np.std(means, axis=0) / np.sqrt(200) + 1e-6).all()


@pytest.mark.parametrize(("uniform", "label"), [(0.0, 1), (0.3, 1), (0.7, 2), (1 - 2**-53, 2)])
@pytest.mark.parametrize("impossible", [[], [3]], ids=["last possible", "last impossible"])
def test_batchbald_draws_labels_by_their_probability(
    uniform: float, label: int, impossible: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label 0 is impossible, 1 and 2 are even, and the smallest and the largest uniform number keep to them."""
    probs = torch.tensor([[0.0, 0.2, 0.8], [0.0, 0.8, 0.2]], dtype=torch.float64)
    probs = torch.cat([probs, torch.zeros(2, len(impossible), dtype=torch.float64)], 1)
    posterior, weight = torch.full((4, 2), 0.5, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, uniform, dtype=torch.float64))
    drawn, share = bayesian.condition(posterior, weight, probs, 4, generator())
    torch.testing.assert_close(drawn, probs[:, label].expand(4, 2))
    assert torch.equal(share, weight)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_rows(seed: int) -> None:
    """Uncertainties by their definitions; BALD of passes that are sure and disagree, and of passes that agree."""
    pool = make_pool(40, 3, 4, seed)
    sharp = (8 * torch.randn(5, 40, 4, generator=generator(seed))).softmax(2)
    pool = PoolScores(pool.features, pool.probs, sharp)
    p, q = pool.probs.double().numpy(), sharp.double().numpy()
    order = np.sort(p, axis=1)
    np.testing.assert_allclose(uncertainty.least_confidence_scores(pool).numpy(), 1 - p.max(1), rtol=1e-12)
    np.testing.assert_allclose(uncertainty.margin_scores(pool).numpy(), 1 - order[:, -1] + order[:, -2], rtol=1e-12)
    np.testing.assert_allclose(uncertainty.entropy_scores(pool).numpy(), -(p * np.log(p)).sum(1), rtol=1e-12)
    information = -(q.mean(0) * np.log(q.mean(0))).sum(1) + (q * np.log(q)).sum(2).mean(0)
    np.testing.assert_allclose(uncertainty.bald_scores(pool).numpy(), information, rtol=1e-9, atol=1e-12)
    agreed = PoolScores(pool.features, pool.probs, pool.probs.expand(5, -1, -1))
    assert (uncertainty.bald_scores(agreed) >= 0).all()


@pytest.mark.parametrize("passes", range(1, 9))
def test_dropquery_wants_more_than_half_of_the_passes(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row i's prediction changes in i passes; less will do where too few rows change so often, but not none."""
    chosen: list[torch.Tensor] = []
    monkeypatch.setattr(clustered, "spread", lambda s, free, mask, *_: (chosen.append(mask), free[:2])[1])
    probs = torch.tensor([[0.9, 0.1]]).repeat(passes + 1, 1)
    changed = torch.arange(passes)[:, None] < torch.arange(passes + 1)
    stochastic = torch.where(changed[:, :, None], probs.flip(1), probs)
    pool = PoolScores(torch.randn(passes + 1, 2, generator=generator()), probs, stochastic)
    nothing = make_labelled(passes + 1, 0, 2, 0)
    for enough in range(passes + 2):
        monkeypatch.setattr(clustered, "CANDIDATES", enough / 2)
        direct("dropquery", pool, nothing, 2, generator())
        least = min(passes // 2, max(0, passes - enough)) + 1
        assert chosen[-1].tolist() == [i >= least for i in range(passes + 1)]


def test_alfamix_does_not_flip_what_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a prediction of probability 1 has no gradient to step along."""
    chosen: list[torch.Tensor] = []
    monkeypatch.setattr(clustered, "spread", lambda s, free, mask, *_: (chosen.append(mask), free[:2])[1])
    pool, _, _ = linear_pool(0)
    probs = pool.probs.clone()
    probs[:5] = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    labelled = LabelledSet(torch.arange(70, 80), torch.arange(10) % 4)
    direct("alfamix", PoolScores(pool.features, probs), labelled, 2, generator(), eps=5.0)
    assert not chosen[0][:5].any()
    assert chosen[0][5:].any()


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7])
def test_featdist_class_mean_of_any_batch(batch: int) -> None:
    """Two rows have a distance and five have none."""
    features = torch.arange(8.0)[:, None]
    probs = torch.eye(2)[torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])]
    labelled = LabelledSet(torch.tensor([0]), torch.tensor([0]))
    options: dict[str, Any] = {"reference": "class_mean", "space": "features"}
    picks = select("featdist", PoolScores(features, probs), labelled, batch, generator(), **options)
    assert picks[:2].tolist() == [2, 1][:batch]
    assert len(set(picks.tolist())) == batch


def test_linear_head_of_as_few_rows_as_can_tell() -> None:
    """Six weights and an intercept from seven rows: all of them are needed."""
    pool, weight, _ = linear_pool(0, n=7)
    assert np.abs(clustered.linear_head(pool).numpy() - (weight - weight.mean(0))).max() < 1e-2


@pytest.mark.parametrize(("batch", "factor"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)])
def test_cluster_margin_of_few_candidates(batch: int, factor: int) -> None:
    pool, labelled = make_pool(30, 4, 3, 0), make_labelled(30, 5, 3, 0)
    picks = select("cluster_margin", pool, labelled, batch, generator(), factor=factor).tolist()
    assert len(picks) == batch
    assert set(picks) <= set(select("margin", pool, labelled, batch * factor, generator()).tolist())


def test_linear_head_from_some_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, weight, _ = linear_pool(0)
    monkeypatch.setattr(clustered, "HEAD_ROWS", 30)
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 40)
    assert np.abs(clustered.linear_head(pool).numpy() - (weight - weight.mean(0))).max() < 1e-4


def test_purity_radius_of_one_class_is_that_of_two() -> None:
    rows = torch.randn(60, 3, generator=generator())
    assert coverage.purity_radius(rows, 1, 0.9, generator()) == coverage.purity_radius(rows, 2, 0.9, generator())


def test_probcover_takes_the_radius_from_as_many_clusters_as_classes() -> None:
    pool, labelled = make_pool(120, 4, 3, 0), make_labelled(120, 6, 3, 0)
    order, rng = ranking.once_per_pool(pool, 120)
    rows = kernels.View(pool.features, order, kernels.unit_length)[:]
    delta = coverage.purity_radius(rows, 3, 0.95, rng)
    chosen = select("probcover", pool, labelled, 20, generator(), delta=delta)
    assert torch.equal(select("probcover", pool, labelled, 20, generator()), chosen)
    assert coverage.purity_radius(rows, 120, 0.95, generator()) < 0.9 * delta, "else the test could not fail"


class Noted:
    """Calls a function and notes what it returns."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.answers = function, list[Any]()

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.answers.append(self.function(*given, **named))
        return self.answers[-1]


@pytest.mark.parametrize(("name", "part"), [("probcover", "purity_radius"), ("cluster_margin", "linkage")])
def test_what_is_found_out_once_is_the_same_in_every_round(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is labelled and drawn, and however rows are stored and classes numbered; another seed has another."""
    module = coverage if name == "probcover" else hierarchy
    noted = Noted(getattr(module, part))
    monkeypatch.setattr(module, part, noted)
    monkeypatch.setattr(clustered, "MAX_LINKED", 40)  # which rows are clustered is drawn once, too
    pool = make_pool(90, 4, 3, 0)
    names = Keys.of(map(str, range(90)), map(str, range(3)))
    pool = PoolScores(pool.features, pool.probs, pool.stochastic_probs, names)
    for seed in range(4):
        other, labelled = stored_otherwise(
            pool,
            make_labelled(90, 3 + seed, 3, seed),
            torch.randperm(90, generator=generator(seed)),
            torch.randperm(3, generator=generator(seed)),
        )
        select(name, other, labelled, 5, generator(seed))
    assert all(np.array_equal(answer, noted.answers[0]) for answer in noted.answers)
    reseeded = PoolScores(pool.features, pool.probs, None, Keys(mixed(names.rows, 1), mixed(names.classes, 1)))
    select(name, reseeded, make_labelled(90, 3, 3, 0), 5, generator())
    assert not np.array_equal(noted.answers[-1], noted.answers[0])


@pytest.mark.parametrize(("delta", "gain"), [(1e-3, 1), (10.0, 0), (0.5, 5)])
def test_probcover_says_when_its_picks_are_ties(delta: float, gain: int) -> None:
    """No ball holds a second row; a label's ball holds them all; a ball of some."""
    pool, labelled = make_pool(60, 3, 3, 0), make_labelled(60, 2, 3, 0)
    x = torch.nn.functional.normalize(pool.features, dim=1).double().numpy()
    near = squared_distances(x) < delta**2
    assert min(5, (near & ~near[labelled.positions.numpy()].any(0)).sum(1).max()) == gain
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        select("probcover", pool, labelled, 4, generator(), delta=delta)
    assert [w.category for w in caught] == ([DataNotice] if gain < 2 else [])
    assert all(f"radius {delta:.4g}" in str(w.message) for w in caught)


@pytest.mark.parametrize("seed", range(4))
def test_cluster_margin_of_a_pool_that_is_too_large_to_cluster(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three heaps, of which a few rows are clustered: every other row is of its heap, and each heap has its turn."""
    heap = torch.arange(60) % 3
    pool = make_pool(60, 4, 3, seed, 20 * torch.eye(4)[heap] + torch.randn(60, 4, generator=generator(seed)))
    monkeypatch.setattr(clustered, "MAX_LINKED", 25)
    picks = select("cluster_margin", pool, make_labelled(60, 3, 3, seed), 9, generator(seed), clusters=3, factor=6)
    candidates = select("margin", pool, make_labelled(60, 3, 3, seed), 54, generator())
    assert heap[candidates].bincount().min() >= 3
    assert heap[picks].bincount(minlength=3).tolist() == [3, 3, 3]


@pytest.mark.parametrize("seed", range(4))
def test_uherding_holds_out_labels_for_its_temperature(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn's logistic regression, and the temperature by a search; labels are noisy, so that it is not 1."""
    rng = generator(seed)
    pool = make_pool(200, 5, 3, seed)
    labels = torch.where(
        torch.rand(60, generator=rng) < 0.5, torch.randint(3, (60,), generator=rng), torch.arange(60) % 3
    )
    pool.features[:60] += 1.5 * torch.eye(5)[torch.arange(60) % 3]
    sharp = PoolScores(pool.features, (3 * pool.features[:, :3]).softmax(1))
    labelled = LabelledSet(torch.arange(60), labels)
    x = torch.nn.functional.normalize(pool.features, dim=1).double().numpy() * np.sqrt(5)
    x = np.column_stack([x, np.ones(len(x))])  # the bias costs like a weight
    probs = sharp.probs.double().numpy()
    drawn = generator(seed)
    logits, truth = [], []
    for _ in range(2):  # 18 of 60 labels each, 36 in all
        held, known = np.split(torch.randperm(60, generator=drawn).numpy(), [18])
        peer = LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x[known], labels[known])
        logit = np.log(peer.predict_proba(x))
        leads = [np.diff(np.sort(one, axis=1)[60:, -2:]).mean() for one in (np.log(probs), logit)]
        logits.append(logit[held] * leads[0] / leads[1])
        truth.append(labels[held])

    def loss(temperature: float) -> float:
        return float(
            -log_softmax(np.concatenate(logits) / temperature, axis=1)[range(36), np.concatenate(truth)].mean()
        )

    best = max(1.0, float(minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x))
    found = coverage.held_out_temperature(sharp, labelled, generator(seed))
    assert found == pytest.approx(best, rel=1e-3)
    noted = Noted(coverage.held_out_temperature)
    monkeypatch.setattr(coverage, "held_out_temperature", noted)
    chosen = direct("uherding", sharp, labelled, 9, generator(seed))
    assert chosen == direct("uherding", sharp, labelled, 9, generator(seed), temperature=noted.answers[0])


def test_uherding_with_too_few_labels_to_hold_any_out() -> None:
    pool = make_pool(30, 4, 3, 0)
    assert coverage.held_out_temperature(pool, make_labelled(30, 1, 3, 0), generator()) == 1.0
    assert coverage.held_out_temperature(pool, make_labelled(30, 2, 3, 0), generator()) >= 1.0


@pytest.mark.parametrize("purity", [0.05, 0.5, 0.95, 1 - 1e-9])
def test_purity_radius_from_some_of_the_rows(purity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays the right quantile when only some balls are looked at, and chunk by chunk."""
    rows = torch.randn(400, 2, generator=generator(1)) + 2 * torch.randint(3, (400, 1), generator=generator(2))
    whole = coverage.purity_radius(rows, 3, purity, generator())
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 1000)
    assert coverage.purity_radius(rows, 3, purity, generator()) == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(coverage, "PURITY_QUERIES", 100)
    label = ranking.kmeans(rows, 3, generator())[1]
    gap = torch.from_numpy(squared_distances(rows.double().numpy())).sqrt()
    enemy = gap.masked_fill(label[:, None] == label, torch.inf).amin(1)
    some = coverage.purity_radius(rows, 3, purity, generator())
    assert abs(float((enemy >= some).double().mean()) - purity) < 0.12


def test_smallest_gap_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator()), dim=1)
    exact = np.sqrt(squared_distances(rows.double().numpy()) + 9 * np.eye(50)).min()
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 170)
    assert coverage.smallest_gap(rows) == pytest.approx(exact, rel=1e-9)


def test_principal_axes_are_the_leading_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same products of rows as by the largest singular values; narrow rows stay as they are."""
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 50)
    rows = torch.randn(40, 8, generator=generator()) * torch.tensor([9.0, 1, 5, 1, 1, 7, 1, 1]) + 1
    u, s, _ = np.linalg.svd(rows.double().numpy(), full_matrices=False)
    found = bait.principal(rows, 3)
    assert found.shape == (40, 3)
    np.testing.assert_allclose((found @ found.T).numpy(), (u[:, :3] * s[:3] ** 2) @ u[:, :3].T, atol=1e-9)
    assert torch.equal(bait.principal(rows, 8), rows.double())


@pytest.mark.parametrize(("rank", "kept"), [(1, 1), (2, 2), (4, 4), (9, 4)])
def test_bait_keeps_the_most_probable_classes(rank: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """V V^T is the sum over the kept classes k of p_k (e_k - p)(e_k - p)^T x h h^T, of all: the Fisher information."""
    monkeypatch.setattr(bait, "CHUNK", 100)
    pool = make_pool(20, 3, 4, 0)
    p, h = pool.probs.double() / pool.probs.double().sum(1, keepdim=True), pool.features.double()
    columns = bait.most_probable(p, rank)
    assert columns.shape == (20, kept)
    expected = np.zeros((12, 12))
    for q, x in zip(p.numpy(), h.numpy(), strict=True):
        best = np.argsort(-q)[:kept]
        heads = sum(q[k] * np.outer(np.eye(4)[k] - q, np.eye(4)[k] - q) for k in best)
        expected += np.kron(heads, np.outer(x, x)) / 20
        if kept == 4:
            np.testing.assert_allclose(np.kron(heads, np.outer(x, x)), fisher(x, q), atol=1e-12)
    np.testing.assert_allclose(bait.mean_fisher(h, p, rank).numpy(), expected, atol=1e-12)
