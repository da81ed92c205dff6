"""The dense objective: what stands in every 16 px cell, told from three depths. Used in training only.

The 768 numbers of a visual token must say it for 4 x 4 cells. Learning that alone is slow: a plain linear layer
learns each class anew for each of the 16 places. So the class weights are shared by the places, and the maps of
stride 16 (a vector a cell) and 32 (a vector for 2 x 2 cells) are asked as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from recipes.mini.dense import CLASSES, EMOJI_OF, IGNORED
from torch import Tensor, nn

from fastvlm.demo_data.vocabulary import COLOUR_NAMES
from fastvlm.training.grounding_objective import CellHead, CellLogits

NUM_CLASSES, NUM_COLOURS, NUM_EMOJI = len(CLASSES), len(COLOUR_NAMES), len(EMOJI_OF)
DEPTH_WEIGHTS = (1.0, 0.5, 1.0)  # of the maps of stride 16, 32 and 64


@dataclass(frozen=True)
class DenseBatch:
    """Targets of B pictures: `classes`, `colours` (B, 4h, 4w), `emoji` (B, h, w), int64, for h x w visual tokens."""

    classes: Tensor
    colours: Tensor
    emoji: Tensor


@dataclass(frozen=True)
class DenseLogits:
    """The cells as told by the maps of stride 16, 32 and 64, and the emoji (B, h, w, E) by the last."""

    depths: tuple[CellLogits, CellLogits, CellLogits]
    emoji: Tensor

    @property
    def classes(self) -> Tensor:
        """As told by the visual tokens themselves."""
        return self.depths[-1].classes

    @property
    def colours(self) -> Tensor:
        """As told by the visual tokens themselves."""
        return self.depths[-1].colours


class DenseHead(nn.Module):
    """Heads on the maps of stride 16, 32 and 64 of an encoder."""

    def __init__(self, stage_widths: Sequence[int], token_width: int) -> None:
        super().__init__()
        self.depths = nn.ModuleList(
            CellHead(width, side, NUM_CLASSES, NUM_COLOURS)
            for width, side in ((stage_widths[2], 1), (stage_widths[3], 2), (token_width, 4))
        )
        self.emoji = nn.Linear(token_width, NUM_EMOJI)

    def forward(self, tokens: Tensor, stages: Sequence[Tensor]) -> DenseLogits:
        """tokens (B, C, h, w): the encoder's output; stages: the maps of its stages, as `forward_with_stages` gives."""
        first, second, last = (
            head(feature_map) for head, feature_map in zip(self.depths, (stages[2], stages[3], tokens), strict=True)
        )
        return DenseLogits((first, second, last), self.emoji(tokens.permute(0, 2, 3, 1)))


def dense_loss(logits: DenseLogits, target: DenseBatch) -> Tensor:
    """Cross-entropy of the cells at three depths and of the emoji."""
    total = torch.stack(
        [weight * cell_loss(cells, target) for weight, cells in zip(DEPTH_WEIGHTS, logits.depths, strict=True)]
    ).sum()
    if bool((target.emoji >= 0).any()):
        emoji = F.cross_entropy(logits.emoji.reshape(-1, NUM_EMOJI), target.emoji.flatten(), ignore_index=IGNORED)
        total = total + 0.3 * emoji
    return total


def cell_loss(logits: CellLogits, target: DenseBatch) -> Tensor:
    """Cross-entropy of things, of empty cells and of colours, weighted against each other.

    A cell with a thing weighs 1/sqrt(such cells in its picture): a page of text must not drown a single letter.
    """
    losses = F.cross_entropy(logits.classes.reshape(-1, NUM_CLASSES), target.classes.flatten(), reduction="none")
    is_thing = target.classes > 0
    weight = is_thing / is_thing.sum((1, 2), keepdim=True).clamp(min=1).sqrt()
    weight = weight / weight.sum().clamp(min=1e-6)
    losses = losses.view_as(target.classes)
    colours = F.cross_entropy(
        logits.colours.reshape(-1, NUM_COLOURS), target.colours.flatten(), reduction="none", ignore_index=IGNORED
    ).view_as(target.colours)
    return (losses * weight).sum() + losses[~is_thing].mean() + 0.5 * (colours * weight).sum()


@torch.no_grad()
def dense_accuracy(logits: DenseLogits, target: DenseBatch) -> dict[str, tuple[int, int]]:
    """(right, all) for things named by tokens and by the map of stride 16, their colours, and emoji names."""
    things, painted, emoji = target.classes > 0, target.colours >= 0, target.emoji >= 0
    first = logits.depths[0].classes.argmax(-1)
    return {
        "things": (int((logits.classes.argmax(-1) == target.classes)[things].sum()), int(things.sum())),
        "stride_16": (int((first == target.classes)[things].sum()), int(things.sum())),
        "colours": (int((logits.colours.argmax(-1) == target.colours)[painted].sum()), int(painted.sum())),
        "emoji": (int((logits.emoji.argmax(-1) == target.emoji)[emoji].sum()), int(emoji.sum())),
    }
