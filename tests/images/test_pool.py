"""Images decoded in other processes: the same pixels, and what an image does stays there. No test asks the clock."""

import asyncio
import io
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvlm.errors import ImageError, ImageTooLargeError, UsageError
from fastvlm.images import ImageLimits, open_image
from fastvlm.images.fitting import IMAGE_FITS, fit_image
from fastvlm.images.pool import Fitting, ImagePool

FITTING = Fitting(64, 128, "pad", Image.Resampling.BICUBIC)
MEMORY = 3 * 2**29


def encoded(image, format_name="PNG", **options):
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def noise(mode="RGB", size=(90, 70)):
    channels = len(mode)
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


@contextmanager
def pool(num_workers=1, timeout_s=300.0, memory_bytes=MEMORY):
    made = ImagePool(num_workers, timeout_s=timeout_s, memory_bytes=memory_bytes)
    try:
        yield made
    finally:
        made.close()
        assert not alive(made)


def fit(made, content, fitting=FITTING, **limits):
    return asyncio.run(made.fit(content, fitting, ImageLimits(**limits)))


def process_ids(made):
    return [worker._process.pid for worker in made._all]


def alive(made):
    return [worker for worker in made._all if worker._process.poll() is None]


def slow_image():
    """A text PNM that Pillow reads character by character for minutes; all of its numbers are there."""
    return b"P2 6000 5000 9\n" + b"1 " * 30_000_000


def test_the_pixels_are_those_of_this_process():
    images = {
        "png": encoded(noise("RGBA")),
        "gray": encoded(noise("L")),
        "jpeg": encoded(noise(size=(300, 200)), "JPEG", progressive=True),
        "16 bits": encoded(Image.fromarray(np.arange(6000, dtype=np.uint16).reshape(60, 100) * 10)),
    }
    with pool(2) as made:
        made.start()
        assert len(process_ids(made)) == 2
        for content in images.values():
            for how in IMAGE_FITS:
                fitting = Fitting(64, 128, how, Image.Resampling.BICUBIC)
                expected = fit_image(open_image(content), 64, 128, fit=how)
                found = fit(made, content, fitting)
                assert found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(expected)), how
        assert len(process_ids(made)) == 2


def test_errors_are_those_of_this_process():
    with pool() as made:
        for content, limits in ((b"no image", {}), (encoded(noise())[:300], {}), (encoded(noise()), {"max_pixels": 9})):
            with pytest.raises(ImageError) as here:
                open_image(content, limits=ImageLimits(**limits))
            with pytest.raises(type(here.value)) as there:
                fit(made, content, **limits)
            assert str(there.value) == str(here.value)
        assert len(process_ids(made)) == 1


def test_a_slow_image_is_given_up_and_the_next_one_is_decoded():
    with pool(timeout_s=1) as made:
        made.start()
        before = process_ids(made)
        with pytest.raises(ImageTooLargeError, match="longer than 1 s"):
            fit(made, slow_image(), max_bytes=2**30)
        made._timeout_s = 300
        assert fit(made, encoded(noise())).size == (128, 64)
        assert process_ids(made) != before and len(alive(made)) == 1


def test_a_quick_image_does_not_wait_for_a_slow_one():
    """With two workers the second image is there while the first is at work; the first is ended by closing."""

    async def both(made):
        slow = asyncio.ensure_future(made.fit(slow_image(), FITTING, ImageLimits(max_bytes=2**30)))
        await asyncio.sleep(0)
        quick = await made.fit(encoded(noise()), FITTING, ImageLimits())
        assert quick.size == (128, 64) and not slow.done()
        await asyncio.to_thread(made.close)
        with pytest.raises(UsageError, match="closed"):
            await slow

    with pool(2) as made:
        made.start()
        asyncio.run(both(made))


def test_one_clients_images_do_not_delay_another_clients_first(monkeypatch):
    order = []

    def answer(job, content, name):
        order.append(content)
        return {}, bytes(FITTING.height * FITTING.width * 3)

    async def run(made):
        monkeypatch.setattr(made, "answer", answer)
        images = [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0)]
        await asyncio.gather(*(made.fit(image, FITTING, ImageLimits(), image[0]) for image in images))

    with pool() as made:
        asyncio.run(run(made))
    assert order == [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("a", 3)]


