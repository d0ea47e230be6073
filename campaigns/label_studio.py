"""`palkit serve` and a real Label Studio server: a project from its first task to the order after a fit, checked.

    python campaigns/label_studio.py [--environment FOLDER]    # five minutes; needs PyPI once

Label Studio is installed into an environment of its own (`FOLDER`, or a temporary one), with its data in a temporary
folder, and answers on loopback alone. Every line that is printed was checked; the first that does not hold ends it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import numpy as np
import requests
from PIL import Image

from palkit.labelling.exchange import label_studio_config
from palkit.labelling.labels import LabelLog, standing

VERSION = "1.23.2"
USER, PASSWORD, TOKEN = "ana@example.com", "only-for-an-hour", "0123456789abcdef0123456789abcdef01234567"
CLASSES, BATCH, WAIT = ("red", "green", "blue"), 6, 300
LOOPBACK = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false"}
SILENT = {"COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}


def images(folder: Path) -> None:
    """Noise in three colours, which the names tell."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(60):
        pixels = rng.integers(0, 80, (40, 40, 3), dtype=np.uint8)
        pixels[..., number % 3] += 120
        Image.fromarray(pixels).save(folder / f"{CLASSES[number % 3]} {number:02d}.png")


def free_port() -> int:
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path, url: str, **environment: str) -> Iterator[None]:
    """A server, until it answers and while it is needed."""
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | environment, cwd=log.parent)
        try:
            until(lambda: process.poll() is not None or answers(url))
            assert process.poll() is None, log.read_text()[-2000:]
            yield
        finally:
            process.terminate()
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=1).ok
    except requests.RequestException:
        return False


def until(met: Callable[[], Any]) -> Any:
    """Wait until something is so; returns it."""
    end = time.monotonic() + WAIT
    while not (found := met()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.5)
    return found


def holds(what: str, is_so: Any) -> None:
    assert is_so, f"not so: {what}: {is_so!r}"
    print(what, flush=True)


class Project:
    """A project of Label Studio, by its REST interface."""

    def __init__(self, url: str, **fields: Any) -> None:
        self.url, self.http = url, requests.Session()
        self.http.headers["Authorization"] = f"Token {TOKEN}"
        fields |= {"title": "slides", "sampling": "Uncertainty sampling"}
        self.id = self.call("POST", "projects", json=fields)["id"]

    def call(self, method: str, path: str, **content: Any) -> Any:
        answer = self.http.request(method, f"{self.url}/api/{path}", timeout=100, **content)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def tasks(self) -> list[dict[str, Any]]:
        """As the Data Manager has them, the lowest score first."""
        by_score = {"project": self.id, "data": {"ordering": ["tasks:predictions_score"]}}
        views = self.call("GET", f"dm/views?project={self.id}") or [self.call("POST", "dm/views", json=by_score)]
        path = f"tasks?project={self.id}&view={views[0]['id']}&page_size=200&fields=all"
        return self.call("GET", path)["tasks"]

    def annotate(self, task: int, label: str | None) -> int:
        choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        content = {"result": [choice] if label else [], "was_cancelled": label is None, "lead_time": 1.0}
        return self.call("POST", f"tasks/{task}/annotations", json=content)["id"]


def order(project: Project) -> list[str]:
    return [task["data"].get("palkit_id", "") for task in project.tasks()]


def proposed(folder: Path) -> list[str]:
    return [one["id"] for one in json.loads((folder / "session.json").read_text())["proposed"]]


