"""Batch strategies against a slow, obvious numpy version of their definition: the same picks in order."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_strategies import generator, make_labelled, make_pool
from test_strategies_reference import SEEDS, largest, problem

from palkit import kmeans
from palkit.scores import LabelledSet, PoolScores
from palkit.strategies import clustered, coverage, select, uncertainty

Array = NDArray[Any]


def unit(features: Array) -> Array:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def passes_of(pool: PoolScores) -> Array:
    assert pool.stochastic_probs is not None
    return pool.stochastic_probs.double().numpy()


def entropy(p: Array) -> Array:
    return -(p * np.log(p)).sum(-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_bald(seed: int) -> None:
    pool, labelled, _, _, free, _ = problem(seed)
    p = passes_of(pool)
    score = {i: float(entropy(p[:, i].mean(0)) - entropy(p[:, i]).mean()) for i in free}
    assert select("bald", pool, labelled, 9, generator()).tolist() == largest(score, 9)


@pytest.mark.parametrize("name", ["least_confidence", "margin", "entropy", "bald"])
def test_power_draws_in_proportion(name: str) -> None:
    """With beta = 1 the first pick has probability score / sum of scores; with 0 it is the plain strategy."""
    pool, labelled = make_pool(12, 3, 3, 1), make_labelled(12, 2, 3, 1)
    plain = select(name, pool, labelled, 5, generator())
    assert torch.equal(plain, select(f"power_{name}", pool, labelled, 5, generator(), beta=0.0))
    score = getattr(uncertainty, name.replace("least_", "") + "_scores")(pool)[labelled.unlabelled(12)]
    rng, runs = generator(), 3000
    first = torch.stack([select(f"power_{name}", pool, labelled, 1, rng)[0] for _ in range(runs)])
    counts = torch.bincount(first, minlength=12)[labelled.unlabelled(12)]
    expected = runs * score / score.sum()
    assert ((counts - expected) ** 2 / expected).sum() < len(score) + 4 * np.sqrt(2 * len(score))


def joint_information(p: Array, batch: list[int]) -> float:
    """I(labels of the batch; weights) of passes p (T, N, C), by enumerating every joint outcome."""
    classes = range(p.shape[2])
    total = 0.0
    for outcome in itertools.product(classes, repeat=len(batch)):
        q = np.prod([p[:, i, y] for i, y in zip(batch, outcome, strict=True)], axis=0).mean()
        total -= q * np.log(q)
    return total - sum(entropy(p[:, i]).mean() for i in batch)


@pytest.mark.parametrize("seed", SEEDS)
def test_batchbald_exact(seed: int) -> None:
    pool, labelled = make_pool(20, 3, 3, seed), make_labelled(20, 4, 3, seed)
    free, picks = labelled.unlabelled(20).tolist(), list[int]()
    for _ in range(4):
        score = {i: joint_information(passes_of(pool), [*picks, i]) for i in free if i not in picks}
        picks += largest(score, 1)
    assert select("batchbald", pool, labelled, 4, generator()).tolist() == picks


def test_batchbald_sampled_is_close_to_exact() -> None:
    """The batches drawn with few outcomes are nearly as informative, and better than the top of BALD."""
    pool, labelled = make_pool(40, 3, 3, 2), make_labelled(40, 4, 3, 2)
    p = passes_of(pool)
    exact = joint_information(p, select("batchbald", pool, labelled, 5, generator()).tolist())
    drawn = [
        joint_information(p, select("batchbald", pool, labelled, 5, generator(s), samples=20).tolist())
        for s in range(5)
    ]
    assert max(drawn) <= exact + 1e-9
    assert min(drawn) > 0.9 * exact
    assert exact > joint_information(p, select("bald", pool, labelled, 5, generator()).tolist())


def check_cover(picks: list[int], similarity: Array, weight: Array, covered: Array, free: list[int]) -> None:
    """Each pick has the largest gain; among gains that float32 cannot tell apart any will do."""
    tie = None
    for number, pick in enumerate(picks):
        gain = {i: (weight * np.maximum(similarity[i] - covered, 0)).sum() for i in free if i not in picks[:number]}
        best = largest(gain, 1)[0]
        tie = tie or 1e-6 * gain[best]
        assert pick == best or gain[pick] > gain[best] - tie, (number, pick, best)
        covered = np.maximum(covered, similarity[pick])


def squared_distances(x: Array) -> Array:
    return ((x[:, None] - x[None]) ** 2).sum(2)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_maxherding(seed: int, bandwidth: float) -> None:
    pool, labelled, features, _, free, known = problem(seed)
    k = np.exp(-squared_distances(unit(features)) / bandwidth**2)
    picks = select("maxherding", pool, labelled, 12, generator(), bandwidth=bandwidth).tolist()
    check_cover(picks, k, np.ones(len(pool)), k[known].max(0), free)


@pytest.mark.parametrize("cache", [0, 10_000, 2**28])
def test_coverage_is_the_same_whatever_is_kept(cache: int) -> None:
    """Many tiles, so that laziness, the history and the cache all come into play."""
    rows = torch.randn(300, 4, generator=generator()) + 3 * torch.randn(10, 4, generator=generator(1)).repeat(30, 1)
    x = rows.double().numpy()
    weight = torch.rand(300, generator=generator(2))
    covered = torch.rand(300, generator=generator(3)) * 0.1
    k = np.exp(-squared_distances(x))
    picks = coverage.greedy_coverage(rows, coverage.rbf(1.0), weight, covered, 60, cache, tile=16).tolist()
    check_cover(picks, k, weight.double().numpy(), covered.double().numpy(), list(range(300)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_uherding(seed: int, temperature: float) -> None:
    pool, labelled, features, probs, free, known = problem(seed)
    x = unit(features)
    bandwidth = min(np.linalg.norm(x[a] - x[b]) for a in known for b in known if a != b)
    flat = probs ** (1 / temperature)
    p = np.sort(flat / flat.sum(1, keepdims=True), axis=1)
    weight = 1 - (p[:, -1] - p[:, -2])
    weight[known] = 0
    k = np.exp(-squared_distances(x) / bandwidth**2)
    picks = select("uherding", pool, labelled, 12, generator(), temperature=temperature).tolist()
    check_cover(picks, k, weight, k[known].max(0), free)


def test_uherding_without_labels_is_maxherding() -> None:
    pool, empty = make_pool(50, 4, 3, 0), make_labelled(50, 0, 3, 0)
    assert torch.equal(
        select("uherding", pool, empty, 8, generator()), select("maxherding", pool, empty, 8, generator())
    )


def test_uherding_bandwidth_ignores_copies() -> None:
    x = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0], [1, 1], [0, 1]]), dim=1)
    assert coverage.smallest_gap(x) == pytest.approx(float((x[0] - x[2]).norm()), rel=1e-6)
    assert coverage.smallest_gap(x[:2]) == 1.0
    assert coverage.smallest_gap(x[:1]) == 1.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_probcover(seed: int, normalize: bool) -> None:
    pool, labelled, features, _, free, known = problem(seed)
    x = unit(features) if normalize else features
    distance = np.sqrt(squared_distances(x))
    values = np.unique(distance)
    delta = float(values[len(values) // 7 : len(values) // 7 + 2].mean())
    near = (distance < delta).astype(float)
    picks = select("probcover", pool, labelled, 12, generator(), delta=delta, normalize=normalize).tolist()
    covered = near[known].max(0)
    for number, pick in enumerate(picks):  # whole numbers: ties are exact and go to the lowest position
        gain = {i: float(np.maximum(near[i] - covered, 0).sum()) for i in free if i not in picks[:number]}
        assert pick == largest(gain, 1)[0]
        covered = np.maximum(covered, near[pick])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 4])
def test_purity_radius_is_the_largest_pure_one(seed: int, classes: int) -> None:
    rows = torch.randn(200, 3, generator=generator(seed))
    radius = coverage.purity_radius(rows, classes, 0.9, generator(seed))
    label = kmeans.kmeans(rows, classes, generator(seed))[1].numpy()
    distance = np.sqrt(squared_distances(rows.double().numpy()))
    enemy = np.where(label[:, None] == label[None], np.inf, distance)

    def purity(delta: float) -> float:
        return float((enemy >= delta).all(1).mean())

    assert purity(radius * (1 - 1e-5)) >= 0.9
    assert purity(radius * (1 + 1e-5)) < 0.9


def test_herding_a_pool_beyond_its_limit() -> None:
    pool, labelled = make_pool(200, 4, 3, 0), make_labelled(200, 10, 3, 0)
    for name in ("maxherding", "uherding", "probcover"):
        picks = {tuple(select(name, pool, labelled, 5, generator(s), max_rows=50).tolist()) for s in range(8)}
        assert len(picks) > 1, name
        assert len(select(name, pool, labelled, 80, generator(), max_rows=50)) == 80


def centres_and_labels(rows: Array, clusters: int, seed: int, weight: Array | None = None) -> tuple[Array, Array]:
    """palkit's own k-means, which test_kernels checks."""
    mass = None if weight is None else torch.from_numpy(weight)
    centres, label = kmeans.kmeans(torch.from_numpy(rows).float(), clusters, generator(seed), mass)
    return centres.numpy(), label.numpy()


