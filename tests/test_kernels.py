"""Kernels against direct numpy, in the regimes where a shortcut would lose digits."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from palkit import kernels

Array = NDArray[Any]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rows", "width", "elements"), [(10, 3, 7), (10, 3, 2), (10, 3, None), (1, 1, 1)])
def test_chunks_cover_every_row_once(rows: int, width: int, elements: int | None) -> None:
    covered = [i for part in kernels.chunks(rows, width, elements) for i in range(part.start, part.stop)]
    assert covered == list(range(rows))
    assert list(kernels.chunks(0, width, elements)) == []


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_nearest_far_from_the_origin(offset: float) -> None:
    """A common offset costs the expansion in float32 all its digits; distances must not notice."""
    rows = torch.randn(200, 12, generator=generator()) + offset
    references = rows[::9] + 0.01
    distance, index = kernels.nearest(rows, references)
    exact = ((rows.double()[:, None] - references.double()[None]) ** 2).sum(2).numpy()
    assert index.tolist() == exact.argmin(1).tolist()
    np.testing.assert_allclose(distance.numpy(), exact.min(1), rtol=1e-12)


def test_nearest_of_a_copy_is_exactly_zero() -> None:
    rows = torch.randn(50, 7, generator=generator()) + 100
    assert (kernels.nearest(rows, rows[:20])[0][:20] == 0).all()


def plain_k_center(rows: Array, seeds: list[int], candidates: list[int], count: int) -> list[int]:
    distance = np.min([((rows - rows[s]) ** 2).sum(1) for s in seeds], axis=0)
    picks: list[int] = []
    for _ in range(count):
        picks.append(max((i for i in candidates if i not in picks), key=lambda i: (distance[i], -i)))
        distance = np.minimum(distance, ((rows - rows[picks[-1]]) ** 2).sum(1))
    return picks


@pytest.mark.parametrize("kind", ["normal", "clustered", "grid", "heavy tails", "offset"])
def test_lazy_k_center_is_greedy_k_center(kind: str) -> None:
    """Enough rows for several rounds of bound refreshing; `grid` ties everywhere, exactly."""
    n, rng = 1500, generator(3)
    rows = torch.randn(n, 6, generator=rng)
    rows = {
        "normal": rows,
        "clustered": rows * 0.1 + 5 * torch.randn(20, 6, generator=rng)[torch.arange(n) % 20],
        "grid": (rows[:, :2] * 3).round(),
        "heavy tails": rows / torch.rand(n, 1, generator=rng),
        "offset": rows + 1e4,
    }[kind]
    seeds, candidates = [5, 700, 1400], [i for i in range(n) if i % 3 or i == 0]
    picks = kernels.k_center(rows, torch.tensor(seeds), torch.tensor(candidates), 60)
    assert picks.tolist() == plain_k_center(rows.double().numpy(), seeds, candidates, 60)


def test_draw_follows_the_weights() -> None:
    weight = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    rng = generator()
    counts = np.bincount(kernels.draw(weight, rng, 4000), minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert abs(counts[3] - 3000) < 5 * np.sqrt(4000 * 0.75 * 0.25)


def test_outer_kmeanspp_leaves_copies_for_last() -> None:
    """Three distinct rows, ten copies of each: the first three picks are one of each kind."""
    left = torch.randn(3, 4, generator=generator()).repeat(10, 1)
    right = torch.randn(3, 50, generator=generator(1)).repeat(10, 1) * 100
    for seed in range(20):
        picks = kernels.outer_kmeanspp(left, right, torch.arange(30), 12, generator(seed))
        assert sorted(int(p) % 3 for p in picks[:3]) == [0, 1, 2]
        assert len(set(picks.tolist())) == 12


def test_outer_kmeanspp_of_equal_rows_is_uniform() -> None:
    """No distance is left to weigh by: later picks must not favour the head of the pool."""
    left, right = torch.ones(40, 2), torch.ones(40, 3)
    picks = [kernels.outer_kmeanspp(left, right, torch.arange(40), 2, generator(s))[1] for s in range(200)]
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
    centres, label = kernels.kmeans(rows, 25, generator(), weight, tolerance=0)
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
        centres, label = kernels.kmeans(rows, 40, generator(seed))
        ours.append(float((rows - centres[label]).square().sum()))
        peers.append(KMeans(40, n_init=1, random_state=seed).fit(rows.numpy()).inertia_)
    assert np.mean(ours) < 1.02 * np.mean(peers)


def test_kmeans_heeds_the_weights() -> None:
    """Rows of weight 0 do not move centres, wherever they lie."""
    rows = torch.cat([blobs(300, 3, 4), 100 + torch.randn(50, 3, generator=generator(5))])
    weight = torch.cat([torch.ones(300), torch.zeros(50)])
    centres, _ = kernels.kmeans(rows, 4, generator(), weight)
    assert centres.abs().max() < 20


def test_kmeans_of_fewer_distinct_rows_than_clusters() -> None:
    rows = torch.eye(3).repeat(10, 1)
    centres, label = kernels.kmeans(rows, 8, generator())
    assert centres.shape == (8, 3)
    np.testing.assert_allclose(centres[label].numpy(), rows.numpy(), atol=1e-6)


def test_group_sum_is_the_same_either_way() -> None:
    """The product that stands in for index_add_ on a GPU gives the same sums."""
    rows, group = torch.randn(50, 4, generator=generator()), torch.randint(7, (50,), generator=generator())
    expected = np.stack([rows.numpy()[group.numpy() == g].sum(0) for g in range(7)])
    np.testing.assert_allclose(kernels.group_sum(rows, group, 7).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(kernels.group_product(rows, group, 7).numpy(), expected, atol=1e-5)


def test_nearest_rows_are_distinct() -> None:
    """Three centres want row 2: the later ones go to the next best."""
    rows = torch.tensor([[0.0], [5.0], [1.0], [1.5], [9.0]])
    centres = torch.tensor([[1.05], [1.1], [0.95], [8.0]])
    assert kernels.nearest_rows(rows, centres).tolist() == [2, 3, 0, 4]


def test_nearest_rows_of_a_tie_is_the_first() -> None:
    rows = torch.randn(40, 5, generator=generator())
    pairs = torch.randperm(40, generator=generator(1)).view(20, 2)
    middle = rows[pairs].mean(1) + 1e-9
    lowest = pairs.min(1).values
    gap = torch.cdist(middle.double(), rows.double())
    mutual = gap.min(1).values > gap[torch.arange(20), lowest] - 1e-6
    assert mutual.sum() > 3
    assert torch.equal(kernels.nearest_rows(rows, middle[mutual]), lowest[mutual])


@pytest.mark.parametrize("elements", [None, 64])
def test_knn(elements: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if elements:
        monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", elements)
    rows = torch.randn(90, 6, generator=generator()) + 50
    distance, index = kernels.knn(rows[:20], rows, 7)
    exact = np.linalg.norm(rows[:20].double().numpy()[:, None] - rows.double().numpy()[None], axis=2)
    assert index.tolist() == exact.argsort(1)[:, :7].tolist()
    np.testing.assert_allclose(distance.numpy(), np.sort(exact, 1)[:, :7], atol=3e-3)


def test_knn_of_everything() -> None:
    rows = torch.randn(9, 2, generator=generator())
    _, index = kernels.knn(rows, rows, 9)
    assert index.sort(1).values.tolist() == [list(range(9))] * 9


def test_view_gathers_and_scales() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    view = kernels.View(rows, torch.tensor([3, 1, 0]), unit=True)
    assert view.shape == (3, 2)
    assert view[0:3].tolist() == [[0, 1], [0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert view[torch.tensor([2])].tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert torch.equal(kernels.View(rows)[1:3], rows[1:3])
