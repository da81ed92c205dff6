"""Images and frames as the items of a user's message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastvlm.images.frames import Frame, time_captions


def image_items(images: Sequence[object]) -> list[dict[str, Any]]:
    """Items for `images` (sources that are opened as images, or frames), then a text with the times of video frames."""
    pixels = [image.image if isinstance(image, Frame) else image for image in images]
    return [
        *({"type": "image", "image": image} for image in pixels),
        *({"type": "text", "text": caption} for caption in time_captions(images)),
    ]
