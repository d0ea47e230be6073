"""How well the next rounds of real learning curves are forecast from those before, beside simpler ways.

    OMP_NUM_THREADS=1 python campaigns/extrapolation.py

Curves: every run of active learning on embedded data that `figures/` holds with three rounds or more. The constants of
`palkit.labelling.extrapolation` were chosen on the digits of `figures/simulation`; Fashion-MNIST took no part. Every
run is forecast one and two rounds ahead from its first k rounds, for every k. Ways:

- palkit: `palkit.labelling.extrapolation.forecast`.
- last: the last accuracy persists, with the binomial noise of two independent measurements.
- least squares: a - b * n ** -c by weighted least squares, rounds weighed by their number (Figueroa et al. 2012), with
  normal intervals by the delta method; from three rounds on.
- monotone: the same within a <= 1 and b, c >= 0.

Printed: mean absolute error and mean width of 80 % intervals in points, and the share of intervals that hold the
truth, by data sets, rounds ahead and rounds known (6 stands for 6 and more); "failed" is the share that has no finite
interval within 0 to 1.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from palkit.errors import ConfigError
from palkit.experiments.results import FIGURES, read_results
from palkit.labelling.extrapolation import forecast

SWEEPS = ("simulation", "default", "ablation-batch", "ablation-calibration", "ablation-initial")
HELD_OUT = {"digits": 450, "digits_lt": 450, "fashion_mnist": 1000, "fashion_mnist_lt": 1000}  # their test splits
LEVELS = (0.8, 0.95)
AHEAD = 2
# median (K,) and standard deviation (K,), of normal forecasts
Normal = tuple[NDArray, NDArray]


def curves() -> pd.DataFrame:
    """One row per run and round; a run that several sweeps share is there once."""
    rounds = pd.concat([read_results(FIGURES / sweep)[0].assign(sweep=sweep) for sweep in SWEEPS])
    rounds = rounds.drop_duplicates(["run", "labels"]).sort_values(["run", "labels"])
    rounds["part"] = np.where(
        rounds["dataset"].str.startswith("digits"),
        "digits (tuned on)",
        np.where(rounds["sweep"] == "simulation", "fashion", "fashion, other sweeps"),
    )
    return rounds[rounds.groupby("run")["labels"].transform("size") >= 3]


def last_value(labels: NDArray, accuracy: NDArray, held_out: int, at: NDArray) -> Normal:
    share = (accuracy[-1] * held_out + 1) / (held_out + 2)
    noise = np.sqrt(2 * share * (1 - share) / held_out)
    return np.full(len(at), accuracy[-1]), np.full(len(at), noise)


def least_squares(labels: NDArray, accuracy: NDArray, held_out: int, at: NDArray, bounded: bool = False) -> Normal:
    if len(labels) < 3:
        raise RuntimeError("three parameters need three rounds")
    share = (accuracy * held_out + 1) / (held_out + 2)
    binomial = np.sqrt(share * (1 - share) / held_out)
    weights = np.arange(1, len(labels) + 1) / len(labels)
    bounds = ([0, 0, 0], [1, 5, 5]) if bounded else (-np.inf, np.inf)

    def law(n: NDArray, a: float, b: float, c: float) -> NDArray:
        return a - b * (n / labels[0]) ** -c

    start = (min(accuracy.max() + 0.05, 0.99), 0.3, 0.5)
    fitted, covariance = optimize.curve_fit(
        law, labels, accuracy, start, binomial / np.sqrt(weights), absolute_sigma=True, bounds=bounds, maxfev=5000
    )
    slopes = np.array([optimize.approx_fprime(fitted, lambda p, n=n: law(n, *p)) for n in at])
    return law(at, *fitted), np.sqrt(np.einsum("ki,ij,kj->k", slopes, covariance, slopes) + binomial[-1] ** 2)


def monotone(labels: NDArray, accuracy: NDArray, held_out: int, at: NDArray) -> Normal:
    return least_squares(labels, accuracy, held_out, at, bounded=True)


NORMAL: dict[str, Callable[[NDArray, NDArray, int, NDArray], Normal]] = {
    "last": last_value,
    "least squares": least_squares,
    "monotone": monotone,
}


def forecasts(labels: NDArray, accuracy: NDArray, held_out: int, at: NDArray) -> Iterator[tuple[str, NDArray, dict]]:
    """Of each way its name, (K,) median, and by level the (K,) ends of the interval."""
    ours = {level: forecast(labels, accuracy, held_out, at, level) for level in LEVELS}
    yield "palkit", ours[LEVELS[0]].median, {level: (found.low, found.high) for level, found in ours.items()}
    for name, way in NORMAL.items():
        try:
            median, deviation = way(labels, accuracy, held_out, at)
        except (RuntimeError, ConfigError):
            median = deviation = np.full(len(at), np.nan)
        ends = {}
        for level in LEVELS:
            reach = stats.norm.ppf((1 + level) / 2) * deviation
            ends[level] = (np.clip(median - reach, 0, 1), np.clip(median + reach, 0, 1))
        yield name, np.clip(median, 0, 1), ends


def evaluate(rounds: pd.DataFrame) -> pd.DataFrame:
    """One row per run, rounds known, rounds ahead and way: error, coverages and width, in points."""
    rows = []
    for (part, dataset, _), run in rounds.groupby(["part", "dataset", "run"]):
        labels, accuracy = run["labels"].to_numpy(float), run["accuracy"].to_numpy()
        for known in range(2, len(run)):
            at, truth = labels[known : known + AHEAD], accuracy[known : known + AHEAD]
            for way, median, ends in forecasts(labels[:known], accuracy[:known], HELD_OUT[dataset], at):
                for step in range(len(at)):
                    low, high = ends[0.8][0][step], ends[0.8][1][step]
                    failed = not np.isfinite([low, high]).all() or (low, high) == (0, 1)
                    rows.append(
                        {
                            "part": part,
                            "ahead": step + 1,
                            "known": min(known, 6),
                            "way": way,
                            "error": 100 * abs(median[step] - truth[step]),
                            **{
                                f"holds {level:.0%}": np.nan if failed else lower[step] <= truth[step] <= upper[step]
                                for level, (lower, upper) in ends.items()
                            },
                            "width": np.nan if failed else 100 * (high - low),
                            "failed": failed,
                        }
                    )
    return pd.DataFrame(rows).astype({"holds 80%": float, "holds 95%": float})


def main() -> None:
    rounds = curves()
    print(rounds.groupby("part")["run"].nunique().rename("runs").to_string())
    table = evaluate(rounds)
    summary = table.drop(columns="known").groupby(["part", "ahead", "way"]).mean()
    detail = table.groupby(["part", "ahead", "way", "known"]).mean()
    for means in (summary, detail):
        print(means.round(3).to_string())


if __name__ == "__main__":
    main()
