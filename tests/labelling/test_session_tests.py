"""Sessions that spend a share of their labels on testing: what is asked, what is measured, when to stop."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palkit.data import load_dataset
from palkit.errors import ConfigError
from palkit.labelling.session import Session, open_session, stored_session
from palkit.labelling.session_file import Drawn
from palkit.studies import plots

SHARE = 0.4


@pytest.fixture
def fields(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """A session on digits that is fitted in a fraction of a second, with a third of the pool set aside."""
    own = {key: value for key, value in tiny_run.items() if key not in ("dataset", "rounds")}
    return own | {"adapter": {"name": "linear_probe"}, "held_out": 60, "test_share": SHARE}


@pytest.fixture
def answers() -> dict[str, str]:
    """What an expert says about digits."""
    pool = load_dataset("digits")
    return dict(zip(pool.ids, pool.label_names(), strict=True))


def answer_all(session: Session, answers: dict[str, str]) -> None:
    ids = session.propose()["id"].tolist()
    session.label(ids, [answers[name] for name in ids])


def test_the_share_of_labels_goes_to_images_set_aside(fields: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", **fields)
    aside = set(session.held_out)
    for number in range(1, 4):
        asked = session.propose()
        tests = asked[asked["purpose"] == "held out"]
        assert set(tests["id"]) <= aside
        assert not set(asked.loc[asked["purpose"] == "train", "id"]) & aside
        session.label(asked["id"], [answers[name] for name in asked["id"]])
        fitted = session.fit()
        assert len(fitted.ids) == 10 * number
        assert fitted.held_out == np.ceil(10 * number * SHARE / (1 - SHARE))
        assert not set(fitted.ids) & aside
    assert len(set(session.file.read().drawn)) == 20
    curve = session.curve()
    assert (curve["low"] < curve["accuracy"]).all()
    assert (curve["accuracy"] < curve["high"]).all()
    bars = plots.session_curve(curve, session.forecast()).axes[0].containers[0].lines[2][0].get_segments()
    assert [low for (_, low), _ in bars] == pytest.approx(curve["low"].tolist())


def test_all_images_set_aside_give_their_accuracy_without_doubt(
    fields: dict[str, Any], answers: dict[str, str]
) -> None:
    """The estimate is then the share of right predictions itself. All classes have labels, so none of them ties."""
    session = open_session("digits", "ana", **fields | {"test_share": 0.6, "batch_size": 60})
    answer_all(session, answers)
    fitted = session.fit()
    assert fitted.held_out == 60
    assert session.open().empty
    predicted = session.model().predict("digits").set_index("id")["predicted"]
    right = np.mean([predicted[name] == answers[name] for name in session.held_out])
    for name in ("accuracy", "accuracy_low", "accuracy_high"):
        assert fitted.metrics[name] == pytest.approx(right)
    table = session.measured()
    assert table.loc["accuracy", ["value", "low", "high"]].tolist() == pytest.approx([right] * 3)
    for label in session.class_names:
        mine = [name for name in session.held_out if answers[name] == label]
        found = table.loc[f"recall of {label}"]
        assert found["labels"] == len(mine)
        assert found["low"] <= np.mean([predicted[name] == label for name in mine]) <= found["high"]


def test_another_process_draws_what_this_one_would_have(fields: dict[str, Any], answers: dict[str, str]) -> None:
    first = open_session("digits", "ana", **fields)
    answer_all(first, answers)
    first.fit()
    second = open_session("digits", "bo", **fields)
    asked = second.propose()["id"].tolist()
    assert asked == first.propose()["id"].tolist(), "both are asked for the same images"
    assert second.file.read().drawn == first.file.read().drawn


def test_chances_follow_the_model(fields: dict[str, Any], answers: dict[str, str]) -> None:
    """Even before the first fit, and then larger where the model is unsure."""
    session = open_session("digits", "ana", **fields)
    answer_all(session, answers)
    before = session.file.read().drawn
    assert [one.chance for one in before] == pytest.approx([1 / (60 - place) for place in range(len(before))])
    session.fit()
    session.propose()
    after = session.file.read().drawn[len(before) :]
    assert len({round(one.chance / one.least, 6) for one in after}) > 1
    assert all(isinstance(one, Drawn) and one.chance >= one.least > 0 for one in after)


def test_what_nobody_can_label_counts_as_wrong(fields: dict[str, Any], answers: dict[str, str]) -> None:
    """Else a model that is sure about blank images would look better than it is, and break its guarantee."""
    session = open_session("digits", "ana", **fields | {"test_share": 0.6, "batch_size": 60})
    asked = session.propose()
    tests = asked.loc[asked["purpose"] == "held out", "id"].tolist()
    session.unsure(tests[:20])
    others = [name for name in asked["id"] if name not in tests[:20]]
    session.label(others, [answers[name] for name in others])
    fitted = session.fit()
    assert fitted.held_out == 60
    predicted = session.model().predict("digits").set_index("id")["predicted"]
    right = sum(predicted[name] == answers[name] for name in tests[20:]) / 60
    assert fitted.metrics["accuracy"] == pytest.approx(right)
    assert fitted.metrics["accuracy_at_least"] == pytest.approx(right)


def test_images_that_are_gone_are_told_and_left_out(fields: dict[str, Any], answers: dict[str, str]) -> None:
    """Of those that are left, once all have labels, the accuracy is what it is."""
    session = open_session("digits", "ana", **fields)
    for _ in range(2):
        answer_all(session, answers)
        before = session.fit()
    with pytest.warns(
        UserWarning, match=r"images that were set aside are not in the pool of 'digits' any more, the fi"
    ):
        session = open_session("digits", "ana", **fields | {"pool_size": 120})
    there = [name for name in session.held_out if name in session.row_of]
    drawn = [one.id for one in session.file.read().drawn]
    assert 0 < len(set(there) - set(drawn)) < len(there) < len(session.held_out)
    fitted = session.fit()
    assert fitted.metrics["accuracy_low"] < fitted.metrics["accuracy"] < fitted.metrics["accuracy_high"]
    assert fitted.held_out == before.held_out
    while not set(there) <= {one.id for one in session.file.read().drawn}:
        session.label(session.open()["id"], [answers[name] for name in session.open()["id"]])
        session.propose()
    session.label(session.open()["id"], [answers[name] for name in session.open()["id"]])
    fitted = session.fit()
    predicted = session.model().predict("digits").set_index("id")["predicted"]
    right = np.mean([predicted[name] == answers[name] for name in there])
    for name in ("accuracy", "accuracy_low", "accuracy_high", "accuracy_at_least"):
        assert fitted.metrics[name] == pytest.approx(right)
    assert session.measured().loc["accuracy", "value"] == pytest.approx(right)


def test_what_is_opened_with_another_model_says_so(fields: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", **fields)
    answer_all(session, answers)
    session.fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_session("digits", "ana", **fields | {"strategy": "entropy"}).measured()
    training = {**fields["training"], "head_lr": 0.002}
    with pytest.warns(UserWarning, match=r"the last fit had another training\.head_lr: its"):
        open_session("digits", "ana", **fields | {"training": training}).measured()
    path = session.file.path
    path.write_text(path.read_text().replace('"pseudo_labels"', '"of an earlier version"'))
    other = open_session("digits", "ana", **fields | {"seed": 1})
    with pytest.warns(UserWarning, match="the last fit had another seed"):
        other.measured()
    other.fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.measured()


def test_a_round_without_a_usable_test_reaches_nothing(fields: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", **fields)
    asked = session.propose()
    train = asked.loc[asked["purpose"] == "train", "id"].tolist()
    session.label(train, [answers[name] for name in train])
    assert session.fit().held_out == 0
    assert not session.reached(0.1)


def test_an_image_that_was_skipped_holds_up_those_drawn_after_it(
    fields: dict[str, Any], answers: dict[str, str]
) -> None:
    """What is left out because it is hard would make the accuracy look better than it is."""
    session = open_session("digits", "ana", **fields)
    asked = session.propose()
    tests = asked.loc[asked["purpose"] == "held out", "id"].tolist()
    session.skip(tests[2])
    others = [name for name in asked["id"] if name != tests[2]]
    session.label(others, [answers[name] for name in others])
    assert session.fit().held_out == 2
    assert tests[2] in set(session.propose()["id"]), "it is asked again"
    session.label(tests[2], answers[tests[2]])
    assert session.fit().held_out == len(tests)


def test_a_target_is_reached_or_not(fields: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", **fields)
    with pytest.raises(ConfigError, match="begin the session with held_out and test_share"):
        session.reached(0.9)
    for _ in range(3):
        answer_all(session, answers)
        session.fit()
    least = session.rounds()[-1].metrics["accuracy_at_least"]
    assert 0 < least < session.rounds()[-1].metrics["accuracy_low"]
    assert session.reached(least)
    assert not session.reached(least + 0.01)
    with pytest.raises(ConfigError, match="accuracy is 80"):
        session.reached(80)


def test_two_fits_at_once_take_the_risks_of_two_rounds(
    fields: dict[str, Any], answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        open_session("digits", name, **fields | {"held_out": 100, "test_share": 0.4, "batch_size": 60})
        for name in ("ana", "bo")
    )
    answer_all(first, answers)
    score = first.learner.score

    def meanwhile(*arguments: Any) -> Any:
        second.fit()
        return score(*arguments)

    monkeypatch.setattr(first.learner, "score", meanwhile)
    first.fit()
    rounds = first.rounds()
    assert [one.number for one in rounds] == [0, 1]
    assert rounds[0].metrics["accuracy"] == rounds[1].metrics["accuracy"], "of the same model"
    assert rounds[0].metrics["accuracy_at_least"] > rounds[1].metrics["accuracy_at_least"] > 0


def test_what_is_asked_for_is_stored_with_the_session(fields: dict[str, Any], answers: dict[str, str]) -> None:
    """What is given counts and is stored; what is not given is as it was given last."""
    plain = {name: value for name, value in fields.items() if name != "test_share"}
    open_session("digits", "ana", **fields, budget=30, ask_again=True)
    session = open_session("digits", "ben", **plain)
    assert (session.budget, session.test_share, session.ask_again) == (30, SHARE, True)
    assert set(session.propose()["purpose"]) == {"train", "held out"}
    assert open_session("digits", "ana", **plain, budget=None, ask_again=False).budget is None
    stored = stored_session(session.folder)
    assert stored is not None
    assert (stored.budget, stored.test_share, stored.ask_again) == (None, SHARE, False)


def test_an_opening_that_wants_no_share_changes_nothing_of_what_was_drawn(
    fields: dict[str, Any], answers: dict[str, str]
) -> None:
    """A session that is opened with None goes on with the images that were drawn, and draws no more."""
    session = open_session("digits", "ana", **fields)
    answer_all(session, answers)
    drawn = session.file.read().drawn
    plain = open_session("digits", "ana", **fields | {"test_share": None})
    plain.fit()
    assert set(plain.propose()["purpose"]) == {"train"}
    assert plain.file.read().drawn == drawn


def test_files_of_earlier_versions_are_read(fields: dict[str, Any], answers: dict[str, str]) -> None:
    session = open_session("digits", "ana", **{name: value for name, value in fields.items() if name != "test_share"})
    content = json.loads(session.file.path.read_text())
    del content["drawn"], content["asked"]
    session.file.path.write_text(json.dumps(content))
    assert session.file.read().drawn == []
    again = open_session("digits", "ana", **{name: value for name, value in fields.items() if name != "test_share"})
    assert (again.budget, again.test_share, again.ask_again) == (None, None, False)
    assert len(session.open()) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_share": 1.0}, "test_share is 1.0 .*less than 1"),
        ({"test_share": 0}, "test_share is 0 .*greater than 0"),
        ({"held_out": 0}, "test_share: no images are set aside"),
    ],
)
def test_shares_that_cannot_be_are_refused(
    fields: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_session("digits", "ana", **fields | change, folder=tmp_path / "own")
    assert not (tmp_path / "own" / "session.json").exists(), "nothing was begun that could not go on"


def test_copies_are_set_aside_together(tmp_path: Path) -> None:
    """Else a model would be tested on what it has learnt by heart; nor is a copy set aside of what has a label."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 4)).astype(np.float32)[np.arange(90) % 40]  # ten of them three times
    ids, labels = np.array([f"im{number}" for number in range(90)]), np.where(np.arange(90) < 10, "x", "")
    np.savez(tmp_path / "pool.npz", features=features, ids=ids, labels=labels)
    session = open_session(
        str(tmp_path / "pool.npz"), "ana", folder=tmp_path / "labels", adapter="linear_probe", held_out=23
    )
    aside = {int(name.removeprefix("im")) for name in session.held_out}
    assert len(aside) in (22, 23), "they come in twos"
    assert not {number % 40 for number in aside} & {number % 40 for number in {*range(90)} - aside}
