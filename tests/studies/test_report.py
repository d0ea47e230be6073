"""The report of a study: complete in itself, nothing in it runs, names are text, rewritten only after a change."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbformat import NotebookNode
from nbformat import v4 as nb

from palkit.errors import DataError
from palkit.experiments.runs import RunDirectory
from palkit.experiments.sweep import Sweep, Task
from palkit.storage.files import short_hash
from palkit.studies import execution
from palkit.studies.report import provenance_of, render, write_report
from palkit.studies.reproduce import Reproduction

EVIL = "<script>alert(1)</script>"
PIXEL = base64.b64encode(b"\x89PNG not really").decode()
NOTHING = Reproduction("Nothing to compare with.")
FACTS = {"Runs": ["2 of 3 complete"], EVIL: [EVIL, "line two"]}


def executed() -> NotebookNode:
    """Text, a figure, a table and printed lines, each with a class of an evil name."""
    table = pd.DataFrame({EVIL: [1.5]}, index=[EVIL])
    outputs = [
        nb.new_output("stream", name="stdout", text=f"36 runs of {EVIL}\n"),
        nb.new_output("execute_result", {"text/html": table.to_html(), "text/plain": EVIL}, execution_count=1),
        nb.new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"}),
        nb.new_output("display_data", {"application/javascript": "alert(2)", "text/plain": "a script"}),
    ]
    return nb.new_notebook(
        cells=[
            nb.new_markdown_cell("# A question?\n\nSee [08_calibration](08_calibration.ipynb) and [here](#there)."),
            nb.new_code_cell("sweep = 'default'  # <b>", metadata={"tags": ["parameters"]}),
            nb.new_markdown_cell('## Curves of "all"'),
            nb.new_code_cell("show()", outputs=outputs, execution_count=1),
        ]
    )


class Elements(HTMLParser):
    """Collects start tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def run_directory(name: str, dataset: str = "toy", **session: Any) -> RunDirectory:
    """A run's config and provenance, as written by the run."""
    config = {
        "name": name,
        "dataset": dataset,
        "data_sha256": f"sum-of-{dataset}",
        "backbone": {"name": "vit"},
        "weights_sha256": "w",
    }
    directory = RunDirectory(dataset, short_hash(config))
    directory.path.mkdir(parents=True)
    provenance = {
        "started": "2026-01-02T03:04:05+00:00",
        "git": {"commit": "abc", "dirty": False},
        "python": "3.11.7",
        "packages": {"numpy": "2.4.6", "pandas": "2.3.3"},
        "platform": "Linux",
        "cpus": 2,
        "device": "cpu",
        **session,
    }
    (directory.path / "config.json").write_text(json.dumps(config))
    (directory.path / "provenance.json").write_text(json.dumps(provenance))
    return directory


# --- the page


