"""Fitted models on their own: they predict what their run said, are saved and loaded, and refuse clearly."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import palkit
from palkit.cli import main
from palkit.config import config_from_dict
from palkit.errors import ConfigError, DataError, WeightsError
from palkit.experiments.experiment import Run
from palkit.models.adapters.files import save_adapter


@pytest.fixture(params=["linear_probe", "lora"])
def run(request: pytest.FixtureRequest, tiny_run: dict[str, Any]) -> Run:
    values = {**tiny_run, "adapter": {"name": request.param, "start_block": 2}, "dataset": "digits", "rounds": 2}
    return Run(config_from_dict({**values, "training": {**tiny_run.get("training", {}), "temperature_folds": 2}}))


def test_the_accuracy_of_its_run_and_the_same_after_saving(run: Run, tmp_path: Path) -> None:
    accuracy = list(run)[-1].metrics["accuracy"]
    pool, model = palkit.load_dataset("digits"), run.model()
    table = model.predict(pool)
    held = pool.rows(run.config.evaluate_on)
    assert (table["predicted"][held] == pool.label_names()[held]).mean() == pytest.approx(accuracy)
    probs = table.filter(like="p(").to_numpy()
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(table["probability"], probs.max(axis=1), rtol=1e-5)  # ties within rounding go by lot
    stored = run.directory.predictions(2)[1]
    np.testing.assert_allclose(table["probability"][held], stored["confidence"], rtol=1e-4)  # with the temperature
    pd.testing.assert_frame_equal(palkit.load_model(model.save(tmp_path / "saved")).predict(pool), table)
    # Runs of earlier versions have no names of classes, and their data set has.
    save_adapter(model.model, run.directory.adapter)
    (run.directory.adapter / "classes.json").unlink()
    assert palkit.load_model(run.directory.path).class_names == pool.class_names


def test_new_images_in_every_form(run: Run, tmp_path: Path) -> None:
    array = palkit.load_dataset("digits").images.decode(np.arange(6), 8)
    folder = tmp_path / "new"
    for number, pixels in enumerate(array):
        path = folder / f"ward {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    model = run.model()
    expected = model.predict(array).set_index("id")["predicted"]
    by_folder = model.predict(folder).set_index("id")["predicted"]
    paths = sorted(folder.rglob("*.png"))
    assert by_folder.to_dict() == {f"ward {n % 2}/{n}.png": expected[str(n)] for n in range(6)}
    assert model.predict(paths)["predicted"].tolist() == [expected[path.stem] for path in paths]
    tensor, pictures = torch.from_numpy(array), [Image.fromarray(pixels) for pixels in array]
    for same in (array[..., 0], tensor, [*tensor], [*array], pictures):
        assert model.predict(same)["predicted"].tolist() == expected.tolist()

    out = tmp_path / "out.csv"
    assert main(["predict", str(run.directory.path), str(folder), str(out)]) == 0
    assert pd.read_csv(out, dtype=str).set_index("id")["predicted"].to_dict() == by_folder.to_dict()
    assert main(["predict", str(run.directory.path), str(folder), str(out.with_suffix(".parquet"))]) == 0
    assert len(pd.read_parquet(out.with_suffix(".parquet"))) == 6


def test_a_session_has_the_rest_labelled(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    pool = palkit.load_dataset("digits")
    names = dict(zip(pool.ids, pool.label_names(), strict=True))
    own = {name: tiny_run[name] for name in ("backbone", "training", "pool_size") if name in tiny_run}
    session = palkit.open_session("digits", "ana", folder=tmp_path / "s", adapter="linear_probe", batch_size=20, **own)
    with pytest.raises(ConfigError, match="no fit yet"):
        session.model()
    with pytest.raises(ConfigError, match="no fit yet"):
        palkit.load_model(tmp_path / "s")
    for name in session.propose()["id"]:
        session.label(name, names[name])
    last = session.fit()
    table = session.model().predict(pool)
    test = pool.rows("test")
    assert (table["predicted"][test] == pool.label_names()[test]).mean() == pytest.approx(last.metrics["accuracy"])
    pd.testing.assert_frame_equal(palkit.load_model(tmp_path / "s").predict(pool), table)
    saved = session.model().save(tmp_path / "model")
    shutil.rmtree(tmp_path / "s")
    pd.testing.assert_frame_equal(palkit.load_model(saved).predict(pool), table)


def test_what_cannot_be_used_is_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="holds no fitted model"):
        palkit.load_model(tmp_path)
    model = run.model()
    with pytest.raises(ConfigError, match=r"array \(3, 8\) of float64"):
        model.predict(np.zeros((3, 8)))
    with pytest.raises(DataError, match="no images to predict"):
        model.predict([])
    with pytest.raises(ConfigError, match="neither all paths nor arrays of one shape"):
        model.predict([np.zeros((8, 8), np.uint8), np.zeros((9, 8), np.uint8)])
    with pytest.raises(ConfigError, match=r"array \(1, 2, 2\) of int64; it must be .* of uint8"):
        model.predict([[[0, 1], [2, 3]]])
    with pytest.raises(ConfigError, match=r"array \(8, 8, 3\): one in colour\? Give images\[None\]"):
        model.predict(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"of mode 'P'\. Convert them"):
        model.predict([Image.new("P", (8, 8))])
    assert repr(model).startswith("Classifier: test_vit, ")
    assert "10 classes: 0, 1, 2" in repr(model)
    with pytest.raises(DataError, match="there is no folder, manifest or image 'nodir', nor a data set of that name"):
        model.predict("nodir")
    with pytest.raises(DataError, match="is not there"):
        palkit.load_model(tmp_path / "no")
    with pytest.raises(DataError, match="nowhere"):
        model.predict(tmp_path / "nowhere" / "else")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.new("L", (9, 9)).save(tmp_path / "new" / "good.png")
    command = ["predict", str(run.directory.path), str(tmp_path / "new"), str(tmp_path / "out.csv")]
    assert main(command) == 1
    assert "broken.png" in capsys.readouterr().err
    assert main([*command, "--skip-unreadable"]) == 0
    assert pd.read_csv(tmp_path / "out.csv")["id"].tolist() == ["good.png"]
    assert model.predict(tmp_path / "new" / "good.png")["id"].tolist() == [str(tmp_path / "new" / "good.png")]
    assert main(["predict", run.directory.run, *command[2:], "--skip-unreadable"]) == 0, "a run by its hash"
    assert main([*command[:3], str(tmp_path / "out.txt")]) == 1
    (run.directory.adapter / "head.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged"):
        palkit.load_model(run.directory.path)
