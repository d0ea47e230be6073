"""A user's own images: folders with and without classes, and manifests."""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import ArrowException, parquet

from palkit.data.decoding import Header
from palkit.data.files import FileImages
from palkit.data.folders import Listing, list_folder
from palkit.data.pool import SPLITS, UNLABELLED, ImagePool, carve, make_pool, refuse_split, split_rows
from palkit.errors import ConfigError, DataError, brief
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
    folder: Path, group: str | None = None, unlabelled: bool = False, classes: Sequence[str] | None = None
) -> ImagePool:
    """Images in one folder per class, with or without fixed splits, or all in one folder without labels.

    Images deeper than their class's folder belong to it. What is left out is counted and named in the notes of the
    pool, but for debris of systems and editors.

    Args:
        folder: see `LAYOUT`; `classes.txt` in it gives the order of classes.
        group: see `load_dataset`.
        unlabelled: sub-folders are no classes: take all images at any depth, without labels.
        classes: all class names in their order, instead of `classes.txt`.

    Raises:
        ConfigError: see `path_groups`.
        DataError: wrong layout, naming what was found and what is expected.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. {LAYOUT}")
    found = list_folder(folder)
    order = None if unlabelled else classes or _class_order(order_file(folder))
    notes = found.notes(folder, [CLASS_ORDER] if order else [])
    if not found.images:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(" ".join([f"{folder} holds no image where one is expected (found: {held}).", *notes, LAYOUT]))
    loose = [path for path in found.images if len(path.parts) == 1]
    splits = None if unlabelled else _split_folders(folder, found)
    inside = {path.parts[0] for path in found.images if len(path.parts) > 1}
    if loose and inside and not unlabelled:
        raise DataError(
            f"{folder} holds images both beside and inside its {len(inside)} folders (beside: {loose[0].name}). "
            "Move those beside into a class folder or away, or load all without labels (unlabelled=True)."
        )
    labels = [""] * len(found.images)
    if not loose and not unlabelled:
        depth = 1 if splits is None else 2
        beside = [path for path in found.images if len(path.parts) <= depth]
        if beside:
            raise DataError(f"{folder / beside[0]} lies in the folder of a split, beside its class folders. {LAYOUT}")
        labels = [path.parts[depth - 1] for path in found.images]
        notes += _structure_notes(folder, found, depth)
    table = pd.DataFrame({"path": [str(path) for path in found.images], "label": labels})
    if splits is not None:
        table["split"] = [splits[path.parts[0]] for path in found.images]
    if group is not None:
        table["group"] = path_groups(table["path"], group)
    try:
        return from_table(str(folder), table, folder / "images", order, notes=notes)
    except DataError as error:  # what was left out may be what is lacking
        raise DataError(" ".join([str(error), *notes])) from error


def _split_folders(folder: Path, found: Listing) -> Mapping[str, str] | None:
    """The split that each folder at the top stands for, or None if they are classes."""
    names = sorted({path.parts[0] for path in found.images if len(path.parts) > 1})
    splits = {name: SPLIT_NAMES.get(name.lower(), "") for name in names}
    if set(splits.values()) >= {"pool", "test"} and all(splits.values()):
        return splits
    if (len(names) > 1 and all(splits.values())) or {name.lower() for name in names} & set(SPLITS):
        raise DataError(
            f"{folder} holds {', '.join(names)}: some but not all of {', '.join(SPLITS)}, or others beside them. If "
            f"these are classes, rename them or write a manifest. {LAYOUT}"
        )
    return None


def _structure_notes(folder: Path, found: Listing, depth: int) -> list[str]:
    """What is to be said of folders that hold no image, and of images deeper than their class's folder."""
    notes = []
    full = {path.parents[i] for path in found.images for i in range(len(path.parts) - 1)}
    empty = [path for path in found.folders if len(path.parts) == depth and path not in full]
    if empty:
        named = ", ".join(str(path) for path in empty[:5]) + (", ..." if len(empty) > 5 else "")
        folders = "1 folder holds" if len(empty) == 1 else f"{len(empty)} folders hold"
        notes.append(f"{folders} no image and {'is' if len(empty) == 1 else 'are'} no class in {folder}: {named}.")
    deep = [path for path in found.images if len(path.parts) > depth + 1]
    if deep:
        notes.append(
            f"{len(deep):,} of {len(found.images):,} images of {folder} lie deeper than their class's folder, which "
            f"decides: {deep[0]} is of class {deep[0].parts[depth - 1]!r}. If inner folders are patients or slides, "
            "give them as group, so that no split divides one; if they are the classes, write a manifest."
        )
    return notes


def _class_order(path: Path) -> list[str] | None:
    """Names of the classes in their order, None if nobody gives one.

    Raises:
        DataError: a name is there twice, or the file cannot be read.
    """
    if not os.path.isfile(path):
        return None
    names = [name for line in read_text(path).splitlines() if (name := normal(line).strip())]
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice or not names:
        raise DataError(
            f"{path}: {f'class {twice[0]!r} is there twice' if twice else 'it names no class'}. Correct it."
        )
    return names


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


