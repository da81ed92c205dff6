"""An RGB image fitted into the model's height and width, by PIL alone: torch and NumPy are not needed.

The three ways are told in :mod:`fastvlm.processing.light_image_processor`.
"""

from __future__ import annotations

from PIL import Image

__all__ = ["IMAGE_FITS", "fit_picture"]

IMAGE_FITS = ("pad", "crop", "stretch")
PAD_COLOUR = (0, 0, 0)  # black: 255 * image_mean, and the mean is 0

# Above these, the exact way (a black canvas around a very long picture; a resized picture before it is cropped) would
# cost out of proportion, so the part that is kept is resized by itself: up to half a pixel beside the exact place.
MAX_CANVAS_PIXELS = 64_000_000
MAX_UNCROPPED_PIXELS = 64_000_000


def fit_picture(
    picture: Image.Image, height: int, width: int, *, fit: str = "pad", resample: int = Image.Resampling.BICUBIC
) -> Image.Image:
    """`picture` (RGB) fitted into `height` x `width` pixels: uint8 RGB of exactly that size."""
    if fit == "stretch" or picture.width * height == picture.height * width:
        return picture.resize((width, height), resample)
    if fit == "crop":
        return _crop(picture, height, width, resample)
    return _pad(picture, height, width, resample)


def _pad(picture: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """Centred on a black canvas of the target's shape, then resized, without ever making the whole canvas.

    PIL resizes squares along x, then along y, with 8 bits between; so do these two passes, bit for bit. Black rows
    stay black along x, so only the picture's own rows go through the first pass, in blocks; the canvas's full height
    is needed for the second pass only.
    """
    canvas_width = max(picture.width, -(-picture.height * width // height))
    canvas_height = max(picture.height, -(-picture.width * height // width))
    if canvas_width * canvas_height > max(MAX_CANVAS_PIXELS, 4 * picture.width * picture.height):
        return _resize_then_pad(picture, height, width, resample)
    left, top = (canvas_width - picture.width) // 2, (canvas_height - picture.height) // 2
    narrow = Image.new("RGB", (width, canvas_height), PAD_COLOUR)
    block_rows = picture.height if canvas_width == picture.width else max(1, 4_000_000 // canvas_width)
    for first in range(0, picture.height, block_rows):
        rows = picture.crop((0, first, picture.width, min(first + block_rows, picture.height)))
        if canvas_width > picture.width:
            strip = Image.new("RGB", (canvas_width, rows.height), PAD_COLOUR)
            strip.paste(rows, (left, 0))
            rows = strip
        narrow.paste(rows.resize((width, rows.height), resample), (0, top + first))
    return narrow.resize((width, height), resample)


def _resize_then_pad(picture: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """For very long pictures: resized by itself, then centred on black."""
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    canvas = Image.new("RGB", (width, height), PAD_COLOUR)
    canvas.paste(picture.resize(size, resample), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _crop(picture: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """Resized to cover the target (the longer side truncated, as transformers does), the middle kept."""
    if picture.width * height > picture.height * width:
        covering = (height * picture.width // picture.height, height)
    else:
        covering = (width, width * picture.height // picture.width)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    if covering[0] * covering[1] > MAX_UNCROPPED_PIXELS:
        across, down = picture.width / covering[0], picture.height / covering[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return picture.resize((width, height), resample, box=box)
    return picture.resize(covering, resample).crop((left, top, left + width, top + height))
