"""Did it reproduce? Verdicts on small tables that differ by hand, the committed reference, and what writes where."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from scipy import stats

from palkit.cli import main
from palkit.errors import ConfigError, DataError
from palkit.experiments import results
from palkit.experiments.notebooks import stop_warm_kernel
from palkit.experiments.sweep import load_sweep
from palkit.storage.files import REPOSITORY
from palkit.storage.formats import write_table
from palkit.studies import execution, study
from palkit.studies.reproduce import RULE, TOLERANCE, Reproduction, compare
from palkit.studies.statistics import area_under_curve

DEFAULT = REPOSITORY / "figures" / "default"
Tables = tuple[pd.DataFrame, pd.DataFrame]


@pytest.fixture
def default() -> Tables:
    """Rounds and selections of the committed default sweep."""
    return pd.read_parquet(DEFAULT / "rounds.parquet"), pd.read_parquet(DEFAULT / "selections.parquet")


def stored(tables: Tables, folder: Path) -> Path:
    for name, table in zip(("rounds", "selections"), tables, strict=True):
        write_table(table, folder / f"{name}.parquet")
    return folder


def runs_of(rounds: pd.DataFrame, adapter: str, strategy: str) -> list[str]:
    chosen = rounds[(rounds["adapter"] == adapter) & (rounds["strategy"] == strategy)]
    return chosen.sort_values("seed")["run"].unique().tolist()


def row_of(found: Reproduction, adapter: str, strategy: str) -> pd.Series:
    (at,) = np.flatnonzero((found.table["adapter"] == adapter) & (found.table["strategy"] == strategy))
    return found.table.iloc[at]


def test_the_reference_reproduces_itself_in_any_order(default: Tables, tmp_path: Path) -> None:
    """Also with the images of each round, and all rows, in another order."""
    rounds, bought = (table.sample(frac=1, random_state=0) for table in default)
    found = compare(stored((rounds, bought), tmp_path), DEFAULT)
    runs, count = rounds["run"].nunique(), len(rounds)
    assert found.conclusion.startswith(f"Reproduced: {runs} of {runs} runs bought the same images in every round; ")
    assert f"{count} of {count} accuracies" in found.conclusion
    assert found.conclusion.endswith("no claim has another verdict.")
    assert not found.details
    assert found.table["first_apart"].isna().all()
    assert np.abs(found.table[["difference", "difference_low", "difference_high"]]).to_numpy().max() < 1e-12


def test_areas_and_intervals_are_those_of_the_definition(default: Tables, tmp_path: Path) -> None:
    rounds, bought = default
    moved = rounds.copy()
    moved["accuracy"] += np.random.default_rng(0).normal(0, 0.02, len(moved))
    found = compare(stored((moved, bought), tmp_path), DEFAULT)
    row = row_of(found, "lora", "featdist")
    areas = {}
    for name, table in (("here", moved), ("there", rounds)):
        runs = [table[table["run"] == run].sort_values("round") for run in runs_of(rounds, "lora", "featdist")]
        areas[name] = np.array([area_under_curve(run["labels"], run["accuracy"]) for run in runs])
    assert row["area"] == pytest.approx(areas["here"].mean())
    for name, values in (("reference", areas["there"]), ("difference", areas["here"] - areas["there"])):
        low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
        measured = row[[name, f"{name}_low", f"{name}_high"]].astype(float).tolist()
        assert measured == pytest.approx([values.mean(), low, high])
    within = (moved["accuracy"] - rounds["accuracy"]).abs() <= TOLERANCE
    assert found.table["rounds_within"].sum() == within.sum() < len(rounds)


def test_other_images_are_counted_by_run_and_first_round(default: Tables, tmp_path: Path) -> None:
    """One image of another name in round 3 of a seed, and a pair of another seed bought in exchanged rounds 2 and 5."""
    rounds, bought = default
    first, second, *_ = runs_of(rounds, "linear_probe", "badge")
    at = bought.index[(bought["run"] == first) & (bought["round"] == 3)][0]
    bought.loc[at, "id"] = "train-none"
    early, late = (bought.index[(bought["run"] == second) & (bought["round"] == number)][0] for number in (2, 5))
    bought.loc[[early, late], "id"] = bought.loc[[late, early], "id"].to_numpy()
    found = compare(stored((rounds, bought), tmp_path), DEFAULT)
    row, others = row_of(found, "linear_probe", "badge"), found.table["strategy"] != "badge"
    assert (row["runs"] - row["same_images"], row["first_apart"]) == (2, 2)
    assert found.table.loc[others, "first_apart"].isna().all()
    runs = rounds["run"].nunique()
    assert found.conclusion.startswith(
        f"Reproduced within 0.5 points: {runs - 2} of {runs} runs bought the same images"
    )
    assert "the first to part does so in round 2" in found.conclusion


def test_an_area_or_a_verdict_that_moves_does_not_reproduce(default: Tables, tmp_path: Path) -> None:
    """LoRA with random choice gains 9 points in every run: it now beats the probe, whatever it did before."""
    rounds, bought = default
    chosen = rounds["run"].isin(runs_of(rounds, "lora", "random"))
    there = rounds.assign(accuracy=rounds["accuracy"].where(~chosen, rounds["accuracy"] - 0.2))
    here = rounds.assign(accuracy=rounds["accuracy"].where(~chosen, rounds["accuracy"] + 0.2))
    folders = [stored((table, bought), tmp_path / name) for name, table in (("here", here), ("there", there))]
    found = compare(*folders)
    assert found.conclusion.startswith("Did not reproduce: ")
    assert "most that of LoRA, random" in found.conclusion
    assert "have another verdict." in found.conclusion
    (line,) = [line for line in found.details if "LoRA beats a linear probe with random selection" in line]
    assert " Here reproduced: " in line

    small = rounds.assign(accuracy=rounds["accuracy"].where(~chosen, rounds["accuracy"] + TOLERANCE * 1.1))
    found = compare(stored((small, bought), tmp_path / "small"), DEFAULT)
    assert found.conclusion.startswith("Did not reproduce: ")
    assert "1 of 10 mean areas moved by more than that" in found.conclusion


def test_what_one_side_lacks_is_named_and_the_rest_is_compared(default: Tables, tmp_path: Path) -> None:
    rounds, _ = default
    gone = runs_of(rounds, "lora", "featdist")[1:]
    here = tuple(table[~table["run"].isin(gone)] for table in default)
    found = compare(stored(here, tmp_path / "here"), DEFAULT)
    runs = rounds["run"].nunique()
    assert found.conclusion.startswith(f"Reproduced so far: {runs - len(gone)} of {runs - len(gone)} runs")
    assert f"{len(gone)} of the reference's {runs} runs are missing here." in found.conclusion
    (line,) = found.details
    seeds = rounds[rounds["run"].isin(gone)].sort_values("seed")["seed"].unique()
    names = ", ".join(map(str, seeds))
    assert line == f"Missing here, so not compared: fashion_mnist, LoRA, featdist, seeds {names}."
    assert row_of(found, "lora", "featdist")["runs"] == 1
    assert np.isnan(row_of(found, "lora", "featdist")["difference_low"]), "one seed has no interval"
    assert "nan" not in "\n".join(found.lines())

    more = compare(DEFAULT, tmp_path / "here")
    assert more.conclusion.startswith("Reproduced: ")
    assert more.details[0].startswith("Not in the reference, so not compared: fashion_mnist, LoRA, featdist")


def test_runs_of_another_config_are_not_compared(default: Tables, tmp_path: Path) -> None:
    other = tuple(table.assign(run="x" + table["run"]) for table in default)
    found = compare(stored(other, tmp_path), DEFAULT)
    assert found.lines() == [found.conclusion]
    assert found.conclusion.startswith(f"Nothing to compare: none of the {default[0]['run'].nunique()} runs")
    assert "the grid was edited" in found.conclusion
    with pytest.raises(DataError, match=r"there are no results in .*nothing"):
        compare(tmp_path / "nothing", DEFAULT)


def test_runs_of_one_round_and_variants_are_compared(default: Tables, tmp_path: Path) -> None:
    """A single round has no area: its accuracy stands for it. Variants are configurations of their own."""
    search = REPOSITORY / "figures" / "search"
    rounds = pd.read_parquet(search / "rounds.parquet")
    found = compare(search, search)
    assert found.conclusion.startswith("Reproduced: ")
    assert len(found.table) == rounds["variant"].nunique()
    first = rounds[rounds["variant"] == "linear_probe"]
    assert row_of(found, "linear_probe", "random")["area"] == pytest.approx(first["accuracy"].mean())


@pytest.mark.parametrize("fault", ["rounds end early", "other numbers", "counts doubled", "nan", "all nan"])
def test_rounds_and_numbers_that_are_missing_or_other_are_no_reproduction(
    default: Tables, tmp_path: Path, fault: str
) -> None:
    rounds, bought = default
    one = rounds["run"] == runs_of(rounds, "lora", "random")[0]
    some = one if fault != "all nan" else pd.Series(True, rounds.index)
    if fault == "rounds end early":
        rounds = rounds[~one | (rounds["round"] < 3)]
    elif fault == "other numbers":
        rounds = rounds.assign(round=rounds["round"] + 10 * one)
    elif fault == "counts doubled":
        rounds = rounds.assign(labels=rounds["labels"] * (1 + one))
    else:
        rounds = rounds.assign(accuracy=rounds["accuracy"].where(~some))
    found = compare(stored((rounds, bought), tmp_path), DEFAULT)
    assert found.conclusion.startswith("Did not reproduce: ")
    count = 0 if fault == "all nan" else 99
    assert f" {count} of 100 runs bought the same images" in found.conclusion
    assert ("no claim can be judged" in found.conclusion) == ("nan" in fault)
    assert "for rounds or numbers are missing or other" in found.conclusion
    assert found.lines()
    assert found.html()


def test_text_and_page_say_the_same_and_names_are_text(default: Tables, tmp_path: Path) -> None:
    evil = tuple(table.assign(dataset="<b>&", strategy="<script>") for table in default)
    rounds, bought = (table[table["run"].isin(runs_of(default[0], "lora", "random"))] for table in evil)
    found = compare(stored((rounds, bought), tmp_path / "here"), stored(evil, tmp_path / "there"))
    page = found.html()
    assert "<script" not in page
    assert "<b>&" not in page
    assert "&lt;script&gt;" in page
    assert found.lines()[0] == found.conclusion
    assert found.lines()[-1] == RULE
    found.write(tmp_path)
    assert len(pd.read_csv(tmp_path / "reproduction.csv")) == len(found.table) == 1
    Reproduction("Nothing to compare with.").write(tmp_path)
    assert not (tmp_path / "reproduction.csv").exists(), "an old table would speak of other runs"


def test_intervals_of_areas_stay_within_0_and_100_per_cent(default: Tables, tmp_path: Path) -> None:
    """Two seeds 0.2 apart have a t interval of 254 points; that of their difference is shown as it is."""
    rounds, bought = (table[table["run"].isin(runs_of(default[0], "lora", "random")[:2])] for table in default)
    first = rounds["run"] == rounds["run"].iloc[0]
    there = rounds.assign(accuracy=np.where(first, 0.9, 0.7))
    here = there.assign(accuracy=np.where(first, 0.9, 0.9))
    found = compare(*(stored((table, bought), tmp_path / name) for name, table in (("here", here), ("there", there))))
    assert found.readable()[["reference", "difference"]].iloc[0].tolist() == [
        "80.0 [0.0, 100.0]", "+10.0 [-117.1, +137.1]",
    ]  # fmt: skip


# --- who writes where


@pytest.fixture
def profile(tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A profile of its own, with folders of sweeps, figures and notebooks in which it is the only one."""
    sweeps, notebooks = tmp_path / "checkout" / "notebooks" / "sweeps", tmp_path / "checkout" / "notebooks"
    sweeps.mkdir(parents=True)
    base = {**tiny_run, "adapter": "linear_probe", "dataset": "digits", "pool_size": 40, "rounds": 2, "batch_size": 10}
    base.pop("strategy", None)
    content = {"base": base, "grid": {"strategy": ["random", "margin"], "seed": [0, 1]}}
    (sweeps / "tiny.yaml").write_text(yaml.safe_dump(content))
    cells = {
        "01_data": ["datasets = []", "print(datasets)"],
        "02_backbone": ["datasets = backbones = []", "print(datasets)"],
        "04_study": [
            "sweep = 'tiny'",
            "from pathlib import Path\nfrom palkit.experiments import results\n"
            "from palkit.studies import execution, plots, study\n"
            f"results.FIGURES, execution.FIGURES = [Path({str(tmp_path / 'checkout' / 'figures')!r})] * 2\n"
            f"execution.SWEEPS = results.SWEEPS = Path({str(sweeps)!r})\n"
            f"import palkit.experiments.sweep\npalkit.experiments.sweep.SWEEPS = Path({str(sweeps)!r})\n"
            "folder = study.figures(sweep)\nrounds, *_ = results.read_results(folder)\n"
            "study.show(plots.budget_curves, rounds, folder / 'budget_curves')",
        ],
    }
    for stem, sources in cells.items():
        written = [nbformat.v4.new_code_cell(source) for source in sources]
        written[0].metadata["tags"] = ["parameters"]
        metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=written, metadata=metadata), notebooks / f"{stem}.ipynb")
    for module in (results, execution):
        monkeypatch.setattr(module, "FIGURES", tmp_path / "checkout" / "figures")
    for module in ("palkit.experiments.sweep", "palkit.studies.execution"):
        monkeypatch.setattr(f"{module}.SWEEPS", sweeps)
    monkeypatch.setattr(execution, "NOTEBOOKS", notebooks)
    yield "tiny"
    stop_warm_kernel()  # in which 04 has changed where sweeps are


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sweep_and_study_leave_the_checkout_alone_and_the_reference_is_renewed_on_demand(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout, own = tmp_path / "checkout", tmp_path / "runs" / "studies" / profile
    before = content(checkout)
    assert main(["sweep", profile, "--no-notebooks", "--jobs", "1"]) == 0
    assert main(["study", profile]) == 0, capsys.readouterr().err
    assert "Nothing to compare with: the sweep tiny has no committed reference" in capsys.readouterr().err
    assert content(checkout) == before
    assert "Did it reproduce?" in (own / "report.html").read_text()
    assert (own / "budget_curves.png").exists()

    assert main(["reference", profile]) == 0, capsys.readouterr().err
    reference = content(checkout / "figures" / profile)
    tables = {"rounds.parquet", "selections.parquet", "recalls.parquet", "reliability.parquet"}
    assert set(reference) == tables | {"budget_curves.png", "budget_curves.svg"}
    shown = nbformat.read(checkout / "notebooks" / "04_study.ipynb", as_version=4).cells[1].outputs[0].text
    assert shown == "Results: figures/tiny, the committed reference\n", "in the committed notebook"

    before = content(checkout)
    capsys.readouterr()
    assert main(["study", profile]) == 0
    assert "Reproduced: 4 of 4 runs bought the same images" in capsys.readouterr().err
    assert "Reproduced: 4 of 4" in (own / "report.html").read_text(), "written again, though the notebook is the same"
    assert main(["reproduce", profile]) == 0
    assert "difference" in capsys.readouterr().err
    assert content(checkout) == before

    for table in ("rounds", "selections"):  # what differs is no error
        path = checkout / "figures" / profile / f"{table}.parquet"
        other = pd.read_parquet(path)
        write_table(other.assign(**{"accuracy": 0.0} if table == "rounds" else {"id": "none"}), path)
    assert main(["study", profile]) == 0
    assert main(["reproduce", profile]) == 0
    assert capsys.readouterr().err.count("Did not reproduce: 0 of 4 runs") == 2
    elsewhere = shutil.copytree(own, tmp_path / "elsewhere")
    assert main(["reproduce", profile, "--results", str(own), "--reference", str(elsewhere)]) == 0
    assert "Reproduced: 4 of 4" in capsys.readouterr().err


def test_the_reference_is_not_renewed_from_an_incomplete_sweep(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", profile, "--no-notebooks", "--jobs", "1"]) == 0
    file = execution.SWEEPS / f"{profile}.yaml"
    file.write_text(file.read_text().replace("- 1", "- 1\n  - 2"))
    before = content(tmp_path / "checkout")
    capsys.readouterr()
    assert main(["reference", profile]) == 1
    assert "figures/tiny stays as it was. 2 of 6 planned runs are missing." in capsys.readouterr().err
    assert content(tmp_path / "checkout") == before
    with pytest.raises(ConfigError, match="has no reference"):
        list(execution.renew_reference(str(own_file(tmp_path)), device="cpu", console=Console(quiet=True)))


def own_file(folder: Path) -> Path:
    path = folder / "mine.yaml"
    path.write_text("grid: {seed: [0]}")
    return path


def test_a_name_is_the_reference_and_a_file_is_yours(
    default: Tables, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether or not there are results of yours; what is drawn over the reference stays out of the checkout."""
    mine = stored(default, tmp_path / "runs" / "studies" / "default")
    (mine / "missing.txt").write_text("5 of 36 planned runs are missing.")
    assert study.missing("default") == [], "in the reference"
    folder = study.figures("default")
    assert capsys.readouterr().out == "Results: figures/default, the committed reference\n"
    assert folder.is_relative_to(tmp_path)
    assert content(folder) == {path.name: path.read_bytes() for path in DEFAULT.glob("*.parquet")}
    own = str(REPOSITORY / "notebooks" / "sweeps" / "default.yaml")
    assert study.missing(own) == ["5 of 36 planned runs are missing."]
    assert study.figures(own) == mine
    assert capsys.readouterr().out == f"Results: {mine}\n"
    assert study.figures(str(own_file(tmp_path))).parent == mine.parent
    assert study.figures("paper") == mine.with_name("paper"), "has no reference"


def test_own_sweeps_have_nothing_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = execution.reproduction(str(own_file(tmp_path)))
    assert found.lines() == [found.conclusion]
    assert found.conclusion.startswith("Nothing to compare with: the sweep mine has no committed reference")
    assert load_sweep("default").studies == tmp_path / "runs" / "studies" / "default"
    before = content(DEFAULT)
    monkeypatch.chdir(REPOSITORY)
    assert execution.reproduction("default", Path("figures/default")).conclusion.startswith("Reproduced: ")
    assert content(DEFAULT) == before, "a reference is not written to"
