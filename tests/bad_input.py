"""Bad input of every kind, and what counts as an answer to it: for tests/test_bad_input.py and benchmarks/fuzz.py.

Every public entry has cases that are drawn at random (`DRAWN`, hypothesis strategies, so that a failure shrinks) and
cases that are known to be nasty (`FIXED`). A case is answered well if the input is accepted, or refused by an error of
`palkit.errors` (on the command line: by a usage or error line) whose text names what was given.
"""

import contextlib
import io
import itertools
import json
import random
import shutil
import signal
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from PIL import Image
from safetensors.torch import save_file

from palkit.__main__ import main
from palkit.adapter_files import save_adapter
from palkit.adapters import AdaptedModel, AdapterConfig, attach
from palkit.backbones import Backbone, BackboneConfig, load_backbone
from palkit.config import ExperimentConfig, config_from_dict
from palkit.devices import choose_device, memory_limit
from palkit.dispatch import DispatchConfig
from palkit.errors import PalkitError
from palkit.explore import Question
from palkit.extrapolation import forecast
from palkit.files import REPOSITORY
from palkit.labels import LabelLog
from palkit.scores import LabelledSet, PoolScores
from palkit.session import Session, open_session
from palkit.strategies import STRATEGIES, get_strategy, select
from palkit.sweep import load_sweep

LONGEST = 50_000  # characters of a message that a person could still be shown
CLASSES, WIDTH, ROWS = 3, 4, 12


# Cases and their judge


@dataclass(frozen=True)
class Case:
    """One piece of bad, or only odd, input.

    Attributes:
        what: was given, in short.
        call: gives it to the entry.
        named: an error must have one of these in its text.
        refused: whether to accept it is a mistake.
    """

    what: str
    call: Callable[[], object]
    named: tuple[str, ...]
    refused: bool = False


