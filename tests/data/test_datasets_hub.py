"""Data sets of the Hugging Face Hub, from a small hub on this machine that the real client libraries talk to."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from dataset_helpers import encoded
from pyarrow import parquet

from palkit.data import FileImages, hub, load_dataset
from palkit.errors import DataError

pytestmark = pytest.mark.usefixtures("own_cache")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def table(labels: list[Any], seed: int, extra: Mapping[str, list[Any]] | None = None) -> bytes:
    """A parquet file as the Hub holds it: images as bytes and file name, classes as numbers."""
    images = [{"bytes": encoded(seed + n, "PNG"), "path": f"{n}.png"} for n in range(len(labels))]
    buffer = BytesIO()
    parquet.write_table(pa.table({"image": images, "label": labels, **(extra or {})}), buffer)
    return buffer.getvalue()


def card(splits: list[str], label: str = "{class_label: {names: {'0': wolf, '1': fox}}}", more: str = "") -> bytes:
    """The README of a data set, whose head says what the columns are and where the splits lie."""
    files = "".join(f"  - {{split: {split}, path: data/{split}-*}}\n" for split in splits)
    features = f"  - {{name: image, dtype: image}}\n  - {{name: label, dtype: {label}}}\n{more}"
    configs = f"configs:\n- config_name: default\n  data_files:\n{files}"
    return f"---\ndataset_info:\n  features:\n{features}{configs}---\n".encode()


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


class Hub(BaseHTTPRequestHandler):
    """What the client asks of huggingface.co: about a data set, about its files, and the files."""

    files: Mapping[str, bytes]
    unknown: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """Only ever asked about paths."""
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        self.answer(json.dumps([entry for entry in self.listing() if entry["path"] in wanted]).encode())

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/resolve/" in path and path.startswith("/datasets/wild/canids/"):
            name = path.split("/resolve/")[1].partition("/")[2]
            if name in self.files:
                return self.answer(self.files[name], {"ETag": f'"{hashlib.sha1(self.files[name]).hexdigest()}"'})
        elif path.startswith("/api/datasets/wild/canids/tree/"):
            under = path.partition("/tree/")[2].partition("/")[2]
            here = [entry for entry in self.listing() if under in ("", entry["path"], entry["path"].split("/")[0])]
            return self.answer(json.dumps([entry for entry in here if entry["path"] != under]).encode())
        elif path.rstrip("/") == "/api/datasets/wild/canids" or path.startswith("/api/datasets/wild/canids/revision/"):
            names = [{"rfilename": name} for name in self.files]
            about = {
                "id": "wild/canids",
                "sha": COMMIT,
                "siblings": names,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            return self.answer(json.dumps(about).encode())
        self.unknown.append(f"{self.command} {self.path}")
        return self.answer(b"{}", status=404)

    def listing(self) -> list[dict[str, Any]]:
        folders = {"type": "directory", "path": "data", "size": 0, "oid": "0" * 40}
        return [folders] + [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.files.items()
        ]

    def answer(self, content: bytes, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Environment of a process whose Hub is here, and what it asked for in vain."""
    files = {
        "README.md": card(["train", "test"]),
        "data/train-00000-of-00001.parquet": table([0, 1] * 20, 0),
        "data/test-00000-of-00001.parquet": table([1, 0] * 5, 100),
    }
    unknown: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"files": files, "unknown": unknown}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PALKIT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(hub.__file__).parents[2]),
    }
    try:
        yield environment, unknown
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_by_id_from_a_hub(
    client: tuple[dict[str, str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, unknown = client
    code = "from palkit.data import load_dataset; pool = load_dataset('hf:wild/canids'); print(pool.checksum())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stderr[-3000:], unknown)
    monkeypatch.setitem(sys.modules, "datasets", None)  # once it is there, neither library nor network is needed
    pool = load_dataset("hf:wild/canids")
    assert done.stdout.strip() == pool.checksum()
    assert pool.class_names == ("wolf", "fox")
    assert pool.counts().to_numpy().tolist() == [[18, 2, 5]] * 2
    assert isinstance(pool.images, FileImages)
    first = pool.images.paths[int(pool.rows("test")[0])]
    assert first.read_bytes() == encoded(100, "PNG")
    assert pool.labels[pool.rows("test")].tolist() == [1, 0] * 5


def local(root: Path, splits: Mapping[str, list[Any]], **options: Any) -> str:
    """The name of a data set that lies in a folder in the Hub's layout."""
    extra = options.pop("extra", None)
    files = {
        f"data/{split}-00000-of-00001.parquet": table(labels, 100 * n, extra)
        for n, (split, labels) in enumerate(splits.items())
    }
    return f"hf:{folder(root / 'canids', {'README.md': card(list(splits), **options), **files})}"


def test_one_split_is_split(tmp_path: Path) -> None:
    pool = load_dataset(local(tmp_path, {"train": [0, 1] * 20}))
    assert pool.counts().to_numpy().tolist() == [[12, 3, 5]] * 2


def test_official_splits_are_kept(tmp_path: Path) -> None:
    pool = load_dataset(local(tmp_path, {"train": [0, 1] * 6, "validation": [0, 1], "test": [1, 0] * 2}))
    assert pool.counts().to_numpy().tolist() == [[6, 1, 2]] * 2
    assert [name.split("/")[0] for name in pool.ids[pool.rows("val")]] == ["validation"] * 2


def test_the_validation_split_stands_in_for_a_test_split_without_labels(tmp_path: Path) -> None:
    pool = load_dataset(local(tmp_path, {"train": [0, 1] * 20, "validation": [0, 1] * 4, "test": [-1] * 6}))
    assert pool.counts().to_numpy().tolist() == [[18, 2, 4]] * 2
    assert pool.is_labelled
    assert {name.split("/")[0] for name in pool.ids[pool.rows("test")]} == {"validation"}


@pytest.mark.parametrize(
    ("label", "values", "names"),
    [("string", ["red", "arctic"], ("arctic", "red")), ("int64", [10, 9], ("9", "10"))],
)
def test_labels_of_text_and_numbers(tmp_path: Path, label: str, values: list[Any], names: tuple[str, ...]) -> None:
    pool = load_dataset(local(tmp_path, {"train": values * 20}, label=label))
    assert pool.class_names == names
    assert pool.label_names()[:2].tolist() == [str(value) for value in values]


def test_ambiguous_columns_are_listed(tmp_path: Path) -> None:
    more = "  - {name: season, dtype: {class_label: {names: {'0': winter, '1': summer}}}}\n"
    name = local(tmp_path, {"train": [0, 1] * 20}, more=more, extra={"season": [0, 1] * 20})
    with pytest.raises(
        DataError, match=r"1 image columns and 2 columns that may be the label.*label \(ClassLabel.*season"
    ):
        load_dataset(name)


def test_a_set_without_train_split_lists_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labelled splits north, south; expected is one, or train with test"):
        load_dataset(local(tmp_path, {"north": [0, 1], "south": [0, 1]}))


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'hf:/.*nowhere' could not be loaded.*Write hf:owner/name"):
        load_dataset(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="names no data set"):
        load_dataset("hf:")


def test_configurations_are_chosen_by_name(tmp_path: Path) -> None:
    name = local(tmp_path, {"train": [0, 1] * 20})
    readme = tmp_path / "canids" / "README.md"
    features = "  features:\n  - {name: image, dtype: image}\n  - {name: label, dtype: int64}\n"
    info = "".join(f"- config_name: {config}\n{features}" for config in ("winter", "summer"))
    data = "".join(f"- config_name: {config}\n  data_files: data/train-*\n" for config in ("winter", "summer"))
    readme.write_text(f"---\ndataset_info:\n{info}configs:\n{data}---\n")
    with pytest.raises(DataError, match=r"could not be loaded.*winter.*summer"):
        load_dataset(name)
    assert len(load_dataset(f"{name}@summer")) == 40


def test_a_kill_while_writing_is_not_taken_for_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = local(tmp_path, {"train": [0, 1] * 20})
    with monkeypatch.context() as patch:
        patch.setattr(hub.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_dataset(name)
    assert len(load_dataset(name)) == 40
    assert not list((tmp_path / "cache").rglob(".writing-*")), "what was left is gone"
