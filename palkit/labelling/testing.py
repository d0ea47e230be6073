"""How often a model is right, from few test labels: images are drawn where it is likely to be wrong, and weighed back.

Of N test images, which no model is trained on, few are labelled. Each is drawn with a chance that grows with the
deviation of its error, sqrt(e (1 - e)), where e is the probability that the model is wrong there; some of the chance
is spread evenly, so that a model that is sure of its mistakes is found out. The expected errors of all N images are
known without labels: a draw corrects them, by its error minus the expected one, divided by its chance. Whatever the
model, the estimate has no bias; the better the model knows where it is wrong, the fewer labels an interval needs.

Sources: Farquhar, Gal and Rainforth, On Statistical Bias in Active Learning: How and When to Fix It, ICLR 2021 (draws
without replacement, their weights); Kossen, Farquhar, Gal and Rainforth, Active Testing: Sample-Efficient Model
Evaluation, ICML 2021; Angelopoulos et al., Prediction-Powered Inference, Science 2023 (expected errors as a control).
"""

import math
from dataclasses import dataclass, field

import numpy as np
import scipy
import torch
from numpy.typing import ArrayLike, NDArray

from palkit.errors import ConfigError
from palkit.strategies.ties import mixed

EVEN = 0.3  # share of the chances that is the same for all images
LEAST = 0.02  # no error is less likely than this, or more likely than 1 minus this
LUCK = 0.5  # no variance is believed that is smaller than this share of that of even draws
BLOCK = 25  # draws between two recalibrations
TRUST = (2.0, 0.25)  # in a model's own confidence: precision of the slope 1, and of the intercept 0


@dataclass(frozen=True)
class Draws:
    """Test images in the order in which they were drawn.

    Attributes:
        positions: (M,) of the images.
        chances: (M,) of each, among those that were left.
        least: (M,) chance of the least likely image then.
    """

    positions: NDArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    chances: NDArray = field(default_factory=lambda: np.empty(0))
    least: NDArray = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.positions)

    def first(self, number: int) -> "Draws":
        """The first so many of them: those that have a label."""
        return Draws(self.positions[:number], self.chances[:number], self.least[:number])


def expected_errors(confidence: ArrayLike, positions: ArrayLike = (), wrong: ArrayLike = ()) -> NDArray:
    """(N,) probability that each prediction is wrong: 1 minus its confidence, recalibrated by what labels say of some.

    Args:
        confidence: (N,) probability of the predicted class; NaN for an image that is gone: that error is 1.
        positions: (M,) of labelled images.
        wrong: (M,) whether the prediction was.

    Source: Platt, Probabilistic Outputs for Support Vector Machines, 1999, with a prior at the identity.

    >>> expected_errors([0.9, 0.6]).round(2).tolist()
    [0.1, 0.4]
    """
    odds = scipy.special.logit(np.clip(1 - np.asarray(confidence, dtype=float), LEAST, 1 - LEAST))
    gone, known = np.isnan(odds), odds[np.asarray(positions, dtype=np.int64)]
    known, truth = known[~np.isnan(known)], np.asarray(wrong, dtype=float)[~np.isnan(known)]
    slope = np.array([1.0, 0.0])
    if len(known):
        prior, trust, x = slope, np.array(TRUST), np.column_stack([known, np.ones_like(known)])

        def loss(guess: NDArray) -> tuple[float, NDArray]:
            score = x @ guess
            value = np.logaddexp(0, score).sum() - truth @ score + trust @ (guess - prior) ** 2 / 2
            return value, (scipy.special.expit(score) - truth) @ x + trust * (guess - prior)

        slope = scipy.optimize.minimize(loss, prior, jac=True, method="BFGS").x
    return np.where(gone, 1.0, np.clip(scipy.special.expit(slope[0] * odds + slope[1]), LEAST, 1 - LEAST))