class Hang(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang in the block once the time is over; in the main thread only."""

    def ring(*_: object) -> None:
        raise Hang(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(case: Case, seconds: float = 30.0) -> tuple[str, str]:
    """("accepted" or "explained" or "unexplained", the text or the fault)."""
    output = io.StringIO()
    try:
        with (
            time_limit(seconds),
            contextlib.redirect_stderr(output),
            contextlib.redirect_stdout(output),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            case.call()
    except PalkitError as error:
        text = str(error)
    except SystemExit as error:
        text = output.getvalue()
        if error.code != 2 or "usage:" not in text:
            return "unexplained", f"exit {error.code}: {text[-200:]}"
    except (Exception, Hang) as error:
        return "unexplained", f"{type(error).__name__}: {str(error)[:200]}"
    else:
        return ("unexplained", "was accepted") if case.refused else ("accepted", "")
    if len(text) > LONGEST:
        return "unexplained", f"a message of {len(text)} characters: {text[:100]}"
    if not any(name in text for name in case.named):
        return "unexplained", f"does not name {case.named[0]!r}: {text[:300]}"
    return "explained", text


def command(*arguments: str) -> None:
    """Run the command line here; raise what it prints if it fails."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            code = main(list(arguments))
        except SystemExit:
            print(printed.getvalue())  # the judge looks for the usage
            raise
    if code:
        raise PalkitError(printed.getvalue())


# Odd values

NAN, INF = float("nan"), float("inf")
ODD_TEXT = [
    "",
    " ",
    "\0",
    "nan",
    "-",
    "../../etc/passwd",
    "/etc/passwd",
    "Zoë",
    "💥",
    "a\nb",
    "[red]",
    "%s{0}",
    "x" * 5000,
]
ODD_NUMBERS = [0, -1, 1, 2, 2**31, -(2**63), 10**30, NAN, INF, -INF, 1e308, 5e-324, -0.0, 0.5, True, False]
TEXTS = st.sampled_from(ODD_TEXT) | st.text(max_size=8)
# 5,000 digits, which Python does not print: hypothesis must not hold the number itself.
ENDLESS = st.builds(pow, st.just(10), st.just(5000))
NUMBERS = st.sampled_from(ODD_NUMBERS) | ENDLESS | st.integers(-5, 5) | st.floats()
PLAIN = st.none() | TEXTS | NUMBERS
OBJECTS = st.sampled_from([b"\xff", date(2026, 1, 1), object(), 1j, {1, 2}, np.float32(NAN), np.int64(3), Path("x")])
NESTED = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
VALUES = PLAIN | NESTED | OBJECTS
JSON_VALUES = st.recursive(
    st.none() | TEXTS | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)
DEEP = b"[" * 100_000


def short(value: object) -> str:
    """A value for a report; a number of 5,000 digits has no repr."""
    try:
        return ascii(value)[:60]
    except ValueError:
        return "a number of thousands of digits"


@st.composite
def damaged(draw: DrawFn, contents: list[bytes]) -> bytes:
    """One of the contents after flips, cuts, insertions, repetitions, or joined to another one."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    content = bytearray(contents[draw(st.integers(0, len(contents) - 1))])
    for _ in range(draw(st.integers(1, 4))):
        place = rng.randrange(len(content) + 1)
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "join", "zero", "bits"]))
        if kind == "flip" and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind == "bits":
            for _ in range(min(len(content), 20)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = rng.choice([b"\0" * 8, b"\xff\xfe", b'"', b"\r\n", b",,,", b"{[", rng.randbytes(16)])
        elif kind == "repeat":
            content[place:place] = content[place : place + 50]
        elif kind == "join":
            content[place:] = rng.choice(contents)[place:]
        else:
            content[place : place + 8] = b"\0" * len(content[place : place + 8])
    return bytes(content)


class World:
    """What cases need and none of them changes; made when it is first asked for.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = folder / "cases"

    def place(self, **files: bytes) -> Path:
        """A new folder with these files; a double underscore in a keyword stands for a dot."""
        self.places.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=self.places))
        for name, content in files.items():
            (place / name.replace("__", ".")).write_bytes(content)
        return place

    def clear(self) -> None:
        """Remove what cases have written."""
        shutil.rmtree(self.places, ignore_errors=True)

    @cached_property
    def checkpoint(self) -> Path:
        torch.manual_seed(0)
        path = self.folder / "test_vit.safetensors"
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
        return path

    @cached_property
    def backbone(self) -> Backbone:
        return load_backbone(self.backbone_config(self.checkpoint))

    @staticmethod
    def backbone_config(checkpoint: Path) -> BackboneConfig:
        return BackboneConfig("test_vit", image_size=32, depth=4, checkpoint=str(checkpoint))

    def model(self, name: str) -> AdaptedModel:
        zeros, ones = torch.zeros(self.backbone.width), torch.ones(self.backbone.width)
        return attach(self.backbone, AdapterConfig(name, rank=2, start_block=3), CLASSES, zeros, ones, 0)

    @cached_property
    def models(self) -> dict[str, AdaptedModel]:
        return {name: self.model(name) for name in ("lora", "linear_probe", "adalora")}

    @cached_property
    def adapters(self) -> dict[str, dict[str, bytes]]:
        """Files of saved adapters."""
        saved = {}
        for name, model in self.models.items():
            save_adapter(model, self.folder / name)
            files = {path.name: path.read_bytes() for path in (self.folder / name).iterdir()}
            files.pop("checksums.json")  # by it a change would be told before anything else is looked at
            saved[name] = files
        return saved

    @cached_property
    def run(self) -> list[str]:
        """Arguments of a run that takes a second."""
        return [
            "dataset=digits", "pool_size=60", "backbone.name=test_vit", "backbone.image_size=32", "backbone.depth=4",
            f"backbone.checkpoint={self.checkpoint}", "adapter.start_block=2", "training.epochs=1",
            "training.head_epochs=1", "training.views=1", "rounds=1", "evaluate_on=val",
        ]  # fmt: skip

    @cached_property
    def scores(self) -> PoolScores:
        rng = torch.Generator().manual_seed(0)
        probs = torch.rand(ROWS, CLASSES, generator=rng).softmax(1)
        return PoolScores(torch.randn(ROWS, WIDTH, generator=rng), probs, probs[None].repeat(4, 1, 1))

    @cached_property
    def small(self) -> Path:
        """An image file."""
        path = self.folder / "small.png"
        path.write_bytes(png(9, 8, 8, 0, zeros(80)))
        return path

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        return pictures()

    @cached_property
    def session(self) -> bytes:
        """A session file with a round and a proposal."""
        folder = self.folder / "session"
        session = open_session("digits", "ann", pool_size=60, folder=folder, device="cpu", held_out=3, **self.tiny)
        asked = session.propose(4)
        answers = list(session.class_names[:2]) * 4
        session.label(list(asked["id"]), answers[: len(asked)])
        session.fit()
        session.propose(2)
        tree = json.loads((folder / "session.json").read_bytes())
        tree.pop("sha256")  # by it a change would be told before anything else is looked at
        return json.dumps(tree).encode()

    @cached_property
    def tiny(self) -> dict[str, Any]:
        """Config fields of a session that is quick."""
        backbone = {"name": "test_vit", "image_size": 32, "depth": 4, "checkpoint": str(self.checkpoint)}
        training = {"epochs": 3, "head_epochs": 40, "head_lr": 0.05, "views": 1}
        return {"backbone": backbone, "adapter": "linear_probe", "training": training, "strategy": "entropy"}

    @cached_property
    def log(self) -> bytes:
        """Lines of a label log."""
        path = self.folder / "valid.jsonl"
        log, moment = LabelLog(path), "2026-01-31T12:00:00.000+00:00"
        from palkit.labels import Event

        log.append([Event(moment, "ann", "label", f"img{i}.png", "cat") for i in range(3)])
        log.append([Event(moment, "bob", "unsure", "img1.png"), Event(moment, "bob", "class", label="dog")])
        log.append([Event(moment, "ann", "undo"), Event(moment, "bob", "label", "ö/💥.png", "dog")])
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        for line in lines:
            line.pop("crc")  # by it a change would be told before anything else is looked at
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def pictures() -> dict[str, bytes]:
    """Small valid files of every format and mode, by name."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65_535, (20, 24)).astype(np.uint16))
    palette = rgb.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [rgb.rotate(90 * turn) for turn in range(3)]
    wanted: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "grey16.png": (grey16, {}),
        "palette.png": (palette, {"transparency": 3}),
        "rgba.png": (rgb.convert("RGBA"), {}),
        "bits.png": (rgb.convert("1"), {}),
        "animated.png": (rgb, {"save_all": True, "append_images": frames}),
        "profile.png": (rgb, {"icc_profile": rng.bytes(300)}),
        "plain.jpg": (rgb, {}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "exif.jpg": (rgb, {"exif": exif, "icc_profile": rng.bytes(3000)}),
        "plain.tif": (rgb, {}),
        "lzw.tif": (rgb, {"compression": "tiff_lzw"}),
        "pages.tif": (rgb, {"save_all": True, "append_images": frames}),
        "float.tif": (Image.fromarray(rng.normal(size=(20, 24)).astype(np.float32)), {}),
        "grey16.tif": (grey16, {"compression": "tiff_deflate"}),
        "plain.bmp": (rgb, {}),
        "animated.gif": (rgb, {"save_all": True, "append_images": frames}),
        "plain.webp": (rgb, {}),
        "animated.webp": (rgb, {"save_all": True, "append_images": frames}),
    }
    files = {}
    for name, (image, options) in wanted.items():
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], Path(name).suffix[1:]), **options)
        files[name] = buffer.getvalue()
    return files


def png(width: int, height: int, depth: int = 8, colour: int = 0, content: bytes = b"") -> bytes:
    """A PNG of any claimed size; without content its pixels are missing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", content or zlib.compress(b"\0")) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """That many zero bytes, compressed."""
    compress = zlib.compressobj(9)
    block = bytes(2**20)
    parts = [compress.compress(block) for _ in range(count // len(block))]
    return b"".join([*parts, compress.compress(bytes(count % len(block))), compress.flush()])


# Configs


def config_fields(kind: type = ExperimentConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all fields and what they are declared to be."""
    found = {}
    for name, hint in ((field.name, get_type_hints(kind)[field.name]) for field in fields(kind)):
        found |= config_fields(hint, f"{prefix}{name}.") if is_dataclass(hint) else {prefix + name: hint}
    return found


