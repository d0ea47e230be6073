"""Tools of every pass over many rows: reading ahead, and batches that get smaller where memory runs out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from palkit.errors import OutOfMemoryError
from palkit.models.devices import Precision, is_out_of_memory
from palkit.storage.checks import Checked, Count

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # blocks read while one is computed


@dataclass(frozen=True)
class ScoringConfig(Checked):
    """How frozen blocks and the scoring pass are computed.

    Attributes:
        precision: of products: "float32", "bfloat16", "float64", which gives the same features on every processor
            and takes two to three times as long, or "auto", which is the faster one of the first two as measured on
            this machine (see `palkit.models.devices.probe`); a run records what it became.
        batch_size: rows per forward pass, halved where memory runs out; None takes the measured best. Results
            depend on it in their last bits, so it is part of the config.
        cache_dtype: in which tokens between blocks are stored: "float16" or "float32".
        compile: pass the backbone through torch.compile: worth its start-up for large pools only.
    """

    part = "scoring."

    precision: Precision = "float32"
    batch_size: Count | None = 128
    cache_dtype: Literal["float16", "float32"] = "float16"
    compile: bool = False

    @property
    def rows(self) -> int:
        """Rows per batch, known once the config is settled."""
        assert self.batch_size is not None, "settled"
        return self.batch_size


def ahead(make: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`make(item)` for every item in order, made by a thread while the caller works on the one before."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for item in items:
                waiting.append(thread.submit(make, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)


class Halving:
    """Works through blocks in parts, halving the parts whenever memory runs out, and remembers their size.

    Args:
        size: rows per part to begin with.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, rows: int, work: Callable[[slice], None]) -> None:
        """Work through one block.

        Args:
            rows: of the block.
            work: called with a slice of them; called again for rows that ran out of memory.

        Raises:
            OutOfMemoryError: a single row does not fit.
        """
        begin = 0
        while begin < rows:
            part = slice(begin, min(begin + self.size, rows))
            try:
                work(part)
                begin = part.stop
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise OutOfMemoryError(
                        "the device's memory does not hold one image. Take a smaller image_size or backbone, or "
                        "precision bfloat16, or free memory on the device."
                    ) from error
                self.size = (min(self.size, rows) + 1) // 2
                torch.cuda.empty_cache()  # of no consequence without CUDA


def pinned(rows: Tensor, device: torch.device) -> Tensor:
    """The rows where a copy to the device can overlap with computing; to be called while reading ahead."""
    return rows.pin_memory() if device.type == "cuda" else rows
