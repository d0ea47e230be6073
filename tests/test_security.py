"""Nothing that palkit reads runs code, nothing leaves the machine unasked, JupyterLab answers only its user."""

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import psutil
import pytest
import requests

from palkit.cli import main
from palkit.data import cifar, load_dataset, published
from palkit.data.download import Remote
from palkit.errors import PalkitError
from palkit.storage.files import REPOSITORY

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle"}
# What runs, or may run, what it is given.
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "torch.load", "joblib.load",
    "joblib.dump", "torch.save", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.load_all", "yaml.full_load",
    "yaml.unsafe_load", "np.fromregex", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.hub.load",
    "requests.packages.urllib3.disable_warnings",
}  # fmt: skip
DANGEROUS = {"shell": True, "allow_pickle": True, "weights_only": False, "verify": False, "trust_remote_code": True}


def sources() -> list[tuple[str, str]]:
    """Name and code of every module and notebook."""
    modules = [(str(path), path.read_text()) for path in sorted((REPOSITORY / "palkit").rglob("*.py"))]
    notebooks = []
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        code = "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))
        notebooks.append((str(path), code))
    return modules + notebooks


def dangers(code: str) -> Iterator[str]:
    """What in the code unpickles, runs strings, opens a shell or trusts a stranger."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in named if name.split(".")[0] in PICKLES)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN:
                yield name
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in DANGEROUS and value is DANGEROUS[keyword.arg]:
                    yield f"{name}({keyword.arg}={value})"
            filtered = "filter" in {keyword.arg for keyword in node.keywords} or "TAR_FILTER" in ast.unparse(node)
            if name.endswith(".extractall") and "tar" in name and not filtered:
                yield f"{name} without a filter"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from dill import loads", "eval('1')", "torch.load(path)", "yaml.load(text, Loader)",
        "subprocess.run(line, shell=True)", "np.load(path, allow_pickle=True)", "tar.extractall(folder)",
        "requests.get(url, verify=False)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(dangers(code))


def test_no_module_or_notebook_unpickles_or_runs_strings() -> None:
    found = {name: list(dangers(code)) for name, code in sources()}
    assert len(found) > 100
    assert {name: what for name, what in found.items() if what} == {}


GUARDED = """
import sys

def hook(event, arguments):
    if event == "pickle.find_class" or event in {"os.system", "marshal.loads.code"}:
        raise SystemExit(f"FORBIDDEN {event} {arguments}")
    if event == "subprocess.Popen" and str(arguments[0]).endswith(("/sh", "/bash")):
        raise SystemExit(f"FORBIDDEN shell {arguments[1]}")
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        raise SystemExit(f"FORBIDDEN connection {arguments[1]}")

sys.addaudithook(hook)
"""

USE = """
import sys
from pathlib import Path
from palkit.cli import main
from palkit.labelling.exchange import read_labels_csv, write_labels_csv
from palkit.labelling.session import open_session

arguments, folder = sys.argv[2:], Path(sys.argv[1])
assert not main(["run", *arguments])
assert not main(["run", *arguments])  # found again
own = ["adapter=linear_probe", "pool_size=null", "batch_size=8"]
assert not main(["run", *arguments, *own, f"dataset={folder / 'slides'}"])
assert not main(["manifest", str(folder / "slides"), str(folder / "slides.csv")])
assert not main(["embed", *arguments, *own, f"dataset={folder / 'slides.csv'}"])
session = open_session(str(folder / "slides.csv"), "ana", batch_size=8, backbone={"name": "test_vit", "image_size": 32,
    "depth": 4, "checkpoint": arguments[0].split("=")[1]}, adapter="linear_probe", seed=1)
for _ in range(2):
    batch = session.propose()
    session.label(batch["id"], [name.split("/")[-2] for name in batch["id"]])
    session.fit()
write_labels_csv(session.label_table(), folder / "labels.csv")
read_labels_csv(folder / "labels.csv")
print("ALL DONE")
"""


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Forty digits as files in two folders."""
    from PIL import Image

    pool, folder = load_dataset("digits"), tmp_path / "slides"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    images = pool.images.decode(np.arange(40), 32)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "ab"[number % 2] / f"{number}.png")
    return tmp_path