FIELDS = config_fields()
PARTS = ("backbone", "adapter", "training", "scoring")
CONFIG_WORDS = (*FIELDS, *(name.rpartition(".")[2] for name in FIELDS), "config field", "keys", *PARTS)


@st.composite
def config_cases(draw: DrawFn, world: World) -> Case:
    name = draw(st.sampled_from([*FIELDS]))
    kind = draw(st.sampled_from(["value", "value", "value", "two", "misspelt", "key", "part"]))
    if kind == "misspelt":
        place = draw(st.integers(1, len(name) - 1))
        values: dict[Any, Any] = {name[:place] + draw(st.sampled_from(["", "e", "_x"])) + name[place + 1 :]: 1}
        if set(values) <= {*FIELDS, *PARTS}:
            values = {"trainig.epochs": 1}
        return Case(short(values), partial(config_from_dict, values), ("Did you mean",), refused=True)
    value = draw(VALUES)
    if kind == "key":
        key = draw(VALUES.filter(lambda key: isinstance(key, str | int | float | bytes | tuple | None)))
        refused = key not in {*FIELDS, *PARTS}
        return Case(
            short(key),
            partial(config_from_dict, {key: value}),
            ("config field",),
            refused=refused,
        )
    if kind == "part":
        part = draw(st.sampled_from(PARTS))
        return Case(short({part: value}), partial(config_from_dict, {part: value}), (part, "config field"))
    values = {name: value}
    if kind == "two":
        values |= {draw(st.sampled_from([*FIELDS, *PARTS])): draw(VALUES)}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    outlandish = number and (abs(value) > 2**63 if isinstance(value, int) else not np.isfinite(value))
    return Case(
        short(values),
        partial(config_from_dict, values),
        CONFIG_WORDS if kind == "two" else (name, name.rpartition(".")[2]),
        refused=outlandish and FIELDS[name] is not Mapping and kind == "value",
    )


def fixed_configs(world: World) -> dict[str, Case]:
    bad: dict[str, tuple[Any, str]] = {
        "part twice": ({"adapter": "lora", "adapter.rank": 4}, "adapter"),
        "part twice, other order": ({"adapter.rank": 4, "adapter": "lora"}, "adapter"),
        "below a value": ({"seed": 1, "seed.x": 1}, "seed"),
        "no text as key": ({1: 2}, "1"),
        "nothing": (None, "None"),
        "a list": ([("seed", 1)], "seed"),
        "not finite rate": ({"training.head_lr": INF}, "training.head_lr"),
        "nan decay": ({"training.weight_decay": NAN}, "training.weight_decay"),
        "nan calibration": ({"training.calibration": NAN}, "training.calibration"),
        "endless seed": ({"seed": 10**5000}, "seed"),
        "endless text": ({"strategy": "x" * 10**6}, "strategy"),
        "endless field": ({"x" * 10**6: 1}, "config field"),
        "huge image": ({"backbone.image_size": 10**9}, "backbone.image_size"),
        "negative image": ({"backbone.image_size": -14}, "backbone.image_size"),
        "no depth": ({"backbone.depth": 0}, "backbone.depth"),
        "nul in dataset": ({"dataset": ""}, "dataset"),
        "unknown pooling": ({"backbone.pooling": "max"}, "pooling"),
        "option not a number": ({"strategy": "bait", "strategy_options": {"regulariser": "x"}}, "regulariser"),
        "option nan": ({"strategy": "bait", "strategy_options": {"regulariser": NAN}}, "regulariser"),
        "passes not a number": ({"strategy": "bald", "strategy_options": {"passes": "x"}}, "passes"),
        "rate nan": ({"strategy": "bald", "strategy_options": {"dropout_rate": NAN}}, "rate"),
        "subsample text": ({"strategy_options": {"subsample": "many"}}, "subsample"),
        "option by number": ({"strategy_options": {1: 1}}, "1"),
    }
    return {
        name: Case(name, partial(config_from_dict, values), (named,), refused=True)
        for name, (values, named) in bad.items()
    }


