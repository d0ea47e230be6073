"""Labels out and in again, exactly; exports as Label Studio writes them; and input that cannot be used."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palkit.errors import ConfigError, DataError
from palkit.labelling.exchange import (
    label_studio_config,
    located,
    read_label_studio,
    read_labels_csv,
    write_label_studio,
    write_labels_csv,
)
from palkit.storage.checks import normal

COLUMNS = ["id", "label", "annotator", "time"]
MORNING, NOON = "2026-01-31T09:00:00+01:00", "2026-01-31T12:00:00.123+00:00"
AWKWARD = ["NA", "null", "1", "ümlaut, comma", 'say "no"', "two\nlines", "a\r\nb", "=1+1", " spaced ", "\ufeff", "é\0"]

words = st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
names = words.filter(bool)
times = st.one_of(st.just(""), st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat()))
in_folder = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tables(labels: st.SearchStrategy[str]) -> st.SearchStrategy[pd.DataFrame]:
    rows = st.lists(
        st.tuples(names, labels, words, times), max_size=8, unique_by=lambda row: (normal(row[0]), normal(row[2]))
    )
    return rows.map(labels_of)


def labels_of(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def write(path: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode())
    return path


def by_id(table: pd.DataFrame) -> list[tuple]:
    return sorted(table.itertuples(index=False, name=None))


@in_folder
@given(tables(words))
def test_csv_comes_back_exactly(tmp_path: Path, table: pd.DataFrame) -> None:
    write_labels_csv(table, tmp_path / "labels.csv")
    pd.testing.assert_frame_equal(read_labels_csv(tmp_path / "labels.csv"), table)


@in_folder
@given(tables(names), st.text(max_size=3))
def test_label_studio_comes_back_exactly(tmp_path: Path, table: pd.DataFrame, prefix: str) -> None:
    classes = ["another", *table["label"].unique()] if "another" not in set(table["label"]) else ["another"]
    classes = list({normal(name): name for name in [*classes, *table["label"]]}.values())
    path = tmp_path / "tasks.json"
    write_label_studio(table, path, image_url=lambda name: "https://host/" + name, class_names=classes)
    assert by_id(read_label_studio(path)) == by_id(table)


def test_csv_is_plain(tmp_path: Path) -> None:
    write_labels_csv(labels_of([("a/b.png", "cat, big", "mia", MORNING)]), tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_bytes() == (
        b"id,label,annotator,time\r\n" + f'a/b.png,"cat, big",mia,{MORNING}\r\n'.encode()
    )


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("label,id\ncat,a.png\n", [("a.png", "cat", "", "")]),
        ("\ufeffid,label\r\na.png,cat\r\n", [("a.png", "cat", "", "")]),
        ("path,label,split,group\na.png,cat,pool,7\n\n", [("a.png", "cat", "", "")]),
        ("time, annotator,id,label\n,mia,a.png,\n", [("a.png", "", "mia", "")]),
        ("path,id,label\n/x/a.png,a.png,cat", [("a.png", "cat", "", "")]),
        ("id,label\n", []),
        ("Id,Label\na.png,cat\n", [("a.png", "cat", "", "")]),
        ("PATH;LABEL;Annotator\na.png;cat, big;mia\n", [("a.png", "cat, big", "mia", "")]),
        ("\r\nlabel\tid\r\ncat\ta;b.png\r\n", [("a;b.png", "cat", "", "")]),
    ],
)
def test_csv_of_other_makes(tmp_path: Path, text: str, rows: list) -> None:
    pd.testing.assert_frame_equal(read_labels_csv(write(tmp_path / "labels.csv", text)), labels_of(rows))


def test_csv_may_be_utf_16(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("id\tlabel\r\ncafé.png\tcat\r\n".encode("utf-16"))
    pd.testing.assert_frame_equal(read_labels_csv(tmp_path / "labels.csv"), labels_of([("café.png", "cat", "", "")]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"name,label\na,cat\n", "line 1: the header lacks 'id' .or 'path'.; it has 'name', 'label'"),
        (b"id,class\na,cat\n", "line 1: the header lacks 'label'"),
        (b"id,label,label\na,cat,dog\n", "line 1: there are two columns 'label'"),
        (
            b'id,label\na,"two\nlines"\n,cat\n',
            "line 4: the id is empty. Correct the row, or remove it.$",
        ),
        (
            b"id,label\na,cat\nb,cat\na,dog\n",
            "line 4: 'a' has an earlier row by annotator ''. Keep the one that holds.$",
        ),
        (b"id,label\na,cat\nb\n", "line 3: 1 cells where the header has 2"),
        (b"id;label\na;cat\nb;cat;x\n", "line 3: 3 cells where the header has 2. Quote cells that hold ';'"),
        (b"Id,id,label\na,b,cat\n", "line 1: there are two columns 'id'"),
        (b"id,label\na,cat\nb,caf\xe9\n", "line 3: the bytes are not UTF-8"),
        (b'id,label\na,"cat\n', "cannot be read as a table .line 2: "),
        (b"id,label,time\na,cat,31.1.2026\n", "line 2: the time '31.1.2026' is not ISO 8601"),
        (b"id,label,time\na,cat,2026-01-31T12:00:00\n", "line 2: the time .* with an offset"),
    ],
)
def test_csv_that_cannot_be_used_names_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"labels.csv.*{message}"):
        read_labels_csv(path)


@pytest.mark.parametrize("read", [read_labels_csv, read_label_studio])
def test_missing_files(tmp_path: Path, read: Callable) -> None:
    with pytest.raises(DataError, match="nowhere cannot be read"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (labels_of([("a", "cat", "", "")]).drop(columns="time"), "the column 'time' is missing"),
        (labels_of([("a", None, "", "")]), "row 1: the label None must be text"),
        (labels_of([("a", "cat", "", ""), ("", "cat", "", "")]), "row 2: the id is empty"),
        (labels_of([("a", "cat", "mia", ""), ("a", "dog", "mia", "")]), "row 2: 'a' has an earlier row"),
        (labels_of([("a", "cat", "mia", "yesterday")]), "row 1: the time 'yesterday'"),
    ],
)
def test_tables_that_are_none_of_labels_are_not_written(tmp_path: Path, table: pd.DataFrame, message: str) -> None:
    path = write(tmp_path / "labels", "before")
    with pytest.raises(ConfigError, match=f"^table.*{message}"):
        write_labels_csv(table, path)
    with pytest.raises(ConfigError, match=f"^table.*{message}"):
        write_label_studio(table, path, image_url=str, class_names=["cat", "dog"])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_no_text_are_not_written(tmp_path: Path) -> None:
    table = labels_of([("caf\udce9.png", "cat", "", "")])
    with pytest.raises(DataError, match=r"Rename the file"):
        write_labels_csv(table, tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"Rename the file"):
        write_label_studio(table, tmp_path / "tasks.json", image_url=str, class_names=["cat"])
    assert not list(tmp_path.iterdir())


def test_tasks_as_label_studio_imports_them(tmp_path: Path) -> None:
    table = labels_of(
        [
            ("a/b.png", "cat", "mia@lab.org", MORNING),
            ("c.png", "", "", ""),
            ("a/b.png", "dog", "tom", ""),
        ]
    )
    predictions = pd.DataFrame({"id": ["c.png"], "label": ["dog"], "probability": [0.75]})
    path = tmp_path / "tasks.json"
    address = "/data/local-files/?d=images/{}".format
    write_label_studio(table, path, image_url=address, class_names=["cat", "dog"], predictions=predictions)
    first, second = json.loads(path.read_text())
    choice = {"from_name": "label", "to_name": "image", "type": "choices"}
    assert first == {
        "data": {"image": "/data/local-files/?d=images/a/b.png", "palkit_id": "a/b.png"},
        "annotations": [
            {
                "result": [{"id": "annotation-1", **choice, "value": {"choices": ["cat"]}}],
                "was_cancelled": False,
                "ground_truth": False,
                "created_at": MORNING,
                "completed_by": {"email": "mia@lab.org"},
            },
            {
                "result": [
                    {
                        "id": "annotation-3",
                        **choice,
                        "value": {"choices": ["dog"]},
                        "meta": {"palkit_annotator": "tom"},
                    }
                ],
                "was_cancelled": False,
                "ground_truth": False,
            },
        ],
    }
    assert second == {
        "data": {"image": "/data/local-files/?d=images/c.png", "palkit_id": "c.png"},
        "annotations": [],
        "predictions": [
            {
                "model_version": "palkit",
                "score": 0.75,
                "result": [{"id": "prediction-2", **choice, "value": {"choices": ["dog"]}}],
            }
        ],
    }
    # Without the image that nobody has labelled.
    assert by_id(read_label_studio(path)) == [row for row in by_id(table) if row[1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["dog"]}, "table: label 'cat' is not among the 1 known"),
        ({"class_names": []}, "class_names: one or more distinct"),
        ({"class_names": ["cat", "cat"]}, "class_names: one or more distinct"),
        ({"predictions": {"id": ["b"], "label": ["cat"], "probability": [1.0]}}, "predictions: id 'b' is not among"),
        (
            {"predictions": {"id": ["a"], "label": ["cow"], "probability": [1.0]}},
            "predictions: label 'cow' is not among",
        ),
        (
            {"predictions": {"id": ["a"], "label": ["cat"], "probability": [1.1]}},
            "predictions, row 1: the probability 1.1 must be less than or equal to 1",
        ),
        ({"predictions": {"id": ["a"], "label": ["cat"]}}, "predictions: the column 'probability' is missing"),
        ({"predictions": {}}, "predictions: the column 'id' is missing"),
        (
            {"predictions": {"id": ["a", "a"], "label": ["cat", "dog"], "probability": [0.6, 0.4]}},
            "predictions, row 2: id 'a' has two rows. Keep the more probable one.$",
        ),
    ],
)
def test_tasks_that_do_not_fit_together(tmp_path: Path, change: dict, message: str) -> None:
    given = {"image_url": str, "class_names": ["cat", "dog"], **change}
    if "predictions" in given:
        given["predictions"] = pd.DataFrame(given["predictions"])
    with pytest.raises(ConfigError, match=message):
        write_label_studio(labels_of([("a", "cat", "", "")]), tmp_path / "tasks.json", **given)
    assert not list(tmp_path.iterdir())


def test_labelling_configuration_holds_every_name() -> None:
    names = ['<b> & "quotes"', "two\nlines", "ümlaut", "it's"]
    view = ElementTree.fromstring(label_studio_config(names))
    (image,), (choices,) = view.findall("Image"), view.findall("Choices")
    assert image.attrib == {"name": "image", "value": "$image"}
    assert (choices.get("name"), choices.get("toName"), choices.get("choice")) == ("label", "image", "single")
    assert [choice.get("value") for choice in choices] == names
    with pytest.raises(ConfigError, match=r"'bell\\x07' has a character"):
        label_studio_config(["bell\a"])


def annotation(choices: list, who: object, time: str, **more: object) -> dict:
    """As in https://labelstud.io/guide/task_format.html, for a choice."""
    result = {
        "value": {"choices": choices},
        "id": "Dx_aB91ISN",
        "from_name": "choice",
        "to_name": "image",
        "type": "choices",
        "origin": "manual",
    }
    return {
        "id": 1001,
        "completed_by": who,
        "result": [result],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": time,
        "updated_at": time,
        "lead_time": 4.288,
        "prediction": {},
        "result_count": 0,
        "task": 1,
        **more,
    }


