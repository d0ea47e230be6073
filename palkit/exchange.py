"""Labels in and out: CSV, and the JSON tasks of Label Studio.

A table of labels has the text columns `id` (name of the image in the pool, e.g. "a/b.png"), `label` (class name; ""
where there is none), `annotator` and `time` (ISO 8601 with offset), the last two "" where not known; one row per image
and annotator. Whatever is written comes back exactly as it was.

Label Studio's formats: https://labelstud.io/guide/task_format.html (tasks and annotations),
https://labelstud.io/guide/export.html#JSON-MIN (the short export), https://labelstud.io/guide/predictions.html
(pre-annotations), https://labelstud.io/tags/choices.html (the labelling configuration).
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import pandas as pd

from palkit.checks import parsed
from palkit.errors import ConfigError, DataError, brief
from palkit.files import atomic_path

COLUMNS = ("id", "label", "annotator", "time")
PREDICTION_COLUMNS = ("id", "label", "probability")
CONTROL, IMAGE = "label", "image"  # names of the tags in our labelling configuration
# Label Studio's own template for image classification calls its tag "choice".
SHORT_CONTROLS = (CONTROL, "choice")
ID, ANNOTATOR = "palkit_id", "palkit_annotator"
UPLOADED = re.compile(r"/data/upload/\d+/(?:[0-9a-f]{8}-)?")  # what it puts before the name of an uploaded file
Row = tuple[str, str, str, str]  # as COLUMNS
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_labels_csv(table: pd.DataFrame, path: Path) -> None:
    """Write labels as CSV (UTF-8, RFC 4180), atomically.

    Cells are written as they are, so that names survive exactly: a class called "=1+1" is a formula to a spreadsheet.
    Import the file as text there if class names come from people you do not trust.

    Raises:
        ConfigError: the table is none of labels; names the column.
        DataError: the file cannot be written.
    """
    check_labels(table)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([COLUMNS, *table[list(COLUMNS)].itertuples(index=False)])
    _write(path, text.getvalue())


def read_labels_csv(path: Path) -> pd.DataFrame:
    """Read labels from CSV: columns `id` or `path`, and `label`; `annotator` and `time` if there; in any order.

    Raises:
        DataError: the file cannot be read or used; names the line and what to do.
    """
    text = _read(path)
    # A row may go over several lines, and errors are about the first of them.
    reader, line, rows = csv.reader(io.StringIO(text, newline=""), strict=True), 1, []
    columns: dict[str, int] = {}
    width = 0
    seen: set[tuple[str, str]] = set()
    try:
        for cells in reader:
            place, line = f"{path}, line {line}", reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns, width = _csv_columns(cells, place), len(cells)
                continue
            if len(cells) != width:
                raise DataError(f"{place}: {len(cells)} cells where the header has {width}. Quote cells with commas.")
            name, label, annotator, time = (cells[columns[name]] if name in columns else "" for name in COLUMNS)
            row = (name, label, annotator, time)
            _check_row(row, seen, place)
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not CSV ({error}). Save it again as comma-separated UTF-8.") from error
    if not columns:
        raise DataError(f"{path}: the file is empty. Its first line must be the header {','.join(COLUMNS)}.")
    return _table(rows)


def _csv_columns(header: Sequence[str], place: str) -> dict[str, int]:
    """Where each of our columns is."""
    names = [name.strip() for name in header]
    if "id" not in names:
        names = ["id" if name == "path" else name for name in names]
    for name in COLUMNS:
        if names.count(name) > 1:
            raise DataError(f"{place}: there are two columns {name!r}. Remove or rename one.")
    missing = [name for name in ("id", "label") if name not in names]
    if missing:
        wanted = " and ".join("'id' (or 'path')" if name == "id" else repr(name) for name in missing)
        raise DataError(f"{place}: the header lacks {wanted}; it has {', '.join(map(repr, header))}. Add it.")
    return {name: names.index(name) for name in COLUMNS if name in names}


def _check_row(row: Row, seen: set[tuple[str, str]], place: str) -> None:
    name, _, annotator, time = row
    if not name:
        raise DataError(f"{place}: the id is empty. Say which image the label is of, or remove the row.")
    if (name, annotator) in seen:
        raise DataError(f"{place}: {name!r} has an earlier row by annotator {annotator!r}. Keep the one that holds.")
    seen.add((name, annotator))
    if time:
        _moment(time, place)


def label_studio_config(class_names: Sequence[str]) -> str:
    """Labelling configuration for Label Studio's project settings: one image, one of these classes.

    Raises:
        ConfigError: no or repeated names, or one that XML cannot hold.
    """
    _check_classes(class_names)
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}")
    choices = ElementTree.SubElement(view, "Choices", name=CONTROL, toName=IMAGE, choice="single", showInline="true")
    for name in class_names:
        if NOT_IN_XML.search(name):
            raise ConfigError(f"class_names: {name!r} has a character that Label Studio cannot hold. Rename the class.")
        ElementTree.SubElement(choices, "Choice", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def write_label_studio(
    table: pd.DataFrame,
    path: Path,
    *,
    image_url: Callable[[str], str],
    class_names: Sequence[str],
    predictions: pd.DataFrame | None = None,
) -> None:
    """Write a task for each image, for import into a project with `label_studio_config`; atomically.

    Annotators named by e-mail address become `completed_by`; Label Studio refuses the import if it does not know them.
    It would refuse all other names, so they go with the result as `meta`, and the annotation belongs to who imports.
    The time of an imported annotation is that of the import.

    Args:
        table: of labels; an image whose label is "" becomes a task without annotation.
        path: of the JSON file.
        image_url: of an id, where Label Studio's browser finds the image, e.g. "/data/local-files/?d=a/b.png".
        class_names: of the labelling configuration.
        predictions: what a model proposes, shown to who labels: columns `id`, of an image in `table`, `label` and
            `probability`, one row per image.

    Raises:
        ConfigError: table, class names or predictions do not fit together; names the column.
        DataError: the file cannot be written.
    """
    check_labels(table)
    _check_classes(class_names)
    _check_known(table["label"][table["label"] != ""], class_names, "table: label")
    guesses = {} if predictions is None else _guesses(predictions, table, class_names)
    tasks: dict[str, dict[str, Any]] = {}
    for number, (name, label, annotator, time) in enumerate(table[list(COLUMNS)].itertuples(index=False), 1):
        if name not in tasks:
            tasks[name] = {"data": {IMAGE: image_url(name), ID: name}, "annotations": []}
            if name in guesses:
                guess, probability = guesses[name]
                result = [_result(f"prediction-{number}", guess)]
                tasks[name]["predictions"] = [{"model_version": "palkit", "score": probability, "result": result}]
        if label:
            tasks[name]["annotations"].append(_annotation(f"annotation-{number}", label, annotator, time))
    _write(path, json.dumps(list(tasks.values()), indent=1, ensure_ascii=False) + "\n")


def _result(identifier: str, label: str) -> dict[str, Any]:
    return {
        "id": identifier,
        "from_name": CONTROL,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [label]},
    }


def _annotation(identifier: str, label: str, annotator: str, time: str) -> dict[str, Any]:
    result = _result(identifier, label)
    annotation: dict[str, Any] = {"result": [result], "was_cancelled": False, "ground_truth": False}
    if time:
        annotation["created_at"] = time
    if "@" in annotator:
        annotation["completed_by"] = {"email": annotator}
    elif annotator:
        result["meta"] = {ANNOTATOR: annotator}
    return annotation


def _guesses(predictions: pd.DataFrame, table: pd.DataFrame, class_names: Sequence[str]) -> dict[str, tuple]:
    """Class and probability by id."""
    missing = [name for name in PREDICTION_COLUMNS if name not in predictions]
    if missing:
        raise ConfigError(f"predictions: the column {missing[0]!r} is missing.")
    _check_known(predictions["id"], table["id"], "predictions: id")
    _check_known(predictions["label"], class_names, "predictions: label")
    if predictions["id"].duplicated().any():
        twice = predictions["id"][predictions["id"].duplicated()].iloc[0]
        raise ConfigError(f"predictions: id {twice!r} has two rows; keep the more probable one.")
    if not predictions["probability"].between(0, 1).all():
        raise ConfigError("predictions: probability must lie between 0 and 1 everywhere.")
    rows = predictions[list(PREDICTION_COLUMNS)].itertuples(index=False)
    return {name: (label, float(probability)) for name, label, probability in rows}


def read_label_studio(path: Path) -> pd.DataFrame:
    """Read the labels of a Label Studio export, JSON or JSON-MIN, of tasks made by us or in any other way.

    Images without a label, and annotations that were skipped or are empty, are left out. Of several annotations of an
    image by an annotator the latest holds. The id is our own; in foreign tasks it is the path in the image's address.

    Raises:
        DataError: the file cannot be read or used; names the task and what to do.
    """
    try:
        content = parsed(_read(path))
    except ValueError as error:
        line = getattr(error, "lineno", 1)  # a number of thousands of digits has none
        raise DataError(f"{path}, line {line}: not JSON ({error}). Export it from Label Studio again.") from error
    latest: dict[tuple[str, str], tuple[datetime, Row]] = {}
    for number, task in enumerate(content if isinstance(content, list) else [content], 1):
        place = f"{path}, task {number}"
        if not isinstance(task, Mapping):
            raise DataError(f"{place}: not a task but {task!r:.80}. Export it as JSON or JSON-MIN.")
        if "id" in task:
            place += f" (id {brief(task['id'])})"
        for row in _rows(task, place):
            name, _, annotator, time = row
            moment = _moment(time, place) if time else datetime.min.replace(tzinfo=UTC)
            if (name, annotator) not in latest or moment >= latest[name, annotator][0]:
                latest[name, annotator] = moment, row
    return _table([row for _, row in latest.values()])


def _rows(task: Mapping[str, Any], place: str) -> list[Row]:
    """Rows of a task."""
    try:
        return list(_full(task, place) if "data" in task else _short(task, place))
    except (TypeError, KeyError, AttributeError, ValueError) as error:  # what should be an object is text, and so on
        raise DataError(
            f"{place}: not as Label Studio exports tasks ({type(error).__name__}: {error}). Export it again as JSON or "
            "JSON-MIN."
        ) from error


def _full(task: Mapping[str, Any], place: str) -> Iterator[Row]:
    """Rows of a task as it is exported as JSON."""
    for annotation in task.get("annotations", ()):
        results = [result for result in annotation.get("result") or () if result["type"] == "choices"]
        results = [result for result in results if result["from_name"] == CONTROL] or results
        chosen = [choice for result in results for choice in result["value"]["choices"]]
        if annotation.get("was_cancelled") or not chosen:
            continue
        annotator = results[0].get("meta", {}).get(ANNOTATOR)
        if annotator is None:
            annotator = _person(annotation.get("completed_by"))
        yield _name(task["data"], place), _only(chosen, place), _text(annotator), _time(annotation)


def _short(task: Mapping[str, Any], place: str) -> Iterator[Row]:
    """The row of an annotation as it is exported as JSON-MIN; an image without a label has none."""
    control = next((name for name in SHORT_CONTROLS if name in task), None)
    if control is None:
        if "annotation_id" not in task:
            raise DataError(f"{place}: neither 'data' nor 'annotation_id' is there. Export it as JSON or JSON-MIN.")
        return
    value = task[control]
    # One choice is exported as text, several as an object.
    chosen = value.get("choices", []) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    yield _name(task, place), _only(chosen, place), _person(task.get("annotator")), _time(task)


def _only(chosen: list, place: str) -> str:
    if len(chosen) != 1 or not isinstance(chosen[0], str) or not chosen[0]:
        raise DataError(
            f"{place}: an image here has one class, but this annotation has {chosen!r:.200}. Correct it in Label "
            'Studio, and set choice="single" in the labelling configuration.'
        )
    return chosen[0]


def _name(data: Mapping[str, Any], place: str) -> str:
    """Id of the image: ours, or else the path in its address."""
    if data.get(ID):
        return _text(data[ID])
    address = data.get(IMAGE)
    if not isinstance(address, str) or not address:
        raise DataError(f"{place}: there is neither {ID!r} nor {IMAGE!r} in its data, so nobody knows the image.")
    uploaded = UPLOADED.match(address)
    if uploaded:
        return unquote(address[uploaded.end() :])
    parts = urlsplit(address)
    if "d" in parse_qs(parts.query) and parts.path.endswith("/local-files/"):
        return parse_qs(parts.query)["d"][0]
    # A bare path may hold "#" and "%", which mean nothing there.
    return unquote(parts.path).lstrip("/") if parts.netloc else address


def _person(who: Any) -> str:
    """Annotator of `completed_by`: a user's number, or an object with the e-mail address."""
    if isinstance(who, Mapping):
        who = who.get("email", who.get("id"))
    return "" if who is None else _text(who)


