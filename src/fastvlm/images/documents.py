"""PDF pages -> RGB images.

A page is rendered so that its longer side has `FrameLimits.max_side_px` pixels, whatever its size on paper. The default
of 2048 is twice the 1024 px that FastVLM was trained at (an A4 page: 175 dpi). The model's resolution, not the
paper's, decides which text can be read. Rendered at twice that and reduced once, 10-point text of an A4 page differs
from its exact coverage by 17 of 255 (root mean square of the inked pixels), rendered at 1024 px at once by 27. The
shipped mini reads the same words either way.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastvlm.errors import ImageError
from fastvlm.images.frames import Frame, FrameLimits, Selection

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument


def pdf_pages(source: Path | bytes, name: str, selection: Selection, limits: FrameLimits) -> list[Frame]:
    """The selected pages, rendered, with the values of form fields and with annotations.

    To be called in a process of its own: PDFium is not made for several threads, and no call of it can be stopped.

    Raises:
        ImageError: damaged, encrypted, without pages, a page that does not exist or has no area.
        ImageTooLargeError: more pages than the limits allow.
    """
    with _opened(source, name) as document:
        count = len(document)
        return [
            _page(document, number, count, name, limits.max_side_px)
            for number in selection.numbers(count, name, limits)
        ]


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[PdfDocument]:
    from pypdfium2 import PdfDocument, PdfiumError  # noqa: PLC0415 - an extra

    try:
        document = PdfDocument(source if isinstance(source, Path) else io.BytesIO(source))
    except PdfiumError as error:
        # PDFium repeats its last reason for a file without pages, so the reason alone proves nothing.
        is_encrypted = isinstance(source, Path) or b"/Encrypt" in source
        if is_encrypted and "password" in str(error):
            raise ImageError(f"{name} is encrypted. Save it without a password.") from error
        raise _damaged(name, error) from error
    try:
        document.init_forms()
        yield document
    except PdfiumError as error:
        raise _damaged(name, error) from error
    finally:
        document.close()


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is a damaged PDF, or one without pages ({error}). Pass a whole one.")


def _page(document: PdfDocument, number: int, count: int, name: str, side_px: int) -> Frame:
    page = document[number - 1]
    longer = max(page.get_size())  # in points, rotated as shown
    if not (math.isfinite(longer) and longer > 0):
        raise ImageError(f"{name} has no area on page {number}. Pass a page with a width and a height.")
    image = page.render(scale=side_px / longer, rev_byteorder=True).to_pil().convert("RGB")
    page.close()
    image.thumbnail((side_px, side_px))  # sides are rounded up
    return Frame(image, "page", number, count)
