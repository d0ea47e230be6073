"""What became of a fault: the same result or another, an error that was clear or not, a repair that helped or not."""

import os
import re
import shutil
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pandas as pd
from fault_processes import Ended, forked
from fault_targets import Before, Target


@dataclass(frozen=True)
class Trial:
    """One fault and what became of it. `note` says what was wrong, if anything."""

    fault: str
    target: str
    end: str
    labels: int = 0
    rounds: int = 0
    doubled: int = 0
    died: int = 0
    note: str = ""


def judged(
    fault: str, name: str, ended: Ended, target: Target, folder: Path, *, tolerance: float = 0.0, **counts: int
) -> Trial:
    """The trial of work that was done in the end; numbers of its tables may differ by the tolerance."""
    wrong = _difference(ended, target.undisturbed, tolerance)
    _forget(folder)
    return Trial(fault, name, "wrong" if wrong else "same", note=wrong, **counts)


def repaired(
    fault: str,
    name: str,
    ended: Ended,
    target: Target,
    folder: Path,
    path: str,
    backup: Path | None = None,
    *,
    before: Before | None = None,
    tolerance: float = 0.0,
) -> Trial:
    """The trial of work that may have ended with an error: if it was clear, what it says is done, and all is well.

    Args:
        fault, name, ended, target, folder: see `Trial` and `forked`.
        path: that the error has to name.
        backup: an undamaged copy.
        before: what was stored after the fault, if all that had been told by then must be there.
        tolerance: see `judged`.
    """
    end = "same"
    if ended.error:
        named = any(part in ended.error for part in (path, str(Path(path).parent)))
        if not ended.clear or not named:
            _forget(folder)
            return Trial(fault, name, "wrong", note=f"unclear: {ended.error[:300]}")
        repair(ended.error, Path(path), backup)
        again = forked(target.job.work, folder)
        again.told, end = ended.told + again.told, "told"
    else:
        again = ended
    counts = target.job.check(folder, again.told, [before]) if before is not None else {}
    trial = judged(fault, name, again, target, folder, tolerance=tolerance, **counts)
    if trial.end == "wrong":
        return replace(trial, note=f"after {ended.error[:300]!r} still {trial.note}" if ended.error else trial.note)
    return replace(trial, end=end)


def repair(message: str, path: Path, backup: Path | None) -> None:
    """Do what an error message says."""
    for place in re.findall(r"[Dd]elete (?:the (?:folder|file) )?(/\S*[^\s.,;:)])", message):
        if Path(place).is_dir():
            shutil.rmtree(place)
        else:
            Path(place).unlink(missing_ok=True)
    if backup is not None and re.search(r"Mend or remove the line|backup", message):
        shutil.copy(backup, path)


def _difference(ended: Ended, undisturbed: Ended, tolerance: float) -> str:
    if ended.signal:
        return f"signal {ended.signal}\n{ended.words}".strip()
    if ended.error:
        return f"an error: {ended.error[:300]}"
    there, expected = ended.value, undisturbed.value
    names = [n for n in expected if there.get(n) != expected[n] and not _close(there.get(n), expected[n], tolerance)]
    return f"different: {', '.join(names)}" if names else ""


def _close(text: str | None, expected: str, tolerance: float) -> bool:
    """Whether two tables are the same but for the last bits of their fractions."""
    if not tolerance or text is None:
        return False
    try:
        tables = [pd.read_csv(StringIO(one)) for one in (text, expected)]
        pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=0, atol=tolerance)
    except (AssertionError, ValueError):
        return False
    return True


def _forget(folder: Path) -> None:
    if not os.path.ismount(folder):
        shutil.rmtree(folder, ignore_errors=True)