# Command line


@st.composite
def command_cases(draw: DrawFn, world: World) -> Case:
    kind = draw(st.sampled_from(["run", "run", "words", "sweep", "manifest", "fetch", "device"]))
    name = draw(st.sampled_from([*FIELDS, "adapter", "x"]))
    text = draw(
        TEXTS | st.sampled_from(["[", "{a: 1", "!!python/object:os.system x", "*a", "1:99", "2024-99-99", "nan"])
    )
    if kind == "run":
        item = draw(
            st.sampled_from([f"{name}={text}", text, f"{name}", f"={text}", f"{name}=={text}", f"{text}={text}"])
        )
        # Whatever is valid alone stops at a data set that is not there.
        arguments = ["run", item, "dataset=/no/such/folder"]
        said = ("/no/such/folder", "arguments", "is not valid YAML", "is not KEY=VALUE")
        named: tuple[str, ...] = (name.rpartition(".")[2], item[:20], *said, *CONFIG_WORDS)
    elif kind == "words":
        words = draw(st.lists(TEXTS | st.sampled_from(["run", "sweep", "--jobs", "--device", "cuda:99"]), max_size=3))
        arguments, named = ["watch" if word in ("fetch", "doctor") else word for word in words], ("usage", "error")
        if arguments[:1] in (["sweep"], ["run"]):
            arguments.insert(1, "--no-such-option")
    elif kind == "sweep":
        value = draw(TEXTS | st.sampled_from(["0", "-1", "1.5", "nan", "1e400"]))
        option = draw(st.sampled_from(["--jobs", "--engine", "--gpus", "--time-limit", "--device", "--address"]))
        path = world.place(a__yaml=b"base: {dataset: /no/such/folder}") / "a.yaml"
        arguments = ["sweep", str(path), f"{option}={value}", "--no-notebooks"]
        named = (
            option,
            option[2:],
            option[2:].replace("-", " "),
            option[2:].replace("-", "_"),
            "/no/such/folder",
            "ray",
            "GPU",
        )
    elif kind == "manifest":
        source = draw(TEXTS | st.just(str(world.place(a__png=b"x"))))
        out = draw(TEXTS | st.sampled_from([str(world.folder), "/proc/x.csv", "/no/such/out.csv", "/dev/null/x.csv"]))
        group = draw(st.sampled_from([[], ["--group", "("], ["--group", "zz"], ["--unlabelled"]]))
        arguments = ["manifest", *group, "--", source, out]
        named = (out[:20], source[:20], "manifest", "group", "unknown dataset")
    elif kind == "fetch":
        arguments, named = ["study", "--", text], ("sweep", "usage")
    else:
        arguments, named = ["run", f"--device={text}", "dataset=/no/such/folder"], ("device", "/no/such/folder")
    return Case(short(arguments), partial(command, *arguments), named)


def fixed_commands(world: World) -> dict[str, Case]:
    empty = world.place()
    sweep = world.place(a__yaml=b"grid: {seed: [0, 0]}\nbase: {dataset: digits}") / "a.yaml"
    bad = {
        "nothing": ([], "usage"),
        "unknown command": (["rum"], "rum"),
        "no value": (["run", "strategy"], "strategy"),
        "part twice": (["run", "adapter=lora", "adapter.rank=4", "dataset=/no"], "adapter"),
        "bad yaml": (["run", "seed=[1"], "seed"),
        "bad date": (["run", "dataset=2024-99-99"], "dataset"),
        "python object": (["run", "seed=!!python/object/apply:os.system [true]"], "seed"),
        "deep yaml": (["run", "seed=" + "[" * 5000], "seed"),
        "bomb": (["run", "strategy_options=" + BOMB_INLINE], "strategy_options"),
        "dataset nul": (["run", "dataset=a\0b"], "a\\x00b"),
        "long dataset": (["run", "dataset=" + "x" * 5000], "dataset"),
        "long folder": (["run", "dataset=/tmp/" + "x" * 5000], "xxxxx"),
        "empty folder": (["run", f"dataset={empty}"], str(empty)),
        "sweep folder": (["sweep", str(empty)], str(empty)),
        "sweep missing": (["sweep", "defualt"], "Did you mean 'default'"),
        "sweep twice": (["sweep", str(sweep), "--dry-run", "--jobs", "0"], "jobs"),
        "watch missing": (["watch", "/no/such.yaml"], "such"),
        "study missing": (["study", "/no/such.yaml"], "such"),
        "manifest of array": (["manifest", "digits", str(empty / "o.csv")], "digits"),
        "manifest into folder": (["manifest", str(empty), str(empty)], str(empty)),
        "manifest of missing": (["manifest", "/no/such", "o.csv"], "/no/such"),
        "device": (["run", "--device", "tpu"], "tpu"),
        "device number": (["run", "--device", "cpu:x", "dataset=digits"], "cpu:x"),
        "huge rank": (["run", *world.run, "adapter.rank=1000000000"], "rank"),
        "huge views": (["run", *world.run, "training.views=1000000000"], "views"),
        "huge image": (["run", *world.run, "backbone.image_size=1000000"], "image_size"),
        "odd image": (["run", *world.run, "backbone.image_size=31"], "image_size"),
        "huge depth": (["run", *world.run, "backbone.depth=99"], "depth"),
        "huge rounds": (["run", *world.run, "rounds=1000000000"], "rounds"),
        "huge batch": (["run", *world.run, "batch_size=1000000000"], "batch_size"),
        "huge pool": (["run", *world.run, "pool_size=1000000000"], "pool_size"),
        "huge passes": (
            ["run", *world.run, "rounds=2", "strategy=bald", "strategy_options.passes=1000000000"],
            "passes",
        ),
        "huge alpha": (["run", *world.run, "adapter.alpha=9000000000000000000"], "alpha"),
        "huge rate": (["run", *world.run, "training.head_lr=1.0e+300"], "head_lr"),
        "bad target": (["run", *world.run, "adapter.targets=[nothing]"], "nothing"),
        "not a transformer": (["run", *world.run, "backbone.name=resnet18"], "resnet18"),
        "backbone name": (["run", *world.run, "backbone.name=../../x"], "../../x"),
        "checkpoint folder": (["run", *world.run, f"backbone.checkpoint={empty}"], str(empty)),
        "embed workers": (["embed", "--workers", "0", "--engine", "ray", *world.run], "workers"),
        "embed gpus": (["embed", "--gpus", "-1", "--engine", "ray", *world.run], "gpus"),
    }
    return {
        name: Case(name, partial(command, *arguments), (named,), refused=True)
        for name, (arguments, named) in bad.items()
    }


