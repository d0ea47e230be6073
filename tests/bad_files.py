"""Bad images, session files and archives, as cases of `bad_input`."""

import io
import json
import pickle
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from bad_arrays import npy
from bad_input import Case, World, command, damaged, png, short, zeros
from bad_tables import spoil
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from palkit.data import ImagePool, load_dataset
from palkit.data.download import unpack
from palkit.data.files import FileImages, unreadable
from palkit.labelling.session import open_session
from palkit.labelling.session_file import SessionFile, curve_of

# Images


def picture(world: World, name: str, content: bytes, *, refused: bool = False) -> Case:
    """An image file beside a good one."""
    folder = world.place(**{name.replace(".", "__"): content})
    (folder / "good.png").hardlink_to(world.small)
    return Case(f"{name} {short(content)}", partial(use_pictures, folder, name), (name,), refused=refused)


def use_pictures(folder: Path, name: str) -> None:
    """Decode as loaders do; the list of unreadable files must say the same, and a manifest without them work."""
    pool: ImagePool = load_dataset(str(folder), unlabelled=True)
    assert isinstance(pool.images, FileImages)
    bad = [Path(path).name for path in unreadable(pool.images.paths)["path"]]
    command("manifest", "--skip-unreadable", "--unlabelled", str(folder), str(folder / "out.csv"))
    left = load_dataset(str(folder / "out.csv"))
    assert [*left.ids] == sorted({"good.png", name} - {*bad}), "the manifest lists something else"
    assert left.images.decode(np.arange(len(left)), 32).shape == (len(left), 32, 32, 3)
    assert bad in ([], [name])
    pool.images.decode(np.arange(len(pool)), 32)
    assert not bad, "decoded, but listed as unreadable"


@st.composite
def picture_cases(draw: DrawFn, world: World) -> Case:
    kind = draw(st.sampled_from(["damaged", "damaged", "damaged", "renamed", "header", "cut"]))
    name = draw(st.sampled_from([*world.pictures]))
    content = world.pictures[name]
    if kind == "damaged":
        same = [other for key, other in world.pictures.items() if key[-3:] == name[-3:]]
        content = draw(damaged([content, content, content, *same]))
    elif kind == "renamed":
        name = "x" + draw(st.sampled_from([".png", ".jpg", ".tif", ".bmp", ".gif", ".webp"]))
    elif kind == "header":
        sides = st.sampled_from([0, 1, 7, 5000, 2**16, 2**31 - 1, 2**32 - 1])
        depth, colour = draw(st.sampled_from([1, 2, 4, 8, 16, 99])), draw(st.sampled_from([0, 2, 3, 4, 6, 9]))
        name, content = "x.png", png(draw(sides), draw(sides), depth, colour)
    else:
        content = content[: draw(st.integers(0, len(content)))]
    return picture(world, name, content)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def fixed_pictures(world: World) -> dict[str, Case]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x", "y")
    bad = {
        "empty.png": b"",
        "text.png": b"hello",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "zip.png": archive.getvalue(),
        "script.png": EPS,
        "claimed.png": png(100_000, 100_000),
        "bomb.png": png(20_000, 20_000, 8, 0, zeros(20_000 * 20_001)),
        "nothing.png": png(0, 0),
        "missing-pixels.png": png(3000, 3000),
        "truncated.jpg": world.pictures["plain.jpg"][:300],
        "truncated.png": world.pictures["rgb.png"][:300],
        "truncated.webp": world.pictures["plain.webp"][:100],
        "html.jpg": b"<html>404</html>",
        "pickle.jpg": pickle.dumps({"a": 1}),
        "numpy.png": npy(np.zeros((4, 4))),
    }
    cases = {name: picture(world, name, content, refused=True) for name, content in bad.items()}
    good = {
        # As large as is still taken for an image; neither may take memory without end.
        "large.png": png(13_000, 13_000, 1, 0, zeros(13_000 * 1626)),
        "large16.png": png(9_000, 9_000, 16, 0, zeros(9_000 * 18_001)),
        "tall.png": png(1, 60_000, 8, 0, zeros(60_000 * 2)),
        "wide.png": png(1_000_000, 1, 8, 0, zeros(1_000_001)),
        **world.pictures,
    }
    return cases | {name: picture(world, name, content) for name, content in good.items()}


# Session files


@st.composite
def session_file_cases(draw: DrawFn, world: World) -> Case:
    if draw(st.integers(0, 3)) == 0:
        content = draw(damaged([world.session]))
    else:
        tree = json.loads(world.session)
        for _ in range(draw(st.integers(1, 2))):
            spoil(draw, tree)
        content = json.dumps(tree).encode(errors="replace")
    return Case(
        short(content), partial(use_session, world, world.place(session__json=content)), ("session.json", "digits")
    )


