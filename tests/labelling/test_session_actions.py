"""A labelling session under random actions: no image is asked twice, no label is lost."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palkit.data import head, load_dataset
from palkit.errors import ConfigError
from palkit.labelling.labels import LabelLog
from palkit.labelling.session import open_session

ACTION = st.tuples(st.sampled_from(["label", "skip", "unsure", "undo", "propose", "fit", "reopen"]), st.integers(0, 99))


@settings(max_examples=12)
@given(actions=st.lists(ACTION, min_size=5, max_size=25), seed=st.integers(0, 3))
def test_whatever_is_done_no_image_is_asked_twice_and_no_label_lost(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    actions: list[tuple[str, int]],
    seed: int,
) -> None:
    """A model of the session in a few sets, driven by the same random actions."""
    folder = tmp_path_factory.mktemp("session")
    backbone = {"name": "test_vit", "image_size": 32, "depth": 4, "checkpoint": str(tiny_checkpoint)}
    fields: dict[str, Any] = {"pool_size": 60, "backbone": backbone, "adapter": {"name": "linear_probe"}, "seed": seed}
    fields |= {
        "training": {"epochs": 5, "head_epochs": 40, "views": 1, "head_lr": 0.01},
        "strategy": "margin",
        "batch_size": 4,
    }
    pool = head(load_dataset("digits"), 60)
    truth = dict(zip(pool.ids, pool.label_names(), strict=True))
    session = open_session("digits", "ana", folder=folder, budget=25, **fields)
    stack: list[tuple[str, str]] = []
    for action, number in actions:
        if action == "reopen":
            session = open_session("digits", "ana", folder=folder, budget=25, **fields)
        elif action == "propose":
            open_ = session.propose()["id"].tolist()
            assert not set(open_) & {name for name, _ in stack if _ != "skip"}
            assert len(set(open_)) == len(open_)
        elif action == "undo":
            assert (session.undo() is None) == (not stack)
            stack = stack[:-1]
        elif action == "fit":
            labelled = {name for name, kind in stack if kind == "label"}
            if len({truth[name] for name in labelled}) < 2:
                with pytest.raises(ConfigError):
                    session.fit()
            else:
                assert set(session.fit().ids) == labelled
        elif len(session.open()):
            name = session.open()["id"][number % len(session.open())]
            getattr(session, action)(*((name, truth[name]) if action == "label" else (name,)))
            stack.append((name, action))
        given_ = {name: truth[name] for name, kind in dict(stack).items() if kind == "label"}
        assert session.labels() == given_
        assert len(given_) <= 25 + 4
    assert len(LabelLog(folder / "labels.jsonl").events()) >= len(stack)