# Sweeps

BOMB_INLINE = (
    "{a: &a [x, x, x, x, x, x, x, x, x], "
    + ", ".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in itertools.pairwise("abcdefghijk"))
    + "}"
)


@st.composite
def sweep_cases(draw: DrawFn, world: World) -> Case:
    if draw(st.booleans()):
        content = draw(damaged(SWEEP_TEXTS))
    else:
        grid = st.dictionaries(
            st.sampled_from([*FIELDS]) | TEXTS, st.lists(JSON_VALUES, max_size=3) | JSON_VALUES, max_size=3
        )
        some = st.dictionaries(st.sampled_from([*FIELDS]) | TEXTS, JSON_VALUES, max_size=3)
        parts = {
            "base": some | JSON_VALUES,
            "grid": grid | JSON_VALUES,
            "variants": st.dictionaries(TEXTS, some | JSON_VALUES, max_size=3),
        }
        tree = {key: draw(parts[key]) for key in draw(st.sets(st.sampled_from([*parts])))}
        tree |= draw(st.just({}) | st.dictionaries(TEXTS, JSON_VALUES, max_size=1))
        content = yaml.safe_dump(tree).encode(errors="replace")
    path = world.place(odd__yaml=content) / "odd.yaml"
    return Case(short(content), partial(use_sweep, path), ("odd.yaml", *CONFIG_WORDS))


def use_sweep(path: Path) -> None:
    for _, values in load_sweep(path).parameters()[:3]:
        config_from_dict(values)


SWEEP_TEXTS = [path.read_bytes() for path in sorted((REPOSITORY / "notebooks" / "sweeps").glob("*.yaml"))]


def fixed_sweeps(world: World) -> dict[str, Case]:
    many = (
        "grid: {"
        + ", ".join(
            f"training.{name}: [{', '.join(map(str, range(1, 1001)))}]" for name in ("epochs", "views", "patience")
        )
        + "}"
    )
    bad = {
        "empty": b"",
        "list": b"- a\n- b",
        "text": b"hello",
        "binary": bytes(range(256)),
        "utf-16": "grid: {seed: [0]}".encode("utf-16")[:-1],
        "nul": b"grid: {seed: [\0]}",
        "bomb": b"grid: {seed: " + BOMB_INLINE.encode() + b"}",
        "bomb as a value": b"base: " + BOMB_INLINE.encode(),
        "bomb in a list": b"base:\n  x: " + BOMB_INLINE.encode() + b"\ngrid: {seed: [0]}",
        "endless": b"base: &a {x: *a}",
        "deep": b"grid: " + b"[" * 20_000 + b"]" * 20_000,
        "python object": b"base: !!python/object/apply:os.system [true]",
        "python name": b"grid: {seed: [!!python/name:os.system ]}",
        "bad date": b"grid: {seed: [2024-99-99]}",
        "bad bool": b"grid: {seed: [!!bool x]}",
        "bad int": b"grid: {seed: [!!int x]}",
        "long int": b"grid: {seed: [" + b"9" * 5000 + b"]}",
        "bad time": b"grid: {seed: [!!timestamp x]}",
        "key twice": b"grid: {seed: [0]}\ngrid: {seed: [1]}",
        "field twice": b"grid: {seed: [0], seed: [1]}",
        "unknown key": b"gird: {seed: [0]}",
        "number as key": b"grid: {1: [0]}",
        "list as key": b"grid: {[1]: [0]}",
        "nothing to vary": b"grid: {seed: []}",
        "text to vary": b"grid: {seed: abc}",
        "a billion": many.encode(),
        "two documents": b"grid: {seed: [0]}\n---\ngrid: {seed: [1]}",
        "variant not a mapping": b"variants: {a: [1]}",
        "part twice": b"base: {adapter: lora}\ngrid: {adapter.rank: [1]}",
    }
    named = {"unknown key": "Did you mean 'grid'", "number as key": "1", "part twice": "adapter"}
    cases = {}
    for name, content in bad.items():
        path = world.place(odd__yaml=content) / "odd.yaml"
        cases[name] = Case(name, partial(use_sweep, path), (named.get(name, "odd.yaml"),), refused=True)
    folder = world.place()
    (folder / "x.yaml").mkdir()
    cases["folder"] = Case("folder", partial(use_sweep, folder / "x.yaml"), ("x.yaml",), refused=True)
    cases["long name"] = Case("long name", partial(load_sweep, "x" * 5000), ("xxx",), refused=True)
    cases["nul name"] = Case("nul name", partial(load_sweep, "a\0b"), ("a\\x00b",), refused=True)
    return cases


