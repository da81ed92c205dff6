"""A checkpoint of a published size with random weights: to measure speed without the true weights.

Speed depends on shapes alone, so weights are drawn; the scales are such that numbers stay in range through all layers.
The tokenizer is as large as the published one: the shipped mini's vocabulary, filled up to 151,643 tokens with numbers,
which never arise in a prompt (the pre-tokenizer cuts numbers into digits) and are what the model answers with. Tokens
that end a reply are made improbable, so that replies have the length that was asked for.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from fastvlm.conversion.shards import PlannedTensor, split_into_shards, write_index, write_safetensors
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.folder import inspect_folder
from fastvlm.formats.json_files import read_json
from fastvlm.formats.names import EMBEDDING, HEAD
from fastvlm.formats.places import SHIPPED, checkpoint_path
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.image_processor import FastVlmImageProcessor
from fastvlm.hf.loading import load_processor
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.pretrained import expected_shapes
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.processing.tokenizer import TokenizerLike
from fastvlm.storage.whole_folders import whole_folder
from fastvlm.storage.write_errors import clear_write_errors

PRESETS = ("0.5b", "1.5b", "7b", "mini")
_SHARD_BYTES = 500_000_000
_SEED = 20241217
_QUIET = 0.1  # scale of the embedding of a token that a reply should not hold
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")


def checkpoint_bytes(preset: str) -> int:
    """Size on disk of :func:`make_checkpoint`'s weights, to a percent.

    Raises:
        UsageError: no such preset.
    """
    return sum(tensor.num_bytes for tensor in _planned(_config(preset), Tensor()))


def make_checkpoint(preset: str, folder: Path, on_bytes: Callable[[int], None] = lambda _: None) -> Path:
    """Write a random checkpoint in the ``fast_vlm`` layout, bfloat16, in shards; the same values each time.

    The folder appears when all of it is written, or not at all.

    Args:
        preset: "0.5b", "1.5b", "7b" or "mini".
        folder: where to; if it holds a whole checkpoint of this preset already, nothing is done.
        on_bytes: called with the size of each tensor that is written.

    Raises:
        CheckpointError: `folder` holds something else, or the disk is too small.
        UsageError: no such preset.
    """
    config = _config(preset)
    if folder.exists() and any(folder.iterdir()):
        _check_is_preset(folder, preset, config)
        return folder
    folder = folder.absolute()
    with clear_write_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    _check_space(folder.parent, preset)
    with whole_folder(folder, replaces=True) as work:
        _write(config, preset, work, on_bytes)
    return folder


def _config(preset: str) -> FastVlmConfig:
    if preset not in PRESETS:
        raise UsageError(f"--preset is {preset!r}; expected one of {', '.join(PRESETS)}.")
    config = FastVlmConfig.preset(preset)
    config.dtype = "bfloat16"
    config.architectures = ["FastVlmForConditionalGeneration"]
    return config


def _check_is_preset(folder: Path, preset: str, config: FastVlmConfig) -> None:
    found = FastVlmConfig.from_dict(inspect_folder(folder).config)
    wanted, there = (expected_shapes(FastVlmForConditionalGeneration, c) for c in (config, found))
    if wanted != there:
        raise CheckpointError(f"{folder} holds a checkpoint that is not of the preset {preset!r}. Name another folder.")


def _check_space(folder: Path, preset: str) -> None:
    needed, free = checkpoint_bytes(preset), shutil.disk_usage(folder).free
    if free < 1.1 * needed:
        raise CheckpointError(
            f"A random {preset} checkpoint takes {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free. "
            "Name a folder on a larger disk."
        )


def _write(config: FastVlmConfig, preset: str, folder: Path, on_bytes: Callable[[int], None]) -> None:
    shipped = checkpoint_path(SHIPPED)
    tokenizer = _tokenizer(shipped, config)
    side_px = round(config.image_seq_length**0.5) * config.vision_config.stride_px
    FastVlmProcessor(FastVlmImageProcessor(image_size=side_px), tokenizer).save_pretrained(folder)
    config.save_pretrained(folder)
    text = config.text_config
    ends = {"bos_token_id": text.bos_token_id, "pad_token_id": text.pad_token_id, "do_sample": False}
    ends["eos_token_id"] = list(dict.fromkeys([text.eos_token_id, text.pad_token_id]))
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
    shards = split_into_shards(_planned(config, _loudness(tokenizer, text.vocab_size)), _SHARD_BYTES)
    for name, tensors in shards.items():
        write_safetensors(folder / name, tensors, on_bytes, {"made_by": f"fastvlm bench --preset {preset}, random"})
    write_index(folder, shards)


# ------------------------------------------------------------------------------------------------------ weights


def _planned(config: FastVlmConfig, loudness: Tensor) -> list[PlannedTensor]:
    shapes = expected_shapes(FastVlmForConditionalGeneration, config)
    if config.tie_word_embeddings:
        shapes.pop(HEAD, None)
    return [
        PlannedTensor(
            name,
            shape,
            torch.int64 if name.endswith("num_batches_tracked") else torch.bfloat16,
            lambda index=index, name=name, shape=shape: _drawn(name, shape, index, loudness),  # type: ignore[misc]
        )
        for index, (name, shape) in enumerate(sorted(shapes.items()))
    ]


def _drawn(name: str, shape: tuple[int, ...], index: int, loudness: Tensor) -> Tensor:
    """Values of one tensor, scaled so that activations keep their magnitude."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(_SEED + index))
    if name.endswith("running_var"):
        return noise.abs().add(0.5)
    if name.endswith(("bias", "running_mean")):
        return 0.1 * noise
    if name.endswith("gamma"):
        return 0.3 + 0.05 * noise
    if len(shape) < 2:  # weights of normalisations
        return 1 + 0.1 * noise
    scaled = noise / math.sqrt(math.prod(shape[1:]))
    return scaled * loudness[:, None] if name in (EMBEDDING, HEAD) else scaled


