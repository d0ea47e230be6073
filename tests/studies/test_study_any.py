"""A sweep over any data set, then its study: what a person with images of their own gets, kind by kind."""

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from palkit.cli import main
from palkit.data import load_dataset
from palkit.errors import ConfigError
from palkit.experiments.notebooks import execute_notebook, stop_warm_kernel
from palkit.experiments.sweep import load_sweep
from palkit.models.backbones import BackboneConfig
from palkit.storage.files import REPOSITORY
from palkit.studies import execution
from palkit.studies.plots.style import PlainFigure
from palkit.studies.readouts import Readout, map_2d, readout
from palkit.studies.study import figures, show

# Names that mean something to matplotlib, LaTeX, HTML, markdown or the shell.
ODD = ("a_b$", "$x^2$", "<x>", "_hidden", "100 % & #", "\\frac{1}", "中文", "عربي", "*md* `c`", "x" * 80)


@pytest.fixture(scope="module", autouse=True)
def _one_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One kernel and one cache for all studies: they take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    stop_warm_kernel()


def write_image(path: Path, shade: int, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([seed, shade]).integers(-30, 30, (16, 16))
    Image.fromarray(np.clip(shade + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def folder(root: Path, counts: dict[str, int]) -> Path:
    """FOLDER/CLASS/IMAGE, each class with its own shade."""
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / name / f"{i:03}.png", 20 + 215 * number // len(counts), i)
    return root


def manifest(root: Path, *, grouped: bool) -> Path:
    """24 images of each of two classes; grouped, two of each patient."""
    root.mkdir()
    with open(root / "images.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", *(["group"] if grouped else [])])
        for number, label in enumerate(("benign", "malignant")):
            for i in range(24):
                path = write_image(root / f"{label}{i}.png", 60 + 120 * number, i)
                rows.writerow([path.name, label, *([f"{label} patient {i // 2}"] if grouped else [])])
    return root / "images.csv"


def patients(root: Path) -> str:
    """A grouped manifest, of a name that means something to LaTeX."""
    return str(manifest(root / "patients", grouped=True).rename(root / "patients" / "$x_.csv"))


def sweep_file(path: Path, tiny: dict[str, Any], grid: dict[str, list], **more: Any) -> Path:
    """A sweep of two rounds with the tiny network."""
    base = {**tiny, "pool_size": None, "rounds": 2, "evaluate_on": "test", **more.pop("base", {})}
    base = {key: value for key, value in base.items() if key not in grid}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"base": base, "grid": grid, **more}, allow_unicode=True), encoding="utf-8")
    return path


def studied(path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Folder of the study of a sweep file, after both commands; nothing failed, and what is printed is there."""
    capsys.readouterr()
    assert main(["sweep", str(path), "--no-notebooks", "--jobs", "1"]) == 0, capsys.readouterr().err
    before = set((REPOSITORY / "figures").iterdir())
    status = main(["study", str(path)])
    shown = capsys.readouterr().err
    assert status == 0, shown
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if line.startswith(("figures:", "report:")))
    page = Path(lines["report:"])
    assert Path(lines["figures:"]) == page.parent
    assert set((REPOSITORY / "figures").iterdir()) == before, "an own study leaves the checkout alone"
    assert (page.parent / "rounds.parquet").is_file()
    text = page.read_text(encoding="utf-8")
    assert "Budget curves" in text
    assert "Traceback" not in text
    return page.parent


@pytest.fixture
def execute_only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Notebooks of a study that are executed; the others are only copied."""

    def choose(*stems: str) -> None:
        def execute(source: Path, target: Path, *values: Any, **options: Any) -> None:
            if source.stem in stems:
                execute_notebook(source, target, *values, **options)
            else:
                shutil.copy(source, target)

        monkeypatch.setattr(execution, "execute_notebook", execute)

    return choose


def outputs(study: Path, notebook: str) -> str:
    """All text that an executed notebook shows."""
    cells = nbformat.read(study / f"{notebook}.ipynb", as_version=4).cells
    shown = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.get("text", "") + str(output.get("data", {}).get("text/html", "")) for output in shown]
    return "\n".join(text + str(o.get("data", {}).get("text/plain", "")) for text, o in zip(texts, shown, strict=True))


