"""What both training phases share: a time-based schedule, atomic state, a JSONL log, batches in a fixed order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler


@dataclass
class Progress:
    """How far a run is: optimiser steps, pictures seen, seconds of training (over all its resumptions)."""

    step: int = 0
    pictures: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """Warm-up by steps, then constant, then a linear fall to `floor` of the peak over the last `decay` of the time."""

    budget_s: float
    warmup_steps: int = 200
    decay: float = 0.2
    floor: float = 0.0

    def factor(self, progress: Progress) -> float:
        """What to multiply the peak learning rate by."""
        warm = min(1.0, (progress.step + 1) / self.warmup_steps)
        left = max(0.0, 1.0 - progress.seconds / self.budget_s) / self.decay
        return warm * max(self.floor, min(1.0, left))


class InOrder(Sampler[list[int]]):
    """Endless batches of consecutive picture numbers from `start` on."""

    def __init__(self, start: int, batch: int) -> None:
        self.start, self.batch = start, batch

    def __iter__(self) -> Iterator[list[int]]:
        """Without end."""
        first = self.start
        while True:
            yield list(range(first, first + self.batch))
            first += self.batch


def batches(data: Dataset[Any], start: int, batch: int, workers: int, collate: Any) -> Iterator[Any]:
    """Batches drawn by `workers` other processes, in an order that does not depend on their number."""
    loader = DataLoader(
        data,
        batch_sampler=InOrder(start, batch),
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=6 if workers else None,
    )
    return iter(loader)


def decayed_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of a module: matrices with weight decay, vectors (norms, biases, scales) without."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [
        {"params": matrices, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay},
        {"params": vectors, "lr": lr, "peak_lr": lr, "weight_decay": 0.0},
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """`factor` times each group's own peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def save_state(path: Path, progress: Progress, parts: dict[str, Any]) -> None:
    """Writes `parts` (state dicts) and the progress; a crash while writing leaves the older file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    torch.save({"progress": vars(progress), **parts}, scratch)
    scratch.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The newest state, or None where a run begins."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Log:
    """One JSON line per report, on the terminal as well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, **row: Any) -> None:
        """Report these values, with the time of day."""
        row = {"time": time.strftime("%H:%M:%S"), **row}
        line = json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def to_pixels(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float in [0, 1], channels last in memory as the convolutions like it."""
    return images.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)