def task(number: int, data: dict, *annotations: dict) -> dict:
    return {
        "id": number,
        "annotations": list(annotations),
        "file_upload": "0225a044-cat.jpg",
        "drafts": [],
        "predictions": [],
        "data": data,
        "meta": {},
        "created_at": "2021-03-09T21:52:49.513742Z",
        "updated_at": "2021-03-09T22:16:08.746926Z",
        "inner_id": number,
        "total_annotations": len(annotations),
        "cancelled_annotations": 0,
        "project": 83,
        "updated_by": 10,
        "comment_authors": [],
    }


FIRST, LATER = "2021-03-09T22:16:08.728353Z", "2021-03-10T08:00:00.000000Z"
PERSON = {"id": 7, "email": "mia@lab.org", "first_name": "Mia", "last_name": "M"}


def test_export_of_label_studio(tmp_path: Path) -> None:
    box = {"from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": {"rectanglelabels": ["x"]}}
    export = [
        # The latest of an annotator holds, wherever it stands; another annotator has an own row.
        task(1, {"image": "/data/upload/83/0225a044-big%20cat.jpg"}, annotation(["dog"], 10, LATER),
             annotation(["cat"], 10, FIRST), annotation(["cat"], PERSON, FIRST)),
        # An edited annotation counts from its edit.
        task(2, {"image": "/data/local-files/?d=slides/a%2Bb.png"}, annotation(["cat"], 10, FIRST, updated_at=LATER)),
        task(3, {"image": "s3://bucket/slides/c.png"}, annotation(["cat"], 10, FIRST, was_cancelled=True)),
        task(4, {"image": "s3://bucket/slides/d.png"}, annotation(["cat"], 10, FIRST, result=[])),
        task(5, {"image": "https://host/slides/e.png?v=2"}, annotation(["cat"], None, FIRST)),
        task(6, {"image": "slides/100%#1.png"}, annotation(["cat"], 10, FIRST)),
        task(7, {"image": "https://host/7", "palkit_id": "g.png"}, annotation(["cat"], 10, FIRST)),
        task(8, {"image": "h.png"}, annotation(["cat"], 10, FIRST, result=[box])),
        task(9, {"image": "s3://bucket/slides/i.png"}, annotation(["cat"], 10, "2021-03-09T22:16:08")),
        task(10, {"image": "j.png"}),
        task(11, {"image": "k.png"}, annotation([], 10, FIRST)),
    ]  # fmt: skip
    expected = [
        ("big cat.jpg", "cat", "mia@lab.org", FIRST),
        ("big cat.jpg", "dog", "10", LATER),
        ("g.png", "cat", "10", FIRST),
        ("slides/100%#1.png", "cat", "10", FIRST),
        ("slides/a+b.png", "cat", "10", LATER),
        ("slides/e.png", "cat", "", FIRST),
    ]
    with pytest.raises(DataError, match=r"export.json, task 9 \(id 9\): the time '2021-03-09T22:16:08' is not ISO"):
        read_label_studio(write(tmp_path / "export.json", export))
    del export[8]
    assert by_id(read_label_studio(write(tmp_path / "export.json", export))) == expected
    assert by_id(read_label_studio(write(tmp_path / "export.json", export[6]))) == [expected[2]]


