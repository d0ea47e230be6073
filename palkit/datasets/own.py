"""A user's own images: folders with and without classes, and manifests."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import ArrowException, parquet

from palkit.datasets.files import IMAGE_SUFFIXES, FileImages
from palkit.datasets.pool import SPLITS, UNLABELLED, ImagePool, make_pool, split_rows
from palkit.errors import ConfigError, DataError

LAYOUT = (
    "Expected FOLDER/CLASS/IMAGE, which is split 60/15/25 into pool, val and test, "
    "or FOLDER/{pool,val,test}/CLASS/IMAGE, or FOLDER/IMAGE for images without labels, "
    "or a CSV or Parquet file with the columns path, label and optionally split (pool, val or test) and group."
)
MANIFEST_SUFFIXES = (".csv", ".parquet")
PATH_MAX = 4096  # of Linux: no file has a longer path
COLUMNS = ("path", "label", "split", "group")


def from_folder(folder: Path, group: str | None = None, unlabelled: bool = False) -> ImagePool:
    """Images in one folder per class, with or without fixed splits, or all in one folder without labels.

    Hidden files and folders are left out.

    Args:
        folder: see `LAYOUT`.
        group: see `load_dataset`.
        unlabelled: sub-folders are no classes: take all images at any depth, without labels.

    Raises:
        ConfigError: see `path_groups`.
        DataError: wrong layout, naming what was found and what is expected.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. {LAYOUT}")
    children = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    has_splits = set(children) == set(SPLITS) and not unlabelled
    if not has_splits and not unlabelled and set(children) & set(SPLITS):
        raise DataError(f"{folder} holds {', '.join(children)}: some but not all of {', '.join(SPLITS)}. {LAYOUT}")
    loose, sorted_ = _images(folder, "*"), _images(folder, "*/*/*" if has_splits else "*/*")
    if loose and sorted_ and not unlabelled:
        raise DataError(
            f"{folder} holds images both beside and inside its {len(children)} folders (beside: {loose[0].name}). "
            "Move those beside into a class folder or away, or load all without labels (unlabelled=True)."
        )
    if unlabelled or not sorted_:
        paths, labels = _images(folder, "**/*") if unlabelled else loose, None
    else:
        paths, labels = sorted_, [path.parent.name for path in sorted_]
    if not paths:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(f"{folder} holds no image where one is expected (found: {found}). {LAYOUT}")
    table = pd.DataFrame({"path": [path.relative_to(folder).as_posix() for path in paths], "label": labels or ""})
    if has_splits:
        table["split"] = [path.parent.parent.name for path in paths]
    if group is not None:
        table["group"] = path_groups(table["path"], group)
    return from_table(str(folder), table, folder / "images")


def _images(folder: Path, pattern: str) -> list[Path]:
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in IMAGE_SUFFIXES
        # "._x.png" is what macOS puts beside x.png in archives.
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def path_groups(paths: Sequence[str] | pd.Series, pattern: str) -> list[str]:
    """What a regular expression finds in each path: its first group, or all it matches if it has none.

    Raises:
        ConfigError: it is no regular expression, or does not match a path.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"group '{pattern}' is not a regular expression ({error}).") from error
    found = [expression.search(path) for path in paths]
    for path, match in zip(paths, found, strict=True):
        if match is None:
            raise ConfigError(f"group '{pattern}' matches nothing in {path!r}; it must match every path.")
    return [match[1 if expression.groups else 0] or "" for match in found if match]


def from_manifest(manifest: Path, group: str | None = None) -> ImagePool:
    """Images listed in a CSV or Parquet file with the columns path, label, split and group.

    Paths are relative to the manifest. An empty label is an image without one, allowed in the pool only. Without
    split, images are split 60/15/25; no group (patient, slide) is divided then, nor may it be otherwise.

    Args:
        manifest: the file.
        group: see `load_dataset`; replaces the column.

    Raises:
        ConfigError: see `path_groups`.
        DataError: a missing column, an unknown split or a missing file, each with its line.
    """
    table = _read(manifest)
    missing = {"path", "label"} - set(table)
    if missing:
        found = ", ".join(map(str, table)) or "none"
        raise DataError(f"{manifest} lacks the column {', '.join(sorted(missing))} (found: {found}). {LAYOUT}")
    if group is not None:
        table["group"] = path_groups(table["path"], group)
    return from_table(str(manifest), table, manifest)


def _read(manifest: Path) -> pd.DataFrame:
    """The known columns as text, "" where there is nothing: a class may well be called NA."""
    try:
        if manifest.suffix.lower() == ".csv":
            # A comma at the end of each line must not make an index of the paths.
            table = pd.read_csv(manifest, dtype=str, na_filter=False, encoding="utf-8-sig", index_col=False)
        else:
            stored = parquet.read_table(manifest)
            names = [name for name in COLUMNS if name in stored.column_names]
            columns = {name: stored[name].cast("string").fill_null("").to_pylist() for name in names}
            table = pd.DataFrame(columns, dtype=str)
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(f"{manifest} cannot be read as a table ({error}). {LAYOUT}") from error
    for name in set(COLUMNS[1:]) & set(table):
        table[name] = table[name].str.strip()
    return table


def from_table(name: str, table: pd.DataFrame, manifest: Path, class_names: Sequence[str] | None = None) -> ImagePool:
    """A pool of the images that a table of text lists.

    Args:
        name: of the pool.
        table: columns path, label ("" for none), and optionally split and group.
        manifest: file that the paths are relative to; errors name its lines.
        class_names: their order; None for the alphabetical one.

    Raises:
        DataError: see `from_manifest`.
    """
    first = 2 if manifest.suffix.lower() == ".csv" else 1
    paths = [manifest.parent / path for path in table["path"]]
    for row, path in enumerate(paths):
        if not os.path.isfile(path):  # unlike the method, it takes a name that no file can have
            raise DataError(
                f"{manifest}, line {row + first}: there is no file {str(path)[:PATH_MAX]}. "
                "Paths are relative to the manifest."
            )
        try:
            table["path"][row].encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{manifest.parent}: the name of the file {table['path'][row]!r} is not UTF-8, so no table could hold "
                "it. Rename it."
            ) from error
    twice = table["path"].map(os.path.normpath).duplicated()
    if twice.any():
        row = int(twice.argmax())
        raise DataError(
            f"{manifest}, line {row + first}: {table['path'][row]!r} is listed twice. Remove one of the lines."
        )
    text = table["label"].to_numpy(dtype=str)
    classes = np.unique(text[text != ""]) if class_names is None else np.array(class_names)
    code = {label: number for number, label in enumerate(classes)} | {"": UNLABELLED}
    labels = np.array([code[label] for label in text], dtype=np.int64)
    groups = table["group"].to_numpy(dtype=str) if "group" in table else None
    if "split" in table:
        wrong = ~table["split"].isin(SPLITS)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{manifest}, line {row + first}: split {table['split'][row]!r} is none of {', '.join(SPLITS)}."
            )
        split = table["split"].to_numpy(dtype=str)
    else:
        split = split_rows(labels, groups)
    ids = table["path"].to_numpy(dtype=str)
    return make_pool(name, FileImages(tuple(paths)), labels, split, ids, classes.tolist(), groups)
