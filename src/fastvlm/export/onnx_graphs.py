"""The three graphs as ONNX models, by torch's exporter, and their files.

Names of inputs, outputs and axes are those that transformers.js expects. I images, N visual tokens an image, B
sequences, T tokens, P tokens before them in the cache, D decoder width, V vocabulary, K key/value heads of width E.

- ``vision_encoder``: `pixel_values` (I, 3, H, W) -> `image_features` (I, N, D)
- ``embed_tokens``: `input_ids` (B, T) int64 -> `inputs_embeds` (B, T, D)
- ``decoder_model_merged``: `inputs_embeds` (B, T, D), `attention_mask` (B, P + T) int64, `position_ids` (B, T) int64,
  `past_key_values.{i}.key` and `.value` (B, K, P, E), `num_logits_to_keep` int64 -> `logits` (B, T or n, V),
  `present.{i}.key` and `.value` (B, K, P + T, E)

Everything is float32 but the cache of a float16 decoder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.backends.onnx import DECODER, EMBED, VISION
from fastvlm.export.decoder import EmbeddingsDecoder, grouped_attention
from fastvlm.export.graphs import EmbeddingGraph, VisionGraph, halved, quiet_export
from fastvlm.export.onnx_weights import Outline, Reader, read_when_written
from fastvlm.export.packages import versions_of
from fastvlm.export.source import ExportSource

OPSET = 18
LARGEST_FILE_BYTES = 1_900_000_000  # of weights in one file: protobuf and browsers end at 2 GiB
_FEWEST_BYTES = (
    1024  # of a tensor in a data file, as elsewhere: shapes must stay in the graph, where they are looked up
)
_EXAMPLE = (2, 3, 4)  # sequences, tokens, tokens before them: 0 and 1 would be taken for constants
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def need_onnx() -> dict[str, str]:
    """Versions of the packages that write and check ONNX files.

    Raises:
        MissingExtraError: one is not installed.
    """
    return versions_of(_PACKAGES, "onnx", "Exporting to ONNX")


def onnx_graph(name: str, source: ExportSource, *, is_half: bool) -> Any:
    """The graph of session `name` as an onnx_ir model whose weights are torch's, in float32 or float16."""
    make = {VISION: _vision, EMBED: _embeddings, DECODER: _decoder}[name]
    return make(source, is_half)


def _vision(source: ExportSource, is_half: bool) -> Any:
    graph: nn.Module = VisionGraph(source.checkpoint)
    pixels = torch.zeros(2, 3, source.side_px, source.side_px)
    dims = {"pixel_values": {0: torch.export.Dim("num_images")}}
    return _exported(halved(graph) if is_half else graph, (pixels,), ["pixel_values"], ["image_features"], dims)


def _embeddings(source: ExportSource, is_half: bool) -> Any:
    outline = Outline(source.checkpoint)
    graph = EmbeddingGraph(outline.checkpoint)
    readers = outline.readers(graph, torch.float16 if is_half else torch.float32)
    ids = torch.zeros(_EXAMPLE[:2], dtype=torch.long)
    dims = {"input_ids": {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}}
    return _exported(graph, (ids,), ["input_ids"], ["inputs_embeds"], dims, readers)


