"""Batch strategies against a slow, obvious numpy version of their definition: the same picks in order."""

import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from breadth import some
from hypothesis import given, settings
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from test_strategies import generator, make_labelled, make_pool
from test_strategies_reference import SEEDS, direct, largest, problem
from torch import Tensor

from palkit.strategies import clustered, coverage, kmeans, select, uncertainty
from palkit.strategies.scores import LabelledSet, PoolScores

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


@pytest.mark.parametrize("runs", [1000, pytest.param(3000, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", some(["entropy", "margin", "bald", "least_confidence"], every=2))
def test_power_draws_in_proportion(name: str, runs: int) -> None:
    """With beta = 1 the first pick has probability score / sum of scores; with 0 it is the plain strategy."""
    pool, labelled = make_pool(12, 3, 3, 1), make_labelled(12, 2, 3, 1)
    plain = select(name, pool, labelled, 5, generator())
    assert torch.equal(plain, select(f"power_{name}", pool, labelled, 5, generator(), beta=0.0))
    score = getattr(uncertainty, f"{name}_scores")(pool)[labelled.unlabelled(12)]
    rng = generator()
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


@pytest.mark.parametrize("cache", [0, 40_000, 2**28])
def test_coverage_is_the_same_whatever_is_kept(cache: int) -> None:
    """Many tiles, so that laziness and the cache come into play; gains without float32's rounding."""
    rows = torch.randn(300, 4, generator=generator()) + 3 * torch.randn(10, 4, generator=generator(1)).repeat(30, 1)
    x = rows.double().numpy()
    weight = torch.rand(300, generator=generator(2))
    covered = torch.rand(300, generator=generator(3)) * 0.1
    k = np.exp(-squared_distances(x))
    picks, gains = coverage.greedy_coverage(rows, coverage.rbf(1.0), weight, covered, 60, cache, tile=16)
    check_cover(picks.tolist(), k, weight.double().numpy(), covered.double().numpy(), list(range(300)))
    known = covered.double().numpy()
    for pick, gain in zip(picks.tolist(), gains.tolist(), strict=True):
        assert gain == pytest.approx((weight.double().numpy() * np.maximum(k[pick] - known, 0)).sum(), rel=1e-9)
        known = np.maximum(known, k[pick])


@pytest.mark.parametrize("cache", [0, 2**28])
@pytest.mark.parametrize(("bandwidth", "far"), [(0.03, 0.0), (1.0, 1000.0)])
def test_coverage_is_decided_in_float64(cache: int, bandwidth: float, far: float) -> None:
    """Sums and small distances that float32 gets wrong, and copies: the lowest position of the best, to the row."""
    distinct = torch.randn(60, 16, generator=generator(), dtype=torch.float64)
    distinct = torch.cat([distinct, distinct + 0.01 * torch.randn(60, 16, generator=generator(1), dtype=torch.float64)])
    rows = distinct.repeat(12, 1)[torch.randperm(1440, generator=generator(2))] / 4 + far
    x = rows.numpy()
    k = np.exp(-cdist(x, x, "sqeuclidean") / bandwidth**2)
    kernel, ones = coverage.rbf(bandwidth), torch.ones(1440)
    picks, gains = coverage.greedy_coverage(rows, kernel, ones, 0 * ones, 40, cache)
    covered, tie = np.zeros(1440), 0.0
    for number, (pick, found) in enumerate(zip(picks.tolist(), gains.tolist(), strict=True)):
        gain = np.maximum(k - covered, 0).sum(1)
        gain[picks[:number]] = -1
        tie = tie or coverage.TIE * gain.max()
        assert pick == (gain >= gain.max() - tie).argmax(), number
        assert found == pytest.approx(gain[pick], rel=1e-7)
        covered = np.maximum(covered, k[pick])


def test_coverage_of_the_few_rows_that_have_weight() -> None:
    """Of 2,560 rows each tenth is a sample on which float32 is judged; none of these has weight."""
    rows = (torch.randn(8, 64, generator=generator(), dtype=torch.float64) / 8).repeat(320, 1)
    rows += torch.randn(2560, 64, generator=generator(1), dtype=torch.float64) / 8000
    weight = torch.zeros(2560)
    weight[torch.randperm(256, generator=generator(2))[:40] * 10 + 3] = 1
    picks = coverage.greedy_coverage(rows, coverage.rbf(0.01), weight, torch.zeros(2560), 30)[0].tolist()
    x, covered = rows.numpy(), np.zeros(2560)
    k = np.exp(-cdist(x, x, "sqeuclidean") / 0.01**2)
    for number, pick in enumerate(picks):
        gain = np.maximum(k - covered, 0) @ weight.double().numpy()
        gain[picks[:number]] = -1
        assert gain[pick] >= gain.max() - 2 * coverage.TIE * 40, number
        covered = np.maximum(covered, k[pick])


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
    picks = direct("probcover", pool, labelled, 12, generator(), delta=delta, normalize=normalize)
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

    assert purity(radius) >= 0.9
    assert purity(radius * (1 + 2e-5)) < 0.9


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
    assert direct("centroid", pool, labelled, 9, generator(seed)) == nearest_distinct(x, centres, free)


@pytest.mark.parametrize("seed", SEEDS)
def test_clue(seed: int) -> None:
    pool, labelled, features, probs, free, _ = problem(seed)
    centres, _ = centres_and_labels(features[free], 9, seed, entropy(probs[free]))
    expected = nearest_distinct(features, centres, free)
    assert direct("clue", pool, labelled, 9, generator(seed)) == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(("batch", "neighbours", "min_size"), [(6, 20, 5), (25, 3, 2), (37, 20, 5), (30, 20, 90)])
def test_typiclust(seed: int, batch: int, neighbours: int, min_size: int, copies: bool) -> None:
    """The authors' loop: clusters sorted once and visited in turn; with copies, and when the larger ones run out."""
    pool, labelled, features, _, free, known = problem(seed)
    if copies:
        features[::2] = features[::2].round() + 0.2
        pool = PoolScores(torch.from_numpy(features).float(), pool.probs)
        features = pool.features.double().numpy()
    x = unit(features)
    _, cluster = centres_and_labels(x, min(len(known) + batch, 20), seed)
    size = {c: int((cluster == c).sum()) for c in range(20)}
    held = {c: sum(cluster[i] == c for i in known) for c in range(20)}
    turn = sorted(range(20), key=lambda c: (held[c], -size[c]))
    picks: list[int] = []

    def visit(c: int) -> None:
        left = [i for i in free if cluster[i] == c and i not in picks]
        if left and len(picks) < batch:
            count = min(neighbours, len(left) // 2)
            far = {i: sorted(((x[i] - x[j]) ** 2).sum() for j in left if j != i)[:count] for i in left}
            best = min(sum(near) for near in far.values())
            picks.append(min(i for i in left if sum(far[i]) <= best + 1e-9))

    for group in ([c for c in turn if size[c] > min_size], [c for c in turn if size[c] <= min_size]):
        for _ in range(max(size.values())):
            for c in group:
                visit(c)
    options = {"max_clusters": 20, "neighbours": neighbours, "min_size": min_size}
    assert direct("typiclust", pool, labelled, batch, generator(seed), **options) == picks


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("enough", [0, 2, 4, 25])
@pytest.mark.parametrize("batch", [3, 30])
def test_dropquery(seed: int, batch: int, enough: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough changed rows for k-means, then fewer: of those that changed less often, and all of them, topped up."""
    monkeypatch.setattr(clustered, "CANDIDATES", enough)
    pool, labelled, features, probs, free, _ = problem(seed)
    label = probs.argmax(1)
    changes = {i: int((passes_of(pool)[:, i].argmax(1) != label[i]).sum()) for i in free}
    threshold = 2  # of five passes
    while sum(n > threshold for n in changes.values()) < enough * batch and threshold > 0:
        threshold -= 1
    changed = [i for i in free if changes[i] > threshold]
    picks = direct("dropquery", pool, labelled, batch, generator(seed))
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
@pytest.mark.parametrize(
    ("first", "classes", "batch"), [(2.0, 4, 5), (0.2, 4, 4), (0.3, 4, 9), (0.2, 2, 4), (0.2, 4, 72)]
)
def test_alfamix(seed: int, first: float, classes: int, batch: int) -> None:
    """Mixed rows are formed here, one anchor at a time, and put through the real head, with larger and larger steps."""
    pool, weight, bias = linear_pool(seed)
    labelled = make_labelled(80, 7, classes, seed)  # of the four
    h, labels = pool.features.double().numpy(), labelled.labels.numpy()
    known = h[labelled.positions.numpy()]
    anchors = [known[labels == c].mean(0) if c in labels else known.mean(0) for c in range(4)]
    flips: set[int] = set()
    eps = 0.0
    while eps < 1 - 1e-9 and len(flips) <= batch:
        eps += first
        for i in labelled.unlabelled(80).tolist():
            logits = h[i] @ weight.T + bias
            p = np.exp(logits - logits.max())
            gradient = (p / p.sum() - np.eye(4)[logits.argmax()]) @ weight
            for anchor in anchors:
                z = anchor - h[i]
                alpha = eps / np.sqrt(6) * np.linalg.norm(z) / np.linalg.norm(gradient) * gradient / z
                if ((h[i] + alpha * z) @ weight.T + bias).argmax() != logits.argmax():
                    flips.add(i)
    picks = direct("alfamix", pool, labelled, batch, generator(seed), eps=first)
    assert flips
    if len(flips) > batch:
        centres, _ = centres_and_labels(unit(h)[sorted(flips)], batch, seed)
        assert picks == nearest_distinct(unit(h), centres, sorted(flips))
    else:
        assert picks[: len(flips)] == sorted(flips)


@settings(max_examples=200)
@given(
    eps=st.sampled_from([0.1875, 0.25, 0.375, 1.0, 2.0, 0.0078125]),
    needed=st.lists(st.sampled_from([*np.arange(0, 1.2, 0.0625).tolist(), 7.0, np.inf]), min_size=1),
    batch=st.integers(1, 12),
)
def test_alfamix_raises_its_step_as_far_as_need_be(eps: float, needed: list[float], batch: int) -> None:
    """The authors' loop; what needs a step of 0.25 does not flip at 0.25. All numbers are exact."""
    steps = 1
    while eps * steps < 1 and sum(n < eps * steps for n in needed) <= batch:
        steps += 1
    assert clustered.raised(eps, torch.tensor(needed, dtype=torch.float64), batch) == pytest.approx(eps * steps)


def test_alfamix_does_not_separate_classes_that_tie() -> None:
    """Two classes of one and the same logit, as without labels: no mixing tells them apart, rounding apart."""
    rng = generator(3)
    features = torch.randn(60, 6, generator=rng)
    weight = torch.randn(4, 6, generator=rng)
    weight[3] = weight[2]
    pool = PoolScores(features, (features @ weight.T).softmax(1))
    labelled = LabelledSet(torch.arange(6), torch.tensor([0, 1, 0, 1, 0, 1]))
    kept: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustered, "spread", lambda s, free, mask, *_: (kept.append(mask), free[:2])[1])
        select("alfamix", pool, labelled, 2, generator(), eps=1e-9)
        select("alfamix", pool, labelled, 2, generator(), eps=1.0)
    assert kept[0].sum() < 54
    h, w = features.double().numpy(), weight.double().numpy()
    anchors = [*(h[:6][labelled.labels.numpy() == c].mean(0) for c in (0, 1)), h[:6].mean(0)]
    flips = 0
    for x in h[6:]:
        logits = x @ w.T
        p = np.exp(logits) / np.exp(logits).sum()
        gradient = (p - np.eye(4)[logits.argmax()]) @ w
        reach = max(np.linalg.norm(z - x) for z in anchors) / np.sqrt(6)
        moved = (x + reach * gradient / np.linalg.norm(gradient)) @ w.T
        flips += moved[logits.argmax()] < moved.max() - 1e-9
    assert kept[1].sum() == flips


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
    """Each turn takes one row of each cluster of the whole pool that has any left, that with the fewest first."""
    pool, labelled, features, probs, free, _ = problem(seed)
    margin = {i: np.sort(probs[i])[-2] - np.sort(probs[i])[-1] for i in free}
    candidates = largest(margin, 28)
    groups = [[i for i in g if i in candidates] for g in average_linkage(features, 5)]
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
    assert direct("falcun", pool, labelled, 12, generator(seed)) == [free[i] for i in picks]


def test_oracle_evens_out_the_true_classes() -> None:
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    pool = make_pool(60, 3, 3, 0)
    labelled = LabelledSet(torch.tensor([0, 1, 41]), torch.tensor([0, 0, 1]))
    for seed in range(5):
        picks = select("class_balanced_oracle", pool, labelled, 9, generator(seed), labels=labels)
        assert torch.bincount(labels[picks]).tolist() == [2, 3, 4]
    picks = select("class_balanced_oracle", pool, labelled, 30, generator(), labels=labels)
    assert torch.bincount(labels[picks]).tolist() == [12, 13, 5]  # class 1 and 2 run out
