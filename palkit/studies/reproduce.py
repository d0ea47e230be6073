"""The results of a sweep beside those of the committed reference, and a verdict: did it reproduce?

Runs are compared by the hash of their config, with the data and weights that they had; compared is what both sides
have. A run bought the same images if it bought the same identifiers in every round; their order within a round does not
count, because nothing is learnt in between. Areas are those under the accuracy curve, paired by seed; intervals are
Student's t, 95 %.

What it takes:

- *Reproduced*: every run bought the same images in every round, every accuracy is within `TOLERANCE` of the
  reference's, and no claim of the paper has another verdict.
- *Reproduced within 0.5 points*: images or accuracies differ, but no configuration's mean area by more than
  `TOLERANCE`, and no claim has another verdict.
- *Did not reproduce*: all else.
"""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from palkit.errors import ConfigError
from palkit.experiments.results import named, read_tables, short_paths
from palkit.storage.files import atomic_path
from palkit.studies.peal import judge
from palkit.studies.plots.style import configuration_names
from palkit.studies.statistics.intervals import area_under_curve, with_ends
from palkit.studies.statistics.tables import interval_texts

TOLERANCE = 0.005  # of an accuracy and of an area: half a point
GROUP = ["dataset", "backbone", "adapter", "strategy", "balance"]
TABLE = "reproduction.csv"
POINTS = f"{100 * TOLERANCE:g} points"
RULE = (
    f"Reproduced means: the same images in every round, every accuracy within {POINTS} of the reference, no other "
    f"verdict on a claim. Reproduced within {POINTS}: images or accuracies differ, but no mean area by more than that, "
    "and no verdict. The order of images within a round does not count. Areas are under the accuracy curve, "
    "in %; brackets are 95 % intervals (Student's t over seeds; differences are paired by seed)."
)


@dataclass(frozen=True)
class Reproduction:
    """Findings of a comparison.

    Attributes:
        conclusion: one sentence that begins with the verdict, or says why there is none.
        details: a sentence each, about what was not compared and which claims changed.
        table: one row per configuration, shares of 1; empty if nothing was compared.
    """

    conclusion: str
    details: tuple[str, ...] = ()
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    def readable(self) -> pd.DataFrame:
        """The table for a page: per cent, intervals in brackets, a count beside its total."""
        rows = self.table
        shown: dict[str, list[str]] = {}
        for name in ("dataset", "backbone"):
            if rows[name].nunique() > 1:
                shown[name] = rows[name].map(short_paths(rows[name].unique())).tolist()
        shown["configuration"] = configuration_names(rows)
        shown["same images"] = _counts(rows["same_images"], rows["runs"])
        if rows["first_apart"].notna().any():
            shown["first part in round"] = ["" if pd.isna(first) else f"{first:.0f}" for first in rows["first_apart"]]
        shown[f"within {POINTS}"] = _counts(rows["rounds_within"], rows["rounds"])
        shown["area"] = [f"{100 * area:.1f}" for area in rows["area"]]
        shown["reference"] = interval_texts(rows, "reference", scale=100, share=True)
        shown["difference"] = interval_texts(rows, "difference", "+z.1f", scale=100)
        return pd.DataFrame(shown)

    def lines(self) -> list[str]:
        """All of it as text, the conclusion first."""
        if self.table.empty:
            return [self.conclusion]
        return [self.conclusion, *self.details, "", *self.readable().to_string(index=False).splitlines(), "", RULE]

    def html(self) -> str:
        """All of it as a section of a page."""
        parts = ["<h2>Did it reproduce?</h2>", f"<p><b>{escape(self.conclusion)}</b></p>"]
        parts += [f"<p>{escape(line)}</p>" for line in self.details]
        if not self.table.empty:
            parts += [self.readable().to_html(index=False, border=0), f"<p>{escape(RULE)}</p>"]
        return "\n".join(["<section>", *parts, "</section>"])

    def write(self, folder: Path) -> None:
        """Store the table in a folder as `reproduction.csv`; take an old one away if there is none."""
        path = folder / TABLE
        if self.table.empty:
            path.unlink(missing_ok=True)
            return
        with atomic_path(path) as temporary:
            self.table.to_csv(temporary, index=False)


