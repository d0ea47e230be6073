"""Verdicts on the paper's claims, against tables whose answer is known and against plain loops over the rows."""

import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from palkit.errors import ConfigError
from palkit.studies.peal import (
    CLAIMS,
    LARGE,
    NOT_TESTABLE,
    OPPOSITE,
    REPRODUCED,
    UNDECIDED,
    backbone_size,
    judge,
    lora_count,
)
from palkit.studies.statistics import holm, mean_interval

FIGURES = Path(__file__).parents[2] / "figures"
LABELS = {"toy": (10, 20, 40), "other": (4, 8, 12, 24)}
ADAPTERS, STRATEGIES = ("linear_probe", "lora"), ("random", "entropy", "featdist")
LORA_RANDOM = "LoRA beats a linear probe with random selection."
LORA_OVERALL = "LoRA beats a linear probe on average over random, entropy and featdist."
PROBE_ENTROPY = "With a linear probe, entropy falls below random."
PROBE_FEATDIST = "With a linear probe, featdist falls below random."
LORA_FEATDIST = "With LoRA, featdist beats random."
INTERACTION = "Adapting the features helps featdist more than it helps random."
BALANCED = "Class-balanced sampling (here PCB) beats the same strategy without it."
COUNT = "LoRA on qkv trains about 0.03 % of the backbone's parameters."
SMALL = "LoRA that trains at most 0.03 % of the backbone's parameters beats a linear probe."
EUROSAT = "LoRA beats a linear probe on EuroSAT with DINOv2 weights."
CALIBRATED = "With LoRA, a calibration loss lowers the expected calibration error."

Config = Mapping[str, Hashable]
Level = Callable[[Config], float]


def sweep(level: Level, metric: str = "accuracy", backbone: str = "vit", **axes: Iterable[Hashable]) -> pd.DataFrame:
    """Rows of every run of a grid. All curves of a run are its `level`, so the area is that number."""
    grid = {
        "dataset": ["toy"],
        "adapter": ADAPTERS,
        "strategy": STRATEGIES,
        "balance": ["none"],
        "seed": range(5),
        **{name.replace("__", "."): values for name, values in axes.items()},
    }
    rows = []
    for number, values in enumerate(itertools.product(*grid.values())):
        config = dict(zip(grid, values, strict=True))
        run = {"run": f"run{number:04}", "backbone": backbone, **config}
        for step, labels in enumerate(LABELS.get(str(config["dataset"]), LABELS["toy"])):
            rows.append({**run, "round": step, "labels": labels, metric: level(config)})
    return pd.DataFrame(rows)


def noise(config: Config, salt: str = "") -> float:
    """A number between -0.05 and 0.05 that belongs to a config."""
    text = salt + repr(sorted(map(str, config.items())))
    return (sum((i + 1) * ord(letter) for i, letter in enumerate(text)) % 1001) / 10_010 - 0.05


