"""Bad files of every kind that palkit reads, as cases of `bad_input`; and the table of all entries."""

import csv
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from bad_input import (
    DEEP,
    INF,
    JSON_VALUES,
    NAN,
    TEXTS,
    Case,
    World,
    command,
    command_cases,
    config_cases,
    damaged,
    device_cases,
    fixed_commands,
    fixed_configs,
    fixed_forecasts,
    fixed_selections,
    fixed_sessions,
    fixed_sweeps,
    forecast_cases,
    png,
    question_cases,
    select_cases,
    session_cases,
    short,
    sweep_cases,
    zeros,
)
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pyarrow import parquet

from palkit.adapter_files import load_adapter
from palkit.backbones import load_backbone
from palkit.datasets import ImagePool, load_dataset
from palkit.datasets.download import unpack
from palkit.datasets.files import FileImages, unreadable
from palkit.exchange import COLUMNS, read_label_studio, read_labels_csv, write_labels_csv
from palkit.labels import LabelLog, agreed, agreement, classes, disagreements, standing
from palkit.scores import LabelledSet, PoolScores
from palkit.session import open_session
from palkit.session_file import SessionFile, curve_of
from palkit.shards import Shards, open_shards, write_manifest
from palkit.strategies import select

MOMENT = "2026-01-31T12:00:00+00:00"


# Manifests


def manifest(world: World, name: str, content: bytes, named: str | None = None, *, refused: bool = False) -> Case:
    """A manifest beside six images in a/ and b/."""
    folder = world.place(**{name.replace(".", "__"): content})
    for label in "ab":
        (folder / label).mkdir()
        for number in range(3):
            (folder / label / f"{number}.png").hardlink_to(world.small)
    return Case(
        short(content), partial(use_manifest, folder / name), (named or name, "cannot be read as an image"), refused
    )


def use_manifest(path: Path) -> None:
    """Load it and look at all that a manifest can be wrong about."""
    pool = load_dataset(str(path))
    assert len(pool.labels) == len(pool.split) == len(pool.ids) == len(pool.images)
    assert "nan" not in pool.class_names or b"nan" in path.read_bytes(), "what is not there became a class"
    pool.counts(), pool.label_names()
    pool.images.decode(np.arange(len(pool)), 8)


LISTED = [(f"{label}/{number}.png", label) for label in "ab" for number in range(3)]
CSV = "path,label\n" + "".join(f"{path},{label}\n" for path, label in LISTED)
SPLIT_CSV = "path,label,split,group\n" + "".join(
    f"{path},{label},{split},{group}\n"
    for (path, label), split, group in zip(LISTED, ("pool", "val", "test") * 2, "123123", strict=True)
)


@st.composite
def csv_cases(draw: DrawFn, world: World) -> Case:
    kind = draw(st.sampled_from(["damaged", "cells", "encoding"]))
    if kind == "damaged":
        content = draw(damaged([CSV.encode(), SPLIT_CSV.encode()]))
    else:
        table = [line.split(",") for line in draw(st.sampled_from([CSV, SPLIT_CSV])).splitlines()]
        for _ in range(draw(st.integers(1, 3))):
            row = table[draw(st.integers(0, len(table) - 1))]
            row[draw(st.integers(0, len(row) - 1))] = draw(
                TEXTS | st.sampled_from(["a/0.png", "/dev/zero", "a/../a/0.png", ".", "a", "pool", "path", "~/x.png"])
            )
            if draw(st.booleans()):
                row.append(draw(TEXTS))
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"]))).writerows(table)
        encodings = ["utf-16", "latin-1", "cp1252", "utf-8-sig", "utf-32"] if kind == "encoding" else ["utf-8"]
        content = text.getvalue().encode(draw(st.sampled_from(encodings)), errors="replace")
    return manifest(world, "m.csv", content)


