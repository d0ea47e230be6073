"""How palkit answers bad input: at least 10,000 cases over every public entry, none of which may go unexplained.

    OMP_NUM_THREADS=1 python campaigns/fuzz.py                          # 10,000 random cases and all known ones
    OMP_NUM_THREADS=1 python campaigns/fuzz.py --only images --seed 1   # other images
    OMP_NUM_THREADS=1 python campaigns/fuzz.py --list                   # what went wrong, case by case

The cases are those of tests/bad_entries.py; tests/bad_input.py says what an explanation is. Each entry is tried in a
process of its own, with a bound on its address space and a time limit per case, so that a hang, a crash of a parser or
a memory bomb is counted too. Writes figures/trust/bad_input.json (with --only, the row of that entry) and exits with 1
if a case was accepted that should not have been, or refused without saying why, or took more than a case may.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

FIGURE = Path(__file__).parents[1] / "figures" / "trust" / "bad_input.json"
CASE_SECONDS = 60.0  # on a machine that others use too
CASE_MB = 1536.0  # a file of 178 million pixels is still an image, and so large once it is decoded
ADDRESS_BYTES = 6 * 2**30  # beyond what the process has once everything is imported
ENTRY_SECONDS = 3000


def status(field: str) -> float:
    """Megabytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def try_entry(name: str, cases: int, seed: int) -> None:
    """Print a JSON line for each kind of outcome of an entry, the last one a summary; in a process of its own."""
    from bad_entries import ENTRIES
    from bad_input import Case, World, judge
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    drawn, known, _ = ENTRIES[name]
    counts: Counter[str] = Counter()
    slowest, peak, faults = 0.0, 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        for variable in ("PALKIT_CACHE", "PALKIT_RUNS"):
            os.environ[variable] = str(Path(folder) / variable)
        os.environ["PALKIT_DEVICE"] = "cpu"
        world = World(Path(folder))
        address = int(status("VmSize") * 2**20) + ADDRESS_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (address, resource.getrlimit(resource.RLIMIT_AS)[1]))

        def attempt(case: Case) -> None:
            nonlocal slowest, peak
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # from here on, the peak is this case's
            before, began = status("VmRSS"), time.perf_counter()
            outcome, text = judge(case, CASE_SECONDS)
            seconds, grown = time.perf_counter() - began, status("VmHWM") - before
            if grown > CASE_MB:
                outcome, text = "unexplained", f"took {grown:.0f} MB; {text[:100]}"
            counts[outcome] += 1
            slowest, peak = max(slowest, seconds), max(peak, grown)
            if outcome == "unexplained":
                faults.append({"case": case.what, "fault": text})
                print(json.dumps(faults[-1]), flush=True)

        for case in known(world).values():
            attempt(case)
        world.clear()

        @seeded(seed)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def campaign(data: st.DataObject) -> None:
            if sum(counts.values()) < wanted:
                attempt(data.draw(drawn(world)))
                world.clear()

        wanted = sum(counts.values()) + cases
        campaign()
    summary = {"entry": name, "cases": sum(counts.values()), **counts, "slowest_s": slowest, "peak_mb": peak}
    print(json.dumps(summary), flush=True)


def outcome_of(name: str, cases: int, seed: int) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Summary and faults of an entry; a process that dies or hangs is a fault."""
    command = [sys.executable, __file__, "--entry", name, "--cases", str(cases), "--seed", str(seed)]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ENTRY_SECONDS)
        output, end = done.stdout, f"exit {done.returncode}: {done.stderr[-2000:]}"
    except subprocess.TimeoutExpired as error:
        output, end = (error.stdout or b"").decode(), f"not done within {ENTRY_SECONDS} s"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    summary = next((line for line in lines if "entry" in line), None)
    faults = [line for line in lines if "fault" in line]
    if summary is None:
        faults.append({"case": "the process", "fault": end})
        summary = {"entry": name, "cases": len(faults), "unexplained": len(faults)}
    return summary | {"seed": seed, "total_s": time.perf_counter() - began}, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="random cases over all entries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one entry")
    parser.add_argument("--list", action="store_true", help="print every fault, not the first three of an entry")
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.entry:
        try_entry(options.entry, options.cases, options.seed)
        return 0
    from bad_entries import ENTRIES

    shares = {name: share for name, (_, _, share) in ENTRIES.items() if options.only in (None, name)}
    if not shares:
        parser.error(f"--only {options.only}: one of {', '.join(ENTRIES)}")
    rows, every = [], {}
    for name, share in shares.items():
        cases = -(-options.cases * share // sum(shares.values()))
        summary, faults = outcome_of(name, int(cases), options.seed)
        rows.append(summary)
        every[name] = faults
        print(f"{name}: {summary['cases']} cases, {len(faults)} unexplained, {summary['total_s']:.0f} s", flush=True)
        for fault in faults if options.list else faults[:3]:
            print(f"    {fault['case']}: {fault['fault']}")
    table = summarise(rows)
    print(table.round({"slowest_s": 1, "peak_mb": 0, "total_s": 0}).to_string(index=False))
    known = {"entries": [], "faults": {}}
    if options.only and FIGURE.exists():  # the other entries stay as they were measured last
        known = json.loads(FIGURE.read_text(encoding="utf-8"))
    others = [row for row in known["entries"] if row["entry"] not in (*shares, "all")]
    content = {
        "entries": summarise([*others, *rows]).round(2).to_dict("records"),
        "faults": {**known["faults"], **every},
    }
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    FIGURE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(table["unexplained"].iloc[-1] > 0)


def summarise(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table of entries, and a last row for all of them together."""
    counts, most = ["cases", "accepted", "explained", "unexplained"], ["slowest_s", "peak_mb"]
    table = pd.DataFrame(rows, columns=["entry", "seed", *counts, *most, "total_s"]).fillna(0)
    table.loc[len(table)] = ["all", -1, *table[counts].sum(), *table[most].max(), table["total_s"].sum()]
    return table.astype(dict.fromkeys(["seed", *counts], int))


if __name__ == "__main__":
    sys.exit(main())