def verdicts(rounds: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    return judge(rounds, metric).set_index("claim")


def paper(config: Config) -> float:
    """What the paper reports: LoRA above the probe, selection below random on frozen features, above with LoRA."""
    gain = {"random": 0.0, "entropy": 0.02, "featdist": 0.03}[str(config["strategy"])]
    lora = config["adapter"] == "lora"
    return (
        0.6 + (0.1 + gain if lora else -gain) + 0.01 * (config["balance"] == "pcb") + 0.002 * int(str(config["seed"]))
    )


# --- verdicts


def test_a_table_as_in_the_paper_reproduces_everything_that_it_can_test() -> None:
    found = verdicts(sweep(paper, dataset=["toy", "other"], balance=["none", "pcb"]))
    assert list(found.index) == [claim.text for claim in CLAIMS]
    untestable = set(found.index[found["verdict"] == NOT_TESTABLE])
    assert untestable == {SMALL, CALIBRATED, *(text for text in found.index if "with DINOv2 weights" in text)}
    assert set(found.loc[~found.index.isin(untestable), "verdict"]) == {REPRODUCED}
    tested = found.loc[~found.index.isin(untestable) & (found.index != COUNT)]
    assert set(tested["n_seeds"]) == {5}
    assert set(tested["n_datasets"]) == {2}
    assert tested.loc[LORA_OVERALL, "mean"] == pytest.approx((0.1 + 0.14 + 0.16) / 3)
    assert tested.loc[PROBE_FEATDIST, "mean"] == pytest.approx(-0.03)
    assert tested.loc[INTERACTION, "mean"] == pytest.approx(0.06)
    assert tested.loc[BALANCED, "mean"] == pytest.approx(0.01)
    assert tested.loc[PROBE_FEATDIST, "evidence"] == (
        "-3.0 points [-3.0, -3.0] of area under the accuracy curve on 2 data sets, only 5 seeds; data sets in general "
        "[-3.0, -3.0]; 2 of 2 on the claimed side; Holm p < 0.001; detectable 0.0 points."
    )


def test_the_opposite_table_reproduces_nothing_and_says_opposite() -> None:
    found = verdicts(sweep(lambda config: 1 - paper(config), dataset=["toy", "other"], balance=["none", "pcb"]))
    tested = found[found["n_datasets"] > 0]
    assert len(tested) == 10
    assert set(tested["verdict"]) == {OPPOSITE}
    assert all("; 0 of 2 on the claimed side; Holm p < 0.001;" in text for text in tested["evidence"])
    assert found.loc[COUNT, "verdict"] == REPRODUCED


def test_no_difference_and_a_difference_of_both_signs_are_undecided() -> None:
    level = sweep(lambda config: 0.5)
    swinging = sweep(lambda config: 0.5 + 0.1 * (config["adapter"] == "lora") * (-1) ** int(str(config["seed"])))
    for rounds in (level, swinging):
        found = verdicts(rounds).loc[LORA_RANDOM]
        assert found["verdict"] == UNDECIDED
        assert found["p_holm"] == 1
        assert "disagree" not in found["evidence"]
    assert (verdicts(level).loc[LORA_RANDOM, ["mean", "low", "high", "detectable"]] == 0).all()


@pytest.mark.parametrize("metric", ["nll", "ece", "accuracy", "kappa"])
def test_beating_is_the_good_direction_of_the_metric(metric: str) -> None:
    rounds = sweep(
        lambda config: 0.5 + 0.1 * (config["adapter"] == "lora") - 0.02 * (config["strategy"] == "entropy"), metric
    )
    found, lower_is_better = verdicts(rounds, metric), metric in ("nll", "ece")
    assert found.loc[LORA_RANDOM, "mean"] == pytest.approx(0.1)
    assert found.loc[LORA_RANDOM, "verdict"] == (OPPOSITE if lower_is_better else REPRODUCED)
    assert found.loc[PROBE_ENTROPY, "mean"] == pytest.approx(-0.02)
    assert found.loc[PROBE_ENTROPY, "verdict"] == (OPPOSITE if lower_is_better else REPRODUCED)
    amount = "+0.100 [" if metric == "nll" else "+10.0 points ["
    assert found.loc[LORA_RANDOM, "evidence"].startswith(amount)


def unlike(gain: float) -> Level:
    """LoRA better by 10 points on one data set, and by `gain` on the other, in every seed about the same."""
    return lambda config: (
        0.5
        + (config["adapter"] == "lora") * (0.1 if config["dataset"] == "toy" else gain)
        + 0.01 * noise({"seed": config["seed"], "adapter": config["adapter"]})
    )


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, REPRODUCED), (-0.02, UNDECIDED), (-0.18, UNDECIDED)])
def test_data_sets_that_disagree_decide_nothing(gain: float, verdict: str) -> None:
    found = verdicts(sweep(unlike(gain), dataset=["toy", "other"])).loc[LORA_RANDOM]
    assert found["p_holm"] < 0.05
    assert found["verdict"] == verdict
    assert found["evidence"].endswith(" The data sets disagree.") == (verdict == UNDECIDED)


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.2, 0.9, 0.9, 1.0], [0.0, 0.0, 0.04], []])
def test_holm_against_statsmodels(p_values: list[float]) -> None:
    peer = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(peer)


def test_the_family_is_what_can_be_tested_here(noisy: pd.DataFrame) -> None:
    found = verdicts(noisy)
    tested = found[found["n_datasets"] > 0]
    assert tested["p_holm"].tolist() == pytest.approx(multipletests(tested["p"], method="holm")[1].tolist())
    assert found.loc[found["n_datasets"] == 0, ["p", "p_holm", "detectable"]].isna().all(axis=None)
    alone = verdicts(noisy[(noisy["strategy"] == "random") & (noisy["balance"] == "none")])
    assert (alone["n_datasets"] > 0).sum() == 1
    assert alone.loc[LORA_RANDOM, "p_holm"] == alone.loc[LORA_RANDOM, "p"]


