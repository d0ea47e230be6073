"""What strategies declare about themselves, against what they do; their defaults and the limits of their options."""

from dataclasses import FrozenInstanceError
from inspect import signature
from typing import Annotated, Any, Literal

import pytest
import torch
from test_strategies import NAMES, NEEDS_LABELS, check_contract, generator, make_labelled, make_pool

from palkit.errors import ConfigError, PalkitError
from palkit.strategies import STRATEGIES, kernels, registry, select
from palkit.strategies.options import Share, check
from palkit.strategies.scores import Dropout, LabelledSet, PoolScores


def picks_of(name: str, pool: PoolScores, labelled: LabelledSet) -> list[int]:
    truth: dict[str, Any] = {"labels": torch.arange(len(pool)) % 3} if STRATEGIES[name].is_oracle else {}
    return select(name, pool, labelled, 6, generator(), **truth).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_blind_strategies_are_those_that_look_at_no_score(name: str) -> None:
    labelled, pools = make_labelled(50, 6, 3, 0), [make_pool(50, 4, 3, seed) for seed in range(4)]
    batches = {tuple(picks_of(name, pool, labelled)) for pool in pools}
    assert STRATEGIES[name].blind == (len(batches) == 1)


@pytest.mark.parametrize("name", NAMES)
def test_cold_start_strategies_are_those_that_need_no_labels_and_no_probs(name: str) -> None:
    """Without labels there is no head: probabilities must not matter."""
    empty, pool = make_labelled(50, 0, 3, 0), make_pool(50, 4, 3, 0)
    if name in NEEDS_LABELS:
        assert not STRATEGIES[name].cold_start
        return
    others = [make_pool(50, 4, 3, seed) for seed in range(4)]
    batches = {tuple(picks_of(name, PoolScores(pool.features, o.probs, o.stochastic_probs), empty)) for o in others}
    assert STRATEGIES[name].cold_start == (len(batches) == 1)


@pytest.mark.filterwarnings("ignore:probcover")
@pytest.mark.parametrize("name", sorted(set(NAMES) - NEEDS_LABELS))
@pytest.mark.parametrize("size", [1, 2])
def test_pools_of_one_and_of_two_rows(name: str, size: int) -> None:
    truth: dict[str, Any] = {"labels": torch.arange(size)} if STRATEGIES[name].is_oracle else {}
    pool, empty = make_pool(size, 4, 3, 0), make_labelled(size, 0, 3, 0)
    check_contract(select(name, pool, empty, 2, generator(), **truth), pool, empty, 2)


def test_what_is_registered_stays_as_it_is() -> None:
    with pytest.raises(FrozenInstanceError):
        STRATEGIES["badge"].cold_start = True  # type: ignore[misc]


def test_defaults_are_the_papers() -> None:
    """Values of the papers and of their authors' code, as the docstrings say; a changed one changes every result."""
    defaults = {
        "alfamix": {"eps": 0.2},
        "bait": {"regulariser": 1.0, "max_size": 4096, "max_rank": 10},
        "batchbald": {"samples": 1000},
        "cluster_margin": {"factor": 10, "clusters": None},
        "epig": {"target": None, "targets": 100},
        "falcun": {"exponent": 10.0},
        "featdist": {"reference": "nearest", "space": "logits", "unseen_share": 0.0},
        "maxherding": {"bandwidth": 1.0, "max_rows": 35_000},
        "probcover": {"delta": None, "purity": 0.95, "normalize": True, "max_rows": 35_000},
        "typiclust": {"max_clusters": 500, "min_size": 5, "neighbours": 20, "normalize": True},
        "uherding": {"bandwidth": None, "temperature": None, "max_rows": 35_000},
        **{f"power_{name}": {"beta": 1.0} for name in ("bald", "entropy", "least_confidence", "margin")},
    }
    for name in NAMES:
        parameters = signature(STRATEGIES[name].function).parameters
        found = {option: parameters[option].default for option in STRATEGIES[name].options if option != "labels"}
        assert found == defaults.get(name, {}), name
    head = {name: STRATEGIES[name].dropout for name in NAMES if STRATEGIES[name].dropout}
    half = Dropout(passes=20, rate=0.5, on="shared_features")
    assert head == {
        "bald": half,
        "power_bald": half,
        "batchbald": half,
        "epig": half,
        "dropquery": Dropout(passes=3, rate=0.75),
    }


