"""Annotators who err: their quality and the classes of images against enumeration, and what a session makes of them."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from palkit.data import load_dataset
from palkit.errors import ConfigError
from palkit.labelling.annotators import (
    DECAY,
    LEAST,
    RIGHT,
    WRONG,
    Answered,
    consensus,
    gains,
    judge,
    numbered,
    unseen_probs,
)
from palkit.labelling.labels import agreed
from palkit.labelling.session import AGAIN, Session, open_session
from palkit.strategies.heads import even_rows, logistic_on_views

CLASSES = ("x", "y", "z")
ANSWERS = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from("abc"), st.sampled_from(CLASSES)),
    max_size=24,
    unique_by=lambda one: one[:2],
)


def table_of(rows: Sequence[tuple[Any, str, str]]) -> pd.DataFrame:
    """As `palkit.labelling.labels.standing` makes it."""
    given = [(f"{image}", who, "label", label, "") for image, who, label in rows]
    return pd.DataFrame(given, columns=["id", "annotator", "answer", "label", "time"], dtype=object)


def crowd(
    seed: int, rates: Sequence[float], images: int, each: int, classes: int = 4
) -> tuple[pd.DataFrame, list[str]]:
    """Answers of annotators who err at these rates, `each` to every image, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=images)
    rows = []
    for image in range(images):
        for who in rng.permutation(len(rates))[:each]:
            slip = rng.integers(1, classes) if rng.random() < rates[who] else 0
            rows.append((f"{image:03d}", f"annotator {who}", str((truth[image] + slip) % classes)))
    return table_of(rows), [str(one) for one in truth]


# The model


@pytest.mark.parametrize("with_prior", [False, True])
def test_em_finds_what_enumeration_of_all_classes_does(with_prior: bool) -> None:
    """Qualities of the largest posterior by another optimiser, sums over the 3^5 ways in which images can be."""
    rng = np.random.default_rng(2)
    images, annotators = np.repeat(np.arange(5), 3), np.tile(np.arange(3), 5)
    labels = np.array([0, 0, 1, 1, 1, 1, 2, 2, 0, 0, 1, 2, 1, 1, 0])
    answers = Answered(images, annotators, labels, (5, 3, 3))
    prior = rng.dirichlet(np.ones(3), 5) if with_prior else np.full((5, 3), 1 / 3)

    def joint(quality: np.ndarray) -> dict[tuple[int, ...], float]:
        found = {}
        for truth in product(range(3), repeat=5):
            chance = np.prod(prior[np.arange(5), truth])
            for image, who, label in zip(images, annotators, labels, strict=True):
                chance *= quality[who] if label == truth[image] else (1 - quality[who]) / 2
            found[truth] = float(chance)
        return found

    def loss(quality: np.ndarray) -> float:
        before = RIGHT * np.log(quality) + WRONG * np.log(1 - quality)
        return -float(np.log(sum(joint(quality).values())) + before.sum())

    best = minimize(loss, np.full(3, 0.8), bounds=[(0.01, 0.99)] * 3, tol=1e-12).x
    chances = joint(best)
    probs = np.zeros((5, 3))
    for truth, chance in chances.items():
        probs[np.arange(5), truth] += chance / sum(chances.values())
    judged = judge(answers, prior if with_prior else None)
    assert judged.quality == pytest.approx(best, abs=1e-4)
    assert judged.probs == pytest.approx(probs, abs=1e-3)
    expected = np.zeros((3, 3, 3))
    for image, who, label in zip(images, annotators, labels, strict=True):
        expected[who, :, label] += judged.probs[image]
    assert judged.confusions == pytest.approx(expected)


@given(ANSWERS, st.permutations(range(24)), st.permutations(CLASSES), st.permutations("pqr"))
def test_order_and_names_do_not_matter(rows: list, order: list[int], classes: list[str], people: list[str]) -> None:
    again = [rows[place] for place in order if place < len(rows)]
    found = consensus(table_of(rows), CLASSES)
    assert consensus(table_of(again), classes) == found
    label, who = dict(zip(CLASSES, classes, strict=True)), dict(zip("abc", people, strict=True))
    renamed = [(image, who[one], label[said]) for image, one, said in rows]
    assert consensus(table_of(renamed), CLASSES) == {name: label[one] for name, one in found.items()}


def test_qualities_are_found_from_the_answers_alone() -> None:
    rates = [0.05, 0.2, 0.3, 0.4, 0.1]
    table, truth = crowd(0, rates, 600, 3)
    answers, ids, _ = numbered(table, [*"0123"])
    judged = judge(answers)
    assert judged.quality == pytest.approx(1 - np.array(rates), abs=0.05)
    assert judged.confusions.sum() == pytest.approx(len(table))
    right = np.array(truth)[ids.astype(int)] == np.array([*"0123"])[judged.probs.argmax(axis=1)]
    assert judged.probs.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.02), "calibrated"


