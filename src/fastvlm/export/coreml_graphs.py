"""Core ML packages of the graphs, by coremltools: encoders, embedding, a decoder with its cache as states.

T tokens of one sequence, S of them with those before, C the most, K key/value heads of width E, D decoder width.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.errors import ExportError
from fastvlm.export.decoder import PlainDecoder
from fastvlm.export.graphs import EmbeddingGraph, VisionGraph, quiet_export, traced
from fastvlm.export.source import ExportSource

MOST_TOKENS = 4096  # of a decoder's cache, which has a fixed size
# Computed in float32 in float16 packages too, with what feeds them: squares of the encoder's and the decoder's hidden
# states exceed float16, and rotary angles of late positions need more digits than it has.
_EXACT = frozenset({"cos", "sin", "layer_norm", "pow", "reduce_mean", "rsqrt"})
_HEAVY = frozenset({"conv", "linear", "matmul"})  # always float16 there: the Neural Engine has nothing else
_EXAMPLE = (3, 5)  # tokens, and tokens with those before: 0 and 1 would be taken for constants


class EncoderGraph(nn.Module):
    """Pixels (1, 3, H, W) -> features (1, N, C) of the encoder alone; the projector is somewhere else."""

    def __init__(self, vision: VisionGraph) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.vision.encoded(images)


class StatefulDecoder(PlainDecoder):
    """The decoder from embeddings to the logits of the last position. It writes into its cache in place.

    Args:
        source: the weights.
        capacity: tokens of the cache, C.
    """

    def __init__(self, source: ExportSource, capacity: int) -> None:
        text = source.checkpoint.config.text_config
        heads, groups = text.num_attention_heads, text.num_attention_heads // text.num_key_value_heads

        def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
            # Sizes are numbers of the configuration: coremltools 9 cannot convert a quotient of a tensor's sizes.
            keys, values = (
                x[:, :, None].repeat(1, 1, groups, 1, 1).reshape(1, heads, -1, text.head_dim) for x in (keys, values)
            )
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

        super().__init__(source.checkpoint, attention)
        self.states: dict[str, Tensor] = {}
        for index, zeros in enumerate(self.empty_cache(1, capacity)):
            name = f"{('keys', 'values')[index % 2]}_{index // 2}"
            self.register_buffer(name, zeros)
            self.states[name] = zeros

    def forward(self, inputs_embeds: Tensor, mask: Tensor) -> Tensor:
        """Logits (1, 1, V) of the last position.

        Args:
            inputs_embeds: (1, T, D).
            mask: (1, 1, T, S), added to the scores: 0 where a token attends, a large negative number elsewhere. The
                tokens are those from S - T on.
        """
        end = mask.shape[3]
        start = end - inputs_embeds.shape[1]

        def written(past: Tensor, new: Tensor) -> Tensor:
            past[:, :, start:end] = new
            return past[:, :, :end]

        positions = torch.arange(start, end)[None]
        x, _ = self.hidden(inputs_embeds, positions, mask, list(self.buffers_of_cache()), written)
        return self.logits(x[:, -1:])

    def buffers_of_cache(self) -> Iterator[Tensor]:
        """Keys and values of each layer in turn."""
        return (self.get_buffer(name) for name in self.states)


def save_vision(source: ExportSource, graph: VisionGraph, package: Path, *, is_half: bool) -> None:
    """Write the encoder with its projector: an RGB image of the export's size -> `image_features` (1, N, D)."""
    ct = _coremltools()
    shape = (1, 3, source.side_px, source.side_px)
    image = ct.ImageType(name="image", shape=shape, scale=1 / 255, color_layout=ct.colorlayout.RGB)
    outputs = [ct.TensorType(name="image_features", dtype=_dtype(is_half=is_half))]
    _save(graph, [torch.zeros(shape)], package, is_half=is_half, target="iOS17", inputs=[image], outputs=outputs)


def save_encoder(source: ExportSource, graph: VisionGraph, package: Path) -> None:
    """Write the encoder alone, in float32: `images` (1, 3, H, W) -> `image_features` (1, N, C).

    Names, shapes and dtypes are those of Apple's app.
    https://github.com/apple/ml-fastvlm: model_export/export_vision_encoder.py, app/FastVLM/FastVLM.swift
    """
    ct = _coremltools()
    shape = (1, 3, source.side_px, source.side_px)
    inputs = [ct.TensorType(name="images", shape=shape, dtype=np.float32)]
    outputs = [ct.TensorType(name="image_features", dtype=np.float32)]
    example = [torch.zeros(shape)]
    _save(EncoderGraph(graph), example, package, is_half=False, target="iOS16", inputs=inputs, outputs=outputs)


