"""The three published sizes: every key and shape on the meta device, and the 0.5B once for real."""

import json
from collections import Counter

import apple_layout
import pytest
import qwen2_format
import torch

from fastvlm import FastVlmConfig, FastVlmForConditionalGeneration
from fastvlm.conversion.shards import PlannedTensor, split_into_shards, write_index, write_safetensors
from fastvlm.formats.apple_config import from_apple_config
from fastvlm.formats.names import names_from_apple
from fastvlm.hf.pretrained import expected_shapes

# hidden, layers, heads, key-value heads, intermediate, rows in Apple's file, rows in transformers', tied
SIZES = {
    "0.5b": (896, 24, 14, 2, 4864, 151_936, 152_000, True),
    "1.5b": (1536, 28, 12, 2, 8960, 151_936, 152_000, True),
    "7b": (3584, 28, 28, 4, 18944, 152_064, 152_128, False),
}


def published_apple_config(size: str) -> dict:
    hidden, layers, heads, kv_heads, intermediate, rows, _, is_tied = SIZES[size]
    return {
        "model_type": "llava_qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": rows,
        "tie_word_embeddings": is_tied,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
        "image_aspect_ratio": "pad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "mobileclip_l_1024",
        "torch_dtype": "bfloat16",
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
    }


@pytest.mark.parametrize(
    ("size", "parameters"), [("0.5b", 620_400_000), ("1.5b", 1_673_600_000), ("7b", 7_762_700_000)]
)
def test_keys_and_shapes_are_those_of_transformers(size, parameters):
    from transformers.models.fast_vlm import FastVlmConfig as TheirConfig
    from transformers.models.fast_vlm import FastVlmForConditionalGeneration as Theirs

    config = FastVlmConfig.preset(size)
    shapes = expected_shapes(FastVlmForConditionalGeneration, config)
    content = config.to_dict()
    theirs = TheirConfig(
        text_config=content["text_config"],
        vision_config=content["vision_config"],
        tie_word_embeddings=content["tie_word_embeddings"],
    )
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in Theirs(theirs).state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert shapes == expected
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    total = sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith(statistics))
    assert abs(total - parameters) < 50_000


@pytest.mark.parametrize("size", SIZES)
def test_apples_list_of_keys_is_the_networks(size):
    _, layers, *_, rows, _, is_tied = SIZES[size]
    config = FastVlmConfig.from_dict(from_apple_config(published_apple_config(size)))
    shapes = expected_shapes(FastVlmForConditionalGeneration, config)
    apple = [key for key, _ in apple_layout.all_pairs(apple_layout.PUBLISHED_DEPTHS, layers)]
    assert set(names_from_apple(apple).values()) == set(shapes) | {"lm_head.weight"}
    parts = Counter(name.split(".")[1] if name.startswith("model.") else name for name in shapes)
    assert parts["vision_tower"] == 628
    assert parts["multi_modal_projector"] == 4
    assert parts["language_model"] == 12 * layers + 2
    assert parts["lm_head.weight"] == (not is_tied)
    assert shapes["model.language_model.embed_tokens.weight"][0] == rows
    assert config.image_seq_length == 256
    assert config.text_config.rope_parameters["rope_theta"] == 1_000_000.0


@pytest.mark.slow
def test_the_true_half_billion_opens_from_apples_files(tmp_path):
    """As published: bfloat16, head stored beside the embedding table it equals, `head.proj`, 151,936 rows."""
    config = FastVlmConfig.from_dict(from_apple_config(published_apple_config("0.5b")))
    shapes = expected_shapes(FastVlmForConditionalGeneration, config)
    shapes["lm_head.weight"] = shapes["model.language_model.embed_tokens.weight"]
    pairs = apple_layout.all_pairs(apple_layout.PUBLISHED_DEPTHS, 24)
    planned = []
    for index, (apple, ours) in enumerate(pairs):
        value = 0.01 * (1 + (0 if ours in {"lm_head.weight", "model.language_model.embed_tokens.weight"} else index))
        dtype = torch.int64 if ours.endswith("num_batches_tracked") else torch.bfloat16
        shape = shapes[ours]
        planned.append(PlannedTensor(apple, shape, dtype, lambda s=shape, v=value: torch.full(s, v)))
    head = torch.zeros(3072, 768, dtype=torch.bfloat16)
    planned.append(PlannedTensor.of(apple_layout.HEAD_PROJ, head))
    assert (
        abs(sum(t.num_elements for t in planned if not t.name.endswith(("_mean", "_var", "tracked"))) - 758.8e6) < 1e5
    )
    shards = split_into_shards(planned, 600_000_000)
    for name, tensors in shards.items():
        write_safetensors(tmp_path / name, tensors)
    write_index(tmp_path, shards)
    (tmp_path / "config.json").write_text(json.dumps(published_apple_config("0.5b")))
    qwen2_format.small_tokenizer(with_image=False).save_pretrained(tmp_path)
    model = FastVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert abs(sum(p.numel() for p in model.parameters()) - 620.3e6) < 1e5
    assert model.config.tie_word_embeddings
    state = model.state_dict()
    for apple, ours in pairs[::40]:
        planned_value = next(t for t in planned if t.name == apple).read().flatten()[0]
        assert state[ours].flatten()[0] == planned_value.to(state[ours].dtype), ours
