"""The contestant `transformers`: its own FastVLM over the same folder, used as its documentation shows."""

from __future__ import annotations

import importlib.metadata
import io
from typing import Any

import torch
from PIL import Image

from fastvlm.bench.generating import GeneratingContestant
from fastvlm.bench.peers_folder import add_peers_folder, prepare_torchvision

__all__ = ["TransformersContestant"]


class TransformersContestant(GeneratingContestant):
    """transformers' `FastVlmForConditionalGeneration`: sdpa, eager, images in NCHW."""

    def load(self) -> dict[str, Any]:
        """See :class:`GeneratingContestant`."""
        add_peers_folder()
        prepare_torchvision()
        from transformers import AutoProcessor, FastVlmForConditionalGeneration

        self.processor = AutoProcessor.from_pretrained(self.folder)
        self.model = FastVlmForConditionalGeneration.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), attn_implementation={"text_config": "sdpa"}
        ).to(self.device)
        self.model.eval()
        return {name: importlib.metadata.version(name) for name in ("transformers", "timm", "torchvision")}

    def set_side(self, side_px: int) -> None:
        """See :class:`GeneratingContestant`."""
        self.processor.image_processor.size = {"shortest_edge": side_px}
        self.processor.image_processor.crop_size = {"height": side_px, "width": side_px}

    def image(self, data: bytes) -> Image.Image:
        """See :class:`GeneratingContestant`."""
        return Image.open(io.BytesIO(data)).convert("RGB")
