"""The decoder of a checkpoint as an OpenVINO model with its cache inside; its weights in 8 or 4 bits by nncf.

Inputs: `input_ids` (B, T), `position_ids` (B, T), `beam_idx` (B,) int32. Output: logits (B, 1, V).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from fastvlm.bench.peers_folder import add_runtimes_folder
from fastvlm.config import Bits
from fastvlm.export.decoder import TokenDecoder
from fastvlm.export.openvino_graphs import EXAMPLE, compressed, save, stateful_decoder
from fastvlm.opening import open_checkpoint


def convert(folder: str, file: Path, bits: Bits) -> None:
    """Write the decoder of the checkpoint in `folder` to `file` (.xml; the weights lie beside it in a .bin)."""
    add_runtimes_folder()
    ov: Any = importlib.import_module("openvino")
    if bits == 16:
        batch, length, before = EXAMPLE
        positions = torch.arange(length)[None].expand(batch, -1) + before
        inputs = {"input_ids": torch.ones(batch, length, dtype=torch.long), "position_ids": positions}
        decoder = TokenDecoder(open_checkpoint(folder)).eval()
        model = stateful_decoder(ov, decoder, inputs, [[-1, -1]] * 2)
    else:
        plain = file.with_name(file.name.replace(f"-{bits}.", "-16."))
        if not plain.exists():
            convert(folder, plain, 16)
        model = compressed(ov.Core().read_model(plain), bits)
    save(ov, model, file, is_half=True)
