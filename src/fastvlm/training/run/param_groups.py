"""Parameter groups: learning rate and weight decay of each part; frozen parts and BatchNorms.

Wrappers (peft, DDP) prefix the parameters' names; a part is found by a substring that every wrapper keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastvlm.training.recipe import PARTS, Part, Recipe

_MARKS: dict[str, Part] = {
    "vision_tower.": "encoder",
    "grounding_objective.": "encoder",  # it learns at the encoder's rate
    "multi_modal_projector.": "projector",
}
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def part_of(name: str) -> Part:
    """The part that a parameter or module belongs to, by its full name."""
    return next((part for mark, part in _MARKS.items() if mark in f"{name}."), "decoder")


def set_trainable(model: nn.Module, recipe: Recipe) -> None:
    """Set `requires_grad` by the recipe's parts; adapters are added later."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(recipe.learns(part_of(name)))


def frozen_batchnorms(model: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """BatchNorms that must be in eval mode while the rest trains, so that their statistics stay."""
    may_move = recipe.learns("encoder") and recipe.parts.encoder.batchnorm == "train"
    kind = nn.modules.batchnorm._BatchNorm
    return [] if may_move else [module for module in model.modules() if isinstance(module, kind)]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW's groups of all parameters that learn: per part, first those with weight decay, then norms, biases, scales.

    A group has `params`, `lr`, `weight_decay`, and `part` for the log.
    """
    undecayed = _names_without_decay(model)
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name not in undecayed), []).append(parameter)
    return [
        {
            "params": groups[part, is_decayed],
            "lr": recipe.parts.of(part).rate,
            "weight_decay": recipe.weight_decay if is_decayed else 0.0,
            "part": part,
        }
        for part in PARTS
        for is_decayed in (True, False)
        if (part, is_decayed) in groups
    ]


def _names_without_decay(model: nn.Module) -> set[str]:
    """Vectors (biases, RMSNorms), layer scales (C, 1, 1), and whatever belongs to a norm."""
    of_norms = {
        f"{name}.{own}" for name, module in model.named_modules() if isinstance(module, _NORMS)
        for own, _ in module.named_parameters(recurse=False)
    }  # fmt: skip
    return of_norms | {name for name, tensor in model.named_parameters() if _is_vector(tensor)}


def _is_vector(tensor: torch.Tensor) -> bool:
    return tensor.ndim <= 1 or (tensor.ndim == 3 and tensor.shape[1:] == (1, 1))
