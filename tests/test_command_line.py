"""The commands that look at the machine and fill caches."""

import re
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

import palkit.data
from palkit.cli import _options, main
from palkit.config import config_from_dict, typed
from palkit.data import load_dataset
from palkit.errors import ConfigError, DataNotice
from palkit.experiments.runs import RunDirectory, folder_name
from palkit.experiments.setting import setting
from palkit.models import devices
from palkit.storage.checks import normal
from palkit.storage.formats import write_table
from palkit.studies import advice


@pytest.fixture
def arguments(tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "PROBE_SECONDS", 0.01)
    values = {key: yaml.safe_dump(value, default_flow_style=True).strip() for key, value in tiny_run.items()}
    return [f"{key}={value.removesuffix(chr(10) + '...')}" for key, value in values.items()]


def test_doctor_says_what_it_found_and_chose(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_study = [("toy", 10, 1.0, "lora", "margin", budget, 5.0, 4.0, 6.0, 5) for budget in ("few", "more")]
    write_table(pd.DataFrame(of_study, columns=advice.COLUMNS), tmp_path / "gains.parquet")
    monkeypatch.setattr(advice, "EVIDENCE", tmp_path / "gains.parquet")
    assert main(["doctor", *arguments]) == 0
    report = " ".join(capsys.readouterr().err.split())
    for part in ("device cpu", "threads", "GB free", "test_vit, 4 blocks, 32 px, 5 tokens", "images/s by batch size"):
        assert part in report
    assert "float32" in report
    assert "bfloat16" in report
    assert "chosen precision" in report
    assert "this config scoring.precision=float32 scoring.batch_size=128" in report
    assert "strategy margin for up to 3 labels per class (+5.0 points over random, at worst +5.0), margin for" in report


def test_auto_is_what_the_doctor_chose(
    arguments: list[str], tiny_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 0
    report = " ".join(capsys.readouterr().err.split())
    scoring = {"precision": "auto", "batch_size": None}
    config = setting(config_from_dict({**tiny_run, "scoring": scoring})).cache.config
    assert f"chosen precision {config.precision} (" in report
    assert f"batches of {config.batch_size}:" in report


def test_a_run_on_grades_says_its_kappa(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["run", *arguments, "rounds=1"]) == 0
    assert "kappa" not in capsys.readouterr().err
    monkeypatch.setattr(palkit.data, "ORDINAL", {"digits"})
    assert main(["run", *arguments, "rounds=1"]) == 0
    report = capsys.readouterr().err
    assert re.search(r"round 0: 10 labels, accuracy \d\.\d{3}, kappa -?\d\.\d{3}, ", report), report


def test_grades_of_ones_own_are_registered_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(palkit.data, "ORDINAL", set())
    palkit.dataset("own_grades", ordinal=True)(lambda: palkit.load_dataset("digits"))
    palkit.dataset("own_classes")(lambda: palkit.load_dataset("digits"))
    assert {"own_grades"} == palkit.data.ORDINAL
    for name in ("own_grades", "own_classes"):
        palkit.data.DATASETS.pop(name)


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
    monkeypatch.setattr("palkit.scoring.inputs.Embedding.compute", lambda *_: pytest.fail("computed again"))
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


NAMES = [
    "run #3", "2024", "01", "1e3", "0x10", "1_000", "12:30", "2024-01-31", "null", "Null", "no", "on", "true", ".inf",
    "a: b", "a:", "{x}", "[v2] slides", "[", "{", "@x", "`x", "*new", "&a", "!old", "!!int 3", "%d", "|", ">", "- x",
    "-x", "?", "it's", "'q'", '"q"', "'q", "x ", " x", "~", "~x", "a=b", "#", "café", "肿瘤", "x" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["dataset", "backbone.checkpoint"])
def test_names_of_files_are_what_was_typed(
    key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell has taken its quotes away; what is left is the name, whatever YAML would make of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for given in (name, str(tmp_path / name)):
        found = Path(typed(key, given)).expanduser()
        assert found.resolve() == tmp_path / name


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("dataset", "2024", "2024"),
        ("dataset", "null", "null"),
        ("dataset", "'my slides'", "my slides"),
        ("strategy", '"badge"', "badge"),
        ("strategy", "no", "no"),
        ("balance", "null", None),
        ("balance", "", None),
        ("balance", "pcb", "pcb"),
        ("backbone.checkpoint", "~", None),
        ("backbone.checkpoint", "~/x.pth", "~/x.pth"),
        ("adapter", "lora", "lora"),
        ("adapter", "2024", "2024"),
        ("adapter", "{name: lora, rank: 8}", {"name": "lora", "rank": 8}),
        ("adapter.name", "no", "no"),
        ("adapter.rank", "8", 8),
        ("seed", "07", 7),
        ("pool_size", "null", None),
        ("pool_size", "auto", "auto"),
        ("strategy_options.beta", "1e-2", 0.01),
        ("training.head_lr", "1e-3", 0.001),
        ("training.head_lr", "5E-4", 0.0005),
        ("training.head_lr", "+.5e1", 5.0),
        ("training.head_lr", "1e3x", "1e3x"),
        ("strategy_options", "{beta: 2}", {"beta": 2}),
        ("nothing", "3", 3),
        ("seed.of", "3", 3),
    ],
)
def test_what_is_typed_is_what_the_field_declares(
    key: str, text: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(key, text) == value


def test_a_run_takes_the_folder_that_was_named_and_not_the_one_beside_it(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "[runs]"))
    monkeypatch.chdir(tmp_path)
    for name, brightness in (("run", 0), ("run #3", 100)):
        for label, shade in (("a", 20), ("b", 100)):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(20):
                Image.new("RGB", (32, 32), (brightness + shade, 3 * number, shade)).save(
                    tmp_path / name / label / f"{name} {number}.png"
                )
    assert main(["run", *arguments, "dataset=run #3", "pool_size=null", "batch_size=8", "rounds=1"]) == 0
    told = capsys.readouterr().err
    folder = Path(told.split("results: ")[1].strip())
    assert folder.parent == tmp_path / "[runs]" / "run_3", "not markup, but brackets"
    assert all("run #3" in image for image in RunDirectory("run #3", folder.name).selections()["id"])


@pytest.mark.parametrize(
    "given",
    [
        ["run", "--device", "cpu", "seed=1", "rounds=2"],
        ["run", "seed=1", "--device", "cpu", "rounds=2"],
        ["run", "seed=1", "rounds=2", "--device=cpu"],
        ["embed", "seed=1", "--workers", "2", "rounds=2", "--device", "cpu"],
        ["doctor", "seed=1", "--compile", "rounds=2", "--device", "cpu"],
    ],
)
def test_values_and_options_come_in_any_order(given: list[str]) -> None:
    assert (options := _options(given)).values == ["seed=1", "rounds=2"]
    assert options.device == "cpu"


@pytest.mark.parametrize(
    "given", [["run", "seed=1", "--devise", "cpu", "rounds=1"], ["sweep", "a", "--jobs", "1", "b"]]
)
def test_what_no_command_takes_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(given)
    assert "unrecognized arguments: " in capsys.readouterr().err


def test_a_folder_called_as_a_named_set_is_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataNotice)
        load_dataset("digits")
    (tmp_path / "digits").mkdir()
    with pytest.warns(DataNotice, match=r"'digits' is the data set of that name; .* write '\./digits'") as said:
        assert load_dataset("digits").name == "digits"
    assert len(said) == 1


