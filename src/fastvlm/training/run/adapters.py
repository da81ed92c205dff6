"""LoRA adapters on plain or quantized (QLoRA) weights, by peft."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from fastvlm.errors import MissingExtraError
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.training.recipe import LoraEntry, Part, Recipe

# Decoder: every linear layer, as in Apple's code (`find_all_linear_names`). Encoder: attention and the 1x1 convolutions
# of the ConvFFNs, not the depthwise convolutions.
TARGETS: dict[Part, str] = {
    "encoder": r"vision_tower\..*\.(qkv|token_mixer\.proj|mlp\.fc1|mlp\.fc2)",
    "projector": r"multi_modal_projector\.linear_[12]",
    "decoder": r"language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
}
_WHOLE: dict[Part, str] = {"encoder": "vision_tower", "projector": "multi_modal_projector"}


def target_pattern(lora: LoraEntry) -> str:
    """A regular expression for the full names of the adapted layers, as peft takes it."""
    return rf".*({'|'.join(TARGETS[part] for part in lora.parts)})"


def add_adapters(model: nn.Module, recipe: Recipe) -> Any:
    """The model with the recipe's adapters. They and fully trained parts are float32; all else is frozen.

    Raises:
        MissingExtraError: peft is not installed.
    """
    try:
        import peft  # noqa: PLC0415  # only where there are adapters
    except ImportError as error:
        raise MissingExtraError("peft", "train", "LoRA") from error
    lora = recipe.lora
    assert lora is not None  # noqa: S101  # checked by the caller
    whole = [name for part, name in _WHOLE.items() if recipe.learns(part)]
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target_pattern(lora),
        modules_to_save=whole or None,
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = recipe.model
    # Embeddings are never trained with adapters; without this, peft looks for the base's config on the Hub.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def round_base(model: FastVlmForConditionalGeneration, bits: int, dtype: torch.dtype) -> None:
    """Quantize the linear layers of the decoder's blocks to 8 bits (LLM.int8) or 4 (NF4), in place.

    Args:
        model: with plain weights.
        bits: 8 or 4.
        dtype: of the arithmetic.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes as bnb  # noqa: PLC0415  # an optional package of this one function
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "train", f"A base of {bits} bits") from error

    def rounded(layer: nn.Linear) -> nn.Module:
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        new: nn.Module
        if bits == 8:
            new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            new = bnb.nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        new.bias = layer.bias
        return new.to(layer.weight.device)

    for block in model.model.language_model.layers:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, rounded(child))
