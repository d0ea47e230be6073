"""Annotators who err: what answers are worth to images that have a label, into figures/annotators.

    python campaigns/annotators.py    # half an hour on one core

Three simulated annotators take turns, 20 answers a round, 200 in all. They mistake a class for any other ("10 %",
"20 %", "40 %"), or for one of the two beside it ("neighbours", 30 %; on IDRiD the grades next to it), or never. Their
answers go to

- "new": new images only;
- "twice": every image is answered by two of them;
- "again": `open_session(ask_again=True)`;
- "taken back": new images only, and after each round the labels that are worth another answer are taken back instead.

All have a logistic probe on frozen features, margin sampling, and the same answers to the same images. The table has a
row per data set, noise, way, seed and round: `answers`, `again` (those to images that had one), `labels` trained on,
their share that is `right`, and `accuracy` on test images with clean labels.

    python campaigns/annotators.py pairs    # seconds

IDRiD's own noise: some photographs are there twice, graded by whom nobody knows. All photographs get the grade of their
first copy from one annotator, and those that are there twice the grade of the second from another. `pairs.parquet` says
what `session.doubts()` makes of them: before the second answer the share of the pool's labels that are doubted less,
and after it the label, the place in the list of doubts and the probability that the likeliest grade is wrong.

Histology and IDRiD have to be there, see docs/images.md.
"""

import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from palkit.data import load_dataset
from palkit.experiments.results import FIGURES
from palkit.labelling.session import open_session
from palkit.storage.formats import write_table

SETS = {"fashion_mnist": 1500, "histology": 1500, "idrid_unique": None}
NOISES = {"none": 0.0, "10 %": 0.1, "20 %": 0.2, "40 %": 0.4, "neighbours": 0.3}
WAYS = ("new", "twice", "again", "taken back")
ANNOTATORS, SEEDS, BATCH, ROUNDS = ("ana", "ben", "cho"), range(10), 20, 10


loaded = cache(load_dataset)  # a folder's files are found anew at every call


def mistaken(noise: str, classes: int) -> np.ndarray:
    """(C, C) probability of each answer by true class."""
    beside = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    other = (beside == 1 if noise == "neighbours" else beside > 0).astype(float)
    rate = NOISES[noise]
    return (1 - rate) * np.eye(classes) + rate * other / other.sum(axis=1, keepdims=True)


def simulated(name: str, noise: str, way: str, seed: int) -> list[dict]:
    """Rounds of one session."""
    pool = loaded(name)
    rates, truth = mistaken(noise, len(pool.class_names)).cumsum(axis=1), dict(zip(pool.ids, pool.labels, strict=True))
    luck = np.random.default_rng(seed).random((len(ANNOTATORS), len(pool)))
    row = {image: number for number, image in enumerate(pool.ids)}
    rows, again = [], 0

    def answer(person: int, images: list[str]) -> None:
        numbers = [np.searchsorted(rates[truth[image]], luck[person, row[image]]) for image in images]
        session.annotator = ANNOTATORS[person]
        session.label(images, [pool.class_names[number] for number in numbers])

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            name, ANNOTATORS[0], folder=folder, adapter="linear_probe", strategy="margin", batch_size=BATCH, seed=seed,
            pool_size=SETS[name], ask_again=way == "again", evaluate_on="test",
            training={"head": "logistic", "head_decay": 0.3, "augmentation": "none"},
        )  # fmt: skip
        for number in range(ROUNDS):
            turn = number % len(ANNOTATORS)
            session.annotator = ANNOTATORS[turn]
            batch = session.propose(BATCH // 2 if way == "twice" else None)
            answer(turn, batch["id"].tolist())
            again += int((batch["purpose"] == "second opinion").sum())
            if way == "twice":
                answer((turn + 1) % len(ANNOTATORS), batch["id"].tolist())
                again += len(batch)
            labels = session.training_labels()
            right = np.mean([pool.class_names[truth[image]] == label for image, label in labels.items()])
            # Answers may contradict each other until labels of one class are left.
            accuracy = session.fit().metrics["accuracy"] if len(set(labels.values())) > 1 else np.nan
            rows.append({"dataset": name, "noise": noise, "way": way, "seed": seed, "round": number,
                         "answers": BATCH * (number + 1), "again": again, "labels": len(labels), "right": right,
                         "accuracy": accuracy})  # fmt: skip
            if way == "taken back":
                session.annotator, doubts = ANNOTATORS[turn], session.doubts()
                doubted = doubts.loc[(doubts["worth"] > 0) & (doubts["label"] != ""), "id"]
                given = session.answers()
                for session.annotator in ANNOTATORS:
                    own = (given["annotator"] == session.annotator) & given["id"].isin(doubted)
                    session.unsure(given.loc[own, "id"].tolist())
    return rows


def pairs() -> pd.DataFrame:
    """What is made of the grades of IDRiD's photographs that are there twice, a row each."""
    pool = loaded("idrid")
    copies = pool.duplicates()
    names, grades = [str(path.resolve()) for path in pool.images.paths], pool.label_names()
    groups = [rows.to_numpy() for _, rows in copies.groupby("checksum", sort=False)["row"]]
    kept = np.setdiff1d(np.arange(len(pool)), [row for rows in groups for row in rows[1:]])
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "idrid.csv"
        pd.DataFrame({"path": names, "label": "", "split": "pool"}).iloc[kept].to_csv(manifest, index=False)
        session = open_session(
            str(manifest), "first", classes=list(pool.class_names), folder=Path(folder) / "labels", strategy="random",
            adapter="linear_probe", training={"head": "logistic", "head_decay": 0.3, "augmentation": "none"},
        )  # fmt: skip
        of_row = dict(zip(kept.tolist(), session.pool.ids, strict=True))
        session.label([of_row[row] for row in kept.tolist()], [grades[row] for row in kept.tolist()])
        session.fit()
        before = session.doubts().set_index("id")["wrong"].rank(pct=True)
        session.annotator = "second"
        session.label([of_row[rows[0]] for rows in groups], [grades[rows[1]] for rows in groups])
        session.fit()
        after = session.doubts().set_index("id")
    table = []
    for first, second in groups:
        image = of_row[first]
        table.append({
            "photographs": " = ".join(f"{Path(names[row]).stem}, {pool.split[row]}" for row in (first, second)),
            "first": grades[first], "second": grades[second], "doubted less": before[image],
            "place": after.index.get_loc(image) + 1, **after.loc[image, ["label", "likeliest", "wrong"]],
        })  # fmt: skip
    return pd.DataFrame(table).round(3)


if __name__ == "__main__":
    if sys.argv[1:] == ["pairs"]:
        write_table(pairs(), FIGURES / "annotators" / "pairs.parquet")
        sys.exit()
    table = [
        row
        for name in sys.argv[1:] or SETS
        for noise in NOISES
        for seed in SEEDS
        for way in WAYS
        for row in simulated(name, noise, way, seed)
    ]
    write_table(pd.DataFrame(table), FIGURES / "annotators" / "rounds.parquet")
