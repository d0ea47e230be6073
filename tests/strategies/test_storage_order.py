"""A folder of class folders is stored class by class: neither that order nor the classes' numbers decide anything."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_vit import tiny_values

from palkit.config import config_from_dict
from palkit.data import ImagePool
from palkit.data.own import order_file
from palkit.experiments.experiment import Learner
from palkit.experiments.setting import setting, settle
from palkit.models.adapters import AdaptedModel
from palkit.models.metrics import evaluate
from palkit.strategies import STRATEGIES
from palkit.strategies.ties import predict

CLASSES = ("AnnualCrop", "Forest", "Highway", "Pasture", "River", "SeaLake")
NAMES = sorted(STRATEGIES)
BATCH, BOUGHT = 10, 3  # with three labels at least half of the classes have none


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of 40 tiles, each class its own colour and grain, some tiles twice."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("tiles") / "2750"
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for image in range(40):
            colour = np.array([40 * number, 255 - 30 * number, 128]) + rng.normal(0, 30, 3)
            tile = np.clip(colour + rng.normal(0, 10 + 5 * number, (16, 16, 3)), 0, 255).astype(np.uint8)
            copies = 3 if image % 10 == 0 else 1
            for copy in range(copies):
                Image.fromarray(tile).save(root / name / f"{name}_{image}_{copy}.png")
    return root


def manifest(folder: Path, path: Path, order: Callable[[pd.DataFrame], pd.DataFrame], classes: list[str]) -> Path:
    """The images of a folder in another order of rows and of classes, named by themselves: draws hang on names."""
    files = sorted(folder.rglob("*.png"))
    path.parent.mkdir()
    table = pd.DataFrame(
        {
            "path": [str(file) for file in files],
            "label": [file.parent.name for file in files],
            "image_id": [str(file.relative_to(folder)) for file in files],
        }
    )
    order(table).to_csv(path, index=False)
    order_file(path).write_text("\n".join(classes))
    return path


@pytest.fixture(scope="module")
def pools(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("manifests")
    backwards, shuffled = list(reversed(CLASSES)), ["River", "Forest", "SeaLake", "AnnualCrop", "Pasture", "Highway"]
    return {
        "sorted": str(manifest(folder, place / "sorted/m.csv", lambda t: t, list(CLASSES))),
        "reversed": str(manifest(folder, place / "reversed/m.csv", lambda t: t[::-1], backwards)),
        "shuffled": str(
            manifest(folder, place / "shuffled/m.csv", lambda t: t.sample(frac=1, random_state=1), shuffled)
        ),
    }


Fitted = tuple[Learner, AdaptedModel, np.ndarray]


@pytest.fixture(scope="module")
def fitted(pools: dict[str, str], tiny_checkpoint: Path) -> dict[str, Fitted]:
    """A probe fitted to the first three labels of each pool."""
    found = {}
    for name, pool in pools.items():
        probe = {"adapter": "linear_probe", "pool_size": 150, "scoring": {"precision": "float64"}}
        config = config_from_dict({**tiny_values(tiny_checkpoint), **probe, "dataset": pool})
        here = setting(config)
        learner = Learner(settle(config, here), here)
        first = learner.first_batch(BOUGHT)
        found[name] = learner, learner.fit(first, 0), first
    return found


def ids(learner: Learner, positions: np.ndarray) -> list[str]:
    return learner.here.pool.ids[learner.pool_rows[positions]].tolist()


def next_ids(fit: Fitted, strategy: str, balance: str | None = None) -> list[str]:
    """What a strategy buys in its first active round."""
    learner, model, first = fit
    chooser = Learner(replace(learner.config, strategy=strategy, balance=balance), learner.here)
    return ids(chooser, chooser.next_batch(chooser.score_pool(model, 0), first, BATCH, 1))


@pytest.mark.parametrize("way", ["reversed", "shuffled"])
def test_the_same_images_are_set_aside_and_bought_first(fitted: dict[str, Fitted], way: str) -> None:
    here, there = fitted["sorted"][0].here.pool, fitted[way][0].here.pool
    assert here.class_names != there.class_names
    assert not np.array_equal(here.ids, there.ids)

    def splits(pool: ImagePool) -> dict[str, str]:
        return dict(zip(pool.ids.tolist(), pool.split.tolist(), strict=True))

    assert splits(here) == splits(there)
    assert ids(fitted["sorted"][0], fitted["sorted"][2]) == ids(fitted[way][0], fitted[way][2])


@pytest.mark.parametrize("way", ["reversed", "shuffled"])
@pytest.mark.parametrize("strategy", NAMES)
def test_the_first_active_batch_is_the_same(fitted: dict[str, Fitted], strategy: str, way: str) -> None:
    assert next_ids(fitted["sorted"], strategy) == next_ids(fitted[way], strategy)


@pytest.mark.parametrize("strategy", ["random", "margin", "badge", "typiclust", "uherding"])
def test_balanced_batches_are_the_same(fitted: dict[str, Fitted], strategy: str) -> None:
    assert next_ids(fitted["sorted"], strategy, "pcb") == next_ids(fitted["shuffled"], strategy, "pcb")


@pytest.mark.parametrize("strategy", ["least_confidence", "margin", "entropy"])
def test_an_uncertain_batch_is_not_one_class(fitted: dict[str, Fitted], strategy: str) -> None:
    """Of the rows on which two unseen classes tie the first ones in storage are of the first class."""
    bought = [name.rsplit("/", 2)[-2] for name in next_ids(fitted["sorted"], strategy)]
    assert len(set(bought)) >= 2
    assert bought.count(CLASSES[0]) < BATCH / 2


def named_metrics(fit: Fitted) -> tuple[dict[str, float], dict[str, str]]:
    learner, model, _ = fit
    probs = learner.evaluate(model)
    rows, pool = learner.here.pool.rows(learner.config.evaluate_on), learner.here.pool
    guessed = predict(probs, learner.eval_names).tolist()
    predicted = {str(pool.ids[row]): pool.class_names[guess] for row, guess in zip(rows, guessed, strict=True)}
    return evaluate(probs, learner.eval_labels, learner.eval_names), predicted


@pytest.mark.parametrize("way", ["reversed", "shuffled"])
def test_predictions_and_metrics_are_the_same(fitted: dict[str, Fitted], way: str) -> None:
    """All but kappa, for which the order of classes has a meaning."""
    here, predicted = named_metrics(fitted["sorted"])
    there, other = named_metrics(fitted[way])
    assert predicted == other
    assert {**here, "kappa": 0} == pytest.approx({**there, "kappa": 0}, abs=1e-6)
