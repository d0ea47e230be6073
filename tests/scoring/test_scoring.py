"""The scoring pass against the obvious one: decode, full forward, unmerged adapter, image by image."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from breadth import some

from palkit.data import ImagePool
from palkit.errors import ConfigError
from palkit.models.adapters import AdaptedModel, AdapterConfig, attach, merge, trainable_parameters
from palkit.models.backbones import Backbone
from palkit.scoring.engine import ScoringConfig
from palkit.scoring.inputs import InputCache
from palkit.scoring.scorer import score_pool
from palkit.storage.shards import Shards
from palkit.strategies.scores import Dropout
from palkit.strategies.ties import Keys, drawn

EXACT = ScoringConfig(cache_dtype="float32")


pytestmark = pytest.mark.usefixtures("own_cache")


def fitted(backbone: Backbone, config: AdapterConfig) -> AdaptedModel:
    """As if it had learnt something."""
    mean, std = torch.full((backbone.width,), 0.1), torch.full((backbone.width,), 0.7)
    model = attach(backbone, config, 10, mean, std, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.temperature.fill_(1.5)
    return model


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig("linear_probe"),
        AdapterConfig("lora", start_block=0),
        AdapterConfig("lora", start_block=-1),
        AdapterConfig("vpt", rank=2, start_block=1, stop_block=3),
        AdapterConfig("bitfit", start_block=2),
    ],
    ids=lambda config: f"{config.name} {config.start_block}",
)
def test_one_cached_pass_equals_the_naive_loop(tiny: Backbone, pool: ImagePool, config: AdapterConfig) -> None:
    model = fitted(tiny, config)
    features, probs = [], []
    with torch.inference_mode():
        for row in range(len(pool)):
            pixels = tiny.preprocess(torch.from_numpy(pool.images.decode(np.array([row]), 32)))
            features.append((model.backbone(pixels) - 0.1) / 0.7)
            probs.append((model.head(features[-1]) / 1.5).softmax(1))
    scores = score_pool(merge(model), InputCache(pool, tiny, EXACT).shards(model.start_block), EXACT)
    torch.testing.assert_close(scores.features[:], torch.cat(features), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.probs, torch.cat(probs), atol=1e-5, rtol=1e-4)
    half = score_pool(model, InputCache(pool, tiny).shards(model.start_block))
    torch.testing.assert_close(half.probs, scores.probs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [1, 7, 128, 10_000])
def test_batch_size_changes_nothing_but_last_bits(tiny: Backbone, pool: ImagePool, size: int) -> None:
    model = merge(fitted(tiny, AdapterConfig("lora", start_block=2)))
    inputs = InputCache(pool, tiny).rows(2, pool.rows("val"))
    expected = score_pool(model, inputs)
    scores = score_pool(model, inputs, ScoringConfig(batch_size=size))
    torch.testing.assert_close(scores.probs, expected.probs, atol=1e-6, rtol=1e-5)


def test_inputs_on_disk_give_the_same_bits(tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = merge(fitted(tiny, AdapterConfig("lora", start_block=2)))
    cache = InputCache(pool, tiny)
    in_memory = score_pool(model, cache.rows(2, pool.rows("pool")))
    monkeypatch.setenv("PALKIT_MEMORY", "0")
    streamed = score_pool(model, cache.rows(2, pool.rows("pool")))
    assert torch.equal(in_memory.probs, streamed.probs)


def test_features_go_to_disk_if_asked(tiny: Backbone, pool: ImagePool, tmp_path: Path) -> None:
    model = merge(fitted(tiny, AdapterConfig("lora", start_block=2)))
    inputs = InputCache(pool, tiny).shards(2)
    plain = score_pool(model, inputs)
    scores = score_pool(model, inputs, folder=tmp_path / "scores")
    assert isinstance(scores.features, Shards)
    assert torch.equal(scores.features[:], plain.features[:])
    assert torch.equal(scores.probs, plain.probs)


def test_out_of_memory_halves_the_batch_and_changes_nothing(
    tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds 50 rows at a time, stochastic passes included."""
    model = merge(fitted(tiny, AdapterConfig("lora", start_block=2)))
    inputs = InputCache(pool, tiny).shards(2)
    dropout = Dropout(3, 0.5)
    plain = score_pool(model, inputs, dropout=dropout, rng=generator())
    suffix, sizes = Backbone.suffix, []

    def small(self: Backbone, tokens: torch.Tensor, start: int) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 50:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return suffix(self, tokens, start)

    monkeypatch.setattr(Backbone, "suffix", small)
    scores = score_pool(model, inputs, dropout=dropout, rng=generator())
    assert sizes[:4] == [128, 64, 32, 32]
    assert sizes.count(128) == 1
    torch.testing.assert_close(scores.probs, plain.probs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scores.stochastic_probs, plain.stochastic_probs, atol=1e-6, rtol=1e-5)