def save_embedding(source: ExportSource, package: Path, *, is_half: bool) -> None:
    """Write the embedding table: `input_ids` (1, T) int32 -> `inputs_embeds` (1, T, D)."""
    ct = _coremltools()
    capacity = capacity_of(source)
    inputs = [ct.TensorType(name="input_ids", shape=(1, ct.RangeDim(1, capacity, 1)), dtype=np.int32)]
    outputs = [ct.TensorType(name="inputs_embeds", dtype=_dtype(is_half=is_half))]
    example = [torch.zeros(1, _EXAMPLE[0], dtype=torch.int32)]
    graph = EmbeddingGraph(source.checkpoint)
    _save(graph, example, package, is_half=is_half, target="iOS17", inputs=inputs, outputs=outputs)


def save_decoder(source: ExportSource, package: Path, *, is_half: bool) -> None:
    """Write the decoder: `inputs_embeds` (1, T, D), `mask` (1, 1, T, S) -> `logits` (1, 1, V), and its states.

    States are float16, which is the only dtype that Core ML has for them.
    """
    ct = _coremltools()
    decoder = StatefulDecoder(source, capacity_of(source))
    tokens, all_tokens = (ct.RangeDim(1, capacity_of(source), default) for default in _EXAMPLE)
    dtype = _dtype(is_half=is_half)
    inputs = [
        ct.TensorType(name="inputs_embeds", shape=(1, tokens, source.width), dtype=dtype),
        ct.TensorType(name="mask", shape=(1, 1, tokens, all_tokens), dtype=dtype),
    ]
    states = [
        ct.StateType(wrapped_type=ct.TensorType(shape=tuple(zeros.shape), dtype=np.float16), name=name)
        for name, zeros in decoder.states.items()
    ]
    length, end = _EXAMPLE
    example = [torch.zeros(1, length, source.width), torch.zeros(1, 1, length, end)]
    outputs = [ct.TensorType(name="logits", dtype=dtype)]
    _save(decoder, example, package, is_half=is_half, target="iOS18", inputs=inputs, outputs=outputs, states=states)


def capacity_of(source: ExportSource) -> int:
    """Tokens of the decoder's cache, C."""
    return min(MOST_TOKENS, source.checkpoint.config.text_config.max_position_embeddings)


def _save(
    graph: nn.Module, example: Sequence[Tensor], package: Path, *, is_half: bool, target: str, **ports: Any
) -> None:
    """Trace `graph` for `example`, convert it, and write `package`.

    Args:
        graph: in float32.
        example: its arguments.
        package: NAME.mlpackage, which does not exist yet.
        is_half: True for float16, but for what must be float32.
        target: oldest system, such as "iOS17".
        ports: `inputs`, `outputs` and `states` for coremltools.

    Raises:
        ExportError: coremltools cannot convert the graph.
    """
    ct = _coremltools()
    transform: Any = ct.transform
    precision = transform.FP16ComputePrecision(op_selector=_may_be_half) if is_half else ct.precision.FLOAT32
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    program = traced(graph, *example)
    try:
        with quiet_coremltools():
            ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, target),
                compute_precision=precision,
                skip_model_load=True,  # only macOS can
                package_dir=str(package),
                **ports,
            )
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"coremltools {ct.__version__} cannot convert {package.name}: {error}. Try the version that this release "
            "was tested with, 9.0."
        ) from error


def _may_be_half(op: Any) -> bool:
    """False for operations whose numbers do not fit into float16."""
    return op.op_type in _HEAVY or not {op.op_type, *(user.op_type for user in _users(op))} & _EXACT


def _users(op: Any) -> Iterator[Any]:
    """Operations that read what `op` gives, directly or through concatenations."""
    for output in op.outputs:
        for user in output.child_ops:
            if user.op_type == "concat":
                yield from _users(user)
            yield user


def _dtype(*, is_half: bool) -> Any:
    return np.float16 if is_half else np.float32


def _coremltools() -> Any:
    with quiet_coremltools():
        return importlib.import_module("coremltools")


@contextlib.contextmanager
def quiet_coremltools() -> Iterator[None]:
    """Hide what coremltools says while it is imported and converts.

    It draws bars on stderr, and warns of newer torch versions and of libraries that only macOS has.
    """
    hidden = io.StringIO()
    with quiet_export(), contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
        yield
