"""How long the explorer takes to answer, control by control: what a user waits for after each change.

    OMP_NUM_THREADS=1 python benchmarks/explore.py                # 6,000 images, linear probe, features cached
    python benchmarks/explore.py --pool-size 1500 --adapter lora  # where a fit takes its time
    python benchmarks/explore.py --view                           # with the widgets: thumbnails, map, table

Every change starts from the same question, whose neighbours were got ready as the explorer does while the user looks;
"unprepared" leaves that out. Each row is the median of --repeats explorations in this process, the first display that
of the first one, with data, backbone and frozen features on disk.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import pandas as pd
import torch

from palkit.config import config_from_dict
from palkit.labelling.explore import Exploration, Question
from palkit.widgets.explorer import Explorer

SECONDS = 0.5  # a change should take no longer
FIRST_SECONDS = 2.0


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def changes(question: Question) -> dict[str, Question]:
    """One question per control that differs from the present one in it alone."""
    config = question.config

    def with_config(**values: Any) -> Question:
        return replace(question, config=replace(config, **values))

    return {
        "strategy A": replace(question, strategies=("margin", question.strategies[1])),
        "strategy B (badge)": replace(question, strategies=(question.strategies[0], "badge")),
        "strategy B (bald)": replace(question, strategies=(question.strategies[0], "bald")),
        "batch size 40": with_config(batch_size=40),
        "balance pcb": with_config(balance="pcb"),
        "round + 1": replace(question, round=question.round + 1),
        "round 6": replace(question, round=6),
        "seed + 1": with_config(seed=config.seed + 1),
        "seed + 5": with_config(seed=config.seed + 5),
        "history own": replace(question, history="own"),  # of round 0 it is the same
    }


def engine(question: Question, other: Question, prepared: bool) -> float:
    """Seconds of the engine for one change."""
    exploration = Exploration()
    exploration.answer(question)
    exploration.projection(question)
    if prepared:
        exploration.prepare(question)
    return seconds(lambda: (exploration.answer(other), exploration.projection(other)))


def view(question: Question, other: Question, prepared: bool) -> float:
    """Seconds of the engine and the widgets, without the browser."""
    explorer = Explorer(question)
    shown = explorer.view
    if prepared:
        explorer.exploration.prepare(question)
    return seconds(lambda: shown._ask(other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--pool-size", type=int, help="images; all of them")
    parser.add_argument("--adapter", default="linear_probe")
    parser.add_argument("--strategies", default="entropy,coreset", help="A and B")
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--view", action="store_true", help="measure the widgets too")
    options = parser.parse_args()
    values = {"dataset": options.dataset, "pool_size": options.pool_size, "adapter": options.adapter}
    config = config_from_dict({**values, "batch_size": options.batch_size})
    question = Question(config, tuple(options.strategies.split(",")), options.round)
    first = (
        seconds(lambda: Explorer(question).view) if options.view else seconds(lambda: Exploration().answer(question))
    )
    answer = Exploration().answer(question)
    measure = view if options.view else engine
    rows = [("first display", first, first, FIRST_SECONDS)]
    for name, other in changes(question).items():
        ready, unready = (
            median(measure(question, other, prepared) for _ in range(options.repeats)) for prepared in (True, False)
        )
        rows.append((name, ready, unready, SECONDS))
    table = pd.DataFrame(rows, columns=["change", "seconds", "unprepared", "wanted"])
    table["reached"] = (table["seconds"] <= table["wanted"]).map({True: "yes", False: "no"})
    print(f"{len(answer.rows):,} images, {options.adapter}, {options.strategies}, {torch.get_num_threads()} thread(s)")
    print(table.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
