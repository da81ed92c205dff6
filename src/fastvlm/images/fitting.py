"""Fit an RGB image into the model's height and width, with Pillow alone.

The three ways (`pad`, `crop`, `stretch`) are described in :mod:`fastvlm.processing.image_processor`.
"""

from __future__ import annotations

from PIL import Image

IMAGE_FITS = ("pad", "crop", "stretch")
PAD_COLOR = (0, 0, 0)  # black: 255 * image_mean, and the mean is 0

# Above these, the exact way (a black canvas around a very long image; a resized image before it is cropped) would
# cost out of proportion, so the part that is kept is resized by itself: up to half a pixel off the exact place.
MAX_CANVAS_PIXELS = 64_000_000
MAX_UNCROPPED_PIXELS = 64_000_000


def fit_image(
    image: Image.Image, height: int, width: int, *, fit: str = "pad", resample: int = Image.Resampling.BICUBIC
) -> Image.Image:
    """`image` (RGB) fitted into `height` x `width` pixels: uint8 RGB of exactly that size."""
    if fit == "stretch" or image.width * height == image.height * width:
        return image.resize((width, height), resample)
    if fit == "crop":
        return _crop(image, height, width, resample)
    return _pad(image, height, width, resample)


def _pad(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """Centered on a black canvas of the target's shape, then resized, without ever making the whole canvas.

    PIL resizes squares along x, then along y, with 8 bits between; so do these two passes, bit for bit. Black rows
    stay black along x, so only the image's own rows go through the first pass, in blocks; the canvas's full height
    is needed for the second pass only.
    """
    canvas_width = max(image.width, -(-image.height * width // height))
    canvas_height = max(image.height, -(-image.width * height // width))
    if canvas_width * canvas_height > max(MAX_CANVAS_PIXELS, 4 * image.width * image.height):
        return _resize_then_pad(image, height, width, resample)
    left, top = (canvas_width - image.width) // 2, (canvas_height - image.height) // 2
    narrow = Image.new("RGB", (width, canvas_height), PAD_COLOR)
    block_rows = image.height if canvas_width == image.width else max(1, 4_000_000 // canvas_width)
    for first in range(0, image.height, block_rows):
        rows = image.crop((0, first, image.width, min(first + block_rows, image.height)))
        if canvas_width > image.width:
            strip = Image.new("RGB", (canvas_width, rows.height), PAD_COLOR)
            strip.paste(rows, (left, 0))
            rows = strip
        narrow.paste(rows.resize((width, rows.height), resample), (0, top + first))
    return narrow.resize((width, height), resample)


def _resize_then_pad(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """For very long images: resized by itself, then centered on black."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (width, height), PAD_COLOR)
    canvas.paste(image.resize(size, resample), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _crop(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """Resized to cover the target (the longer side truncated, as transformers does), the middle kept."""
    if image.width * height > image.height * width:
        covering = (height * image.width // image.height, height)
    else:
        covering = (width, width * image.height // image.width)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    if covering[0] * covering[1] > MAX_UNCROPPED_PIXELS:
        across, down = image.width / covering[0], image.height / covering[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), resample, box=box)
    return image.resize(covering, resample).crop((left, top, left + width, top + height))
