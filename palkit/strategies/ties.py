"""Keys that settle ties: made of names, so that neither storage order, nor class numbers, nor last bits decide.

With few labels many classes have none, a zero-initialised head gives all of these the very same logit, and tens of rows
tie for the smallest margin. What settles that must be nothing that means something: on a folder of class folders the
order of storage is the class.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from palkit.errors import ConfigError

TIE = 2.0**-18  # relative; float32 scores of one model agree to about 2^-22 wherever they are computed
GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number: steps of this size never meet soon


@dataclass(frozen=True)
class Keys:
    """Numbers that stand for the rows and the classes of some scores, whatever their order.

    Attributes:
        rows: (N,) int64.
        classes: (C,) int64.
    """

    rows: Tensor
    classes: Tensor

    @staticmethod
    def of(ids: Iterable[str], class_names: Iterable[str]) -> "Keys":
        """Keys of named images and classes.

        Raises:
            ConfigError: two of either have one name, so nothing but storage order could tell them apart.
        """
        names = {"image": list(map(str, ids)), "class": list(map(str, class_names))}
        for what, some in names.items():
            if len(set(some)) < len(some):
                name = Counter(some).most_common(1)[0][0]
                raise ConfigError(f"{what} {name!r} is there twice. Give each {what} a name of its own.")
        return Keys(*map(keys_of, names.values()))

    def under(self, seed: int) -> "Keys":
        """Other keys of the same rows and classes for every seed."""
        return Keys(mixed(self.rows, seed), mixed(self.classes, seed))

    @staticmethod
    def of_positions(rows: int, classes: int) -> "Keys":
        """Keys of rows and classes that have no name but their position."""
        return Keys(mixed(torch.arange(rows), 0), mixed(torch.arange(classes), 1))


def keys_of(names: Iterable[str]) -> Tensor:
    """(N,) int64 key of each name, the same in every process.

    >>> keys_of(["a", "b"]).equal(keys_of(["b", "a"]).flip(0))
    True
    """
    digests = b"".join(blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names)
    return torch.from_numpy(np.frombuffer(digests, dtype="<i8").astype(np.int64))


def mixed(keys: Tensor, seed: int) -> Tensor:
    """int64 keys that look drawn at random, others for every seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = keys + (seed * GOLDEN + GOLDEN + 2**63) % 2**64 - 2**63
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x ^ ((x >> 31) & (2**33 - 1))


def drawn(keys: Tensor, seed: int, count: int, share: float) -> Tensor:
    """(n, count) bool, each set with probability `share` (to 2^-16), the same for a key whatever rows are beside it.

    Args:
        keys: (n,) int64.
        seed: of the draw.
        count: numbers per key.
        share: in (0, 1).
    """
    words = mixed(keys[:, None] + torch.arange(-(-count // 4)) * GOLDEN, seed)  # four numbers of 16 bits each
    return words.view(torch.int16)[:, :count] < min(round(share * 2**16), 2**16 - 1) - 2**15


def settled(score: Tensor) -> Tensor:
    """Scores with all bits below TIE of their size rounded away, so that what ties but for rounding ties exactly."""
    mantissa, exponent = torch.frexp(score.double())
    return torch.ldexp((mantissa / TIE).round_(), exponent)


def first_best(score: Tensor, tie: float = TIE) -> int:
    """Lowest position of a score that is as good as the largest.

    Args:
        score: (N,) any real numbers, minus infinity where there is none to have.
        tie: relative difference below which scores are equal.
    """
    best = score.max()
    return int((score >= best - tie * best.abs()).nonzero()[0]) if best.isfinite() else int(score.argmax())


def predict(probs: Tensor, keys: Keys, chunk: int = 2**14) -> Tensor:
    """(N,) int64 most probable class of each row; where several are, one of them by the keys of row and class.

    Args:
        probs: (N, C).
        keys: of its rows and classes.
        chunk: rows at a time.
    """
    parts = []
    for start in range(0, probs.shape[0], chunk):
        block = probs[start : start + chunk]
        label = block.argmax(1)
        tied = block >= block.amax(1, keepdim=True) * (1 - TIE)  # (n, C)
        open_rows = (tied.sum(1) > 1).nonzero().squeeze(1)
        if len(open_rows):
            rows = keys.rows[open_rows.cpu() + start, None]
            lot = mixed(rows ^ keys.classes, 0).to(block.device)
            label[open_rows] = lot.masked_fill(~tied[open_rows], -(2**63)).argmax(1)
        parts.append(label)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