@st.composite
def parquet_cases(draw: DrawFn, world: World) -> Case:
    if draw(st.booleans()):
        return manifest(world, "m.parquet", draw(damaged([table_bytes(CSV), table_bytes(SPLIT_CSV)])))
    columns: dict[str, list[Any]] = {
        "path": [path for path, _ in LISTED],
        "label": [label for _, label in LISTED],
        "split": ["pool", "val", "test"] * 2,
    }
    name = draw(st.sampled_from(["path", "label", "split", "group"]))
    kinds: list[SearchStrategy[Any]] = [
        st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.none(), st.binary(max_size=5), st.dates(),
        st.lists(st.integers(0, 3), max_size=2), TEXTS, st.fixed_dictionaries({"x": st.integers(0, 3)}),
    ]  # fmt: skip
    one = draw(st.sampled_from(kinds))
    columns[name] = [draw(one | st.none()) for _ in LISTED]
    columns = {key: columns[key] for key in draw(st.permutations([*columns]))}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    return manifest(world, "m.parquet", buffer.getvalue())


def table_bytes(text: str) -> bytes:
    head, *rows = [line.split(",") for line in text.splitlines()]
    buffer = io.BytesIO()
    parquet.write_table(
        pa.table({name: list(cells) for name, cells in zip(head, zip(*rows, strict=True), strict=True)}), buffer
    )
    return buffer.getvalue()


def fixed_manifests(world: World) -> dict[str, Case]:
    twice = pa.Table.from_arrays([pa.array(["a/0.png"])] * 3, names=["path", "label", "label"])
    buffer = io.BytesIO()
    parquet.write_table(twice, buffer)
    bad = {
        "m.csv": {
            "empty": b"",
            "header only": b"path,label\n",
            "no label": b"path\na/0.png\n",
            "label twice": b"path,label,label\na/0.png,a,b\n",
            "more cells": CSV.encode() + b"a/0.png,a,b,c\n",
            "more cells everywhere": CSV.replace("\n", ",x\n").replace("label,x", "label").encode(),
            "fewer cells": CSV.encode() + b"a/0.png\n",
            "latin-1": CSV.replace(",a\n", ",\xe4\n").encode("latin-1"),
            "utf-16": CSV.encode("utf-16"),
            "nul": CSV.replace("a/0.png", "a/\0.png").encode(),
            "nul in label": CSV.replace(",a\n", ",a\0\n").encode(),
            "long path": b"path,label\n" + b"x/" * 3000 + b".png,a\n",
            "long name": b"path,label\n" + b"x" * 5000 + b".png,a\n",
            "traversal": b"path,label\n../../../../../../etc/passwd,a\n",
            "absolute": b"path,label\n/etc/passwd,a\n",
            "device": b"path,label\n/dev/zero,a\n",
            "folder": b"path,label\na,a\n",
            "empty path": b"path,label\n,a\n",
            "listed twice": CSV.encode() + b"a/0.png,a\n",
            "listed twice, spelt differently": CSV.encode() + b"a/../a/./0.png,a\n",
            "unknown split": SPLIT_CSV.replace("val", "valid").encode(),
            "open quote": b'path,label\n"a/0.png,a\n',
            "binary": bytes(range(256)) * 4,
            "zip": b"PK\x03\x04" + bytes(100),
            "huge field": b"path,label\n" + b"x" * 3_000_000 + b",a\n",
            "one class": CSV.replace(",b", ",a").encode(),
            "unlabelled test": SPLIT_CSV.replace("a,test", ",test").encode(),
            "group in two splits": SPLIT_CSV.replace("val,2", "val,1").encode(),
        },
        "m.parquet": {
            "empty": b"",
            "magic only": b"PAR1PAR1",
            "csv": CSV.encode(),
            "truncated": table_bytes(CSV)[:-20],
            "label twice": buffer.getvalue(),
            "folder": None,
        },
    }  # fmt: skip
    cases = {}
    for name, contents in bad.items():
        for what, content in contents.items():
            if content is None:
                folder = world.place()
                (folder / name).mkdir()
                cases[f"{name} {what}"] = Case(what, partial(use_manifest, folder / name), (name,), refused=True)
            else:
                cases[f"{name} {what}"] = manifest(world, name, content, refused=True)
    missing = partial(load_dataset, "/no/such/m.csv")
    long = partial(load_dataset, "/tmp/" + "x" * 5000)
    return cases | {
        "missing": Case("missing", missing, ("m.csv",), refused=True),
        "long": Case("long", long, ("xxx",), refused=True),
        "nul": Case("nul", partial(load_dataset, "/tmp/a\0b"), ("/tmp/a",), refused=True),
        "hub form": Case("hub form", partial(load_dataset, "hf:"), ("hf:",), refused=True),
        "hub blank": Case("hub blank", partial(load_dataset, "hf: a b"), ("hf:",), refused=True),
        "hub long": Case("hub long", partial(load_dataset, "hf:o/" + "x" * 5000), ("xxx",), refused=True),
        "hub folder": Case(
            "hub folder", partial(load_dataset, f"hf:{world.place(a__txt=b'x')}@y"), ("hf:",), refused=True
        ),
        "hub nul": Case("hub nul", partial(load_dataset, "hf:a\0b"), ("hf:a",), refused=True),
        "group": Case(
            "group", partial(load_dataset, str(world.place(a__png=b"")), group="("), ("group",), refused=True
        ),
    }


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