def test_memory_that_runs_out_while_results_arrive_loses_none(
    tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fitted(tiny, AdapterConfig("lora", start_block=-1))
    inputs = InputCache(pool, tiny).rows(model.start_block, np.arange(48))
    calm = score_pool(model, inputs, ScoringConfig(batch_size=16))
    failures = [torch.OutOfMemoryError("CUDA out of memory")]

    def landing(device: torch.device) -> Callable[[], None]:
        def landed() -> None:
            if failures:
                raise failures.pop()

        return landed

    monkeypatch.setattr("palkit.scoring.scorer.landing", landing)
    monkeypatch.setattr(torch, "empty", lambda *shape: torch.full(shape[0] if len(shape) == 1 else shape, torch.nan))
    found = score_pool(model, inputs, ScoringConfig(batch_size=16))
    assert not failures
    torch.testing.assert_close(found.probs, calm.probs)
    torch.testing.assert_close(found.features, calm.features)


def test_bfloat16_is_close(tiny: Backbone, pool: ImagePool) -> None:
    model = merge(fitted(tiny, AdapterConfig("lora", start_block=2)))
    inputs = InputCache(pool, tiny).shards(2)
    plain, rough = (score_pool(model, inputs, ScoringConfig(precision=p)) for p in ("float32", "bfloat16"))
    assert rough.probs.dtype == torch.float32
    assert not torch.equal(plain.probs, rough.probs)
    torch.testing.assert_close(rough.probs, plain.probs, atol=0.05, rtol=0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.campaign)])
