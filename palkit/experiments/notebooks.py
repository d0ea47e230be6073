"""Headless execution of notebooks, in a kernel that stays warm from one to the next. Imports nothing heavy."""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import CellTimeoutError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.utils import merge_kwargs, remove_args

from palkit.errors import TimeLimitError
from palkit.storage.files import TEMPORARY, move_into_place, storing

KERNEL = "python3"
WARM = "palkit-warm"  # our engine's name in papermill
QUIET_KERNEL = ["--IPKernelApp.log_level=50"]  # else every kernel start prints a warning to the console
# What a kernel reads when it starts and cannot be told later.
FIXED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
FOLDERS = ("PALKIT_RUNS", "PALKIT_CACHE")
# Names, figures and counters of the notebook before go; modules, data and backbones that are loaded stay.
RESET = """
get_ipython().reset(new_session=True)
_environ = __import__("os").environ
for _name in [name for name in _environ if name.startswith("PALKIT_")]:
    del _environ[_name]
_environ.update({environment!r})
if "matplotlib.pyplot" in __import__("sys").modules:
    __import__("matplotlib.pyplot").pyplot.close("all")
"""


class _Warm:
    """The kernel that this process keeps, if there is one."""

    manager: AsyncKernelManager | None = None
    circumstances: tuple[str, ...] = ()

    def get(self, kernel_name: str) -> AsyncKernelManager:
        """The kernel; a new one if there is none, it died, or it was started elsewhere or with other threads."""
        wanted = (kernel_name, os.getcwd(), *(os.environ.get(name, "") for name in FIXED_VARIABLES))
        if self.manager is None or self.circumstances != wanted or not run_sync(self.manager.is_alive)():
            self.stop()
            self.manager, self.circumstances = AsyncKernelManager(kernel_name=kernel_name), wanted
        return self.manager

    def stop(self) -> None:
        """End the kernel, whatever it is doing."""
        manager, self.manager = self.manager, None
        if manager is not None and manager.has_kernel:
            with suppress(RuntimeError, OSError):  # it may be dead already
                run_sync(manager.shutdown_kernel)(now=True)


_warm = _Warm()


def stop_warm_kernel() -> None:
    """End the kernel that this process keeps, if there is one."""
    _warm.stop()


class _Client(PapermillNotebookClient):
    """papermill's client, for a kernel that may have executed another notebook before.

    Args:
        environment: variables that the kernel gets.
    """

    def __init__(self, *args: Any, environment: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.environment = dict(environment)

    def papermill_execute_cells(self) -> None:
        code = RESET.format(environment=self.environment)
        self.wait_for_reply(self.kc.execute(code, silent=True, store_history=False))
        super().papermill_execute_cells()


class WarmEngine(NBClientEngine):
    """papermill's engine, except that the kernel is kept for the next notebook of this process."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, start_timeout: int = 60, execution_timeout: None = None, **kwargs: Any
    ) -> None:
        options = remove_args(["input_path", "timeout", "startup_timeout"], **kwargs)
        settings = {"km": _warm.get(kernel_name), "startup_timeout": start_timeout, "kernel_name": kernel_name}
        client = _Client(nb_man, **merge_kwargs(options, **settings))
        try:
            client.execute()
        finally:
            if client.kc is not None:
                client.kc.stop_channels()


papermill_engines.register(WARM, WarmEngine)


def execute_notebook(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    warm: bool = False,
    time_limit: float | None = None,
    keep_going: bool = False,
) -> None:
    """Execute a notebook with papermill; the target holds the outputs even if a cell fails.

    Args:
        source: notebook with a cell tagged `parameters`.
        target: where the executed copy goes, atomically.
        parameters: values for that cell.
        environment: PALKIT variables that the kernel gets besides those of this process.
        folder: that it works in, which relative paths are relative to; None for that of the notebook.
        warm: use the kernel that this process keeps, which has loaded what earlier notebooks needed. It is emptied
            first; only caches inside modules can tell.
        time_limit: seconds for all cells; the kernel ends when they are over.
        keep_going: execute the cells after one that failed, too.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the first is named.
        nbclient.exceptions.DeadKernelError: the kernel died.
        TimeLimitError: the time was over.
    """
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it repeats what is raised
    target.parent.mkdir(parents=True, exist_ok=True)
    running = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    options: dict[str, Any] = {"engine_name": WARM, "environment": _variables(environment or {})} if warm else {}
    if time_limit is not None:
        end = time.monotonic() + time_limit
        options["timeout_func"] = lambda cell: max(0.01, end - time.monotonic())  # seconds that a cell may take
    try:
        papermill.execute_notebook(
            str(source),
            str(running),
            dict(parameters),
            kernel_name=KERNEL,
            progress_bar=False,
            cwd=str(folder or source.parent),
            extra_arguments=QUIET_KERNEL,
            allow_errors=keep_going,
            **options,
        )
    except CellTimeoutError as error:
        stop_warm_kernel()  # it is at work still
        raise TimeLimitError(f"stopped after the time limit of {time_limit:g} s") from error
    finally:
        if running.exists():
            with storing(target):
                move_into_place(running, target)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Our variables for a kernel, which works in another folder: paths in them are made absolute."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("PALKIT_")} | dict(environment)
    return ours | {name: str(Path(ours[name]).resolve()) for name in FOLDERS if name in ours}
