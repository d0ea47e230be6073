"""Features as a data set: what runs, sessions and `palkit select` make of them, and what the images would give."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import palkit
from palkit.cli import main
from palkit.config import config_from_dict
from palkit.data import ImagePool, StoredFeatures, load_dataset
from palkit.data.features import from_features, probs_of
from palkit.errors import ConfigError, DataError, PalkitError
from palkit.experiments.experiment import run_directory
from palkit.experiments.setting import setting
from palkit.labelling.explore import Exploration, Question
from palkit.labelling.selection import next_batch, read_labels
from palkit.labelling.session import Session
from palkit.studies.readouts import readout

pytestmark = pytest.mark.filterwarnings("ignore::palkit.errors.DataNotice")
N, D = 120, 6
NAMES = ("blue", "green", "red")
PLAIN = {"adapter": "linear_probe", "training": {"head": "logistic"}, "rounds": 3, "batch_size": 4}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Three classes, named, of which the last 30 rows are for testing."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, N)
    features = (2 * rng.normal(size=(3, D))[codes] + rng.normal(size=(N, D))).astype(np.float32)
    split = np.where(np.arange(N) < N - 30, "train", "test")
    ids = np.array([f"case {number:03d}" for number in range(N)])
    return {"features": features, "labels": np.array(NAMES)[codes], "split": split, "ids": ids}


def write(path: Path, parts: dict[str, Any]) -> Path:
    """The arrays in the format of the suffix; `.npy` holds the features alone."""
    if path.suffix == ".npz":
        np.savez(path, **parts)
    elif path.suffix == ".npy":
        np.save(path, parts["features"])
    else:
        pd.DataFrame({name: list(values) for name, values in parts.items()}).to_parquet(path)
    return path


def bought(dataset: Path | str, **values: Any) -> list[str]:
    """Names of the images of a run, in order, and the accuracy of its last round as text."""
    run = palkit.run(dataset=str(dataset), **{**PLAIN, **values}, device="cpu")
    last = list(run)[-1]
    return [*run.directory.selections()["id"], f"{last.metrics['accuracy']:.6f}"]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_file_says_what_its_rows_are(suffix: str, tmp_path: Path) -> None:
    parts = arrays()
    pool = load_dataset(str(write(tmp_path / f"mine{suffix}", parts)))
    assert pool.class_names == NAMES
    assert pool.ids.tolist() == parts["ids"].tolist()
    assert pool.label_names().tolist() == parts["labels"].tolist()
    assert (pool.split == "test").tolist() == (parts["split"] == "test").tolist()
    np.testing.assert_array_equal(pool.images.array[pool.images.index], parts["features"])
    assert pool.images.decode(np.arange(2), 8).shape == (2, 8, 8, 3)


def test_all_formats_and_number_types_are_the_same_data(tmp_path: Path) -> None:
    parts = arrays()
    wide = parts | {"features": parts["features"].astype(np.float64)}
    lists = parts | {"ids": parts["ids"].astype("S"), "labels": parts["labels"].astype("S")}
    files = [("a.npz", parts), ("b.npz", wide), ("c.parquet", parts), ("d.npz", lists)]
    pools = [load_dataset(str(write(tmp_path / name, content))) for name, content in files]
    assert len({pool.checksum() for pool in pools}) == 1
    alone = load_dataset(str(write(tmp_path / "e.npy", parts)))
    assert alone.images.checksum() == pools[0].images.checksum()
    assert alone.ids[:3].tolist() == ["0", "1", "2"]
    assert (alone.split == "pool").all()
    assert not alone.is_labelled


def test_labels_may_be_numbers_with_or_without_names(tmp_path: Path) -> None:
    codes = np.array([0, 1, 2, -1] * 30)
    parts = arrays() | {"labels": codes, "split": np.full(N, "train")}
    assert load_dataset(str(write(tmp_path / "numbers.npz", parts))).class_names == ("0", "1", "2")
    named = load_dataset(str(write(tmp_path / "names.npz", parts | {"classes": np.array(["z", "y", "x"])})))
    assert named.class_names == ("z", "y", "x")
    assert named.label_names()[:4].tolist() == ["z", "y", "x", ""]
    gaps = pd.DataFrame({"features": list(parts["features"]), "label": pd.Series(codes).where(codes >= 0)})
    gaps.to_parquet(tmp_path / "gaps.parquet")
    assert load_dataset(str(tmp_path / "gaps.parquet")).label_names()[:4].tolist() == ["0", "1", "2", ""]


def test_they_are_bought_as_the_images_are(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    """The frozen features of images, in a file, give the run that the images give."""
    values = tiny_run | {"adapter": "linear_probe", "strategy": "margin", "evaluate_on": "test"}
    values["training"] = {"head": "logistic", "augmentation": "none"}
    here = setting(config_from_dict(values), "cpu")
    features = here.cache.features()[:].numpy()
    labels = {"labels": here.pool.label_names(), "split": here.pool.split, "ids": here.pool.ids}
    parts = {"features": features} | {name: np.array(part.tolist()) for name, part in labels.items()}
    path = write(tmp_path / "frozen.npz", parts)
    same = {"strategy": "margin", "training": {"head": "logistic"}, "rounds": 3, "batch_size": 10, "pool_size": None}
    of_images = palkit.run(**values, device="cpu")
    expected = list(of_images)[-1].metrics["accuracy"]
    assert bought(path, **same) == [*of_images.directory.selections()["id"], f"{expected:.6f}"]


@given(seed=st.integers(0, 100), strategy=st.sampled_from(["margin", "badge", "uherding"]))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_neither_the_order_of_rows_nor_memory_decides(seed: int, strategy: str, tmp_path: Path) -> None:
    parts = arrays(seed)
    order = np.random.default_rng(seed).permutation(N)
    first = bought(write(tmp_path / f"{seed}.npz", parts), strategy=strategy)
    moved = {name: values[order] for name, values in parts.items()}
    assert bought(write(tmp_path / f"{seed}-moved.npz", moved), strategy=strategy) == first


def test_rows_that_exceed_memory_are_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "mine.npz", arrays())
    expected = bought(path, strategy="uherding")
    monkeypatch.setenv("PALKIT_MEMORY", "1K")
    monkeypatch.setenv("PALKIT_RUNS", str(tmp_path / "others"))
    config = config_from_dict({"dataset": str(path), **PLAIN})
    assert not isinstance(setting(config, "cpu").cache.features(), torch.Tensor)
    assert bought(path, strategy="uherding") == expected


def test_a_file_that_changes_is_another_data_set(tmp_path: Path) -> None:
    parts = arrays()
    path = write(tmp_path / "mine.npz", parts)
    config = config_from_dict({"dataset": str(path), **PLAIN})
    before = run_directory(config, "cpu").run
    write(path, parts | {"features": parts["features"] + 1})
    assert run_directory(config, "cpu").run != before


def test_an_adapter_has_nothing_to_adapt(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npz", arrays())
    with pytest.raises(ConfigError, match="Set adapter to linear_probe"):
        bought(path, adapter="lora")
    with pytest.raises(ConfigError, match="no backbone to read"):
        readout(load_dataset(str(path)), config_from_dict({}).backbone, images=50, labels_per_class=2, draws=1)
    with pytest.raises(ConfigError, match="give groups and labels as arrays"):
        load_dataset(str(path), group="(.*)")


def test_a_session_labels_them_and_its_model_predicts_others(tmp_path: Path) -> None:
    parts = arrays()
    truth = dict(zip(parts["ids"], parts["labels"], strict=True))
    unknown = {"features": parts["features"], "ids": parts["ids"]}
    path = write(tmp_path / "mine.npz", unknown)
    session = palkit.open_session(str(path), "ana", classes=NAMES, folder=tmp_path / "labels", batch_size=np.int64(6))
    for _ in range(4):
        for name in session.propose()["id"]:
            session.label(name, truth[name])
        session.fit()
    model = session.model()
    table = model.predict(parts["features"])
    assert (table["predicted"].to_numpy() == parts["labels"]).mean() > 0.8
    again = palkit.load_model(model.save(tmp_path / "model"))
    pd.testing.assert_frame_equal(again.predict(str(path)).drop(columns="id"), table.drop(columns="id"))
    for same in (torch.from_numpy(parts["features"]), parts["features"].tolist(), [*parts["features"]]):
        pd.testing.assert_frame_equal(model.predict(same), table)
    with pytest.raises(ConfigError, match="the model takes 6 features each, and 'new images' holds images"):
        model.predict(np.zeros((2, 8, 8), np.uint8))
    assert len(model.predict(torch.ones(2, 6, dtype=torch.bfloat16))) == 2
    with pytest.raises(ConfigError, match=r"an array \(6,\) of float32; it must be \(N, D\) of numbers"):
        model.predict(parts["features"][0].astype(np.float32))
    with pytest.raises(ConfigError, match="holds 4 features each"):
        model.predict(np.zeros((2, 4), np.float32))


def test_a_session_notices_that_labelled_rows_without_ids_have_moved(tmp_path: Path) -> None:
    """Others may change and come; rows with ids may move."""
    parts = arrays()

    def opened(features: np.ndarray, **ids: np.ndarray) -> Session:
        path = write(tmp_path / ("known.npz" if ids else "mine.npz"), {"features": features, **ids})
        return palkit.open_session(str(path), "ana", classes=NAMES, folder=tmp_path / path.stem, batch_size=6)

    features = parts["features"]
    opened(features).label(["0", "7"], ["red", "blue"])
    changed = np.vstack([features, features[:2]])
    changed[1] = 0
    assert len(opened(changed).labels()) == 2
    with pytest.raises(DataError, match=r"2 labelled rows of .*mine.npz', the first is '0', hold other features than"):
        opened(changed[1:])
    assert len(opened(changed).labels()) == 2, "as it was"
    with pytest.raises(DataError, match=r"1 labelled rows .* '7', .* delete .*rows\.json"):
        opened(np.where(np.arange(len(changed))[:, None] == 7, 0, changed))
    opened(features, ids=parts["ids"]).label(parts["ids"][:1].tolist(), ["red"])
    assert opened(features[::-1], ids=parts["ids"][::-1]).labels() == {parts["ids"][0]: "red"}


def test_a_damaged_copy_in_the_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALKIT_CACHE", str(tmp_path / "cache"))
    parts = arrays()
    path = write(tmp_path / "mine.npz", parts)
    copy = load_dataset(str(path)).images.file
    for damage in (b"", copy.read_bytes()[:-8] + b"\0" * 8):
        copy.unlink()  # a pool may hold the file that was there
        copy.write_bytes(damage)
        pool = load_dataset(str(path))
        np.testing.assert_array_equal(pool.images.array, parts["features"])


def test_the_explorer_shows_grey_squares_or_the_images_themselves(tmp_path: Path) -> None:
    parts = arrays()
    values = {"dataset": str(write(tmp_path / "mine.npz", parts)), "adapter": "linear_probe", "batch_size": 5}
    answer = Exploration().answer(Question(config_from_dict(values), ("margin",), round=1))
    assert len(answer.proposals[0].table) == 5
    (tmp_path / "images").mkdir()
    paths = [f"images/{number}.png" for number in range(N)]
    for number, name in enumerate(paths):
        Image.new("RGB", (9, 7), (number, 0, 0)).save(tmp_path / name)
    with_images = {name: parts[name] for name in ("features", "labels")} | {"paths": np.array(paths)}
    pool = load_dataset(str(write(tmp_path / "seen.npz", with_images)))
    assert pool.ids[5] == "images/5.png"
    assert pool.images.take(np.array([7])).decode(np.array([0]), 4)[0, 0, 0].tolist() == [7, 0, 0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("short.npz", lambda parts: parts | {"labels": parts["labels"][:5]}, "labels has 5 entries for 120 rows"),
        ("none.npz", lambda parts: {"labels": parts["labels"]}, "features is not a file in the archive"),
        ("cube.npz", lambda parts: {"features": np.zeros((4, 2, 2))}, r"must be rows of numbers \(N, D\)"),
        ("text.npz", lambda parts: {"features": np.array([["a"]])}, r"must be rows of numbers \(N, D\)"),
        ("empty.npz", lambda parts: {"features": np.zeros((0, 3))}, "it holds no features"),
        (
            "objects.npz",
            lambda parts: parts | {"ids": np.array([{}] * N, dtype=object)},
            "cannot be read .*names.astype",
        ),
        ("twice.npz", lambda parts: parts | {"ids": np.full(N, "a")}, "row 2 .'a'. has the id of another row"),
        ("blank.npz", lambda parts: parts | {"ids": np.full(N, " ")}, "row 1 .* has no id"),
        ("split.npz", lambda parts: parts | {"split": np.full(N, "exam")}, "row 1 .* has no split"),
        ("file.npz", lambda parts: parts | {"paths": parts["ids"]}, "there is no file"),
        ("code.npz", lambda parts: parts | {"labels": np.full(N, 3), "classes": np.array(NAMES)}, "there is a label 3"),
        ("nan.npz", lambda parts: parts | {"features": np.full((N, D), np.nan)}, "row 1: a feature is not"),
        (
            "nan.npy",
            lambda parts: {"features": np.full((N, D), np.inf, np.float32)},
            "row 1: a feature is not a finite",
        ),
        ("huge.npz", lambda parts: parts | {"features": np.full((N, D), 1e300)}, "not a finite number of float32"),
        (
            "uneven.parquet",
            lambda parts: parts | {"features": [[1.0] * (2 + n % 2) for n in range(N)]},
            "differ in len",
        ),
        ("hot.npz", lambda parts: parts | {"labels": np.eye(N)}, r"labels has the shape \(120, 120\) for 120 rows"),
        ("one.npz", lambda parts: parts | {"labels": np.array(3)}, r"labels has the shape \(\)"),
        ("word.npz", lambda parts: parts | {"classes": np.array("red")}, r"classes has the shape \(\)"),
        ("latin.npz", lambda parts: parts | {"labels": np.array(["ü".encode("latin-1")] * N)}, "utf-8"),
        ("half.npz", lambda parts: parts | {"labels": np.full(N, 0.5)}, "labels are numbers such as 0.5"),
        ("far.npz", lambda parts: parts | {"labels": np.full(N, np.inf)}, "labels are numbers such as inf"),
        (
            "plain.parquet",
            lambda parts: parts | {"features": np.zeros(N)},
            "a list of numbers a row, are double",
        ),
        ("looks.npz", lambda parts: parts | {"ids": [*parts["ids"][2:], "\u00e4", "a\u0308"]}, "the id of another row"),
        ("space.npz", lambda parts: parts | {"ids": [*parts["ids"][1:], " case 001"]}, "the id of another row"),
        ("gap.parquet", lambda parts: parts | {"features": [None, *parts["features"][1:]]}, "differ in length"),
    ],
)
def test_what_cannot_be_used_is_named(
    name: str, change: Callable[[dict[str, Any]], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, change(arrays()))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(str(path))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    whole = write(tmp_path / name, arrays()).read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\0" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            load_dataset(str(tmp_path / name))


def test_features_in_memory_are_what_they_are(tmp_path: Path) -> None:
    """A part of a mapped file is that part, and not the first rows of the file."""
    features = arrays()["features"]
    np.save(tmp_path / "whole.npy", features)
    mapped = np.load(tmp_path / "whole.npy", mmap_mode="r")
    for part in (mapped[40:], mapped[:, 1:3], features[::-1], features.astype(np.float64)):
        labels, split = np.arange(len(part)) % 2, np.repeat(["pool", "val", "test"], len(part) // 3 + 1)[: len(part)]
        ids = np.arange(len(part)).astype(str)
        pool = ImagePool("part", StoredFeatures(part, np.arange(len(part))), labels, split, ids, ("a", "b"))
        cache = setting(config_from_dict({"dataset": "part", **PLAIN}), "cpu", pool=pool).cache
        np.testing.assert_array_equal(cache.features()[:].numpy(), part.astype(np.float32))


def test_a_file_that_is_written_to_changes_no_pool(tmp_path: Path) -> None:
    parts = arrays()
    pool = load_dataset(str(write(tmp_path / "live.npy", parts)))
    np.save(tmp_path / "live.npy", np.zeros((3, D), np.float32))
    np.testing.assert_array_equal(pool.images.array, parts["features"])


def test_labels_of_the_file_count_as_those_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = arrays()
    some = np.where(np.arange(N) % 3 == 0, parts["labels"], "")
    known = pd.DataFrame({"id": parts["ids"], "label": some})
    known[known["label"] != ""].to_csv(tmp_path / "labels.csv", index=False)
    plain = {name: parts[name] for name in ("features", "ids")}
    beside = selected(capsys, str(write(tmp_path / "a.npz", plain)), "--labels", str(tmp_path / "labels.csv"))
    inside = selected(capsys, str(write(tmp_path / "b.npz", plain | {"labels": some})))
    pd.testing.assert_frame_equal(beside, inside)
    codes = known.assign(label=known["label"].map({"": "", **{name: str(code) for code, name in enumerate(NAMES)}}))
    codes[codes["label"] != ""].to_csv(tmp_path / "codes.csv", index=False)
    by_number = ("--labels", str(tmp_path / "codes.csv"), "--classes", *NAMES)
    pd.testing.assert_frame_equal(selected(capsys, str(tmp_path / "a.npz"), *by_number), beside)
    assert main(["select", str(tmp_path / "b.npz"), "--classes", "Blue", "green", "red"]) == 1
    assert "'blue' is not in the order of classes given" in " ".join(capsys.readouterr().err.split())


def test_labels_of_new_features_do_not_matter(tmp_path: Path) -> None:
    parts = arrays()
    run = palkit.run(dataset=str(write(tmp_path / "mine.npz", parts)), **PLAIN, device="cpu")
    model = run.model()
    one_class = {"features": parts["features"][:9], "labels": np.full(9, "red"), "split": np.full(9, "test")}
    table = model.predict(write(tmp_path / "new.npz", one_class))
    expected = model.predict(parts["features"][:9])
    pd.testing.assert_frame_equal(table, expected)
    for bad in (np.nan, 1e300):
        with pytest.raises(DataError, match="row 1 are not all finite"):
            model.predict(np.array([[0.0] * D, [bad] * D]))


def selected(capsys: pytest.CaptureFixture[str], *arguments: str) -> pd.DataFrame:
    """What `palkit select` prints."""
    assert main(["select", *arguments, "--device", "cpu"]) == 0
    return pd.read_csv(StringIO(capsys.readouterr().out), dtype={"id": str})


def test_select_by_ones_own_model_is_select_of_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = arrays()
    probs = np.random.default_rng(1).dirichlet(np.ones(3), N)
    known = dict(zip(parts["ids"][:9].tolist(), parts["labels"][:9].tolist(), strict=True))
    pd.DataFrame({"id": list(known), "label": list(known.values())}).to_csv(tmp_path / "labels.csv", index=False)
    path = write(tmp_path / "mine.npz", {name: parts[name] for name in ("features", "ids")} | {"probs": probs})
    np.save(tmp_path / "probs.npy", probs)
    np.testing.assert_allclose(probs_of(path)[0], probs)
    np.savez(tmp_path / "more.npz", probs=probs, notes=np.array([{}], dtype=object))
    np.testing.assert_array_equal(probs_of(tmp_path / "more.npz")[0], probs)
    same = ("-n", "7", "--strategy", "entropy", "--classes", *NAMES)
    table = selected(capsys, str(path), "--labels", str(tmp_path / "labels.csv"), *same)
    features, ids = parts["features"], parts["ids"].tolist()
    expected = palkit.select("entropy", features, probs, known, 7, ids=ids, classes=NAMES)
    assert table["id"].tolist() == expected.tolist()
    best = probs[table["row"]]
    assert table["predicted"].tolist() == [NAMES[code] for code in best.argmax(axis=1)]
    np.testing.assert_allclose(table["probability"], best.max(axis=1), rtol=1e-6)
    alone = write(tmp_path / "alone.npy", parts)
    by_number = pd.DataFrame({"id": range(9), "label": list(known.values())})
    by_number.to_csv(tmp_path / "numbers.csv", index=False)
    given = ("--labels", str(tmp_path / "numbers.csv"), "--probs", str(tmp_path / "probs.npy"))
    assert set(selected(capsys, str(alone), *given, *same)["row"]) == set(table["row"])


def test_probabilities_go_by_their_own_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any order of images and classes, where the file says which; what does not fit is refused, and not used."""
    rng, parts = np.random.default_rng(1), arrays()
    probs, rows, columns = rng.dirichlet(np.ones(3), N), rng.permutation(N), [2, 0, 1]
    of = {name: parts[name] for name in ("features", "ids")}
    mine = write(tmp_path / "mine.npz", of | {"classes": np.array(NAMES)})
    np.save(tmp_path / "probs.npy", probs)
    beside = {"probs": probs[rows][:, columns], "ids": parts["ids"][rows], "classes": np.array(NAMES)[columns]}
    np.savez(tmp_path / "theirs.npz", **beside)
    same = (str(mine), "-n", "6", "--strategy", "margin")
    table = selected(capsys, *same, "--probs", str(tmp_path / "probs.npy"), "--classes", *NAMES)
    assert len(table) == 6
    pd.testing.assert_frame_equal(selected(capsys, *same, "--probs", str(tmp_path / "theirs.npz")), table)
    other = [NAMES[code] for code in columns]
    unnamed = write(tmp_path / "unnamed.npz", of)
    again = (str(unnamed), *same[1:], "--probs", str(tmp_path / "theirs.npz"), "--classes", *other)
    pd.testing.assert_frame_equal(selected(capsys, *again), table)
    for change, message in (
        ({"classes": np.array(["a", "b", "c"])}, "probs are of the classes a, b, c, and not of"),
        ({"classes": np.array(["a", "b"])}, "probs have 2 classes of their own for 3"),
        ({"ids": beside["ids"][:-1], "probs": beside["probs"][:-1]}, "probs are lacking for 1 images"),
        ({"ids": np.repeat(beside["ids"][:1], N)}, f"probs have 1 ids of their own for {N}"),
        ({"probs": None}, "holds no array probs"),
    ):
        np.savez(tmp_path / "bad.npz", **{name: one for name, one in (beside | change).items() if one is not None})
        assert main(["select", *same, "--probs", str(tmp_path / "bad.npz"), "--device", "cpu"]) == 1
        assert message in " ".join(capsys.readouterr().err.split())
    assert main(["select", *same[:-1], "epig", "--probs", str(tmp_path / "theirs.npz"), "--device", "cpu"]) == 1
    assert "needs several passes of the model" in " ".join(capsys.readouterr().err.split())


