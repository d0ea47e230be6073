"""Each strategy against a slow, obvious numpy version of its definition: the same picks in the same order.

Where random numbers are drawn, or rows tie, the strategy itself is called, with rows in their stored order; else
`select`, which shows them to it in an order of its own.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_strategies import generator, make_labelled, make_pool
from torch import Tensor

from palkit.errors import ConfigError
from palkit.strategies import STRATEGIES, oracle, select
from palkit.strategies.balance import pcb
from palkit.strategies.scores import LabelledSet, PoolScores

Array = NDArray[Any]
SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(3, 6))]


def problem(seed: int) -> tuple[PoolScores, LabelledSet, Array, Array, list[int], list[int]]:
    """A pool without ties: tensors, float64 features and probs, unlabelled and labelled positions."""
    n, d, c = [(60, 5, 4), (90, 17, 3), (45, 2, 9)][seed % 3]
    pool, labelled = make_pool(n, d, c, seed), make_labelled(n, 8, c, seed)
    features, probs = pool.features.double().numpy(), pool.probs.double().numpy()
    return pool, labelled, features, probs, labelled.unlabelled(n).tolist(), labelled.positions.tolist()


def direct(
    name: str, pool: PoolScores, labelled: LabelledSet, batch: int, rng: torch.Generator, **options: Any
) -> list[int]:
    """Picks of the strategy itself, which sees rows and classes as they are stored."""
    return STRATEGIES[name].function(pool, labelled, batch, rng, **options).tolist()


def largest(score: dict[int, float], count: int) -> list[int]:
    return sorted(score, key=lambda i: (-score[i], i))[:count]


@pytest.mark.parametrize("seed", SEEDS)
def test_uncertainty(seed: int) -> None:
    pool, labelled, _, probs, free, _ = problem(seed)
    expected = {
        "least_confidence": {i: 1 - max(probs[i]) for i in free},
        "margin": {i: sorted(probs[i])[-2] - sorted(probs[i])[-1] for i in free},
        "entropy": {i: -sum(p * np.log(p) for p in probs[i]) for i in free},
    }
    for name, score in expected.items():
        assert select(name, pool, labelled, 9, generator()).tolist() == largest(score, 9), name


def test_random_is_uniform() -> None:
    pool, labelled = make_pool(12, 2, 2, 0), make_labelled(12, 2, 2, 0)
    rng = generator()
    counts = np.zeros(12)
    for _ in range(2000):
        counts[select("random", pool, labelled, 3, rng).numpy()] += 1
    free = labelled.unlabelled(12).numpy()
    assert counts.sum() == counts[free].sum() == 6000
    assert np.abs(counts[free] - 600).max() < 5 * np.sqrt(600 * 0.7)


@pytest.mark.parametrize("seed", SEEDS)
def test_coreset(seed: int) -> None:
    pool, labelled, features, _, free, known = problem(seed)
    centres = list(known)
    for _ in range(15):
        gap = {i: min(np.linalg.norm(features[i] - features[c]) for c in centres) for i in free}
        centres += largest({i: g for i, g in gap.items() if i not in centres}, 1)
    assert select("coreset", pool, labelled, 15, generator()).tolist() == centres[len(known) :]


@pytest.mark.parametrize("seed", SEEDS)
def test_coreset_without_labels_starts_in_the_middle(seed: int) -> None:
    pool, _, features, _, _, _ = problem(seed)
    everything = range(len(pool))
    centres = largest({i: -np.linalg.norm(features[i] - features.mean(0)) for i in everything}, 1)
    for _ in range(9):
        gap = {i: min(np.linalg.norm(features[i] - features[c]) for c in centres) for i in everything}
        centres += largest(gap, 1)
    empty = make_labelled(len(pool), 0, 1, 0)
    assert select("coreset", pool, empty, 10, generator()).tolist() == centres


@pytest.mark.parametrize("seed", SEEDS)
def test_featdist_nearest(seed: int) -> None:
    pool, labelled, features, _, free, known = problem(seed)
    gap = {i: min(np.linalg.norm(features[i] - features[c]) for c in known) for i in free}
    assert select("featdist", pool, labelled, 15, generator()).tolist() == largest(gap, 15)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("space", ["logits", "features"])
def test_featdist_class_mean(seed: int, share: float, space: str) -> None:
    """Of logits that sum to 0 the softmax is given, and the distances are those of the logits."""
    pool, labelled, features, probs, free, known = problem(seed)
    logits = np.log(probs) - np.log(probs).mean(1, keepdims=True)
    x = logits if space == "logits" else features
    labels = labelled.labels.numpy()
    gap, unseen = {}, set()
    for i in free:
        same = [x[p] for p, label in zip(known, labels, strict=True) if label == probs[i].argmax()]
        if same:
            gap[i] = float(np.linalg.norm(x[i] - np.mean(same, axis=0)))
        else:
            unseen.add(i)
    batch = 12
    options: dict[str, Any] = {"reference": "class_mean", "unseen_share": share}
    if space == "features":
        options["space"] = space
    picks = select("featdist", pool, labelled, batch, generator(), **options).tolist()
    quota = min(len(unseen), max(round(share * batch), batch - len(gap)))
    assert picks[: batch - quota] == largest(gap, batch - quota)
    assert len(picks) == batch
    assert set(picks[batch - quota :]) <= unseen


def test_featdist_class_mean_tops_up_with_unseen_rows() -> None:
    """More is wanted than there are rows with a distance: the rest is unseen, not an error."""
    features = torch.arange(8.0)[:, None]
    probs = torch.eye(2)[torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])]
    labelled = LabelledSet(torch.tensor([0]), torch.tensor([0]))
    options: dict[str, Any] = {"reference": "class_mean", "space": "features"}
    picks = select("featdist", PoolScores(features, probs), labelled, 4, generator(), **options)
    assert picks[:2].tolist() == [2, 1]
    assert set(picks[2:].tolist()) <= {3, 4, 5, 6, 7}


def gradient_embeddings(features: Array, probs: Array) -> Array:
    """(N, C * D) what palkit never forms."""
    residual = probs - np.eye(probs.shape[1])[probs.argmax(1)]
    return np.einsum("nc,nd->ncd", residual, features).reshape(len(probs), -1)


@pytest.mark.parametrize("seed", SEEDS)
def test_badge(seed: int) -> None:
    """k-means++ over explicit embeddings with the same uniform numbers."""
    pool, labelled, features, probs, free, _ = problem(seed)
    embedding = gradient_embeddings(features, probs)
    rng = generator(seed)
    picks = largest({i: float(np.linalg.norm(embedding[i])) for i in free}, 1)
    for _ in range(14):
        weight = np.zeros(len(pool))
        for i in set(free) - set(picks):
            weight[i] = min(np.sum((embedding[i] - embedding[c]) ** 2) for c in picks)
        aim = torch.rand(1, generator=rng, dtype=torch.float64).item() * weight.sum()
        picks.append(int(np.searchsorted(weight.cumsum(), aim, side="right")))
    assert direct("badge", pool, labelled, 15, generator(seed)) == picks


def test_badge_draws_by_squared_distance() -> None:
    """Frequencies of the second pick over many seeds."""
    pool, labelled, features, probs, free, _ = problem(0)
    embedding = gradient_embeddings(features, probs)
    first = largest({i: float(np.linalg.norm(embedding[i])) for i in free}, 1)[0]
    weight = {i: np.sum((embedding[i] - embedding[first]) ** 2) for i in free if i != first}
    rng, runs = generator(), 600
    seconds = [int(select("badge", pool, labelled, 2, rng)[1]) for _ in range(runs)]
    total = sum(weight.values())
    chi2 = sum((seconds.count(i) - runs * w / total) ** 2 / (runs * w / total) for i, w in weight.items())
    assert chi2 < len(weight) + 4 * np.sqrt(2 * len(weight))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["entropy", "margin", "coreset", "featdist"])
def test_pcb(name: str, seed: int) -> None:
    """Filled by hand: each pick is of the scarcest predicted class that has a candidate left, if the scarcest has."""
    pool, labelled, _, probs, free, _ = problem(seed)
    wanted = max(10, int(np.ceil(0.5 * len(free))))
    proposed = set(select(name, pool, labelled, wanted, generator()).tolist())
    counts = np.bincount(labelled.labels.numpy(), minlength=probs.shape[1])
    picks = select(name, pool, labelled, 10, generator(), balance="pcb", gamma=0.5).tolist()
    for number, pick in enumerate(picks):
        left = {int(probs[i].argmax()) for i in proposed - set(picks[:number])}
        scarcest = set(np.flatnonzero(counts == counts.min()).tolist())
        assert pick in proposed
        assert int(probs[pick].argmax()) in scarcest or scarcest - left
        counts[probs[pick].argmax()] += 1


def test_pcb_draws_within_the_class() -> None:
    """Each of the class's candidates is as likely as the best-ranked one, and none beyond gamma * U is drawn."""
    classes = torch.tensor([0] * 60 + [1] * 20)
    pool = PoolScores(torch.arange(80.0)[:, None], 0.7 * torch.eye(2)[classes] + 0.15)
    labelled = LabelledSet(torch.tensor([0]), torch.tensor([0]))
    first = torch.cat(
        [pcb(lambda n: torch.arange(79, 79 - n, -1), pool, labelled, 1, generator(s), 0.2) for s in range(1600)]
    )
    counts = torch.bincount(first, minlength=80)[64:]  # of 79 unlabelled rows 16 are candidates, all of class 1
    assert counts.sum() == 1600
    assert (counts - 100).abs().max() < 5 * np.sqrt(100)


