"""Execute notebooks headless. Imports nothing heavy: the processes of a sweep load this module only."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

QUIET_KERNEL = ["--IPKernelApp.log_level=50"]  # else every kernel start prints a warning to the console


def execute_notebook(source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
    """Execute a notebook with papermill; the target holds the outputs even if a cell fails.

    Args:
        source: notebook with a cell tagged `parameters`.
        target: where the executed copy goes, atomically.
        parameters: values for that cell.

    Raises:
        papermill.PapermillExecutionError: a cell failed.
    """
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    target.parent.mkdir(parents=True, exist_ok=True)
    running = target.with_name(f".running-{os.getpid()}-{target.name}")
    try:
        papermill.execute_notebook(
            str(source),
            str(running),
            dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            cwd=str(source.parent),
            extra_arguments=QUIET_KERNEL,
        )
    finally:
        if running.exists():
            os.replace(running, target)


def try_notebook(
    source: Path, target: Path, parameters: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[float, str | None]:
    """`execute_notebook` under some environment variables: seconds it took, and what went wrong, or None."""
    began = time.perf_counter()
    os.environ.update(environment)
    error = None
    try:
        execute_notebook(source, target, parameters)
    except Exception as exception:  # whatever stopped one run must not stop the sweep
        name = getattr(exception, "ename", type(exception).__name__)
        error = f"{name}: {getattr(exception, 'evalue', exception)}"
    return time.perf_counter() - began, error
