"""Data sets by name, by folder, by manifest, of features, by id on the Hugging Face Hub. Knows no model."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from palkit.data import published
from palkit.data.cifar import cifar10, cifar100
from palkit.data.decoding import IMAGE_SUFFIXES, read_image
from palkit.data.embedded import digits, digits_lt, fashion_mnist, fashion_mnist_lt
from palkit.data.features import SUFFIXES as FEATURES_SUFFIXES
from palkit.data.features import StoredFeatures, from_features, holds_features, is_features
from palkit.data.files import FileImages, StoredImages, unreadable
from palkit.data.folders import list_folder
from palkit.data.hub import PREFIX, from_hub
from palkit.data.libraries import MEDMNIST_SETS, dtd, flowers102, food101
from palkit.data.own import LAYOUT, MANIFEST_SUFFIXES, PATH_MAX, from_folder, from_manifest
from palkit.data.pool import (
    SPLITS,
    UNLABELLED,
    ArrayImages,
    Decoder,
    ImagePool,
    head,
    long_tail,
    take,
    usual_size,
    without,
)
from palkit.errors import ConfigError, DataError, DataNotice, unknown_name
from palkit.storage.plugins import is_registered, refuse_taken

__all__ = [
    "DATASETS", "IMAGE_SUFFIXES", "ORDINAL", "SPLITS", "UNLABELLED", "ArrayImages", "Decoder", "FileImages",
    "ImagePool", "StoredFeatures", "StoredImages", "dataset", "from_features", "from_folder", "from_manifest",
    "head", "holds_features", "is_features", "list_folder", "load_dataset", "long_tail", "read_image", "readable",
    "take", "unreadable", "usual_size",
]  # fmt: skip

Loader = Callable[[], ImagePool]
NAMED = (
    fashion_mnist, fashion_mnist_lt, digits, digits_lt, published.eurosat, published.eurosat_5k, published.eurosat_lt,
    published.histology, published.histology_slides, published.histology_lt, published.aptos2019, published.idrid,
    published.idrid_unique, cifar10, cifar100, food101, dtd, flowers102,
)  # fmt: skip
DATASETS: dict[str, Loader] = {load.__name__: load for load in NAMED} | MEDMNIST_SETS
# Those whose classes are grades, in order: of them kappa, with quadratic weights, is reported beside accuracy.
ORDINAL = {"aptos2019", "idrid", "idrid_unique", *(name for name in MEDMNIST_SETS if name.startswith("retinamnist"))}


def dataset(name: str, *, ordinal: bool = False) -> Callable[[Loader], Loader]:
    """Register the decorated function, which returns an `ImagePool`, as the data set `name`.

    Args:
        name: as in `dataset=name`.
        ordinal: its classes are grades, in order.

    Raises:
        ConfigError: another module has registered the name.

    >>> @dataset("few")
    ... def few():
    ...     return head(load_dataset("digits"), 50)
    >>> len(DATASETS.pop("few")().rows("pool"))
    50
    """

    def register(function: Loader) -> Loader:
        refuse_taken("data set", name, DATASETS.get(name), function)
        DATASETS[name] = function
        (ORDINAL.add if ordinal else ORDINAL.discard)(name)
        return function

    return register


def load_dataset(
    name: str,
    *,
    skip_unreadable: bool = False,
    group: str | None = None,
    unlabelled: bool = False,
    classes: Sequence[str] | None = None,
    decode: bool = False,
) -> ImagePool:
    """The data set of that name, folder, manifest or file of features, or of that id on the Hugging Face Hub.

    Named sets are downloaded the first time. What is left out of own images, and what is decided for their user, is
    said in a warning each (`palkit.errors.DataNotice`), and in the notes of the pool.

    Args:
        name: a key of `DATASETS`, `hf:owner/name[@config]`, a folder (see `from_folder`), a `.csv` or `.parquet` file
            (see `from_manifest`), or features of your own in a `.npy`, `.npz` or `.parquet` file (see `from_features`).
        skip_unreadable: decode every file now and leave out those that cannot be read, with a warning.
        group: regular expression that finds in each path of a folder or manifest what must not be divided by a
            split, such as the patient.
        unlabelled: a folder's sub-folders are no classes.
        classes: names of all classes of a folder or manifest in their order, as of grades, which kappa weighs by;
            None for the order in `classes.txt`, or the alphabetical one.
        decode: decode every file of a folder or manifest while it is read for its checksum, for `manifest.examine`.

    Raises:
        ConfigError: neither a known name nor an existing path, or options that do not go with it.
        DataError: the data cannot be used; the message names the file and the fix.

    >>> load_dataset("digits").counts().loc["7"].to_dict()
    {'pool': 107, 'val': 27, 'test': 45}
    """
    if name in DATASETS and os.path.isdir(name):
        notice = f"{name!r} is the data set of that name; for the folder that is here write './{name}'."
        warnings.warn(notice, DataNotice, stacklevel=2)
    pool = _load(name, group, unlabelled, classes, decode or skip_unreadable)
    for note in pool.notes:
        warnings.warn(note, DataNotice, stacklevel=2)
    return readable(pool) if skip_unreadable else pool


def _load(name: str, group: str | None, unlabelled: bool, classes: Sequence[str] | None, decode: bool) -> ImagePool:
    if name in DATASETS or name.startswith(PREFIX):
        if group is not None or unlabelled or classes:
            raise ConfigError(f"{name!r} has its labels: group, unlabelled and classes are for folders and manifests.")
        return DATASETS[name]() if name in DATASETS else from_hub(name)
    path = Path(name).expanduser()
    is_manifest = path.suffix.lower() in {*MANIFEST_SUFFIXES, *FEATURES_SUFFIXES}
    if holds_features(name):
        if group is not None or unlabelled:
            raise ConfigError(f"{name} holds features; give groups and labels as arrays or columns of it.")
        return from_features(path, classes)
    if os.path.isfile(path) and is_manifest:  # unlike the methods, these take a name that no file can have
        return from_manifest(path, group, classes, decode)
    if os.path.isdir(path):
        return from_folder(path, group, unlabelled, classes, decode)
    if is_registered(name, DATASETS):
        return DATASETS[name]()
    if len(path.parts) > 1 or is_manifest or os.path.exists(path):
        raise DataError(f"there is no folder or manifest {str(path)[:PATH_MAX]}. {LAYOUT}")
    raise unknown_name("dataset", name, DATASETS)


def readable(pool: ImagePool) -> ImagePool:
    """The data set without files that cannot be read; a warning counts them and names the first.

    Raises:
        DataError: what is left is no data set, see `palkit.data.pool.usable`.
    """
    if not isinstance(pool.images, FileImages):
        return pool
    bad = unreadable(pool.images.paths, pool.images.facts)
    if bad.empty:
        return pool
    note = (
        f"{len(bad)} of {len(pool)} images of {pool.name!r} cannot be read and are left out, the first is "
        f"{bad['path'][0]} ({bad['reason'][0]})."
    )
    warnings.warn(note, DataNotice, stacklevel=3)
    return without(pool, bad["row"].to_numpy(), [note])