def test_short_export_of_label_studio(tmp_path: Path) -> None:
    common = {"annotation_id": 1, "created_at": FIRST, "updated_at": FIRST, "lead_time": 4.288}
    export = [
        {"image": "/data/upload/83/0225a044-cat.jpg", "id": 1, "choice": "cat", "annotator": 10, **common},
        {"image": "/data/upload/83/0225a044-cat.jpg", "id": 1, "choice": "dog", "annotator": 10, **common,
         "updated_at": LATER},
        {"image": "/x", "palkit_id": "b.png", "id": 2, "label": "dog", "annotator": "mia@lab.org", **common},
        {"image": "c.png", "id": 3, "annotator": 10, **common},
    ]  # fmt: skip
    assert by_id(read_label_studio(write(tmp_path / "short.json", export))) == [
        ("b.png", "dog", "mia@lab.org", FIRST),
        ("cat.jpg", "dog", "10", LATER),
    ]


SHORT = {"id": 1, "annotator": 10, "annotation_id": 1, "created_at": FIRST, "updated_at": FIRST, "lead_time": 4.288}


@pytest.mark.parametrize("control", ["label", "choice", "grade", "Befund der Ärztin"])
def test_classes_are_found_whatever_the_control_is_called(tmp_path: Path, control: str) -> None:
    path = tmp_path / "export.json"
    expected = [("a b.png", "cat", "10", FIRST)]
    assert by_id(read_label_studio(write(path, [SHORT | {"image": "a b.png", control: "cat"}]))) == expected
    assert (
        by_id(read_label_studio(write(path, [SHORT | {"image": "a b.png", control: {"choices": ["cat"]}}]))) == expected
    )
    one = annotation(["cat"], 10, FIRST)
    one["result"][0]["from_name"] = control
    assert by_id(read_label_studio(write(path, [task(1, {"image": "a b.png"}, one)]))) == expected
    for mark in ",\t":
        cells = {**{key: str(value) for key, value in SHORT.items()}, control: "cat", "image": "a b.png"}
        table = "\r\n".join(mark.join(row) for row in (cells, cells.values()))
        for read in (read_label_studio, read_labels_csv):
            assert by_id(read(write(tmp_path / "export.csv", table))) == expected


