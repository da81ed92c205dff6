"""transformers' TrainingArguments of a recipe."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import TrainingArguments

from fastvlm.errors import UsageError
from fastvlm.training.recipe import PARTS, Recipe
from fastvlm.training.run.model_setup import arithmetic_dtype

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(recipe: Recipe, folder: Path, *, has_eval: bool) -> TrainingArguments:
    """Trainer's arguments for a run in `folder`. Raises UsageError."""
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    every = recipe.eval.every if recipe.eval else 0
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.micro_batch_size,
        per_device_eval_batch_size=recipe.micro_batch_size,
        gradient_accumulation_steps=num_accumulated(recipe),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=max(recipe.parts.of(part).rate for part in PARTS),
        lr_scheduler_type=_SCHEDULES[recipe.schedule],
        warmup_steps=recipe.warmup_ratio,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=arithmetic_dtype(recipe) == torch.bfloat16,
        use_cpu=not has_gpu,
        seed=recipe.seed,
        logging_steps=recipe.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.save_every_steps,
        eval_strategy="steps" if has_eval and every else "no",
        eval_steps=every or None,
        prediction_loss_only=True,
        dataloader_num_workers=recipe.workers,
        dataloader_persistent_workers=recipe.workers > 0,
        dataloader_prefetch_factor=max(2, 8 // recipe.workers) if recipe.workers else None,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,  # there are none: see `with_black_image`
        label_names=["labels"],
        report_to=_reporters(),
        disable_tqdm=True,
    )


def num_accumulated(recipe: Recipe) -> int:
    """Gradient accumulation steps of each process. Raises UsageError: the processes cannot share a batch evenly."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and accelerate
    together = recipe.micro_batch_size * num_processes
    if recipe.batch_size % together:
        raise UsageError(
            f"batch_size is {recipe.batch_size}, which {num_processes} processes of micro_batch_size "
            f"{recipe.micro_batch_size} cannot share evenly; take a multiple of {together}."
        )
    return recipe.batch_size // together


def _reporters() -> list[str]:
    """Installed reporters: TensorBoard, and Weights & Biases if it is configured."""
    found = ["tensorboard"] if find_spec("tensorboard") else []
    has_wandb = find_spec("wandb") is not None and ("WANDB_API_KEY" in os.environ or "WANDB_MODE" in os.environ)
    return [*found, "wandb"] if has_wandb else found