def _loudness(tokenizer: TokenizerLike, num_rows: int) -> Tensor:
    """Scale (rows,) of each token's embedding: 1 for what a reply may hold, that is, visible ASCII."""
    special = {tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    texts = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    is_loud = [index not in special and text.isascii() and text.strip() != "" for index, text in enumerate(texts)]
    loudness = torch.full((num_rows,), _QUIET)
    loudness[: len(is_loud)][torch.tensor(is_loud)] = 1.0
    return loudness


# ------------------------------------------------------------------------------------------------------ tokenizer


def _tokenizer(shipped: Path, config: FastVlmConfig) -> Any:
    """The shipped tokenizer, padded to this model's vocabulary."""
    tokenizer = load_processor(shipped, FastVlmConfig.from_dict(read_json(shipped / "config.json"))).tokenizer
    num_base = config.text_config.bos_token_id  # <|endoftext|> follows the last base token
    content = padded_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()), num_base)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        Tokenizer.from_str(json.dumps(content)).save(str(Path(folder) / "tokenizer.json"))
        return type(tokenizer).from_pretrained(folder)


def padded_tokenizer(content: dict[str, Any], num_base: int) -> dict[str, Any]:
    """`content` of a ``tokenizer.json`` with `num_base` base tokens, then the same added tokens.

    As in the published file, every base token beyond the bytes has a merge.
    """
    vocabulary, merges = dict(content["model"]["vocab"]), list(content["model"]["merges"])
    if len(vocabulary) > num_base:
        raise UsageError(f"The tokenizer has {len(vocabulary)} base tokens; {num_base} or fewer can be filled up.")
    for number in itertools.islice(number_tokens(), num_base - len(vocabulary)):
        vocabulary[number] = len(vocabulary)
        merges.append([number[:-1], number[-1]])
    added = [{**token, "id": num_base + index} for index, token in enumerate(content["added_tokens"])]
    model = {**content["model"], "vocab": vocabulary, "merges": merges}
    return {**content, "model": model, "added_tokens": added}


def number_tokens() -> Iterator[str]:
    """``00`` to ``99``, ``000`` to ``999``, and so on: numbers that the pre-tokenizer always splits."""
    for digits in itertools.count(2):
        yield from (f"{number:0{digits}d}" for number in range(10**digits))
