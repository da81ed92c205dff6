"""The checkpoint that an export is made from, with its image size chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.config import read_config
from fastvlm.errors import CheckpointError, UnusualCheckpointError, UsageError
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.exported import is_exported
from fastvlm.formats.folder import inspect_folder
from fastvlm.opening import choose_images, open_checkpoint


@dataclass(frozen=True)
class ExportSource:
    """An opened checkpoint.

    Attributes:
        folder: is only read.
        checkpoint: its processor has the size and fit of the export.
        config: the configuration as a ``fast_vlm`` dictionary.
    """

    folder: Path
    checkpoint: Checkpoint
    config: dict[str, Any]

    @property
    def num_weights(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.checkpoint.tensors.values())

    @property
    def side_px(self) -> int:
        """Side in pixels of the square images."""
        return self.checkpoint.processor.image_processor.image_size[0]

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one image, N."""
        return self.checkpoint.processor.image_processor.num_visual_tokens()

    @property
    def width(self) -> int:
        """Width of the decoder, D."""
        return self.checkpoint.config.text_config.hidden_size


def open_source(folder: Path, image_size: int | None = None) -> ExportSource:
    """Open the checkpoint in `folder` for images of `image_size` pixels a side; None for its own size.

    Raises:
        CheckpointError: not a checkpoint, an exported folder, or one whose decoder is not a plain Qwen2.
        ConfigError: a size that is not a multiple of 64.
        UsageError: images that are not square, or not padded.
    """
    if is_exported(folder):
        raise CheckpointError(f"{folder} is an exported folder. Name the checkpoint that it was made from.")
    checkpoint = open_checkpoint(folder)
    choose_images(checkpoint.processor, image_size, None)
    images = checkpoint.processor.image_processor
    height, width = images.image_size
    if height != width:
        raise UsageError(f"Images are {height} x {width} px; an export has square ones. Give --image-size {height}.")
    if images.image_fit != "pad":
        raise UsageError(f"The image fit is {images.image_fit!r}; other runtimes are prepared for 'pad' alone.")
    config = dict(inspect_folder(folder).config)
    try:
        read_config(config)
    except UnusualCheckpointError as error:
        raise CheckpointError(f"{folder} cannot be exported, because {error}") from error
    return ExportSource(folder, checkpoint, config)
