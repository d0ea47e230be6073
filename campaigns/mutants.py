"""Mutation score of kernels and strategies: one small change of the code at a time, which some test must notice.

    python -m venv --system-site-packages mutants && mutants/bin/pip install cosmic-ray  # where palkit is installed
    OMP_NUM_THREADS=1 mutants/bin/python campaigns/mutants.py                           # all, an hour of one core
    OMP_NUM_THREADS=1 mutants/bin/python campaigns/mutants.py --again                   # what survived the last time
    OMP_NUM_THREADS=1 mutants/bin/python campaigns/mutants.py palkit/strategies/kmeans.py # one; --share 0.5: a sample

The changes are cosmic-ray's, but for those that any run would notice: annotations, what does not compile, and an
arithmetic operator replaced by one of bits, which tensors of floats do not have. Nothing is written to the sources:
each mutant lives in a fork of a process that has imported and collected the tests, and there the code of the module's
functions is exchanged. A mutant outside functions, or in one that the import calls, gets a fork that imports palkit
anew. Tests that never reach the changed statement are left out, those that killed a neighbour and quick ones go first,
and a test that takes much longer than it did counts as failed ("timeout").

cosmic-ray's own runner (init, exec, report) is not used. It starts pytest anew for every mutant: the imports and the
collection alone take 15 s of CPU time, twelve hours for 2,852 mutants. It has one command for all of them, so that a
survivor meets every test, and it writes each mutant into the sources, where a killed run leaves it.

What artefacts/mutants.jsonl holds is not run again. Writes figures/trust/mutants.csv; mutants.md explains survivors.
"""

import argparse
import ast
import gc
import hashlib
import importlib
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import hypothesis
import pandas as pd
import pytest
from _pytest.runner import runtestprotocol
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = ["palkit/strategies/*.py"]
TESTS = ["tests/strategies/*.py", "tests/experiments/test_picks.py"]
ELSEWHERE = "tests/strategies/test_shards.py::test_pool_larger_than_memory"  # in a process of its own, unchanged
HEAVY = ["torch", "torchvision", "timm", "peft", "sklearn.cluster", "scipy.cluster.hierarchy", "skactiveml.pool"]
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}
SECONDS, TIMES = 5, 10  # CPU time that a test may take: so much, and so many times what it took before
ENOUGH = 8.0  # a mutant that outlives so many CPU seconds of tests that reach it has survived
SMALLEST = 40  # mutants to draw of a module at least
MEMORY = 4 * 2**30  # bytes that a fork may take
STORE = REPOSITORY / "artefacts" / "mutants.jsonl"

Reached = dict[str, tuple[float, set[tuple[str, int]]]]  # of each test: CPU seconds, (module, line)


@dataclass(frozen=True)
class Mutant:
    """`source` is the changed module; `lines` hold the changed statement; `function` is "" outside functions."""

    module: str
    operator: str
    line: int
    lines: range
    function: str
    change: str
    source: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.module}\n{self.source}".encode()).hexdigest()[:16]


def mutants_of(module: str) -> Iterator[Mutant]:
    """All mutants of a module, in the order of its lines for each operator."""
    source = (REPOSITORY / module).read_text()
    nodes, tree = list(ast_nodes(get_ast(source))), ast.parse(source)
    provider = OperatorProvider()
    for name in provider:
        kind, *pair = name.split("_")
        if kind in ("VariableReplacer", "VariableInserter"):
            continue  # they need arguments
        if kind == "ReplaceBinaryOperator" and (pair[0] in ARITHMETIC) != (pair[1] in ARITHMETIC):
            continue
        operator = provider[name]()
        starts = [(start, node) for node in nodes for start, _ in operator.mutation_positions(node)]
        for number, ((line, column), node) in enumerate(starts):
            if in_annotation(tree, line, column) or getattr(node.parent, "type", "") == "parameters":
                continue  # the star before keyword-only parameters is no operator
            changed = mutate_code(source, operator, number)
            with suppress(SyntaxError):
                compile(changed, module, "exec")
                yield Mutant(module, name, line, *place(tree, line), difference(source, changed), changed)