def test_a_claim_that_survives_alone_may_not_survive_its_family() -> None:
    def level(config: Config) -> float:
        # Differences m + d * (-2, -1, 0, 1, 2) have t = m * sqrt(2) / d; 5 % two-sided is 2.776.
        difference = 0.03 / math.sqrt(2) + 0.01 * (int(str(config["seed"])) - 2)
        return 0.5 + (config["adapter"] == "lora") * (config["strategy"] == "random") * difference

    found = verdicts(sweep(level)).loc[LORA_RANDOM]
    assert found["p"] < 0.05 < found["p_holm"]
    assert found["low"] > 0
    assert found["verdict"] == UNDECIDED


def test_the_detectable_difference_is_one_of_this_design_at_holms_first_step(noisy: pd.DataFrame) -> None:
    """By simulation: as many studies as four in five find it, with the spread and the seeds that there are."""
    toy = noisy[noisy["dataset"] == "toy"]
    found = verdicts(toy)
    family = (found["n_datasets"] > 0).sum()
    (sample,) = slow_differences(toy, TERMS[LORA_RANDOM])
    values = np.random.default_rng(0).normal(
        found.loc[LORA_RANDOM, "detectable"], statistics.stdev(sample), (len(sample), 20_000)
    )
    assert (stats.ttest_1samp(values, 0).pvalue < 0.05 / family).mean() == pytest.approx(0.8, abs=0.01)


def test_the_caption_says_what_the_intervals_speak_of(noisy: pd.DataFrame) -> None:
    caption = judge(noisy)[["claim", "verdict"]].attrs["caption"]
    assert "over the seeds of the data sets that were run" in caption
    assert "Holm" in caption


# --- numbers, by loops


def area(rows: pd.DataFrame, metric: str) -> float:
    """Trapezoids one by one."""
    points = sorted(zip(rows["labels"], rows[metric], strict=True))
    total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    return total / (points[-1][0] - points[0][0])


def slow_differences(
    rounds: pd.DataFrame, terms: Sequence[tuple[float, Config]], metric: str = "accuracy"
) -> list[list[float]]:
    """Per data set, the difference of every seed."""
    samples = []
    for dataset in sorted(set(rounds["dataset"])):
        sample = []
        for seed in sorted(set(rounds["seed"])):
            total = 0.0
            for weight, side in terms:
                here = rounds[(rounds["dataset"] == dataset) & (rounds["seed"] == seed)]
                for column, value in side.items():
                    here = here[here[column] == value]
                total += weight * np.mean([area(rows, metric) for _, rows in here.groupby("run")])
            sample.append(total)
        samples.append(sample)
    return samples


def slow_interval(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Welch's, term by term."""
    parts = [statistics.variance(sample) / len(sample) for sample in samples]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, samples, strict=True))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts)) / len(samples)
    middle = statistics.mean(statistics.mean(sample) for sample in samples)
    return middle - half, middle + half


def side(adapter: str, strategy: str) -> Config:
    return {"adapter": adapter, "strategy": strategy, "balance": "none"}


TERMS: dict[str, list[tuple[float, Config]]] = {
    LORA_RANDOM: [(1, side("lora", "random")), (-1, side("linear_probe", "random"))],
    LORA_OVERALL: [
        (sign / 3, side(adapter, strategy))
        for sign, adapter in ((1, "lora"), (-1, "linear_probe"))
        for strategy in STRATEGIES
    ],
    PROBE_ENTROPY: [(1, side("linear_probe", "entropy")), (-1, side("linear_probe", "random"))],
    LORA_FEATDIST: [(1, side("lora", "featdist")), (-1, side("lora", "random"))],
    INTERACTION: [
        (1, side("lora", "featdist")),
        (-1, side("lora", "random")),
        (-1, side("linear_probe", "featdist")),
        (1, side("linear_probe", "random")),
    ],
    BALANCED: [(1, {"balance": "pcb"}), (-1, {"balance": "none"})],
}


