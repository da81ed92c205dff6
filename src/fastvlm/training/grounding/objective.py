"""Auxiliary losses for records with object positions; their heads are not part of the final model.

Objects: heads on three maps of the encoder classify every cell of 16 px: those of stride 16 (a vector for one cell), 32
(for 2 x 2 cells) and 64, the visual tokens (for 4 x 4 cells). An image gives tens of labels; a reply gives one.
Looks: two attention heads of one decoder layer are trained to attend to the words of the question that identify the
object, two of a later layer to its visual tokens; the loss is -log of the share of attention there.

Shapes: I images of h x w visual tokens, B sequences of T tokens, H attention heads, G gazes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvlm.errors import UsageError
from fastvlm.hf.modeling import FastVlmForConditionalGeneration
from fastvlm.training.grounding.objects import EMPTY, IGNORED, ObjectNames
from fastvlm.training.recipe import GroundingEntry, HeadsEntry

GROUNDING_COLUMNS = (
    "cell_classes",
    "cell_colors",
    "gaze_rows",
    "gaze_positions",
    "gaze_is_reminder",
    "gaze_seen",
)
CELL_WIDTH = 96
DEPTHS = ((2, 1, 1.0), (3, 2, 0.5), (-1, 4, 1.0))  # stage (-1: last map), cells of a vector along a side, weight
COLOR_WEIGHT = 0.5
# Trained heads give some tokens 1e-36 of their attention; shares far below this are not increased.
LEAST_SHARE = 1e-37


class CellHead(nn.Module):
    """Classification head: one feature vector -> logits of its side x side cells."""

    def __init__(self, width: int, side: int, num_classes: int, num_colors: int) -> None:
        super().__init__()
        self.side = side
        self.spread = nn.Linear(width, side * side * CELL_WIDTH)
        self.name = nn.Linear(CELL_WIDTH, num_classes + num_colors)

    def forward(self, feature_map: Tensor) -> Tensor:
        """feature_map (I, C, h, w) -> logits (I, side*h, side*w, num_classes + num_colors)."""
        batch, _, height, width = feature_map.shape
        spread = self.spread(feature_map.permute(0, 2, 3, 1))
        cells = spread.view(batch, height, width, self.side, self.side, CELL_WIDTH)
        cells = cells.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3)
        logits: Tensor = self.name(F.gelu(cells))
        return logits


def add_objective(
    model: FastVlmForConditionalGeneration, entry: GroundingEntry, names: ObjectNames | None
) -> GroundingObjective:
    """Add the auxiliary losses as a module of the model, so that checkpoints contain it.

    Raises:
        UsageError: heads that the decoder does not have.
    """
    vision, text = model.config.vision_config, model.config.text_config
    for key, heads in (("reminding", entry.reminding), ("looking", entry.looking)):
        if heads.layer >= text.num_hidden_layers or max(heads.heads) >= text.num_attention_heads:
            raise UsageError(
                f"grounding.{key} names layer {heads.layer} and heads {list(heads.heads)}; the decoder has "
                f"{text.num_hidden_layers} layers of {text.num_attention_heads} heads, counted from 0."
            )
    objective = GroundingObjective(entry, names, [stage.channels for stage in vision.stages], vision.hidden_size)
    model.add_module("grounding_objective", objective)
    return objective


class GroundingObjective(nn.Module):
    """The weighted auxiliary losses.

    Args:
        entry: of the recipe.
        names: of all objects; None without the object loss.
        widths: channels of the encoder's stages.
        token_width: channels of its last map.
    """

    def __init__(
        self, entry: GroundingEntry, names: ObjectNames | None, widths: Sequence[int], token_width: int
    ) -> None:
        super().__init__()
        self.entry = entry
        self.num_classes = 0 if names is None else names.num_classes
        self.heads = nn.ModuleList()
        if names is not None:
            sizes = names.num_classes, len(names.colors)
            self.heads.extend(CellHead(widths[s] if s >= 0 else token_width, side, *sizes) for s, side, _ in DEPTHS)

    def forward(
        self, stages: Sequence[Tensor], last: Tensor | None, attentions: Sequence[Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute each objective's weighted loss, by name.

        Args:
            stages: the maps of the encoder's stages (I, C, ., .); none where there is no image.
            last: its last map (I, C, h, w), or None.
            attentions: of each decoder layer (B, H, T, T).
            batch: with GROUNDING_COLUMNS.
        """
        losses: dict[str, Tensor] = {}
        if last is not None and "cell_classes" in batch and self.heads:
            cell_losses = []
            for head, (stage, _, weight) in zip(self.heads, DEPTHS, strict=True):
                logits = head(stages[stage] if stage >= 0 else last)
                of_classes, of_colors = logits.tensor_split([self.num_classes], dim=-1)
                cell_losses.append(
                    weight * cell_loss(of_classes, of_colors, batch["cell_classes"], batch["cell_colors"])
                )
            losses["objects"] = self.entry.objects * torch.stack(cell_losses).sum()
        if attentions and "gaze_rows" in batch:
            kinds = ((self.entry.reminding, True), (self.entry.looking, False))
            gaze_losses = [gaze_loss(attentions, heads, batch, is_reminder=is_it) for heads, is_it in kinds]
            losses["looks"] = self.entry.looks * torch.stack(gaze_losses).sum()
        return losses


def cell_loss(class_logits: Tensor, color_logits: Tensor, classes: Tensor, colors: Tensor) -> Tensor:
    """Weighted cross-entropy of objects, empty cells and colors.

    A cell with an object weighs 1/sqrt(such cells in its image), so that a page of text does not outweigh a letter.

    Args:
        class_logits, color_logits: (I, 4h, 4w, number of classes or colors).
        classes, colors: targets (I, 4h, 4w).
    """
    known, things = classes != IGNORED, classes > EMPTY
    weight = things / things.sum((1, 2), keepdim=True).clamp(min=1).sqrt()
    weight = weight / weight.sum().clamp(min=1e-6)
    losses = _by_cell(class_logits, classes)
    empty = known & ~things
    by_empty = (losses * empty).sum() / empty.sum().clamp(min=1)
    return (losses * weight).sum() + by_empty + COLOR_WEIGHT * (_by_cell(color_logits, colors) * weight).sum()


def _by_cell(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (I, 4h, 4w); 0 where the target is unknown."""
    if not logits.shape[-1]:
        return torch.zeros_like(targets, dtype=torch.float32)
    flat = F.cross_entropy(logits.flatten(0, 2).float(), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return flat.view_as(targets)


def gaze_loss(
    attentions: Sequence[Tensor], heads: HeadsEntry, batch: Mapping[str, Any], *, is_reminder: bool
) -> Tensor:
    """Mean of -log(share of attention on the right tokens) over the gazes of one kind and their heads."""
    is_kind = batch["gaze_is_reminder"] == is_reminder
    rows, positions = batch["gaze_rows"][is_kind], batch["gaze_positions"][is_kind]
    attention = attentions[heads.layer][:, list(heads.heads)]
    if not len(rows):
        return attention.sum() * 0.0
    looked = attention[rows, :, positions].float()  # (G, heads, T)
    shares = (looked * batch["gaze_seen"][is_kind][:, None]).sum(-1)
    loss: Tensor = -(shares + LEAST_SHARE).log().mean()
    return loss
