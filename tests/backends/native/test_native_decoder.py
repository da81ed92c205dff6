"""Whole passes of the compiled decoder against torch's way in the same dtype and the model in float32."""

import dataclasses
import functools

import engines
import natives
import pytest
import tiny
import torch
from compiled import is_fast, is_possible

import fastvlm
from fastvlm.backends import local
from fastvlm.backends.cpu.linear import packed_linear
from fastvlm.backends.native import kernels as native
from fastvlm.backends.native import linear as native_linear
from fastvlm.backends.native.decoder import passes_are_right
from fastvlm.backends.native.kernels import NativeKernels
from fastvlm.backends.native.linear import NativeLinear, NativeLinears, linears_are_right
from fastvlm.conversion.quantize import round_linears
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import SamplingParams
from fastvlm.formats.quantized_file import QuantizationOptions
from fastvlm.formats.rounding import quantize_int4

pytestmark = is_possible

BFLOAT16 = torch.bfloat16
CONTEXT, SLOTS = 700, 5
# From float32, through tiny layers with loud weights.
NEAR = {BFLOAT16: 0.03, torch.float32: 1e-4}
SHAPES = {
    "wide_heads": {"hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 4},
    "one_kv_head": {"hidden_size": 448, "intermediate_size": 90, "num_attention_heads": 7, "num_key_value_heads": 1},
    "odd_width": {"hidden_size": 66, "head_dim": 32, "intermediate_size": 50, "num_attention_heads": 2},
    "tied_head": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "tie_word_embeddings": True},
}


KERNELS: list[NativeKernels] = []
DTYPE: list[torch.dtype] = []


