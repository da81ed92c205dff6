"""An image in stdin is found without waiting, and nothing is taken from who else reads there."""

import os
import socket
import subprocess
import sys

import pytest
from cli_process import plain_environment
from PIL import Image

LOOK = """
import sys
from fastvlm.cli.piped import has_piped_image, is_silent_pipe
print(has_piped_image(), is_silent_pipe(), sys.stdin.buffer.read() if sys.argv[1:] else "")
"""
TEXT = "What is red?\nWas ist grün?\n".encode()


def look(stdin, *, reads: bool = True) -> str:
    command = [sys.executable, "-c", LOOK, *(["read"] if reads else [])]
    done = subprocess.run(command, stdin=stdin, capture_output=True, env=plain_environment(), check=True, timeout=120)
    return done.stdout.decode().strip()


def in_pipe(data: bytes):
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


@pytest.fixture(params=["pipe", "file", "socket"])
def stdin_of(request, tmp_path):
    """A descriptor from which these bytes come."""
    opened = []

    def make(data: bytes) -> int:
        if request.param == "pipe":
            fd = in_pipe(data)
        elif request.param == "file":
            (tmp_path / "stdin").write_bytes(data)
            fd = os.open(tmp_path / "stdin", os.O_RDONLY)
        else:
            ours, theirs = socket.socketpair()
            ours.sendall(data)
            ours.close()
            fd = theirs.detach()
        opened.append(fd)
        return fd

    yield make
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_images_are_found_and_stay_there(stdin_of, tmp_path, kind):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image", kind)
    data = (tmp_path / "image").read_bytes()
    assert look(stdin_of(data)) == f"True False {data}"


@pytest.mark.parametrize("data", [TEXT, b"", "ü".encode() * 40, b"x" + "ü".encode() * 40])
def test_text_is_left_alone(stdin_of, data):
    assert look(stdin_of(data)) == f"False False {data}"


def test_nobody_is_waited_for():
    reader, writer = os.pipe()
    try:
        assert look(reader, reads=False) == "False True"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_file_is_looked_at_from_where_it_stands(tmp_path):
    (tmp_path / "both").write_bytes(b"text\n\x89PNG\0\0")
    with (tmp_path / "both").open("rb", buffering=0) as file:
        file.read(5)
        assert look(file) == "True False " + repr(b"\x89PNG\0\0")


def test_no_stdin_is_no_image():
    assert look(subprocess.DEVNULL) == "False False b''"
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "$CODE" <&-'],
        env={**plain_environment(), "CODE": LOOK},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().split()[:2] == ["False", "False"]
