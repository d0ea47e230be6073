"""Kernels against direct numpy, in the regimes where a shortcut would lose digits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from palkit.strategies import kernels, kmeans
from palkit.strategies.coverage import greedy_coverage, rbf

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


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 7))
def test_nearest_distances_of_integers_are_integers(seed: int, width: int, references: int) -> None:
    """Ties of a grid are exact on every processor: no centre, order of summation or product may blur them."""
    rows = torch.randint(-9, 10, (300, width), generator=generator(seed)).float()
    exact = (rows[:, None] - rows[None, :references]).square().sum(2).amin(1)
    assert kernels.nearest(rows, rows[:references])[0].tolist() == exact.tolist()


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
    view = kernels.View(rows, torch.tensor([3, 1, 0]), kernels.unit_length)
    assert view.shape == (3, 2)
    assert view[0:3].tolist() == [[0, 1], [0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert view[torch.tensor([2])].tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert torch.equal(kernels.View(rows)[1:3], rows[1:3])


@pytest.mark.parametrize("n", [1, 2, 90])
def test_moments_are_numpys(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 64)
    rows = torch.randn(n, 7, generator=generator()) + 1e3
    x = rows.double().numpy()
    mean, variance = kernels.column_moments(rows)
    np.testing.assert_allclose(mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance.numpy(), x.var(0, ddof=1) if n > 1 else np.zeros(7), rtol=1e-9)


def test_view_changes_rows_as_they_are_read() -> None:
    rows, index = torch.randn(9, 4, generator=generator()) * 3 + 5, torch.tensor([8, 0, 3])
    mean, std = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.5, 1, 2, 3])
    view = kernels.View(rows, change=lambda block: (block - mean) / std)
    expected = (rows.numpy() - [1, 2, 3, 4]) / [0.5, 1, 2, 3]
    assert (len(view), view.shape) == (9, (9, 4))
    np.testing.assert_allclose(view[2:5].numpy(), expected[2:5], rtol=1e-5)
    np.testing.assert_allclose(view[index].numpy(), expected[index], rtol=1e-5)


class Recorded:
    """Rows that note how many of them are read at a time."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows, self.shape, self.device = rows, rows.shape, rows.device
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | torch.Tensor) -> torch.Tensor:
        block = self.rows[index]
        self.reads.append(len(block))
        return block


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("column_mean", 6),
        ("column_moments", 6),
        ("per_row", 6),
        ("nearest", 6 + 5),
        ("nearest_rows", 6 + 5),
        ("knn", 6),
        ("kmeans", 6 + 4),
    ],
)
def test_chunks_fill_their_memory_and_no_more(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of rows and what is computed of it, `width` numbers a row, are at most CHUNK_ELEMENTS."""
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 400)
    rows, others = Recorded(torch.randn(300, 6, generator=generator())), torch.eye(5, 6) * 9
    calls: dict[str, Callable[[], Any]] = {
        "column_mean": lambda: kernels.column_mean(rows),
        "column_moments": lambda: kernels.column_moments(rows),
        "per_row": lambda: kernels.per_row(kernels.square_norm, rows),
        "nearest": lambda: kernels.nearest(rows, others),
        "nearest_rows": lambda: kernels.nearest_rows(rows, others),
        "knn": lambda: kernels.knn(others[:1], rows, 3),
        "kmeans": lambda: kmeans.kmeans(rows, 4, generator()),
    }
    monkeypatch.setattr(kmeans, "SEEDING_ROWS", (20, 1))
    calls[name]()
    full = [400 // size for size in ({width, 6} if name in ("knn", "kmeans") else {width})]  # column means too
    assert set(rows.reads) <= {*full, *(300 % step for step in full), 20}
    assert full[0] in rows.reads


def test_matvec_and_k_center_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 60)
    rows = Recorded(torch.randn(400, 6, generator=generator()))
    product = kernels.matvec(rows, torch.arange(6.0))
    np.testing.assert_allclose(product.numpy(), rows.rows.numpy() @ np.arange(6), rtol=1e-4, atol=1e-5)
    assert set(rows.reads) == {80}, "eight times as many, as nothing is computed of them but the product"
    rows.reads.clear()
    kernels.k_center(rows, torch.tensor([], dtype=torch.int64), torch.arange(400), 40)
    assert max(rows.reads) <= 60 // 6


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_lazy_argmax_asks_only_for_what_may_be_the_largest(seed: int, stale: bool) -> None:
    """Values fall from their bounds; the largest is found as by looking at all, with few looks.

    In one case nothing is known at first, and there are hardly more rows than are asked for at once.
    """
    rng, now, n = generator(seed), 3, 6 if stale else 60
    bound = torch.rand(n, generator=rng) * (stale or torch.rand(n, generator=rng) < 0.8)
    seen = torch.randint(0, now if stale else now + 1, (n,), generator=rng)
    value = torch.where(seen == now, bound, bound * torch.rand(n, generator=rng) ** 0.2)
    taken = torch.randperm(n, generator=rng)[: 5 if stale else 10]
    bound[taken], value[taken] = -1.0, -1.0
    old, past, asked, sizes = bound.clone(), seen.clone(), list[int](), list[int]()

    def refresh(index: torch.Tensor) -> torch.Tensor:
        known = value[[*(past == now).nonzero().squeeze(1).tolist(), *asked]]
        assert (old[index] >= max([1e-30, *known.tolist()])).all()
        assert (past[index] < now).all()
        asked.extend(index.tolist())
        sizes.append(len(index))
        return value[index]

    assert kernels.lazy_argmax(bound, seen, now, refresh, first=2) == int(value.argmax())
    assert len(asked) == len(set(asked))
    assert all(size <= 2 ** (turn + 1) for turn, size in enumerate(sizes))


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (1 - 2**-53, 3)])
def test_draw_at_the_ends_of_the_uniform_numbers(
    uniform: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No number, however close to 0 or 1, draws what has weight 0."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, uniform, dtype=torch.float64))
    weight = torch.tensor([0.0, 0.1, 0.0, 0.3, 0.0], dtype=torch.float64)
    assert kernels.draw(weight, generator(), 2).tolist() == [expected, expected]
    nothing = torch.zeros(5)
    assert kernels.draw(nothing, generator(), 2, otherwise=weight).tolist() == [expected, expected]
    assert kernels.draw(nothing, generator(), 1).tolist() == [0 if uniform == 0 else 4]


def first_free_nearest(rows: Array, centres: Array) -> list[int]:
    picks: list[int] = []
    for centre in centres:
        gap = ((rows - centre) ** 2).sum(1)
        gap[picks] = np.inf
        picks.append(int(np.flatnonzero(gap <= gap.min() * (1 + 1e-6))[0]))
    return picks


@pytest.mark.parametrize("kind", ["normal", "grid", "nearly a grid"])
def test_nearest_rows_that_many_centres_want(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 centres between few of 300 rows, against taking them one by one; on a grid ties are everywhere."""
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 500)
    rng = generator(2)
    rows = torch.randn(300, 3, generator=rng)
    centres = 0.1 * torch.randn(40, 3, generator=rng)
    if kind != "normal":
        rows, centres = (3 * rows).round(), (20 * centres).round() / 2
    if kind == "nearly a grid":
        centres = centres + 1e-9 * torch.randn(40, 3, generator=rng, dtype=torch.float64)
    picks = kernels.nearest_rows(rows, centres, spare=300)
    assert picks.tolist() == first_free_nearest(rows.double().numpy(), centres.double().numpy())
    if kind == "normal":
        assert torch.equal(picks, kernels.nearest_rows(rows, centres))


