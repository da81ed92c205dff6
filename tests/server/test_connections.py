"""Clients who hold connections without asking: a real server under raw sockets."""

import json
import socket

import pytest
from server_process import question

from fastvlm.server.http.connections import UploadSlots, client_key
from fastvlm.server.http.errors import ApiError

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connect(server, data=b""):
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=240)
    connection.sendall(data)
    return connection


def rest_of(connection) -> bytes:
    """What comes until the server closes."""
    received = b""
    with connection:
        try:
            while data := connection.recv(2**16):
                received += data
        except ConnectionResetError:
            pass
    return received


def test_half_a_header_is_given_up_with_an_error(strict):
    pieces = [b"", b"GET /health HT", HEAD, HEAD + b"X: " + b"y" * 1000]
    connections = [connect(strict, sent) for sent in pieces]
    for connection in connections:
        head, _, body = rest_of(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"]["code"] == "request_timeout"


def test_half_a_header_after_a_whole_request_is_given_up_too(strict):
    received = rest_of(connect(strict, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal"))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert rest_of(connect(strict, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


def test_a_crowd_of_half_headers_passes_without_a_flood_of_lines(strict):
    before = len(strict.lines)
    crowd = [connect(strict, HEAD) for _ in range(200)]
    statuses = [rest_of(connection)[9:12] for connection in crowd]
    assert set(statuses) <= {b"408", b"503", b""} and b"408" in statuses
    assert len(statuses) - statuses.count(b"408") >= 200 - strict.max_connections  # the others were turned away at once
    assert strict.client.get("/health").status_code == 200
    assert len(strict.lines) - before < 20


def test_slow_bodies_are_given_up_and_small_requests_pass_them_by(strict):
    slow = [connect(strict, HEAD + b"Content-Length: 1000000\r\n\r\n{") for _ in range(4)]
    assert strict.chat(question("?"), max_tokens=1).status_code == 200
    answers = [rest_of(connection) for connection in slow]
    assert {answer[9:12] for answer in answers} == {b"408", b"429"}  # half of max_slots is one client's
    large = strict.chat(question("?", "data:image/png;base64," + "A" * 2**17), max_tokens=1)
    assert large.status_code == 400  # it was received: it is no image


def test_a_body_of_one_byte_a_chunk_is_received(strict):
    body = json.dumps({"model": "mini", "messages": [question("?")], "max_tokens": 1}).encode()
    chunks = b"".join(b"1\r\n" + body[i : i + 1] + b"\r\n" for i in range(len(body)))
    head = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert rest_of(connect(strict, head + chunks + b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


def test_one_client_has_half_of_what_is_received():
    slots = UploadSlots(4)
    with slots.acquire("a"), slots.acquire("a"):
        with pytest.raises(ApiError) as raised, slots.acquire("a"):
            pass
        assert raised.value.status == 429
        with slots.acquire("b"), slots.acquire("c"), pytest.raises(ApiError), slots.acquire("d"):
            pass
    with slots.acquire("a"):
        pass


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        (None, ""),
        ("testclient", ""),
    ],
)
def test_a_client_is_an_address_or_a_network(host, key):
    assert client_key(host) == key