def nearest_distinct(x: Array, centres: Array, free: list[int]) -> list[int]:
    picks: list[int] = []
    for centre in centres:
        gap = {i: float(((x[i] - centre) ** 2).sum()) for i in free if i not in picks}
        best = min(gap.values())
        picks.append(min(i for i in gap if gap[i] <= best * (1 + 1e-6)))
    return picks


@pytest.mark.parametrize("seed", SEEDS)
def test_centroid(seed: int) -> None:
    pool, labelled, features, _, free, _ = problem(seed)
    x = unit(features)
    centres, _ = centres_and_labels(x[free], 9, seed)
    assert select("centroid", pool, labelled, 9, generator(seed)).tolist() == nearest_distinct(x, centres, free)


@pytest.mark.parametrize("seed", SEEDS)
def test_clue(seed: int) -> None:
    pool, labelled, features, probs, free, _ = problem(seed)
    centres, _ = centres_and_labels(features[free], 9, seed, entropy(probs[free]))
    expected = nearest_distinct(features, centres, free)
    assert select("clue", pool, labelled, 9, generator(seed)).tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("batch", "neighbours", "min_size"), [(6, 20, 5), (25, 3, 2)])
def test_typiclust(seed: int, batch: int, neighbours: int, min_size: int) -> None:
    pool, labelled, features, _, free, known = problem(seed)
    x = unit(features)
    _, cluster = centres_and_labels(x, min(len(known) + batch, 20), seed)
    picks: list[int] = []
    for _ in range(batch):
        held = {c: sum(cluster[i] == c for i in [*known, *picks]) for c in set(cluster)}
        left = {c: [i for i in free if cluster[i] == c and i not in picks] for c in held}
        size = {c: int((cluster == c).sum()) for c in held}
        best = min((c for c in held if left[c]), key=lambda c: (size[c] < min_size, held[c], -size[c], c))
        spread = {}
        for i in left[best]:
            near = sorted(np.linalg.norm(x[i] - x[j]) for j in left[best] if j != i)[:neighbours]
            spread[i] = np.mean(near) if near else 0.0
        picks += largest({i: -d for i, d in spread.items()}, 1)
    options = {"max_clusters": 20, "neighbours": neighbours, "min_size": min_size}
    assert select("typiclust", pool, labelled, batch, generator(seed), **options).tolist() == picks


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("batch", [3, 30])
def test_dropquery(seed: int, batch: int) -> None:
    """Enough changed rows for k-means, then too few: all of them, topped up."""
    pool, labelled, features, probs, free, _ = problem(seed)
    label = probs.argmax(1)
    changed = [i for i in free if (passes_of(pool)[:, i].argmax(1) != label[i]).sum() > 2.5]
    picks = select("dropquery", pool, labelled, batch, generator(seed)).tolist()
    if len(changed) > batch:
        centres, _ = centres_and_labels(unit(features)[changed], batch, seed)
        assert picks == nearest_distinct(unit(features), centres, changed)
    else:
        assert picks[: len(changed)] == changed
        assert len(picks) == batch


