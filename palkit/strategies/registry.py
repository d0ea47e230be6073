"""The registry of strategies and the one entry point through which they are called."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor

from palkit.errors import ConfigError, PalkitError, brief, unknown_name
from palkit.storage.plugins import is_registered, refuse_taken
from palkit.strategies.balance import BALANCES, spread_over_groups
from palkit.strategies.kernels import Rows, View, chunks
from palkit.strategies.options import Count, check
from palkit.strategies.scores import Dropout, LabelledSet, PoolScores, are_classes
from palkit.strategies.ties import Keys

COPIED = 2**30  # bytes of features up to which they are copied into the drawn order: chunks then need no gathering
ROUNDED = 0.01  # by how much probabilities may miss 1 that a softmax in bfloat16, of 8 bits, has rounded
SelectFn = Callable[..., Tensor]
Measure = Literal["distance"] | Callable[[PoolScores], Tensor]


@dataclass(frozen=True)
class Strategy:
    """A registered strategy.

    Attributes:
        name: the field's name for it.
        function: `(scores, labelled, batch_size, rng, **options) -> (B,) int64 pool positions`, best first.
        needs: what it wants from the scoring pass beyond features and probs, e.g. `"stochastic_probs"`.
        cold_start: whether it can choose the first batch, when there are no labels and no probs.
        dropout: for those that need stochastic_probs, how to make them.
        blind: whether it chooses without looking at features and probs, so that the scoring pass can be spared.
        measure: what to show beside its picks: "distance" to the nearest label, or a function of scores to one number
            a row, called as the number is and with `_scores` at the end; None where there is no such number.
        style: its colour and marker in figures; None for those that its name gives it.
    """

    name: str
    function: SelectFn
    needs: frozenset[str]
    cold_start: bool = False
    dropout: Dropout | None = None
    blind: bool = False
    measure: Measure | None = None
    style: tuple[str, str] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that the function takes."""
        return tuple(signature(self.function).parameters)[4:]

    @property
    def is_oracle(self) -> bool:
        """Whether it reads labels that nobody has bought."""
        return "labels" in self.options


STRATEGIES: dict[str, Strategy] = {}


def strategy(name: str, *, needs: Iterable[str] = (), **traits: Any) -> Callable[[SelectFn], SelectFn]:
    """Register the decorated function as the strategy `name`; all that the rest of palkit needs to know is said here.

    Args:
        name: that nobody else has; a cell that is executed again may register its own once more.
        needs: see `Strategy`.
        traits: its other attributes.

    Raises:
        ConfigError: another module has registered the name.

    >>> @strategy("first", style=("#000000", "o"))
    ... def first(scores, labelled, batch_size, rng):
    ...     return labelled.unlabelled(len(scores))[:batch_size]
    >>> STRATEGIES.pop("first").style
    ('#000000', 'o')
    """

    def register(function: SelectFn) -> SelectFn:
        refuse_taken("strategy", name, STRATEGIES[name].function if name in STRATEGIES else None, function)
        STRATEGIES[name] = Strategy(name, function, frozenset(needs), **traits)
        return function

    return register


def get_strategy(name: str) -> Strategy:
    """The registered strategy `name`; ConfigError with the nearest valid name if there is none."""
    if not is_registered(name, STRATEGIES):
        raise unknown_name("strategy", name, STRATEGIES)
    return STRATEGIES[name]


def require_labels(labelled: LabelledSet, name: str) -> None:
    """ConfigError, naming the strategies that can start without labels, if there are none."""
    if not len(labelled):
        cold = ", ".join(sorted(s.name for s in STRATEGIES.values() if s.cold_start))
        raise ConfigError(
            f"strategy {name!r} needs at least one labelled row. Choose the first batch by one of: {cold}."
        )