def test_which_control_has_the_classes_can_be_said_and_must_be_where_nobody_knows(tmp_path: Path) -> None:
    grade, quality = (annotation([name], 10, FIRST)["result"][0] | {"from_name": tag}
                      for name, tag in (("cat", "grade"), ("sharp", "quality")))  # fmt: skip
    full = [task(1, GOOD, annotation([], 10, FIRST, result=[grade, quality]))]
    for number, content in enumerate((full, [SHORT | GOOD | {"grade": "cat", "quality": "sharp"}])):
        path = write(tmp_path / f"{number}.json", content)
        with pytest.raises(DataError, match=r"json: the classes could be in 'grade', 'quality'. Say which by control="):
            read_label_studio(path)
        assert read_label_studio(path, control="grade")["label"].tolist() == ["cat"]
        assert read_label_studio(path, control="quality")["label"].tolist() == ["sharp"]
        with pytest.raises(DataError, match=r"no choices of a control 'label'. Controls that .*: 'grade', 'quality'"):
            read_label_studio(path, control="label")


@pytest.mark.parametrize("data", ["label", "choice", "notes"])
@pytest.mark.parametrize("control", ["choice", "label", "species"])
def test_a_column_of_data_is_not_taken_for_the_control(tmp_path: Path, data: str, control: str) -> None:
    if data == control:
        return
    first = {"image": "a.png", data: "old"}
    placed = write(tmp_path / "placed.json", [{**first, "id": 1, control: "cat", "annotator": 1, "annotation_id": 1}])
    assert read_label_studio(placed)["label"].tolist() == ["cat"]
    lost = {**first, control: "cat", "annotation_id": 1}
    for content in ([lost], [lost, {"image": "b.png", control: "dog", "annotation_id": 2}]):
        path = write(tmp_path / "min.json", content)
        with pytest.raises(DataError, match=r"min.json: the classes could be in .*, .*\. Say which by control="):
            read_label_studio(path)
        assert read_label_studio(path, control=control)["label"].tolist()[0] == "cat"
    cells = {**first, control: "cat", "annotation_id": "1"}
    with pytest.raises(DataError, match=r"min.csv: the classes could be in"):
        read_label_studio(write(tmp_path / "min.csv", "\n".join(map(",".join, (cells, cells.values())))))


