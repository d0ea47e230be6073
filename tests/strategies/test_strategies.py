"""What every registered strategy must satisfy, and what `select` refuses."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from inspect import signature
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from breadth import some, thinned
from hypothesis import given, settings
from torch import Tensor

from palkit.errors import ConfigError, PalkitError
from palkit.storage.files import REPOSITORY
from palkit.strategies import STRATEGIES, kernels, registry, select
from palkit.strategies.bait import Design
from palkit.strategies.balance import BALANCES
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies.ties import Keys

NAMES = sorted(STRATEGIES)
NEEDS_LABELS = {"alfamix", "featdist"}
COSTLY = {
    "bait": {"max_size": 300},
    "epig": {"targets": 2},
}  # with many classes: what costs C * D rows, or C * C times each


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_pool(n: int, d: int, c: int, seed: int, features: Tensor | None = None) -> PoolScores:
    """Random scores of n rows with no ties; `features` replaces the random ones."""
    rng = generator(seed)
    logits = 2 * torch.randn(n, c, generator=rng)
    noise = torch.randn(5, n, c, generator=rng)
    return PoolScores(
        torch.randn(n, d, generator=rng) if features is None else features,
        logits.softmax(1),
        (logits + noise).softmax(2),
    )


def choose(
    name: str, pool: PoolScores, labelled: LabelledSet, batch: int, rng: torch.Generator, **options: Any
) -> Tensor:
    """`select`, with what a strategy cannot do without."""
    if STRATEGIES[name].is_oracle:
        options["labels"] = pool.probs.argmax(1)
    if name in COSTLY and pool.probs.shape[1] > 100:
        options |= COSTLY[name]
    return select(name, pool, labelled, batch, rng, **options)


def make_labelled(n: int, size: int, c: int, seed: int) -> LabelledSet:
    rng = generator(seed + 1)
    return LabelledSet(torch.randperm(n, generator=rng)[:size], torch.randint(c, (size,), generator=rng))


@st.composite
def problems(draw: st.DrawFn, start: int = 1) -> tuple[PoolScores, LabelledSet, int, int]:
    """A pool with at least one unlabelled row and at least `start` labelled ones, a batch size and a seed."""
    n = draw(st.integers(start + 1, 60))
    d, c, seed = draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(0, 2**20))
    size = draw(st.integers(start, n - 1))
    batch = draw(st.integers(1, 70))
    pool = make_pool(n, d, c, seed)
    if draw(st.booleans()):  # a coarse grid: many rows at one distance, many copies
        pool = PoolScores(pool.features.round(), pool.probs, pool.stochastic_probs)
    return pool, make_labelled(n, size, c, seed), batch, seed


def check_contract(picks: Tensor, pool: PoolScores, labelled: LabelledSet, batch: int) -> None:
    assert picks.dtype == torch.int64
    assert picks.shape == (min(batch, len(pool) - len(labelled)),)
    assert len(set(picks.tolist())) == len(picks)
    assert not set(picks.tolist()) & set(labelled.positions.tolist())
    assert int(picks.min()) >= 0
    assert int(picks.max()) < len(pool)


@pytest.mark.parametrize("examples", [8, pytest.param(25, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, examples: int) -> None:
    """Exact budget, distinct, unlabelled; the same under one seed whatever the global generator's state."""

    @settings(max_examples=examples)
    @given(balance=st.sampled_from([None, "pcb"]), problem=problems())
    def check(balance: str | None, problem: tuple[PoolScores, LabelledSet, int, int]) -> None:
        pool, labelled, batch, seed = problem
        before = pool.features.clone(), pool.probs.clone(), labelled.positions.clone()
        torch.manual_seed(1)
        picks = choose(name, pool, labelled, batch, generator(seed), balance=balance)
        check_contract(picks, pool, labelled, batch)
        torch.manual_seed(2)
        again = choose(name, pool, labelled, batch, generator(seed), balance=balance)
        assert torch.equal(picks, again)
        assert torch.equal(before[0], pool.features)
        assert torch.equal(before[1], pool.probs)
        assert torch.equal(before[2], labelled.positions)

    check()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in (1, 2))])
