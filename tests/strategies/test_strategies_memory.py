"""No strategy holds more than a chunk beside N (C + D) numbers and a copy of what it needs: the largest tensor."""

from typing import Any

import pytest
import torch
from test_strategies import NAMES, choose, generator, make_labelled, make_pool
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palkit.strategies import STRATEGIES, bait, coverage, kernels

HERDING = {"maxherding", "uherding", "probcover", "best_batch_oracle", "auto"}  # a matrix of theirs has its own limit


class Largest(TorchDispatchMode):
    """Notes the most numbers of any tensor that is made; a view of a given one is none."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.size = 0
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                self.size = max(self.size, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HERDING])
def test_largest_tensor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 rows of 6 features and 4 classes in 5 passes, 30 labelled."""
    pool, labelled = make_pool(400, 6, 4, 0), make_labelled(400, 30, 4, 0)
    limit = {"bait": 400 * 16, "alfamix": 1200}.get(name, 400 * (6 + 4))  # of BAIT a C x C matrix of each row
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", limit)
    monkeypatch.setattr(bait, "CHUNK", limit)
    options: dict[str, Any] = {"batchbald": {"samples": 200}}.get(name, {})
    assert pool.stochastic_probs is not None
    with Largest(pool.features, pool.probs, pool.stochastic_probs) as largest:
        choose(name, pool, labelled, 20, generator(), **options)
    copied = pool.stochastic_probs.numel() if "stochastic_probs" in STRATEGIES[name].needs else 0
    assert largest.size <= max(limit, copied, pool.features.numel())


@pytest.mark.parametrize("cache", [0, 400_000])
def test_largest_tensor_of_coverage(cache: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a tile by the sample that sorts the rows; eight chunks; kept kernel values up to the limit."""
    rows, tile = torch.randn(1000, 4, generator=generator()), 40
    monkeypatch.setattr(coverage, "CHUNK_ELEMENTS", tile * 334 // 8)
    similar = coverage.rbf(0.5)
    with Largest() as largest:
        coverage.greedy_coverage(rows, similar, torch.ones(1000), torch.zeros(1000), 50, cache, tile)
    assert largest.size <= max(cache // 4, tile * 334)
