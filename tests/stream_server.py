"""A local HTTP server that plays the part of a network camera: MJPEG without an end, or a video file."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


class Camera(BaseHTTPRequestHandler):
    """The answers; `serving` sets what they are."""

    server: CameraServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/mjpeg") and self.server.asked.count(self.path) <= self.server.rounds:
            self._mjpeg()
        elif self.path == "/clip.mp4":
            self._head("video/mp4", len(self.server.content))
            self.wfile.write(self.server.content)
        elif self.path == "/silent":
            self.server.stop.wait()
        else:
            self.send_error(404)

    def _head(self, kind: str, num_bytes: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if num_bytes is not None:
            self.send_header("Content-Length", str(num_bytes))
        self.end_headers()

    def _mjpeg(self) -> None:
        self._head("multipart/x-mixed-replace; boundary=frame")
        for data in self.server.jpegs:
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + data + b"\r\n")
            except OSError:  # the client has gone
                return
            time.sleep(1 / self.server.fps)

    def log_message(self, *_: object) -> None:
        pass


class CameraServer(ThreadingHTTPServer):
    def __init__(self, jpegs: Sequence[bytes], content: bytes, fps: float, rounds: int) -> None:
        super().__init__(("127.0.0.1", 0), Camera)
        self.jpegs, self.content, self.fps, self.rounds = jpegs, content, fps, rounds
        self.asked: list[str] = []
        self.stop = threading.Event()


@contextmanager
def serving(
    images: Sequence[Image.Image] = (), *, content: bytes = b"", each: int = 10, fps: float = 50, rounds: int = 1
) -> Iterator[tuple[str, list[str]]]:
    """The server's address, and the paths asked for so far.

    ``/mjpeg`` shows each of `images` for `each` frames and then hangs up; after `rounds` times it answers 404.
    ``/clip.mp4`` gives `content`, ``/silent`` nothing.
    """
    server = CameraServer([jpeg(image) for image in images for _ in range(each)], content, fps, rounds)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
