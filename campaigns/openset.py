"""Images of none of the classes in the pool: what the answer "none of these" saves, into figures/openset.

    python campaigns/openset.py    # some minutes

Handwritten digits are mixed into a pool of Fashion-MNIST until they are a fifth or half of it. An expert who makes no
mistakes answers what a session proposes, ten images a round, and says of digits "unsure", after which they are gone, or
"none of these", after which the model learns to know them and no more are proposed that it takes for one. The table has
a row per share, way, seed and round: `asked`, of them `foreign` so far, `accuracy` on 1,000 test images of clothes.
"""

import tempfile

import numpy as np
import pandas as pd
from PIL import Image

from palkit.data import ArrayImages, ImagePool, dataset, load_dataset
from palkit.experiments.results import FIGURES
from palkit.labelling.answers import NONE
from palkit.labelling.session import open_session
from palkit.storage.formats import write_table

SHARES, SEEDS, ROUNDS, CLOTHES = (0.2, 0.5), range(10), 8, 600


def mixed(share: float, seed: int) -> ImagePool:
    """Clothes and digits, without labels in the pool, and test images of clothes."""
    clothes, digits = load_dataset("fashion_mnist"), load_dataset("digits")
    rng = np.random.default_rng(seed)
    pool = rng.permutation(clothes.rows("pool"))[:CLOTHES]
    foreign = rng.permutation(len(digits))[: round(CLOTHES * share / (1 - share))]
    drawn = digits.images.array[foreign]
    resized = np.stack([np.asarray(Image.fromarray(one).resize((28, 28), Image.Resampling.BICUBIC)) for one in drawn])
    rows = np.concatenate([pool, clothes.rows("test")])
    images = np.concatenate([clothes.images.array[rows], resized])
    labels = np.concatenate([clothes.labels[rows], np.full(len(foreign), -1)])
    labels[: len(pool)] = -1
    split = np.repeat(["pool", "test", "pool"], [len(pool), len(rows) - len(pool), len(foreign)])
    ids = np.array([*clothes.ids[rows], *(f"digit {row}" for row in foreign)], dtype=object)
    return ImagePool("clothes and digits", ArrayImages(images), labels, split, ids, clothes.class_names)


def simulated(share: float, way: str, seed: int) -> list[dict]:
    """Rounds of one session."""
    name = f"clothes_and_digits_{share}_{seed}"
    dataset(name)(lambda: mixed(share, seed))
    clothes = load_dataset("fashion_mnist")
    truth = dict(zip(clothes.ids, clothes.label_names(), strict=True))
    rows, asked, foreign = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            name, "expert", folder=folder, adapter="linear_probe", batch_size=10, seed=seed,
            training={"head": "logistic", "head_decay": 0.3, "augmentation": "none"},
        )  # fmt: skip
        for number in range(ROUNDS):
            batch = session.propose()["id"]
            known = batch[batch.isin(truth.keys())]
            others = batch[~batch.isin(truth.keys())]
            session.label(known, [truth[image] for image in known])
            (session.none_of_these if way == NONE else session.unsure)(list(others))
            asked, foreign = asked + len(batch), foreign + len(others)
            accuracy = session.fit().metrics["accuracy"]
            rows.append({"share": share, "way": way, "seed": seed, "round": number, "asked": asked,
                         "foreign": foreign, "accuracy": accuracy})  # fmt: skip
    return rows


if __name__ == "__main__":
    table = [
        row for seed in SEEDS for share in SHARES for way in ("unsure", NONE) for row in simulated(share, way, seed)
    ]
    write_table(pd.DataFrame(table), FIGURES / "openset" / "rounds.parquet")
