"""palkit: parameter-efficient active learning for vision foundation models.

    picks = palkit.select("badge", features, probs, labelled={17: 2, 404: 0}, batch_size=10, seed=0)
    for round in palkit.run(dataset="path/to/slides", adapter="lora", strategy="uherding", seed=1): print(round.metrics)
    session = palkit.open_session("path/to/slides", "ana", classes=["tumour", "stroma"])
    session.model().predict("path/to/more/slides")

Names are imported when they are first used: torch and the rest take seconds.
"""

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palkit.config import ExperimentConfig, config_from_dict
    from palkit.data import DATASETS, ImagePool, dataset, load_dataset
    from palkit.errors import PalkitError
    from palkit.experiments.classifier import Classifier
    from palkit.experiments.experiment import Run, run
    from palkit.experiments.results import read_results
    from palkit.experiments.sweep import load_sweep
    from palkit.labelling.session import Session, load_model, open_session
    from palkit.models.adapters.registry import ADAPTERS, adapter
    from palkit.strategies.arrays import select
    from palkit.strategies.registry import STRATEGIES, strategy
    from palkit.strategies.scores import LabelledSet, PoolScores
    from palkit.widgets.explorer import Explorer
    from palkit.widgets.grid import ImageGrid
    from palkit.widgets.labeller import Labeller

__version__ = "0.1.0"

HOMES = {
    "config": ("ExperimentConfig", "config_from_dict"),
    "data": ("DATASETS", "ImagePool", "dataset", "load_dataset"),
    "errors": ("PalkitError",),
    "experiments.classifier": ("Classifier",),
    "experiments.experiment": ("Run", "run"),
    "experiments.results": ("read_results",),
    "experiments.sweep": ("load_sweep",),
    "labelling.session": ("Session", "load_model", "open_session"),
    "models.adapters.registry": ("ADAPTERS", "adapter"),
    "strategies": ("STRATEGIES", "strategy"),
    "strategies.arrays": ("select",),
    "strategies.scores": ("LabelledSet", "PoolScores"),
    "widgets.explorer": ("Explorer",),
    "widgets.grid": ("ImageGrid",),
    "widgets.labeller": ("Labeller",),
}
__all__ = [
    "ADAPTERS", "DATASETS", "STRATEGIES", "Classifier", "ExperimentConfig", "Explorer", "ImageGrid", "ImagePool",
    "LabelledSet", "Labeller", "PalkitError", "PoolScores", "Run", "Session", "adapter", "config_from_dict",
    "dataset", "load_dataset", "load_model", "load_sweep", "open_session", "read_results", "run", "select", "strategy",
]  # fmt: skip
if sys.platform == "win32" or importlib.util.find_spec("resource") is None:  # Unix alone has it, and it is needed
    raise ImportError(
        "palkit runs on Linux and macOS, and not on Windows itself; there, use the Windows Subsystem for Linux: run "
        "`wsl --install`, and install palkit in it."
    )


def __getattr__(name: str) -> Any:
    """A public name, imported from where it lives when it is first asked for."""
    home = next((home for home, names in HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'palkit' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"palkit.{home}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "palkit").partition(".")[0] == "palkit":
            raise
        extra = "lab" if home.startswith("widgets") else "study"
        raise ImportError(
            f"palkit.{name} needs {error.name}, which is not installed: pip install 'palkit[{extra}]'"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