# Labels


@st.composite
def log_cases(draw: DrawFn, world: World) -> Case:
    if draw(st.booleans()):
        content = draw(damaged([world.log]))
    else:
        lines = []
        for _ in range(draw(st.integers(1, 3))):
            line: Any = {"time": MOMENT, "annotator": "ann", "action": "label", "id": "x.png", "label": "cat"}
            for _ in range(draw(st.integers(0, 2))):
                line[draw(st.sampled_from([*line, "more"]))] = draw(
                    JSON_VALUES | st.sampled_from(["undo", "class", "skip", "2026-01-01", MOMENT])
                )
            lines.append(json.dumps(line if draw(st.booleans()) else draw(st.just(line) | JSON_VALUES)))
        content = draw(st.sampled_from(["\n", "\r\n"])).join([*lines, ""]).encode(errors="replace")
    path = world.place(labels__jsonl=content) / "labels.jsonl"
    return Case(short(content), partial(use_log, path), ("labels.jsonl", "labels.csv"))


def use_log(path: Path) -> None:
    events = LabelLog(path).events()
    table = standing(events)
    agreed(table), disagreements(table), agreement(table)
    assert "" not in classes(events), "a class without a name"
    answers = table[table["answer"] == "label"].drop(columns="answer")
    if len(answers):
        write_labels_csv(answers, path.with_name("labels.csv"))
        assert len(read_labels_csv(path.with_name("labels.csv"))) == len(answers)


def fixed_logs(world: World) -> dict[str, Case]:
    def line(**values: Any) -> bytes:
        good = {"time": MOMENT, "annotator": "ann", "action": "label", "id": "x.png", "label": "cat"}
        return (
            json.dumps({name: value for name, value in (good | values).items() if value is not None}).encode() + b"\n"
        )

    bad = {
        "text": b"hello\n",
        "binary": bytes(range(256)) + b"\n",
        "list": b"[]\n",
        "number": b"1\n",
        "deep": DEEP + b"\n",
        "deep value": b'{"time": ' + DEEP + b"\n",
        "long number": b'{"time": ' + b"9" * 5000 + b"}\n",
        "unknown action": line(action="delete"),
        "unknown field": line(more=1),
        "no time": line(time=None),
        "bad time": line(time="yesterday"),
        "no offset": line(time="2026-01-31T12:00:00"),
        "number as id": line(id=5),
        "no id": line(id=None),
        "no class": line(label=None),
        "class without name": line(action="class", id=None, label=None),
        "no annotator": line(annotator=""),
        "nan": line(id=NAN),
        "utf-16": line().decode().encode("utf-16") + b"\n",
    }
    cases = {}
    for name, content in bad.items():
        path = world.place(labels__jsonl=content) / "labels.jsonl"
        cases[name] = Case(name, partial(use_log, path), ("labels.jsonl",), refused=True)
    folder = world.place()
    (folder / "labels.jsonl").mkdir()
    cases["folder"] = Case("folder", partial(use_log, folder / "labels.jsonl"), ("labels.jsonl",), refused=True)
    return cases


