"""A user's own images: folders with and without classes, and manifests."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import ArrowException, parquet

from palkit.data.files import FileImages, with_one_range
from palkit.data.folders import Listing, list_folder
from palkit.data.hashes import file_facts
from palkit.data.pool import SPLITS, UNLABELLED, ImagePool, Images, carve, split_rows, usable
from palkit.errors import ConfigError, DataError, PalkitError, brief
from palkit.storage.checks import normal
from palkit.storage.formats import read_csv, read_text

LAYOUT = (
    "Expected FOLDER/CLASS/IMAGE, which is split 60/15/25 into pool, val and test, "
    "or FOLDER/{pool,val,test}/CLASS/IMAGE (train is pool), or FOLDER/IMAGE for images without labels, "
    "or a CSV or Parquet file with the columns path, label and optionally split (pool, val or test) and group."
)
MANIFEST_SUFFIXES = (".csv", ".parquet")
PATH_MAX = 4096  # of Linux: no file has a longer path
COLUMNS = ("path", "label", "split", "group", "low", "high", "image_id")
# What others call the splits.
SPLIT_NAMES = {
    "pool": "pool", "train": "pool", "training": "pool",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
CLASS_ORDER = "classes.txt"  # names of all classes in their order, one a line: in a folder, or NAME.classes.txt


def from_folder(
    folder: Path,
    group: str | None = None,
    unlabelled: bool = False,
    classes: Sequence[str] | None = None,
    decode: bool = False,
) -> ImagePool:
    """Images in one folder per class, with or without fixed splits, or all in one folder without labels.

    Images deeper than their class's folder belong to it. What is left out is counted and named in the notes of the
    pool, but for debris of systems and editors.

    Args:
        folder: see `LAYOUT`; `classes.txt` in it gives the order of classes.
        group: see `load_dataset`.
        unlabelled: sub-folders are no classes: take all images at any depth, without labels.
        classes: all class names in their order, instead of `classes.txt`.
        decode: see `load_dataset`.

    Raises:
        ConfigError: see `path_groups`.
        DataError: wrong layout, naming what was found and what is expected.
    """
    found = list_folder(folder)
    order = None if unlabelled else classes or _class_order(folder)
    notes = found.notes(folder, [CLASS_ORDER] if order is not None else [])
    names = [] if unlabelled else sorted({path.parts[0] for path in found.images if len(path.parts) > 1})
    splits = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    are_splits = len(splits) == len(names) and {*splits.values()} >= {"pool", "test"}
    depth = 2 if are_splits else min(1, len(names))  # of the folders of classes
    beside = [str(path) for path in found.images if len(path.parts) <= depth]
    problem = ""
    if not found.images:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        problem = f"holds no image where one is expected (found: {held})."
    elif not are_splits and (len(splits) == len(names) > 1 or {*SPLITS} & {name.lower() for name in names}):
        some = f"some but not all of {', '.join(SPLITS)}, or others beside them"
        problem = f"holds {', '.join(names)}: {some}. If these are classes, rename them or write a manifest."
    elif beside:
        problem = (
            f"holds images both beside and inside its class folders (beside: {beside[0]}). Move those beside into a "
            "class folder or away, or load all without labels (unlabelled=True)."
        )
    if problem:
        raise DataError(" ".join([f"{folder} {problem}", *notes, LAYOUT]))
    paths = [str(path) for path in found.images]
    table = pd.DataFrame({"path": paths, "label": ""}, index=list(map(repr, paths)))
    if depth:
        table["label"] = [path.parts[depth - 1] for path in found.images]
        notes += _structure_notes(folder, found, depth)
    if are_splits:
        table["split"] = [splits[path.parts[0]] for path in found.images]
    if group is not None:
        table["group"] = path_groups(paths, group)
    return from_table(str(folder), table, folder, order, notes, decode)


def _structure_notes(folder: Path, found: Listing, depth: int) -> list[str]:
    """Sentences about folders that hold no image, and about images deeper than their class's folder."""
    notes = []
    full = {parent for path in found.images for parent in path.parents}
    empty = [str(path) for path in found.folders if len(path.parts) == depth and path not in full]
    if empty:
        named = ", ".join([*empty[:5], *(["..."] if len(empty) > 5 else [])])
        are = ("1 folder holds no image and is", f"{len(empty)} folders hold no image and are")[len(empty) > 1]
        notes.append(f"{are} no class in {folder}: {named}.")
    deep = [path for path in found.images if len(path.parts) > depth + 1]
    if deep:
        notes.append(
            f"{len(deep):,} of {len(found.images):,} images of {folder} lie deeper than their class's folder, which "
            f"decides: {deep[0]} is of class {deep[0].parts[depth - 1]!r}. If inner folders are patients or slides, "
            "give them as group, so that no split divides one; if they are the classes, write a manifest."
        )
    return notes


