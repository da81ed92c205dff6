"""What compiled kernels refuse to be given: tensors shorter, of another dtype or elsewhere than the sizes say."""

import dataclasses

import natives
import pytest
import torch
from compiled import is_possible

from fastvlm.backends.decoder_weights import DecoderLayer, DecoderWeights
from fastvlm.backends.kv_cache import KeyValueCache
from fastvlm.backends.native.address import address
from fastvlm.backends.native.decoder import NativeDecoder, _NativeLayer
from fastvlm.backends.native.linear import NativeLinear
from fastvlm.backends.native.packed_layer import PackedLayer
from fastvlm.config import DecoderConfig
from fastvlm.formats.checkpoint import RotaryPositions
from fastvlm.formats.names import HEAD
from fastvlm.formats.rounding import Int4Weight, Int8Weight, quantize_int4, quantize_int8

HALF = torch.bfloat16
EXPECTED = "expected"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, 4).to(HALF),
        torch.ones(2, 4),
        torch.ones(2, 8).to(HALF)[:, ::2],
        torch.ones(2, 4, device="meta", dtype=HALF),
        torch.ones(2, 4, 1).to(HALF),
        torch.ones(8).to(HALF),
    ],
    ids=["longer", "float32", "gaps", "elsewhere", "deeper", "flat"],
)
def test_another_tensor_is_refused(tensor):
    with pytest.raises(ValueError, match=r"^x is torch.*expected a contiguous bfloat16 tensor.* of shape \(2, 4\)"):
        address("x", tensor, HALF, 2, 4)


def test_the_right_one_has_an_address():
    x = torch.ones(2, 4)
    assert address("x", x, torch.float32, 2, 4) == address("x", x, torch.float32, None, 4) == x.data_ptr()
    assert address("x", x[1:], torch.float32) == x.data_ptr() + 16
    with pytest.raises(ValueError, match="not empty"):
        address("x", x[:0], torch.float32, None, 4)


def zeros(*shape, dtype=HALF):
    return torch.zeros(shape, dtype=dtype)


def packed(kernels, num_outputs, num_inputs, **changed):
    """A layer of zeros, with other tensors or sizes than it says."""
    made = PackedLayer.of(zeros(num_outputs, num_inputs), None, kernels.panel_layout(HALF))
    return dataclasses.replace(made, **{name: change(made) for name, change in changed.items()})


@is_possible
@pytest.mark.parametrize(
    "call",
    [
        lambda k: k.linear(zeros(5, 64), packed(k, 96, 64), "plain", zeros(5, 64)),
        lambda k: k.linear(zeros(5, 64), packed(k, 96, 64), "plain", zeros(4, 96)),
        lambda k: k.linear(zeros(5, 96), packed(k, 96, 64), "plain", zeros(5, 96)),
        lambda k: k.linear(zeros(5, 64), packed(k, 96, 64), "heads", zeros(5, 96)),
        lambda k: k.linear(zeros(5, 64), packed(k, 96, 64, bias=lambda layer: layer.bias[:95]), "plain", zeros(5, 96)),
        lambda k: k.linear(
            zeros(5, 64), packed(k, 96, 64, bias=lambda layer: layer.bias.to(HALF)), "plain", zeros(5, 96)
        ),
        lambda k: k.linear(
            zeros(5, 64), packed(k, 96, 64, weight=lambda layer: layer.weight[1:]), "plain", zeros(5, 96)
        ),
        lambda k: k.linear(
            zeros(5, 64), packed(k, 96, 64, weight=lambda layer: layer.weight.flatten(2)), "plain", zeros(5, 96)
        ),
        lambda k: k.linear(zeros(5, 96), packed(k, 96, 64, inputs=lambda _: 96), "plain", zeros(5, 96)),
        lambda k: k.linear(zeros(5, 64), packed(k, 96, 64, outputs=lambda _: 128), "plain", zeros(5, 128)),
        lambda k: k.ffn(zeros(5, 64), packed(k, 96, 64), packed(k, 96, 64), zeros(5, 64)),
        lambda k: k.ffn(zeros(5, 64), packed(k, 96, 64), packed(k, 64, 128), zeros(5, 64)),
        lambda k: k.ffn(zeros(5, 64), packed(k, 96, 64), packed(k, 64, 96), zeros(5, 32)),
        lambda k: k.depthwise(zeros(1, 4, 4, 33), zeros(1, 2, 9, 16), zeros(1, 2, 16), 3),
        lambda k: k.depthwise(zeros(1, 4, 4, 33), torch.zeros(2, 2, 9, 16), torch.zeros(2, 2, 16), 7),
        lambda k: k.depthwise(zeros(1, 4, 4, 33), torch.zeros(2, 2, 9, 16), torch.zeros(1, 2, 16), 3),
        lambda k: k.depthwise(zeros(1, 4, 4, 33), torch.zeros(2, 2, 25, 16), torch.zeros(2, 2, 16), 5),
        lambda k: k.depthwise(zeros(4, 4, 33), torch.zeros(2, 2, 9, 16), torch.zeros(2, 2, 16), 3),
        lambda k: k.attention(zeros(3, 2, 40, 64), 1),
        lambda k: k.attention(zeros(2, 2, 40, 32), 1),
        lambda k: k.attention(zeros(3, 2, 40, 32), 3),
        lambda k: k.attention(zeros(3, 2, 40, 32), 0),
    ],
)
def test_sizes_that_do_not_fit_never_reach_the_encoders_kernels(kernels, call):
    with pytest.raises(ValueError, match=EXPECTED):
        call(kernels)