NAN = float("nan")
LIMITS: list[tuple[str, str, list[Any], list[Any]]] = [
    ("alfamix", "eps", [1e-6, 0.5, 50.0], [0.0, -0.5, NAN]),
    ("bait", "regulariser", [1e-6, 0.5], [0.0, -0.5, NAN]),
    ("bait", "max_size", [1, 2], [0, -1]),
    ("bait", "max_rank", [1, 2], [0, -1]),
    ("batchbald", "samples", [1, 2], [0, -1]),
    ("cluster_margin", "factor", [1, 2], [0, -1]),
    ("cluster_margin", "clusters", [None, 1, 2, 100], [0, -1]),
    ("falcun", "exponent", [0.0, 0.5], [-0.5, NAN]),
    ("featdist", "unseen_share", [0.0, 0.5, 1.0], [-0.5, 1.5, NAN]),
    ("maxherding", "bandwidth", [1e-6, 0.5], [0.0, -0.5, NAN]),
    ("maxherding", "max_rows", [1, 2], [0, -1]),
    ("power_margin", "beta", [0.0, 0.5], [-0.5, NAN]),
    ("probcover", "delta", [None, 1e-6, 0.5], [0.0, -0.5, NAN]),
    ("probcover", "purity", [1e-6, 0.5, 1 - 1e-6], [0.0, -0.5, 1.0, 1.5, NAN]),
    ("typiclust", "max_clusters", [1, 2], [0, -1]),
    ("typiclust", "neighbours", [1, 2], [0, -1]),
    ("uherding", "temperature", [None, 1e-2, 0.5, 50.0], [0.0, -0.5, NAN]),
]


@pytest.mark.parametrize(("name", "option", "good", "bad"), LIMITS, ids=[f"{row[0]}-{row[1]}" for row in LIMITS])
def test_limits_of_options(name: str, option: str, good: list[Any], bad: list[Any]) -> None:
    """Up to the limit an option is heeded, from there on refused by name."""
    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    for value in good:
        check_contract(select(name, pool, labelled, 5, generator(), **{option: value}), pool, labelled, 5)
    for value in bad:
        with pytest.raises(ConfigError, match=option):
            select(name, pool, labelled, 5, generator(), **{option: value})


def test_limits_of_the_balance() -> None:
    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    for gamma in (1e-6, 0.5, 1.0):
        picks = select("margin", pool, labelled, 5, generator(), balance="pcb", gamma=gamma)
        check_contract(picks, pool, labelled, 5)
    for gamma in (0.0, -0.5, 1.5, NAN):
        with pytest.raises(ConfigError, match="gamma"):
            select("margin", pool, labelled, 5, generator(), balance="pcb", gamma=gamma)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(39).long(),
        torch.zeros(41).long(),
        torch.zeros(40, 1).long(),
        torch.zeros(40),
        -torch.ones(40).long(),
    ],
    ids=["short", "long", "two dimensions", "float", "negative"],
)
def test_the_oracle_refuses_what_are_no_labels(labels: torch.Tensor) -> None:
    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    with pytest.raises(ConfigError, match="labels"):
        select("class_balanced_oracle", pool, labelled, 5, generator(), labels=labels)