def compare(results: Path, reference: Path) -> Reproduction:
    """Compare the stored tables of two folders.

    Args:
        results: folder with `rounds.parquet` and `selections.parquet` of what was computed here.
        reference: folder with those to hold it against.

    Raises:
        DataError: a table is missing or cannot be read.
    """
    ours, theirs = (read_tables(folder, ("rounds", "selections")) for folder in (results, reference))
    here, there = (dict.fromkeys(rounds["run"]) for rounds, _ in (ours, theirs))
    both = [run for run in here if run in there]
    if not both:
        return Reproduction(
            f"Nothing to compare: none of the {len(here)} runs is in the reference ({len(there)} runs in {reference}); "
            "the grid was edited, or settings, data or weights are others."
        )
    absent = [
        f"{where}, so not compared: {_names(rounds[~rounds['run'].isin(both)])}."
        for (rounds, _), where in ((ours, "Not in the reference"), (theirs, "Missing here"))
        if not rounds["run"].isin(both).all()
    ]
    ours, theirs = (tuple(table[table["run"].isin(both)] for table in tables) for tables in (ours, theirs))
    runs = _runs(*ours, *theirs)
    table = pd.DataFrame([_configuration(key, rows) for key, rows in runs.groupby(GROUP, sort=False)])
    claims = _changed_claims(ours[0], theirs[0])
    conclusion = _conclusion(table, None if claims is None else len(claims), len(there) - len(both))
    return Reproduction(conclusion, (*absent, *(claims or ())), table)


def _runs(rounds: pd.DataFrame, bought: pd.DataFrame, there: pd.DataFrame, bought_there: pd.DataFrame) -> pd.DataFrame:
    """One row per run: what it was, whether it bought the same, how many rounds are alike, both areas.

    A round that one side lacks, or whose labels are other in number, is not alike, and its run has no areas to compare.
    """
    keys = ["run", "round", "labels"]
    pairs = rounds.merge(there[[*keys, "accuracy"]], on=keys, suffixes=("", "_there"), how="outer")
    what = rounds.drop_duplicates("run").set_index("run")
    for name in (*GROUP, "seed"):
        pairs[name] = pairs["run"].map(what[name])
    ids, ids_there = (table.groupby(keys[:2])["id"].agg(frozenset) for table in (bought, bought_there))
    pairs = pairs.sort_values(["round", "labels"], kind="stable")
    at = pd.MultiIndex.from_frame(pairs[keys[:2]])
    both = pairs[["accuracy", "accuracy_there"]].notna().all(axis=1).to_numpy()
    pairs["same"] = both & (ids.reindex(at) == ids_there.reindex(at)).to_numpy()
    pairs["within"] = (pairs["accuracy"] - pairs["accuracy_there"]).abs() <= TOLERANCE + 1e-9
    pairs["apart"] = pairs["round"].mask(pairs["same"])
    runs = pairs.groupby("run", sort=False)
    table = runs[[*GROUP, "seed"]].first().assign(
        apart=runs["apart"].min(),
        within=runs["within"].sum(),
        rounds=runs.size(),
        area=[_area(rows["labels"], rows["accuracy"]) for _, rows in runs],
        reference=[_area(rows["labels"], rows["accuracy_there"]) for _, rows in runs],
    )  # fmt: skip
    return table.assign(**named(rounds).loc[table.index])


def _area(labels: pd.Series, accuracy: pd.Series) -> float:
    """Area under the curve; of a single round, its accuracy; NaN if a number is missing."""
    if accuracy.isna().any():
        return np.nan
    return float(accuracy.iloc[0]) if len(labels) == 1 else area_under_curve(labels, accuracy)


