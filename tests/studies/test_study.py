"""Studies: names that tell configurations apart, sections that say why they are missing, the quick profile."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from palkit.cli import main
from palkit.errors import ConfigError, DataError
from palkit.experiments.dispatch import DispatchConfig, run_sweep
from palkit.experiments.results import named, parts, read_results, write_results
from palkit.experiments.sweep import Sweep, load_sweep
from palkit.storage.files import REPOSITORY
from palkit.studies import execution, plots, study
from palkit.studies.peal import CLAIMS, UNDECIDED
from palkit.studies.statistics import against, area_under_curve, selection_overlap
from palkit.studies.study import (
    areas,
    attempt,
    claims_by_set,
    compare,
    conclusion,
    missing,
    one_configuration,
    overview,
    picks,
    ranking,
    savings,
    show,
)

SIMULATION = REPOSITORY / "figures" / "simulation"


@pytest.fixture(scope="module")
def simulation() -> pd.DataFrame:
    """The committed table of rounds of five seeds on four data sets."""
    return read_results(SIMULATION)[0]


def test_simulation_is_complete(simulation: pd.DataFrame) -> None:
    assert simulation.groupby("run").size().tolist() == [7] * 240
    counts = simulation.groupby(["dataset", "adapter", "strategy", "balance"])["seed"].nunique()
    assert len(counts) == 4 * 2 * 3 * 2
    assert (counts == 5).all()


def test_against_is_the_paired_difference_of_areas(simulation: pd.DataFrame) -> None:
    table = against(simulation, "strategy", "random")
    assert len(table) == 4 * 2 * 2 * 2
    where = "dataset == 'digits' and adapter == 'lora' and balance == 'pcb'"
    row = table.query(f"{where} and strategy == 'featdist'").iloc[0]
    differences = []
    for seed in range(5):
        of = simulation.query(f"{where} and seed == {seed}")
        areas = {name: area_under_curve(rows["labels"], rows["accuracy"]) for name, rows in of.groupby("strategy")}
        differences.append(areas["featdist"] - areas["random"])
    assert row["aubc"] == pytest.approx(np.mean(differences))
    assert (row["wins"], row["losses"]) == (np.sum(np.array(differences) > 0), np.sum(np.array(differences) < 0))
    assert row["aubc_low"] < row["aubc"] < row["aubc_high"]


def test_claims_set_by_set_are_differences_on_that_set(simulation: pd.DataFrame) -> None:
    simulation = simulation[simulation["dataset"].isin({"digits", "fashion_mnist"})]
    rounds = simulation.assign(kappa=simulation["accuracy"].where(simulation["dataset"] == "digits"))
    table = claims_by_set(rounds)
    assert list(table) == list(simulation["dataset"].unique())
    assert list(claims_by_set(rounds, "kappa")) == ["digits"], "the others do not have it"
    found = table.loc["With a linear probe, entropy falls below random."]
    expected = against(simulation, "strategy", "random").query(
        "adapter == 'linear_probe' and balance == 'none' and strategy == 'entropy'"
    )
    for row in expected.itertuples():
        text = f"{100 * row.aubc:+.1f} [{100 * row.aubc_low:+.1f}, {100 * row.aubc_high:+.1f}]"
        assert found[row.dataset].startswith(f"{text} ")
    assert found.str.contains(UNDECIDED).any()
    assert list(table.index) == [claim.text for claim in CLAIMS if claim.text in table.index]
    few = claims_by_set(simulation.query("adapter == 'linear_probe'"))
    assert 0 < len(few) < len(table), "only those that can be tested"


def test_nothing_to_compare_says_so(simulation: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="strategy=badge"):
        against(simulation, "strategy", "badge")
    assert compare(simulation, "strategy", "badge") is None
    assert "Not shown: nothing here differs in strategy alone" in capsys.readouterr().out
    shown = compare(simulation[simulation["dataset"] == "digits"], "adapter", "linear_probe")
    assert shown is not None
    assert shown["over the budget"].str.fullmatch(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]").all()


def test_every_data_set_gets_its_figure_with_the_runs_in_it(simulation: pd.DataFrame, tmp_path: Path) -> None:
    show(plots.budget_curves, simulation, tmp_path / "sweep" / "curves")
    names = sorted(simulation["dataset"].unique())
    assert sorted(path.name for path in (tmp_path / "sweep").glob("*.png")) == [f"curves-{name}.png" for name in names]
    runs = sorted(simulation[simulation["dataset"] == "digits"]["run"].unique())
    with Image.open(tmp_path / "sweep" / "curves-digits.png") as image:
        stored = json.loads(image.text["palkit"]) if "palkit" in image.text else image.text
    assert all(run in str(stored) for run in runs)
    assert runs[0] in (tmp_path / "sweep" / "curves-digits.svg").read_text()
    assert not plt.get_fignums()


def test_a_figure_that_cannot_be_drawn_says_why(
    simulation: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = simulation[simulation["strategy"] == "random"]
    show(lambda rows: plots.critical_difference(ranking(rows)), one, tmp_path / "ranks", divided=False)
    assert "Not shown: ranks need 3 or more treatments" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_empty_table_reaches_no_figure(
    simulation: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(lambda rows: plots.picks_by_class(picks(rows)), simulation[:0], tmp_path / "picks")
    assert capsys.readouterr().out == "Not shown: no run of the sweep is of this kind.\n"
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="table of selections is empty"):
        selection_overlap(read_results(SIMULATION)[1][:0])


CONFIGURATIONS = {
    # (data set, adapter, balance) of each run; which are taken; what is said
    "all balanced": ([("a", "lora", "pcb")], [0], ["Shown: LoRA + PCB"]),
    "an adapter for each data set": (
        [("a", "bitfit", "none"), ("b", "linear_probe", "none"), ("b", "bitfit", "none")],
        [0, 1],
        ["Shown of a: BitFit, without class balance", "Shown of b: linear probe, without class balance"],
    ),
    "a balance for each data set": (
        [("a", "lora", "pcb"), ("b", "lora", "none"), ("b", "lora", "pcb")],
        [0, 1],
        ["Shown of a: LoRA + PCB", "Shown of b: LoRA, without class balance"],
    ),
    "the last adapter always balanced": (
        [("a", "lora", "pcb"), ("a", "bitfit", "none")],
        [1],
        ["Shown: BitFit, without class balance"],
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_data_set_is_left_out_of_what_one_configuration_shows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows, taken, lines = CONFIGURATIONS[name]
    table = pd.DataFrame(rows, columns=["dataset", "adapter", "balance"]).assign(backbone="vit")
    table["run"] = [str(number) for number in table.index]
    assert one_configuration(table) == {str(number) for number in taken}
    assert capsys.readouterr().out.splitlines() == lines


def test_sections_speak_to_readers(simulation: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    """What 04 prints where one round, one strategy or two are too few: no name of a function, no shape of an array."""
    two = simulation[simulation["strategy"] != "random"]
    first = two[two["round"] == 0]
    attempt(lambda: ranking(two[two["adapter"] == "linear_probe"]))
    attempt(lambda: areas(first, Path("none")))
    attempt(lambda: plots.overlaps(pd.DataFrame(1.0, index=["badge"], columns=["badge"])))
    shown = capsys.readouterr().out
    for needed in ("3 or more treatments", "two or more rounds", "two or more configurations"):
        assert needed in shown
    assert shown.count("Not shown") == 3
    assert not any(sign in shown for sign in ("`", "shape", "(1,)"))


def test_planned_runs_that_are_missing_are_counted_with_the_reason(
    tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of images that were replaced since, of a data set that is gone, and of seeds that nobody started."""
    folders = [tmp_path / name for name in ("kept", "replaced", "gone")]
    for number, images in enumerate(folders):
        for label in "ab":
            (images / label).mkdir(parents=True)
            for i in range(12):
                pixels = np.random.default_rng([number, ord(label), i]).integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(images / label / f"{i:02}.png")
    base = {**tiny_run, "adapter": "linear_probe", "pool_size": None, "rounds": 1, "batch_size": 4}
    grid = {"dataset": [str(images) for images in folders], "seed": [0]}
    path = tmp_path / "my sweep.yaml"
    path.write_text(json.dumps({"base": base, "grid": grid}))
    run_sweep(load_sweep(path), DispatchConfig(jobs=1, notebooks=False), console=Console(quiet=True))
    write_results(load_sweep(path))
    assert missing(str(path)) == []

    shutil.copy(folders[1] / "a" / "00.png", folders[1] / "b" / "03.png")
    shutil.rmtree(folders[2])
    path.write_text(json.dumps({"base": base, "grid": grid | {"seed": [0, 1]}}))
    write_results(load_sweep(path))
    lines = missing(str(path))
    assert lines[0].startswith("5 of 6 planned runs are missing.")
    assert f"`palkit sweep '{path}'`" in lines[0]
    text = "\n".join(lines)
    assert "Missing: 1. Computed before, but not for the data and weights as they are now" in text
    assert "Missing: 2. Not begun." in text
    assert "Missing: 2. DataError" in text
    assert str(folders[2]) in text