def from_manifest(manifest: Path, group: str | None = None, classes: Sequence[str] | None = None) -> ImagePool:
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

    Raises:
        ConfigError: see `path_groups`.
        DataError: a missing column, an unknown split or a missing file, each with its line.
    """
    table = _read(manifest)
    missing = {"path", "label"} - set(table)
    if missing:
        found = ", ".join(brief(name) for name in table if name != "line") or "none"
        raise DataError(f"{manifest} lacks the column {', '.join(sorted(missing))} (found: {found}). {LAYOUT}")
    if group is not None:
        table["group"] = path_groups(table["path"], group)
    return from_table(str(manifest), table, manifest, classes or _class_order(order_file(manifest)))


def order_file(source: Path) -> Path:
    """Where the order of the classes of a folder or manifest is given, if it is."""
    return source / CLASS_ORDER if os.path.isdir(source) else source.with_suffix(f".{CLASS_ORDER}")


def _read(manifest: Path) -> pd.DataFrame:
    """The known columns as text, "" where there is nothing: a class may well be called NA; and `line`, of the file."""
    if manifest.suffix.lower() == ".csv":
        table, lines = read_csv(manifest, COLUMNS)
    else:
        try:
            stored = parquet.read_table(manifest)
            known = [name for name in stored.column_names if name.strip().lower() in COLUMNS]
            columns = {n.strip().lower(): stored[n].cast("string").fill_null("").to_pylist() for n in known}
            others = [name for name in stored.column_names if name not in known]
        except (OSError, ValueError, ArrowException) as error:
            raise DataError(f"{manifest} cannot be read as a table ({error}). {LAYOUT}") from error
        table, lines = pd.DataFrame(columns, dtype=str), list(range(1, stored.num_rows + 1))
        table = table.assign(**dict.fromkeys(others, ""))
    for name in set(COLUMNS[1:-1]) & set(table):  # spaces belong to names of files and images
        table[name] = table[name].str.strip()
    return table.assign(line=lines)


def from_table(
    name: str,
    table: pd.DataFrame,
    manifest: Path,
    class_names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> ImagePool:
    """A pool of the images that a table of text lists.

    Args:
        name: of the pool.
        table: columns path, label ("" for none), and optionally split, group, low, high, image_id and
            line (of the file).
        manifest: file that the paths are relative to; errors name its lines.
        class_names: their order; None for the alphabetical one, or that of the numbers if all are numbers.
        notes: what is to be said of the images already.

    Raises:
        DataError: see `from_manifest`.
    """
    lines = table["line"].tolist() if "line" in table else list(range(1, len(table) + 1))
    paths = [_located(manifest, path, line) for path, line in zip(table["path"], lines, strict=True)]
    ids = np.array([os.path.normpath(normal(path)) for path in table["path"]], dtype=object)
    first: dict[str, int] = {}
    for row, (place, line) in enumerate(zip(ids, lines, strict=True)):
        earlier = first.setdefault(place, row)
        if earlier != row:
            same = table["path"][earlier] == table["path"][row]
            what = "is listed twice" if same else f"looks like {table['path'][earlier]!a}, which is listed too"
            shown = repr(table["path"][row]) if same else ascii(table["path"][row])
            where = f"{manifest}, line {line}" if "line" in table else str(manifest.parent)
            raise DataError(f"{where}: {shown} {what}. Remove one, or rename the file.")
    if "image_id" in table:
        ids = _given_ids(table, manifest, lines)
    text = np.array([normal(label).strip() for label in table["label"]], dtype=object)
    classes = _classes(text, class_names, name)
    code = {label: number for number, label in enumerate(classes)} | {"": UNLABELLED}
    labels = np.array([code[label] for label in text], dtype=np.int64)
    groups = np.array([normal(one) for one in table["group"]], dtype=object) if "group" in table else None
    if groups is not None:
        groups = groups.astype(str)
    notes = list(notes)
    if "split" in table:
        split = _given_split(name, table, manifest, lines, labels, ids, groups, notes)
    else:
        split = split_rows(labels, groups, ids)
        if (labels != UNLABELLED).all():
            refuse_split(name, labels, split, classes, groups)
    images = _images(table, manifest, lines, paths)
    notes += _image_notes(images)
    return make_pool(name, images, labels, split, ids.astype(str), classes, groups, notes)


def _given_ids(table: pd.DataFrame, manifest: Path, lines: list[int]) -> np.ndarray:
    """Names of the images as a table gives them.

    Raises:
        DataError: one is missing, or is there twice; names the line.
    """
    ids = np.array([normal(name) for name in table["image_id"]], dtype=object)
    first: dict[str, int] = {}
    for row, (name, line) in enumerate(zip(ids, lines, strict=True)):
        if not name.strip() or first.setdefault(name, row) != row:
            wrong = (
                f"{name!r} is the image_id of line {lines[first[name]]} too"
                if name.strip()
                else "the image_id is missing"
            )
            raise DataError(
                f"{manifest}, line {line}: {wrong}. Each image needs one of its own; if the column means something "
                "else, rename it."
            )
    return ids


def _located(manifest: Path, path: str, line: int) -> Path:
    """The file that a cell means: as it is written, or as it looks.

    Raises:
        DataError: there is none; names the line.
    """
    if not path.strip():
        raise DataError(f"{manifest}, line {line}: the row has no path. Name the image, or remove the row.")
    forms = [path, path.strip(), unicodedata.normalize("NFC", path.strip()), unicodedata.normalize("NFD", path.strip())]
    for form in [*forms, *(form.replace("\\", "/") for form in forms)]:
        if os.path.isfile(manifest.parent / form):  # unlike the method, it takes a name that no file can have
            try:
                form.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{manifest.parent}: the name of the file {form!r} is not UTF-8, so no table could hold it. "
                    "Rename it."
                ) from error
            return manifest.parent / form
    raise DataError(
        f"{manifest}, line {line}: there is no file {str(manifest.parent / path)[:PATH_MAX]}. "
        "Paths are relative to the manifest."
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Class names as they are ordered where nobody says how: by number if all are numbers, else by the alphabet."""
    found = sorted(names)
    numbers = all(re.fullmatch(r"[0-9]{1,18}", name) for name in found)
    return sorted(found, key=lambda name: (int(name), name)) if numbers else found


