"""One HTML page of an executed study: where its runs come from, then its text, figures and tables, code folded away.

The page is complete in itself: images and styles are in it, there are no scripts, and its content security policy has
a browser load nothing and run nothing. Formulas in the text stay as they are written.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256 as digest_of
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from traitlets.config import Config

from palkit.experiments.runs import RunDirectory
from palkit.storage.files import sha256, write_text

NOTEBOOK_LINK = re.compile(r"\[([^\]]+)\]\([^)\s]+\.ipynb(#[^)\s]*)?\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
# Widgets and scripts of the notebook cannot work in the page.
SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(
    notebook: Path, sweep: str, runs: Sequence[RunDirectory], planned: int, missing: Sequence[str], section: str = ""
) -> Path:
    """Write `report.html` beside an executed notebook, unless it is there already and of the same notebook and section.

    Args:
        notebook: executed over the results of the sweep.
        sweep: its name.
        runs: complete runs of the sweep.
        planned: how many runs the sweep has.
        missing: sentences about those that are not complete.
        section: HTML that comes before the notebook.

    Raises:
        DataError: the provenance of a run cannot be read.
    """
    target, source = notebook.with_name("report.html"), sha256(notebook)
    checksum = digest_of(f"{source}{section}".encode()).hexdigest()
    if target.exists() and f'"{checksum}"' in target.read_text(encoding="utf-8"):
        return target
    facts = {
        "Runs": [f"{len(runs)} of {planned} complete", *missing],
        **provenance_of(runs),
        "Report": [f"written {_minute(datetime.now(UTC).isoformat())} from {notebook.name}, SHA-256 {source}"],
    }
    page = render(nbformat.read(notebook, as_version=4), f"Study of the sweep {sweep}", facts, checksum, section)
    write_text(target, page)
    return target


def provenance_of(runs: Sequence[RunDirectory]) -> dict[str, list[str]]:
    """Data, weights, code, packages and machines of all runs, and when they began: a name and lines for each fact.

    Args:
        runs: one or more.

    Raises:
        DataError: a file of a run cannot be read; names it.
    """
    configs = [run.config() for run in runs]
    sessions = [session for run in runs for session in run.sessions()]
    started = sorted(_minute(session["started"]) for session in sessions)
    versions: dict[str, set[str]] = defaultdict(set)
    for session in sessions:
        for name, version in {"Python": session["python"], **session["packages"]}.items():
            versions[name].add(version)
    facts = {
        "Data sets": (f"{config['dataset']}, SHA-256 {config['data_sha256']}" for config in configs),
        "Backbones": (f"{config['backbone']['name']}, SHA-256 {config['weights_sha256']}" for config in configs),
        "Code": (_code(session["git"]) for session in sessions),
        "Packages": [", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items())],
        "Machines": (f"{one['platform']}, {one['cpus']} CPUs, computed on {one['device']}" for one in sessions),
    }
    when = {"Started": [" to ".join(dict.fromkeys([started[0], started[-1]]))]}
    return when | {name: sorted(set(lines)) for name, lines in facts.items()}


def render(
    notebook: NotebookNode, title: str, facts: Mapping[str, Sequence[str]], checksum: str, section: str = ""
) -> str:
    """The page.

    Args:
        notebook: executed; not changed.
        title: heading of the page.
        facts: lines of the table above the notebook, by name.
        checksum: of notebook and section.
        section: HTML that comes before the notebook.
    """
    from nbconvert import HTMLExporter  # slow to load, and needed by this command only

    config = Config({"NbConvertBase": {"display_data_priority": SHOWN}})
    exporter = HTMLExporter(
        config=config,
        raw_template=TEMPLATE.read_text(encoding="utf-8"),
        embed_images=True,
        exclude_anchor_links=True,
        exclude_output_prompt=True,
    )
    resources = {"title": title, "facts": facts, "checksum": checksum, "section": section}
    page, _ = exporter.from_notebook_node(_prepared(notebook), resources)
    return page


def _prepared(notebook: NotebookNode) -> NotebookNode:
    """A copy in which cells know the heading above them, and links to notebooks, which stay behind, are plain text."""
    copy, heading = NotebookNode(notebook, cells=[]), "figure"
    for cell in notebook.cells:
        metadata = NotebookNode(cell.metadata, heading=heading)
        source = cell.source
        if cell.cell_type == "markdown":
            heading = (HEADING.findall(source) or [heading])[-1]
            source = NOTEBOOK_LINK.sub(r"\1", source)
        copy.cells.append(NotebookNode(cell, source=source, metadata=metadata))
    return copy


def _code(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return "not from a git checkout"
    return f"commit {git['commit']}" + (", with changes that are not committed" if git["dirty"] else "")


def _minute(moment: str) -> str:
    """An ISO time in UTC, to the minute."""
    return f"{moment[:16].replace('T', ' ')} UTC"
