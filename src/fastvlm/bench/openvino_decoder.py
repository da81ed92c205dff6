"""The decoder of a checkpoint as an OpenVINO model with its cache inside; its weights in 8 or 4 bits by nncf.

Inputs: `input_ids` (B, T), `position_ids` (B, T), `beam_idx` (B,) int32: which row of the cache each sequence goes on
from. Output: logits (B, 1, V). Made as optimum-intel makes its models: the cache's inputs and outputs become states.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastvlm.bench.peers_folder import add_runtimes_folder
from fastvlm.bench.plain_decoder import PlainDecoder
from fastvlm.config import Bits
from fastvlm.opening import open_checkpoint

_EXAMPLE = (2, 3, 4)  # sequences, tokens, tokens before them: 0 and 1 would be taken for constants
GROUP = 64  # of 4-bit weights: 896 is a multiple of it, not of nncf's 128


def convert(folder: str, file: Path, bits: Bits) -> None:
    """Write the decoder of the checkpoint in `folder` to `file` (.xml; the weights lie beside it in a .bin)."""
    add_runtimes_folder()
    ov: Any = importlib.import_module("openvino")
    if bits == 16:
        model = _stateful(ov, PlainDecoder(open_checkpoint(folder)).eval())
    else:
        plain = file.with_name(file.name.replace(f"-{bits}.", "-16."))
        if not plain.exists():
            convert(folder, plain, 16)
        model = _compressed(ov.Core().read_model(plain), bits)
    part = file.with_name(f"part.{file.name}")
    ov.save_model(model, part, compress_to_fp16=True)
    part.with_suffix(".bin").replace(file.with_suffix(".bin"))
    part.replace(file)


def _compressed(graph: Any, bits: Bits) -> Any:
    """`graph` with 8-bit weights, or 4-bit ones in groups of GROUP, embedding and head in 8."""
    nncf: Any = importlib.import_module("nncf")
    if bits == 8:
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=GROUP, ratio=1.0)


def _stateful(ov: Any, decoder: PlainDecoder) -> Any:
    model = _traced(ov, decoder)
    past = [f"past.{index}" for index in range(2 * decoder.config.num_hidden_layers)]
    _reorder_cache(ov, model, past)
    states: Any = importlib.import_module("openvino._offline_transformations")
    states.apply_make_stateful_transformation(model, {name: f"new.{name}" for name in past})
    _start_empty(model)
    return model


def _traced(ov: Any, decoder: PlainDecoder) -> Any:
    batch, length, before = _EXAMPLE
    past = [torch.zeros(batch, *cache.shape[1:2], before, cache.shape[3]) for cache in decoder.empty_cache(1)]
    ids, positions = torch.ones(batch, length, dtype=torch.long), torch.arange(length)[None].expand(batch, -1) + before
    cache_shape = ov.PartialShape([-1, past[0].shape[1], -1, past[0].shape[3]])
    shapes = [ov.PartialShape([-1, -1])] * 2 + [cache_shape] * len(past)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = ov.convert_model(decoder, example_input=(ids, positions, *past), input=shapes)
    names = ["input_ids", "position_ids", *(f"past.{index}" for index in range(len(past)))]
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, ["logits", *(f"new.{name}" for name in names[2:])], strict=True):
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


def _start_empty(graph: Any) -> None:
    """Give every state an empty start of as many rows as `input_ids` has."""
    ops: Any = importlib.import_module("openvino.opset13")
    shape = ops.shape_of(graph.input("input_ids"), output_type="i64")
    batch = ops.gather(shape, ops.constant(np.array([0])), ops.constant(np.int64(0)))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = (dim.min_length for dim in node.get_output_partial_shape(0))
            rest = [ops.constant(np.array([size], dtype=np.int64)) for size in (heads, 0, width)]
            zero = ops.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([ops.broadcast(zero, ops.concat([batch, *rest], axis=0))])
    graph.validate_nodes_and_infer_types()