def test_compiled_pass_is_the_same(
    tiny: Backbone, pool: ImagePool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as one graph; what torch makes of that graph by default takes a C++ compiler, and half a minute."""
    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = merge(fitted(tiny, AdapterConfig("lora", start_block=3)))
    inputs = InputCache(pool, tiny).rows(3, pool.rows("val"))
    compiled = score_pool(model, inputs, ScoringConfig(compile=True))
    torch.testing.assert_close(compiled.probs, score_pool(model, inputs).probs, atol=1e-5, rtol=1e-4)


def test_features_are_dropped_before_the_head(tiny: Backbone, pool: ImagePool) -> None:
    model = fitted(tiny, AdapterConfig("linear_probe"))
    config = ScoringConfig(batch_size=64)
    inputs = InputCache(pool, tiny, config).shards(tiny.depth)
    plain = score_pool(model, inputs, config)
    assert plain.names is None
    for batch in (7, 64, 1000):  # what is drawn does not depend on the batches
        config = ScoringConfig(batch_size=batch)
        scores = score_pool(model, inputs, config, dropout=Dropout(3, 0.75), rng=generator())
        torch.testing.assert_close(scores.probs, plain.probs, atol=1e-6, rtol=1e-5)
        assert scores.stochastic_probs is not None
        seed = int(torch.randint(2**62, (), generator=generator()))
        keys = Keys.of_positions(len(pool), 10).rows
        dropped = ~drawn(keys, seed, 3 * tiny.width, 0.25).view(len(pool), 3, tiny.width)
        for t in range(3):
            kept = (plain.features * 4).masked_fill(dropped[:, t], 0)
            expected = ((kept @ model.head.weight.T + model.head.bias) / 1.5).softmax(1).detach()
            torch.testing.assert_close(scores.stochastic_probs[t], expected, atol=1e-5, rtol=1e-4)
    again = score_pool(model, inputs, config, dropout=Dropout(3, 0.75), rng=generator())
    assert torch.equal(scores.stochastic_probs, again.stochastic_probs)


@pytest.mark.parametrize("on", ["features", "shared_features", "head"])
def test_what_is_dropped_does_not_hang_on_the_order_of_rows(on: str, tiny: Backbone, pool: ImagePool) -> None:
    model, names = fitted(tiny, AdapterConfig("linear_probe")), Keys.of(pool.ids, pool.class_names)
    inputs = InputCache(pool, tiny).shards(tiny.depth)[:]
    order = torch.randperm(len(pool), generator=generator(1))
    dropout = Dropout(4, 0.5, on)
    here = score_pool(model, inputs, dropout=dropout, rng=generator(), names=names)
    moved = Keys(names.rows[order], names.classes)
    there = score_pool(model, inputs[order], dropout=dropout, rng=generator(), names=moved)
    assert here.stochastic_probs is not None
    assert there.stochastic_probs is not None
    torch.testing.assert_close(there.stochastic_probs, here.stochastic_probs[:, order], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(here.stochastic_probs[0], here.stochastic_probs[1], atol=1e-3)


def test_shared_masks_make_a_pass_one_function(tiny: Backbone, pool: ImagePool) -> None:
    """Copies of an image get the same probabilities in every pass, which own masks of each row would not give."""
    model = fitted(tiny, AdapterConfig("linear_probe"))
    inputs = InputCache(pool, tiny).shards(tiny.depth)[:][torch.tensor([3, 3, 8, 3])]
    shared = score_pool(model, inputs, dropout=Dropout(6, 0.5, "shared_features"), rng=generator()).stochastic_probs
    own = score_pool(model, inputs, dropout=Dropout(6, 0.5, "features"), rng=generator()).stochastic_probs
    assert shared is not None
    assert own is not None
    torch.testing.assert_close(shared[:, [0, 0]], shared[:, [1, 3]], atol=1e-6, rtol=1e-5)
    assert (shared.std(0) > 1e-4).any()
    assert not torch.allclose(own[:, 0], own[:, 1], atol=1e-3)


def test_weights_of_the_head_are_dropped_alike_for_all_rows(tiny: Backbone, pool: ImagePool) -> None:
    model = fitted(tiny, AdapterConfig("linear_probe"))
    inputs = InputCache(pool, tiny).shards(tiny.depth)
    scores = score_pool(model, inputs, dropout=Dropout(4, 0.3, "head"), rng=generator())
    assert scores.stochastic_probs is not None
    kept = torch.rand(4, 10, tiny.width, generator=generator()) >= 0.3
    for t in range(4):
        weight = model.head.weight.detach() * kept[t] / 0.7
        expected = ((scores.features[:] @ weight.T + model.head.bias.detach()) / 1.5).softmax(1)
        torch.testing.assert_close(scores.stochastic_probs[t], expected, atol=1e-5, rtol=1e-4)
    smaller = score_pool(model, inputs, ScoringConfig(batch_size=33), dropout=Dropout(4, 0.3, "head"), rng=generator())
    torch.testing.assert_close(smaller.stochastic_probs, scores.stochastic_probs, atol=1e-5, rtol=1e-4)


def test_adapter_passes_run_only_the_blocks_that_are_random(
    tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fitted(tiny, AdapterConfig("lora", start_block=2))
    inputs = InputCache(pool, tiny).rows(2, pool.rows("val"))
    plain = score_pool(model, inputs)
    ran: list[int] = []
    block = Backbone.block
    monkeypatch.setattr(Backbone, "block", lambda *a: ran.append(a[2]) or block(*a))
    scores = score_pool(model, inputs, dropout=Dropout(5, 0.2, "adapter"), rng=generator())
    assert set(ran) == {2, 3}
    assert len(ran) == 2 * (1 + 5) * -(-len(inputs) // 128)
    passes = scores.stochastic_probs
    assert passes is not None
    assert torch.equal(scores.probs, plain.probs), "the certain pass drops nothing"
    assert passes.shape == (5, len(inputs), 10)
    assert all(not torch.equal(passes[0], passes[t]) for t in range(1, 5))
    gentle = score_pool(model, inputs[:20], dropout=Dropout(300, 0.02, "adapter"), rng=generator())
    assert gentle.stochastic_probs is not None
    assert 0 < gentle.stochastic_probs.std(0).mean() < passes[:, :20].std(0).mean() / 2, "fewer dropped, less spread"
    torch.testing.assert_close(gentle.stochastic_probs.mean(0), plain.probs[:20], atol=0.02, rtol=0)
    again = score_pool(model, inputs, dropout=Dropout(5, 0.2, "adapter"), rng=generator())
    assert torch.equal(again.stochastic_probs, passes)
    other = score_pool(model, inputs, dropout=Dropout(5, 0.2, "adapter"), rng=generator(6))
    assert not torch.equal(other.stochastic_probs, passes)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-3)])
def test_adapter_passes_are_as_precise_as_the_certain_one(
    tiny: Backbone, pool: ImagePool, precision: str, tolerance: float
) -> None:
    model = fitted(tiny, AdapterConfig("lora", start_block=2))
    inputs = InputCache(pool, tiny).rows(2, np.arange(40))
    nothing = Dropout(1, 1e-9, "adapter")
    scores = score_pool(model, inputs, ScoringConfig(precision=precision), dropout=nothing, rng=generator())
    assert scores.stochastic_probs is not None
    torch.testing.assert_close(scores.stochastic_probs[0], scores.probs, atol=tolerance, rtol=0)


def test_adapter_passes_leave_the_global_random_state_alone(tiny: Backbone, pool: ImagePool) -> None:
    model = fitted(tiny, AdapterConfig("lora", start_block=3))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    inputs = InputCache(pool, tiny).rows(3, np.arange(10))
    score_pool(model, inputs, dropout=Dropout(2, 0.5, "adapter"), rng=generator())
    assert torch.equal(torch.rand(2), expected)


def test_an_adapter_without_a_low_rank_path_cannot_be_dropped(tiny: Backbone, pool: ImagePool) -> None:
    model = fitted(tiny, AdapterConfig("bitfit", start_block=3))
    inputs = InputCache(pool, tiny).rows(3, np.arange(10))
    with pytest.raises(ConfigError, match=r"bitfit.*no low-rank path"):
        score_pool(model, inputs, dropout=Dropout(2, 0.5, "adapter"), rng=generator())
    with pytest.raises(ConfigError, match="need a generator"):
        score_pool(model, inputs, dropout=Dropout(2, 0.5))


@pytest.mark.parametrize("passes", [0, 2.5, True])
def test_dropout_refuses_passes(passes: object) -> None:
    with pytest.raises(ConfigError, match="passes"):
        Dropout(passes, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_dropout_refuses_rates(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate"):
        Dropout(2, rate)


def test_dropout_refuses_places() -> None:
    with pytest.raises(ConfigError, match=r"unknown dropout_on 'feature'. Did you mean 'features'"):
        Dropout(2, 0.5, "feature")


LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from palkit.models.adapters import AdapterConfig, attach
from palkit.models.backbones import BackboneConfig, load_backbone
from palkit.scoring.scorer import score_pool
from palkit.storage.shards import open_shards
torch.set_num_threads(1)
how, folder, checkpoint, spare = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
backbone = load_backbone(BackboneConfig("test_vit", image_size=32, depth=4, checkpoint=checkpoint))
model = attach(backbone, AdapterConfig("lora", start_block=3), 10, torch.zeros(64), torch.ones(64), 0)
shards = open_shards(folder / "tokens")
score_pool(model, shards[:256])  # BLAS and friends take their work space
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + spare, used + spare))
scores = score_pool(model, shards if how == "shards" else shards[:], folder=folder / "scores")
print(json.dumps([float(scores.probs.double().sum()), float(scores.features[90_000:].double().sum())]))
"""


@pytest.mark.campaign
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RLIMIT_DATA is Linux")
def test_pool_larger_than_memory(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """64 MB of tokens and 26 MB of features under a limit of 40 MB: not from RAM, but from shards."""
    from palkit.storage.shards import shard_path, write_manifest

    (tmp_path / "tokens").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        np.save(shard_path(tmp_path / "tokens", number), rng.standard_normal((20_000, 5, 64)).astype(np.float16))
    write_manifest(tmp_path / "tokens", 5, {})

    def run(how: str, spare: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, how, str(tmp_path), str(tiny_checkpoint), str(spare)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    limit = 40 * 2**20
    assert run("ram", limit).returncode != 0
    small, large = run("shards", limit), run("ram", 100 * limit)
    assert small.returncode == 0, small.stderr
    assert json.loads(small.stdout) == json.loads(large.stdout)


@pytest.mark.parametrize("name", some(["lora", "linear_probe", "vpt", "dora"], every=2))
def test_float64_gives_what_float32_only_approaches(name: str, tiny: Backbone, pool: ImagePool) -> None:
    """The same to the last bit of float32 in other batches; the model stays as it was."""
    model = fitted(tiny, AdapterConfig(name, start_block=2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = {}
    for precision in ("float32", "float64"):
        for batch in (3, 64):
            config = ScoringConfig(precision, batch, cache_dtype="float32")
            inputs = InputCache(pool, tiny, config).shards(model.start_block)
            found[precision, batch] = score_pool(model, inputs, config)
    exact, other = found["float64", 3], found["float64", 64]
    assert torch.equal(exact.features[:], other.features[:])
    assert torch.equal(exact.probs, other.probs)
    assert exact.probs.dtype == torch.float32
    torch.testing.assert_close(found["float32", 64].probs, exact.probs, atol=1e-5, rtol=1e-4)
    assert not torch.equal(found["float32", 64].probs, exact.probs)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) and after[key].dtype == value.dtype for key, value in before.items())
