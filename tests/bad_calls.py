"""Bad arguments of strategies, forecasts, questions, devices and sessions, as cases of `bad_input`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bad_configs import FIELDS
from bad_input import CLASSES, INF, NAN, NUMBERS, ROWS, TEXTS, VALUES, Case, World, short
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from palkit.experiments.dispatch import DispatchConfig
from palkit.labelling.explore import Question
from palkit.labelling.extrapolation import forecast
from palkit.labelling.session import Session, open_session
from palkit.models.devices import choose_device, memory_limit
from palkit.strategies import STRATEGIES, get_strategy, select
from palkit.strategies.scores import LabelledSet, PoolScores


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
            st.sampled_from(
                ["annotator", "classes", "budget", "held_out", "ask_again", "folder", "device", "dataset", *FIELDS]
            )
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
