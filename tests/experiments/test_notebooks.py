"""Notebooks: committed executed and clean; nbval notices a wrong stored output."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_executed_and_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed once, in order"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in code)
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"{path.name}: {output.get('text')}"
            assert not any("widget" in kind for kind in output.get("data", {})), "a picture instead"
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size <= 1.5 * 2**20


def test_nbval_notices_a_wrong_stored_output(tmp_path: Path) -> None:
    """Notebook 13, which passes as committed, fails in one cell with one number of a table changed."""
    wrong = nbformat.read(ROOT / "notebooks" / "13_strategies.ipynb", as_version=4)
    (cell,) = [cell for cell in wrong.cells if cell.source.endswith('gains("few")')]
    table = cell.outputs[0].data
    number = re.search(r"\+\d\.\d", table["text/plain"])
    assert number is not None
    for kind in table:
        table[kind] = table[kind].replace(number.group(), "+99.9", 1)
    nbformat.write(wrong, tmp_path / "wrong.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "--nbval"]
    command += ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg"), "wrong.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout, done.stdout
    assert "+99.9" in done.stdout, done.stdout
