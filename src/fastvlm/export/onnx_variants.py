"""ONNX models with weights in 8 and 4 bits.

- ``q8``: products with 8-bit weights, one scale an output, and activations rounded while running; the embedding with a
  scale for each token. The encoder, with its convolutions, is rounded by ONNX Runtime's quantizer, without sign.
- ``q4``: products and embedding in 4 bits, symmetric, one scale for 32 inputs, in the numbers and the layout of ONNX
  Runtime's quantizer. Convolutions stay as they are, so an encoder gains little.
- ``q4f16``: the same, of the float16 graph.

One weight is in memory at a time, besides what was rounded. ONNX Runtime's quantizers hold the whole model.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fastvlm.backends.onnx import VISION
from fastvlm.export.graphs import quiet_export
from fastvlm.formats.rounding import quantize_int8

GROUP = 32  # inputs that share a scale in 4 bits
_MIDDLE, _MIDDLE_8 = 8, 128  # of 4 and 8 bits without sign
_ROWS = 4096  # outputs that are rounded at a time
_MICROSOFT = "com.microsoft"

Nearest = Callable[[Tensor, Tensor], Tensor]  # groups (out, groups, GROUP), scales (out, groups, 1) -> whole numbers


def rounded_to_8_bits(name: str, exported: Any) -> Any:
    """The onnx_ir model `exported` of session `name` with 8-bit weights; `exported` is not used up."""
    if name == VISION:
        return _rounded_by_onnxruntime(exported)
    copy = exported.clone()
    rounded_inputs: dict[int, Any] = {}
    for node in list(copy.graph):
        if _is_product(node):
            _product_in_8_bits(copy, node, rounded_inputs)
        elif _is_lookup(node):
            _lookup_in_8_bits(copy, node)
    return copy


def rounded_to_4_bits(exported: Any) -> Any:
    """The onnx_ir model `exported` with products and lookups in 4 bits; `exported` is not used up."""
    copy = exported.clone()
    for node in list(copy.graph):
        if _is_product(node):
            _product_in_4_bits(copy, node)
        elif _is_lookup(node):
            _lookup_in_4_bits(copy, node)
    copy.opset_imports[_MICROSOFT] = 1
    return copy


def _rounded_by_onnxruntime(exported: Any) -> Any:
    ort: Any = importlib.import_module("onnxruntime.quantization")
    ir: Any = importlib.import_module("onnx_ir")
    with tempfile.TemporaryDirectory() as scratch, quiet_export():
        before, after = Path(scratch, "before.onnx"), Path(scratch, "after.onnx")
        ir.save(exported, before)
        ort.quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["Conv", "MatMul"],
            weight_type=ort.QuantType.QUInt8,  # as its convolutions need
            extra_options={"MatMulConstBOnly": True},
        )
        return ir.load(after)


def _is_product(node: Any) -> bool:
    """True for a product with a constant matrix."""
    return node.op_type == "MatMul" and _is_matrix(node.inputs[1])


def _is_lookup(node: Any) -> bool:
    return node.op_type == "Gather" and _is_matrix(node.inputs[0])


def _is_matrix(value: Any) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == 2


def _product_in_8_bits(exported: Any, node: Any, rounded_inputs: dict[int, Any]) -> None:
    """Replace a product by one of integers; inputs of several products are rounded once."""
    x, weight = node.inputs
    values, scales = _int8_rows(_matrix(weight).t())
    nodes = []
    if id(x) not in rounded_inputs:
        rounded_inputs[id(x)] = _node("DynamicQuantizeLinear", [x], f"{x.name}.rounded", num_outputs=3)
        nodes.append(rounded_inputs[id(x)])
    x_values, x_scale, x_zero = rounded_inputs[id(x)].outputs
    name = node.outputs[0].name
    # Without sign: sums of pairs of signed products leave 16 bits on x86 CPUs without VNNI, where they are cut off.
    unsigned = (values.t().to(torch.int16) + _MIDDLE_8).to(torch.uint8)
    matrix = _constant(exported, f"{weight.name}.uint8", unsigned.contiguous().numpy())
    middle = _constant(exported, "middle_of_8_bits", np.array(_MIDDLE_8, dtype=np.uint8))
    scale = _constant(exported, f"{weight.name}.scales", scales.numpy())
    product = _node("MatMulInteger", [x_values, matrix, x_zero, middle], f"{name}.int32")
    as_float = _to_float(product.outputs[0], f"{name}.float")
    both = _node("Mul", [x_scale, scale], f"{name}.scales")
    result = _node("Mul", [as_float.outputs[0], both.outputs[0]], f"{name}.scaled")
    _replace(exported, node, [*nodes, product, as_float, both, result])


def _lookup_in_8_bits(exported: Any, node: Any) -> None:
    weight, ids = node.inputs
    values, scales = _int8_rows(_matrix(weight))
    matrix = _constant(exported, f"{weight.name}.int8", values.numpy())
    scale = _constant(exported, f"{weight.name}.scales", scales[:, None].numpy())
    rows, row_scales = (_node("Gather", [table, ids], f"{table.name}.rows") for table in (matrix, scale))
    as_float = _to_float(rows.outputs[0], f"{weight.name}.float")
    result = _node("Mul", [as_float.outputs[0], row_scales.outputs[0]], f"{weight.name}.scaled")
    _replace(exported, node, [rows, row_scales, as_float, result])


def _product_in_4_bits(exported: Any, node: Any) -> None:
    x, weight = node.inputs
    inputs, outputs = (int(size) for size in weight.const_value.shape)
    values, scales = _int4_rows(_matrix(weight).t(), _dtype(weight), _nearest_of_product)
    packed = _constant(exported, f"{weight.name}.int4", _packed_pairs(values).numpy())
    scale = _constant(exported, f"{weight.name}.scales", scales.numpy())
    attributes = {"K": inputs, "N": outputs, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
    result = _node(
        "MatMulNBits", [x, packed, scale], f"{node.outputs[0].name}.int4", domain=_MICROSOFT, attributes=attributes
    )
    _replace(exported, node, [result])


def _lookup_in_4_bits(exported: Any, node: Any) -> None:
    ir: Any = importlib.import_module("onnx_ir")
    weight, ids = node.inputs
    values, scales = _int4_rows(_matrix(weight), _dtype(weight), _nearest_of_lookup)
    signed = values.reshape(len(values), -1)[:, : weight.const_value.shape[1]].numpy()
    packed = _constant(exported, f"{weight.name}.int4", signed.astype(ir.DataType.INT4.numpy()))
    scale = _constant(exported, f"{weight.name}.scales", scales.numpy())
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": GROUP}
    result = _node(
        "GatherBlockQuantized", [packed, ids, scale], f"{weight.name}.rows", domain=_MICROSOFT, attributes=attributes
    )
    _replace(exported, node, [result])


def _int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values (out, in) int8 and scales (out,) float32 of `weight` (out, in)."""
    parts = [quantize_int8(rows) for rows in torch.split(weight, _ROWS)]
    return torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts])