def test_pcb_evens_out_an_imbalanced_pool() -> None:
    classes = torch.tensor([0] * 90 + [1] * 20 + [2] * 20)
    probs = 0.7 * torch.eye(3)[classes] + 0.1
    pool = PoolScores(torch.randn(130, 3, generator=generator()), probs)
    labelled = LabelledSet(torch.tensor([0, 1, 100]), torch.tensor([0, 0, 1]))
    picks = select("random", pool, labelled, 9, generator(), balance="pcb", gamma=1.0)
    assert torch.bincount(classes[picks]).tolist() == [2, 3, 4]


def test_pcb_falls_back_to_random_candidates() -> None:
    """Class 2 is never predicted and always the scarcest: any candidate will do."""
    classes = torch.tensor([0, 1] * 20)
    pool = PoolScores(torch.randn(40, 3, generator=generator()), 0.7 * torch.eye(3)[classes] + 0.1)
    labelled = LabelledSet(torch.tensor([0, 1]), torch.tensor([0, 1]))
    candidates = set(select("coreset", pool, labelled, 8, generator()).tolist())
    seen = {
        tuple(select("coreset", pool, labelled, 3, generator(s), balance="pcb", gamma=0.2).tolist()) for s in range(40)
    }
    assert {pick for picks in seen for pick in picks} == candidates