def order_file(source: Path) -> Path:
    """The file that would give the order of the classes of a folder or manifest."""
    return source / CLASS_ORDER if os.path.isdir(source) else source.with_suffix(f".{CLASS_ORDER}")


def _class_order(source: Path) -> list[str] | None:
    """Names of the classes in their order, None if no file gives one."""
    path = order_file(source)
    if not os.path.isfile(path):
        return None
    names = [line for line in read_text(path).splitlines() if normal(line).strip()]
    return _distinct(names, str(path), DataError)


def _distinct(names: Sequence[str], where: str, kind: type[PalkitError]) -> list[str]:
    """Names of classes as they are compared, an error of a kind if they do not differ."""
    names = [normal(name).strip() for name in names]
    wrong = [name for place, name in enumerate(names) if not name or name in names[:place]]
    if wrong:
        what = f"class {wrong[0]!r} is there twice" if wrong[0] else "a class has no name"
        raise kind(f"{where}: {what}; names must differ and not be empty.")
    return names


def path_groups(paths: Iterable[str], pattern: str) -> list[str]:
    """Matches of a regular expression in each path: its first group, or all it matches if it has none.

    Raises:
        ConfigError: it is no regular expression, or does not match a path.
    """
    groups = []
    try:
        for path in paths:
            match = re.search(pattern, path)
            if match is None:
                raise ConfigError(f"group '{pattern}' matches nothing in {path!r}; it must match every path.")
            groups.append(match[min(1, match.re.groups)] or "")
    except re.error as error:
        raise ConfigError(f"group '{pattern}' is not a regular expression ({error}).") from error
    return groups


def from_manifest(
    manifest: Path, group: str | None = None, classes: Sequence[str] | None = None, decode: bool = False
) -> ImagePool:
    """Images listed in a CSV or Parquet file with the columns path, label, split and group.

    Paths are relative to the manifest. An empty label is an image without one, allowed in the pool only. Without
    split, images are split 60/15/25; no group (patient, slide) is divided then, nor may it be otherwise. Without
    images for validation, a part of the pool is taken for it. `low` and `high` are the range of values that is scaled
    to 8 bits, where images have more. `image_id` is what an image is called, in place of its path: draws, splits and
    ties hang on these names, so a table that stands for a folder keeps them wherever it lies. `NAME.classes.txt` beside
    `NAME.csv` gives the order of classes.

    Args:
        manifest: the file.
        group: see `load_dataset`; replaces the column.
        classes: all class names in their order, instead of `NAME.classes.txt`.
        decode: see `load_dataset`.

    Raises:
        ConfigError: see `path_groups`.
        DataError: a missing column, an unknown split or a missing file, each with its line.
    """
    table = read_csv(manifest, COLUMNS) if manifest.suffix.lower() == ".csv" else _read_parquet(manifest)
    missing = {"path", "label"} - set(table)
    if missing:
        found = ", ".join(map(brief, table)) or "none"
        raise DataError(f"{manifest} lacks the column {', '.join(sorted(missing))} (found: {found}). {LAYOUT}")
    for name in set(COLUMNS[1:-1]) & set(table):  # spaces belong to names of files and images
        table[name] = table[name].str.strip()
    if group is not None:
        table["group"] = path_groups(table["path"], group)
    return from_table(str(manifest), table, manifest.parent, classes or _class_order(manifest), decode=decode)


def _read_parquet(manifest: Path) -> pd.DataFrame:
    """The known columns as text, "" where there is nothing: a class may well be called NA. Others are empty."""
    try:
        stored, columns = parquet.read_table(manifest), {}
        for name in stored.column_names:
            if (known := name.strip().lower()) in COLUMNS:
                columns[known] = stored[name].cast("string").fill_null("").to_pylist()
            else:
                columns[name] = ""
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(f"{manifest} cannot be read as a table ({error}). {LAYOUT}") from error
    return pd.DataFrame(columns, index=[f"line {row}" for row in range(1, stored.num_rows + 1)], dtype=object)


