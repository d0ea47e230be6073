"""Advice on a strategy comes from the data sets of the same kind, and from nothing that the intervals do not carry."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from palkit.data import ImagePool, load_dataset
from palkit.studies.advice import FEW, LONG_TAIL, advice, advised, gains_of, imbalance_of, recommended
from palkit.studies.statistics import area_under_curve

CLASSES, IMBALANCE = {"even": 4, "tail": 4}, {"even": 1.0, "tail": 20.0}


def table(level: dict[str, dict[str, float]], adapter: str = "linear_probe", late: float = 0.0) -> pd.DataFrame:
    """Rounds of five seeds; a strategy is better than random by its level, and by `late` more from round 3 on."""
    rows = []
    for (dataset, gains), seed in itertools.product(level.items(), range(5)):
        for name, gain in {"random": 0.0, **gains}.items():
            strategy, _, balance = name.partition(" + ")
            for number in range(6):
                noise = np.random.default_rng([seed, number, *map(ord, name)]).normal(0, 0.002)
                extra = gain + (late if number >= FEW and name != "random" else 0.0)
                rows.append(
                    {
                        "run": f"{dataset} {adapter} {name} {seed}", "dataset": dataset, "backbone": "vit",
                        "adapter": adapter, "strategy": strategy, "balance": balance or "none", "seed": seed,
                        "round": number, "labels": 4 * (number + 1), "accuracy": 0.5 + extra + noise,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def test_gains_are_paired_differences_of_areas_in_both_parts_of_the_budget() -> None:
    rounds = table({"even": {"margin": 0.05, "entropy + pcb": -0.03}}, late=0.1)
    found = gains_of(rounds, CLASSES, IMBALANCE).set_index(["strategy", "budget"])
    assert set(found.index) == set(itertools.product(("margin", "entropy + pcb"), ("few", "more")))
    for strategy, balance in (("margin", "none"), ("entropy", "pcb")):
        for budget, most in (("few", 4 * FEW), ("more", 99)):
            differences = []
            for seed in range(5):
                rows = rounds[(rounds["seed"] == seed) & (rounds["labels"] <= most)]
                own, other = (
                    rows[(rows["strategy"] == name) & (rows["balance"] == kind)]
                    for name, kind in ((strategy, balance), ("random", "none"))
                )
                areas = [area_under_curve(part["labels"], part["accuracy"]) for part in (own, other)]
                differences.append(100 * (areas[0] - areas[1]))
            row = found.loc[strategy if balance == "none" else f"{strategy} + pcb", budget]
            assert row["gain"] == pytest.approx(np.mean(differences))
            assert row["low"] < row["gain"] < row["high"]
            assert (row["n_seeds"], row["imbalance"], row["classes"]) == (5, 1.0, 4)


def test_advice_is_of_the_same_kind_of_data_alone() -> None:
    frozen = table({"even": {"margin": 0.05, "badge": 0.02}, "tail": {"margin": -0.05, "badge": 0.03}})
    evidence = pd.concat(
        [gains_of(frozen, CLASSES, IMBALANCE), gains_of(table({"even": {"badge": 0.04}}, "lora"), CLASSES, IMBALANCE)]
    )
    for imbalance in (1.0, LONG_TAIL - 0.1):
        assert advice(imbalance, "few", False, evidence)["strategy"].tolist() == ["margin", "badge"]
    for imbalance in (LONG_TAIL, 300.0):
        found = advice(imbalance, "more", False, evidence).set_index("strategy")
        assert found.index.tolist() == ["badge", "margin"]
        assert (found.loc["margin", "below"], found.loc["badge", "above"], found.loc["badge", "datasets"]) == (1, 1, 1)
    assert advice(1.0, "few", True, evidence)["strategy"].tolist() == ["badge"]
    nothing = advice(50.0, "few", True, evidence)
    assert nothing.empty
    assert recommended(nothing) == "random"


def test_a_strategy_that_fell_below_random_somewhere_is_not_recommended() -> None:
    level = {"even": {"margin": 0.09, "badge": 0.02}, "odd": {"margin": -0.03, "badge": 0.0, "bald": 0.2}}
    evidence = gains_of(table(level), {"even": 4, "odd": 4}, {"even": 1.0, "odd": 2.0})
    found = advice(1.0, "few", False, evidence)
    assert found["strategy"].tolist() == ["margin", "badge"], "bald was not tried on both"
    assert found.iloc[0]["worst"] < 0 < found.iloc[0]["gain"]
    assert recommended(found) == "badge"
    assert recommended(found[found["strategy"] == "margin"]) == "random"
    assert recommended(found.assign(above=0)) == "random", "nothing is beyond chance"


def test_adapters_on_a_data_set_are_no_data_sets() -> None:
    level = {"even": {"margin": 0.05}}
    both = [gains_of(table(level, adapter), CLASSES, IMBALANCE) for adapter in ("lora", "full")]
    found = advice(1.0, "few", True, pd.concat(both)).iloc[0]
    assert (found["datasets"], found["above"], found["below"]) == (1, 1, 0)
    down = gains_of(table({"even": {"margin": -0.05}}, "full"), CLASSES, IMBALANCE)
    found = advice(1.0, "few", True, pd.concat([both[0], down])).iloc[0]
    assert (found["datasets"], found["above"], found["below"]) == (1, 0, 1)


def test_more_seeds_of_the_baseline_do_no_harm() -> None:
    rounds = table({"even": {"margin": 0.05}})
    more = rounds[(rounds["strategy"] == "random") | (rounds["seed"] < 3)]
    found = gains_of(more, CLASSES, IMBALANCE)
    assert found["n_seeds"].tolist() == [3, 3]
    assert found["gain"].tolist() == gains_of(rounds[rounds["seed"] < 3], CLASSES, IMBALANCE)["gain"].tolist()


def test_sentences_say_what_to_take_and_why() -> None:
    frozen = table({"even": {"margin": 0.05, "badge": 0.02}, "tail": {"margin": -0.05, "badge": -0.03}})
    evidence = gains_of(frozen, CLASSES, IMBALANCE)
    even, tail = np.array([0, 0, 1, 1]), np.array([0] * 40 + [1, 2])
    said = advised(even, False, evidence)
    gain = r"\(\+5\.\d points over random, at worst \+5\.\d\)"
    tried = "on 1 data set, where only badge, margin was tried beside it"
    assert re.fullmatch(rf"margin for up to 3 labels per class {gain}, margin for more {gain}, {tried}", said)
    assert advised(tail, False, evidence) == f"random for up to 3 labels per class, random for more, {tried}"
    many = gains_of(table({"even": {"margin + pcb": 0.05, "badge": 0.0, "bald": 0.0, "bait": 0.0}}), CLASSES, IMBALANCE)
    assert advised(even, False, many).startswith("margin balance=pcb for up to 3")
    assert advised(even, False, many).endswith("on 1 data set")
    both = advised(np.array([-1, -1]), False, evidence)
    assert both.startswith("if no class is rare: margin")
    assert "; with a long tail: random" in both
    assert advised(np.array([*even, -1]), False, evidence) == said
    assert advised(even, True, evidence).startswith("nothing was tried")


def test_imbalance_is_of_the_labels(pool: ImagePool) -> None:
    assert imbalance_of(np.array([0, 0, 0, 2])) == 3.0
    labels = load_dataset("digits_lt")
    assert imbalance_of(labels.labels[labels.rows("pool")]) > LONG_TAIL
    assert imbalance_of(pool.labels) < LONG_TAIL
