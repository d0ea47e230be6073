"""The explorer's engine: the same picks as by other roads, and nothing computed that is known already."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import palkit.experiments.experiment
import palkit.labelling.explore
from palkit.config import config_from_dict
from palkit.errors import ConfigError
from palkit.experiments.experiment import rounds
from palkit.experiments.picks import compare
from palkit.labelling.explore import Exploration, Memo, Question
from palkit.labelling.maps import pca, tsne
from palkit.labelling.proposals import Answer
from palkit.scoring.inputs import InputCache
from palkit.studies.readouts import map_2d


def batches(answer: Answer) -> dict[str, list[int]]:
    return {proposal.strategy: proposal.table["position"].tolist() for proposal in answer.proposals}


def same(one: Answer, other: Answer) -> bool:
    tables = zip(one.proposals, other.proposals, strict=True)
    return torch.equal(one.scores.probs, other.scores.probs) and all(a.table.equals(b.table) for a, b in tables)


@pytest.fixture
def question(tiny_run: dict[str, Any]) -> Question:
    return Question(config_from_dict({**tiny_run, "batch_size": 6}), ("entropy", "badge"))


@pytest.mark.parametrize(("round_", "balance"), [(0, None), (2, None), (1, "pcb")])
def test_proposals_are_those_of_compare(question: Question, round_: int, balance: str | None) -> None:
    config = replace(question.config, balance=balance)
    wanted = compare(config, ["entropy", "badge", "bald"], 10 * (round_ + 1), 6)
    exploration = Exploration()
    for pair in (("entropy", "badge"), ("bald", "entropy"), ("entropy", "bald")):
        answer = exploration.answer(Question(config, pair, round_))
        assert batches(answer) == {name: wanted.picks[name].tolist() for name in pair}
        assert answer.labelled.tolist() == wanted.labelled.tolist()
        assert torch.equal(answer.scores.probs, wanted.scores.probs)
        for proposal in answer.proposals:
            table = proposal.table
            picks = torch.from_numpy(wanted.picks[proposal.strategy])
            probs = wanted.scores.probs[picks]
            assert table["probability"].tolist() == probs.amax(1).tolist()
            assert table["predicted"].tolist() == [str(int(c)) for c in wanted.scores.predicted[picks]]
            assert table["row"].tolist() == wanted.rows[wanted.picks[proposal.strategy]].tolist()
            assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("strategy", "balance"),
    [
        ("bald", None),
        ("badge", "pcb"),
        ("random", None),
        pytest.param("entropy", None, marks=pytest.mark.campaign),
        pytest.param("random", "pcb", marks=pytest.mark.campaign),
    ],
)
def test_own_history_is_what_a_run_buys(tiny_run: dict[str, Any], strategy: str, balance: str | None) -> None:
    config = config_from_dict({**tiny_run, "strategy": strategy, "balance": balance, "seed": 3, "rounds": 4})
    bought = [list(round_.bought) for round_ in rounds(config)]
    exploration = Exploration()
    for number in (2, 1, 0):
        answer = exploration.answer(Question(config, (strategy,), number, "own"))
        assert answer.labelled.tolist() == list(chain(*bought[: number + 1]))
        assert batches(answer) == {strategy: bought[number + 1]}
    # However many are proposed, a run has bought one per class in each round before.
    five = exploration.answer(Question(replace(config, batch_size=5), (strategy,), 2, "own"))
    assert five.labelled.tolist() == list(chain(*bought[:3]))


@pytest.fixture
def counts(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each costly part was called since it was last cleared; augmented images one by one."""
    found: Counter = Counter()

    def watch(module: Any, name: str) -> None:
        real: Callable = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            first_batch = name == "select" and not len(args[2])  # without any labels
            found["augmented" if name == "_forward" else name] += not first_batch
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    watch(palkit.experiments.experiment, "fit")
    watch(palkit.experiments.experiment, "score_pool")
    watch(palkit.experiments.experiment, "select")
    watch(palkit.labelling.explore, "setting")
    watch(palkit.labelling.explore, "Learner")
    watch(InputCache, "_forward")  # of the views of one image
    return found