def from_table(
    name: str,
    table: pd.DataFrame,
    folder: Path,
    class_names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    decode: bool = False,
) -> ImagePool:
    """A pool of the images that a table of text lists.

    Args:
        name: of the pool.
        table: columns path, label ("" for none), and optionally split, group, low, high and image_id; its index
            says where each row stands, for errors.
        folder: that the paths are relative to.
        class_names: their order; None for the alphabetical one, or that of the numbers if all are numbers.
        notes: what is to be said of the images already.
        decode: see `load_dataset`.

    Raises:
        DataError: see `from_manifest`.
    """
    ranges = np.full((len(table), 2), np.nan)
    if {"low", "high"} <= set(table):
        ranges = table[["low", "high"]].map(_number).to_numpy(dtype=float)
    paths = located_files(name, table, folder, ranges)
    images = FileImages(paths, tuple(with_one_range(file_facts(paths, decode=decode)))).ranged(ranges)
    named = table if "image_id" in table else table.assign(image_id=_names(table))
    return of_table(name, named, images, class_names, [*notes, *_image_notes(images)])


def of_table(
    name: str, table: pd.DataFrame, images: Images, class_names: Sequence[str] | None, notes: Sequence[str]
) -> ImagePool:
    """A pool of images, from what a table of text says of each.

    Args:
        name: of the pool.
        table: columns label ("" for none), image_id, and optionally split and group.
        images: one for each row.
        class_names: see `from_table`.
        notes: what is to be said of the images already.

    Raises:
        DataError: see `from_manifest`.
    """
    text = [normal(label).strip() for label in table["label"]]
    classes = _classes({*text} - {""}, class_names, name)
    labels = pd.Categorical(text, classes).codes.astype(np.int64)  # "" is none of them: -1
    ids = np.array(list(map(normal, table["image_id"])), dtype=str)
    groups = np.array(list(map(normal, table["group"])), dtype=str) if "group" in table else None
    if "split" in table:
        split, carved = _given_split(name, table["split"], labels, ids, groups)
    else:
        split, carved = split_rows(labels, groups, ids), []
    return usable(ImagePool(name, images, labels, split, ids, tuple(classes), groups, (*notes, *carved)))


def _number(cell: str) -> float:
    """The number of a cell to its last bit, which pandas does not promise, and checksums take in; NaN if it is none."""
    try:
        return np.nan if "_" in cell or not cell.isascii() else float(cell)
    except ValueError:
        return np.nan


def _names(table: pd.DataFrame) -> list[str]:
    """Names of images where nobody gives them: their paths, as they are compared."""
    return [os.path.normpath(normal(path)) for path in table["path"]]


def _located(folder: Path, path: str) -> Path | None:
    """The file that a cell means, as it is written or as it looks; None if there is none."""
    if os.path.isfile(file := folder / path):  # unlike the method, it takes a name that no file can have
        return file
    forms = [path.strip(), *(unicodedata.normalize(form, path.strip()) for form in ("NFC", "NFD"))]
    for form in [*forms, *(form.replace("\\", "/") for form in [path, *forms])]:
        if os.path.isfile(file := folder / form):
            return file
    return None


def located_files(name: str, table: pd.DataFrame, folder: Path, ranges: np.ndarray | None = None) -> tuple[Path, ...]:
    """The files of a table; a row that names none, or one twice, or says what nobody understands, is refused.

    Args:
        name: of the data set.
        table: see `from_table`.
        folder: likewise.
        ranges: (N, 2) of values, NaN where there is no number.
    """
    ranges = np.full((len(table), 2), np.nan) if ranges is None else ranges
    files: list[Path] = []
    paths: dict[str, str] = {}
    owners: dict[str, str] = {}
    known = table[[name for name in COLUMNS if name in table]].to_dict("records")
    for place, key, (low, high), cells in zip(table.index, _names(table), ranges, known, strict=True):
        path, image_id, problem = cells["path"], normal(cells.get("image_id", key)), ""
        file = _located(folder, path)
        if not path.strip():
            problem = "the row has no path. Name the image, or remove the row."
        elif file is None:
            problem = f"there is no file {str(folder / path)[:PATH_MAX]}. Paths are relative to the manifest."
        elif path.encode(errors="ignore").decode() != path:
            problem = "the name of the file is not UTF-8, so no table could hold it. Rename it."
        elif key in paths:
            looks = f"{path!a} looks like {paths[key]!a}, which is listed too"
            problem = f"{f'{path!r} is listed twice' if path == paths[key] else looks}. Remove one, or rename the file."
        elif image_id in owners or not image_id.strip():
            owner = owners.get(image_id)
            wrong = f"{image_id!r} is the image_id of {owner} too" if owner else "the image_id is missing"
            problem = f"{wrong}. Each image needs one of its own; if the column means something else, rename it."
        elif cells.get("split", "pool").lower() not in SPLIT_NAMES:
            problem = f"split {brief(cells['split'])} is none of {', '.join(SPLITS)} (train is pool)."
        elif {"low", "high"} <= cells.keys() and cells["low"] + cells["high"] and not -np.inf < low <= high < np.inf:
            problem = f"low {cells['low']!r} and high {cells['high']!r} are no range."
        if file is None or problem:
            raise DataError(f"{name}, {place}: {problem}")
        paths[key] = path
        owners[image_id] = place
        files.append(file)
    return tuple(files)


