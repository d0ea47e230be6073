"""Cached inputs: computed once, in shards that survive a kill, the same however they are read."""

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from palkit.data import FileImages, ImagePool, from_folder, head, load_dataset
from palkit.errors import DataError, WeightsError
from palkit.models.backbones import Backbone, BackboneConfig
from palkit.scoring.engine import ScoringConfig
from palkit.scoring.inputs import DecodedImages, InputCache, augmenter, decoded, seeded
from palkit.storage import shards as shards_module
from palkit.strategies.kernels import View

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    """Handwritten digits, seven batches of them."""
    return head(load_dataset("digits"), 150)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of one batch each."""
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 1)


@pytest.fixture
def photos(tmp_path: Path) -> ImagePool:
    """A folder of 60 images in files, of two classes and different sizes."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number:02d}.png")
    return from_folder(tmp_path / "photos")


def test_rows_are_what_the_backbone_computes(tiny: Backbone, pool: ImagePool) -> None:
    rows = np.array([7, 3, 400])
    cache = InputCache(pool, tiny, ScoringConfig(cache_dtype="float32"))
    with torch.inference_mode():
        tokens = tiny.prefix(tiny.preprocess(torch.from_numpy(pool.images.decode(rows, 32))), 2)
        features = tiny.suffix(tokens, 2)
    torch.testing.assert_close(cache.rows(2, rows)[:], tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.rows(4, rows)[:], features, atol=1e-5, rtol=1e-5)
    assert torch.equal(cache.features()[:][torch.from_numpy(rows)], cache.rows(4, rows)[:])


def test_inputs_are_computed_once(tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = InputCache(pool, tiny).shards(2)[:]
    monkeypatch.setattr(Backbone, "prefix", lambda *_: pytest.fail("computed again"))
    assert torch.equal(InputCache(pool, tiny).shards(2)[:], first)
    with pytest.raises(pytest.fail.Exception):
        InputCache(pool, tiny).shards(1)


def test_other_pixels_precision_or_batches_other_cache(tiny: Backbone, pool: ImagePool) -> None:
    configs = [{}, {"precision": "bfloat16"}, {"batch_size": 64}, {"cache_dtype": "float32"}]
    folders = {InputCache(pool, tiny, ScoringConfig(**config)).folder(2) for config in configs}
    folders |= {InputCache(head(pool, 100), tiny).folder(2), InputCache(pool, tiny).folder(3)}
    assert len(folders) == 6
    assert InputCache(pool, tiny).folder(2) in folders


def test_other_labels_same_cache(tiny: Backbone, pool: ImagePool) -> None:
    corrected = dataclasses.replace(pool, labels=(pool.labels + 1) % 10)
    assert corrected.checksum() != pool.checksum()
    assert InputCache(corrected, tiny).folder(2) == InputCache(pool, tiny).folder(2)


def test_tokens_are_half_precision_and_features_are_not(tiny: Backbone, pool: ImagePool) -> None:
    exact = InputCache(pool, tiny, ScoringConfig(cache_dtype="float32")).shards(2)
    half = InputCache(pool, tiny).shards(2)
    assert (half.stored, exact.stored) == (np.float16, np.float32)
    assert InputCache(pool, tiny).shards(4).stored == np.float32
    assert torch.equal(half[:], exact[:].half())


def test_bfloat16_is_close_and_not_equal(tiny: Backbone, pool: ImagePool) -> None:
    exact = InputCache(pool, tiny).features()[:]
    rough = InputCache(pool, tiny, ScoringConfig(precision="bfloat16")).features()[:]
    assert not torch.equal(rough, exact)
    assert torch.nn.functional.cosine_similarity(rough, exact).min() > 0.99


def test_tokens_beyond_half_precision_are_refused(tiny_config: BackboneConfig, pool: ImagePool) -> None:
    from palkit.models.backbones import load_backbone

    backbone = load_backbone(tiny_config)
    backbone.vit.blocks[1].mlp.fc2.bias.data.fill_(1e5)
    with pytest.raises(WeightsError, match=r"block 2 of 'test_vit' are not finite as float16.*cache_dtype to float32"):
        InputCache(pool, backbone).shards(2)
    assert InputCache(pool, backbone, ScoringConfig(cache_dtype="float32")).shards(2)[:].max() > 65_504


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_one_pass_makes_tokens_and_features_as_two_do(
    tiny: Backbone, pool: ImagePool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ScoringConfig(precision=precision, batch_size=64)
    made = {}
    for order in ((4, 2), (2, 4)):
        monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / str(order[0])))
        passes: list[int] = []
        prefix = Backbone.prefix
        with monkeypatch.context() as patched:
            patched.setattr(Backbone, "prefix", lambda *a, p=prefix, n=passes: n.append(len(a[1])) or p(*a))
            cache = InputCache(pool, tiny, config)
            made[order] = {block: cache.shards(block)[:] for block in order}
        assert sum(passes) == len(pool) * (2 if order[0] == 4 else 1)
    for block in (2, 4):
        assert torch.equal(made[4, 2][block], made[2, 4][block])


