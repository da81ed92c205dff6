"""Trainer callbacks: log and progress; state that Trainer does not keep; stopping and timed checkpoints."""

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
        step, num_steps: completed, and in all.
        loss: of the log's last line; None before the first.
        images_per_s, samples_per_s: of the steps since the last report, over all processes.
    """

    step: int
    num_steps: int
    loss: float | None
    images_per_s: float
    samples_per_s: float


class LogCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Writes log.jsonl and reports the progress.

    A line has `step`, `epoch`, `loss` (mean since the previous line), `grad_norm`, `lr` by part, `images_per_s`,
    `samples_per_s`; or `step` and `eval_loss`. `loss` includes the auxiliary losses; those of the last micro-batch
    follow by name. The speeds include saving and evaluation.
    """

    def __init__(self, trainer: FastVlmTrainer, on_progress: Callable[[Progress], None] | None) -> None:
        self.trainer, self.on_progress = trainer, on_progress
        self.rates: dict[str, float] = {}
        self.loss: float | None = None
        self.speeds, self.mark = (0.0, 0.0), (time.monotonic(), 0, 0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._read_speeds()

    def _read_speeds(self) -> tuple[float, float]:
        """(images, samples) per second since the last call, over all processes, which get equal shares."""
        trainer, (then_s, images, samples) = self.trainer, self.mark
        self.mark = now_s, now_images, now_samples = time.monotonic(), trainer.num_images, trainer.num_samples
        per_s = trainer.args.world_size / max(now_s - then_s, 1e-9)
        return (now_images - images) * per_s, (now_samples - samples) * per_s

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Remember the learning rates of this step, before the scheduler changes them."""
        self.rates = self.trainer.rates()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write a line."""
        logs = logs or {}
        if not state.is_world_process_zero or not any(key in logs for key in _SHOWN):
            return
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        line |= {key: logs[key] for key in _SHOWN if key in logs}
        if "loss" in logs:
            self.loss, self.speeds = logs["loss"], self._read_speeds()
            images, samples = (round(speed, 2) for speed in self.speeds)
            line |= {"lr": self.rates, "images_per_s": images, "samples_per_s": samples}
            line |= {name: round(float(loss), 4) for name, loss in self.trainer.other_losses.items()}
        self.trainer.files.log_line(line)

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Report the progress."""
        if self.on_progress is not None and state.is_world_process_zero:
            self.on_progress(Progress(state.global_step, state.max_steps, self.loss, *self.speeds))


class StateCallback(TrainerCallback):  # type: ignore[misc]
    """Keeps the state that Trainer does not: the sampler's epoch, the weight average, the losses since the last line.

    Args:
        trainer: has the state.
        checkpoint: the one that the run is resumed from; None at a start.
    """

    def __init__(self, trainer: FastVlmTrainer, checkpoint: Path | None) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Restore what Trainer's checkpoints lack."""
        if self.checkpoint is not None:
            self.trainer.restore_window(self.checkpoint)
            if self.trainer.average is not None:
                self.trainer.average.load(self.checkpoint)

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Set the sampler's epoch (from 0), also when a run is resumed within one."""
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Update the average; `state` does not count the current step yet."""
        if self.trainer.average is not None:
            self.trainer.average.update(state.global_step + 1)


class StopCallback(TrainerCallback):  # type: ignore[misc]
    """Saves after a signal or a time interval, in the same step in all processes."""

    def __init__(self, trainer: FastVlmTrainer, interruption: Interruption, minutes: float) -> None:
        self.trainer, self.interruption, self.every_s = trainer, interruption, 60 * minutes

    def on_step_end(self, args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Save, and stop, if it is time."""
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
