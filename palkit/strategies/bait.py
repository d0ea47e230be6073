"""BAIT: the batch that most reduces the expected error of the last layer, by its Fisher information."""

import torch
from torch import Tensor

from palkit.strategies.kernels import Rows, chunks
from palkit.strategies.options import Count, Positive
from palkit.strategies.registry import strategy
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies.ties import first_best

CHUNK = 2**24  # float64 numbers of one block of products: 128 MB


@strategy("bait", style=("#882255", "p"))
def bait(
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    regulariser: Positive = 1.0,
    max_size: Count = 4096,
    max_rank: Count = 10,
) -> Tensor:
    """(B,) greedy forward selection of 2 B rows, then backward elimination of B (Ash et al., NeurIPS 2021).

    A row's Fisher information of the linear head is (diag p - p p^T) x h h^T = V V^T. With F its mean over
    the pool and M that of labelled and chosen rows plus a regulariser, weighted as in the authors' code,
    each step takes the row whose addition lowers, or removal least raises, trace(M^-1 F). Woodbury updates
    of V^T M^-1 V and V^T M^-1 F M^-1 V of every row cost two products of (U, D) and (D, C^2) per pick.

    The matrices have C D rows. Where that exceeds `max_size` the features are replaced by their leading
    principal components, and where a row has more than `max_rank` classes V keeps its most probable ones.

    Args:
        scores, labelled, batch_size, rng: as for every strategy.
        regulariser: > 0, added to the diagonal of M.
        max_size: largest C D.
        max_rank: most columns of V.
    """
    classes = scores.probs.shape[1]
    features = principal(scores.features, max(1, max_size // classes))
    probs = scores.probs.double().to(features.device)
    free = labelled.unlabelled(len(scores)).to(features.device)
    known = labelled.positions.to(features.device)
    total = len(known) + batch_size
    pool = mean_fisher(features, probs, max_rank)
    inverse, middle = started(pool, features[known], probs[known], regulariser, total, max_rank)
    design = Design(inverse, middle, features[free], probs[free], max_rank, batch_size / total)
    chosen: list[int] = []
    for _ in range(min(2 * batch_size, len(free))):
        worth = design.change(1)
        worth[torch.tensor(chosen, dtype=torch.int64, device=free.device)] = -torch.inf
        chosen.append(first_best(worth))
        design.move(chosen[-1], 1)
    design.keep(torch.tensor(chosen, device=free.device))
    while len(chosen) > batch_size:
        worst = first_best(design.change(-1))
        design.move(worst, -1)
        del chosen[worst]
        design.keep(torch.tensor([i for i in range(len(chosen) + 1) if i != worst], device=free.device))
    return free[torch.tensor(chosen, device=free.device)]


class Design:
    """The matrix M of the rows chosen, as M^-1 and G = M^-1 F M^-1, and what these are to every row.

    Attributes:
        inverse, middle: (C D, C D) M^-1 and G.
        near, far: (U, R, R) V^T M^-1 V and V^T G V of each row.
    """

    def __init__(
        self, inverse: Tensor, middle: Tensor, features: Tensor, probs: Tensor, max_rank: int, share: float
    ) -> None:
        self.inverse, self.middle = inverse, middle
        self.features, self.share = features, share
        self.probs, self.columns = probs, most_probable(probs, max_rank)
        self.near, self.far = self._forms(self.inverse), self._forms(self.middle)

    def change(self, sign: int) -> Tensor:
        """(U,) how much trace(M^-1 F) falls if a row is added (1), or minus its rise if removed (-1)."""
        eye = torch.eye(self.near.shape[1], dtype=self.near.dtype, device=self.near.device)
        moved = self.near + sign * eye
        solved, failed = torch.linalg.solve_ex(moved, self.far)
        # Next to huge features 1 is lost: what such a row has no information on changes nothing.
        singular = failed != 0
        solved[singular] = torch.linalg.pinv(moved[singular], hermitian=True) @ self.far[singular]
        return solved.diagonal(dim1=1, dim2=2).sum(1)

    def move(self, row: int, sign: int) -> None:
        """Add a row's Fisher information to M (1) or remove it (-1), by the Woodbury identity."""
        own = self._factor(row)  # (C D, R)
        u, z = self.inverse @ own, self.middle @ own
        eye = torch.eye(len(self.near[row]), dtype=u.dtype, device=u.device)
        moved = self.near[row] + sign * eye
        core, failed = torch.linalg.inv_ex(moved)
        if failed:
            core = torch.linalg.pinv(moved, hermitian=True)
        inner = core @ self.far[row] @ core
        self.inverse.addmm_(u @ core, u.T, alpha=-1)
        self.middle.addmm_(torch.cat([u @ inner - z @ core, -u @ core], 1), torch.cat([u, z], 1).T)
        rank = u.shape[1]
        for part in chunks(len(self.features), 2 * rank * self.probs.shape[1]):
            both = self._times(part, torch.cat([u, z], 1))
            a, b = both[..., :rank], both[..., rank:]
            self.near[part] -= a @ core @ a.mT
            self.far[part] += a @ inner @ a.mT - a @ core @ b.mT - b @ core @ a.mT

    def keep(self, index: Tensor) -> None:
        """Forget all rows but `index`."""
        for name in ("features", "probs", "columns", "near", "far"):
            setattr(self, name, getattr(self, name)[index])

    def _factor(self, row: int) -> Tensor:
        """(C D, R) V of one row."""
        return torch.einsum("cr,d->cdr", self._heads(slice(row, row + 1))[0], self.features[row]).flatten(0, 1)

    def _heads(self, part: slice) -> Tensor:
        """(n, C, R) the class part of V: sqrt(p_k) (e_k - p) for each class k that is kept."""
        return class_factor(self.probs[part], self.columns[part]) * self.share**0.5

    def _times(self, part: slice, right: Tensor) -> Tensor:
        """(n, R, m) V^T right, for right (C D, m)."""
        classes, width = self.probs.shape[1], self.features.shape[1]
        blocks = right.view(classes, width, -1).transpose(0, 1).flatten(1)  # (D, C m)
        return self._heads(part).mT @ (self.features[part] @ blocks).unflatten(1, (classes, -1))

    def _forms(self, matrix: Tensor) -> Tensor:
        """(U, R, R) V^T matrix V of each row, for a symmetric matrix (C D, C D)."""
        classes, width = self.probs.shape[1], self.features.shape[1]
        upper = torch.triu_indices(classes, classes, device=matrix.device)
        blocks = matrix.view(classes, width, classes, width)[upper[0], :, upper[1]]  # (pairs, D, D)
        blocks = blocks.permute(1, 0, 2).reshape(width, -1)
        forms = []
        for part in chunks(len(self.features), 1, max(1, CHUNK // blocks.shape[1])):
            h = self.features[part]
            pairs = ((h @ blocks).unflatten(1, (-1, width)) @ h[:, :, None])[..., 0]  # (n, pairs)
            square = pairs.new_empty(len(h), classes, classes)
            square[:, upper[0], upper[1]] = pairs
            square[:, upper[1], upper[0]] = pairs
            heads = self._heads(part)
            forms.append(heads.mT @ square @ heads)
        return torch.cat(forms)


def started(
    pool: Tensor, features: Tensor, probs: Tensor, regulariser: float, total: int, max_rank: int
) -> tuple[Tensor, Tensor]:
    """(C D, C D) M^-1 and M^-1 F M^-1 of the labelled rows (L, D), (L, C), for M = regulariser + sum V V^T / total.

    With fewer columns of V than half of C D the products are of them, by the Woodbury identity, which takes L R / C D
    of the time.
    """
    if 2 * len(features) * min(probs.shape[1], max_rank) > len(pool):
        matrix = len(features) / total * mean_fisher(features, probs, max_rank)
        inverse = torch.linalg.inv(matrix.diagonal_scatter(matrix.diagonal() + regulariser))
        return inverse, inverse @ pool @ inverse
    heads = class_factor(probs, most_probable(probs, max_rank))
    factor = torch.einsum("ncr,nd->cdnr", heads, features).reshape(len(pool), -1) / total**0.5  # (C D, L R)
    inner = factor.T @ factor
    solved = torch.linalg.solve(inner.diagonal_scatter(inner.diagonal() + regulariser), factor.T)  # (L R, C D)
    half = pool - factor @ (solved @ pool)
    eye = torch.eye(len(pool), dtype=pool.dtype, device=pool.device)
    return (eye - factor @ solved) / regulariser, (half - (half @ factor) @ solved) / regulariser**2


def most_probable(probs: Tensor, max_rank: int) -> Tensor:
    """(n, R) int64 the R = min(C, max_rank) most probable classes of each row (n, C)."""
    return probs.topk(min(probs.shape[1], max_rank), sorted=True).indices


def class_factor(probs: Tensor, columns: Tensor) -> Tensor:
    """(n, C, R) A with A A^T = diag p - p p^T if all classes are kept: columns sqrt(p_k) (e_k - p)."""
    heads = -probs[:, :, None].expand(-1, -1, columns.shape[1])
    heads = heads.scatter_add(1, columns[:, None], torch.ones_like(columns[:, None], dtype=probs.dtype))
    return heads * probs.gather(1, columns)[:, None].sqrt()


def mean_fisher(features: Tensor, probs: Tensor, max_rank: int) -> Tensor:
    """(C D, C D) float64 mean over rows of V V^T, for features (n, D) and probs (n, C)."""
    classes, width = probs.shape[1], features.shape[1]
    upper = torch.triu_indices(classes, classes, device=features.device)
    blocks = torch.zeros(len(upper[0]) * width, width, dtype=torch.float64, device=features.device)
    for part in chunks(len(features), 1, max(1, CHUNK // len(blocks))):
        heads = class_factor(probs[part], most_probable(probs[part], max_rank))
        share = (heads @ heads.mT)[:, upper[0], upper[1]]  # (n, pairs)
        blocks += (share[:, :, None] * features[part, None]).flatten(1).T @ features[part]
    full = features.new_empty(classes, classes, width, width)
    pairs = (blocks / len(features)).unflatten(0, (-1, width))
    full[upper[0], upper[1]] = pairs
    full[upper[1], upper[0]] = pairs.mT
    return full.transpose(1, 2).reshape(classes * width, classes * width)


def principal(rows: Rows, width: int) -> Tensor:
    """(N, min(D, width)) float64 rows, in their leading principal axes (about 0) if they are wider."""
    parts = list(chunks(*rows.shape))
    if rows.shape[1] <= width:
        return torch.cat([rows[part].double() for part in parts])
    moment = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in parts:
        x = rows[part].double()
        moment += x.T @ x
    axes = torch.linalg.eigh(moment).eigenvectors[:, -width:]
    return torch.cat([rows[part].double() @ axes for part in parts])
