"""OpenVINO models of the graphs: a decoder with its cache inside, weights in 8 or 4 bits by nncf, files.

Made as optimum-intel makes its models: the cache's inputs and outputs become states, and the input `beam_idx` (B,)
int32 says which row of the cache each sequence goes on from.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvlm.export.decoder import PlainDecoder
from fastvlm.export.graphs import quiet_export

EXAMPLE = (2, 3, 4)  # sequences, tokens, tokens before them: 0 and 1 would be taken for constants
GROUP = 64  # of 4-bit weights: 896 is a multiple of it, not of nncf's 128


def compressed(graph: Any, bits: int) -> Any:
    """`graph` with 8-bit weights, or 4-bit ones in groups of GROUP, embedding and head in 8."""
    with _quiet_nncf() as nncf:
        if bits == 8:
            return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=GROUP, ratio=1.0)


def quantized(graph: Any, images: Sequence[NDArray[np.float32]]) -> Any:
    """An encoder `graph` that computes with weights and activations of 8 bits, whose ranges come from `images`."""
    with _quiet_nncf() as nncf:
        # nncf's default preset; with the other one (MIXED) the error on the mini is half as large again.
        return nncf.quantize(graph, nncf.Dataset(images), subset_size=len(images))


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """The module nncf, which meanwhile draws no tables and bars on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        nncf: Any = importlib.import_module("nncf")
        nncf.set_log_level(logging.ERROR)
        yield nncf


def save(ov: Any, graph: Any, file: Path, *, is_half: bool) -> None:
    """Write `graph` to `file` (.xml) and its weights to the .bin beside it, in float16 if `is_half`."""
    part = file.with_name(f"part.{file.name}")
    ov.save_model(graph, part, compress_to_fp16=is_half)
    part.with_suffix(".bin").replace(file.with_suffix(".bin"))
    part.replace(file)


def stateful_decoder(ov: Any, decoder: PlainDecoder, inputs: dict[str, Tensor], shapes: Sequence[Sequence[int]]) -> Any:
    """`decoder` with its cache as states.

    Args:
        ov: the module openvino.
        decoder: called with the values of `inputs`, then the keys and values of each layer.
        inputs: name -> example of EXAMPLE sequences, tokens and tokens before them. The first has a row a sequence.
        shapes: of each input, -1 for sizes that vary.
    """
    model = _converted(ov, decoder, inputs, shapes)
    past = [f"past.{index}" for index in range(2 * decoder.config.num_hidden_layers)]
    _reorder_cache(ov, model, past)
    states: Any = importlib.import_module("openvino._offline_transformations")
    states.apply_make_stateful_transformation(model, {name: f"new.{name}" for name in past})
    _start_empty(model, next(iter(inputs)))
    return model


def _converted(ov: Any, decoder: PlainDecoder, inputs: dict[str, Tensor], shapes: Sequence[Sequence[int]]) -> Any:
    batch, _, before = EXAMPLE
    past = decoder.empty_cache(batch, before)
    cache_shape = ov.PartialShape([-1, past[0].shape[1], -1, past[0].shape[3]])
    all_shapes = [ov.PartialShape(list(shape)) for shape in shapes] + [cache_shape] * len(past)
    with quiet_export(), torch.no_grad():
        model = ov.convert_model(decoder, example_input=(*inputs.values(), *past), input=all_shapes)
    names = [*inputs, *(f"past.{index}" for index in range(len(past)))]
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, ["logits", *(f"new.{name}" for name in names[len(inputs) :])], strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    return model


def _reorder_cache(ov: Any, graph: Any, past: list[str]) -> None:
    """Add the input `beam_idx`, by which the rows of the cache are picked before use."""
    ops: Any = importlib.import_module("openvino.opset13")
    beam = ops.parameter(name="beam_idx", dtype=ov.Type.i32, shape=ov.PartialShape([-1]))
    beam.output(0).get_tensor().set_names({"beam_idx"})
    graph.add_parameters([beam])
    for name in past:
        port = graph.input(name)
        consumers = list(port.get_target_inputs())
        picked = ops.gather(port, beam, ops.constant(np.int64(0)))
        for consumer in consumers:
            consumer.replace_source_output(picked.output(0))
    graph.validate_nodes_and_infer_types()


def _start_empty(graph: Any, batched: str) -> None:
    """Give every state an empty start of as many rows as the input `batched` has."""
    ops: Any = importlib.import_module("openvino.opset13")
    shape = ops.shape_of(graph.input(batched), output_type="i64")
    batch = ops.gather(shape, ops.constant(np.array([0])), ops.constant(np.int64(0)))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = (dim.min_length for dim in node.get_output_partial_shape(0))
            rest = [ops.constant(np.array([size], dtype=np.int64)) for size in (heads, 0, width)]
            zero = ops.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([ops.broadcast(zero, ops.concat([batch, *rest], axis=0))])
    graph.validate_nodes_and_infer_types()
