"""A forecast of what more labels would bring: learning curves of few, noisy points carried on, with intervals.

The mean of a curve is one of two laws with three parameters that fit learning curves well [1, 2]::

    f(n) = first + rise * (1 - first) * (1 - (n / n_1) ** -speed)             a power law
    f(n) = first + rise * (1 - first) * (1 - exp(-speed * (n / n_1 - 1)))     an exponential, almost straight at first

where `first` is the accuracy at the first point, `rise` the share of the missing accuracy that ever more labels would
win, `speed` how fast. A point fit has no useful error with three points, so shapes are averaged over instead [3]: a
grid of (law, rise, speed) under a weak prior, each weighed by how well it explains the points. Around the mean, curves
of active learning wander, and are measured on few images: the residual is a random walk in log(n), plus the part of
the binomial noise that is not shared by rounds measured on the same images. Given the shape and the size of the walk
all is Gaussian and `first` has a closed form (kriging with a drift); the forecast is a mixture of Gaussians.

`campaigns/extrapolation.py` evaluates it on real curves, beside the last value and least-squares fits [4].

Sources: [1] Viering & Loog, The Shape of Learning Curves: a Review, IEEE TPAMI 2023. [2] Mohr et al., LCDB 1.0,
ECML 2022. [3] Domhan et al., Speeding up Automatic Hyperparameter Optimization of Deep Neural Networks by
Extrapolation of Learning Curves, IJCAI 2015. [4] Figueroa et al., Predicting sample size required for classification
performance, BMC Medical Informatics and Decision Making 2012.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, Field

from palkit.errors import ConfigError, brief
from palkit.labelling.records import Share, explained, record

MOST = 2**53  # up to here floats tell whole numbers apart
Images = Annotated[int, Field(ge=1, le=MOST)]
Probability = Annotated[float, Field(strict=True, gt=0, lt=1)]
TOO_FEW = (  # points to say how fast a curve rises: none, one
    "There is no held-out accuracy yet: label some held-out images to see what more labels would bring.",
    "One round says nothing about the next: finish another to see what more labels would bring.",
)


def _increasing(counts: list[int]) -> list[int]:
    if sorted(set(counts)) != counts:
        raise ValueError("label counts increase from one to the next")
    return counts


LabelCounts = Annotated[list[Annotated[int, Field(ge=1, le=MOST)]], AfterValidator(_increasing)]

# The constants below were chosen on digits only, for the mean log-likelihood of the next two rounds.
RISES = np.linspace(0.02, 0.98, 25)
SPEEDS = np.geomspace(0.02, 4.0, 25)
WALKS = np.geomspace(0.25, 4.0, 5)  # multiples of WALK
RISE_PRIOR = (3.0, 1.0)  # of a Beta distribution
SPEED_PRIOR = (0.35, 0.5)  # median, and standard deviation of the logarithm
WALK_SPREAD = 0.4  # standard deviation of the logarithm of the multiple
WALK = 0.06  # standard deviation of the wandering when the labels grow e-fold
UNSHARED = 0.4  # share of the binomial variance that two rounds on the same images do not share


@dataclass(frozen=True)
class Forecast:
    """What more labels would bring, measured on the same held-out images.

    Attributes:
        labels: (K,) label counts asked about.
        median: (K,) accuracy that is as likely to be exceeded as not; NaN if there are too few points.
        low: (K,) lower end of the interval that holds the accuracy with probability `coverage`.
        high: (K,) upper end.
        last: accuracy of the last round; NaN without any.
        coverage: of the intervals.
        sentence: all this about the first label count in words, and whether the curve has flattened.
    """

    labels: NDArray
    median: NDArray
    low: NDArray
    high: NDArray
    last: float
    coverage: float
    sentence: str


def forecast(
    labels: ArrayLike, accuracy: ArrayLike, held_out: ArrayLike, at: ArrayLike, coverage: float = 0.8
) -> Forecast:
    """Carry the learning curve of one labelling session on.

    With fewer than two rounds there is nothing to carry on: the numbers are NaN, and the sentence says why. The
    interval is of what the next round will measure on the same images, not of the accuracy on all images of the world;
    for that see the intervals of `palkit.studies.plots.labelling.session_curve`. Four in five is the default because a
    decision to go on for one more round does not need more.

    Args:
        labels: (R,) label counts of the rounds, increasing; empty if nothing has been measured.
        accuracy: (R,) held-out accuracy after each, in [0, 1].
        held_out: (R,) images that each accuracy is measured on, or one number for all; the last holds on.
        at: (K,) label counts to forecast, increasing, beyond the last of `labels`; may be empty if that is.
        coverage: probability that the intervals are to hold.

    Raises:
        ConfigError: an argument that cannot be, by name.
    """
    known, values, images, asked = _checked(labels, accuracy, held_out, at, coverage)
    if len(known) < len(TOO_FEW):
        nothing = np.full(len(asked), np.nan)
        last = float(values[-1]) if len(values) else np.nan
        return Forecast(asked, nothing, nothing, nothing, last, coverage, TOO_FEW[len(known)])
    mixture = _mixture(known, values, images, asked)
    tail = (1 - coverage) / 2
    low, median, high = (np.clip(mixture.quantile(level), 0, 1) for level in (tail, 0.5, 1 - tail))
    more = int(asked[0] - known[-1])
    sentence = _sentence(more, float(values[-1]), int(images[-1]), float(median[0]), float(low[0]), float(high[0]))
    return Forecast(asked, median, low, high, float(values[-1]), coverage, sentence)


def _checked(
    labels: ArrayLike, accuracy: ArrayLike, held_out: ArrayLike, at: ArrayLike, coverage: float
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    known, asked = _numbers("labels", LabelCounts, labels), _numbers("at", LabelCounts, at)
    values = _numbers("accuracy", list[Share], accuracy)
    images = _numbers("held_out", list[Images], held_out, single=Images)
    _numbers("coverage", Probability, coverage)
    if len(known) != len(values):
        raise ConfigError(f"accuracy: one value per label count is needed, got {len(values)} for {len(known)}.")
    if images.shape not in ((), values.shape):
        raise ConfigError(f"held_out: one number, or one per round is needed, got {brief(images.tolist())}.")
    if len(known) and (not len(asked) or asked[0] <= known[-1]):
        more = f"got {brief(asked.tolist())} after {brief(known.tolist())}"
        raise ConfigError(f"at: ask about more labels than there are, {more}.")
    return known, values, np.broadcast_to(images, values.shape), asked


def _numbers(name: str, kind: Any, values: ArrayLike, single: Any = None) -> NDArray:
    """Checked values of an argument; of the kind `single` where one number may stand for all."""
    with explained(name, "See `palkit.labelling.extrapolation.forecast`.", ConfigError):
        try:
            array = np.asarray(values)
        except ValueError:  # lists of several lengths
            raise ValueError(f"numbers are needed, got {brief(values)}") from None
        return np.asarray(record(kind if array.ndim or not single else single, array.tolist()), dtype=float)


def _sentence(more: int, last: float, held_out: int, median: float, low: float, high: float) -> str:
    share = _share(np.asarray(last), np.asarray(held_out))
    noise = np.sqrt(share * (1 - share) / held_out)
    if low > last:
        verdict = "the curve is still rising"
    elif median - last <= noise:
        # On few images this is soon so, and the fault of the images rather than of the curve.
        verdict = f"no gain beyond the measurement's noise ({100 * noise:.1f} points on {held_out} images) is expected"
    else:
        verdict = "the curve is probably still rising"
    gain, least, most = (round(100 * (value - last), 1) + 0.0 for value in (median, low, high))  # no "-0.0"
    return (
        f"Another {more} label{'s' * (more > 1)}: {100 * median:.1f} % expected [{100 * low:.1f}, {100 * high:.1f}], "
        f"{gain:+.1f} points [{least:+.1f}, {most:+.1f}]; {verdict}."
    )


@dataclass(frozen=True)
class _Mixture:
    """Gaussians: mean (K, S), deviation (K, S), weight (S,) that sums to one."""

    mean: NDArray
    deviation: NDArray
    weight: NDArray

    def quantile(self, level: float) -> NDArray:
        """(K,) values below which `level` of the mixture lies, by bisection."""
        low = (self.mean - 8 * self.deviation).min(axis=1)
        high = (self.mean + 8 * self.deviation).max(axis=1)
        for _ in range(40):
            middle = (low + high) / 2
            below = scipy.special.ndtr((middle[:, None] - self.mean) / self.deviation) @ self.weight < level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2


def _share(accuracy: NDArray, held_out: NDArray) -> NDArray:
    """Laplace's estimate of the share of right answers: 0 or 1 on few images is not free of noise."""
    return (accuracy * held_out + 1) / (held_out + 2)