@pytest.fixture(scope="module")
def noisy() -> pd.DataFrame:
    """Two data sets with different label counts, both balances, curves that are not flat."""
    rounds = sweep(lambda config: 0.5 + noise(config), dataset=["toy", "other"], balance=["none", "pcb"])
    wobble = [
        noise({"run": run, "round": step}, "wobble") for run, step in zip(rounds["run"], rounds["round"], strict=True)
    ]
    return rounds.assign(accuracy=rounds["accuracy"] + wobble)


@pytest.mark.parametrize("text", TERMS)
def test_numbers_against_loops(noisy: pd.DataFrame, text: str) -> None:
    found, samples = verdicts(noisy).loc[text], slow_differences(noisy, TERMS[text])
    assert found["mean"] == pytest.approx(np.mean([np.mean(sample) for sample in samples]))
    assert (found["low"], found["high"]) == pytest.approx(slow_interval(samples))
    general = slow_interval([[statistics.mean(sample) for sample in samples]])
    assert (found["general_low"], found["general_high"]) == pytest.approx(general)


def test_single_data_set_has_the_interval_of_the_statistics(noisy: pd.DataFrame) -> None:
    toy = noisy[noisy["dataset"] == "toy"]
    found = verdicts(toy).loc[LORA_RANDOM]
    assert (found["low"], found["high"]) == pytest.approx(mean_interval(slow_differences(toy, TERMS[LORA_RANDOM])[0]))
    assert found[["general_low", "general_high"]].isna().all()
    assert "in general" not in found["evidence"]


def test_order_of_rows_and_columns_does_not_matter(noisy: pd.DataFrame) -> None:
    shuffled = noisy.sample(frac=1, random_state=0)[sorted(noisy.columns)]
    pd.testing.assert_frame_equal(judge(shuffled), judge(noisy))


def test_the_table_is_left_alone(noisy: pd.DataFrame) -> None:
    before = noisy.copy()
    judge(noisy)
    pd.testing.assert_frame_equal(noisy, before)


# --- what may differ between the runs of a pair


def test_settings_are_paired_and_averaged_within_a_data_set() -> None:
    """Runs of another setting, here twice the gain, pair among themselves; empty cells pair with empty cells."""

    def level(config: Config) -> float:
        twice = 2 if config["pool_size"] is None else 1
        return 0.5 * twice + 0.1 * twice * (config["adapter"] == "lora")

    rounds = sweep(level, pool_size=[None, 1500.0])
    found = verdicts(rounds).loc[LORA_RANDOM]
    assert found["mean"] == pytest.approx(0.15)
    assert (found["n_seeds"], found["n_datasets"]) == (5, 1)


def test_what_describes_an_adapter_or_a_strategy_does_not_part_a_pair() -> None:
    rounds = sweep(paper)
    lora, featdist = rounds["adapter"] == "lora", rounds["strategy"] == "featdist"
    rounds = rounds.assign(variant=rounds["adapter"])
    rounds["adapter.rank"] = np.where(lora, 4, 8)
    rounds["training.adapter_lr"] = np.where(lora, 2e-3, np.nan)
    rounds["strategy_options.reference"] = np.where(featdist, "class_mean", None)
    found = verdicts(rounds)
    assert set(found.loc[list(TERMS)[:-1], "verdict"]) == {REPRODUCED}


def test_runs_that_differ_in_training_do_not_pair() -> None:
    rounds = sweep(paper)
    rounds["training.epochs"] = np.where(rounds["adapter"] == "lora", 20, 10)
    found = verdicts(rounds)
    assert found.loc[LORA_RANDOM, "verdict"] == NOT_TESTABLE
    assert "in common" in found.loc[LORA_RANDOM, "evidence"]
    assert found.loc[LORA_FEATDIST, "verdict"] == REPRODUCED


def test_other_budgets_do_not_pair() -> None:
    rounds = sweep(paper)
    short = (rounds["adapter"] == "lora") & (rounds["round"] == 2)
    found = verdicts(rounds[~short])
    assert found.loc[LORA_RANDOM, "verdict"] == NOT_TESTABLE
    assert "label counts in common" in found.loc[LORA_RANDOM, "evidence"]
    assert found.loc[LORA_FEATDIST, "verdict"] == REPRODUCED


def test_balanced_runs_do_not_enter_the_other_claims() -> None:
    with_gain = sweep(
        lambda config: paper(config) + 5 * (config["balance"] == "pcb") * (config["adapter"] == "lora"),
        balance=["none", "pcb"],
    )
    assert verdicts(with_gain).loc[LORA_RANDOM, "mean"] == pytest.approx(0.1)


