"""Strategies, adapters and data sets from outside: modules that register them, named in a config or installed.

A package offers its modules under the entry point group `palkit`::

    [project.entry-points.palkit]
    anything = "my_package.my_strategies"
"""

import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec

from palkit.errors import ConfigError, DataNotice, brief

GROUP = "palkit"
FORM = "Give the name as in Python's import, without .py."
FOLDER_VARIABLE = "PALKIT_PLUGINS"  # where a sweep was started, for its workers


def load_plugins(modules: Iterable[str] = ()) -> None:
    """Import the modules of installed packages that offer some, and those named here.

    Args:
        modules: dotted names, of installed packages or of files in the working directory. They run as any import does.

    Raises:
        ConfigError: one cannot be found, or fails while it is imported.
    """
    _load_installed()
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"plugins: {brief(name)} is no name of a module. {FORM}")
        _load(name, f"plugins: {brief(name)}")


def is_registered(name: object, registry: Collection) -> bool:
    """Whether a registry has a name, if need be after a look at what installed packages register.

    Args:
        name: anything, also what has no hash.
        registry: of strategies, adapters or data sets.
    """
    if name not in tuple(registry):
        load_plugins()
    return name in tuple(registry)


def refuse_taken(kind: str, name: str, there: Callable | None, function: Callable) -> None:
    """ConfigError if another module has registered a name; the same one may, as a cell that is executed again does.

    Args:
        kind: of what is registered, for the error.
        name: of it.
        there: registered under this name, if anything is.
        function: to be registered.
    """
    if there is not None and there.__module__ != function.__module__:
        raise ConfigError(f"{function.__module__} registers {kind} {name!r}, which {there.__module__} has: rename it.")


@cache
def _load_installed() -> None:
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.name
        try:
            _load(point.module, f"plugins: {point.module!r} of package {package!r}")
        except ConfigError as error:  # nobody has asked for it
            warnings.warn(str(error), DataNotice, stacklevel=2)


def _load(name: str, what: str) -> None:
    if name in sys.modules:
        return
    top = name.partition(".")[0]
    try:
        if find_spec(top) is None:  # a script of `palkit` does not look into the working directory, a notebook does
            sys.path += [os.environ.get(FOLDER_VARIABLE) or os.getcwd()]
        import_module(name)
    except ConfigError:
        raise
    except Exception as error:  # whatever the code of a plugin does wrong
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        problem = f" fails while it is imported: {type(error).__name__}: {error}"
        if missing and f"{name}.".startswith(f"{missing}."):
            problem = f": no module of that name is installed or lies in {os.getcwd()}. {FORM}"
        elif missing:
            problem = f" cannot be imported: {error}."
        raise ConfigError(f"{what}{problem}") from error
