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
    settled,
    unseen_probs,
)
from palkit.labelling.labels import agreed
from palkit.labelling.session import AGAIN, Session, open_session
from palkit.strategies import kernels
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


def exact(answers: Answered, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior of classes and qualities of three annotators, summed over a grid of all qualities they could have."""
    grid = (np.arange(24) + 0.5) / 24
    quality = np.array([*product(grid, repeat=3)])  # (G, 3)
    weight = ((RIGHT - 1) * np.log(quality) + (WRONG - 1) * np.log(1 - quality)).sum(axis=1)
    classes = answers.counts[2]
    chance = np.tile(prior, (len(quality), 1, 1))  # (G, N, C)
    for image, who, label in zip(answers.images, answers.annotators, answers.labels, strict=True):
        wrong = (1 - quality[:, who, None]) / (classes - 1)
        chance[:, image] *= np.where(np.arange(classes) == label, quality[:, who, None], wrong)
    total = chance.sum(axis=2, keepdims=True)
    weight += np.log(total).sum(axis=(1, 2))
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()
    return np.einsum("g,gnc->nc", weight, chance / total), weight @ quality


@pytest.mark.parametrize("with_prior", [False, True])
def test_probabilities_are_near_the_exact_posterior(with_prior: bool) -> None:
    """Few answers of three people; EM with the most probable qualities is off by twice as much."""
    rng, off, quality_off = np.random.default_rng(2), [], []
    for _ in range(40):
        classes, size = int(rng.integers(2, 5)), int(rng.integers(3, 25))
        rates, truth = rng.choice([0.05, 0.2, 0.4, 0.6], 3), rng.integers(classes, size=size)
        pairs = [(image, who) for image in range(size) for who in rng.permutation(3)[: rng.integers(2, 4)]]
        images, annotators = np.array(pairs).T
        slips = rng.integers(1, classes, len(pairs)) * (rng.random(len(pairs)) < rates[annotators])
        answers = Answered(images, annotators, (truth[images] + slips) % classes, (size, 3, classes))
        prior = rng.dirichlet(np.ones(classes), size) if with_prior else np.full((size, classes), 1 / classes)
        judged, (probs, quality) = judge(answers, prior if with_prior else None), exact(answers, prior)
        same = np.zeros((size, classes))
        np.add.at(same, (images, answers.labels), 1)
        disputed = (same > 0).sum(axis=1) > 1
        off += np.abs(judged.probs - probs)[disputed].ravel().tolist()
        quality_off += np.abs(judged.quality - quality).tolist()
        expected = np.zeros((3, classes, classes))
        for image, who, label in zip(images, annotators, answers.labels, strict=True):
            expected[who, :, label] += judged.probs[image]
        assert judged.confusions == pytest.approx(expected)
    assert np.mean(off) < 0.02
    assert np.mean(quality_off) < 0.01


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(0, 10**6))
def test_one_image_alone_is_as_its_answers_and_its_prior_make_it(labels: list[int], seed: int) -> None:
    """Nobody has vouched for its annotators yet, they themselves least of all."""
    prior = np.random.default_rng(seed).dirichlet(np.ones(3), 1)
    count, mean = len(labels), RIGHT / (RIGHT + WRONG)
    chance = prior[0] * np.prod([np.where(np.arange(3) == one, mean, (1 - mean) / 2) for one in labels], axis=0)
    answers = Answered(np.zeros(count, dtype=np.int64), np.arange(count), np.array(labels), (1, count, 3))
    assert judge(answers, prior).probs[0] == pytest.approx(chance / chance.sum())


@given(ANSWERS, st.permutations(range(24)), st.permutations("uvw"), st.permutations("pqr"))
def test_order_and_names_do_not_matter(rows: list, order: list[int], classes: list[str], people: list[str]) -> None:
    again = [rows[place] for place in order if place < len(rows)]
    found = consensus(table_of(rows))
    assert consensus(table_of(again)) == found
    label, who = dict(zip(CLASSES, classes, strict=True)), dict(zip("abc", people, strict=True))
    renamed = [(image, who[one], label[said]) for image, one, said in rows]
    assert consensus(table_of(renamed)) == {name: label[one] for name, one in found.items()}


def test_qualities_are_found_from_the_answers_alone() -> None:
    rates = [0.05, 0.2, 0.3, 0.4, 0.1]
    table, truth = crowd(0, rates, 600, 3)
    answers, ids, _, _ = numbered(table)
    judged = judge(answers)
    assert judged.quality == pytest.approx(1 - np.array(rates), abs=0.05)
    assert judged.confusions.sum() == pytest.approx(len(table))
    right = np.array(truth)[np.array(ids, dtype=int)] == np.array([*"0123"])[judged.probs.argmax(axis=1)]
    assert judged.probs.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.02), "calibrated"


# What stands


@given(ANSWERS)
def test_two_annotators_are_never_told_apart(rows: list) -> None:
    table = table_of([one for one in rows if one[1] != "c"])
    assert consensus(table) == agreed(table)


@given(ANSWERS)
def test_whoever_is_not_contradicted_is_believed(rows: list) -> None:
    """Without a contradiction all is as if votes were counted, the order of the images too."""
    said = dict(reversed([(image, label) for image, _, label in rows]))
    table = table_of([(image, who, said[image]) for image, who, _ in rows])
    assert [*consensus(table).items()] == [*agreed(table).items()]


def test_a_third_annotator_tells_two_apart() -> None:
    """Whom the third confirms on shared images is believed on those that the third has not seen."""
    shared = [(f"s{number}", who, "x") for number in range(10) for who in "abc"] + [("t", "a", "z")]
    disputed = [(f"d{number}", who, label) for number in range(10) for who, label in (("a", "x"), ("b", "y"))]
    assert [name for name in consensus(table_of(shared + disputed)) if name[0] == "d"] == []
    little = consensus(table_of([*shared, *disputed, ("d0", "c", "x")]))
    assert [name for name in little if name[0] == "d"] == ["d0"], "one answer says little"
    much = consensus(table_of([*shared, *disputed, *((f"d{number}", "c", "x") for number in range(8))]))
    assert {much[f"d{number}"] for number in range(10)} == {"x"}


def test_one_who_is_good_overrules_two_who_are_not() -> None:
    table, truth = crowd(1, [0.02, 0.5, 0.6], 300, 3)
    (most, kept), (right, settled) = (
        (np.mean([truth[int(name)] == label for name, label in labels.items()]), len(labels))
        for labels in (agreed(table), consensus(table))
    )
    assert most < 0.9
    assert right > 0.95
    assert settled * (2 * right - 1) > kept * (2 * most - 1), "right labels less wrong ones"


# What another answer is worth


def brute_gain(rows: list, image: str, by: str, classes: Sequence[str], probs: np.ndarray, quality: float) -> float:
    """Right labels less wrong ones by the next answer: every class it could be, and the labels that then stand."""

    def value(label: str | None, truth: str) -> int:
        return 0 if label is None else 1 if label == truth else -1

    before, gain = consensus(table_of(rows)).get(image), 0.0
    others = [row for row in rows if row[:2] != (image, by)]  # a new answer takes the place of the old one
    for said in classes:
        after = consensus(table_of([*others, (image, by, said)])).get(image)
        for truth, chance in zip(classes, probs, strict=True):
            likely = quality if said == truth else (1 - quality) / (len(classes) - 1)
            gain += chance * likely * (value(after, truth) - value(before, truth))
    return gain


def claimed_gains(rows: list, by: str, probs: np.ndarray, quality: float) -> tuple[list[str], np.ndarray]:
    answers, ids, people, _ = numbered(table_of(rows), [by])
    return ids, gains(probs[: len(ids)], settled(answers), settled(answers, people.index(by)), quality)


@given(ANSWERS, st.sampled_from("ab"), st.integers(0, 10**6), st.floats(0.3, 0.99))
def test_gains_are_those_of_all_answers_there_could_be(rows: list, by: str, seed: int, quality: float) -> None:
    """Exactly so between two annotators, whose votes count alike."""
    rows = [(str(image), who, label) for image, who, label in rows if who != "c"]
    classes = sorted({label for *_, label in rows})
    if len(classes) < 2:
        return
    probs = np.random.default_rng(seed).dirichlet(np.ones(len(classes)), 8)
    ids, found = claimed_gains(rows, by, probs, quality)
    for number, image in enumerate(ids):
        assert found[number] == pytest.approx(brute_gain(rows, image, by, classes, probs[number], quality))


@pytest.mark.campaign
def test_gains_know_votes_and_who_gave_them() -> None:
    """Of three and more annotators, but for what one answer changes in how they are judged."""
    rng, off, own = np.random.default_rng(0), [], []
    for _ in range(60):
        size, classes = int(rng.integers(6, 30)), [*"wxyz"[: rng.integers(2, 5)]]
        rates = rng.choice([0.02, 0.2, 0.4], 4)
        rows, probs = [], rng.dirichlet(np.ones(len(classes)), size)
        for image, truth in enumerate(rng.integers(len(classes), size=size)):
            for who in rng.permutation(4)[: rng.integers(1, 4)]:
                slip = rng.integers(1, len(classes)) if rng.random() < rates[who] else 0
                rows.append((f"{image:02d}", "abcd"[who], classes[(truth + slip) % len(classes)]))
        if {label for *_, label in rows} != {*classes}:
            continue
        by = "abcd"[rng.integers(4)]
        ids, found = claimed_gains(rows, by, probs, 0.8)
        mine = {image for image, who, _ in rows if who == by}
        for images, kept in ((sorted({*ids} - mine)[:5], off), (sorted(mine)[:5], own)):
            for image in images:
                number = ids.index(image)
                kept.append(abs(found[number] - brute_gain(rows, image, by, classes, probs[number], 0.8)))
    for kept in (off, own):
        assert len(kept) > 200
        assert np.mean(kept) < 0.005
        assert np.mean(np.array(kept) < 1e-9) > 0.97


def test_two_to_one_is_not_taken_away_by_one_answer() -> None:
    rows = [("m", "a", "x"), ("m", "b", "x"), ("m", "d", "y"), ("n", "a", "y"), ("n", "b", "x")]
    rows += [(f"s{number}", who, "xy"[number % 2]) for number in range(20) for who in "abcd"]
    answers, ids, people, classes = numbered(table_of(rows))
    assert classes == ["x", "y"]
    after = settled(answers, people.index("c"))
    assert after[ids.index("m")].tolist() == [0, -1], "another y makes it two to two"
    assert after[ids.index("n")].tolist() == [0, 1], "either decides"
    assert after[ids.index("s0")].tolist() == [0, 0], "four to one"
    assert settled(answers)[ids.index("m")].tolist() == [0]


def test_images_are_judged_alike_however_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thousand classes, what every answer would make of every image is held for few images at once."""
    rng = np.random.default_rng(0)
    images, annotators = np.divmod(rng.permutation(120)[:80], 3)
    answers = Answered(images, annotators, rng.integers(0, 4, 80), (40, 3, 4))
    whole = settled(answers, 1)
    assert {-1, 0, 1, 2, 3} == {*whole.ravel().tolist()}
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 100)
    np.testing.assert_array_equal(settled(answers, 1), whole)


