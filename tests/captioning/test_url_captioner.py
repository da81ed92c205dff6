"""A stand-in for a server, and `fastvlm serve` itself."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from instant import lines_of, write_folder
from server_process import ROOT, Server

from fastvlm.captioning import Prompt, UrlCaptioner, caption
from fastvlm.errors import UsageError

DONE = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 4}}


@contextmanager
def server(answer):
    """A server whose `answer(number, body)` gives (status, content, headers); yields URL, requests, most at once."""
    requests, most, running, lock = [], [0], [0], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._send(200, {"data": [{"id": "first"}]}, {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
                requests.append((body, dict(self.headers)))
                number = len(requests)
            try:
                self._send(*answer(number, body))
            finally:
                with lock:
                    running[0] -= 1

        def _send(self, status, content, headers):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(data), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = True  # so that a body that is too short ends

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", requests, most
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("fastvlm.captioning.url_captioner._BACKOFF_S", (0.01, 0.05))


def test_requests_hold_image_prompt_schema_and_sampling(tmp_path):
    folder = write_folder(tmp_path / "photos", ["a.png"])
    schema = {"enum": ["yes", "no"]}
    with server(lambda number, body: (200, DONE, {})) as (url, requests, _):
        captioner = UrlCaptioner(url, sampling={"max_tokens": 9}, system="Short.", api_key="k")
        caption(str(folder), tmp_path / "out", [Prompt("Is it?", schema), "What?"], captioner)
    bodies = {body["messages"][1]["content"][1]["text"]: body for body, _ in requests}
    image = bodies["What?"]["messages"][1]["content"][0]["image_url"]["url"]
    assert base64.b64decode(image.partition(",")[2]) == b"x" * 6
    assert bodies["What?"]["messages"][0] == {"role": "system", "content": "Short."}
    assert bodies["What?"]["max_tokens"] == 9
    assert bodies["What?"]["model"] == "first"
    assert "response_format" not in bodies["What?"]
    assert bodies["Is it?"]["response_format"]["json_schema"]["schema"] == schema
    assert requests[0][1]["Authorization"] == "Bearer k"
    line = lines_of(tmp_path / "out")[0]
    assert (line["text"], line["tokens"], line["finish_reason"]) == ("yes", 4, "stop")
    assert line["ms"] > 0


def test_load_and_broken_connections_are_retried_and_refused_images_are_rows(tmp_path):
    folder = write_folder(tmp_path / "photos", [f"{'x' * number}.png" for number in range(1, 31)])

    def answer(number, body):
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        if len(base64.b64decode(url.partition(",")[2])) == 6:
            return 400, {"error": {"message": "not an image"}}, {}
        if number % 3 == 0:
            return (429, 503, 500)[number // 3 % 3], b"busy", {"Retry-After": "0"}
        if number % 7 == 0:
            return 200, b"{}", {"Content-Length": 500}  # cut
        return 200, DONE, {}

    with server(answer) as (url, _, most):
        captioner = UrlCaptioner(url, concurrency=3, retries=20)
        summary = caption(str(folder), tmp_path / "out", "P", captioner)
    assert (summary.images, summary.failed) == (30, 1)
    assert [line["error"] for line in lines_of(tmp_path / "out") if line["error"]] == [
        "ServerError: status 400: not an image"
    ]
    assert most[0] <= 3


@pytest.mark.parametrize(
    ("status", "words"), [(401, "status 401: no"), (404, "status 404"), (503, "status 503"), (302, "status 302")]
)
def test_a_server_that_refuses_ends_the_run(tmp_path, status, words):
    folder = write_folder(tmp_path / "photos", ["a.png", "b.png"])
    with server(lambda number, body: (status, {"error": {"message": "no"}}, {})) as (url, requests, _):
        with pytest.raises(UsageError, match=words):
            caption(str(folder), tmp_path / "out", "P", UrlCaptioner(url, retries=2))
        assert len(requests) <= (6 if status == 503 else 2)
    assert lines_of(tmp_path / "out") == []


def test_a_server_that_is_not_there(tmp_path):
    with server(lambda number, body: (200, DONE, {})) as (url, _, _):
        captioner = UrlCaptioner(url, retries=1)
    with pytest.raises(UsageError, match="cannot be reached"):
        caption(str(write_folder(tmp_path / "photos", ["a.png"])), tmp_path / "out", "P", captioner)
    with pytest.raises(UsageError, match="models does not name a model"):
        UrlCaptioner(url)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://a:b", ""])
def test_addresses_that_are_none(url):
    with pytest.raises(UsageError, match=r"expected an address|Expected an address"):
        UrlCaptioner(url)


@pytest.mark.parametrize("content", [b"[]", b"no", {"choices": []}, {"choices": [{"message": {}}]}])
def test_a_response_that_is_no_completion_is_a_row(tmp_path, content):
    folder = write_folder(tmp_path / "photos", ["a.png"])
    with server(lambda number, body: (200, content, {})) as (url, _, _):
        assert caption(str(folder), tmp_path / "out", "P", UrlCaptioner(url)).failed == 1
    assert lines_of(tmp_path / "out")[0]["error"].startswith("ServerError: its response is no chat completion")


def test_fastvlm_serve_answers(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("word", "red_star"):
        image = (ROOT / f"src/fastvlm/web/page/examples/{name}.png").read_bytes()
        (tmp_path / f"photos/{name}.png").write_bytes(image)
    (tmp_path / "photos/broken.png").write_bytes(image[:200])
    with Server() as fastvlm:
        captioner = UrlCaptioner(fastvlm.url, sampling={"max_tokens": 16, "temperature": 0})
        caption(str(tmp_path / "photos"), tmp_path / "out", "What shape is this?", captioner)
    lines = {line["id"]: line for line in lines_of(tmp_path / "out")}
    assert "star" in lines["red_star.png"]["text"]
    assert lines["broken.png"]["error"].startswith("ServerError: status 400: ")
    assert "damaged" in lines["broken.png"]["error"]