def select(
    name: str,
    scores: PoolScores,
    labelled: LabelledSet,
    batch_size: int,
    rng: torch.Generator,
    *,
    balance: str | None = None,
    subsample: int | None = None,
    per_group: int | None = None,
    groups: Tensor | None = None,
    begun: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Choose the pool rows whose labels to buy next.

    A strategy sees rows and classes in an order drawn from the seed and their names: it may let the first of equals
    win, and still picks the same images however they are stored and their classes numbered.

    Args:
        name: a registered strategy, see `STRATEGIES`.
        scores: one scoring pass over the whole pool.
        labelled: labels bought so far, possibly none.
        batch_size: labels to buy; clipped to what is left of the pool.
        rng: CPU generator, the only source of randomness.
        balance: a wrapper around the strategy that evens out classes, see `balance.BALANCES`, or None.
        subsample: show the strategy only this many unlabelled rows, drawn uniformly (at least the batch),
            beside all labelled ones and those that an option points at: a bound on time and memory for any strategy.
            None for all rows.
        per_group: rows of one group (a patient, a slide, a camera) in a batch, at most, while others are left; what
            the strategy likes next fills it up. None for no bound.
        groups: (N,) int64 of each row, below 0 for a row that stands for itself; needed for `per_group`.
        begun: groups of what the batch has already from elsewhere; None for an empty batch.
        options: options of the strategy, e.g. `reference="class_mean"`, and of the balance, e.g. `gamma`.

    Returns:
        (B,) int64 CPU positions, B = min(batch_size, unlabelled rows): distinct, unlabelled, in the
        strategy's order of preference.

    Raises:
        ConfigError: a name, an option, the batch size, the labelled positions or a score cannot be used.
        PalkitError: the strategy broke its contract.
    """
    chosen = get_strategy(name)
    own, wrapping = check_options(chosen, balance, options)
    wrapper = BALANCES[balance] if balance else None
    check("batch_size", batch_size, Count)
    check("subsample", subsample, Count | None)
    check("per_group", per_group, Count | None)
    check_groups(per_group, groups is not None)
    if groups is not None and groups.shape != (len(scores),):
        raise ConfigError(f"groups are {tuple(groups.shape)} for a pool of {len(scores)} rows; give one for each.")
    _check_labelled(labelled, scores)
    for need in chosen.needs:
        if getattr(scores, need, None) is None:
            raise ConfigError(f"strategy {name!r} looks at {need}, which are not in the scores; give them.")
    _check_rows("features", scores.features, probabilities=False)
    _check_rows("probs", scores.probs)
    if scores.stochastic_probs is not None and "stochastic_probs" in chosen.needs:
        _check_rows("stochastic_probs", *scores.stochastic_probs)

    unlabelled = labelled.unlabelled(len(scores))
    if not len(unlabelled):
        raise ConfigError(f"all {len(scores)} rows of the pool are labelled: nothing is left to select.")
    size = min(batch_size, len(unlabelled))
    keys = scores.keys.under(int(torch.randint(2**62, (), generator=rng)))
    shown = keys.rows.argsort()
    if subsample is not None:
        free = torch.isin(shown, unlabelled, assume_unique=True)
        for one in options.values():  # rows that an option points at are to be seen
            if isinstance(one, Tensor) and one.dtype == torch.bool and one.shape == (len(scores),):
                free &= ~one.cpu()[shown]
        shown = shown[~free | (free.cumsum(0) <= min(max(subsample, size), len(unlabelled)))]
    if "stochastic_probs" not in chosen.needs:
        scores = replace(scores, stochastic_probs=None)
    if chosen.blind:
        scores = replace(scores, features=View(scores.features))  # which is never read: nothing is copied

    def batch(shown: Tensor, labelled: LabelledSet, n: int) -> Tensor:
        """(n,) picks of the pool among the rows that are shown, all labelled ones of which are."""
        part, known, given = _arranged(scores, labelled, options, keys, shown)

        def propose(n: int) -> Tensor:
            own_options = {key: value for key, value in given.items() if key in own}
            return torch.as_tensor(chosen.function(part, known, n, rng, **own_options)).cpu()

        if wrapper is None:
            picks = propose(n)
        else:
            wrapping_options = {key: value for key, value in given.items() if key in wrapping}
            picks = wrapper(propose, part, known, n, rng, **wrapping_options)
        _check_picks(name, picks, n, known.unlabelled(len(part)))
        return shown[picks]

    if per_group is None or groups is None:
        return batch(shown, labelled, size)
    begun = torch.empty(0) if begun is None else begun
    return spread_over_groups(batch, shown, labelled, scores.predicted, groups.cpu(), size, per_group, begun)


def _arranged(
    scores: PoolScores, labelled: LabelledSet, options: dict[str, Any], keys: Keys, shown: Tensor
) -> tuple[PoolScores, LabelledSet, dict[str, Any]]:
    """Scores, labels and options with a value per row for `shown`, in this order, and classes in that of their keys.

    Labels come in this order too: which of them somebody gave first means nothing.
    """
    features, passes = scores.features, scores.stochastic_probs
    some: Rows = View(features, shown)
    if isinstance(features, Tensor) and len(shown) * features.shape[1] * features.element_size() <= COPIED:
        some = features.index_select(0, shown.to(features.device))
    classes = keys.classes.argsort()
    number, place = classes.argsort(), torch.full((len(scores),), -1)
    place[shown] = torch.arange(len(shown))

    def columns(probs: Tensor) -> Tensor:
        rows, order = shown.to(probs.device), classes.to(probs.device)
        copy = probs.new_empty((*probs.shape[:-2], len(rows), len(order)))
        for part in chunks(len(rows), probs.shape[:-2].numel() * len(order)):  # one copy is made, not two
            copy[..., part, :] = probs.index_select(-2, rows[part]).index_select(-1, order)
        return copy

    own_keys = Keys(scores.keys.rows[shown], scores.keys.classes[classes])
    part = PoolScores(some, columns(scores.probs), None if passes is None else columns(passes), own_keys)
    positions = place[labelled.positions.cpu()]
    order = positions.argsort()
    known = LabelledSet(positions[order], number[labelled.labels.cpu()][order])
    truth = options.get("labels")
    if truth is not None and are_classes(truth, scores):  # else the oracle refuses them
        options = {**options, "labels": number[truth.cpu()]}
    per_row = {k: v[shown] for k, v in options.items() if isinstance(v, Tensor) and v.ndim and len(v) == len(scores)}
    return part, known, {**options, **per_row}


def check_options(chosen: Strategy, balance: str | None, options: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Names of the options of a strategy and of a balance.

    Raises:
        ConfigError: one of `options` is neither's, or is not what its annotation declares.
    """
    if balance is not None and balance not in tuple(BALANCES):
        raise unknown_name("balance", balance, BALANCES)
    own, wrapping = _hints(chosen.function, 4), _hints(BALANCES[balance], 5) if balance else {}
    known = {"subsample": Count | None, "per_group": Count | None, **own, **wrapping}
    what = f"option of strategy {chosen.name!r}" + (f" with balance {balance!r}" if balance else "")
    for option, value in options.items():
        if option not in known:
            raise unknown_name(what, option, known)
        check(f"{what} {option!r}", value, known[option])
    return set(own), set(wrapping)


def check_groups(per_group: int | None, grouped: bool) -> None:
    """Refuse a bound on images of a group where nothing says which images are of one.

    Raises:
        ConfigError: there is one.
    """
    if per_group is not None and not grouped:
        raise ConfigError("per_group: nothing says which images are of one group; give groups, in a manifest a column.")


def _hints(function: Callable[..., Tensor], given: int) -> dict[str, Any]:
    """Annotation of each parameter after the first `given` ones, None where it has none."""
    hints = get_type_hints(function, include_extras=True)
    return {name: hints.get(name) for name in tuple(signature(function).parameters)[given:]}


def _check_labelled(labelled: LabelledSet, scores: PoolScores) -> None:
    pair = labelled.positions, labelled.labels
    whole = all(isinstance(one, Tensor) and one.dtype == torch.int64 and one.ndim == 1 for one in pair)
    if not whole or len(pair[0]) != len(pair[1]):
        what = " and ".join(map(brief, pair))
        raise ConfigError(f"labelled positions and labels must be two int64 vectors of one length, got {what}.")
    positions, labels = (one.cpu() for one in pair)
    pool, classes = scores.probs.shape
    values, counts = positions.unique(return_counts=True)
    faults = {
        f"labelled position {{}} is outside the pool of {pool} rows.": positions[(positions < 0) | (positions >= pool)],
        "position {} is labelled twice.": values[counts > 1],
        f"label {{}} is outside the {classes} classes of the probs.": labels[(labels < 0) | (labels >= classes)],
    }
    for fault, wrong in faults.items():
        if len(wrong):
            raise ConfigError(fault.format(int(wrong[0])))


def _check_rows(what: str, *passes: Rows, probabilities: bool = True) -> None:
    """ConfigError for numbers that are not finite, and for rows that are no probabilities where they must be.

    Logits would be ranked, and the entropy of a negative number is NaN.
    """
    for rows in passes:
        for part in chunks(*rows.shape):
            block = rows[part]
            # A sum is finite only if all its terms are: one cheap pass when all is well.
            right = _are_probabilities(block) if probabilities else block.sum().isfinite()
            if right.all():
                continue
            finite = torch.isfinite(block).all(1)
            wrong = ~finite if not finite.all() or not probabilities else ~right
            for at in wrong.nonzero()[:1, 0].tolist():
                values, where = block[at].float(), f"{what} of pool row {part.start + at}"
                if not finite[at]:
                    raise ConfigError(f"{where} are not finite: the model diverged or this image is broken.")
                raise ConfigError(
                    f"{where} are no probabilities: they sum to {float(values.sum()):.4g}, and the least is "
                    f"{float(values.min()):.4g}. They must be at least 0 and sum to 1; of logits, give their softmax."
                )


def _are_probabilities(block: Tensor) -> Tensor:
    """(N,) whether each row of (N, C) is at least 0 and sums to 1; not where a number is NaN or infinite."""
    sums = block.sum(1, dtype=torch.promote_types(block.dtype, torch.float32))
    return (block.amin(1) >= 0) & ((sums - 1).abs() <= ROUNDED)


def _check_picks(name: str, picks: Tensor, size: int, unlabelled: Tensor) -> None:
    right = picks.dtype == torch.int64 and picks.shape == (size,) and len(picks.unique()) == size
    if not right or not torch.isin(picks, unlabelled, assume_unique=True).all():
        raise PalkitError(
            f"strategy {name!r} must return {size} int64 positions, unlabelled and each once, got {brief(picks)}."
        )
