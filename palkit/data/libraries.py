"""Data sets that torchvision and MedMNIST describe: their URLs, checksums and splits, read as they are stored.

Their own downloads start again after a cut connection; ours put the files where the libraries look for them.
"""

import shutil
import zipfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from palkit.data.download import Remote, dataset_dir, fetched, reading, unpacked
from palkit.data.files import FileImages, StoredImages
from palkit.data.pool import SPLITS, ImagePool, carve, usable
from palkit.storage.files import atomic_path

PARTS = ("train", "val", "test")  # what both libraries call SPLITS
COPY_BYTES = 2**24
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def food101() -> ImagePool:
    """101 dishes, 75,750 training photographs, a tenth of them for validation, and 25,250 test photographs.

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    from torchvision.datasets import Food101

    remote = Remote(Food101._URL, f"md5:{Food101._MD5}", "food-101.tar.gz")
    root = unpacked(remote, dataset_dir("food101"), "unpacked")
    train, test = (_read("food101", root, Food101, split=part) for part in ("train", "test"))
    names = np.array([path.relative_to(root).as_posix() for path in train._image_files])
    return _file_pool("food101", root, [train, test], [carve(np.array(train._labels), names), "test"], train.classes)


def dtd() -> ImagePool:
    """Describable textures: 47 classes, 1,880 images each for pool, val and test (the first official partition).

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    from torchvision.datasets import DTD

    folder = dataset_dir("dtd")
    unpacked(Remote(DTD._URL, f"md5:{DTD._MD5}", "dtd-r1.0.1.tar.gz"), folder, "dtd")
    parts = [_read("dtd", folder, DTD, split=part) for part in PARTS]
    return _file_pool("dtd", folder, parts, SPLITS, parts[0].classes)


def flowers102() -> ImagePool:
    """102 flowers: 1,020 images for the pool, 1,020 for validation, 6,149 for the test (official).

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    from torchvision.datasets import Flowers102

    folder, prefix = dataset_dir("flowers102"), Flowers102._download_url_prefix
    remotes = {key: Remote(prefix + file, f"md5:{md5}", file) for key, (file, md5) in Flowers102._file_dict.items()}
    base = unpacked(remotes["image"], folder, "flowers-102")
    for key in ("label", "setid"):
        fetched(remotes[key], base)
    parts = [_read("flowers102", folder, Flowers102, split=part) for part in PARTS]
    return _file_pool("flowers102", folder, parts, SPLITS, Flowers102.classes)


def _read(name: str, root: Path, source: Any, **options: Any) -> Any:
    """A part of a data set as torchvision reads it from `root`."""
    with reading(name, root):
        return source(root, **options)


def _file_pool(name: str, root: Path, parts: list[Any], splits: Any, class_names: list[str]) -> ImagePool:
    """The pool of torchvision's parts, each with one split or a split per image."""
    paths = [path for part in parts for path in part._image_files]
    labels = np.concatenate([part._labels for part in parts])
    split = np.concatenate([np.broadcast_to(each, len(part)) for each, part in zip(splits, parts, strict=True)])
    ids = np.array([path.relative_to(root).as_posix() for path in paths])
    return usable(ImagePool(name, FileImages(tuple(paths)), labels, split, ids, tuple(class_names)))


def medmnist(flag: str, suffix: str) -> ImagePool:
    """A set of MedMNIST v2 with its official splits.

    The images are copied once into a `.npy` file, because the largest (15 GB) would not fit into memory.

    Args:
        flag: MedMNIST's name of it.
        suffix: of its name and files by the size of images: "" for 28 pixels, "_64", "_128" or "_224".

    Raises:
        DataError: see `palkit.data.download.fetched`.
    """
    from medmnist.info import INFO

    info, name = INFO[flag], f"{flag}{suffix}"
    folder = dataset_dir(name)
    stored, table = folder / "images.npy", folder / "labels.npz"
    if not stored.exists():
        remote = Remote(info[f"url{suffix}"], f"md5:{info[f'MD5{suffix}']}", f"{name}.npz")
        archive = fetched(remote, folder)
        with np.load(archive) as file:
            labels = [file[f"{part}_labels"].ravel().astype(np.int64) for part in PARTS]
        split = np.repeat(range(3), [len(part) for part in labels])
        with atomic_path(table) as temporary:
            np.savez(temporary, labels=np.concatenate(labels), split=split)
        _copy_images(archive, stored)  # last: it is what says that the set is complete
    with np.load(table) as file:
        labels, split = file["labels"], file["split"]
    ids = np.concatenate([[f"{part}-{row:06d}" for row in range((split == i).sum())] for i, part in enumerate(PARTS)])
    images = StoredImages(stored, np.arange(len(labels)))
    class_names = tuple(info["label"][str(number)] for number in range(len(info["label"])))
    return usable(ImagePool(name, images, labels, np.array(SPLITS)[split], ids, class_names))


def _copy_images(archive: Path, target: Path) -> None:
    """Write the images of all parts of an `.npz` file into one `.npy` file, piece by piece."""
    with ExitStack() as stack:
        file = stack.enter_context(zipfile.ZipFile(archive))
        members = [stack.enter_context(file.open(f"{part}_images.npy")) for part in PARTS]
        headers = [HEADERS[np.lib.format.read_magic(member)](member) for member in members]
        shape = (sum(shape[0] for shape, *_ in headers), *headers[0][0][1:])
        output = stack.enter_context(open(stack.enter_context(atomic_path(target)), "wb"))
        np.lib.format.write_array_header_1_0(output, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for member in members:
            shutil.copyfileobj(member, output, COPY_BYTES)


MEDMNIST_SETS = {
    f"{flag}{suffix}": partial(medmnist, flag, suffix)
    for flag in ("pathmnist", "retinamnist", "dermamnist", "bloodmnist")
    for suffix in ("", "_64", "_128", "_224")
}
