"""Runs: protocol, reproducibility, resume after a real SIGKILL, and configs that cannot work."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from breadth import some
from dataset_helpers import noise
from PIL import Image
from safetensors.torch import load_file, save_file

from palkit.config import config_from_dict, plain
from palkit.data import hashes
from palkit.errors import ConfigError, DataError, DivergenceError, StorageError
from palkit.experiments import experiment, setting
from palkit.experiments.experiment import resolve, rounds, run_directory
from palkit.experiments.runs import COSTS, provenance
from palkit.experiments.sweep import Sweep, plan
from palkit.models.adapters import ADAPTERS
from palkit.storage.files import short_hash, write_json
from palkit.strategies import STRATEGIES


def outcome(values: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rounds without costs, and selections, of a finished run."""
    directory = run_directory(config_from_dict(values))
    return directory.table().drop(columns=list(COSTS)), directory.selections()


def test_protocol(tiny_run: dict[str, Any]) -> None:
    history = list(rounds(config_from_dict(tiny_run)))
    assert [r.number for r in history] == [0, 1, 2]
    assert [r.labels for r in history] == [10, 20, 30], "one label per class and round"
    bought = [position for r in history for position in r.bought]
    assert len(set(bought)) == 30
    assert all(0 <= position < 200 for position in bought)
    directory = run_directory(config_from_dict(tiny_run))
    names = {path.name for path in directory.path.iterdir() if not path.name.startswith(".")}
    tables = {"rounds.parquet", "selections.parquet", "predictions.parquet"}
    assert names == {"config.json", "provenance.json", "adapter", *tables}
    predictions = pd.read_parquet(directory.path / "predictions.parquet")
    correct = predictions["predicted"] == predictions["label"]
    assert correct.groupby(predictions["round"]).mean().tolist() == [r.metrics["accuracy"] for r in history]
    recorded = json.loads((directory.path / "provenance.json").read_text())
    assert recorded["packages"]["torch"] == torch.__version__.split("+")[0]
    assert recorded["packages"]["palkit"] == importlib.metadata.version("palkit")
    stored = json.loads((directory.path / "config.json").read_text())
    assert stored["weights_sha256"]
    assert stored["data_sha256"]
    assert short_hash(stored) == directory.run
    assert config_from_dict({k: v for k, v in stored.items() if not k.endswith("sha256")}).seed == 0
    selections = directory.selections()
    pool = setting.pool_of(config_from_dict(tiny_run))
    rows = pool.rows("pool")[selections["position"]]
    assert selections["id"].tolist() == pool.ids[rows].tolist()
    assert selections["label"].tolist() == pool.labels[rows].tolist()


def test_options_name_images(tiny_run: dict[str, Any]) -> None:
    config = config_from_dict(tiny_run)
    pool = setting.pool_of(config)
    names = pool.ids[pool.rows("pool")][[3, 99]].tolist()
    batches = []
    for target in (names, names[::-1], None):
        options = {"targets": 2, "passes": 3, **({} if target is None else {"target": target})}
        values = {**tiny_run, "strategy": "epig", "strategy_options": options}
        batches.append([r.bought for r in rounds(config_from_dict(values))])
    assert [len(batch) for batch in batches[0]] == [10, 10, 10]
    assert batches[0] == batches[1] != batches[2]
    with pytest.raises(ConfigError, match="target: 'no image' is no image of the pool"):
        list(rounds(config_from_dict({**tiny_run, "strategy": "epig", "strategy_options": {"target": ["no image"]}})))


