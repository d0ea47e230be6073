"""Sizes of named data sets as published, for estimates before anything is downloaded."""

from palkit.data.download import dataset_dir
from palkit.data.libraries import MEDMNIST_SETS, PARTS
from palkit.data.pool import SPLITS

# Images in pool, val and test, as the loaders split them, and classes.
SIZES = {
    "eurosat": (16_200, 4_050, 6_750, 10),
    "histology": (3_000, 752, 1_248, 8),
    "aptos2019": (2_197, 550, 915, 5),
    "cifar10": (45_000, 5_000, 10_000, 10),
    "cifar100": (45_000, 5_000, 10_000, 100),
    "food101": (68_175, 7_575, 25_250, 101),
    "dtd": (1_880, 1_880, 1_880, 47),
    "flowers102": (1_020, 1_020, 6_149, 102),
}
LOADED = ("unpacked", "dtd", "flowers-102", "images.npy", "train.csv")  # one of these lies in a data set that is here


def published_size(name: str) -> tuple[dict[str, int], int] | None:
    """Images per split and number of classes of a named data set that would have to be downloaded.

    None if it is here and can be counted, or if nothing is known about it.
    """
    if any((dataset_dir(name) / path).exists() for path in LOADED):
        return None
    if name in MEDMNIST_SETS:
        from medmnist.info import INFO

        info = INFO[name.partition("_")[0]]
        counts = [info["n_samples"][part] for part in PARTS]
        return dict(zip(SPLITS, counts, strict=True)), len(info["label"])
    if name not in SIZES:
        return None
    *counts, classes = SIZES[name]
    return dict(zip(SPLITS, counts, strict=True)), classes