def test_labels_in_a_table_count_as_those_beside_features(tmp_path: Path) -> None:
    """-1 is unknown, and pandas writes whole numbers with gaps as 2.0; neither among names."""
    for text, expected in (
        ("a,-1\nb,0\nc,2\n", {"b": "0", "c": "2"}),
        ("a,-1.0\nb,0.0\nc,2.0\nd,\n", {"b": "0", "c": "2"}),
        ("a,-1\nb,red\nc,2.0\n", {"a": "-1", "b": "red", "c": "2.0"}),
        ("a,1.5\nb,2.0\n", {"a": "1.5", "b": "2.0"}),
    ):
        (tmp_path / "labels.csv").write_text("id,label\n" + text)
        assert read_labels(tmp_path / "labels.csv") == expected


def test_select_without_a_model_fits_one_or_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = arrays()
    some = np.where(np.arange(N) % 10 == 0, parts["labels"], "")
    path = write(tmp_path / "mine.parquet", {"features": parts["features"], "label": some, "id": parts["ids"]})
    assert main(["select", str(path), "-n", "5", "--strategy", "margin", "--out", str(tmp_path / "next.csv")]) == 0
    written = pd.read_csv(tmp_path / "next.csv")
    assert len(written) == 5
    assert not set(written["id"]) & set(parts["ids"][some != ""])
    assert set(written["predicted"]) <= set(NAMES)
    nothing = write(tmp_path / "new.npz", {"features": parts["features"]})
    assert len(selected(capsys, str(nothing), "-n", "4")) == 4
    assert main(["select", str(nothing), "-n", "4", "--strategy", "margin"]) == 0
    told = capsys.readouterr()
    assert "so typiclust chose" in told.err
    assert len(told.out.splitlines()) == 5


