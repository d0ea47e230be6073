"""From how many labels on one configuration is better: intervals that cover, whatever the numbers of labels."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from palkit.errors import ConfigError
from palkit.studies import plots
from palkit.studies.statistics import crossing, crossings, gain_curves

LABELS = np.array([20, 50, 100, 250, 600, 1500])


def studies(rng: np.random.Generator, slope: float, seeds: int, count: int) -> np.ndarray:
    """(count, seeds, L) differences around a line through 0 at 200 labels; seeds differ in level and slope."""
    x = np.log(LABELS / 200)
    level, turn = rng.normal(0, 0.5, (2, count, seeds, 1))
    return level + (slope + 0.3 * turn) * x + rng.normal(0, 0.8, (count, seeds, len(x)))


@pytest.mark.parametrize(
    ("seeds", "slope"),
    [
        (5, 0.3),
        (10, 1.0),
        pytest.param(5, 1.0, marks=pytest.mark.campaign),
        pytest.param(10, -1.0, marks=pytest.mark.campaign),
    ],
)
def test_the_interval_covers(seeds: int, slope: float) -> None:
    found = [crossing(LABELS, one) for one in studies(np.random.default_rng(seeds), slope, seeds, 1500)]
    assert 0.93 <= np.mean([one.low <= 200 <= one.high for one in found]) <= 0.98
    bounded = [one for one in found if np.isfinite(one.high)]
    assert all(one.low < one.labels < one.high for one in bounded)
    if abs(slope) == 1.0:
        assert len(bounded) > 1350
        assert np.median([one.labels for one in bounded]) == pytest.approx(200, rel=0.05)
        assert np.median([one.slope for one in bounded]) == pytest.approx(slope * np.log(2), rel=0.05)


def test_level_lines_cross_nowhere() -> None:
    found = [crossing(LABELS, one) for one in studies(np.random.default_rng(0), 0.0, 5, 600)]
    assert np.mean([np.isnan(one.labels) for one in found]) > 0.93
    assert all((one.low, one.high) == (0, np.inf) for one in found if np.isnan(one.labels))


def test_bends_are_seen() -> None:
    rng = np.random.default_rng(0)
    straight = [crossing(LABELS, one).bend_p for one in studies(rng, 1.0, 5, 600)]
    bent = [crossing(LABELS, one + np.log(LABELS / 200) ** 2).bend_p for one in studies(rng, 1.0, 5, 100)]
    assert 0.02 < np.mean(np.array(straight) < 0.05) < 0.08
    assert np.mean(np.array(bent) < 0.05) > 0.9


def table(**gains: float) -> pd.DataFrame:
    """Runs of one round each; a variant gains so much per doubling from 100 labels on."""
    rng = np.random.default_rng(0)
    rows = []
    for dataset in ("tiles", "eyes"):
        for variant, gain in {"probe": 0.0, **gains}.items():
            for seed in range(5):
                for labels in LABELS:
                    value = 0.5 + 0.05 * np.log2(labels / 100) + gain * np.log2(labels / 100) + rng.normal(0, 1e-3)
                    run = f"{dataset} {variant} {seed} {labels}"
                    rows.append((run, dataset, variant, seed, 0, labels, value, -value))
    columns = ["run", "dataset", "variant", "seed", "round", "labels", "accuracy", "nll"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)


def test_a_table_of_runs() -> None:
    found = crossings(table(lora=0.01, full=0.02), "probe")
    assert list(zip(found["dataset"], found["variant"], strict=True)) == [
        ("eyes", "full"), ("eyes", "lora"), ("tiles", "full"), ("tiles", "lora"),
    ]  # fmt: skip
    assert found["labels"].between(95, 105).all()
    assert (found["low"] < 100).all()
    assert (found["high"] > 100).all()
    assert found["slope"].tolist() == pytest.approx([0.02, 0.01, 0.02, 0.01], abs=1e-3)
    assert found["gain"].tolist() == pytest.approx(np.log2(15) * found["slope"], abs=2e-3)
    assert (found["gain_low"] < found["gain"]).all()
    assert (found["detectable"] < 0.005).all()
    assert set(zip(found["n_seeds"], found["fewest"], found["most"], strict=True)) == {(5, 20, 1500)}
    losses = crossings(table(lora=0.01, full=0.02), "probe", "nll")
    assert losses["gain"].tolist() == pytest.approx(found["gain"].tolist()), "of a loss, less is better"


def test_gains_at_every_number_of_labels() -> None:
    rounds = table(lora=0.01, full=0.02)
    found = gain_curves(rounds, "probe").set_index(["dataset", "variant", "labels"])
    assert len(found) == 2 * 2 * len(LABELS)
    for (dataset, variant, labels), row in found.iterrows():
        at = rounds[(rounds["dataset"] == dataset) & (rounds["labels"] == labels)]
        ours, theirs = (at[at["variant"] == name].sort_values("seed")["accuracy"] for name in (variant, "probe"))
        test = stats.ttest_rel(ours, theirs)
        assert row["mean"] == pytest.approx(ours.mean() - theirs.mean())
        assert row[["low", "high"]].tolist() == pytest.approx(test.confidence_interval(0.95))
        assert row["n_seeds"] == 5
    last = crossings(rounds, "probe").set_index(["dataset", "variant"])
    ends = found.xs(LABELS[-1], level="labels")
    assert ends["mean"].tolist() == pytest.approx(last.loc[ends.index, "gain"].tolist())


def test_above_from_is_where_all_intervals_to_come_are_above() -> None:
    """One that is above, then not, then above again counts from the last time."""
    rounds = table(lora=0.0)
    for labels, gain in zip(LABELS, [0.2] + [-0.2] * (len(LABELS) - 3) + [0.2] * 2, strict=True):
        rounds.loc[(rounds["variant"] == "lora") & (rounds["labels"] == labels), "accuracy"] += gain
    assert set(crossings(rounds, "probe")["above_from"]) == {LABELS[-2]}
    assert crossings(table(lora=-0.05), "probe")["above_from"].isna().all(), "above with few labels alone"


def test_the_figure_shows_every_configuration_and_the_crossings_that_are_known() -> None:
    rounds = table(lora=0.01, full=0.02, level=0.0)
    figure = plots.gain_curves(rounds, "probe")
    assert [axes.get_title() for axes in figure.axes] == ["eyes (5 seeds)", "tiles (5 seeds)"]
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        curves = [line for line in axes.lines if len(line.get_xdata()) == len(LABELS)]
        assert len(curves) == 3
        bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 3]
        assert len(bars) == 2, "level lines cross nowhere"
        assert all(90 < bar.get_xdata().min() < 100 < bar.get_xdata().max() < 110 for bar in bars)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError, match="has variant=probes"):
        crossings(table(lora=0.01), "probes")
    twice = table(lora=0.01)
    with pytest.raises(ConfigError, match="variant=lora and variant=probe do not pair on eyes"):
        crossings(twice.drop(twice.index[twice["run"] == "eyes lora 3 250"]), "probe")
    with pytest.raises(ConfigError, match="several runs of one variant, seed and labels"):
        crossings(pd.concat([twice, twice.assign(run=twice["run"] + "b")]), "probe")
    more = table(lora=0.01, full=0.02)
    longer = more[(more["variant"] == "full") | (more["labels"] < 1500)]
    assert set(crossings(longer[longer["variant"] != "full"], "probe")["most"]) == {600}
    with pytest.raises(ConfigError, match="variant=full and variant=probe do not pair on eyes"):
        crossings(longer, "probe")
    shorter = more[(more["variant"] != "full") | (more["labels"] < 1500)]
    assert crossings(shorter, "probe").groupby("variant")["most"].max().to_dict() == {"full": 600, "lora": 1500}
    with pytest.raises(ConfigError, match="no run of eyes has variant=probe"):
        crossings(more[(more["variant"] != "probe") | (more["dataset"] != "eyes")], "probe")
    with pytest.raises(ConfigError, match="two seeds and two numbers of labels"):
        crossing([10, 20], [[1.0, 2.0]])
