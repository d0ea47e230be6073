"""What a notebook costs beside the run in it: a fresh kernel for each run, and one that stays warm.

`python benchmarks/sweeps.py [--runs 20]` computes that many runs of a linear probe three times, one after the other:
without notebooks, with papermill's own engine, and as `palkit sweep` does it. The overhead is the difference
to the first, per run; the start of the one warm kernel is in it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from palkit.config import config_from_dict
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.experiment import rounds
from palkit.experiments.notebooks import execute_notebook, stop_warm_kernel
from palkit.experiments.sweep import Sweep, plan
from palkit.experiments.worker import RUN_NOTEBOOK

BASE: dict[str, Any] = {"pool_size": 300, "adapter": "linear_probe", "rounds": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    sweep = Sweep("overhead", BASE, {"seed": list(range(runs))})
    os.environ["PALKIT_DEVICE"] = "cpu"
    seconds = {}
    for way in ("without notebooks", "fresh kernels", "warm kernel"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["PALKIT_RUNS"] = folder
            tasks = plan(sweep)
            list(rounds(config_from_dict(BASE | {"seed": runs})))  # caches are filled, imports are done
            began = time.perf_counter()
            if way == "fresh kernels":
                for task in tasks:
                    execute_notebook(RUN_NOTEBOOK, Path(folder) / f"{task.directory.run}.ipynb", task.parameters)
            else:
                config = DispatchConfig(jobs=1, notebooks=way == "warm kernel")
                outcomes = run_sweep(sweep, config, console=Console(quiet=True))
                assert all(outcome.error is None for outcome in outcomes)
            seconds[way] = (time.perf_counter() - began) / runs
            assert all(task.is_complete for task in tasks)
    stop_warm_kernel()
    for way, each in seconds.items():
        print(f"{way:18} {each:6.2f} s per run, overhead {each - seconds['without notebooks']:5.2f} s")


if __name__ == "__main__":
    main()