def test_two_usual_controls_of_one_task_must_be_told_apart(tmp_path: Path) -> None:
    results = [annotation([name], 10, FIRST)["result"][0] | {"from_name": tag}
               for name, tag in (("cat", "label"), ("sharp", "choice"))]  # fmt: skip
    path = write(tmp_path / "export.json", [task(1, GOOD, annotation([], 10, FIRST, result=results))])
    with pytest.raises(DataError, match=r"the classes could be in 'choice', 'label'. Say which by control="):
        read_label_studio(path)
    assert read_label_studio(path, control="choice")["label"].tolist() == ["sharp"]


def test_an_export_without_a_label_says_why(tmp_path: Path) -> None:
    box = {"from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": {"rectanglelabels": ["x"]}}
    nothing = [
        task(1, GOOD),
        task(2, GOOD) | {"annotations": None},
        task(3, GOOD, annotation(["cat"], 1, FIRST, was_cancelled=True)),
        task(4, GOOD, annotation([], 1, FIRST, result=[box])),
    ]
    path = write(tmp_path / "export.json", nothing)
    with pytest.raises(
        DataError,
        match=r"export.json has no label in it: of 4 tasks, 2 have no annotation yet; 1 were skipped by an annotator; "
        r"1 have no choice, but rectanglelabels of 'box'\.",
    ):
        read_label_studio(path)
    write(path, [*nothing, task(5, GOOD, annotation(["cat"], 1, FIRST))])
    with pytest.warns(UserWarning, match="left out: 2 have no annotation yet; 1 were skipped"):
        assert len(read_label_studio(path)) == 1
    with pytest.warns(UserWarning, match=r"empty\.json: there are no tasks in it"):
        assert read_label_studio(write(tmp_path / "empty.json", [])).empty


