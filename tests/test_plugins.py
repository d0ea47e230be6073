"""Strategies, adapters and data sets from outside palkit: by a module's name in a config, or an installed package."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import palkit
from palkit.config import config_from_dict, config_of, plain
from palkit.data import ImagePool, StoredFeatures
from palkit.errors import ConfigError, DataNotice
from palkit.experiments.experiment import Run
from palkit.experiments.sweep import load_sweep
from palkit.storage import plugins
from palkit.storage.files import REPOSITORY, cache_dir

MODULE = '''
"""What a lab adds."""
import palkit
from palkit.models.adapters.registry import Tuner

@palkit.strategy("{0}_far", cold_start=True, measure="distance", style=("#123456", "*"))
def far(scores, labelled, batch_size, rng):
    free = labelled.unlabelled(len(scores))
    return free[scores.features[free].norm(dim=1).argsort(descending=True)[:batch_size]]

@palkit.adapter("{0}_norms", adapter_lr=1e-3)
def norms(backbone, config):
    for name, parameter in backbone.vit.named_parameters():
        parameter.requires_grad_("norm" in name)
    return Tuner()

@palkit.dataset("{0}_digits")
def digits():
    return palkit.load_dataset("digits")
'''


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """What is registered here is not there for other tests."""
    before = [(registry, dict(registry)) for registry in (palkit.STRATEGIES, palkit.ADAPTERS, palkit.DATASETS)]
    yield
    for registry, content in before:
        registry.clear()
        registry.update(content)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory, not on the path, with the module `lab_file`."""
    (tmp_path / "lab_file.py").write_text(MODULE.format("file"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("lab_file", "lab_bad"):
        sys.modules.pop(name, None)


def test_a_sweep_with_all_three_in_a_process_and_a_kernel_of_its_own(lab: Path, tiny_run: dict[str, Any]) -> None:
    base = {**tiny_run, "dataset": "file_digits", "pool_size": 60, "rounds": 2, "plugins": ["lab_file"]}
    grid = {"strategy": ["file_far", "random"], "adapter.name": ["file_norms"]}
    (lab / "mine.yaml").write_text(yaml.safe_dump({"base": base, "grid": grid}))
    # As the script `palkit` is started: without the working directory on the path.
    code = f"import sys; sys.path = [{str(REPOSITORY)!r}, *sys.path[1:]]; from palkit.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "sweep", "mine.yaml", "--jobs", "1"]
    environment = {**os.environ, "PALKIT_CACHE": str(cache_dir()), "PALKIT_RUNS": str(lab / "runs")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (table,) = (lab / "runs" / "studies").glob("*/rounds.parquet")
    rounds = pd.read_parquet(table)
    assert set(rounds["strategy"]) == {"file_far", "random"}
    assert set(rounds["dataset"]) == {"file_digits"}
    assert set(rounds["adapter"]) == {"file_norms"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an entry point, installed as pip does."""
    site = tmp_path / "site"
    info = site / "lab_package-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "lab_package.py").write_text(MODULE.format("package"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[palkit]\nanything = lab_package\n")
    monkeypatch.syspath_prepend(site)
    plugins._load_installed.cache_clear()


@pytest.mark.usefixtures("installed")
def test_an_installed_package_is_found_by_name() -> None:
    assert len(palkit.select("package_far", [[1.0], [3.0], [2.0]], batch_size=2)) == 2
    assert config_from_dict({"adapter": "package_norms"}).plugins == ()
    assert len(palkit.load_dataset("package_digits")) == 1797


def test_a_study_knows_how_a_strategy_looks(lab: Path) -> None:
    """Also in a process that knows the sweep's file alone, as the notebooks of a study do."""
    (lab / "mine.yaml").write_text(yaml.safe_dump({"base": {"plugins": ["lab_file"]}, "grid": {"seed": [0]}}))
    code = (
        "from palkit.experiments.sweep import load_sweep\nload_sweep('mine.yaml')\n"
        "from palkit.studies.plots import strategy_style\nprint(strategy_style('file_far'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=lab, check=True)
    assert done.stdout == "('#123456', '*')\n"
    (lab / "none.yaml").write_text("base: {plugins: [no_such_module]}")
    with pytest.raises(ConfigError, match="plugins: 'no_such_module': no module of that name"):
        load_sweep(lab / "none.yaml")


def test_a_session_of_features_from_outside_needs_no_adapter(lab: Path) -> None:
    @palkit.dataset("my_features")
    def my_features() -> ImagePool:
        rng, ids = np.random.default_rng(0), np.array([f"case {number}" for number in range(30)], dtype=object)
        images = StoredFeatures(rng.normal(size=(30, 4)), np.arange(30))
        return ImagePool("my_features", images, np.full(30, -1), np.full(30, "pool"), ids, ("a", "b"))

    session = palkit.open_session("my_features", "ana", folder=lab / "session")
    batch = session.propose(4)["id"].tolist()
    session.label(batch, ["a", "b", "a", "b"])
    assert session.fit().config["adapter"]["name"] == "linear_probe"
    with pytest.raises(ConfigError, match="adapter 'lora' adapts a network, and data set 'my_features' holds features"):
        palkit.open_session("my_features", "ana", folder=lab / "lora", **{"adapter.name": "lora"}).propose()


def test_a_model_predicts_without_the_strategy_that_chose_its_labels(lab: Path, tiny_run: dict[str, Any]) -> None:
    values = {**tiny_run, "adapter": "linear_probe", "strategy": "file_far", "plugins": ["lab_file"], "rounds": 1}
    saved = Run(config_from_dict(values)).model().save(lab / "model")
    del palkit.STRATEGIES["file_far"]
    sys.modules.pop("lab_file")
    (lab / "lab_file.py").unlink()
    assert len(palkit.load_model(saved).predict("digits")) == 1797


@pytest.mark.usefixtures("installed")
def test_a_broken_package_is_a_note_and_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "site" / "lab_package.py").write_text("1 / 0")
    sys.modules.pop("lab_package", None)
    with pytest.warns(DataNotice, match="lab_package.*fails while it is imported"):
        plugins.load_plugins()
    assert config_from_dict({"strategy": "margin"}).strategy == "margin"


def test_what_is_registered_says_what_figures_need(lab: Path) -> None:
    from palkit.studies.plots import strategy_style

    config = config_from_dict({"plugins": ["lab_file"], "strategy": "file_far"})
    assert strategy_style("file_far") == ("#123456", "*")
    assert plain(config)["plugins"] == ["lab_file"]
    assert "plugins" not in plain(config_from_dict({})), "hashes of runs without plugins stay"
    assert config_of({"seed": 3, "dataset": "digits", "anything": 1}) == config_from_dict(
        {"seed": 3, "dataset": "digits"}
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "plugins: 'lab_bad': no module of that name"),
        ("import nothing_like_it", "plugins: 'lab_bad' cannot be imported: No module named 'nothing_like_it'"),
        ("1 / 0", "plugins: 'lab_bad' fails while it is imported: ZeroDivisionError"),
        (
            'import palkit\n@palkit.strategy("badge")\ndef badge(scores, labelled, batch_size, rng): ...',
            "lab_bad registers strategy 'badge', which palkit.strategies.hybrid has",
        ),
        (
            'import palkit\n@palkit.adapter("lora", 1.0)\ndef lora(backbone, config): ...',
            "lab_bad registers adapter 'lora', which palkit.models.adapters.methods has",
        ),
        (
            'import palkit\n@palkit.dataset("digits")\ndef digits(): ...',
            "lab_bad registers data set 'digits', which palkit.data.embedded has",
        ),
    ],
)
def test_plugins_that_cannot_be_used(lab: Path, source: str | None, message: str) -> None:
    if source is not None:
        (lab / "lab_bad.py").write_text(source)
    with pytest.raises(ConfigError, match=message):
        config_from_dict({"plugins": ["lab_bad"]})
    with pytest.raises(ConfigError, match="plugins is 3"):
        config_from_dict({"plugins": 3})
    with pytest.raises(ConfigError, match="plugins: '' is no name of a module"):
        config_from_dict({"plugins": [""]})