def test_overview_savings_and_picks(simulation: pd.DataFrame) -> None:
    assert overview(simulation)["runs"].tolist() == [60] * 4
    digits = simulation[simulation["dataset"] == "digits"]
    reference = savings(digits).query("adapter == 'linear_probe' and strategy == 'random' and balance == 'none'")
    assert reference["saving"].tolist() == [1.0]
    selections = read_results(SIMULATION)[1].query("dataset == 'digits_lt'")
    table = picks(selections)
    assert table.sum(axis=1).tolist() == pytest.approx([70] * 3)
    assert table.columns.tolist() == [str(digit) for digit in range(10)]


def test_grades_have_a_kappa_without_being_asked(simulation: pd.DataFrame) -> None:
    plain = study.last_rounds(simulation, ["accuracy", "nll"])
    assert list(plain) == ["accuracy", "nll"]
    graded = study.last_rounds(simulation.replace({"dataset": {"digits": "idrid"}}), ["accuracy", "nll"])
    assert list(graded) == ["accuracy", "nll", "kappa"]
    assert graded["kappa"].notna().tolist() == [name == "idrid" for name in graded.index.get_level_values("dataset")]
    assert list(study.last_rounds(simulation.assign(dataset="aptos2019"), ["kappa"])) == ["kappa"]