def _configuration(key: tuple, runs: pd.DataFrame) -> dict[str, object]:
    """A row of the table from the runs of a configuration, one per seed."""
    difference = runs["area"] - runs["reference"]
    row = dict(zip(GROUP, key, strict=True)) | {
        "runs": len(runs),
        "same_images": int(runs["apart"].isna().sum()),
        "first_apart": runs["apart"].min(),
        "rounds": runs["rounds"].sum(),
        "rounds_within": runs["within"].sum(),
        "area": runs["area"].mean(skipna=False),
    }
    return row | with_ends("reference", runs["reference"].to_numpy()) | with_ends("difference", difference.to_numpy())


def _counts(some: pd.Series, of: pd.Series) -> list[str]:
    return [f"{part} of {whole}" for part, whole in zip(some, of, strict=True)]


def _changed_claims(rounds: pd.DataFrame, there: pd.DataFrame) -> list[str] | None:
    """A sentence about each claim on which the two tables give different verdicts; None if one of them gives none."""
    try:
        ours, theirs = (judge(table).set_index("claim") for table in (rounds, there))
    except ConfigError:  # runs of one round have no areas, and a number may be missing
        return None
    pairs = ours.join(theirs, rsuffix="_there")
    return [
        f"Another verdict: “{claim}” Here {row['verdict'].removesuffix(' here')}: {row['evidence']} In the reference "
        f"{row['verdict_there'].removesuffix(' here')}: {row['evidence_there']}"
        for claim, row in pairs[pairs["verdict"] != pairs["verdict_there"]].iterrows()
    ]


def _conclusion(table: pd.DataFrame, changed: int | None, lacking: int) -> str:
    runs, same, rounds, within = (table[name].sum() for name in ("runs", "same_images", "rounds", "rounds_within"))
    moved = table["difference"].abs()
    far = ~(moved <= TOLERANCE + 1e-9)  # also where it is not a number
    if far.any() or changed:
        verdict = "Did not reproduce"
    else:
        verdict = "Reproduced" + (" so far" if lacking else "")
        verdict += "" if same == runs and within == rounds else f" within {POINTS}"
    areas = f"the largest change of a mean area is {100 * moved.max():.1f} points"
    if far.any():
        areas = f"{far.sum()} of {len(table)} mean areas moved by more than that"
        at = moved.fillna(np.inf).argmax()
        worst, name = table.iloc[at], configuration_names(table)[at]
        if np.isnan(worst["difference"]):
            areas += f" or cannot be told, for rounds or numbers are missing or other: {name}"
        else:
            areas += f", most that of {name} ({100 * worst['area']:.1f} instead of {100 * worst['reference']:.1f})"
    parts = [
        f"{same} of {runs} runs bought the same images in every round"
        + ("" if same == runs else f" (the first to part does so in round {table['first_apart'].min():.0f})"),
        f"{within} of {rounds} accuracies are within {POINTS} of the reference",
        areas,
    ]
    verdicts = "no claim can be judged" if changed is None else "no claim has another verdict"
    if changed:
        verdicts = f"{changed} claim{'s have' if changed > 1 else ' has'} another verdict"
    left = f" {lacking} of the reference's {lacking + runs} runs are missing here." if lacking else ""
    return f"{verdict}: {'; '.join(parts)}; {verdicts}.{left}"


def _names(rounds: pd.DataFrame) -> str:
    """Runs by configuration, with their seeds."""
    runs = rounds.drop_duplicates("run").set_index("run")
    runs = runs.assign(**named(rounds))
    names = runs["dataset"].map(short_paths(runs["dataset"].unique())) + ", " + configuration_names(runs)
    groups = runs["seed"].astype(str).groupby(names, sort=False)
    return "; ".join(f"{name}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" for name, seeds in groups)
