"""Rules under `stop:` in a sweep's file: when the labelling of a run would have stopped, by hand and on a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from palkit.errors import ConfigError
from palkit.experiments.experiment import rounds
from palkit.experiments.results import collect
from palkit.experiments.sweep import Stop, load_sweep, plan
from palkit.storage.formats import write_table
from palkit.strategies.ties import keys_of
from palkit.studies import deciding
from palkit.studies.deciding import Predictions, rules_of, stop_row, stops_of
from palkit.studies.study import STOPS, stops


def predictions(accuracies: list[float], images: int = 40, classes: int = 3, seed: int = 0) -> Predictions:
    """Models that are right about so many of some images, ever others, and rather sure where they are."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=images)
    wrong = np.stack([rng.permutation(images) >= round(accuracy * images) for accuracy in accuracies])
    predicted = np.where(wrong, (truth + 1) % classes, truth)
    confidence = np.clip(rng.uniform(0.5, 1, wrong.shape) - 0.1 * wrong, 0.4, 1)
    labels = 10 * np.arange(1, len(accuracies) + 1)
    return Predictions(seed, labels, confidence, predicted, truth, keys_of(map(str, range(images))))


def by_rule(run: Predictions, stop: Stop) -> dict[tuple[str, float | None], dict[str, Any]]:
    return {
        (rule[0], rule[1]): stop_row(run, *rule) for rule in rules_of(run, stop, deciding.tests_of(run, stop.tests))
    }


def test_with_all_images_tested_the_guarantee_is_the_accuracy() -> None:
    run = predictions([0.5, 0.7, 0.65, 0.9])
    found = by_rule(run, Stop(accuracy=(0.5, 0.7, 0.8, 0.95), tests=0.95))
    for target, needed, accuracy in ((0.5, 10, 0.5), (0.7, 20, 0.7), (0.8, 40, 0.9)):
        for rule in ("guarantee", "interval", "estimate"):
            row = found[rule, target]
            assert (row["needed"], row["labels"], row["tests"]) == (needed, needed, 40)
            assert row["accuracy"] == pytest.approx(accuracy)
    assert not found["guarantee", 0.95]["stopped"]
    assert found["guarantee", 0.95]["needed"] is None
    assert found["guarantee", 0.95]["best"] == pytest.approx(0.9)


def test_few_tests_cost_labels_and_are_counted() -> None:
    run = predictions([0.5, *[0.97] * 9], images=400)
    both = [by_rule(run, Stop(accuracy=(0.8,), tests=share)) for share in (0.5, 0.8)]
    few, many = (found["guarantee", 0.8] for found in both)
    for found in both:
        order = [found[rule, 0.8]["labels"] for rule in ("estimate", "interval", "guarantee")]
        assert order == sorted(order), "who promises more waits longer"
    assert few["needed"] == many["needed"] == 20
    assert many["labels"] < few["labels"], "it is dear to be sure"
    assert few["tests"] == few["labels"]
    assert many["tests"] == 4 * many["labels"]


def test_a_flat_curve_has_little_to_gain_and_a_steep_one_much() -> None:
    flat, steep = predictions([0.9] * 8, images=400), predictions([0.1 * n for n in range(1, 9)], images=400)
    assert by_rule(flat, Stop(gain=0.05))["gain", None]["stopped"]
    assert not by_rule(steep, Stop(gain=0.05))["gain", None]["stopped"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 0.8))
def test_order_of_images_and_numbers_of_classes_play_no_part(seed: int, share: float) -> None:
    run, rng = predictions([0.5, 0.7, 0.9], seed=seed), np.random.default_rng(seed + 1)
    order, numbers = rng.permutation(40), rng.permutation(3)
    moved = replace(
        run,
        confidence=run.confidence[:, order],
        predicted=numbers[run.predicted[:, order]],
        truth=numbers[run.truth[order]],
        keys=run.keys[order],
    )
    stop = Stop(accuracy=(0.4, 0.6, 0.8), gain=0.02, tests=share)
    assert by_rule(moved, stop) == by_rule(run, stop)