def _text(value: Any) -> str:
    """Text, or a number as text: users and tasks have numbers."""
    if not isinstance(value, str | int):
        raise TypeError(f"{brief(value)} is no text")
    return brief(value) if isinstance(value, int) else value


def _time(annotation: Mapping[str, Any]) -> str:
    return annotation.get("updated_at") or annotation.get("created_at") or ""


def _moment(time: str, place: str) -> datetime:
    try:
        moment = datetime.fromisoformat(time)
    except (ValueError, TypeError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise DataError(f"{place}: the time {time!r} is not ISO 8601 with an offset, as in 2026-01-31T12:00:00+00:00.")
    return moment


def check_labels(table: pd.DataFrame, *, distinct: bool = True) -> None:
    """Refuse what is no table of labels.

    Args:
        table: of labels.
        distinct: refuse two rows of an image by one annotator.

    Raises:
        ConfigError: names the column or the row.
    """
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(f"table: a table with the columns {', '.join(COLUMNS)} is needed, got {brief(table)}.")
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ConfigError(f"table: the column {missing[0]!r} is missing.")
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(table[list(COLUMNS)].itertuples(index=False), 1):
        wrong = [name for name, value in zip(COLUMNS, row, strict=True) if not isinstance(value, str)]
        if wrong:
            raise ConfigError(f"table, row {number}: {wrong[0]!r} must be text, got {brief(getattr(row, wrong[0]))}.")
        try:
            _check_row(row, seen if distinct else set(), f"table, row {number}")
        except DataError as error:
            raise ConfigError(str(error)) from None


def _check_classes(class_names: Sequence[str]) -> None:
    if not class_names or len(set(class_names)) < len(class_names) or "" in class_names:
        raise ConfigError(f"class_names: one or more distinct names are needed, got {list(class_names)}.")


def _check_known(values: pd.Series, known: Sequence[str] | pd.Series, field: str) -> None:
    unknown = values[~values.isin(list(known))]
    if len(unknown):
        raise ConfigError(
            f"{field} {unknown.iloc[0]!r} is not among the {len(known)} known. Add it there or leave it out."
        )


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def _read(path: Path) -> str:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check the name and its permissions.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: the bytes are not UTF-8. Save the file again as UTF-8.") from error


def _write(path: Path, text: str) -> None:
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}: {text[error.start - 20 : error.end]!r} has bytes that are no text. Rename the file."
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
