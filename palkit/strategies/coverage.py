"""Strategies that choose rows whose neighbourhoods, together, cover as much of the pool as possible."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from palkit.errors import DataNotice
from palkit.strategies.calibration import fit_temperature
from palkit.strategies.heads import even_rows, logistic
from palkit.strategies.kernels import (
    CHUNK_ELEMENTS,
    View,
    chunks,
    nearest,
    per_row,
    shared_out,
    square_gaps,
    unit_length,
)
from palkit.strategies.kmeans import kmeans
from palkit.strategies.options import Count, Inside, Positive
from palkit.strategies.ranking import margin_gap, once_per_pool
from palkit.strategies.registry import strategy
from palkit.strategies.scores import LabelledSet, PoolScores

Kernel = Callable[[Tensor], Tensor]  # squared distances -> similarities in [0, 1], in place

MAX_ROWS = 35_000  # the herding authors' own limit
CACHE_BYTES = 2**30  # of kernel values kept from the first pass
STRIPES = 16  # of tiles, each summed by itself: the sums are the same however many threads share them out
FIRST, FEW = 128, 32  # rows brought up to date at first after a pick, and computed exactly
SUMS = 1e-6  # of a sum in float32, what may have got lost
PURITY_QUERIES = 2_000
HELD_OUT = 30  # labels from which a temperature is found
LEAD_ROWS = 2_000  # on which the lead of the best class is measured
TIE = 3e-7  # gains this close, relative to the largest at the start, are equal as far as float32 features know


def greedy_coverage(
    rows: Tensor,
    kernel: Kernel,
    weight: Tensor,
    covered: Tensor,
    count: int,
    cache: int = CACHE_BYTES,
    tile: int = 512,
    sharp: bool = False,
) -> tuple[Tensor, Tensor]:
    """Greedy maximisation of sum_j weight_j max_(i picked) k(x_i, x_j).

    The gain of a row, sum_j weight_j max(k_ij - covered_j, 0), only falls as picks are added. So all gains are
    computed once, each pair of rows once; after that a row's gain is computed again only when its old one reaches the
    best new one (lazy greedy, Minoux 1978). Distances in float32 do for that: they leave few rows that may be the
    best, mostly one, among which float64 decides. How far off float32 is, is measured on a sample of the columns;
    by the same sample the rows come in order of their gains, so that those are kept that will be asked for.

    Args:
        rows: (M, D) float, all of them candidates.
        kernel: similarity of a squared distance.
        weight: (M,) >= 0.
        covered: (M,) similarity of each row to what is chosen already.
        count: picks wanted, at most M.
        cache: the most bytes of kernel values to keep from the first pass; others are computed again when needed.
        tile: rows per side of a block of pairs.
        sharp: the kernel is 0 or 1, so that rounding would change it by 1: float64 from the start, kept as bytes.

    Returns:
        (count,) int64 positions in order of picking and (count,) float64 gains; of gains within TIE of the
        best, relative to the largest at the start, the lowest position. A gain below TIE is none.
    """
    rows, weight, covered = rows.double(), weight.double(), covered.double()
    rows = rows - rows.mean(0)  # distances stay, and lose less to rounding
    parts = list(chunks(len(rows), 1, tile))
    sample = torch.arange(0, len(rows), max(1, len(rows) // 256), device=rows.device)
    exact, rough = similarity(rows, kernel), similarity(rows if sharp else rows.float(), kernel)
    guess, off = [], 0.0
    for a in parts:
        block = exact(a, sample)
        off = max(off, 2 * float((rough(a, sample) - block).abs_().max()))  # twice, for pairs that are not looked at
        guess.append((block - covered[sample]).relu_() @ weight[sample])

    order = torch.cat(guess).argsort(descending=True)
    rows, weight, covered = rows[order], weight[order], covered[order]
    exact, rough = similarity(rows, kernel), similarity(rows if sharp else rows.float(), kernel)
    share, known = weight.float(), covered.float()  # the rough weight and cover
    dtype = torch.uint8 if sharp else torch.float32
    keep = max((part.stop for part in parts if part.stop * len(rows) * dtype.itemsize <= cache), default=0)
    kept = torch.empty(keep, len(rows), dtype=dtype, device=rows.device)
    threads = torch.get_num_threads()

    def pairs(stripe: int) -> Tensor:
        """(M,) what the pairs of every STRIPES-th tile with those after it add to the gains."""
        found = torch.zeros_like(weight)
        for number in range(stripe, len(parts), STRIPES):
            a = parts[number]
            for b in parts[number:]:
                block = rough(a, b).float()
                if a.stop <= keep:
                    kept[a, b] = block
                if b.stop <= keep:
                    kept[b, a] = block.T
                if b != a:
                    found[b] += share[a] @ (block - known[a, None]).relu_()
                found[a] += block.sub_(known[b]).relu_() @ share[b]
        return found

    def pieces(index: Tensor) -> list[Tensor]:
        """Parts of some rows for every thread, ascending, none empty and none of both kept rows and others."""
        index = index.sort().values
        inside = int((index < keep).sum())
        return [
            piece
            for some, size in ((index[:inside], CHUNK_ELEMENTS), (index[inside:], 8 * CHUNK_ELEMENTS))
            for own in some.tensor_split(threads)
            if len(own)
            for piece in own.split(max(1, size // len(rows)))
        ]

    def across(piece: Tensor) -> Tensor:
        """(n, M) rough similarities to all rows, to be written to."""
        return (kept[piece] if piece[0] < keep else rough(piece, slice(None))).float()

    def rough_gain(piece: Tensor) -> Tensor:
        return (across(piece).sub_(known).relu_() @ share).double()

    def closer(piece: Tensor) -> tuple[Tensor, Tensor]:
        """Columns that one of the rows covers better, and (n, columns) exact similarities to these."""
        columns = (across(piece) > known - off).any(0).nonzero().squeeze(1)
        return columns, exact(piece, columns)

    def exact_gain(piece: Tensor) -> Tensor:
        columns, block = closer(piece)
        return block.sub_(covered[columns]).relu_() @ weight[columns]

    seen = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)  # picks when the rough gain was computed
    sure = seen - 1  # and when the exact one was
    picks: list[int] = []
    gains: list[float] = []
    with shared_out(rows.device) as spread:
        value = torch.zeros_like(weight)
        for found in spread(pairs, range(min(STRIPES, len(parts)))):
            value += found
        tie = TIE * float(value.max())
        # Of a gain; not the sample's own sum, since the few columns that have weight may lie outside of it.
        slack = 0.0 if sharp else off * float(weight.sum()) + SUMS * float(value.max())
        limit = value + slack  # the most that a row gains; -1: picked
        settle = (lambda piece: limit[piece]) if sharp else exact_gain
        for now in range(count):
            some, few = FIRST, FEW
            while True:
                best = torch.where(sure == now, limit, 0.0).max()
                most, index = torch.where(sure == now, 0.0, limit).topk(min(some, len(rows)))
                index = index[most > (best - tie).clamp(min=tie)]
                if not len(index):
                    break
                old = seen[index] < now
                if old[0]:  # rough gains first, until the largest bound is one of these
                    index = torch.cat(shares := pieces(index[old]))
                    found, seen[index], some = torch.cat(spread(rough_gain, shares)) + slack, now, 2 * some
                else:
                    index = torch.cat(shares := pieces(index[old.cumsum(0) == 0][:few]))
                    found, sure[index], few = torch.cat(spread(settle, shares)), now, 2 * few
                limit[index] = torch.minimum(limit[index], found)
            level = (sure == now) & (limit >= best - tie) if best > tie else limit >= 0
            pick = torch.where(level, order, len(order)).argmin()[None]
            columns, block = closer(pick)
            gains.append(float((block[0] - covered[columns]).relu_() @ weight[columns]))
            covered[columns] = torch.maximum(covered[columns], block[0])
            known[columns] = covered[columns].float()
            picks.append(int(order[pick]))
            limit[pick] = -1.0
    return torch.tensor(picks, dtype=torch.int64), torch.tensor(gains, dtype=torch.float64)


def similarity(rows: Tensor, kernel: Kernel) -> Callable[[slice | Tensor, slice | Tensor], Tensor]:
    """Function of (n,) and (m,) positions in `rows` (M, D) that returns their (n, m) similarities."""
    square = rows.square().sum(1)
    return lambda a, b: kernel(square_gaps(rows[a], square[a], rows[b], square[b]))


def rbf(bandwidth: float) -> Kernel:
    """exp(-(d / bandwidth)^2), not below e^-80: numbers that underflow are slow."""
    return lambda squared: squared.mul_(-1 / bandwidth**2).clamp_(min=-80).exp_()


def ball(radius: float) -> Kernel:
    """1 where d < radius, else 0."""
    return lambda squared: squared.lt_(radius**2)


def purity_radius(rows: Tensor, classes: int, purity: float, rng: torch.Generator) -> float:
    """Largest radius at which a share `purity` of the open balls is pure under k-means pseudo-labels.

    A ball is pure up to the distance of the nearest row of another label, so the radius is a quantile of
    these distances; they are taken from up to PURITY_QUERIES random rows.

    Args:
        rows: (M, D) float32.
        classes: clusters of the k-means, at least 2.
        purity: in (0, 1).
        rng: CPU generator.
    """
    _, label = kmeans(rows, min(max(classes, 2), len(rows)), rng)
    queries = torch.randperm(len(rows), generator=rng)[:PURITY_QUERIES].to(rows.device)
    square = rows.square().sum(1)
    enemy = torch.empty(len(queries), device=rows.device)
    for part in chunks(len(queries), len(rows)):
        some = queries[part]
        gap = square_gaps(rows[some], square[some], rows, square)
        gap.masked_fill_(label[some, None] == label, torch.inf)
        enemy[part] = gap.amin(1).sqrt_()
    # A hair smaller: whether the row that decides it lies inside must not hang on rounding.
    return float(enemy.sort().values[math.floor((1 - purity) * len(queries) + 1e-9)]) * (1 - 1e-5)


def smallest_gap(rows: Tensor) -> float:
    """Smallest distance above 0 between two of the unit rows (M, D); 1 if there is no such pair."""
    x, gap = rows.double(), torch.inf
    square = x.square().sum(1)
    for part in chunks(len(x), len(x)):
        squared = square_gaps(x[part], square[part], x, square)
        squared[squared < 1e-12] = torch.inf  # a row and its copies
        gap = min(gap, float(squared.min().sqrt()))
    return gap if math.isfinite(gap) else 1.0


def held_out_temperature(scores: PoolScores, labelled: LabelledSet, rng: torch.Generator) -> float:
    """Temperature for the pool's probabilities by which 70 % of the labels explain the other 30 % best, at least 1.

    (Bae et al., ICLR 2025, whose temperatures start at 1; no label is bought for it.) A strategy cannot fit the
    model again: a linear head is solved on the features instead, and its logits scaled so that the best class leads the
    next on unlabelled rows by as much as the pool's. Few labels say little: other ones are held out until they are
    HELD_OUT in all. 1 where there are too few to hold one out.

    Args:
        scores, labelled: as for every strategy.
        rng: CPU generator of what is held out.
    """
    size = len(labelled) - round(0.7 * len(labelled))
    if not 0 < size < len(labelled):
        return 1.0

    free = labelled.unlabelled(len(scores))[:LEAD_ROWS]
    others, own = (even_rows(scores.features, positions)[:].cpu() for positions in (free, labelled.positions))
    axes = torch.linalg.qr(own.T).Q  # the weights lie in the span of the labelled rows
    others, own = others @ axes, own @ axes
    labels = labelled.labels.cpu()
    targets = one_hot(labels, scores.probs.shape[1])
    pool_lead = lead(View(scores.probs, free)[:].double().cpu().log().clamp(min=-100))
    logits, truth = [], []
    for _ in range(math.ceil(HELD_OUT / size)):
        held, known = torch.randperm(len(labels), generator=rng).split([size, len(labels) - size])
        weight, bias = logistic(own[known], targets[known], torch.ones(len(known)), 1 / len(known))
        scale = pool_lead / max(lead(others @ weight.T + bias), 1e-12)
        logits.append((own[held] @ weight.T + bias) * scale)
        truth.append(labels[held])
    return max(1.0, fit_temperature(torch.cat(logits), torch.cat(truth)))


def lead(logits: Tensor) -> float:
    """Mean difference of the two largest logits of a row (n, C); 0 if there is one class."""
    best = logits.topk(min(2, logits.shape[1])).values
    return float((best[:, 0] - best[:, -1]).mean())


def _free_sample(
    scores: PoolScores, labelled: LabelledSet, batch_size: int, max_rows: int, rng: torch.Generator
) -> Tensor:
    """(M,) ascending unlabelled positions: all, or a uniform sample of `max_rows`, but no fewer than B."""
    free, size = labelled.unlabelled(len(scores)), max(max_rows, batch_size)
    if len(free) <= size:
        return free
    return free[torch.randperm(len(free), generator=rng)[:size]].sort().values


def _cover(
    scores: PoolScores,
    labelled: LabelledSet,
    sample: Tensor,
    weight: Tensor,
    kernel: Kernel,
    count: int,
    sharp: bool = False,
    change: Callable[[Tensor], Tensor] | None = unit_length,
) -> tuple[Tensor, Tensor]:
    """(B,) greedy coverage of the `sample` (M,) by itself, beyond what the labelled rows cover, and (B,) gains."""
    rows = View(scores.features, sample, change)[:]
    covered = torch.zeros(len(rows), device=rows.device)
    if len(labelled):
        known = View(scores.features, labelled.positions, change)[:]
        covered = kernel(nearest(rows, known)[0])
    picks, gains = greedy_coverage(rows, kernel, weight.to(rows.device), covered, count, sharp=sharp)
    return sample[picks], gains


@strategy("maxherding", cold_start=True, measure="distance", style=("#999933", "s"))
def maxherding(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    bandwidth: Positive = 1.0,
    max_rows: Count = MAX_ROWS,
) -> Tensor:
    """(B,) greedy: the row that most raises the mean over the pool of the similarity to the nearest label.

    Similarity is exp(-(d / bandwidth)^2) of features scaled to unit length, and what is labelled covers
    already (Bae et al., ECCV 2024; bandwidth and `max_rows` as in the authors' code). Labelled rows, at
    similarity 1 to themselves, add nothing to the mean and are left out of it.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        bandwidth: > 0.
        max_rows: a larger pool is replaced by a uniform sample of this many unlabelled rows, both as
            candidates and as what is to be covered: time grows with its square.
    """
    sample = _free_sample(scores, labelled, batch_size, max_rows, rng)
    return _cover(scores, labelled, sample, torch.ones(len(sample)), rbf(bandwidth), batch_size)[0]


@strategy("uherding", cold_start=True, style=("#AA4499", "^"))
def uherding(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    bandwidth: Positive | None = None,
    temperature: Positive | None = None,
    max_rows: Count = MAX_ROWS,
) -> Tensor:
    """(B,) `maxherding` with each covered row weighted by its uncertainty, 1 - (p1 - p2).

    (Bae et al., ICLR 2025.) Without labels all rows weigh the same, as in the authors' code.

    Args:
        scores, labelled, batch_size, rng, max_rows: as for `maxherding`.
        bandwidth: > 0, or None for the paper's rule: the smallest distance above 0 between two labelled
            rows, so that it shrinks as labels are bought; 1 while there is no such pair.
        temperature: > 0; the probabilities become p^(1 / temperature), scaled to sum to 1. None for the
            paper's, from the labels themselves, see `held_out_temperature`; 1 is its ablation.
    """
    if bandwidth is None:
        bandwidth = smallest_gap(View(scores.features, labelled.positions, unit_length)[:])
    sample = _free_sample(scores, labelled, batch_size, max_rows, rng)
    if temperature is None:
        temperature = held_out_temperature(scores, labelled, rng)

    def uncertainty(probs: Tensor) -> Tensor:
        return margin_gap((probs.log() / temperature).softmax(1))

    weight = per_row(uncertainty, View(scores.probs, sample)) if len(labelled) else torch.ones(len(sample))
    return _cover(scores, labelled, sample, weight, rbf(bandwidth), batch_size)[0]


@strategy("probcover", cold_start=True, measure="distance", style=("#44AA99", "o"))
def probcover(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    delta: Positive | None = None,
    purity: Inside = 0.95,
    normalize: bool = True,
    max_rows: Count = MAX_ROWS,
) -> Tensor:
    """(B,) greedy: the row whose ball of radius delta holds the most rows that no chosen ball holds yet.

    (Yehuda et al., NeurIPS 2022.) Once all rows are covered, or where no ball holds a second one, all tie and
    the lowest positions follow; a DataNotice says so.

    Args:
        scores, labelled, batch_size, rng, max_rows: as for `maxherding`.
        delta: > 0, radius of the open balls; None for the largest at which a share `purity` of the balls
            holds rows of one pseudo-label only, by k-means with as many clusters as classes. It hangs on the
            pool and the seed of the run: while features stay as they are, and without `subsample`, it is the same
            in all rounds.
        purity: in (0, 1), for delta=None.
        normalize: scale features to unit length first, as the authors do.
    """
    sample = _free_sample(scores, labelled, batch_size, max_rows, rng)
    change = unit_length if normalize else None
    if delta is None:
        pool, steady = once_per_pool(scores, max_rows)
        rows = View(scores.features, pool, change)[:].float()
        delta = purity_radius(rows, scores.probs.shape[1], purity, steady)
    weight = torch.ones(len(sample))
    picks, gains = _cover(scores, labelled, sample, weight, ball(delta), batch_size, True, change)
    if gains[0] <= 1:
        notice = f"no ball of radius {delta:.4g} holds a second row that is not covered yet: the picks are ties."
        warnings.warn(f"probcover: {notice}", DataNotice, stacklevel=2)
    return picks
