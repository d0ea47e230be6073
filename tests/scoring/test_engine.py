"""Reading ahead, batches that survive out-of-memory, and what configs refuse."""

import threading
import time

import pytest
import torch

from palkit.errors import ConfigError, OutOfMemoryError
from palkit.scoring.engine import Halving, ScoringConfig, ahead


def test_ahead_keeps_the_order_and_works_in_another_thread() -> None:
    makers = []

    def make(item: int) -> int:
        makers.append(threading.current_thread())
        return item * item

    assert list(ahead(make, range(20))) == [i * i for i in range(20)]
    assert list(ahead(make, [])) == []
    assert all(thread is not threading.main_thread() for thread in makers)


def test_ahead_reads_while_the_caller_works_but_not_far() -> None:
    made = []
    stream = ahead(lambda item: made.append(item) or item, range(100))
    next(stream)
    deadline = time.monotonic() + 120
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2], "the one asked for and two more, in memory at most"


def test_ahead_hands_on_errors() -> None:
    def make(item: int) -> float:
        return 1 / item

    stream = ahead(make, [1, 0, 2])
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)


class Device:
    """Work that fails as torch does if a part has more rows than memory holds."""

    def __init__(self, capacity: int, error: RuntimeError) -> None:
        self.capacity, self.error = capacity, error
        self.done: list[int] = []
        self.tried: list[int] = []

    def __call__(self, part: slice) -> None:
        self.tried.append(part.stop - part.start)
        if part.stop - part.start > self.capacity:
            raise self.error
        self.done += range(part.start, part.stop)


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), CPU_ERROR])
@pytest.mark.parametrize("capacity", [1, 3, 5, 16, 100])
def test_every_row_is_worked_on_once_whatever_fits(capacity: int, error: RuntimeError) -> None:
    device, halving = Device(capacity, error), Halving(16)
    for _ in range(3):
        halving(16, device)
        assert device.done == list(range(16))
        device.done.clear()
    failures = sum(size > capacity for size in device.tried)
    assert failures <= 4, "the size that fits is remembered: 16, 8, 4, 2 fail at most once each"


def test_a_real_allocation_that_is_too_large_counts_as_out_of_memory() -> None:
    rows_done = []

    def work(part: slice) -> None:
        rows = part.stop - part.start
        torch.empty(2**46 if rows > 2 else 8, dtype=torch.uint8)
        rows_done.append(rows)

    Halving(8)(8, work)
    assert rows_done == [2, 2, 2, 2]


def test_one_row_too_large_says_what_to_do() -> None:
    with pytest.raises(OutOfMemoryError, match=r"does not hold one image.*image_size.*bfloat16"):
        Halving(8)(8, Device(0, CPU_ERROR))


def test_other_errors_are_not_retried() -> None:
    device = Device(4, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        Halving(8)(8, device)
    assert device.tried == [8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "float23"}, r"scoring\.precision 'float23'. Did you mean 'float32'"),
        ({"cache_dtype": "int8"}, r"scoring\.cache_dtype 'int8'"),
        ({"batch_size": 0}, r"scoring\.batch_size is 0 .*must be greater than or equal to 1"),
    ],
)
def test_bad_scoring_configs(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScoringConfig(**change)
