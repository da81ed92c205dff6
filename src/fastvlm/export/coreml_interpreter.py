"""Computes Core ML packages with PyTorch, operation by operation, where Core ML itself is missing.

Core ML runs on Apple's systems alone. What a package says can be computed anywhere: it is a list of operations in MIL
(model intermediate language) with a shape and dtype for each value. float16 values are computed in float32 and rounded
after each operation, so that an overflow becomes infinity as it does there; how a device rounds inside is not modeled.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvlm.errors import ExportError

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int32": torch.int64, "bool": torch.bool}
_GELU = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}


class CoreMlPackage:
    """A ``.mlpackage`` on disk, computed by PyTorch. Its states are zeros at first and are kept between calls.

    Args:
        package: the folder ``NAME.mlpackage``, an ML program of coremltools with one function.
    """

    def __init__(self, package: Path) -> None:
        models: Any = importlib.import_module("coremltools.models")
        milproto: Any = importlib.import_module("coremltools.converters.mil.frontend.milproto.load")
        spec = models.utils.load_spec(str(package))
        weights = package / "Data" / "com.apple.CoreML" / "weights"
        program = milproto.load(spec, spec.specificationVersion, file_weights_dir=str(weights))
        self.spec = spec
        self._main = program.functions["main"]
        self._states: dict[str, Tensor] = {}
        self._constants: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Fill the states with zeros."""
        for state in self.spec.description.state:
            shape = tuple(state.type.stateType.arrayType.shape)
            self._states[state.name] = torch.zeros(shape)

    @torch.inference_mode()
    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by name, floats as float32. An image input is (1, 3, H, W) with values of 0 to 255.

        Raises:
            ExportError: the program has an operation that is not known here.
        """
        values: dict[str, Any] = dict(inputs)
        for op in self._main.operations:
            if op.op_type == "const":
                continue
            arguments = {name: self._value(given, values) for name, given in op.inputs.items() if given is not None}
            found = self._compute(op, arguments)
            for variable, result in zip(op.outputs, found if isinstance(found, tuple) else (found,), strict=True):
                values[variable.name] = _rounded(result, variable)
        return {variable.name: values[variable.name] for variable in self._main.outputs}

    def _compute(self, op: Any, arguments: dict[str, Any]) -> Any:
        if op.op_type == "read_state":
            return self._states[op.inputs["input"].name]
        if op.op_type == "coreml_update_state":
            self._states[op.inputs["state"].name] = arguments["value"]
            return arguments["value"]
        if op.op_type not in _OPERATIONS:
            raise ExportError(f"The package has the operation {op.op_type}, which cannot be computed here.")
        return _OPERATIONS[op.op_type](**arguments)

    def _value(self, given: Any, values: Mapping[str, Any]) -> Any:
        """The value of an argument: a tensor, a Python constant, or a list of them."""
        if isinstance(given, (list, tuple)):
            return [self._value(part, values) for part in given]
        if given.name in values:
            return values[given.name]
        if given.name in self._states:
            return self._states[given.name]
        if given.name not in self._constants:
            self._constants[given.name] = _constant(given.val)
        return _widened(self._constants[given.name])


def _constant(value: Any) -> Any:
    """An array as a tensor, without axes as a number; whatever else as it is."""
    if getattr(value, "shape", ()):
        return torch.from_numpy(value.copy() if value.dtype.kind != "u" else value.astype("int64"))
    return value.item() if hasattr(value, "item") else value


def _widened(value: Any) -> Any:
    """Floats as float32, integers as int64."""
    if isinstance(value, Tensor) and value.dtype != torch.bool:
        return value.float() if value.is_floating_point() else value.long()
    return value


def _rounded(result: Any, variable: Any) -> Any:
    if isinstance(result, Tensor) and result.is_floating_point():
        is_half = variable.dtype.__name__ == "fp16"
        return result.half().float() if is_half else result.float()
    return result


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Any = 1,
    pad_type: str = "valid",
    pad: Any = (),
    dilations: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Two spatial axes; `pad` is top, bottom, left, right."""
    if pad_type not in ("valid", "custom"):
        raise ExportError(f"The package has a convolution with pad_type {pad_type}, which cannot be computed here.")
    top, bottom, left, right = _ints(pad) if pad_type == "custom" else (0, 0, 0, 0)
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(x, weight, bias, _ints(strides), (top, left), _ints(dilations), groups)