def test_select_refuses_what_does_not_fit(tmp_path: Path) -> None:
    parts = arrays()
    pool = load_dataset(str(write(tmp_path / "mine.npz", {name: parts[name] for name in ("features", "ids")})))
    config = config_from_dict({"dataset": str(tmp_path / "mine.npz"), **PLAIN, "strategy": "margin"})
    with pytest.raises(ConfigError, match=r"probs are 120 rows of 3; .* 2 classes"):
        next_batch(config, pool, "cpu", probs=np.full((N, 3), 1 / 3), classes=("a", "b"))
    with pytest.raises(ConfigError, match="probs need the names of all classes"):
        next_batch(config, pool, "cpu", probs=np.full((N, 3), 1 / 3))
    with pytest.raises(ConfigError, match="label 'Red' is none of the classes given"):
        next_batch(config, pool, "cpu", labels={"case 001": "Red"}, classes=NAMES)
    with pytest.raises(DataError, match="1 labels are of images that are not in the pool"):
        next_batch(config, pool, "cpu", labels={"nobody": "red"})
    with pytest.raises(ConfigError, match="every image of"):
        next_batch(config, pool, "cpu", labels=dict.fromkeys(parts["ids"].tolist(), "red"))
    whole = write(tmp_path / "whole.npz", {name: parts[name] for name in ("features", "ids", "labels")})
    with pytest.raises(DataError, match=r"every row of .* has a label: there is none to choose"):
        from_features(whole, splits=False)
    (tmp_path / "two.csv").write_text("id,label\na,red\na,blue\n")
    with pytest.raises(DataError, match="line 3: 'a' has the label 'red' already"):
        read_labels(tmp_path / "two.csv")
    (tmp_path / "none.csv").write_text("id,class\na,red\n")
    with pytest.raises(PalkitError, match="needs the columns id and label"):
        read_labels(tmp_path / "none.csv")


