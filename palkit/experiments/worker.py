"""Work of a process of a sweep: one run after the other. Loads the network's libraries or papermill, as it needs."""

import os
import signal
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palkit.errors import DataNotice, TimeLimitError
from palkit.storage.files import REPOSITORY, write_text

RUN_NOTEBOOK = REPOSITORY / "notebooks" / "03_active_learning.ipynb"
TRACEBACK = "traceback.txt"
ATTEMPTS = 3  # what kills three processes is no accident

End = tuple[float, str | None]  # seconds it took, and what went wrong, or None


@dataclass(frozen=True)
class Job:
    """What a worker process needs to compute one run.

    Attributes:
        parameters: of the config, settled.
        folder: of the run.
        attempts: file that counts how often a process has begun it.
        environment: variables to set while it is computed, the device among them: with one job at a time, runs are
            computed in the main process.
        notebook: whether to execute the run notebook.
        threads: of the process.
        time_limit: seconds, or None.
    """

    parameters: Mapping[str, Any]
    folder: Path
    attempts: Path
    environment: Mapping[str, str]
    notebook: bool
    threads: int
    time_limit: float | None


def attempt_numbered(number: int, job: Job) -> tuple[int, End]:
    """Number and end of a job: ends come in any order."""
    return number, attempt(job)


def attempt(job: Job) -> End:
    """Compute a run in this process; it goes on after its last complete round, and again if its kernel dies."""
    began, error = time.perf_counter(), None
    warnings.filterwarnings("ignore", category=DataNotice)  # who planned the sweep has said it
    for number in range(begun_attempts(job.attempts), ATTEMPTS):
        write_text(job.attempts, str(number + 1))
        try:
            with _in_environment(job.environment):
                error = _execute(job) if job.notebook else _compute(job)
            (job.folder / TRACEBACK).unlink(missing_ok=True)
            break
        except Exception as failure:  # whatever stopped one run must not stop the sweep
            error = f"{type(failure).__name__}: {failure}"
            write_text(job.folder / TRACEBACK, traceback.format_exc())
            if not job.notebook or isinstance(failure, TimeLimitError):
                break
            from palkit.experiments.notebooks import stop_warm_kernel

            stop_warm_kernel()  # it died or does not answer: the next attempt gets another
    else:
        error = (
            f"given up after {ATTEMPTS} attempts, each of which ended with its process"
            f"{f' ({error})' if error else ''}. Mostly memory is short: take fewer jobs at a time."
        )
    job.attempts.unlink(missing_ok=True)
    return time.perf_counter() - began, error


def begun_attempts(attempts: Path) -> int:
    """How often a process has begun a run and not come to an end with it."""
    try:
        return int(attempts.read_text())
    except (FileNotFoundError, ValueError):  # another sweep of the same run may have ended with it
        return 0


def _execute(job: Job) -> str | None:
    """What a cell ended with if it failed."""
    from papermill import PapermillExecutionError

    from palkit.experiments.notebooks import execute_notebook

    try:
        execute_notebook(
            RUN_NOTEBOOK,
            job.folder / "notebook.ipynb",
            job.parameters,
            environment=job.environment,
            folder=Path.cwd(),
            warm=True,
            time_limit=job.time_limit,
        )
    except PapermillExecutionError as failure:
        return f"{failure.ename}: {failure.evalue}"
    return None


def _compute(job: Job) -> str | None:
    import torch

    from palkit.config import config_from_dict
    from palkit.experiments.experiment import rounds

    threads = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        with _alarm(job.time_limit):
            deque(rounds(config_from_dict(job.parameters)), maxlen=0)
    finally:
        torch.set_num_threads(threads)
    return None


@contextmanager
def _in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a while; the others stay where they are, since threads of this process read them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise TimeLimitError in this process after so many seconds."""

    def over(*_: object) -> None:
        raise TimeLimitError(f"stopped after the time limit of {seconds:g} s")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