def test_no_head_has_seen_the_label_that_it_doubts() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(40, 6))).float()
    features[::2, 0] += 2
    positions = rng.permutation(40)[:23]
    keys = rng.permutation(23)
    labels = np.where(positions % 2, 1, 0)
    labels[[3, 11]] = -1
    probs = unseen_probs(features, positions, labels, keys, 3)
    assert probs.sum(axis=1) == pytest.approx(1)
    for row in (0, 5, 22):
        changed = labels.copy()
        changed[row] = 2
        again = unseen_probs(features, positions, changed, keys, 3)
        assert again[row] == pytest.approx(probs[row], abs=1e-6), "its own label does not count"
        assert np.abs(again[3] - probs[3]).max() > 0.01, "and counts for an image without one"
    rows, known = even_rows(features, torch.from_numpy(positions))[:], torch.from_numpy(np.flatnonzero(labels >= 0))
    targets = torch.eye(3)[torch.from_numpy(labels)[known]]
    weight, bias = logistic_on_views(rows[known][None], None, targets, torch.ones(len(known)), DECAY)
    expected = (rows[3] @ weight.T + bias).softmax(0).numpy().clip(LEAST)
    assert probs[3] == pytest.approx(expected / expected.sum(), abs=1e-5)


def test_heads_that_know_nothing_say_so() -> None:
    """Labels that features tell nothing of: such heads must not be sure, or they would doubt all of them."""
    rng = np.random.default_rng(0)
    features, labels = torch.from_numpy(rng.normal(size=(150, 100))).float(), rng.integers(5, size=150)
    probs = unseen_probs(features, np.arange(150), labels, rng.permutation(150), 5)
    own = probs[np.arange(150), labels]
    assert -np.log(own).mean() < np.log(5) + 0.1
    assert probs.max(axis=1).mean() < 0.45


