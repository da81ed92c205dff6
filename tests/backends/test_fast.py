import copy
import dataclasses

import peft
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

import fastvlm
from fastvlm.backends import fast
from fastvlm.backends.cpu.int4 import Int4Linear
from fastvlm.backends.cpu.int8 import Int8DynamicLinear, Int8WeightOnlyLinear
from fastvlm.backends.cpu.linear import PackedLinear, PlainLinear, packed_linear_in
from fastvlm.backends.fast import SharedWeights, fast_dtype, fast_engine
from fastvlm.engine.engine import Engine
from fastvlm.config import BITS
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import UsageError
from fastvlm.hf.lora import sharing_copy

GREEDY = SamplingParams(max_new_tokens=12)


def mini(dtype="float32"):
    return fastvlm.load("mini", device="cpu", dtype=dtype)


def question(text="What shape is this?", image="examples/red_star.png"):
    content = [{"type": "image", "path": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("image", ["red_star", "five_shapes", "letter", "word"])
def test_in_float32_the_fast_engine_answers_as_generate(image):
    model, processor = mini()
    messages = question("What do you see?", f"examples/{image}.png")
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    reply = fast_engine(model, processor).generate(messages, GREEDY)
    stops = set(model.config.stop_token_ids)
    assert [t for t in reply.token_ids if t not in stops] == [t for t in expected.tolist() if t not in stops]


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [*(("float32", bits) for bits in BITS), ("bfloat16", 8)],  # many CPUs emulate bfloat16, slowly
)
def test_every_precision_answers(dtype, bits):
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


def test_the_head_keeps_eight_bits(monkeypatch):
    monkeypatch.setattr(fast, "has_native_linears", lambda dtype: False)
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


def test_engines_that_share_weights_hold_them_once_and_answer_alike():
    model, processor = mini()
    models = [model, sharing_copy(model)]
    alone = fast_engine(*mini()).generate(question(), GREEDY).token_ids
    shared = SharedWeights()
    first = fast_engine(models[0], processor, shared=shared)
    whole = shared.num_bytes
    second = fast_engine(models[1], processor, shared=shared)
    assert shared.num_bytes == whole, "something is held twice"
    assert shared.encoder(models[0]) is shared.encoder(models[1])
    assert first.processor is not second.processor
    assert [engine.generate(question(), GREEDY).token_ids for engine in (first, second)] == [alone, alone]


def test_a_weight_of_its_own_is_not_mistaken_for_the_shared_one():
    model, processor = mini()
    other = sharing_copy(model)
    down = other.model.language_model.layers[0].mlp.down_proj
    down.weight.data = down.weight.data + 0.5
    shared = SharedWeights()
    first, second = (fast_engine(one, processor, shared=shared) for one in (model, other))
    assert first.generate(question(), GREEDY).token_ids != second.generate(question(), GREEDY).token_ids


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_are_shared_too(bits):
    model, processor = mini()
    models = [model, sharing_copy(model)]
    shared = SharedWeights()
    engines = [fast_engine(one, processor, bits=bits, shared=shared) for one in models]
    replies = [engine.generate(question(), GREEDY).token_ids for engine in engines]
    assert replies[0] == replies[1] == fast_engine(*mini(), bits=bits).generate(question(), GREEDY).token_ids


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_model_as_stored_computes_in_another_dtype_as_one_that_was_loaded_in_it(bits):
    (stored, processor), (loaded, _) = mini("bfloat16"), mini("float32")
    pixels = processor.image_processor([Image.new("RGB", (90, 60), "red")], return_tensors="pt")["pixel_values"]
    turned = fast_engine(stored, processor, bits=bits, dtype=torch.float32)
    expected = fast_engine(loaded, processor, bits=bits)
    assert torch.equal(turned.encode(pixels), expected.encode(pixels))
    replies = [engine.generate(question(), dataclasses.replace(GREEDY, logprobs=0)) for engine in (turned, expected)]
    assert replies[0].token_ids == replies[1].token_ids
    assert replies[0].logprobs == replies[1].logprobs
    assert turned.kv_bytes_per_token == expected.kv_bytes_per_token


def test_what_is_turned_while_it_is_laid_out_takes_turns_in_one_buffer():
    make = packed_linear_in(torch.float32)
    weights = [torch.randn(out, 8).bfloat16() for out in (16, 4, 24)]
    linears = [make(weight, weight[:, 0]) for weight in weights]
    x = torch.randn(3, 8)
    for linear, weight in zip(linears, weights, strict=True):
        torch.testing.assert_close(linear(x), F.linear(x, weight.float(), weight[:, 0].float()))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_layers_of_another_kind_are_turned_too():
    model, processor = mini("bfloat16")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, lora).base_model.model.eval()
    expected = fast_engine(copy.deepcopy(wrapped).float(), processor).generate(question(), GREEDY)
    assert fast_engine(wrapped, processor, dtype=torch.float32).generate(question(), GREEDY).text == expected.text


@pytest.mark.parametrize(("stored", "dtype"), [("float16", None), ("float16", "float16"), ("bfloat16", "float16")])
def test_in_float16_images_are_still_computed_in_float32(stored, dtype):
    """The published encoders' numbers come close to the largest of float16."""
    engine = fast_engine(*mini(stored), dtype=None if dtype is None else getattr(torch, dtype))
    pixels = engine.processor.image_processor([Image.new("RGB", (64, 64), "red")], return_tensors="pt")["pixel_values"]
    expected = fast_engine(*mini("float32")).encode(pixels)
    assert (engine.encode(pixels).float() - expected).norm() / expected.norm() < 1e-3
    assert engine.kv_bytes_per_token == fast_engine(*mini("bfloat16")).kv_bytes_per_token
    assert engine.generate(question(), GREEDY).text.strip()
