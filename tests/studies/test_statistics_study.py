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

from palkit.errors import ConfigError
from palkit.models.metrics import recalls_of
from palkit.studies import statistics

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
def test_iqm_is_the_mean_of_the_middle_half(scores: np.ndarray) -> None:
    for point, found in enumerate(statistics.iqm(scores)):
        ordered = sorted(scores[:, :, point].ravel())
        cut = len(ordered) // 4
        assert found == pytest.approx(np.mean(ordered[cut : len(ordered) - cut]))
        assert found == pytest.approx(rliable_metrics.aggregate_iqm(scores[:, :, point]))
        assert found == pytest.approx(stats.trim_mean(scores[:, :, point], 0.25, axis=None))


def test_iqm_interval_of_one_task_is_yuens_of_the_trimmed_mean() -> None:
    scores = np.random.default_rng(1).normal(size=9)
    low, high = statistics.iqm_interval(scores[:, None, None])
    # scipy's trimmed t-test against a far and certain sample is the test of this one's trimmed mean.
    centre = stats.trim_mean(scores, 0.25)
    for end in (low.item(), high.item()):
        certain = end + 1e-12 * np.array([-1, 1] * 50)
        assert stats.ttest_ind(scores, certain, equal_var=False, trim=0.25).pvalue == pytest.approx(0.05, rel=1e-3)
    assert (low + high) / 2 == pytest.approx(centre)


def test_iqm_interval_of_three_seeds_is_students_and_of_tasks_apart_welchs() -> None:
    scores = np.random.default_rng(1).normal(size=(3, 1, 2))
    np.testing.assert_allclose(statistics.iqm_interval(scores), statistics.mean_interval(scores[:, 0]))
    assert np.isnan(statistics.iqm_interval(scores[:1])).all()
    # Of two seeds of several tasks nothing is left to tell the spread from.
    assert np.isnan(statistics.iqm_interval(np.random.default_rng(1).normal(size=(2, 3, 2)))).all()
    # Four tasks far apart: the outer two are what is trimmed, and the inner two are averaged.
    apart = np.random.default_rng(2).normal(size=(5, 4, 1)) + 100 * np.arange(4)[:, None]
    inner = statistics.estimate([apart[:, 1, 0], apart[:, 2, 0]])
    low, high = statistics.iqm_interval(apart)
    assert (low + high) / 2 == pytest.approx(inner.mean)
    # Yuen's correction, sqrt(19 / 18) * sqrt(10 / 9 ...), is a few per cent.
    assert (high - low).item() == pytest.approx(np.diff(inner.interval()).item(), rel=0.2)


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
@settings(max_examples=5)
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
    with pytest.raises(ConfigError, match="number of seeds"):
        statistics.iqm_curves(pd.concat([runs(values), runs(values[:2], dataset="b")]))


# --- areas and gains


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
    with pytest.raises(ConfigError, match="several runs of one setting and seed"):
        statistics.gains(pd.concat([rounds, rounds.assign(run=rounds["run"] + "x")]))


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


DEMSAR = {  # Table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf
    "adult (sample)": (0.763, 0.768, 0.771, 0.798),
    "breast cancer": (0.599, 0.591, 0.590, 0.569),
    "breast cancer wisconsin": (0.954, 0.971, 0.968, 0.967),
    "cmc": (0.628, 0.661, 0.654, 0.657),
    "ionosphere": (0.882, 0.888, 0.886, 0.898),
    "iris": (0.936, 0.931, 0.916, 0.931),
    "liver disorders": (0.661, 0.668, 0.609, 0.685),
    "lung cancer": (0.583, 0.583, 0.563, 0.625),
    "lymphography": (0.775, 0.838, 0.866, 0.875),
    "mushroom": (1.000, 1.000, 1.000, 1.000),
    "primary tumor": (0.940, 0.962, 0.965, 0.962),
    "rheum": (0.619, 0.666, 0.614, 0.669),
    # Both last are printed as 0.975, with the ranks 2 and 3.
    "voting": (0.972, 0.981, 0.9751, 0.9749),
    "wine": (0.957, 0.978, 0.946, 0.970),
}


def test_the_published_ranks_of_demsar() -> None:
    names = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
    rounds = pd.concat(
        runs(np.full((1, 2), auc), labels=(1, 2), dataset=dataset, strategy=name)
        for dataset, values in DEMSAR.items()
        for name, auc in zip(names, values, strict=True)
    )
    ranking = statistics.rank_strategies(rounds, blocks="dataset")
    published = {"C4.5+m+cf": 1.964, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5": 3.143}
    assert ranking.ranks.round(3).to_dict() == published
    assert round(ranking.critical_difference, 2) == 1.25
    assert round(statistics.rank_strategies(rounds, blocks="dataset", alpha=0.1).critical_difference, 2) == 1.12
    # "Even the difference between the best and the worst is smaller than that."
    assert (ranking.p_values.to_numpy() > 0.05).all()


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


# --- costs, recalls


def test_costs_are_seconds_of_a_whole_run() -> None:
    costs = statistics.area_costs(study(datasets="a"))
    assert list(costs["seconds"]) == [3 * 3.5] * 3


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
