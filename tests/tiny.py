"""Small FastVLMs and inputs for tests. Everything is seeded; nothing is read from disk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvlm.hf.config import FastViTHDConfig, FastVlmConfig
from fastvlm.hf.modeling import FastVlmForConditionalGeneration

VOCAB = 101
IMAGE_ID = 100
PAD_ID = 0
END_ID = 1  # what `<|im_end|>` is to a Qwen2 vocabulary
FIRST_TEXT_ID = 2
SIZE_PX = 128  # a side of the usual image: 2 x 2 visual tokens
VISION_ARGS = {"layers": [1, 1, 1, 1, 1], "embed_dims": [8, 16, 32, 64, 128]}


def text_config(**overrides) -> dict:
    """A Qwen2 of two layers, 32 wide."""
    return {
        "model_type": "qwen2",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": PAD_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
        "tie_word_embeddings": False,
        **overrides,
    }


def vision_config(**model_args) -> FastViTHDConfig:
    """All five stages with one block each; `model_args` on top."""
    return FastViTHDConfig(model_args={**VISION_ARGS, **model_args})


def config(*, text: dict | None = None, vision: dict | None = None, **overrides) -> FastVlmConfig:
    """A whole tiny FastVLM: overrides of its decoder, its encoder's `model_args` and its own keys."""
    return FastVlmConfig(
        text_config=text_config(**(text or {})),
        vision_config=vision_config(**(vision or {})),
        image_token_index=IMAGE_ID,
        image_seq_length=4,
        **overrides,
    )


def model(**settings) -> FastVlmForConditionalGeneration:
    """A seeded model in eval mode; `settings` as for :func:`config`."""
    torch.manual_seed(0)
    return loud(FastVlmForConditionalGeneration(config(**settings))).eval()


def loud(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with weights that make every part matter: as initialized, layer scales of 1e-5 hide the blocks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            elif name.endswith("gamma"):
                tensor.copy_(0.3 + 0.1 * noise)
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(0.1 * noise)
            elif tensor.dim() == 1:  # weights of normalisations
                tensor.copy_(1 + 0.1 * noise)
            else:
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                gain = 3.0 if "projector" in name else 1.5 if "vision" in name else 1.0
                tensor.copy_(gain * noise / fan_in**0.5)
    return module


def images(count: int, height_px: int = SIZE_PX, width_px: int = SIZE_PX, seed: int = 1) -> Tensor:
    """(count, 3, height, width) in [0, 1]: coarse patches of color under noise, so that images differ."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(count, 3, 4, 4, generator=generator)
    noise = torch.rand(count, 3, height_px, width_px, generator=generator)
    return 0.7 * nn.functional.interpolate(patches, (height_px, width_px)) + 0.3 * noise


def prompt(layout: str, tokens_per_image: int = 4, seed: int = 2) -> list[int]:
    """Ids of a prompt: each "i" is an image's placeholders, each "t" a random text token."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for letter in layout:
        text = int(torch.randint(FIRST_TEXT_ID, IMAGE_ID, (), generator=generator))
        ids.extend([IMAGE_ID] * tokens_per_image if letter == "i" else [text])
    return ids


def batch(prompts: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of prompts padded on one side."""
    width = max(len(ids) for ids in prompts)
    rows, masks = [], []
    for ids in prompts:
        pad, ones = [PAD_ID] * (width - len(ids)), [1] * len(ids)
        zeros = [0] * len(pad)
        rows.append([*pad, *ids] if side == "left" else [*ids, *pad])
        masks.append([*zeros, *ones] if side == "left" else [*ones, *zeros])
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