# What stands


@given(ANSWERS)
def test_two_annotators_are_never_told_apart(rows: list) -> None:
    table = table_of([one for one in rows if one[1] != "c"])
    assert consensus(table, CLASSES) == agreed(table)


@given(ANSWERS)
def test_whoever_is_not_contradicted_is_believed(rows: list) -> None:
    """Without a contradiction all is as if votes were counted, the order of the images too."""
    said = dict(reversed([(image, label) for image, _, label in rows]))
    table = table_of([(image, who, said[image]) for image, who, _ in rows])
    assert [*consensus(table, CLASSES).items()] == [*agreed(table).items()]


def test_a_third_annotator_tells_two_apart() -> None:
    """Whom the third confirms on shared images is believed on those that the third has not seen."""
    shared = [(f"s{number}", who, "x") for number in range(10) for who in "abc"]
    disputed = [(f"d{number}", who, label) for number in range(10) for who, label in (("a", "x"), ("b", "y"))]
    assert [name for name in consensus(table_of(shared + disputed), CLASSES) if name[0] == "d"] == []
    little = consensus(table_of([*shared, *disputed, ("d0", "c", "x")]), CLASSES)
    assert [name for name in little if name[0] == "d"] == ["d0"], "one answer says little"
    much = consensus(table_of([*shared, *disputed, *((f"d{number}", "c", "x") for number in range(8))]), CLASSES)
    assert {much[f"d{number}"] for number in range(10)} == {"x"}


def test_one_who_is_good_overrules_two_who_are_not() -> None:
    table, truth = crowd(1, [0.02, 0.5, 0.6], 300, 3)
    (most, kept), (right, settled) = (
        (np.mean([truth[int(name)] == label for name, label in labels.items()]), len(labels))
        for labels in (agreed(table), consensus(table, [*"0123"]))
    )
    assert most < 0.9
    assert right > 0.95
    assert settled * (2 * right - 1) > kept * (2 * most - 1), "right labels less wrong ones"


# What another answer is worth


@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.3, 0.99))
def test_gains_are_those_of_all_answers_there_could_be(seed: int, classes: int, quality: float) -> None:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(classes), 6)
    named = np.zeros((6, classes), dtype=bool)
    for image in range(6):
        named[image, rng.permutation(classes)[: rng.integers(1, classes + 1)]] = True

    def value(label: int | None, truth: int) -> int:
        return 0 if label is None else 1 if label == truth else -1

    for image, gain in enumerate(gains(probs, named, quality)):
        sides = [*np.flatnonzero(named[image])]
        before = sides[0] if len(sides) == 1 else None
        expected = 0.0
        for truth, answer in product(range(classes), repeat=2):
            chance = probs[image, truth] * (quality if answer == truth else (1 - quality) / (classes - 1))
            after = (
                (before if answer == before else None) if before is not None else answer if answer in sides else None
            )
            expected += chance * (value(after, truth) - value(before, truth))
        assert gain == pytest.approx(expected)


def test_no_head_has_seen_the_label_that_it_doubts() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(40, 6))).float()
    features[::2, 0] += 2
    positions = rng.permutation(40)[:23]
    labels = np.where(positions % 2, 1, 0)
    labels[[3, 11]] = -1
    probs = unseen_probs(features, positions, labels, 3)
    assert probs.sum(axis=1) == pytest.approx(1)
    for row in (0, 5, 22):
        changed = labels.copy()
        changed[row] = 2
        again = unseen_probs(features, positions, changed, 3)
        assert again[row] == pytest.approx(probs[row], abs=1e-6), "its own label does not count"
        assert np.abs(again[3] - probs[3]).max() > 0.01, "and counts for an image without one"
    rows, known = even_rows(features, torch.from_numpy(positions))[:], torch.from_numpy(np.flatnonzero(labels >= 0))
    targets = torch.eye(3)[torch.from_numpy(labels)[known]]
    weight, bias = logistic_on_views(rows[known][None], None, targets, torch.ones(len(known)), DECAY)
    expected = (rows[3] @ weight.T + bias).softmax(0).numpy().clip(LEAST)
    assert probs[3] == pytest.approx(expected / expected.sum(), abs=1e-5)


# Sessions


@pytest.fixture
def fields(tiny_run: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in tiny_run.items() if key not in ("dataset", "rounds")}
    return kept | {"adapter": {"name": "linear_probe"}, "batch_size": 20}


