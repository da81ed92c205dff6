"""Every weight has one place: a part, a rate, with decay or without."""

import pytest
import small_run
import tiny
import torch
from torch import nn

from fastvlm.model.blocks import LayerScale
from fastvlm.training.recipe import PARTS, Recipe
from fastvlm.training.run.param_groups import frozen_batchnorms, parameter_groups, part_of, set_trainable


def recipe(**changes):
    return Recipe.model_validate({"parts": small_run.RATES, "weight_decay": 0.1, **changes})


@pytest.mark.parametrize("is_fused", [True, False])
def test_each_weight_is_in_one_group(is_fused):
    model = tiny.model(vision={"inference_mode": is_fused})
    groups = parameter_groups(model, recipe())
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found)) == len(list(model.parameters()))
    assert {group["part"] for group in groups} == set(PARTS)
    for group in groups:
        assert group["lr"] == small_run.RATES[group["part"]]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0] * 3


@pytest.mark.parametrize("is_fused", [True, False])
def test_norms_biases_and_layer_scales_are_not_decayed(is_fused):
    model = tiny.model(vision={"inference_mode": is_fused})
    decayed = {id(p) for group in parameter_groups(model, recipe()) if group["weight_decay"] for p in group["params"]}
    for module in model.modules():
        kind = type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            is_free = name == "bias" or "Norm" in kind or isinstance(module, LayerScale)
            assert (id(parameter) in decayed) != is_free, f"{kind}.{name}"
    assert any(isinstance(module, LayerScale) for module in model.modules())


def test_a_part_is_known_below_every_wrapper():
    names = {
        "model.vision_tower.timm_model.stem.0.reparam_conv.weight": "encoder",
        "module.base_model.model.model.vision_tower.timm_model.x": "encoder",
        "base_model.model.model.multi_modal_projector.modules_to_save.default.linear_1.weight": "projector",
        "model.language_model.layers.0.mlp.up_proj.weight": "decoder",
        "lm_head.weight": "decoder",
    }
    assert {name: part_of(name) for name in names} == names


@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_has_no_weight_that_learns(part, tiny_model):
    set_trainable(tiny_model, recipe(parts={**small_run.RATES, part: "frozen"}))
    assert {part_of(name) for name, p in tiny_model.named_parameters() if p.requires_grad} == set(PARTS) - {part}


def test_batchnorms_move_only_when_asked_and_when_the_encoder_learns(tiny_model):
    count = sum(isinstance(module, nn.BatchNorm2d) for module in tiny_model.modules())
    moving = {"lr": 1e-3, "batchnorm": "train"}
    frozen = {"lr": "frozen", "batchnorm": "train"}
    assert len(frozen_batchnorms(tiny_model, recipe())) == count > 0
    assert frozen_batchnorms(tiny_model, recipe(parts={**small_run.RATES, "encoder": moving})) == []
    assert len(frozen_batchnorms(tiny_model, recipe(parts={**small_run.RATES, "encoder": frozen}))) == count
    assert all(torch.is_tensor(module.running_mean) for module in frozen_batchnorms(tiny_model, recipe()))
