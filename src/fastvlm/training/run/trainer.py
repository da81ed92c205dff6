"""transformers' Trainer with per-part learning rates, logits for supervised tokens only, atomic checkpoints and
readable errors.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvlm.errors import MissingExtraError, TrainingError
from fastvlm.training.data.dataset import IGNORED
from fastvlm.training.data.length_groups import LengthGroupedBatches
from fastvlm.training.grounding.objective import GROUNDING_COLUMNS, GroundingObjective
from fastvlm.training.recipe import Recipe
from fastvlm.training.run.ema import WeightAverage
from fastvlm.training.run.param_groups import frozen_batchnorms, parameter_groups
from fastvlm.training.run.run_folder import RunFolder

try:
    import accelerate as _accelerate  # noqa: F401  # Trainer's own error names no extra
except ImportError as error:
    raise MissingExtraError("accelerate", "train", "fastvlm train") from error
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

_WINDOW = "loss_window_{rank}.pt"
_BLACK_SIDE_PX = 128  # 2 x 2 visual tokens: the smallest image that every stage can take


class FastVlmTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trainer for a FastVLM and a recipe.

    Args:
        recipe: rates, decay, BatchNorms.
        files: where checkpoints go.
        order: sampler of training indices; its epoch is set by a callback.
        objective: the auxiliary losses; a module of the model.
        model, args, kwargs: as for `transformers.Trainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        *,
        recipe: Recipe,
        files: RunFolder,
        order: LengthGroupedBatches | None = None,
        objective: GroundingObjective | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.recipe, self.files, self.order = recipe, files, order
        # The loss below is that of the whole step, divided by the step's supervised tokens.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self.still = frozen_batchnorms(self.model, recipe)
        self.average: WeightAverage | None = None
        self.objective = objective
        self.other_losses: dict[str, Tensor] = {}  # of the last micro-batch, by their names
        self.num_images, self.num_samples, self.saved_at_s = 0, 0, time.monotonic()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy over the supervised tokens of the whole step; logits are computed for those alone.

        `inputs`: input_ids, attention_mask, labels (B, T) int64, pixel_values (I, 3, H, W) if there are images. In
        training the auxiliary losses are added.
        """
        if model.training:
            for module in self.still:
                module.eval()  # Trainer has just switched everything to training
        inputs, is_alone = dict(inputs), self.args.world_size == 1
        grounding = {column: inputs.pop(column) for column in GROUNDING_COLUMNS if column in inputs}
        if not is_alone and "pixel_values" not in inputs and self._sees_images():
            inputs = with_black_image(inputs, self.accelerator.unwrap_model(model).config.image_token_index)
        targets = F.pad(inputs.pop("labels")[:, 1:], (0, 1), value=IGNORED)
        is_learned = targets != IGNORED
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        if model.training and self.objective is not None:
            outputs, others = self._grounded(model, inputs, grounding, self.objective, logits_to_keep=is_learned)
        else:
            outputs, others = model(**inputs, logits_to_keep=is_learned, use_cache=False), None
        loss = F.cross_entropy(outputs.logits.float(), targets[is_learned], reduction="sum")
        count = is_learned.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(count, device=loss.device).clamp(min=1)
        if num_items_in_batch is not None and not is_alone:
            loss = loss * self.accelerator.num_processes  # the processes' gradients are averaged, the tokens counted
        if others is not None:
            loss = loss + others / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _grounded(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        grounding: dict[str, Tensor],
        objective: GroundingObjective,
        **options: Any,
    ) -> tuple[Any, Tensor]:
        """(outputs, sum of the weighted auxiliary losses) of one micro-batch."""
        pixels, image = inputs.pop("pixel_values", None), None
        if pixels is not None:
            with self.accelerator.autocast():
                image = self.accelerator.unwrap_model(model).get_image_features(pixels, output_hidden_states=True)
            inputs["mm_encoder_outputs"] = {"image": image}
        outputs = model(**inputs, **options, use_cache=False, output_attentions=bool(objective.entry.looks))
        stages, last = ((), None) if image is None else (image.hidden_states, image.last_hidden_state)
        with self.accelerator.autocast():
            losses = objective(stages, last, outputs.attentions or (), grounding)
        self.other_losses = {name: loss.detach() for name, loss in losses.items()}
        return outputs, sum(losses.values(), start=outputs.logits.new_zeros(()).float())

    def _sees_images(self) -> bool:
        return any(self.recipe.learns(part) for part in ("encoder", "projector")) or self.is_fsdp_enabled

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch. Raises TrainingError if the loss is not finite."""
        self.num_samples += len(inputs["input_ids"])
        self.num_images += len(inputs.get("pixel_values", ()))
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(self._not_finite("the loss", loss))
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise TrainingError(self._not_finite("the gradients' norm", norm))
        return norm

    def _not_finite(self, what: str, value: Any) -> str:
        rates = ", ".join(f"{part} {rate:.3g}" for part, rate in self.rates().items())
        last = self.files.last_good()
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return (
            f"In step {self.state.global_step + 1} {what} is {float(value)}, with the learning rates {rates}; {kept}. "
            "Lower the rates (parts.*.lr) or lengthen the warm-up (warmup_ratio), and look at the samples with --check."
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create AdamW with a group for each part, with and without weight decay."""
        optimizer: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if optimizer is None:
            groups = parameter_groups(self.model if model is None else model, self.recipe)
            is_fused = not self.is_fsdp_enabled  # the fused kernel does not know sharded tensors on a CPU
            optimizer = torch.optim.AdamW(groups, betas=self.recipe.betas, fused=is_fused)
        self.optimizer = optimizer
        return optimizer

    def rates(self) -> dict[str, float]:
        """Each part's learning rate now."""
        groups: list[dict[str, Any]] = getattr(self.optimizer, "param_groups", [])
        return {group["part"]: float(group["lr"]) for group in groups if "part" in group}

    def get_train_dataloader(self) -> Any:
        """As Trainer's, with workers in their own process groups, so that Ctrl-C does not kill them."""
        loader = super().get_train_dataloader()
        plain = getattr(loader, "base_dataloader", loader)  # accelerate's goes around torch's
        plain.worker_init_fn = partial(_undisturbed, plain.worker_init_fn)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self.order is None else self.order

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return torch.utils.data.SequentialSampler(eval_dataset)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: not used here, and counting iterates over all parameters in each step."""
        del inputs
        return 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's, with the averaged weights if there are any."""
        with nullcontext() if self.average is None else self.average.in_place():
            return super().evaluate(*args, **kwargs)  # type: ignore[no-any-return]

    def _get_output_dir(self, trial: Any) -> str:
        del trial
        return str(self.files.scratch)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        with self.files.saving() if self.args.should_save else nullcontext():
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            folder = self.files.scratch / name
            window = {"sum": self._tr_loss, "since": self._globalstep_last_logged}
            torch.save(window, folder / _WINDOW.format(rank=self.args.process_index))
            if self.average is not None and self.args.should_save:
                self.average.save(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.files.adopt(name)
        self.accelerator.wait_for_everyone()
        self.saved_at_s = time.monotonic()

    def restored_at_the_end(self, checkpoint: Path) -> bool:
        """Load the weights of a checkpoint after the last step and return True; return False for an earlier one.

        Trainer itself would run one more step.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        if self.average is not None:
            self.average.load(checkpoint)
        return True

    def restore_window(self, checkpoint: Path) -> None:
        """Restore the losses accumulated since the last log line, which Trainer does not save."""
        file = checkpoint / _WINDOW.format(rank=self.args.process_index)
        if file.is_file():
            window = torch.load(file, map_location=self._tr_loss.device, weights_only=True)
            self._tr_loss += window["sum"]
            self._globalstep_last_logged = window["since"]


def _undisturbed(begin: Callable[[int], None] | None, number: int) -> None:
    """Put a DataLoader worker into its own process group, so that Ctrl-C does not kill it."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if begin is not None:
        begin(number)


def with_black_image(inputs: dict[str, Any], image_token_id: int) -> dict[str, Any]:
    """Add a row with a black image and no labels to a batch of text.

    Every process must use every weight in every step, or the gradient reduction deadlocks.
    """
    tokens = (_BLACK_SIDE_PX // 64) ** 2
    missing = max(0, tokens - inputs["input_ids"].shape[1])
    added = {"input_ids": (image_token_id, 0), "attention_mask": (1, 0), "labels": (IGNORED, IGNORED)}
    longer = {}
    for name, (value, padding) in added.items():
        padded = F.pad(inputs[name], (0, missing), value=padding)
        row = torch.full_like(padded[:1], padding)
        row[:, :tokens] = value
        longer[name] = torch.cat([padded, row])
    pixels = torch.zeros(1, 3, _BLACK_SIDE_PX, _BLACK_SIDE_PX, device=row.device)
    return {**inputs, **longer, "pixel_values": pixels}
