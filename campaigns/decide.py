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
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from palkit.experiments.results import FIGURES
from palkit.experiments.sweep import Stop, load_sweep, plan
from palkit.labelling.stopping import accuracy_flat, predictions_settled, sure_enough
from palkit.labelling.testing import (
    Draws,
    Measured,
    measured_accuracy,
    measured_calibration,
    measured_recalls,
)
from palkit.storage.formats import write_table
from palkit.strategies.ties import keys_of
from palkit.studies.deciding import Predictions, drawn, rules_of, stop_row, tests_of

ROUNDS = (0, 4, 17)  # whose models are tested
LABELS = (25, 50, 100, 200)
DRAWS = 8  # repetitions
BANDS = (0, 0.6, 0.8, 0.9, 1)
TARGETS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
SHARES = (0.5, 0.75)


@dataclass(frozen=True)
class Stored:
    """A run of the sweep.

    Attributes:
        dataset, strategy: of it.
        run: predictions of all its rounds.
    """

    dataset: str
    strategy: str
    run: Predictions


def stored_runs() -> Iterator[Stored]:
    """All complete runs."""
    for task in plan(load_sweep("decide")):
        if task.is_complete and task.config is not None:
            run = Predictions.of(task)
            keys = keys_of(map(str, range(len(run.truth))))  # not the images' names: so the committed ones were drawn
            yield Stored(str(task.config.dataset), task.config.strategy, replace(run, keys=keys))


def wilson(right: NDArray, images: int) -> Measured:
    """Interval of even draws without replacement."""
    number, left = len(right), (images - len(right)) / (images - 1)
    share, reach = right.mean(), 1.959964**2 * left / number
    half = np.sqrt(reach * share * (1 - share) + reach**2 / 4)
    return Measured(share, *((share + reach / 2 + side * half) / (1 + reach) for side in (-1, 1)), number)


def tested(stored: Stored) -> list[dict]:
    """One row per model, number of labels and way."""
    run = stored.run
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
                draws = drawn(run, number, Draws(), labels, seed)
                at = draws.positions
                even = np.random.default_rng(seed).permutation(images)[:labels]
                chances = 1 / (images - np.arange(labels))
                as_even = Draws(even, chances, chances)
                each = measured_recalls(draws, images, run.truth[at], run.predicted[number][at], classes)
                error = measured_calibration(confidence, draws, wrong[at])
                row = {
                    "dataset": stored.dataset, "labels": labels, "accuracy": accuracy, "images": images,
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


def stopped(stored: Stored) -> list[dict]:
    """One row per rule."""
    run, none, known = stored.run, [0] * len(stored.run.labels), range(1, len(stored.run.labels) + 1)
    rules: list[tuple[str, float | None, list[bool], list[int]]] = []
    found = {share: tests_of(run, share) for share in SHARES}
    for share in SHARES:
        stop = Stop(TARGETS, 0.01 if share == SHARES[0] else None, share)
        for rule, target, reached, tests in rules_of(run, stop, found[share]):
            name = "next round gains 1 point at most" if target is None else f"{rule}, {share:.0%} tests"
            rules.append((name, target, reached, tests))
    estimates, tests = found[SHARES[0]].estimates, found[SHARES[0]].tests
    flat = [accuracy_flat(estimates[:number], epsilon=0.005) for number in known]
    rules.append(("three estimates within half a point", None, flat, tests))
    for kappa in (0.99, 0.95):
        settled = [predictions_settled(list(run.predicted[:number]), kappa) for number in known]
        rules.append((f"kappa {kappa}", None, settled, none))
    for threshold in (0.05, 0.2):
        sure = [sure_enough(1 - one, threshold) for one in run.confidence]
        rules.append((f"mean uncertainty below {threshold}", None, sure, none))
    which = {"dataset": stored.dataset, "strategy": stored.strategy, "seed": run.seed}
    return [which | stop_row(run, *rule) for rule in rules]


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
