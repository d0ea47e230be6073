"""The commands that look at the machine and fill caches."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from palkit import devices
from palkit.__main__ import main
from palkit.config import config_from_dict
from palkit.setting import setting


@pytest.fixture
def arguments(tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "PROBE_SECONDS", 0.01)
    values = {key: yaml.safe_dump(value, default_flow_style=True).strip() for key, value in tiny_run.items()}
    return [f"{key}={value.removesuffix(chr(10) + '...')}" for key, value in values.items()]


def test_doctor_says_what_it_found_and_chose(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 0
    report = " ".join(capsys.readouterr().err.split())
    for part in ("device cpu", "threads", "GB free", "test_vit, 4 blocks, 32 px, 5 tokens", "images/s by batch size"):
        assert part in report
    assert "float32" in report
    assert "bfloat16" in report
    assert "chosen precision" in report
    assert "this config scoring.precision=float32 scoring.batch_size=128" in report


def test_auto_is_what_the_doctor_chose(
    arguments: list[str], tiny_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 0
    report = " ".join(capsys.readouterr().err.split())
    scoring = {"precision": "auto", "batch_size": None}
    config = setting(config_from_dict({**tiny_run, "scoring": scoring})).cache.config
    assert f"chosen precision {config.precision} (" in report
    assert f"batches of {config.batch_size}:" in report


def test_embed_fills_the_cache_of_a_run(
    arguments: list[str],
    tiny_run: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["embed", *arguments]) == 0
    output = " ".join(capsys.readouterr().err.split())
    assert "tokens entering block 2" in output
    assert "features" in output
    cache = setting(config_from_dict(tiny_run)).cache
    for block in (2, 4):
        assert str(cache.folder(block)) in output
    monkeypatch.setattr("palkit.inputs.Embedding.compute", lambda *_: pytest.fail("computed again"))
    cache.shards(2)
    cache.shards(4)


def test_bad_values_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "seed"]) == 1
    assert main(["run", "seed=["]) == 1
    assert main(["embed", "scoring.precision=float8"]) == 1
    errors = capsys.readouterr().err
    assert "'seed' is not KEY=VALUE" in errors
    assert "'seed=[': the value is not valid YAML" in errors
    assert "scoring.precision 'float8'" in errors