def use_session(world: World, folder: Path) -> None:
    rounds = SessionFile(folder / "session.json").read().rounds
    curve_of(rounds)
    session = open_session("digits", "ann", pool_size=60, folder=folder, device="cpu", **world.tiny)
    session.open(), session.rounds(), session.curve(), session.labels(), session.training_labels()
    if len(session.curve()) == len(rounds):
        session.forecast(5)


def fixed_session_files(world: World) -> dict[str, Case]:
    tree = json.loads(world.session)
    one, proposed = tree["rounds"][0], tree["proposed"][0]
    bad = {
        "empty": b"",
        "text": b"hello",
        "list": b"[]",
        "long number": b"[" + b"9" * 5000 + b"]",
        "latin-1": world.session.replace(b"digits", b"d\xe4gits"),
        "truncated": world.session[:-100],
    } | {
        what: json.dumps(tree | values).encode()
        for what, values in {
            "other data set": {"dataset": "cifar10"},
            "data set a number": {"dataset": 5},
            "held out a number": {"held_out": 5},
            "held out of numbers": {"held_out": [5]},
            "proposed a text": {"proposed": "x"},
            "proposed texts": {"proposed": ["x"]},
            "proposed without id": {"proposed": [{"rank": 1}]},
            "id a list": {"proposed": [proposed | {"id": [1]}]},
            "rank a text": {"proposed": [proposed | {"rank": "x"}]},
            "time a number": {"proposed": [proposed | {"time": 5}]},
            "probability a text": {"proposed": [proposed | {"probability": "x"}]},
            "rounds a number": {"rounds": 5},
            "rounds of texts": {"rounds": ["x"]},
            "round lacks a field": {"rounds": [{name: value for name, value in one.items() if name != "ids"}]},
            "round has another field": {"rounds": [one | {"more": 1}]},
            "round's labels fewer": {"rounds": [one | {"labels": one["labels"][:1]}]},
            "round's metrics a list": {"rounds": [one | {"metrics": [1]}]},
            "accuracy a text": {"rounds": [one | {"metrics": {"accuracy": "x"}}]},
            "accuracy beyond 1": {"rounds": [one | {"metrics": one["metrics"] | {"accuracy": 7}, "held_out": 3}]},
            "round's number": {"rounds": [one | {"number": 5}]},
        }.items()
    }  # fmt: skip
    return {
        name: Case(
            name, partial(use_session, world, world.place(session__json=content)), ("session.json", "cifar10"), True
        )
        for name, content in bad.items()
    }


# Archives


def archives() -> dict[str, bytes]:
    """A small valid archive of each kind."""
    files = {}
    for kind, method in {
        "zip": zipfile.ZIP_DEFLATED,
        "lzma.zip": zipfile.ZIP_LZMA,
        "bz2.zip": zipfile.ZIP_BZIP2,
    }.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as file:
            file.writestr("a/b.txt", "hello " * 50)
        files[kind] = buffer.getvalue()
    for kind in ("", ":gz", ":bz2", ":xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w{kind}") as tar:
            entry = tarfile.TarInfo("a/b.txt")
            entry.size = 300
            tar.addfile(entry, io.BytesIO(b"hello " * 50))
        files[f"tar{kind.replace(':', '.')}"] = buffer.getvalue()
    return files


@st.composite
def archive_cases(draw: DrawFn, world: World) -> Case:
    every = archives()
    kind = draw(st.sampled_from([*every]))
    return archive(world, draw(damaged([every[kind]])))


def archive(world: World, content: bytes, *, refused: bool = False) -> Case:
    folder = world.place(x__archive=content)

    def call() -> None:
        try:
            unpack(folder / "x.archive", folder / "target")
        finally:
            assert {path.name for path in folder.iterdir()} <= {"x.archive", "target", ".target.lock"}, (
                "something is left"
            )

    return Case(short(content), call, ("x.archive",), refused=refused)


def fixed_archives(world: World) -> dict[str, Case]:
    outside, link, method = io.BytesIO(), io.BytesIO(), bytearray(archives()["zip"])
    with zipfile.ZipFile(outside, "w") as file:
        file.writestr("../out.txt", "x")
    with tarfile.open(fileobj=link, mode="w") as tar:
        entry = tarfile.TarInfo("a")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    for signature, place in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        method[method.index(signature) + place] = 99
    bad = {
        "empty": b"",
        "text": b"hello",
        "outside": outside.getvalue(),
        "link": link.getvalue(),
        "unknown method": bytes(method),
        "truncated zip": archives()["zip"][:-30],
        "truncated xz": archives()["tar.xz"][:60],
        "truncated gz": archives()["tar.gz"][:60],
    }
    return {name: archive(world, content, refused=True) for name, content in bad.items()}
