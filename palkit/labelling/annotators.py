"""Annotators who err: how often each is right, what a disputed image is, and whose next answer is worth most.

Each annotator is right with one probability, and every mistake is as likely as every other: the one-coin model of Dawid
and Skene (Maximum likelihood estimation of observer error-rates using the EM algorithm, Applied Statistics 28, 1979),
with a prior. Their whole matrix of confusions for each annotator has more numbers than the few images with several
answers settle, and with two annotators nothing would say which of them errs: it is reported, and decides nothing.

crowd-kit 1.4.2 has the model without a prior, and would bring transformers and nltk along; CROWDLAB of cleanlab 2.9.0
weighs annotators by images with several answers, of which a session has none at first. Hence these few lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.functional import one_hot

from palkit.labelling.labels import agreed
from palkit.strategies.heads import even_rows, logistic_on_views
from palkit.strategies.kernels import Rows

RIGHT, WRONG = 4.0, 1.0  # answers of every annotator before the first that count: four of five are right
SURE = 0.8  # probability from which a class settles what annotators dispute, or overrules most of them
STEPS, CLOSE = 1000, 1e-10  # of EM
PARTS = 5  # of the labels, each predicted by a head that was fitted to the others
DECAY = 0.3  # of these heads, as docs/heads.md found best
LEAST = 1e-3  # probability of a class, whatever a head says of it


@dataclass(frozen=True)
class Answered:
    """Answers by number, one row per image and annotator.

    Attributes:
        images, annotators, labels: (M,) int64.
        counts: how many images, annotators and classes there are.
    """

    images: NDArray
    annotators: NDArray
    labels: NDArray
    counts: tuple[int, int, int]


@dataclass(frozen=True)
class Judged:
    """What answers say once the annotators have been judged by them.

    Attributes:
        probs: (N, C) of the class of each image.
        quality: (A,) probability that an answer of an annotator is right.
        confusions: (A, C, C) expected number of an annotator's answers by true class and label.
    """

    probs: NDArray
    quality: NDArray
    confusions: NDArray


def judge(answers: Answered, prior: NDArray | None = None, doubted: int | None = None) -> Judged:
    """Classes of images and quality of annotators by EM, to the most probable qualities nearby.

    Args:
        answers: of annotators who err independently of each other.
        prior: (N, C) probabilities of the classes before any answer, by a model that has not seen the labels (as in
            Raykar et al., Learning from crowds, JMLR 2010); None for all alike.
        doubted: number of an annotator who is taken to be wrong every other time at first; None for nobody.

    >>> three = Answered(np.array([0, 0, 0]), np.array([0, 1, 2]), np.array([1, 1, 0]), (1, 3, 2))
    >>> judge(three).probs.round(2)
    array([[0.1, 0.9]])
    """
    images, annotators, labels = answers.images, answers.annotators, answers.labels
    size, people, classes = answers.counts
    before = np.zeros((size, classes)) if prior is None else np.log(prior)
    given = np.bincount(annotators, minlength=people)
    quality = np.full(people, RIGHT / (RIGHT + WRONG))
    if doubted is not None:
        quality[doubted] = 0.5
    for _ in range(STEPS):
        # An image's answers all bring the factor of a mistake; that of its label brings what a right one has over it.
        odds = np.log(quality) - np.log((1 - quality) / max(classes - 1, 1))
        logits = before.copy()
        np.add.at(logits, (images, labels), odds[annotators])
        probs = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs /= probs.sum(axis=1, keepdims=True)
        last = quality
        right = np.bincount(annotators, probs[images, labels], people)
        quality = (right + RIGHT) / (given + RIGHT + WRONG)
        if np.abs(quality - last).max(initial=0) < CLOSE:
            break
    confusions = np.zeros((people, classes, classes))
    np.add.at(confusions.swapaxes(1, 2), (annotators, labels), probs[images])
    return Judged(probs, quality, confusions)


def numbered(table: pd.DataFrame, classes: Sequence[str]) -> tuple[Answered, pd.Index, pd.Index]:
    """The labels of a table of `palkit.labelling.labels.standing`, and the names of images and annotators, in order."""
    given = table[table["answer"] == "label"]
    images, ids = pd.factorize(given["id"], sort=True)
    annotators, people = pd.factorize(given["annotator"], sort=True)
    labels = pd.Categorical(given["label"], pd.Index(classes)).codes.astype(np.int64)
    return Answered(images, annotators, labels, (len(ids), len(people), len(classes))), ids, people


def consensus(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, str]:
    """Label of each image: what most annotators say, if it is also the likeliest, or else what is likely enough.

    Where all say the same, that is the label. Of two annotators alone neither is better, as far as their answers tell,
    and few answers of a third make EM side with one of them all the same, with the one it began with: a class is
    likely as far as it is so whoever is doubted at first.

    Args:
        table: of `palkit.labelling.labels.standing`.
        classes: all there are.
    """
    labels, given = agreed(table), table[table["answer"] == "label"]
    named = given.drop_duplicates(["id", "label"])["id"]
    disputed = named[named.duplicated()].unique()
    # An image with a single answer says nothing of who gave it, and two people cannot be told apart.
    shared = given[given["id"].duplicated(keep=False)]
    if not len(disputed) or shared["annotator"].nunique() < 3:
        return labels
    answers, ids, people = numbered(shared, classes)
    probs = np.min([judge(answers, doubted=number).probs for number in range(len(people))], axis=0)
    probs = probs[np.searchsorted(ids.to_numpy(), disputed)]
    settled: dict[str, str | None] = {**labels}
    for name, code, sure in zip(disputed, probs.argmax(axis=1), probs.max(axis=1) >= SURE, strict=True):
        likeliest = classes[int(code)]
        settled[name] = likeliest if sure or labels.get(name) == likeliest else None
    return {name: label for name in given["id"].unique() if (label := settled.get(name))}


def unseen_probs(features: Rows, positions: NDArray, labels: NDArray, classes: int) -> NDArray:
    """(n, C) class probabilities of images, by heads that were fitted to the labels of others.

    Args:
        features: (N, D) of the pool.
        positions: (n,) of the images in it.
        labels: (n,) classes; -1 for those that no head shall be fitted to.
        classes: C.
    """
    rows = even_rows(features, torch.from_numpy(positions))[:].cpu()
    rows = rows @ torch.linalg.qr(rows.T).Q  # the weights lie in the span of the rows
    known, targets = np.flatnonzero(labels >= 0), one_hot(torch.from_numpy(labels).clamp(min=0), classes)
    part = np.full(len(labels), PARTS)
    part[known] = np.arange(len(known)) % PARTS
    probs = np.full((len(labels), classes), 1 / classes)
    for number in np.unique(part):
        fitted, asked = known[part[known] != number], np.flatnonzero(part == number)
        if len(fitted):
            weight, bias = logistic_on_views(rows[fitted][None], None, targets[fitted], torch.ones(len(fitted)), DECAY)
            probs[asked] = (rows[asked] @ weight.T + bias).softmax(1).numpy()
    probs = probs.clip(LEAST)
    return probs / probs.sum(axis=1, keepdims=True)


def gains(probs: NDArray, given: NDArray, quality: float) -> NDArray:
    """Labels that become right, less those that become wrong, by another answer to each image.

    A new image brings 2 * `quality` - 1: it is right or wrong. Another answer that contradicts a label takes it away,
    be it right or wrong; one that agrees with either side of a dispute makes that the label.

    Args:
        probs: (N, C) of the class of each image, all that is known being considered.
        given: (N, C) whether the class has been named: one is the label, of several none is.
        quality: probability that the answer is right.
    """
    mistake = (1 - quality) / max(probs.shape[1] - 1, 1)  # of one certain other class
    # Chance of each class to be named again, and to be right then, less that of being wrong.
    named = given * (probs * quality - (1 - probs) * mistake)
    alone = given.sum(axis=1) == 1
    label = (probs * given).sum(axis=1)  # where it is alone
    return np.where(alone, (1 - label) * (1 - mistake) - label * (1 - quality), named.sum(axis=1))