def test_at_run_time_nothing_is_unpickled_and_nobody_is_called(
    slides: Path, tiny_run: dict[str, Any], own_cache: None
) -> None:
    """Python's audit hook watches libraries too: a run, its resume, own images, a labelling session."""
    checkpoint = tiny_run["backbone"]["checkpoint"]
    values = {**tiny_run, "dataset": "digits", "batch_size": 5, "rounds": 2}
    arguments = [f"backbone.checkpoint={checkpoint}"]
    arguments += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED + USE, str(slides), *arguments], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert "FORBIDDEN" not in done.stderr + done.stdout, done.stderr[-2000:]
    assert done.stdout.endswith("ALL DONE\n"), done.stderr[-2000:]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle; pickle.loads(pickle.dumps(sys.exit))",
        "import os; os.system('true')",
        "import subprocess; subprocess.run('true', shell=True)",
        "import socket; socket.create_connection(('192.0.2.1', 80), 0.1)",
    ],
)
def test_the_guard_notices(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", GUARDED + code], capture_output=True, text=True)
    assert "FORBIDDEN" in done.stderr


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_arrays_that_are_pickles_are_refused(tmp_path: Path) -> None:
    from palkit.storage.shards import Shards

    np.save(tmp_path / "evil.npy", np.array([Evil(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(PalkitError, match=r"evil\.npy"):
        Shards([tmp_path / "evil.npy"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("where", "said"),
    [("seed", "seed"), ("dataset", "no folder or manifest !!python"), ("strategy_options", "strategy_options")],
)
def test_a_yaml_tag_on_the_command_line_is_refused(where: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a text field it is a name, and there is nothing of that name."""
    assert main(["run", f"{where}=!!python/object/apply:os.system ['touch /tmp/palkit-was-here']"]) != 0
    assert said in capsys.readouterr().err
    assert not Path("/tmp/palkit-was-here").exists()


def test_every_published_file_comes_over_https_with_a_checksum() -> None:
    remotes = [value for value in vars(published).values() if isinstance(value, Remote)]
    remotes += [cifar.CIFAR10.remote, cifar.CIFAR100.remote]
    assert len(remotes) == 4
    for remote in remotes:
        assert remote.url.startswith("https://")
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", remote.checksum)
    assert {field.name for field in dataclasses.fields(Remote)} >= {"checksum"}, "none can be left out"


def test_no_address_in_the_code_is_plain_http() -> None:
    assert [name for name, code in sources() if re.search(r"http://\w", code)] == []


def test_every_package_of_the_lock_has_a_hash_and_an_exact_version() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock[re.search(r"^[A-Za-z0-9]", lock, re.MULTILINE).start() :])  # type: ignore[union-attr]
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[^\]]*\])?==[^\s;]+", entry), entry[:60]
        assert "--hash=sha256:" in entry, entry[:60]
    assert "--require-hashes" in (REPOSITORY / "run_all.sh").read_text()


@pytest.fixture
def plain_lab(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """JupyterLab as `./run_all.sh lab` starts it, for a user without any settings."""
    command = re.search(r"exec \.\./\.venv/bin/(jupyter lab) ", (REPOSITORY / "run_all.sh").read_text())
    assert command, "this test starts what run_all.sh starts"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    environment |= {"HOME": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    binary = shutil.which("jupyter", path=str(Path(sys.executable).parent))
    assert binary
    log = tmp_path / "lab.log"
    options = ["--no-browser", "--port", "0", *(["--allow-root"] if os.geteuid() == 0 else [])]
    with log.open("w") as output:
        process = psutil.Popen([binary, "lab", *options], cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 300
        while not (found := list(tmp_path.glob("runtime/jpserver-*.json"))) or not found[0].read_text().endswith("}"):
            assert process.is_running(), log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield json.loads(found[0].read_text()) | {"process": process}
    finally:
        for one in [*process.children(recursive=True), process]:
            one.kill()
        process.wait()


def test_jupyterlab_listens_on_loopback_and_wants_its_token(plain_lab: dict[str, Any]) -> None:
    tree = [plain_lab["process"], *plain_lab["process"].children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in tree
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::1"}
    assert listening
    assert len(plain_lab["token"]) >= 32
    address = f"http://127.0.0.1:{plain_lab['port']}{plain_lab['base_url']}api/contents"
    assert requests.get(address, timeout=300).status_code == 403
    with_token = {"Authorization": f"token {plain_lab['token']}"}
    assert requests.get(address, headers=with_token, timeout=300).status_code == 200


def test_weights_are_saved_without_pickles(tmp_path: Path, tiny_run: dict[str, Any]) -> None:
    """No file that a run writes starts like a pickle or like torch.save's archive of pickles."""
    from palkit.config import config_from_dict
    from palkit.experiments.experiment import rounds

    list(rounds(config_from_dict({**tiny_run, "rounds": 1})))
    files = [path for path in Path(os.environ["PALKIT_RUNS"]).rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    for path in files:
        assert not path.read_bytes()[:2].startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")), path
