"""Labels in and out: CSV, and the JSON tasks of Label Studio.

A table of labels has the text columns `id` (name of the image in the pool, e.g. "a/b.png"), `label` (class name; ""
where there is none), `annotator` and `time` (ISO 8601 with offset), the last two "" where not known; one row per image
and annotator. Whatever is written comes back exactly as it was.

Label Studio's formats: https://labelstud.io/guide/task_format.html (tasks and annotations),
https://labelstud.io/guide/export.html (its exports), https://labelstud.io/guide/predictions.html (pre-annotations),
https://labelstud.io/tags/choices.html (the labelling configuration).
"""

import csv
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import pandas as pd

from palkit.errors import ConfigError, DataError, brief, hidden_difference
from palkit.storage.checks import normal
from palkit.storage.files import atomic_path
from palkit.storage.formats import read_text, separator

COLUMNS = ("id", "label", "annotator", "time")
PREDICTION_COLUMNS = ("id", "label", "probability")
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

    Capitals in their names do not count, and cells may be divided by semicolons or tabs, as spreadsheets do.

    Label Studio's own CSV is read as `read_label_studio` does.

    Raises:
        DataError: the file cannot be read or used; names the line and what to do.
    """
    text = read_text(path)
    if _studio_delimiter(text):
        return read_label_studio(path)
    line, rows = 1, []
    columns: dict[str, int] = {}
    width = 0
    seen: set[tuple[str, str]] = set()
    try:
        sign = separator(text, {"path", *COLUMNS})
        # A row may go over several lines, and errors are about the first of them.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
        for cells in reader:
            place, line = f"{path}, line {line}", reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns, width = _csv_columns(cells, place), len(cells)
                continue
            if len(cells) != width:
                raise DataError(
                    f"{place}: {len(cells)} cells where the header has {width}. Quote cells that hold {sign!r}."
                )
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
    names = [name.strip().lower() for name in header]
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
    key = normal(name), normal(annotator)
    if key in seen:
        raise DataError(f"{place}: {name!r} has an earlier row by annotator {annotator!r}. Keep the one that holds.")
    seen.add(key)
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
    tasks = _tasks(path)
    found = [{*_guarded(partial(_controls, task), place)} for task, place in tasks]
    controls, root = _chosen_controls([task for task, _ in tasks], found, control, path), _path_of(root).rstrip("/\\")
    latest: dict[tuple[str, str], tuple[datetime, Row]] = {}
    left_out: Counter[str] = Counter()
    for task, place in tasks:
        for row in _guarded(partial(_full if "data" in task else _short, task, controls, root, place), place):
            if isinstance(row, str):
                left_out[row] += 1
                continue
            name, _, annotator, time = row
            moment = _moment(time, place) if time else datetime.min.replace(tzinfo=UTC)
            if (name, annotator) not in latest or moment >= latest[name, annotator][0]:
                latest[name, annotator] = moment, row
    reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
    if tasks and not latest:
        raise DataError(f"{path} has no label in it: of {len(tasks)} tasks, {reasons}. Export it once there are some.")
    if not tasks or left_out.keys() - {UNLABELLED}:
        warnings.warn(f"{path}: {f'left out: {reasons}' if tasks else 'there are no tasks in it'}.", stacklevel=2)
    return _table([row for _, row in latest.values()])


def _tasks(path: Path) -> list[tuple[Mapping[str, Any], str]]:
    """Each task of an export, and where it stands."""
    text = read_text(path)
    delimiter = _studio_delimiter(text)
    if delimiter:
        return list(_table_tasks(text, delimiter, path))
    try:
        content = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)  # a number of thousands of digits has none
        raise DataError(
            f"{path}, line {line}: not JSON ({error}), nor a CSV or TSV of Label Studio, which has a column "
            f"{ANNOTATION!r}. Export it from Label Studio again."
        ) from error
    tasks = []
    for number, task in enumerate(content if isinstance(content, list) else [content], 1):
        place = f"{path}, task {number}"
        if not isinstance(task, Mapping):
            raise DataError(f"{place}: not a task but {task!r:.80}. Export it as JSON or JSON-MIN.")
        tasks.append((task, f"{place} (id {brief(task['id'])})" if "id" in task else place))
    return tasks


def _studio_delimiter(text: str) -> str:
    """What stands between the cells of a table as Label Studio exports it, "" if the text is none."""
    header = text.partition("\n")[0].rstrip("\r")
    return next((mark for mark in "\t,;" if ANNOTATION in [cell.strip('"') for cell in header.split(mark)]), "")


def _table_tasks(text: str, delimiter: str, path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The rows of a CSV or TSV as tasks of a JSON-MIN, whose cells they have."""
    reader, line = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 2
    try:
        for row in reader:
            place, line = f"{path}, line {line}", reader.line_num + 1
            if None in row or None in row.values():
                raise DataError(f"{place}: not as many cells as the header has. Export it from Label Studio again.")
            # Several choices are an object in a cell.
            yield {key: _cell(value) for key, value in row.items() if value}, place
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not CSV ({error}). Export it from Label Studio again.") from error


def _cell(text: str) -> Any:
    try:
        return json.loads(text) if text.startswith("{") else text
    except ValueError:
        return text


def _guarded(read: Callable[[], Iterable], place: str) -> list:
    """What is found in a task; where text stands in place of an object, and so on, an error that names the task."""
    try:
        return list(read())
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(
            f"{place}: not as Label Studio exports tasks ({type(error).__name__}: {error}). Export it again as JSON or "
            "JSON-MIN."
        ) from error