def test_nearest_rows_that_two_centres_want_far_from_the_origin() -> None:
    rows = torch.randn(500, 3, generator=generator(3)) + 4
    centres = rows[:20].repeat_interleave(2, 0)
    assert kernels.nearest_rows(rows, centres).tolist() == first_free_nearest(
        rows.double().numpy(), centres.double().numpy()
    )


def test_nearest_rows_of_copies_in_different_chunks_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 12)
    rows = torch.randn(5, 2, generator=generator()).repeat(10, 1)
    assert kernels.nearest_rows(rows, rows[[3, 1]].double()).tolist() == [3, 1]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_work_is_shared_out_in_order_and_leaves_the_threads_as_they_were(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            kept = torch.zeros(5)  # to which only inference mode may write
            with kernels.shared_out(torch.device("cpu")) as share:
                assert torch.get_num_threads() == 1
                assert share(lambda row: int(kept[row].add_(row)), range(5)) == [0, 1, 2, 3, 4]
                assert set(share(lambda _: torch.get_num_threads(), range(8))) == {1}
                with pytest.raises(ZeroDivisionError):
                    share(lambda row: 1 / row, range(2))
        assert kept.tolist() == [0, 1, 2, 3, 4]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_coverage_is_the_same_however_many_threads_share_it() -> None:
    rows = torch.randn(700, 8, generator=torch.Generator().manual_seed(0))
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(greedy_coverage(rows, rbf(1.0), torch.ones(700), torch.zeros(700), 20, tile=64))
        finally:
            torch.set_num_threads(before)
    assert found[0][0].tolist() == found[1][0].tolist()
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-12, atol=0)