IDS = ["sub dir/im 1.png", "sub dir/im 2.png", "café/50%#+.png"]
ADDRESSES = {
    "/data/local-files/?d=slides/sub%20dir/im%201.png": IDS[0],
    "/data/local-files/?d=sub+dir/im+1.png": IDS[0],
    "/data/local-files/?d=sub%20dir%5Cim%201.png": IDS[0],
    "/label/data/local-files/?d=sub%20dir/im%201.png": IDS[0],
    "https://studio.lab.org/data/local-files/?d=a/b/slides/sub%20dir/im%201.png": IDS[0],
    "/data/upload/3/1a2b3c4d-im_1.png": IDS[0],
    "https://studio.lab.org/label/data/upload/3/1a2b3c4d-im_1.png": IDS[0],
    "s3://bucket/slides/sub dir/im 1.png": IDS[0],
    "gs://bucket/slides/café/50%#+.png": IDS[2],
    "azure-blob://container/cafe\u0301/50%#+.png": IDS[2],
    "https://account.blob.core.windows.net/container/caf%C3%A9/50%25%23+.png?sv=2024&sig=a": IDS[2],
    "file:///home/ana/sub%20dir/im%201.png": IDS[0],
    "/home/ana/slides/sub dir/im 1.png": IDS[0],
    r"C:\Users\ana\slides\sub dir\im 1.png": IDS[0],
    "im 2.png": IDS[1],
}


@pytest.mark.parametrize(("address", "image"), ADDRESSES.items(), ids=ADDRESSES)
def test_addresses_lead_to_images(tmp_path: Path, address: str, image: str) -> None:
    path = write(tmp_path / "export.json", [task(1, {"image": address}, annotation(["cat"], 1, FIRST))])
    (name,) = read_label_studio(path)["id"]
    if normal(name) in IDS:
        assert located([name], IDS, "slides") == {name: image}
    else:
        with pytest.warns(UserWarning, match="1 of 1 images were found by how their paths end"):
            assert located([name], IDS, "slides") == {name: image}


@pytest.mark.parametrize(
    ("root", "address"),
    [
        ("slides", "/data/local-files/?d=slides/a.png"),
        ("slides/", "/data/local-files/?d=slides/a.png"),
        ("s3://bucket/x/slides", "s3://bucket/x/slides/a.png"),
        ("https://host/slides", "https://host/slides/a.png?v=1"),
        ("C:\\slides\\", "C:\\slides\\a.png"),
        ("c:/slides", "C:\\slides\\a.png"),
        ("D:", "d:/a.png"),
        ("C:\\slides", "file:///c:/slides/a.png"),
        ("/slides", "/data/local-files/?d=slides/a.png"),
        ("slides", "/slides/a.png"),
        ("/caf\u00e9", "cafe\u0301/a.png"),
    ],
)
def test_the_root_of_addresses_can_be_said(tmp_path: Path, root: str, address: str) -> None:
    path = write(tmp_path / "export.json", [task(1, {"image": address}, annotation(["cat"], 1, FIRST))])
    assert read_label_studio(path, root=root)["id"].tolist() == ["a.png"]
    with pytest.raises(
        DataError, match=r"task 1 \(id 1\): the image .*a\.png' does not lie below the root 'elsewhere'.*below\.$"
    ):
        read_label_studio(path, root="elsewhere")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere.png"], "there is no image 'nowhere.png' in the pool of 'slides'; ids there are as 'x/a.png'"),
        (["b.png"], "'b.png' could be each of 'x/b.png', 'y/b.png'"),
        (["root/x/c.png"], "'root/x/c.png' could be each of 'x/c.png', 'c.png'"),
        (["x/a.png", "root/x/a.png"], "both 'x/a.png' and 'root/x/a.png' could be the image 'x/a.png'"),
        (["A.PNG"], "there is no image 'A.PNG' .*; 'a.png' differs from it in capital and small letters"),
    ],
)
def test_names_that_lead_to_no_image_or_to_several_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        located(names, ["x/a.png", "x/b.png", "y/b.png", "x/c.png", "c.png"], "slides")


