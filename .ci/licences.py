"""List the licences of all packages of the lock in docs/dependencies.md, and stop at one that binds palkit's users.

    .venv/bin/python .ci/licences.py

Names and licences are those of the installed packages; what the lock holds for other systems only is not listed.
"""

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
# Terms that spread to what is combined with them. LGPL and MPL do not for a program that only imports the package.
STRONG = re.compile(r"(?<!L)GPL|(?<!Lesser )General Public License|non-?commercial|CC.BY.NC", re.IGNORECASE)
# Where the metadata of a package is silent, as of the toolkit, which only names other packages of NVIDIA, or says more
# than is installed: docutils' one file under the GPL, a mode for Emacs, is not.
BY_HAND = {"cuda-toolkit": "NVIDIA Proprietary Software", "docutils": "Public Domain and BSD License"}
HEAD = """# Dependencies

Every package of `requirements.lock` that is installed on Linux, with the licence its metadata states. The lock has a
SHA-256 for each file, and pip is told to require them. None is under the GPL; NVIDIA's libraries, which torch brings
along on Linux, are proprietary and free of charge. Made by `.ci/licences.py`; a test holds page and lock together.

Known vulnerabilities: `pipx run pip-audit --require-hashes -r requirements.lock`.

| package | version | licence |
| --- | --- | --- |
"""


def locked() -> Iterator[Requirement]:
    """Requirements of the lock that this system installs."""
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            requirement = Requirement(line.removesuffix("\\").strip())
            if requirement.marker is None or requirement.marker.evaluate():
                yield requirement


def licence(name: str) -> str:
    """Of an installed package: its SPDX expression, else its classifiers, else its field of that name."""
    about = metadata.metadata(name)
    classifiers = [
        text.split(" :: ")[-1] for text in about.get_all("Classifier") or [] if text.startswith("License ::")
    ]
    named = [text for text in classifiers if text != "OSI Approved"]
    free = (about.get("License") or "").strip()
    short = free if "\n" not in free and len(free) < 80 else ""
    return BY_HAND.get(name) or about.get("License-Expression") or " and ".join(named) or short


def main() -> int:
    rows = {requirement.name: licence(requirement.name) for requirement in locked()}
    for name, terms in rows.items():
        if not terms or (STRONG.search(terms) and " OR " not in terms):
            print(f"{name}: {terms or 'no licence stated'}; look it up, and replace the package or add it to BY_HAND")
    lines = [f"| {name} | {metadata.version(name)} | {terms} |" for name, terms in sorted(rows.items())]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n")
    return int(any(not terms for terms in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
