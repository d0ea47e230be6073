"""Exchange of labels with other tools: CSV, and the JSON tasks of Label Studio, as files or as it sends them.

A table of labels has the text columns `id` (name of the image in the pool, e.g. "a/b.png"), `label` (class name; ""
where there is none), `annotator` and `time` (ISO 8601 with offset), the last two "" where not known; one row per image
and annotator. Whatever is written comes back exactly as it was.

Label Studio's formats: https://labelstud.io/guide/task_format.html (tasks and annotations),
https://labelstud.io/guide/export.html (its exports), https://labelstud.io/guide/predictions.html (pre-annotations),
https://labelstud.io/tags/choices.html (the labelling configuration).
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import pandas as pd
from pydantic import BeforeValidator

from palkit.errors import ConfigError, DataError, PalkitError, brief, hidden_difference
from palkit.labelling.records import FilledText, Share, Text, Time, explained, record
from palkit.storage.checks import normal
from palkit.storage.files import atomic_path
from palkit.storage.formats import csv_records, read_text, separator

COLUMNS = ["id", "label", "annotator", "time"]
CONTROL, IMAGE = "label", "image"  # names of the tags in our labelling configuration
# Ours, and that of Label Studio's own template for image classification.
USUAL_CONTROLS = (CONTROL, "choice")
ID, ANNOTATOR = "palkit_id", "palkit_annotator"
ANNOTATION = "annotation_id"  # a column of all of its short exports, and of no table of ours
SHORT = {"id", ANNOTATION, "annotator", "created_at", "updated_at", "lead_time", ID, IMAGE}  # beside data and controls
# What it puts before the name of an uploaded file; it may itself live below a path.
UPLOADED = re.compile(r"(?:https?://[^/]+)?(?:/[^/]+)?/data/upload/\d+/(?:[0-9a-f]{8}-)?")
IS_ADDRESS = re.compile(r".*\.\w{2,5}(?:[?#].*)?", re.DOTALL)  # of a file
ENCODED = ("http", "https", "file")  # schemes whose paths have %20 for a space; keys of a bucket are as they are
UNLABELLED = "have no annotation yet"
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
EXPORT_AGAIN = "Export it from Label Studio again, as JSON or JSON-MIN."


@dataclass(frozen=True)
class Row:
    """A row of a table of labels."""

    id: FilledText
    label: Text
    annotator: Text = ""
    time: Time = ""


def _as_text(value: Any) -> Any:
    """Text, or a number as text: users and tasks have numbers."""
    return str(value) if isinstance(value, int) else value


def _person(who: Any) -> Any:
    """Annotator of `completed_by`: a user's number, or an object with the e-mail address."""
    who = who.get("email", who.get("id")) if isinstance(who, Mapping) else who
    return "" if who is None else _as_text(who)


Person = Annotated[Text, BeforeValidator(_person)]
IfAny = BeforeValidator(lambda value: value or None)  # an empty object stands for no list


@dataclass(frozen=True)
class _Prediction:
    """A row of a table of predictions."""

    id: Text
    label: Text
    probability: Share


@dataclass(frozen=True)
class _Result:
    """What an annotator did with one control; what any control may hold is checked where it is used."""

    type: Text
    from_name: Text = ""
    value: Any = field(default_factory=dict)
    meta: Any = None


@dataclass(frozen=True)
class _Choices:
    """The value of a result with a Choices tag."""

    choices: list[Any] | None = None


@dataclass(frozen=True)
class _Annotation:
    result: Annotated[list[_Result] | None, IfAny] = None
    completed_by: Person = ""
    was_cancelled: Any = False
    updated_at: Any = None
    created_at: Any = None


@dataclass(frozen=True)
class _Task:
    """A task of Label Studio's JSON."""

    data: dict[str, Any]
    annotations: Annotated[list[_Annotation] | None, IfAny] = None


