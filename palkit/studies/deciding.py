"""What active testing saves, how rules for stopping did, and what it costs not to know the best strategy."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

import palkit.labelling
from palkit.errors import ConfigError
from palkit.experiments.setting import looked_at_once, pool_of
from palkit.experiments.sweep import Stop, Sweep, Task, plan
from palkit.labelling.extrapolation import forecast
from palkit.labelling.session_tests import wanted_tests
from palkit.labelling.stopping import accuracy_at_least, little_to_gain
from palkit.labelling.testing import Draws, draw_tests, error_terms, measured_accuracy
from palkit.storage.files import short_hash
from palkit.storage.formats import read_table
from palkit.strategies import get_strategy
from palkit.strategies.ties import keys_of
from palkit.studies.statistics.intervals import with_ends
from palkit.studies.statistics.ranks import block_areas
from palkit.studies.statistics.tables import sign_of

# The code of the rules: results of another are not those of this one.
CODE = [Path(__file__), *sorted(Path(palkit.labelling.__path__[0]).glob("*.py"))]
SOURCE = sha256(b"".join(file.read_bytes() for file in CODE)).hexdigest()
SHARES = ("holds", "width", "recalls_hold", "calibration_holds")
BATCH = 25  # test labels between two looks


def active_summary(testing: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Coverage and widths of intervals of all ways, and how many times as many labels others need for that width.

    Even draws without replacement have a variance that goes as 1 / n - 1 / N, so N counts: they use up a small pool.

    Args:
        testing: `figures/decide/testing.parquet`.
        by: columns that tell rows of the result apart.

    Returns:
        A row per group: `active` and `even` (share of intervals that hold the accuracy), `recalls` and `calibration`
        (of those of classes and of the calibration error), `width` (of active ones, in points), `saving` (labels that
        even draws with Wilson's interval need for that width, over those of active ones) and `draws` (the same for even
        draws with the estimate of active ones: what the draws alone save).
    """
    weighted = testing.assign(
        **{name: testing[name] * testing["models"] for name in SHARES},
        left=testing["models"] / testing["images"],
        drawn=testing["models"] / testing["labels"],
    )
    sums = weighted.groupby([*by, "way"])[[*SHARES, "left", "drawn", "models"]].sum()
    means = sums[[*SHARES, "left", "drawn"]].div(sums["models"], axis=0)
    active, even = (means.xs(way, level="way") for way in ("active", "even"))

    def saved(way: str) -> pd.Series:
        wider = means.xs(way, level="way")["width"] / active["width"]
        shrunk = (active["drawn"] - active["left"]) / wider**2
        return active["drawn"] / (shrunk + active["left"])

    return pd.DataFrame(
        {"active": active["holds"], "even": even["holds"], "recalls": active["recalls_hold"]}
        | {"calibration": active["calibration_holds"], "width": 100 * active["width"]}
        | {"saving": saved("even"), "draws": saved("expected")}
    )


def stopping_summary(stopping: pd.DataFrame, by: Sequence[str] = ("rule",)) -> pd.DataFrame:
    """How rules with a target did, over all runs that reach it.

    Args:
        stopping: `figures/decide/stopping.parquet`.
        by: columns that tell rows of the result apart.

    Returns:
        A row per group: `runs` and targets that they reach; `stops` (share of them that the rule stops), `training` and
        `all labels` (median of the labels at the stop, without and with those of tests, over the training labels that
        were needed, of those that stop) and `wrong` (share of all stops, those of targets that the run never reaches
        among them, at which the accuracy is below the target).
    """
    table = stopping.dropna(subset="target")
    reached, stopped, needed = table["needed"].notna(), table["stopped"].astype(bool), table["needed"]
    counted = {"runs": reached, "ended": reached & stopped, "stopped": stopped}
    counted["short"] = stopped & (table["accuracy"] < table["target"])
    sums = table.assign(**counted).groupby(list(by))[list(counted)].sum()
    ratios = {"training": table["labels"] / needed, "all labels": (table["labels"] + table["tests"]) / needed}
    medians = table.assign(**ratios)[reached & stopped].groupby(list(by))[list(ratios)].median()
    summary = sums[["runs"]].assign(stops=sums["ended"] / sums["runs"]).join(medians)
    return summary.assign(wrong=sums["short"] / sums["stopped"])


