"""Tables for image grids: what is known about each image of a pool."""

import numpy as np
import pandas as pd

from palkit.data import ImagePool, load_dataset
from palkit.errors import DataError, PalkitError
from palkit.widgets.grid import ImageGrid

SHOWN = 80  # images that a look at every class has about


def image_table(pool: ImagePool, rows: np.ndarray | None = None) -> pd.DataFrame:
    """Columns row, class ("" where not known), split and id of images.

    Args:
        pool: the data set.
        rows: (n,) which of its rows; None for all.
    """
    rows = np.arange(len(pool)) if rows is None else rows
    columns = {"row": rows, "class": pool.label_names()[rows], "split": pool.split[rows], "id": pool.ids[rows]}
    return pd.DataFrame(columns)


def some_of_each_class(pool: ImagePool, seed: int, most: int = 8) -> np.ndarray:
    """(n,) rows of the pool split, drawn at random from every class: as many of each as fit, and as there are.

    Args:
        pool: labelled.
        seed: of the draws.
        most: images of a class.
    """
    rng, rows = np.random.default_rng(seed), pool.rows("pool")
    count = min(most, max(1, SHOWN // len(pool.class_names)))
    by_class = [rows[pool.labels[rows] == number] for number in range(len(pool.class_names))]
    return np.concatenate([rng.choice(members, min(count, len(members)), replace=False) for members in by_class])


def balance(pool: ImagePool) -> str:
    """How large the classes of a pool are, and which have no image in a split, in sentences."""
    counts = pool.counts()
    pooled = counts["pool"].sort_values(kind="stable", ascending=False)
    largest, smallest = pooled.index[0], pooled.index[-1]
    lines = [f"{pool.name}: every class has {pooled.iloc[0]} images in the pool, so it is balanced."]
    if pooled.iloc[0] != pooled.iloc[-1]:
        lines = [
            f"{pool.name}: the largest class of the pool, {largest}, has {pooled.iloc[0]} images, the smallest, "
            f"{smallest}, {pooled.iloc[-1]}."
        ]
    for split in counts:
        without = list(counts.index[counts[split] == 0])
        if without:
            lines.append(f"Without an image in the split {split}: {', '.join(without)}.")
    return "\n".join(lines)


def mistakes(pool: ImagePool, rows: np.ndarray, decisions: np.ndarray) -> pd.DataFrame:
    """Images that a classifier gets wrong, the surest mistakes first.

    Args:
        pool: labelled.
        rows: (n,) rows that were classified.
        decisions: (n, C) scores of the classes; what is highest is predicted.

    Returns:
        Columns of `image_table`, `predicted` (class name), and `margin`, highest score less the second.
    """
    order = np.argsort(decisions, axis=1)
    top, second = order[:, -1], order[:, -2]
    each = np.arange(len(rows))
    margin = decisions[each, top] - decisions[each, second]
    table = image_table(pool, rows).assign(predicted=np.array(pool.class_names)[top], margin=margin)
    return table[top != pool.labels[rows]].sort_values("margin", ascending=False, kind="stable", ignore_index=True)


def bought_table(pool: ImagePool, bought: pd.DataFrame) -> pd.DataFrame:
    """What one run bought, in order.

    Args:
        pool: its data set.
        bought: columns round, id and label, see `palkit.experiments.experiment.Learner.selections`.

    Returns:
        Columns row, round, answer (class name) and id.
    """
    answers = np.array(pool.class_names)[bought["label"]]
    rows = _rows(pool, bought["id"])
    return pd.DataFrame({"row": rows, "round": bought["round"], "answer": answers, "id": bought["id"]})


def most_bought(pool: ImagePool, selections: pd.DataFrame) -> pd.DataFrame:
    """Every image that a run bought after its first batch, those that most runs bought first.

    The first batch hangs on the seed alone and says nothing about a strategy.

    Args:
        pool: the data set of the runs.
        selections: columns run, strategy, round and id, see `palkit.experiments.results.collect`.

    Returns:
        Columns row, class, id, runs and strategies (how many bought it), share (of all runs), first (earliest round).

    Raises:
        DataError: an image is not in the pool.
    """
    runs = selections["run"].nunique()
    groups = selections[selections["round"] > 0].groupby("id")
    table = groups.agg(
        runs=("run", "nunique"), strategies=("strategy", "nunique"), first=("round", "min")
    ).reset_index()
    table.insert(0, "row", _rows(pool, table["id"]))
    table.insert(1, "class", pool.label_names()[table["row"]])
    table["share"] = table["runs"] / runs
    keys, ascending = ["runs", "strategies", "first", "row"], [False, False, True, True]
    return table.sort_values(keys, ascending=ascending, ignore_index=True)


def show_most_bought(selections: pd.DataFrame) -> None:
    """Display `most_bought` of each data set as a grid; prints why where a data set cannot be loaded.

    Args:
        selections: of one or more data sets, in the column dataset.
    """
    from IPython.display import display

    for name, rows in selections.groupby("dataset", sort=False):
        try:
            pool = load_dataset(str(name))
            table = most_bought(pool, rows)
        except (PalkitError, OSError) as error:
            print(f"Not shown for {name}: {error}")
            continue
        label = f"{name}, bought by most of {rows['run'].nunique()} runs"
        display(ImageGrid(pool.images, table, caption=["class", "strategies"], bar="share", label=label))


def _rows(pool: ImagePool, ids: pd.Series) -> np.ndarray:
    rows = pd.Index(pool.ids).get_indexer(pd.Index(ids))
    for name in ids[rows < 0][:1]:
        raise DataError(f"data set {pool.name!r} has no image {name}: it is not the one that was bought from.")
    return rows
