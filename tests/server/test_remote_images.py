"""Images behind addresses: who is asked, and that nobody inside the network ever is."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fastvlm.server.http.errors import ApiError
from fastvlm.server.http.remote_images import RemoteImages, is_public, resolve

IMAGE = b"\x89PNG not really"


PUBLIC = (
    *("93.184.215.14", "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "192.0.1.1"),
    *("198.17.255.255", "198.20.0.0", "223.255.255.255", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2600::1"),
    *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2001:200::1", "3ffe:ffff::1", "2620:4e::1"),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254"),
        *("100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1"),
        # every block of IANA's registries of special-purpose addresses, IPv4 then IPv6
        *("0.1.2.3", "100.127.255.255", "172.31.255.255", "192.0.0.8", "192.0.0.9", "192.0.0.10", "192.0.0.170"),
        *("192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.175.48.1", "198.19.255.255"),
        *("198.51.100.1", "203.0.113.1", "239.255.255.255", "255.255.255.254"),
        *("64:ff9b:1::808:808", "100::1", "100:0:0:1::1", "2001::1", "2001:0:808:808::f7f7:f7f7", "2001:1::1"),
        *("2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:db8:ffff::1"),
        *("2620:4f:8000::1", "3fff::1", "3fff:fff:ffff::1", "5f00::1", "fdff::1", "fec0::1", "feff::1", "ff0e::1"),
        *("::8.8.8.8", "::ffff:192.0.0.8", "64:ff9b::c000:8", "2002:c0a8:101::1", "4000::1", "1fff::1"),
    ],
)
def test_all_others_are_not(address):
    assert not is_public(address)


class Host(BaseHTTPRequestHandler):
    """A host of images with surprises."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Host"), self.headers.get("Cookie")))
        name, _, rest = self.path.lstrip("/").partition("/")
        if name == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        if name == "slow":
            self.server.release.wait(10)
        body = b"x" * 10_000 if name == "large" else IMAGE
        self.send_response(404 if name == "missing" else 200)
        if name == "zipped":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    server = HTTPServer(("127.0.0.1", 0), Host)
    server.seen, server.release = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(host):
    """``fetch("/a.png")`` from images.example, whose address is the test's host; that address alone is allowed."""
    port = host.server_port

    def run(path, *, hosts=None, addresses=("127.0.0.1",), allowed=("127.0.0.1",), scheme="http", timeout_s=5.0):
        async def look_up(name, asked_port):
            return [name] if name[0].isdigit() else list(addresses)

        remote = RemoteImages(
            hosts or (f"images.example:{port}",),
            max_bytes=1000,
            timeout_s=timeout_s,
            resolve=look_up,
            is_allowed=lambda address: address in allowed,
        )
        url = path if not path.startswith("/") else f"{scheme}://images.example:{port}{path}"
        return asyncio.run(remote.fetch(url))

    return run


def refusal(fetch, *arguments, **settings):
    with pytest.raises(ApiError) as raised:
        fetch(*arguments, **settings)
    assert raised.value.status == 400
    return raised.value.code


def test_an_image_of_an_allowed_host_is_fetched_under_its_name(fetch, host):
    assert fetch("/a.png?size=1#part") == IMAGE
    assert host.seen == [("/a.png?size=1", f"images.example:{host.server_port}", None)]


def test_redirects_are_followed_within_the_allowed(fetch, host):
    assert fetch("/to//a.png") == IMAGE
    assert [path for path, *_ in host.seen] == ["/to//a.png", "/a.png"]


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/secret",
        "http://other.example:{port}/secret",
        "https://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "ftp://images.example/a.png",
    ],
)
def test_a_redirect_out_of_the_allowed_is_refused(fetch, host, target):
    path = "/to/" + target.format(port=host.server_port)
    assert refusal(fetch, path) == "image_url_not_allowed"
    assert len(host.seen) == 1, "the second request must not be sent"


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("127.0.0.1", "10.0.0.1"), ()])
def test_a_name_with_any_inner_address_is_refused(fetch, host, addresses):
    assert refusal(fetch, "/a.png", addresses=addresses) == "image_url_not_allowed"
    assert host.seen == []


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://images.example/a.png", ("other.example",)),
        ("http://images.example:81/a.png", ("images.example",)),
        ("http://example/a.png", ("*.example",)),
        ("http://badexample.org/a.png", ("*.example.org",)),
        ("http://user:word@images.example/a.png", ("*",)),
        ("http:///a.png", ("*",)),
        ("http://[::1/a.png", ("*",)),
        ("gopher://images.example/a.png", ("*",)),
    ],
)
def test_what_is_not_listed_is_refused(fetch, url, hosts):
    assert refusal(fetch, url, hosts=hosts) == "image_url_not_allowed"


@pytest.mark.parametrize(
    "name",
    ["a" * 64 + ".example", "xn--.example", "xn--a.example", "xn--" + "a" * 70 + ".x", "a" * 300, "a..b", "...."],
)
def test_what_no_name_can_be_is_refused_as_any_other(name):
    remote = RemoteImages(("*",), max_bytes=1000, timeout_s=60.0)
    with pytest.raises(ApiError) as raised:
        asyncio.run(remote.fetch(f"http://{name}/a.png"))
    assert raised.value.status == 400


def test_every_host_means_every_public_one(host):
    remote = RemoteImages(("*",), max_bytes=1000, timeout_s=5.0)
    for name in ("127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"):
        with pytest.raises(ApiError) as raised:
            asyncio.run(remote.fetch(f"http://{name}/a.png"))
        assert raised.value.status == 400
    assert host.seen == []


def test_numbers_of_all_spellings_resolve_to_what_is_checked():
    for name in ("127.0.0.1", "2130706433", "0x7f000001", "localhost"):
        assert not any(map(is_public, asyncio.run(resolve(name, 80)))), name


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/large/a.png", "image_too_large"),
        ("/missing/a.png", "image_unreachable"),
        ("/zipped/a.png", "image_unreachable"),
        ("/to//to//to//to//to//a.png", "image_unreachable"),
    ],
)
def test_what_a_host_may_not_answer(fetch, path, code):
    assert refusal(fetch, path) == code


def test_a_slow_host_is_given_up(fetch):
    assert refusal(fetch, "/slow/a.png", timeout_s=0.2) == "image_unreachable"


def test_without_hosts_nothing_is_fetched():
    remote = RemoteImages((), max_bytes=1, timeout_s=1.0)
    with pytest.raises(ApiError) as raised:
        asyncio.run(remote.fetch("https://images.example/a.png"))
    assert raised.value.code == "remote_images_disabled" and "data URI" in raised.value.message
