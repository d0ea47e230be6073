"""Bad manifests, label logs and tables of labels, as cases of `bad_input`."""

import csv
import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bad_input import JSON_VALUES, NAN, TEXTS, Case, World, damaged, short
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pyarrow import parquet

from palkit.data import load_dataset
from palkit.labelling.exchange import COLUMNS, read_label_studio, read_labels_csv, write_labels_csv
from palkit.labelling.labels import LabelLog, agreed, agreement, classes, disagreements, standing

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
            "utf-16 without its mark": CSV.encode("utf-16-le"),
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
            "unknown split": SPLIT_CSV.replace("val", "vlaid").encode(),
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
            "utf-16 without its mark": LABELS.decode().encode("utf-16-le"),
            "huge field": b"id,label\n" + b"x" * 200_000 + b",y\n",
            "open quote": b'id,label\n"a,b\n',
            "twice": LABELS + b"b.png,cat,,\n",
            "bad time": b"id,label,annotator,time\na,b,c,yesterday\n",
        },
        "l.json": {
            "empty": b"",
            "text": b"hello",
            "number": b"[1]",
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
            "utf-16 without its mark": studio().decode().encode("utf-16-le"),
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