def write_labels_csv(table: pd.DataFrame, path: Path) -> None:
    """Write labels as CSV (UTF-8, RFC 4180), atomically.

    Cells are written as they are, so that names survive exactly: a class called "=1+1" is a formula to a spreadsheet.
    Import the file as text there if class names come from people you do not trust.

    Raises:
        ConfigError: the table is none of labels; names the column.
        DataError: the file cannot be written.
    """
    check_labels(table)
    _write(path, table.to_csv(columns=COLUMNS, index=False, lineterminator="\r\n"))


def read_labels_csv(path: Path) -> pd.DataFrame:
    """Read labels from CSV: columns `id` or `path`, and `label`; `annotator` and `time` if there; in any order.

    Capitals in their names do not count, and cells may be divided by semicolons or tabs, as spreadsheets do.

    Label Studio's own CSV is read as `read_label_studio` does.

    Raises:
        DataError: the file cannot be read or used; names the line and what to do.
    """
    text = read_text(path)
    if _studio_delimiter(text):
        return read_label_studio(path)
    place, header, rows = _csv_rows(path, text, separator(text, {"path", *COLUMNS}))
    names = [name.strip().lower() for name in header]
    if "id" not in names:
        names = ["id" if name == "path" else name for name in names]
    for name in COLUMNS:
        if names.count(name) > 1:
            raise DataError(f"{place}: there are two columns {name!r}. Remove or rename one.")
    lacking = ["'id' (or 'path')"] * ("id" not in names) + ["'label'"] * ("label" not in names)
    if lacking:
        found = ", ".join(map(repr, header))
        raise DataError(f"{place}: the header lacks {' and '.join(lacking)}; it has {found}. Add it.")
    return _table(_label_rows((place, dict(zip(names, cells, strict=True))) for place, cells in rows))


def _csv_rows(path: Path, text: str, delimiter: str) -> tuple[str, list[str], list[tuple[str, list[str]]]]:
    """Place and cells of the header, and those of every row."""
    records = [(f"{path}, line {line}", cells) for line, cells in csv_records(path, text, delimiter).items()]
    if not records:
        raise DataError(f"{path}: the file is empty. Its first line must be the header {','.join(COLUMNS)}.")
    (place, header), *rows = records
    for where, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{where}: {len(cells)} cells where the header has {len(header)}. Quote cells that hold {delimiter!r}."
            )
    return place, header, rows


def _label_rows(
    records: Iterable[tuple[str, Mapping[Any, Any]]], *, error: type[PalkitError] = DataError, distinct: bool = True
) -> list[Row]:
    """Rows of a table of labels, given with their places; each is about another image, or by another annotator."""
    rows, seen = [], set()
    for place, values in records:
        with explained(place, "Correct the row, or remove it.", error):
            row = record(Row, values)
            key = normal(row.id), normal(row.annotator)
            if distinct and key in seen:
                raise error(
                    f"{place}: {row.id!r} has an earlier row by annotator {row.annotator!r}. Keep the one that holds."
                )
            seen.add(key)
            rows.append(row)
    return rows


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


@dataclass(frozen=True)
class Control:
    """The Choices tag of a labelling configuration.

    Attributes:
        name: of the tag.
        to_name: of the image's tag.
        choices: that the tag has; empty where nobody has looked.
    """

    name: str
    to_name: str
    choices: frozenset[str] = frozenset()


