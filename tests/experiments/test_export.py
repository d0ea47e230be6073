"""Exported models: timm alone computes what palkit's model does, whatever was adapted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from adapter_helpers import METHODS, perturbed
from breadth import some

from palkit.cli import main
from palkit.config import config_from_dict
from palkit.data import load_dataset
from palkit.errors import ConfigError
from palkit.experiments.classifier import Classifier, load_model
from palkit.experiments.experiment import rounds, run_directory
from palkit.experiments.export import export_model
from palkit.labelling.session import open_session
from palkit.models.adapters import attach
from palkit.models.backbones import Backbone, load_backbone

NAMES = ("tumour", "stroma", "fett & gewebe")
LABELS = pd.DataFrame({"id": ["a.png", "b/c.png"], "label": ["tumour", "stroma"]})


def classifier_of(backbone: Backbone, adapter: dict[str, Any]) -> Classifier:
    """Of weights moved at random, with feature statistics and a temperature that show if they are lost."""
    config = config_from_dict({"dataset": "digits", "backbone": backbone.config, "adapter": adapter})
    rng = torch.Generator().manual_seed(2)
    mean = torch.randn(backbone.width, generator=rng)
    std = 0.5 + torch.rand(backbone.width, generator=rng)
    model = perturbed(attach(backbone, config.adapter, len(NAMES), mean, std, seed=0).eval())
    model.temperature.fill_(1.7)
    return Classifier(config, NAMES, backbone, model)


def check(classifier: Classifier, folder: Path) -> None:
    size = classifier.backbone.config.image_size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model = classifier.model
        expected = model(model.backbone.inputs(pixels, model.start_block))[1]
        export_model(classifier, folder, LABELS, {"accuracy": 0.75})
        net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        torch.testing.assert_close(net(pixels), expected, atol=1e-4, rtol=1e-3)
        again = model(model.backbone.inputs(pixels, model.start_block))[1]
    assert torch.equal(expected, again), "exporting changed the model"
    assert net.pretrained_cfg["label_names"] == list(NAMES)
    assert timm.data.resolve_model_data_config(net)["input_size"] == (3, size, size)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "labels.parquet"), LABELS)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "vpt"])
def test_every_adapter(tiny: Backbone, name: str, tmp_path: Path) -> None:
    check(classifier_of(tiny, {"name": name, "start_block": 1, "rank": 4}), tmp_path)


@pytest.mark.parametrize("targets", [("attn.q", "attn.v"), ("attn.proj", "mlp.fc1", "mlp.fc2")])
def test_parts_of_blocks(tiny: Backbone, targets: tuple[str, ...], tmp_path: Path) -> None:
    check(classifier_of(tiny, {"name": "lora", "start_block": 2, "targets": targets}), tmp_path)


@pytest.mark.parametrize(
    "of",
    some(
        [
            ("vit_small_patch14_reg4_dinov2", "mean"),
            ("vit_base_patch16_siglip_224", "mean"),
            ("vit_small_patch14_dinov2", "cls"),
            ("vit_small_patch16_dinov3", "mean"),
            ("vit_base_patch16_clip_224", "cls"),
            ("eva02_tiny_patch14_224", "mean"),
        ],
        every=2,
    ),
)
def test_families(of: tuple[str, str], tmp_path: Path) -> None:
    name, pooling = of
    values = {"name": name, "image_size": 28 if "patch14" in name else 32, "depth": 2, "pooling": pooling}
    config = config_from_dict({"dataset": "digits", "backbone": values}).backbone
    backbone = load_backbone(config, pretrained=False)
    check(classifier_of(backbone, {"name": "lora", "start_block": 1}), tmp_path)


@pytest.mark.parametrize(
    ("name", "pooling", "adapter", "what"),
    [
        ("vit_small_patch14_dinov2", "cls+mean", "linear_probe", r"pooling 'cls\+mean'"),
        ("vit_small_patch14_dinov2", "mean", "vpt", "prompts"),
        ("deit_tiny_distilled_patch16_224", "mean", "linear_probe", "cannot be built"),
        ("features-12", "mean", "linear_probe", "a model of stored features"),
    ],
)
def test_what_timm_cannot_compute_is_refused(name: str, pooling: str, adapter: str, what: str, tmp_path: Path) -> None:
    size = 1 if name.startswith("features") else 28 if "patch14" in name else 32
    values = {"name": name, "image_size": size, "depth": None if size == 1 else 2, "pooling": pooling}
    backbone = load_backbone(config_from_dict({"dataset": "digits", "backbone": values}).backbone, pretrained=False)
    with pytest.raises(ConfigError, match=what):
        export_model(classifier_of(backbone, {"name": adapter, "start_block": 1}), tmp_path, LABELS, {})
    assert not (tmp_path / "README.md").exists()


def test_a_run_by_command(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    """The labels that the last model was fitted to, by name, and the accuracy of its round."""
    config = config_from_dict({**tiny_run, "adapter": {"name": "lora", "start_block": 2}})
    last = list(rounds(config))[-1]
    folder = run_directory(config).path
    assert main(["export", str(folder), str(tmp_path / "out")]) == 0
    labels = pd.read_parquet(tmp_path / "out" / "labels.parquet")
    pool = load_dataset("digits")
    assert len(labels) == last.labels
    truth = dict(zip(pool.ids, pool.label_names(), strict=True))
    assert [truth[image] for image in labels["id"]] == labels["label"].tolist()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"accuracy {last.metrics['accuracy']:.3f}" in card
    saved = load_model(folder).save(tmp_path / "elsewhere")
    assert main(["export", str(saved), str(tmp_path / "again")]) == 0
    assert "Labels: not stored with the model" in (tmp_path / "again" / "README.md").read_text()
    assert not (tmp_path / "again" / "labels.parquet").exists()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    config_file = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config_file["label_names"] == list(load_model(folder).class_names)


def test_a_session_by_command(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    session = open_session(
        "digits",
        "ana",
        folder=tmp_path / "session",
        backbone=tiny_run["backbone"],
        adapter={"name": "lora", "start_block": 2},
    )
    names = session.propose(12)["id"].tolist()
    session.label(names, [["0", "1"][number % 2] for number in range(len(names))])
    session.fit()
    later = session.propose(3)["id"].tolist()
    session.label(later, ["0"] * len(later))
    assert main(["export", str(tmp_path / "session"), str(tmp_path / "out")]) == 0
    labels = pd.read_parquet(tmp_path / "out" / "labels.parquet")
    assert labels["id"].tolist() == names, "what was labelled after the last fit has taught the model nothing"
    assert np.isin(labels["label"], ["0", "1"]).all()


def test_names_that_mean_something_in_markdown(tiny: Backbone, tmp_path: Path) -> None:
    strange = ("a, b", "- x\n---\ny: [", 'quote "')
    classifier = classifier_of(tiny, {"name": "linear_probe"})
    classifier.class_names = strange
    folder = export_model(classifier, tmp_path / "out", LABELS, {})
    card = (folder / "README.md").read_text()
    assert r'Classes: `"a, b"`, `"- x\n---\ny: ["`, `"quote \""`.' in card
    assert str(tmp_path) not in card
    assert json.loads((folder / "config.json").read_text())["label_names"] == list(strange)


@pytest.mark.parametrize("place", ["mine", "file", "file/below"])
def test_a_folder_with_something_in_it_is_left_alone(
    tiny: Backbone, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my notes")
    (tmp_path / "file").write_text("")
    saved = classifier_of(tiny, {"name": "linear_probe"}).save(tmp_path / "saved")
    assert main(["export", str(saved), str(tmp_path / place)]) == 1
    assert (tmp_path / "mine" / "README.md").read_text() == "my notes"
    told = " ".join(capsys.readouterr().err.split())
    assert "is not empty" in told if place == "mine" else "cannot be written" in told