def draw_tests(
    confidence: ArrayLike, before: Draws, wrong: ArrayLike, number: int, keys: torch.Tensor, seed: int
) -> Draws:
    """What was drawn before, and more.

    Args:
        confidence: (N,) probability of the predicted class; NaN for an image that is gone: it is not drawn.
        before: earlier draws, by this model or another.
        wrong: (L,) whether the prediction of each image of the first L of them is; of the others it is not known yet.
        number: of images to draw.
        keys: (N,) int64 of the images' names, see `palkit.strategies.ties`: their order of storage plays no part.
        seed: of the draws.

    Raises:
        ConfigError: fewer images are left.

    >>> keys = torch.arange(5)
    >>> draws = draw_tests([0.9, 0.6, 0.8, 0.5, 0.7], Draws(), [], 2, keys, seed=0)
    >>> len(draws), bool((draws.chances >= draws.least).all())
    (2, True)
    """
    labelled = len(np.asarray(wrong))
    error = expected_errors(confidence, before.positions[:labelled], wrong)
    weight, left = np.sqrt(error * (1 - error)), ~np.isnan(np.asarray(confidence, dtype=float))
    left[before.positions] = False
    if not number:
        return before
    if number > left.sum():
        raise ConfigError(f"{number} test images are to be drawn, and {left.sum()} are left. Draw fewer.")
    found: list[tuple[int, float, float]] = []
    for place in range(len(before), len(before) + number):
        rows = np.flatnonzero(left)
        chance = (1 - EVEN) * weight[rows] / weight[rows].sum() + EVEN / len(rows)
        # The first of exponential clocks that run at these rates.
        lots = (mixed(mixed(keys[rows], seed), place).numpy().view(np.uint64) >> np.uint64(11)) + 0.5
        first = int((-np.log(lots / 2**53) / chance).argmin())
        found.append((int(rows[first]), chance[first], chance.min()))
        left[rows[first]] = False
    positions, chances, least = (np.array(values) for values in zip(*found, strict=True))
    return Draws(
        np.concatenate([before.positions, positions]),
        np.concatenate([before.chances, chances]),
        np.concatenate([before.least, least]),
    )


@dataclass(frozen=True)
class Terms:
    """One unbiased term of the error for each test label, given all before it.

    Attributes:
        values: (M,) each of which has the error over all N images as its mean.
        low: (M,) what each is at least, known before it was drawn.
        high: (M,) what each is at most.
        images: N.
        most: error if all images without a label were predicted wrong.
    """

    values: NDArray
    low: NDArray
    high: NDArray
    images: int
    most: float

    def weights(self) -> NDArray:
        """(M,) weights with which draws of equal chances give the plain mean (Farquhar et al. 2021, R_LURE)."""
        number, place = len(self.values), np.arange(1, len(self.values) + 1)
        if number == self.images:
            return (place == number).astype(float)
        scale = self.images * (self.images - number) / number
        return scale / ((self.images - place) * (self.images - place + 1.0))


def error_terms(confidence: ArrayLike, draws: Draws, wrong: ArrayLike) -> Terms:
    """Terms of the error of a model, whichever model the images were drawn for.

    An image that is gone is an error that was expected, so that the chances of earlier draws, which it was among, hold.

    Args:
        confidence: (N,) probability of the predicted class; NaN for an image that is gone.
        draws: M images.
        wrong: (M,) whether the prediction was wrong; of an image that is gone it was.
    """
    confidence, wrong = np.asarray(confidence, dtype=float), np.asarray(wrong, dtype=float)
    images, parts, there = len(confidence), [], ~np.isnan(confidence)
    for start in range(0, len(wrong), BLOCK):
        block = slice(start, min(start + BLOCK, len(wrong)))
        error = expected_errors(confidence, draws.positions[:start], wrong[:start])
        surprise = wrong[: block.stop] - error[draws.positions[: block.stop]]
        base = error.sum() + np.concatenate([[0.0], np.cumsum(surprise)])[start:-1]
        values, least = surprise[start:] / draws.chances[block], draws.least[block]
        ends = error[there].max(initial=0), 1 - error[there].min(initial=1)
        parts.append(np.stack([base + values, base - ends[0] / least, base + ends[1] / least]) / images)
    values, low, high = np.concatenate(parts, axis=1) if parts else np.empty((3, 0))
    return Terms(values, low, high, images, float(wrong.sum() + images - len(wrong)) / images)