def test_one_answer_is_replaced_and_what_its_annotator_is_known_for_stays() -> None:
    """Of an annotator who is right 60 times, against two who are often wrong: by enumeration."""
    rng, rows = np.random.default_rng(1), [("y", "a", "x"), ("y", "b", "y"), ("y", "c", "y")]
    for number in range(60):
        truth = CLASSES[number % 3]
        rows.append((f"i{number:02d}", "a", truth))
        rows += [(f"i{number:02d}", who, truth if rng.random() < 0.6 else CLASSES[rng.integers(3)]) for who in "bcde"]
    probs = np.tile([0.8, 0.1, 0.1], (61, 1))
    ids, found = claimed_gains(rows, "a", probs, 0.9)
    number = ids.index("y")
    assert found[number] == pytest.approx(brute_gain(rows, "y", "a", CLASSES, probs[0], 0.9))


# Sessions


@pytest.fixture
def fields(tiny_run: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in tiny_run.items() if key not in ("dataset", "rounds")}
    return kept | {"adapter": {"name": "linear_probe"}, "batch_size": 20}


@pytest.fixture
def truth() -> dict[str, str]:
    pool = load_dataset("digits")
    return dict(zip(pool.ids, pool.label_names(), strict=True))


def stored(folder: Path, classes: Sequence[int], known: int = 0, **more: Any) -> tuple[str, dict[str, str]]:
    """Features of images im0000 and so on in these classes, the first ones labelled, and the truth by image."""
    rng, codes = np.random.default_rng(0), np.array(classes)
    features = 2 * rng.normal(size=(codes.max() + 1, 64))[codes] + rng.normal(size=(len(codes), 64))
    ids, names = np.array([f"im{number:04d}" for number in range(len(codes))]), np.array([f"c{code}" for code in codes])
    order = more.pop("order", np.arange(len(codes)))
    parts = {"features": features.astype(np.float32), "ids": ids, **more}
    if known:
        parts["labels"] = np.where(np.arange(len(codes)) < known, names, "")
    folder.mkdir(exist_ok=True)
    np.savez(folder / "pool.npz", **{name: values[order] for name, values in parts.items()})
    return str(folder / "pool.npz"), dict(zip(ids.tolist(), names.tolist(), strict=True))