def test_text_is_compared_by_what_is_seen() -> None:
    for unseen in "\u200b\ufeff\u2060\u00ad\u200e\u202a":
        assert normal(f"c{unseen}at{unseen}") == "cat"
        assert normal(f"e{unseen}\u0301") == "é"
    for kept in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "क्\u200dष", "👩\u200d🔬", "❤\ufe0f"):
        assert normal(kept) == kept


def test_yaml_that_is_no_text_says_how_to_make_it_text() -> None:
    for value in (2024, False, None, 1.5, date(2024, 1, 31)):
        with pytest.raises(ConfigError, match=r"dataset is .*; it must be a valid string\. In YAML, put it"):
            config_from_dict({"dataset": value})


@pytest.mark.parametrize(
    "name",
    [
        "x" * 101,
        "x" * 300,
        "肿瘤病理学" * 40,
        "/home/ana/" + "deep/" * 80 + "last",
        "é" * 60,
        "… a" * 400,
        "a\udce9" * 80,
    ],
)
def test_names_of_folders_fit_any_file_system(name: str) -> None:
    short = folder_name(name)
    assert len(short.encode()) <= 100
    assert len({folder_name(name), folder_name(f"{name}1"), folder_name(f"1{name}")}) == 3
    assert short == folder_name(name)


def test_short_names_of_folders_stay_what_they_were() -> None:
    kept = {"digits": "digits", "/data/run #3": "data_run_3", "x" * 100: "x" * 100, "é" * 50: "é" * 50, "..": "dataset"}
    assert {name: folder_name(name) for name in kept} == kept


def test_names_up_to_what_the_system_allows_work_and_longer_ones_are_named(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        path = tmp_path / "images" / "ab"[number % 2] / f"{'f' * 240}{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (8 * number, 200 * (number % 2), 0)).save(path)
    manifest = tmp_path / f"{'m' * 248}.csv"
    assert main(["manifest", str(tmp_path / "images"), str(manifest)]) == 0
    assert main(["run", *arguments, f"dataset={manifest}", "pool_size=null", "batch_size=8", "rounds=1"]) == 0
    capsys.readouterr()
    assert main(["manifest", str(tmp_path / "images"), str(tmp_path / f"{'m' * 300}.csv")]) == 1
    assert "File name too long). Give it a shorter name" in capsys.readouterr().err
    assert main(["run", f"dataset={'x' * 300}"]) == 1