@pytest.fixture(autouse=True, scope="module", params=natives.CASES)
def kernels(request):
    """The kernels of a level, with the dtype that is tested; what these tests ask for."""
    KERNELS[:], DTYPE[:] = [natives.built(request.param[0])], [request.param[1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_linear, "native_kernels", lambda dtype: KERNELS[0] if dtype in KERNELS[0].dtypes else None)
        yield KERNELS[0]


def dtype():
    return DTYPE[0]


def near():
    return NEAR[dtype()]


def in_dtype(weight, is_head):
    return weight.to(dtype())


@functools.cache
def model(shape):
    text = {"max_position_embeddings": 1024, **SHAPES[shape]}
    return tiny.model(text=text)


def decoders(shape, form=in_dtype):
    """The compiled one, and torch's, over the same model in the dtype."""
    half = tiny.model(text=model(shape).config.text_config.to_dict()).to(dtype())
    native = engines.decoder(half, SLOTS, CONTEXT, NativeLinears(form, dtype()))
    assert native._native is not None
    plain = engines.decoder(half, SLOTS, CONTEXT, engines.maker(packed_linear))
    assert plain._native is None
    return native, plain


def exact(shape, ids):
    with torch.no_grad():
        return model(shape)(input_ids=torch.tensor([ids])).logits[0, -1]


def gap(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


def ids_of(length, seed=0):
    return tiny.prompt("t" * length, seed=seed)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_and_steps_are_as_near_to_float32_as_torchs(shape, threads, monkeypatch):
    native, plain = decoders(shape)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    prompts = [ids_of(length, seed=length) for length in (1, 5, 33, 70, natives.most_rows(KERNELS[0]))]
    for slot, ids in enumerate(prompts):
        ours, theirs = (engines.prefilled(each, each.embed(ids), slot) for each in (native, plain))
        assert ours.dtype == dtype() and ours.shape == (tiny.VOCAB,)
        assert gap(ours, exact(shape, ids)) < 1.5 * gap(theirs, exact(shape, ids)) + 2e-3
    for slots in ([2], [4, 0, 3], [1, 0, 2, 3, 4]):
        positions = [len(prompts[slot]) for slot in slots]
        ours = native.decode([9] * len(slots), slots, positions)
        assert ours.shape == (len(slots), tiny.VOCAB) and ours.dtype == dtype()
        for row, slot in enumerate(slots):
            prompts[slot] = [*prompts[slot], 9]
            assert gap(ours[row], exact(shape, prompts[slot])) < near()


@pytest.mark.parametrize("size", [1, 2, 31, 40, 64])
def test_a_prompt_in_chunks(size):
    native, _ = decoders("one_kv_head")
    ids = ids_of(130)
    for start in range(0, len(ids), size):
        hidden = native.prefill_chunk(native.embed(ids[start : start + size]), 1, start)
    assert hidden.shape == (1, 448) and gap(native.logits(hidden)[0], exact("one_kv_head", ids)) < near()


@pytest.mark.parametrize("count", [2, 7, 28])
def test_consecutive_tokens_in_one_step_give_what_one_after_the_other_gives(count):
    native, _ = decoders("wide_heads")
    ids, more = ids_of(30), ids_of(28, seed=4)[:count]
    for slot in (1, 2, 3):
        engines.prefilled(native, native.embed(ids), slot)
    places = [(1, len(ids) + i) for i in range(count)]
    together = native.decode([*more, 9], [slot for slot, _ in [*places, (2, 30)]], [at for _, at in [*places, (2, 30)]])
    single = torch.stack([native.decode([token], [3], [len(ids) + i])[0] for i, token in enumerate(more)])
    assert together.shape == (count + 1, tiny.VOCAB) and gap(together[:-1], single) < near()
    assert gap(together[-1], native.decode([9], [2], [30])[0]) < near()


def test_what_is_in_the_cache_is_what_torch_puts_there():
    native, plain = decoders("wide_heads")
    for each in (native, plain):
        engines.prefilled(each, each.embed(ids_of(40)), 3)
        each.decode([5], [3], [40])
    for ours, theirs in zip(native.cache.layers, plain.cache.layers, strict=True):
        assert gap(ours[3, :, :41], theirs[3, :, :41]) < near()
        assert not ours[3, :, 41:].any() and not ours[:3].any() and not ours[4:].any()


def test_a_row_has_the_same_bits_alone_and_beside_others():
    native, _ = decoders("wide_heads")
    prompts = [ids_of(length, seed=length) for length in (20, 7, 33)]
    for slot, ids in enumerate(prompts):
        engines.prefilled(native, native.embed(ids), slot)
    positions = [len(ids) for ids in prompts]
    together = native.decode([4, 5, 6], [0, 1, 2], positions)
    alone = [native.decode([4 + slot], [slot], [positions[slot]])[0] for slot in range(3)]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(native.decode([6, 4], [2, 0], [33, 20]), together[[2, 0]]), "the order of slots or an idle one"


def test_a_slot_that_holds_what_is_no_number_spoils_its_own_row_alone():
    native, _ = decoders("wide_heads")
    for slot in range(3):
        engines.prefilled(native, native.embed(ids_of(18, seed=slot)), slot)
    clean = native.decode([4] * 3, [0, 1, 2], [18] * 3)
    for layer in native.cache.layers:
        layer[1, :, 3] = torch.nan
        layer[2, :, 19:] = torch.nan  # beyond what it has seen
    spoilt = native.decode([4] * 3, [0, 1, 2], [18] * 3)
    assert spoilt[1].isnan().all() and torch.equal(spoilt[[0, 2]], clean[[0, 2]])


def test_more_rows_than_one_tile_holds():
    half = tiny.model(text=SHAPES["wide_heads"]).to(dtype())
    native = engines.decoder(half, 40, 64, NativeLinears(lambda weight, is_head: weight, dtype()))
    for slot in range(40):
        engines.prefilled(native, native.embed([2 + slot, 3]), slot)
    logits = native.decode([7] * 40, list(range(40)), [2] * 40)
    for slot in (0, 15, 16, 31, 32, 39):
        assert gap(logits[slot], exact("wide_heads", [2 + slot, 3, 7])) < near()


@pytest.mark.parametrize("rows", [1, 6, 60])
def test_four_bits_where_gate_and_up_are_one_weight(rows):
    """As files hold them; halves that are not whole blocks meet after the product."""
    half = tiny.model(text=SHAPES["wide_heads"]).to(dtype())

    def joined(weight, bias):
        is_head = len(weight) == tiny.VOCAB
        return NativeLinear(KERNELS[0], [weight if is_head else quantize_int4(weight)], [bias])

    native, plain = (
        engines.decoder(half, 1, 128, make)
        for make in (engines.maker(joined), NativeLinears(lambda weight, is_head: quantize_int4(weight), dtype()))
    )
    assert native._native is not None and plain._native is not None
    ids = ids_of(rows)
    assert gap(engines.prefilled(native, native.embed(ids), 0), exact("wide_heads", ids)) < 0.3
    odd = tiny.model(text={**SHAPES["wide_heads"], "intermediate_size": 112}).to(dtype())
    make = engines.maker(lambda weight, bias: NativeLinear(KERNELS[0], [weight], [bias]))
    joined, apart = engines.decoder(odd, 1, 128, make), engines.decoder(odd, 1, 128, NativeLinears(in_dtype, dtype()))
    assert joined._native is not None and apart._native is not None
    first, second = (engines.prefilled(each, each.embed(ids), 0) for each in (joined, apart))
    assert gap(first, second) < 1e-2


@pytest.mark.parametrize(
    ("text", "context"),
    [({}, 64), ({"hidden_size": 128, "num_attention_heads": 4}, 8)],
    ids=["narrow_heads", "short_context"],
)
def test_what_they_do_not_take_goes_torchs_way(text, context):
    half = tiny.model(text=text).to(dtype())
    decoder = engines.decoder(half, 1, context, NativeLinears(lambda weight, is_head: weight, dtype()))
    assert decoder._native is None
    assert engines.prefilled(decoder, decoder.embed([3, 4]), 0).isfinite().all()


def answers(bits, dtype="bfloat16", **settings):
    model, processor = fastvlm.load("mini", device="cpu", dtype=dtype)
    engine = Engine.from_model(model, processor, bits=bits, **settings)
    content = [{"type": "image", "path": "examples/five_shapes.png"}, {"type": "text", "text": "What do you see?"}]
    reply = engine.generate([{"role": "user", "content": content}], SamplingParams(max_new_tokens=24))
    return engine, reply.token_ids


@is_fast
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_shipped_mini_says_the_same(bits, monkeypatch, kernels):
    monkeypatch.setattr(native, "native_kernels", lambda *_: kernels)
    name = str(dtype()).removeprefix("torch.")
    engine, ours = answers(bits, name)
    decoder = engine.backend.decoder
    assert decoder._native is not None
    kinds = [{16: 0, 8: 1, 4: 2}[bits], {16: 0, 8: 1, 4: 1}[bits]]  # with 4 bits the head keeps 8
    assert [linear.native_weights.parts[0].kind for linear in (decoder._layers[0].down, decoder._head)] == kinds
    monkeypatch.setattr(native_linear, "native_kernels", lambda *_: None)
    without, theirs = answers(bits, name)
    assert without.backend.decoder._native is None and ours == theirs


@pytest.mark.parametrize("bits", [16, 8])
def test_engines_that_share_weights_share_products(bits):
    checkpoint = fastvlm.open_checkpoint("mini")
    settings = {"dtype": dtype(), "bits": bits}
    first = Engine.from_checkpoint(checkpoint, **settings)
    second = Engine.from_checkpoint(checkpoint, **settings, base=first)
    linears = [engine.backend.decoder.weights.layers[0].gate_up for engine in (first, second)]
    assert linears[0] is linears[1] and isinstance(linears[0], NativeLinear)
    assert first.backend.decoder._native is not None and second.backend.decoder._native is not None


@pytest.mark.parametrize("bits", [8, 4])
def test_stored_weights_are_used_where_they_lie(bits):
    half = tiny.model(text={"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}).to(dtype())
    quantized = round_linears(half.state_dict().__getitem__, 2, QuantizationOptions(bits), has_tied_head=False)
    rounded = {linear.names: linear.weight for linear in quantized.linears}
    checkpoint = dataclasses.replace(half.to_checkpoint(None), rounded=rounded)
    native, plain = (
        engines.decoder(half, 1, 64, checkpoint=checkpoint, make_rounded=functools.partial(make, device=engines.CPU))
        for make in (
            functools.partial(local._rounded_linear, dtype=dtype()),
            functools.partial(local._rounded_linear, dtype=None),
        )
    )
    assert native._native is not None and plain._native is None
    values = {next(iter(weight.tensors.values())).data_ptr() for weight in quantized.weights}
    assert {layer.gate_up.native_weights.parts[0].values for layer in native._layers} <= values
    for ids in (ids_of(1), ids_of(7), ids_of(50)):
        ours, theirs = (engines.prefilled(each, each.embed(ids), 0) for each in (native, plain))
        assert gap(ours, theirs) < 0.06, "torch rounds rows or weights to fewer bits"


def test_a_library_that_computes_something_else_is_not_used(kernels):
    class Wrong:
        dtypes = (dtype(),)

        def multiply(self, linear, rows, y):
            y.zero_()

        def decode(self, model, embeds, places, tables, results, *, are_consecutive, has_logits):
            results.zero_()

    assert linears_are_right(kernels, dtype()) and passes_are_right(kernels, dtype())
    assert not linears_are_right(Wrong(), dtype()) and not passes_are_right(Wrong(), dtype())