LABELS = f'id,label,annotator,time\na.png,cat,ann,{MOMENT}\nb.png,"a,b",,\nc.png,,bob,\n'.encode()
TASK: dict[str, Any] = {
    "id": 1,
    "data": {"image": "/data/local-files/?d=a/b.png", "palkit_id": "a/b.png"},
    "annotations": [
        {
            "result": [{"from_name": "label", "type": "choices", "value": {"choices": ["cat"]}, "meta": {}}],
            "completed_by": {"id": 1, "email": "a@b.c"},
            "was_cancelled": False,
            "created_at": MOMENT,
        }
    ],
}
SHORT_TASK = {
    "id": 1,
    "image": "http://h/a.png",
    "choice": "cat",
    "annotator": 1,
    "annotation_id": 1,
    "created_at": MOMENT,
}


@st.composite
def label_csv_cases(draw: DrawFn, world: World) -> Case:
    if draw(st.booleans()):
        content = draw(damaged([LABELS]))
    else:
        rows = draw(st.lists(st.lists(TEXTS | st.sampled_from([*COLUMNS, MOMENT]), max_size=5), max_size=4))
        text = io.StringIO(newline="")
        csv.writer(text).writerows([draw(st.permutations(COLUMNS)), *rows])
        content = text.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-16", "latin-1"])), errors="replace")
    path = world.place(l__csv=content) / "l.csv"
    return Case(short(content), partial(read_labels_csv, path), ("l.csv",))


@st.composite
def label_studio_cases(draw: DrawFn, world: World) -> Case:
    if draw(st.booleans()):
        content = draw(damaged([json.dumps([TASK, SHORT_TASK]).encode()]))
    else:
        task = json.loads(json.dumps(draw(st.sampled_from([TASK, SHORT_TASK]))))
        for _ in range(draw(st.integers(1, 2))):
            spoil(draw, task)
        content = json.dumps([task, TASK]).encode(errors="replace")
    path = world.place(l__json=content) / "l.json"
    return Case(short(content), partial(use_label_studio, path), ("l.json",))


def spoil(draw: DrawFn, tree: Any) -> None:
    """Put something odd at some place of a tree of lists and mappings."""
    while True:
        keys = [*tree] if isinstance(tree, Mapping) else [*range(len(tree))]
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        if not isinstance(tree[key], dict | list) or draw(st.integers(0, 3)) == 0:
            tree[key] = draw(JSON_VALUES | st.sampled_from(["http://[::1", "http://h:x/%ff", "?d=", [], {}, None]))
            return
        tree = tree[key]


def use_label_studio(path: Path) -> None:
    table = read_label_studio(path)
    if len(table):
        write_labels_csv(table, path.with_name("labels.csv"))


