"""The built wheel, away from the checkout: the core without the extras, and all of palkit with them."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pandas as pd
import pytest
import yaml

from palkit.storage.files import REPOSITORY, cache_dir

CORE = ("torch", "numpy", "scipy", "psutil", "filelock", "rich")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty working directory beside an environment `env` with nothing but the wheel."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # setuptools leaves things where it builds
    ignored = shutil.ignore_patterns("__pycache__", "executed", ".ipynb_checkpoints")
    shutil.copytree(REPOSITORY / "palkit", source / "palkit", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(place), str(source)], check=True, env=alone)
    venv.create(place / "env", with_pip=False)
    (wheel,) = place.glob("palkit-*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(place / "env"), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True, env=alone)
    (place / "work").mkdir()
    return place / "work"


def in_it(home: Path, *command: str, path: str = "", code: int = 0) -> str:
    """What a command says that runs there, with other packages to be found in `path`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PALKIT_")}
    environment = {**own, "PYTHONPATH": path, "PALKIT_CACHE": str(cache_dir())}
    done = subprocess.run(
        [str(home.parent / "env/bin" / command[0]), *command[1:]], cwd=home, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def test_the_core_selects_and_says_which_extra_is_missing(home: Path, tmp_path: Path) -> None:
    installed = Path(sysconfig.get_paths()["purelib"])
    for name in CORE:  # and what these need; but nothing of the extras
        for found in installed.glob(f"{name}*"):
            (tmp_path / found.name).symlink_to(found)
    for name in ("typing_extensions.py", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "pygments",
                 "markdown_it", "mdurl", "nvidia", "triton", "cuda"):  # fmt: skip
        if (installed / name).exists():
            (tmp_path / name).symlink_to(installed / name)
    code = (
        "import palkit\n"
        "print(palkit.select('coreset', [[0.0], [1.0], [5.0]], labelled={0: 1}, batch_size=1))\n"
        "try:\n    palkit.run(dataset='digits')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    said = in_it(home, "python", "-c", code, path=str(tmp_path))
    assert "[2]" in said
    assert "pip install 'palkit[study]'" in said


def test_a_sweep_and_its_study_away_from_the_checkout(home: Path, tiny_run: dict) -> None:
    installed = sysconfig.get_paths()["purelib"]
    base = {**tiny_run, "dataset": "fashion_mnist", "pool_size": 40, "rounds": 2, "adapter": "linear_probe"}
    (home / "mine.yaml").write_text(yaml.safe_dump({"base": base, "grid": {"strategy": ["margin"]}}))
    where = in_it(home, "python", "-c", "import palkit; print(palkit.__file__)", path=installed)
    assert Path(where.strip()).is_relative_to(home.parent / "env")
    in_it(home, "palkit", "sweep", "mine.yaml", "--jobs", "1", path=installed)
    (table,) = home.glob("runs/studies/mine-*/rounds.parquet")
    assert len(pd.read_parquet(table)) == 2
    (run,) = (path.parent for path in home.glob("runs/fashion_mnist/*/config.json"))
    assert (run / "notebook.ipynb").exists()
    code = "import sys; from palkit.cli import main; main(sys.argv[1:4] + ['out.csv']); sys.exit(main(sys.argv[4:]))"
    commands = ["predict", str(run), "digits", "reproduce", "quick"]
    assert "there are no results" in in_it(home, "python", "-c", code, *commands, path=installed, code=1)
    assert len(pd.read_csv(home / "out.csv")) == 1797