def test_who_is_cancelled_while_waiting_leaves_the_queue():
    async def run(made):
        slow = asyncio.ensure_future(made.fit(slow_image(), FITTING, ImageLimits(max_bytes=2**30)))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(made.fit(encoded(noise()), FITTING, ImageLimits())) for _ in range(3)]
        await asyncio.sleep(0)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert all(one.cancelled() for one in waiting)
        for pid in process_ids(made):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ImageError, match="signal 9"):
            await slow
        assert (await made.fit(encoded(noise()), FITTING, ImageLimits())).size == (128, 64)

    with pool() as made:
        made.start()
        asyncio.run(run(made))


def test_an_image_whose_worker_is_killed_is_refused_and_the_worker_replaced():
    with pool() as made:
        made.start()
        [pid] = process_ids(made)
        threading.Timer(0.3, os.kill, (pid, signal.SIGSEGV)).start()
        with pytest.raises(ImageError, match="signal 11"):
            fit(made, slow_image(), max_bytes=2**30)
        assert fit(made, encoded(noise())).size == (128, 64)


def test_an_idle_worker_that_died_costs_one_image_at_most():
    with pool() as made:
        made.start()
        [pid] = process_ids(made)
        os.kill(pid, signal.SIGKILL)
        made._idle[0]._process.wait()
        with pytest.raises(ImageError, match="signal 9"):
            fit(made, encoded(noise()))
        assert fit(made, encoded(noise())).size == (128, 64)


def png_bomb(side):
    """side x side black pixels in a few kilobytes."""

    def chunk(kind, payload):
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    packer, body = zlib.compressobj(9), b""
    for _ in range(side):
        body += packer.compress(bytes(1 + side * 4))
    body += packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the address space")
def test_an_image_that_needs_too_much_memory_is_refused_and_its_worker_lives():
    with pool(memory_bytes=2**28) as made:
        made.start()
        before = process_ids(made)
        with pytest.raises(ImageTooLargeError, match="memory"):
            fit(made, png_bomb(9000))  # 324 MB of pixels, where 256 MB are allowed in all
        assert fit(made, encoded(noise())).size == (128, 64)
        assert process_ids(made) == before


def test_a_pool_that_is_closed_refuses():
    with pool() as made:
        made.close()
        with pytest.raises(UsageError, match="closed"):
            fit(made, encoded(noise()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_has_no_keys_no_torch_and_no_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVLM_SERVE_API_KEYS", "a-secret-of-the-parent")
    (tmp_path / "json.py").write_text("raise SystemExit('the current folder is on the path')")
    monkeypatch.chdir(tmp_path)
    with pool() as made:
        made.start()
        [pid] = process_ids(made)
        assert fit(made, encoded(noise())).size == (128, 64)
        seen = Path(f"/proc/{pid}")
        assert b"secret" not in (seen / "environ").read_bytes()
        assert "torch" not in (seen / "maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_worker_ends_with_its_parent_in_the_middle_of_an_image():
    """The parent is killed; the worker's stdout, which the test holds through a pipe of its own, ends."""
    program = (
        "import asyncio, os, sys\n"
        "from fastvlm.images import ImageLimits\n"
        "from fastvlm.images.pool import Fitting, ImagePool\n"
        "made = ImagePool(1, timeout_s=3000, memory_bytes=3 * 2**29)\n"
        "made.start()\n"
        "print(next(iter(made._all))._process.pid, flush=True)\n"
        "content = b'P2 6000 5000 9\\n' + b'1 ' * 30_000_000\n"
        "asyncio.run(made.fit(content, Fitting(64, 64, 'pad', 3), ImageLimits(max_bytes=2**30)))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    handle = os.pidfd_open(worker)
    try:
        parent.kill()
        parent.wait()
        readable, _, _ = select.select([handle], [], [], 120)  # readable when the process has ended
        assert readable, "the worker outlives its parent"
    finally:
        os.close(handle)
        parent.stdout.close()
