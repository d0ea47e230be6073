"""How good, and when to stop: estimates from few test labels and rules for stopping, on all runs of the sweep `decide`.

    palkit sweep decide --no-notebooks    # an hour of one core beside other work; docs/images.md
    python campaigns/decide.py            # 11 minutes on two cores

Test labels are drawn from the test images of a run, all of whose labels are known: what an estimate says is compared
with their accuracy. `figures/decide/testing.parquet` has a row per data set, band of accuracy, labels and way: share of
intervals that hold, mean width, mean squared error. Ways are "active"; "expected", even draws with the estimate and
interval of active ones; "even", with Wilson's interval for draws without replacement. `stopping.parquet` has one per
run and rule: labels at which the accuracy is first what was wanted, and at which the rule stops, with those spent on
tests. Rules without a target are compared with the run's best round.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from palkit.experiments.results import FIGURES
from palkit.experiments.sweep import load_sweep, plan
from palkit.labelling.extrapolation import forecast
from palkit.labelling.session_tests import wanted_tests
from palkit.labelling.stopping import (
    accuracy_at_least,
    accuracy_flat,
    little_to_gain,
    predictions_settled,
    sure_enough,
)
from palkit.labelling.testing import (
    Draws,
    Measured,
    draw_tests,
    error_terms,
    measured_accuracy,
    measured_calibration,
    measured_recalls,
)
from palkit.storage.formats import write_table
from palkit.strategies.ties import keys_of

ROUNDS = (0, 4, 17)  # whose models are tested
LABELS = (25, 50, 100, 200)
DRAWS = 8  # repetitions
BANDS = (0, 0.6, 0.8, 0.9, 1)
TARGETS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
SHARES = (0.5, 0.75)
BATCH = 25  # test labels between two looks


@dataclass(frozen=True)
class Stored:
    """Predictions of all rounds of a run on its test images.

    Attributes:
        dataset, strategy, seed: of the run.
        labels: (R,) of each round.
        confidence: (R, N).
        predicted: (R, N).
        truth: (N,).
    """

    dataset: str
    strategy: str
    seed: int
    labels: NDArray
    confidence: NDArray
    predicted: NDArray
    truth: NDArray

    @property
    def wrong(self) -> NDArray:
        """(R, N) whether each prediction is."""
        return self.predicted != self.truth


def stored_runs() -> Iterator[Stored]:
    """All complete runs."""
    for task in plan(load_sweep("decide")):
        if task.is_complete and task.config is not None:
            table = task.directory.predictions(18)
            rounds = [part for _, part in pd.concat(table).groupby("round")]
            yield Stored(
                str(task.config.dataset),
                task.config.strategy,
                task.config.seed,
                task.directory.table()["labels"].to_numpy(),
                np.stack([part["confidence"] for part in rounds]).astype(float),
                np.stack([part["predicted"] for part in rounds]),
                rounds[0]["label"].to_numpy(),
            )


def drawn(confidence: NDArray, wrong: NDArray, before: Draws, number: int, seed: int) -> Draws:
    """So many draws in all, with a look every few."""
    keys = keys_of(map(str, range(len(confidence))))
    while len(before) < number:
        more = min(BATCH, number - len(before))
        before = draw_tests(confidence, before, wrong[before.positions], more, keys, seed)
    return before


def wilson(right: NDArray, images: int) -> Measured:
    """Interval of even draws without replacement."""
    number, left = len(right), (images - len(right)) / (images - 1)
    share, reach = right.mean(), 1.959964**2 * left / number
    half = np.sqrt(reach * share * (1 - share) + reach**2 / 4)
    return Measured(share, *((share + reach / 2 + side * half) / (1 + reach) for side in (-1, 1)), number)


def tested(run: Stored) -> list[dict]:
    """One row per model, number of labels and way."""
    rows, images, classes = [], len(run.truth), int(max(run.truth.max(), run.predicted.max())) + 1
    for number in ROUNDS:
        confidence, wrong = run.confidence[number], run.wrong[number]
        accuracy = 1 - wrong.mean()
        bins = confidence.argsort(kind="stable").argsort(kind="stable") * 5 // images
        gap = sum(
            (bins == one).mean() * abs(1 - wrong[bins == one].mean() - confidence[bins == one].mean())
            for one in range(5)
        )
        recalls = [1 - wrong[run.truth == one].mean() for one in range(classes)]
        for labels in LABELS:
            if labels > images / 2:
                continue
            for repetition in range(DRAWS):
                seed = run.seed * 1000 + number * 100 + repetition
                draws = drawn(confidence, wrong, Draws(), labels, seed)
                at = draws.positions
                even = np.random.default_rng(seed).permutation(images)[:labels]
                chances = 1 / (images - np.arange(labels))
                as_even = Draws(even, chances, chances)
                each = measured_recalls(draws, images, run.truth[at], run.predicted[number][at], classes)
                error = measured_calibration(confidence, draws, wrong[at])
                row = {
                    "dataset": run.dataset, "labels": labels, "accuracy": accuracy, "images": images,
                    # Of classes with labels: others have intervals from 0 to 1.
                    "recalls_hold": np.mean([one.low <= recall <= one.high for one, recall in
                                             zip(each, recalls, strict=True) if one.labels]),
                    "calibration_holds": error.low <= gap <= error.high,
                }  # fmt: skip
                for way, found in (
                    ("active", measured_accuracy(confidence, draws, wrong[at])),
                    ("expected", measured_accuracy(confidence, as_even, wrong[even])),
                    ("even", wilson(~wrong[even], images)),
                ):
                    holds = found.low <= accuracy <= found.high
                    square = (found.value - accuracy) ** 2
                    rows.append(row | {"way": way, "holds": holds, "width": found.high - found.low, "square": square})
    return rows


def first(reached: list[bool]) -> int | None:
    """The first round in which something is so."""
    return reached.index(True) if True in reached else None


def stopped(run: Stored) -> list[dict]:
    """One row per rule."""
    rows, accuracy = [], 1 - run.wrong.mean(axis=1)
    common = {"dataset": run.dataset, "strategy": run.strategy, "seed": run.seed, "best": accuracy.max()}

    def add(rule: str, reached: list[bool], tests: list[int], target: float | None = None) -> None:
        at, needed = first(reached), first([value >= target for value in accuracy] if target else [False])
        rows.append(
            common
            | {"rule": rule, "target": target, "stopped": at is not None}
            | {"needed": None if needed is None else run.labels[needed]}
            | {"labels": None if at is None else run.labels[at], "tests": None if at is None else tests[at]}
            | {"accuracy": None if at is None else accuracy[at]}
        )

    for share in SHARES:
        draws, least, estimates, tests = Draws(), [], [], []
        for number, labels in enumerate(run.labels):
            wanted = min(wanted_tests(share, int(labels)), len(run.truth))
            wrong = run.wrong[number]
            draws = drawn(run.confidence[number], wrong, draws, wanted, run.seed)
            least.append(accuracy_at_least(error_terms(run.confidence[number], draws, wrong[draws.positions]), number))
            estimates.append(measured_accuracy(run.confidence[number], draws, wrong[draws.positions]).value)
            tests.append(wanted)
        for target in TARGETS:
            add(f"guarantee, {share:.0%} tests", [value >= target for value in least], tests, target)
            add(f"estimate, {share:.0%} tests", [value >= target for value in estimates], tests, target)
        if share == SHARES[0]:
            ahead = [
                little_to_gain(
                    forecast(run.labels[:known], estimates[:known], tests[:known], [run.labels[known - 1] + 20]), 0.01
                )
                for known in range(1, len(run.labels) + 1)
            ]
            add("next round gains 1 point at most", ahead, tests)
            flat = [accuracy_flat(estimates[:known], epsilon=0.005) for known in range(1, len(run.labels) + 1)]
            add("three estimates within half a point", flat, tests)
    none = [0] * len(run.labels)
    for kappa in (0.99, 0.95):
        settled = [predictions_settled(run.predicted[:known], kappa) for known in range(1, len(run.labels) + 1)]
        add(f"kappa {kappa}", settled, none)
    for threshold in (0.05, 0.2):
        add(f"mean uncertainty below {threshold}", [sure_enough(1 - one, threshold) for one in run.confidence], none)
    return rows


def main(folder: Path) -> None:
    runs = list(stored_runs())
    print(f"{len(runs)} runs")
    both = joblib.Parallel(n_jobs=2)(joblib.delayed(lambda run: (tested(run), stopped(run)))(run) for run in runs)
    rows = pd.DataFrame([row for one, _ in both for row in one])
    rows["band"] = pd.cut(rows["accuracy"], BANDS).astype(str)
    keys = ["dataset", "band", "labels", "way"]
    table = rows.groupby(keys).mean(numeric_only=True).assign(models=rows.groupby(keys).size())
    write_table(table.reset_index(), folder / "testing.parquet")
    write_table(pd.DataFrame([row for _, many in both for row in many]), folder / "stopping.parquet")
    print(rows.groupby(["labels", "way"])[["holds", "width", "recalls_hold", "calibration_holds"]].mean().round(3))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURES / "decide")
