"""The tutorial does what it says: its code is executed, in order, in a fresh folder."""

import re
from pathlib import Path

import pytest

from palkit.storage.files import REPOSITORY


def test_every_step_of_the_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/tutorial.md").read_text(), re.S)
    ):
        exec(compile(code, f"tutorial.md, block {number}", "exec"), names)
    assert number == 4
    random, chosen = names["curves"]["random"], names["curves"]["uherding"]
    assert random[0] == chosen[0], "the first batch depends on the seed alone"
    assert random[-1] > random[0]
    assert names["table"].shape == (1797, 13)
    assert len(set(names["first"])) == 5
    assert "20 labels" in capsys.readouterr().out
