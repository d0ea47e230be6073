"""What a run is: every choice that decides what it computes, from plain values and back."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from palkit.adapters import AdapterConfig
from palkit.backbones import BackboneConfig
from palkit.engine import ScoringConfig
from palkit.errors import ConfigError, unknown_name
from palkit.strategies.registry import STRATEGIES, check_options, get_strategy
from palkit.training import TrainingConfig

STOCHASTIC = ("passes", "dropout_rate", "dropout_on")


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides what a run computes.

    Attributes:
        dataset: name, folder or CSV manifest.
        pool_size: only the first so many pool images take part; None takes all.
        backbone, adapter, training, scoring: see there.
        strategy: which images to buy.
        strategy_options: keyword options of the strategy, `subsample`, and, for a strategy that needs
            stochastic passes, `passes`, `dropout_rate` and `dropout_on` instead of its own.
        balance: None or "pcb".
        initial: cold-start strategy that buys the first batch.
        batch_size: labels per round; None means one per class, the paper's C.
        rounds: including round 0, which fits on the initial batch.
        evaluate_on: "test", or "val" while choosing hyper-parameters.
        seed: of the initial batch, adapter initialisation, augmentation, order and strategy.
    """

    dataset: str = "fashion_mnist"
    pool_size: int | None = 1500
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    strategy: str = "random"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    balance: str | None = None
    initial: str = "random"
    batch_size: int | None = None
    rounds: int = 7
    evaluate_on: str = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        strategy = get_strategy(self.strategy)
        ours = {"subsample", *STOCHASTIC} if strategy.dropout else {"subsample"}
        check_options(strategy, self.balance, self.strategy_options.keys() - ours)
        if not get_strategy(self.initial).cold_start:
            raise unknown_name("cold-start strategy", self.initial, [n for n, s in STRATEGIES.items() if s.cold_start])
        for name, least in {"rounds": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)}: must be at least {least}.")
        for name in ("batch_size", "pool_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value}: must be at least 1.")
        if self.evaluate_on not in ("test", "val"):
            raise unknown_name("evaluate_on", self.evaluate_on, ["test", "val"])


def config_from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Build a config from plain values; dotted keys reach into parts: `{"adapter.rank": 8}`.

    Raises:
        ConfigError: a key or a type that does not fit, with the nearest valid key.
    """
    return _build(ExperimentConfig, nest(values), "")


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
        if isinstance(value, Mapping) and isinstance(target.get(leaf), dict):
            target[leaf].update(value)
        else:
            target[leaf] = dict(value) if isinstance(value, Mapping) else value
    return nested


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown_name("config field", prefix + name, [prefix + hint for hint in hints])
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, str) and "name" in typing.get_type_hints(hint):
            value = {"name": value}
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            arguments[name] = _build(typing.cast(type, hint), value, f"{prefix}{name}.")
        else:
            arguments[name] = _checked(prefix + name, value, hint)
    return kind(**arguments)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that the field declares, or a ConfigError that names both."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    if tuple[str, ...] in options and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if bool in options and isinstance(value, bool):
        return value
    if float in options and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if int in options and isinstance(value, int) and not isinstance(value, bool):
        return value
    if str in options and isinstance(value, str):
        return value
    if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
        return dict(value)
    wanted = " or ".join("nothing" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{name} is {value!r} ({type(value).__name__}); it must be {wanted}.")


def plain(config: ExperimentConfig) -> dict[str, Any]:
    """The config as JSON values, from which `config_from_dict` makes it again."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
