"""Image files with several frames (GIF, TIFF, WebP, APNG, AVIF, HEIF): how many there are, and one of them."""

from __future__ import annotations

from PIL import Image

from fastvlm.errors import ImageError, ImageTooLargeError
from fastvlm.images.frames import Frame, FrameLimits, Selection
from fastvlm.images.headers import check_tiff_blocks, is_sane_directory, tiff_directories
from fastvlm.images.limits import ImageLimits
from fastvlm.images.opening import decoded_rgb, undecoded_image

_FORMATS = ("GIF", "TIFF", "WEBP", "PNG", "AVIF", "HEIF")
_MAX_COUNTED = 10_000
_MAX_DECODED = 8  # times `max_pixels`: an animation's frame stands on all frames before it


def image_frames(data: bytes, name: str, selection: Selection, limits: FrameLimits) -> list[Frame]:
    """The selected frames of an image file, the first one if none is selected.

    Raises:
        ImageError: no image, a damaged one, a frame that it does not have.
        ImageTooLargeError: over the limits.
    """
    count = count_frames(undecoded_image(data, name, limits.image), data)
    numbers = selection.pages or (1,)
    if len(numbers) > limits.max_frames:
        raise ImageTooLargeError(f"{name} is asked for {len(numbers)} frames; the limit is {limits.max_frames}.")
    return [Frame(_frame(data, name, number, count, limits.image), "image", number, count) for number in numbers]


def count_frames(image: Image.Image, data: bytes) -> int | None:
    """Frames of the file `data` whose header gave `image`; 1 for formats without frames, None for too many to count."""
    if image.format not in _FORMATS:
        return 1
    if image.format == "TIFF":
        directories = tiff_directories(data, _MAX_COUNTED)
        return max(1, len(directories)) if len(directories) < _MAX_COUNTED else None
    if image.format == "GIF" and data.count(b"\0,") > _MAX_COUNTED:  # the end of a block and the next one's beginning
        return None
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # noqa: BLE001 - damaged after the first frame, which may be whole
        return None


def _frame(data: bytes, name: str, number: int, count: int | None, limits: ImageLimits) -> Image.Image:
    image = undecoded_image(data, name, limits)
    limits.check_size(image.size, name)
    if number > 1:
        if number > (count or _MAX_COUNTED):
            raise ImageError(f"{name} has no frame {number}; it has {count or f'{_MAX_COUNTED} or more'}.")
        _check_way(image, data, name, number, limits)
        try:
            image.seek(number - 1)
        except Exception as error:  # damaged files raise anything
            raise ImageError(f"{name} is damaged before frame {number} ({type(error).__name__}: {error}).") from error
        limits.check_size(image.size, name)
        if image.format == "TIFF":
            bounds = {"max_pixels": limits.max_pixels, "max_scans": limits.max_scans}
            check_tiff_blocks(getattr(image, "tag_v2", {}), data, name, **bounds)
    return decoded_rgb(image, name)


def _check_way(image: Image.Image, data: bytes, name: str, number: int, limits: ImageLimits) -> None:
    """Raise ImageTooLargeError if it would cost too much to come to a frame."""
    if image.format == "TIFF":
        if not all(is_sane_directory(data, start) for start in tiff_directories(data, number)):
            raise ImageTooLargeError(f"{name} has directory entries that overlap many times over. Save it anew.")
    elif number * image.width * image.height > _MAX_DECODED * limits.max_pixels:
        raise ImageTooLargeError(
            f"{name} has {number * image.width * image.height} pixels up to frame {number}; the limit is "
            f"{_MAX_DECODED * limits.max_pixels}. Choose an earlier frame, or save the frame as an image."
        )
