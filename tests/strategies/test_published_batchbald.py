"""BatchBALD's published mixtures, and why its passes need masks that all rows share."""

import numpy as np
import pytest
import torch
from test_strategies import generator
from test_strategies_batches import joint_information
from torch import Tensor

from palkit.strategies import STRATEGIES, select
from palkit.strategies.scores import LabelledSet, PoolScores

PUBLISHED = [0.030716, 0.059620, 0.086911, 0.112753]  # batchbald_redux, notebook 01 (Kirsch 2019)
TOLERANCE = 1e-6  # they are printed with six digits
NOTHING = LabelledSet(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))


def mixtures() -> Tensor:
    """(20, 4, 4) passes of four rows, each between two distributions at 20 equally spaced weights, none rounded."""
    ends = [([0.7, 0.1, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2]), ([0.1, 0.7, 0.1, 0.1], [0.2, 0.3, 0.3, 0.2])]
    ends += [([0.1, 0.1, 0.7, 0.1], [0.2, 0.2, 0.3, 0.3]), ([0.1, 0.1, 0.1, 0.7], [0.3, 0.2, 0.2, 0.3])]
    first, last = torch.tensor(ends, dtype=torch.float64).unbind(1)  # (4, 4)
    weight = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None, None]
    return (1 - weight) * first + weight * last


@pytest.mark.parametrize("seed", range(5))
def test_mixtures(seed: int) -> None:
    """All four rows tie by symmetry: whichever is first, the joint information of the first 1 to 4 is published."""
    passes = mixtures()
    pool = PoolScores(torch.ones(4, 2), passes.mean(0), passes)
    picks = select("batchbald", pool, NOTHING, 4, generator(seed)).tolist()
    found = [joint_information(passes.numpy(), picks[:size]) for size in (1, 2, 3, 4)]
    assert found == pytest.approx(PUBLISHED, abs=TOLERANCE)
    best = [max(joint_information(passes.numpy(), [*picks[:size], i]) for i in range(4)) for size in (0, 1)]
    assert found[:2] == pytest.approx(best)


def dropped(masks: Tensor, features: Tensor, head: Tensor) -> Tensor:
    """(T, N, C) probabilities of a linear head (C, D) on features (N, D) of which masks (T, N or 1, D) keep some."""
    return (2 * features * masks @ head.T).softmax(2)


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_not_bought_twice_with_shared_masks(seed: int) -> None:
    """Six images, each stored five times. A mask of its own for every row makes a copy look like news."""
    rng = generator(seed)
    features = torch.randn(6, 16, generator=rng).repeat(5, 1)
    head = torch.randn(4, 16, generator=rng)
    wanted = STRATEGIES["batchbald"].dropout
    assert wanted is not None
    assert wanted.on == "shared_features"
    keep = 1 - wanted.rate
    shared = dropped((torch.rand(200, 1, 16, generator=rng) < keep).double(), features.double(), head.double())
    own = dropped((torch.rand(200, 30, 16, generator=rng) < keep).double(), features.double(), head.double())

    def bought(passes: Tensor) -> list[int]:
        pool = PoolScores(features, passes.mean(0), passes)
        return select("batchbald", pool, NOTHING, 4, generator(seed)).tolist()

    assert len({pick % 6 for pick in bought(shared)}) == 4
    # Why: of independent masks the joint information is the sum of what each row tells, copies or not.
    first = bought(own)[0]
    alone = joint_information(own.numpy(), [first])
    copy = next(i for i in range(30) if i % 6 == first % 6 and i != first)
    assert joint_information(own.numpy(), [first, copy]) > 1.5 * alone
    gain = joint_information(shared.numpy(), [first, copy]) - joint_information(shared.numpy(), [first])
    assert gain < 0.7 * joint_information(shared.numpy(), [first])


def test_joint_information_of_the_mixtures_is_enumerated() -> None:
    """The reference itself, once more from the definition: H of the joint minus the mean H given the pass."""
    passes = mixtures().numpy()
    joint = np.einsum("ta,tb->tab", passes[:, 0], passes[:, 2]).reshape(20, -1)
    entropy = -(joint.mean(0) * np.log(joint.mean(0))).sum() + (joint * np.log(joint)).sum(1).mean()
    assert joint_information(passes, [0, 2]) == pytest.approx(entropy)