@pytest.mark.parametrize(
    ("stop", "what"),
    [
        ({"acuracy": [0.9]}, "Did you mean 'accuracy'"),
        ({"tests": 0.5}, "give accuracy, a list of targets, or gain"),
        ({}, "give accuracy, a list of targets, or gain"),
        ({"accuracy": [90]}, "stop.accuracy"),
        ({"accuracy": 0.9}, "stop.accuracy is 0.9 (float); it must be a list."),
        ({"part": "x", "gain": 0.1}, "Valid names: accuracy, gain, tests"),
        ({"accuracy": [0.9], "tests": 1}, "stop.tests"),
        ({"gain": 0}, "stop.gain"),
        ([0.9], "stop"),
    ],
)
def test_a_rule_that_cannot_be_is_explained(stop: Any, what: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"base": {"dataset": "digits"}, "stop": stop}))
    with pytest.raises(ConfigError) as error:
        load_sweep(file)
    assert what in str(error.value)


def test_of_a_sweep(tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a table says of real runs agrees with their own; runs are the same with and without rules."""
    file, plain = tmp_path / "mine.yaml", tmp_path / "plain.yaml"
    content = {"base": {**tiny_run, "rounds": 3}, "grid": {"strategy": ["random", "margin"], "seed": [0, 1]}}
    plain.write_text(yaml.safe_dump(content))
    file.write_text(yaml.safe_dump({**content, "stop": {"accuracy": [0.2, 0.99], "gain": 0.5, "tests": 0.4}}))
    sweep = load_sweep(file)
    tasks = plan(sweep)
    assert [task.directory.run for task in tasks] == [task.directory.run for task in plan(load_sweep(plain))]
    with pytest.raises(ConfigError, match="has no `stop:`"):
        stops_of(load_sweep(plain))
    for task in tasks[:3]:  # the last run is not complete
        assert task.config is not None
        assert len(list(rounds(task.config))) == 3
    table = stops_of(sweep)
    assert table.groupby("run").size().tolist() == [7] * 3
    results = collect(sweep)["rounds"]
    for row in table[table["stopped"]].itertuples():
        (accuracy,) = results[(results["run"] == row.run) & (results["labels"] == row.labels)]["accuracy"]
        assert row.accuracy == pytest.approx(accuracy)
    best = results.groupby("run")["accuracy"].max()
    assert table["best"].to_numpy() == pytest.approx(best[table["run"]].to_numpy())

    write_table(table, tmp_path / STOPS)
    shown = stops(tmp_path, results)
    assert shown.index.names == ["strategy", "rule", "target"]
    assert shown.xs("guarantee", level="rule")["runs"].tolist() == [2, 2, 1, 1]
    untargeted = shown.xs("gain", level="rule")
    assert untargeted[["wrong", "reach", "needed"]].isna().all(axis=None)
    assert set(shown.dtypes.astype(str)) == {"int64", "float64"}
    reached = shown.xs(0.2, level="target").xs("guarantee", level="rule")
    own = results.groupby(["strategy", "run"])["accuracy"].max().ge(0.2).groupby("strategy").mean()
    assert reached["reach"].to_dict() == pytest.approx(own.to_dict())

    computed, tests_of = list[float](), deciding.tests_of

    def counted(run: Predictions, share: float) -> Any:
        computed.append(share)
        return tests_of(run, share)

    monkeypatch.setattr(deciding, "tests_of", counted)
    pd.testing.assert_frame_equal(stops_of(sweep, before=tmp_path / STOPS), table)
    assert computed == [], "runs and rules are those of before"
    assert tasks[3].config is not None
    assert len(list(rounds(tasks[3].config))) == 3
    pd.testing.assert_frame_equal(stops_of(sweep, before=tmp_path / STOPS).head(len(table)), table)
    assert computed == [0.4], "there is another run"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**content, "stop": {"accuracy": [0.2, 0.99], "gain": 0.5, "tests": 0.6}}))
    assert len(stops_of(load_sweep(other), before=tmp_path / STOPS)) == 28
    assert computed == [0.4, *[0.6] * 4], "there are other rules"
    (tmp_path / STOPS).write_bytes(b"damaged")
    assert len(stops_of(sweep, before=tmp_path / STOPS)) == 28


def test_a_sweep_without_rules_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no `stop:`"):
        stops(tmp_path, pd.DataFrame())
