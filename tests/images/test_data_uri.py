"""Data URIs as browsers, libraries and command lines write them, and as attackers do."""

import base64
import tracemalloc
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.data_uri import is_data_uri, read_data_uri

DATA = bytes(range(256)) * 3  # with + and / in base64


def read(uri, max_bytes=10_000):
    return read_data_uri(uri, "The URI", max_bytes)


def forms(data):
    plain = base64.b64encode(data).decode()
    return {
        "plain": f"data:image/png;base64,{plain}",
        "no type": f"data:;base64,{plain}",
        "wrapped at 76": f"data:image/png;base64,{base64.encodebytes(data).decode()}",
        "wrapped, CRLF": "data:image/png;base64," + base64.encodebytes(data).decode().replace("\n", "\r\n"),
        "wrapped, encoded": "data:image/png;base64," + base64.encodebytes(data).decode().replace("\n", "%0A"),
        "URL-safe": f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode()}",
        "no padding": f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode().rstrip('=')}",
        "capitals": f"DATA:image/png;BASE64,{plain}",
        "charset": f"data:image/png;charset=utf-8;base64,{plain}",
        "name": f"data:image/png;name=a.png;charset=utf-8; base64,{plain}",
        "escaped base64": "data:image/png;base64," + urllib.parse.quote(plain, safe=""),
        "all escaped": "data:image/png;base64," + "".join(f"%{ord(char):02X}" for char in plain),
        "percent": "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
    }


@given(st.binary(min_size=1, max_size=200))
def test_every_form_gives_the_same_bytes(data):
    for name, uri in forms(data).items():
        assert is_data_uri(uri)
        assert read(uri) == data, name


@given(st.text(alphabet="%0aAfFgZ+-/ =é", max_size=40))
def test_percent_decoding_is_that_of_the_standard_library(text):
    assert read(f"data:,{text}") == urllib.parse.unquote_to_bytes(text)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,%%%%", "not valid base64"),
        ("data:image/png;base64,A", "not valid base64"),
        ("data:image/png;base64,AA=A", "not valid base64"),
        ("data:image/png;base64,\ud800", "not valid base64"),
        ("data:image/png;base64,äöü", "not valid base64"),
    ],
)
def test_what_is_no_data_uri_is_refused(uri, says):
    with pytest.raises(ImageError, match=says):
        read(uri)


def test_the_limit_is_exact_for_every_form():
    for name, uri in forms(DATA).items():
        assert read(uri, max_bytes=len(DATA)) == DATA, name
        with pytest.raises(ImageTooLargeError, match=f"more than {len(DATA) - 1} bytes"):
            read(uri, max_bytes=len(DATA) - 1)


def test_millions_of_escapes_take_little_memory_and_a_too_long_uri_none():
    """An object of each escape, as the standard library makes them, would take 50 bytes a character."""
    uri = "data:image/png;base64," + "%41" * 2_000_000
    tracemalloc.start()
    try:
        assert read(uri, max_bytes=2_000_000) == bytes(1_500_000)
        assert tracemalloc.get_traced_memory()[1] < 16 * len(uri)
        tracemalloc.reset_peak()
        with pytest.raises(ImageTooLargeError):
            read(uri, max_bytes=1000)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(uri)
    finally:
        tracemalloc.stop()
