"""Whatever is given to palkit, it works or says what is wrong with it: see bad_input.py for what that means.

`benchmarks/fuzz.py` does the same with many more cases, and watches memory.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bad_files import ENTRIES, EPS, checkpoint, npy_with
from bad_input import INF, NAN, Case, Hang, World, command, judge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from palkit.backbones import BackboneConfig
from palkit.config import config_from_dict, nest
from palkit.datasets import load_dataset
from palkit.datasets.files import FileImages, read_image
from palkit.dispatch import DispatchConfig
from palkit.errors import ConfigError, DataError, unknown_name
from palkit.exchange import read_label_studio
from palkit.extrapolation import forecast
from palkit.labels import LabelLog
from palkit.plain_yaml import read_yaml
from palkit.scores import LabelledSet, PoolScores
from palkit.session import open_session
from palkit.shards import Shards, open_shards
from palkit.strategies import STRATEGIES, select
from palkit.sweep import Sweep, load_sweep, plan

# Random cases of an entry; the slow ones, which decode, unpickle or open sessions, have fewer.
EXAMPLES = {
    "config": 150,
    "sweep": 80,
    "select": 60,
    "label log": 60,
    "label csv": 60,
    "label studio": 60,
    "forecast": 60,
}
SLOW = {"command line": 10, "images": 10, "session": 10, "session file": 8, "adapter": 8, "checkpoint": 8}
# Known cases that take a second or a gigabyte: for the campaign only.
LEFT_OUT = {"large.png", "large16.png", "bomb.png", "hub long", "hub folder", "hub nul"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _clean(world: World, own_cache: None) -> Iterator[None]:
    yield
    world.clear()


# The judge


def refuse(text: str) -> Callable[[], None]:
    def call() -> None:
        raise DataError(text)

    return call


def fail() -> None:
    {}["x"]


@pytest.mark.parametrize(
    ("call", "refused", "outcome"),
    [
        (list, False, "accepted"),
        (list, True, "unexplained"),
        (refuse("a.png is broken"), True, "explained"),
        (refuse("something is broken"), True, "unexplained"),
        (refuse("a.png" * 100_000), True, "unexplained"),
        (fail, False, "unexplained"),
        (lambda: command("run", "--a.png"), True, "explained"),
        (lambda: command("run", "a.png"), True, "explained"),
        (lambda: command("--help"), False, "unexplained"),
    ],
)
def test_judge_tells_what_is_explained(call: Callable[[], None], refused: bool, outcome: str) -> None:
    assert judge(Case("it", call, ("a.png",), refused))[0] == outcome


def test_judge_ends_what_hangs() -> None:
    def hang() -> None:
        while True:
            pass

    outcome, text = judge(Case("it", hang, ("",)), 0.1)
    assert outcome == "unexplained"
    assert text.startswith(Hang.__name__)


# Every entry


@pytest.mark.parametrize("entry", ENTRIES)
def test_known_nasty_input_is_explained(entry: str, world: World) -> None:
    _, known, _ = ENTRIES[entry]
    outcomes = {name: judge(case) for name, case in known(world).items() if name not in LEFT_OUT and "huge" not in name}
    assert [(name, text) for name, (outcome, text) in outcomes.items() if outcome == "unexplained"] == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_random_input_is_explained(entry: str, world: World) -> None:
    drawn, _, _ = ENTRIES[entry]

    @settings(
        max_examples=SLOW.get(entry, EXAMPLES.get(entry, 30)),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(drawn(world))
        outcome, text = judge(case)
        world.clear()
        assert outcome != "unexplained", f"{case.what}: {text}"

    check()


# What was once accepted, or ended in a traceback


@pytest.mark.parametrize(
    "field", ["training.head_lr", "training.weight_decay", "training.calibration", "adapter.dropout"]
)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_rate_must_be_finite(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{field} is .*finite"):
        config_from_dict({field: value})


def test_a_number_beyond_63_bits_is_refused_without_printing_it() -> None:
    with pytest.raises(ConfigError, match="seed is int of more than 4,300 digits"):
        config_from_dict({"seed": 10**5000})


@pytest.mark.parametrize("values", [{"adapter": "lora", "adapter.rank": 4}, {"adapter.rank": 4, "adapter": "lora"}])
def test_a_part_is_given_by_name_or_by_fields(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'adapter' is given as 'lora' and by parts.*adapter\.name"):
        nest(values)
    assert config_from_dict({"adapter.name": "lora", "adapter.rank": 4}).adapter.rank == 4


@pytest.mark.parametrize("values", [None, [1], {1: 2}, {"adapter": {1: 2}}, {"strategy_options": {1: 2}}])
def test_names_of_fields_are_text(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"config|strategy_options"):
        config_from_dict(values)


@pytest.mark.parametrize(
    ("strategy", "option", "value"),
    [
        ("bait", "regulariser", "x"),
        ("bait", "regulariser", NAN),
        ("typiclust", "neighbours", 1.5),
        ("random", "subsample", 0),
        ("bald", "passes", "many"),
        ("bald", "passes", 10**9),
        ("bald", "dropout_rate", NAN),
        ("bald", "dropout_on", "x"),
    ],
)
def test_options_of_strategies_are_checked_before_the_run(strategy: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option.removeprefix("dropout_")):
        config_from_dict({"strategy": strategy, "strategy_options": {option: value}})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_options_of_strategies_take_their_defaults(strategy: str) -> None:
    parameters = signature(STRATEGIES[strategy].function).parameters
    options = {name: parameters[name].default for name in STRATEGIES[strategy].options}
    assert config_from_dict({"strategy": strategy, "strategy_options": options}).strategy_options == options


def test_an_option_of_a_few_words_takes_these_and_no_other() -> None:
    values = {"strategy": "featdist", "strategy_options": {"reference": "class_mean"}}
    assert config_from_dict(values).strategy_options == {"reference": "class_mean"}
    with pytest.raises(ConfigError, match=r"'reference' 'class_men'\. Did you mean 'class_mean'"):
        config_from_dict({"strategy": "featdist", "strategy_options": {"reference": "class_men"}})


@pytest.mark.parametrize(
    "values",
    [{"image_size": 0}, {"image_size": -14}, {"image_size": 10**6}, {"depth": 0}, {"pooling": "max"}],
)
def test_a_backbone_that_cannot_be_is_refused_at_once(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        BackboneConfig(**values)


@pytest.mark.parametrize("field", ["adapter.rank", "adapter.alpha", "training.views", "backbone.image_size"])
def test_sizes_that_no_memory_holds_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        config_from_dict({field: 10**9})


def test_an_error_shows_the_beginning_of_a_long_value() -> None:
    error = str(unknown_name("strategy", "entropi" + "x" * 10**6, ["entropy"]))
    assert len(error) < 400
    assert "(1000009 characters)" in error


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "100,000 values"),
        ("a: &a {b: *a}", "inside of what it names"),
        ("a: 1\na: 2", "'a' is there twice"),
        ("[" * 10_000, "too deeply"),
        ("2024-99-99", "month"),
        ("!!bool x", "KeyError"),
        ("!!timestamp x", "AttributeError"),
        ("9" * 5000, "digits"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: 1\n---\na: 2", "single document"),
    ],
)
def test_yaml_is_plain_and_no_larger_than_it_looks(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)^x.yaml.*{reason}"):
        read_yaml(text, "x.yaml")


def test_yaml_may_have_aliases_and_merged_keys() -> None:
    text = "base: &b {x: 1, y: [1, 2]}\nother: {<<: *b, z: *b}\nnone:\n"
    assert read_yaml(text, "x.yaml") == yaml.safe_load(text)
    assert read_yaml("", "x.yaml") is None


def test_a_sweep_of_a_billion_runs_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    numbers = [*range(1, 1001)]
    path.write_text(yaml.safe_dump({"grid": {"seed": numbers, "rounds": numbers, "batch_size": numbers}}))
    with pytest.raises(ConfigError, match=r"many\.yaml: the grid has 1,000,000,000 runs"):
        load_sweep(path)


def test_a_sweep_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("grid: {dataset: [ä]}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml cannot be read.*UTF-8"):
        load_sweep(path)


def test_a_wrong_config_with_keys_of_several_types_is_a_task_that_says_so() -> None:
    (task,) = plan(Sweep("odd", {"strategy_options": {1: 2, "a": 3}}))
    assert task.config is None


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
        monkeypatch.setattr("palkit.datasets.files.BLOCK", 10**9)
        whole = np.asarray(read_image(io.BytesIO(file.getvalue())))
        monkeypatch.setattr("palkit.datasets.files.BLOCK", 130)
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


def test_a_manifest_nested_too_deeply_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(DataError, match=r"manifest\.json is no manifest of shards"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"action": "label", "label": ""}, "needs label"),
        ({"action": "skip", "id": ""}, "needs id"),
        ({"annotator": ""}, "needs annotator"),
        ({"time": "2026-01-31T12:00:00"}, "no offset"),
    ],
)
def test_an_event_that_nobody_can_have_written_is_named(changes: dict[str, str], named: str, tmp_path: Path) -> None:
    event = {"time": "2026-01-31T12:00:00+00:00", "annotator": "ann", "action": "label", "id": "x.png", "label": "cat"}
    (tmp_path / "l.jsonl").write_text(json.dumps({**event, **changes}) + "\n")
    with pytest.raises(DataError, match=rf"l\.jsonl, line 1.*{named}"):
        LabelLog(tmp_path / "l.jsonl").events()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"id": ' + b"9" * 5000 + b"}"])
def test_json_that_python_cannot_hold_is_named(content: bytes, tmp_path: Path) -> None:
    for name, read in {"l.jsonl": lambda path: LabelLog(path).events(), "l.json": read_label_studio}.items():
        (tmp_path / name).write_bytes(content + b"\n")
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_a_task_whose_address_is_none_is_named(tmp_path: Path) -> None:
    result = {"from_name": "label", "type": "choices", "value": {"choices": ["cat"]}}
    task = {"id": 7, "data": {"image": "http://[::1"}, "annotations": [{"result": [result]}]}
    (tmp_path / "l.json").write_text(json.dumps([task]))
    with pytest.raises(DataError, match=r"l\.json, task 1 \(id 7\): not as Label Studio exports tasks"):
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
    from palkit.__main__ import main

    return main(list(arguments)) == 1


@pytest.mark.parametrize("values", [{"gpus": NAN}, {"gpus": -1.0}, {"jobs": "2"}, {"time_limit": NAN}, {"address": 5}])
def test_how_a_sweep_is_dispatched_is_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        DispatchConfig(engine="ray", **values)


@pytest.mark.parametrize("field", ["positions", "labels"])
def test_labelled_rows_are_whole_numbers(field: str, world: World) -> None:
    labelled = LabelledSet(torch.tensor([1, 2]), torch.tensor([0, 1]))
    odd = dataclasses.replace(labelled, **{field: getattr(labelled, field).float()})
    with pytest.raises(ConfigError, match=f"labelled {field} must be a tensor of int64"):
        select("entropy", world.scores, odd, 2, torch.Generator())


def test_stochastic_passes_must_be_finite_and_fit(world: World) -> None:
    labelled = LabelledSet(torch.tensor([1, 2]), torch.tensor([0, 1]))
    good = world.scores
    passes = torch.ones(3, *good.probs.shape)
    passes[1, 2, 0] = NAN
    with pytest.raises(ConfigError, match=r"stochastic_probs of 1 pool rows are not finite \(rows 2\)"):
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
