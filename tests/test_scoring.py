"""The scoring pass against the obvious one: decode, full forward, unmerged adapter, image by image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from palkit import scoring
from palkit.adapters import AdapterConfig, attach, merge, trainable_parameters
from palkit.backbones import Backbone
from palkit.datasets import ImagePool, head, load_dataset
from palkit.errors import ConfigError
from palkit.scores import Dropout
from palkit.scoring import InputCache, score_pool


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    return head(load_dataset("digits"), 150)


@pytest.mark.parametrize(
    "config",
    [AdapterConfig("linear_probe"), AdapterConfig("lora", start_block=0), AdapterConfig("lora", start_block=3)],
)
def test_one_cached_pass_equals_the_naive_loop(tiny: Backbone, pool: ImagePool, config: AdapterConfig) -> None:
    mean, std = torch.full((tiny.width,), 0.1), torch.full((tiny.width,), 0.7)
    model = attach(tiny, config, 10, mean, std, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    features, probs = [], []
    with torch.inference_mode():
        for row in range(len(pool)):
            pixels = tiny.preprocess(torch.from_numpy(pool.images.decode(np.array([row]), 32)))
            features.append((model.backbone(pixels) - mean) / std)
            probs.append(model.head(features[-1]).softmax(1))
    scores = score_pool(merge(model), InputCache(pool, tiny).inputs(model.start_block))
    torch.testing.assert_close(scores.features, torch.cat(features), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.probs, torch.cat(probs), atol=1e-5, rtol=1e-4)


def test_inputs_are_computed_once(tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch) -> None:
    first = InputCache(pool, tiny).inputs(2)
    monkeypatch.setattr(Backbone, "prefix", lambda *_: pytest.fail("computed again"))
    assert torch.equal(InputCache(pool, tiny).inputs(2), first)
    with pytest.raises(pytest.fail.Exception):
        InputCache(pool, tiny).inputs(1)


def test_other_pixels_other_cache(tiny: Backbone, pool: ImagePool) -> None:
    other = head(pool, 100)
    assert len(InputCache(pool, tiny).features()) == len(pool)
    assert len(InputCache(other, tiny).features()) == len(other)


def test_large_caches_are_half_precision(
    tiny: Backbone, pool: ImagePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = InputCache(pool, tiny).inputs(2).clone()
    monkeypatch.setattr(scoring, "FULL_PRECISION_BYTES", 0)
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "half"))
    half = InputCache(pool, tiny).inputs(2)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, atol=1e-2, rtol=1e-2)


def test_augmented_views_depend_on_image_seed_and_view_only(tiny: Backbone, pool: ImagePool) -> None:
    cache = InputCache(pool, tiny)
    views = cache.augmented(2, np.array([3, 7, 9]), "crop_flip", 2, seed=0)
    alone = cache.augmented(2, np.array([7]), "crop_flip", 2, seed=0)
    torch.testing.assert_close(views[:, 1], alone[:, 0])
    assert not torch.allclose(views[0], views[1]), "views differ"
    assert not torch.allclose(views, cache.augmented(2, np.array([3, 7, 9]), "crop_flip", 2, seed=1))
    plain = cache.augmented(2, np.array([3, 7, 9]), "none", 2, seed=0)
    assert torch.equal(plain[0], cache.inputs(2)[torch.tensor([3, 7, 9])])


def test_stochastic_passes_drop_features_before_the_head(
    tiny: Backbone, pool: ImagePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 64)
    model = attach(tiny, AdapterConfig("linear_probe"), 10, torch.zeros(tiny.width), torch.ones(tiny.width), seed=0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    inputs = InputCache(pool, tiny).features()
    plain = score_pool(model, inputs)
    scores = score_pool(model, inputs, dropout=Dropout(3, 0.75), rng=torch.Generator().manual_seed(5))
    assert torch.equal(scores.probs, plain.probs)
    assert scores.stochastic_probs is not None
    rng = torch.Generator().manual_seed(5)
    for rows in torch.arange(len(pool)).split(64):
        dropped = torch.rand(3, len(rows), tiny.width, generator=rng) < 0.75
        for t in range(3):
            kept = (plain.features[rows] * 4).masked_fill(dropped[t], 0)
            expected = (kept @ model.head.weight.T + model.head.bias).softmax(1).detach()
            torch.testing.assert_close(scores.stochastic_probs[t, rows], expected, atol=1e-5, rtol=1e-4)
    again = score_pool(model, inputs, dropout=Dropout(3, 0.75), rng=torch.Generator().manual_seed(5))
    assert torch.equal(scores.stochastic_probs, again.stochastic_probs)


@pytest.mark.parametrize("passes", [0, 2.5, True])
def test_dropout_refuses_passes(passes: object) -> None:
    with pytest.raises(ConfigError, match="passes"):
        Dropout(passes, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_dropout_refuses_rates(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate"):
        Dropout(2, rate)