KINDS = {
    "manifest": lambda root: str(manifest(root, grouped=False)),
    "grouped manifest": lambda root: str(manifest(root, grouped=True)),
    "two classes of 30": lambda root: str(folder(root, {"a": 30, "b": 30})),
    "ten classes of 30, odd names, and one of one image": lambda root: str(
        folder(root, dict.fromkeys(ODD, 30) | {"one": 1})
    ),
    "a class of one image": lambda root: str(folder(root, {"many": 30, "some": 30, "one": 1})),
    "100 classes of 4": lambda root: str(folder(root, {f"kind {i:02}": 4 for i in range(100)})),
    "digits": lambda root: "digits",
}


@pytest.mark.campaign  # what is odd in them comes together in the next one
@pytest.mark.parametrize("kind", KINDS)
def test_study_of_any_data_set(
    kind: str, tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = KINDS[kind](tmp_path / "images")
    base = {"dataset": dataset, "adapter": "linear_probe", "batch_size": 10}
    study = studied(sweep_file(tmp_path / "my.yaml", tiny_run, {"strategy": ["random", "margin"]}, base=base), capsys)
    for notebook in ("01_data", "02_backbone", "04_study"):
        assert "fashion" not in outputs(study, notebook).lower()
    assert dataset in outputs(study, "01_data")
    assert f"{dataset}, test_vit, 32 px, 4 blocks" in outputs(study, "02_backbone"), "the sweep's own backbone"


@pytest.mark.campaign  # the next one has two data sets and two backbones, too
@pytest.mark.parametrize("count", [2, 3])
def test_several_data_sets_backbones_and_variants_at_once(
    count: int, tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named only in the grid and in variants; two folders are called alike, one name is long.

    One has classes of odd names and a single image of another class, the third is a manifest with patients.
    """
    liver = str(folder(tmp_path / "liver/images", dict.fromkeys(ODD, 12) | {"one": 1}))
    skin = str(folder(tmp_path / f"{'s' * 200}kin/images", {"a": 24, "b": 24}))
    datasets = [liver, skin, patients(tmp_path)][:count]
    grid = {"dataset": datasets, "strategy": ["random", "margin"]}
    variants = {"_plain $x$": {}, "other <b>": {"training.label_smoothing": 0.1}}
    base = {"adapter": "linear_probe", "pool_size": 28, "batch_size": 12, "training": {"head_epochs": 20}}
    path = sweep_file(tmp_path / "several.yml", tiny_run, grid, variants=variants, base=base)
    study = studied(path, capsys)
    for name in datasets:
        assert name in outputs(study, "01_data")
        assert f"{name}, test_vit, 32 px, 4 blocks" in outputs(study, "02_backbone"), "the sweep's own backbone"
    assert not any("fashion" in outputs(study, notebook).lower() for notebook in ("01_data", "02_backbone", "04_study"))
    curves = sorted(path.name for path in study.glob("budget_curves*.png"))
    assert len(curves) == count
    named = ["budget_curves-liver-images.png", "budget_curves-x_.csv.png"]
    assert set(named[: count - 1]) < set(curves)
    shown = outputs(study, "04_study")
    assert "linear probe, _plain $x$, margin" in shown
    assert "other &lt;b&gt;" in shown


@pytest.mark.parametrize("missing", ["rounds", pytest.param("random", marks=pytest.mark.campaign)])
def test_sections_that_do_not_apply_say_why(
    missing: str,
    tiny_run: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    execute_only: Callable[..., None],
) -> None:
    """One seed, one strategy that is not random, one adapter; or one round, which has no curve, of two backbones.

    That has a second data set, whose classes have odd names.
    """
    odd = str(folder(tmp_path / "images", dict.fromkeys(ODD, 6) | {"one": 1}))
    datasets = [patients(tmp_path), *([odd] if missing == "rounds" else [])]
    base = {
        "strategy": "margin" if missing == "random" else "random",
        "batch_size": 12,
        "rounds": 1 if missing == "rounds" else 2,
    }
    grid = {"dataset": datasets, **({"backbone.depth": [3, 4]} if missing == "rounds" else {})}
    execute_only("04_study", *(["01_data", "02_backbone"] if missing == "rounds" else []))
    study = studied(sweep_file(tmp_path / "one.yaml", tiny_run, grid, base=base), capsys)
    for name in datasets if missing == "rounds" else ():
        assert name in outputs(study, "01_data")
        for depth in (3, 4):
            assert f"{name}, test_vit, 32 px, {depth} blocks" in outputs(study, "02_backbone"), "the sweep's backbones"
        assert "fashion" not in outputs(study, "01_data").lower() + outputs(study, "02_backbone").lower()
    shown = outputs(study, "04_study")
    assert "Not shown: there is one strategy" in shown or missing == "rounds"
    assert "Not shown" in shown


def test_two_sweeps_of_one_name_keep_their_results_apart(
    tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one name but for the suffix, and of the name of a profile."""
    small = {"dataset": "digits", "pool_size": 40, "rounds": 1, "batch_size": 10, "adapter": "linear_probe"}
    files = {
        "random": sweep_file(tmp_path / "liver" / "quick.yaml", tiny_run, {"strategy": ["random"]}, base=small),
        "margin": sweep_file(tmp_path / "skin" / "quick.yaml", tiny_run, {"strategy": ["margin"]}, base=small),
        "entropy": sweep_file(tmp_path / "skin" / "quick.yml", tiny_run, {"strategy": ["entropy"]}, base=small),
    }
    for path in files.values():
        monkeypatch.chdir(path.parent)
        assert main(["sweep", path.name, "--no-notebooks", "--jobs", "1"]) == 0
    folders = {strategy: figures(str(path)) for strategy, path in files.items()}
    assert len(set(folders.values())) == 3
    for strategy, found in folders.items():
        assert str(found) in capsys.readouterr().err or strategy != "random"
        assert set(pd.read_parquet(found / "rounds.parquet")["strategy"]) == {strategy}
        assert found.parent == tmp_path / "runs" / "studies"
        assert found.name.startswith("quick-")
    profile = tmp_path / "runs" / "studies" / "quick"
    assert load_sweep("quick").studies == profile, "though a file of that name is here"
    assert figures(str(REPOSITORY / "notebooks" / "sweeps" / "quick.yaml")) == profile


def test_a_notebook_that_fails_is_named_and_the_others_are_executed(
    tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    sources = {
        "01_data": [
            "datasets = []",
            "print('before')",
            "raise ValueError('a cause\\nand more of it')",
            "print('after')",
        ],
        "02_backbone": ["datasets = backbones = []", "print('fine')"],
        "04_study": ["sweep = ''", "1 / 0", "never_made", "print('last words')"],  # the first cause is named
    }
    for name, cells in sources.items():
        written = [nbformat.v4.new_code_cell(source) for source in cells]
        written[0].metadata["tags"] = ["parameters"]
        metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=written, metadata=metadata), notebooks / f"{name}.ipynb")
    monkeypatch.setattr("palkit.studies.execution.NOTEBOOKS", notebooks)
    base = {"dataset": "digits", "pool_size": 40, "rounds": 1, "batch_size": 10, "adapter": "linear_probe"}
    path = str(sweep_file(tmp_path / "my.yaml", tiny_run, {"seed": [0]}, base=base))
    assert main(["sweep", path, "--no-notebooks", "--jobs", "1"]) == 0
    for _ in range(2):  # what failed is not taken for done
        capsys.readouterr()
        assert main(["study", path]) == 1
        shown = capsys.readouterr().err
        assert "failed: 01_data.ipynb, cell In [4]: ValueError: a cause\n" in shown
        assert "failed: 04_study.ipynb, cell In [3]: ZeroDivisionError: division by zero\n" in shown
        assert "Traceback" not in shown
        assert shown.count("notebook:") == 3
    study = figures(path)
    assert "after" in outputs(study, "01_data")
    assert "fine" in outputs(study, "02_backbone")
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "This section could not be made: ZeroDivisionError: division by zero" in page
    assert "last words" in page


def test_what_a_sweep_needs_and_is_gone_is_said(
    tiny_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file(tmp_path / "my.yaml", tiny_run, {"seed": [0]}, base={"dataset": str(tmp_path / "gone")})
    assert main(["study", str(path)]) == 1
    shown = capsys.readouterr().err
    assert "no complete run" in shown
    assert str(tmp_path / "gone") in shown


@pytest.mark.parametrize("name", ["mine", "mine.yaml", "mine.yml"])
def test_sweeps_that_do_not_exist_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown sweep 'mine'" if name == "mine" else r"no sweep file 'mine\.y"):
        figures(name)


def test_a_file_without_its_suffix_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text("grid: {seed: [0]}")
    with pytest.raises(ConfigError, match=r"give mine\.yml"):
        load_sweep("mine")


def test_names_of_figures_are_short_and_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a b", "a-b", "x" * 300 + "1", "x" * 300 + "2"]
    table = pd.DataFrame({"run": range(4), "dataset": names, "backbone": "vit"})
    show(lambda rows: PlainFigure(figsize=(1, 1)), table, tmp_path / "sweep" / "curves")
    files = [path.name for path in (tmp_path / "sweep").glob("*.png")]
    assert len(files) == 4
    assert max(map(len, files)) < 100


# --- readouts of frozen features


def readout_of(counts: dict[str, int], root: Path, config: BackboneConfig, images: int = 1000) -> Readout:
    return readout(load_dataset(str(folder(root, counts))), config, images=images, labels_per_class=6, draws=2)


def test_readouts_take_no_more_images_and_labels_than_there_are(tiny_config: BackboneConfig, tmp_path: Path) -> None:
    one = readout_of({"a": 10, "b": 10}, tmp_path, tiny_config)
    assert set(one.table["probe"]) == {"10-NN, 12 labels", "linear, 6 labels"}
    assert set(one.table["image_size"]) == {16, 32, 48}
    assert one.chosen().index[0][:3] == (32, 4, "mean")
    assert "Runs take 4 blocks and mean pooling at 32 px" in one.findings()


def test_findings_say_when_depths_tie_and_count_in_english(tiny_config: BackboneConfig, tmp_path: Path) -> None:
    """Accuracies are set, since which depths tie must be known."""
    one = readout_of({"a": 10, "b": 10}, tmp_path, tiny_config)
    flat = replace(one, table=one.table.assign(accuracy=1.0), draws=1, labels=1)
    flat = replace(flat, table=flat.table.replace({"probe": {one.few: flat.few}}))
    text = flat.findings()
    assert "is the same (1.000) after each of 6 blocks." in text
    assert "Nothing is better at that size." in text
    assert "1 draw of 1 label on " in text
    assert "best after" not in text
    assert "after 1 block:" in text
    some = flat.table.assign(accuracy=np.where(flat.table["depth"].isin([2, 3]), 1.0, 0.5))
    assert (
        "is best after 2 and 3 of 6 blocks (1.000); after the last it is at 0.500."
        in replace(flat, table=some).findings()
    )
    assert replace(one, config=replace(tiny_config, depth=1)).name.endswith(", 1 block, mean")


def test_readouts_use_the_weights_of_the_checkpoint(
    tiny_config: BackboneConfig, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    state = load_file(tiny_checkpoint)
    save_file({name: torch.roll(values, 1, 0) for name, values in state.items()}, tmp_path / "other.safetensors")
    other = replace(tiny_config, checkpoint=str(tmp_path / "other.safetensors"))
    tables = [readout_of({"a": 10, "b": 10}, tmp_path / "images", config) for config in (tiny_config, other)]
    assert not np.array_equal(tables[0].features, tables[1].features)
    assert not tables[0].table["accuracy"].equals(tables[1].table["accuracy"])


def test_every_class_is_among_the_images_of_a_folder_stored_class_by_class(
    tiny_config: BackboneConfig, tmp_path: Path
) -> None:
    one = readout_of(dict.fromkeys("abcd", 20), tmp_path, tiny_config, images=20)
    assert set(one.pool.labels[one.pool.rows("pool")]) == {0, 1, 2, 3}


def test_decisions_are_by_class_also_of_two_and_of_classes_without_a_label(
    tiny_config: BackboneConfig, tmp_path: Path
) -> None:
    """Class b has no image among those used; what stands in its column must not be that of class c."""
    one = readout_of({"a": 20, "b": 20, "c": 20}, tmp_path, tiny_config)
    labels = one.pool.labels.copy()
    labels[one.pool.rows("pool")] = np.where(labels[one.pool.rows("pool")] == 1, 2, labels[one.pool.rows("pool")])
    without = replace(one, pool=replace(one.pool, labels=labels))
    decisions = without.decisions()
    assert decisions.shape == (9, 3)
    assert np.isneginf(decisions[:, 1]).all()
    val = labels[one.pool.rows("val")]
    assert (decisions.argmax(axis=1)[val == 2] == 2).mean() > 0.5
    labels[one.pool.rows("pool")] = 2
    with pytest.raises(ConfigError, match="all 36 pool images that were used are of one class"):
        without.decisions()


@pytest.mark.parametrize("images", [2, 5, 40])
def test_maps_of_few_images(images: int) -> None:
    points = map_2d(np.random.default_rng(0).normal(size=(images, 8)).astype(np.float32))
    assert points.shape == (images, 2)
    assert np.isfinite(points).all()
