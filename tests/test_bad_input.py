"""Whatever is given to palkit, it works or says what is wrong with it: see bad_input.py for what that means.

`campaigns/fuzz.py` does the same with many more cases, and watches memory.
"""

import re
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_entries import ENTRIES
from bad_input import INF, NAN, Case, Hang, World, command, judge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palkit.config import config_from_dict, nest
from palkit.errors import ConfigError, DataError, unknown_name
from palkit.experiments.sweep import Sweep, load_sweep, plan
from palkit.models.backbones import BackboneConfig
from palkit.storage.plain_yaml import read_yaml
from palkit.strategies import STRATEGIES

# Random cases of an entry; the slow ones, which decode, unpickle or open sessions, have fewer.
EXAMPLES = {
    "config": 60,
    "sweep": 40,
    "select": 40,
    "label log": 40,
    "label csv": 40,
    "label studio": 40,
    "forecast": 40,
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "'a' is there twice"),
        ("2024-99-99", "month"),
        ("!!bool x", "KeyError"),
        ("!!timestamp x", "AttributeError"),
        ("9" * 5000, "digits"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: 1\n---\na: 2", "single document"),
    ],
)
def test_yaml_is_plain(text: str, reason: str) -> None:
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


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Cat", "It differs from 'cat' in capital and small letters."),
        ("cafe\u0301", r"in how its accents are stored: 'cafe\\u0301' and 'caf\\xe9'."),
        ("ca\u200bt", r"It differs from 'cat' in characters that cannot be seen: U\+200B."),
        ("big\u00a0dog", r"It differs from 'big dog' in spaces: 'big\\xa0dog' and 'big dog'."),
        ("cat ", "It differs from 'cat' in spaces: 'cat ' and 'cat'."),
        (
            "c\u0430t",
            "It differs from 'cat' in the letter CYRILLIC SMALL LETTER A, which is LATIN SMALL LETTER A there.",
        ),
        ("\u0441at", "in the letter CYRILLIC SMALL LETTER ES, which is LATIN SMALL LETTER C there."),
        ("cut", r"Did you mean 'cat'\?"),
    ],
)
def test_what_cannot_be_seen_is_said_and_never_suggested(name: str, hint: str) -> None:
    error = str(unknown_name("class", name, ["cat", "big dog", "caf\u00e9"]))
    assert re.search(hint, error), error
    assert ("Did you mean" in error) == ("Did you mean" in hint)