def test_no_patient_fills_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two thirds are of one patient: in a run, its first batch included, in a session, and by command."""
    parts = arrays()
    patient = np.where(np.arange(N) % 3 > 0, "ann", np.array([f"p{number // 9}" for number in range(N)]))
    parts["split"] = np.full(N, "train")
    of = dict(zip(parts["ids"], patient, strict=True))
    bound = {"strategy_options": {"per_group": 1}, "strategy": "margin"}
    tested = {**parts, "split": np.where(patient == "p0", "test", "train"), "groups": patient}
    run = palkit.run(dataset=str(write(tmp_path / "tested.npz", tested)), **PLAIN, **bound, device="cpu")
    assert len(list(run)) == 3
    for _, batch in run.directory.selections().groupby("round"):
        assert batch["id"].map(of).is_unique
    unknown = {name: values for name, values in parts.items() if name in ("features", "ids")}
    mine = write(tmp_path / "unknown.npz", {**unknown, "groups": patient})
    session = palkit.open_session(str(mine), "ana", classes=NAMES, folder=tmp_path / "labels", batch_size=6, **bound)
    truth = dict(zip(parts["ids"], parts["labels"], strict=True))
    for _ in range(3):
        batch = session.propose()["id"]
        assert batch.map(of).is_unique
        session.label(batch, [truth[name] for name in batch])
        session.fit()
    table = selected(capsys, str(mine), "-n", "8", "--per-group", "1")
    assert table["id"].map(of).is_unique
    with pytest.raises(ConfigError, match="nothing says which images are of one group"):
        palkit.open_session(str(write(tmp_path / "none.npz", unknown)), "ana", folder=tmp_path / "none", **bound)
    assert not (tmp_path / "none" / "session.json").exists()
    assert main(["select", str(write(tmp_path / "none.npz", unknown)), "--per-group", "1", "--device", "cpu"]) == 1
    assert "nothing says which images are of one group" in capsys.readouterr().err.replace("\n", " ")