def read_control(config: str, class_names: Collection[str], *, exact: bool = True) -> Control:
    """The tag of a labelling configuration whose choices are the classes.

    Args:
        config: XML, as `label_studio_config` or a person has written it.
        class_names: all classes.
        exact: refuse a tag that lacks some of them, has others, or lets people choose several.

    Raises:
        DataError: it is no XML, or has not exactly one such tag; says what is wrong.
    """
    classes, found, wrong = {*map(normal, class_names)}, [], []
    try:
        tags = list(ElementTree.fromstring(config).iter("Choices"))
    except ElementTree.ParseError as error:
        raise DataError(f"the labelling configuration is not XML ({error}). Correct it in the project.") from error
    for tag in tags:
        choices = {normal(one.get("alias") or one.get("value") or "") for one in tag.iter("Choice")}
        name, strange, missing = tag.get("name", ""), sorted(choices - classes), sorted(classes - choices)
        if classes & choices if not exact else not strange and not missing:
            found.append(Control(name, tag.get("toName", ""), frozenset(choices)))
            if exact and tag.get("choice") == "multiple":
                raise DataError(
                    f'the labelling configuration does not fit: {name!r} has choice="multiple", and an image has one '
                    'class. Set choice="single".'
                )
            continue
        parts = [f"{', '.join(map(repr, strange))} no class of the session"] * bool(strange)
        parts += [f"{', '.join(map(repr, missing))} missing"] * bool(missing)
        wrong.append(f"of the choices of {name!r}, {' and '.join(parts)}")
    if len(found) != 1:
        reason = f"{len(found)} tags have the classes as choices" if found else "; ".join(wrong) or "it has no Choices"
        raise DataError(
            f"the labelling configuration does not fit: {reason}. One Choices tag must have the classes: "
            f"{', '.join(map(repr, class_names))}."
        )
    return found[0]


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
    rows = check_labels(table)
    _check_classes(class_names)
    _check_known((row.label for row in rows if row.label), class_names, "table: label")
    guesses = {} if predictions is None else _guesses(predictions, table, class_names)
    tasks: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        if row.id not in tasks:
            tasks[row.id] = {"data": {IMAGE: image_url(row.id), ID: row.id}, "annotations": []}
            if guess := guesses.get(row.id):
                result = [result_of(f"prediction-{number}", guess.label)]
                prediction = {"model_version": "palkit", "score": guess.probability, "result": result}
                tasks[row.id]["predictions"] = [prediction]
        if row.label:
            tasks[row.id]["annotations"].append(_annotation(f"annotation-{number}", row))
    _write(path, json.dumps(list(tasks.values()), indent=1, ensure_ascii=False) + "\n")


def result_of(identifier: str, label: str, control: Control = Control(CONTROL, IMAGE)) -> dict[str, Any]:
    """A choice, as Label Studio stores it."""
    tags = {"from_name": control.name, "to_name": control.to_name, "type": "choices"}
    return {"id": identifier, **tags, "value": {"choices": [label]}}


def _annotation(identifier: str, row: Row) -> dict[str, Any]:
    result = result_of(identifier, row.label)
    annotation: dict[str, Any] = {"result": [result], "was_cancelled": False, "ground_truth": False}
    if row.time:
        annotation["created_at"] = row.time
    if "@" in row.annotator:
        annotation["completed_by"] = {"email": row.annotator}
    elif row.annotator:
        result["meta"] = {ANNOTATOR: row.annotator}
    return annotation


def _guesses(predictions: pd.DataFrame, table: pd.DataFrame, class_names: Sequence[str]) -> dict[str, _Prediction]:
    """Predictions by id."""
    guesses: dict[str, _Prediction] = {}
    columns = [column.name for column in fields(_Prediction)]
    for place, values in _table_records("predictions", predictions, columns):
        with explained(place, "Correct the row, or remove it.", ConfigError):
            guess = record(_Prediction, values)
            if guess.id in guesses:
                raise ConfigError(f"{place}: id {guess.id!r} has two rows. Keep the more probable one.")
            guesses[guess.id] = guess
    _check_known(guesses, table["id"], "predictions: id")
    _check_known((guess.label for guess in guesses.values()), class_names, "predictions: label")
    return guesses


