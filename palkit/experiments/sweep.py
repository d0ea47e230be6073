"""Grids of runs: what a sweep file says, and which runs it stands for."""

import hashlib
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from palkit.config import ExperimentConfig, config_from_dict, nest, plain
from palkit.errors import ConfigError, DataError, PalkitError, WeightsError, brief, unknown_name
from palkit.experiments.experiment import resolve
from palkit.experiments.runs import RunDirectory
from palkit.experiments.setting import looked_at_once
from palkit.storage.checks import Checked, Probability, checked
from palkit.storage.files import REPOSITORY, runs_dir
from palkit.storage.plain_yaml import read_yaml
from palkit.storage.plugins import load_plugins

SWEEPS = REPOSITORY / "notebooks" / "sweeps"
SUFFIXES = (".yaml", ".yml")
KEYS = {
    "base": dict[str, Any],
    "grid": dict[str, Annotated[list[Any], Field(min_length=1)]],
    "variants": dict[Any, dict[str, Any] | None],
    "exclude": list[Annotated[dict[str, Any], Field(min_length=1)]],
    "stop": dict[str, Any],
}
NAME_MAX = 60  # characters of a sweep's name in that of its folder: a name may have 255 bytes
VARIANT = "variant"  # its name, where points are left out
RUNS = 100_000  # of a sweep: a list of them is made before the first one begins


@dataclass(frozen=True)
class Stop(Checked):
    """When the labelling that a run simulates may stop; the run itself goes on, so that rules can be judged by it.

    Attributes:
        accuracy: of which it is to be guaranteed that the model has at least so much.
        gain: share that another round must be able to bring, or none is worth its labels.
        tests: share of all labels that go to test images.
    """

    part: ClassVar[str] = "stop."
    accuracy: tuple[Probability, ...] = ()
    gain: Probability | None = None
    tests: Probability = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.accuracy and self.gain is None:
            raise ConfigError("stop: give accuracy, a list of targets, or gain, or both.")


@dataclass(frozen=True)
class Sweep:
    """A grid of configs.

    Attributes:
        name: how it is called in messages and in the names of its folders.
        base: config values that all runs share; dotted keys allowed.
        grid: config key -> values, for their Cartesian product.
        variants: name -> config values; the sweep is every variant with every point of the grid.
        file: that it was read from; None for a sweep made in Python.
        exclude: points of the grid to leave out: keys of it, or `variant`, with a value, or a list of values, each.
        stop: rules that its study tries on every run, see `palkit.studies.deciding.stops_of`.
    """

    name: str
    base: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: Path | None = None
    exclude: tuple[Mapping[str, Any], ...] = ()
    stop: Stop | None = None

    @property
    def is_profile(self) -> bool:
        """Whether it is one of `notebooks/sweeps/`, or was made in Python; its name then tells it from all others."""
        known = profile(self.name)
        return self.file is None or (known is not None and self.file.resolve() == known.resolve())

    @property
    def studies(self) -> Path:
        """Folder of its results, figures, executed notebooks and report.

        That of a file elsewhere is called after the whole path, because two projects may each have their `sweep.yaml`.
        """
        if self.file is None or self.is_profile:
            return runs_dir() / "studies" / self.name
        stem = re.sub(r"[^\w.-]+", "-", self.file.stem)[:NAME_MAX]
        return runs_dir() / "studies" / f"{stem}-{hashlib.sha256(os.fsencode(self.file.resolve())).hexdigest()[:8]}"

    @property
    def conclusion(self) -> Path:
        """File beside it where a person may write down what follows from it."""
        return (self.file or SWEEPS / f"{self.name}.yaml").with_suffix(".md")

    def parameters(self) -> list[tuple[str | None, dict[str, Any]]]:
        """Name of the variant (None if there are none) and plain values of every run, in order."""
        variants: list[tuple[str | None, Mapping[str, Any]]] = [*self.variants.items()] or [(None, {})]
        points = [dict(zip(self.grid, point, strict=True)) for point in itertools.product(*self.grid.values())]
        return [
            (name, nest({**self.base, **point, **variant}))
            for (name, variant), point in itertools.product(variants, points)
            if not any(_matches({VARIANT: name, **point}, excluded) for excluded in self.exclude)
        ]


def _matches(point: Mapping[str, Any], excluded: Mapping[str, Any]) -> bool:
    """Whether a point of a grid has one of the values given for each key."""
    return all(point[key] in _listed(values) for key, values in excluded.items())


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def profile(name: str) -> Path | None:
    """File of a name in `notebooks/sweeps/`, if there is one."""
    paths = (SWEEPS / f"{name}{suffix}" for suffix in SUFFIXES)
    # Unlike the method, it takes a name that no file can have.
    return next((path for path in paths if os.path.isfile(path)), None)


