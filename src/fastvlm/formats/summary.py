"""Summary of a checkpoint folder for a list of models: a few small files are read, and torch is not imported."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import CheckpointError
from fastvlm.formats.apple_config import apple_images
from fastvlm.formats.header_json import size_and_header
from fastvlm.formats.json_files import parse_json, read_json
from fastvlm.formats.names import LAYOUTS, Layout
from fastvlm.formats.quantized_metadata import METADATA_KEY, QUANTIZED_FILE, REST_FILE
from fastvlm.formats.weight_sets import WeightSet, one_weight_set
from fastvlm.hub.files import CARD

_DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
_MAX_CARD_BYTES = 1 << 20
_LICENSE_START_BYTES = 1000
_LICENSE_LINE = re.compile(r"^(?:license|license_name):[ \t]*['\"]?(?P<name>[^'\"\n]+)", flags=re.MULTILINE)


@dataclass(frozen=True)
class ModelSummary:
    """What `fastvlm ls` says of a checkpoint folder.

    Args:
        layout: "fast_vlm" or "llava_qwen2" (Apple's).
        num_bytes: size of all files.
        bits: of the decoder's weights; None if its files do not say it.
        image_size_px: (height, width) of the images that the model is made for; None if its files do not say it.
        license: as the card's metadata or the first line of the license file states it; None if neither is there.
        missing: what the folder lacks to be opened, in words; None for a complete one.
    """

    layout: Layout
    num_bytes: int
    bits: int | None
    image_size_px: tuple[int, int] | None
    license: str | None
    missing: str | None


def layout_of(folder: Path) -> Layout | None:
    """The layout that the folder's ``config.json`` names; None if it is no FastVLM's, or there is none."""
    return _layout(_config_of(folder))


def summarize(folder: Path) -> ModelSummary | None:
    """The summary of `folder`; None if it holds no FastVLM, complete or not."""
    config = _config_of(folder)
    layout = _layout(config)
    if layout is None:
        return None
    files = [path for path in folder.iterdir() if path.is_file()]
    return ModelSummary(
        layout=layout,
        num_bytes=sum(file.stat().st_size for file in files),
        bits=_bits(folder, config),
        image_size_px=_image_size_px(folder, config),
        license=stated_license(folder),
        missing=_missing(folder),
    )


def _config_of(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``; empty if it cannot be read."""
    try:
        config = read_json(folder / "config.json")
    except CheckpointError:
        return {}
    return config if isinstance(config, dict) else {}


def _layout(config: dict[str, Any]) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout == config.get("model_type")), None)


def stated_license(folder: Path) -> str | None:
    """The license by the metadata of the folder's card, else by the first line of its license file."""
    card = folder / CARD
    if card.is_file() and card.stat().st_size <= _MAX_CARD_BYTES:
        text = card.read_text(encoding="utf-8", errors="replace")
        front = text.split("\n---", 1)[0] if text.startswith("---") else ""
        if names := [found["name"].strip() for found in _LICENSE_LINE.finditer(front)]:
            return " ".join(dict.fromkeys(names))
    for file in sorted(folder.glob("LICEN[SC]E*"))[:1]:
        with file.open("rb") as stream:
            lines = stream.read(_LICENSE_START_BYTES).decode("utf-8", errors="replace").splitlines()
        return next((line.strip() for line in lines if line.strip()), None)
    return None


def _missing(folder: Path) -> str | None:
    first = WeightSet((folder / QUANTIZED_FILE, folder / REST_FILE)) if (folder / REST_FILE).is_file() else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights = one_weight_set(folder, "model.safetensors", "pytorch_model.bin", first=first)
    except CheckpointError as error:
        return str(error)
    if weights is None or not all(file.is_file() for file in weights.files):
        return "the weights are missing"
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        return "the tokenizer is missing"
    return None


def _bits(folder: Path, config: dict[str, Any]) -> int | None:
    if (folder / QUANTIZED_FILE).is_file():
        return _quantized_bits(folder / QUANTIZED_FILE)
    text = config.get("text_config")
    stated = [part.get(key) for part in (config, text) if isinstance(part, dict) for key in ("dtype", "torch_dtype")]
    return next((_DTYPE_BITS[dtype] for dtype in stated if isinstance(dtype, str) and dtype in _DTYPE_BITS), None)


def _quantized_bits(file: Path) -> int | None:
    try:
        about = parse_json(parse_json(size_and_header(file)[1])["__metadata__"][METADATA_KEY].encode())
        bits = about["options"]["bits"]
    except (ValueError, KeyError, TypeError, AttributeError):  # a damaged file: opening it says what is wrong
        return None
    return bits if bits in (4, 8) else None


def _image_size_px(folder: Path, config: dict[str, Any]) -> tuple[int, int] | None:
    try:
        if config.get("model_type") == "llava_qwen2":
            side = apple_images(config).size_px
            return (side, side)
        stored = read_json(folder / "preprocessor_config.json")
    except CheckpointError:
        return None
    stored = stored if isinstance(stored, dict) else {}
    crop = stored.get("crop_size")
    size = stored.get("image_size") or ([crop.get("height"), crop.get("width")] if isinstance(crop, dict) else None)
    match [size, size] if isinstance(size, int) else size:
        case [int(height), int(width)]:
            return (height, width)
    return None
