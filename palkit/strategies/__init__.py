"""Acquisition strategies: which pool rows should the expert label next?

A strategy is one function with one signature, registered under its field name:

    @strategy("entropy")
    def entropy(scores, labelled, batch_size, rng):
        return top(predictive_entropy(scores.probs), labelled, batch_size)

`select` is how everyone calls one: it checks the input, clips the batch to what is left, applies
`balance` and guarantees the result. Every module of this package is imported here, so a new strategy
in an existing module needs no other edit.
"""

from palkit.strategies import bait, bayesian, clustered, coverage, diversity, hybrid, oracle, typical, uncertainty
from palkit.strategies.registry import STRATEGIES, Strategy, get_strategy, select, strategy
from palkit.strategies.shards import Shards

__all__ = [
    "STRATEGIES",
    "Shards",
    "Strategy",
    "bait",
    "bayesian",
    "clustered",
    "coverage",
    "diversity",
    "get_strategy",
    "hybrid",
    "oracle",
    "select",
    "strategy",
    "typical",
    "uncertainty",
]
