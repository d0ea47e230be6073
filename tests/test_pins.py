"""Pins are in requirements.lock alone: of every package that pyproject.toml wants, in a version that it allows."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from palkit.storage.files import REPOSITORY as ROOT


def wanted() -> list[Requirement]:
    """What the project and its extras need, itself left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "palkit"]


def test_the_conda_environment_is_the_lock() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert dependencies == ["python>=3.11", "pip", {"pip": ["--requirement requirements.lock"]}]


def test_the_lock_has_what_the_project_wants_and_a_hash_for_each() -> None:
    locked: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text()):
        match = re.match(r"([a-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", entry)
        if match:
            assert "--hash=sha256:" in entry, f"{match[1]} has no hash"
            locked.setdefault(canonicalize_name(match[1]), []).append(match[2])
    for requirement in wanted():
        versions = locked[canonicalize_name(requirement.name)]
        assert all(map(requirement.specifier.contains, versions)), f"{requirement} and {versions}"
        assert all(one.operator != "==" for one in requirement.specifier), "pins belong to the lock"


def test_the_licence_page_lists_what_the_lock_has() -> None:
    """Made by .ci/licences.py. Packages for other systems only are not on it."""
    lock, page = (ROOT / "requirements.lock").read_text(), (ROOT / "docs" / "dependencies.md").read_text()
    listed = dict(re.findall(r"^\| ([a-z0-9._-]+) \| (\S+) \| \S.* \|$", page, re.MULTILINE))
    del listed["package"], listed["---"]
    locked = re.findall(r"^([a-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)( ;)?", lock, re.MULTILINE)
    everywhere = {name: version for name, version, marker in locked if not marker}
    assert {name: listed.get(name) for name in everywhere} == everywhere
    assert listed.items() <= {(name, version) for name, version, _ in locked}