def _decoder(source: ExportSource, is_half: bool) -> Any:
    outline = Outline(source.checkpoint)
    graph = EmbeddingsDecoder(outline.checkpoint, grouped_attention)
    readers = outline.readers(graph, torch.float16 if is_half else torch.float32)
    batch, length, before = _EXAMPLE
    past = graph.empty_cache(batch, before)
    inputs = (
        torch.zeros(batch, length, source.width),
        torch.ones(batch, before + length, dtype=torch.long),
        torch.zeros(batch, length, dtype=torch.long),
        *past,
    )
    dim = torch.export.Dim
    batch_size, tokens, cached = dim("batch_size"), dim("sequence_length"), dim("past_sequence_length")
    dims = {
        "inputs_embeds": {0: batch_size, 1: tokens},
        "attention_mask": {0: batch_size, 1: dim.DYNAMIC},  # P + T; a third name would contradict it
        "position_ids": {0: batch_size, 1: tokens},
        "past": tuple({0: batch_size, 2: cached} for _ in past),
    }
    keys = [f"{index}.{kind}" for index in range(len(past) // 2) for kind in ("key", "value")]
    names = ["inputs_embeds", "attention_mask", "position_ids", *(f"past_key_values.{key}" for key in keys)]
    model = _exported(graph, inputs, names, ["logits", *(f"present.{key}" for key in keys)], dims, readers)
    keep_last_logits(model)
    return model


def _exported(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    outputs: Sequence[str],
    dims: Mapping[str, Any],
    readers: Mapping[str, Reader] = MappingProxyType({}),
) -> Any:
    """`graph` as an onnx_ir model; parameters that `readers` names are read when they are written."""
    with quiet_export(), torch.no_grad():
        program: Any = torch.onnx.export(
            graph.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_shapes=dict(dims),
            verbose=False,
            optimize=False,  # it would transpose weights that are not there yet
        )
        read_when_written(program.model, readers)
        program.optimize()
    return program.model


def keep_last_logits(exported: Any) -> None:
    """Give a decoder the input `num_logits_to_keep`: logits of that many last tokens, of all for 0.

    torch.export cannot slice by an input's value, so the nodes are added to the finished graph, before the head.
    """
    ir: Any = importlib.import_module("onnx_ir")
    head = exported.graph.outputs[0].producer()
    while head.op_type not in ("MatMul", "Gemm"):
        head = head.inputs[0].producer()
    count = ir.Value(name="num_logits_to_keep", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    exported.graph.inputs.append(count)

    def constant(name: str, numbers: list[int]) -> Any:
        tensor = ir.tensor(numbers, dtype=ir.DataType.INT64, name=name)
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]), const_value=tensor)
        exported.graph.register_initializer(value)
        return value

    hidden = head.inputs[0]
    negative = ir.node("Neg", [count])
    start = ir.node("Reshape", [negative.outputs[0], constant("one_number", [1])])
    ends, axes = constant("to_the_end", [2**63 - 1]), constant("axis_of_tokens", [1])
    last = ir.node("Slice", [hidden, start.outputs[0], ends, axes])
    for node, name in ((negative, "kept_start"), (start, "kept_starts"), (last, "kept_hidden")):
        node.outputs[0].name = name
    last.outputs[0].type = hidden.type
    exported.graph.insert_before(head, [negative, start, last])
    head.replace_input_with(0, last.outputs[0])


def save_onnx(exported: Any, folder: Path, file_name: str) -> int:
    """Write `exported` to `folder`; weights over LARGEST_FILE_BYTES lie in ``FILE_data``, ``FILE_data_1``, ...

    Returns:
        The number of these files, 0 if the weights are inside.
    """
    ir: Any = importlib.import_module("onnx_ir")
    values = [value for value in exported.graph.initializers.values() if value.const_value.nbytes >= _FEWEST_BYTES]
    sizes = [value.const_value.nbytes for value in values]
    if sum(sizes) <= LARGEST_FILE_BYTES:
        ir.save(exported, folder / file_name)
        return 0
    pieces = _pieces(sizes)
    for number, piece in enumerate(pieces):
        name = f"{file_name}_data" + (f"_{number}" if number else "")
        tensors = [values[index].const_value for index in piece]
        moved = ir.external_data.convert_tensors_to_external(tensors, folder, name)
        for index, tensor in zip(piece, moved, strict=True):
            values[index].const_value = tensor
    ir.save(exported, folder / file_name)
    return len(pieces)


def _pieces(sizes: Sequence[int]) -> list[list[int]]:
    """Indices of tensors of these `sizes` in bytes, grouped in order so that few files hold them."""
    pieces: list[list[int]] = [[]]
    filled = 0
    for index, size in enumerate(sizes):
        if pieces[-1] and filled + size > LARGEST_FILE_BYTES:
            pieces.append([])
            filled = 0
        pieces[-1].append(index)
        filled += size
    return pieces
