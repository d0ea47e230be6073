"""Keys hang on names alone, look random, and settle what is equal but for rounding."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from palkit.errors import ConfigError
from palkit.strategies.ties import TIE, Keys, drawn, first_best, keys_of, mixed, predict, settled


def splitmix(state: int) -> int:
    """Next number of SplitMix64, as Vigna's C has it, in whole numbers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(key=st.integers(-(2**63), 2**63 - 1), seed=st.integers(0, 2**63))
def test_mixing_is_splitmix(key: int, seed: int) -> None:
    """The number of state key + seed * golden ratio, and one-to-one in the key."""
    expected = splitmix((key + seed * 0x9E3779B97F4A7C15) % 2**64)
    assert int(mixed(torch.tensor([key]), seed)[0]) % 2**64 == expected


def test_keys_are_of_names_in_any_process() -> None:
    names = ["train/肿瘤/1.png", "a$b", "", "\udcff"]
    code = f"from palkit.strategies.ties import keys_of; print(keys_of({names!r}).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(keys_of(names).tolist())
    assert len(keys_of(map(str, range(100_000))).unique()) == 100_000
    assert len(keys_of([])) == 0


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="image 'b' is there twice"):
        Keys.of(["a", "b", "c", "b"], ["x"])
    with pytest.raises(ConfigError, match="class '1' is there twice"):
        Keys.of(["a"], ["1", 1])  # type: ignore[list-item]


def test_order_of_keys_is_uniform() -> None:
    """Each of 5 names comes first equally often over 5,000 seeds: chi-square of 4 degrees of freedom, p > 0.001."""
    keys = keys_of("abcde")
    first = np.bincount([int(mixed(keys, seed).argmin()) for seed in range(5000)], minlength=5)
    assert ((first - 1000) ** 2 / 1000).sum() < 18.5


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_drawn_by_key_alone(share: float) -> None:
    keys = keys_of(map(str, range(400)))
    whole = drawn(keys, 7, 250, share)  # (400, 250)
    assert whole.shape == (400, 250)
    assert torch.equal(drawn(keys[37:40], 7, 250, share), whole[37:40])
    assert abs(float(whole.double().mean()) - share) < 0.01
    assert abs(float(whole.double().mean(0).std()) - (share * (1 - share) / 400) ** 0.5) < 0.005
    assert not torch.equal(drawn(keys, 8, 250, share), whole)


@settings(max_examples=200)
@given(
    values=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=20),
    seed=st.integers(0, 1000),
)
def test_settled_keeps_what_differs(values: list[float], seed: int) -> None:
    score = torch.tensor(values, dtype=torch.float64)
    rounded = settled(score)
    order = score.argsort()
    assert (rounded[order].diff() >= 0).all()
    assert ((rounded * TIE - score).abs() <= TIE * score.abs()).all()
    assert torch.equal(
        settled(torch.tensor([1.0, 1 + 1e-8, 1 - 1e-8, float("inf"), float("-inf"), 0.0])),
        settled(torch.tensor([1.0, 1.0, 1.0, float("inf"), float("-inf"), 0.0])),
    )


def test_the_first_of_equals_is_best() -> None:
    assert first_best(torch.tensor([1.0, 3.0, 3.0 - 1e-7, 3.0])) == 1
    assert first_best(torch.tensor([2.0 - 1e-7, 2.0, 1.0])) == 0
    assert first_best(torch.tensor([-5.0, -2.0, -2.0 + 1e-8])) == 1
    assert first_best(torch.tensor([-torch.inf, -torch.inf])) == 0
    assert first_best(torch.tensor([0.0, torch.inf])) == 1


def test_unseen_classes_share_the_rows_on_which_they_tie() -> None:
    """Not all to the lowest number, and a row's class stays when rows move or classes are renumbered."""
    n = 3000
    probs = torch.tensor([0.1, 0.3, 0.3, 0.3]).repeat(n, 1)
    probs[0] = torch.tensor([0.4, 0.2, 0.2, 0.2])
    probs[1:] += 1e-8 * torch.randn(n - 1, 4, generator=torch.Generator().manual_seed(0))
    keys = Keys.of(map(str, range(n)), "abcd")
    found = predict(probs, keys, chunk=999)
    assert found[0] == 0
    counts = found[1:].bincount(minlength=4).tolist()
    assert counts[0] == 0
    assert min(counts[1:]) > 900
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([2, 0, 3, 1])
    moved = Keys(keys.rows[rows], keys.classes[classes])
    assert torch.equal(classes[predict(probs[rows][:, classes], moved)], found[rows])