def linear_pool(seed: int, n: int = 80, d: int = 6, c: int = 4) -> tuple[PoolScores, Array, Array]:
    """A pool whose probabilities do come from a linear head; with the head."""
    rng = generator(seed)
    features = torch.randn(n, d, generator=rng) + 2
    weight, bias = torch.randn(c, d, generator=rng), torch.randn(c, generator=rng)
    probs = (features @ weight.T + bias).softmax(1)
    return PoolScores(features, probs), weight.double().numpy(), bias.double().numpy()


@pytest.mark.parametrize("seed", SEEDS)
def test_alfamix(seed: int) -> None:
    """Mixed rows are formed here, one anchor at a time, and put through the real head."""
    pool, weight, bias = linear_pool(seed)
    labelled = make_labelled(80, 7, 4, seed)
    h, labels = pool.features.double().numpy(), labelled.labels.numpy()
    eps = 2.0
    flips = []
    for i in labelled.unlabelled(80).tolist():
        logits = h[i] @ weight.T + bias
        p = np.exp(logits - logits.max())
        gradient = (p / p.sum() - np.eye(4)[logits.argmax()]) @ weight
        for label in set(labels):
            z = h[labelled.positions.numpy()[labels == label]].mean(0) - h[i]
            alpha = eps / np.sqrt(6) * np.linalg.norm(z) / np.linalg.norm(gradient) * gradient / z
            if ((h[i] + alpha * z) @ weight.T + bias).argmax() != logits.argmax():
                flips.append(i)
                break
    picks = select("alfamix", pool, labelled, 5, generator(seed), eps=eps).tolist()
    assert len(flips) > 5
    centres, _ = centres_and_labels(unit(h)[flips], 5, seed)
    assert picks == nearest_distinct(unit(h), centres, flips)