def opened_on(place: str, who: str, **more: Any) -> Session:
    names = [f"c{code}" for code in range(5)]
    head = {"adapter": "linear_probe", "training": {"head": "logistic"}, "batch_size": 20}
    return open_session(place, who, folder=Path(place).parent / "labels", classes=names, device="cpu", **head, **more)


def other(label: str) -> str:
    return f"c{(int(label[1]) + 1) % 5}"


def slip(label: str) -> str:
    return str((int(label) + 1) % 10)


def opened(names: str, fields: dict[str, Any], **more: Any) -> list[Session]:
    return [open_session("digits", name, **fields, **more) for name in names.split()]


def test_second_opinions_are_asked_where_they_are_worth_more(fields: dict[str, Any], truth: dict[str, str]) -> None:
    ana, ben, cho = opened("ana ben cho", fields, ask_again=True)
    for number in range(4):
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
    decided = set(asked) & set(cho.disagreements().index)
    assert decided, "a third one decides"
    cho.label(asked.tolist(), [truth[name] for name in asked])
    labels = cho.labels()
    assert {labels[name] == truth[name] for name in decided} == {True}


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


def test_single_answers_say_nothing_of_who_gave_them(fields: dict[str, Any], truth: dict[str, str]) -> None:
    ana, ben, cho, dan = opened("ana ben cho dan", fields)
    ids = [*ana.row_of]
    for place, name in enumerate(ids[:30]):
        for session in (ana, ben, cho):
            session.label(name, slip(truth[name]) if session is cho and place % 2 else truth[name])
    before = ana.annotators()
    for session, names in ((cho, ids[30:130]), (dan, ids[130:150])):
        session.label(names, [truth[name] for name in names])
    pd.testing.assert_frame_equal(ana.annotators(), before)
    quality = before.groupby("annotator")["quality"].first()
    assert set(quality.index) == {"ana", "ben", "cho"}
    assert quality["cho"] == pytest.approx(19 / 35, abs=0.05)