def in_annotation(tree: ast.AST, line: int, column: int) -> bool:
    notes = [getattr(node, field, None) for node in ast.walk(tree) for field in ("annotation", "returns")]
    return any(a and (a.lineno, a.col_offset) <= (line, column) < (a.end_lineno, a.end_col_offset) for a in notes)


def place(tree: ast.Module, line: int) -> tuple[range, str]:
    """Lines of the innermost statement around a line, of a compound one its head; name of its function, or ""."""
    around: list[Any] = []  # the outermost first
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            if first <= line <= (node.end_lineno or first):
                around.append(node)
    named = [node for node in around if hasattr(node, "name") and line >= node.body[0].lineno]
    inside = any(isinstance(node, ast.FunctionDef) for node in named)
    head = around[-1]
    end = head.body[0].lineno if hasattr(head, "body") else head.end_lineno + 1
    return range(head.lineno, max(end, head.lineno + 1)), ".".join(node.name for node in named) if inside else ""


def difference(before: str, after: str) -> str:
    """The changed lines, as `before -> after`."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    old, new = next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("", ""))
    return f"{old}  ->  {new}"


class Loop:
    """A pytest plugin that hands the collected session over instead of running its tests."""

    def __init__(self, work: Callable[[pytest.Session], None]) -> None:
        self.work = work

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.work(session)
        return True


def collect(work: Callable[[pytest.Session], None]) -> None:
    files = sorted(str(path.relative_to(REPOSITORY)) for pattern in TESTS for path in REPOSITORY.glob(pattern))
    options = [
        "-q",
        "-s",
        "--tb=native",
        "-p",
        "no:cacheprovider",
        f"--rootdir={REPOSITORY}",
        f"--deselect={ELSEWHERE}",
    ]
    pytest.main([*options, *files], plugins=[Loop(work)])


def in_fork(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` returns in a silent child process of little memory, or None, and the signal that ended it."""
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    child = os.fork()
    if not child:
        try:
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            used = 1024 * int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
            resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
            signal.alarm(1200)
            (folder / "result").write_bytes(pickle.dumps(work()))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    result = folder / "result"
    found = pickle.loads(result.read_bytes()) if result.exists() else None
    shutil.rmtree(folder, ignore_errors=True)
    return found, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def first_failure(session: pytest.Session, tests: dict[str, float]) -> str:
    """The first of the tests, in the order given and with what they may take as CPU time, that fails, or ""."""
    session.config._tmp_path_factory._basetemp = Path(tempfile.mkdtemp())  # type: ignore[attr-defined]
    found = {item.nodeid: item for item in session.items}
    items = [found[name] for name in tests if name in found]
    if session.testsfailed or len(items) < len(tests):
        return "collection"
    for item, after in zip(items, [*items[1:], None], strict=True):
        signal.setitimer(signal.ITIMER_PROF, SECONDS + TIMES * tests[item.nodeid])
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=after)):
            return item.nodeid
    return ""


def baseline(session: pytest.Session, modules: list[str]) -> tuple[Reached, list[str]]:
    """CPU seconds of each test, under the tracer, and the lines it reaches; tests that fail without any mutant."""
    names = {str(REPOSITORY / module): module for module in modules}
    session.config._tmp_path_factory._basetemp = Path(tempfile.mkdtemp())  # type: ignore[attr-defined]
    lines: set[tuple[str, int]] = set()

    def trace(frame: Any, event: str, arg: object) -> Any:
        module = names.get(frame.f_code.co_filename)
        if module:
            lines.add((module, frame.f_lineno))
        return trace if module else None

    found, failed = {}, list[str]()
    for item, after in zip(session.items, [*session.items[1:], None], strict=True):
        lines.clear()
        began = time.process_time()
        sys.settrace(trace)
        reports = runtestprotocol(item, log=False, nextitem=after)
        sys.settrace(None)
        if any(report.failed for report in reports):
            failed.append(item.nodeid)
            continue
        found[item.nodeid] = (time.process_time() - began, set(lines))
    return found, failed


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


