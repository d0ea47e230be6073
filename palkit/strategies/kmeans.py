"""k-means, its seeding on outer products that are never formed, and sums over groups; rules as in `kernels`."""

import math

import torch
from torch import Tensor

from palkit.strategies.kernels import Rows, chunks, column_mean, draw, matvec, per_row, square_gaps, square_norm
from palkit.strategies.ties import first_best

SEEDING_ROWS = (4096, 16)  # k-means seeding looks at so many rows, or so many per cluster
ONE_BY_ONE = 1000  # seeds, beyond which they are drawn together: a pass over the rows for each takes longer than Lloyd
MAX_STEPS = 300  # of Lloyd, as in scikit-learn


def outer_kmeanspp(left: Tensor, right: Rows, candidates: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """k-means++ seeding on the outer products g_i = left_i x right_i, which are never formed.

    `|g_i - g_j|^2 = |a_i|^2 |h_i|^2 + |a_j|^2 |h_j|^2 - 2 (a_i.a_j)(h_i.h_j)`: two matrix-vector products
    per pick and O(N) memory. As in the authors' code of BADGE (Ash 2020) the first pick has the largest
    norm and each next one is drawn with probability proportional to its squared distance to the nearest
    pick. Products are float32: squared distances are good to 1e-6 of the norms' sum, and anything below
    that is taken as 0, so that copies of a pick are never drawn while others are left.

    Args:
        left: (N, C) float32.
        right: (N, D) float32 rows.
        candidates: (M,) ascending positions that may be picked.
        count: picks wanted, at most M.
        rng: CPU generator; one uniform number per pick after the first.

    Returns:
        (count,) int64 positions in order of picking. Once all distances are 0, the rest is uniform.
    """
    device = right.device
    candidates = candidates.to(device)
    norm = per_row(square_norm, left) * per_row(square_norm, right)  # (N,)
    free = torch.zeros(len(norm), dtype=torch.float64, device=device)
    free[candidates] = 1
    distance = torch.full_like(norm, torch.inf)
    picks = [int(candidates[first_best(norm[candidates])])]
    for _ in range(1, count):
        last = picks[-1]
        free[last] = 0
        own = right[torch.tensor([last], device=device)][0]
        scale = norm + norm[last]
        new = scale.addcmul(matvec(left, left[last]).double(), matvec(right, own).double(), value=-2)
        new.masked_fill_(new < 1e-6 * scale, 0)
        torch.minimum(distance, new, out=distance)
        picks.append(int(draw(distance * free, rng, otherwise=free)))
    return torch.tensor(picks, dtype=torch.int64, device=device)


def kmeans(
    rows: Rows, clusters: int, rng: torch.Generator, weight: Tensor | None = None, tolerance: float = 1e-2
) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means from greedy k-means++ seeds, in float32 products of centred rows.

    Sums over a cluster are kept in float64 and only corrected for the rows that changed cluster. A row changes if
    another centre is nearer by more than rounding: copies would go to and fro between equal centres for ever.

    Args:
        rows: (N, D).
        clusters: K >= 1.
        rng: CPU generator, for the seeds.
        weight: (N,) >= 0, or None for equal weights.
        tolerance: stop when at most this share of the rows changed cluster (or after 300 steps); 0: a fixed point.
            The default leaves the inertia within about two parts in a thousand of the fixed point's.

    Returns:
        (K, D) float64 centres and (N,) int64 labels. A cluster may be empty if rows coincide.
    """
    device, (n, width) = rows.device, rows.shape
    offset = column_mean(rows).float()
    mass_of_row = torch.ones(n, device=device) if weight is None else weight.to(device).float()
    centres = _seeds(rows, clusters, mass_of_row, rng) - offset
    sums = torch.zeros(clusters, width + 1, dtype=torch.float64, device=device)  # the last column counts
    label = torch.full((n,), -1, dtype=torch.int64, device=device)
    for _ in range(MAX_STEPS):
        norms, moved = centres.square().sum(1), 0
        for part in chunks(n, width + clusters):
            x = (rows[part] - offset).float()
            distance = torch.addmm(norms, x, centres.T, alpha=-2)
            rounding = 1e-6 * (x.square().sum(1) + norms.max())
            near = distance <= (distance.amin(1) + rounding)[:, None]
            old = label[part]
            stays = (old >= 0) & near.gather(1, old.clamp(min=0)[:, None]).squeeze(1)
            new = torch.where(stays, old, near.byte().argmax(1))
            changed = (new != old).nonzero().squeeze(1)
            moved += len(changed)
            share = mass_of_row[part][changed, None]
            block = torch.cat([x[changed] * share, share], 1)
            add_by_group(sums, block, new[changed])
            known = (old[changed] >= 0).nonzero().squeeze(1)
            add_by_group(sums, -block[known], old[changed[known]])
            label[part] = new
        if moved <= tolerance * n:
            break
        mass = sums[:, -1:]
        centres = torch.where(mass > 1e-9 * n, sums[:, :-1] / mass, centres.double()).float()
    return centres.double() + offset, label


def _seeds(rows: Rows, clusters: int, weight: Tensor, rng: torch.Generator) -> Tensor:
    """(K, D) greedy k-means++ (Arthur & Vassilvitskii 2007) on a uniform sample of the rows.

    More than ONE_BY_ONE are not greedy, and a quarter as many as there are is drawn at a time, similar to k-means||
    (Bahmani et al. 2012).
    """
    sample = torch.randperm(len(rows), generator=rng)[: max(SEEDING_ROWS[0], SEEDING_ROWS[1] * clusters)].sort().values
    x = rows[sample.to(rows.device)].float()
    share = weight[sample.to(rows.device)]
    centred = x - x.mean(0)
    square = centred.square().sum(1)
    trials = 2 + int(math.log(clusters))
    gap = torch.full_like(square, torch.inf)
    picks: list[int] = []
    while ONE_BY_ONE < clusters > len(picks):
        count = min(max(1, len(picks) // 4), clusters - len(picks))
        chance = (share * gap if picks else share).cpu().double()
        # The largest of log(u) / chance are distinct draws in proportion (Efraimidis & Spirakis 2006).
        keys = torch.rand(len(x), generator=rng, dtype=torch.float64).log() / chance
        drawn = keys.topk(count).indices.to(rows.device)
        for part in chunks(len(x), count):
            new = square_gaps(centred[drawn], square[drawn], centred[part], square[part]).amin(0)
            gap[part] = torch.minimum(gap[part], new)
        picks += drawn.tolist()
    for _ in range(clusters - len(picks)):
        tried = draw(share if not picks else share * gap, rng, trials).to(rows.device)
        new = torch.minimum(square_gaps(centred[tried], square[tried], centred, square), gap)  # (trials, sample)
        best = first_best(-(new.double() @ share.double()))
        gap = new[best]
        picks.append(int(tried[best]))
    return x[torch.tensor(picks, device=rows.device)]


def add_by_group(sums: Tensor, rows: Tensor, group: Tensor) -> None:
    """Add `rows` (n, D) to the float64 `sums` (groups, D) of the `group` (n,) of each, the same in every run."""
    if rows.is_cuda:  # index_add_ adds in no fixed order there
        sums += group_product(rows, group, len(sums))
    else:
        sums.index_add_(0, group, rows.to(sums.dtype))


def group_product(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """(groups, D) sum of the `rows` (n, D) of each `group` (n,), as a product with the matrix of who is in which."""
    member = torch.arange(groups, device=rows.device)[:, None] == group
    return member.to(rows.dtype) @ rows
