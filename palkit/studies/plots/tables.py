"""Tables for a page: numbers in, text in CSV and LaTeX out."""

from pathlib import Path

import pandas as pd

from palkit.storage.files import write_text
from palkit.studies.plots.style import METRIC_LABELS, configuration_names, is_share, one_line
from palkit.studies.statistics.tables import interval_texts

LATEX = {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
INTERVAL = "95 % t interval over the seeds of that data set"
CLEAR = "best, with a paired 95 % t interval of the difference to the second that excludes zero"
SIGNS = str.maketrans({sign: f"\\{sign}" for sign in "%&_#$"})


def wide_areas(areas: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Areas under budget curves as text, one row per configuration and one column per data set.

    Args:
        areas: from `palkit.studies.statistics.area_table`.

    Returns:
        Cells such as "71.2 [70.1, 72.3]" (per cent where the metric is a share; no interval for one seed), with
        `attrs["caption"]` and the index's name saying what they are, and which to print in bold: those whose paired
        interval against the second excludes zero.
    """
    named = areas.assign(configuration=configuration_names(areas))
    metric = areas["metric"].iloc[0]
    scale, form = (100, ".1f") if is_share(metric) else (1, ".3f")
    share = is_share(metric) and bool((areas["mean"] >= 0).all())  # differences of shares are none
    named["cell"] = interval_texts(areas, "mean", form, scale=scale, share=share)
    order, index, columns = list(dict.fromkeys(named["configuration"])), "configuration", "dataset"
    cells, clear = (named.pivot(index=index, columns=columns, values=values).loc[order] for values in ("cell", "clear"))
    brackets = f" [{INTERVAL}]" if areas["mean_low"].notna().any() else ", one seed"
    what = f"mean {METRIC_LABELS.get(metric, metric)} over the budget{brackets}"
    cells.attrs["caption"] = f"{what[0].upper()}{what[1:]}. Bold: {CLEAR}."
    # A CSV has no caption: what the numbers are stands where it names its first column.
    return cells.rename_axis(index=f"configuration: {what}"), clear.eq(True)


def table_files(table: pd.DataFrame, path: Path | str, bold: pd.DataFrame | None = None) -> tuple[Path, Path]:
    """Write a table as CSV (all digits) and as LaTeX (three decimals, booktabs rules, special characters escaped).

    If `table.attrs["caption"]` says what the numbers are, that is the caption in LaTeX.

    Either file is complete or as it was. An index that only counts rows is left out.

    Args:
        table: what to write.
        path: where, without suffix; the folder is created.
        bold: (rows, columns) of the table, which cells LaTeX prints in bold; None for none.

    Returns:
        The paths of the CSV and the LaTeX file.
    """
    counted = isinstance(table.index, pd.RangeIndex)
    look = table.style.format(_latex, na_rep="--", escape="latex")
    look = look.format_index(_latex, escape="latex", axis=0).format_index(_latex, escape="latex", axis=1)
    look = look.hide(axis="index") if counted else look
    # One row of headings: the names of index and columns would take a second.
    look = look.hide(names=True, axis="index").hide(names=True, axis="columns")
    if bold is not None:
        look = look.apply(lambda _: bold.map(lambda marked: "textbf:--rwrap;" if marked else ""), axis=None)
    caption = table.attrs.get("caption", "").translate(SIGNS) or None
    csv, tex = (Path(path).with_name(f"{Path(path).name}.{suffix}") for suffix in ("csv", "tex"))
    write_text(csv, table.to_csv(index=not counted))
    write_text(tex, look.to_latex(hrules=True, caption=caption))
    return csv, tex


def _latex(value: object) -> str:
    r"""A cell in LaTeX, pandas' escapes made complete: no ligatures of <, > and |, no option of a rule or of \\."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = one_line(str(value))
    for sign, name in LATEX.items():
        text = text.replace(sign, name)
    return f"{{{text[0]}}}{text[1:]}" if text.startswith(("[", "*")) else text
