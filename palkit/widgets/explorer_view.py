"""Controls and displays of the explorer."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import ipywidgets
import numpy as np

from palkit.errors import PalkitError
from palkit.labelling.explore import Exploration, Question, summary
from palkit.labelling.proposals import Answer, Proposal, overlap_sentence
from palkit.models.adapters import ADAPTERS, AdapterConfig
from palkit.progress import Progress
from palkit.strategies import STRATEGIES
from palkit.strategies.balance import BALANCES
from palkit.widgets.grid import ImageGrid
from palkit.widgets.jobs import Cancelled, Jobs, running_loop, sentence
from palkit.widgets.projection import Projection
from palkit.widgets.status import StatusLine
from palkit.widgets.why import WhyPanel

OFFERED = ("fashion_mnist", "fashion_mnist_lt", "digits", "digits_lt")
NONE = "none"
MAP_NAMES = {"pca": "principal components", "tsne": "t-SNE (takes a while)"}
HISTORY_NAMES = {"random": "at random", "own": "by strategy A"}
CAPTION = ("rank", "predicted", "score")
MEASURES = {"distance": "distance to the nearest label", "": "none"}
WRAPPED = {"display": "flex", "flex_flow": "row wrap", "width": "100%"}


class ExplorerView:
    """What the user sees and turns; everything is computed beside the event loop, the newest wish only.

    Args:
        exploration: that answers.
        question: to begin with.
        keep: called with every question that is asked here and its answer.
    """

    def __init__(self, exploration: Exploration, question: Question, keep: Callable[[Question, Answer], None]) -> None:
        self.exploration, self._keep = exploration, keep
        self._first = question  # what has no control, such as the rank of an adapter, stays as it was here
        self.answer: Answer | None = None
        self.grids: list[ImageGrid] = []
        self.map: Projection | None = None
        self.position: int | None = None
        self._shown: Question | None = None
        self._points = np.empty((0, 2))
        self._quiet = False
        self._jobs, self._map_jobs = Jobs(), Jobs()
        self.controls = _controls(question)
        self.map_kind = ipywidgets.Dropdown(
            description="Map", options=[(name, kind) for kind, name in MAP_NAMES.items()], value="pca", style=_style()
        )
        self.cancel = ipywidgets.Button(description="Cancel", disabled=True, tooltip="Stop what is being computed")
        self.status = StatusLine()
        self.overlap = ipywidgets.HTML()
        self.why = WhyPanel(self._tell_why)
        self._grids = ipywidgets.Box(layout=ipywidgets.Layout(**WRAPPED))
        self._map = ipywidgets.VBox(layout=ipywidgets.Layout(flex="2 1 460px", min_width="320px"))
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self.map_kind.observe(lambda change: self._draw_map(), "value")
        self.cancel.on_click(lambda button: self._cancel())
        status = ipywidgets.HBox([self.cancel, self.status])
        lower = ipywidgets.Box([self._map, self.why.widget], layout=ipywidgets.Layout(**WRAPPED))
        choices = ipywidgets.Box(list(self.controls.values()), layout=ipywidgets.Layout(**WRAPPED))
        self.widget = ipywidgets.VBox([choices, status, self._grids, self.overlap, lower])
        self.widget.add_class("palkit-explorer")
        self._ask(question)

    def _changed(self, change: Any) -> None:
        if self._quiet:
            return
        try:
            self._ask(asked(self.controls, self._first))
        except PalkitError as error:
            refused = error

            def refuse(progress: Progress) -> None:
                raise refused

            self._jobs.submit(refuse, failed=self._failed)  # ends what runs

    def _ask(self, question: Question) -> None:
        exploration = self.exploration

        def work(progress: Progress) -> tuple[Answer, np.ndarray]:
            return exploration.answer(question, progress), exploration.projection(question, "pca", progress)

        def done(result: tuple[Answer, np.ndarray]) -> None:
            self._show(question, *result)

        self.cancel.disabled = False
        self.status.say("Computing.", "busy")
        self._jobs.submit(work, done, self._failed, self._report)

    def _report(self, stage: str, done: int, total: int) -> None:
        self.status.say(f"Computing: {stage}.", "busy", done, total)

    def _failed(self, error: Exception) -> None:
        self.cancel.disabled = True
        if isinstance(error, Cancelled):
            kind, text = "idle", "Cancelled."
            if self._shown is not None:
                self._set_quietly(_values(self._shown))
        else:
            kind, text = "problem", sentence(error)
        self.status.say(f"{text} {self._still()}", kind)

    def _still(self) -> str:
        return f"Still shown: {summary(self._shown)}." if self._shown else "Nothing is shown yet; change a control."

    def _cancel(self) -> None:
        self._jobs.cancel()
        self._map_jobs.cancel()

    def _set_quietly(self, values: dict[str, Any], map_kind: str | None = None) -> None:
        """Let controls say what is shown, without asking for it."""
        self._quiet = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
            self.map_kind.value = map_kind or self.map_kind.value
        finally:
            self._quiet = False

    def _show(self, question: Question, answer: Answer, points: np.ndarray) -> None:
        same_pool = self.answer is not None and self.answer.pool is answer.pool
        self._shown, self.answer = question, answer
        self._keep(question, answer)
        self.cancel.disabled = True
        self._set_quietly({"batch_size": len(answer.proposals[0].table)})
        self._show_grids(answer, same_pool)
        self.overlap.value = f"<p>{escape(overlap_sentence(answer))}</p>"
        if not same_pool:
            self.position = None
            self._set_quietly({}, map_kind="pca")
        if self.map_kind.value == "pca":
            self._points = points
        self._show_map()
        self._tell_why()
        self.status.say(f"Shown: {summary(question)}; {len(answer.labelled)} labels.")
        if running_loop() is not None:  # what comes next is got ready while the user looks
            self._jobs.submit(partial(self.exploration.prepare, question))

    def _show_grids(self, answer: Answer, same_pool: bool) -> None:
        if same_pool and len(self.grids) == len(answer.proposals):
            for number, (grid, proposal) in enumerate(zip(self.grids, answer.proposals, strict=True)):
                grid.label = heading(number, proposal)
                grid.show(proposal.table)
            return
        self.grids = []
        for number, proposal in enumerate(answer.proposals):
            label = heading(number, proposal)
            grid = ImageGrid(answer.pool.images, proposal.table, caption=CAPTION, bar="probability", label=label)
            grid.on_select(partial(self._chosen, number))
            self.grids.append(grid)
        layout = ipywidgets.Layout(flex="1 1 420px", min_width="320px")
        self._grids.children = tuple(ipywidgets.VBox([grid.widget], layout=layout) for grid in self.grids)

    def _show_map(self) -> None:
        answer = self.answer
        assert answer is not None
        picks = {proposal.strategy: proposal.table["position"].to_numpy() for proposal in answer.proposals}
        arguments = (answer.pool.images, answer.rows, self._points, answer.labelled, picks)
        if self.map is None:
            self.map = Projection(*arguments, self._describe)
            self.map.on_select(self._look_at)
            self._map.children = (self.map_kind, self.map.widget)
        else:
            self.map.show(*arguments)
        self.map.select(self.position)

    def _draw_map(self) -> None:
        question, answer, kind = self._shown, self.answer, self.map_kind.value
        if question is None or answer is None or self._quiet:
            return
        exploration = self.exploration

        def done(points: np.ndarray) -> None:
            self.cancel.disabled = True
            if self.answer is not None and self.answer.pool is answer.pool:
                self._points = points
                self._show_map()
                self.status.say(f"The map shows {MAP_NAMES[kind].split(' (')[0]}.")

        def failed(error: Exception) -> None:
            self._set_quietly({}, map_kind="pca")
            self._failed(error)

        if self.cancel.disabled:  # nothing runs but what gets ready what may come next
            self._jobs.cancel()
        self.cancel.disabled = False
        self.status.say("Computing the map.", "busy")
        self._map_jobs.submit(
            lambda progress: exploration.projection(question, kind, progress), done, failed, self._report
        )

    def _describe(self, position: int) -> str:
        answer = self.answer
        assert answer is not None
        probability, predicted = answer.scores.probs[position].max(0)
        text = f"{answer.pool.class_names[int(predicted)]}, {100 * float(probability):.0f} %"
        if position in answer.labelled:
            return f"labelled {answer.pool.class_names[answer.pool.labels[answer.rows[position]]]}\n(predicted {text})"
        ranks = [
            f"{proposal.strategy}: number {rank}"
            for proposal in answer.proposals
            for rank in proposal.table.loc[proposal.table["position"] == position, "rank"]
        ]
        return "\n".join([f"predicted {text}", *ranks])

    def _chosen(self, number: int, row: int) -> None:
        assert self.answer is not None
        self._look_at(int(self.answer.proposals[number].table["position"].iloc[row]))

    def _look_at(self, position: int) -> None:
        self.position = position
        if self.map is not None:
            self.map.select(position)
        self._tell_why()

    def _tell_why(self) -> None:
        if self.answer is None or self.position is None:
            self.why.clear()
        else:
            self.why.show(self.answer, self.position)


def heading(number: int, proposal: Proposal) -> str:
    """Of a grid.

    Args:
        number: 0 for A, 1 for B.
        proposal: of the strategy.
    """
    return f"{'AB'[number]}: {proposal.strategy} (score: {MEASURES.get(proposal.measure, proposal.measure)})"


def asked(controls: dict[str, Any], first: Question) -> Question:
    """The question that the controls ask.

    Args:
        controls: name -> control.
        first: gives what has no control, as far as it goes with the data set and adapter of the controls.

    Raises:
        ConfigError: values that do not go together.
    """
    value = {name: control.value for name, control in controls.items()}
    config, adapter = first.config, first.config.adapter
    if value["adapter"] != adapter.name:
        adapter = AdapterConfig(value["adapter"])
    config = replace(
        config,
        dataset=value["dataset"].strip(),
        pool_size=config.pool_size if value["dataset"].strip() == config.dataset else None,
        adapter=adapter,
        batch_size=value["batch_size"],
        balance=None if value["balance"] == NONE else value["balance"],
        seed=value["seed"],
    )
    strategies = tuple(name for name in (value["first"], value["second"]) if name != NONE)
    return Question(config, strategies, value["round"], value["history"])


def _values(question: Question) -> dict[str, Any]:
    config = question.config
    return {
        "dataset": config.dataset,
        "adapter": config.adapter.name,
        "first": question.strategies[0],
        "second": question.strategies[1] if len(question.strategies) > 1 else NONE,
        "round": question.round,
        "history": question.history,
        "batch_size": config.batch_size or 10,
        "balance": config.balance or NONE,
        "seed": config.seed,
    }


def _controls(question: Question) -> dict[str, Any]:
    value, names = _values(question), sorted(STRATEGIES)
    common = {"style": _style(), "layout": ipywidgets.Layout(width="270px")}
    last = max(question.round, question.config.rounds - 1)
    lazy = {"continuous_update": False, **common}
    histories = [(name, history) for history, name in HISTORY_NAMES.items()]
    made = {
        "dataset": ipywidgets.Combobox(description="Data set", options=OFFERED, **lazy),
        "adapter": ipywidgets.Dropdown(description="Adapter", options=sorted(ADAPTERS), **common),
        "first": ipywidgets.Dropdown(description="Strategy A", options=names, **common),
        "second": ipywidgets.Dropdown(description="Strategy B", options=[NONE, *names], **common),
        # Not a slider: those of ipywidgets have no name for a screen reader.
        "round": ipywidgets.Dropdown(description="Round", options=range(last + 1), **common),
        "history": ipywidgets.Dropdown(description="Labels bought", options=histories, **common),
        "batch_size": ipywidgets.BoundedIntText(description="Batch size", min=1, max=1000, **lazy),
        "balance": ipywidgets.Dropdown(description="Balance", options=[NONE, *sorted(BALANCES)], **common),
        "seed": ipywidgets.BoundedIntText(description="Seed", min=0, max=2**31 - 1, **lazy),
    }
    for name, control in made.items():
        control.value = value[name]
    return made


def _style() -> dict[str, str]:
    return {"description_width": "100px"}
