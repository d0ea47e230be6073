"""The fault campaign of `campaigns/faults.py` in small: every kind of fault, and nothing lost, doubled or wrong."""

import random
import sys
from collections.abc import Iterator
from io import StringIO

import pandas as pd
import pytest
import torch
from breadth import some

from palkit.storage.files import REPOSITORY

sys.path.append(str(REPOSITORY / "campaigns"))

import fault_kinds
import faults
from fault_processes import Ended
from fault_targets import SESSION_ROUNDS, Bench
from fault_verdicts import Trial, judged, repaired


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(tmp_path_factory.mktemp("faults"), jobs=1)
    torch.set_num_threads(threads)


def assert_harmless(trials: list[Trial]) -> None:
    table = faults.report(trials)
    notes = "\n".join(f"{trial.fault}, {trial.target}: {trial.note}" for trial in trials if trial.note)
    assert not table[list(faults.BAD)].to_numpy().any(), f"{table.to_string()}\n{notes}"


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("name", some(["caching", "fit", "labelling", "scoring"], every=2))
def test_killed_at_random_moments(bench: Bench, name: str, times: int) -> None:
    trials = list(fault_kinds.killed_at_random(bench.targets[name], name, random.Random(name), times))
    assert len(trials) >= times
    assert_harmless(trials)


def test_a_sweep_killed_at_a_random_moment(bench: Bench) -> None:
    """Of one process; `test_dispatch.py` kills those of several."""
    assert_harmless(list(fault_kinds.killed_at_random(bench.targets["sweep"], "sweep", random.Random(0), 1)))


@pytest.mark.parametrize(
    ("name", "times"),
    [
        *(
            pytest.param(name, 1, marks=pytest.mark.campaign if name in ("readonly", "clock", "memory") else [])
            for name in faults.FAULTS
            if name not in ("kills", "together")
        ),
        pytest.param("changes", 3, marks=pytest.mark.campaign),
    ],
)
def test_every_other_fault(bench: Bench, name: str, times: int) -> None:
    fault, _ = faults.FAULTS[name]
    trials = list(fault(bench, random.Random(name), times))
    if not trials:
        pytest.skip("this user may not mount file systems")
    assert_harmless(trials)


def test_two_processes_on_one_folder(bench: Bench) -> None:
    trials = list(fault_kinds.together(bench, random.Random(0), 1))
    assert {trial.target for trial in trials} == {"run", "caching", "sweep", "labels"}
    assert_harmless(trials)


def test_the_campaign_tells_what_is_wrong(bench: Bench) -> None:
    """Another result, an unclear error, a repair that does not help and a loss all count."""
    target = bench.targets["run"]
    good = target.undisturbed.value
    ends = {
        "": Ended(value=good),
        "different: rounds": Ended(value=good | {"rounds": "other"}),
        "unclear": Ended(error="ValueError: /x/rounds.parquet", clear=False),
        "signal 7": Ended(signal=7),
    }
    trials = [repaired("fault", "run", ended, target, target.folder(), "/x/rounds.parquet") for ended in ends.values()]
    assert [trial.end for trial in trials] == ["same", "wrong", "wrong", "wrong"]
    assert all(trial.note.startswith(note) for trial, note in zip(trials, ends, strict=True))
    table = faults.report([*trials, Trial("fault", "run", "same", labels=2, rounds=1, doubled=1)])
    counts = table.set_index("target").loc["run", ["times", "same", "told", *faults.BAD]]
    pd.testing.assert_series_equal(
        counts.astype(int), pd.Series([5, 2, 0, 3, 2, 1, 1], index=counts.index), check_names=False
    )


def test_only_the_last_bits_may_differ_and_only_where_memory_was_short(bench: Bench) -> None:
    target = bench.targets["run"]
    good = target.undisturbed.value
    table = pd.read_csv(StringIO(good["rounds"]))
    for amount, tolerance, end in [(1e-9, 0.0, "wrong"), (1e-9, 1e-6, "same"), (1e-3, 1e-6, "wrong")]:
        other = table.assign(nll=table["nll"] + amount).to_csv(index=False)
        ended = Ended(value=good | {"rounds": other})
        assert judged("fault", "run", ended, target, target.folder(), tolerance=tolerance).end == end


def test_a_lost_label_counts_though_the_expert_was_asked_again(bench: Bench) -> None:
    target = bench.targets["labelling"]
    told = target.undisturbed.told
    first = next(content for content in told if content[0] == "label")
    whole, nothing = target.job.stored(target.complete), {"labels": [], "rounds": 0}
    assert first[1:] in whole["labels"]
    assert target.job.check(target.complete, told, [(whole, len(told))]) == {"labels": 0, "rounds": 0, "doubled": 0}
    counts = target.job.check(target.complete, told, [(nothing, len(told))])
    assert counts == {"labels": len(whole["labels"]), "rounds": SESSION_ROUNDS, "doubled": 0}


def test_a_lost_round_and_a_round_computed_twice_count(bench: Bench) -> None:
    target = bench.targets["run"]
    ((path, _),) = target.job.stored(target.complete).items()
    told = [("round", 0), ("round", 1)]
    check = target.job.check
    assert check(target.complete, told, [({path: (1, 2)}, 2)]) == {"rounds": 0, "doubled": 0}
    assert check(target.complete, told, [({path: (1, 1)}, 2)]) == {"rounds": 1, "doubled": 0}
    # The only process began with round 0, though two rounds were there before it.
    assert check(target.complete, told, [({path: (0, 2)}, 2)]) == {"rounds": 0, "doubled": 2}