# --- missing runs and few seeds


def test_missing_runs_are_named() -> None:
    rounds = sweep(paper)
    found = verdicts(rounds[rounds["strategy"] != "featdist"])
    for text in (LORA_FEATDIST, PROBE_FEATDIST, INTERACTION, LORA_OVERALL):
        assert found.loc[text, "verdict"] == NOT_TESTABLE
        assert found.loc[text, "evidence"] == "No run has strategy featdist (only entropy, random)."
        assert np.isnan(found.loc[text, "mean"])
    assert found.loc[LORA_RANDOM, "verdict"] == REPRODUCED
    gap = (rounds["strategy"] == "featdist") & (rounds["adapter"] == "lora")
    found = verdicts(rounds[~gap])
    assert found.loc[LORA_FEATDIST, "evidence"] == "No run is lora, featdist, none, though each value occurs."
    assert found.loc[PROBE_FEATDIST, "verdict"] == REPRODUCED


def test_few_seeds_are_named_and_a_single_one_decides_nothing() -> None:
    three = verdicts(sweep(paper, seed=range(3))).loc[LORA_RANDOM]
    assert three["verdict"] == REPRODUCED
    assert "on 1 data set, only 3 seeds; 1 of 1" in three["evidence"]
    assert "on 1 data set, 10 seeds; 1 of 1" in verdicts(sweep(paper, seed=range(10))).loc[LORA_RANDOM, "evidence"]
    one = verdicts(sweep(paper, seed=[0])).loc[LORA_RANDOM]
    assert one["verdict"] == NOT_TESTABLE
    assert "single seed" in one["evidence"]


def test_a_seed_that_lacks_a_run_is_left_out_and_named() -> None:
    """Its mean would be over other settings than that of its neighbours."""
    rounds = sweep(lambda config: 0.5 + noise(config), balance=["none", "pcb"])
    gap = (rounds["seed"] == 3) & (rounds["adapter"] == "lora") & (rounds["balance"] == "pcb")
    gap &= rounds["strategy"] == "entropy"
    found, others = (verdicts(table).loc[BALANCED] for table in (rounds[~gap], rounds[rounds["seed"] != 3]))
    assert found["evidence"] == f"{others['evidence']} Not compared, since one side has no such runs: toy seed 3."
    numbers = ["mean", "low", "high", "n_seeds"]
    assert found[numbers].tolist() == others[numbers].tolist()
    assert "Not compared" not in verdicts(rounds[~gap]).loc[LORA_RANDOM, "evidence"]
    short = rounds[(rounds["adapter"] != "lora") | (rounds["seed"] != 2)]
    assert (
        verdicts(short)
        .loc[LORA_RANDOM, "evidence"]
        .endswith(" Not compared, since one side has no such runs: toy seed 2.")
    )


def test_a_data_set_with_one_seed_does_not_silence_the_others() -> None:
    both = sweep(lambda config: 0.5 + noise(config), dataset=["toy", "other"])
    found = verdicts(both[(both["dataset"] == "toy") | (both["seed"] == 0)]).loc[LORA_RANDOM]
    alone = verdicts(both[both["dataset"] == "toy"]).loc[LORA_RANDOM]
    assert found["evidence"] == f"{alone['evidence']} Left out, a single seed gives no interval: other."
    assert (found["mean"], found["n_datasets"]) == (alone["mean"], 1)


def test_data_sets_may_have_different_seeds_and_count_alike() -> None:
    """A data set of two seeds weighs as much as one of five."""
    rounds = pd.concat(
        [
            sweep(lambda config: 0.5 + 0.1 * (config["adapter"] == "lora")),
            sweep(lambda config: 0.5 + 0.3 * (config["adapter"] == "lora"), dataset=["other"], seed=[0, 1]),
        ]
    )
    rounds["run"] = rounds["dataset"] + rounds["run"]
    found = verdicts(rounds).loc[LORA_RANDOM]
    assert found["mean"] == pytest.approx(0.2)
    assert "on 2 data sets, only 2 to 5 seeds;" in found["evidence"]
    assert found["n_seeds"] == 2


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match="lacks the columns kappa"):
        judge(sweep(paper), "kappa")
    with pytest.raises(ConfigError, match="empty"):
        judge(sweep(paper).head(0))


