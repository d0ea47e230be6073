"""Acquisition strategies: which pool rows should the expert label next?

A strategy is one function with one signature, registered under its field name::

    @strategy("entropy", measure=entropy_scores, style=("#E69F00", "o"))
    def entropy(scores, labelled, batch_size, rng):
        candidates = labelled.unlabelled(len(scores))
        return top(entropy_scores(scores)[candidates], candidates, batch_size)

`select` is how everyone calls one: it checks the input, clips the batch to what is left, applies
`balance` and `subsample` and guarantees the result. Every module of this package is imported here, so a
new strategy touches one file only.
"""

from importlib import import_module
from pkgutil import iter_modules

from palkit.storage.shards import Shards
from palkit.strategies.registry import STRATEGIES, Strategy, get_strategy, select, strategy

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = ["STRATEGIES", "Shards", "Strategy", "get_strategy", "select", "strategy"]
