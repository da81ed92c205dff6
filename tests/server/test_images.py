"""Images that are slow, large or deadly, against a real server: they are refused, and everything else goes on.

A slow image is one whose decoder is stopped (SIGSTOP): it takes as long as the test wants, on any machine.
"""

import base64
import contextlib
import os
import select
import signal
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from image_bytes import PNG_SIGNATURE, png_chunk
from server_process import Server, example, question

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the decoders in /proc, bounds their memory")


def ask(server, *urls):
    return server.chat(question("?", *urls), max_tokens=2)


def fresh_image():
    """An image that no server has seen."""
    fresh_image.count += 1
    data = f"P5 1 3 {fresh_image.count}\n".encode() + b"\0\1\0"
    return f"data:image/x-portable-graymap;base64,{base64.b64encode(data).decode()}"


fresh_image.count = 1


def has_ended(process_id):
    try:
        handle = os.pidfd_open(process_id)
    except ProcessLookupError:
        return True
    with contextlib.closing(os.fdopen(handle)) as file:
        return bool(select.select([file], [], [], 120)[0])


@contextlib.contextmanager
def stopped(server):
    """All decoders stand still."""
    decoders = server.children()
    assert decoders
    for decoder in decoders:
        os.kill(decoder, signal.SIGSTOP)
    try:
        yield decoders
    finally:
        for decoder in decoders:
            with contextlib.suppress(ProcessLookupError):
                os.kill(decoder, signal.SIGCONT)


@pytest.fixture(scope="module")
def patient(endless_folder):
    """A server whose images may take as long as they like, but little memory."""
    limits = ("--image-workers", 1, "--image-timeout", 3000, "--image-memory-bytes", 2**28)
    with Server("--name", "mini", *limits, model=endless_folder) as running:
        yield running


@pytest.fixture(scope="module")
def strict(endless_folder):
    """A server that waits a second for an image."""
    with Server("--name", "mini", "--image-workers", 1, "--image-timeout", 1, model=endless_folder) as running:
        yield running


def test_other_requests_do_not_wait_for_a_slow_image(patient):
    """Text and known images are answered while an image is at its decoder; it is answered once that goes on."""
    known = example("letter")
    first = ask(patient, known).json()["choices"][0]["message"]
    with ThreadPoolExecutor(1) as threads:
        with stopped(patient):
            slow = threads.submit(ask, patient, fresh_image())
            assert patient.chat(question("Hello"), max_tokens=2).status_code == 200
            assert patient.client.get("/health").status_code == 200
            assert ask(patient, known).json()["choices"][0]["message"] == first  # not decoded again
            assert not slow.done()
        assert slow.result().status_code == 200


def test_a_killed_decoder_is_replaced(patient):
    with ThreadPoolExecutor(1) as threads, stopped(patient) as decoders:
        slow = threads.submit(ask, patient, fresh_image())
        threading.Event().wait(0.5)  # whether it has reached the decoder or not, it gets the answer below
        for decoder in decoders:
            os.kill(decoder, signal.SIGKILL)
        error = slow.result()
        assert error.status_code == 400 and "signal 9" in error.json()["error"]["message"]
    assert ask(patient, fresh_image()).status_code == 200
    assert patient.children() != decoders


def test_a_slow_image_is_given_up(strict):
    with stopped(strict) as decoders:
        error = ask(strict, fresh_image())
        assert error.status_code == 400 and error.json()["error"]["code"] == "image_too_large"
        assert "longer than 1 s" in error.json()["error"]["message"]
    assert all(has_ended(decoder) for decoder in decoders)


def transparent_png(side):
    """`side` x `side` transparent pixels in a few kilobytes."""
    body = zlib.compress(bytes(side * (1 + side * 4)), 1)
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(PNG_SIGNATURE + chunks).decode()}"


def test_an_image_that_needs_too_much_memory_is_refused(patient):
    """6000 x 6000 is within the limits: 144 MB of pixels, and as much again to put them on white."""
    error = ask(patient, transparent_png(6000))
    assert error.status_code == 400 and error.json()["error"]["code"] == "image_too_large"
    assert "memory" in error.json()["error"]["message"]
    assert ask(patient, fresh_image()).status_code == 200


def test_a_jpeg_of_many_scans_is_refused(strict):
    scan = b"\xff\xda\0\x08\1\1\0\1\1\0\0"
    data = b"\xff\xd8\xff\xc2\0\x0b\x08\0\x10\0\x10\1\1\x11\0" + scan * 400 + b"\xff\xd9"
    error = ask(strict, f"data:image/jpeg;base64,{base64.b64encode(data).decode()}").json()["error"]
    assert error["code"] == "image_too_large" and "32 scans" in error["message"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_decoders_end_with_the_server_in_the_middle_of_an_image(how, endless_folder):
    limits = ("--image-workers", 2, "--image-timeout", 3000, "--shutdown-grace", 1)
    server = Server("--name", "mini", *limits, model=endless_folder)
    with ThreadPoolExecutor(1) as threads, stopped(server) as decoders:
        slow = threads.submit(ask, server, fresh_image())
        threading.Event().wait(1)  # whether it has reached a decoder or not: what follows is the same
        server.signal(how)
        assert server.wait() == (0 if how == signal.SIGTERM else -how)
        assert all(has_ended(decoder) for decoder in decoders) and len(decoders) == 2
        with contextlib.suppress(Exception):  # an answer that says so, or a closed connection
            assert slow.result().status_code == 503
    server.stop()
