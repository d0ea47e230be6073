"""Where palkit runs: what Windows is told, and processes as macOS starts them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from palkit.storage.files import REPOSITORY

SWEEP = """
import json
import multiprocessing
import sys

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")  # as on macOS: a process begins with nothing of its parent's memory
    from rich.console import Console

    from palkit.experiments.dispatch import DispatchConfig, run_sweep
    from palkit.experiments.sweep import Sweep

    base, how = map(json.loads, sys.argv[1:])
    outcomes = run_sweep(Sweep("spawned", base, {"seed": [0, 1]}), DispatchConfig(jobs=2, **how), console=Console())
    sys.exit("; ".join(outcome.error for outcome in outcomes if outcome.error) or None)
"""


@pytest.mark.parametrize(
    "windows",
    [
        "sys.platform = 'win32'",
        "sys.modules['resource'] = None",  # an import of it fails then, as where there is none
    ],
)
@pytest.mark.parametrize("module", ["palkit", "palkit.labelling.session", "palkit.cli"])
def test_windows_is_told_in_a_sentence(windows: str, module: str) -> None:
    code = f"import sys; {windows}; import {module}"
    told = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert told.returncode
    assert told.stderr.splitlines()[-1] == (
        "ImportError: palkit runs on Linux and macOS, and not on Windows itself; there, use the Windows Subsystem for "
        "Linux: run `wsl --install`, and install palkit in it."
    )


@pytest.mark.campaign
@pytest.mark.parametrize(
    "how",
    [
        {"notebooks": True},
        pytest.param(
            {"notebooks": False, "engine": "ray"},
            marks=pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
        ),
    ],
    ids=["processes and kernels", "ray"],
)
def test_a_sweep_of_two_jobs_where_processes_are_spawned(
    how: dict[str, Any], tiny_run: dict[str, Any], tmp_path: Path
) -> None:
    probe = {"adapter": {"name": "linear_probe"}, "training": {"epochs": 1, "head_epochs": 1, "views": 1}}
    base = {**tiny_run, **probe, "pool_size": 60, "batch_size": 8, "rounds": 1, "strategy": "random"}
    (tmp_path / "spawned.py").write_text(SWEEP)
    told = subprocess.run(
        [sys.executable, "spawned.py", json.dumps(base), json.dumps(how)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    tables = [pd.read_parquet(path) for path in (tmp_path / "runs").rglob("rounds.parquet")]
    assert [table["labels"].tolist() for table in tables] == [[8], [8]]
    assert len(list((tmp_path / "runs").rglob("notebook.ipynb"))) == 2 * how["notebooks"]
