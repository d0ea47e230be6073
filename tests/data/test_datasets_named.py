"""Named data sets, each from a small copy of what is published, in its own layout and format, over HTTP."""

import dataclasses
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import chain
from pathlib import Path

import medmnist.info
import numpy as np
import pytest
import torchvision
from dataset_helpers import FileServer, encoded, noise, serving
from scipy.io import savemat

from palkit.cli import main
from palkit.data import DATASETS, FileImages, StoredImages, cifar, load_dataset, published
from palkit.data.download import Remote, dataset_dir
from palkit.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as files:
        yield files


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return buffer.getvalue()


def once_more(name: str, server: FileServer) -> None:
    """What is there is read without the server, and is the same."""
    before, asked = load_dataset(name).checksum(), len(server.requests)
    assert load_dataset(name).checksum() == before
    assert len(server.requests) == asked


def test_eurosat(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        f"2750/{kind}/{kind}_{n}.jpg": encoded(20 * c + n, "JPEG")
        for c, kind in enumerate(("AnnualCrop", "Forest", "SeaLake"))
        for n in range(1, 21)
    }
    md5 = server.publish("EuroSAT.zip", zipped(files))
    monkeypatch.setattr(published, "EUROSAT", Remote(f"{server.url}/EuroSAT.zip", f"md5:{md5}", "EuroSAT.zip"))
    pool = load_dataset("eurosat")
    assert pool.name == "eurosat"
    assert pool.class_names == ("AnnualCrop", "Forest", "SeaLake")
    assert pool.counts().to_numpy().tolist() == [[12, 3, 5]] * 3
    assert all(name.split("/")[0] == label for name, label in zip(pool.ids, pool.label_names(), strict=True))
    assert pool.images.decode(np.arange(4), 64).shape == (4, 64, 64, 3)
    once_more("eurosat", server)
    assert load_dataset("eurosat_lt").counts()["pool"].tolist() == [12, 2, 1]
    part = load_dataset("eurosat_5k")
    assert part.name == "eurosat_5k"
    assert set(part.ids) <= set(pool.ids)


def test_eurosat_is_the_archive_that_torchvision_names() -> None:
    source = Path(torchvision.datasets.eurosat.__file__).read_text()
    assert f'"{published.EUROSAT.url}"' in source
    assert f'"{published.EUROSAT.checksum.removeprefix("md5:")}"' in source


