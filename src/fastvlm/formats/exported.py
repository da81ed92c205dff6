"""Exported folders: what ``fastvlm export`` notes about a folder, so that its files can be asked again.

``fastvlm_export.json`` holds the source's configuration, the image size that the export has fixed, the chat template,
the end tokens, the variants that were written and how far each is from the source. Other programs ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvlm.config import ModelConfig, read_config
from fastvlm.errors import CheckpointError, FastVlmError
from fastvlm.formats.checkpoint import Checkpoint, RotaryPositions
from fastvlm.formats.json_files import read_json
from fastvlm.formats.places import EXPORT_FILE
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.processor import Processor
from fastvlm.processing.tokenizer import open_tokenizer

_VERSION = 1


@dataclass(frozen=True)
class ExportNotes:
    """Content of ``fastvlm_export.json``.

    Attributes:
        format: a name of ``fastvlm export --to``.
        config: the source's configuration as a ``fast_vlm`` dictionary.
        image_size: height and width in pixels, which the files have fixed.
        image_fit: "pad", "crop" or "stretch".
        chat_template: renders messages with one ``<image>`` an image.
        stop_token_ids: end every reply.
        variants: names of the dtypes that were written, such as "fp16" or "q8".
        defaults: part of the model -> variant that is taken if none is asked for.
        checks: how far each variant is from the source.
        versions: of the packages that wrote the files.
    """

    format: str
    config: Mapping[str, Any]
    image_size: tuple[int, int]
    image_fit: str
    chat_template: str
    stop_token_ids: tuple[int, ...]
    variants: tuple[str, ...]
    defaults: Mapping[str, str]
    checks: tuple[Mapping[str, Any], ...] = ()
    versions: Mapping[str, str] | None = None

    def write(self, folder: Path) -> None:
        """Write the file into `folder`."""
        text = json.dumps({"fastvlm_export": _VERSION, **vars(self)}, indent=1, ensure_ascii=False) + "\n"
        (folder / EXPORT_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ExportNotes:
        """Read them from `folder`.

        Raises:
            CheckpointError: there are none, or they are of another version.
        """
        file = folder / EXPORT_FILE
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no {EXPORT_FILE}; expected a folder of fastvlm export. Write one: fastvlm export MODEL "
                "TARGET --to onnx"
            )
        content = read_json(file)
        if not isinstance(content, dict) or content.pop("fastvlm_export", None) != _VERSION:
            raise CheckpointError(f"{file} is not of version {_VERSION}. Export the checkpoint again.")
        try:
            notes = cls(**content)
            size, ends = tuple(notes.image_size), tuple(map(int, notes.stop_token_ids))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}. Export the checkpoint again.") from error
        return cls(**{**content, "image_size": size, "stop_token_ids": ends, "variants": tuple(notes.variants)})

    def model_config(self) -> ModelConfig:
        """The configuration as a record; raises UnusualCheckpointError."""
        return read_config(self.config)


def is_exported(folder: Path) -> bool:
    """True if ``fastvlm export`` wrote `folder`."""
    return (folder / EXPORT_FILE).is_file()


def open_exported(folder: Path, notes: ExportNotes) -> Checkpoint:
    """The exported `folder` as a checkpoint without tensors, whose weights are in files of another runtime.

    Raises:
        CheckpointError: the notes or the tokenizer cannot be read.
    """
    try:
        config = notes.model_config()
        images = ImageProcessor(image_size=notes.image_size, image_fit=notes.image_fit)
        processor = Processor(
            images,
            open_tokenizer(folder),
            image_token_id=config.image_token_index,
            chat_template=notes.chat_template,
            padding_side="left",
        )
    except FastVlmError as error:
        raise CheckpointError(f"{folder} cannot be opened: {error} Export the checkpoint again.") from error
    text = config.text_config
    return Checkpoint(
        config=config,
        tensors={},
        processor=processor,
        stop_token_ids=frozenset(notes.stop_token_ids),
        dtype=torch.float32,
        rotary=RotaryPositions.default(text.rope_theta, text.head_dim),
    )