@pytest.mark.parametrize("seed", SEEDS)
def test_linear_head_is_recovered(seed: int) -> None:
    pool, weight, _ = linear_pool(seed)
    assert np.abs(clustered.linear_head(pool).numpy() - (weight - weight.mean(0))).max() < 1e-4


def average_linkage(x: Array, clusters: int) -> list[list[int]]:
    groups = [[i] for i in range(len(x))]
    distance = np.sqrt(squared_distances(x))
    while len(groups) > clusters:
        a, b = min(
            itertools.combinations(range(len(groups)), 2),
            key=lambda pair: distance[np.ix_(groups[pair[0]], groups[pair[1]])].mean(),
        )
        groups[a] += groups.pop(b)
    return groups


@pytest.mark.parametrize("seed", SEEDS)
def test_cluster_margin(seed: int) -> None:
    """Each round takes one row of each cluster that has any left, the smallest cluster first."""
    pool, labelled, features, probs, free, _ = problem(seed)
    margin = {i: np.sort(probs[i])[-2] - np.sort(probs[i])[-1] for i in free}
    candidates = largest(margin, 28)
    groups = [[candidates[i] for i in g] for g in average_linkage(features[candidates], 5)]
    picks = select("cluster_margin", pool, labelled, 14, generator(seed), factor=2, clusters=5).tolist()
    sizes = {i: len(g) for g in groups for i in g}
    start = 0
    for turn in range(28):
        members = [g for g in groups if len(g) > turn]
        batch = picks[start : start + len(members)]
        assert [sizes[i] for i in batch] == sorted(len(g) for g in members)[: len(batch)]
        assert len({tuple(g) for g in groups for i in batch if i in g}) == len(batch)
        start += len(members)
        if start >= 14:
            break


@pytest.mark.parametrize("seed", SEEDS)
def test_falcun(seed: int) -> None:
    pool, labelled, _, probs, free, _ = problem(seed)
    p, rng = probs[free], generator(seed)
    order = np.sort(p, axis=1)
    u = 1 - (order[:, -1] - order[:, -2])
    d, picks = u.copy(), list[int]()
    for _ in range(12):
        weight = (u + d) ** 10
        weight[picks] = 0
        aim = torch.rand(1, generator=rng, dtype=torch.float64).item() * weight.sum()
        picks.append(int(np.searchsorted(weight.cumsum(), aim, side="right")))
        d = np.minimum(d, np.abs(p - p[picks[-1]]).sum(1))
        d = (d - d.min()) / (d.max() - d.min())
    assert select("falcun", pool, labelled, 12, generator(seed)).tolist() == [free[i] for i in picks]


def test_oracle_evens_out_the_true_classes() -> None:
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    pool = make_pool(60, 3, 3, 0)
    labelled = LabelledSet(torch.tensor([0, 1, 41]), torch.tensor([0, 0, 1]))
    for seed in range(5):
        picks = select("class_balanced_oracle", pool, labelled, 9, generator(seed), labels=labels)
        assert torch.bincount(labels[picks]).tolist() == [2, 3, 4]
    picks = select("class_balanced_oracle", pool, labelled, 30, generator(), labels=labels)
    assert torch.bincount(labels[picks]).tolist() == [12, 13, 5]  # class 1 and 2 run out
