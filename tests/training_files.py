"""What the tests of training data share: a small processor, images and records."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image
from qwen2_format import small_tokenizer
from tokenizers import AddedToken
from transformers import Qwen2Tokenizer

from fastvlm import FastVlmImageProcessor, FastVlmProcessor
from fastvlm.processing.prompt import SPECIAL_TOKENS

N = 4  # visual tokens of a 128 px image


def processor(**options) -> FastVlmProcessor:
    """A processor of 128 px with a small tokenizer that joins line breaks as Qwen2's does."""
    return FastVlmProcessor(FastVlmImageProcessor(image_size=128), line_joining_tokenizer(), **options)


def line_joining_tokenizer() -> Qwen2Tokenizer:
    """The small tokenizer with tokens of its own for line breaks after white space."""
    plain = small_tokenizer()
    model = json.loads(plain.backend_tokenizer.to_str())["model"]
    vocabulary, merges = model["vocab"], [tuple(merge) for merge in model["merges"]]
    breaks = [("\u010a", "\u010a"), ("\u0120", "\u010a"), ("\u010d", "\u010a")]  # "\n\n", " \n", "\r\n"
    for first, second in breaks:
        vocabulary[first + second] = len(vocabulary)
    marks = [AddedToken(mark, special=True, normalized=False) for mark in SPECIAL_TOKENS]
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=merges + breaks, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None
    )
    tokenizer.add_tokens(marks, special_tokens=True)
    return tokenizer


def gray(level: int, size_px: tuple[int, int] = (10, 10)) -> Image.Image:
    """An image that is recognized in `pixel_values` by its level."""
    return Image.new("RGB", size_px, (level,) * 3)


def png(level: int) -> bytes:
    """A gray image's file."""
    file = io.BytesIO()
    gray(level).save(file, "PNG")
    return file.getvalue()


def save_images(folder: Path, *levels: int) -> None:
    """``7.png`` is gray of level 7."""
    folder.mkdir(parents=True, exist_ok=True)
    for level in levels:
        (folder / f"{level}.png").write_bytes(png(level))


def llava(*texts: str, image: Any = None) -> dict[str, Any]:
    """A record of LLaVA's, from what human and gpt say in turn."""
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    return {"id": "x", **({} if image is None else {"image": image}), "conversations": turns}


def openai(*contents: Any, **columns: Any) -> dict[str, Any]:
    """A record of messages, from what user and assistant say in turn."""
    turns = [{"role": ("user", "assistant")[index % 2], "content": c} for index, c in enumerate(contents)]
    return {"messages": turns, **columns}


def write_lines(path: Path, *records: Any) -> Path:
    """A JSON Lines file; texts are written as they are."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def write_tar(path: Path, members: dict[str, bytes | str], mode: str = "w") -> Path:
    """A shard with these members, in this order."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def levels(row: dict[str, Any]) -> list[int]:
    """The gray levels of a row's images."""
    return [round(float(image[0, 64, 64]) * 255) for image in row.get("pixel_values", [])]
