"""A small server that speaks the Hub's protocol: model information, file tree, files with redirects and ranges."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
_LARGE = (".safetensors", ".bin")  # in Git LFS, and so on the CDN
_PIECE_BYTES = 16384


@dataclass
class HubServer:
    """One repository, ``apple/FastVLM-tiny``, of the files in `folder`; with the faults that a test sets.

    Args:
        folder: the repository's files.
        card: the metadata of its card.
        gated: None, or the status with which files are refused until the terms are accepted (401, 403).
        breaks: how many downloads of a large file end in the middle.
        stalls: how many downloads of a large file stop in the middle and keep the connection, until `released`.
        delay_s: pause before each 16 KiB of a large file.
        damaged: True to send other bytes than announced.
        status: None, or the status of every answer.
    """

    folder: Path
    card: dict = field(default_factory=lambda: {"license": "other", "license_name": "apple-amlr"})
    gated: int | None = None
    breaks: int = 0
    stalls: int = 0
    delay_s: float = 0.0
    damaged: bool = False
    status: int | None = None
    repository: str = "apple/FastVLM-tiny"
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    signed_in: set[str] = field(default_factory=set)  # hosts to which a token was sent

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn(self) -> str:
        """The same server under the name of another host, to which redirections of the Hub lead."""
        return self.url.replace("127.0.0.1", "localhost")

    def downloads(self, name: str = "") -> list[str]:
        """Paths from which content was sent, those that end in `name`."""
        return [
            path for method, path, _ in self.requests if method == "GET" and path.endswith(name) and "/api/" not in path
        ]

    def requests_of(self, path: str) -> list[str | None]:
        """The ``Range`` of each download of `path`."""
        return [header for method, asked, header in self.requests if (method, asked) == ("GET", path)]

    def files(self) -> dict[str, Path]:
        return {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if "Authorization" in self.headers:
            self.hub.signed_in.add(self.headers["Host"].split(":")[0])
        if self.hub.status is not None:
            self._send(self.hub.status)
        elif path.startswith(f"/api/models/{self.hub.repository}"):
            self._api(path.removeprefix(f"/api/models/{self.hub.repository}"))
        elif found := re.fullmatch(rf"/{self.hub.repository}/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif path.startswith("/cdn/"):
            self._content(self.hub.files()[path.removeprefix("/cdn/")])
        else:
            self._refuse(401, "RepoNotFound")  # so the Hub answers who is not signed in

    def _api(self, rest: str) -> None:
        files = self.hub.files()
        if rest == "" or rest in (f"/revision/{name}" for name in ("main", "v1", COMMIT)):
            siblings = [{"rfilename": name, **_about(path, "sha256")} for name, path in files.items()]
            info = {"id": self.hub.repository, "sha": COMMIT, "siblings": siblings, "cardData": self.hub.card}
            self._json({**info, "tags": [], "private": False, "gated": "manual" if self.hub.gated else False})
        elif rest in (f"/tree/{name}" for name in ("main", COMMIT)):
            self._json([{"type": "file", "path": name, **_about(path, "oid")} for name, path in files.items()])
        else:
            self._refuse(404, "RevisionNotFound")

    def _resolve(self, revision: str, name: str) -> None:
        file = self.hub.files().get(name)
        if revision not in ("main", "v1", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif file is None:
            self._refuse(404, "EntryNotFound")
        elif self.hub.gated is not None:
            self._refuse(self.hub.gated, "GatedRepo", f"Access to model {self.hub.repository} is restricted.")
        elif file.suffix in _LARGE:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(file.stat().st_size)}
            self._send(302, {"Location": f"{self.hub.cdn}/cdn/{name}", "X-Repo-Commit": COMMIT, **linked})
        else:
            self._content(file)

    def _content(self, file: Path) -> None:
        data = file.read_bytes()
        if self.hub.damaged and file.suffix in _LARGE:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        headers = {"ETag": f'"{_blob_id(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if start else 200, headers, data[start:], is_large=file.suffix in _LARGE)

    def _json(self, content: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _refuse(self, status: int, code: str, message: str = "refused") -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, headers: dict | None = None, body: bytes = b"", *, is_large: bool = False) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not is_large:
            self.wfile.write(body)
            return
        stalls, self.hub.stalls = self.hub.stalls > 0, max(self.hub.stalls - 1, 0)
        breaks, self.hub.breaks = self.hub.breaks > 0 or stalls, max(self.hub.breaks - 1, 0)
        try:
            for at in range(0, len(body) // 2 if breaks else len(body), _PIECE_BYTES):
                time.sleep(self.hub.delay_s)
                self.wfile.write(body[at : at + _PIECE_BYTES])
            if stalls:
                self.hub.released.wait()
        except (BrokenPipeError, ConnectionResetError):  # the client went away
            breaks = True
        self.close_connection = breaks


def _about(path: Path, digest_key: str) -> dict:
    size = path.stat().st_size
    about = {"size": size, "blobId": _blob_id(path), "oid": _blob_id(path)}
    if path.suffix in _LARGE:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        about["lfs"] = {digest_key: digest, "size": size, "pointerSize": 134}
    return about


def _blob_id(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as Git names it
