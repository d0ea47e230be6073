"""What keeps the house in order: which way imports point, how long files are, what the documentation covers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from palkit.storage.files import REPOSITORY

PACKAGE = REPOSITORY / "palkit"
# From what knows nothing to what knows everything: a module imports from its own line or from those above it.
LAYERS = (
    ("errors", "ties"),
    ("checks", "plain_yaml"),
    ("files", "kernels", "kmeans", "metrics", "qkv", "prompts", "extrapolation", "heads", "statistics"),
    ("formats", "labels", "notebooks", "exchange", "session_file", "shards", "scores", "calibration", "devices"),
    ("datasets",),
    ("backbones", "engine", "progress", "maps"),
    ("adapter_registry", "peft_layers", "adapter_methods", "adapters", "adapter_files"),
    ("readouts", "inputs", "cluster"),
    ("training", "scoring"),
    ("strategies",),
    ("config", "runs", "scaling"),
    ("setting", "experiment", "picks", "doctor"),
    ("sweep", "worker", "results", "watch", "dispatch", "estimate"),
    ("answers", "session_learner", "session", "proposals", "explore"),
    ("plots", "claims", "reproduce", "report", "study", "widgets"),
    ("__main__",),
)
# Strategies see scores and tensors, never a model or an image; kernels are tensors only; data sets know no model.
NARROW = {
    "heads": set(),
    "kernels": {"errors", "ties"},
    "kmeans": {"errors", "kernels", "ties"},
    "scores": {"errors", "kernels", "shards", "ties"},
    "datasets": {"checks", "errors", "files", "formats"},
    "strategies": {"calibration", "checks", "errors", "heads", "kernels", "kmeans", "scores", "shards", "ties"},
}


def modules() -> dict[str, list[Path]]:
    """Files of each module or subpackage of palkit."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    found.pop("__init__")
    return found


def imported(path: Path) -> Iterator[str]:
    """Modules and subpackages of palkit that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            names = [f"palkit.{alias.name}" for alias in node.names] if module == "palkit" else [module]
        yield from (name.split(".")[1] for name in names if name.startswith("palkit."))


def test_every_module_has_its_layer() -> None:
    listed = [name for layer in LAYERS for name in layer]
    assert sorted(listed) == sorted(modules())


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_follow_the_arrow(name: str) -> None:
    layer = {module: number for number, names in enumerate(LAYERS) for module in names}
    needed = {other for path in modules()[name] for other in imported(path)} - {name}
    assert {other for other in needed if layer[other] > layer[name]} == set()
    assert needed <= NARROW.get(name, needed)


def test_no_module_needs_itself() -> None:
    needs = {name: {other for path in paths for other in imported(path)} - {name} for name, paths in modules().items()}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert needs == {}, "these import each other"


def test_the_reference_names_every_module() -> None:
    pages = "".join(path.read_text() for path in sorted((REPOSITORY / "docs/reference").glob("*.md")))
    covered = set(re.findall(r"^::: palkit\.([a-z_0-9]+)", pages, re.MULTILINE))
    assert set(modules()) - covered - {"__main__", "doctor"} == set()
    for name in re.findall(r"^::: palkit\.([a-z_0-9.]+)", pages, re.MULTILINE):
        path = PACKAGE / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), name


def test_the_documentation_shows_every_notebook() -> None:
    pages = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    (shown,) = [part["Notebooks"] for part in pages if "Notebooks" in part]
    named = {Path(path).name for entry in shown for path in entry.values()}
    assert named == {path.name for path in (REPOSITORY / "notebooks").glob("*.ipynb")}


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