def _controls(task: Mapping[str, Any]) -> set[str]:
    """Names of the tags whose choices a task has, or in a short export could have: there, data are beside them."""
    if "data" in task:
        annotations = task.get("annotations") or ()
        results = [result for annotation in annotations for result in annotation.get("result") or ()]
        return {result["from_name"] for result in results if result["type"] == "choices"}
    return {name for name, value in task.items() if name not in SHORT and _could_be_chosen(value)}


def _could_be_chosen(value: Any) -> bool:
    if isinstance(value, str):
        return not IS_ADDRESS.fullmatch(value) and "://" not in value
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
    listed = ", ".join(map(repr, sorted(names))) or "none"
    if wanted is not None and wanted not in names:
        raise DataError(
            f"{path}: there are no choices of a control {wanted!r}. Controls that could be meant: {listed}."
        )
    if wanted is not None:
        return (wanted,)
    placed = {name for task, own in zip(tasks, found, strict=True) for name in _placed(task) if name in own}
    certain = placed or all("data" in task for task in tasks)
    likely = placed or names
    usual = tuple(name for name in USUAL_CONTROLS if name in likely)
    both = any(own.issuperset(USUAL_CONTROLS) for own in found) and len(usual) > 1
    if usual and not both and (certain or likely <= {*usual}):
        return usual
    if len(likely) > 1:
        listed = ", ".join(map(repr, sorted(likely)))
        raise DataError(f"{path}: the classes could be in {listed}. Say which by control=.")
    return tuple(likely)


def _placed(task: Mapping[str, Any]) -> list[str]:
    """What stands where a short export has its controls."""
    order = list(task)
    if "id" not in order or "annotator" not in order:
        return []
    return order[order.index("id") + 1 : order.index("annotator")]


def _full(task: Mapping[str, Any], controls: Sequence[str], root: str, place: str) -> Iterator[Row | str]:
    """Of a task as it is exported as JSON."""
    annotations = task.get("annotations") or ()
    if not annotations:
        yield UNLABELLED
    for annotation in annotations:
        given = annotation.get("result") or ()
        of_control: dict[str, list] = {}
        for result in given:
            if result["type"] == "choices":
                of_control.setdefault(result["from_name"], []).append(result)
        results = next((of_control[name] for name in controls if name in of_control), [])
        chosen = [choice for result in results for choice in result["value"]["choices"]]
        if annotation.get("was_cancelled"):
            yield "were skipped by an annotator"
        elif not chosen:
            others = ", ".join(
                sorted({f"{r['type']} of {r['from_name']!r}" for r in given if r["from_name"] not in controls})
            )
            yield f"have no choice, but {others}" if others else "have an annotation without a choice"
        else:
            annotator = results[0].get("meta", {}).get(ANNOTATOR)
            if annotator is None:
                annotator = _person(annotation.get("completed_by"))
            yield _name(task["data"], root, place), _only(chosen, place), _text(annotator), _time(annotation)


def _short(task: Mapping[str, Any], controls: Sequence[str], root: str, place: str) -> Iterator[Row | str]:
    """Of an annotation as it is exported as JSON-MIN, CSV or TSV."""
    control = next((name for name in controls if name in task), None)
    if control is None:
        if ANNOTATION not in task:
            raise DataError(f"{place}: neither 'data' nor {ANNOTATION!r} is there. Export it as JSON or JSON-MIN.")
        there = ", ".join(repr(name) for name in task if name not in SHORT)
        yield f"have no choice, but {there}" if there else "have an annotation without a choice"
        return
    value = task[control]
    # One choice is exported as text, several as an object.
    chosen = value.get("choices", []) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    data = {name: content for name, content in task.items() if name != control}
    yield _name(data, root, place), _only(chosen, place), _person(task.get("annotator")), _time(task)


def _only(chosen: list, place: str) -> str:
    if len(chosen) != 1 or not isinstance(chosen[0], str) or not chosen[0]:
        raise DataError(
            f"{place}: an image here has one class, but this annotation has {chosen!r:.200}. Correct it in Label "
            'Studio, and set choice="single" in the labelling configuration.'
        )
    return chosen[0]


def _name(data: Mapping[str, Any], root: str, place: str) -> str:
    """Id of the image: ours, or else the path in its address, below the root."""
    if data.get(ID):
        return _text(data[ID])
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
    ends: dict[str, list[str]] = {}
    for one in ids:
        ends.setdefault(one.rpartition("/")[2], []).append(one)
    for name in strangers:
        found[name] = _ending(name, ids, ends, pool)
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


def _ending(name: str, ids: Collection[str], ends: Mapping[str, Sequence[str]], pool: str) -> str:
    """The one image whose path ends as a name does, or that a name ends as."""
    path = normal(name).replace("\\", "/")  # of Windows
    parts = path.split("/")
    candidates = [tail for tail in ("/".join(parts[start:]) for start in range(len(parts))) if tail in ids]
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
    if not class_names or len({*map(normal, class_names)}) < len(class_names) or "" in class_names:
        raise ConfigError(f"class_names: one or more distinct names are needed, got {list(class_names)}.")


def _check_known(values: pd.Series, known: Sequence[str] | pd.Series, field: str) -> None:
    unknown = values[~values.map(normal).isin([normal(one) for one in known])]
    if len(unknown):
        raise ConfigError(
            f"{field} {unknown.iloc[0]!r} is not among the {len(known)} known. Add it there or leave it out."
        )


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def _write(path: Path, text: str) -> None:
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}: {text[error.start - 20 : error.end]!r} has bytes that are no text. Rename the file."
        ) from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