# Arguments of strategies, forecasts, questions, sessions, devices


@st.composite
def select_cases(draw: DrawFn, world: World) -> Case:
    good, name = world.scores, draw(st.sampled_from([*STRATEGIES]))
    scores: dict[str, Any] = {"features": good.features, "probs": good.probs, "stochastic_probs": good.stochastic_probs}
    labelled: dict[str, Any] = {"positions": torch.tensor([0, 5, 7]), "labels": torch.tensor([0, 1, 2])}
    batch_size: Any = 3
    options: dict[str, Any] = {"labels": torch.arange(ROWS) % CLASSES} if "labels" in get_strategy(name).options else {}
    named: tuple[str, ...] = (name,)
    refused = False
    target = draw(
        st.sampled_from(["scores", "labelled", "batch_size", "option", "subsample", "balance", "name", "nothing"])
    )
    if target == "scores":
        field = draw(st.sampled_from([*scores]))
        scores[field], refused = draw(odd_tensors(scores[field]))
        named = (field, "features", "probs", "scores")
        refused &= field != "stochastic_probs" or field in get_strategy(name).needs
    elif target == "labelled":
        field = draw(st.sampled_from([*labelled]))
        labelled[field], refused = draw(odd_positions(labelled[field]))
        named = ("labelled", "label", "position")
    elif target == "batch_size":
        batch_size, named = draw(VALUES), ("batch_size",)
        refused = isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
    elif target == "subsample":
        options["subsample"], named = draw(VALUES), ("subsample",)
    elif target == "balance":
        options["balance"], named = draw(VALUES), ("balance",)
    elif target == "name":
        name = draw(VALUES)
        options, named = {}, ("strategy", "needs")
    elif target == "option":
        option = draw(st.sampled_from([*get_strategy(name).options, "gamma", "no_such"]))
        options |= {option: draw(VALUES)} | ({"balance": "pcb"} if option == "gamma" else {})
        named = (option,)
        refused = isinstance(options[option], float) and options[option] != options[option]

    def call() -> None:
        chosen = select(
            name,
            PoolScores(**scores),
            LabelledSet(**labelled),
            batch_size,
            torch.Generator().manual_seed(0),
            **options,
        )
        assert len(chosen.unique()) == min(batch_size, ROWS - len(labelled["positions"]))

    return Case(f"{short(name)} {target} {short(options)}", call, named, refused=refused)


@st.composite
def odd_tensors(draw: DrawFn, good: torch.Tensor) -> tuple[Any, bool]:
    """Something in place of scores, and whether it must be refused."""
    kind = draw(
        st.sampled_from(
            ["nan", "inf", "negative", "huge", "integer", "half", "double", "short", "flat", "empty", "other", "thin"]
        )
    )
    odd = good.clone()
    place = draw(st.integers(0, good.numel() - 1))
    if kind in ("nan", "inf", "negative", "huge"):
        value = {"nan": NAN, "inf": INF, "negative": -1.0, "huge": 3e38}[kind]
        odd.view(-1)[place] = value
        return odd, kind in ("nan", "inf")
    made: dict[str, Callable[[], Any]] = {
        "integer": lambda: odd.long(),
        "half": odd.half,
        "double": odd.double,
        "short": lambda: odd[: len(odd) // 2],
        "flat": lambda: odd.flatten(),
        "empty": lambda: odd[:0],
        "other": lambda: draw(VALUES),
        "thin": lambda: odd[..., :0],
    }
    return made[kind](), kind in ("short", "flat", "empty", "thin")


@st.composite
def odd_positions(draw: DrawFn, good: torch.Tensor) -> tuple[Any, bool]:
    """Something in place of positions or labels, and whether it must be refused."""
    values = draw(st.lists(st.sampled_from([0, 1, 2, -1, 3, ROWS, 2**62, -(2**62)]), min_size=0, max_size=4))
    kind = draw(st.sampled_from(["values", "float", "bool", "short", "matrix", "scalar", "other"]))
    made: dict[str, Callable[[], Any]] = {
        "values": lambda: torch.tensor(values, dtype=torch.int64),
        "float": lambda: good.float(),
        "bool": lambda: good.bool(),
        "short": lambda: good.to(torch.int16),
        "matrix": lambda: good[None],
        "scalar": lambda: good[0],
        "other": lambda: draw(VALUES),
    }
    return made[kind](), kind in ("float", "matrix", "scalar") or (kind == "values" and len(values) != 3)


def fixed_selections(world: World) -> dict[str, Case]:
    good, nothing = world.scores, torch.empty(0, dtype=torch.int64)
    labelled = LabelledSet(torch.tensor([0, 5, 7]), torch.tensor([0, 1, 2]))

    def case(
        named: str, name: Any = "entropy", scores: Any = good, known: Any = labelled, size: Any = 3, **options: Any
    ) -> Case:
        call = partial(select, name, scores, known, size, torch.Generator().manual_seed(0), **options)
        return Case(named, call, (named,), refused=True)

    options: dict[str, tuple[str, Any]] = {
        "bait": ("regulariser", NAN), "featdist": ("unseen_share", "x"), "alfamix": ("eps", NAN),
        "typiclust": ("max_clusters", 0), "cluster_margin": ("factor", 1.5), "batchbald": ("samples", "many"),
        "maxherding": ("bandwidth", -1), "uherding": ("temperature", INF), "probcover": ("delta", NAN),
        "margin_power": ("beta", NAN),
    }  # fmt: skip
    cases = {
        f"{option} of {name}": case(option, name, **{option: value})
        for name, (option, value) in options.items()
        if name in STRATEGIES
    }
    nan = PoolScores(good.features, good.probs, torch.full_like(good.stochastic_probs, NAN))
    return cases | {
        "size 0": case("batch_size", size=0),
        "all labelled": case("labelled", known=LabelledSet(torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.int64))),
        "no labels": case("labelled", "featdist", known=LabelledSet(nothing, nothing)),
        "nan passes": case("stochastic_probs", "bald", scores=nan),
        "no passes": case("stochastic_probs", "bald", scores=PoolScores(good.features, good.probs)),
        "float positions": case("position", known=LabelledSet(torch.tensor([0.5]), torch.tensor([0]))),
        "unknown": case("Did you mean", "entropi"),
    }


