"""Progress of a sweep, read from its run directories, so that any terminal can look on."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from palkit.errors import DataError
from palkit.experiments.runs import SECONDS
from palkit.experiments.sweep import Task

POLL_SECONDS = 0.5


@dataclass
class Status:
    """Where one run stands.

    Attributes:
        task: the run.
        rounds: complete ones.
        accuracy: after the last of them; None before the first.
        seconds: that its complete rounds took together.
    """

    task: Task
    rounds: int = 0
    accuracy: float | None = None
    seconds: float = 0.0

    @property
    def wanted(self) -> int:
        return 0 if self.task.config is None else self.task.config.rounds

    @property
    def state(self) -> str:
        """ "complete", "running", "waiting" or, for a config that does not work, "invalid"."""
        if self.task.config is None:
            return "invalid"
        if self.rounds >= self.wanted:
            return "complete"
        return "running" if self.task.attempts.exists() else "waiting"


class Board:
    """The state of all runs of a sweep.

    Args:
        tasks: the runs.
        jobs: that run at a time, for the time left; None if not known.
    """

    def __init__(self, tasks: Sequence[Task], jobs: int | None = None) -> None:
        self.runs = [Status(task) for task in tasks]
        self.jobs = jobs

    def refresh(self) -> list[Status]:
        """Read what is new; returns the runs that are complete since the last call."""
        completed = []
        for run in self.runs:
            try:
                if run.rounds >= run.wanted or (count := run.task.directory.count_rounds()) == run.rounds:
                    continue
                table = run.task.directory.table().head(run.wanted)
            except DataError:  # whoever computes the run says so
                continue
            run.rounds, run.accuracy = min(count, len(table)), float(table["accuracy"].iloc[-1])
            run.seconds = float(table[list(SECONDS)].sum().sum())
            if run.rounds >= run.wanted:
                completed.append(run)
        return completed

    def count(self, state: str) -> int:
        """Runs in a state."""
        return sum(run.state == state for run in self.runs)

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end, from rounds with the same data set and adapter; None before the first."""
        seconds, rounds = defaultdict[tuple[str, str], float](float), Counter[tuple[str, str]]()
        for run in self.runs:
            seconds[_kind(run)] += run.seconds
            rounds[_kind(run)] += run.rounds
        if not rounds.total():
            return None
        mean = sum(seconds.values()) / rounds.total()
        each = {kind: seconds[kind] / rounds[kind] if rounds[kind] else mean for kind in rounds}
        left = sum((run.wanted - run.rounds) * each[_kind(run)] for run in self.runs)
        return left / (self.jobs or max(1, self.count("running")))

    def table(self, height: int = 30) -> Table:
        """A picture of it: runs in progress first, then those last in the grid that are complete, as far as they fit.

        Args:
            height: rows at most.
        """
        left = self.seconds_left()
        counts = ", ".join(f"{self.count(s)} {s}" for s in ("complete", "running", "waiting", "invalid"))
        title = f"{counts}; {'time left not known yet' if left is None else f'about {duration(left)} left'}"
        table = Table("run", "state", "rounds", "accuracy", "s per round", title=title, title_justify="left")
        for column in table.columns[2:]:
            column.justify = "right"
        order = ["running", "complete", "waiting", "invalid"]
        latest_first = self.runs[::-1]
        for run in sorted(latest_first, key=lambda run: order.index(run.state))[:height]:
            table.add_row(
                escape(run.task.label),
                run.state,
                f"{run.rounds}/{run.wanted}",
                "" if run.accuracy is None else f"{run.accuracy:.3f}",
                f"{run.seconds / run.rounds:.1f}" if run.rounds else "",
            )
        return table


def _kind(run: Status) -> tuple[str, str]:
    config = run.task.config
    return ("", "") if config is None else (config.dataset, config.adapter.name)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def live_table(board: Board, console: Console) -> Iterator[Callable[[list[Status]], None]]:
    """Draw the table of a board; what comes out draws it again, whatever runs are told to be complete."""
    with Live(console=console, auto_refresh=False) as live:
        yield lambda _: live.update(board.table(max(5, console.height - 6)), refresh=True)


def watch(tasks: Sequence[Task], console: Console) -> None:
    """Show a sweep that another process computes, until all runs are complete, or Ctrl-C (a failed run never is)."""
    board = Board(tasks)
    with live_table(board, console) as update:
        while True:
            update(board.refresh())
            if not board.count("running") + board.count("waiting"):
                return
            time.sleep(POLL_SECONDS)