def read_label_studio(path: Path, *, control: str | None = None, root: str = "") -> pd.DataFrame:
    """Read the labels of a Label Studio export (JSON, JSON-MIN, CSV or TSV) of tasks made by us or in any other way.

    Images without a label, and annotations that were skipped or hold no choice, are left out, with a warning that says
    how many. Of several annotations of an image by an annotator the latest holds. The id is our own; in foreign tasks
    it is the path in the image's address, which `Session.import_labels` finds among the images.

    Args:
        path: of the export.
        control: name of the Choices tag whose values are the classes; None for "label", "choice" or the only one.
            It must be said if several could be, as where a column of data is called so too.
        root: where the image folder lies, as the addresses begin: "slides" or "s3://bucket/slides". Ids are relative
            to it.

    Raises:
        DataError: the file cannot be read or used, or has no label in it; names the task and what to do.
    """
    contents = _contents(path)
    full: dict[str, _Task] = {}
    for place, content in contents:
        with explained(f"{place}: not as Label Studio exports tasks", EXPORT_AGAIN):
            if not isinstance(content, Mapping) or "data" in content:
                full[place] = record(_Task, content)
    found = [_controls(full.get(place) or content) for place, content in contents]
    controls = _chosen_controls([content for _, content in contents], found, control, path)
    root = _path_of(root).rstrip("/\\")
    latest: dict[tuple[str, str], tuple[datetime, Row]] = {}
    left_out: Counter[str] = Counter()
    for place, content in contents:
        with explained(place, EXPORT_AGAIN):
            task = full.get(place) or record(_Task, _as_task(content, controls))
            if not task.annotations:
                left_out[UNLABELLED] += 1
            for annotation in task.annotations or ():
                row = _row(place, task.data, annotation, controls, root)
                if isinstance(row, str):
                    left_out[row] += 1
                    continue
                moment = datetime.fromisoformat(row.time) if row.time else datetime.min.replace(tzinfo=UTC)
                if (row.id, row.annotator) not in latest or moment >= latest[row.id, row.annotator][0]:
                    latest[row.id, row.annotator] = moment, row
    reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
    if contents and not latest:
        raise DataError(
            f"{path} has no label in it: of {len(contents)} tasks, {reasons}. Export it once there are some."
        )
    if not contents or left_out.keys() - {UNLABELLED}:
        warnings.warn(f"{path}: {f'left out: {reasons}' if contents else 'there are no tasks in it'}.", stacklevel=2)
    return _table(row for _, row in latest.values())


def given_label(place: str, data: Mapping[str, Any], annotation: Any, control: Control) -> Row:
    """The label that an annotation gives, "" where it gives none: it was skipped, or nothing was chosen.

    Args:
        place: what the task is called in errors.
        data: of the task.
        annotation: JSON, as Label Studio sends it to a machine-learning backend.
        control: whose choices are the classes.

    Raises:
        DataError: it cannot be used.
    """
    with explained(place, "Correct it in Label Studio."):
        read = record(_Annotation, annotation)
        row = _row(place, data, read, (control.name,), "")
        return Row(image_name(place, data), "", read.completed_by) if isinstance(row, str) else row


def _contents(path: Path) -> list[tuple[str, Any]]:
    """Each task of an export, and where it stands."""
    text = read_text(path)
    if delimiter := _studio_delimiter(text):
        _, header, rows = _csv_rows(path, text, delimiter)
        return [
            (place, {name: _cell(cell) for name, cell in zip(header, cells, strict=True) if cell})
            for place, cells in rows
        ]
    with explained(f"{path} is not JSON, nor a CSV or TSV with a column {ANNOTATION!r}", EXPORT_AGAIN):
        content = json.loads(text)
    contents = []
    for number, task in enumerate(content if isinstance(content, list) else [content], 1):
        identifier = f" (id {brief(task['id'])})" if isinstance(task, Mapping) and "id" in task else ""
        contents.append((f"{path}, task {number}{identifier}", task))
    return contents


def _studio_delimiter(text: str) -> str:
    """What stands between the cells of a table as Label Studio exports it, "" if the text is none."""
    header = text.partition("\n")[0].rstrip("\r")
    return next((mark for mark in "\t,;" if ANNOTATION in [cell.strip('"') for cell in header.split(mark)]), "")


def _cell(text: str) -> Any:
    """Several choices are an object in a cell."""
    try:
        return json.loads(text) if text.startswith("{") else text
    except ValueError:
        return text