@is_possible
def test_tile_registers_take_no_layers_of_other_sizes(kernels):
    odd = PackedLayer.of(zeros(95, 64), None, dataclasses.replace(kernels.panel_layout(HALF), is_padded=True))
    with pytest.raises(ValueError, match="95 outputs and 64 inputs; expected multiples of 32 and 32"):
        kernels.linear(zeros(5, 64), odd, "plain", zeros(5, 95))


def shortened(weight, **tensors):
    """A rounded weight whose own check was passed by."""
    fake = object.__new__(type(weight))
    for field in dataclasses.fields(weight):
        object.__setattr__(fake, field.name, tensors.get(field.name, getattr(weight, field.name)))
    return fake


INT8, INT4 = quantize_int8(torch.ones(70, 96)), quantize_int4(torch.ones(70, 96))


@is_possible
@pytest.mark.parametrize(
    "weights",
    [
        [shortened(INT8, scales=INT8.scales[:1])],
        [shortened(INT8, scales=INT8.scales.to(HALF))],
        [shortened(INT4, packed=INT4.packed[:64])],
        [shortened(INT4, scales_and_zeros=INT4.scales_and_zeros[:, :64].contiguous())],
        [shortened(INT4, scales_and_zeros=INT4.scales_and_zeros[:, :64])],
        [shortened(INT4, block=32)],
        [INT8, zeros(70, 96)],
        [INT8, quantize_int8(torch.ones(70, 64))],
        [zeros(70, 96).float()],
        [zeros(96, 70).T],
    ],
)
def test_products_are_made_of_whole_weights(kernels, weights):
    with pytest.raises(ValueError, match=EXPECTED):
        NativeLinear(kernels, weights, [None] * len(weights))


@is_possible
def test_products_have_biases_and_rows_that_fit(kernels):
    with pytest.raises(ValueError, match="bias is"):
        NativeLinear(kernels, [zeros(70, 96)], [torch.zeros(69)])
    linear = NativeLinear(kernels, [zeros(70, 96)], [None])
    for rows, y in ((zeros(2, 64), zeros(2, 70)), (zeros(2, 96), zeros(1, 70)), (zeros(2, 96), zeros(2, 64))):
        with pytest.raises(ValueError, match=EXPECTED):
            kernels.multiply(linear.native_weights, rows, y)


def decoder(**changes):
    """One layer of 64 numbers with two heads of 32, over two slots of 48 tokens."""
    kernels = natives.built()
    rows = {"qkv": (128, 64), "output": (64, 64), "gate_up": (96, 64), "down": (64, 48), "head": (50, 64), **changes}
    norms = {name: torch.ones(rows.pop(name, 64), dtype=HALF) for name in ("attention_norm", "mlp_norm", "norm")}
    linears = {name: NativeLinear(kernels, [zeros(*shape)], [None]) for name, shape in rows.items()}
    head, norm = linears.pop("head"), norms.pop("norm")
    config = DecoderConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=48,
        head_dim=32,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        eos_token_id=None,
        pad_token_id=None,
    )
    weights = DecoderWeights(
        config=config,
        dtype=HALF,
        embedding=zeros(50, 64),
        linears={(HEAD,): head},
        layers=(DecoderLayer(**norms, **linears),),
        norm=norm,
        rotary=RotaryPositions.default(1e4, 32),
        own_bytes=0,
    )
    layer = _NativeLayer(**norms, **linears)
    return NativeDecoder(kernels, weights, [layer], head, KeyValueCache(config, 2, 48, HALF))


@is_possible
@pytest.mark.parametrize(
    "changes",
    [
        {"qkv": (96, 64)},
        {"qkv": (128, 96)},
        {"output": (64, 32)},
        {"output": (32, 64)},
        {"gate_up": (64, 64)},
        {"down": (32, 48)},
        {"head": (50, 32)},
        {"attention_norm": 32},
        {"mlp_norm": 96},
        {"norm": 32},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_decoder_is_made_of_products_that_fit(changes):
    with pytest.raises(ValueError, match=EXPECTED):
        decoder(**changes)


@is_possible
def test_passes_stay_within_the_cache_and_the_tables():
    whole, tables = decoder(), (zeros(48, 1, 32), zeros(48, 1, 32))
    assert whole.decode(zeros(2, 64), [0, 1], [47, 0], tables).shape == (2, 50)
    assert whole.prefill_chunk(zeros(48, 64), 1, 0, tables).shape == (1, 64)
    short, narrow = (zeros(40, 1, 32),) * 2, (zeros(48, 1, 16),) * 2
    for slots, positions, some in (
        ([2, 0], [0, 0], tables),
        ([-1, 0], [0, 0], tables),
        ([0, 1], [48, 0], tables),
        ([0, 1], [0, -1], tables),
        ([0, 1], [40, 0], short),
        ([0, 1], [0, 0], narrow),
        ([0, 1], [0, 0], (tables[0], short[1])),
        ([0, 1], [0, 0], (tables[0], tables[1].float())),
    ):
        with pytest.raises(ValueError, match=EXPECTED):
            whole.decode(zeros(2, 64), slots, positions, some)
    for embeds, slot, start in (
        (zeros(2, 64), 2, 0),
        (zeros(2, 64), 0, 47),
        (zeros(2, 64), 0, -1),
        (zeros(2, 32), 0, 0),
    ):
        with pytest.raises(ValueError, match=EXPECTED):
            whole.prefill_chunk(embeds, slot, start, tables)


def test_a_weight_that_does_not_fit_is_never_made():
    assert isinstance(INT4, Int4Weight) and isinstance(INT8, Int8Weight)
    with pytest.raises(ValueError, match=EXPECTED):
        dataclasses.replace(INT8, scales=INT8.scales[:1])
    with pytest.raises(ValueError, match=EXPECTED):
        dataclasses.replace(INT4, scales_and_zeros=INT4.scales_and_zeros[:, :64])