def fixed_imports(world: World) -> dict[str, Case]:
    def studio(**values: Any) -> bytes:
        return json.dumps([TASK | values]).encode()

    def annotation(**values: Any) -> bytes:
        return studio(annotations=[TASK["annotations"][0] | values])

    result = TASK["annotations"][0]["result"][0]
    bad = {
        "l.csv": {
            "empty": b"",
            "no header": b"a.png,cat\n",
            "two labels": b"id,label,label\n",
            "more cells": LABELS + b"d.png,cat,ann,,x\n",
            "nul": LABELS.replace(b"cat", b"c\0t").replace(b"a.png", b""),
            "latin-1": "id,label\na,\xe4\n".encode("latin-1"),
            "utf-16": LABELS.decode().encode("utf-16"),
            "huge field": b"id,label\n" + b"x" * 200_000 + b",y\n",
            "open quote": b'id,label\n"a,b\n',
            "twice": LABELS + b"b.png,cat,,\n",
            "bad time": b"id,label,annotator,time\na,b,c,yesterday\n",
        },
        "l.json": {
            "empty": b"",
            "text": b"hello",
            "number": b"[1]",
            "deep": DEEP,
            "long number": b"[" + b"9" * 5000 + b"]",
            "bad address": json.dumps([TASK | {"data": {"image": "http://[::1"}}]).encode(),
            "annotator is a list": annotation(result=[result | {"meta": {"palkit_annotator": [1]}}]),
            "annotator is an object": annotation(result=[result | {"meta": {"palkit_annotator": {"a": 1}}}]),
            "e-mail is a list": annotation(completed_by={"email": [1]}),
            "time is a number": annotation(created_at=5),
            "time without offset": annotation(created_at="2026-01-01"),
            "two choices": annotation(result=[result | {"value": {"choices": ["a", "b"]}}]),
            "empty choice": annotation(result=[result | {"value": {"choices": [""]}}]),
            "choice is a number": annotation(result=[result | {"value": {"choices": [1]}}]),
            "id is a list": studio(data={"palkit_id": [1]}),
            "annotations are text": studio(annotations="x"),
            "data are text": studio(data="x"),
            "utf-16": studio().decode().encode("utf-16"),
        },
    }
    readers = {"l.csv": read_labels_csv, "l.json": use_label_studio}
    cases = {}
    for name, contents in bad.items():
        for what, content in contents.items():
            path = world.place(**{name.replace(".", "__"): content}) / name
            cases[f"{name} {what}"] = Case(what, partial(readers[name], path), (name,), refused=True)
        cases[f"{name} missing"] = Case("missing", partial(readers[name], Path("/no") / name), (name,), refused=True)
        cases[f"{name} folder"] = Case(
            "folder", partial(readers[name], world.place()), (str(world.places),), refused=True
        )
    return cases


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
    rounds = SessionFile(folder / "session.json").rounds()
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
        "deep": DEEP,
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


# Shards


class Trap:
    """What unpickles itself into a mark that somebody executed a pickle."""

    sprung: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Trap.sprung.append, ("executed",)


