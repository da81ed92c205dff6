"""Functions on buffers of fixed shape, captured as CUDA graphs on a GPU.

A decoding step of a small model is some five hundred short kernels, which a GPU runs faster than Python can launch
them. A graph launches all of them at once; in return, every tensor in it keeps its address. On other devices the same
function runs on the same buffers without a graph, so that tests can compare it; there too the next call overwrites the
result.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WARM_UPS = 3  # libraries allocate workspaces in the first calls, which a graph cannot do
_SHORTEST_TOKENS = 256
_KEPT_IMAGE_SHAPES = 4


class FixedShapes:
    """A function of one tensor of fixed shape; its result is a buffer that the next call overwrites.

    Args:
        function: must not read a value back from the device; side effects (on a cache) may run several times.
        shape, dtype, device: of its input.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._function = function
        self._input = torch.zeros(tuple(shape), dtype=dtype, device=device)
        self._output: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._can_capture = device.type == "cuda"

    @property
    def is_captured(self) -> bool:
        """True if a graph is replayed."""
        return self._graph is not None

    @torch.inference_mode()
    def __call__(self, value: Tensor) -> Tensor:
        """`function(value)`; `value` may be on the host; a pinned one is copied asynchronously."""
        self._input.copy_(value, non_blocking=True)
        if self._can_capture and self._graph is None:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._run()
        assert self._output is not None  # noqa: S101 - either way has set it
        return self._output

    def _run(self) -> None:
        result = self._function(self._input)
        if self._output is None:
            self._output = result.clone()
        else:
            self._output.copy_(result)

    def _capture(self) -> None:
        """Capture the function on a side stream; if this fails, warn and run it without a graph.

        Source: torch's notes on CUDA semantics, "CUDA graphs".
        """
        with torch.cuda.device(self._input.device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._function(self._input)
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._output = self._function(self._input)
            except RuntimeError as error:
                self._can_capture, self._output = False, None
                warnings.warn(f"A CUDA graph could not be captured, so replies are slower: {error}", stacklevel=3)
                return
        self._graph = graph


class GraphedDecode:
    """Decoding steps with one graph for each number of rows and each attention length.

    Args:
        step: (rows (3, B) int64: token ids, slots, positions; attention length) -> logits (B, V).
        context: maximum tokens of a slot.
        device: device of `step`.
    """

    def __init__(self, step: Callable[[Tensor, int], Tensor], context: int, device: torch.device) -> None:
        self._step, self._device = step, device
        self._lengths = attention_lengths(context)
        self._steps: dict[tuple[int, int], FixedShapes] = {}

    def __call__(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (B, V) in a buffer that the next call overwrites.

        Where a slot is repeated, B differs from step to step; the last row is repeated up to a power of two, so that
        few graphs are captured.
        """
        rows = torch.tensor([list(token_ids), list(slots), list(positions)])
        num_rows = len(slots)
        if len(set(slots)) < num_rows:
            padding = (1 << (num_rows - 1).bit_length()) - num_rows
            rows = torch.cat([rows, rows[:, -1:].expand(-1, padding)], dim=1)
        if self._device.type == "cuda":
            rows = rows.pin_memory()
        length = next(length for length in self._lengths if length > max(positions))
        return self._fixed(rows.shape[1], length)(rows)[:num_rows]

    @property
    def num_captured(self) -> int:
        """Number of captured graphs."""
        return sum(step.is_captured for step in self._steps.values())

    def _fixed(self, num_rows: int, length: int) -> FixedShapes:
        key = num_rows, length
        if key not in self._steps:
            self._steps[key] = FixedShapes(
                lambda rows: self._step(rows, length), (3, num_rows), torch.int64, self._device
            )
        return self._steps[key]


class GraphedEncode:
    """Image encoding with one graph for each input shape; the most recent ones are kept.

    Args:
        encode: pixel_values (I, 3, H, W) in [0, 1] on `device` -> image_embeds (I, N, D).
        device: device of `encode`.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._encode, self._device = encode, device
        self._kept: OrderedDict[tuple[torch.Size, torch.dtype], FixedShapes] = OrderedDict()

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings (I, N, D), a new tensor."""
        key = pixel_values.shape, pixel_values.dtype
        if key not in self._kept:
            self._kept[key] = FixedShapes(self._encode, pixel_values.shape, pixel_values.dtype, self._device)
            if len(self._kept) > _KEPT_IMAGE_SHAPES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key](pixel_values).clone()


def attention_lengths(context: int) -> list[int]:
    """Attention lengths in tokens, doubling up to `context`: 256, 512, ... Each needs its own graph."""
    lengths = [min(_SHORTEST_TOKENS, context)]
    while lengths[-1] < context:
        lengths.append(min(2 * lengths[-1], context))
    return lengths
