"""Files, data sets, sessions and calls that were once accepted, or ended in a traceback, are refused by name."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bad_arrays import checkpoint, npy_with
from bad_files import EPS
from bad_input import NAN, World, judge
from PIL import Image

from palkit.data import FileImages, load_dataset, read_image
from palkit.errors import ConfigError, DataError
from palkit.experiments.dispatch import DispatchConfig
from palkit.labelling.exchange import read_label_studio
from palkit.labelling.extrapolation import forecast
from palkit.labelling.labels import LabelLog
from palkit.labelling.session import open_session
from palkit.storage.shards import Shards
from palkit.strategies import select
from palkit.strategies.scores import LabelledSet, PoolScores


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _clean(world: World, own_cache: None) -> Iterator[None]:
    yield
    world.clear()


@pytest.mark.parametrize("name", ["x" * 5000, "/tmp/" + "x" * 5000, "/tmp/a\0b"])
def test_a_data_set_whose_name_no_file_can_have_is_not_there(name: str) -> None:
    with pytest.raises((ConfigError, DataError), match=r"unknown dataset|there is no folder or manifest"):
        load_dataset(name)


def test_a_manifest_line_that_no_file_can_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"path,label\n{'x' * 5000}.png,a\n")
    with pytest.raises(DataError, match=r"m\.csv, line 2: there is no file"):
        load_dataset(str(path))


def test_an_extremely_long_image_is_cut_before_it_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.zeros((1, 60_001), np.uint8)
    row[0, 30_000] = 255  # the middle
    Image.fromarray(row).save(tmp_path / "long.png")
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *a: sizes.append(size) or resize(image, size, *a))
    found = FileImages((tmp_path / "long.png",)).decode(np.array([0]), 518)
    assert sizes == [(51_800, 518)]
    assert found.shape == (1, 518, 518, 3)
    assert found.max() > 200


def test_a_postscript_program_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(EPS)
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image \(it is a PostScript program"):
        FileImages((tmp_path / "x.png",)).decode(np.array([0]), 32)


def test_16_bit_grey_in_blocks_is_what_it_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 65_535, (50, 40)).astype(np.uint16), rng.normal(size=(50, 40)).astype(np.float32)):
        file = io.BytesIO()
        Image.fromarray(values).save(file, "TIFF")
        monkeypatch.setattr("palkit.data.decoding.BLOCK", 10**9)
        whole = np.asarray(read_image(io.BytesIO(file.getvalue())))
        monkeypatch.setattr("palkit.data.decoding.BLOCK", 130)
        assert np.array_equal(np.asarray(read_image(io.BytesIO(file.getvalue()))), whole)


@pytest.mark.parametrize(
    "content", [b"", npy_with(b"[" * 9000 + b"\n"), npy_with(b"{'descr': '<f4'\n"), b"PK\x03\x04" + bytes(40)]
)
def test_a_damaged_shard_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"s\.npy cannot be read as a shard"):
        Shards([tmp_path / "s.npy"])


def test_an_archive_of_arrays_is_no_shard(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", np.zeros((3, 4), np.float32))
    with pytest.raises(DataError, match=r"s\.npz cannot be read as a shard"):
        Shards([tmp_path / "s.npz"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"action": "label", "label": ""}, "needs label"),
        ({"action": "skip", "id": ""}, "needs id"),
        ({"annotator": ""}, "needs annotator"),
        ({"time": "2026-01-31T12:00:00"}, "with an offset"),
    ],
)
def test_an_event_that_nobody_can_have_written_is_named(changes: dict[str, str], named: str, tmp_path: Path) -> None:
    event = {"time": "2026-01-31T12:00:00+00:00", "annotator": "ann", "action": "label", "id": "x.png", "label": "cat"}
    (tmp_path / "l.jsonl").write_text(json.dumps({**event, **changes}) + "\n")
    with pytest.raises(DataError, match=rf"l\.jsonl, line 1.*{named}"):
        LabelLog(tmp_path / "l.jsonl").events()


@pytest.mark.parametrize("content", [b'{"id": ' + b"9" * 5000 + b"}"])
def test_json_that_python_cannot_hold_is_named(content: bytes, tmp_path: Path) -> None:
    for name, read in {"l.jsonl": lambda path: LabelLog(path).events(), "l.json": read_label_studio}.items():
        (tmp_path / name).write_bytes(content + b"\n")
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_a_task_whose_address_is_none_is_named(tmp_path: Path) -> None:
    result = {"from_name": "label", "type": "choices", "value": {"choices": ["cat"]}}
    task = {"id": 7, "data": {"image": "http://[::1"}, "annotations": [{"result": [result]}]}
    (tmp_path / "l.json").write_text(json.dumps([task]))
    with pytest.raises(DataError, match=r"l\.json, task 1 \(id 7\): Invalid IPv6 URL"):
        read_label_studio(tmp_path / "l.json")


@pytest.mark.parametrize(
    ("column", "value"),
    [("time", "yesterday"), ("time", "2026-01-01"), ("label", 3), ("annotator", NAN), ("id", None)],
)
def test_an_import_cannot_spoil_the_log(column: str, value: Any, world: World, tmp_path: Path) -> None:
    session = open_session("digits", "ann", pool_size=60, folder=tmp_path, device="cpu", **world.tiny)
    row = {"id": next(iter(session.row_of)), "label": "3", "annotator": "bob", "time": ""}
    with pytest.raises(ConfigError, match=f"row 1.*{column}"):
        session.import_labels(pd.DataFrame([row | {column: value}], dtype=object))
    assert session.answers().empty
    assert session.import_labels(pd.DataFrame([row])) == 1


def test_a_misspelt_field_of_a_session_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"unknown field of a session .buget.\. Did you mean .budget."):
        open_session("digits", "ann", buget=3)


@pytest.mark.parametrize("change", [{"rank": "x"}, {"id": [1]}, {"probability": "x"}])
def test_a_session_file_of_wrong_types_is_named(change: dict[str, Any], world: World, tmp_path: Path) -> None:
    tree = json.loads(world.session)
    tree["proposed"] = [tree["proposed"][0] | change]
    (tmp_path / "session.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=rf"session\.json cannot be read.*{next(iter(change))}"):
        open_session("digits", "ann", pool_size=60, folder=tmp_path, device="cpu", **world.tiny)


@pytest.mark.parametrize("device", ["cpu:x", "tpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_named(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_fails("run", "--device", device, "dataset=digits")
    assert device in capsys.readouterr().err


def main_fails(*arguments: str) -> bool:
    from palkit.cli import main

    return main(list(arguments)) == 1


@pytest.mark.parametrize("values", [{"gpus": NAN}, {"gpus": -1.0}, {"jobs": "2"}, {"time_limit": NAN}, {"address": 5}])
def test_how_a_sweep_is_dispatched_is_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        DispatchConfig(engine="ray", **values)


@pytest.mark.parametrize("field", ["positions", "labels"])
def test_labelled_rows_are_whole_numbers(field: str, world: World) -> None:
    labelled = LabelledSet(torch.tensor([1, 2]), torch.tensor([0, 1]))
    odd = dataclasses.replace(labelled, **{field: getattr(labelled, field).float()})
    with pytest.raises(ConfigError, match="positions and labels must be two int64 vectors"):
        select("entropy", world.scores, odd, 2, torch.Generator())


def test_stochastic_passes_must_be_finite_and_fit(world: World) -> None:
    labelled = LabelledSet(torch.tensor([1, 2]), torch.tensor([0, 1]))
    good = world.scores
    passes = good.probs.repeat(3, 1, 1)
    passes[1, 2, 0] = NAN
    with pytest.raises(ConfigError, match="stochastic_probs of pool row 2 are not finite"):
        select("bald", PoolScores(good.features, good.probs, passes), labelled, 2, torch.Generator())
    with pytest.raises(ConfigError, match="stochastic_probs of shape"):
        PoolScores(good.features, good.probs, passes[:, 1:])


@pytest.mark.parametrize("field", ["labels", "accuracy", "held_out", "at", "coverage"])
@pytest.mark.parametrize("value", ["many", [[1], [1, 2]], {"a": 1}])
def test_a_forecast_names_what_is_no_number(field: str, value: Any) -> None:
    values: dict[str, Any] = {"labels": [10, 20], "accuracy": [0.3, 0.5], "held_out": 50, "at": [40], field: value}
    with pytest.raises(ConfigError, match=f"^{field}:"):
        forecast(**values)


def test_a_checkpoint_that_lacks_weights_is_refused(world: World) -> None:
    for content, reason in ((b"", ""), (saved({"a": 1}), "is not in it"), (saved([1]), "'list' object")):
        outcome, text = judge(checkpoint(world, "c.pth", content, refused=True))
        assert (outcome, reason in text) == ("explained", True)
    state = world.backbone.vit.state_dict()
    name = next(name for name, value in state.items() if value.is_floating_point())
    _, text = judge(checkpoint(world, "c.pth", saved(state | {name: state[name] * NAN}), refused=True))
    assert f"{name} is not finite" in text


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()
