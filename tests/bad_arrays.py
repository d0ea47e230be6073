"""Bad shards, adapters and checkpoints, as cases of `bad_input`."""

import io
import json
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from bad_input import INF, NAN, Case, World, damaged, short
from bad_tables import spoil
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from palkit.models.adapters.files import load_adapter
from palkit.models.backbones import load_backbone
from palkit.storage.shards import Shards, open_shards, write_manifest
from palkit.strategies import select
from palkit.strategies.scores import LabelledSet, PoolScores

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