@dataclass(frozen=True)
class Measured:
    """A share of the N images, from M labels.

    Attributes:
        value: estimate; NaN without labels.
        low: lower end of the interval.
        high: upper end.
        labels: M.
    """

    value: float
    low: float
    high: float
    labels: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] by {self.labels} labels"


def measured_accuracy(confidence: ArrayLike, draws: Draws, wrong: ArrayLike, level: float = 0.95) -> Measured:
    """Accuracy over all images that are not gone.

    Args:
        confidence: (N,) probability of the predicted class; NaN for an image that is gone.
        draws: M images.
        wrong: (M,) whether the prediction was wrong; of an image that is gone it was.
        level: probability that the interval is to hold, at one look. For many looks see
            `palkit.labelling.stopping.accuracy_at_least`.

    >>> confidence = np.linspace(0.5, 1, 200)
    >>> draws = draw_tests(confidence, Draws(), [], 50, torch.arange(200), seed=0)
    >>> print(measured_accuracy(confidence, draws, confidence[draws.positions] < 0.6))
    79.4 % [71.5, 85.5] by 50 labels
    """
    terms = error_terms(confidence, draws, wrong)
    number = len(terms.values)
    if not number:
        return Measured(math.nan, 0.0, 1.0, 0)
    known = np.asarray(confidence, dtype=float)
    if np.isin(np.flatnonzero(~np.isnan(known)), draws.positions[:number]).all():  # then terms.most is the error
        accuracy = of_those_there(1 - terms.most, known)
        return Measured(accuracy, accuracy, accuracy, number)
    weights = terms.weights()
    error = float(weights @ terms.values)
    squares = float((weights**2) @ (terms.values - error) ** 2)
    measured = _share(error, squares, number, 1 - number / terms.images, level)
    value, low, high = (of_those_there(1 - one, confidence) for one in (measured.value, measured.high, measured.low))
    return Measured(value, low, high, number)


def of_those_there(accuracy: float, confidence: ArrayLike) -> float:
    """Accuracy over the images that are not gone, by that over all N, of which those that are gone are wrong.

    Args:
        accuracy: over all.
        confidence: (N,) of the predictions; NaN for an image that is gone.

    >>> of_those_there(0.6, [0.9, 0.8, 0.7, 0.9, np.nan]).__round__(3)
    0.75
    """
    there = np.isfinite(np.asarray(confidence, dtype=float)).sum()
    return float(min(1.0, accuracy * np.size(confidence) / there)) if there else math.nan


def _share(value: float, squares: float, number: int, left: float, level: float) -> Measured:
    """A share with Wilson's interval for as many labels as would have that variance if they were drawn evenly.

    Args:
        value: estimate.
        squares: sum of its squared weighted residuals.
        number: of labels.
        left: share of the images that were not drawn.
        level: of the interval.

    Source: Korn and Graubard, Confidence Intervals for Proportions with Small Expected Number of Positive Counts
    Estimated from Survey Data, Survey Methodology 1998, with Wilson's in place of Clopper's and Pearson's interval.
    """
    value = min(max(value, 0.0), 1.0)
    if left <= 0:
        return Measured(value, value, value, number)
    if number < 2:
        return Measured(value, 0.0, 1.0, number)
    towards_half = (value * number + 1) / (number + 2)  # shares of 0 and 1 are not free of noise
    even = towards_half * (1 - towards_half) * left / number
    effective = towards_half * (1 - towards_half) / max(squares * number / (number - 1), LUCK * even)
    reach = scipy.special.stdtrit(number - 1, (1 + level) / 2) ** 2 / effective
    half = math.sqrt(reach * value * (1 - value) + reach**2 / 4)
    low, high = ((value + reach / 2 + side * half) / (1 + reach) for side in (-1, 1))
    return Measured(value, low, high, number)


