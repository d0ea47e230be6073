"""Learning curves carried on: against brute force, against curves whose continuation is known; and their figure."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from scipy import stats

from palkit.errors import ConfigError
from palkit.labelling import extrapolation
from palkit.labelling.extrapolation import Forecast, forecast
from palkit.studies.plots.labelling import session_curve

LABELS = [10, 20, 30, 40, 50]
ACCURACY = [0.464, 0.569, 0.615, 0.641, 0.66]


@st.composite
def sessions(draw: st.DrawFn) -> tuple[list[int], list[float], int, list[int]]:
    """Label counts, accuracies, held-out images, label counts to ask about."""
    steps = draw(st.lists(st.integers(1, 50), min_size=3, max_size=12))
    counts = np.cumsum(steps).tolist()
    known = draw(st.integers(2, len(counts) - 1))
    accuracy = draw(st.lists(st.floats(0, 1), min_size=known, max_size=known))
    return counts[:known], accuracy, draw(st.integers(1, 5000)), counts[known:]


@settings(max_examples=60)
@given(sessions())
def test_intervals_are_nested_hold_the_median_and_are_accuracies(session: tuple) -> None:
    wide, narrow = forecast(*session, coverage=0.95), forecast(*session, coverage=0.5)
    for found in (wide, narrow):
        assert ((found.low <= found.median) & (found.median <= found.high)).all()
        assert ((found.low >= 0) & (found.high <= 1)).all()
        assert np.isfinite(found.median).all()
        np.testing.assert_array_equal(found.labels, session[3])
    np.testing.assert_array_equal(wide.median, narrow.median)
    assert ((wide.low <= narrow.low) & (narrow.high <= wide.high)).all()
    again = forecast(*session, coverage=0.95)
    np.testing.assert_array_equal([wide.low, wide.median, wide.high], [again.low, again.median, again.high])
    assert wide.sentence == again.sentence


@pytest.mark.parametrize("law", ["power", "exponential"])
def test_known_laws_are_carried_on(law: str) -> None:
    growth = {"power": lambda n: np.log(n / 10), "exponential": lambda n: n / 10 - 1}[law]

    def accuracy(n: np.ndarray) -> np.ndarray:
        return 0.3 + 0.55 * (1 - np.exp(-0.4 * growth(n)))

    known, ahead = np.arange(10, 101, 10), np.array([110, 120, 150])
    found = forecast(known, accuracy(known), 10**6, ahead)
    np.testing.assert_allclose(found.median, accuracy(ahead), atol=0.01)
    assert found.last == accuracy(known)[-1]


def test_closed_form_against_integration_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds and a small grid: joint density of all three rounds, summed over `first`, shapes and walks."""
    grid = {"RISES": np.array([0.3, 0.9]), "SPEEDS": np.array([0.2, 0.8]), "WALKS": np.array([0.5, 2.0])}
    for name, values in grid.items():
        monkeypatch.setattr(extrapolation, name, values)
    labels, accuracy, images = np.array([10, 20, 30]), np.array([0.4, 0.55]), 200
    noise = [extrapolation.UNSHARED * p * (1 - p) / images
             for p in ((right * images + 1) / (images + 2) for right in (0.4, 0.55, 0.55))]  # fmt: skip
    firsts, thirds = np.linspace(0, 0.8, 401), np.linspace(0, 1.2, 601)
    density = np.zeros(len(thirds))
    for rise, speed, walk, law in itertools.product(*grid.values(), ("power", "exponential")):
        risen = 1 - (labels / 10) ** -speed if law == "power" else 1 - np.exp(-speed * (labels / 10 - 1))
        time = np.log(labels / 10)
        wander = [[(walk * extrapolation.WALK) ** 2 * min(a, b) for a in time] for b in time]
        prior = stats.beta.pdf(rise, *extrapolation.RISE_PRIOR)
        median, spread = extrapolation.SPEED_PRIOR
        prior *= stats.norm.pdf(np.log(speed / median), scale=spread)
        prior *= stats.norm.pdf(np.log(walk), scale=extrapolation.WALK_SPREAD)
        normal = stats.multivariate_normal(np.zeros(3), np.array(wander) + np.diag(noise))
        means = firsts[:, None] + rise * (1 - firsts[:, None]) * risen  # (firsts, 3)
        for place, third in enumerate(thirds):
            density[place] += prior * normal.pdf(np.array([*accuracy, third]) - means).sum()
    below = np.cumsum(density) / density.sum()
    found = forecast(labels[:2], accuracy, images, labels[2:])
    for value, level in ((found.low, 0.1), (found.median, 0.5), (found.high, 0.9)):
        assert np.interp(value, thirds, below) == pytest.approx(level, abs=0.01)


