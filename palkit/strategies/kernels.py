"""Distance kernels of the strategies: tensors in, positions out, nothing known of pools or models.

Every kernel reads its rows through `rows[a:b]` and `rows[index]` only, so that a tensor, a view and a set
of memory-mapped shards serve alike; none holds more than a chunk of them beside its input, and none forms
an N x N or an N x C x D array. Work runs on the device of the rows; random numbers come from a CPU
generator. A float32 product of chunks is good to about 1e-6 of the norms' product; where a choice hangs on
a difference of nearly equal distances it is made in float64.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from palkit.strategies.ties import first_best

CHUNK_ELEMENTS = 2**19  # the float64 copy of a chunk is 4 MB, inside the last-level cache
TIE = 1e-6
Share = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


class Rows(Protocol):
    """What a kernel needs of an (N, D) matrix: a `Tensor`, or anything that hands out chunks of rows."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | Tensor) -> Tensor: ...


class View:
    """Some rows of a matrix, changed if wanted, gathered chunk by chunk as they are read.

    Args:
        rows: (N, D).
        index: (M,) positions to keep, or None for all.
        change: (n, D) rows to (n, D) rows, each by itself, such as `unit_length`; None leaves them as they are.
    """

    def __init__(
        self, rows: Rows, index: Tensor | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.rows = rows
        self.index = None if index is None else index.to(rows.device)
        self.change = change
        self.device = rows.device
        self.shape = torch.Size((len(rows) if index is None else len(index), *rows.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        block = self.rows[index if self.index is None else self.index[index]]
        return block if self.change is None else self.change(block)


def unit_length(rows: Tensor) -> Tensor:
    """(n, D) float32 rows divided by their norms; a zero row stays zero."""
    return normalize(rows.float(), dim=1)


def chunks(rows: int, width: int, elements: int | None = None) -> Iterator[slice]:
    """Slices that cover `range(rows)` in order, each at most `elements` (default CHUNK_ELEMENTS) in all."""
    step = max(1, (elements or CHUNK_ELEMENTS) // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def column_mean(rows: Rows) -> Tensor:
    """(D,) float64 mean of `rows` (N, D)."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in chunks(*rows.shape):
        total += rows[part].double().sum(0)
    return total / len(rows)


def column_moments(rows: Rows) -> tuple[Tensor, Tensor]:
    """(D,) float64 mean and variance (of a sample, N - 1) of `rows` (N, D)."""
    mean = column_mean(rows)
    total = torch.zeros_like(mean)
    for part in chunks(*rows.shape):
        total += (rows[part].double() - mean).square().sum(0)
    return mean, total / max(1, len(rows) - 1)


def matvec(rows: Rows, vector: Tensor) -> Tensor:
    """(N,) product of `rows` (N, D) and `vector` (D,), in the precision of the vector."""
    pair = torch.stack([vector, vector]).T  # with one column BLAS takes its unthreaded path, 4 times slower
    product = torch.empty(len(rows), dtype=vector.dtype, device=rows.device)
    for part in chunks(len(rows), rows.shape[1], 8 * CHUNK_ELEMENTS):  # nothing is copied but the product
        product[part] = (rows[part].to(pair.dtype) @ pair)[:, 0]
    return product


def per_row(number: Callable[[Tensor], Tensor], rows: Rows) -> Tensor:
    """(N,) float64 `number` of each of `rows` (N, D), chunk by chunk in float64."""
    value = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for part in chunks(*rows.shape):
        value[part] = number(rows[part].double())
    return value


def square_norm(rows: Tensor) -> Tensor:
    """(n,) squared norms of `rows` (n, D)."""
    return rows.square().sum(1)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(..., n, m) float64 distances of `a` (..., n, D) and `b` (..., m, D), each from the differences of its own pair.

    Nothing cancels, and equal differences tie exactly.
    """
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def square_gaps(a: Tensor, a_square: Tensor, b: Tensor, b_square: Tensor) -> Tensor:
    """(n, m) squared distances of rows `a` (n, D) and `b` (m, D) by one product, given their squared norms."""
    return torch.addmm(b_square, a, b.T, alpha=-2).add_(a_square[:, None]).clamp_(min=0)


def nearest(rows: Rows, references: Tensor) -> tuple[Tensor, Tensor]:
    """Exact nearest neighbour of every row among a few references.

    The neighbour is found by the expansion `|x|^2 - 2 x.r + |r|^2` in float64 after centring, the distance
    is then taken from the difference of the two vectors as they are: equal rows are at distance exactly 0 and
    equal differences tie exactly, whatever the chunking and wherever the centre lies.

    Args:
        rows: (N, D).
        references: (R, D), R >= 1.

    Returns:
        (N,) float64 squared distances and (N,) int64 indices into `references`.
    """
    exact = references.double()
    centre = exact.mean(0)
    centred = exact - centre
    norms = centred.square().sum(1)
    distance = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    index = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for part in chunks(len(rows), rows.shape[1] + len(references)):
        x = rows[part]
        index[part] = torch.addmm(norms, x - centre, centred.T, alpha=-2).argmin(1)
        distance[part] = exact[index[part]].sub_(x).square_().sum(1)
    return distance, index


def nearest_rows(rows: Rows, centres: Tensor, spare: int = 8) -> Tensor:
    """(K,) int64 for each centre (K, D) in turn, the nearest of `rows` (N, D), N >= K, not yet taken.

    Squared distances in float64; those within TIE of each other, relatively, are equal, and the lowest
    position is taken. Where two centres want one row, the later one's next best is sought among the
    `spare` nearest rows by float32 that are free.
    """
    exact = centres.double()
    norms = exact.square().sum(1)
    best = torch.full((len(exact),), torch.inf, dtype=torch.float64, device=rows.device)
    index = torch.zeros(len(exact), dtype=torch.int64, device=rows.device)
    square = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for part in chunks(len(rows), rows.shape[1] + len(exact)):
        x = rows[part].double()
        square[part] = x.square().sum(1)
        gap = square_gaps(x, square[part], exact, norms)
        value = gap.amin(0)
        # A cluster of two has its centre halfway: rounding must not choose between them.
        place = torch.arange(len(x), device=rows.device)[:, None]
        where = torch.where(gap <= value * (1 + TIE), place, len(x)).amin(0)
        better = value < best * (1 - TIE)
        best[better], index[better] = value[better], part.start + where[better]
    taken: list[int] = []
    for k, wanted in enumerate(index.tolist()):
        if wanted in taken:
            rough = square - 2 * matvec(rows, centres[k].float()).double()
            rough[taken] = torch.inf
            near = rough.topk(min(spare, len(rows) - k), largest=False).indices.sort().values
            gap = (rows[near].double() - exact[k]).square().sum(1)
            wanted = int(near[(gap <= gap.min() * (1 + TIE)).nonzero()[0]])
        taken.append(wanted)
    return torch.tensor(taken, dtype=torch.int64, device=rows.device)


def knn(queries: Tensor, rows: Rows, count: int) -> tuple[Tensor, Tensor]:
    """Nearest neighbours by exhaustive search, a query that is itself one of the rows included.

    Args:
        queries: (Q, D).
        rows: (N, D).
        count: neighbours wanted, at most N.

    Returns:
        (Q, count) float32 distances, ascending, and (Q, count) int64 indices. Squared distances come from
        float32 products of centred rows, good to about 1e-6 of the centred norms' squares.
    """
    centre = column_mean(rows).float()
    distance = torch.empty(len(queries), count, device=rows.device)
    index = torch.empty(len(queries), count, dtype=torch.int64, device=rows.device)
    for part in chunks(len(queries), max(rows.shape[1], 2048)):
        query = queries[part].float() - centre
        gap = query.new_empty(len(query), 0)
        found = index.new_empty(len(query), 0)
        for block in chunks(len(rows), max(rows.shape[1], len(query))):
            x = rows[block].float() - centre
            new = torch.addmm(x.square().sum(1), query, x.T, alpha=-2)
            value, order = new.topk(min(count, len(x)), largest=False)
            gap, found = torch.cat([gap, value], 1), torch.cat([found, order + block.start], 1)
            if block.start:
                gap, order = gap.topk(min(count, block.stop), largest=False)
                found = found.gather(1, order)
        distance[part] = gap.add_(query.square().sum(1)[:, None]).clamp_(min=0).sqrt_()
        index[part] = found
    return distance, index


def lazy_argmax(bound: Tensor, seen: Tensor, now: int, refresh: Callable[[Tensor], Tensor], first: int) -> int:
    """Lowest index of a largest value (within TIE), where values only fall with time and refreshing one is dear.

    Only values whose bound reaches the largest fresh one are refreshed (Minoux 1978).

    Args:
        bound: (M,) upper bounds >= 0, brought up to date in place; below 0: never to be returned.
        seen: (M,) int64 time at which each bound was the value itself, brought up to date in place.
        now: the present time.
        refresh: (m,) int64 indices -> (m,) present values.
        first: how many to refresh at first; twice as many each further time.
    """
    size = first
    while True:
        fresh = (seen == now) | (bound <= 0)  # 0 cannot fall
        known = torch.where(fresh, bound, -1.0)
        value, index = torch.where(fresh, -1.0, bound).topk(min(size, len(bound)))
        index = index[value >= known.max().clamp(min=0.0) * (1 - TIE)]
        if not len(index):
            return first_best(known, TIE)
        bound[index] = refresh(index).to(bound.dtype)
        seen[index] = now
        size *= 2


def k_center(rows: Rows, seeds: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Greedy k-center (farthest-first traversal; Sener & Savarese 2018), lazily.

    A row's distance to its nearest centre only falls as centres are added. The picks are those of the
    plain greedy algorithm in float64, ties to the lowest position, and the work is a fraction of its
    N x D pass per pick.

    Args:
        rows: (N, D) all rows.
        seeds: (S,) positions that are centres already; if none, the first pick is the candidate nearest
            to the mean of all rows.
        candidates: (M,) ascending positions that may be picked.
        count: picks wanted, at most M.

    Returns:
        (count,) int64 positions in order of picking.
    """
    device = rows.device
    candidates = candidates.to(device)
    picks: list[int] = []
    if len(seeds):
        references = rows[seeds.to(device)]
        closest = nearest(rows, references)[1][candidates]
        # As `refresh` computes them: a bound must not fall below the distance itself by a last bit.
        bound = torch.empty(len(candidates), dtype=torch.float64, device=device)
        for part in chunks(len(candidates), 4 * rows.shape[1]):  # rows and references, in float32 and float64
            gap = distances(rows[candidates[part]][:, None], references[closest[part]][:, None])
            bound[part] = gap[:, 0, 0]
    else:
        picks.append(first_best(-nearest(rows, column_mean(rows)[None])[0][candidates], TIE))
        bound = torch.full((len(candidates),), torch.inf, dtype=torch.float64, device=device)
    centres = torch.empty(count, rows.shape[1], dtype=torch.float64, device=device)
    seen = torch.zeros(len(candidates), dtype=torch.int64, device=device)

    for done in range(count):

        def refresh(index: Tensor, done: int = done) -> Tensor:
            new = centres[int(seen[index].min()) : done]
            gaps = [
                distances(rows[candidates[index[p]]], new).amin(1) for p in chunks(len(index), len(new) + rows.shape[1])
            ]
            return torch.minimum(bound[index], torch.cat(gaps))

        if len(picks) == done:
            picks.append(lazy_argmax(bound, seen, done, refresh, first=16))
        centres[done] = rows[candidates[picks[done]][None]][0].double()
        bound[picks[done]] = -1.0
    return candidates[torch.tensor(picks, dtype=torch.int64, device=device)]


def draw(weight: Tensor, rng: torch.Generator, count: int = 1, otherwise: Tensor | None = None) -> Tensor:
    """(count,) int64 positions drawn independently with probability proportional to `weight` (N,) >= 0.

    If all weights are 0, the weights `otherwise` count instead, by default equal ones. The cumulative sum
    is taken on the CPU, where it is deterministic, in float64.
    """
    total = weight.cpu().double().cumsum(0)
    if total[-1] == 0:
        total = (torch.ones_like(weight) if otherwise is None else otherwise).cpu().double().cumsum(0)
    aim = torch.rand(count, generator=rng, dtype=torch.float64) * total[-1]
    last = torch.searchsorted(total, total[-1:])  # rounding must not reach past the last weight above 0
    return torch.minimum(torch.searchsorted(total, aim, right=True), last)


@contextmanager
def shared_out(device: torch.device) -> Iterator[Share]:
    """A map that gives the parts of a piece of work to as many threads as torch has, each of which computes alone.

    An operation that torch splits among its threads waits for the slowest of them: beside another busy process many
    small ones take three times as long. Threads that share parts out wait once. Meanwhile the caller has one thread.

    Args:
        device: where the work is done; other devices than the CPU get the parts one after the other.

    >>> with shared_out(torch.device("cpu")) as share:
    ...     share(lambda part: part + 1, [1, 2, 3])
    [2, 3, 4]
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    if device.type != "cpu" or threads < 2:
        yield lambda work, parts: list(map(work, parts))
        return

    def share(work: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
        def alone(part: Any) -> Any:
            with torch.inference_mode(inference):  # it holds for one thread
                return work(part)

        given = list(parts)
        return list(pool.map(alone, given)) if len(given) > 1 else list(map(work, given))

    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            yield share
    finally:
        torch.set_num_threads(threads)
