"""Downloads against a server that cuts, refuses and lies; archives that are damaged or hostile."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dataset_helpers import FileServer, serving

from palkit.data import download
from palkit.data.download import Remote, fetched, secure, unpack, unpacked
from palkit.errors import DataError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0)
    with serving() as files:
        files.publish("set.bin", CONTENT)
        yield files


@pytest.fixture
def remote(server: FileServer) -> Remote:
    return Remote(f"{server.url}/set.bin", CHECKSUM, "set.bin")


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    assert fetched(remote, tmp_path / "new").read_bytes() == CONTENT
    assert fetched(remote, tmp_path / "new") == tmp_path / "new" / "set.bin"
    assert server.requests == [("/set.bin", None)]
    assert visible(tmp_path / "new") == ["set.bin"]


def test_a_cut_connection_is_continued(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    server.cuts = [2_000_000, 400_000]
    assert fetched(remote, tmp_path).read_bytes() == CONTENT
    (_, first), (_, second), (_, third) = server.requests
    assert first is None
    kept = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in (second, third) if wanted]
    assert 2_000_000 - download.CHUNK_BYTES < kept[0] <= 2_000_000
    assert kept[0] + 400_000 - download.CHUNK_BYTES < kept[1] <= kept[0] + 400_000
    assert server.sent < len(CONTENT) + 2 * download.CHUNK_BYTES, "next to nothing came twice"


def test_without_range_it_starts_again(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [2_000_000]
    assert fetched(remote, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert server.sent == len(CONTENT) + 2_000_000


@pytest.mark.parametrize(("there", "sent"), [(1_000_000, 2_000_000), (3_000_000, 0)])
def test_what_a_killed_process_left_is_continued(
    server: FileServer, remote: Remote, tmp_path: Path, there: int, sent: int
) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:there])
    assert fetched(remote, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/set.bin", f"bytes={there}-")]
    assert server.sent == sent
    assert visible(tmp_path) == ["set.bin"]


def test_a_part_longer_than_the_file_is_thrown_away(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT + b"x")
    assert fetched(remote, tmp_path).read_bytes() == CONTENT


def test_giving_up_keeps_the_part_and_says_so(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    server.cuts = [1_000_000] + [0] * download.ATTEMPTS
    with pytest.raises(DataError, match=r"set\.bin could not be downloaded from http.*continues where it stopped"):
        fetched(remote, tmp_path)
    assert len(server.requests) == 1 + download.ATTEMPTS
    assert visible(tmp_path) == ["set.bin.part"]
    assert fetched(remote, tmp_path).read_bytes() == CONTENT
    assert server.sent < len(CONTENT) + download.CHUNK_BYTES


def test_a_wrong_checksum_leaves_nothing(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    server.publish("set.bin", CONTENT[:-1] + b"x")
    with pytest.raises(DataError) as error:
        fetched(remote, tmp_path)
    for part in (remote.url, f"put it at {tmp_path / 'set.bin'}", f"expected {CHECKSUM[7:]}", "not the published file"):
        assert part in str(error.value)
    assert visible(tmp_path) == []


def test_a_damaged_part_does_not_block_the_next_attempt(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="not the published file"):
        fetched(remote, tmp_path)
    assert fetched(remote, tmp_path).read_bytes() == CONTENT


def test_404_is_not_tried_again(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gone\.zip could not be downloaded from .*/gone\.zip: .*404 Not Found.*put it"
    ):
        fetched(Remote(f"{server.url}/gone.zip", CHECKSUM, "gone.zip"), tmp_path)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    server.answers = [503, 429]
    assert fetched(remote, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_no_network(server: FileServer, tmp_path: Path) -> None:
    with serving() as gone:
        remote = Remote(f"{gone.url}/set.bin", CHECKSUM, "set.bin")
    with pytest.raises(DataError, match=r"could not be downloaded.*Check the network.*by hand and put it at"):
        fetched(remote, tmp_path)


def test_waiting_doubles(server: FileServer, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 1.0)
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=waits.append))
    server.answers = [503] * download.ATTEMPTS
    with pytest.raises(DataError, match="503"):
        fetched(remote, tmp_path)
    assert waits == [1, 2, 4, 8]


def test_a_file_put_there_by_hand_is_verified_and_used(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(CONTENT)
    assert fetched(remote, tmp_path).read_bytes() == CONTENT
    (tmp_path / "set.bin").write_bytes(b"an error page")
    with pytest.raises(DataError, match=r"set\.bin is not the published file.*Delete it"):
        fetched(remote, tmp_path)
    assert server.requests == []


def test_only_https_leaves_this_machine(
    server: FileServer, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert secure("http://example.org/http://x") == "https://example.org/http://x"
    assert secure("https://example.org/") == "https://example.org/"
    assert secure(remote.url) == remote.url
    monkeypatch.setattr(download, "LOOPBACK", {"127.0.0.1"})
    server.redirects["/moved"] = f"{server.url.replace('127.0.0.1', 'localhost')}/set.bin"
    with pytest.raises(DataError, match=r"leads to http://localhost.*not https"):
        fetched(Remote(f"{server.url}/moved", CHECKSUM, "set.bin"), tmp_path)


def test_a_full_disk_is_noticed_first(
    server: FileServer, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_900_000))
    with pytest.raises(DataError, match=r"needs 0\.0 GB in .* are free"):
        fetched(remote, tmp_path)


def test_processes_at_once_download_once(server: FileServer, remote: Remote, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda _: fetched(remote, tmp_path), range(4)))) == 1
    assert len(server.requests) == 1


def zipped(**files: str) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return buffer.getvalue()


def test_an_archive_is_unpacked_once(server: FileServer, tmp_path: Path) -> None:
    md5 = server.publish("set.zip", zipped(**{"a/b.txt": "text"}))
    remote = Remote(f"{server.url}/set.zip", f"md5:{md5}", "set.zip")
    target = unpacked(remote, tmp_path, "unpacked")
    assert (target / "a" / "b.txt").read_text() == "text"
    (tmp_path / "set.zip").unlink()
    assert unpacked(remote, tmp_path, "unpacked") == target
    assert len(server.requests) == 1


@pytest.mark.parametrize("path", ["../out.txt", "a/../../out.txt", "/tmp/palkit-out.txt"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: str, form: str) -> None:
    archive = tmp_path / f"bad.{form}"
    if form == "zip":
        archive.write_bytes(zipped(**{"good.txt": "x", path: "x"}))
    else:
        with tarfile.open(archive, "w") as tar:
            tar.addfile(tarfile.TarInfo(path), BytesIO())
    with pytest.raises(DataError, match=r"bad\.\w+ cannot be unpacked"):
        unpack(archive, tmp_path / "target")
    assert visible(tmp_path) == [archive.name]
    assert not Path("/tmp/palkit-out.txt").exists()


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("link")
    member.create_system, member.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr(member, "/etc/passwd")
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(link)
    for archive in ("bad.zip", "bad.tar"):
        with pytest.raises(DataError, match=f"{archive} cannot be unpacked"):
            unpack(tmp_path / archive, tmp_path / "target")


def test_a_python_without_tar_filters_unpacks_and_refuses_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TAR_FILTER", {})
    for name in ("good.txt", "../bad.txt"):
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("folder/first.txt"), BytesIO())
            tar.addfile(tarfile.TarInfo(name), BytesIO())
        if name == "good.txt":
            assert visible(unpack(tmp_path / "set.tar", tmp_path / "target")) == ["folder", "good.txt"]
        else:
            with pytest.raises(DataError, match="leads out of the folder"):
                unpack(tmp_path / "set.tar", tmp_path / "other")
    assert visible(tmp_path) == ["set.tar", "target"]


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match=r"set\.tar\.gz cannot be unpacked.*Delete it"):
        unpack(tmp_path / "set.tar.gz", tmp_path / "target")
    assert visible(tmp_path) == ["set.tar.gz"]


def test_a_kill_while_unpacking_is_not_taken_for_complete(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(zipped(**{"a.txt": "1", "b.txt": "2"}))
    code = (
        "import os, sys; from pathlib import Path; from palkit.data import download\n"
        "os.replace = lambda *paths: os._exit(9)\n"
        "download.unpack(Path('set.zip').absolute(), Path('target').absolute())"
    )
    root = Path(download.__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, check=False)
    assert killed.returncode == 9
    assert not (tmp_path / "target").exists()
    assert len(visible(tmp_path)) == 2, "what it had unpacked is still there"
    unpack(tmp_path / "set.zip", tmp_path / "target")
    assert visible(tmp_path) == ["set.zip", "target"]
    assert visible(tmp_path / "target") == ["a.txt", "b.txt"]
