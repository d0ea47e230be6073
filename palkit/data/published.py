"""Published archives of images: EuroSAT, colorectal histology, APTOS 2019."""

import dataclasses
from pathlib import Path

import pandas as pd

from palkit.data.download import Remote, dataset_dir, unpack, unpacked
from palkit.data.own import from_folder, from_table
from palkit.data.pool import ImagePool
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
APTOS = "aptos2019-blindness-detection"
APTOS_GRADES = {"0": "no DR", "1": "mild", "2": "moderate", "3": "severe", "4": "proliferative"}


def eurosat() -> ImagePool:
    """27,000 Sentinel-2 RGB tiles of 64 x 64 pixels, 10 kinds of land use, split 60/15/25 per class.

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    folder = unpacked(EUROSAT, dataset_dir("eurosat"), "unpacked")
    return dataclasses.replace(from_folder(folder / "2750"), name="eurosat")


def histology() -> ImagePool:
    """5,000 H&E-stained tiles of 150 x 150 pixels, 8 tissues of colorectal cancer, split 60/15/25 per class.

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    folder = unpacked(HISTOLOGY, dataset_dir("histology"), "unpacked")
    return dataclasses.replace(from_folder(folder / HISTOLOGY.name.removesuffix(".zip")), name="histology")


def aptos2019() -> ImagePool:
    """3,662 fundus photographs, 5 grades of diabetic retinopathy, split 60/15/25 per grade.

    Kaggle hands it out to logged-in users only, so it is put into place by hand, unpacked or as the zip file.

    Raises:
        DataError: it is not there, or its table is not the published one; explains what to do.
    """
    root = dataset_dir("aptos2019")
    archive = root / f"{APTOS}.zip"
    if archive.exists() and not (root / "train.csv").exists():
        root = unpack(archive, root / "unpacked")
    table, images = root / "train.csv", root / "train_images"
    if not table.exists() or not images.is_dir():
        raise DataError(_aptos_help(dataset_dir("aptos2019")))
    rows = read_csv(table, ("id_code", "diagnosis"))
    if not {"id_code", "diagnosis"} <= set(rows) or not set(rows["diagnosis"]) <= APTOS_GRADES.keys():
        raise DataError(f"{table} lacks the columns id_code and diagnosis (0 to 4). {_aptos_help(root)}")
    listed = pd.DataFrame(
        {"path": "train_images/" + rows["id_code"] + ".png", "label": rows["diagnosis"].map(APTOS_GRADES)}
    )
    return from_table("aptos2019", listed, root, tuple(APTOS_GRADES.values()))


def _aptos_help(root: Path) -> str:
    return (
        "aptos2019 needs a Kaggle account: accept the rules at https://www.kaggle.com/c/"
        f"{APTOS} and run `kaggle competitions download -c {APTOS} -p {root}`, or download the zip file there. "
        f"Expected is {root / APTOS}.zip, or unpacked {root / 'train.csv'} (columns id_code, diagnosis) and "
        f"{root / 'train_images'}/*.png."
    )
