"""What counts as an answer to bad input, with its judge; odd values, and the files and models that cases begin with.

Every public entry has cases that are drawn at random (hypothesis strategies, so that a failure shrinks) and cases that
are known to be nasty, see `bad_entries`. A case is answered well if the input is accepted, or refused by an error of
`palkit.errors` (on the command line: by a usage or error line) whose text names what was given.
"""

import contextlib
import io
import json
import random
import shutil
import signal
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image
from tiny_vit import save_tiny_vit

from palkit.cli import main
from palkit.errors import PalkitError
from palkit.labelling.labels import LabelLog
from palkit.labelling.session import open_session
from palkit.models.adapters import AdaptedModel, AdapterConfig, attach
from palkit.models.adapters.files import save_adapter
from palkit.models.backbones import Backbone, BackboneConfig, load_backbone
from palkit.strategies.scores import PoolScores

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
        return save_tiny_vit(self.folder)

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
        from palkit.labelling.labels import Event

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
