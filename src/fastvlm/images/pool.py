"""Files decoded in processes of their own, so that none of them can stop, fill or crash the process that asks.

Each worker decodes one image, PDF or video at a time, within a deadline (a wall clock's; the worker is killed) and a
bound on its memory. A worker that dies takes its image along, and the next image starts another one. What comes back is
the image as the model takes it, fitted by the same code as in this process and so equal bit for bit: 3 MB at 1024
pixels a side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from fastvlm.errors import ImageError, ImageTooLargeError, UsageError
from fastvlm.images.fair_turns import FairTurns
from fastvlm.images.frames import Frame, FrameLimits, Selection
from fastvlm.images.limits import ImageLimits
from fastvlm.images.worker import receive, send

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fastvlm.images.worker import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
# What a worker gets of the environment: where libraries and messages lie, and no keys. Few arenas: each one of glibc's
# takes 64 MB of address space.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP")
_SETTINGS = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
Job = dict[str, Any]
Reply = tuple[dict[str, Any], bytes]  # what JSON can hold, and pixels
_START_S = 120.0  # a busy machine; without a limit a broken installation would hang the start


@dataclass(frozen=True)
class Fitting:
    """How an image is fitted; see :func:`fastvlm.images.fitting.fit_image`. Sides in pixels."""

    height: int
    width: int
    fit: str
    resample: int


class ImagePool:
    """Worker processes that decode and fit images.

    Args:
        num_workers: images that are decoded at the same time.
        timeout_s: seconds that one image may take.
        memory_bytes: address space that one worker may have.
    """

    def __init__(self, num_workers: int, *, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="fastvlm-images")
        self._num_workers, self._turns = num_workers, FairTurns(num_workers)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._is_open = True

    def start(self) -> None:
        """Start all workers now, so that the first image need not wait for one.

        Raises:
            UsageError: they do not start, or not with this little memory.
        """
        workers = [self._threads.submit(self._worker) for _ in range(self._num_workers)]
        for worker in [future.result() for future in workers]:
            self._put_back(worker)

    async def fit(self, content: bytes, fitting: Fitting, limits: ImageLimits, client: str = "") -> Image.Image:
        """The image that `content` (a file's bytes) holds, fitted: RGB of exactly the height and width of `fitting`.

        While all workers are busy, clients get the next free one in rotation, so that one client's many images do not
        delay those of others. A task that is cancelled while it waits leaves the queue.

        Raises:
            ImageTooLargeError: over the limits, too much memory, too slow.
            ImageError: no image, a damaged one, or one that ended its worker.
            UsageError: the pool is closed.
        """
        job = {"fitting": asdict(fitting), "limits": asdict(limits)}
        _, pixels = await self._in_turn(job, content, f"{len(content)} bytes", client)
        return Image.frombytes("RGB", (fitting.width, fitting.height), pixels)

    async def frames(
        self, content: bytes, name: str, selection: Selection, limits: FrameLimits, fitting: Fitting, client: str = ""
    ) -> list[Frame]:
        """The selected pages of a PDF or frames of a video, fitted; `name` is how errors call it.

        Waits as :meth:`fit` does, and raises the same errors. The pool's own limits of time and memory hold.
        """
        job = frames_job(None, name, selection, limits, fitting)
        return read_frames(*await self._in_turn(job, content, name, client))

    async def _in_turn(self, job: Job, content: bytes, name: str, client: str) -> Reply:
        async with self._turns.turn(client):
            self._refuse_if_closed()
            return await asyncio.wrap_future(self._threads.submit(self.answer, job, content, name))

    def close(self) -> None:
        """End all workers, also those that are at work: their images raise UsageError."""
        with self._lock:
            self._is_open = False
            workers = list(self._all)
        for worker in workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.wait()

    def answer(self, job: Job, content: bytes, name: str) -> Reply:
        """The answer of a worker to one job, in this thread; see :meth:`fit` for errors."""
        worker = self._worker()
        try:
            reply, pixels = worker.ask(job, content, self._timeout_s)
        except (OSError, EOFError, ValueError) as error:
            self._drop(worker)
            raise self._why_it_died(worker, name) from error
        self._put_back(worker)
        if "error" in reply:
            kind = ImageTooLargeError if reply.get("is_too_large") else ImageError
            raise kind(str(reply["error"]))
        return reply, pixels

    def _worker(self) -> _Worker:
        """An idle worker, or a new one."""
        self._refuse_if_closed()
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = _Worker(self._memory_bytes)
        with self._lock:
            self._all.add(worker)
        try:
            worker.until_ready(self._memory_bytes)
            self._refuse_if_closed()  # it was closed meanwhile, and did not know of this worker
        except BaseException:
            self._drop(worker)
            raise
        return worker

    def _put_back(self, worker: _Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        worker.wait()
        with self._lock:
            self._all.discard(worker)

    def _refuse_if_closed(self) -> None:
        if not self._is_open:
            raise UsageError("The image decoders are closed.")

    def _why_it_died(self, worker: _Worker, name: str) -> Exception:
        self._refuse_if_closed()
        if worker.is_out_of_time:
            return ImageTooLargeError(
                f"{name} took longer than {self._timeout_s:g} s to decode, which is the limit. Pass a "
                "smaller one, or another format."
            )
        return ImageError(
            f"{name} ended the process that decoded them ({worker.end}): a damaged file, or one that needs "
            "too much memory. Save it anew."
        )


def frames_job(
    path: Path | None, name: str, selection: Selection, limits: FrameLimits, fitting: Fitting | None = None
) -> Job:
    """The job to decode frames of the file at `path`, or of the content that is sent with the job."""
    return {
        "path": None if path is None else str(path.resolve()),
        "name": name,
        "selection": asdict(selection),
        "limits": asdict(limits),
        "fitting": None if fitting is None else asdict(fitting),
    }


def read_frames(reply: dict[str, Any], pixels: bytes) -> list[Frame]:
    """The frames that answer a :func:`frames_job`."""
    frames: list[Frame] = []
    rest = memoryview(pixels)
    for note in reply["frames"]:
        width, height = note.pop("size")
        image = Image.frombytes("RGB", (width, height), rest[: width * height * 3])
        rest = rest[width * height * 3 :]
        frames.append(Frame(image, **note))
    return frames


class _Worker:
    """One process, seen from outside."""

    def __init__(self, memory_bytes: int) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # -I: nothing of the current folder or of the user's; the paths are this process's own.
        arguments = [json.dumps(sys.path), str(os.getpid()), str(memory_bytes)]
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a fixed program
            [sys.executable, "-I", "-c", _PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment, **_SETTINGS},
        )
        self.is_out_of_time = False

    def until_ready(self, memory_bytes: int) -> None:
        """Wait for the first sign of life. Raises UsageError with what the process said instead."""
        try:
            with self._deadline(_START_S):
                receive(self._file(self._process.stdout))
        except (EOFError, ValueError) as error:
            said = self._file(self._process.stderr).read().decode("utf-8", "replace").strip().splitlines()
            raise UsageError(
                f"The process that decodes images does not start ({said[-1] if said else self.end}); it may have "
                f"{memory_bytes} bytes of memory."
            ) from error

    def ask(self, job: dict[str, Any], content: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """The reply to one job.

        Raises:
            OSError, EOFError, ValueError: the process died, or was killed at its deadline.
        """
        with self._deadline(timeout_s):
            send(self._file(self._process.stdin), job, content)
            return receive(self._file(self._process.stdout))

    @contextlib.contextmanager
    def _deadline(self, timeout_s: float) -> Any:
        timer = threading.Timer(timeout_s, self._time_is_up)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _time_is_up(self) -> None:
        self.is_out_of_time = True
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self) -> None:
        """Until it has ended; nothing of it is left."""
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):  # what could not be written
                self._file(file).close()

    @property
    def end(self) -> str:
        """How it ended, for error texts."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    @staticmethod
    def _file(file: IO[bytes] | None) -> Any:
        assert file is not None  # noqa: S101 - all three are pipes
        return file