def test_chunk_size_changes_nothing(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, labelled = make_pool(83, 6, 4, seed), make_labelled(83, 9, 4, seed)
    whole = choose(name, pool, labelled, 12, generator(seed))
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 40)
    assert len(list(kernels.chunks(83, 6))) > 10
    assert torch.equal(whole, choose(name, pool, labelled, 12, generator(seed)))


def tied_pool(n: int, c: int, seed: int) -> PoolScores:
    """Scores as a few labels give them: rows in stored order of class, copies, and classes that nobody has seen tie."""
    rng = generator(seed)
    label = torch.arange(n) * c // n
    features = torch.randn(c, 6, generator=rng)[label] + 0.5 * torch.randn(n, 6, generator=rng).round()
    seen = torch.randn(n, c, generator=rng).round()
    seen[:, c // 2 :] = 0.5  # the same logit for all classes without labels
    noise = torch.randn(5, 1, c, generator=rng).round() * (torch.arange(c) < c // 2)
    names = Keys.of((f"image {i}" for i in range(n)), (f"class {i}" for i in range(c)))
    return PoolScores(features, seen.softmax(1), (seen + noise).softmax(2), names)


def stored_otherwise(pool: PoolScores, labelled: LabelledSet, rows: Tensor, classes: Tensor) -> Any:
    """The same scores and labels with rows (new position -> old) and classes (new number -> old) in another order."""
    assert pool.stochastic_probs is not None
    passes = pool.stochastic_probs[:, rows][..., classes]
    names = Keys(pool.keys.rows[rows], pool.keys.classes[classes])
    place, number = rows.argsort()[labelled.positions].flip(0), classes.argsort()[labelled.labels].flip(0)
    moved = LabelledSet(place, number)  # the last label first: who gave which when means nothing either
    return PoolScores(pool.features[rows], pool.probs[rows][:, classes], passes, names), moved


@pytest.mark.parametrize("examples", [6, pytest.param(15, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", NAMES)
def test_neither_storage_nor_numbering_decides(name: str, examples: int) -> None:
    """The same images, in the same order, whatever the order of rows and the numbers of classes; also among ties."""

    @settings(max_examples=examples)
    @given(
        balance=st.sampled_from([None, "pcb"]),
        n=st.integers(20, 60),
        c=st.integers(2, 7),
        seed=st.integers(0, 2**20),
        size=st.integers(0, 12),
        way=st.sampled_from(["reversed", "shuffled", "renumbered", "both"]),
    )
    def check(balance: str | None, n: int, c: int, seed: int, size: int, way: str) -> None:
        pool, labelled = tied_pool(n, c, seed), make_labelled(n, max(size, int(name in NEEDS_LABELS)), c, seed)
        rows, classes = torch.arange(n), torch.arange(c)
        if way != "renumbered":
            rows = rows.flip(0) if way == "reversed" else torch.randperm(n, generator=generator(seed + 5))
        if way in ("renumbered", "both"):
            classes = torch.randperm(c, generator=generator(seed + 6))
        other, moved = stored_otherwise(pool, labelled, rows, classes)
        truth = {"labels": torch.arange(n) * c // n} if STRATEGIES[name].is_oracle else {}
        there = {key: classes.argsort()[value[rows]] for key, value in truth.items()}
        picks = select(name, pool, labelled, 8, generator(seed), balance=balance, **truth)
        assert torch.equal(picks, rows[select(name, other, moved, 8, generator(seed), balance=balance, **there)])

    check()


@pytest.mark.parametrize("name", NAMES)
def test_ties_go_by_lot(name: str) -> None:
    """Of rows that all tie, stored class by class, a batch takes its share of every class, and other ones each time."""
    n, c = 200, 5
    names = Keys.of(map(str, range(n)), map(str, range(c)))
    even = torch.full((n, c), 1 / c)
    pool = PoolScores(torch.ones(n, 3), even, even.expand(5, n, c), names)
    truth = {"labels": torch.arange(n) * c // n} if STRATEGIES[name].is_oracle else {}
    labelled = LabelledSet(torch.tensor([0]), torch.tensor([0]))
    batches = [select(name, pool, labelled, 20, generator(seed), **truth) for seed in range(10)]
    bought = torch.cat(batches)
    assert len(bought.unique()) > 100  # 10 batches of 20 would be 130 different rows if drawn independently
    shares = (bought * c // n).bincount(minlength=c) / len(bought)
    assert shares.max() < 0.3


@pytest.mark.parametrize("name", ["least_confidence", "margin", "entropy", "featdist", "coreset", "bait", "maxherding"])
def test_last_bits_do_not_decide(name: str) -> None:
    """Rounding of another processor on scores of many ties: the same images."""
    for seed in range(10):
        pool, labelled = tied_pool(80, 6, seed), make_labelled(80, 6, 6, seed)
        noise = 1 + 2e-7 * torch.randn(80, 6, generator=generator(seed))
        probs = (pool.probs * noise) / (pool.probs * noise).sum(1, keepdim=True)
        other = PoolScores(pool.features * noise, probs, pool.stochastic_probs, pool.names)
        picks = select(name, pool, labelled, 8, generator(seed))
        assert torch.equal(picks, select(name, other, labelled, 8, generator(seed)))


def test_images_without_names_go_by_position() -> None:
    pool, labelled = make_pool(30, 4, 3, 0), make_labelled(30, 5, 3, 0)
    named = replace(pool, names=Keys.of_positions(30, 3))
    assert torch.equal(
        select("random", pool, labelled, 5, generator()), select("random", named, labelled, 5, generator())
    )
    with pytest.raises(ConfigError, match="29 rows"):
        replace(pool, names=Keys.of_positions(29, 3))


@cache
def degenerate_pools() -> dict[str, PoolScores]:
    n = 40
    some = make_pool(n, 6, 3, 0)
    return {
        "copies": make_pool(n, 6, 3, 0, some.features[:4].repeat(10, 1)),
        "all equal": make_pool(n, 6, 3, 0, torch.ones(n, 6)),
        "equal rows and scores": PoolScores(torch.ones(n, 6), torch.full((n, 3), 1 / 3), torch.full((5, n, 3), 1 / 3)),
        "zero rows": make_pool(n, 6, 3, 0, some.features * (torch.arange(n) % 3 == 0)[:, None]),
        "all zero": make_pool(n, 6, 3, 0, torch.zeros(n, 6)),
        "certain": PoolScores(
            some.features,
            torch.eye(3)[torch.arange(n) % 3],
            torch.eye(3)[torch.arange(n) % 3].expand(5, n, 3),
        ),
        "one predicted class": PoolScores(
            some.features, torch.tensor([[0.8, 0.1, 0.1]]).repeat(n, 1), some.stochastic_probs
        ),
        "far from the origin": make_pool(n, 6, 3, 0, some.features + 1e4),
        "huge": make_pool(n, 6, 3, 0, some.features * 1e15),
        "tiny": make_pool(n, 6, 3, 0, some.features * 1e-15),
        "one class": make_pool(n, 6, 1, 0),
        "two classes": make_pool(n, 6, 2, 0),
        "1000 classes": make_pool(n, 6, 1000, 0),
        "one feature": make_pool(n, 1, 3, 0),
    }


def test_bait_bears_rows_next_to_which_one_is_lost() -> None:
    """(near + 1)^-1 of equal rows and columns of 1e20 is singular in float64 on every machine."""
    ones = torch.ones(1, 2, 2, dtype=torch.float64)
    design = Design.__new__(Design)
    design.near, design.far = torch.cat([1e20 * ones, 3 * ones]), torch.cat([6e20 * ones, 7 * ones])
    assert design.change(1).tolist() == pytest.approx([6.0, 2.0]), "trace of 2 f / (2 n + 1) along the only direction"


@pytest.mark.parametrize(("name", "kind"), thinned(NAMES, degenerate_pools(), every=4))
def test_degenerate_pools(name: str, kind: str) -> None:
    pool = degenerate_pools()[kind]
    labelled = make_labelled(len(pool), 5, pool.probs.shape[1], 0)
    for batch in (1, 7, 35) if kind != "1000 classes" else (7,):
        check_contract(choose(name, pool, labelled, batch, generator()), pool, labelled, batch)


@pytest.mark.parametrize("name", NAMES)
def test_batch_is_clipped_to_what_is_left(name: str) -> None:
    pool, labelled = make_pool(12, 3, 3, 0), make_labelled(12, 7, 3, 0)
    picks = choose(name, pool, labelled, 100, generator())
    assert sorted(picks.tolist()) == labelled.unlabelled(12).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_no_labels_yet(name: str) -> None:
    """A cold-start strategy picks without labels; any other does so too, or says which ones can."""
    pool, empty = make_pool(50, 4, 3, 0), make_labelled(50, 0, 3, 0)
    if name in NEEDS_LABELS:
        with pytest.raises(ConfigError, match=r"coreset.*random"):
            choose(name, pool, empty, 6, generator())
    else:
        check_contract(choose(name, pool, empty, 6, generator()), pool, empty, 6)


def some_problem() -> tuple[PoolScores, LabelledSet]:
    return make_pool(30, 4, 3, 0), make_labelled(30, 5, 3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "entrpy"}, "Did you mean 'entropy'"),
        ({"balance": "pbc"}, "Did you mean 'pcb'"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"gamma": 0.2}, "unknown option of strategy 'entropy' 'gamma'.* Valid names: per_group, subsample"),
        ({"name": "featdist", "referense": "nearest"}, "Did you mean 'reference'.*unseen_share"),
        ({"name": "featdist", "reference": "mean"}, "class_mean"),
        ({"name": "featdist", "unseen_share": 2}, "unseen_share"),
        ({"balance": "pcb", "gamma": 0}, "gamma"),
        ({"subsample": 0}, "subsample"),
        ({"name": "power_entropy", "beta": -1.0}, "beta"),
        ({"name": "falcun", "exponent": -1.0}, "exponent"),
        ({"name": "maxherding", "bandwidth": 0.0}, "bandwidth"),
        ({"name": "maxherding", "max_rows": 0}, "max_rows"),
        ({"name": "uherding", "temperature": float("inf")}, "temperature"),
        ({"name": "probcover", "delta": -1.0}, "delta"),
        ({"name": "probcover", "purity": 1.0}, "purity"),
        ({"name": "alfamix", "eps": 0.0}, "eps"),
        ({"name": "cluster_margin", "factor": 0}, "factor"),
        ({"name": "batchbald", "samples": 0}, "samples"),
        ({"name": "bait", "regulariser": 0.0}, "regulariser"),
        ({"name": "class_balanced_oracle"}, "true labels"),
        ({"name": "best_batch_oracle"}, "true labels"),
        ({"balance": "pcb", "gama": 0.2}, "Did you mean 'gamma'"),
        ({"labelled": LabelledSet(torch.tensor([30]), torch.tensor([0]))}, "position 30 is outside"),
        ({"labelled": LabelledSet(torch.tensor([-1]), torch.tensor([0]))}, "position -1 is outside"),
        (
            {"labelled": LabelledSet(torch.tensor([4, 4]), torch.tensor([0, 1]))},
            "position 4 is labelled twice",
        ),
        ({"labelled": LabelledSet(torch.tensor([4]), torch.tensor([3]))}, "label 3 is outside the 3 classes"),
        ({"labelled": LabelledSet(torch.tensor([4, 5]), torch.tensor([1]))}, "one length"),
        ({"labelled": LabelledSet(torch.arange(30), torch.zeros(30).long())}, "nothing is left"),
    ],
)
def test_select_refuses(change: dict[str, Any], message: str) -> None:
    pool, labelled = some_problem()
    call: dict[str, Any] = {"name": "entropy", "scores": pool, "labelled": labelled, "batch_size": 3}
    with pytest.raises(ConfigError, match=message):
        select(**{**call, "rng": generator(), **change})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["features", "probs"])
def test_rows_that_are_not_finite_are_named(where: str, value: float) -> None:
    pool, labelled = some_problem()
    getattr(pool, where)[[3, 17], 1] = value
    with pytest.raises(ConfigError, match=f"{where} of pool row 3 are not finite"):
        select("random", pool, labelled, 3, generator())


NO_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda row: 5 * row.log() + 7,
    "twice": lambda row: 2 * row,
    "nothing": torch.zeros_like,
    "2% too much": lambda row: 1.02 * row,
    "2% too little": lambda row: 0.98 * row,
    "below 0, though they sum to 1": lambda row: torch.cat([row[:-2], row[-2:-1] - 2, row[-1:] + 2]),
}


@pytest.mark.parametrize("change", NO_PROBABILITIES.values(), ids=NO_PROBABILITIES)
@pytest.mark.parametrize(
    ("where", "name"), [("probs", "entropy"), ("probs", "random"), ("probs", "bald"), ("stochastic_probs", "bald")]
)
def test_rows_that_are_no_probabilities_are_named_and_not_ranked(
    where: str, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    pool, labelled = some_problem()
    probs = getattr(pool, where).view(-1, *pool.probs.shape)[-1]  # the pool's, or those of the last pass
    for row in (3, 17):
        probs[row] = change(probs[row])
    with pytest.raises(ConfigError, match=f"{where} of pool row 3 are no probabilities: they sum to"):
        select(name, pool, labelled, 3, generator())


@pytest.mark.parametrize(("name", "precision"), thinned(NAMES, ("float64", "float16", "bfloat16"), every=3))
def test_any_precision_of_features_and_probs(name: str, precision: str) -> None:
    """Also where rows are copies, so that several centres want one row."""
    pool = make_pool(30, 4, 3, 0)
    pool.features[1:20] = pool.features[0]
    labelled = LabelledSet(torch.tensor([25, 26, 27]), torch.tensor([0, 1, 2]))
    passes = pool.stochastic_probs
    assert passes is not None
    dtype = getattr(torch, precision)
    for features, parts in ((dtype, torch.float32), (torch.float32, dtype)):
        scores = PoolScores(pool.features.to(features), pool.probs.to(parts), passes.to(parts))
        for balance in (None, "pcb"):
            picks = choose(name, scores, labelled, 15, generator(), balance=balance)
            assert len(set(picks.tolist()) - {25, 26, 27}) == 15


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 1000, 20_000])
def test_rounding_of_probabilities_is_no_fault(dtype: torch.dtype, classes: int) -> None:
    logits = 4 * torch.randn(40, classes, generator=generator())
    labelled = LabelledSet(torch.tensor([0]), torch.tensor([1]))
    for rounded in (logits.softmax(1).to(dtype), logits.to(dtype).softmax(1)):
        for probs in (rounded, rounded.float()):
            picks = select("least_confidence", PoolScores(torch.ones(40, 2), probs), labelled, 3, generator())
            assert len(picks) == 3


def test_opposite_infinities_and_huge_sums_are_told_apart() -> None:
    pool, labelled = some_problem()
    pool.features[2, :2] = torch.tensor([torch.inf, -torch.inf])
    with pytest.raises(ConfigError, match="features of pool row 2 are not finite"):
        select("random", pool, labelled, 3, generator())
    pool.features[2] = 3e38  # the sum overflows, the numbers do not
    assert len(select("random", pool, labelled, 3, generator())) == 3


def test_a_strategy_that_returns_a_mask_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "STRATEGIES", dict(STRATEGIES))

    @registry.strategy("mask")
    def mask(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
        return torch.ones(len(scores), dtype=torch.bool)

    with pytest.raises(PalkitError, match=r"must return 3 int64 positions.*got tensor.*True"):
        select("mask", make_pool(30, 4, 3, 0), LabelledSet(torch.tensor([29]), torch.tensor([0])), 3, generator())


@pytest.mark.parametrize(
    "picks",
    [
        ["first", "first", "next"],
        ["first", "next"],
        ["first", "next", "labelled"],
        ["first", "next", "outside"],
        ["first", "next", "half a row"],
    ],
)
def test_select_checks_what_the_strategy_returns(picks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "STRATEGIES", dict(STRATEGIES))

    @registry.strategy("broken")
    def broken(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
        free = labelled.unlabelled(len(scores))
        known = {"labelled": int(labelled.positions[0]), "outside": 30, "first": int(free[0]), "next": int(free[1])}
        return torch.tensor([known.get(pick, 0.5) for pick in picks])

    pool = make_pool(30, 4, 3, 0)
    with pytest.raises(PalkitError, match="must return 3 int64 positions, unlabelled and each once"):
        select("broken", pool, LabelledSet(torch.tensor([29]), torch.tensor([0])), 3, generator())


def test_missing_needs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "STRATEGIES", dict(STRATEGIES))

    @registry.strategy("wants", needs={"stochastic_probs"})
    def wants(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
        return labelled.unlabelled(len(scores))[:batch_size]

    pool, labelled = some_problem()
    with pytest.raises(ConfigError, match="stochastic_probs"):
        select("wants", PoolScores(pool.features, pool.probs), labelled, 3, generator())
    assert len(select("wants", pool, labelled, 3, generator())) == 3


@pytest.mark.parametrize("name", some(NAMES, every=3))
def test_subsample_shows_a_strategy_part_of_the_pool(name: str) -> None:
    """Over many draws every row gets its chance; in each the contract holds; a large one changes nothing."""
    pool, labelled = make_pool(40, 4, 3, 0), make_labelled(40, 6, 3, 0)
    seen: set[int] = set()
    for seed in range(20):
        picks = choose(name, pool, labelled, 4, generator(seed), subsample=8, balance="pcb")
        check_contract(picks, pool, labelled, 4)
        seen |= set(picks.tolist())
    assert len(seen) > 20
    plain = choose(name, pool, labelled, 4, generator())
    assert torch.equal(plain, choose(name, pool, labelled, 4, generator(), subsample=1000))


@pytest.mark.parametrize(("name", "balance"), thinned(NAMES, [None, "pcb"], every=2))
def test_a_group_does_not_fill_a_batch(name: str, balance: str | None) -> None:
    """Half of the rows are of one patient, of whom two are bought; the others are of pairs or stand for themselves."""
    pool, labelled = make_pool(60, 4, 3, 0), make_labelled(60, 6, 3, 0)
    groups = torch.tensor([0] * 30 + [1 + number // 2 for number in range(20)] + [-1] * 10)
    for seed in range(5):
        picks = choose(name, pool, labelled, 12, generator(seed), balance=balance, per_group=2, groups=groups)
        check_contract(picks, pool, labelled, 12)
        counts = groups[picks][groups[picks] >= 0].bincount()
        assert counts.max() <= 2, (name, counts)


def test_a_bound_keeps_the_order_of_what_is_liked() -> None:
    """Margin's own ranking, with the fourth of a group and later left out; where all are full, one more of each."""
    pool, labelled = make_pool(60, 4, 3, 0), make_labelled(60, 6, 3, 0)
    groups = torch.arange(60) % 4
    ranking = choose("margin", pool, labelled, 54, generator()).tolist()
    nth = {row: [one for one in ranking if one % 4 == row % 4].index(row) for row in ranking}
    expected = sorted(ranking, key=lambda row: max(nth[row], 2))
    for size in (1, 5, 12, 20, 54):
        picks = choose("margin", pool, labelled, size, generator(), per_group=3, groups=groups)
        assert picks.tolist() == expected[:size]


def test_what_a_batch_has_already_counts_among_those_of_its_group() -> None:
    pool, labelled = make_pool(60, 4, 3, 0), make_labelled(60, 6, 3, 0)
    given = {"groups": torch.arange(60) % 4, "begun": torch.tensor([2, 2, 3, -1, -1, -1])}
    picks = choose("margin", pool, labelled, 5, generator(), per_group=2, **given)
    assert given["groups"][picks].bincount(minlength=4).tolist() == [2, 2, 0, 1]
    check_contract(choose("margin", pool, labelled, 54, generator(), per_group=1, **given), pool, labelled, 54)


def test_what_is_taken_counts_as_labelled() -> None:
    """Both ends are of one group: of the others the middle is far from what is labelled and taken, 95 is not."""
    pool = PoolScores(torch.tensor([[0.0], [100.0], [-90.0], [95.0], [50.0]]), torch.full((5, 2), 0.5))
    labelled, groups = LabelledSet(torch.tensor([0]), torch.tensor([0])), torch.tensor([-1, 7, 7, 8, -1])
    assert select("coreset", pool, labelled, 2, generator(), per_group=1, groups=groups).tolist() == [1, 4]


def test_few_groups_do_not_rank_the_whole_pool() -> None:
    """One group has all but three rows: the strategy is asked for a batch a few times."""
    pool, labelled = make_pool(400, 4, 3, 0), make_labelled(400, 6, 3, 0)
    asked: list[int] = []

    @registry.strategy("counted")
    def counted(scores: PoolScores, known: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
        asked.append(batch_size)
        return known.unlabelled(len(scores))[:batch_size]

    groups = torch.zeros(400, dtype=torch.int64)
    groups[:3] = torch.arange(1, 4)
    try:
        select("counted", pool, labelled, 10, generator(), per_group=1, groups=groups)
    finally:
        STRATEGIES.pop("counted")
    assert len(asked) <= 12
    assert max(asked) == 10


@pytest.mark.parametrize("groups", [None, torch.zeros(59).long()])
def test_a_bound_needs_groups(groups: Tensor | None) -> None:
    pool, labelled = make_pool(60, 4, 3, 0), make_labelled(60, 6, 3, 0)
    wanted = "per_group: nothing says which images" if groups is None else r"groups are \(59,\) for a pool of 60 rows"
    with pytest.raises(ConfigError, match=wanted):
        select("margin", pool, labelled, 5, generator(), per_group=2, groups=groups)
    with pytest.raises(ConfigError, match="per_group is 0"):
        select("margin", pool, labelled, 5, generator(), per_group=0, groups=torch.zeros(60).long())


def test_subsample_hides_the_rest() -> None:
    """What is not drawn has no influence: the same rows in a pool of their own give the same picks."""
    pool, labelled = make_pool(60, 4, 3, 0), make_labelled(60, 6, 3, 0)
    picks = select("coreset", pool, labelled, 5, generator(3), subsample=20)
    shown = set(
        select("random", pool, labelled, 20, generator(3), subsample=20).tolist()
    )  # all there is to choose from
    rows = torch.tensor(sorted(shown | set(labelled.positions.tolist())))
    alone = PoolScores(pool.features[rows], pool.probs[rows])
    known = LabelledSet(torch.searchsorted(rows, labelled.positions), labelled.labels)
    assert torch.equal(picks, rows[select("coreset", alone, known, 5, generator(9))])


def test_options_of_strategies_and_of_balances_do_not_clash() -> None:
    """Both come through the same call of `select`."""
    for balance in BALANCES.values():
        own = set(list(signature(balance).parameters)[5:])
        assert own
        for name in NAMES:
            assert not own & set(STRATEGIES[name].options), name


def test_whoever_needs_passes_says_how_to_make_them() -> None:
    for name in NAMES:
        wants = STRATEGIES[name].dropout
        assert (wants is not None) == ("stochastic_probs" in STRATEGIES[name].needs), name
        assert wants is None or (wants.passes > 1 and 0 < wants.rate < 1), name


def test_the_documented_example_is_a_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "STRATEGIES", dict(STRATEGIES))
    examples = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/strategies.md").read_text(), re.DOTALL)
    (example,) = [text for text in examples if "@strategy" in text]
    exec(compile(example, "strategies.md", "exec"), {})
    pool, labelled = some_problem()
    probs = pool.probs.sort(dim=1).values
    expected = [
        i for i in (probs[:, -2] / probs[:, -1]).argsort(descending=True).tolist() if i not in labelled.positions
    ]
    assert select("ratio", pool, labelled, 3, generator()).tolist() == expected[:3]


def test_only_oracles_are_some() -> None:
    assert [name for name in NAMES if STRATEGIES[name].is_oracle] == ["best_batch_oracle", "class_balanced_oracle"]