def test_ties_go_to_the_first_row_that_a_strategy_sees() -> None:
    pool = PoolScores(torch.ones(20, 3), torch.full((20, 2), 0.5))
    labelled = LabelledSet(torch.tensor([1, 4]), torch.tensor([0, 1]))
    for name in ("least_confidence", "margin", "entropy", "coreset", "featdist"):
        assert direct(name, pool, labelled, 4, generator()) == [0, 2, 3, 5], name


@pytest.mark.parametrize("seed", range(3))
def test_best_batch_oracle(seed: int) -> None:
    """The proposal after which scikit-learn's head, of the same penalty, finds most of the classes' rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score

    n, classes = 120, 3
    truth = torch.arange(n) % classes
    centres = torch.randn(classes, 6, generator=generator(seed))
    features = centres[truth] + 0.7 * torch.randn(n, 6, generator=generator(seed + 1))
    pool = PoolScores(features, make_pool(n, 6, classes, seed).probs)
    labelled = LabelledSet(torch.arange(4), truth[:4])
    x = np.column_stack([(features / features.norm(dim=1, keepdim=True)).double().numpy() * 6**0.5, np.ones(n)])

    def found(batch: list[int]) -> float:
        rows = [*range(4), *batch]
        model = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-9, max_iter=10_000).fit(x[rows], truth[rows])
        return float(recall_score(truth, model.predict(x), average="macro"))

    rng = generator(seed)
    batches = [direct(name, pool, labelled, 6, rng) for name in oracle.CANDIDATES]
    picks = direct("best_batch_oracle", pool, labelled, 6, generator(seed), labels=truth)
    assert picks in batches
    assert found(picks) == max(map(found, batches)) > min(map(found, batches))


@pytest.mark.parametrize("seed", SEEDS)
def test_direct(seed: int) -> None:
    """Cut by cut, row by row."""
    pool, labelled, _, probs, free, known = problem(seed)
    label = dict(zip(known, labelled.labels.tolist(), strict=True))
    rows, classes = len(probs), probs.shape[1]
    nearest = []
    for c in range(classes):
        order = sorted(range(rows), key=lambda i: -(probs[i][c] - max(np.delete(probs[i], c))))
        worth = [sum(1 if label[i] == c else -1 for i in order[:cut] if i in label) for cut in range(rows + 1)]
        cut = worth.index(max(worth))
        steps = range(max(cut, rows - cut))
        nearest.append([order[at] for step in steps for at in (cut + step, cut - 1 - step) if 0 <= at < rows])
    turns = sorted(range(classes), key=lambda c: list(label.values()).count(c))
    expected: list[int] = []
    for turn in range(17):
        row = next(i for i in nearest[turns[turn % classes]] if i in free and i not in expected)
        expected.append(row)
    assert direct("direct", pool, labelled, 17, generator()) == expected


def test_direct_finds_the_end_of_a_rare_class() -> None:
    """Of a class that is labelled at the top of its ranking only, labels go where it ends."""
    preferred = torch.linspace(0.95, 0.05, 100)
    pool = PoolScores(torch.ones(100, 1), torch.stack([preferred, 1 - preferred], 1))
    labelled = LabelledSet(torch.tensor([0, 1, 2, 20, 60, 90]), torch.tensor([0, 0, 0, 1, 1, 1]))
    picks = direct("direct", pool, labelled, 6, generator())
    assert set(picks) == {3, 4, 5, 19, 18, 21}  # class 0 ends after 2; class 1, from the other end, after 20


@pytest.mark.parametrize("seed", SEEDS)
def test_epig(seed: int) -> None:
    """Mutual information of both labels from its definition, mean over all target rows."""
    pool, labelled, _, _, free, _ = problem(seed)
    assert pool.stochastic_probs is not None
    passes = pool.stochastic_probs.double().numpy()
    number, rows, _ = passes.shape
    for target in (None, torch.arange(rows) % 7 == 0):
        score = {}
        for i in free:
            total = []
            for j in free if target is None else target.nonzero().squeeze(1).tolist():
                both = passes[:, i].T @ passes[:, j] / number  # (C, C) of the classes of i and j
                alone = np.outer(passes[:, i].mean(0), passes[:, j].mean(0))
                total.append((both * np.log(both / alone)).sum())
            score[i] = np.mean(total)
        picks = select("epig", pool, labelled, 5, generator(), target=target, targets=1000).tolist()
        assert picks == largest(score, 5)


@pytest.mark.parametrize("target", [torch.ones(3).bool(), torch.zeros(60).bool(), torch.ones(60)])
def test_epig_refuses_what_is_no_target(target: Tensor) -> None:
    pool, labelled = make_pool(60, 5, 4, 0), make_labelled(60, 8, 4, 0)
    with pytest.raises(ConfigError, match="epig: target must say true or false of each of the 60 pool rows"):
        select("epig", pool, labelled, 5, generator(), target=target)


@pytest.mark.parametrize("seed", SEEDS)
def test_auto(seed: int) -> None:
    """uherding, but that featdist takes turns with it while a class is missing among two labels per class."""
    pool = problem(seed)[0]
    classes = pool.probs.shape[1]
    every, missing = torch.arange(2 * classes) % classes, torch.arange(2 * classes) % (classes - 1)
    odd = torch.cat([missing, missing[:1]])
    positions = torch.randperm(len(pool), generator=generator(seed))
    for labels, mixed in ((every, False), (missing, True), (odd, True), (missing[:-1], False)):
        known = LabelledSet(positions[: len(labels)], labels)
        order = ("featdist", "uherding") if len(labels) % 2 and mixed else ("uherding", "featdist")
        one, other = (direct(name, pool, known, 9, generator()) for name in order)
        expected: list[int] = []
        for row in [row for pair in zip(one, other, strict=True) for row in pair] if mixed else one:
            expected += [row] if row not in expected else []
        assert direct("auto", pool, known, 9, generator()) == expected[:9], mixed
