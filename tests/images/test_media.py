"""Any file -> its images, with PDFs and videos decoded in another process."""

import io
import subprocess
import sys

import numpy as np
import pytest
from media_files import disk, pdf, video
from PIL import Image

from fastvlm import open_frames
from fastvlm.errors import ImageError, ImageTooLargeError, UsageError
from fastvlm.images import open_image
from fastvlm.images.documents import pdf_pages
from fastvlm.images.frames import FrameLimits, Selection
from fastvlm.images.limits import ImageLimits
from fastvlm.images.signatures import media_kind


def test_a_pdf_by_path_and_by_bytes_is_what_this_process_would_make_of_it(tmp_path):
    data = pdf(["one", "two"])
    (tmp_path / "a.pdf").write_bytes(data)
    expected = pdf_pages(data, "a.pdf", Selection((2,)), FrameLimits())
    for source in (tmp_path / "a.pdf", str(tmp_path / "a.pdf"), data, io.BytesIO(data)):
        (page,) = open_frames(source, pages=2)
        assert page.as_dict() == expected[0].as_dict()
        assert np.array_equal(np.asarray(page.image), np.asarray(expected[0].image))


def test_a_video(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(video([disk("red"), disk("blue")]))
    assert [frame.time_s for frame in open_frames(path)] == [0.0, 1.0]
    with pytest.raises(UsageError, match="is a video: it has no pages"):
        open_frames(path, pages="1")
    with pytest.raises(ImageTooLargeError, match="the limit is 99"):
        open_frames(path, limits=FrameLimits(max_file_bytes=99))
    with pytest.raises(ImageTooLargeError, match="the limit is 99"):
        open_frames(path.read_bytes(), limits=FrameLimits(image=ImageLimits(max_bytes=99)))


def test_images_are_opened_as_ever(tmp_path):
    image = Image.new("RGB", (9, 7), "red")
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", image, np.asarray(image), (tmp_path / "a.png").read_bytes()):
        (frame,) = open_frames(source)
        assert (frame.kind, frame.number, frame.count, frame.time_s) == ("image", 1, 1, None)
        assert np.array_equal(np.asarray(frame.image), np.asarray(image))
    with pytest.raises(UsageError, match="decoded already"):
        open_frames(image, pages=2)
    for wrong in (tmp_path / "none.png", tmp_path, b"no image"):
        with pytest.raises(ImageError):
            open_frames(wrong)


def test_errors_of_the_other_process_and_its_limits():
    with pytest.raises(ImageError, match="900 bytes is a damaged PDF"):
        open_frames(b"%PDF-1.7\n" + bytes(891))
    with pytest.raises(ImageTooLargeError, match=r"took longer than 0\.01 s"):
        open_frames(pdf(["x"]), limits=FrameLimits(timeout_s=0.01))
    with pytest.raises(ImageError, match=r"memory|ended the process"):
        open_frames(pdf(["x"]), limits=FrameLimits(memory_bytes=2**28, max_side_px=12_000))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"%PDF-1.4", "pdf"),
        (b"\xef\xbb\xbf\n%PDF-1.4", "pdf"),
        (b"\xff\xd8\xff\xe0%PDF-", "image"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"\0\0\0\x18ftypheic", "image"),
        (b"\0\0\0\x18ftypavif", "image"),
        (b"\0\0\0\x08wide", "video"),
        (b"RIFF\0\0\0\0WEBP", "image"),
        (b"RIFF\0\0\0\0AVI ", "video"),
        (b"#EXTM3U", "image"),
        (b"", "image"),
    ],
)
def test_kinds_by_the_first_bytes(head, kind):
    assert media_kind(head) == kind


def test_what_opens_images_says_what_opens_these():
    for data, says in (
        (pdf(["x"]), "it is a PDF; fastvlm.open_frames"),
        (video([disk("red")]), "it is a video; fastvlm"),
    ):
        with pytest.raises(ImageError, match=says):
            open_image(data)


@pytest.mark.parametrize(
    ("package", "extra", "data"),
    [("pypdfium2", "documents", b"%PDF-1.4 whatever"), ("av", "video", b"\0\0\0\x18ftypisom whatever")],
)
def test_without_the_package_the_extra_is_named(package, extra, data):
    program = (
        "import importlib.util as util, sys\n"
        "find = util.find_spec\n"
        f"util.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)\n"
        "from fastvlm import open_frames\n"
        "from fastvlm.errors import MissingExtraError\n"
        "try:\n"
        f"    open_frames({data!r})\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and f"pip install 'fastvlm[{extra}]'" in done.stdout