def _classes(text: np.ndarray, given: Sequence[str] | None, name: str) -> list[str]:
    found = in_order(set(text) - {""})
    if given is None:
        return found
    given = [normal(name).strip() for name in given]
    if "" in given or len(set(given)) < len(given):
        raise ConfigError(f"classes: names must differ and not be empty, got {', '.join(map(repr, given))}.")
    unlisted = [label for label in found if label not in given]
    if unlisted:
        raise DataError(
            f"{name}: class {unlisted[0]!r} is not in the order of classes given ({', '.join(given)}), by option or in "
            f"{CLASS_ORDER}. Add it there; capitals count."
        )
    return list(given)


def _given_split(
    name: str,
    table: pd.DataFrame,
    manifest: Path,
    lines: Sequence[int],
    labels: np.ndarray,
    ids: np.ndarray,
    groups: np.ndarray | None,
    notes: list[str],
) -> np.ndarray:
    """(N,) of SPLITS as the table has them; a validation set is taken out of the pool if there is none."""
    split = table["split"].map(lambda word: SPLIT_NAMES.get(word.lower(), ""))
    wrong = (split == "").to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{manifest}, line {lines[row]}: split {brief(table['split'][row])} is none of {', '.join(SPLITS)} "
            "(train is pool)."
        )
    parts = split.to_numpy(dtype=str)
    pool = parts == "pool"
    # A pool that is still to be labelled keeps what labels it has: nothing can be simulated on it anyway.
    if (parts == "test").any() and not (parts == "val").any() and (labels[pool] != UNLABELLED).all() and pool.any():
        parts[pool] = carve(labels[pool], ids[pool], None if groups is None else groups[pool])
        if len(np.unique(labels[parts == "val"])) < 2 <= len(np.unique(labels[labels != UNLABELLED])):
            what = "images" if groups is None else "groups"
            raise DataError(
                f"{name} has no images for validation, and its training images are too few to take some of two classes "
                f"out of them: that needs two classes with at least 2 {what} there. Add {what}, or say in the column "
                "split which images are val."
            )
        notes.append(
            f"{name} has no images for validation: {int((parts == 'val').sum()):,} of its {int(pool.sum()):,} training "
            "images are taken for it, always the same ones. The test images are as given."
        )
    return parts


def _images(table: pd.DataFrame, manifest: Path, lines: Sequence[int], paths: Sequence[Path]) -> FileImages:
    """The files, with the range of deep values that the table gives, if it does."""
    images = FileImages(tuple(paths))
    if not {"low", "high"} <= set(table):
        return images
    ranges = table[["low", "high"]].apply(lambda column: pd.to_numeric(column.replace("", "nan"), errors="coerce"))
    given = (table[["low", "high"]] != "").any(axis=1)
    wrong = given & ~((ranges["low"] <= ranges["high"]) & np.isfinite(ranges).all(axis=1))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"{manifest}, line {lines[row]}: low {table['low'][row]!r} and high {table['high'][row]!r} are no range."
        )
    return images.ranged(
        {row: (float(ranges["low"][row]), float(ranges["high"][row])) for row in map(int, np.flatnonzero(given))}
    )


def _image_notes(images: FileImages) -> list[str]:
    """What is done with images of several pages, and with values of more than 8 bits."""
    headers = [facts.header or Header() for facts in images.facts]
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