def test_features_that_are_not_finite_are_named_and_not_kept(tiny: Backbone, pool: ImagePool) -> None:
    backbone = copy.deepcopy(tiny)
    backbone.vit.norm.weight.data.fill_(torch.inf)
    cache = InputCache(pool, backbone)
    assert cache.shards(2)[:].isfinite().all()
    with pytest.raises(WeightsError, match="images 0 to 127 are broken"):
        cache.shards(4)


@pytest.mark.usefixtures("small_shards")
def test_shards_hold_the_same_bits_as_one_array(
    tiny: Backbone, pool: ImagePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = InputCache(pool, tiny).shards(2)
    assert len(many.maps) == -(-len(pool) // 128) > 1
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 2**30)
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "one"))
    one = InputCache(pool, tiny).shards(2)
    assert len(one.maps) == 1
    assert torch.equal(one[:], many[:])


def test_rows_beyond_the_memory_limit_are_read_when_asked_for(
    tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pool.rows("pool")
    cache = InputCache(pool, tiny)
    in_memory = cache.rows(2, rows)
    assert isinstance(in_memory, torch.Tensor)
    monkeypatch.setenv("PALKIT_MEMORY", "1K")
    streamed = cache.rows(2, rows)
    assert isinstance(streamed, View)
    assert len(streamed) == len(rows)
    assert torch.equal(streamed[20:90], in_memory[20:90])


@pytest.mark.usefixtures("small_shards")
def test_damaged_and_missing_shards_are_computed_again(
    tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = InputCache(pool, tiny)
    whole = cache.shards(2)[:]
    folder = cache.folder(2)
    (folder / "manifest.json").unlink()
    (folder / "00001.npy").unlink()
    (folder / ".writing-abc.npy").write_bytes(b"left by a kill")
    path = folder / "00002.npy"
    path.write_bytes(path.read_bytes()[:-10])
    seen: list[int] = []
    prefix = Backbone.prefix
    monkeypatch.setattr(Backbone, "prefix", lambda *a: seen.append(len(a[1])) or prefix(*a))
    assert torch.equal(cache.shards(2)[:], whole)
    assert seen == [128, 128], "only those two"
    assert not list(folder.glob(".writing-*"))


KILLED = """
import sys, time
from palkit.storage import shards
from palkit.models.backbones import BackboneConfig, load_backbone
from palkit.data import head, load_dataset
from palkit.scoring.inputs import InputCache
shards.SHARD_BYTES = 1
backbone = load_backbone(BackboneConfig("test_vit", image_size=32, depth=4, checkpoint=sys.argv[1]))
def progress(stage, done, total):
    print(done, flush=True)
    time.sleep(3600 if done >= 3 * 128 else 0)  # whoever kills this process has the time that it needs
InputCache(head(load_dataset("digits"), 150), backbone, progress=progress).shards(2)
"""


@pytest.mark.campaign  # test_faults.py kills it at a random moment
@pytest.mark.usefixtures("small_shards")
def test_sigkill_while_embedding_loses_one_shard_at_most(
    tiny: Backbone, tiny_checkpoint: Path, pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", KILLED, str(tiny_checkpoint)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 3 * 128:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    cache = InputCache(pool, tiny)
    assert not (cache.folder(2) / "manifest.json").exists()
    kept = len(list(cache.folder(2).glob("[0-9]*.npy")))
    assert kept >= 2
    calls: list[int] = []
    prefix = Backbone.prefix
    monkeypatch.setattr(Backbone, "prefix", lambda *a: calls.append(1) or prefix(*a))
    shards = cache.shards(2)
    assert len(calls) == len(shards.maps) - kept
    manifest = json.loads((cache.folder(2) / "manifest.json").read_text())
    assert manifest["shape"] == [len(pool), *shards.shape[1:]]


def test_augmented_views_depend_on_image_seed_and_view_only(tiny: Backbone, pool: ImagePool) -> None:
    cache = InputCache(pool, tiny)
    views = cache.augmented(2, np.array([3, 7, 9]), "crop_flip", 2, seed=0)
    alone = cache.augmented(2, np.array([7]), "crop_flip", 2, seed=0)
    assert torch.equal(views[:, 1], alone[:, 0]), "bit for bit: a resumed run asks for many at once"
    assert not torch.allclose(views[0], views[1]), "views differ"
    assert not torch.allclose(views, cache.augmented(2, np.array([3, 7, 9]), "crop_flip", 2, seed=1))
    plain = cache.augmented(2, np.array([3, 7, 9]), "none", 2, seed=0)
    assert torch.equal(plain[0], cache.shards(2)[torch.tensor([3, 7, 9])].float())


def test_views_of_pooled_features_are_computed_once_by_all_runs(
    tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[str, int, int]] = []
    views = InputCache(pool, tiny).augmented(
        tiny.depth, np.array([3, 7, 9]), "crop", 2, seed=0, progress=lambda *report: reports.append(report)
    )
    assert reports == [("augmenting", done, 3) for done in (1, 2, 3)]
    InputCache(pool, tiny).augmented(2, np.array([7]), "crop", 2, seed=0)
    files = sorted(Path(os.environ["PALKIT_CACHE"]).glob("views/*/*"))
    assert len(files) == 3, "tokens, which are large, are not kept"
    files[0].write_bytes(files[0].read_bytes()[:-100])
    forwards: list[int] = []
    inputs = Backbone.inputs
    monkeypatch.setattr(Backbone, "inputs", lambda *given: forwards.append(1) or inputs(*given))
    again = InputCache(pool, tiny).augmented(tiny.depth, np.array([9, 3, 7]), "crop", 2, seed=0)
    assert torch.equal(again, views[:, [2, 0, 1]])
    assert len(forwards) == 1, "the damaged one alone"
    for other in ({"views": 3}, {"seed": 1}, {"augmentation": "crop_flip"}):
        asked = {"augmentation": "crop", "views": 2, "seed": 0} | other
        InputCache(pool, tiny).augmented(tiny.depth, np.array([3]), **asked)
    assert len(forwards) == 4


def test_views_go_with_the_pixels_of_a_name(tiny: Backbone, photos: ImagePool, tmp_path: Path) -> None:
    def views(row: int) -> torch.Tensor:
        pool = from_folder(tmp_path / "photos")
        return InputCache(pool, tiny).augmented(tiny.depth, np.array([row]), "crop", 2, seed=0)

    before = views(7)
    for label in ("cat", "dog"):
        for number in reversed(range(30)):  # the same pixels in the same order, under the next name
            (tmp_path / "photos" / label / f"{number:02d}.png").rename(
                tmp_path / "photos" / label / f"{number + 1:02d}.png"
            )
    assert from_folder(tmp_path / "photos").pixels_checksum == photos.pixels_checksum
    assert not torch.equal(views(7), before), "the crops are those of another name"
    assert not torch.equal(views(6), before), "the name is the same, its pixels are not"


def test_views_do_not_need_a_cache_that_can_be_written(
    tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = InputCache(pool, tiny).augmented(tiny.depth, np.array([3]), "crop", 2, seed=0)
    (tmp_path / "views").write_text("a file where the folder should be")
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path))
    found = InputCache(pool, tiny).augmented(tiny.depth, np.array([3]), "crop", 2, seed=0)
    assert torch.equal(found, expected)


def test_files_are_decoded_once(photos: ImagePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(photos.images, FileImages)
    reports: list[tuple[str, int, int]] = []
    images = decoded(photos.images, 32, photos.checksum(), lambda *report: reports.append(report))
    assert isinstance(images, DecodedImages)
    assert reports == [("decoding", n, 60) for n in range(1, 61)]
    rows = np.array([59, 0, 17])
    assert np.array_equal(images.decode(rows, 32), photos.images.decode(rows, 32))
    monkeypatch.setattr(FileImages, "decode", lambda *_: pytest.fail("decoded again"))
    again = decoded(photos.images, 32, photos.checksum())
    assert np.array_equal(again.decode(rows, 32), images.decode(rows, 32))


def test_embedding_from_files_and_from_decoded_pixels_is_the_same(
    tiny: Backbone, photos: ImagePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = InputCache(photos, tiny).features()[:]
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    cache = InputCache(photos, tiny)
    assert cache.images() is photos.images, "no room on the disk"
    assert torch.equal(cache.features()[:], cached)


def test_a_broken_file_is_named_and_nothing_else_is_lost(tiny: Backbone, photos: ImagePool) -> None:
    assert isinstance(photos.images, FileImages)
    broken = photos.images.paths[40]
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    with pytest.raises(DataError, match=rf"{broken.name} has changed since the data set was loaded"):
        InputCache(photos, tiny).features()
    with pytest.raises(DataError, match=rf"{broken.name} cannot be read as an image"):
        InputCache(from_folder(broken.parents[1]), tiny).features()
    broken.write_bytes(content)
    assert len(InputCache(photos, tiny).features()) == 60


def test_progress_counts_rows(tiny: Backbone, pool: ImagePool) -> None:
    reports: list[tuple[str, int, int]] = []
    listen: Callable[[str, int, int], None] = lambda *report: reports.append(report)  # noqa: E731
    InputCache(pool, tiny, progress=listen).shards(2)
    assert [stage for stage, _, _ in reports] == ["embedding"] * -(-len(pool) // 128)
    assert reports[0][1:] == (128, len(pool))
    assert reports[-1][1:] == (len(pool), len(pool))


def test_views_are_the_same_while_another_thread_draws() -> None:
    """As a widget does while a cell of the notebook computes: torch's transforms know one generator for all."""
    transform, image = augmenter("crop_flip", 16), torch.rand(3, 32, 32)
    keys = [(number, "image", 0) for number in range(200)]
    alone = [seeded(transform, image, key) for key in keys]
    with ThreadPoolExecutor(4) as threads:
        together = [
            list(found) for found in threads.map(lambda _: [seeded(transform, image, k) for k in keys], range(4))
        ]
    assert all(torch.equal(one, other) for found in together for one, other in zip(found, alone, strict=True))
