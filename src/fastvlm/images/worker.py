"""The process that decodes files for :class:`fastvlm.images.pool.ImagePool`: one file after the other.

It imports neither torch nor transformers (see the pool's figures). It reads jobs from stdin and writes replies to
stdout, and ends when stdin ends; on Linux also as soon as its parent does, in the middle of an image. A decoder that is
made to misbehave finds little here: no environment of the parent's, no files to write, bounded memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.fitting import fit_image
from fastvlm.images.frame_decoding import decode_frames
from fastvlm.images.frames import FrameLimits, Selection
from fastvlm.images.limits import ImageLimits
from fastvlm.images.opening import open_image

_LENGTHS = struct.Struct(">IQ")  # of the header (JSON) and of the bytes that follow it
_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


def send(file: BinaryIO, header: dict[str, Any], payload: bytes = b"") -> None:
    """Write one message: a header and bytes. Raises OSError where nobody reads."""
    text = json.dumps(header).encode()
    file.write(_LENGTHS.pack(len(text), len(payload)) + text)
    file.write(payload)
    file.flush()


def receive(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Read one message, as :func:`send` writes it. Raises EOFError where there is none, or only a part."""
    text_length, length = _LENGTHS.unpack(_exactly(file, _LENGTHS.size))
    header: dict[str, Any] = json.loads(_exactly(file, text_length))
    return header, _exactly(file, length)


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return data


def main(parent_id: int, memory_bytes: int) -> None:
    """Answer jobs until there are no more.

    Args:
        parent_id: the parent's process id.
        memory_bytes: of address space; more is a MemoryError, and so a refused image.
    """
    _end_with(parent_id)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    jobs, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    Image.init()  # all readers now: not within the first job's time, nor within its memory
    import numpy  # noqa: F401, PLC0415 - the same for images of 16 bits

    _limit(memory_bytes)
    send(replies, {"is_ready": True})
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # what libraries print would break the replies, or fill the parent's log
        os.dup2(nowhere, descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent wants no more
        while True:
            send(replies, *_answer(*receive(jobs)))


def _end_with(parent_id: int) -> None:
    """Die when the parent does, also in the middle of a decoder's C code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_id:  # it was over before that
            raise SystemExit


def _limit(memory_bytes: int) -> None:
    """Bound the address space (all memory that a decoder can ask for, touched or not), files and core dumps."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


def _answer(job: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """The reply to a job, see :class:`ImagePool`: the pixels, or the error."""
    try:
        return (
            _frames(job, content)
            if "selection" in job
            else ({}, _fitted(_open(job, content), job["fitting"]).tobytes())
        )
    except MemoryError:
        return {"error": "The image needs more memory than its decoder may have.", "is_too_large": True}, b""
    except ImageError as error:
        return {"error": str(error), "is_too_large": isinstance(error, ImageTooLargeError)}, b""


def _open(job: dict[str, Any], content: bytes) -> Image.Image:
    return open_image(content, limits=ImageLimits(**job["limits"]))


def _frames(job: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """Of each frame what JSON can hold, and the pixels of all of them, one after the other."""
    source = content if job["path"] is None else Path(job["path"])
    frames = decode_frames(
        source, job["name"], Selection.from_dict(job["selection"]), FrameLimits.from_dict(job["limits"])
    )
    images = [_fitted(frame.image, job["fitting"]) for frame in frames]
    notes = [{**frame.as_dict(), "size": image.size} for frame, image in zip(frames, images, strict=True)]
    return {"frames": notes}, b"".join(image.tobytes() for image in images)


def _fitted(image: Image.Image, fitting: dict[str, Any] | None) -> Image.Image:
    return image if fitting is None else fit_image(image, **fitting)
