"""The names that palkit offers: each with an example that runs, imported when it is needed and not before."""

import doctest
import importlib
import json
import subprocess
import sys

import pytest

import palkit

HEAVY = [
    "timm",
    "peft",
    "pandas",
    "pyarrow",
    "sklearn",
    "matplotlib",
    "IPython",
    "ipywidgets",
    "torchvision",
    "pydantic",
]


@pytest.mark.parametrize("name", sorted(palkit.__all__))
def test_examples(name: str) -> None:
    offered = getattr(palkit, name)
    if isinstance(offered, dict):  # registries
        assert offered
        return
    module = importlib.import_module(offered.__module__)
    found = [test for test in doctest.DocTestFinder(recurse=False).find(offered, name, module) if test.examples]
    assert found, "no example"
    said: list[str] = []
    failures = sum(doctest.DocTestRunner().run(test, out=said.append).failed for test in found)
    assert failures == 0, "".join(said)


def test_what_is_offered_is_listed_once() -> None:
    homes = [name for names in palkit.HOMES.values() for name in names]
    assert sorted(homes) == sorted(palkit.__all__)
    assert set(palkit.__all__) <= set(dir(palkit))
    with pytest.raises(AttributeError, match="no attribute 'selekt'"):
        palkit.selekt  # noqa: B018


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh process has after some code."""
    after = "; import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + after], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_palkit_imports_nothing_else() -> None:
    assert loaded("import palkit").isdisjoint({"torch", "numpy", "rich", *HEAVY})


def test_selecting_from_arrays_needs_torch_alone() -> None:
    code = (
        "import numpy as np, palkit; "
        "palkit.select('badge', np.eye(4), np.full((4, 2), 0.5), {0: 1}, 2); "
        "palkit.select('uherding', np.eye(4), np.full((4, 2), 0.5), {0: 1}, 2)"
    )
    assert loaded(code).isdisjoint(HEAVY)


def test_what_computes_nothing_waits_for_no_network() -> None:
    """Sessions, results and their figures: timm takes two seconds, what reads notebooks two more."""
    found = loaded("import palkit.labelling.session, palkit.studies.study")
    assert found.isdisjoint({"timm", "torchvision", "nbformat", "papermill"})


def test_help_needs_no_torch() -> None:
    code = (
        "from palkit.cli import main\n"
        "try:\n    main(['sweep', '--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "0"
    )
    assert loaded(code).isdisjoint({"torch", "numpy", *HEAVY})