# --- parameters, data sets, calibration


def test_the_share_of_parameters_is_counted() -> None:
    assert lora_count(LARGE) == 98_304
    size = backbone_size(LARGE)
    assert size is not None
    assert round(100 * lora_count(LARGE) / size, 4) == 0.0323
    assert backbone_size("embedded_vit_small") == backbone_size("vit_small_patch14_dinov2")
    assert backbone_size("vit") is None
    found = verdicts(sweep(paper)).loc[COUNT]
    assert "98,304 of 304,367,616 parameters, 0.0323 %: a count" in found["evidence"]
    assert not any("suffic" in text for text in (COUNT, found["evidence"]))
    assert np.isnan(found["p_holm"])


@pytest.mark.parametrize(("trainable", "verdict"), [(6_144, REPRODUCED), (49_152, NOT_TESTABLE)])
def test_only_small_adapters_say_what_small_adapters_do(trainable: int, verdict: str) -> None:
    rounds = sweep(paper, backbone="embedded_vit_small")
    rounds["trainable"] = np.where(rounds["adapter"] == "lora", float(trainable), 0.0)
    assert verdicts(rounds).loc[SMALL, "verdict"] == verdict


def test_the_papers_data_sets_need_the_papers_weights() -> None:
    names = ["histology", "aptos2019", "eurosat"]
    found = verdicts(sweep(paper, backbone="vit_large_patch14_dinov2.lvd142m", dataset=names[1:]))
    assert found.loc[EUROSAT, "verdict"] == REPRODUCED
    assert found.loc[EUROSAT, "n_datasets"] == 1
    assert found.loc[EUROSAT.replace("EuroSAT", "APTOS 2019"), "verdict"] == REPRODUCED
    histology = found.loc[EUROSAT.replace("EuroSAT", "Histology")]
    assert histology["verdict"] == NOT_TESTABLE
    assert histology["evidence"] == "No run has dataset histology (only aptos2019, eurosat)."
    embedded = verdicts(sweep(paper, backbone="embedded_vit_small", dataset=names)).loc[EUROSAT]
    assert embedded["verdict"] == NOT_TESTABLE
    assert embedded["evidence"] == "No run has backbone.weights DINOv2 (only embedded_vit_small)."


def test_calibration_is_judged_by_its_error_whatever_the_metric() -> None:
    axes = {"training__calibration": [0.0, 1.0], "training__label_smoothing": [0.0, 0.1]}

    def error(config: Config) -> float:
        return 0.3 - 0.1 * (config["training.calibration"] == 1) + noise(config) / 10

    rounds = sweep(error, "ece", **axes).assign(accuracy=0.5)
    found = verdicts(rounds).loc[CALIBRATED]
    assert found["verdict"] == REPRODUCED
    lora = rounds[rounds["adapter"] == "lora"]
    terms = [(1.0, {"training.calibration": 1.0}), (-1.0, {"training.calibration": 0.0})]
    assert found["mean"] == pytest.approx(np.mean(slow_differences(lora, terms, "ece")))
    assert "under the ece curve" in found["evidence"]
    worse = verdicts(rounds.assign(ece=1 - rounds["ece"])).loc[CALIBRATED]
    assert worse["verdict"] == OPPOSITE
    assert "no column training.calibration" in verdicts(sweep(paper)).loc[CALIBRATED, "evidence"]


# --- the table of the default sweep


def test_the_default_sweep() -> None:
    rounds = pd.read_parquet(FIGURES / "default" / "rounds.parquet")
    found = verdicts(rounds)
    for text in (LORA_RANDOM, PROBE_ENTROPY, LORA_FEATDIST, INTERACTION):
        samples = slow_differences(rounds, TERMS[text])
        assert found.loc[text, "mean"] == pytest.approx(np.mean(samples))
        assert found.loc[text, "n_seeds"] == len(samples[0])
        assert found.loc[text, ["low", "high"]].tolist() == pytest.approx(mean_interval(samples[0]))
    assert found.loc[COUNT, "verdict"] == REPRODUCED
    for text in (LORA_OVERALL, EUROSAT, BALANCED):  # of LoRA with entropy, that set and balance it has no runs
        assert found.loc[text, "verdict"] == NOT_TESTABLE
    assert set(found["verdict"]) <= {REPRODUCED, OPPOSITE, UNDECIDED, NOT_TESTABLE}