ARRAYS = st.lists(st.floats(0, 1) | NUMBERS, max_size=4) | VALUES | st.lists(st.lists(NUMBERS, max_size=2), max_size=3)


@st.composite
def forecast_cases(draw: DrawFn, world: World) -> Case:
    values: dict[str, Any] = {"labels": [10, 20, 30], "accuracy": [0.3, 0.5, 0.6], "held_out": 50, "at": [40, 50]}
    for name in draw(st.sets(st.sampled_from([*values, "coverage"]), min_size=1, max_size=2)):
        values[name] = draw(ARRAYS if name != "coverage" else VALUES)

    def call() -> None:
        found = forecast(**values)
        assert len(found.median) == len(found.labels)
        assert len(values["labels"]) < 2 or np.isfinite(found.median).all(), "not finite"

    return Case(short(values), call, tuple(f"{name}:" for name in [*values, "coverage"]))


def fixed_forecasts(world: World) -> dict[str, Case]:
    good: dict[str, Any] = {"labels": [10, 20, 30], "accuracy": [0.3, 0.5, 0.6], "held_out": 50, "at": [40]}
    bad: dict[str, tuple[str, Any]] = {
        "text": ("labels", "many"), "ragged": ("accuracy", [[1], [1, 2]]), "nothing": ("at", None),
        "nan": ("accuracy", [0.3, NAN, 0.5]), "not increasing": ("labels", [10, 10, 30]), "no images": ("held_out", 0),
        "endless": ("at", [10**5000]), "beyond all": ("at", [1e308]), "coverage text": ("coverage", "x"),
        "coverage nan": ("coverage", NAN), "infinite images": ("held_out", INF), "complex": ("labels", [1j, 2, 3]),
    }  # fmt: skip
    return {
        name: Case(name, partial(forecast, **(good | {field: value})), (f"{field}:",), refused=True)
        for name, (field, value) in bad.items()
    }


@st.composite
def question_cases(draw: DrawFn, world: World) -> Case:
    names = st.sampled_from([*STRATEGIES])
    given: dict[str, SearchStrategy[Any]] = {
        "config": VALUES,
        "strategies": st.lists(names | VALUES, max_size=3).map(tuple) | VALUES | names,
        "round": VALUES,
        "history": VALUES,
    }
    field = draw(st.sampled_from([*given]))
    values = {field: draw(given[field])}
    return Case(short(values), partial(Question, **values), (field, field.removesuffix("ies") + "y"))


@st.composite
def device_cases(draw: DrawFn, world: World) -> Case:
    text = draw(
        TEXTS | st.sampled_from(["cpu:", "cpu:x", "cuda:99", "meta", "cpu:0", "4G", "-1G", "G", "1e400", "nan"])
    )
    kind = draw(st.sampled_from(["device", "memory", "dispatch"]))
    if kind == "device":
        return Case(short(text), lambda: torch.zeros(1, device=choose_device(text)), ("device",))
    if kind == "memory":
        text = text.replace("\0", "").encode(errors="ignore").decode()

        def call() -> int:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PALKIT_MEMORY", text)
                return memory_limit()

        return Case(short(text), call, ("PALKIT_MEMORY",))
    field = draw(st.sampled_from(["jobs", "engine", "address", "gpus", "time_limit"]))
    value = draw(VALUES)
    refused = field in ("jobs", "gpus", "time_limit") and isinstance(value, float) and value != value
    values = {field: value, "engine": "ray"} if field in ("gpus", "address") else {field: value}
    named = (field, field.replace("_", " "))
    return Case(short(values), partial(DispatchConfig, **values), named, refused=refused)


