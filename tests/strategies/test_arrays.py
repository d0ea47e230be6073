"""Selection from arrays: the registry's own choice, whatever the arrays are and however images are called."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import palkit
from palkit.errors import ConfigError
from palkit.strategies import STRATEGIES
from palkit.strategies.registry import select
from palkit.strategies.scores import LabelledSet, PoolScores

N, D, C = 60, 5, 4
LABELLED = {7: 2, 31: 0, 2: 1, 50: 3, 11: 2}
IDS = [f"slide-{number:02}" for number in range(N)]
CLASSES = ("adipose", "lymph", "stroma", "tumour")


@pytest.fixture
def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    passes = rng.dirichlet(np.ones(C), (6, N)).astype(np.float32)
    return {"features": rng.normal(size=(N, D)), "probs": rng.dirichlet(np.ones(C), N), "stochastic_probs": passes}


@pytest.mark.parametrize("name", sorted(name for name, one in STRATEGIES.items() if not one.is_oracle))
def test_the_same_as_the_registry(name: str, arrays: dict[str, Any]) -> None:
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    known = LabelledSet(torch.tensor(list(LABELLED)), torch.tensor(list(LABELLED.values())))
    expected = select(name, PoolScores(**tensors), known, 6, torch.Generator().manual_seed(5)).tolist()
    assert palkit.select(name, labelled=LABELLED, batch_size=6, seed=5, **arrays).tolist() == expected
    pair = (np.array(list(LABELLED)), np.array(list(LABELLED.values())))
    assert palkit.select(name, labelled=pair, batch_size=6, seed=5, **tensors).tolist() == expected


@pytest.mark.parametrize("name", ["margin", "badge", "typiclust", "random", "coreset"])
def test_names_stand_for_rows_wherever_they_are(name: str, arrays: dict[str, Any]) -> None:
    labelled = {IDS[row]: CLASSES[label] for row, label in LABELLED.items()}
    order, columns = np.random.default_rng(0).permutation(N), np.array([2, 0, 3, 1])
    picked = palkit.select(name, arrays["features"], arrays["probs"], labelled, 8, ids=IDS, classes=CLASSES)
    moved = palkit.select(
        name,
        arrays["features"][order],
        arrays["probs"][order][:, columns],
        labelled,
        8,
        ids=[IDS[row] for row in order],
        classes=[CLASSES[column] for column in columns],
    )
    assert picked.tolist() == moved.tolist()
    assert set(picked) <= set(IDS) - set(labelled)


def test_before_there_is_a_model() -> None:
    features = np.random.default_rng(0).normal(size=(20, 3))
    assert len(set(palkit.select("typiclust", features, batch_size=5))) == 5
    assert len(palkit.select("random", features.tolist(), labelled={3: 4}, batch_size=50)) == 19


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "margn"}, "Did you mean 'margin'"),
        ({"features": [["a"]]}, "features: .* no array of numbers"),
        ({"features": np.zeros((N, D)) * np.nan}, "features of pool row 0 are not finite"),
        ({"probs": np.full((N, C), 3.0)}, "no probabilities.*softmax"),
        ({"labelled": {"slide-01": 1}}, "labelled images: .* give ids and classes"),
        ({"labelled": {0: "tumour"}}, "labels: .* give ids and classes"),
        ({"labelled": {0.5: 1}}, "no whole numbers"),
        ({"labelled": {60: 1}}, "position 60 is outside the pool of 60 rows"),
        ({"labelled": 7}, "give {image: class}"),
        ({"labelled": {0: 9}}, "label 9 is outside the 4 classes"),
        (
            {"labelled": {"slide-99": 1}, "ids": IDS},
            "labelled: 'slide-99' is not among the 60 names of images. Did",
        ),
        (
            {"labelled": {0: "tumor"}, "classes": CLASSES},
            "not among the 4 names of classes. Did you mean 'tumour'",
        ),
        ({"ids": IDS[:-1], "labelled": {IDS[0]: 1}}, "59 names of images for 60 rows"),
        ({"ids": ["x"] * N, "labelled": None}, "image 'x' is there twice"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_used_is_named(changes: dict[str, Any], message: str, arrays: dict[str, Any]) -> None:
    values = {"strategy": "margin", "labelled": LABELLED, "batch_size": 3, **arrays, **changes}
    with pytest.raises(ConfigError, match=message):
        palkit.select(**values)


def test_names_and_numbers_of_other_libraries(arrays: dict[str, Any]) -> None:
    features, probs = arrays["features"], arrays["probs"]
    labelled = {IDS[row]: CLASSES[label] for row, label in LABELLED.items()}
    expected = palkit.select("margin", features, probs, labelled, 4, seed=2, ids=IDS, classes=CLASSES).tolist()
    for ids in (np.array(IDS), pd.Series(IDS), pd.Index(IDS)):
        picked = palkit.select(
            "margin", features, probs, labelled, np.int64(4), seed=np.int32(2), ids=ids, classes=np.array(CLASSES)
        )
        assert picked.tolist() == expected
    series = pd.Series(labelled)
    assert palkit.select("margin", features, probs, series, 4, seed=2, ids=IDS, classes=CLASSES).tolist() == expected
    assert palkit.select("margin", features, probs, ([*labelled], [*labelled.values()]), 4, seed=2, ids=IDS,
                         classes=CLASSES).tolist() == expected  # fmt: skip


@pytest.mark.parametrize("name", ["entropy", "margin", "badge", "featdist"])
def test_strategies_that_look_at_probabilities_do_not_choose_without(name: str, arrays: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"looks at probs; give them. Without a model choose by: .*typiclust"):
        palkit.select(name, arrays["features"], labelled=LABELLED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"batch_size": None}, "batch_size must be a whole number"),
        ({"labelled": [17, 40]}, "give {image: class}, or images and classes as a pair"),
        ({"strategy": "bald", "stochastic_probs": None}, "'bald' looks at stochastic_probs"),
    ],
)
def test_more_of_what_cannot_be_used(changes: dict[str, Any], message: str, arrays: dict[str, Any]) -> None:
    values = {"strategy": "margin", "labelled": LABELLED, "batch_size": 3, **arrays, **changes}
    with pytest.raises(ConfigError, match=message):
        palkit.select(**values)


def test_groups_by_name(arrays: dict[str, Any]) -> None:
    """Patients and images that are of none; numbers that mean the same give the same."""
    names = ["ann"] * 20 + [""] * (N - 20)
    picks = palkit.select("entropy", labelled=LABELLED, batch_size=8, groups=names, per_group=np.int64(1), **arrays)
    assert sum(row < 20 for row in picks) <= 1
    for missing in (None, float("nan")):
        some = [name or missing for name in names]
        again = palkit.select("entropy", labelled=LABELLED, batch_size=8, groups=some, per_group=1, **arrays)
        assert again.tolist() == picks.tolist()
    others = palkit.select(
        "entropy", labelled=LABELLED, batch_size=8, groups=["b" if one else "" for one in names], per_group=1, **arrays
    )
    assert picks.tolist() == others.tolist()


def test_epig_aims_at_images_by_name(arrays: dict[str, Any]) -> None:
    """`subsample` hides none of them; what is no image is named, and so is a list where none belongs."""
    size, rows = len(arrays["features"]), [2, 5, 7]
    ids = [f"image {row}" for row in range(size)]
    mask = np.isin(np.arange(size), rows)
    for subsample in (None, 3):
        one, other = (
            palkit.select(
                "epig", **{**arrays, "ids": ids, "labelled": {"image 0": 1}, "subsample": subsample}, target=target
            )
            for target in (mask, [ids[row] for row in rows])
        )
        assert one.tolist() == other.tolist()
    for target in (["image 2", "image x"], []):
        with pytest.raises(ConfigError, match="'image x' is no image of the pool" if target else "target must say"):
            palkit.select("epig", **{**arrays, "ids": ids, "labelled": {"image 0": 1}}, target=target)
    with pytest.raises(ConfigError, match="or name images"):
        palkit.select("epig", **arrays, target=["image 2"])
    with pytest.raises(ConfigError, match="it must be a whole number"):
        palkit.select("epig", **{**arrays, "ids": ids, "labelled": {"image 0": 1}}, targets=["image 2"])
