"""A digest of a model's weights: whether an adapter's base is the model at hand, whatever its folder is called.

It covers every floating tensor of the state dict except the token tables, by its canonical name, its shape and up to 64
values spread over it. So it is the same for the `fast_vlm` and Apple's layout of the same weights (which pad the tables
differently), takes tens of milliseconds for the mini, and differs if any part of the model was trained
further. It does not find a single flipped bit: checksums of files do.

Weights may be opened in another dtype than they are stored in. Rounding to bfloat16 or float16 gives the same values
before and after that. So values are rounded before they are hashed: to float16 if the model has float16 weights, else
to bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm.errors import CheckpointError
from fastvlm.formats.json_files import FETCH_AGAIN, read_json

DIGEST_FILE = "base_digest.json"
# Token tables; counters of BatchNorm, which inference does not use and which are integers or not, as they were loaded.
_LEFT_OUT = ("embed_tokens", "lm_head", "num_batches_tracked")
_MOST_VALUES = 64
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class BaseDigest:
    """Digest of a model's weights.

    Args:
        bfloat16: hexadecimal BLAKE2b of the values rounded to bfloat16; None if unknown.
        float16: the same, rounded to float16; None if the weights were opened in bfloat16 but stored more precisely.
    """

    bfloat16: str | None
    float16: str | None

    @classmethod
    def of_model(cls, model: nn.Module, *, is_exact: bool) -> BaseDigest:
        """The digest of a plain model.

        Args:
            model: with its own weights: no adapters in it, no rounded layers.
            is_exact: its weights have every bit of what is stored.
        """
        kind = _compared(model)
        both = {name: _digest(model, dtype) for name, dtype in _KINDS.items() if is_exact or name == kind}
        return cls(both.get("bfloat16"), both.get("float16"))

    @classmethod
    def read(cls, file: Path) -> BaseDigest | None:
        """What :meth:`as_text` gave; None without such a file. Raises CheckpointError for another content."""
        if not file.is_file():
            return None
        content = read_json(file)
        values: list[Any] = [content.get(name, 0) for name in _KINDS] if isinstance(content, dict) else [0]
        if not all(value is None or isinstance(value, str) for value in values):
            names = " and ".join(_KINDS)
            raise CheckpointError(f"{file} is not a digest of weights: expected {names}, texts or null. {FETCH_AGAIN}")
        return cls(*values)

    def as_text(self) -> str:
        """JSON, for a file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def agrees_with(self, model: nn.Module) -> bool | None:
        """Whether a plain model has these weights; None if its dtype does not allow a comparison."""
        kind = _compared(model)
        own = getattr(self, kind)
        return None if own is None else bool(own == _digest(model, _KINDS[kind]))

    def same_as(self, other: BaseDigest) -> bool:
        """Whether two digests are of the same weights, as far as both know."""
        return all(a == b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True) if a and b)


_KINDS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def _compared(model: nn.Module) -> str:
    """The name of the dtype in which a model is compared."""
    return "float16" if any(tensor.dtype == torch.float16 for tensor in model.parameters()) else "bfloat16"


@torch.no_grad()
def _digest(model: nn.Module, dtype: torch.dtype) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point() and not any(part in name for part in _LEFT_OUT):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            digest.update(_sampled(tensor, dtype))
    return digest.hexdigest()


def _sampled(tensor: Tensor, dtype: torch.dtype) -> bytes:
    """Up to 64 values, evenly spread over the tensor in row-major order, as bytes of `dtype`."""
    flat, count = tensor.reshape(-1), tensor.numel()
    number = min(count, _MOST_VALUES)
    places = torch.arange(number, device=tensor.device) * count // max(1, number)
    values = flat[places].to(dtype).cpu().view(torch.int16)
    return values.numpy().astype("<i2").tobytes()