def _int4_rows(weight: Tensor, dtype: torch.dtype, nearest: Nearest) -> tuple[Tensor, Tensor]:
    """Values (out, groups, GROUP) int8 from -8 to 7 and scales (out, groups) in `dtype` of `weight` (out, in).

    The number of largest magnitude in a group becomes -8, so a scale has the other sign than it.
    """
    parts = (_rounded_groups(rows.float(), dtype, nearest) for rows in torch.split(weight, _ROWS))
    values, scales = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(scales)


def _rounded_groups(weight: Tensor, dtype: torch.dtype, nearest: Nearest) -> tuple[Tensor, Tensor]:
    groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).reshape(len(weight), -1, GROUP)
    peaks = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (peaks / -_MIDDLE).to(dtype)
    # A group of zeros has the scale 0; any other divisor leaves it zero.
    values = nearest(groups, torch.where(scales == 0, torch.ones(()), scales.float()))
    return values.clamp_(-_MIDDLE, _MIDDLE - 1).to(torch.int8), scales[..., 0]


def _nearest_of_product(groups: Tensor, scales: Tensor) -> Tensor:
    """As ONNX Runtime rounds products: by the inverse, halves up."""
    return torch.floor(groups * (1 / scales) + (_MIDDLE + 0.5)) - _MIDDLE


def _nearest_of_lookup(groups: Tensor, scales: Tensor) -> Tensor:
    """As it rounds lookups: by division, halves to the even number."""
    return (groups / scales).round()


def _packed_pairs(values: Tensor) -> Tensor:
    """uint8 (out, groups, GROUP / 2) of `values` (out, groups, GROUP) from -8 to 7: the first of a pair is low."""
    unsigned = (values + _MIDDLE).to(torch.uint8)
    return unsigned[..., 0::2] | unsigned[..., 1::2] << 4


def _matrix(value: Any) -> Tensor:
    """The constant of `value`, read now."""
    return torch.from_numpy(np.array(value.const_value.numpy()))


def _dtype(value: Any) -> torch.dtype:
    return torch.float16 if value.const_value.dtype.name == "FLOAT16" else torch.float32


def _constant(exported: Any, name: str, array: NDArray[Any]) -> Any:
    """`array` as an initializer of the graph; the one of this name, if there is one."""
    ir: Any = importlib.import_module("onnx_ir")
    if name in exported.graph.initializers:
        return exported.graph.initializers[name]
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    exported.graph.register_initializer(value)
    return value


def _node(operator: str, inputs: list[Any], name: str, **settings: Any) -> Any:
    """A node whose outputs are called `name`, with a number if there are several."""
    ir: Any = importlib.import_module("onnx_ir")
    node = ir.node(operator, inputs, **settings)
    for index, output in enumerate(node.outputs):
        output.name = f"{name}.{index}" if len(node.outputs) > 1 else name
    return node


def _to_float(value: Any, name: str) -> Any:
    ir: Any = importlib.import_module("onnx_ir")
    return _node("Cast", [value], name, attributes={"to": ir.DataType.FLOAT})


def _replace(exported: Any, node: Any, nodes: list[Any]) -> None:
    """Put `nodes` in the place of `node`, the last one's output in the place of its output."""
    ir: Any = importlib.import_module("onnx_ir")
    unused = [value for value in node.inputs if value.const_value is not None]
    ir.convenience.replace_nodes_and_values(
        exported.graph, node, [node], nodes, list(node.outputs), list(nodes[-1].outputs)
    )
    for value in unused:
        if not value.uses():
            del exported.graph.initializers[value.name]
