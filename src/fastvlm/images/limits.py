"""Limits on what an image may cost, and the two checks that need nothing but a number."""

from __future__ import annotations

from dataclasses import dataclass

from fastvlm.errors import ImageError, ImageTooLargeError


@dataclass(frozen=True)
class ImageLimits:
    """What an image source may cost before it is refused.

    Args:
        max_bytes: size of the encoded image (file, response body, decoded data URI).
        max_pixels: width x height, read from the header before anything is decoded (decoding takes 4 bytes a pixel);
            also of images inside (icons).
        max_scans: scans of a progressive JPEG, counted before anything is decoded. Common encoders write 1 to 12;
            each one takes as long as decoding a baseline JPEG.
        timeout_s: seconds that a URL may take, as a whole.
        max_redirects: redirects that a URL may take.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 120_000_000
    max_scans: int = 32
    timeout_s: float = 20.0
    max_redirects: int = 5

    def check_num_bytes(self, num_bytes: int, name: str) -> None:
        """Raises ImageTooLargeError above `max_bytes`; `name` is how the error calls the image."""
        if num_bytes > self.max_bytes:
            raise ImageTooLargeError(
                f"{name} has {num_bytes} bytes or more; the limit is {self.max_bytes}. Pass a smaller image, or "
                "ImageLimits(max_bytes=...)."
            )

    def check_size(self, size_px: tuple[int, int], name: str) -> None:
        """Check (width, height). Raises ImageError below 1 pixel, ImageTooLargeError above `max_pixels`."""
        width, height = size_px
        if width < 1 or height < 1:
            raise ImageError(f"{name} is {width} x {height} pixels; an image has at least one.")
        if width * height > self.max_pixels:
            raise ImageTooLargeError(
                f"{name} is {width} x {height} = {width * height} pixels; the limit is {self.max_pixels}. Pass a "
                "smaller image, or ImageLimits(max_pixels=...)."
            )


DEFAULT_LIMITS = ImageLimits()