def _mixture(labels: NDArray, accuracy: NDArray, held_out: NDArray, at: NDArray) -> _Mixture:
    """What the rounds `at` will measure, given those at `labels`, for every shape and size of the walk."""
    n = np.concatenate([labels, at])
    known = len(labels)
    time = np.log(n / labels[0])
    images = np.append(held_out, np.full(len(at), held_out[-1]))
    share = _share(np.append(accuracy, np.full(len(at), accuracy[-1])), images)
    measured = UNSHARED * share * (1 - share) / images
    rise, speed = (axis.ravel() for axis in np.meshgrid(RISES, SPEEDS, indexing="ij"))
    # The same slope at the first point, and then bent in log(n) or in n: the second is almost straight at first.
    bend = np.hstack([rise * -np.expm1(-np.outer(growth, speed)) for growth in (time, n / labels[0] - 1)])
    # Log densities but for constants, of which weights that sum to 1 are free.
    prior = scipy.special.xlogy(RISE_PRIOR[0] - 1, rise) + scipy.special.xlog1py(RISE_PRIOR[1] - 1, -rise)
    prior -= (np.log(speed / SPEED_PRIOR[0]) / SPEED_PRIOR[1]) ** 2 / 2
    shape = np.concatenate([prior, prior])
    means, deviations, logs = [], [], []
    for multiple in WALKS:
        covariance = (multiple * WALK) ** 2 * np.minimum.outer(time, time) + np.diag(measured)
        root = scipy.linalg.cholesky(covariance[:known, :known], lower=True)
        # f = bend + first * (1 - bend): whitened, least squares in `first`, whose prior is flat.
        residual = scipy.linalg.solve_triangular(root, accuracy[:, None] - bend[:known], lower=True)
        slope = scipy.linalg.solve_triangular(root, 1 - bend[:known], lower=True)
        cross = scipy.linalg.solve_triangular(root, covariance[:known, known:], lower=True)  # (R, K)
        information = (slope**2).sum(axis=0)
        first = (slope * residual).sum(axis=0) / information
        left = residual - first * slope
        drift = (1 - bend[known:]) - cross.T @ slope
        means.append(bend[known:] + first * (1 - bend[known:]) + cross.T @ left)
        variance = np.diag(covariance)[known:] - (cross**2).sum(axis=0)
        deviations.append(np.sqrt(variance[:, None] + drift**2 / information))
        likelihood = -0.5 * (left**2).sum(axis=0) - 0.5 * np.log(information) - np.log(np.diag(root)).sum()
        logs.append(shape + likelihood - (np.log(multiple) / WALK_SPREAD) ** 2 / 2)
    weight = scipy.special.softmax(np.concatenate(logs))
    heavy = weight > 1e-7
    return _Mixture(
        np.concatenate(means, axis=1)[:, heavy],
        np.concatenate(deviations, axis=1)[:, heavy],
        weight[heavy] / weight[heavy].sum(),
    )