def test_finished_run_is_found_not_computed(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(rounds(config_from_dict(tiny_run)))
    monkeypatch.setattr(experiment, "fit", lambda *_: pytest.fail("computed again"))
    assert list(rounds(config_from_dict(tiny_run))) == first


def test_same_config_same_bits(tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(rounds(config_from_dict(tiny_run)))
    first = outcome(tiny_run)
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "again"))
    list(rounds(config_from_dict(tiny_run)))
    for one, two in zip(first, outcome(tiny_run), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_initial_set_is_shared_by_strategies_and_adapters(tiny_run: dict[str, Any]) -> None:
    first = {}
    for strategy, adapter in (("random", "lora"), ("entropy", "lora"), ("entropy", "linear_probe")):
        values = {**tiny_run, "strategy": strategy, "adapter": {"name": adapter, "start_block": 2}, "rounds": 2}
        first[strategy, adapter] = next(rounds(config_from_dict(values)))
    batches = {r.bought for r in first.values()}
    assert len(batches) == 1
    lora = [first["random", "lora"].metrics, first["entropy", "lora"].metrics]
    assert lora[0] == lora[1], "same initial weights, so the same first model"
    other_seed = next(rounds(config_from_dict({**tiny_run, "seed": 1})))
    assert other_seed.bought not in batches


def test_the_oracle_may_choose_the_first_batch(tiny_run: dict[str, Any]) -> None:
    config = config_from_dict({**tiny_run, "initial": "class_balanced_oracle", "rounds": 1})
    list(rounds(config))
    counts = run_directory(config).selections()["label"].value_counts()
    assert counts.max() - counts.min() <= 1
    assert len(counts) == min(counts.sum(), 10)


def test_interrupted_run_continues_with_the_same_result(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(rounds(config_from_dict(tiny_run)))
    undisturbed = outcome(tiny_run)
    for stop in (1, 2):
        monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / f"interrupted-{stop}"))
        running = rounds(config_from_dict(tiny_run))
        for _ in range(stop):
            next(running)
        running.close()
        assert [r.number for r in rounds(config_from_dict(tiny_run))] == [0, 1, 2]
        for one, two in zip(undisturbed, outcome(tiny_run), strict=True):
            pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_a_warm_start_goes_on_from_the_round_before_also_after_an_interruption(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = {**tiny_run, "training": {**tiny_run.get("training", {}), "warm_start": True}}
    for values in (tiny_run, warm):
        list(rounds(config_from_dict(values)))
    (fresh, _), (table, bought) = outcome(tiny_run), outcome(warm)
    assert fresh["nll"][0] == table["nll"][0]
    assert (fresh["nll"][1:] != table["nll"][1:]).all()
    content = load_file(run_directory(config_from_dict(warm)).adapter / "adapter_model.safetensors")
    for stop in (1, 2, 3):  # the last: its adapter is lost
        monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / f"interrupted-{stop}"))
        running = rounds(config_from_dict(warm))
        for _ in range(stop):
            next(running)
        running.close()
        adapter = run_directory(config_from_dict(warm)).adapter
        shutil.rmtree(adapter, ignore_errors=True)
        list(rounds(config_from_dict(warm)))
        for one, two in zip((table, bought), outcome(warm), strict=True):
            pd.testing.assert_frame_equal(one, two, check_exact=True)
        for name, values_ in load_file(adapter / "adapter_model.safetensors").items():
            assert torch.equal(values_, content[name])


KILLED = """
import json, sys, time
from palkit.config import config_from_dict, plain
from palkit.data import hashes
from palkit.experiments.experiment import rounds
for round_ in rounds(config_from_dict(json.loads(sys.argv[1]))):
    print(round_.number, flush=True)
    if round_.number == 0:
        print("computing round 1", flush=True)
"""


