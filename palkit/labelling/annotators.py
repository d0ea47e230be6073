"""Annotators who err: how often each is right, what a disputed image is, and whose next answer is worth most.

Each annotator is right with one probability, and every mistake is as likely as every other: the one-coin model of Dawid
and Skene (Maximum likelihood estimation of observer error-rates using the EM algorithm, Applied Statistics 28, 1979),
with a prior. Their whole matrix of confusions for each annotator has more numbers than the few images with several
answers settle, and with two annotators nothing would say which of them errs: it is reported, and decides nothing.

crowd-kit 1.4.2 has the model without a prior, and would bring transformers and nltk along; CROWDLAB of cleanlab 2.9.0
weighs annotators by images with several answers, of which a session has none at first. Hence these few lines.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.functional import one_hot

from palkit.labelling.labels import agreed
from palkit.strategies.calibration import softening
from palkit.strategies.heads import even_rows, logistic_on_views
from palkit.strategies.kernels import Rows, chunks

RIGHT, WRONG = 4.0, 1.0  # answers of every annotator before the first that count: four of five are right
SURE = 0.8  # probability from which a class settles what annotators dispute, or overrules most of them
STEPS, CLOSE = 1000, 1e-10  # of classes and qualities in turn
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
    """Classes of images and quality of annotators, each of which follows from the other.

    What an answer counts for follows from the other images of its annotator: this is CVB0 (Asuncion et al., On
    Smoothing and Inference for Topic Models, UAI 2009). In EM answers vouch for themselves, and where they are few it
    is too sure: on 514 simulated crowds of three it was 0.033 off the exact posterior of disputed images on average,
    and this is 0.018 off (a trial that was not kept). It is still too sure: of what it settled, at 91 % on average,
    85 % was right.

    Args:
        answers: of annotators who err independently of each other.
        prior: (N, C) probabilities of the classes before any answer, by a model that has not seen the labels (as in
            Raykar et al., Learning from crowds, JMLR 2010); None for all alike.
        doubted: number of an annotator who is taken to be wrong every other time at first; None for nobody.

    >>> three = Answered(np.array([0, 0, 0]), np.array([0, 1, 2]), np.array([1, 1, 0]), (1, 3, 2))
    >>> judge(three).probs.round(2)
    array([[0.2, 0.8]])
    """
    images, annotators, labels = answers.images, answers.annotators, answers.labels
    size, people, classes = answers.counts
    before = np.zeros((size, classes)) if prior is None else np.log(prior)
    given = np.bincount(annotators, minlength=people)
    quality = np.full(people, RIGHT / (RIGHT + WRONG))
    if doubted is not None:
        quality[doubted] = 0.5
    elsewhere, probs = quality[annotators], np.zeros((size, classes))
    for _ in range(STEPS):
        # An image's answers all bring the factor of a mistake; that of its label brings what a right one has over it.
        last, logits = probs, before.copy()
        np.add.at(logits, (images, labels), _odds(elsewhere, classes))
        probs = torch.from_numpy(logits).softmax(1).numpy()
        right = np.bincount(annotators, probs[images, labels], people) + RIGHT
        elsewhere = (right[annotators] - probs[images, labels]) / (given[annotators] - 1 + RIGHT + WRONG)
        if np.abs(probs - last).max(initial=0) < CLOSE:
            break
    confusions = np.zeros((people, classes, classes))
    np.add.at(confusions.swapaxes(1, 2), (annotators, labels), probs[images])
    return Judged(probs, right / (given + RIGHT + WRONG), confusions)


def _odds(quality: NDArray, classes: int) -> NDArray:
    """Logits that answers of this quality bring to the classes that they name."""
    return np.log(quality) - np.log((1 - quality) / max(classes - 1, 1))


def numbered(
    table: pd.DataFrame, people: Iterable[str] = (), classes: Iterable[str] = ()
) -> tuple[Answered, list[str], list[str], list[str]]:
    """The labels of a table of `palkit.labelling.labels.standing`, and the names of images, annotators and classes.

    A class that nobody has named is none: the more there were, the less would two mistakes be expected to agree.

    Args:
        table: which.
        people: annotators beside those in it.
        classes: beside those in it.
    """
    given = table[table["answer"] == "label"]
    ids, who = sorted({*given["id"]}), sorted({*given["annotator"], *people})
    said = sorted({*given["label"], *classes})
    images, annotators, labels = (
        pd.Categorical(given[column], names).codes.astype(np.int64)
        for column, names in (("id", ids), ("annotator", who), ("label", said))
    )
    return Answered(images, annotators, labels, (len(ids), len(who), max(len(said), 1))), ids, who, said


def shared(table: pd.DataFrame) -> pd.DataFrame:
    """The labels of images that have several: one alone says nothing of who gave it."""
    given = table[table["answer"] == "label"]
    return given[given["id"].duplicated(keep=False)]


def consensus(table: pd.DataFrame) -> dict[str, str]:
    """Label of each image: what most annotators say, if it is also the likeliest, or else what is likely enough.

    Where all say the same, that is the label. Of two annotators alone neither is better, as far as their answers tell,
    and few answers of a third side with one of them all the same, the one that was trusted at first: a class is
    likely as far as it is so whoever is doubted at first.

    Args:
        table: of `palkit.labelling.labels.standing`.
    """
    given = table[table["answer"] == "label"]
    if len(given.drop_duplicates(["id", "label"])) == given["id"].nunique():
        return agreed(table)
    answers, ids, _, classes = numbered(table)
    found = dict(zip(ids, settled(answers)[:, 0].tolist(), strict=True))
    return {name: classes[found[name]] for name in given["id"].unique() if found[name] >= 0}


def settled(answers: Answered, by: int | None = None) -> NDArray:
    """Class that is the label of each image by `consensus`, as it is or after one more answer; -1 for none.

    One answer is taken not to change what is thought of the annotators.

    Args:
        answers: all.
        by: number of the annotator who gives one more, in place of what they said of that image before; None for
            nobody.

    Returns:
        (N, 1), or (N, C) after each answer there could be.
    """
    (size, people, classes), images, labels = answers.counts, answers.images, answers.labels
    given = np.zeros((size, people), dtype=bool)
    given[images, answers.annotators] = True
    several, own = given.sum(axis=1)[images] > 1, answers.annotators == by
    votes = np.zeros((size, classes))
    np.add.at(votes, (images[~own], labels[~own]), 1)
    alone, taken = ~several & ~own, several & own
    others = Answered(images[several], answers.annotators[several], labels[several], answers.counts)
    known = np.isin(np.arange(people), others.annotators)  # by images that they share
    three = (given | known | (np.arange(people) == by)).sum(axis=1) > 2  # two cannot be told apart: votes count
    views = []
    for number in np.flatnonzero(known & three.any()).tolist():
        judged = judge(others, doubted=number)
        logits = np.log(judged.probs)
        np.add.at(logits, (images[alone], labels[alone]), _odds(judged.quality[answers.annotators[alone]], classes))
        if taken.any():
            total = taken.sum() + RIGHT + WRONG
            elsewhere = judged.quality[by] * total - judged.probs[images[taken], labels[taken]]
            np.subtract.at(logits, (images[taken], labels[taken]), _odds(elsewhere / (total - 1), classes))
        views.append((logits, 0.0 if by is None else float(_odds(judged.quality[[by]], classes)[0])))
    more = np.zeros((1, classes)) if by is None else np.eye(classes)
    found = np.empty((size, len(more)), dtype=np.int64)
    for part in chunks(size, more.size):
        found[part] = _label(votes[part], three[part], [(logits[part], odds) for logits, odds in views], more)
    return found


def _label(votes: NDArray, three: NDArray, views: list[tuple[NDArray, float]], more: NDArray) -> NDArray:
    """(n, A) class that is the label of some images after each answer there could be, -1 for none.

    Args:
        votes: (n, C) annotators by image and class.
        three: (n,) whether there is more than two people's word on an image.
        views: (n, C) logits of the classes, and what an answer adds to that of its own, whoever is doubted.
        more: (A, C) votes of each answer.
    """
    votes = votes[:, None] + more  # (n, A, C)
    likely = votes / votes.sum(axis=2, keepdims=True)
    if views:
        disputed = three[:, None] & ((votes > 0).sum(axis=2) > 1)
        probs = [torch.from_numpy(logits[:, None] + odds * more).softmax(2).numpy() for logits, odds in views]
        likely = np.where(disputed[:, :, None], np.min(probs, axis=0), likely)
    first = votes == votes.max(axis=2, keepdims=True)
    most = np.where(first.sum(axis=2) == 1, votes.argmax(axis=2), -1)
    likeliest = likely.argmax(axis=2)
    return np.where((most == likeliest) | (likely.max(axis=2) >= SURE), likeliest, -1)


def unseen_probs(features: Rows, positions: NDArray, labels: NDArray, keys: NDArray, classes: int) -> NDArray:
    """(n, C) class probabilities of images, by heads that were fitted to the labels of others.

    They are softened as far as the labels compel, for a head that is too sure doubts what is right.

    Args:
        features: (N, D) of the pool.
        positions: (n,) of the images in it.
        labels: (n,) classes; -1 for those that no head shall be fitted to.
        keys: (n,) of the images, whose order says what is fitted together: it must not follow their names, which may
            follow the classes.
        classes: C.
    """
    rows = even_rows(features, torch.from_numpy(positions))[:].cpu()
    rows = rows @ torch.linalg.qr(rows.T).Q  # the weights lie in the span of the rows
    known, given = np.flatnonzero(labels >= 0), torch.from_numpy(labels)
    targets, part = one_hot(given.clamp(min=0), classes), np.full(len(labels), PARTS)
    part[known[keys[known].argsort()]] = np.arange(len(known)) % PARTS
    logits = torch.zeros(targets.shape, dtype=torch.float64)
    for number in np.unique(part):
        fitted, asked = known[part[known] != number], np.flatnonzero(part == number)
        if len(fitted):
            weight, bias = logistic_on_views(rows[fitted][None], None, targets[fitted], torch.ones(len(fitted)), DECAY)
            logits[asked] = rows[asked] @ weight.T + bias
    temperature = softening(logits[known], given[known]) if len(known) else 1.0
    probs = (logits / temperature).softmax(1).numpy().clip(LEAST)
    return probs / probs.sum(axis=1, keepdims=True)


def gains(probs: NDArray, before: NDArray, after: NDArray, quality: float) -> NDArray:
    """(N,) labels that become right, less those that become wrong, by another answer to each image.

    A new image brings 2 * `quality` - 1: it is right or wrong. Another answer may take a label away, be it right or
    wrong, and settle what is disputed.

    Args:
        probs: (N, C) of the class of each image, all that is known being considered.
        before: (N, 1) class that is its label, -1 for none; of `settled`.
        after: (N, C) the same after each answer there could be.
        quality: probability that the answer is right.
    """
    if probs.shape[1] == 1:
        return np.zeros(len(probs))  # nobody can be wrong
    mistake = (1 - quality) / (probs.shape[1] - 1)  # of one certain other class
    given = probs * quality + (1 - probs) * mistake  # (N, C) chance of each answer
    right = np.take_along_axis(probs, after.clip(0), axis=1)  # that its label is right, before it is given
    right *= np.where(after == np.arange(probs.shape[1]), quality, mistake)
    gained = np.where(after < 0, 0, 2 * right - given).sum(axis=1)
    return gained - np.where(before < 0, 0, 2 * np.take_along_axis(probs, before.clip(0), axis=1) - 1)[:, 0]