@pytest.mark.filterwarnings("ignore::palkit.errors.DataNotice")
def test_classes_that_nobody_names_change_no_label(tmp_path: Path) -> None:
    """The more classes there could be, the less would mistakes be expected to agree."""
    place, _ = stored(tmp_path, [0, 1, 2, 3, 4] * 10)
    for image, who, label in ["0a1", "0c0", "1c0", "1b1", "2b1", "2a1", "2c0", "3b1", "3c0", "4a0", "4b0", "4c1"]:
        opened_on(place, who).label(f"im000{image}", f"c{label}")
    session = opened_on(place, "dan")
    labels = session.labels()
    assert labels == {"im0000": "c1", "im0001": "c1", "im0002": "c1", "im0003": "c1", "im0004": "c0"}, "cho is doubted"
    for number in range(10):
        session.add_class(f"another {number}")
    assert session.labels() == labels


@pytest.mark.filterwarnings("ignore::palkit.errors.DataNotice")
def test_classes_that_follow_the_names_are_not_doubted(tmp_path: Path) -> None:
    """Every fifth image is of one class; and whatever the rows' order is, the doubts are the same."""
    found = []
    for number, order in enumerate((np.arange(200), np.random.default_rng(1).permutation(200))):
        place, truth = stored(tmp_path / str(number), [0, 1, 2, 3, 4] * 40, order=order)
        ana, ids = opened_on(place, "ana"), [*truth][:100]
        ana.label(ids, [truth[name] for name in ids])
        ana.fit()
        found.append(ana.doubts().set_index("id").sort_index()[["likeliest", "wrong", "worth"]])
    assert found[0]["wrong"].mean() < 0.0005
    assert (found[0]["worth"] <= 0).all()
    pd.testing.assert_frame_equal(*found, atol=1e-5)


@pytest.mark.filterwarnings("ignore::palkit.errors.DataNotice")
def test_labels_of_the_data_set_teach_who_doubts(tmp_path: Path) -> None:
    """Four labels alone could not say which of them is wrong."""
    place, truth = stored(tmp_path, np.random.default_rng(3).integers(5, size=300), known=200)
    ana, ids = opened_on(place, "ana"), [*truth][200:204]
    ana.label(ids, [*(truth[name] for name in ids[:3]), other(truth[ids[3]])])
    ana.fit()
    doubts = opened_on(place, "ben").doubts()
    assert set(doubts["id"]) == set(ids), "what the data set says is not doubted"
    assert doubts["id"][0] == ids[3]
    assert doubts["likeliest"].tolist() == [truth[name] for name in doubts["id"]]
    assert (doubts["worth"] > 0).tolist() == [True, False, False, False]


@pytest.mark.filterwarnings("ignore::palkit.errors.DataNotice")
def test_a_skip_is_for_now_and_for_who_skips(tmp_path: Path) -> None:
    place, truth = stored(tmp_path, np.random.default_rng(3).integers(5, size=300))
    ana, ben, cho, dan = (opened_on(place, who, ask_again=True) for who in ("ana", "ben", "cho", "dan"))

    def answer() -> None:
        ids = ana.propose()["id"].tolist()
        ana.label(ids, [truth[name] for name in ids])

    answer()
    ana.fit()
    skipped = ana.propose()["id"].tolist()[:2]
    ana.skip(skipped)
    answer()
    assert set(ben.open()["id"]) == set(skipped), "what ana skips ben may label"
    ben.label(skipped, [other(truth[name]) for name in skipped])
    cho.label(skipped, [truth[name] for name in skipped])
    assert not set(skipped) & set(ana.second_opinions()["id"]), "not now"
    ana.fit()
    assert set(ana.second_opinions()["id"]) == set(skipped)
    batch = ana.propose()
    assert set(batch.loc[batch["purpose"] == AGAIN, "id"]) == set(skipped), "ana is asked about what they dispute"
    ana.skip(skipped)
    assert not set(skipped) & set(ana.open()["id"])
    assert set(skipped) <= set(dan.open()["id"]), "of what ana skips dan is asked"
    answer()
    assert not set(skipped) & set(ana.propose()["id"]), "not before the next fit"
    ana.fit()
    assert set(skipped) <= set(ana.propose()["id"])


