"""Image classification data sets of the Hugging Face Hub, by id."""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palkit.data.download import console, dataset_dir
from palkit.data.files import explain
from palkit.data.own import from_table
from palkit.data.pool import ImagePool, carve
from palkit.errors import DataError
from palkit.storage.files import atomic_folder, locked

PREFIX = "hf:"
VALIDATION = ("validation", "val", "valid", "dev")
FORM = "Write hf:owner/name, or hf:owner/name@config."


def from_hub(name: str) -> ImagePool:
    """A data set `hf:owner/name` or `hf:owner/name@config`, or a path to a folder in the Hub's layout.

    Its images are written into files once. Splits: train is the pool; without a test split the validation split is
    the test set; what is then missing is taken out of train. A split none of whose images has a label is left out.
    No code of the data set is executed: the `datasets` library no longer can.

    Raises:
        DataError: it cannot be had, or has not one image and one label column; lists the columns.
    """
    folder = _folder(name.removeprefix(PREFIX))
    table = folder / "images" / "table.parquet"
    with locked(folder / ".lock"):
        if not table.exists():
            _export(name, _loaded(name, folder / "arrow"), folder / "images")
        shutil.rmtree(folder / "arrow", ignore_errors=True)  # the same images once more
    try:
        rows = pd.read_parquet(table)
        names = list(rows.pop("classes")[0])
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among them
        raise DataError(f"{table} is damaged ({explain(error)}). Delete {folder} to have it made again.") from error
    rows.index = [f"{table}, line {number}" for number in range(1, len(rows) + 1)]
    return from_table(name, rows, table.parent, names)


def _folder(source: str) -> Path:
    """Folder of the exported images: a readable name and a checksum, of the name or of a local folder's files."""
    identity, local = source, Path(source.partition("@")[0])
    if source.partition("@")[0] and os.path.isdir(local):  # without a name it would be the folder that one is in
        files = sorted(path for path in local.rglob("*") if path.is_file())
        stamps = [f"{path}{path.stat().st_size}{path.stat().st_mtime_ns}" for path in files]
        identity = f"{local.resolve()}@{source}{''.join(stamps)}"
    readable = re.sub(r"[^\w.@-]+", "_", source)[:200]  # file systems take no more than 255 bytes
    return dataset_dir("hf") / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _loaded(name: str, cache: Path) -> Mapping[str, Any]:
    """The splits as the library loads them, images still encoded."""
    import datasets

    source, _, config = name.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(r"[^@\s]+", source):
        raise DataError(f"{name!r} names no data set. {FORM}")
    if not console.is_terminal:
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(source, config or None, cache_dir=str(cache))
    except Exception as error:  # the library lets through those of a dozen others
        raise DataError(
            f"data set {name!r} could not be loaded from the Hugging Face Hub ({explain(error)}). "
            f"Check its id and configuration on https://huggingface.co/datasets/{source}, and the network. {FORM}"
        ) from error


def _export(name: str, splits: Mapping[str, Any], folder: Path) -> None:
    """Write a folder: a file per image, and table.parquet with path, label, split and the classes."""
    import datasets

    image, label = _columns(name, next(iter(splits.values())).features)
    labels, class_names = _labels(splits, label)
    places = _places(name, labels, class_names)
    with atomic_folder(folder) as temporary:
        written = []
        for part, split in places.items():
            (temporary / part).mkdir()
            encoded = splits[part].select_columns([image]).cast_column(image, datasets.Image(decode=False))
            for row, (record, text) in enumerate(zip(encoded, labels[part], strict=True)):
                path = f"{part}/{row:07d}{Path(record[image]['path'] or '').suffix.lower()}"
                content = record[image]["bytes"]
                (temporary / path).write_bytes(Path(record[image]["path"]).read_bytes() if content is None else content)
                written.append((path, text, split if isinstance(split, str) else split[row]))
        table = pd.DataFrame(written, columns=["path", "label", "split"])
        if len(places) == 1:
            table = table.drop(columns="split")  # nothing official: split like a folder
        table["classes"] = [class_names] * len(table)
        table.to_parquet(temporary / "table.parquet")


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The image column and the label column: the one ClassLabel, or else the one of text or whole numbers."""
    import datasets

    def of(kind: type) -> list[str]:
        return [column for column, found in features.items() if isinstance(found, kind)]

    texts = ("int", "uint", "string", "large_string", "bool")
    images, plain = of(datasets.Image), [one for one in of(datasets.Value) if features[one].dtype.startswith(texts)]
    labels = of(datasets.ClassLabel) or [one for one in plain if one in {"label", "labels", "class"}] or plain
    if len(images) != 1 or len(labels) != 1:
        kinds = {column: f"{type(kind).__name__} {getattr(kind, 'dtype', '')}" for column, kind in features.items()}
        listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise DataError(
            f"data set {name!r} has {len(images)} image columns and {len(labels)} columns that may be the label; "
            f"exactly one of each is needed. Its columns: {listed}. Save what you need as files with a CSV manifest."
        )
    return images[0], labels[0]


def _labels(splits: Mapping[str, Any], column: str) -> tuple[dict[str, list[str]], list[str]]:
    """Labels of all rows of each split as text, "" where there is none; and the classes.

    These are in the published order, or for whole numbers in the numerical and for text in the alphabetical one.
    """
    kind = next(iter(splits.values())).features[column]
    stored = {part: rows.with_format(None)[column][:] for part, rows in splits.items()}
    if hasattr(kind, "names"):
        known = dict(enumerate(kind.names))  # -1 is none of them
        return {part: [known.get(value, "") for value in values] for part, values in stored.items()}, kind.names
    labels = {part: ["" if value is None else str(value) for value in values] for part, values in stored.items()}
    found = {text for texts in labels.values() for text in texts if text}
    return labels, sorted(found, key=int if "int" in kind.dtype else str)


def _places(name: str, labels: Mapping[str, list[str]], class_names: list[str]) -> Mapping[str, str | np.ndarray]:
    """The splits that are used, and what each becomes: one of SPLITS, or one per image."""
    known = [part for part, found in labels.items() if any(found)]
    if len(known) == 1:
        return {known[0]: "pool"}
    held_out = [part for part in ("test", *VALIDATION) if part in known]
    if "train" not in known or not held_out:
        raise DataError(
            f"data set {name!r} has the labelled splits {', '.join(known) or '(none)'}; expected is one, or train "
            f"with test or {' or '.join(VALIDATION)}. Save it as files with a CSV manifest that has a split column."
        )
    if len(held_out) > 1:
        return {"train": "pool", held_out[1]: "val", held_out[0]: "test"}
    train = pd.Categorical(labels["train"], class_names).codes
    return {"train": carve(train, np.arange(len(train)).astype(str)), held_out[0]: "test"}
