"""The server process: disconnects, a full queue, time limits, API keys, signals, starts that are refused."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from server_process import Server, data_uri, example, question, refused_start
from starlette.testclient import TestClient

from fastvlm.errors import UsageError
from fastvlm.server.app import create_app
from fastvlm.server.process import serve
from fastvlm.server.service import Service
from fastvlm.server.settings import ServeSettings

ENDLESS = {"model": "mini", "messages": [question("Talk.")], "max_tokens": 3000}
KEY = "a-key-of-thirty-two-characters-xx"


def open_stream(server, **settings):
    """A streamed reply whose first event has come, and the lines that follow."""
    stack = server.client.stream("POST", "/v1/chat/completions", json={**ENDLESS, "stream": True, **settings})
    response = stack.__enter__()
    assert response.status_code == 200
    lines = response.iter_lines()
    assert next(lines).startswith("data: {")
    return stack, response, lines


def raw_request(server, body: dict) -> socket.socket:
    """A request sent over a socket of our own."""
    data = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def until(condition, limit_s=60):
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.02)


def test_who_hangs_up_while_streaming_frees_the_slot(endless):
    before = endless.metric("fastvlm_hang_ups_total")
    stack, _, _ = open_stream(endless)
    assert endless.metric("fastvlm_slots_running") == 1
    stack.__exit__(None, None, None)
    endless.until_idle()
    assert endless.metric("fastvlm_hang_ups_total") == before + 1


@pytest.mark.parametrize("body", [ENDLESS, {**ENDLESS, "n": 2}])
def test_who_hangs_up_while_waiting_for_a_whole_reply_frees_the_slot(endless, body):
    connection = raw_request(endless, body)
    until(lambda: endless.metric("fastvlm_slots_running") == 1)
    connection.close()
    endless.until_idle()


def test_who_hangs_up_in_the_queue_leaves_it(endless):
    stack, _, _ = open_stream(endless)
    connection = raw_request(endless, ENDLESS)
    until(lambda: endless.metric("fastvlm_queue_waiting") == 1)
    connection.close()
    until(lambda: endless.metric("fastvlm_queue_waiting") == 0)
    assert endless.metric("fastvlm_slots_running") == 1
    stack.__exit__(None, None, None)
    endless.until_idle()


def test_a_full_queue_is_told_with_a_time_to_come_back(endless):
    stack, _, _ = open_stream(endless)
    waiting = [raw_request(endless, ENDLESS) for _ in range(2)]
    until(lambda: endless.metric("fastvlm_queue_waiting") == 2)
    response = endless.client.post("/v1/chat/completions", json=ENDLESS)
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "server_busy"
    assert endless.client.get("/health").status_code == 200
    for connection in waiting:
        connection.close()
    stack.__exit__(None, None, None)
    endless.until_idle()
    assert endless.client.post("/v1/chat/completions", json={**ENDLESS, "max_tokens": 2}).status_code == 200


def test_a_body_that_is_cut_leaves_nothing(endless):
    host, port = endless.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    endless.until_idle()


def test_an_image_beside_a_running_reply_is_answered(endless):
    stack, _, lines = open_stream(endless)
    asked = {**ENDLESS, "messages": [question("?", example("letter"))], "max_tokens": 3}
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(endless.client.post("/v1/chat/completions", json=asked).status_code)
    )
    thread.start()
    until(lambda: endless.metric("fastvlm_queue_waiting") == 1)
    assert next(line for line in lines if line).startswith("data: {")
    stack.__exit__(None, None, None)
    thread.join()
    assert answers == [200]


def test_after_the_grace_period_and_the_time_limit_replies_end_with_an_error(endless_folder):
    """Eight long replies one after the other in one slot: no machine is through with them in time."""
    server = Server(
        *("--name", "mini", "--slots", 1, "--max-output-tokens", 4000, "--shutdown-grace", 0.5),
        *("--request-timeout", 4),
        model=endless_folder,
    )
    late = server.client.post("/v1/chat/completions", json={**ENDLESS, "max_tokens": 4000, "n": 8})
    assert late.status_code == 504 and late.headers["x-should-retry"] == "false"
    assert late.json()["error"]["code"] == "timeout"
    server.until_idle()
    stack, _, lines = open_stream(server, max_tokens=4000, n=8)
    server.signal(signal.SIGTERM)
    last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] in ("server_not_ready", "timeout")
    stack.__exit__(None, None, None)
    assert server.wait() == 0  # before stop(): a second signal would meet a process without its handlers
    server.stop()
    assert "Traceback" not in "".join(server.lines)


def test_keys_are_needed_where_they_are_set(tmp_path, caplog):
    """The application in this process, before any model is open."""
    (tmp_path / "keys").write_text(f"{KEY}\nanother-key-that-is-long\n")
    settings = ServeSettings(
        api_keys_file=str(tmp_path / "keys"), cors_origins=("https://a.example",), page=False, access_log=True
    )
    client = TestClient(create_app(Service(settings, dict)), base_url="http://127.0.0.1")
    with caplog.at_level("DEBUG"):
        for path in ("/v1/models", "/metrics"):
            for key in (None, "x", "wrong", KEY[:-1], KEY + "x"):
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                response = client.get(path, headers=headers)
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
                assert KEY not in response.text
            for key in (KEY, "another-key-that-is-long"):
                assert client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code == 404
        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        allowed = client.options("/v1/chat/completions", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = client.options("/v1/chat/completions", headers={**preflight, "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
    assert "/metrics" in caplog.text and KEY not in caplog.text


def test_a_server_as_a_user_starts_it_says_where_it_listens_and_finishes_its_replies(endless_folder):
    """Before the model is open, requests get 503; SIGTERM in the middle loses no reply that has begun."""
    command = [sys.executable, "-m", "fastvlm", "serve", "--port", "0", "--name", "mini", "--model", endless_folder]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        opening = process.stderr.readline()
        url = re.search(r"http://[\d.]+:\d+", opening)[0]
        state = httpx.get(f"{url}/ready")
        if state.status_code == 503:  # not if the model opens faster than this test asks
            assert state.json()["status"] in ("starting", "warming up") and state.headers["retry-after"]
            assert httpx.post(f"{url}/v1/chat/completions", json=ENDLESS, timeout=240).status_code in (503, 200)
        assert httpx.get(f"{url}/health").status_code == 200
        serving = process.stderr.readline()  # last: whoever waits for this line can send requests at once
        assert httpx.get(f"{url}/ready").status_code == 200
        asked = {**ENDLESS, "stream": True, "max_tokens": 400}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=240) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert opening.split()[1] == "opening:" and serving.split()[1:3] == ["serving:", "mini"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_what_cannot_be_served_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = {
            ("--port", taken.getsockname()[1]): "Cannot listen on 127.0.0.1",
            ("--port", 0, "--model", tmp_path): "config.json",
            ("--port", 0, "--max-image-pixels", 200_000): "max_image_pixels is 200000; expected at least 262144",
        }
        for arguments, words in cases.items():
            code, stderr = refused_start(*arguments)
            errors = [line for line in stderr.splitlines() if line.startswith("fastvlm: error: ")]
            assert code in (1, 2) and len(errors) == 1 and words in errors[0], stderr
            assert "Traceback" not in stderr


@pytest.mark.skipif(os.name == "nt", reason="no resource limits")
def test_too_few_open_files_for_the_connections_are_an_error(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (500, 500))
    with pytest.raises(UsageError, match="max_connections needs 1256 open files"):
        serve(ServeSettings(max_connections=1000), dict)


def test_images_reach_a_checkpoint_of_another_kind(endless, tmp_path):
    from PIL import Image

    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    asked = {**ENDLESS, "messages": [question("?", data_uri(tmp_path / "red.png"))], "max_tokens": 5}
    reply = endless.client.post("/v1/chat/completions", json=asked).json()
    assert reply["choices"][0]["message"]["content"].startswith("Gr")
