"""Graphs in the form that ExecuTorch's multimodal runner calls and that XNNPACK takes over as a whole.

C tokens of context, T tokens of a call, D decoder width, V vocabulary, K key/value heads of width E; N positions and
H heads of the encoder's attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm.export.decoder import PlainDecoder, grouped_attention
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.names import EMBEDDING
from fastvlm.formats.rounding import quantize_int8

_HIDDEN = -1e9  # added to scores of positions that a token does not see


class CachedDecoder(PlainDecoder):
    """The decoder of one sequence, which keeps keys and values of C tokens in buffers.

    Each layer has two buffers (1, K, C, E) of its own, because one buffer for all would be copied as a whole.

    Args:
        checkpoint: the weights.
        context: C.
    """

    def __init__(self, checkpoint: Checkpoint, context: int) -> None:
        super().__init__(checkpoint, grouped_attention)
        self.context = context
        with torch.device("meta"):
            self.output = nn.Linear(self.config.hidden_size, len(self.head), bias=False)
        self.output.weight = self.head  # a layer, because layers are what is rounded
        self._names = [f"cache_{index}" for index in range(2 * self.config.num_hidden_layers)]
        for name, zeros in zip(self._names, self.empty_cache(1, context), strict=True):
            self.register_buffer(name, zeros, persistent=False)

    def forward(self, embeddings: Tensor, input_pos: Tensor) -> Tensor:
        """Logits (1, V) of the last of the T tokens.

        Args:
            embeddings: (1, T, D) float32.
            input_pos: int64 (T,): positions of the tokens in the cache, in sequence.
        """
        is_seen = torch.arange(self.context)[None] <= input_pos[:, None]
        # Floats, made once: XNNPACK adds them in each layer, and has no selection by bools.
        mask = torch.where(is_seen, 0.0, _HIDDEN)[None, None]
        past = [self.get_buffer(name) for name in self._names]

        def written(past: Tensor, new: Tensor) -> Tensor:
            return past.index_copy_(2, input_pos, new)

        x, _ = self.hidden(embeddings, input_pos[None], mask, past, written)
        return self.logits(x[:, -1])

    def logits(self, x: Tensor) -> Tensor:
        """Logits (1, V) of a hidden state (1, D)."""
        logits: Tensor = self.output(self.normed(x))
        return logits


class RoundedEmbedding(nn.Module):
    """Token ids (1, T) int64 -> embeddings (1, T, D) float32 of weights in 8 bits with a scale a token."""

    rows: Tensor
    scales: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        table = quantize_int8(checkpoint.tensors[EMBEDDING])
        self.register_buffer("rows", table.values)
        self.register_buffer("scales", table.scales[:, None])

    def forward(self, input_ids: Tensor) -> Tensor:
        """See the class."""
        return F.embedding(input_ids, self.rows).float() * F.embedding(input_ids, self.scales)


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The encoder's attention (1, H, N, E) as two products and a softmax, all of which XNNPACK has.

    torch's own decomposition also looks for rows with nothing allowed, by comparisons that XNNPACK lacks.
    """
    scores = torch.bmm(queries.flatten(0, 1) * queries.shape[-1] ** -0.5, keys.flatten(0, 1).transpose(1, 2))
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).reshape(queries.shape)
