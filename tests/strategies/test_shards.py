"""Arrays in memory-mapped shards: the same selections as from RAM, in less memory than the pool takes."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_strategies import NAMES, choose, generator, make_labelled, make_pool

from palkit.errors import DataError
from palkit.storage import shards as shards_module
from palkit.storage.shards import Shards, is_shard, open_shards, shard_path, shard_ranges, write_manifest
from palkit.strategies import select
from palkit.strategies.scores import LabelledSet, PoolScores


def write_shards(folder: Path, features: torch.Tensor, sizes: list[int]) -> list[Path]:
    paths = []
    for number, part in enumerate(features.split(sizes)):
        paths.append(folder / f"features-{number:05d}.npy")
        np.save(paths[-1], part.numpy())
    return paths


@pytest.mark.parametrize("name", NAMES)
def test_same_selection_from_shards_as_from_ram(name: str, tmp_path: Path) -> None:
    pool, labelled = make_pool(90, 6, 3, 0), make_labelled(90, 8, 3, 0)
    shards = Shards(write_shards(tmp_path, pool.features, [40, 1, 30, 19]))
    mapped = PoolScores(shards, pool.probs, pool.stochastic_probs)  # type: ignore[arg-type]
    for options in ({}, {"balance": "pcb"}, {"subsample": 30}):
        plain = choose(name, pool, labelled, 7, generator(), **options)
        assert torch.equal(plain, choose(name, mapped, labelled, 7, generator(), **options))


def test_shards_read_like_one_tensor(tmp_path: Path) -> None:
    rows = torch.randn(20, 3, generator=generator())
    shards = Shards(write_shards(tmp_path, rows, [7, 0, 13]))
    assert (len(shards), shards.shape, shards.ndim) == (20, (20, 3), 2)
    assert torch.equal(shards[5:9], rows[5:9])
    assert torch.equal(shards[:], rows)
    assert torch.equal(shards[3:3], rows[3:3])
    assert torch.equal(shards[1:18:4], rows[1:18:4])
    index = torch.tensor([19, 0, 7, 6, 7])
    assert torch.equal(shards[index], rows[index])
    half = Shards(write_shards(tmp_path, rows.half(), [10, 10]))
    assert torch.equal(half[8:12], rows[8:12].half().float())


def test_bad_shards_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((3, 4), np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((3, 2), np.int64))
    with pytest.raises(DataError, match=r"wide\.npy holds rows of shape \(4,\) float32.*a\.npy of shape \(2,\)"):
        Shards([tmp_path / "a.npy", tmp_path / "wide.npy"])
    with pytest.raises(DataError, match=r"whole\.npy must hold"):
        Shards([tmp_path / "whole.npy"])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-4])
    with pytest.raises(DataError, match=r"cut\.npy cannot be read as a shard.*Delete it"):
        Shards([tmp_path / "cut.npy"])
    with pytest.raises(DataError, match="no shards"):
        Shards([])


@pytest.mark.parametrize("dtype", [np.float16, np.uint8])
def test_rows_of_any_shape_and_type(tmp_path: Path, dtype: type) -> None:
    rows = np.random.default_rng(0).integers(0, 200, (11, 2, 3)).astype(dtype)
    for number, part in enumerate((rows[:4], rows[4:])):
        np.save(shard_path(tmp_path, number), part)
    write_manifest(tmp_path, 2, {"what": "a test"})
    stored = open_shards(tmp_path)
    assert stored.shape == rows.shape
    assert np.array_equal(stored[2:7].numpy(), rows[2:7])
    assert stored[2:7].numpy().dtype == dtype
    assert np.array_equal(stored[torch.tensor([10, 0, 3])].numpy(), rows[[10, 0, 3]])
    assert open_shards(tmp_path, torch.float32)[:].dtype == torch.float32


def test_manifest_describes_the_folder_and_is_checked(tmp_path: Path) -> None:
    np.save(shard_path(tmp_path, 0), np.zeros((3, 2), np.float32))
    np.save(shard_path(tmp_path, 1), np.ones((2, 2), np.float32))
    write_manifest(tmp_path, 2, {"weights_sha256": "abc"})
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert (content["shape"], content["dtype"]) == ([5, 2], "float32")
    assert content["made_from"] == {"weights_sha256": "abc"}
    digest = hashlib.sha256(shard_path(tmp_path, 1).read_bytes()).hexdigest()
    assert content["shards"][1] == {"file": "00001.npy", "rows": 2, "sha256": digest}
    np.save(shard_path(tmp_path, 1), np.ones((1, 2), np.float32))
    with pytest.raises(DataError, match=r"holds \(4, 2\), its manifest says \(5, 2\)"):
        open_shards(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is no manifest"):
        open_shards(tmp_path)


def test_shards_end_where_batches_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 1000)
    ranges = shard_ranges(100, row_bytes=10, multiple=32)
    assert ranges == [range(0, 96), range(96, 100)]
    assert shard_ranges(3, row_bytes=10**9, multiple=32) == [range(3)]
    many = shard_ranges(1_000_000, row_bytes=10**6, multiple=128)
    assert len(many) <= 256, "a process may open 1024 files, and this is not its only array"
    assert all(len(rows) % 128 == 0 for rows in many[:-1])
    assert [row for rows in shard_ranges(1001, row_bytes=10**6, multiple=2) for row in rows] == list(range(1001))
    assert shard_ranges(0, row_bytes=10, multiple=32) == []


def test_what_is_not_a_whole_shard(tmp_path: Path) -> None:
    path = tmp_path / "00000.npy"
    assert not is_shard(path, 4, (2,), np.dtype(np.float32))
    np.save(path, np.zeros((4, 2), np.float32))
    assert is_shard(path, 4, (2,), np.dtype(np.float32))
    assert not is_shard(path, 5, (2,), np.dtype(np.float32))
    assert not is_shard(path, 4, (3,), np.dtype(np.float32))
    assert not is_shard(path, 4, (2,), np.dtype(np.float16))
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_shard(path, 4, (2,), np.dtype(np.float32))


LIMITED = """
import json, resource, sys
import torch
from palkit.strategies import kernels
from palkit.strategies.scores import LabelledSet, PoolScores
from palkit.strategies import Shards, select
torch.set_num_threads(1)
kernels.CHUNK_ELEMENTS = 2**18  # chunks small against the limit
how, paths, spare = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
shards = Shards(paths)
torch.randn(512, 512) @ torch.randn(512, 512)  # BLAS takes its work space
probs = torch.randn(len(shards), 10, generator=torch.Generator().manual_seed(0)).softmax(1)
labelled = LabelledSet(torch.arange(20), torch.arange(20) % 10)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + spare, used + spare))
scores = PoolScores(shards if how == "shards" else shards[:], probs)
picks = {
    name: select(name, scores, labelled, 10, torch.Generator().manual_seed(1)).tolist()
    for name in ("entropy", "featdist", "coreset", "badge", "centroid", "falcun")
}
print(json.dumps(picks))
"""


def run_limited(how: str, paths: list[Path], spare: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, how, json.dumps([str(p) for p in paths]), str(spare)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RLIMIT_DATA is Linux")
def test_pool_larger_than_memory(tmp_path: Path) -> None:
    """51 MB of features under a limit of 32 MB: not from RAM, but from shards, with the picks of RAM."""
    features = torch.randn(50_000, 256, generator=generator())
    paths = write_shards(tmp_path, features, [20_000, 22_000, 8_000])
    limit = 32 * 2**20
    assert "llocate" in run_limited("ram", paths, limit).stderr
    small = run_limited("shards", paths, limit)
    assert small.returncode == 0, small.stderr
    probs = torch.randn(len(features), 10, generator=generator()).softmax(1)
    scores, labelled = PoolScores(Shards(paths)[:], probs), LabelledSet(torch.arange(20), torch.arange(20) % 10)
    for name, picks in json.loads(small.stdout).items():
        assert select(name, scores, labelled, 10, generator(1)).tolist() == picks