def test_the_first_row_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk."""
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 40)
    pool, labelled = make_pool(60, 4, 3, 0), make_labelled(60, 6, 3, 0)
    pool.features[[17, 30, 31, 59], 2] = NAN
    with pytest.raises(ConfigError, match="features of pool row 17 are not finite"):
        select("random", pool, labelled, 5, generator())


@pytest.mark.parametrize(
    ("positions", "labels", "message"),
    [
        ([0, 39], [0, 2], ""),
        ([0, 40], [0, 2], "position 40 is outside the pool of 40 rows"),
        ([0, 45], [0, 2], "position 45 is outside the pool of 40 rows"),
        ([-1, 0], [0, 2], "position -1 is outside"),
        ([0, 39], [-1, 2], "label -1 is outside the 3 classes"),
        ([0, 39], [0, 3], "label 3 is outside the 3 classes"),
        ([0, 39], [0, 5], "label 5 is outside the 3 classes"),
        ([[0, 39]], [[0, 2]], "two int64 vectors of one length"),
        (39, 0, "two int64 vectors of one length"),
        ([0], [0, 1], "two int64 vectors of one length"),
        ([0.0, 1.0], [0, 1], "two int64 vectors of one length"),
        ([0, 1], [0.0, 1.0], "two int64 vectors of one length"),
        ([7, 9, 3, 9, 3, 9], [0, 0, 0, 0, 0, 0], "position 3 is labelled twice"),
        ([1, 9, 3, 9], [0, 0, 0, 0], "position 9 is labelled twice"),
    ],
)
def test_labelled_rows_are_checked(positions: Any, labels: Any, message: str) -> None:
    pool, labelled = make_pool(40, 4, 3, 0), LabelledSet(torch.tensor(positions), torch.tensor(labels))
    if message:
        with pytest.raises(ConfigError, match=message):
            select("random", pool, labelled, 5, generator())
    else:
        check_contract(select("random", pool, labelled, 38, generator()), pool, labelled, 38)


def test_a_subsample_smaller_than_the_batch_is_the_batch() -> None:
    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    for name in ("coreset", "margin"):
        check_contract(select(name, pool, labelled, 9, generator(), subsample=3), pool, labelled, 9)


@pytest.mark.parametrize("subsample", [0, -1, True, False, 2.5, "7"])
def test_a_subsample_is_a_number_of_rows(subsample: Any) -> None:
    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    with pytest.raises(ConfigError, match="subsample"):
        select("margin", pool, labelled, 1, generator(), subsample=subsample)
    check_contract(select("margin", pool, labelled, 1, generator(), subsample=1), pool, labelled, 1)


def test_passes_that_are_not_finite_matter_to_those_who_need_them() -> None:
    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    plain = select("entropy", pool, labelled, 5, generator())
    assert pool.stochastic_probs is not None
    pool.stochastic_probs[1, 7, 2] = NAN
    assert torch.equal(plain, select("entropy", pool, labelled, 5, generator()))
    with pytest.raises(ConfigError, match="stochastic_probs of pool row 7 are not finite"):
        select("bald", pool, labelled, 5, generator())


def test_unknown_options_are_named_with_what_they_are_not_an_option_of() -> None:
    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    with pytest.raises(ConfigError, match=r"option of strategy 'margin' with balance 'pcb' 'gama'"):
        select("margin", pool, labelled, 5, generator(), balance="pcb", gama=0.1)
    with pytest.raises(ConfigError, match=r"option of strategy 'falcun' 'exponnt'"):
        select("falcun", pool, labelled, 5, generator(), exponnt=1.0)


@pytest.mark.parametrize("size", [39, 40, 41])
def test_a_subsample_takes_its_rows_of_options_that_hold_one_value_per_row(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "STRATEGIES", dict(STRATEGIES))
    given: list[torch.Tensor] = []

    @registry.strategy("weighted")
    def weighted(
        scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator, weights: torch.Tensor
    ) -> torch.Tensor:
        given.append(weights)
        return labelled.unlabelled(len(scores))[:batch_size]

    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    weights = torch.arange(size) * 1.5
    picks = select("weighted", pool, labelled, 5, generator(), subsample=10, weights=weights)
    assert len(given[0]) == (16 if size == 40 else size)
    if size == 40:
        assert set((picks * 1.5).tolist()) <= set(given[0].tolist())


def test_a_strategy_that_returns_too_many_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "STRATEGIES", dict(STRATEGIES))

    @registry.strategy("greedy")
    def greedy(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> torch.Tensor:
        return labelled.unlabelled(len(scores))[: batch_size + 1]

    with pytest.raises(PalkitError, match="must return 5 int64 positions"):
        select("greedy", make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0), 5, generator())


@pytest.mark.parametrize(
    ("hint", "good", "bad", "wanted"),
    [
        (Annotated[int, "a note", 3], 7, "x", "a whole number"),
        (Literal["near", "far"] | None, None, "nowhere", "'near' or 'far' or nothing"),
        (list[int], [1], "x", "of type list"),
        (Share | None, 1, 2, "a finite number from 0 to 1 or nothing"),
    ],
)
def test_annotations_of_others_are_understood(hint: Any, good: Any, bad: Any, wanted: str) -> None:
    check("mine", good, hint)
    with pytest.raises(ConfigError, match=f"mine is {bad!r}; it must be {wanted}"):
        check("mine", bad, hint)
