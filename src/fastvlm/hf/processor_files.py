"""Loads the processor of a checkpoint folder, with clear errors and default image settings."""

from __future__ import annotations

import math
from pathlib import Path

from fastvlm.errors import CheckpointError, FastVlmError
from fastvlm.formats.json_files import check_text_files, read_json
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.processor import FastVlmProcessor

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def load_processor(folder: Path, config: FastVlmConfig) -> FastVlmProcessor:
    """The processor of the checkpoint in `folder`.

    Args:
        folder: a ``fast_vlm`` or ``llava_qwen2`` folder.
        config: the model's, for the placeholder id and the image size if no file gives it.

    Raises:
        CheckpointError: no tokenizer, or files that cannot be read.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). The model alone opens with "
            "FastVlmForConditionalGeneration.from_pretrained(folder)."
        )
    check_text_files(folder)
    try:
        return _open(folder, config)
    except FastVlmError:
        raise
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise CheckpointError(
            f"The tokenizer or processor files of {folder} cannot be read: {error}. Fetch them again."
        ) from error


def _open(folder: Path, config: FastVlmConfig) -> FastVlmProcessor:
    is_apple = read_json(folder / "config.json").get("model_type") == "llava_qwen2"
    if is_apple or (folder / "preprocessor_config.json").is_file():
        return FastVlmProcessor.from_pretrained(folder, image_token_id=config.image_token_index)
    side_px = math.isqrt(config.image_seq_length) * config.vision_config.stride_px
    raise CheckpointError(
        f"{folder} has no preprocessor_config.json, which says how large its images are ({side_px} px by its "
        f"image_seq_length). Save one: FastVlmImageProcessor(image_size={side_px}).save_pretrained(folder)."
    )