@pytest.mark.parametrize(("coverage", "least", "most"), [(0.8, 0.72, 0.88), (0.95, 0.9, 0.99)])
def test_coverage_on_curves_of_the_prior(coverage: float, least: float, most: float) -> None:
    rng = np.random.default_rng(0)
    held, known, images = [], 4, 500
    labels = np.arange(10, 61, 10)
    time = np.log(labels / 10)
    for _ in range(120):
        first, rise = rng.uniform(0.2, 0.6), rng.beta(*extrapolation.RISE_PRIOR)
        speed = extrapolation.SPEED_PRIOR[0] * np.exp(extrapolation.SPEED_PRIOR[1] * rng.normal())
        walk = extrapolation.WALK * np.exp(extrapolation.WALK_SPREAD * rng.normal())
        growth = time if rng.random() < 0.5 else labels / 10 - 1
        mean = first + rise * (1 - first) * (1 - np.exp(-speed * growth))
        wandering = np.cumsum(walk * np.sqrt(np.diff(time, prepend=0)) * rng.normal(size=len(labels)))
        noise = np.sqrt(extrapolation.UNSHARED * mean * (1 - mean) / images) * rng.normal(size=len(labels))
        curve = np.clip(mean + wandering + noise, 0, 1)
        found = forecast(labels[:known], curve[:known], images, labels[known:], coverage)
        held += ((found.low <= curve[known:]) & (curve[known:] <= found.high)).tolist()
    assert least < np.mean(held) < most


def test_fewer_held_out_images_say_less() -> None:
    widths = [np.ptp([found.low, found.high]) for found in
              (forecast(LABELS, ACCURACY, images, [60]) for images in (10, 100, 1000))]  # fmt: skip
    assert widths[0] > widths[1] > widths[2]


def test_held_out_images_may_differ_by_round() -> None:
    same, alike = forecast(LABELS, ACCURACY, 100, [60]), forecast(LABELS, ACCURACY, [100] * 5, [60])
    np.testing.assert_array_equal([same.low, same.median, same.high], [alike.low, alike.median, alike.high])
    # A last round on few images is trusted less, so the forecast is nearer to the curve before it.
    jump = [*ACCURACY[:4], 0.9]
    trusted, doubted = (forecast(LABELS, jump, [1000] * 4 + [last], [60]).median for last in (1000, 10))
    assert doubted < trusted


def test_sentences() -> None:
    rising = forecast([10, 20, 30], [0.2, 0.35, 0.5], 10_000, [60])
    assert rising.low[0] > 0.5
    assert rising.sentence.startswith(f"Another 30 labels: {100 * rising.median[0]:.1f} % expected [")
    assert rising.sentence.endswith("the curve is still rising.")
    flat = forecast(LABELS, [0.5, 0.7, 0.7, 0.7, 0.7], 100, [51])
    assert flat.sentence.startswith("Another 1 label: ")
    assert "no gain beyond the measurement's noise (4.6 points on 100 images)" in flat.sentence
    likely = forecast([10, 20], [0.464, 0.569], 1000, [30])
    assert likely.low[0] < 0.569
    assert likely.sentence.endswith("the curve is probably still rising.")
    gain, gain_low = likely.median[0] - likely.last, likely.low[0] - likely.last
    assert f"{100 * gain:+.1f} points [{100 * gain_low:+.1f}, " in likely.sentence


