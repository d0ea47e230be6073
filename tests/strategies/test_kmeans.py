"""k-means, its seeding and sums over groups, against scikit-learn and direct numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from test_kernels import Recorded, generator

from palkit.strategies import kernels, kmeans


def test_outer_kmeanspp_leaves_copies_for_last() -> None:
    """Three distinct rows, ten copies of each: the first three picks are one of each kind."""
    left = torch.randn(3, 4, generator=generator()).repeat(10, 1)
    right = torch.randn(3, 50, generator=generator(1)).repeat(10, 1) * 100
    for seed in range(20):
        picks = kmeans.outer_kmeanspp(left, right, torch.arange(30), 12, generator(seed))
        assert sorted(int(p) % 3 for p in picks[:3]) == [0, 1, 2]
        assert len(set(picks.tolist())) == 12


def test_outer_kmeanspp_of_equal_rows_is_uniform() -> None:
    """No distance is left to weigh by: later picks must not favour the head of the pool."""
    left, right = torch.ones(40, 2), torch.ones(40, 3)
    picks = [kmeans.outer_kmeanspp(left, right, torch.arange(40), 2, generator(s))[1] for s in range(200)]
    assert len({int(p) for p in picks}) > 30


def blobs(n: int, d: int, clusters: int, seed: int = 0) -> torch.Tensor:
    rng = generator(seed)
    middle = 3 * torch.randn(clusters, d, generator=rng)
    return middle[torch.randint(clusters, (n,), generator=rng)] + torch.randn(n, d, generator=rng)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_ends_at_a_fixed_point(weighted: bool, offset: float) -> None:
    """Every row with its nearest centre, every centre the mean of its rows: skipped work changes nothing."""
    rows = blobs(3000, 8, 25) + offset
    weight = torch.rand(3000, generator=generator(1)) if weighted else torch.ones(3000)
    centres, label = kmeans.kmeans(rows, 25, generator(), weight, tolerance=0)
    x, w = rows.double().numpy(), weight.double().numpy()
    gap = ((x[:, None] - centres.numpy()[None]) ** 2).sum(2)
    assert (gap[np.arange(3000), label] <= gap.min(1) * (1 + (1e-3 if offset else 1e-5))).all()
    for c in range(25):
        mine = label.numpy() == c
        mean = np.average(x[mine], axis=0, weights=w[mine])
        np.testing.assert_allclose(centres[c].numpy(), mean, atol=1e-4)


def test_kmeans_is_as_good_as_scikit_learns() -> None:
    """The mean over seeds, as single runs end in better and worse optima."""
    ours, peers = [], []
    for seed in range(8):
        rows = blobs(2000, 10, 40, seed)
        centres, label = kmeans.kmeans(rows, 40, generator(seed))
        ours.append(float((rows - centres[label]).square().sum()))
        peers.append(KMeans(40, n_init=1, random_state=seed).fit(rows.numpy()).inertia_)
    assert np.mean(ours) < 1.02 * np.mean(peers)


def test_many_clusters_are_seeded_together_and_end_nearly_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inertia within a twentieth of that from greedy seeds."""
    rows = blobs(2500, 10, 40)
    found = []
    for limit in (0, 300):
        monkeypatch.setattr(kmeans, "ONE_BY_ONE", limit)
        centres, label = kmeans.kmeans(rows, 300, generator())
        found.append(float((rows - centres[label]).square().sum()))
    assert found[0] != found[1]
    assert found[0] < 1.05 * found[1]


def test_kmeans_heeds_the_weights() -> None:
    """Rows of weight 0 do not move centres, wherever they lie."""
    rows = torch.cat([blobs(300, 3, 4), 100 + torch.randn(50, 3, generator=generator(5))])
    weight = torch.cat([torch.ones(300), torch.zeros(50)])
    centres, _ = kmeans.kmeans(rows, 4, generator(), weight)
    assert centres.abs().max() < 20


def test_kmeans_of_fewer_distinct_rows_than_clusters() -> None:
    rows = torch.eye(3).repeat(10, 1)
    centres, label = kmeans.kmeans(rows, 8, generator())
    assert centres.shape == (8, 3)
    np.testing.assert_allclose(centres[label].numpy(), rows.numpy(), atol=1e-6)