def untargeted_summary(stopping: pd.DataFrame, by: Sequence[str] = ("rule",)) -> pd.DataFrame:
    """How rules without a target did.

    Returns:
        A row per group: `stops` (share of runs), `labels` (median at the stop, without tests), `lost` (mean points
        below the run's best round) and `worst` (most points).
    """
    rules = stopping[stopping["target"].isna()].assign(lost=lambda table: 100 * (table["best"] - table["accuracy"]))
    stops = rules.groupby(list(by))["stopped"].mean().rename("stops")
    ended = rules[rules["stopped"]].groupby(list(by))
    lost = ended.agg(labels=("labels", "median"), lost=("lost", "mean"), worst=("lost", "max"))
    return pd.concat([stops, lost], axis=1)


def regrets(rounds: pd.DataFrame, metric: str = "accuracy", baseline: str = "random") -> pd.DataFrame:
    """What every strategy gains over random choice on each data set, and what it falls short of the best single one.

    The best of several noisy means looks better than it is: the best single strategy of a seed is the one of the
    highest mean area on the other seeds. `auto` and oracles are no single strategies.

    Args:
        rounds: the table of rounds; every strategy with every seed, one adapter and budget.
        metric: column whose area under the budget curve is compared.
        baseline: strategy over which gains are.

    Returns:
        A row per data set and strategy: `gain`, `gain_low`, `gain_high`, `regret`, `regret_low`, `regret_high` (points
        of area, 95 % t intervals over paired seeds), `best` (the single strategy of the highest mean), `n_seeds`.

    Raises:
        ConfigError: a seed lacks a strategy, or there is one seed alone.
    """
    areas = 100 * sign_of(metric) * block_areas(rounds, metric)
    single = [name for name in map(str, areas) if name != "auto" and not get_strategy(name).is_oracle]
    rows = []
    for dataset, runs in areas.groupby("dataset", sort=False):
        if len(runs) < 2:
            raise ConfigError(f"{dataset} has one seed; the best strategy of a seed is found on the others.")
        others = (runs[single].sum() - runs[single]) / (len(runs) - 1)
        ideal = runs[single].to_numpy()[np.arange(len(runs)), others.to_numpy().argmax(axis=1)]
        for name in areas.columns.drop(baseline):
            ends = with_ends("gain", (runs[name] - runs[baseline]).to_numpy()) | with_ends("regret", ideal - runs[name])
            rows.append({"dataset": dataset, "strategy": name, **ends, "best": runs[single].mean().idxmax()})
            rows[-1]["n_seeds"] = len(runs)
    return pd.DataFrame(rows).set_index(["dataset", "strategy"])


@dataclass(frozen=True)
class Predictions:
    """Predictions of all R rounds of a run for its N evaluation images.

    Attributes:
        seed: of the run.
        labels: (R,) of each round.
        confidence: (R, N).
        predicted: (R, N) class codes.
        truth: (N,) class codes.
        keys: (N,) int64 of the images' names, see `palkit.strategies.ties`.
    """

    seed: int
    labels: NDArray
    confidence: NDArray
    predicted: NDArray
    truth: NDArray
    keys: Tensor

    @property
    def wrong(self) -> NDArray:
        """(R, N) whether each prediction is."""
        return self.predicted != self.truth

    @classmethod
    def of(cls, task: Task) -> "Predictions":
        """Those of a complete run of a sweep."""
        config, labels = task.config, task.directory.table()["labels"].to_numpy()
        assert config is not None, "complete"
        tables, pool = task.directory.predictions(len(labels)), pool_of(config)
        confidence, predicted = (np.stack([table[name] for table in tables]) for name in ("confidence", "predicted"))
        keys = keys_of(pool.ids[pool.rows(config.evaluate_on)])
        return cls(config.seed, labels, confidence.astype(float), predicted, tables[0]["label"].to_numpy(), keys)


def drawn(run: Predictions, number: int, before: Draws, labels: int, seed: int) -> Draws:
    """So many test labels in all, drawn for the model of a round, with a look every few.

    Args:
        run: whose evaluation images are drawn.
        number: of the round, from 0.
        before: drawn for earlier models.
        labels: wanted in all.
        seed: of the draws.
    """
    while len(before) < labels:
        more = min(BATCH, labels - len(before))
        wrong = run.wrong[number][before.positions]
        before = draw_tests(run.confidence[number], before, wrong, more, run.keys, seed)
    return before


class Looks(NamedTuple):
    """What few test labels say of the model of every round.

    Attributes:
        least: (R,) accuracies that are guaranteed, see `palkit.labelling.stopping.accuracy_at_least`.
        low: (R,) lower ends of the accuracy's 95 % interval, at one look.
        estimates: (R,) of the accuracy.
        tests: (R,) test labels spent.
    """

    least: list[float]
    low: list[float]
    estimates: list[float]
    tests: list[int]


