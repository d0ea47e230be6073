"""Interquartile means over seeds and data sets, with stratified bootstrap intervals (rliable).

Scores are arrays of (seeds, tasks, points): a task is a stratum, usually a data set, and seeds are resampled within
each task, never across. The interquartile mean (IQM) drops a quarter of the seeds-times-tasks scores, rounded down,
at either end: of one task with up to 3 seeds it is the mean, of 5 seeds the mean of the middle 3. Over data sets of
different difficulty what it drops are whole data sets; make scores comparable first, with `gains`.

Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from palkit.errors import ConfigError
from palkit.statistics.intervals import areas_of, bootstrap_interval
from palkit.statistics.tables import GROUP, RESAMPLES, TIE, name_of, pick, seed_curves, sign_of, some, validate

TASKS = ("dataset",)
AXES = ("labels", "fraction")


def iqm(scores: ArrayLike) -> NDArray:
    """Interquartile mean over seeds and tasks.

    Args:
        scores: (seeds, tasks, points).

    Returns:
        (points,)
    """
    by_point = np.moveaxis(np.asarray(scores, dtype=float), 2, 0)
    # rliable's takes one point at a time, and scipy's trimmed mean ten times as long as this for small arrays.
    ordered = np.sort(by_point.reshape(len(by_point), -1), axis=1)
    cut = ordered.shape[1] // 4
    return ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)


def iqm_interval(scores: ArrayLike, confidence: float = 0.95) -> tuple[NDArray, NDArray]:
    """Stratified percentile bootstrap interval of the interquartile mean, the same for the same scores.

    A run is resampled whole, with all its points. The draws depend on the numbers of seeds and tasks alone, so the
    interval of a point does not depend on which other points stand beside it. As every bootstrap of few seeds, it is
    too narrow (see `bootstrap_interval`).

    Args:
        scores: (seeds, tasks, points).
        confidence: coverage asked for.

    Returns:
        low and high, each (points,); NaN for a single seed.
    """
    array = np.asarray(scores, dtype=float)
    seeds, tasks, points = array.shape
    if seeds < 2:
        return np.full(points, np.nan), np.full(points, np.nan)
    columns = np.arange(tasks)
    low, high = _stratified([_run_numbers(seeds, tasks)], lambda drawn: iqm(array[drawn, columns]), confidence)
    return low, high


def iqm_curves(
    rounds: pd.DataFrame,
    metric: str = "accuracy",
    by: Sequence[str] = GROUP,
    tasks: Sequence[str] = TASKS,
    axis: str = "labels",
) -> pd.DataFrame:
    """Interquartile mean budget curve of every group over seeds and tasks, with pointwise 95 % intervals.

    Args:
        rounds: the table of rounds.
        metric: column to aggregate.
        by: columns that tell groups apart.
        tasks: columns that tell the tasks of a group apart; seeds are resampled within each.
        axis: "labels" bought, or the "fraction" of the labels bought at the end, for tasks of different budgets.

    Returns:
        One row per group and point: `by`, `axis`, `iqm`, `low`, `high`, `n_seeds` (of each task), `n_tasks`.

    Raises:
        ConfigError: the table cannot be used, or the tasks of a group differ in points or number of seeds.
    """
    if axis not in AXES:
        raise ConfigError(f"the axis of a curve is one of {', '.join(AXES)}, got {axis!r}.")
    keys, scores, points = [], [], []
    for key, curves in _tasks_of_groups(rounds, metric, by, tasks):
        keys.append(key)
        points.append(_common_points(curves, axis, name_of(key)))
        scores.append(np.stack([table.to_numpy(float).T for table in curves.values()], axis=1))
    return _aggregated(keys, scores, [{axis: at} for at in points])


def iqm_areas(
    rounds: pd.DataFrame, metric: str = "accuracy", by: Sequence[str] = GROUP, tasks: Sequence[str] = TASKS
) -> pd.DataFrame:
    """Interquartile mean of the area under the budget curve over seeds and tasks, with a 95 % interval.

    Tasks may have different label counts, since an area is divided by its range of labels.

    Args:
        rounds: the table of rounds.
        metric: column to aggregate.
        by: columns that tell groups apart.
        tasks: columns that tell the tasks of a group apart.

    Returns:
        One row per group: `by`, `metric` (its name), `iqm`, `low`, `high`, `n_seeds` (of each task), `n_tasks`.

    Raises:
        ConfigError: the table cannot be used, or the tasks of a group differ in their number of seeds.
    """
    keys, scores = [], []
    for key, curves in _tasks_of_groups(rounds, metric, by, tasks):
        keys.append(key)
        scores.append(np.stack([areas_of(table) for table in curves.values()], axis=1)[:, :, None])
    return _aggregated(keys, scores, [{"metric": metric}] * len(keys))


def area_table(
    rounds: pd.DataFrame,
    metric: str = "accuracy",
    by: Sequence[str] = (*GROUP, "balance"),
    tasks: Sequence[str] = TASKS,
) -> pd.DataFrame:
    """Area under the budget curve of every group on every task, and which group is best.

    Args:
        rounds: the table of rounds.
        metric: column to summarise.
        by: columns that tell groups apart.
        tasks: columns that tell tasks apart.

    Returns:
        One row per task and group: `tasks`, `by`, `metric` (its name), `n_seeds`, `mean`, `mean_low`, `mean_high`,
        `iqm`, `iqm_low`, `iqm_high` (95 % intervals, NaN for one seed), `best` (best mean of its task) and `clear`:
        best, and the paired 95 % interval of its difference to the second on the same seeds excludes zero. That is
        one comparison of two that were chosen by looking, so it is not a test of the best against all others.

    Raises:
        ConfigError: the table cannot be used; the message names columns, runs or seeds.
    """
    keys, areas = [], []
    for key, curves in _tasks_of_groups(rounds, metric, [*tasks, *by], ()):
        (curve,) = curves.values()
        keys.append(key)
        areas.append(pd.Series(areas_of(curve), index=curve.columns))
    table = _aggregated(
        keys, [values.to_numpy()[:, None, None] for values in areas], [{"metric": metric}] * len(keys)
    ).rename(columns={"low": "iqm_low", "high": "iqm_high"})
    low, high = zip(*(bootstrap_interval(values) for values in areas), strict=True)
    table = table.assign(
        mean=[values.mean() for values in areas],
        mean_low=np.array(low, dtype=float),
        mean_high=np.array(high, dtype=float),
        best=False,
        clear=False,
    )
    for rows in table.groupby(list(tasks), dropna=False).groups.values():
        order = (sign_of(metric) * table.loc[rows, "mean"]).sort_values(ascending=False, kind="stable").index
        table.loc[order[0], "best"] = True
        if len(order) > 1:
            table.loc[order[0], "clear"] = _excludes_zero(areas[order[0]], areas[order[1]], sign_of(metric))
    measures = [f"{value}{end}" for value in ("mean", "iqm") for end in ("", "_low", "_high")]
    return table[[*tasks, *by, "metric", "n_seeds", *measures, "best", "clear"]]


def probability_of_improvement(
    rounds: pd.DataFrame,
    a: Mapping[str, Hashable],
    b: Mapping[str, Hashable],
    metric: str = "accuracy",
    tasks: Sequence[str] = TASKS,
) -> pd.Series:
    """Probability that a run of a has the better area under the budget curve than a run of b on the same task.

    Runs are compared within each task, every run of a with every run of b, ties as half, and the tasks averaged. That
    the runs of one seed share their initial set is not used.

    Args:
        rounds: the table of rounds.
        a: column values that pick one configuration.
        b: the same for the other.
        metric: column to compare; for losses such as `nll`, lower is better.
        tasks: columns that tell tasks apart.

    Returns:
        `probability`, `low`, `high` (95 %, stratified bootstrap; NaN if either has one seed), `n_tasks`.

    Raises:
        ConfigError: a value does not occur, or a and b do not have the same tasks.

    Source: Agarwal et al., NeurIPS 2021, section 4.3.
    """
    validate(rounds, [*a, *b, *tasks], metric)
    left, right = (_area_scores(pick(rounds, config), metric, tasks, name_of(config)) for config in (a, b))
    if list(left) != list(right):
        raise ConfigError(
            f"{name_of(a)} and {name_of(b)} do not pair: the first has the tasks {some(map(str, left))}, the second "
            f"{some(map(str, right))}."
        )
    x, y = (sign_of(metric) * np.stack(list(scores.values()), axis=1) for scores in (left, right))
    columns = np.arange(x.shape[1])

    def probability(drawn_x: NDArray, drawn_y: NDArray) -> NDArray:
        difference = x[drawn_x, columns][:, None] - y[drawn_y, columns][None]
        return np.array([(difference > TIE).mean() + (abs(difference) <= TIE).mean() / 2])

    numbers = [_run_numbers(*scores.shape) for scores in (x, y)]
    low, high = np.full((2, 1), np.nan) if min(len(x), len(y)) < 2 else _stratified(numbers, probability)
    return pd.Series(
        {"probability": probability(*numbers)[0], "low": low[0], "high": high[0], "n_tasks": float(len(columns))}
    )


def _excludes_zero(best: pd.Series, second: pd.Series, sign: int) -> bool:
    """Whether the paired interval of the difference excludes zero; not for other seeds, or one."""
    if set(best.index) != set(second.index):
        return False
    low, _ = bootstrap_interval(sign * (best - second[best.index]).to_numpy())
    return bool(low > TIE)


def _run_numbers(seeds: int, tasks: int) -> NDArray:
    return np.tile(np.arange(seeds)[:, None], (1, tasks))


def _stratified(numbers: list[NDArray], statistic: Callable[..., NDArray], confidence: float = 0.95) -> NDArray:
    """(2, ...) rliable's interval of a statistic of resampled run numbers, each (seeds, tasks).

    Resampling run numbers instead of scores keeps a run whole; scores of three axes are resampled point by point.
    """
    # Imported here: it takes most of a second, and not every user of this package aggregates.
    from rliable import library

    with _seeded():
        _, intervals = library.get_interval_estimates(
            {"": numbers[0] if len(numbers) == 1 else numbers},
            statistic,
            reps=RESAMPLES,
            confidence_interval_size=confidence,
        )
    return intervals[""]


@contextmanager
def _seeded() -> Iterator[None]:
    """Fixed state of numpy's global generator: rliable 1.2 draws from that one, whatever `random_state` it is given."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _tasks_of_groups(
    rounds: pd.DataFrame, metric: str, by: Sequence[str], tasks: Sequence[str]
) -> Iterator[tuple[dict[str, Hashable], dict[Hashable, pd.DataFrame]]]:
    """Each group's column values, and its curves by seed on each task."""
    if isinstance(by, str) or isinstance(tasks, str) or not by:
        raise ConfigError(f"`by` and `tasks` must list columns, `by` one or more; got {by!r} and {tasks!r}.")
    validate(rounds, [*by, *tasks], metric)
    for values, rows in rounds.groupby(list(by), dropna=False):
        key = dict(zip(by, values, strict=True))
        yield key, _curves_of_tasks(rows, metric, tasks, name_of(key))


