"""Bad configs, command lines and sweeps, as cases of `bad_input`."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
import yaml
from bad_input import INF, JSON_VALUES, NAN, TEXTS, VALUES, Case, World, command, damaged, short
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from palkit.config import ExperimentConfig, config_from_dict
from palkit.experiments.sweep import load_sweep
from palkit.storage.files import REPOSITORY

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
        "option no file holds": (
            {"strategy": "epig", "strategy_options": {"target": torch.ones(9) > 0}},
            "palkit.select",
        ),
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
