"""Weights of an ONNX graph that are read from their checkpoint only when they are written.

A graph is exported over an outline of the checkpoint: tensors of the right shapes that take no memory. Then each weight
becomes a function that reads its tensor, so that a model of any size is written with one tensor in memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.formats.checkpoint import Checkpoint, LazyTensors

Reader = Callable[[], Tensor]


class Outline:
    """A checkpoint's tensors as zeros of the same shapes that share one number each.

    Args:
        source: its tensors are read when a reader is called.

    Attributes:
        checkpoint: `source` with the zeros, float32, in place of its tensors.
    """

    def __init__(self, source: Checkpoint) -> None:
        self._tensors = source.tensors
        self._names: dict[int, str] = {}  # address of the number -> name
        self._numbers: list[Tensor] = []  # kept, because an address is only theirs while they live
        self.checkpoint = replace(source, tensors=LazyTensors(frozenset(source.tensors), self._zeros))

    def readers(self, graph: nn.Module, dtype: torch.dtype) -> dict[str, Reader]:
        """Parameter of `graph`, which was made of the outline -> function that returns its weight in `dtype`.

        The parameters themselves become zeros in `dtype`.
        """
        readers: dict[str, Reader] = {}
        for name, parameter in graph.named_parameters():
            readers[name] = self._reader(self._names[parameter.data_ptr()], dtype)
            parameter.data = torch.zeros((), dtype=dtype).expand(parameter.shape)
        return readers

    def _zeros(self, name: str) -> Tensor:
        number = torch.zeros(())
        self._numbers.append(number)
        self._names[number.data_ptr()] = name
        return number.expand(self._tensors[name].shape)

    def _reader(self, name: str, dtype: torch.dtype) -> Reader:
        return lambda: self._tensors[name].to(dtype)


def read_when_written(exported: Any, readers: Mapping[str, Reader]) -> None:
    """Give the initializers of an onnx_ir model that `readers` names their values, each transposed if the graph does.

    Args:
        exported: a graph that was not optimized, so that its initializers have the parameters' names.
        readers: name -> function that returns the value.
    """
    for name, read in readers.items():
        value = exported.graph.initializers[name]
        value.const_value = _lazy(name, read, value.const_value)
        for node in [user for user, _ in value.uses() if user.op_type == "Transpose"]:
            _fold_transpose(exported, node, f"{name}.transposed", read)
        if not value.uses():
            del exported.graph.initializers[name]


def _fold_transpose(exported: Any, node: Any, name: str, read: Reader) -> None:
    """Replace a transposed matrix by an initializer of its own."""
    ir: Any = importlib.import_module("onnx_ir")
    before, after = node.inputs[0].const_value, node.outputs[0]
    shape = ir.Shape(tuple(reversed(before.shape.numpy())))
    lazy = _lazy(name, lambda: read().t(), before, shape)
    value = ir.Value(name=name, type=ir.TensorType(before.dtype), shape=shape, const_value=lazy)
    exported.graph.register_initializer(value)
    after.replace_all_uses_with(value)
    exported.graph.remove(node, safe=True)


def _lazy(name: str, read: Reader, like: Any, shape: Any = None) -> Any:
    ir: Any = importlib.import_module("onnx_ir")
    return ir.LazyTensor(
        lambda: ir.tensor(read().contiguous().numpy(), name=name),
        dtype=like.dtype,
        shape=like.shape if shape is None else shape,
        name=name,
    )
