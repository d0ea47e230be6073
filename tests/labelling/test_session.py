"""Labelling sessions: the same choices as a simulated run, nothing lost, nothing trained on that should not be."""

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from breadth import thinned
from PIL import Image

from palkit.config import config_from_dict
from palkit.data import UNLABELLED, load_dataset
from palkit.errors import ConfigError, DataError
from palkit.experiments.experiment import rounds
from palkit.labelling.answers import NONE
from palkit.labelling.records import record
from palkit.labelling.session import Session, open_session
from palkit.labelling.session_file import SessionState
from palkit.storage.files import REPOSITORY

CLASSES = ("red", "green", "blue")


@pytest.fixture
def config(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """A session on digits that is fitted in a fraction of a second."""
    adapter = {"name": "linear_probe"}
    return {key: value for key, value in tiny_run.items() if key not in ("dataset", "rounds")} | {"adapter": adapter}


@pytest.fixture
def answers() -> dict[str, str]:
    """What an expert says about digits."""
    pool = load_dataset("digits")
    return dict(zip(pool.ids, pool.label_names(), strict=True))


def answer_all(session: Session, answers: dict[str, str]) -> list[str]:
    """Label what is proposed; returns the ids in order."""
    ids = session.propose()["id"].tolist()
    session.label(ids, [answers[name] for name in ids])
    return ids


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A folder of 24 images without labels: noise in three colours, which the name tells."""
    folder, rng = tmp_path / "slides", np.random.default_rng(0)
    folder.mkdir()
    for number in range(24):
        pixels = rng.integers(0, 80, (40, 40, 3), dtype=np.uint8)
        pixels[..., number % 3] += 170
        Image.fromarray(pixels).save(folder / f"{CLASSES[number % 3]}-{number:02d}.png")
    return folder


def colour(name: str) -> str:
    return name.split("-")[0]


@pytest.mark.parametrize(
    ("strategy", "adapter"), thinned(["badge", "entropy", "bald"], ["linear_probe", "lora"], every=2)
)
def test_a_truthful_expert_repeats_a_simulated_run(
    tiny_run: dict[str, Any], answers: dict[str, str], strategy: str, adapter: str
) -> None:
    """Same purchases in the same order, same metrics to the last bit, as `experiment.rounds` finds them."""
    config = config_from_dict(tiny_run | {"strategy": strategy, "adapter": {**tiny_run["adapter"], "name": adapter}})
    session = Session(config, "expert")
    assert (session.pool.labels[session.pool.rows("pool")] == UNLABELLED).all(), "the truth is out of reach"
    for expected in rounds(config):
        ids = answer_all(session, answers)
        fitted = session.fit()
        assert [session.learner.position[name] for name in ids] == list(expected.bought)
        assert fitted.metrics == {name: expected.metrics[name] for name in fitted.metrics}
        assert len(fitted.ids) == expected.labels
    assert session.curve()["labels"].tolist() == [10, 20, 30]


def test_another_process_goes_on_where_one_was_killed(config: dict[str, Any], answers: dict[str, str]) -> None:
    """Proposals, answers and the next choice are the same, whether the model is still in memory or not."""
    first = open_session("digits", "ana", **config)
    answer_all(first, answers)
    first.fit()
    proposed = first.propose()
    first.label(proposed["id"][0], answers[proposed["id"][0]])
    second = open_session("digits", "ana", **config)
    pd.testing.assert_frame_equal(second.propose(), proposed[1:].reset_index(drop=True))
    second.label(proposed["id"][1:], [answers[name] for name in proposed["id"][1:]])
    pd.testing.assert_frame_equal(second.propose(), first.propose())
    assert first.labels() == second.labels()
    assert len(first.propose()) == 10
    assert not set(first.propose()["id"]) & set(first.labels())


def test_unsure_skip_and_undo(config: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", **config)
    ids = session.propose()["id"].tolist()
    session.unsure(ids[0])
    session.skip(ids[1])
    session.label(ids[2:], [answers[name] for name in ids[2:]])
    assert session.open().empty
    assert session.undo().id == ids[-1]
    assert session.open()["id"].tolist() == [ids[-1]]
    session.label(ids[-1], answers[ids[-1]])
    again = session.propose(200 - 10)["id"].tolist()
    assert not set(again) & set(ids), "nothing skipped or unsure is asked again before the next fit"
    fitted = session.fit()
    assert set(fitted.ids) == set(ids[2:])
    left = set(session.propose(200)["id"])
    assert ids[1] in left
    assert ids[0] not in left
    assert len(left) == 200 - 9


def test_a_class_that_differs_in_capitals_from_one_with_labels_is_told(config: dict[str, Any]) -> None:
    session = open_session("digits", "ana", **config, classes=["Smudge"])
    session.label(session.propose()["id"].iloc[0], "Smudge")
    with pytest.warns(UserWarning, match="class 'smudge' is added, and 'Smudge' has labels"):
        open_session("digits", "ben", **config, classes=["smudge"])


def test_there_is_nothing_to_undo_before_an_answer(config: dict[str, Any]) -> None:
    session = open_session("digits", "ana", **config)
    session.propose()
    assert session.undo() is None
    assert not session.log.path.exists()


def test_a_budget_is_exact(config: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", budget=13, **config)
    assert len(answer_all(session, answers)) == 10
    session.fit()
    assert len(answer_all(session, answers)) == 3
    session.fit()
    assert session.propose().empty
    assert len(session.training_labels()) == 13


def test_a_folder_without_labels_or_classes(config: dict[str, Any], slides: Path) -> None:
    """Classes are made up on the way; images set aside are evaluated on and never trained on."""
    config = config | {"pool_size": None, "evaluate_on": "test", "batch_size": 6}
    session = open_session(str(slides), "ana", held_out=5, **config)
    assert session.class_names == ()
    batch = session.propose()
    assert batch["purpose"].tolist() == ["held out"] * 5 + ["train"] * 6
    assert batch["predicted"].unique().tolist() == [""]
    for name in CLASSES:
        session.add_class(name)
    session.label(batch["id"], [colour(name) for name in batch["id"]])
    fitted = session.fit()
    assert fitted.held_out == 5
    assert not set(fitted.ids) & set(session.held_out)
    assert set(session.held_out) == set(batch["id"][:5])
    assert fitted.metrics["accuracy"] >= 0.8, "colours are easy"
    second = session.propose()
    assert set(second["predicted"]) <= set(CLASSES)
    assert second["probability"].between(1 / 3, 1).all()
    assert not set(second["id"]) & set(batch["id"])
    session.label(second["id"], [colour(name) for name in second["id"]])
    fitted = session.fit()
    right = np.mean([guess == colour(name) for name, guess in zip(second["id"], second["predicted"], strict=True)])
    assert fitted.first_guess == pytest.approx(right)
    assert fitted.guessed == 6
    assert session.forecast().labels.tolist() == [18]


def test_without_held_out_labels_there_is_no_accuracy(config: dict[str, Any], slides: Path) -> None:
    config = config | {"pool_size": None, "evaluate_on": "test", "batch_size": 6}
    session = open_session(str(slides), "ana", classes=CLASSES, **config)
    batch = session.propose()
    session.label(batch["id"], [colour(name) for name in batch["id"]])
    assert session.fit().metrics == {}
    assert session.curve()["accuracy"].isna().all()
    assert "no held-out accuracy" in session.forecast().sentence


def test_labels_that_a_manifest_has_count_as_given(config: dict[str, Any], slides: Path) -> None:
    names = sorted(path.name for path in slides.glob("*.png"))
    table = pd.DataFrame({"path": names, "label": [colour(name) for name in names], "split": "pool"})
    table.loc[::2, "label"] = ""
    table.loc[[1, 3, 9, 17], "split"] = "test"
    table.to_csv(slides / "slides.csv", index=False)
    config = config | {"pool_size": None, "evaluate_on": "test", "batch_size": 6}
    session = open_session(str(slides / "slides.csv"), "ana", **config)
    assert len(session.labels()) == 8
    fitted = session.fit()
    assert fitted.held_out == 4
    assert len(fitted.ids) == 8
    assert set(session.propose(30)["id"]) == set(names[::2])


def test_a_class_may_come_after_the_fit(config: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", **config)
    answer_all(session, answers)
    session.fit()
    batch = session.propose()
    session.add_class("smudge")
    session.label(batch["id"], ["smudge"] * 10)
    again = session.propose()
    assert len(again) == 11, "one per class"
    assert "smudge" not in set(again["predicted"])
    assert "smudge" in session.fit().class_names


def test_two_annotators(config: dict[str, Any], answers: dict[str, str]) -> None:
    ana, ben = (open_session("digits", name, **config) for name in ("ana", "ben"))
    ids = answer_all(ana, answers)
    assert ben.open().empty, "work is shared, not doubled"
    assert ben.second_opinions()["id"].tolist() == ids
    ben.label(ids[0], next(name for name in ben.class_names if name != answers[ids[0]]))
    ben.label(ids[1], answers[ids[1]])
    assert ana.disagreements().index.tolist() == [ids[0]]
    assert ana.agreement()["same"].tolist() == [0.5]
    assert ids[0] not in ana.fit().ids
    ben.label(ids[0], answers[ids[0]])
    assert ids[0] in ana.training_labels()
    assert ben.second_opinions()["id"].tolist() == ids[2:]


def test_two_fits_at_once_lose_no_round(config: dict[str, Any], answers: dict[str, str]) -> None:
    ana, ben = (open_session("digits", name, **config) for name in ("ana", "ben"))
    answer_all(ana, answers)
    others: list[Any] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if stage == "fitting" and not others:
            others.append(ben.fit())

    mine = ana.fit(meanwhile)
    assert [mine.number, others[0].number] == [1, 0]
    assert [one.number for one in ana.rounds()] == [0, 1]
    assert dataclasses.replace(mine, number=0, time="", seconds=0, provenance={}) == dataclasses.replace(
        others[0], time="", seconds=0, provenance={}, proposed=mine.proposed
    )
    pd.testing.assert_frame_equal(ana.propose(), ben.propose())


@pytest.mark.parametrize("stage", ["fitting", "scoring"])
def test_a_cancelled_fit_changes_nothing(config: dict[str, Any], answers: dict[str, str], stage: str) -> None:
    session = open_session("digits", "ana", **config)
    answer_all(session, answers)
    before = session.file.path.read_bytes()

    def cancel(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.fit(cancel)
    assert session.file.path.read_bytes() == before
    fitted = session.fit()
    other = open_session("digits", "ana", folder=session.folder.parent / "other", **config)
    other.label(list(session.labels()), list(session.labels().values()))
    assert other.fit().metrics == fitted.metrics


def test_imported_labels(config: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", **config)
    ids = answer_all(session, answers)
    table = session.label_table()
    assert session.import_labels(table) == 0
    other = open_session("digits", "ben", folder=session.folder.parent / "other", **config)
    assert other.import_labels(table) == 10
    pd.testing.assert_frame_equal(other.label_table(), table)
    strange = pd.DataFrame({"id": ids[:2], "label": ["smudge", ""], "annotator": "", "time": ""})
    with pytest.raises(ConfigError, match="unknown class 'smudge'"):
        other.import_labels(strange)
    assert len(other.label_table()) == 10, "nothing is taken over"
    assert other.import_labels(strange, add_classes=True) == 1
    assert other.disagreements().to_dict("index") == {ids[0]: {"ana": answers[ids[0]], "ben": "smudge"}}
    with pytest.raises(ConfigError, match="no image 'elsewhere'"):
        other.import_labels(strange.assign(id="elsewhere"))


def test_labels_of_images_that_are_gone_are_kept_and_reported(config: dict[str, Any], slides: Path) -> None:
    config = config | {"pool_size": None, "evaluate_on": "test", "batch_size": 6}
    session = open_session(str(slides), "ana", classes=CLASSES, **config)
    batch = session.propose()["id"].tolist()
    session.label(batch, [colour(name) for name in batch])
    (slides / batch[0]).unlink()
    with pytest.warns(UserWarning, match=f"1 labelled images are not in the pool.*{batch[0]}"):
        session = open_session(str(slides), "ana", classes=CLASSES, **config)
    assert set(session.training_labels()) == set(batch[1:])
    assert set(session.fit().ids) == set(batch[1:])


def test_wrong_answers_are_refused_whole(config: dict[str, Any]) -> None:
    session = open_session("digits", "ana", **config)
    one, two = session.propose()["id"][:2]
    for ids, labels, message in [
        ([one, "nowhere"], ["0", "1"], "no image 'nowhere'"),
        ([one, two], ["0", "eleven"], "unknown class 'eleven'"),
        ([one, two], ["0"], "1 labels for 2 images"),
    ]:
        with pytest.raises(ConfigError, match=message):
            session.label(ids, labels)
    assert session.answers().empty
    with pytest.raises(ConfigError, match="exists already"):
        session.add_class(" 7 ")
    with pytest.raises(ConfigError, match="give a name"):
        session.add_class("  ")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        session.propose(0)


def test_a_fit_needs_two_classes(config: dict[str, Any]) -> None:
    session = open_session("digits", "ana", **config)
    with pytest.raises(ConfigError, match="so far there are 0"):
        session.fit()
    session.label(session.propose()["id"][0], "3")
    with pytest.raises(ConfigError, match="so far there are 1, all of class '3'"):
        session.fit()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotator": " "}, "annotator"),
        ({"strategy": "class_balanced_oracle"}, "reads labels"),
        ({"initial": "class_balanced_oracle"}, "reads labels"),
        ({"training": {"warm_start": True}}, "is for runs"),
        ({"budget": 0}, "budget is 0"),
        ({"held_out": 101}, "half of the 200"),
        ({"held_out": -1}, "held_out -1"),
        ({"stratgy": "badge"}, "Did you mean 'strategy'"),
    ],
)
def test_what_cannot_work_is_named(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_session("digits", **({"annotator": "ana"} | config | change))


def test_a_folder_belongs_to_one_data_set(config: dict[str, Any]) -> None:
    session = open_session("digits", "ana", **config)
    with pytest.raises(ConfigError, match=r"labels of data set 'digits', not of 'digits_lt'"):
        open_session("digits_lt", "ana", folder=session.folder, **config | {"pool_size": 100})


def test_a_record_that_does_not_fit_is_not_shown_before_the_reason() -> None:
    state = {"dataset": "digits", "held_out": [], "proposed": [], "rounds": []}
    for change, reason in [
        ({"rounds": [{"number": 0}]}, r"the field 'rounds\.0\.time' is missing"),
        ({"proposed": {"id": "a"}}, "the proposed must be a valid list"),
        ({"dataset": ["digits"]}, "the dataset must be text"),
        ({"dataset": 5}, "the dataset 5 must be text"),
    ]:
        with pytest.raises(ValueError, match=f"^{reason}$"):
            record(SessionState, state | change)
    with pytest.raises(ValueError, match=r"^the value must be an object with named fields$"):
        record(SessionState, [state])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dataset": "digits"}'])
def test_a_broken_session_file_is_named_and_labels_survive(
    config: dict[str, Any], answers: dict[str, str], content: str
) -> None:
    session = open_session("digits", "ana", **config)
    ids = answer_all(session, answers)
    session.file.path.write_text(content)
    assert list(open_session("digits", "ana", **config).labels()) == ids, "there is a copy"
    session.file.copy.write_text(content)
    with pytest.raises(DataError, match=r"session\.json cannot be read.*move this file away"):
        open_session("digits", "ana", **config)
    session.file.path.unlink()
    assert list(open_session("digits", "ana", **config).labels()) == ids


def test_the_documented_example_labels_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/lab.md").read_text(), re.DOTALL)
    (example,) = [text for text in examples if "open_session" in text]
    folder, rng = tmp_path / "slides", np.random.default_rng(0)
    folder.mkdir()
    for number in range(50):
        pixels = rng.integers(0, 80, (40, 40, 3), dtype=np.uint8)
        pixels[..., number % 2] += 170
        Image.fromarray(pixels).save(folder / f"{('tumour', 'stroma')[number % 2]}-{number:02d}.png")
    short = example.replace("path/to/slides", str(folder)).replace("budget=60", "budget=20")
    names: dict[str, Any] = {"expert": colour}
    exec(compile(short, "lab.md", "exec"), names)
    assert len(names["session"].training_labels()) == 20
    assert len(names["session"].rounds()) == 2
    assert "Another 10 labels" in capsys.readouterr().out


def test_other_classes_than_those_labelled_so_far_are_remarked_on(tmp_path: Path) -> None:
    own = {"folder": tmp_path / "s", "pool_size": 60, "adapter": "linear_probe"}
    names = ("tumour", "stroma")
    session = open_session("digits", "ana", classes=names, **own)
    session.label(session.propose(1)["id"][0], "stroma")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_session("digits", "ana", classes=("stroma", "more"), **own).class_names[-2:] == ("stroma", "more")
    with pytest.warns(
        UserWarning, match="none of the classes given .*tumor.* is among those that were labelled so far"
    ):
        open_session("digits", "ana", classes=("tumor",), **own)


def test_none_of_these(config: dict[str, Any], slides: Path) -> None:
    """The class is there once it is used; what the model takes for it is not proposed, whatever else is left."""
    sure = {"head": "logistic", "head_decay": 0.001, "augmentation": "none"}
    config |= {"classes": CLASSES[:2], "strategy": "random", "batch_size": 9, "pool_size": None, "training": sure}
    session = open_session(str(slides), "ana", **config)
    ids = session.propose()["id"].tolist()
    assert NONE not in session.class_names
    session.none_of_these([name for name in ids if colour(name) == "blue"])
    assert NONE in session.class_names
    proper = [name for name in ids if colour(name) != "blue"]
    session.label(proper, [colour(name) for name in proper])
    session.fit()
    table = session.model().predict(str(slides)).set_index("id")[f"p({NONE})"]
    left = [name for name in session.row_of if name not in ids]
    foreign = {name for name in left if table[name] > 0.5}
    assert {colour(name) for name in foreign} == {"blue"}
    assert set(session.propose(100)["id"]) == set(left) - foreign