@pytest.mark.filterwarnings("ignore::palkit.errors.DataNotice")
def test_second_opinions_count_among_those_of_a_group(tmp_path: Path) -> None:
    """Two of a patient at most: ben is asked again about two of p0, and about no new image of that one."""
    patients = np.array([f"p{number % 12}" for number in range(300)])
    place, truth = stored(tmp_path, np.random.default_rng(3).integers(5, size=300), groups=patients)
    of = dict(zip(truth, patients, strict=True))
    bound = {"strategy_options": {"per_group": 2}}
    ana, cho = (opened_on(place, who, **bound) for who in ("ana", "cho"))
    ids = [*truth][:120]
    disputed = [name for name in ids if of[name] == "p0"][:4]
    ana.label(ids, [truth[name] for name in ids])
    cho.label(disputed, [other(truth[name]) for name in disputed])
    ana.fit()
    ben = opened_on(place, "ben", ask_again=True, **bound)
    doubts = ben.doubts()
    assert set(doubts.loc[doubts["worth"] > 0, "id"]) == set(disputed)
    batch = ben.propose()
    assert batch.loc[batch["purpose"] == AGAIN, "id"].tolist() == doubts["id"].tolist()[:2]
    assert batch["id"].map(of).value_counts().max() == 2
    assert len(batch) == 20


def test_bad_input(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="ask_again is 'yes'"):
        opened("ana", fields, ask_again="yes")
    (ana,) = opened("ana", fields)
    with pytest.raises(ConfigError, match="no fit yet"):
        ana.doubts()
    assert ana.annotators().empty
    ids = ana.propose()["id"].tolist()
    ana.label(ids, [str(place % 2) for place in range(len(ids))])
    ana.fit()
    while ana.undo():
        pass
    assert ana.doubts().empty


def test_answers_to_tests_do_not_decide_what_is_trained_on(tmp_path: Path) -> None:
    """Whoever is right there: two dispute an image, and nothing but their answers to tests tells them apart."""
    place, truth = stored(tmp_path / "pool", list(range(5)) * 12)
    for number, right in enumerate(("ana", "ben")):
        crowd = {
            who: open_session(place, who, folder=tmp_path / str(number), held_out=20, adapter="linear_probe",
                              classes=[f"c{code}" for code in range(5)])
            for who in ("ana", "ben", "cho")
        }  # fmt: skip
        ana = crowd["ana"]
        disputed = next(name for name in ana.row_of if name not in ana.held_out)
        crowd["ana"].label(disputed, "c1")
        crowd["ben"].label(disputed, "c2")
        for name in ana.held_out:
            for who, session in crowd.items():
                session.label(name, truth[name] if who in (right, "cho") else other(truth[name]))
        assert ana.training_labels() == {}
        assert {name: ana.labels()[name] for name in ana.held_out} == {name: truth[name] for name in ana.held_out}


def test_without_new_images_second_opinions_are_all_there_is(tmp_path: Path) -> None:
    """They are compared with nothing then, and may fill a batch; the session ends when none is worth an answer."""
    place, truth = stored(tmp_path / "pool", list(range(5)) * 10)
    ana, ben = (opened_on(place, who, ask_again=True) for who in ("ana", "ben"))
    wrong = set(sorted(truth)[::7])
    while (batch := ana.propose())["purpose"].eq("train").any():
        ana.label(batch["id"], [other(truth[name]) if name in wrong else truth[name] for name in batch["id"]])
        ana.fit()
    assert len(ana.training_labels()) == len(truth)
    asked, rounds = set(), 0
    while len(batch := ben.propose()):
        assert batch["purpose"].eq(AGAIN).all()
        asked |= set(batch["id"])
        ben.label(batch["id"], [truth[name] for name in batch["id"]])
        ben.fit()
        rounds += 1
    assert rounds < 5
    assert len(asked & wrong) > 5, "most of what is wrong"
    assert len(asked) < len(truth), "and not all that there is"
