"""Trainer callbacks: log and progress, weight average, sampler epochs, resuming, stopping, timed checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from fastvlm.training.run.interruption import Interruption
from fastvlm.training.run.trainer import FastVlmTrainer

_SHOWN = ("loss", "grad_norm", "eval_loss")


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        step, num_steps: made, and to be made in all.
        loss: of the log's last line; None before the first.
        images_per_s, samples_per_s: of the steps since the last report, over all processes.
    """

    step: int
    num_steps: int
    loss: float | None
    images_per_s: float
    samples_per_s: float


class Pace:
    """Throughput since the last call, in images and samples per second; includes saving and evaluation."""

    def __init__(self, trainer: FastVlmTrainer) -> None:
        self.trainer = trainer
        self.mark = (time.monotonic(), 0, 0)

    def read(self) -> tuple[float, float]:
        """(images, samples) per second over all processes, which get equal shares."""
        trainer, (then_s, images, samples) = self.trainer, self.mark
        now = (time.monotonic(), trainer.num_images, trainer.num_samples)
        self.mark = now
        per_s = trainer.args.world_size / max(now[0] - then_s, 1e-9)
        return (now[1] - images) * per_s, (now[2] - samples) * per_s


class LogCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Writes log.jsonl and reports the progress.

    A line has `step`, `epoch`, `loss` (mean since the line before), `grad_norm`, `lr` by part, `images_per_s`,
    `samples_per_s`; or `step` and `eval_loss`. `loss` has the other objectives in it; their own, of the last
    micro-batch, follow by name.
    """

    def __init__(self, trainer: FastVlmTrainer, on_progress: Callable[[Progress], None] | None) -> None:
        self.trainer, self.on_progress = trainer, on_progress
        self.pace, self.rates, self.loss = Pace(trainer), {}, None  # type: ignore[var-annotated]
        self.speeds = (0.0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        del args, state, control
        self.pace.read()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the learning rates of this step, before the scheduler changes them."""
        del args, state, control
        self.rates = self.trainer.rates()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write a line."""
        del args, control
        logs = logs or {}
        if not state.is_world_process_zero or not any(key in logs for key in _SHOWN):
            return
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        line |= {key: logs[key] for key in _SHOWN if key in logs}
        if "loss" in logs:
            self.loss, self.speeds = logs["loss"], self.pace.read()
            images, samples = (round(speed, 2) for speed in self.speeds)
            line |= {"lr": self.rates, "images_per_s": images, "samples_per_s": samples}
            line |= {name: round(float(loss), 4) for name, loss in self.trainer.other_losses.items()}
        self.trainer.files.log_line(line)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the progress."""
        del args, control
        if self.on_progress is not None and state.is_world_process_zero:
            self.on_progress(Progress(state.global_step, state.max_steps, self.loss, *self.speeds))


class EpochCallback(TrainerCallback):  # type: ignore[misc]
    """Sets the sampler's epoch, also when a run is resumed within one."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Epochs count from 0."""
        del args, control
        self.sampler.set_epoch(int(state.epoch or 0))


class AverageCallback(TrainerCallback):  # type: ignore[misc]
    """Updates the average of the weights."""

    def __init__(self, trainer: FastVlmTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The step that has just been made is not counted in `state` yet."""
        del args, control
        if self.trainer.average is not None:
            self.trainer.average.update(state.global_step + 1)


class ResumeCallback(TrainerCallback):  # type: ignore[misc]
    """Restores the state that Trainer's checkpoints lack."""

    def __init__(self, trainer: FastVlmTrainer, checkpoint: Path) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restore the accumulated losses and the average of the weights."""
        del args, state, control
        self.trainer.restore_window(self.checkpoint)
        if self.trainer.average is not None:
            self.trainer.average.load(self.checkpoint)


class StopCallback(TrainerCallback):  # type: ignore[misc]
    """Saves after a signal or a time interval, in the same step in all processes."""

    def __init__(self, trainer: FastVlmTrainer, interruption: Interruption, minutes: float) -> None:
        self.trainer, self.interruption, self.every_s = trainer, interruption, 60 * minutes

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report a step."""
        del state
        is_stopped = self.interruption.signal is not None
        is_due = time.monotonic() - self.trainer.saved_at_s > self.every_s
        if args.world_size > 1:
            is_stopped, is_due = _any_of(is_stopped, is_due, device=args.device)
        control.should_save |= is_stopped or is_due
        control.should_training_stop |= is_stopped


def _any_of(*flags: bool, device: torch.device) -> tuple[bool, ...]:
    """Each flag, true if it is in any process."""
    tensor = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tuple(bool(value) for value in tensor.tolist())
