"""Model and processor at the start of a run: loaded, frozen, quantized and wrapped as the recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvlm.errors import UsageError
from fastvlm.formats.folder import inspect_folder
from fastvlm.formats.places import checkpoint_path
from fastvlm.hf.base_digest import BaseDigest
from fastvlm.hf.config import FastVlmConfig
from fastvlm.hf.loading import load, load_processor
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.hf.processor import FastVlmProcessor
from fastvlm.training.recipe import Recipe
from fastvlm.training.run.adapters import add_adapters, round_base
from fastvlm.training.run.param_groups import set_trainable


@dataclass(frozen=True)
class ModelSetup:
    """The model of a run.

    Attributes:
        model: the trained module: a FastVLM, or peft's wrapper around one.
        plain: the FastVLM itself.
        folder: the checkpoint's local folder.
        base_digest: of the weights under adapters; None without adapters, and where the checkpoint has 8 or 4 bits,
            whose weights depend on the dtype in which they are opened.
    """

    model: Any
    plain: FastVlmForConditionalGeneration
    folder: Path
    base_digest: BaseDigest | None = None


def arithmetic_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of matrix products.

    Raises:
        UsageError: bfloat16 was asked for on a GPU without it.
    """
    has_gpu = torch.cuda.is_available()
    can = has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if recipe.dtype == "bfloat16" and has_gpu and not can:
        raise UsageError("dtype is bfloat16, which this GPU only emulates. Take float32.")
    is_bfloat16 = recipe.dtype == "bfloat16" or (recipe.dtype == "auto" and can)
    return torch.bfloat16 if is_bfloat16 else torch.float32


def open_processor(recipe: Recipe) -> FastVlmProcessor:
    """The checkpoint's processor, with images of the recipe's size, padding on the right."""
    folder = checkpoint_path(recipe.model)
    processor = load_processor(folder, FastVlmConfig.from_dict(dict(inspect_folder(folder).config)))
    processor.image_processor.choose(recipe.image_size)
    processor.padding_side = "right"
    return processor


def set_up_model(recipe: Recipe) -> ModelSetup:
    """Load the recipe's model, freeze its parts and add adapters.

    Weights that learn are float32. Under adapters the others have the arithmetic's dtype, or `base_bits`.

    Raises:
        CheckpointError, UsageError: as `fastvlm.load`.
    """
    folder, dtype = checkpoint_path(recipe.model), arithmetic_dtype(recipe)
    torch.manual_seed(recipe.seed)  # adapters begin at random
    if recipe.from_scratch:
        plain = _at_random(folder)
    else:
        plain, _ = load(folder, device="cpu", dtype=torch.float32 if recipe.lora is None else dtype)
    plain.config.name_or_path = recipe.model
    if not torch.cuda.is_available() or recipe.grounding is not None:  # which reads the attention itself
        plain.model.language_model.set_attn_implementation("eager")  # SDPA's backward on a CPU takes half as long again
    digest = None if recipe.lora is None else _base_digest(plain, folder, dtype)
    set_trainable(plain, recipe)
    if recipe.base_bits != 16:
        round_base(plain, recipe.base_bits, dtype)
    model = plain if recipe.lora is None else add_adapters(plain, recipe)
    if recipe.gradient_checkpointing:
        enable = getattr(plain, "activation_checkpointing_enable", None) or plain.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return ModelSetup(model, plain, folder, digest)


def _base_digest(plain: FastVlmForConditionalGeneration, folder: Path, dtype: torch.dtype) -> BaseDigest | None:
    stored = inspect_folder(folder)
    if stored.weights.quantized is not None:
        return None
    return BaseDigest.of_model(plain, is_exact=dtype in (torch.float32, stored.dtype))


def _at_random(folder: Path) -> FastVlmForConditionalGeneration:
    """A randomly initialized model of a checkpoint's sizes with a multi-branch encoder."""
    config = FastVlmConfig.from_dict(dict(inspect_folder(folder).config))
    vision = config.vision_config
    vision.model_args = {**(vision.model_args or {}), "inference_mode": False}
    config.dtype = torch.float32
    return FastVlmForConditionalGeneration(config)
