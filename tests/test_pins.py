"""environment.yml, pyproject.toml and requirements.lock must pin the same versions."""

import itertools
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def pins(lines: list[str]) -> dict[str, str]:
    requirements = [Requirement(line) for line in lines]
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in requirements)
    return {canonicalize_name(r.name): str(r.specifier)[2:] for r in requirements}


def direct_pins() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return pins([*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())])


def test_conda_environment_has_the_pins_of_the_project() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert pip[-1] == "--editable ."
    assert pins(pip[:-1]) == direct_pins()


def test_lock_has_the_pins_of_the_project_and_a_hash_for_each() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())
    locked = {}
    for entry in entries:
        match = re.match(r"([a-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", entry)
        if match:
            assert "--hash=sha256:" in entry, f"{match[1]} has no hash"
            locked[canonicalize_name(match[1])] = match[2]
    direct = direct_pins()
    assert {name: locked.get(name) for name in direct} == direct


def test_the_licence_page_lists_what_the_lock_has() -> None:
    """Made by .ci/licences.py. Packages for other systems only are not on it."""
    lock, page = (ROOT / "requirements.lock").read_text(), (ROOT / "docs" / "dependencies.md").read_text()
    listed = dict(re.findall(r"^\| ([a-z0-9._-]+) \| (\S+) \| \S.* \|$", page, re.MULTILINE))
    del listed["package"], listed["---"]
    locked = re.findall(r"^([a-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)( ;)?", lock, re.MULTILINE)
    everywhere = {name: version for name, version, marker in locked if not marker}
    assert {name: listed.get(name) for name in everywhere} == everywhere
    assert listed.items() <= {(name, version) for name, version, _ in locked}