def test_histology(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    top = "Kather_texture_2016_image_tiles_5000"
    files = {
        f"{top}/{kind}/{n:04X}_CRC-Prim-HE-{n % 10:02d}_0{n}.tif_Row_{n}_Col_1.tif": encoded(10 * c + n, "TIFF")
        for c, kind in enumerate(("01_TUMOR", "02_STROMA", "08_EMPTY"))
        for n in range(10)
    }
    digest = server.publish(f"{top}.zip", zipped(files))
    remote = Remote(f"{server.url}/{top}.zip?download=1", f"md5:{digest}", f"{top}.zip")
    monkeypatch.setattr(published, "HISTOLOGY", remote)
    pool = load_dataset("histology")
    assert pool.class_names == ("01_TUMOR", "02_STROMA", "08_EMPTY")
    assert pool.counts().to_numpy().tolist() == [[6, 2, 2]] * 3
    assert np.array_equal(pool.images.decode(np.array([0]), 10)[0], np.asarray(noise(0).crop((0, 1, 10, 11))))
    once_more("histology", server)

    slides = load_dataset("histology_slides")
    assert slides.name == "histology_slides"
    assert set(slides.ids) == set(pool.ids)
    assert sorted(set(slides.groups)) == [f"CRC-Prim-HE-{n:02d}" for n in range(10)]
    assert [name.split("_")[2] for name in slides.ids] == slides.groups.tolist()
    assert all(len(set(slides.split[slides.groups == slide])) == 1 for slide in set(slides.groups))

    tail = load_dataset("histology_lt")
    assert tail.counts()["pool"].tolist() == [6, 1, 1]
    assert tail.counts()[["val", "test"]].equals(pool.counts()[["val", "test"]])


def test_aptos_says_how_to_get_it() -> None:
    root = dataset_dir("aptos2019")
    with pytest.raises(DataError) as error:
        load_dataset("aptos2019")
    for part in ("kaggle competitions download -c aptos2019-blindness-detection", f"{root}/train.csv", "id_code"):
        assert part in str(error.value)


def put_by_hand(name: str, archive: str, files: dict[str, bytes], as_zip: bool) -> None:
    """A data set that needs an account, as its user puts it into place: its zip file, or what is in it."""
    root = dataset_dir(name)
    root.mkdir(parents=True)
    (root / archive).write_bytes(zipped(files))
    if not as_zip:
        zipfile.ZipFile(root / archive).extractall(root)
        (root / archive).unlink()


def aptos() -> dict[str, bytes]:
    rows = [f"{n:012x},{n % 5}" for n in range(60)]
    images = {f"train_images/{n:012x}.png": encoded(n, "PNG") for n in range(60)}
    return {"train.csv": "\n".join(["id_code,diagnosis", *rows]).encode(), "test.csv": b"id_code\n", **images}


@pytest.mark.parametrize("as_zip", [True, False])
def test_aptos(as_zip: bool) -> None:
    put_by_hand("aptos2019", "aptos2019-blindness-detection.zip", aptos(), as_zip)
    pool = load_dataset("aptos2019")
    assert pool.class_names == ("no DR", "mild", "moderate", "severe", "proliferative")
    assert pool.counts().to_numpy().tolist() == [[7, 2, 3]] * 5
    grades = {name: int(name.removeprefix("train_images/").removesuffix(".png"), 16) % 5 for name in pool.ids}
    assert list(grades.values()) == pool.labels.tolist()


IDRID = (("a", "Training", 60), ("b", "Testing", 20))  # letter and name of each part, images


def idrid() -> dict[str, bytes]:
    """As IEEE DataPort's archive: names begin at 1 in both parts, and tables end in empty columns."""
    files = {}
    for letter, part, images in IDRID:
        rows = [f"IDRiD_{n + 1:03},{n % 5},{n % 3},,," for n in range(images)]
        header = "Image name,Retinopathy grade,Risk of macular edema ,,,"
        table = f"B. Disease Grading/2. Groundtruths/{letter}. IDRiD_Disease Grading_{part} Labels.csv"
        files[table] = "\n".join([header, *rows]).encode()
        for n in range(images):
            name = f"B. Disease Grading/1. Original Images/{letter}. {part} Set/IDRiD_{n + 1:03}.jpg"
            files[name] = encoded(n + 100 * ord(letter), "JPEG")
    return files


@pytest.mark.parametrize("as_zip", [True, False])
def test_idrid(as_zip: bool) -> None:
    put_by_hand("idrid", "B. Disease Grading.zip", idrid(), as_zip)
    pool = load_dataset("idrid")
    assert pool.class_names == ("no DR", "mild", "moderate", "severe", "proliferative")
    assert pool.counts()[["pool", "val"]].sum(axis=1).tolist() == [12] * 5
    assert pool.counts()["test"].tolist() == [4] * 5, "the official one"
    numbers = [int(name[-7:-4]) - 1 for name in pool.ids]
    assert [number % 5 for number in numbers] == pool.labels.tolist()
    assert all(("Testing" in name) == (split == "test") for name, split in zip(pool.ids, pool.split, strict=True))


def test_idrid_without_copies() -> None:
    """One of two equal photographs of a grade stays, neither of two with different grades, in one set or in both."""
    files, images = idrid(), "B. Disease Grading/1. Original Images"
    for one, copy in (("a. Training Set/IDRiD_001", "a. Training Set/IDRiD_006"),
                      ("a. Training Set/IDRiD_002", "a. Training Set/IDRiD_003"),
                      ("a. Training Set/IDRiD_004", "b. Testing Set/IDRiD_005")):  # fmt: skip
        files[f"{images}/{copy}.jpg"] = files[f"{images}/{one}.jpg"]
    put_by_hand("idrid", "B. Disease Grading.zip", files, as_zip=False)
    whole, pool = load_dataset("idrid"), load_dataset("idrid_unique")
    gone = {name.removeprefix("1. Original Images/") for name in set(whole.ids) - set(pool.ids)}
    assert gone == {f"a. Training Set/IDRiD_00{n}.jpg" for n in (6, 2, 3, 4)} | {"b. Testing Set/IDRiD_005.jpg"}
    assert any(note.startswith("5 images are left out: ") for note in pool.notes)


def test_idrid_says_how_to_get_it_and_what_is_wrong() -> None:
    root = dataset_dir("idrid")
    with pytest.raises(DataError, match=r"ieee-dataport\.org.*download B\. Disease Grading\.zip there and put it into"):
        load_dataset("idrid")
    table = "B. Disease Grading/2. Groundtruths/b. IDRiD_Disease Grading_Testing Labels.csv"
    for name, content in (idrid() | {table: b"Image name,Grade\nIDRiD_001,7\n"}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    with pytest.raises(DataError, match=r"Testing Labels\.csv lacks the columns image name and retinopathy grade"):
        load_dataset("idrid")


def test_an_aptos_table_of_something_else_is_refused() -> None:
    root = dataset_dir("aptos2019")
    (root / "train_images").mkdir(parents=True)
    (root / "train.csv").write_text("id_code,diagnosis\na,7\n")
    with pytest.raises(DataError, match=r"train\.csv lacks the columns id_code and diagnosis"):
        load_dataset("aptos2019")


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar(server: FileServer, monkeypatch: pytest.MonkeyPatch, name: str, classes: int) -> None:
    source = getattr(cifar, name.upper())
    names = [f"class_{n}" for n in range(classes)]
    each = 10 * classes // len(source.train)  # images of a training file; a class has ten in all
    rng, files, pixels, labels = np.random.default_rng(0), {}, {}, {}
    for file in (*source.train, source.test):
        pixels[file] = rng.integers(0, 256, (each, 3, 32, 32), dtype=np.uint8)
        labels[file] = np.arange(each) % classes
        coarse = np.full((each, source.labels - 1), 250)  # of CIFAR-100, which is not the class
        records = np.hstack([coarse, labels[file][:, None], pixels[file].reshape(each, -1)]).astype(np.uint8)
        files[f"{source.folder}/{file}"] = records.tobytes()
    files[f"{source.folder}/{source.names}"] = ("\n".join(names) + "\n\n").encode()
    md5 = server.publish(source.remote.name, tarred(files))
    remote = dataclasses.replace(source.remote, url=f"{server.url}/{source.remote.name}", checksum=f"md5:{md5}")
    monkeypatch.setattr(cifar, name.upper(), source._replace(remote=remote))

    pool = load_dataset(name)
    assert pool.class_names == tuple(names)
    assert pool.counts()[["pool", "val"]].to_numpy().tolist() == [[9, 1]] * classes
    assert pool.counts()["test"].sum() == each
    order = [*source.train, source.test]
    assert pool.labels.tolist() == np.concatenate([labels[file] for file in order]).tolist()
    expected = np.concatenate([pixels[file] for file in order]).transpose(0, 2, 3, 1)
    rows = np.array([0, each - 1, len(pool) - 1])
    assert np.array_equal(pool.images.decode(rows, 32), expected[rows])
    assert pool.ids[[0, -1]].tolist() == ["train-00000", f"test-{each - 1:05d}"]
    once_more(name, server)

    stored = dataset_dir(name) / "unpacked" / source.folder / source.test
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(
        DataError,
        match=rf"data set '{name}' in .* is damaged.*cannot reshape.*datasets/{name}",
    ):
        load_dataset(name)


def test_food101(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("apple_pie", "waffles")
    lists = {
        "train": {kind: [f"{kind}/{n}" for n in range(20)] for kind in kinds},
        "test": {kind: [f"{kind}/{n}" for n in range(20, 25)] for kind in kinds},
    }
    files = {
        f"food-101/images/{k}/{n}.jpg": encoded(50 * c + n, "JPEG") for c, k in enumerate(kinds) for n in range(25)
    }
    files |= {f"food-101/meta/{part}.json": json.dumps(table).encode() for part, table in lists.items()}
    monkeypatch.setattr(torchvision.datasets.Food101, "_URL", f"{server.url}/food-101.tar.gz")
    monkeypatch.setattr(torchvision.datasets.Food101, "_MD5", server.publish("food-101.tar.gz", tarred(files)))
    pool = load_dataset("food101")
    assert pool.class_names == kinds
    assert pool.counts().to_numpy().tolist() == [[18, 2, 5]] * 2
    assert {int(Path(name).stem) for name in pool.ids[pool.rows("test")]} == set(range(20, 25))
    assert isinstance(pool.images, FileImages)
    assert pool.images.decode(np.array([0]), 10).shape == (1, 10, 10, 3)
    once_more("food101", server)


def test_dtd(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("banded", "zigzagged")
    names = {
        part: [f"{k}/{k}_{i}{n}.jpg" for k in kinds for n in range(3)]
        for i, part in enumerate(("train", "val", "test"))
    }
    files = {f"dtd/images/{name}": encoded(n, "JPEG") for n, name in enumerate(chain(*names.values()))}
    files |= {f"dtd/labels/{part}1.txt": "\n".join(listed).encode() for part, listed in names.items()}
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{server.url}/dtd.tar.gz")
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", server.publish("dtd.tar.gz", tarred(files)))
    pool = load_dataset("dtd")
    assert pool.class_names == kinds
    for part, split in (("train", "pool"), ("val", "val"), ("test", "test")):
        assert [name.removeprefix("dtd/dtd/images/") for name in pool.ids[pool.rows(split)]] == names[part]
    once_more("dtd", server)


def matlab(**arrays: object) -> bytes:
    buffer = BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def test_flowers102(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(18) % 102 % 3 + 1
    parts = {"tstid": np.arange(1, 10), "trnid": np.arange(10, 16), "valid": np.arange(16, 19)}
    contents = {
        "image": ("102flowers.tgz", tarred({f"jpg/image_{n:05d}.jpg": encoded(n, "JPEG") for n in range(1, 19)})),
        "label": ("imagelabels.mat", matlab(labels=labels)),
        "setid": ("setid.mat", matlab(**parts)),
    }
    listed = {key: (file, server.publish(file, content)) for key, (file, content) in contents.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_download_url_prefix", f"{server.url}/")
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", listed)
    pool = load_dataset("flowers102")
    assert len(pool.class_names) == 102
    for part, split in (("trnid", "pool"), ("valid", "val"), ("tstid", "test")):
        rows = pool.rows(split)
        assert [int(Path(name).stem[-5:]) for name in pool.ids[rows]] == parts[part].tolist()
        assert pool.labels[rows].tolist() == (labels[parts[part] - 1] - 1).tolist()
    once_more("flowers102", server)


@pytest.mark.parametrize(
    ("name", "size"), [("bloodmnist", 28), ("pathmnist", 28), ("retinamnist_64", 64), ("dermamnist_224", 224)]
)
def test_medmnist(server: FileServer, monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    flag = name.partition("_")[0]
    classes = len(medmnist.info.INFO[flag]["label"])
    rng, counts = np.random.default_rng(0), {"train": 2 * classes, "val": classes, "test": classes}
    arrays = {f"{part}_images": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8) for part, n in counts.items()}
    arrays |= {f"{part}_labels": (np.arange(n)[:, None] % classes).astype(np.uint8) for part, n in counts.items()}
    buffer, suffix = BytesIO(), "" if size == 28 else f"_{size}"
    np.savez_compressed(buffer, **arrays)
    info = {
        f"url{suffix}": f"{server.url}/{name}.npz?download=1",
        f"MD5{suffix}": server.publish(f"{name}.npz", buffer.getvalue()),
    }
    monkeypatch.setitem(medmnist.info.INFO, flag, medmnist.info.INFO[flag] | info)
    monkeypatch.setattr("palkit.data.libraries.COPY_BYTES", 10_000)

    pool = load_dataset(name)
    assert pool.counts().to_numpy().tolist() == [[2, 1, 1]] * classes
    for part, split in (("train", "pool"), ("val", "val"), ("test", "test")):
        assert np.array_equal(pool.images.decode(pool.rows(split), size), arrays[f"{part}_images"])
        assert np.array_equal(pool.labels[pool.rows(split)], arrays[f"{part}_labels"][:, 0])
    assert isinstance(pool.images, StoredImages)
    some = pool.images.take(np.array([3, 1]))
    assert np.array_equal(some.decode(np.array([1]), size)[0], arrays["train_images"][1])
    assert some.checksum() != pool.images.take(np.array([1, 3])).checksum()
    assert pool.duplicates().empty
    once_more(name, server)


def test_the_sizes_of_medmnist_are_published_with_checksums() -> None:
    for flag in ("pathmnist", "retinamnist", "dermamnist", "bloodmnist"):
        for suffix in ("", "_64", "_128", "_224"):
            assert flag + suffix in DATASETS
            assert medmnist.info.INFO[flag][f"url{suffix}"].startswith("https://zenodo.org/")
            assert len(medmnist.info.INFO[flag][f"MD5{suffix}"]) == 32


def test_a_download_that_fails_names_the_place(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{server.url}/nowhere.tar.gz")
    with pytest.raises(DataError, match=rf"404.*put it at {dataset_dir('dtd')}/dtd-r1\.0\.1\.tar\.gz"):
        load_dataset("dtd")


def test_groups_are_for_own_images() -> None:
    with pytest.raises(ConfigError, match="'digits' has its labels"):
        load_dataset("digits", group="x")


def test_fetch_downloads_and_counts(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("palkit.models.backbones.embedded_weights", lambda: "weights")
    files = {f"2750/{kind}/{kind}_{n}.jpg": encoded(n, "JPEG") for kind in ("Forest", "River") for n in range(20)}
    md5 = server.publish("EuroSAT.zip", zipped(files))
    monkeypatch.setattr(published, "EUROSAT", Remote(f"{server.url}/EuroSAT.zip", f"md5:{md5}", "EuroSAT.zip"))
    assert main(["fetch", "eurosat"]) == 0
    output = capsys.readouterr().err
    assert "eurosat: 40 images, 2 classes" in output
    assert output.split()[-8:] == ["Forest", "12", "3", "5", "River", "12", "3", "5"]
    assert main(["fetch", "eurosta"]) == 1
    assert "Did you mean 'eurosat'" in capsys.readouterr().err
