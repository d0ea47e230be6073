"""What a sweep looks like from outside: states, time left, and the table of it."""

from typing import Any

import pytest
from rich.console import Console

from palkit.cli import main
from palkit.config import config_from_dict
from palkit.experiments.experiment import rounds
from palkit.experiments.sweep import Sweep, plan
from palkit.experiments.watch import Board, duration, watch


@pytest.fixture
def board(tiny_run: dict[str, Any]) -> Board:
    """Four runs: one complete, one after its first round, one waiting, one that cannot work."""
    probe = {**tiny_run, "adapter": {"name": "linear_probe"}, "rounds": 2}
    sweep = Sweep("watched", probe, {"strategy": ["random", "entropy", "margin", "entropie"]})
    tasks = plan(sweep)
    list(rounds(config_from_dict(sweep.parameters()[0][1])))
    next(iter(rounds(config_from_dict(sweep.parameters()[1][1]))))
    tasks[1].attempts.write_text("1")
    return Board(tasks, jobs=2)


def shown(board: Board, height: int = 30) -> str:
    console = Console(width=140, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(board.table(height))
    return console.export_text()


def test_states_rounds_and_accuracy(board: Board) -> None:
    assert [run.state for run in board.runs] == ["waiting", "running", "waiting", "invalid"], "nothing read yet"
    completed = board.refresh()
    assert [run.task.label for run in completed] == [board.runs[0].task.label]
    assert [run.state for run in board.runs] == ["complete", "running", "waiting", "invalid"]
    assert [run.rounds for run in board.runs] == [2, 1, 0, 0]
    table = board.runs[0].task.directory.table()
    assert board.runs[0].accuracy == table["accuracy"].iloc[-1]
    assert board.runs[0].seconds == pytest.approx(table[["fit_s", "score_s", "select_s"]].to_numpy().sum())
    assert board.refresh() == [], "told once"


def test_time_left_is_what_rounds_took_times_what_is_missing(board: Board) -> None:
    assert board.seconds_left() is None
    board.refresh()
    each = (board.runs[0].seconds + board.runs[1].seconds) / 3
    assert board.seconds_left() == pytest.approx(3 * each / 2), "three rounds missing, two runs at a time"


def test_time_left_knows_that_adapters_differ(tiny_run: dict[str, Any]) -> None:
    sweep = Sweep("two", {**tiny_run, "rounds": 2}, {"adapter.name": ["linear_probe", "lora"], "seed": [0, 1]})
    tasks = plan(sweep)
    board = Board(tasks, jobs=1)
    board.runs[0].rounds, board.runs[0].seconds = 2, 2.0
    board.runs[2].rounds, board.runs[2].seconds = 1, 50.0
    assert board.seconds_left() == pytest.approx(2 * 1 + 1 * 50 + 2 * 50)


def test_table_shows_runs_in_progress_first_and_no_more_than_fits(board: Board) -> None:
    board.refresh()
    text = shown(board)
    assert "1 complete, 1 running, 1 waiting, 1 invalid" in text
    assert text.index("entropy") < text.index("random") < text.index("margin") < text.index("entropie")
    assert "1/2" in text
    assert f"{board.runs[0].accuracy:.3f}" in text
    assert "margin" not in shown(board, height=2)


def test_watching_a_complete_sweep_ends(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    watch([board.runs[0].task], Console())
    assert "1 complete" in capsys.readouterr().out


def test_command_line_with_a_table(tiny_run: dict[str, Any], tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("base: {**: 0}\ngrid: {seed: [0, 1]}".replace("{**: 0}", str({**tiny_run, "rounds": 1})))
    assert main(["sweep", str(path), "--jobs", "1", "--no-notebooks", "--watch"]) == 0
    assert "2 complete, 0 running, 0 waiting" in capsys.readouterr().err
    assert main(["watch", str(path)]) == 0
    assert "2 complete" in capsys.readouterr().err


def test_duration() -> None:
    assert duration(3725.4) == "1:02:05"
