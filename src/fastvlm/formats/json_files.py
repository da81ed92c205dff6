"""Reads a checkpoint's JSON and text files within limits on size, nesting and numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fastvlm.errors import CheckpointError

FETCH_AGAIN = "Fetch the file again, or take the whole folder from its source."
_MAX_JSON_BYTES = 8 << 20  # an index of 80,000 tensors; configurations have a few thousand bytes
_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_VOCABULARY_BYTES = 64 << 20  # Qwen2's tokenizer.json has 11 million bytes
_MAX_DIGITS = 40  # of an integer: transformers writes 10^30 for "no limit" of a tokenizer
# What transformers and tokenizers read by themselves.
_CONFIGURATIONS = (
    "added_tokens.json",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_OTHER_LIMITS = {
    "chat_template.jinja": _MAX_TEMPLATE_BYTES,
    "merges.txt": _MAX_VOCABULARY_BYTES,
    "tokenizer.json": _MAX_VOCABULARY_BYTES,
    "tokenizer.model": _MAX_VOCABULARY_BYTES,
    "vocab.json": _MAX_VOCABULARY_BYTES,
}


def read_json(file: Path) -> Any:
    """Parse a JSON file of at most 8 MiB.

    Raises:
        CheckpointError: it cannot be read, is too large, is not JSON, or exceeds the limits of :func:`parse_json`.
    """
    return _parsed(file, _MAX_JSON_BYTES)


def read_tokenizer_json(file: Path) -> Any:
    """Parse a ``tokenizer.json``, which may have 64 MiB; raises as :func:`read_json`."""
    return _parsed(file, _MAX_VOCABULARY_BYTES)


def _parsed(file: Path, limit: int) -> Any:
    try:
        return parse_json(_read(file, limit))
    except ValueError as error:  # a decoding error is one too
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} cannot be read as JSON: {error}. {FETCH_AGAIN}") from error


def read_text(file: Path) -> str:
    """Read a chat template.

    Raises:
        CheckpointError: it cannot be read, is not UTF-8, or has more than 1 MiB.
    """
    try:
        return _read(file, _MAX_TEMPLATE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 text: {error}. {FETCH_AGAIN}") from error


def parse_json(raw: bytes) -> Any:
    """Parse `raw`; stricter than Python's json: integers of at most 40 digits, finite numbers only.

    Raises:
        ValueError: not JSON, nested too deeply, or a number out of range.
    """
    try:
        return json.loads(raw, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_text_files(folder: Path) -> None:
    """Check the tokenizer, processor and generation files before other libraries read them.

    Raises:
        CheckpointError: a file that is too large, or a configuration that is not JSON within the limits.
    """
    for name in _CONFIGURATIONS:
        if (folder / name).is_file():
            content = read_json(folder / name)
            if not isinstance(content, dict):
                raise CheckpointError(f"{folder / name} holds {type(content).__name__}; expected an object.")
    for name, limit in _OTHER_LIMITS.items():
        if (folder / name).is_file() and (size := (folder / name).stat().st_size) > limit:
            raise CheckpointError(_too_large(folder / name, size, limit))


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}. {FETCH_AGAIN}") from error
    if len(raw) > limit:
        raise CheckpointError(_too_large(file, file.stat().st_size, limit))
    return raw


def _too_large(file: Path, size: int, limit: int) -> str:
    return f"{file} has {size} bytes; a checkpoint's has at most {limit}. It is not a file of a FastVLM checkpoint."


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"the number {text[:_MAX_DIGITS]}... has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:_MAX_DIGITS]} is too large")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")
