"""The next batch for a data set, in one call and without a session: from labels and probabilities that lie in files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from palkit.config import ExperimentConfig
from palkit.data import UNLABELLED, ImagePool
from palkit.data.own import in_order
from palkit.errors import ConfigError, DataError, brief
from palkit.labelling.session_learner import SessionLearner
from palkit.progress import Progress, silent
from palkit.storage.checks import normal
from palkit.storage.formats import read_csv
from palkit.strategies import get_strategy

COLUMNS = ("id", "image_id", "path", "label")


def read_labels(path: Path) -> dict[str, str]:
    """Labels of a CSV table with the columns id (or image_id, or path) and label, by the name of the image.

    Where all are numbers they are of classes, as in a file of features: -1 is none, and 2.0 is 2, as pandas writes it.

    Raises:
        DataError: the file is no such table, or an image has two labels; names it.
    """
    table = read_csv(path, COLUMNS)
    named = next((name for name in COLUMNS[:-1] if name in table), None)
    if named is None or "label" not in table:
        raise DataError(f"{path} needs the columns id and label (found: {', '.join(map(brief, table))}).")
    labels: dict[str, str] = {}
    texts = [normal(label).strip() for label in table["label"]]
    if all(re.fullmatch(r"-1(\.0*)?|\d+(\.0*)?|", text) for text in texts):
        texts = ["" if text.startswith("-") else text.partition(".")[0] for text in texts]
    for line, name, label in zip(table.index, map(normal, table[named]), texts, strict=True):
        name = name.strip()
        if label and labels.setdefault(name, label) != label:
            raise DataError(f"{path}, {line}: {name!r} has the label {labels[name]!r} already. Keep one of them.")
    return labels


def next_batch(
    config: ExperimentConfig,
    pool: ImagePool,
    device: str,
    *,
    labels: Mapping[str, str] | None = None,
    probs: np.ndarray | None = None,
    classes: Sequence[str] = (),
    progress: Progress = silent,
) -> pd.DataFrame:
    """Images of the pool to label next.

    Args:
        config: strategy, batch size, seed, and the model where there are no probs.
        pool: images, or features; what labels it has count too.
        device: where to compute.
        labels: image -> class name, more of them.
        probs: (N, C) of a model of your own for all N rows of `pool`; None fits one to the labels, or, while these are
            of fewer than two classes, chooses without a model.
        classes: names of the columns of `probs` in their order, and of classes that have no label yet.
        progress: called with (stage, done, total).

    Returns:
        Columns id, row (of `pool`), rank, predicted (class name, "" without a model) and probability (of it).

    Raises:
        ConfigError: nothing is left to choose from, or the probabilities do not fit.
        DataError: a label of an image that is not in the pool.
    """
    if probs is not None and get_strategy(config.strategy).dropout is not None:
        raise ConfigError(
            f"strategy {config.strategy!r} needs several passes of the model, and probs are of one. Leave them "
            "out, and a model is fitted, or take another strategy; `palkit.select` takes stochastic_probs."
        )
    learner = SessionLearner(config, pool, device)
    names = [normal(str(name)) for name in pool.ids[learner.rows]]
    codes = pool.labels[learner.rows].tolist()
    stored = {name: pool.class_names[code] for name, code in zip(names, codes, strict=True) if code != UNLABELLED}
    known = {name: _named(label, classes) for name, label in (stored | dict(labels or {})).items()}
    if probs is not None and not classes:
        raise ConfigError("probs need the names of all classes, in the order of their columns: give classes.")
    strangers = [name for name in known if name not in learner.position]
    if strangers:
        raise DataError(
            f"{len(strangers)} labels are of images that are not in the pool of {pool.name!r}, the first is "
            f"{brief(strangers[0])}; images are called like {names[0]!r}."
        )
    if len(known) == len(names):
        raise ConfigError(f"every image of {pool.name!r} has a label: there is none to choose.")
    order = [*dict.fromkeys([*(classes or pool.class_names), *in_order({*known.values()})])]
    fit = None
    if probs is not None:
        fit = learner.judged(_of_pool(probs, pool, order)[learner.rows], known, order, progress)
    elif len({*known.values()}) > 1:
        fit = learner.score(learner.fit(known, order, 0, progress), {}, progress)
    size = learner.batch_size(order)
    positions = learner.choose(fit, known, order, (), size, 1, progress)
    guesses = [fit.guess(position) if fit else ("", np.nan) for position in positions]
    table = pd.DataFrame(guesses, columns=["predicted", "probability"])
    rows = learner.rows[positions]
    return pd.DataFrame({"id": pool.ids[rows], "row": rows, "rank": range(1, len(rows) + 1)}).join(table)


def matched(
    probs: np.ndarray, columns: Sequence[str], ids: Sequence[str], pool: ImagePool, classes: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    """Probabilities of all images of the pool, in its order, and the names of their columns.

    Args:
        probs: (M, C).
        columns: names of its columns, as far as they are known.
        ids: names of its rows, as far as they are known; without, they are those of the pool in its order.
        pool: whose images they are of.
        classes: names in the order that is wanted; None or none for that of the columns.

    Raises:
        ConfigError: names do not fit the probabilities, or the images, or the classes.
    """
    for what, names, size in (("ids", ids, len(probs)), ("classes", columns, probs.shape[1])):
        if names and (len(names) != size or len(set(names)) < size):
            raise ConfigError(f"probs have {len(set(names))} {what} of their own for {size}: one each is needed.")
    if ids:
        place = {name: row for row, name in enumerate(ids)}
        images = [normal(str(name)) for name in pool.ids]
        if missing := [name for name in images if name not in place]:
            raise ConfigError(
                f"probs are lacking for {len(missing)} images of {pool.name!r}, the first is {brief(missing[0])}; "
                f"theirs are called like {ids[0]!r}."
            )
        probs = probs[[place[name] for name in images]]
    if columns and classes and list(columns) != list(classes):
        if set(columns) != set(classes):
            raise ConfigError(f"probs are of the classes {', '.join(columns)}, and not of {', '.join(classes)}.")
        probs = probs[:, [list(columns).index(name) for name in classes]]
    return probs, list(classes or columns)


def _named(label: str, classes: Sequence[str]) -> str:
    """The class that a label means, by its name or its number, if all classes are given."""
    if not classes or label in classes:
        return label
    if label.isdecimal() and int(label) < len(classes):
        return classes[int(label)]
    raise ConfigError(f"label {brief(label)} is none of the classes given ({', '.join(classes)}); capitals count.")


def _of_pool(probs: np.ndarray, pool: ImagePool, classes: Sequence[str]) -> np.ndarray:
    """The probabilities, if there is a row for every image and a column for every class."""
    if probs.shape != (len(pool), len(classes)):
        named = ", ".join(classes) or "none"
        raise ConfigError(
            f"probs are {probs.shape[0]:,} rows of {probs.shape[1]}; there are {len(pool):,} images of {pool.name!r}, "
            f"and {len(classes)} classes ({named[:100]}). Name all classes, in the order of the columns."
        )
    return probs