def untrapped(call: Callable[[], object]) -> Callable[[], object]:
    """The call, which must not execute a pickle whatever else it does."""

    def guarded() -> None:
        Trap.sprung.clear()
        try:
            call()
        finally:
            assert not Trap.sprung, "a pickle was executed"

    return guarded


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_with(header: bytes, content: bytes = bytes(64), version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with any header."""
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + content


GOOD_ROWS = np.arange(48, dtype=np.float32).reshape(12, 4)


@st.composite
def shard_cases(draw: DrawFn, world: World) -> Case:
    kind = draw(st.sampled_from(["damaged", "array", "header", "manifest"]))
    if kind == "manifest":
        return manifest_of_shards(world, draw(odd_shard_manifests(world)))
    if kind == "damaged":
        content = draw(damaged([npy(GOOD_ROWS), npy(GOOD_ROWS.astype(np.float16))]))
    elif kind == "array":
        dtype = draw(st.sampled_from(["f2", "f4", "f8", "i8", "u1", "?", "c8", "U3", "O", "M8[s]", ">f4"]))
        shape = draw(st.sampled_from([(), (0,), (4,), (0, 4), (3, 0), (3, 4), (2, 2, 2)]))
        array = np.zeros(shape, dtype)
        if draw(st.booleans()):
            array = np.asfortranarray(array)
        content = npy(array)
    else:
        descr = draw(st.sampled_from(["'<f4'", "'O'", "'<f9'", "[('a','<f4')]", "1", "None", "'|V8'", "()"]))
        shape = draw(
            st.sampled_from(
                ["(3, 4)", "(-3, 4)", "(10**9, 4)", "(2**62, 2**62)", "3", "('a',)", "(3.5, 4)", "(True, 4)"]
            )
        )
        shape = shape.replace("10**9", str(10**9)).replace("2**62", str(2**62))
        order = draw(st.sampled_from(["False", "1", "None"]))
        header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"
        content = npy_with(header.encode(), version=draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x09\x00"])))
    path = world.place(s__npy=content) / "s.npy"
    return Case(short(content), untrapped(partial(use_shards, path)), ("s.npy", "features"))


def use_shards(path: Path) -> None:
    """Select from the shard as features, as a strategy's user would."""
    rows = Shards([path])
    assert rows[:].shape == rows.shape
    scores = PoolScores(rows, torch.full((len(rows), 3), 1 / 3))
    if len(rows):
        select("coreset", scores, LabelledSet(torch.tensor([0]), torch.tensor([0])), 2, torch.Generator())


@st.composite
def odd_shard_manifests(draw: DrawFn, world: World) -> bytes:
    tree = json.loads(shard_manifest(world))
    spoil(draw, tree)
    return draw(
        st.just(json.dumps(tree).encode(errors="replace")) | damaged([json.dumps(tree).encode(errors="replace")])
    )


def shard_manifest(world: World) -> bytes:
    folder = world.place()
    (folder / "00000.npy").write_bytes(npy(GOOD_ROWS))
    write_manifest(folder, 1, {})
    return (folder / "manifest.json").read_bytes()


def manifest_of_shards(world: World, content: bytes, *, refused: bool = False) -> Case:
    folder = world.place(manifest__json=content)
    (folder / "00000.npy").write_bytes(npy(GOOD_ROWS))

    def call() -> None:
        rows = open_shards(folder)
        assert rows[:].shape == rows.shape

    return Case(short(content), call, ("manifest.json", "00000.npy", str(folder)), refused=refused)


def fixed_shards(world: World) -> dict[str, Case]:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}\n"
    archive = io.BytesIO()
    np.savez(archive, GOOD_ROWS)
    trap = io.BytesIO()
    np.save(trap, np.array([[Trap()]], dtype=object), allow_pickle=True)
    nan = GOOD_ROWS.copy()
    nan[3, 1] = NAN
    bad = {
        "empty": b"",
        "text": b"hello",
        "pickle": pickle.dumps(Trap()),
        "objects": trap.getvalue(),
        "npz": archive.getvalue(),
        "zip": b"PK\x03\x04" + bytes(40),
        "truncated": npy(GOOD_ROWS)[:-8],
        "truncated header": npy(GOOD_ROWS)[:40],
        "vector": npy(GOOD_ROWS[:, 0]),
        "double": npy(GOOD_ROWS.astype(np.float64)),
        "text array": npy(np.array([["a"]])),
        "structured": npy(np.zeros(3, [("a", "f4")])),
        "nan": npy(nan),
        "inf": npy(np.where(GOOD_ROWS == 5, INF, GOOD_ROWS).astype(np.float32)),
        "huge": npy_with((header % ((10**9, 10**6),)).encode()),
        "overflow": npy_with((header % ((2**62, 2**62),)).encode()),
        "negative": npy_with((header % ((-3, 4),)).encode()),
        "code": npy_with(b"{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (3, 4)}\n"),
        "deep": npy_with(b"[" * 9000 + b"\n"),
        "long": npy_with(b"'" + b"x" * 60_000 + b"'\n"),
        "no dictionary": npy_with(b"[1, 2]\n"),
        "nul header": npy_with(b"\0" * 60),
    }
    cases = {}
    for name, content in bad.items():
        path = world.place(s__npy=content) / "s.npy"
        cases[name] = Case(name, untrapped(partial(use_shards, path)), ("s.npy", "features"), refused=True)
    tree = json.loads(shard_manifest(world))
    manifests = {
        "manifest empty": b"",
        "manifest list": b"[]",
        "manifest deep": DEEP,
        "manifest long number": b"[" + b"9" * 5000 + b"]",
        "manifest other shape": json.dumps(tree | {"shape": [5, 4]}).encode(),
        "manifest shape text": json.dumps(tree | {"shape": "x"}).encode(),
        "manifest no shards": json.dumps(tree | {"shards": []}).encode(),
        "manifest shard missing": json.dumps(tree | {"shards": [{"file": "1.npy"}]}).encode(),
        "manifest shard number": json.dumps(tree | {"shards": [{"file": 1}]}).encode(),
        "manifest shard nul": json.dumps(tree | {"shards": [{"file": "a\0"}]}).encode(),
    }
    cases |= {name: manifest_of_shards(world, content, refused=True) for name, content in manifests.items()}
    fortran = world.place(s__npy=npy(np.asfortranarray(GOOD_ROWS))) / "s.npy"

    def same() -> None:
        assert Shards([fortran])[:].numpy().tolist() == GOOD_ROWS.tolist()

    cases["fortran"] = Case("fortran", same, ("s.npy",))
    cases["folder"] = Case("folder", partial(use_shards, world.place()), (str(world.places),), refused=True)
    cases["missing"] = Case("missing", partial(use_shards, Path("/no/s.npy")), ("s.npy",), refused=True)
    return cases


