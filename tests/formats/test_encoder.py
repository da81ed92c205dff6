"""The encoder's architecture, told from its tensors' shapes."""

import encoder_strategy
import pytest
import tiny
import torch
from hypothesis import given, settings

from fastvlm import FastViTHD, FastViTHDConfig
from fastvlm.formats.encoder import encoder_arguments, encoder_form
from fastvlm.formats.names import ENCODER


def shapes_of(config: FastViTHDConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = FastViTHD(config).state_dict()
    return {ENCODER + name: tuple(tensor.shape) for name, tensor in state.items()}


@settings(max_examples=15, deadline=None)
@given(encoder_strategy.encoders())
def test_an_encoder_made_from_what_the_shapes_tell_has_these_shapes(config):
    shapes = shapes_of(config)
    made = FastViTHDConfig(model_args=encoder_arguments(shapes))
    assert shapes_of(made) == shapes
    assert made.stages == config.stages
    assert made.is_inference_form is config.is_inference_form


@pytest.mark.parametrize("is_fused", [True, False])
def test_the_published_encoder_is_recognized(is_fused):
    published = FastViTHDConfig(model_args={"inference_mode": is_fused})
    shapes = shapes_of(published)
    assert encoder_form(shapes) is is_fused
    made = FastViTHDConfig(model_args=encoder_arguments(shapes))
    assert (made.stages, made.hidden_size) == (published.stages, 3072)


def test_a_missing_tensor_leaves_the_published_value_to_be_reported_later():
    shapes = shapes_of(tiny.vision_config())
    del shapes[ENCODER + "stages.2.blocks.0.mlp.fc1.weight"]
    assert encoder_arguments(shapes) == {}
    assert encoder_form({}) is None