def test_page_holds_all_it_shows_and_loads_nothing() -> None:
    page = render(executed(), "Study", FACTS, "sum")
    elements = Elements(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in elements.tags}
    sources = [attributes["src"] for _, attributes in elements.tags if "src" in attributes]
    assert sources == [f"data:image/png;base64,{PIXEL}"]
    assert all(str(attributes["href"]).startswith("#") for _, attributes in elements.tags if "href" in attributes)
    assert not re.search(r"https?:|@import|url\(", page)
    (policy,) = [meta["content"] for meta in elements.of("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.count("<!DOCTYPE html>") == page.count("</html>") == 1


def test_outputs_are_shown_and_code_is_folded_away() -> None:
    elements = Elements(render(executed(), "Study", FACTS, "sum"))
    for text in ("A question?", 'Curves of "all"', "36 runs of", "1.5", "a script", "sweep = 'default'  # <b>"):
        assert text in elements.text
    assert "alert(2)" not in elements.text
    assert [attributes.get("open") for attributes in elements.of("details")] == [None, None]
    assert elements.of("img")[0]["alt"] == 'Curves of "all"'


def test_links_to_notebooks_become_text_and_others_stay() -> None:
    page = render(executed(), "Study", FACTS, "sum")
    assert ".ipynb" not in page
    assert "See 08_calibration and" in page
    assert [link["href"] for link in Elements(page).of("a")] == ["#there"]


def test_names_are_text_wherever_they_appear() -> None:
    page = render(executed(), f"Study of the sweep {EVIL}", FACTS, "sum")
    assert "<script" not in page
    assert Elements(page).text.count(EVIL) == 7  # title, heading, fact, its line, printed, column, row
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_rendering_leaves_the_notebook_alone_and_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    notebook = executed()
    before = nbformat.writes(notebook)
    assert render(notebook, "Study", FACTS, "sum") == render(notebook, "Study", FACTS, "sum")
    assert nbformat.writes(notebook) == before
    assert not caplog.records


# --- provenance


def test_provenance_lists_what_differs_between_runs_and_sessions() -> None:
    earlier = {
        "started": "2026-01-01T23:59:00+00:00",
        "git": None,
        "python": "3.11.7",
        "packages": {"numpy": "2.4.6", "pandas": "3.1.1"},
        "platform": "Linux",
        "cpus": 2,
        "device": "cpu",
    }
    runs = [
        run_directory("a", git={"commit": "abc", "dirty": True}),
        run_directory("b", earlier=[earlier]),
        run_directory("c", dataset="other", device="NVIDIA H100"),
    ]
    assert provenance_of(runs) == {
        "Started": ["2026-01-01 23:59 UTC to 2026-01-02 03:04 UTC"],
        "Data sets": ["other, SHA-256 sum-of-other", "toy, SHA-256 sum-of-toy"],
        "Backbones": ["vit, SHA-256 w"],
        "Code": ["commit abc", "commit abc, with changes that are not committed", "not from a git checkout"],
        "Packages": ["Python 3.11.7, numpy 2.4.6, pandas 2.3.3 and 3.1.1"],
        "Machines": ["Linux, 2 CPUs, computed on NVIDIA H100", "Linux, 2 CPUs, computed on cpu"],
    }


@pytest.mark.parametrize("name", ["config.json", "provenance.json"])
def test_damaged_provenance_is_named(name: str) -> None:
    run = run_directory("a")
    (run.path / name).write_text("{")
    with pytest.raises(DataError, match=name):
        provenance_of([run])


# --- writing


def test_report_is_written_again_only_if_the_notebook_changed(tmp_path: Path) -> None:
    notebook, runs = tmp_path / "04_study.ipynb", [run_directory("a"), run_directory("b")]
    nbformat.write(executed(), notebook)
    target = write_report(notebook, "default", runs, 3, ["Missing: 1. Not begun."])
    assert target == tmp_path / "report.html"
    text = Elements(target.read_text(encoding="utf-8")).text
    assert "Study of the sweep default" in text
    assert "2 of 3 complete" in text
    assert "Missing: 1. Not begun." in text
    assert "from 04_study.ipynb, SHA-256" in text
    stamp = target.stat().st_mtime_ns
    write_report(notebook, "default", runs, 3, ["Missing: 1. Not begun."])
    assert target.stat().st_mtime_ns == stamp
    changed = executed()
    changed.cells[0].source = "# Another question?"
    nbformat.write(changed, notebook)
    write_report(notebook, "default", runs, 3, ["Missing: 1. Not begun."])
    assert "Another question?" in target.read_text(encoding="utf-8")
    write_report(notebook, "default", runs, 3, [], Reproduction(f"Did not reproduce {EVIL}.").html())
    page = target.read_text(encoding="utf-8")
    assert f"Did not reproduce {EVIL}." in Elements(page).text, (
        "the notebook is the same, but not what it is held against"
    )
    assert page.index("Did it reproduce?") < page.index("Another question?")
    assert "<script" not in page


def test_study_reports_on_the_complete_runs_of_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three runs, one is complete."""
    directories = [run_directory("a"), run_directory("b", dataset="not-complete")]
    tasks = [Task({}, None, directory) for directory in (*directories, RunDirectory("toy", "c"))]
    monkeypatch.setattr(Task, "is_complete", property(lambda task: task.directory.run == directories[0].run))
    monkeypatch.setattr(execution, "load_sweep", lambda name: Sweep("mine"))
    monkeypatch.setattr(execution, "plan", lambda sweep, device: tasks)
    folder = tmp_path / "runs" / "studies" / "mine"
    folder.mkdir(parents=True)
    nbformat.write(executed(), folder / "04_study.ipynb")
    target = execution.report("mine", NOTHING, device="cpu")
    assert target is not None
    assert target == folder / "report.html"
    text = Elements(target.read_text(encoding="utf-8")).text
    assert "1 of 3 complete" in text
    assert "not-complete" not in text


def test_a_study_without_its_last_notebook_has_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "load_sweep", lambda name: Sweep("mine"))
    assert execution.report("mine", NOTHING, device="cpu") is None


def test_a_failed_cell_is_a_sentence_not_a_traceback() -> None:
    notebook = executed()
    failed = nb.new_output("error", ename="ValueError", evalue=f"a class {EVIL}", traceback=["secret line 7"])
    notebook.cells.append(nb.new_code_cell("draw()", outputs=[failed], execution_count=2))
    page = render(notebook, "Study", FACTS, "sum")
    assert f"This section could not be made: ValueError: a class {EVIL}" in Elements(page).text
    assert "<script" not in page
    assert "secret line 7" not in page
