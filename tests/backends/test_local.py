import copy
import dataclasses
import functools

import peft
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

import fastvlm
from fastvlm.backends import local
from fastvlm.backends.cpu.int4 import Int4Linear
from fastvlm.backends.cpu.int8 import Int8DynamicLinear, Int8WeightOnlyLinear
from fastvlm.backends.cpu.linear import PackedLinears
from fastvlm.backends.linear import PlainLinear
from fastvlm.backends.local import fast_dtype
from fastvlm.config import BITS
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import UsageError

GREEDY = SamplingParams(max_new_tokens=12)


@functools.cache  # an engine leaves it as it is: test_the_model_can_still_be_used
def mini(dtype="float32"):
    return fastvlm.load("mini", device="cpu", dtype=dtype)


def question(text="What shape is this?", image="examples/red_star.png"):
    content = [{"type": "image", "path": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("image", ["red_star", "five_shapes", "letter", "word"])
def test_in_float32_the_engine_answers_as_generate(image):
    model, processor = mini()
    messages = question("What do you see?", f"examples/{image}.png")
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    reply = Engine.from_model(model, processor).generate(messages, GREEDY)
    stops = set(model.config.stop_token_ids)
    assert [t for t in reply.token_ids if t not in stops] == [t for t in expected.tolist() if t not in stops]


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [*(("float32", bits) for bits in BITS), ("bfloat16", 8)],  # many CPUs emulate bfloat16, slowly
)
def test_every_precision_answers(dtype, bits):
    engine = Engine.from_model(*mini(dtype), bits=bits)
    assert engine.generate(question(), GREEDY).text.strip()


@pytest.mark.parametrize(
    ("device", "is_fast", "expected"),
    [("cpu", True, None), ("cpu", False, torch.float32), ("cuda", False, None), ("mps", False, None)],
)
def test_bfloat16_is_avoided_only_where_a_cpu_emulates_it(monkeypatch, device, is_fast, expected):
    kernels = dataclasses.replace(local.cpu_kernels(), has_fast_bfloat16=is_fast)
    monkeypatch.setattr(local, "cpu_kernels", lambda: kernels)
    assert fast_dtype(torch.device(device)) is expected


def test_the_head_keeps_eight_bits(monkeypatch):
    monkeypatch.setattr(local, "has_native_linears", lambda dtype: False)
    engine = Engine.from_model(*mini("bfloat16"), bits=4)
    decoder = engine.backend.decoder
    assert isinstance(decoder._head, Int8DynamicLinear | Int8WeightOnlyLinear | PlainLinear)
    assert not isinstance(decoder._head, Int4Linear)
    assert isinstance(decoder._layers[0].down, Int4Linear | PlainLinear)


def test_the_model_can_still_be_used():
    model, processor = mini()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Engine.from_model(model, processor).generate(question(), GREEDY)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_engine_encodes_as_the_model():
    model, processor = mini()
    pixels = torch.rand(2, 3, 128, 192)
    with torch.no_grad():
        expected = model.get_image_features(pixels).pooler_output
    gap = (Engine.from_model(model, processor).encode(pixels) - expected).norm() / expected.norm()
    assert gap < 1e-4
    model, processor = mini()
    assert torch.equal(Engine.from_model(model, processor, kernels="reference").encode(pixels), expected)


@pytest.mark.parametrize("bits", [0, 2, 32, "8", None])
def test_other_bits_are_refused(bits):
    with pytest.raises(UsageError, match="expected 16, 8 or 4"):
        Engine.from_model(tiny.model(), None, bits=bits)


def test_few_bits_need_a_cpu():
    with pytest.raises(UsageError, match="need a CPU"):
        Engine.from_model(tiny.model().to("meta"), None, bits=8)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_engines_that_share_weights_hold_them_once_and_answer_alike(bits):
    checkpoint = fastvlm.open_checkpoint("mini")
    first = Engine.from_checkpoint(checkpoint, dtype=torch.float32, bits=bits)
    alone = first.generate(question(), GREEDY).token_ids
    second = Engine.from_checkpoint(checkpoint, dtype=torch.float32, bits=bits, base=first)
    assert second.backend.weights is first.backend.weights, "something is held twice"
    assert first.backend.images.encoder is second.backend.images.encoder
    assert first.processor is not second.processor
    assert [engine.generate(question(), GREEDY).token_ids for engine in (first, second)] == [alone, alone]


def test_what_has_changed_is_held_beside_what_has_not():
    checkpoint = fastvlm.open_checkpoint("mini")
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    other = checkpoint.with_tensors({name: checkpoint.tensors[name] + 0.5})
    first = Engine.from_checkpoint(checkpoint, dtype=torch.float32)
    second = Engine.from_checkpoint(other, dtype=torch.float32, base=first)
    alone = Engine.from_checkpoint(other, dtype=torch.float32)
    replies = [engine.generate(question(), GREEDY).token_ids for engine in (first, second, alone)]
    assert replies[0] != replies[1] == replies[2]
    assert 0 < second.backend.weights.own_bytes < first.backend.weights.own_bytes / 20


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_model_as_stored_computes_in_another_dtype_as_one_that_was_loaded_in_it(bits):
    (stored, processor), (loaded, _) = mini("bfloat16"), mini("float32")
    pixels = processor.image_processor([Image.new("RGB", (90, 60), "red")], return_tensors="pt")["pixel_values"]
    turned = Engine.from_model(stored, processor, bits=bits, dtype=torch.float32)
    expected = Engine.from_model(loaded, processor, bits=bits)
    assert torch.equal(turned.encode(pixels), expected.encode(pixels))
    replies = [engine.generate(question(), dataclasses.replace(GREEDY, logprobs=0)) for engine in (turned, expected)]
    assert replies[0].token_ids == replies[1].token_ids
    assert replies[0].logprobs == replies[1].logprobs
    assert turned.kv_bytes_per_token == expected.kv_bytes_per_token


def test_what_is_joined_and_turned_before_packing_takes_turns_in_one_buffer():
    make = PackedLinears(torch.float32)
    weights = [[torch.randn(out, 8).bfloat16() for out in rows] for rows in ((16, 4), (4,), (24, 8, 8))]
    linears = [make(parts, [part[:, 0] for part in parts], is_head=False) for parts in weights]
    x = torch.randn(3, 8)
    for linear, parts in zip(linears, weights, strict=True):
        whole = torch.cat(parts).float()
        torch.testing.assert_close(linear(x), F.linear(x, whole, whole[:, 0]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_layers_of_another_kind_are_turned_too():
    model, processor = mini("bfloat16")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(copy.deepcopy(model), lora).base_model.model.eval()
    expected = Engine.from_model(copy.deepcopy(wrapped).float(), processor).generate(question(), GREEDY)
    assert Engine.from_model(wrapped, processor, dtype=torch.float32).generate(question(), GREEDY).text == expected.text


@pytest.mark.parametrize(("stored", "dtype"), [("float16", None), ("float16", "float16"), ("bfloat16", "float16")])
def test_in_float16_images_are_still_computed_in_float32(stored, dtype):
    """The published encoders' numbers come close to the largest of float16."""
    engine = Engine.from_model(*mini(stored), dtype=None if dtype is None else getattr(torch, dtype))
    pixels = engine.processor.image_processor([Image.new("RGB", (64, 64), "red")], return_tensors="pt")["pixel_values"]
    expected = Engine.from_model(*mini("float32")).encode(pixels)
    assert (engine.encode(pixels).float() - expected).norm() / expected.norm() < 1e-3
    assert engine.kv_bytes_per_token == Engine.from_model(*mini("bfloat16")).kv_bytes_per_token
    assert engine.generate(question(), GREEDY).text.strip()