def _controls(task: _Task | Mapping[str, Any]) -> set[str]:
    """Names of the tags whose choices a task has, or in a short export could have: there, data are beside them."""
    if isinstance(task, _Task):
        results = [result for annotation in task.annotations or () for result in annotation.result or ()]
        return {result.from_name for result in results if result.type == "choices"}
    return {name for name, value in task.items() if name not in SHORT and _could_be_chosen(value)}


def _could_be_chosen(value: Any) -> bool:
    if isinstance(value, str):
        return not _is_address(value) and "://" not in value
    return isinstance(value, list) or (isinstance(value, Mapping) and "choices" in value)


def _chosen_controls(
    tasks: Sequence[Mapping[str, Any]], found: Sequence[set[str]], wanted: str | None, path: Path
) -> tuple[str, ...]:
    """The tags that give the class, of which each task has one at most.

    A short export has a task's data beside its controls. Label Studio writes the controls between `id` and
    `annotator`; where they are not there, anything that could be a control makes it uncertain what is.

    Args:
        tasks: of the export.
        found: `_controls` of each.
        wanted: see `read_label_studio`.
        path: of the export.

    Raises:
        DataError: the one that is wanted is not there, or there are several and none is.
    """
    names = set().union(*found)
    placed = {name for task, own in zip(tasks, found, strict=True) for name in _placed(task) if name in own}
    likely = {wanted} if wanted is not None else placed or names
    listed = ", ".join(map(repr, sorted(names if wanted is not None else likely))) or "none"
    if wanted is not None and wanted not in names:
        raise DataError(
            f"{path}: there are no choices of a control {wanted!r}. Controls that could be meant: {listed}."
        )
    usual = tuple(name for name in USUAL_CONTROLS if name in likely)
    both = len(usual) > 1 and any(own.issuperset(usual) for own in found)
    certain = placed or likely <= {*usual} or all("data" in task for task in tasks)
    if usual and certain and not both:
        return usual
    if len(likely) > 1:
        raise DataError(f"{path}: the classes could be in {listed}. Say which by control=.")
    return tuple(likely)


def _placed(task: Mapping[str, Any]) -> list[str]:
    """What stands where a short export has its controls."""
    order = list(task)
    if "id" not in order or "annotator" not in order:
        return []
    return order[order.index("id") + 1 : order.index("annotator")]


def _as_task(content: Mapping[str, Any], controls: Sequence[str]) -> dict[str, Any]:
    """An annotation as it is exported as JSON-MIN, CSV or TSV, in the form of a task of a full export."""
    control = next((name for name in controls if name in content), None)
    if control is None and ANNOTATION not in content:
        raise ValueError(f"neither 'data' nor {ANNOTATION!r} is there")
    if control is None:
        results: list[dict[str, Any]] = [
            {"type": "a value", "from_name": name} for name in content if name not in SHORT
        ]
    else:
        value = content[control]
        # One choice is exported as text, several as an object.
        chosen = value if isinstance(value, Mapping) else {"choices": value if isinstance(value, list) else [value]}
        results = [{"type": "choices", "from_name": control, "value": chosen}]
    times = {name: content.get(name) for name in ("updated_at", "created_at")}
    annotation: dict[str, Any] = {"result": results, "completed_by": content.get("annotator"), **times}
    return {"data": {name: value for name, value in content.items() if name != control}, "annotations": [annotation]}


