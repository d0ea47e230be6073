"""A file server on this machine that can be made to fail, and small images."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


class FileServer:
    """Serves `files` by path.

    Attributes:
        files: path to content.
        ranges: whether it honours Range.
        cuts: bytes after which the connection of the first, second, ... request is cut.
        answers: status codes given to the first requests instead of the file.
        redirects: path to URL.
        requests: (path, Range header or None) of every request.
        sent: bytes of files sent in all.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cuts: list[int] = []
        self.answers: list[int] = []
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.url = ""

    def publish(self, name: str, content: bytes) -> str:
        """Serve it; returns the MD5."""
        self.files[f"/{name}"] = content
        return hashlib.md5(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    files: FileServer

    def do_GET(self) -> None:
        state = self.files
        path, wanted = self.path.partition("?")[0], self.headers.get("Range")
        state.requests.append((path, wanted))
        if path in state.redirects:
            self.send_response(302)
            self.send_header("Location", state.redirects[path])
            self.end_headers()
            return
        if state.answers or path not in state.files:
            self.send_error(state.answers.pop(0) if state.answers else 404)
            return
        content = state.files[path]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:][: state.cuts.pop(0)] if state.cuts else content[start:]
        state.sent += len(body)  # before the client can know of it
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server for as long as the block runs."""
    state = FileServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def noise(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """An RGB image like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(seed: int, form: str) -> bytes:
    """`noise` as the bytes of a file."""
    buffer = BytesIO()
    noise(seed).save(buffer, form)
    return buffer.getvalue()


def write_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> Path:
    """A folder per class with images of different sizes, each like no other."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            noise(100 * number + index, (20 + index, 30)).save(folder / name / f"{index}.png")
    return folder