# Adapters and checkpoints


@st.composite
def adapter_cases(draw: DrawFn, world: World) -> Case:
    kind = draw(st.sampled_from([*world.adapters]))
    files = dict(world.adapters[kind])
    name = draw(st.sampled_from([*files]))
    if name.endswith(".json") and draw(st.booleans()):
        tree = json.loads(files[name])
        spoil(draw, tree)
        files[name] = json.dumps(tree).encode(errors="replace")
    else:
        files[name] = draw(damaged([files[name], files[draw(st.sampled_from([*files]))]]))
    return adapter(world, kind, files)


def adapter(world: World, kind: str, files: Mapping[str, bytes], *, refused: bool = False) -> Case:
    folder = world.place(**{name.replace(".", "__"): content for name, content in files.items()})

    def call() -> None:
        model = load_adapter(world.model(kind), folder)
        assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()), "not finite"

    return Case(f"{kind} {[*files]}", untrapped(call), (str(folder),), refused=refused)


def fixed_adapters(world: World) -> dict[str, Case]:
    good = world.adapters["lora"]
    tensors = "adapter_model.safetensors"
    config = json.loads(good["adapter_config.json"])
    prune = json.loads(world.adapters["adalora"]["adapter_config.json"])
    nan = torch.full((3, world.backbone.width), NAN)
    from safetensors.torch import load, save

    bad: dict[str, tuple[str, dict[str, bytes | None]]] = {
        "no head": ("lora", {"head.safetensors": None}),
        "no weights": ("lora", {tensors: None}),
        "no config": ("lora", {"adapter_config.json": None}),
        "empty": ("lora", {tensors: b""}),
        "truncated": ("lora", {tensors: good[tensors][:-10]}),
        "huge header": ("lora", {tensors: (2**60).to_bytes(8, "little") + b"{}"}),
        "long header": ("lora", {tensors: (2**30).to_bytes(8, "little") + b"{}"}),
        "pickle": ("lora", {tensors: pickle.dumps(Trap())}),
        "other keys": ("lora", {tensors: save({"x": torch.zeros(1)})}),
        "nan head": ("lora", {"head.safetensors": save(load(good["head.safetensors"]) | {"head.weight": nan})}),
        "integer head": (
            "lora",
            {"head.safetensors": save(load(good["head.safetensors"]) | {"head.weight": nan.bool()})},
        ),
        "config empty": ("lora", {"adapter_config.json": b""}),
        "config list": ("lora", {"adapter_config.json": b"[]"}),
        "config deep": ("lora", {"adapter_config.json": DEEP}),
        "config latin-1": ("lora", {"adapter_config.json": b"\xff{}"}),
        "config other": ("lora", {"adapter_config.json": json.dumps(config | {"r": 99}).encode()}),
        "no ranks": (
            "adalora",
            {"adapter_config.json": json.dumps({k: v for k, v in prune.items() if k != "rank_pattern"}).encode()},
        ),
        "odd ranks": ("adalora", {"adapter_config.json": json.dumps(prune | {"rank_pattern": {"x": 5}}).encode()}),
        "ranks text": ("adalora", {"adapter_config.json": json.dumps(prune | {"rank_pattern": "x"}).encode()}),
    }
    cases = {}
    for name, (kind, changes) in bad.items():
        files = {key: value for key, value in (world.adapters[kind] | changes).items() if value is not None}
        cases[name] = adapter(world, kind, files, refused=True)
    return cases


