"""Checks of a user's images, and manifests without what they find."""

import os
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from palkit.data.files import FileImages, unreadable
from palkit.data.own import MANIFEST_SUFFIXES, in_order, order_file
from palkit.data.pool import ImagePool, without
from palkit.errors import ConfigError
from palkit.storage.files import atomic_path, write_text


@dataclass(frozen=True)
class Findings:
    """Problems with the files of a data set.

    Attributes:
        pool: the data set as it was loaded.
        unreadable: see `palkit.data.files.unreadable`.
        duplicates: see `ImagePool.duplicates`.
    """

    pool: ImagePool
    unreadable: pd.DataFrame
    duplicates: pd.DataFrame

    def cleaned(self, drop_duplicates: bool) -> ImagePool:
        """The data set without unreadable files, and without surplus copies if asked for."""
        bad = self.unreadable["row"].to_numpy(np.int64)
        drop = np.concatenate([bad, surplus(self.duplicates)]) if drop_duplicates else bad
        return without(self.pool, drop)

    def report(self) -> list[str]:
        """The findings in lines: counts, copies of images, files that cannot be read."""
        lines = [f"{self.pool.name}: {len(self.pool)} images, {len(self.pool.class_names)} classes"]
        lines += self.pool.counts().to_string().splitlines()
        lines.append(f"images that are there more than once: {len(self.duplicates)}")
        differences = {"split": " in different splits", "label": " with different labels"}
        for _, copies in self.duplicates.groupby("checksum"):
            labels = copies["label"].where(copies["label"] != "", "no label")
            named = " = ".join(copies["id"] + " (" + copies["split"] + ", " + labels + ")")
            said = [text for column, text in differences.items() if len(set(copies[column]) - {""}) > 1]
            lines.append(f"  {named}{':' if said else ''}{''.join(said)}")
        lines.append(f"files that cannot be read: {len(self.unreadable)}")
        return [*lines, *("  " + self.unreadable["path"] + ": " + self.unreadable["reason"])]


def surplus(duplicates: pd.DataFrame) -> np.ndarray:
    """Rows to drop so that no image is there twice.

    The first labelled copy stays, or the first one if none has a label; of copies with different labels none stays,
    since nobody knows which is right.

    Args:
        duplicates: see `ImagePool.duplicates`.
    """
    table = duplicates.assign(unlabelled=duplicates["label"] == "")
    labels = table["label"].where(~table["unlabelled"]).groupby(table["checksum"]).transform("nunique")
    repeated = table.sort_values(["checksum", "unlabelled", "row"])["checksum"].duplicated().sort_index()
    return table.loc[repeated | (labels > 1), "row"].to_numpy(np.int64)


def without_copies(pool: ImagePool, name: str) -> ImagePool:
    """The data set without surplus copies of its images, under another name; a note counts them."""
    drop = surplus(pool.duplicates())
    note = f"{len(drop)} images are left out: copies, and those with two labels."
    return replace(without(pool, drop, [note]), name=name)


def examine(pool: ImagePool) -> Findings:
    """Decode and compare all files of a data set.

    Raises:
        ConfigError: its images do not lie in files.
    """
    if not isinstance(pool.images, FileImages):
        raise ConfigError(f"data set {pool.name!r} holds arrays, not files: there is nothing to list in a manifest.")
    return Findings(pool, unreadable(pool.images.paths, pool.images.facts), pool.duplicates())


def write_manifest(pool: ImagePool, path: Path, *, ordered: bool = False) -> Path:
    """Write the images of a pool as a manifest, atomically; `load_dataset` reads it with the same splits.

    Args:
        pool: whose images lie in files.
        path: `.csv` or `.parquet`. Paths are relative to its folder unless they share nothing with it but the root.
            Ranges of deep values go into it too, and names of images where they are not their paths; an order of
            classes that is not the usual one goes beside it.
        ordered: write the order beside it in any case, since somebody gave it.

    Raises:
        ConfigError: another suffix.
        DataError: the folder cannot be written to.
    """
    check_suffix(path)
    assert isinstance(pool.images, FileImages), "examined"
    relative = cache(partial(_relative, path.parent))
    paths = [str(relative(image.parent) / image.name) for image in pool.images.paths]
    groups = np.full(len(pool), "") if pool.groups is None else pool.groups
    table = pd.DataFrame({"path": paths, "label": pool.label_names(), "split": pool.split, "group": groups})
    ranges = [facts.header.value_range for facts in pool.images.facts]
    if any(ranges):
        for place, column in enumerate(("low", "high")):
            table[column] = ["" if one is None or not np.isfinite(one[place]) else repr(one[place]) for one in ranges]
    if list(map(os.path.normpath, paths)) != list(pool.ids):  # the same images as before, by their names
        table["image_id"] = pool.ids
    if ordered or list(pool.class_names) != in_order(pool.class_names):
        write_text(order_file(path), "\n".join(pool.class_names) + "\n")
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
    return path


def check_suffix(path: Path) -> None:
    """Refuse names that `load_dataset` would not take for a manifest.

    Raises:
        ConfigError: another suffix.
    """
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise ConfigError(f"manifest {path}: the name must end in {' or '.join(MANIFEST_SUFFIXES)}.")


def _relative(base: Path, folder: Path) -> PurePosixPath:
    """A folder of images as it is called from another, or in full where they share nothing but the root."""
    base, folder = base.absolute(), folder.absolute()
    shared = base.anchor == folder.anchor and os.path.commonpath([base, folder]) != base.anchor
    return PurePosixPath(Path(os.path.relpath(folder, base) if shared else folder).as_posix())
