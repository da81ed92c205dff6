"""A checkpoint and samples of a few kilobytes, on which a training run takes seconds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import tiny
import torch
from PIL import Image
from qwen2_format import small_tokenizer

import fastvlm
from fastvlm import FastVlmForConditionalGeneration, FastVlmImageProcessor, FastVlmProcessor
from fastvlm.training.recipe import Recipe
from fastvlm.training.run.training_run import Outcome, TrainingRun

COLORS = ("red", "green", "blue", "white", "black", "yellow", "orange", "purple")
RATES = {"encoder": 2e-3, "projector": 1e-2, "decoder": 1e-2}


def checkpoint(folder: Path, **vision: Any) -> Path:
    """A tiny FastVLM with its processor; `vision` as `tiny.config` takes it."""
    tokenizer = small_tokenizer()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = {"vocab_size": len(tokenizer), "eos_token_id": end_id, "tie_word_embeddings": True}
    config = tiny.config(text=text, vision=vision)
    config.image_token_index, config.tie_word_embeddings = image_id, True
    torch.manual_seed(0)
    model = tiny.loud(FastVlmForConditionalGeneration(config))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.2)  # calm enough to be trained
    model.save_pretrained(folder)
    images = FastVlmImageProcessor(image_size=tiny.SIZE_PX)
    FastVlmProcessor(images, tokenizer, image_token_id=image_id).save_pretrained(folder)
    return folder


def samples(folder: Path, count: int = 24, *, text_only: int = 4) -> Path:
    """A LLaVA file: `count` colored images, one sample with two of them, and some without any."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        color = COLORS[number % len(COLORS)]
        Image.new("RGB", (40 + number, 60), color).save(folder / f"{number}.png")
        answer = f"The image shows a {color} square." + " Describe the image." * (number % 3)
        records.append(record([f"{number}.png"], "<image>\nWhat is shown?", answer))
    records.append(record(["0.png", "1.png"], "<image>\n<image>\nHow many?", "red green"))
    records += [record([], f"How many are {number}?", f"{number} circles") for number in range(text_only)]
    file = folder / "samples.json"
    file.write_text(json.dumps(records))
    return file


def record(images: list[str], question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {**({"image": images} if images else {}), "conversations": turns}


def recipe(model: Path, data: Path, **changes: Any) -> Recipe:
    """Eight steps of four samples, every one in the log, without processes that read."""
    settings: dict[str, Any] = {
        "name": "small",
        "model": str(model),
        "data": [{"path": str(data), "images_in": str(data.parent)}],
        "parts": RATES,
        "batch_size": 4,
        "micro_batch_size": 4,
        "max_steps": 8,
        "log_every": 1,
        "max_tokens": 128,
        "workers": 0,
        "save_every_steps": 100,
    }
    return Recipe.model_validate({**settings, **changes})


def train(recipe: Recipe, folder: Path, *, is_resumed: bool = False, on_progress: Any = None) -> Outcome:
    """The run, to its end or to a signal."""
    return TrainingRun(recipe, folder, on_progress=on_progress).train(is_resumed=is_resumed)


def stop_at(step: int, number: signal.Signals = signal.SIGTERM) -> Any:
    """Sends this process a real signal in the given step."""
    return lambda progress: os.kill(os.getpid(), number) if progress.step == step else None


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the machine."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_per_s")} for line in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a final folder."""
    return fastvlm.load(folder, device="cpu")[0].state_dict()  # type: ignore[no-any-return]