def _row(place: str, data: Mapping[str, Any], annotation: _Annotation, controls: Sequence[str], root: str) -> Row | str:
    """The label that an annotation gives to an image, or why there is none.

    Raises:
        ValueError: it cannot be used.
        DataError: the image is not known; says what to do.
    """
    given = annotation.result or []
    choices = [result for result in given if result.type == "choices"]
    own = next((name for name in controls if any(result.from_name == name for result in choices)), None)
    if annotation.was_cancelled:
        return "were skipped by an annotator"
    results = [result for result in choices if result.from_name == own]
    chosen = [choice for result in results for choice in record(_Choices, result.value).choices or ()]
    if not chosen:
        others = {f"{result.type} of {result.from_name!r}" for result in given if result.from_name not in controls}
        return f"have no choice, but {', '.join(sorted(others))}" if others else "have an annotation without a choice"
    if len(chosen) != 1 or not isinstance(chosen[0], str) or not chosen[0]:
        raise ValueError(
            f"an image here has one class, but this annotation has {chosen!r:.200}. Correct it in Label Studio, and "
            'set choice="single" in the labelling configuration'
        )
    time = annotation.updated_at or annotation.created_at or ""
    meta = results[0].meta
    annotator = meta.get(ANNOTATOR) if isinstance(meta, Mapping) else None
    annotator = annotation.completed_by if annotator is None else _as_text(annotator)
    return record(Row, {"id": image_name(place, data, root), "label": chosen[0], "annotator": annotator, "time": time})


def image_name(place: str, data: Mapping[str, Any], root: str = "") -> Any:
    """Id of a task's image: ours, or else the path in its address, below the root.

    Args:
        place: what the task is called in errors.
        data: of the task.
        root: see `read_label_studio`.

    Raises:
        DataError: nobody knows the image, or it does not lie below the root.
    """
    if data.get(ID):
        return _as_text(data[ID])
    addresses = [data[IMAGE]] if data.get(IMAGE) else [value for value in data.values() if _is_address(value)]
    if len(addresses) != 1 or not isinstance(addresses[0], str):
        raise DataError(
            f"{place}: there is neither {ID!r} nor {IMAGE!r} in its data, so nobody knows the image; it has "
            f"{', '.join(map(repr, data))}. Name the image {IMAGE!r} in the tasks."
        )
    name = _path_of(addresses[0])
    if not root:
        return name
    image, folder = _comparable(name), _comparable(root) + "/"
    if not image.startswith(folder):
        raise DataError(
            f"{place}: the image {name!r} does not lie below the root {root!r}. Give the root it lies below."
        )
    return image.removeprefix(folder)


def _comparable(path: str) -> str:
    """A path as one is compared with another: signs, a first slash and the case of a drive mean nothing."""
    plain = normal(path).replace("\\", "/").lstrip("/")
    return plain[0].upper() + plain[1:] if re.match("[a-z]:", plain) else plain


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and IS_ADDRESS.fullmatch(value) is not None


def _path_of(address: str) -> str:
    """The path in the address of an image."""
    uploaded = UPLOADED.match(address)
    if uploaded:
        return unquote(address[uploaded.end() :])
    scheme, is_url, rest = address.partition("://")
    if is_url and scheme.lower() not in ENCODED:
        return rest.partition("/")[2]
    parts = urlsplit(address)
    query = parse_qs(parts.query)
    if "d" in query and parts.path.endswith("/local-files/"):
        return query["d"][0]
    # A bare path may hold "#" and "%", which mean nothing there.
    return unquote(parts.path).lstrip("/") if is_url else address


def located(names: Iterable[str], ids: Collection[str], pool: str) -> dict[str, str]:
    """The image that each name means: itself, or one whose path ends as it does, or that it ends as.

    Args:
        names: of images, as a table of labels from elsewhere has them: a name, a path or most of an address.
        ids: of all images.
        pool: name of the data set.

    Raises:
        ConfigError: an image that is not there, or that several could be; or two names of one image.
    """
    found = {name: normal(name) for name in dict.fromkeys(names) if normal(name) in ids}
    strangers = [name for name in dict.fromkeys(names) if name not in found]
    if not strangers:
        return found
    ends = endings(ids)
    found |= {name: ending(name, ids, ends, pool) for name in strangers}
    meant: dict[str, str] = {}
    for name, image in found.items():
        other = meant.setdefault(image, name)
        if normal(other) != normal(name):
            raise ConfigError(
                f"both {other!r} and {name!r} could be the image {image!r} of {pool!r}. Give the ids of the images, or "
                "the root that their addresses begin with."
            )
    first = strangers[0]
    warnings.warn(
        f"{len(strangers)} of {len(found)} images were found by how their paths end: {first!r} is {found[first]!r}.",
        stacklevel=3,
    )
    return found