def tests_of(run: Predictions, share: float) -> Looks:
    """What few test labels say of the model of every round, in a session that spends some share of its labels on them.

    Args:
        run: on whose evaluation images the models are tested.
        share: of all labels.
    """
    draws, found = Draws(), Looks([], [], [], [])
    for number, labels in enumerate(run.labels):
        confidence, wrong = run.confidence[number], run.wrong[number]
        found.tests.append(min(wanted_tests(share, int(labels)), len(run.truth)))
        draws = drawn(run, number, draws, found.tests[-1], run.seed)
        found.least.append(accuracy_at_least(error_terms(confidence, draws, wrong[draws.positions]), number))
        accuracy = measured_accuracy(confidence, draws, wrong[draws.positions])
        found.low.append(accuracy.low)
        found.estimates.append(accuracy.value)
    return found


def rules_of(run: Predictions, stop: Stop, tested: Looks) -> Iterator[tuple[str, float | None, list[bool], list[int]]]:
    """Every rule with its target, and of every round whether it says stop, and the test labels spent by then.

    Args:
        run: whose models are tested.
        stop: what is wanted. The rules are the guarantee; the interval of one look, which promises nothing to those who
            look after every round; the estimate alone, which promises nothing; and what the next round may gain by the
            forecast.
        tested: what `tests_of` says for its share of tests.
    """
    least, low, estimates, tests = tested
    for target in stop.accuracy:
        yield "guarantee", target, [value >= target for value in least], tests
        yield "interval", target, [value >= target for value in low], tests
        yield "estimate", target, [value >= target for value in estimates], tests
    if stop.gain is not None:
        batch = int(run.labels[-1] - run.labels[-2]) if len(run.labels) > 1 else 1
        ahead = [
            forecast(run.labels[:known], estimates[:known], tests[:known], [run.labels[known - 1] + batch])
            for known in range(1, len(run.labels) + 1)
        ]
        yield "gain", None, [little_to_gain(one, stop.gain) for one in ahead], tests


def stop_row(
    run: Predictions, rule: str, target: float | None, reached: Sequence[bool], tests: Sequence[int]
) -> dict[str, object]:
    """A rule's first stop as a row for `stopping_summary`.

    Args:
        run: which it is about.
        rule: its name.
        target: accuracy that is wanted; None for a rule without one.
        reached: (R,) whether the rule says stop.
        tests: (R,) test labels spent.

    Returns:
        `rule`, `target`, `best` (accuracy of the best round), `needed` (training labels at which the accuracy first is
        what is wanted), `stopped`, and of the stop `labels` (to train on), `tests` and `accuracy`; None for what there
        is not.
    """
    accuracy = 1 - run.wrong.mean(axis=1)
    at = list(reached).index(True) if True in reached else None
    enough = np.flatnonzero(accuracy >= (np.inf if target is None else target))
    stopped = (None, None, None) if at is None else (run.labels[at], tests[at], accuracy[at])
    return {
        "rule": rule,
        "target": target,
        "best": accuracy.max(),
        "needed": run.labels[enough[0]] if len(enough) else None,
        "stopped": at is not None,
        **dict(zip(("labels", "tests", "accuracy"), stopped, strict=True)),
    }


@looked_at_once()
def stops_of(sweep: Sweep, device: str | None = None, before: Path | None = None) -> pd.DataFrame:
    """When the labelling of every complete run of a sweep would have stopped, by the rules under `stop:` in its file.

    Args:
        sweep: with rules.
        device: that its runs were computed on.
        before: file of an earlier result, which says the same of its runs if rules and their code are the same.

    Returns:
        A row per run, rule and target: `run`, `rules` (a hash of all rules and their code), and what `stop_row` says.

    Raises:
        ConfigError: the sweep has no rules.
    """
    if sweep.stop is None:
        raise ConfigError(f"the sweep {sweep.name} has no `stop:`, such as {{accuracy: [0.8, 0.9]}}.")
    rows, which = list[dict[str, object]](), {"rules": short_hash([asdict(sweep.stop), SOURCE])}
    known = dict[str, list[dict[str, object]]]()
    with suppress(OSError, ValueError, MemoryError):  # not there, or damaged
        for row in read_table(before).to_dict("records") if before is not None else ():
            if row.get("rules") == which["rules"]:
                known.setdefault(str(row["run"]), []).append({str(name): value for name, value in row.items()})
    for task in plan(sweep, device):
        name = task.directory.run
        if task.is_complete and name not in known:
            run = Predictions.of(task)
            rules = rules_of(run, sweep.stop, tests_of(run, sweep.stop.tests))
            known[name] = [{"run": name} | which | stop_row(run, *rule) for rule in rules]
        if task.is_complete:
            rows += known[name]
    return pd.DataFrame(rows).astype(dict.fromkeys(("target", "needed", "labels", "tests", "accuracy"), float))