def test_parts_of_several_backbones() -> None:
    table = pd.DataFrame({"dataset": ["a", "a", "b"], "backbone": ["x", "y", "x"], "run": [1, 2, 3]})
    assert {name: rows["run"].tolist() for name, rows in parts(table).items()} == {
        "a, x": [1],
        "a, y": [2],
        "b, x": [3],
    }
    assert list(parts(table[:1])) == [""]


def test_configurations_that_differ_in_other_fields_get_names(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    values = {**tiny_run, "adapter": {"name": "linear_probe"}, "rounds": 2, "strategy": "margin"}
    names = {}
    for sweep in (
        Sweep("fields", values, {"initial": ["random", "centroid"], "training.head_epochs": [1, 2], "seed": [0, 1]}),
        Sweep("variants", values, variants={"linear_probe, short": {"training.epochs": 1}, "long": {}}),
        Sweep("plain", values, {"strategy": ["random", "entropy"]}),
    ):
        run_sweep(sweep, DispatchConfig(jobs=1, notebooks=False), console=Console(quiet=True))
        rounds, selections, recalls = read_results(write_results(sweep))
        assert set(selections["adapter"]) == set(recalls["adapter"]) == set(rounds["adapter"])
        names[sweep.name] = sorted(rounds["adapter"].unique())
    assert names["fields"] == [f"linear_probe, {initial}, {n}" for initial in ("centroid", "random") for n in (1, 2)]
    assert names["variants"] == ["linear_probe, long", "linear_probe, short"]
    assert names["plain"] == ["linear_probe"]
    stored = duckdb.sql(f"select count(distinct run) from '{tmp_path}/runs/studies/fields/rounds.parquet'").fetchall()
    assert stored == [(8,)], "one table that other programs read"


def test_names_leave_out_what_a_run_does_not_have_unless_that_tells_two_apart() -> None:
    runs = pd.DataFrame(
        {"run": ["a", "b", "c"], "dataset": "toy", "backbone": "vit", "adapter": "lora", "strategy": "random",
         "balance": "none", "seed": 0, "adapter.rank": [4, 8, None], "training.adapter_lr": [None, None, 8.0]},
    )  # fmt: skip
    assert named(runs.head(2))["adapter"].tolist() == ["lora, 4.0", "lora, 8.0"]
    assert named(runs)["adapter"].tolist() == ["lora, 4.0, nan", "lora, 8.0, nan", "lora, nan, 8.0"], "8.0 would be two"


def test_options_are_part_of_the_name_of_a_strategy() -> None:
    """And only what they do not tell is of the adapter's."""
    runs = pd.DataFrame(
        {"run": ["a", "b", "c", "d"], "dataset": "toy", "backbone": "vit", "adapter": "lora", "balance": "none",
         "strategy": ["random", "featdist", "featdist", "featdist"], "seed": 0,
         "strategy_options.reference": [None, None, "class_mean", "class_mean"], "adapter.rank": [4, 4, 4, 8]},
    )  # fmt: skip
    plain = named(runs.head(3))
    assert plain["strategy"].tolist() == ["random", "featdist", "featdist, reference=class_mean"]
    assert plain["adapter"].tolist() == ["lora"] * 3
    assert named(runs)["adapter"].tolist() == ["lora, 4", "lora, 4", "lora, 4", "lora, 8"]


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no results in .*nothing\. Compute them first: `palkit sweep"):
        read_results(tmp_path / "nothing")


def test_conclusions_are_beside_their_sweep(tmp_path: Path) -> None:
    assert "Coverage pays" in conclusion("default").data
    own = tmp_path / "my.sweep.yml"
    own.write_text("grid: {seed: [0]}")
    assert "Nobody has written" in conclusion(str(own)).data
    (tmp_path / "my.sweep.md").write_text("Margin pays.")
    assert conclusion(str(own)).data == "Margin pays."
    profile = str(REPOSITORY / "notebooks" / "sweeps" / "default.yaml")
    assert conclusion(profile).data == f"Written about the committed reference:\n\n{conclusion('default').data}"
    with pytest.raises(ConfigError, match="unknown sweep 'no such sweep'"):
        conclusion("no such sweep")


def test_notebooks_are_executed_once_and_again_when_something_changes(
    tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Console(quiet=True)
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({"base": {**tiny_run, "adapter": {"name": "linear_probe"}, "rounds": 1}}))
    run_sweep(load_sweep(str(file)), DispatchConfig(jobs=1, notebooks=False), console=quiet)
    begun = []

    def note(
        source: Path, target: Path, values: dict[str, Any], console: Console, **options: Any
    ) -> execution.Executed:
        begun.append(target.stem)
        target.write_text(f"executed {len(begun)} times")  # never the same bytes
        return execution.Executed(target, None)

    monkeypatch.setattr(execution, "_execute", note)

    def executed() -> list[str]:
        begun.clear()
        done = [one.path.stem for one in execution.execute(str(file), device="cpu", console=quiet)]
        assert done == ["01_data", "02_backbone", "04_study"]
        return list(begun)

    assert executed() == ["01_data", "02_backbone", "04_study"]
    assert executed() == []
    (load_sweep(str(file)).studies / "02_backbone.ipynb").write_text("damaged")
    assert executed() == ["02_backbone"]
    file.with_suffix(".md").write_text("A conclusion.")
    assert executed() == ["01_data", "02_backbone", "04_study"]
    assert executed() == []

    def meanwhile(*arguments: Any, **options: Any) -> execution.Executed:
        file.with_suffix(".md").write_text(f"Written after {len(begun)} notebooks.")
        return note(*arguments, **options)

    file.with_suffix(".md").unlink()
    monkeypatch.setattr(execution, "_execute", meanwhile)
    assert executed() == ["01_data", "02_backbone", "04_study"]
    monkeypatch.setattr(execution, "_execute", note)
    assert executed() == ["01_data", "02_backbone", "04_study"], "what was written meanwhile is not in them"
    assert executed() == []


@pytest.mark.campaign
def test_quick_profile_from_nothing_to_report(capsys: pytest.CaptureFixture[str]) -> None:
    """What CI runs of the main job: two commands, every notebook, one page; the checkout stays as it is."""
    before = {path: path.stat().st_mtime_ns for path in (REPOSITORY / "figures").rglob("*")}
    assert main(["sweep", "quick"]) == 0
    assert main(["study", "quick"]) == 0
    lines = capsys.readouterr().err.replace("\n  ", " ").splitlines()
    page = Path(next(line for line in lines if line.startswith("report:")).split(maxsplit=1)[1])
    text = page.read_text(encoding="utf-8")
    assert "12 runs" in text or ">12<" in text
    assert "Budget curves" in text
    assert "not testable here" in text
    assert text.count("data:image/png;base64") >= 8
    assert re.search(r"(Reproduced|Reproduced within 0\.5 points|Did not reproduce): \d+ of 12 runs bought", text)
    assert {path: path.stat().st_mtime_ns for path in (REPOSITORY / "figures").rglob("*")} == before