class Changed(SourceFileLoader):
    """Finds and loads one module from a changed source."""

    def __init__(self, mutant: Mutant) -> None:
        name = mutant.module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(name, str(REPOSITORY / mutant.module))
        self.source = mutant.source

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


class Run:
    """Outcomes of mutants, each stored as soon as it is known."""

    def __init__(self, mutants: list[Mutant], modules: list[str], again: bool) -> None:
        stored = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
        self.outcomes = {row["key"]: row for row in stored if not again or row["outcome"] != "survived"}
        self.mutants = [m for m in mutants if m.key not in self.outcomes]
        self.modules = modules
        self.reached: Reached = {}
        self.killers: dict[str, Counter[str]] = {}
        self.at_import: set[tuple[str, str]] = set()
        STORE.write_text("".join(f"{json.dumps(row)}\n" for row in self.outcomes.values()))

    def tests_of(self, mutant: Mutant, reaching: bool) -> dict[str, float]:
        """Tests, or those that reach the mutant, and their CPU seconds, in the order to run them."""
        wanted = {(mutant.module, line) for line in mutant.lines}
        seconds = {name: took for name, (took, lines) in self.reached.items() if not reaching or lines & wanted}
        kills = self.killers.setdefault(f"{mutant.module} {mutant.function}", Counter())
        tests, spent = {}, 0.0
        for name, took in sorted(seconds.items(), key=lambda test: (-kills[test[0]], test[1])):
            tests[name], spent = took, spent + took
            if spent > ENOUGH:
                break
        return tests

    def add(self, mutant: Mutant, killer: str | None, ended_by: int) -> None:
        if killer:
            self.killers[f"{mutant.module} {mutant.function}"][killer] += 1
        elif killer is None and not ended_by:
            raise RuntimeError(f"the fork of {mutant.module}:{mutant.line} {mutant.change} broke")
        outcome = "timeout" if ended_by == signal.SIGPROF else "survived" if killer == "" else "killed"
        row = {name: getattr(mutant, name) for name in ("key", "module", "line", "function", "operator", "change")}
        self.outcomes[mutant.key] = row | {"outcome": outcome, "by": killer or ended_by}
        with STORE.open("a") as file:
            file.write(f"{json.dumps(self.outcomes[mutant.key])}\n")
        if outcome == "survived":
            print(f"{mutant.module}:{mutant.line} {mutant.operator}: {mutant.change}", flush=True)

    def in_functions(self, session: pytest.Session) -> None:
        """Measure the tests, then run every mutant whose function can be exchanged in place."""
        if session.testsfailed:
            return
        (self.reached, failed), _ = in_fork(lambda: baseline(session, self.modules))
        seconds = sum(took for took, _ in self.reached.values())
        print(f"{len(self.reached)} tests, {seconds:.0f} s; {len(self.mutants)} mutants", flush=True)
        print("left out, as they fail without any mutant:", *failed or ["none"], flush=True)
        functions = [f for f in gc.get_objects() if isinstance(f, FunctionType) and "palkit" in f.__code__.co_filename]
        gc.freeze()  # a collection in a fork would copy all memory
        for number, mutant in enumerate(self.mutants):
            if not mutant.function or (mutant.module, mutant.function) in self.at_import:
                continue
            file = str(REPOSITORY / mutant.module)
            by_name = {code.co_qualname: code for code in codes(compile(mutant.source, file, "exec"))}
            mine = [f for f in functions if f.__code__.co_filename == file and f.__code__.co_qualname in by_name]
            tests = self.tests_of(mutant, reaching=True)

            def work(mine: list[FunctionType] = mine, by_name: dict = by_name, tests: dict = tests) -> str:
                for function in mine:
                    function.__code__ = by_name[function.__code__.co_qualname]
                return first_failure(session, tests)

            self.add(mutant, *in_fork(work))
            if number % 100 == 99:
                print(f"  {number + 1} of {len(self.mutants)}", flush=True)

    def at_module_level(self) -> None:
        """Run every other mutant, in a process that imports the changed module."""
        for mutant in self.mutants:
            if mutant.key in self.outcomes:
                continue
            tests = self.tests_of(mutant, reaching=False)

            def work(mutant: Mutant = mutant, tests: dict = tests) -> str:
                sys.meta_path.insert(0, Changed(mutant))  # type: ignore[arg-type]
                failed = ["collection"]
                collect(lambda session: failed.append(first_failure(session, tests)))
                return failed[-1]

            self.add(mutant, *in_fork(work))