def _curves_of_tasks(rows: pd.DataFrame, metric: str, tasks: Sequence[str], name: str) -> dict[Hashable, pd.DataFrame]:
    """Curves by seed of one configuration on each task, after checking that every task has as many seeds."""
    if not tasks:
        return {(): seed_curves(rows, metric, name)}
    curves: dict[Hashable, pd.DataFrame] = {
        values: seed_curves(part, metric, f"{name}, {name_of(dict(zip(tasks, values, strict=True)))}")
        for values, part in rows.groupby(list(tasks), dropna=False)
    }
    counts = {str(values): table.shape[1] for values, table in curves.items()}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"{name}: tasks differ in their number of seeds ("
            + some(f"{task}: {count}" for task, count in counts.items())
            + "). Run the missing seeds, drop the others, or compare within each task."
        )
    return curves


def _area_scores(rows: pd.DataFrame, metric: str, tasks: Sequence[str], name: str) -> dict[Hashable, NDArray]:
    return {task: areas_of(table) for task, table in _curves_of_tasks(rows, metric, tasks, name).items()}


def _common_points(curves: Mapping[Hashable, pd.DataFrame], axis: str, name: str) -> NDArray:
    """Where the curves of all tasks have their points: label counts, or fractions of the last one."""
    points = [table.index.to_numpy() / (table.index[-1] if axis == "fraction" else 1) for table in curves.values()]
    if any(len(at) != len(points[0]) or not np.allclose(at, points[0]) for at in points):
        remedy = (
            "Aggregate over the share of the budget, or aggregate areas."
            if axis == "labels"
            else "Aggregate areas instead."
        )
        raise ConfigError(
            f"{name}: tasks differ in the {axis} of their rounds, "
            + some((str(np.round(at, 3).tolist()) for at in points), most=2)
            + f". {remedy}"
        )
    first = next(iter(curves.values())).index.to_numpy()
    return first if axis == "labels" else points[0]


def _aggregated(
    keys: Sequence[Mapping[str, Hashable]], scores: Sequence[NDArray], columns: Sequence[Mapping[str, object]]
) -> pd.DataFrame:
    """Rows of `iqm`, `low`, `high` per group and point; groups of one shape share one bootstrap."""
    shapes = defaultdict(list)
    for number, array in enumerate(scores):
        shapes[array.shape[:2]].append(number)
    parts: dict[int, pd.DataFrame] = {}
    for (seeds, tasks), members in shapes.items():
        together = np.concatenate([scores[number] for number in members], axis=2)
        ends = np.cumsum([scores[number].shape[2] for number in members])[:-1]
        split = (np.split(values, ends) for values in (iqm(together), *iqm_interval(together)))
        for number, middle, low, high in zip(members, *split, strict=True):
            band = {"iqm": middle, "low": low, "high": high, "n_seeds": seeds, "n_tasks": tasks}
            parts[number] = pd.DataFrame({**keys[number], **columns[number], **band})
    return pd.concat([parts[number] for number in range(len(scores))], ignore_index=True)
