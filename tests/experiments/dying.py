"""Processes of a sweep that die. Imports little, as each of them is started to be killed."""

import os
import signal

from palkit.experiments.worker import ATTEMPTS, End, Job, attempt, begun_attempts


def deadly(number: int, job: Job) -> tuple[int, End]:
    """In place of `dispatch.attempt_numbered`: the run with seed 1 kills its process."""
    if job.parameters["seed"] == 1 and begun_attempts(job.attempts) < ATTEMPTS:
        job.attempts.parent.mkdir(parents=True, exist_ok=True)
        job.attempts.write_text(str(begun_attempts(job.attempts) + 1))
        with open(job.folder / "begun", "a") as log:
            log.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return number, attempt(job)


def die_at_once(number: int, job: Job) -> tuple[int, End]:
    """In place of `dispatch.attempt_numbered`: a process that does not even begin."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