def sweep_file(name: str | Path) -> Path:
    """The file itself if its suffix is `.yaml` or `.yml`, else the file of that name in `notebooks/sweeps/`.

    Raises:
        ConfigError: no such file.
    """
    path = Path(name)
    if path.suffix.lower() in SUFFIXES:
        if os.path.isfile(path):
            return path
        raise ConfigError(f"there is no sweep file {brief(str(name))}. Give the path of a YAML file that exists.")
    known = profile(str(name))
    if known is not None:
        return known
    for suffix in SUFFIXES:
        if os.path.isfile(f"{name}{suffix}"):
            raise ConfigError(
                f"there is no sweep {brief(str(name))} in {SWEEPS}; for the file here, give {name}{suffix}."
            )
    raise unknown_name("sweep", str(name), {file.stem for file in SWEEPS.glob("*.y*ml")})


def load_sweep(name: str | Path) -> Sweep:
    """The sweep of a YAML file, or of a name in `notebooks/sweeps/`.

    Args:
        name: with the suffix `.yaml` or `.yml` it is a file, even if a sweep in `notebooks/sweeps/` has that name.

    Raises:
        ConfigError: no such file, not valid YAML, or fields that do not fit.

    >>> sorted(load_sweep("quick").grid)
    ['adapter.name', 'seed', 'strategy']
    """
    path = sweep_file(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Save it as UTF-8 text.") from error
    content = read_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping with the keys base and grid.")
    for key in content:
        if key not in KEYS:
            raise unknown_name(f"key in {path.name}", key, KEYS)
    given = {key: hint() if content.get(key) is None else content[key] for key, hint in KEYS.items()}
    base, grid, variants, exclude, stop = (checked(f"{path}: {key}", given[key], hint) for key, hint in KEYS.items())
    variants = {str(name): values or {} for name, values in variants.items()}
    excludable = {VARIANT: [*variants], **grid}
    for key, values in (item for point in exclude for item in point.items()):
        if key not in excludable:
            raise unknown_name(f"key of exclude in {path.name}", key, excludable)
        for value in _listed(values) or [None]:
            if value not in excludable[key]:
                raise unknown_name(f"value of exclude.{key} in {path.name}", value, map(str, excludable[key]))
    for part in (base, *variants.values()):  # figures want to know them too
        load_plugins(checked(f"{path}: plugins", part.get("plugins", ()), tuple[str, ...]))
    runs = math.prod(map(len, grid.values())) * max(1, len(variants))
    if runs > RUNS:
        raise ConfigError(f"{path}: the grid has {runs:,} runs; {RUNS:,} are the most. Divide it into several sweeps.")
    for key in stop:
        if key not in (names := [one.name for one in fields(Stop)]):
            raise unknown_name(f"key of stop in {path.name}", key, names)
    rules = None if content.get("stop") is None else Stop(**stop)
    return Sweep(path.stem, base, grid, variants, path.absolute(), tuple(exclude), rules)


@dataclass(frozen=True)
class Task:
    """One run of a sweep: its notebook parameters and where it goes.

    Attributes:
        parameters: of the run notebook, settled.
        config: None if the parameters do not make a valid config; the run then fails with the reason.
        directory: of the run.
        variant: its name, if the sweep has variants.
        absent: why its data or weights cannot be had; such a run is not begun.
    """

    parameters: Mapping[str, Any]
    config: ExperimentConfig | None
    directory: RunDirectory
    variant: str | None = None
    absent: str | None = None

    @property
    def attempts(self) -> Path:
        """File that counts how often a process has begun this run; gone when one came to an end with it."""
        return self.directory.path / ".attempts"

    @property
    def is_complete(self) -> bool:
        """Whether all is there; a run whose files are damaged is not complete, and says so itself when it is begun."""
        try:
            return self.config is not None and self.directory.is_complete(self.config.rounds)
        except DataError:
            return False

    @property
    def label(self) -> str:
        """What tells this run from its siblings."""
        if self.config is None:
            return str(dict(self.parameters))
        config = self.config
        strategy = f"{config.strategy} + {config.balance}" if config.balance else config.strategy
        parts = [config.dataset, config.adapter.name, strategy, f"seed {config.seed}"]
        return " / ".join([*parts, self.variant] if self.variant else parts)


@looked_at_once()
def plan(sweep: Sweep, device: str | None = None) -> list[Task]:
    """The tasks of a sweep, in grid order. A bad config becomes a task that will fail and say why.

    Raises:
        ConfigError: two runs of the grid have the same config.
    """
    tasks = []
    absent: dict[Hashable, PalkitError] = {}  # a server that does not answer is asked once
    for variant, parameters in sweep.parameters():
        try:
            config = config_from_dict(parameters)
            inputs = (config.dataset, config.pool_size, config.backbone)
            if inputs in absent:
                raise absent[inputs]
            # Settled here: workers have fewer threads, and could measure and choose otherwise.
            resolved = resolve(config, device)
            tasks.append(Task(plain(resolved.config), config, resolved.directory, variant))
        except PalkitError as error:
            reason = None
            if isinstance(error, DataError | WeightsError):
                absent[inputs], reason = error, f"{type(error).__name__}: {error}"
            digest = hashlib.sha256(repr(parameters).encode()).hexdigest()
            tasks.append(Task(parameters, None, RunDirectory("invalid", digest[:16]), variant, reason))
    runs = Counter(task.directory.run for task in tasks)
    for task in tasks:
        if runs[task.directory.run] > 1:
            raise ConfigError(f"sweep {sweep.name!r} holds the same run twice: {task.label}.")
    return tasks