@pytest.mark.parametrize(("points", "words"), [(0, "no held-out accuracy yet"), (1, "One round says nothing")])
def test_too_few_points_give_words_instead_of_numbers(points: int, words: str) -> None:
    found = forecast(LABELS[:points], ACCURACY[:points], 30, [60, 70])
    assert words in found.sentence
    assert points or forecast([], [], [], []).sentence == found.sentence
    assert np.isnan([found.median, found.low, found.high]).all()
    assert found.last == ACCURACY[0] if points else np.isnan(found.last)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("labels", {"labels": [10, 10, 30]}),
        ("labels", {"labels": [0, 10, 30]}),
        ("labels", {"labels": [10, 20.5, 30]}),
        ("labels", {"labels": [[10, 20, 30]]}),
        ("accuracy", {"accuracy": [0.5, np.nan, 0.6]}),
        ("accuracy", {"accuracy": [0.5, 0.6]}),
        ("accuracy", {"accuracy": [0.5, 0.6, 60]}),
        ("accuracy", {"accuracy": [0.5, 0.6, -0.1]}),
        ("held_out", {"held_out": 0}),
        ("held_out", {"held_out": 2.5}),
        ("held_out", {"held_out": [100, np.nan, 100]}),
        ("held_out", {"held_out": [100, 100]}),
        ("at", {"at": [30]}),
        ("at", {"at": []}),
        ("at", {"at": [50, 40]}),
        ("coverage", {"coverage": 80}),
    ],
)
def test_bad_input_is_named(field: str, change: dict) -> None:
    good = {"labels": [10, 20, 30], "accuracy": [0.5, 0.6, 0.65], "held_out": 100, "at": [40], "coverage": 0.8}
    assert isinstance(forecast(**good), Forecast)
    with pytest.raises(ConfigError, match=f"^{field}: "):
        forecast(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0}, "held_out: 0 must be greater than or equal to 1"),
        ({"held_out": [9, 0, 9]}, "held_out: the value 2 0 must be greater than or equal to 1"),
        ({"labels": [10, [20], 30]}, r"labels: numbers are needed, got \[10, \[20\], 30\]\."),
        ({"labels": [10, 10, 30]}, "labels: label counts increase"),
        ({"labels": 10}, "labels: 10 must be a valid list"),
    ],
)
def test_bad_input_is_explained(change: dict, message: str) -> None:
    good = {"labels": [10, 20, 30], "accuracy": [0.5, 0.6, 0.65], "held_out": 100, "at": [40]}
    with pytest.raises(ConfigError, match=f"^{message}"):
        forecast(**{**good, **change})


def session(rows: int = 5, images: int = 100) -> pd.DataFrame:
    columns = {"labels": LABELS, "accuracy": ACCURACY, "held_out": images, "first_guess": [np.nan, 0.3, 0.5, 0.4, 0.6]}
    return pd.DataFrame(columns).head(rows)


def test_figure_shows_measurements_intervals_and_forecast() -> None:
    ahead = forecast(LABELS, ACCURACY, 100, [60, 70])
    (axes,) = session_curve(session(), ahead).axes
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(
        lines["proposed images guessed right"].get_xydata(), [[20, 0.3], [30, 0.5], [40, 0.4], [50, 0.6]]
    )
    (bars,) = (container for container in axes.containers if isinstance(container, ErrorbarContainer))
    assert bars.get_label() == "accuracy on 100 held-out images"
    np.testing.assert_allclose(bars[0].get_xydata(), np.column_stack([LABELS, ACCURACY]))
    # Wilson's interval written out, for 66 right of 100.
    z = stats.norm.ppf(0.975)
    centre, reach = 0.66 + z**2 / 200, z * np.sqrt(0.66 * 0.34 / 100 + z**2 / 40_000)
    ends = np.array([centre - reach, centre + reach]) / (1 + z**2 / 100)
    np.testing.assert_allclose(bars[2][0].get_segments()[-1][:, 1], ends)
    np.testing.assert_allclose(lines["forecast"].get_xydata(), np.column_stack([[50, 60, 70], [0.66, *ahead.median]]))
    assert lines["forecast"].get_linestyle() == "--"
    (band,) = (item for item in axes.collections if isinstance(item, PolyCollection))
    assert band.get_label() == "80 % interval"
    corners = band.get_paths()[0].vertices
    assert {tuple(corner) for corner in corners} == {
        (50, 0.66), *zip([60, 70], ahead.low, strict=True), *zip([60, 70], ahead.high, strict=True)
    }  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("labels", "accuracy (%)")


@pytest.mark.parametrize("accuracy", [0.464, 0.0, 1.0])
def test_figure_of_one_round(accuracy: float) -> None:
    curve = session(1, images=1).assign(accuracy=accuracy)
    figure = session_curve(curve, forecast([10], [accuracy], 1, [20]))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.legends[0].texts] == ["accuracy on 1 held-out image"]
    assert not [line for line in axes.lines if line.get_linestyle() == "--"]


def test_figure_without_held_out_images() -> None:
    curve = session().assign(accuracy=np.nan)
    (axes,) = session_curve(curve, forecast([], [], 1, [60])).axes
    assert [line.get_label() for line in axes.lines] == ["proposed images guessed right"]
    assert not session_curve(curve.assign(first_guess=np.nan)).legends
