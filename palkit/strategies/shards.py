"""Pool features larger than memory: `.npy` shards, read through the page cache as they are needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from palkit.errors import DataError


class Shards:
    """The rows of several `.npy` files, one after the other, as if they were one (N, D) float32 tensor.

    Strategies take one as the features of their scores and give the same selection as from a tensor,
    since every kernel reads `rows[a:b]` and `rows[index]` only. Files are memory-mapped: what is read
    lies in the page cache, which the system takes back when memory is short.

    Args:
        paths: float16 or float32 arrays (n_i, D), in order.

    Raises:
        DataError: there is no shard, or one is not a float matrix of the others' width; names the file.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    ndim = 2

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths:
            raise DataError("no shards given.")
        self.maps = [np.load(path, mmap_mode="r") for path in paths]
        for path, array in zip(paths, self.maps, strict=True):
            if array.ndim != 2 or array.dtype not in (np.float16, np.float32):
                raise DataError(f"{path} must hold a 2-D float16 or float32 array, is {array.shape} {array.dtype}.")
            if array.shape[1] != self.maps[0].shape[1]:
                raise DataError(f"{path} has {array.shape[1]} columns, {paths[0]} has {self.maps[0].shape[1]}.")
        self.starts = np.cumsum([0] + [len(array) for array in self.maps])
        self.shape = torch.Size((int(self.starts[-1]), self.maps[0].shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError("shards are read in steps of one.")
            parts = [
                array[max(start - first, 0) : max(stop - first, 0)]
                for first, array in zip(self.starts, self.maps, strict=False)
            ]
            return torch.from_numpy(np.concatenate(parts, dtype=np.float32))
        wanted = index.numpy()
        shard = np.searchsorted(self.starts, wanted, side="right") - 1
        rows = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        for number in np.unique(shard):
            here = shard == number
            rows[here] = self.maps[number][wanted[here] - self.starts[number]]
        return torch.from_numpy(rows)