def endings(ids: Iterable[str]) -> dict[str, list[str]]:
    """Images by the last part of their path."""
    ends: dict[str, list[str]] = {}
    for one in ids:
        ends.setdefault(one.rpartition("/")[2], []).append(one)
    return ends


def ending(name: str, ids: Collection[str], ends: Mapping[str, Sequence[str]], pool: str) -> str:
    """The one image whose path ends as a name does, or that a name ends as.

    Args:
        name: a name, a path or most of an address.
        ids: of all images.
        ends: `endings` of them.
        pool: name of the data set.

    Raises:
        ConfigError: an image that is not there, or that several could be.
    """
    path = normal(name).replace("\\", "/")  # of Windows
    parts = path.split("/")
    # Looked up rather than compared with all: thousands of images may share the last part, as "case1/image.png".
    candidates = [tail for start in range(len(parts)) if (tail := "/".join(parts[start:])) in ids]
    candidates = candidates or [one for one in ends.get(parts[-1], ()) if one.endswith(f"/{path}")]
    if not candidates and len(parts) == 1:  # Label Studio keeps of an uploaded file the last part of its name
        candidates = [one for last, images in ends.items() if _uploaded(last) == path for one in images]
    if len(candidates) == 1 or path in candidates:
        return candidates[0]
    if candidates:
        raise ConfigError(
            f"the image {name!r} could be each of {', '.join(map(repr, candidates[:3]))} in the pool of {pool!r}. Give "
            "the ids of the images, or the root that their addresses begin with."
        )
    twin = next(((last, why) for last in ends if (why := hidden_difference(parts[-1], last))), None)
    hint = f"{twin[0]!r} differs from it in {twin[1]}" if twin else f"ids there are as {next(iter(ids), '')!r}"
    raise ConfigError(f"there is no image {brief(name)} in the pool of {pool!r}; {hint}.")


def _uploaded(name: str) -> str:
    """The name that Label Studio gives to an uploaded file (Django's `get_valid_filename`)."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def check_labels(table: pd.DataFrame, *, distinct: bool = True) -> list[Row]:
    """The rows of a table of labels.

    Args:
        table: of labels.
        distinct: refuse two rows of an image by one annotator.

    Raises:
        ConfigError: it is none; names the column or the row.
    """
    return _label_rows(_table_records("table", table, COLUMNS), error=ConfigError, distinct=distinct)


def _table_records(name: str, table: pd.DataFrame, columns: list[str]) -> list[tuple[str, dict[Hashable, Any]]]:
    """Place and values of each row of a table, in these columns; it may have others."""
    missing = [column for column in columns if not isinstance(table, pd.DataFrame) or column not in table]
    if missing:
        raise ConfigError(
            f"{name}: the column {missing[0]!r} is missing. A table with the columns {', '.join(columns)} is needed."
        )
    return [(f"{name}, row {number}", values) for number, values in enumerate(table[columns].to_dict("records"), 1)]


def _check_classes(class_names: Sequence[str]) -> None:
    if not class_names or len({*map(normal, class_names)}) < len(class_names) or "" in class_names:
        raise ConfigError(f"class_names: one or more distinct names are needed, got {list(class_names)}.")


def _check_known(values: Iterable[str], known: Collection[str], field: str) -> None:
    there = {*map(normal, known)}
    unknown = next((value for value in values if normal(value) not in there), None)
    if unknown is not None:
        raise ConfigError(f"{field} {unknown!r} is not among the {len(known)} known. Add it there or leave it out.")


def _table(rows: Iterable[Row]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=COLUMNS, dtype=object)


def _write(path: Path, text: str) -> None:
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}: {text[error.start - 20 : error.end]!r} has bytes that are no text. Rename the file."
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