GOOD = {"image": "a.png"}
CHOICE = {"type": "choices", "from_name": "choice"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", "is not JSON.*line 1 column 3"),
        ("[1]", "task 1: not as Label Studio exports tasks: 1 must be an object"),
        (
            [task(1, GOOD), task(17, GOOD, annotation(["cat", "dog"], 1, FIRST))],
            r"task 2 \(id 17\): .*\['cat', 'dog'\]",
        ),
        ([task(1, GOOD, annotation([["animal", "cat"]], 1, FIRST))], r"task 1 \(id 1\): an image here has one class"),
        (
            [task(1, {"text": "hello"}, annotation(["cat"], 1, FIRST))],
            "task 1 .*neither 'palkit_id' nor 'image'.*in the tasks.$",
        ),
        ([task(1, GOOD, annotation(["cat"], 1, "yesterday"))], "task 1 .*: the time 'yesterday' is not ISO"),
        ([{"data": GOOD, "annotations": [{"result": [{"value": {}}]}]}], "task 1: not as Label Studio exports"),
        ([{"data": GOOD, "annotations": 5}], "task 1: not as Label Studio exports"),
        ([{"id": 3, "image": "a.png"}], r"task 1 \(id 3\): neither 'data' nor 'annotation_id'"),
        (
            [task(1, GOOD, annotation([], 1, FIRST, result=[CHOICE | {"value": {"choices": 5}}]))],
            r"task 1 \(id 1\): the choices 5 must be a valid list.* Export it",
        ),
        (
            [task(1, GOOD, annotation([], 1, FIRST, result=[CHOICE | {"value": None}]))],
            r"task 1 \(id 1\): None must be",
        ),
        ([SHORT | GOOD | {"label": {"choices": 5}}], r"task 1 \(id 1\): the choices 5 must be a valid list"),
        (
            [{"id": 3, "image": "a.png", "label": {"choices": ["cat", "dog"]}}],
            r"task 1 \(id 3\): an image here has one class",
        ),
    ],
)
def test_exports_that_cannot_be_used_name_file_and_task(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=f"export.json,? {message}"):
        read_label_studio(write(tmp_path / "export.json", content))


CAT = annotation(["cat"], 1, LATER)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            task(
                1, GOOD, CAT | {"result": [{"type": "x", "from_name": "y", "value": None, "meta": 3}, *CAT["result"]]}
            ),
            "",
        ),
        (task(1, GOOD, CAT | {"created_at": 5}), ""),
        (task(1, GOOD, CAT | {"result": [CAT["result"][0] | {"meta": {"palkit_annotator": None}}]}), ""),
        (task(1, GOOD, CAT | {"result": [CAT["result"][0] | {"meta": None}]}), ""),
        (task(1, GOOD, CAT, CAT | {"was_cancelled": True, "created_at": "x", "updated_at": None}), "1 were skipped"),
        (task(1, GOOD, CAT, CAT | {"result": [CHOICE | {"value": {"choices": None}}]}), "without a choice"),
    ],
)
def test_odd_values_that_nobody_uses_do_not_matter(tmp_path: Path, content: dict, reason: str) -> None:
    path = write(tmp_path / "export.json", [content])
    if reason:
        with pytest.warns(UserWarning, match=reason):
            assert by_id(read_label_studio(path)) == [("a.png", "cat", "1", LATER)]
    else:
        assert by_id(read_label_studio(path)) == [("a.png", "cat", "1", LATER)]


@pytest.mark.parametrize("annotations", [{}, [], None])
def test_a_task_may_have_no_annotations_in_any_form(tmp_path: Path, annotations: object) -> None:
    path = write(tmp_path / "export.json", [task(1, GOOD) | {"annotations": annotations}])
    with pytest.raises(DataError, match="1 have no annotation yet"):
        read_label_studio(path)


def test_tables_may_have_other_columns_of_any_name(tmp_path: Path) -> None:
    table = labels_of([("a", "cat", "", "")]).assign(other=1).rename(columns={"other": 0})
    guesses = pd.DataFrame({"id": ["a"], "label": ["dog"], "probability": [0.5], 0: [1]})
    write_labels_csv(table, tmp_path / "labels.csv")
    assert by_id(read_labels_csv(tmp_path / "labels.csv")) == [("a", "cat", "", "")]
    path = tmp_path / "tasks.json"
    write_label_studio(table, path, image_url=str, class_names=["cat", "dog"], predictions=guesses)
    assert json.loads(path.read_text())[0]["predictions"][0]["score"] == 0.5


def test_thousands_of_images_may_share_the_last_part_of_their_paths() -> None:
    """Which half a minute would show in the slowest tests, were all compared with all."""
    ids = {f"case{number:06d}/image.png": number for number in range(8000)}
    with pytest.warns(UserWarning, match="8000 of 8000 images"):
        found = located([f"slides/{one}" for one in ids], ids, "pool")
    assert list(found.values()) == list(ids)
