"""PDFs and videos in requests -> images, decoded by the worker processes, within the server's limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastvlm.engine.image_decoding import fitting_of
from fastvlm.errors import ImageError
from fastvlm.images.frames import FrameLimits, Selection, parse_pages
from fastvlm.images.pool import ImagePool
from fastvlm.images.signatures import HEAD_BYTES, media_kind
from fastvlm.processing.image_items import image_items
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.server.settings import ServeSettings


@dataclass(frozen=True)
class MediaReader:
    """Reads the files of one request.

    Args:
        settings: of the server; `accepts` has the kinds of files that are read.
        pool: decodes them, as it does images.
        processor: of the request: size and fit of the images.
        client: the client of the request, for the pool's turns.
    """

    settings: ServeSettings
    pool: ImagePool | None
    processor: ImageProcessor
    client: str

    async def items(self, data: bytes, pages: str | None, place: str, most: int) -> list[dict[str, Any]]:
        """The items of a message for the file `data`: the image itself, the pages of a PDF, the frames of a video.

        Args:
            data: the file.
            pages: which pages of a PDF.
            place: the path of its field in the request.
            most: images that the request may still have, with this one.

        Raises:
            ImageError, UsageError: not accepted, damaged, over the limits; pages of something else than a PDF.
        """
        kind = media_kind(data[:HEAD_BYTES])
        if pages is not None and kind != "pdf":
            raise ImageError(f"{place} has pages, but is not a PDF. Leave pages out.")
        if kind == "image":
            return [{"type": "image", "image": data}]
        if kind not in self.settings.accepts or self.pool is None:
            noun = "video" if kind == "video" else "PDF"
            raise ImageError(
                f"{place} is a {noun}, which this server does not accept. Send images, or start the server with "
                f"--accept {kind}."
            )
        selection = Selection(parse_pages(pages), max_frames=min(8, most))
        fitting = fitting_of(self.processor)
        frames = await self.pool.frames(data, place, selection, self._limits(most), fitting, self.client)
        return image_items(frames)

    def _limits(self, most: int) -> FrameLimits:
        return FrameLimits(image=self.processor.image_limits, max_frames=min(16, most))
