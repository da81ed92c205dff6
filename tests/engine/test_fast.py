import dataclasses

import pytest
import tiny
import torch

import fastvlm
from fastvlm.engine import fast
from fastvlm.engine.engine import Engine
from fastvlm.engine.fast import fast_dtype, fast_engine
from fastvlm.engine.int4 import Int4Linear
from fastvlm.engine.int8 import Int8DynamicLinear, Int8WeightOnlyLinear
from fastvlm.engine.linear import PackedLinear, PlainLinear
from fastvlm.engine.types import BITS, SamplingParams
from fastvlm.errors import UsageError

GREEDY = SamplingParams(max_new_tokens=12)


def mini(dtype="float32"):
    return fastvlm.load("mini", device="cpu", dtype=dtype)


def question(text="What shape is this?", picture="examples/red_star.png"):
    content = [{"type": "image", "path": picture}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("picture", ["red_star", "five_shapes", "letter", "word"])
def test_in_float32_the_fast_engine_answers_as_generate(picture):
    model, processor = mini()
    messages = question("What do you see?", f"examples/{picture}.png")
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    reply = fast_engine(model, processor).generate(messages, GREEDY)
    stops = set(model.config.stop_token_ids)
    assert [t for t in reply.token_ids if t not in stops] == [t for t in expected.tolist() if t not in stops]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_precision_answers(bits, dtype):
    engine = fast_engine(*mini(dtype), bits=bits)
    assert engine.generate(question(), GREEDY).text.strip()


@pytest.mark.parametrize(
    ("device", "is_fast", "expected"),
    [("cpu", True, None), ("cpu", False, torch.float32), ("cuda", False, None), ("mps", False, None)],
)
def test_bfloat16_is_avoided_only_where_a_cpu_emulates_it(monkeypatch, device, is_fast, expected):
    kernels = dataclasses.replace(fast.cpu_kernels(), has_fast_bfloat16=is_fast)
    monkeypatch.setattr(fast, "cpu_kernels", lambda: kernels)
    assert fast_dtype(torch.device(device)) is expected


def test_the_head_keeps_eight_bits():
    engine = fast_engine(*mini("bfloat16"), bits=4)
    decoder = engine._decoder
    assert isinstance(decoder._head, Int8DynamicLinear | Int8WeightOnlyLinear | PlainLinear)
    assert not isinstance(decoder._head, Int4Linear)
    assert isinstance(decoder._layers[0].down, Int4Linear | PlainLinear)


def test_weights_are_held_once():
    model, processor = mini()
    engine = fast_engine(model, processor)
    if isinstance(engine._decoder._layers[0].down, PackedLinear):
        assert not model.model.language_model.layers[0].mlp.down_proj.weight.numel()


def test_the_engine_encodes_as_the_model():
    model, processor = mini()
    pixels = torch.rand(2, 3, 128, 192)
    with torch.no_grad():
        expected = model.get_image_features(pixels).pooler_output
    gap = (fast_engine(model, processor).encode(pixels) - expected).norm() / expected.norm()
    assert gap < 1e-4
    model, processor = mini()
    assert torch.equal(Engine(model, processor).encode(pixels), expected)


@pytest.mark.parametrize("bits", [0, 2, 32, "8", None])
def test_other_bits_are_refused(bits):
    with pytest.raises(UsageError, match="expected 16, 8 or 4"):
        fast_engine(tiny.model(), None, bits=bits)


def test_few_bits_need_a_cpu():
    with pytest.raises(UsageError, match="need a CPU"):
        fast_engine(tiny.model().to("meta"), None, bits=8)
