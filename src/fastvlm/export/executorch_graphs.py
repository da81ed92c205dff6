"""The decoder with a cache of fixed length inside, the form that ExecuTorch's runners call.

C tokens of context, T tokens of a call, D decoder width, V vocabulary; K key/value heads of width E.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvlm.export.decoder import PlainDecoder, grouped_attention
from fastvlm.formats.checkpoint import Checkpoint

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
        self._names = [f"cache_{index}" for index in range(2 * self.config.num_hidden_layers)]
        for name, zeros in zip(self._names, self.empty_cache(1, context), strict=True):
            self.register_buffer(name, zeros, persistent=False)

    def forward(self, embeddings: Tensor, input_pos: Tensor) -> Tensor:
        """Logits (1, V) of the last of the T tokens.

        Args:
            embeddings: (1, T, D) float32.
            input_pos: int64 (T,): positions of the tokens in the cache, P and on.
        """
        is_seen = torch.arange(self.context)[None] <= input_pos[:, None]
        # Floats, made once: XNNPACK adds them in each layer, and has no selection by bools.
        mask = torch.where(is_seen, 0.0, _HIDDEN)[None, None]
        past = [self.get_buffer(name) for name in self._names]

        def written(past: Tensor, new: Tensor) -> Tensor:
            return past.index_copy_(2, input_pos, new)

        x, _ = self.hidden(embeddings, input_pos[None], mask, past, written)
        return self.logits(x[:, -1])
