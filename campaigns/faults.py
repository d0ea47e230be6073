"""Break palkit in every way a machine can, and count what is lost: labels, rounds, runs, or the truth.

    OMP_NUM_THREADS=1 python campaigns/faults.py [--kills 100] [--seed 0] [--only NAME]

Faults: SIGKILL at random moments and before every change of a file; full disks; read-only folders; files cut short or
with one bit flipped; clocks that jump; two processes on one folder; memory that runs out. Everything happens in
forked processes and temporary folders. After a fault the same call is made again, and must give, bit for bit, what an
undisturbed one gives; or raise an error of palkit's own that names the file, after which doing what it says must.
Where memory is short, batches are halved, and the size of a batch shows in the last bits of its sums: there, numbers
may differ by 1e-6. Full disks and read-only folders are small file systems in memory, and left out where this user may
not mount them; a limit on the size of files needs no permission.

Columns of the report, also in `figures/trust/faults.csv`:

- same: the same result, without a word; told: the same result, after a clear error and what it said to do;
- died: of the same, those whose process a library ended or let wait for ever, as they do when there is no memory for
  even a thread; the next call gave the same;
- wrong: another result and no error, an error that nobody can act on, or a repair that did not help;
- labels, rounds, doubled: acknowledged labels and rounds that are gone; rounds, shards or labels computed or stored
  once more although they were on the disk.

The exit status is 1 if anything was wrong, lost or doubled.
"""

# From the ground up: fault_processes.py forks and kills, fault_targets.py is what is disturbed, fault_verdicts.py says
# what became of it, fault_kinds.py has the faults. Here is the campaign: which faults, how often, and the report.

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from fault_kinds import clocks, damages, full_disks, kills, kills_before_changes, memory, read_only, together
from fault_targets import Bench
from fault_verdicts import Trial

from palkit.storage.files import REPOSITORY

REPORT = REPOSITORY / "figures" / "trust" / "faults.csv"
BAD = ("wrong", "labels", "rounds", "doubled")
FAULTS: dict[str, tuple[Callable[[Bench, random.Random, int], Iterator[Trial]], float]] = {
    # and how often, relative to the number of kills
    "kills": (kills, 1.0),
    "changes": (kills_before_changes, 1.0),
    "disk": (full_disks, 0.1),
    "readonly": (read_only, 0.05),
    "damage": (damages, 0.08),
    "clock": (clocks, 0.03),
    "together": (together, 0.05),
    "memory": (memory, 0.05),
}


def campaign(bench: Bench, names: list[str], times: int, seed: int) -> Iterator[Trial]:
    """All trials of some kinds of faults; each kind has its own random numbers."""
    for name in names:
        fault, share = FAULTS[name]
        yield from fault(bench, random.Random(f"{seed} {name}"), max(1, round(times * share)))


def report(trials: list[Trial]) -> pd.DataFrame:
    """Counts per fault and target."""
    table = pd.DataFrame([asdict(trial) for trial in trials])
    for end in ("same", "told", "wrong"):
        table[end] = (table["end"] == end).astype(int)
    table["times"] = 1
    columns = ["times", "same", "told", "died", *BAD]
    return table.groupby(["fault", "target"], sort=False)[columns].sum().reset_index()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trials = []
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        for name in [options.only] if options.only else FAULTS:
            began = time.perf_counter()
            trials += campaign(bench, [name], options.kills, options.seed)
            print(f"{name}: {len(trials)} trials so far, {time.perf_counter() - began:.0f} s", flush=True)
    for note in sorted({f"{t.fault}, {t.target}: {t.note}" for t in trials if t.note}):
        print(note)
    table = report(trials)
    print(table.to_string(index=False))
    if not options.only:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(REPORT, index=False)
    return int(table[list(BAD)].to_numpy().any())


if __name__ == "__main__":
    sys.exit(main())
