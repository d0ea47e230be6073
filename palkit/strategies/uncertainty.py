"""Strategies that rank each row by how unsure the model is of it, and their stochastic versions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from palkit.strategies.kernels import chunks, per_row
from palkit.strategies.options import NotNegative
from palkit.strategies.ranking import confidence_gap, margin_gap, shannon_entropy, top
from palkit.strategies.registry import STRATEGIES, strategy
from palkit.strategies.scores import Dropout, LabelledSet, PoolScores

PoolScore = Callable[[PoolScores], Tensor]
# Passes of which each is one function of all rows.
SHARED: dict[str, Any] = {"needs": {"stochastic_probs"}, "dropout": Dropout(20, 0.5, "shared_features")}


def least_confidence_scores(scores: PoolScores) -> Tensor:
    """(N,) float64 1 - max p."""
    return per_row(confidence_gap, scores.probs)


def margin_scores(scores: PoolScores) -> Tensor:
    """(N,) float64 1 - (p1 - p2), p1 >= p2 the two largest probabilities."""
    return per_row(margin_gap, scores.probs)


def entropy_scores(scores: PoolScores) -> Tensor:
    """(N,) float64 entropy of p, in nats."""
    return per_row(shannon_entropy, scores.probs)


def bald_scores(scores: PoolScores) -> Tensor:
    """(N,) float64 H(mean_t p_t) - mean_t H(p_t) over the T stochastic passes, at least 0."""
    passes = scores.stochastic_probs
    assert passes is not None
    value = torch.empty(passes.shape[1], dtype=torch.float64, device=passes.device)
    for part in chunks(passes.shape[1], len(passes) * passes.shape[2]):
        p = passes[:, part].double()
        value[part] = (shannon_entropy(p.mean(0)) - shannon_entropy(p).mean(0)).clamp_(min=0)
    return value


def most_uncertain(score: Tensor, labelled: LabelledSet, batch_size: int) -> Tensor:
    """(B,) unlabelled positions of the largest `score` (N,)."""
    candidates = labelled.unlabelled(len(score))
    return top(score.cpu()[candidates], candidates, batch_size)


@strategy("random", cold_start=True, blind=True, style=("#595959", "X"))
def random(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) uniform without replacement."""
    candidates = labelled.unlabelled(len(scores))
    return candidates[torch.randperm(len(candidates), generator=rng)[:batch_size]]


@strategy("least_confidence", measure=least_confidence_scores, style=("#DDCC77", "P"))
def least_confidence(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) largest 1 - max p (Settles 2009)."""
    return most_uncertain(least_confidence_scores(scores), labelled, batch_size)


@strategy("margin", measure=margin_scores, style=("#56B4E9", "s"))
def margin(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) smallest gap between the two largest probabilities (Settles 2009)."""
    return most_uncertain(margin_scores(scores), labelled, batch_size)


@strategy("entropy", measure=entropy_scores, style=("#E69F00", "o"))
def entropy(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) largest entropy of p (Settles 2009)."""
    return most_uncertain(entropy_scores(scores), labelled, batch_size)


@strategy("bald", **SHARED, measure=bald_scores, style=("#0072B2", "<"))
def bald(scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator) -> Tensor:
    """(B,) largest mutual information of label and weights (Houlsby 2011; Gal 2017)."""
    return most_uncertain(bald_scores(scores), labelled, batch_size)


def power_of(name: str, score: PoolScore) -> None:
    """Register `power_<name>`, the strategy of that score with noise added."""

    def power(
        scores: PoolScores, labelled: LabelledSet, batch_size: int, rng: torch.Generator, beta: NotNegative = 1.0
    ) -> Tensor:
        """(B,) the top of log score + beta * Gumbel noise, with the score of the strategy that it is named after.

        This draws without replacement with probability proportional to score^(1 / beta), so that a batch
        does not fill up with near-copies of the most uncertain row (Kirsch et al., TMLR 2023, whose
        coldness is 1 / beta).

        Args:
            scores, labelled, batch_size, rng: as for every strategy.
            beta: scale of the noise, >= 0; 0 is the strategy without it.
        """
        # Minus the log of an exponential number is Gumbel noise. Certain rows, of log score minus
        # infinity, come last.
        noise = torch.empty(len(scores), dtype=torch.float64).exponential_(generator=rng).log_().neg_()
        return most_uncertain(score(scores).cpu().log() + beta * noise, labelled, batch_size)

    plain = STRATEGIES[name]
    strategy(f"power_{name}", needs=set(plain.needs), dropout=plain.dropout, measure=score)(power)


power_of("least_confidence", least_confidence_scores)
power_of("margin", margin_scores)
power_of("entropy", entropy_scores)
power_of("bald", bald_scores)