@pytest.mark.campaign  # test_faults.py kills runs at random moments
def test_sigkill_mid_run_loses_no_complete_round(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run["training"] = {"epochs": 150, "head_epochs": 0, "views": 2}  # long enough to be killed within
    list(rounds(config_from_dict(tiny_run)))
    undisturbed = outcome(tiny_run)
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "killed"))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(tiny_run)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "computing round 1":
        assert process.poll() is None, "the process ended before it could be killed"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    directory = run_directory(config_from_dict(tiny_run))
    assert not directory.is_complete(3)
    kept = directory.table()
    assert len(kept) >= 1
    list(rounds(config_from_dict(tiny_run)))
    for one, two in zip(undisturbed, outcome(tiny_run), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    again = directory.table().head(len(kept))
    # Costs included: these rounds were not redone.
    pd.testing.assert_frame_equal(again, kept, check_exact=True)


def test_kill_between_the_two_files_of_a_round_is_harmless(tiny_run: dict[str, Any]) -> None:
    list(rounds(config_from_dict(tiny_run)))
    undisturbed, directory = outcome(tiny_run), run_directory(config_from_dict(tiny_run))
    directory.table().head(1).to_parquet(directory.path / "rounds.parquet", index=False)
    (directory.adapter / "head.safetensors").unlink()
    list(rounds(config_from_dict(tiny_run)))
    for one, two in zip(undisturbed, outcome(tiny_run), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_lost_adapter_is_fitted_again(tiny_run: dict[str, Any]) -> None:
    list(rounds(config_from_dict(tiny_run)))
    adapter = run_directory(config_from_dict(tiny_run)).adapter
    content = {path.name: path.read_bytes() for path in adapter.iterdir()}
    files = {"adapter_config.json", "adapter_model.safetensors", "checksums.json", "classes.json", "head.safetensors"}
    assert content.keys() == files
    (adapter / "head.safetensors").unlink()
    assert len(list(rounds(config_from_dict(tiny_run)))) == 3
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == content


def test_truncated_results_are_reported(tiny_run: dict[str, Any]) -> None:
    list(rounds(config_from_dict(tiny_run)))
    path = run_directory(config_from_dict(tiny_run)).path / "rounds.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"rounds\.parquet cannot be read.*Delete the folder"):
        list(rounds(config_from_dict(tiny_run)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "entropie"}, r"unknown strategy 'entropie'. Did you mean 'entropy'"),
        ({"adapter": {"name": "lorra"}}, r"unknown adapter 'lorra'. Did you mean 'lora'"),
        ({"balance": "pbc"}, r"unknown balance 'pbc'. Did you mean 'pcb'"),
        ({"initial": "entropy"}, r"unknown cold-start strategy 'entropy'.*random"),
        ({"rounds": 21}, r"21 rounds of 10 labels need 210 images, but the pool of 'digits' has 200"),
        ({"batch_size": 0}, r"batch_size is 0 .*must be greater than or equal to 1"),
        ({"pool_size": 100_000}, r"pool_size 100000: the pool of 'digits' has"),
        ({"evaluate_on": "train"}, r"unknown evaluate_on 'train'"),
        ({"sead": 1}, r"unknown config field 'sead'. Did you mean 'seed'"),
        ({"adapter": {"name": "lora", "rnak": 4}}, r"unknown config field 'adapter\.rnak'.*'adapter\.rank'"),
        ({"seed": "one"}, r"seed is 'one' \(str\); it must be a valid integer"),
        ({"training.epochs": 2.5}, r"training\.epochs is 2\.5 \(float\); it must be a valid integer"),
    ],
)
def test_bad_configs_name_the_field(tiny_run: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(rounds(config_from_dict({**tiny_run, **change})))


def test_dotted_keys_and_mappings_are_the_same_config() -> None:
    dotted = config_from_dict({"adapter.name": "lora", "adapter.rank": 2, "training.epochs": 3})
    nested = config_from_dict({"adapter": {"name": "lora", "rank": 2}, "training": {"epochs": 3}})
    assert dotted == nested
    assert config_from_dict({"adapter": "linear_probe"}).adapter.name == "linear_probe"


def test_hash_depends_on_every_field(tiny_run: dict[str, Any]) -> None:
    base = resolve(config_from_dict(tiny_run)).run
    changes = [{"seed": 1}, {"strategy": "random"}, {"adapter.rank": 2}, {"training.epochs": 3}, {"pool_size": 190}]
    hashes = {resolve(config_from_dict({**tiny_run, **change})).run for change in changes}
    assert len(hashes | {base}) == len(changes) + 1
    assert resolve(config_from_dict({**tiny_run, "batch_size": 10})).run == base, "10 is the default here"


def test_what_a_linear_probe_does_not_use_is_not_in_its_hash(tiny_run: dict[str, Any]) -> None:
    probe = {**tiny_run, "adapter": "linear_probe"}
    hashes = {resolve(config_from_dict({**probe, "training.adapter_lr": rate})).run for rate in (None, 1e-3, 1e-4)}
    assert len(hashes) == 1


def test_images_that_come_and_go_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under a name that means another folder from elsewhere."""
    for number in range(20):
        folder = tmp_path / "one" / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    config = config_from_dict({"dataset": "images", "pool_size": None})
    monkeypatch.chdir(tmp_path / "one")
    assert len(setting.pool_of(config)) == 20
    assert setting.pool_of(config) is setting.pool_of(config)
    Image.new("L", (8, 8), 99).save(tmp_path / "one" / "images" / "a" / "99.png")
    assert len(setting.pool_of(config)) == 21
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / "images" / "a" / "0.png").unlink()
    monkeypatch.chdir(tmp_path / "other")
    assert len(setting.pool_of(config)) == 20


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("source", ["digits", "folder"])
def test_a_finished_run_is_found_without_its_network_and_its_images(
    source: str, tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "RACY_NS", 0)  # files as old as their times say are known by these at once
    if source == "folder":
        source = str(tmp_path / "folder")
        for number in range(30):
            path = tmp_path / "folder" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(number).save(path)
    config = config_from_dict({**tiny_run, "dataset": source, "pool_size": None, "rounds": 1})
    (first,), where = rounds(config), run_directory(config).path
    setting._loaded.cache_clear()
    setting._backbone.cache_clear()
    for loads in ("timm.create_model", "palkit.data.hashes.inspect", "palkit.data.files.read_image"):
        monkeypatch.setattr(loads, lambda *_, loads=loads, **__: pytest.fail(loads))
    if source == "digits":
        monkeypatch.setitem(setting.DATASETS, "digits", lambda: pytest.fail("loaded the data"))
        monkeypatch.setattr(setting.DATASETS["digits"], "__module__", "palkit.data.embedded")
    assert run_directory(config).path == where
    assert [one.metrics for one in rounds(config)] == [first.metrics]
    assert [task.is_complete for task in plan(Sweep("found", plain(config)))] == [True]
    changed = tmp_path / "changed.safetensors"
    shutil.copy(config.backbone.checkpoint or "", changed)
    other = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, checkpoint=str(changed)))
    assert run_directory(other).path.parent == where.parent
    with open(changed, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert run_directory(other).path != where, "other weights, another run"


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    "kept",
    [{"data_sha256": "0" * 64, "classes": 10, "images": 1000, "features": None}, {"of": "another version"}, {}],
)
def test_what_is_known_of_data_and_is_not_so_is_forgotten(tiny_run: dict[str, Any], kept: dict[str, Any]) -> None:
    config = config_from_dict({**tiny_run, "rounds": 1})
    directory = run_directory(config)
    record = setting._pool_record(config)
    assert record.exists()
    write_json(record, kept)
    assert (run_directory(config).run != directory.run) == ("classes" in kept)
    list(rounds(config))
    assert directory.is_complete(1)
    assert run_directory(config).run == directory.run


@pytest.mark.usefixtures("own_cache")
def test_weights_that_are_replaced_make_another_run_in_this_process_and_in_the_next(
    tiny_run: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(tiny_checkpoint, weights)
    config = config_from_dict({**tiny_run, "rounds": 1})
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, checkpoint=str(weights)))
    (first,), before = rounds(config), run_directory(config)
    save_file({name: values.roll(1, 0) for name, values in load_file(weights).items()}, weights)
    there = run_directory(config)
    assert there.run != before.run
    (second,) = rounds(config)
    assert second.metrics != first.metrics
    assert there.is_complete(1), "of the weights as they are now"
    setting._backbone.cache_clear()  # as in another process
    assert run_directory(config).run == there.run
    assert [one.metrics for one in rounds(config)] == [second.metrics]


@pytest.mark.usefixtures("own_cache")
def test_a_complete_run_is_found_though_nobody_may_write_to_the_cache(
    tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from_dict({**tiny_run, "rounds": 1})
    (first,), where = rounds(config), run_directory(config).path

    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("cannot be written")

    for writes in ("file_hashes", "write_json"):
        monkeypatch.setattr(setting, writes, refuse)
    assert run_directory(config).path == where
    assert [one.metrics for one in rounds(config)] == [first.metrics]


def test_metrics_against_scikit_learn_and_by_hand() -> None:
    probs = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    labels = torch.tensor([0, 1, 2, 2])
    metrics = experiment.evaluate(probs, labels)
    assert metrics["accuracy"] == 0.75
    assert metrics["balanced_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert metrics["nll"] == pytest.approx(-np.log([0.8, 0.6, 0.3, 0.7]).mean())
    assert metrics["brier"] == pytest.approx(np.mean([0.06, 0.26, 0.78, 0.14]))
    # Each confidence falls into a bin of its own: |accuracy - confidence| averaged.
    assert metrics["ece"] == pytest.approx(np.mean([0.2, 0.4, 0.5, 0.3]), abs=1e-6)
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


@pytest.mark.parametrize("strategy", some(sorted(STRATEGIES), every=2))
def test_every_strategy_runs(tiny_run: dict[str, Any], strategy: str) -> None:
    """Whatever a strategy needs beyond features and probs, the experiment provides."""
    options = {"max_size": 200} if strategy == "bait" else {}
    values = {**tiny_run, "strategy": strategy, "strategy_options": options, "rounds": 2}
    history = list(rounds(config_from_dict(values)))
    assert [r.labels for r in history] == [10, 20]
    assert len({p for r in history for p in r.bought}) == 20


def test_stochastic_passes_can_be_set(tiny_run: dict[str, Any]) -> None:
    values = {**tiny_run, "strategy": "bald", "rounds": 2}
    batches = [
        list(rounds(config_from_dict({**values, "strategy_options": options})))[1].bought
        for options in ({}, {"passes": 20, "dropout_rate": 0.5}, {"passes": 3, "dropout_rate": 0.9})
    ]
    assert batches[0] == batches[1], "20 passes at 0.5 are bald's own"
    assert batches[0] != batches[2]


@pytest.mark.parametrize("on", ["head", "adapter"])
def test_what_is_dropped_can_be_set(tiny_run: dict[str, Any], on: str) -> None:
    values = {**tiny_run, "strategy": "bald", "rounds": 2}
    plain = list(rounds(config_from_dict(values)))
    other = list(rounds(config_from_dict({**values, "strategy_options": {"dropout_on": on}})))
    assert plain[0].metrics == other[0].metrics
    assert plain[1].bought != other[1].bought
    with pytest.raises(ConfigError, match=r"unknown dropout_on 'haed'. Did you mean 'head'"):
        list(rounds(config_from_dict({**values, "strategy_options": {"dropout_on": "haed"}})))


def test_a_run_that_streams_from_disk_is_the_same(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(rounds(config_from_dict(tiny_run)))
    in_memory = outcome(tiny_run)
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "streamed"))
    monkeypatch.setenv("PALKIT_MEMORY", "0")
    list(rounds(config_from_dict(tiny_run)))
    for one, two in zip(in_memory, outcome(tiny_run), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_the_same_blocks_under_another_name_are_the_same_run(tiny_run: dict[str, Any]) -> None:
    names = [{"start_block": 2}, {"start_block": -2}, {"start_block": 2, "stop_block": 4}]
    hashes = {resolve(config_from_dict({**tiny_run, "adapter": {"name": "lora", **n}})).run for n in names}
    rate = {"training": {**tiny_run["training"], "adapter_lr": 2e-3}}
    hashes.add(resolve(config_from_dict({**tiny_run, **rate})).run)
    assert len(hashes) == 1
    other = {**tiny_run, "adapter": {"name": "lora", "start_block": 2, "stop_block": 3}}
    assert resolve(config_from_dict(other)).run not in hashes


def test_what_is_measured_is_recorded(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("palkit.models.devices.PROBE_SECONDS", 0.01)
    values = {**tiny_run, "scoring": {"precision": "auto", "batch_size": None}, "training.precision": "auto"}
    resolved = resolve(config_from_dict(values))
    assert resolved.config.scoring.precision in ("float32", "bfloat16")
    assert resolved.config.training.precision == resolved.config.scoring.precision
    assert isinstance(resolved.config.scoring.batch_size, int)
    assert resolve(config_from_dict(values)) == resolved, "measured once"
    assert len(list(rounds(config_from_dict({**values, "rounds": 2})))) == 2


def test_temperature_changes_confidence_and_no_prediction(tiny_run: dict[str, Any]) -> None:
    sure = {"epochs": 40, "head_epochs": 40, "head_lr": 0.03, "views": 1, "augmentation": "none"}
    values = {**tiny_run, "strategy": "random", "rounds": 2, "batch_size": 20, "training": sure}
    plain = list(rounds(config_from_dict(values)))
    scaled = list(rounds(config_from_dict({**values, "training.temperature_folds": 3})))
    for one, two in zip(plain, scaled, strict=True):
        assert one.metrics["temperature"] == 1
        assert two.metrics["temperature"] > 1
        assert one.metrics["accuracy"] == two.metrics["accuracy"]
        assert one.metrics["nll"] != two.metrics["nll"]


def test_who_does_not_look_is_not_kept_waiting(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.Learner, "score_pool", lambda *_: pytest.fail("scored the pool"))
    assert len(list(rounds(config_from_dict({**tiny_run, "strategy": "random"})))) == 3
    with pytest.raises(pytest.fail.Exception):
        list(rounds(config_from_dict({**tiny_run, "strategy": "random", "balance": "pcb"})))


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_every_kind_of_adapter_runs(tiny_run: dict[str, Any], name: str) -> None:
    values = {**tiny_run, "adapter": {"name": name, "start_block": 2}, "rounds": 1}
    (only,) = rounds(config_from_dict(values))
    assert (only.costs["trainable"] > 0) == (name != "linear_probe")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one, marks=pytest.mark.campaign if number % 4 else [])
        for number, one in enumerate(sorted(ADAPTERS))
    ],
)
def test_every_kind_of_adapter_resumes(
    tiny_run: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**tiny_run, "adapter": {"name": name, "start_block": 2}, "rounds": 2}
    running = rounds(config_from_dict(values))
    next(running)
    shutil.copytree(tmp_path / "runs", tmp_path / "interrupted")  # as it is when a process dies now
    list(running)
    undisturbed = outcome(values)
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "interrupted"))
    list(rounds(config_from_dict(values)))
    for one, two in zip(undisturbed, outcome(values), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_provenance_where_palkit_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def installed(name: str) -> str:
        if name == "palkit":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    packages = provenance("cpu")["packages"]
    assert packages["palkit"] == "not installed"
    assert packages["torch"] == version("torch")


@pytest.mark.parametrize("strategy", some(sorted(STRATEGIES), every=3))
@pytest.mark.parametrize("adapter", ["linear_probe", pytest.param("lora", marks=pytest.mark.campaign)])
def test_a_first_batch_of_one_class_ends_no_run(tiny_run: dict[str, Any], strategy: str, adapter: str) -> None:
    """With two classes and two labels a round, half of all seeds begin so."""
    one = {"adapter": {"name": adapter, "start_block": 2}, "strategy": strategy, "batch_size": 1, "rounds": 3}
    values = {**tiny_run, **one}
    done = list(rounds(config_from_dict(values)))
    assert [one.labels for one in done] == [1, 2, 3]
    assert all(0 <= one.metrics["accuracy"] <= 1 for one in done)


def test_copies_with_other_labels_are_what_an_error_names(tmp_path: Path, tiny_run: dict[str, Any]) -> None:
    for name in ("a", "b"):
        for number in range(15):
            (tmp_path / name).mkdir(exist_ok=True)
            noise(0).save(tmp_path / name / f"{number}.png")
    values = {"dataset": str(tmp_path), "pool_size": None, "batch_size": 6, "rounds": 1, "training.epochs": 200}
    with pytest.raises(DivergenceError, match=r"6 of the 6 labelled images are copies of one with another label"):
        list(rounds(config_from_dict({**tiny_run, **values, "training.adapter_lr": 0.1, "training.head_lr": 0.1})))


def test_pseudo_labels_of_the_pool(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They move a solved head, of a probe and under an adapter, hang on no more rows than a graph may have, and give a
    run a name of its own; without them it is called as it was before there were any."""
    values = {**tiny_run, "strategy": "random", "training": {"head": "logistic"}}
    mine = {**values, "training": {"head": "logistic", "pseudo_labels": 0.5}}
    assert run_directory(config_from_dict(values)).run != run_directory(config_from_dict(mine)).run
    assert "pseudo_labels" not in plain(config_from_dict(values))["training"]
    assert config_from_dict(plain(config_from_dict(mine))) == config_from_dict(mine)
    for adapter in ("linear_probe", "lora"):
        one, other = (
            list(rounds(config_from_dict({**some, "adapter": {"name": adapter, "start_block": 2}})))
            for some in (values, mine)
        )
        assert [round_.bought for round_ in one] == [round_.bought for round_ in other]
        assert all(a.metrics["nll"] != b.metrics["nll"] for a, b in zip(one, other, strict=True))
    seen = []
    original = experiment.pseudo_labels

    def spied(rows: Any, *rest: Any) -> Any:
        seen.append(len(rows))
        return original(rows, *rest)

    monkeypatch.setattr(experiment, "pseudo_labels", spied)
    monkeypatch.setattr(experiment, "MOST_PSEUDO", 25)
    list(rounds(config_from_dict({**mine, "adapter": "linear_probe", "seed": 9})))
    assert seen == [25, 25, 30], "all labelled rows, and others up to as many"


def test_pseudo_labels_are_spread_from_what_a_model_learns_from(
    tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from labels held out to stop early, nor from those whose predictions give the temperature."""
    spread, graphs, original = [], [], experiment.pseudo_labels

    def spied(rows: Any, positions: torch.Tensor, labels: torch.Tensor, *rest: Any) -> Any:
        spread.append(len(positions))
        graphs.append(len(rows))
        return original(rows, positions, labels, *rest)

    monkeypatch.setattr(experiment, "pseudo_labels", spied)
    training = {**tiny_run["training"], "head": "logistic", "pseudo_labels": 0.5}
    values = {
        **tiny_run,
        "adapter": {"name": "lora", "start_block": 2},
        "rounds": 1,
        "batch_size": 40,
        "pool_size": 100,
    }
    list(rounds(config_from_dict({**values, "training": {**training, "temperature_folds": 4}})))
    assert spread == [40, 30, 30, 30, 30]
    assert graphs == [100, 90, 90, 90, 90], "what a part is predicted for is not in the pool that it learns from"
    spread.clear()
    list(rounds(config_from_dict({**values, "training": {**training, "early_stopping": 0.25}})))
    assert len(spread) == 1
    assert 25 <= spread[0] < 35


@pytest.mark.parametrize(
    "unseen", [{"early_stopping": 0.2}, {"temperature_folds": 4}, {"head": "logistic", "pseudo_labels": 0.5}], ids=str
)
def test_a_warm_start_is_refused_what_needs_labels_that_the_model_has_not_seen(
    tiny_run: dict[str, Any], unseen: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{[*unseen][-1]} must be 0 with warm_start"):
        config_from_dict({**tiny_run, "training": {"warm_start": True, **unseen}})


def test_pseudo_labels_need_a_solved_head(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"training\.pseudo_labels .* training\.head must be 'logistic'"):
        config_from_dict({**tiny_run, "training": {"pseudo_labels": 0.5}})