def test_a_change_recomputes_only_what_it_must(question: Question, counts: Counter) -> None:
    question = replace(question, config=replace(question.config, adapter=replace_adapter(question, "linear_probe")))
    exploration, config = Exploration(), question.config

    def cost(**changes: Any) -> dict[str, int]:
        counts.clear()
        own = {name: changes.pop(name) for name in ("strategies", "round", "history") if name in changes}
        exploration.answer(replace(question, config=replace(config, **changes), **own))
        return dict(counts)

    everything = {"setting": 1, "Learner": 1, "fit": 1, "score_pool": 1, "select": 2, "augmented": 10}
    assert cost() == everything
    assert cost() == {}
    assert cost(strategies=("entropy", "margin")) == {"select": 1}
    assert cost(strategies=("coreset",)) == {"select": 1}
    assert cost(batch_size=12) == {"select": 2}
    assert cost(balance="pcb") == {"select": 2}
    assert cost(strategies=("bald", "entropy")) == {"select": 1, "score_pool": 1}
    assert cost(strategies=("power_bald", "batchbald")) == {"select": 2}, "the same passes serve all three"
    assert cost(round=1) == {"fit": 1, "score_pool": 1, "select": 2, "augmented": 10}, "ten views are there already"
    assert cost(history="own") == {}, "nobody has bought anything yet"
    own = cost(history="own", round=2)
    assert (own["fit"], own["score_pool"], own["select"]) == (2, 2, 4), "round 0 is known; one purchase in each round"
    assert cost(history="own", round=1) == {"select": 2}, "it was fitted on the way"
    assert cost(seed=1) == {name: count for name, count in everything.items() if name != "setting"}
    assert cost(seed=0) == {}
    adapted = cost(adapter=replace_adapter(question, "bitfit"))
    assert {name: adapted[name] for name in ("fit", "score_pool", "select", "Learner")} == {
        "fit": 1, "score_pool": 1, "select": 2, "Learner": 1,
    }  # fmt: skip
    assert "setting" not in adapted


def replace_adapter(question: Question, name: str) -> Any:
    return replace(question.config.adapter, name=name)


def test_preparing_augments_ahead(question: Question, counts: Counter) -> None:
    question = replace(question, config=replace(question.config, adapter=replace_adapter(question, "linear_probe")))
    question, exploration = replace(question, round=1), Exploration()
    exploration.answer(question)
    exploration.prepare(question)
    counts.clear()
    exploration.answer(replace(question, round=2))
    exploration.answer(replace(question, config=replace(question.config, seed=1)))
    exploration.answer(replace(question, history="own"))
    assert counts["augmented"] == 0
    assert counts["fit"] == 3