def _layer_norm(
    x: Tensor, axes: Any, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    return F.layer_norm(x, [x.shape[axis] for axis in _ints(axes)], gamma, beta, epsilon)


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _reshape(x: Tensor, shape: Any) -> Tensor:
    """A 0 in `shape` keeps the size of the axis."""
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(_ints(shape))])


def _split(x: Tensor, axis: int, split_sizes: Any = None, num_splits: int = 1) -> tuple[Tensor, ...]:
    sizes = [x.shape[axis] // num_splits] * num_splits if split_sizes is None else _ints(split_sizes)
    return torch.split_with_sizes(x, sizes, axis)


def _expand_dims(x: Any, axes: Any) -> Tensor:
    x = torch.as_tensor(x)
    for axis in sorted(_ints(axes)):
        x = x.unsqueeze(axis)
    return cast("Tensor", x)


def _gather(x: Tensor, indices: Any, axis: int = 0, **_: Any) -> Tensor:
    """`batch_dims` is 0."""
    found = torch.as_tensor(indices)
    picked = x.index_select(axis, found.reshape(-1).long())
    return picked.reshape((*x.shape[:axis], *found.shape, *x.shape[axis + 1 :]))


def _concat(values: list[Any], axis: int, **_: Any) -> Tensor:
    """Not interleaved."""
    return torch.cat([torch.as_tensor(value).reshape(-1) if axis == 0 else value for value in values], dim=axis)


def _slices(begin: Any, end: Any, masks: dict[str, Any]) -> tuple[slice, ...]:
    """A mask that is True at an axis leaves that end open."""
    starts, stops = (
        [None if is_open else value for is_open, value in zip(_ints(masks[name]), _ints(limits), strict=True)]
        if masks.get(name) is not None
        else _ints(limits)
        for name, limits in (("begin_mask", begin), ("end_mask", end))
    )
    return tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))


def _slice_by_index(x: Tensor, begin: Any, end: Any, **masks: Any) -> Tensor:
    return x[_slices(begin, end, masks)]


def _slice_update(x: Tensor, update: Tensor, begin: Any, end: Any, **masks: Any) -> Tensor:
    x = x.clone()
    x[_slices(begin, end, masks)] = update
    return x


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


def _cast(x: Any, dtype: str) -> Tensor:
    """Integers of every width are int64 here."""
    return torch.as_tensor(x).to(_DTYPES.get(dtype, torch.int64))


def _ints(values: Any) -> list[int]:
    return [
        int(value) for value in (values if isinstance(values, (list, tuple)) else torch.as_tensor(values).reshape(-1))
    ]


# MIL operation -> function of its arguments by name.
# https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "pow": lambda x, y: x**y,
    "greater_equal": lambda x, y: x >= y,
    "select": lambda cond, a, b: torch.where(torch.as_tensor(cond), a, b),
    "rsqrt": lambda x, epsilon: torch.rsqrt(x + epsilon),
    "cos": lambda x: x.cos(),
    "sin": lambda x: x.sin(),
    "relu": lambda x: x.relu(),
    "sigmoid": lambda x: x.sigmoid(),
    "silu": lambda x: x * x.sigmoid(),
    "gelu": lambda x, mode="EXACT": F.gelu(x, approximate=_GELU[mode]),
    "softmax": lambda x, axis: x.softmax(axis),
    "conv": _conv,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": _matmul,
    "layer_norm": _layer_norm,
    "scaled_dot_product_attention": _attention,
    "reduce_mean": lambda x, axes, keep_dims=False: x.mean(_ints(axes), keepdim=keep_dims),
    "transpose": lambda x, perm: x.permute(_ints(perm)),
    "reshape": _reshape,
    "split": _split,
    "squeeze": lambda x, axes: x.squeeze(_ints(axes)),
    "expand_dims": _expand_dims,
    "tile": lambda x, reps: x.repeat(_ints(reps)),
    "concat": _concat,
    "gather": _gather,
    "slice_by_index": _slice_by_index,
    "slice_update": _slice_update,
    "shape": lambda x: torch.tensor(x.shape),
    "range_1d": lambda start, end, step: torch.arange(int(start), int(end), int(step)),
    "cast": _cast,
}