def checkpoint(world: World, name: str, content: bytes, *, refused: bool = False) -> Case:
    path = world.place(**{name.replace(".", "__"): content}) / name
    return Case(
        f"{name} {short(content)}",
        untrapped(lambda: load_backbone(world.backbone_config(path))),
        (name,),
        refused=refused,
    )


@st.composite
def checkpoint_cases(draw: DrawFn, world: World) -> Case:
    name = draw(st.sampled_from(["c.safetensors", "c.pth", "c.bin", "c.npz"]))
    return checkpoint(world, name, draw(damaged([checkpoints(world)[name]])))


def checkpoints(world: World) -> dict[str, bytes]:
    """The tiny backbone's weights in every format."""
    state = dict(world.backbone.vit.state_dict())
    buffer, arrays = io.BytesIO(), io.BytesIO()
    torch.save(state, buffer)
    np.savez(arrays, a=np.zeros(3))
    return {
        "c.safetensors": world.checkpoint.read_bytes(),
        "c.pth": buffer.getvalue(),
        "c.bin": buffer.getvalue(),
        "c.npz": arrays.getvalue(),
    }


def fixed_checkpoints(world: World) -> dict[str, Case]:
    trap, listed, scalars, nan = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": Trap()}, trap)
    torch.save([1, 2], listed)
    torch.save({"a": 1, "b": "x"}, scalars)
    state = world.backbone.vit.state_dict()
    torch.save({name: torch.full_like(value, NAN) for name, value in state.items()}, nan)
    bad = {
        "empty.pth": b"",
        "empty.safetensors": b"",
        "text.pth": b"hello",
        "text.safetensors": b"hello, this is no tensor",
        "pickle.pth": pickle.dumps(Trap()),
        "trap.pth": trap.getvalue(),
        "list.pth": listed.getvalue(),
        "scalars.pth": scalars.getvalue(),
        "nan.pth": nan.getvalue(),
        "truncated.pth": checkpoints(world)["c.pth"][:-500],
        "truncated.safetensors": checkpoints(world)["c.safetensors"][:-500],
        "header.safetensors": (2**60).to_bytes(8, "little") + b"{}",
        "zip.pth": b"PK\x03\x04" + bytes(100),
    }
    return {name: checkpoint(world, name, content, refused=True) for name, content in bad.items()}


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


# All entries: name -> (strategy of random cases, known cases, share of a campaign)

Drawn = Callable[[World], SearchStrategy[Case]]
ENTRIES: dict[str, tuple[Drawn, Callable[[World], dict[str, Case]], float]] = {
    "config": (config_cases, fixed_configs, 0.15),
    "command line": (command_cases, fixed_commands, 0.06),
    "sweep": (sweep_cases, fixed_sweeps, 0.08),
    "manifest csv": (csv_cases, fixed_manifests, 0.06),
    "manifest parquet": (parquet_cases, lambda _: {}, 0.05),
    "images": (picture_cases, fixed_pictures, 0.1),
    "label log": (log_cases, fixed_logs, 0.07),
    "label csv": (label_csv_cases, fixed_imports, 0.06),
    "label studio": (label_studio_cases, lambda _: {}, 0.06),
    "session file": (session_file_cases, fixed_session_files, 0.04),
    "session": (session_cases, fixed_sessions, 0.04),
    "shards": (shard_cases, fixed_shards, 0.07),
    "select": (select_cases, fixed_selections, 0.08),
    "adapter": (adapter_cases, fixed_adapters, 0.02),
    "checkpoint": (checkpoint_cases, fixed_checkpoints, 0.02),
    "archive": (archive_cases, fixed_archives, 0.03),
    "forecast": (forecast_cases, fixed_forecasts, 0.05),
    "explorer": (question_cases, lambda _: {}, 0.03),
    "devices": (device_cases, lambda _: {}, 0.03),
}