@pytest.mark.parametrize("when", [0, 1, 2, 3, 5, 7])
def test_cancelled_and_asked_again(question: Question, own_cache: None, when: int) -> None:
    class Stop(Exception):
        pass

    calls = []

    def progress(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if len(calls) > when:
            raise Stop

    question = replace(question, round=1, history="own")
    exploration = Exploration()
    with pytest.raises(Stop):
        exploration.answer(question, progress)
    again = exploration.answer(question)
    assert same(again, Exploration().answer(question))


def test_progress_tells_the_stages(question: Question, own_cache: None) -> None:
    stages = []
    Exploration().answer(question, lambda stage, done, total: stages.append(stage))
    wanted = ["embedding", "augmenting", "fitting", "scoring", "selecting (entropy)", "selecting (badge)"]
    assert list(dict.fromkeys(stages)) == wanted


def test_why_against_brute_force(question: Question) -> None:
    answer = Exploration().answer(replace(question, strategies=("entropy", "coreset"), round=1))
    x, p = answer.scores.features[:].double().numpy(), answer.scores.probs.double().numpy()
    gap = np.linalg.norm(x[:, None] - x[None], axis=2)
    unit = gap[~np.eye(len(x), dtype=bool)].mean()
    known = answer.labelled
    free = np.setdiff1d(np.arange(len(x)), known)
    to_label = gap[:, known].min(1) / unit
    entropy = -(p * np.log(p)).sum(1)
    best = np.sort(p, axis=1)
    margin = 1 - (best[:, -1] - best[:, -2])
    first = answer.proposals[0].table["position"]
    for position in (int(first[0]), int(answer.proposals[1].table["position"][2]), int(free[7]), int(known[0])):
        why = answer.why(position)
        assert why.row == answer.rows[position]
        assert why.id == answer.pool.ids[why.row]
        assert why.classes["class"].tolist() == [str(c) for c in np.argsort(-p[position], kind="stable")]
        assert why.classes["probability"].tolist() == pytest.approx(np.sort(p[position])[::-1])
        others = known[known != position]
        near = others[np.argsort(gap[position, others], kind="stable")[:5]]
        assert why.neighbours["position"].tolist() == near.tolist()
        assert why.neighbours["row"].tolist() == answer.rows[near].tolist()
        assert why.neighbours["label"].tolist() == [str(c) for c in answer.pool.labels[answer.rows[near]]]
        assert why.neighbours["distance"].tolist() == pytest.approx(gap[position, near] / unit, rel=1e-5)
        assert (why.margin, why.entropy) == pytest.approx((margin[position], entropy[position]), rel=1e-5)
        # Ranks may swap between numpy's last bits and ours only where values tie to 1e-9.
        for ours, values in (
            (why.margin_percentile, margin),
            (why.entropy_percentile, entropy),
            (why.distance_percentile, to_label),
        ):
            assert ours == pytest.approx(100 * np.mean(values[free] <= values[position] + 1e-9), abs=1e-9)
        for name, table in ((proposal.strategy, proposal.table) for proposal in answer.proposals):
            picked = table["position"].tolist()
            assert why.ranks[name] == (picked.index(position) + 1 if position in picked else None)
        assert why.truth == ""
        assert answer.why(position, reveal=True).truth == str(answer.pool.labels[why.row])
    for proposal, values in zip(answer.proposals, (entropy, to_label), strict=True):
        assert proposal.table["score"].tolist() == pytest.approx(values[proposal.table["position"]], rel=1e-5)
    assert [proposal.measure for proposal in answer.proposals] == ["entropy", "distance"]
    with pytest.raises(ConfigError, match="position 200"):
        answer.why(200)


def test_overlap(question: Question) -> None:
    answer = Exploration().answer(replace(question, strategies=("entropy", "margin")))
    a, b = (set(positions) for positions in batches(answer).values())
    assert set(answer.overlap.positions) == a & b
    assert answer.overlap.jaccard == len(a & b) / len(a | b)


def test_no_score_where_a_strategy_ranks_by_none(question: Question) -> None:
    answer = Exploration().answer(question)
    assert answer.proposals[1].measure == ""
    assert answer.proposals[1].table["score"].isna().all()


def test_refusals(question: Question, tmp_path: Path) -> None:
    for values, message in (
        ({"strategies": ("entropy", "entropy")}, "two different"),
        ({"strategies": ()}, "strategies"),
        ({"strategies": ("entrpy",)}, "Did you mean 'entropy'"),
        ({"round": -1}, "round is -1"),
        ({"history": "mine"}, "unknown history"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(question, **values)
    with pytest.raises(ConfigError, match=r"round 19 has 200 labels, but the pool of 'digits' has 200"):
        Exploration().answer(replace(question, round=19))
    lines = ["path,label"]
    for number in range(40):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2] if number < 30 else ''}")
    manifest = tmp_path / "some.csv"
    manifest.write_text("\n".join(lines))
    config = replace(question.config, dataset=str(manifest), pool_size=None)
    with pytest.raises(ConfigError, match=r"images without a label.*label\.ipynb"):
        Exploration().answer(replace(question, config=config))


@pytest.mark.parametrize("renamed", ["files", "a class"])
def test_what_is_renamed_while_the_page_is_open_is_noticed(
    renamed: str, tiny_run: dict[str, Any], tmp_path: Path
) -> None:
    """Same pixels in the same order under other names."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(12):
            pixels = np.random.default_rng([ord(label), i]).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i:02}.png")
    values = {**tiny_run, "dataset": str(tmp_path), "pool_size": None, "adapter": "linear_probe", "batch_size": 2}
    question, exploration = Question(config_from_dict(values), ("entropy",)), Exploration()
    before = exploration.answer(question)
    if renamed == "files":
        for path in sorted(tmp_path.rglob("*.png")):
            path.rename(path.with_name(f"scan {path.name}"))
    else:
        (tmp_path / "b").rename(tmp_path / "benign")
    after = exploration.answer(question)
    assert after.pool.class_names == (("a", "b") if renamed == "files" else ("a", "benign"))
    assert not set(after.pool.ids) <= set(before.pool.ids)
    assert after.pool.images.decode(after.rows, 16).any(), "the files under their new names"


def test_memo_keeps_what_was_asked_for_last() -> None:
    memo, made = Memo(2), []

    def make(key: str) -> str:
        return memo.get(key, lambda: made.append(key) or key.upper())

    assert [make(key) for key in "abacab"] == list("ABACAB")
    assert made == list("abcb"), "b went when c came, as a had been asked for since"


def test_pca_against_numpy(question: Question) -> None:
    exploration = Exploration()
    learner, _ = exploration._begin(question, palkit.labelling.explore.silent)
    x = learner.frozen[:].double().numpy()
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    found = exploration.projection(question)
    for axis in (0, 1):
        assert abs(found[:, axis] @ u[:, axis]) == pytest.approx(s[axis], rel=1e-4)
    assert np.array_equal(found, pca(learner.frozen[:]))


def test_tsne_comes_from_a_process_that_cancelling_ends(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    path = tmp_path / "map.npy"

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyError(stage)

    with pytest.raises(KeyError, match="t-SNE"):
        tsne(features, path, stop)
    assert not list(tmp_path.iterdir())
    assert not [child for child in psutil.Process(os.getpid()).children() if "map_2d" in " ".join(child.cmdline())]
    tsne(features, path)
    assert np.array_equal(np.load(path), map_2d(features))


def test_tsne_map_is_read_from_disk_the_second_time(
    question: Question, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def fake(features: np.ndarray, path: Path, progress: Any) -> None:
        made.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, features[:, :2])

    monkeypatch.setattr(palkit.labelling.explore, "tsne", fake)
    first = Exploration().projection(question, "tsne")
    again = Exploration().projection(replace(question, config=replace(question.config, seed=5)), "tsne")
    assert np.array_equal(first, again)
    assert len(made) == 1
    smaller = Exploration().projection(replace(question, config=replace(question.config, pool_size=150)), "tsne")
    assert len(smaller) == 150
    assert len(made) == 2
    with pytest.raises(ConfigError, match="unknown map"):
        Exploration().projection(question, "umap")
