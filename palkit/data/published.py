"""Published archives of images: EuroSAT, colorectal histology, APTOS 2019, IDRiD."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from palkit.data.download import Remote, dataset_dir, unpack, unpacked
from palkit.data.manifest import without_copies
from palkit.data.own import from_folder, from_table
from palkit.data.pool import ImagePool, long_tail, lots, take
from palkit.errors import DataError
from palkit.storage.formats import read_csv

# Helber et al. 2019. URL and checksum are torchvision's (torchvision.datasets.EuroSAT).
EUROSAT = Remote(
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
    "md5:c8fa014336c82ac7804f0398fcb19387",
    "EuroSAT.zip",
)
# Kather et al. 2016. The checksum is TensorFlow Datasets' (url_checksums/colorectal_histology.txt).
HISTOLOGY = Remote(
    "https://zenodo.org/records/53169/files/Kather_texture_2016_image_tiles_5000.zip?download=1",
    "sha256:936d0b95ae0f04f1f7b18a2b7e8c55776c3e887d102f645bcee752d1a6626a32",
    "Kather_texture_2016_image_tiles_5000.zip",
)
SLIDE = r"CRC-Prim-HE-\d+"  # in the names of tiles
APTOS = "aptos2019-blindness-detection"
IDRID = "B. Disease Grading"
# Of diabetic retinopathy, on the international scale.
GRADES = {"0": "no DR", "1": "mild", "2": "moderate", "3": "severe", "4": "proliferative"}


def eurosat() -> ImagePool:
    """27,000 Sentinel-2 RGB tiles of 64 x 64 pixels, 10 kinds of land use, split 60/15/25 per class.

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    folder = unpacked(EUROSAT, dataset_dir("eurosat"), "unpacked")
    return dataclasses.replace(from_folder(folder / "2750"), name="eurosat")


def eurosat_5k() -> ImagePool:
    """5,000 images of EuroSAT with their splits: for adapters on a CPU, as many as histology has."""
    pool = eurosat()
    draw = lots(np.char.add(pool.ids, " of 5k"))  # not the lots that made the splits, whose first are all pool
    return take(pool, np.sort(np.argsort(draw, kind="stable")[:5000]), "eurosat_5k")


def eurosat_lt() -> ImagePool:
    """These 5,000 with a pool whose largest class is 50 times the smallest."""
    return dataclasses.replace(long_tail(eurosat_5k()), name="eurosat_lt")


def histology() -> ImagePool:
    """5,000 H&E-stained tiles of 150 x 150 pixels, 8 tissues of colorectal cancer, split 60/15/25 per class.

    Tiles of one slide are in all splits, as in the literature: `histology_slides` says what new slides would bring.

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    return _histology("histology")


def histology_slides() -> ImagePool:
    """The histology tiles, split 64/10/26 so that no slide of the ten is in two splits; no tile of val is 08_EMPTY."""
    return _histology("histology_slides", SLIDE)


def histology_lt() -> ImagePool:
    """The histology tiles with a pool whose largest class is 50 times the smallest."""
    return long_tail(histology())


def _histology(name: str, group: str | None = None) -> ImagePool:
    folder = unpacked(HISTOLOGY, dataset_dir("histology"), "unpacked")
    return dataclasses.replace(from_folder(folder / HISTOLOGY.name.removesuffix(".zip"), group), name=name)


def aptos2019() -> ImagePool:
    """3,662 fundus photographs, 5 grades of diabetic retinopathy, split 60/15/25 per grade.

    Kaggle hands it out to logged-in users only, so it is put into place by hand, unpacked or as the zip file.

    Raises:
        DataError: it is not there, or its table is not the published one; explains what to do.
    """
    root = dataset_dir("aptos2019")
    remedy = (
        "aptos2019 needs a Kaggle account: accept the rules at https://www.kaggle.com/c/"
        f"{APTOS} and run `kaggle competitions download -c {APTOS} -p {root}`, or download the zip file there. "
        f"Expected is {root / APTOS}.zip, or unpacked {root / 'train.csv'} (columns id_code, diagnosis) and "
        f"{root / 'train_images'}/*.png."
    )
    archive = root / f"{APTOS}.zip"
    if archive.exists() and not (root / "train.csv").exists():
        root = unpack(archive, root / "unpacked")
    rows = _graded(root, "train.csv", "id_code", "diagnosis", "train_images", "png", remedy)
    return from_table("aptos2019", rows, root, tuple(GRADES.values()))


def idrid() -> ImagePool:
    """516 fundus photographs, 5 grades of diabetic retinopathy: 413 to train with, 103 for the test (official).

    A tenth of each grade of the training set is for validation. Some photographs are there twice, also with different
    grades and once in both sets; `palkit manifest idrid FILE.csv --drop-duplicates` lists them and leaves them out.
    IEEE DataPort hands it out to logged-in users only, so it is put into place by hand, unpacked or as the zip file.

    Raises:
        DataError: it is not there, or its tables are not the published ones; explains what to do.

    Source: Porwal et al., Indian Diabetic Retinopathy Image Dataset, Data 3(3):25, 2018.
    """
    root = dataset_dir("idrid")
    remedy = (
        "idrid needs an account at https://ieee-dataport.org/open-access/"
        f"indian-diabetic-retinopathy-image-dataset-idrid: download {IDRID}.zip there and put it into {root}, as it is "
        f"or unpacked, so that {root / IDRID} holds '1. Original Images' and '2. Groundtruths'."
    )
    archive, folder = root / f"{IDRID}.zip", root / IDRID
    if archive.exists() and not folder.exists():
        folder = unpack(archive, root / "unpacked") / IDRID
    parts = []
    for split, letter, part in (("pool", "a", "Training"), ("test", "b", "Testing")):
        table = f"2. Groundtruths/{letter}. IDRiD_Disease Grading_{part} Labels.csv"
        images = f"1. Original Images/{letter}. {part} Set"
        rows = _graded(folder, table, "image name", "retinopathy grade", images, "jpg", remedy)
        parts.append(rows.assign(split=split))
    return from_table("idrid", pd.concat(parts), folder, tuple(GRADES.values()))


def idrid_unique() -> ImagePool:
    """IDRiD without the photographs that are there twice: one copy stays, none where their grades differ."""
    return without_copies(idrid(), "idrid_unique")


def _graded(root: Path, table: str, name: str, grade: str, images: str, suffix: str, remedy: str) -> pd.DataFrame:
    """Paths and grades, by their names, of the photographs that a published table lists.

    Args:
        root: folder that the other two are relative to.
        table: a CSV file.
        name: its column with the names of files without their suffix.
        grade: its column with the grades.
        images: folder of the photographs.
        suffix: of the files.
        remedy: sentences for errors.

    Raises:
        DataError: there is no such table or folder, or it holds something else.
    """
    if not (root / table).exists() or not (root / images).is_dir():
        raise DataError(remedy)
    rows = read_csv(root / table, (name, grade))
    if not {name, grade} <= set(rows) or not set(rows[grade]) <= GRADES.keys():
        raise DataError(f"{root / table} lacks the columns {name} and {grade} (0 to 4). {remedy}")
    rows.index = [f"{table}, {line}" for line in rows.index]  # where a row that is wrong stands
    return pd.DataFrame({"path": f"{images}/" + rows[name] + f".{suffix}", "label": rows[grade].map(GRADES)})