@st.composite
def session_cases(draw: DrawFn, world: World) -> Case:
    """Fields of a session, and calls of one that is open."""
    kind = draw(st.sampled_from(["open", "call", "call"]))
    if kind == "open":
        field = draw(
            st.sampled_from(["annotator", "classes", "budget", "held_out", "folder", "device", "dataset", *FIELDS])
        )
        value = draw(VALUES)
        values: dict[str, Any] = {"dataset": "digits", "annotator": "ann", "pool_size": 60, "folder": world.place()}
        if field == "folder" and isinstance(value, str | Path) and not str(value).startswith("/"):
            value = "/dev/null/x"
        values[field] = value
        named = (field, field.rpartition(".")[2], "class", "strategy", "session.json")
        return Case(f"open {short({field: value})}", partial(open_session, **values), named)
    session = open_session("digits", "ann", pool_size=60, folder=world.place(), device="cpu", **world.tiny)
    known = st.sampled_from([*session.row_of][:5]) | VALUES
    some = known | st.lists(known, max_size=3)
    calls: dict[str, tuple[Callable[..., object], list[SearchStrategy[Any]], tuple[str, ...]]] = {
        "label": (
            session.label,
            [some, st.sampled_from(session.class_names) | some],
            ("image", "class", "labels", "ids"),
        ),
        "unsure": (session.unsure, [some], ("image", "ids")),
        "skip": (session.skip, [some], ("image", "ids")),
        "add_class": (session.add_class, [VALUES], ("class",)),
        "propose": (session.propose, [VALUES], ("batch_size",)),
        "forecast": (session.forecast, [VALUES], ("more", "at:")),
        "import": (session.import_labels, [odd_tables(session)], ("table", "image", "class", "row")),
    }
    name = draw(st.sampled_from([*calls]))
    function, arguments, named = calls[name]
    drawn = [draw(one) for one in arguments]

    def call() -> None:
        try:
            function(*drawn)
        finally:  # whatever was refused, what is stored can still be read
            again = open_session("digits", "ann", pool_size=60, folder=session.folder, device="cpu", **world.tiny)
            again.answers(), again.labels(), again.class_names, again.open(), again.curve()

    return Case(f"{name} {short(drawn)}", call, named)


@st.composite
def odd_tables(draw: DrawFn, session: Session) -> pd.DataFrame:
    """A table of labels with something odd in it."""
    columns = {
        "id": st.sampled_from([*session.row_of][:5]) | VALUES,
        "label": st.sampled_from(session.class_names) | VALUES,
        "annotator": st.just("bob") | VALUES,
        "time": st.just("") | st.just("2026-01-01T00:00:00+00:00") | st.just("2026-01-01") | VALUES,
    }
    rows = draw(st.integers(0, 2))
    kept = draw(st.sampled_from([[*columns], [*columns], [*columns][:3], [*columns][1:]]))
    return pd.DataFrame({name: pd.Series([draw(columns[name]) for _ in range(rows)], dtype=object) for name in kept})


def fixed_sessions(world: World) -> dict[str, Case]:
    """A session that is open, and what could spoil its files."""

    def opened() -> Session:
        return open_session("digits", "ann", pool_size=60, folder=world.place(), device="cpu", **world.tiny)

    def spoil(table: dict[str, list[Any]], **values: Any) -> None:
        session = opened()
        try:
            session.import_labels(pd.DataFrame(table), **values)
        finally:
            assert session.answers().empty, "half of it was taken over"

    some = next(iter(opened().row_of))
    row: dict[str, list[Any]] = {"id": [some], "label": ["3"], "annotator": ["bob"], "time": [""]}
    begin = partial(open_session, "digits", pool_size=60, folder=world.place(), device="cpu")
    bad: dict[str, tuple[Callable[[], object], str]] = {
        "import of a bad time": (lambda: spoil(row | {"time": ["yesterday"]}), "time"),
        "import without offset": (lambda: spoil(row | {"time": ["2026-01-01"]}), "time"),
        "import of numbers": (lambda: spoil(row | {"label": [3]}), "label"),
        "import of nan": (lambda: spoil(row | {"annotator": [NAN]}), "annotator"),
        "import without column": (lambda: spoil({"id": [some], "label": ["3"]}), "annotator"),
        "import of no table": (lambda: opened().import_labels([1]), "table"),  # type: ignore[arg-type]
        "label a number": (lambda: opened().label(5, "3"), "5"),  # type: ignore[arg-type]
        "label nobody knows": (lambda: opened().label("x.png", "3"), "x.png"),
        "label class": (lambda: opened().label(some, "cat"), "cat"),
        "class a number": (lambda: opened().add_class(5), "5"),  # type: ignore[arg-type]
        "propose text": (lambda: opened().propose("x"), "batch_size"),  # type: ignore[arg-type]
        "forecast text": (lambda: opened().forecast("x"), "more"),  # type: ignore[arg-type]
        "annotator a number": (partial(begin, 5), "annotator"),
        "classes a text": (partial(begin, "ann", classes="cat"), "classes"),
        "classes of numbers": (partial(begin, "ann", classes=[1, 2]), "class"),
        "budget text": (partial(begin, "ann", budget="x"), "budget"),
        "budget nan": (partial(begin, "ann", budget=NAN), "budget"),
        "held_out text": (partial(begin, "ann", held_out="x"), "held_out"),
        "held_out half": (partial(begin, "ann", held_out=0.5), "held_out"),
        "folder is a file": (
            partial(open_session, "digits", "ann", pool_size=60, folder=world.place(a=b"") / "a"),
            "a",
        ),
        "folder a number": (partial(open_session, "digits", "ann", pool_size=60, folder=5), "folder"),
        "unknown field": (partial(begin, "ann", buget=3), "Did you mean"),
    }
    return {name: Case(name, call, (named,), refused=True) for name, (call, named) in bad.items()}