@pytest.fixture
def truth() -> dict[str, str]:
    pool = load_dataset("digits")
    return dict(zip(pool.ids, pool.label_names(), strict=True))


def slip(label: str) -> str:
    return str((int(label) + 1) % 10)


def opened(names: str, fields: dict[str, Any], **more: Any) -> list[Session]:
    return [open_session("digits", name, **fields, **more) for name in names.split()]


def test_second_opinions_are_asked_where_they_are_worth_more(fields: dict[str, Any], truth: dict[str, str]) -> None:
    ana, ben, cho = opened("ana ben cho", fields, ask_again=True)
    for number in range(3):
        ids = ana.propose()["id"].tolist()
        assert set(ana.open()["purpose"]) == {"train"}, "nobody else has answered"
        ana.label(ids, [slip(truth[name]) if place % 5 == number else truth[name] for place, name in enumerate(ids)])
        ana.fit()
    doubts = ben.doubts()
    assert set(doubts["id"]) == set(ana.labels())
    assert doubts["worth"].is_monotonic_decreasing
    batch = ben.propose()
    again = batch[batch["purpose"] == AGAIN]
    wanted = doubts.loc[doubts["worth"] > 0, "id"].tolist()
    assert len(wanted) > 3
    assert again["id"].tolist() == wanted[:10], "half of the batch at most"
    assert (again["predicted"] == "").all()
    assert len(batch) == 20
    assert batch["rank"].tolist() == [*range(1, 21)]
    assert not set(batch.loc[batch["purpose"] == "train", "id"]) & set(ana.labels())
    assert not set(ana.open()["id"]) & set(again["id"]), "ana has answered"
    assert set(cho.open()["id"]) == set(batch["id"])
    first = again["id"].iloc[0]
    ben.label(first, truth[first])
    assert first not in set(cho.open()["id"]), "one opinion is enough"
    ben.skip(again["id"].iloc[1])
    assert again["id"].iloc[1] not in set(ben.open()["id"])
    assert again["id"].iloc[1] in set(cho.open()["id"])
    assert opened("dan", fields)[0].open()["id"].tolist() == cho.open()["id"].tolist(), "as it is stored"
    ben.label(ben.open()["id"].tolist(), [truth[name] for name in ben.open()["id"]])
    assert ben.fit().proposed == batch["id"].tolist()
    assert not set(cho.labels()) & set(cho.disagreements().index), "two who contradict each other have no label"
    third = cho.propose()
    asked = third.loc[third["purpose"] == AGAIN, "id"]
    assert set(asked) & set(cho.disagreements().index), "a third one decides"
    cho.label(asked.tolist(), [truth[name] for name in asked])
    labels = cho.labels()
    assert {labels[name] == truth[name] for name in asked} == {True}


def test_without_others_nothing_changes(tmp_path: Path, fields: dict[str, Any], truth: dict[str, str]) -> None:
    """One annotator is never asked twice; and whoever does not want it is not."""
    tables = []
    for place, ask_again in enumerate((False, True)):
        (ana,) = opened("ana", fields | {"folder": tmp_path / str(place)}, ask_again=ask_again)
        for _ in range(3):
            batch = ana.propose()
            ana.label(batch["id"], [slip(truth[name]) for name in batch["id"]])
            tables.append((batch, ana.fit().metrics))
    for (batch, metrics), (other, same) in zip(tables[:3], tables[3:], strict=True):
        pd.testing.assert_frame_equal(batch, other)
        assert metrics == same


def test_qualities_and_confusions_of_a_session(fields: dict[str, Any], truth: dict[str, str]) -> None:
    people = opened("ana ben cho", fields)
    ids = people[0].propose()["id"].tolist()
    for session in people:
        label = slip if session.annotator == "cho" else str
        session.label(ids, [label(truth[name]) for name in ids])
    table = people[0].annotators()
    assert len(table) == 3 * 10 * 10
    quality = table.groupby("annotator")["quality"].first()
    assert quality["ana"] == quality["ben"] > 0.9
    assert quality["cho"] < 0.3
    assert table["labels"].sum() == pytest.approx(60)
    often = table[table["labels"] > 0.5]
    assert {tuple(row) for row in often[["annotator", "true", "said"]].to_numpy()} == {
        (who, truth[name], slip(truth[name]) if who == "cho" else truth[name]) for who in quality.index for name in ids
    }
    assert people[0].labels() == {name: truth[name] for name in ids}


def test_bad_input(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="ask_again is 'yes'"):
        opened("ana", fields, ask_again="yes")
    (ana,) = opened("ana", fields)
    with pytest.raises(ConfigError, match="no fit yet"):
        ana.doubts()
    assert ana.annotators().empty