def stands(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Answer, label and annotator by image."""
    table = standing(LabelLog(folder / "labels.jsonl").events())
    table = table[table["annotator"] != "Label Studio"]
    return {one.id: (one.answer, one.label, one.annotator) for one in table.itertuples()}


def campaign(python: Path, root: Path) -> None:
    images(root / "slides")
    studio, backend = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    label_studio = [
        str(python.with_name("label-studio")), "start", "--no-browser", "--internal-host", "127.0.0.1",
        "--port", studio.rpartition(":")[2], "--username", USER, "--password", PASSWORD, "--user-token", TOKEN,
        "--enable-legacy-api-token", "--data-dir", str(root / "studio"),
    ]  # fmt: skip
    files = {"LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root)}
    tasks = ["--tasks", "tasks.json"]
    palkit = [sys.executable, "-m", "palkit", "serve", "--port", backend.rpartition(":")[2]]
    new = ["slides", f"classes=[{','.join(CLASSES)}]", "adapter=linear_probe", f"batch_size={BATCH}"]
    with running(label_studio, root / "studio.log", studio, **LOOPBACK, **SILENT, **files):
        headers = {"Authorization": f"Token {TOKEN}"}  # legacy; palkit gets what users are given now
        key = requests.post(f"{studio}/api/token/", json={}, headers=headers, timeout=30).json()["token"]
        told = {"LABEL_STUDIO_URL": studio, "LABEL_STUDIO_API_KEY": key, "PALKIT_RUNS": str(root / "runs")}
        with running([*palkit, *new, *tasks], root / "serve.log", backend, **told):
            folder = next((root / "runs" / "labels").iterdir())
            project = live(studio, backend, root, folder)
        with running([*palkit, str(folder)], root / "serve.log", backend, **told):
            again(project, folder)


def live(studio: str, backend: str, root: Path, folder: Path) -> Project:
    other = Project(studio, label_config=label_studio_config([*CLASSES[:2], "yellow"]))
    answer = other.http.post(f"{studio}/api/ml", json={"url": backend, "project": other.id, "title": "palkit"})
    holds("a project with other classes is refused, with the reason", "'yellow' no class of the session" in answer.text)

    project = Project(studio, label_config=label_studio_config(CLASSES))
    folder_of = {"project": project.id, "path": str(root / "slides"), "use_blob_urls": True}
    project.call("POST", "storages/localfiles", json=folder_of)
    tasks = json.loads((root / "tasks.json").read_text())
    strange = {"data": {"image": "/data/local-files/?d=elsewhere/another.png"}}
    project.call("POST", f"projects/{project.id}/import", json=[*tasks, strange])
    picture = project.http.get(f"{studio}{tasks[0]['data']['image']}", timeout=30)
    file = root / "slides" / tasks[0]["data"]["palkit_id"]
    holds("a task shows the image of its file", picture.content == file.read_bytes())

    project.call("POST", "ml", json={"url": backend, "project": project.id, "title": "palkit"})
    version = until(lambda: order(project)[:BATCH] == proposed(folder) and chosen(project))
    holds(f"{len(tasks)} tasks; first what palkit proposes, in its order, before there is a model", version)
    holds(
        "a task of another image comes last, and is named in the log",
        order(project)[-1] == "" and "another.png" in (root / "serve.log").read_text(),
    )
    id_of = {task["data"].get("palkit_id", ""): task["id"] for task in project.tasks()}
    ml = project.call("GET", f"ml?project={project.id}")[0]["id"]
    project.call("POST", f"ml/{ml}/train", json={})
    holds(
        "a fit without labels is refused, with the reason",
        "at least two classes; so far there are 0" in (root / "serve.log").read_text(),
    )

    first = proposed(folder)
    for image in first[:-1]:
        task = project.call("GET", f"projects/{project.id}/next")
        assert task["data"]["palkit_id"] == image, (task, image)
        project.annotate(id_of[image], image.partition(" ")[0])
    holds(f"uncertainty sampling gives out what palkit proposed, one by one: {', '.join(first[:-1])}", True)
    until(lambda: len(stands(folder)) == BATCH - 1)
    user = project.call("GET", "current-user/whoami")["id"]
    holds(
        "every label is in the session",
        stands(folder) == {image: ("label", image.partition(" ")[0], str(user)) for image in first[:-1]},
    )

    project.call("POST", f"ml/{ml}/train", json={})
    new = until(lambda: (found := chosen(project)) != version and found)
    holds(f"training makes another model version, {new!r} after {version!r}", "palkit 1" in new)
    until(lambda: order(project)[:BATCH] == proposed(folder))
    rows = project.tasks()
    scores = [task["predictions_score"] for task in rows]
    holds(
        "tasks are in the order of the new proposals, all scores there", None not in scores and scores == sorted(scores)
    )
    predicted = {task["data"].get("palkit_id"): task["predictions_results"] for task in rows}
    named = {image: [name for name in CLASSES if name in str(predicted[image])] for image in id_of if image}
    right = [names == [image.partition(" ")[0]] for image, names in named.items()]
    holds(
        f"predictions name a class: {sum(right)} of {len(right)} right after {BATCH - 1} labels",
        sum(right) > len(right) / 2,
    )

    second = proposed(folder)
    number = project.annotate(id_of[second[0]], "red")
    until(lambda: stands(folder).get(second[0], ("",))[0] == "label")
    change = {"result": [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["blue"]}}]}
    project.call("PATCH", f"annotations/{number}", json=change)
    until(lambda: stands(folder)[second[0]][1] == "blue")
    holds("a changed annotation is a changed label", True)
    skipped = second[1]
    project.annotate(id_of[skipped], None)
    until(lambda: stands(folder).get(skipped, ("",))[0] == "skip")
    holds("a skipped task is left for later", True)
    for image in second[2:]:
        project.annotate(id_of[image], image.partition(" ")[0])
    last = until(lambda: (found := chosen(project)) != new and found)
    holds(
        f"when all that was proposed is answered, the next round comes by itself: {last!r}",
        order(project)[:BATCH] == proposed(folder),
    )
    (root / "deleted.json").write_text(json.dumps([number, second[0]]))
    return project


def again(project: Project, folder: Path) -> None:
    number, image = json.loads((folder.parents[2] / "deleted.json").read_text())
    project.call("DELETE", f"annotations/{number}")
    until(lambda: stands(folder)[image][0] == "skip")
    holds("a deleted annotation takes its label back, in a session that was closed and opened again", True)


def chosen(project: Project) -> str:
    """The model version by which tasks are ordered, "" until palkit has chosen one."""
    version = project.call("GET", f"projects/{project.id}")["model_version"] or ""
    return version if version.startswith("palkit ") else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="where Label Studio is, or shall be, installed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        environment = (options.environment or Path(temporary) / "environment").resolve()
        python = environment / "bin" / "python"
        if not python.with_name("label-studio").exists():
            venv.create(environment, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", f"label-studio=={VERSION}"], check=True)
        campaign(python, Path(temporary))
