"""Detect an image in stdin without waiting and without consuming anything.

Stdin may belong to another program: in ``while read -r line; do fastvlm ask "$line"; done < questions.txt`` it holds
the next lines. So the first bytes are peeked at, and text is not consumed.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import select
import socket
import stat
import sys
from contextlib import closing

_HEAD_BYTES = 64
_NOT_BLOCKING = 2  # SPLICE_F_NONBLOCK of <fcntl.h>


def has_piped_image() -> bool:
    """True if binary data can be read from stdin at once; the data stays there."""
    head = _head()
    return head is not None and _is_binary(head)


def is_silent_pipe() -> bool:
    """True if stdin is an open pipe without data so far."""
    fd = _stdin()
    if fd is None or not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return False
    return not select.select([fd], [], [], 0)[0]


def _stdin() -> int | None:
    """Stdin's descriptor; None for a terminal, or without stdin."""
    try:
        fd = sys.stdin.fileno()
        return None if os.isatty(fd) else fd
    except (AttributeError, OSError, ValueError):  # stdin is missing, closed, or replaced by another object
        return None


def _head() -> bytes | None:
    """The first bytes of stdin, not consumed; None if there are none, or they cannot be peeked at."""
    fd = _stdin()
    if fd is None:
        return None
    mode = os.fstat(fd).st_mode
    try:
        if stat.S_ISREG(mode):
            return os.pread(fd, _HEAD_BYTES, os.lseek(fd, 0, os.SEEK_CUR))
        if stat.S_ISFIFO(mode):
            return _head_of_pipe(fd)
        if stat.S_ISSOCK(mode):
            with socket.socket(fileno=os.dup(fd)) as peer:
                return peer.recv(_HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (OSError, AttributeError):  # nothing there yet; not on this system
        return None
    return None


def _head_of_pipe(fd: int) -> bytes | None:
    """Peek at a pipe by Linux's tee(2), which copies from one pipe to another without consuming."""
    tee = ctypes.CDLL(None, use_errno=True).tee
    reader, writer = os.pipe()
    with closing(os.fdopen(reader, "rb", buffering=0)) as copy:
        try:
            num_bytes = tee(fd, writer, ctypes.c_size_t(_HEAD_BYTES), ctypes.c_uint(_NOT_BLOCKING))
        finally:
            os.close(writer)
        return copy.read(num_bytes) if num_bytes > 0 else None


def _is_binary(head: bytes) -> bool:
    """True for bytes that are not UTF-8 text; the last character may be cut."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return True
    return "\0" in text