def in_order(names: Iterable[str]) -> list[str]:
    """Class names as they are ordered where nobody says how: by number if all are numbers, else by the alphabet."""
    found = sorted(names)
    numbers = all(re.fullmatch(r"[0-9]{1,18}", name) for name in found)
    return sorted(found, key=lambda name: (int(name), name)) if numbers else found


def _classes(found: set[str], given: Sequence[str] | None, name: str) -> list[str]:
    """All class names in their order.

    Args:
        found: in the table.
        given: in the order that somebody gave, if anybody did.
        name: of the data set.
    """
    if given is None:
        return in_order(found)
    given = _distinct(given, "classes", ConfigError)
    unlisted = in_order(found - {*given})
    if unlisted:
        raise DataError(
            f"{name}: class {unlisted[0]!r} is not in the order of classes given ({', '.join(given)}), by option or in "
            f"{CLASS_ORDER}. Add it there; capitals count."
        )
    return given


def _given_split(
    name: str, words: Iterable[str], labels: np.ndarray, ids: np.ndarray, groups: np.ndarray | None
) -> tuple[np.ndarray, list[str]]:
    """(N,) of SPLITS as a table has them, a validation set taken out of the pool if there is none; and a note on it."""
    split = np.array([SPLIT_NAMES[word.lower()] for word in words], dtype=str)
    pool = split == "pool"
    # A pool that is still to be labelled keeps what labels it has: nothing can be simulated on it anyway.
    if {*split} != {"pool", "test"} or (labels[pool] == UNLABELLED).any():
        return split, []
    split[pool] = carve(labels[pool], ids[pool], None if groups is None else groups[pool])
    if len(np.unique(labels[split == "val"])) < 2 <= len(np.unique(labels[labels != UNLABELLED])):
        what = "images" if groups is None else "groups"
        raise DataError(
            f"{name} has no images for validation, and its training images are too few to take some of two classes out "
            f"of them: that needs two classes with at least 2 {what} there. Add {what}, or say in the column split "
            "which images are val."
        )
    note = (
        f"{name} has no images for validation: {int((split == 'val').sum()):,} of its {int(pool.sum()):,} training "
        "images are taken for it, always the same ones. The test images are as given."
    )
    return split, [note]


def _image_notes(images: FileImages) -> list[str]:
    """Sentences about images of several pages, and about values of more than 8 bits."""
    headers = [facts.header for facts in images.facts]
    notes = []
    pages = [row for row, header in enumerate(headers) if header.frames > 1]
    if pages:
        notes.append(
            f"{len(pages):,} of {len(headers):,} files hold several pages or frames, of which the first is used; the "
            f"first such file is {images.paths[pages[0]]} ({headers[pages[0]].frames}). Save the others as files of "
            "their own if they are images of the data set."
        )
    deep = pd.DataFrame([(h.kind, h.low, h.high) for h in headers if h.kind], columns=["kind", "low", "high"])
    for (kind, low, high), rows in deep.groupby(["kind", "low", "high"], dropna=False):
        notes.append(
            f"{len(rows):,} of {len(headers):,} images have {kind} values. Their range in this data set, "
            f"{low:,.6g} to {high:,.6g} without the outermost 0.1 % of an image's pixels, is scaled to 8 bits."
        )
    return notes
