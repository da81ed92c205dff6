"""Graphs as one ExecuTorch program: exported, rounded, and handed over to XNNPACK.

executorch and torchao warn and log while they are imported and while they lower: about torch's deprecated functions,
and about their CUDA libraries, which a machine without CUDA cannot load. None of it concerns a user, so it is hidden.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.export.executorch_graphs import plain_attention
from fastvlm.export.graphs import quiet_export

GROUP = 32  # of 4-bit weights, the smallest that XNNPACK takes
_INT4: torch.dtype = torch.__dict__["int4"]  # its stubs do not know it


def rounded(graph: nn.Module, bits: int) -> nn.Module:
    """`graph` itself with the weights of its linear layers in 8 or 4 bits; activations are rounded while running.

    4-bit weights have a scale for each GROUP inputs; the layer `output`, which is the head, stays in 8 bits.
    """
    with quiet_export():
        ao: Any = importlib.import_module("torchao.quantization")
        eight = ao.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int8, weight_granularity=ao.granularity.PerAxis(0)
        )
        four = ao.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=_INT4, weight_granularity=ao.granularity.PerGroup(GROUP)
        )

        def is_four(module: nn.Module, name: str) -> bool:
            return bits == 4 and isinstance(module, nn.Linear) and name != "output" and not module.in_features % GROUP

        ao.quantize_(graph, four, filter_fn=is_four)
        ao.quantize_(
            graph, eight, filter_fn=lambda module, name: isinstance(module, nn.Linear) and not is_four(module, name)
        )
    return graph


@torch.no_grad()
def exported(graph: nn.Module, inputs: tuple[Tensor, ...], dynamic: tuple[dict[int, Any], ...]) -> Any:
    """`graph` as a torch.export program.

    Args:
        graph: in evaluation.
        inputs: examples.
        dynamic: of each input, axis -> ``torch.export.Dim``.
    """
    with quiet_export():
        program = torch.export.export(graph.eval(), inputs, dynamic_shapes=dynamic)
        attention = torch.ops.aten.scaled_dot_product_attention.default
        if any(node.target is attention for node in program.graph.nodes):
            program = program.run_decompositions({attention: plain_attention})
        return program


def save_program(programs: Mapping[str, Any], constants: Mapping[str, Any], file: Path) -> dict[str, tuple[int, int]]:
    """Lower torch.export programs to XNNPACK and write them to `file`; method -> (calls of XNNPACK, other operations).

    Args:
        programs: method -> program.
        constants: method -> what it returns.
        file: of ending ``.pte``.
    """
    with quiet_export():
        exir: Any = importlib.import_module("executorch.exir")
        partition: Any = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        edge = exir.to_edge_transform_and_lower(
            dict(programs),
            transform_passes=[_inferred_lengths()],
            partitioner=[partition.XnnpackPartitioner()],
            constant_methods=dict(constants),
        )
        counts = {name: _counts(edge.exported_program(name).graph) for name in programs}
        edge.to_executorch().save(str(file))
    return counts


def _inferred_lengths() -> Any:
    """A pass that writes the one varying size of a reshape as -1, without which XNNPACK does not take it."""
    base: Any = importlib.import_module("executorch.exir.pass_base")
    ops: Any = importlib.import_module("executorch.exir.dialects._ops").ops

    class InferredLengths(base.ExportPass):  # type: ignore[misc]
        def call(self, graph_module: Any) -> Any:
            for node in graph_module.graph.nodes:
                if node.op == "call_function" and node.target == ops.edge.aten.view_copy.default:
                    shape = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
                    if shape.count(-1) == 1:
                        node.args = (node.args[0], shape)
            graph_module.graph.eliminate_dead_code()
            graph_module.recompile()
            return base.PassResult(graph_module, True)

    return InferredLengths()


def _counts(graph: Any) -> tuple[int, int]:
    calls = [node for node in graph.nodes if node.op == "call_function"]
    delegated = sum("executorch_call_delegate" in str(node.target) for node in calls)
    others = sum("getitem" not in str(node.target) for node in calls) - delegated
    return delegated, others
