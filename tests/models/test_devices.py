"""Devices: which one, how much memory, how fast; what is measured once stays."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from palkit.errors import ConfigError, OutOfMemoryError
from palkit.models import devices
from palkit.models.backbones import Backbone
from palkit.models.devices import autocast, choose_device, doubled, memory_limit, probe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "PROBE_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("text", "size"), [("500M", 500 * 2**20), ("1.5g", 3 * 2**29), ("4GB", 2**32), ("4096", 4096), ("0", 0)]
)
def test_memory_limit(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALKIT_MEMORY", text)
    assert memory_limit() == size


@pytest.mark.parametrize("text", ["much", "-1G", "G", "nan"])
def test_memory_limit_refuses(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALKIT_MEMORY", text)
    with pytest.raises(ConfigError, match=r"PALKIT_MEMORY=.*500M"):
        memory_limit()


def test_memory_limit_is_a_quarter_of_machine_or_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALKIT_MEMORY", raising=False)
    total = 1024 * int(Path("/proc/meminfo").read_text().split()[1]) if Path("/proc/meminfo").exists() else 0
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(devices, "CONTAINER_LIMIT", limit)
    assert not total or memory_limit() == total // 4
    limit.write_text("1000000\n")
    assert memory_limit() == 250_000
    limit.write_text("max\n")
    assert not total or memory_limit() == total // 4


def test_float64_where_there_is_none_is_refused_before_a_number_is_converted() -> None:
    class Network(torch.nn.Linear):
        """On a device that is not here."""

        def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
            yield SimpleNamespace(device=torch.device("mps"))  # type: ignore[misc]

    network = Network(2, 2)
    with pytest.raises(ConfigError, match=r"this device \(mps\) has none"), doubled(network, "float64"):
        pass
    assert network.weight.dtype == torch.float32


def test_autocast_computes_in_the_precision_asked_for() -> None:
    a = torch.randn(8, 8)
    cpu = torch.device("cpu")
    with autocast(cpu, "float32"):
        assert (a @ a).dtype == torch.float32
    with autocast(cpu, "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16


def test_float32_means_float32_in_convolutions_too() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    assert before != (False, True), "else the test could not fail"
    with suppress(ZeroDivisionError), autocast(torch.device("cpu"), "float32"):
        assert (cudnn.allow_tf32, cudnn.deterministic) == (False, True)
        assert cudnn.conv.fp32_precision != "tf32"
        raise ZeroDivisionError
    assert (cudnn.allow_tf32, cudnn.deterministic) == before


def test_what_somebody_says_of_convolutions_alone_stays() -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        with autocast(torch.device("cpu"), "float32"):
            assert conv.fp32_precision == "ieee"
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = before
    assert torch.backends.cudnn.allow_tf32


def test_unknown_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"device 'tpu' is not available.*cpu"):
        choose_device("tpu")


def test_probe_measures_once_and_chooses_by_its_rule(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe("tiny", tiny, 32, torch.device("cpu"))
    assert set(first.rates) == {"float32", "bfloat16"}
    assert all(rate > 0 for by in first.rates.values() for rate in by.values())
    best = {precision: max(by.values()) for precision, by in first.rates.items()}
    assert (first.precision == "bfloat16") == (best["bfloat16"] >= 1.2 * best["float32"])
    fast_enough = [s for s, r in first.rates[first.precision].items() if r >= 0.95 * best[first.precision]]
    assert first.batch_size == min(fast_enough)
    monkeypatch.setattr(devices, "_rates", lambda *_: pytest.fail("measured again"))
    assert probe("tiny", tiny, 32, torch.device("cpu")) == first
    with pytest.raises(pytest.fail.Exception):
        probe("another", tiny, 32, torch.device("cpu"))
    with pytest.raises(pytest.fail.Exception):
        probe("tiny", tiny, 32, torch.device("cpu"), again=True)
    slow = {"float32": {8: 1.0}, "bfloat16": {8: 99.0}}
    monkeypatch.setattr(
        devices, "_rates", lambda *_: slow["bfloat16" if torch.is_autocast_enabled("cpu") else "float32"]
    )
    assert probe("tiny", tiny, 32, torch.device("cpu"), again=True).rates == slow
    assert probe("tiny", tiny, 32, torch.device("cpu")) == first, "what a run was hashed with stays"


def test_what_does_not_fit_is_said(tiny: Backbone) -> None:
    def too_large(pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate a lot")

    with pytest.raises(OutOfMemoryError, match="does not fit into the memory of cpu"):
        probe("large", too_large, 32, torch.device("cpu"))

    def middling(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixels

    assert max(probe("middling", middling, 32, torch.device("cpu")).rates["float32"]) == 64