def test_kmeans_of_copies_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centres on one spot differ in a last bit, and copies went to and fro between them: for ever, with these seeds."""
    monkeypatch.setattr(kmeans, "MAX_STEPS", 10**9)
    for seed in [8079, 21754, *range(200)]:
        rng = generator(seed)
        n, d = (int(torch.randint(low, high, (1,), generator=rng)) for low, high in [(2, 61), (1, 4)])
        rows = torch.nn.functional.normalize(torch.randn(n, d, generator=rng).round())
        with monkeypatch.context() as patch:
            steps = iter(range(20))  # a StopIteration where there are more
            patch.setattr(kmeans, "chunks", lambda *a, steps=steps: [next(steps), *kernels.chunks(*a)][1:])
            kmeans.kmeans(rows, int(torch.randint(1, n + 1, (1,), generator=rng)), rng, tolerance=0)


def test_kmeans_of_copies_is_the_same_with_other_last_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor multiplies with other last bits: copies stay together, with the same centre."""
    rows = torch.nn.functional.normalize(torch.randn(60, 2, generator=generator()).round())
    label = kmeans.kmeans(rows, 24, generator())[1]
    product, noise = torch.addmm, generator(1)

    def otherwise(*args: Any, **options: Any) -> torch.Tensor:
        found = product(*args, **options)
        return found + 1e-7 * torch.randn(found.shape, generator=noise)

    monkeypatch.setattr(torch, "addmm", otherwise)
    for _ in range(5):
        assert torch.equal(kmeans.kmeans(rows, 24, generator())[1], label)


def test_group_sum_is_the_same_either_way() -> None:
    """The product that stands in for index_add_ on a GPU gives the same sums."""
    rows, group = torch.randn(50, 4, generator=generator()), torch.randint(7, (50,), generator=generator())
    expected = np.stack([rows.numpy()[group.numpy() == g].sum(0) for g in range(7)])
    sums = torch.ones(7, 4, dtype=torch.float64)
    kmeans.add_by_group(sums, rows, group)
    np.testing.assert_allclose(sums.numpy(), 1 + expected, atol=1e-5)
    np.testing.assert_allclose(kmeans.group_product(rows, group, 7).numpy(), expected, atol=1e-5)


def test_outer_kmeanspp_tells_a_near_copy_from_a_copy() -> None:
    """A squared distance of 2e-6 of the norms is a distance, what float32 leaves of a copy's is none."""
    left = torch.randn(1, 4, generator=generator()).repeat(2000, 1)
    right = torch.randn(1, 50, generator=generator(1)).repeat(2000, 1)
    right[1234] *= 1 - 2e-3
    for seed in range(20):
        picks = kmeans.outer_kmeanspp(left, right, torch.arange(2000), 2, generator(seed))
        assert picks.tolist() == [0, 1234]


def test_kmeans_stops_as_soon_as_few_rows_move() -> None:
    """All rows move in the first pass; if all may, the centres are the seeds, which are rows."""
    rows = blobs(500, 3, 6)
    centres, label = kmeans.kmeans(rows, 6, generator(), tolerance=1.0)
    gap = torch.cdist(rows.double(), centres)
    assert gap.amin(0).max() < 1e-5
    assert torch.equal(label, gap.argmin(1))
    moved = kmeans.kmeans(rows, 6, generator(), tolerance=0.999)[0]
    assert torch.cdist(rows.double(), moved).amin(0).min() > 1e-5


def test_kmeans_is_near_its_fixed_point_by_default() -> None:
    """The docstring's two parts in a thousand, as a mean over seeds."""
    excess = []
    for seed in range(8):
        rows = blobs(2000, 10, 40, seed)
        inertia = [
            float((rows - centres[label]).square().sum())
            for centres, label in (kmeans.kmeans(rows, 40, generator(seed), tolerance=t) for t in (1e-2, 0.0))
        ]
        excess.append(inertia[0] / inertia[1] - 1)
    assert 0 <= np.mean(excess) < 0.004


@pytest.mark.parametrize(("clusters", "sample"), [(4, 20), (12, 36)])
def test_kmeans_seeds_look_at_a_sample(clusters: int, sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger of so many rows and so many per cluster."""
    monkeypatch.setattr(kmeans, "SEEDING_ROWS", (20, 3))
    rows = Recorded(blobs(300, 6, 5))
    kmeans.kmeans(rows, clusters, generator())
    assert set(rows.reads) == {300, sample}


def test_kmeans_seeds_spread_over_far_clusters() -> None:
    """Greedy k-means++ hardly ever misses one of 10 tight clusters."""
    middle = 100 * torch.randn(10, 5, generator=generator(1))
    rows = middle.repeat(30, 1) + torch.randn(300, 5, generator=generator(2))
    near = [torch.cdist(middle.double(), kmeans.kmeans(rows, 10, generator(s))[0]).amin(1).max() for s in range(40)]
    assert sum(float(gap) < 5 for gap in near) >= 39