def called_by_the_import() -> set[tuple[str, str]]:
    called: set[tuple[str, str]] = set()
    sys.setprofile(lambda frame, *_: called.add((frame.f_code.co_filename, frame.f_code.co_qualname)))
    importlib.import_module("palkit.strategies")
    sys.setprofile(None)
    mine = [(Path(file), name) for file, name in called if file.startswith(str(REPOSITORY))]
    return {(str(file.relative_to(REPOSITORY)), name.replace("<locals>.", "")) for file, name in mine}


def table_of(outcomes: list[dict[str, Any]], total: dict[str, int]) -> pd.DataFrame:
    """Scores by module and, weighted by all their mutants, together, with Wilson's interval if some were drawn."""
    counts = pd.DataFrame(outcomes).groupby("module")["outcome"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=["killed", "timeout", "survived"], fill_value=0)
    tested, every = counts.sum(axis=1), pd.Series(total)
    counts.insert(0, "mutants", every)
    counts.insert(1, "tested", tested)
    score, share = 1 - counts["survived"] / tested, every / every.sum()
    counts.loc["all"] = counts.sum()
    whole = p = float((share * score).sum())
    counts["score"] = [*score.round(4), round(whole, 4)]
    variance = float((share**2 * score * (1 - score) / tested * (1 - tested / every)).sum())
    if variance:
        n, z = p * (1 - p) / variance, 1.96
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1))
        print(f"score of all mutants {whole:.1%}, 95 % interval {low:.1%} to {high:.1%}")
    return counts.reset_index()


def main() -> None:
    warnings.simplefilter("ignore")  # of mutants' syntax
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="default: all")
    parser.add_argument("--share", type=float, default=1.0, help="of each module's mutants, drawn at random")
    parser.add_argument("--again", action="store_true", help="only mutants that are new or survived the last run")
    arguments = parser.parse_args()
    os.chdir(REPOSITORY)
    STORE.parent.mkdir(exist_ok=True)
    sys.path.insert(0, str(REPOSITORY))
    every = sorted(str(path.relative_to(REPOSITORY)) for pattern in MODULES for path in REPOSITORY.glob(pattern))
    modules = arguments.modules or every
    mutants = {module: list(mutants_of(module)) for module in modules}
    drawn = []
    for found in mutants.values():  # the first of a fixed random order: a larger share holds a smaller one
        random.Random(0).shuffle(found)
        drawn += found[: max(SMALLEST, math.ceil(arguments.share * len(found)))]
    run = Run(drawn, modules, arguments.again)

    for name in HEAVY:
        importlib.import_module(name)
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # no shrinking
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    # The tests are collected in a fork, so that this process can start others without palkit.
    reader, writer = os.pipe()
    if not (child := os.fork()):
        run.at_import = called_by_the_import()
        collect(run.in_functions)
        with os.fdopen(writer, "wb") as file:
            pickle.dump((run.outcomes, run.reached, run.killers), file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        run.outcomes, run.reached, run.killers = pickle.load(file)
    os.waitpid(child, 0)
    if not run.reached:
        raise SystemExit("the tests cannot be collected without any mutant")
    run.at_module_level()
    table = table_of([run.outcomes[mutant.key] for mutant in drawn], {m: len(found) for m, found in mutants.items()})
    print(table.to_string(index=False))
    if modules == every:
        table.to_csv(REPOSITORY / "figures" / "trust" / "mutants.csv", index=False)


if __name__ == "__main__":
    main()
