"""Time and peak memory of selection, beside scikit-activeml on the same features and in the same run.

    python benchmarks/strategies.py                                   # N = 20,000, D = 384, C = 10, B = 100
    python benchmarks/strategies.py --sizes 5000,20000,50000 --classes 10,100 --strategies coreset,badge
    python benchmarks/strategies.py --sizes 1000000 --classes 100 --no-peer
    python benchmarks/strategies.py --sizes 8000 --features embedded  # real images through the embedded backbone
    python benchmarks/strategies.py --strategies all --batches 10,100,1000 --no-peer --timeout 60

Every measurement is a process of its own: seconds of the call alone, the best of three unless it is slow,
after one call on a small pool; and the peak of resident memory above what the process held before, which
includes features and probabilities. Peers are skipped with a note where
scikit-activeml is not installed. Where a measurement runs past --timeout or --memory, larger pools of the same kind
are not tried. Probabilities are a linear head's on the features, so that peers, which call a classifier, see
the same ones. Results go to --out as one JSON object a line.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scaling import PALKIT, PEER, bound

from palkit.config import ExperimentConfig
from palkit.experiments.setting import setting
from palkit.strategies import STRATEGIES, select
from palkit.strategies.scores import LabelledSet, PoolScores

Array = NDArray[Any]
PEERS = ("least_confidence", "margin", "entropy", "coreset", "badge", "typiclust", "probcover", "maxherding")
PEERS += ("dropquery", "falcun", "clue", "batchbald")
SLOW = {"bait", "batchbald"}  # quadratic in C D, and in the number of joint outcomes
MAPPED_BYTES = 2 * 2**30


def make_features(kind: str, n: int, d: int) -> Array:
    """(N, D) float32: noise, overlapping clusters on a few directions, the embedded images', or a file's rows."""
    rng = np.random.default_rng(0)
    if kind == "embedded":
        here = setting(ExperimentConfig(pool_size=None))
        return here.cache.features()[:n].numpy()
    if kind == "noise":
        return rng.standard_normal((n, d), dtype=np.float32)
    if kind == "clusters":
        basis = rng.standard_normal((20, d), dtype=np.float32)
        middle = rng.standard_normal((30, 20), dtype=np.float32) @ basis
        x = 0.5 * rng.standard_normal((n, d), dtype=np.float32)
        x += middle[rng.integers(30, size=n)]
        x += 0.3 * rng.standard_normal((n, 20), dtype=np.float32) @ basis
        return x
    rows = np.load(kind, mmap_mode="r")
    return np.ascontiguousarray(rows[:n], dtype=np.float32)


def make_head(features: Array, classes: int) -> Array:
    """(D, C) float32 weights whose logits have a standard deviation of 2."""
    weights = np.random.default_rng(1).standard_normal((features.shape[1], classes), dtype=np.float32)
    return 2 * weights / (features[:1000] @ weights).std()


def probabilities(features: Array, head: Array) -> Array:
    logits = features @ head
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def dropout_passes(features: Array, head: Array, passes: int, rate: float) -> torch.Tensor:
    """(T, N, C) probabilities with features dropped at `rate`, as a scoring pass makes them.

    More than MAPPED_BYTES of them lie in a temporary file, mapped into memory.
    """
    rng, weights = torch.Generator().manual_seed(0), torch.from_numpy(head)
    shape = (passes, len(features), head.shape[1])
    if 4 * math.prod(shape) > MAPPED_BYTES:
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:  # unlinked at once, gone with the process
            out = torch.from_numpy(np.lib.format.open_memmap(file.name, "w+", np.float32, shape))
    else:
        out = torch.empty(shape)
    for t in range(passes):
        for start in range(0, len(features), 4096):
            x = torch.from_numpy(features[start : start + 4096])
            keep = torch.randint(256, x.shape, generator=rng, dtype=torch.uint8) >= 256 * rate
            out[t, start : start + 4096] = (x * keep / (1 - rate) @ weights).softmax(1)
    return out


def palkit_call(name: str, features: Array, head: Array, known: int, batch: int) -> Callable[[], list[int]]:
    rows, probs = torch.from_numpy(features), torch.from_numpy(probabilities(features, head))
    classes = head.shape[1]
    labelled = LabelledSet(torch.arange(known), torch.arange(known) % classes)
    options: dict[str, Any] = {"normalize": False} if name in ("typiclust", "probcover") else {}
    if STRATEGIES[name].is_oracle:
        options["labels"] = torch.arange(len(features)) % classes

    def call() -> list[int]:
        passes = None
        if "stochastic_probs" in STRATEGIES[name].needs:
            want = STRATEGIES[name].dropout
            assert want is not None
            passes = dropout_passes(features, head, want.passes, want.rate)  # inside the peer's query too
        rng = torch.Generator().manual_seed(0)
        return select(name, PoolScores(rows, probs, passes), labelled, batch, rng, **options).tolist()

    return call


def peer_call(name: str, features: Array, head: Array, known: int, batch: int) -> Callable[[], list[int]]:
    from skactiveml import pool
    from skactiveml.base import SkactivemlClassifier

    classes = head.shape[1]

    class LinearHead(SkactivemlClassifier):
        def fit(self, X: Array, y: Array, sample_weight: Array | None = None) -> "LinearHead":
            return self

        def predict_proba(self, X: Array) -> Array:
            return probabilities(np.asarray(X, dtype=np.float32), head)

        def predict(self, X: Array) -> Array:
            return self.predict_proba(X).argmax(1)

    labels = np.full(len(features), np.nan)
    labels[:known] = np.arange(known) % classes
    clf: dict[str, Any] = {"clf": LinearHead(classes=range(classes)), "fit_clf": False}
    uncertainty = {"least_confidence": "least_confident", "margin": "margin_sampling", "entropy": "entropy"}
    if name in uncertainty:
        return lambda: pool.UncertaintySampling(uncertainty[name], random_state=0).query(
            features, labels, **clf, batch_size=batch
        )
    if name == "batchbald":
        passes = dropout_passes(features, head, 20, 0.5).double().numpy()[:, known:]
        return lambda: list(np.nanargmax(pool.batch_bald(passes, batch, 1000, 0), axis=1) + known)
    queries: dict[str, tuple[Any, dict[str, Any]]] = {
        "coreset": (pool.CoreSet(random_state=0), {}),
        "badge": (pool.Badge(random_state=0), clf),
        "typiclust": (pool.TypiClust(random_state=0, k=20), {}),
        "probcover": (pool.ProbCover(n_classes=classes, random_state=0), {}),
        "maxherding": (pool.MaxHerding(metric_dict={"gamma": 1.0}, random_state=0), {}),
        "dropquery": (pool.DropQuery(n_dropout_samples=3, random_state=0), clf),
        "falcun": (pool.Falcun(random_state=0), clf),
        "clue": (pool.Clue(random_state=0), {"estimator": clf["clf"], "fit_estimator": False}),
    }
    strategy, arguments = queries[name]
    return lambda: [int(i) for i in strategy.query(features, labels, **arguments, batch_size=batch)]


def reset_peak() -> None:
    """Give freed memory back and let the peak start from what is held now (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident memory of this process since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def work(job: dict[str, Any]) -> None:
    """One measurement, in this process; prints its result."""
    torch.set_num_threads(job["threads"])
    limit = int(job["memory"] * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    features = make_features(job["features"], job["n"], job["d"])
    head = make_head(features, job["c"])
    make = palkit_call if job["library"] == PALKIT else peer_call
    small = min(len(features), 1000)
    make(job["strategy"], features[:small], head, 10, 5)()
    call = make(job["strategy"], features, head, job["labelled"], job["b"])
    reset_peak()
    held = peak_bytes()
    times: list[float] = []
    while len(times) < 3 and sum(times) < 5:
        start = time.perf_counter()
        picks = [int(i) for i in call()]
        times.append(time.perf_counter() - start)
    print(json.dumps({"seconds": min(times), "bytes": peak_bytes() - held, "picks": picks}))


def measure(job: dict[str, Any], timeout: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "PYTHONWARNINGS": "ignore"}
    env["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {**job, "error": f"over {timeout:.0f} s"}
    if done.returncode:
        return {**job, "error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "killed"}
    return {**job, **json.loads(done.stdout.splitlines()[-1])}


def machine() -> dict[str, float]:
    """What this machine can do: bytes read per second, and float32 operations per second in a product."""
    x, y = torch.ones(2**28), torch.randn(4096, 1024)
    rates = {"bandwidth": 0.0, "flops": 0.0}
    for _ in range(3):
        start = time.perf_counter()
        x.sum()
        rates["bandwidth"] = max(rates["bandwidth"], x.numel() * 4 / (time.perf_counter() - start))
        start = time.perf_counter()
        y @ y.T
        rates["flops"] = max(rates["flops"], 2 * 4096**2 * 1024 / (time.perf_counter() - start))
    return rates


def show(ours: dict[str, Any], theirs: dict[str, Any] | None, rates: dict[str, float]) -> None:
    def cell(result: dict[str, Any]) -> str:
        if "error" in result:
            return f"{result['error'][:40]:>20}"
        return f"{result['seconds']:9.3f} s {result['bytes'] / 2**20:6.0f} MB"

    line = f"{ours['strategy']:22} N={ours['n']:<8} C={ours['c']:<5} B={ours['b']:<4} {cell(ours)}"
    if theirs is not None:
        line += f"   peer {cell(theirs)}"
        if "error" not in ours and "error" not in theirs:
            same = len(set(ours["picks"]) & set(theirs["picks"]))
            line += f"   {theirs['seconds'] / ours['seconds']:6.1f}x"
            line += f"  memory 1/{theirs['bytes'] / max(ours['bytes'], 2**20):.1f}  same picks {same}/{ours['b']}"
    line += f"   bound {bound({**ours, **rates}):.3f} s"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="20000", help="pool sizes N, comma separated")
    parser.add_argument("--classes", default="10", help="numbers of classes C, comma separated")
    parser.add_argument("--strategies", help="names, comma separated, or all; without it all but the slow and oracles")
    parser.add_argument("--features", default="noise", help="noise, clusters, embedded, or a .npy file")
    parser.add_argument("--dim", type=int, default=384, help="width D of synthetic features")
    parser.add_argument("--batches", default="100", help="batch sizes B, comma separated")
    parser.add_argument("--labelled", type=int, default=100, help="rows labelled already")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory", type=float, default=10, help="GB that one measurement may take")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one measurement")
    parser.add_argument("--no-peer", action="store_true", help="measure palkit alone")
    parser.add_argument("--out", type=Path, help="append results here, one JSON object a line")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(json.loads(options.job))
        return
    rates = machine()
    print(f"machine: {rates['bandwidth'] / 1e9:.1f} GB/s read, {rates['flops'] / 1e9:.0f} Gflop/s float32")
    names = sorted(STRATEGIES)
    if options.strategies is None:
        names = [name for name in names if name not in SLOW and not STRATEGIES[name].is_oracle]
    elif options.strategies != "all":
        names = options.strategies.split(",")
    failed: set[tuple[str, str, int, int]] = set()
    sizes, classes, batches = ([*map(int, getattr(options, key).split(","))] for key in ("sizes", "classes", "batches"))
    for name, c, b, n in itertools.product(names, classes, batches, sizes):
        job = {"strategy": name, "n": n, "d": options.dim, "c": c, "b": b}
        job |= {"labelled": options.labelled, "features": options.features, "threads": options.threads}
        job["memory"] = options.memory
        results: dict[str, dict[str, Any]] = {}
        for library in (PALKIT, PEER) if name in PEERS and not options.no_peer else (PALKIT,):
            if (library, name, c, b) not in failed:
                results[library] = result = measure({**job, "library": library}, options.timeout)
                if "error" in result:
                    failed.add((library, name, c, b))
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps({**result, **rates}) + "\n")
        if PALKIT in results:
            show(results[PALKIT], results.get(PEER), rates)


if __name__ == "__main__":
    main()
