"""Pages of PDF files: which ones, how large, and what is refused."""

import io

import pytest
from media_files import encrypted_pdf, pdf
from PIL import Image

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.documents import pdf_pages
from fastvlm.images.frames import FrameLimits, Selection

LIMITS = FrameLimits()


def pages(data, limits=LIMITS, **selection):
    return pdf_pages(data, "a.pdf", Selection(**selection), limits)


def ink(image):
    """Share of dark pixels."""
    return (
        image.convert("L")
        .point(lambda value: 255 * (value < 128))
        .resize((1, 1), Image.Resampling.BOX)
        .getpixel((0, 0))
    )


def test_all_pages_of_a_short_document():
    found = pages(pdf(["one", "", "three"]))
    assert [(page.kind, page.number, page.count, page.time_s) for page in found] == [
        ("page", number, 3, None) for number in (1, 2, 3)
    ]
    assert all(page.image.mode == "RGB" and max(page.image.size) == 2048 for page in found)
    assert ink(found[0].image) > 0 and ink(found[1].image) == 0


def test_pages_that_are_chosen_come_in_the_order_asked_for():
    assert [page.number for page in pages(pdf(["x"] * 30), pages=(30, 2))] == [30, 2]


@pytest.mark.parametrize("size", [(300, 400), (3000, 200), (14400, 1), (3, 4)])
def test_the_longer_side_has_as_many_pixels_whatever_the_paper(size):
    (page,) = pages(pdf(["x"], size=size), FrameLimits(max_side_px=500))
    assert max(page.image.size) == 500 and min(page.image.size) >= 1


def test_a_scan_saved_by_pillow_is_a_page():
    file = io.BytesIO()
    Image.new("RGB", (50, 80), (200, 30, 30)).save(file, "PDF")
    (page,) = pages(file.getvalue())
    assert all(abs(a - b) < 6 for a, b in zip(page.image.getpixel((9, 9)), (200, 30, 30), strict=True))


def test_a_file_on_the_disk(tmp_path):
    path = tmp_path / "a b.pdf"
    path.write_bytes(pdf(["one"]))
    assert pdf_pages(path, "a b.pdf", Selection(), LIMITS)[0].count == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encrypted_pdf(), "is encrypted. Save it without a password"),
        (pdf([]), "damaged PDF, or one without pages"),
        (pdf(["x"])[:60], "damaged PDF"),
        (b"%PDF-1.7\n" + bytes(range(256)) * 20, "damaged PDF"),
    ],
)
def test_what_cannot_be_read_is_named(data, says):
    with pytest.raises(ImageError, match=says):
        pages(data)


def test_more_pages_than_the_limit_are_refused_with_what_to_choose():
    with pytest.raises(ImageTooLargeError, match=r"has 9 pages; the limit is 8. Choose fewer pages, such as 1-8"):
        pages(pdf(["x"] * 9))
    with pytest.raises(ImageTooLargeError, match="asked for 17 pages; the limit is 16"):
        pages(pdf(["x"] * 20), pages=tuple(range(1, 18)))
    with pytest.raises(ImageError, match="has no page 4; it has 3"):
        pages(pdf(["x"] * 3), pages=(4,))