def _ratio(part: NDArray, weights: NDArray, images: int, level: float) -> Measured:
    """Weighted share of true in `part`, with an interval by linearisation."""
    total = weights.sum()
    value = float(weights @ part / total)
    squares = float((weights**2) @ (part - value) ** 2) / total**2
    left = 0.0 if len(part) == images else 1 - len(part) / (images + 1)
    return _share(value, squares, len(part), left, level)


def weights_of(draws: Draws, images: int) -> NDArray:
    """(M,) weights of the labels whose mean has no bias, 1 on average (Farquhar et al. 2021, equation 7).

    Args:
        draws: M images.
        images: N.
    """
    number, place = len(draws), np.arange(1, len(draws) + 1)
    if number == images:
        return np.ones(number)
    return 1 + (images - number) / (images - place) * (1 / ((images - place + 1) * draws.chances) - 1)


def measured_recalls(
    draws: Draws, images: int, labels: ArrayLike, predicted: ArrayLike, classes: int, level: float = 0.95
) -> list[Measured]:
    """Share of the images of each class that are predicted right.

    Args:
        draws: M images or more.
        images: N.
        labels: (M,) true classes, from 0.
        predicted: (M,) predicted classes.
        classes: C.
        level: of each interval.
    """
    truth, right = np.asarray(labels), np.asarray(labels) == np.asarray(predicted)
    weights, found = weights_of(draws.first(len(truth)), images), []
    for number in range(classes):
        of_class = truth == number
        found.append(
            _ratio(right[of_class], weights[of_class], of_class.sum() if len(truth) == images else images, level)
            if of_class.any()
            else Measured(math.nan, 0.0, 1.0, 0)
        )
    return found


def measured_calibration(
    confidence: ArrayLike, draws: Draws, wrong: ArrayLike, bins: int = 5, level: float = 0.95
) -> Measured:
    """Expected calibration error over all N images, in bins of as many images each.

    The confidence of every bin is known; its accuracy is measured, with intervals that hold for all bins together. What
    these leave possible is the interval. The estimate is the mean of the gaps of the bins that have labels, as they
    were measured, which noise makes too large: with few labels the lower end says more.

    Args:
        confidence: (N,) probability of the predicted class; NaN for an image that is gone.
        draws: M images or more.
        wrong: (M,) whether the prediction was wrong.
        bins: how many, at most.
        level: of the interval.
    """
    every, wrong = np.asarray(confidence, dtype=float), np.asarray(wrong, dtype=bool)
    draws, there = draws.first(len(wrong)), np.flatnonzero(~np.isnan(every))
    bins, weights = min(bins, len(there)), weights_of(draws, len(every))
    rank = np.full(len(every), -1)
    rank[there[every[there].argsort(kind="stable")]] = np.arange(len(there)) * bins // max(len(there), 1)
    value = low = high = measured = 0.0
    for number in range(bins):
        images, drawn = rank == number, rank[draws.positions] == number
        share, trust = images.sum() / len(there), every[images].mean()
        if not drawn.any():
            high += share * max(trust, 1 - trust)
            continue
        ends = _ratio(~wrong[drawn], weights[drawn], int(images.sum()), 1 - (1 - level) / bins)
        value, measured = value + share * abs(ends.value - trust), measured + share
        low += share * max(ends.low - trust, trust - ends.high, 0)
        high += share * max(ends.high - trust, trust - ends.low)
    return Measured(value / measured if measured else math.nan, low, high if bins else 1.0, len(wrong))
