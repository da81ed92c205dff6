"""Visual tokens are taught to lie near the words for what they show. Used in training only.

The paper's encoder comes from contrastive training with captions, so its tokens mean something to words before the
decoder sees them. Here every projected token is asked, through the decoder's own tied head, for the bag of words of
its 64 px: the characters, shapes, emoji and colours that stand there.
"""

from __future__ import annotations

from typing import Any

import torch
from recipes.mini.dense import CELL, CLASSES, TOKEN
from recipes.mini.dense_head import DenseBatch
from torch import Tensor, nn

from fastvlm.demo_data.vocabulary import COLOUR_NAMES, EMOJI_NAMES, GLYPHS

PER_TOKEN = TOKEN // CELL


class WordAlignment:
    """Loss between projected visual tokens and the words for what stands in them."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self.none = vocabulary

        def first_id(text: str) -> int:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids[0]

        names = [name if name in GLYPHS else f" {name}" for name in CLASSES[1:-1]]
        # CLASSES begins with the empty cell and ends with "some emoji": both say nothing
        self.class_ids = torch.tensor([self.none, *map(first_id, names), self.none])
        self.colour_ids = torch.tensor([*(first_id(f" {name}") for name in COLOUR_NAMES), self.none])
        self.emoji_ids = torch.tensor([*(first_id(f" {name}") for name in EMOJI_NAMES), self.none])

    def loss(self, head: nn.Module, image_embeds: Tensor, dense: DenseBatch) -> Tensor:
        """Cross-entropy of the bag of words; image_embeds (B, N, D) as the decoder gets them, head D -> vocabulary."""
        target = self.bags(dense)
        weight = target.sum(-1)
        says = torch.log_softmax(head(image_embeds).float(), -1)
        losses = -(target * says).sum(-1) / weight.clamp(min=1.0)
        return (losses * (weight > 0)).sum() / (weight > 0).sum().clamp(min=1)

    def bags(self, dense: DenseBatch) -> Tensor:
        """(B, N, vocabulary): 1 for every word that fits something in the token, 0 elsewhere."""
        cells = torch.cat(
            [_by_token(self.class_ids[dense.classes]), _by_token(self.colour_ids[dense.colours.clamp(min=-1)])], -1
        )
        emoji = self.emoji_ids[dense.emoji.clamp(min=-1)].flatten(1)[..., None]
        ids = torch.cat([cells, emoji], -1)
        bags = torch.zeros(*ids.shape[:2], self.none + 1)
        return bags.scatter_(2, ids, 1.0)[..., : self.none]


def _by_token(cells: Tensor) -> Tensor:
    """(B, 4h, 4w) -> (B, h * w, 16)."""
    batch, height, width = cells.shape
    grouped = cells.view(batch, height // PER_TOKEN, PER_TOKEN, width // PER_TOKEN, PER_TOKEN)
    return grouped.permute(0, 1, 3, 2, 4).reshape(batch, -1, PER_TOKEN * PER_TOKEN)
