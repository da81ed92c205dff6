"""Weights in 8 and 4 bits: the numbers of ONNX Runtime's quantizer, and answers near those of float32."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from fastvlm.backends.onnx import DECODER
from fastvlm.export.onnx_variants import GROUP, rounded_to_4_bits, rounded_to_8_bits


def two_products(inputs, outputs, *, seed=0, dtype=np.float32, scale=1.0):
    """x (n, inputs) times two matrices of `outputs` columns, and the rows `ids` of a table, as an onnx_ir model."""
    rng = np.random.default_rng(seed)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = [(rng.standard_normal((inputs, outputs)) * scale).astype(dtype) for _ in range(2)]
    weights[0][:, 0] = 0  # a group of zeros has no scale
    table = rng.standard_normal((outputs, inputs)).astype(dtype)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w0"], ["y0"]),
        onnx.helper.make_node("MatMul", ["x", "w1"], ["y1"]),
        onnx.helper.make_node("Gather", ["table", "ids"], ["rows"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "products",
        [
            onnx.helper.make_tensor_value_info("x", kind, ["n", inputs]),
            onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"]),
        ],
        [
            onnx.helper.make_tensor_value_info("y0", kind, ["n", outputs]),
            onnx.helper.make_tensor_value_info("y1", kind, ["n", outputs]),
            onnx.helper.make_tensor_value_info("rows", kind, ["n", inputs]),
        ],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in zip(("w0", "w1", "table"), [*weights, table], strict=True)
        ],
    )
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))


def computed(model, inputs, outputs, dtype=np.float32):
    """Outputs for three rows and three ids."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((3, inputs)).astype(dtype)
    return session.run(None, {"x": x, "ids": np.array([0, outputs - 1, outputs // 2], dtype=np.int64)})


def numbers(model):
    """Every initializer as bytes, whatever it is called."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    return sorted(onnx.numpy_helper.to_array(tensor).tobytes() for tensor in proto.graph.initializer)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # ONNX Runtime's, for a group of zeros
@settings(max_examples=15, deadline=None)
@given(
    inputs=st.sampled_from([32, 64, 96, 320]),
    outputs=st.sampled_from([2, 7, 64]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([np.float32, np.float16]),
)
def test_4_bits_are_those_of_onnxruntimes_quantizer(inputs, outputs, seed, dtype):
    model = two_products(inputs, outputs, seed=seed, dtype=dtype)
    quantizer = MatMulNBitsQuantizer(
        ir.to_proto(model),
        bits=4,
        block_size=GROUP,
        is_symmetric=True,
        accuracy_level=4,
        op_types_to_quantize=("MatMul",),
    )
    quantizer.process()
    lookups = MatMulNBitsQuantizer(
        quantizer.model.model, bits=4, block_size=GROUP, is_symmetric=True, op_types_to_quantize=("Gather",)
    )
    lookups.process()
    found = rounded_to_4_bits(model)
    if dtype is np.float32:
        assert numbers(found) == numbers(lookups.model.model)
    else:  # where it rounds scales after the weights
        exact, mine, theirs = (computed(each, inputs, outputs, dtype) for each in (model, found, lookups.model.model))
        for true, one, other in zip(exact, mine, theirs, strict=True):
            assert np.abs(one - true).max() <= 1.5 * np.abs(other - true).max() + 0.05


@settings(max_examples=15, deadline=None)
@given(
    inputs=st.integers(1, 200),
    outputs=st.integers(2, 80),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-3, 1, 1e3]),
)
def test_8_bits_are_near_float32(inputs, outputs, seed, scale):
    model = two_products(inputs, outputs, seed=seed, scale=scale)
    exact, found = (computed(each, inputs, outputs) for each in (model, rounded_to_8_bits(DECODER, model)))
    for mine, true in zip(found[:2], exact[:2], strict=True):
        # An input is half of 1/255 of its range off, a weight half of 1/127 of its output's largest. Sums that are cut
        # off at 16 bits are off by as much as they are large.
        assert np.abs(mine - true).max() <= 0.1 * np.sqrt(inputs) * scale
    np.testing.assert_allclose(found[2], exact[2], atol=np.abs(exact[2]).max() / 127 / 2 + 1e-6)


def test_an_input_of_two_products_is_rounded_once():
    rounded = rounded_to_8_bits(DECODER, two_products(64, 8))
    kinds = [node.op_type for node in rounded.graph]
    assert kinds.count("DynamicQuantizeLinear") == 1 and kinds.count("MatMulInteger") == 2 and "MatMul" not in kinds


@pytest.mark.parametrize("rounded", [rounded_to_4_bits, lambda model: rounded_to_8_bits(DECODER, model)])
def test_the_model_that_is_rounded_stays_as_it_is(rounded):
    model = two_products(64, 8)
    before = ir.to_proto(model).SerializeToString()
    rounded(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_inputs_that_are_no_multiple_of_a_group():
    model = two_products(40, 8)
    exact, found = (computed(each, 40, 8) for each in (model, rounded_to_4_bits(model)))
    for mine, true in zip(found[:2], exact[:2], strict=True):
        assert np.abs(mine - true).max() <= 0.25 * np.abs(true).max()
