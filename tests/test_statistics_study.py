"""Statistics over data sets, ranks, savings and recalls, each against a slow obvious way or a peer library."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rliable import metrics as rliable_metrics
from scikit_posthocs import posthoc_nemenyi_friedman
from scipy import stats
from sklearn.metrics import recall_score

from palkit import statistics
from palkit.errors import ConfigError
from palkit.metrics import recalls_of

LABELS = (10, 20, 40)
UNITS = st.integers(0, 100).map(lambda k: k / 100)


def runs(values: np.ndarray, labels: Sequence[int] = LABELS, **config: str) -> pd.DataFrame:
    """A run per row of (seeds, rounds) values, of one configuration."""
    what = {"dataset": "a", "backbone": "vit", "adapter": "lora", "strategy": "random", "balance": "none", **config}
    name = "-".join(what.values())
    return pd.concat(
        pd.DataFrame({"run": f"{name}-{seed}", **what, "seed": seed, "round": range(len(row)), "labels": labels,
                      "accuracy": row, "fit_s": 1.0, "score_s": 2.0, "select_s": 0.5})
        for seed, row in enumerate(np.asarray(values, dtype=float))
    )  # fmt: skip


def study(
    seeds: int = 5, datasets: str = "abc", strategies: Sequence[str] = ("random", "badge", "margin")
) -> pd.DataFrame:
    """Made-up curves, in an order that no function may count on."""
    rng = np.random.default_rng(0)
    parts = [
        runs(rng.random((5, 3)) + 0.2 * strategies.index(strategy), dataset=dataset, strategy=strategy)
        for dataset, strategy in itertools.product(datasets, strategies)
    ]
    return pd.concat(parts).sample(frac=1, random_state=0).reset_index(drop=True)


# --- interquartile means


@given(hnp.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3)), elements=UNITS))
@settings(deadline=None)
def test_iqm_is_the_mean_of_the_middle_half(scores: np.ndarray) -> None:
    for point, found in enumerate(statistics.iqm(scores)):
        ordered = sorted(scores[:, :, point].ravel())
        cut = len(ordered) // 4
        assert found == pytest.approx(np.mean(ordered[cut : len(ordered) - cut]))
        assert found == pytest.approx(rliable_metrics.aggregate_iqm(scores[:, :, point]))
        assert found == pytest.approx(stats.trim_mean(scores[:, :, point], 0.25, axis=None))


def test_iqm_interval_against_a_bootstrap_by_hand() -> None:
    scores = np.random.default_rng(1).normal(size=(5, 4, 3)) + np.arange(4)[None, :, None]
    rng, drawn = np.random.default_rng(2), []
    for _ in range(4000):
        resampled = np.stack([scores[rng.integers(5, size=5), task] for task in range(4)], axis=1)
        drawn.append([stats.trim_mean(resampled[:, :, point], 0.25, axis=None) for point in range(3)])
    low, high = statistics.iqm_interval(scores)
    # Monte-Carlo error of an end: about 3 % of the width of an interval, for both roads.
    np.testing.assert_allclose([low, high], np.quantile(drawn, (0.025, 0.975), axis=0), atol=0.08)
    assert (low < statistics.iqm(scores)).all()
    assert (statistics.iqm(scores) < high).all()


def test_iqm_interval_is_deterministic_and_leaves_the_callers_generator_alone() -> None:
    scores = np.random.default_rng(1).random((5, 2, 4))
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first = statistics.iqm_interval(scores)
    assert np.random.random() == expected  # noqa: NPY002
    np.testing.assert_array_equal(first, statistics.iqm_interval(scores))
    # A point's interval does not depend on its neighbours.
    np.testing.assert_array_equal(np.array(first)[:, 1:3], statistics.iqm_interval(scores[:, :, 1:3]))
    assert np.isnan(statistics.iqm_interval(scores[:1])).all()


def test_iqm_curves_aggregate_seeds_and_data_sets() -> None:
    rounds = study()
    curves = statistics.iqm_curves(rounds)
    assert list(curves) == ["adapter", "strategy", "labels", "iqm", "low", "high", "n_seeds", "n_tasks"]
    for row in curves.itertuples():
        values = rounds[(rounds["strategy"] == row.strategy) & (rounds["labels"] == row.labels)]["accuracy"]
        assert row.iqm == pytest.approx(stats.trim_mean(values, 0.25))
        assert row.low <= row.iqm <= row.high
        assert (row.n_seeds, row.n_tasks) == (5, 3)
    pd.testing.assert_frame_equal(curves, statistics.iqm_curves(rounds.sample(frac=1, random_state=1)))
    one = rounds[rounds["strategy"] == "badge"]
    alone = statistics.iqm_curves(one)
    pd.testing.assert_frame_equal(alone, curves[curves["strategy"] == "badge"].reset_index(drop=True))
    assert list(statistics.iqm_curves(one, axis="fraction")["fraction"]) == [0.25, 0.5, 1]


@given(UNITS)
@settings(max_examples=5, deadline=None)
def test_constant_curves_have_bands_of_no_width(value: float) -> None:
    curves = statistics.iqm_curves(runs(np.full((5, 3), value)))
    np.testing.assert_allclose(curves[["iqm", "low", "high"]], value, atol=1e-12)


def test_tasks_of_other_budgets_aggregate_on_fractions_or_not_at_all() -> None:
    values = np.random.default_rng(0).random((3, 3))
    twice = pd.concat([runs(values), runs(values, labels=(20, 40, 80), dataset="b")])
    with pytest.raises(ConfigError, match=r"differ in the labels .*share of the budget"):
        statistics.iqm_curves(twice)
    assert list(statistics.iqm_curves(twice, axis="fraction")["n_tasks"]) == [2, 2, 2]
    uneven = pd.concat([runs(values), runs(values, labels=(20, 30, 80), dataset="b")])
    with pytest.raises(ConfigError, match="differ in the fraction"):
        statistics.iqm_curves(uneven, axis="fraction")
    assert len(statistics.iqm_areas(uneven)) == 1
    with pytest.raises(ConfigError, match="number of seeds"):
        statistics.iqm_areas(pd.concat([runs(values), runs(values[:2], dataset="b")]))
    with pytest.raises(ConfigError, match="axis of a curve"):
        statistics.iqm_curves(twice, axis="rounds")


# --- areas, gains, probability of improvement


def test_area_table_agrees_with_summarise_and_marks_the_best() -> None:
    base = np.array([[0.2, 0.4, 0.6], [0.1, 0.5, 0.6], [0.3, 0.4, 0.7]])
    rounds = pd.concat(
        [
            runs(base),
            runs(base + 0.1, strategy="badge"),
            runs(base, dataset="b"),
            # Better by the mean, but worse on one seed.
            runs(base + np.array([[0.3], [-0.1], [0.0]]), dataset="b", strategy="margin"),
        ]
    )
    table = statistics.area_table(rounds)
    summary = statistics.summarise(rounds, by=["dataset", "adapter", "strategy", "balance"])
    np.testing.assert_allclose(table[["mean", "mean_low", "mean_high"]], summary[["aubc", "aubc_low", "aubc_high"]])
    np.testing.assert_allclose(table["iqm"], table["mean"])  # of 3 seeds nothing is dropped
    found = table.set_index(["dataset", "strategy"])[["best", "clear"]]
    assert list(found[found["best"]].index) == [("a", "badge"), ("b", "margin")]
    assert list(found[found["clear"]].index) == [("a", "badge")]


def test_gains_are_differences_to_the_run_of_the_same_seed() -> None:
    rounds = study()
    found = statistics.gains(rounds)
    for _, row in found.iterrows():
        same = (rounds[["dataset", "seed", "labels"]] == row[["dataset", "seed", "labels"]]).all(axis=1)
        at = {
            name: rounds[same & (rounds["strategy"] == name)]["accuracy"].item() for name in ("random", row["strategy"])
        }
        assert row["accuracy"] == pytest.approx(at[row["strategy"]] - at["random"])
    with pytest.raises(ConfigError, match="no run with strategy=random has the setting"):
        statistics.gains(rounds[(rounds["strategy"] != "random") | (rounds["seed"] > 0)])
    twice = pd.concat([rounds, rounds.assign(run=rounds["run"] + "x")])
    with pytest.raises(ConfigError, match="several runs of one setting"):
        statistics.gains(twice)


def test_probability_of_improvement_against_rliable() -> None:
    rounds = study()
    a, b = {"strategy": "badge"}, {"strategy": "random"}
    found = statistics.probability_of_improvement(rounds, a, b)
    areas = statistics.block_areas(rounds).reset_index()
    x, y = (areas.pivot(index="seed", columns="dataset", values=name).to_numpy() for name in ("badge", "random"))
    assert found["probability"] == pytest.approx(rliable_metrics.probability_of_improvement(x, y))
    assert found["low"] <= found["probability"] <= found["high"]
    assert statistics.probability_of_improvement(rounds, b, a)["probability"] == pytest.approx(1 - found["probability"])
    assert statistics.probability_of_improvement(rounds, a, a)["probability"] == 0.5
    pd.testing.assert_series_equal(found, statistics.probability_of_improvement(rounds, a, b))
    with pytest.raises(ConfigError, match="do not pair"):
        statistics.probability_of_improvement(
            rounds[(rounds["strategy"] != "badge") | (rounds["dataset"] == "a")], a, b
        )


# --- ranks


def test_ranks_against_hand_counting_scipy_and_scikit_posthocs() -> None:
    rounds = study(strategies=("random", "badge", "margin", "bait"))
    areas = statistics.block_areas(rounds)
    assert areas.shape == (15, 4)
    ranking = statistics.rank_strategies(rounds)
    for name in areas:
        better = sum((areas[name] < areas[other]).astype(int) for other in areas)
        assert ranking.ranks[name] == pytest.approx((better + 1).mean())
    assert ranking.friedman_p == pytest.approx(stats.friedmanchisquare(*areas.to_numpy().T).pvalue)
    peer = posthoc_nemenyi_friedman(areas)
    np.testing.assert_allclose(ranking.p_values.loc[peer.index, peer.columns], peer)
    # Demsar 2006, table 5: q for 4 classifiers is 2.569 at 0.05.
    assert ranking.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 15)), rel=1e-3)
    pd.testing.assert_series_equal(ranking.ranks, statistics.rank_strategies(rounds.sample(frac=1)).ranks)


def test_blocks_average_before_ranking() -> None:
    rounds = study()
    by_seed = statistics.block_areas(rounds)
    by_dataset = statistics.block_areas(rounds, blocks="dataset")
    np.testing.assert_allclose(by_dataset, by_seed.groupby("dataset").mean())
    assert statistics.rank_strategies(rounds, blocks="dataset").n_blocks == 3
    as_loss = rounds.rename(columns={"accuracy": "nll"})
    forward, back = statistics.rank_strategies(rounds).ranks, statistics.rank_strategies(as_loss, "nll").ranks
    np.testing.assert_allclose(forward, 4 - back[forward.index])
    both = pd.concat([rounds, rounds.assign(balance="pcb", run=rounds["run"] + "p")])
    names = statistics.block_areas(both, treatments=("strategy", "balance")).columns
    assert sorted(names) == ["badge", "badge + pcb", "margin", "margin + pcb", "random", "random + pcb"]


def test_ties_share_a_rank() -> None:
    rounds = pd.concat(
        [runs(np.full((2, 3), value), strategy=name) for name, value in zip("xyz", (0.1, 0.5, 0.5), strict=True)]
    )
    assert statistics.rank_strategies(rounds).ranks.to_dict() == {"y": 1.5, "z": 1.5, "x": 3}


def test_ranks_refuse_what_does_not_pair() -> None:
    rounds = study()
    with pytest.raises(ConfigError, match="3 or more treatments"):
        statistics.rank_strategies(rounds[rounds["strategy"] != "badge"])
    with pytest.raises(ConfigError, match="2 or more blocks"):
        statistics.rank_strategies(rounds[rounds["dataset"] == "a"], blocks="dataset")
    lacking = rounds[(rounds["strategy"] != "badge") | (rounds["seed"] != 3) | (rounds["dataset"] != "b")]
    with pytest.raises(ConfigError, match=r"dataset=b, .*seed=3 lacks badge \(1 of 15"):
        statistics.rank_strategies(lacking)
    with pytest.raises(ConfigError, match="blocks are one of"):
        statistics.rank_strategies(rounds, blocks="seeds")


# --- labels saved, costs, recalls


def test_saving_intervals_against_every_resample_of_three_seeds() -> None:
    rng = np.random.default_rng(3)
    base, better = np.sort(rng.random((3, 3)), axis=1), np.sort(rng.random((3, 3)) + 0.2, axis=1)
    rounds = pd.concat([runs(base), runs(better, strategy="badge")])
    reference = {"strategy": "random"}
    table = statistics.label_saving_intervals(rounds, reference).set_index("strategy")
    plain = statistics.label_saving(rounds, reference).set_index("strategy")
    pd.testing.assert_frame_equal(table[plain.columns], plain)
    savings = []
    for drawn in itertools.product(range(3), repeat=3):
        resampled = pd.concat([runs(base[list(drawn)]), runs(better[list(drawn)], strategy="badge")])
        savings.append(statistics.label_saving(resampled, reference).set_index("strategy").loc["badge", "saving"])
    every = np.nan_to_num(savings)  # not reached counts as no saving at all
    # Of 27 resamples each is 3.7 %, more than a tail.
    assert table.loc["badge", ["saving_low", "saving_high"]].tolist() == pytest.approx([every.min(), every.max()])
    assert table.loc["badge", "reached"] == pytest.approx((every > 0).mean(), abs=0.03)
    assert table.loc["random", ["saving_low", "saving_high", "reached"]].tolist() == pytest.approx([1, 1, 1])


def test_saving_intervals_need_the_seeds_of_the_reference() -> None:
    values = np.random.default_rng(0).random((3, 3))
    with pytest.raises(ConfigError, match=r"do not pair: seeds \[0, 1\] and \[0, 1, 2\]"):
        statistics.label_saving_intervals(
            pd.concat([runs(values), runs(values[:2], strategy="badge")]), {"strategy": "random"}
        )
    single = statistics.label_saving_intervals(runs(values[:1]), {"strategy": "random"})
    assert single[["saving_low", "saving_high", "reached"]].isna().all(axis=None)


def test_costs_are_seconds_of_a_whole_run() -> None:
    costs = statistics.area_costs(study(datasets="a"))
    assert list(costs["seconds"]) == [3 * 3.5] * 3
    with pytest.raises(ConfigError, match="lacks the columns fit_s"):
        statistics.area_costs(study().drop(columns="fit_s"))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=30))
def test_recalls_against_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    table = pd.DataFrame(pairs, columns=["label", "predicted"], dtype=np.int16).assign(round=0)
    found = recalls_of([table, table.assign(round=1)], [10, 20], ["a", "b", "c", "d", "e"])
    classes = np.unique(table["label"])
    expected = recall_score(table["label"], table["predicted"], labels=classes, average=None, zero_division=0)
    for number, labels in ((0, 10), (1, 20)):
        rows = found[found["round"] == number]
        assert set(rows["labels"]) == {labels}
        assert list(rows["class"]) == ["abcde"[label] for label in classes]
        np.testing.assert_allclose(rows["recall"], expected)
        assert rows["count"].sum() == len(table)
    assert list(recalls_of([table], [10])["class"]) == list(classes)
