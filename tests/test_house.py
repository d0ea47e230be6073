"""What keeps the house in order: which way imports point, that nothing imports itself, what the docs cover."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import palkit
from palkit.storage.files import REPOSITORY

PACKAGE = REPOSITORY / "palkit"
# From what knows nothing to what knows everything: a room imports from itself and from the rooms above it.
ROOMS = (
    ("errors", "progress"),
    ("storage",),
    ("strategies", "data"),
    ("models",),
    ("scoring",),
    ("config",),
    ("experiments",),
    ("labelling",),
    ("studies",),
    ("widgets",),
    ("cli",),
    ("__main__",),
)


def room(module: str) -> str:
    """The folder or file at the top of palkit that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


@cache
def imports() -> dict[str, set[str]]:
    """What every module imports of palkit, also inside functions: modules where they are named, else packages."""
    paths = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    return {name: set(_imported(path, set(paths))) - {name} for name, path in paths.items()}


def _imported(path: Path, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "palkit")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if (node.module or "").split(".")[0] == "palkit":
                named = {f"{node.module}.{alias.name}" for alias in node.names}
                yield from named & modules
                if named - modules:
                    yield node.module or ""


def test_the_rooms_are_these() -> None:
    assert {name for names in ROOMS for name in names} == {room(name) for name in imports()} - {"__init__"}


@pytest.mark.parametrize("name", [name for names in ROOMS for name in names])
def test_imports_follow_the_arrow(name: str) -> None:
    floor = {one: number for number, names in enumerate(ROOMS) for one in names}
    needed = {room(other) for module, others in imports().items() if room(module) == name for other in others}
    assert {other for other in needed - {name, "__init__"} if floor[other] >= floor[name]} == set()


def test_no_module_needs_itself() -> None:
    """Nor does a package need what is inside of another that needs it: no circle anywhere."""
    TopologicalSorter(imports()).prepare()


def test_the_reference_names_every_module() -> None:
    pages = "".join(path.read_text() for path in sorted((REPOSITORY / "docs/reference").glob("*.md")))
    named = set(re.findall(r"^\.\. automodule:: ([a-z_0-9.]+)$", pages, re.MULTILINE))
    assert named <= set(imports()), "there is no such module"
    unnamed = {name for name in imports() if not any(name == one or name.startswith(f"{one}.") for one in named)}
    rooms = {f"palkit.{name}" for names in ROOMS for name in names}
    assert unnamed - rooms - {"palkit", "palkit.experiments.doctor"} == set()


def test_the_front_door_has_a_page() -> None:
    page = (REPOSITORY / "docs/reference/palkit.md").read_text()
    assert sorted(re.findall(r"^\.\. \S+:: palkit\.(\w+)$", page, re.MULTILINE)) == sorted(palkit.__all__)


def test_the_documentation_shows_every_notebook() -> None:
    shown = set(re.findall(r"^.+ <notebooks/(\w+)>$", (REPOSITORY / "docs/index.md").read_text(), re.MULTILINE))
    assert shown == {path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")}


def test_public_functions_say_what_they_do() -> None:
    """Every module, and every public function and class in it, begins with a sentence."""
    silent = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
        for node in [tree, *public]:
            first = (ast.get_docstring(node) or "").split("\n")[0].rstrip().rstrip('"')
            if not first.endswith((".", "?", ":")):
                silent.append(f"{path.relative_to(REPOSITORY)}: {getattr(node, 'name', 'the module')}")
    assert silent == []
