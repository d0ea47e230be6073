"""The config of a run: every choice that decides what it computes, from plain values and back."""

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from palkit.errors import ConfigError, brief, unknown_name
from palkit.models.adapters import AdapterConfig
from palkit.models.backbones import BackboneConfig
from palkit.models.training import TrainingConfig
from palkit.scoring.engine import ScoringConfig
from palkit.storage.checks import Checked, Count, checked
from palkit.storage.plain_yaml import read_yaml
from palkit.storage.plugins import load_plugins
from palkit.strategies.registry import STRATEGIES, check_options, get_strategy
from palkit.strategies.scores import Dropout

STOCHASTIC = {"passes": "passes", "dropout_rate": "rate", "dropout_on": "on"}  # option -> field of `Dropout`


@dataclass(frozen=True)
class ExperimentConfig(Checked):
    """Everything that decides what a run computes.

    Attributes:
        dataset: name, folder, manifest (CSV or Parquet) or `hf:` and a data set of the Hugging Face Hub.
        pool_size: only so many pool images take part, drawn by their names; None takes all, "auto" 1,500, or all if
            there are fewer.
        backbone, adapter, training, scoring: see there.
        strategy: which images to buy.
        strategy_options: keyword options of the strategy, `subsample`, `per_group`, and, for a strategy that needs
            stochastic passes, `passes`, `dropout_rate` and `dropout_on` instead of its own.
        balance: None or "pcb".
        initial: cold-start strategy that buys the first batch.
        batch_size: labels per round; None means one per class, the paper's C.
        rounds: including round 0, which fits on the initial batch.
        evaluate_on: "test", or "val" while choosing hyper-parameters.
        seed: of the initial batch, adapter initialisation, augmentation, order and strategy.
        plugins: modules to import first, which register strategies, adapters or data sets of their own.

    >>> ExperimentConfig(dataset="digits", strategy="badge").rounds
    7
    """

    dataset: str = "fashion_mnist"
    pool_size: Count | Literal["auto"] | None = "auto"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    strategy: str = "random"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    balance: str | None = None
    initial: str = "random"
    batch_size: Count | None = None
    rounds: Count = 7
    evaluate_on: Literal["test", "val"] = "test"
    seed: Annotated[int, Field(ge=0)] = 0
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dataset.strip():
            raise ConfigError(f"dataset {self.dataset!r}: give the name of a data set, a folder or a manifest.")
        load_plugins(self.plugins)
        strategy, options = get_strategy(self.strategy), dict(self.strategy_options)
        stochastic_passes(strategy.dropout, options)
        check_options(strategy, self.balance, options)
        try:
            json.dumps(options)
        except TypeError as error:
            raise ConfigError(f"strategy_options: {error}; configs are text. Give it to palkit.select.") from None
        starting = [name for name, one in STRATEGIES.items() if one.cold_start]
        if self.initial not in starting:
            raise ConfigError(f"initial: {unknown_name('cold-start strategy', self.initial, starting)}")


def config_from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Build a config from plain values; dotted keys reach into parts: `{"adapter.rank": 8}`.

    Raises:
        ConfigError: a key or a type that does not fit, with the nearest valid key.

    >>> config_from_dict({"adapter.name": "lora", "adapter.rank": 4}).adapter.rank
    4
    """
    nested = nest(values)
    if "plugins" in nested:  # parts of the config may name what they register
        load_plugins(checked("plugins", nested["plugins"], tuple[str, ...]))
    return _build(ExperimentConfig, nested)


def config_of(variables: Mapping[str, Any]) -> ExperimentConfig:
    """The config that the variables of a notebook say: those that are called as its fields.

    Args:
        variables: `globals()`.
    """
    fields = [field.name for field in dataclasses.fields(ExperimentConfig)]
    return config_from_dict({name: variables[name] for name in fields if name in variables})


def typed(key: str, text: str) -> Any:
    """The value of a config field as somebody types it: text is taken as it is where the field is one, else as YAML.

    So `2024`, `no`, `a: b` and `run #3` are names of folders. A shell has removed quotes already; if there are some
    left, they are part of the name only where such a file or folder is there. Nothing, `null` and `~` are None where a
    field may be that.

    Args:
        key: dotted.
        text: typed.

    Raises:
        ConfigError: it is not YAML, for a field that is no text.
    """
    hint: Any = ExperimentConfig
    for part in key.split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    named = any(dataclasses.is_dataclass(one) for one in options)  # a part may be given by its name alone
    if str not in options and not (named and not text.lstrip().startswith("{")):
        return read_yaml(text, f"{brief(f'{key}={text}')}: the value")
    if os.path.lexists(text):
        return os.path.abspath(text) if text.startswith("~") else text  # else it would be a home folder
    if type(None) in options and text in ("", "~", "null"):
        return None
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings.

    Raises:
        ConfigError: a key that is no text, or one below another that has a plain value.
    """
    nested: dict[str, Any] = {}
    for key, value in checked("the mapping of config fields", values, Mapping[str, Any]).items():
        *parents, leaf = key.split(".")
        target = nested
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise _both(parent, target)
        there = target.get(leaf)
        if isinstance(there, dict) and not isinstance(value, Mapping):
            raise _both(key, value)
        before = there if isinstance(there, dict) else {}
        target[leaf] = {**before, **value} if isinstance(value, Mapping) else value
    return nested


def _both(key: str, value: Any) -> ConfigError:
    return ConfigError(
        f"config field {brief(key)} is given as {brief(value)} and by parts. Give all of it by parts, as {key}.name."
    )


def _build(kind: type, values: Mapping[Any, Any], prefix: str = "") -> Any:
    """A config, or the part of it below a prefix, of these fields."""
    kinds = {field.name: field.type for field in dataclasses.fields(kind)}
    arguments = {}
    for name, value in values.items():
        if name not in kinds:
            dotted = [
                f"{one}.{field.name}"
                for one, part in kinds.items()
                if dataclasses.is_dataclass(part)
                for field in dataclasses.fields(part)
            ]
            raise unknown_name("config field", f"{prefix}{name}", [prefix + one for one in kinds], dotted)
        part = kinds[name]
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            if isinstance(value, str) and hasattr(part, "name"):
                value = {"name": value}
            value = _build(part, value, f"{name}.") if isinstance(value, Mapping) else value
        arguments[name] = value
    return kind(**arguments)


def stochastic_passes(dropout: Dropout | None, options: dict[str, Any]) -> Dropout | None:
    """How a strategy's stochastic passes are made, by its own values or by those among its options, which are removed.

    Raises:
        ConfigError: a value that does not fit.
    """
    if dropout is None:
        return None
    return dataclasses.replace(dropout, **{STOCHASTIC[key]: options.pop(key) for key in STOCHASTIC if key in options})


def runs_only(config: ExperimentConfig) -> None:
    """Check that a config asks for nothing that a run alone can do.

    Raises:
        ConfigError: it does.
    """
    if config.training.warm_start:
        raise ConfigError(
            "training.warm_start is for runs, which compute one round after the other: labelling sessions and the "
            "explorer fit any round by itself. Leave it out."
        )


def plain(config: ExperimentConfig) -> dict[str, Any]:
    """The config as JSON values, from which `config_from_dict` makes it again."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    # A run is called the same as before there were any.
    if not config.plugins:
        del values["plugins"]
    for name in ("pseudo_labels", "warm_start"):
        if not values["training"][name]:
            del values["training"][name]
    return values
