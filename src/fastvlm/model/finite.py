"""Checks for NaN and infinity at their origin, because a reply computed from them would repeat one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvlm.errors import NonFiniteError

# What computes them, for the message; in the order in which a prompt passes.
IMAGE_FEATURES = "the visual tokens, which the image encoder and the projector compute,"
EMBEDDINGS = "the token embeddings"
HIDDEN = "the hidden states of the decoder"
LOGITS = "the logits"


def check_finite(values: Tensor, what: str) -> None:
    """Raise NonFiniteError if `values`, floats of any shape, contain NaN or infinity; `what` names them in errors."""
    if not bool(values.isfinite().all()):
        raise _error(what)


def rows_with_finite_logits(logits: Tensor) -> Sequence[bool]:
    """For each row of `logits` (B, V) float32: whether all of them are finite.

    Minimum and maximum suffice, because NaN would be both.
    """
    if logits.device.type == "cpu":  # NumPy's search is many times as fast as torch's here
        rows = logits.detach().numpy()
        ends = torch.from_numpy(rows.min(-1)), torch.from_numpy(rows.max(-1))
    else:
        ends = torch.aminmax(logits, dim=-1)
    return (ends[0].isfinite() & ends[1].isfinite()).tolist()


def check_scores(scores: Tensor) -> None:
    """Raise NonFiniteError if a row of `scores` (B, V) has no finite largest; -inf below it rules tokens out."""
    if not bool(scores.amax(-1).isfinite().all()):
        raise non_finite_logits()


def non_finite_logits() -> NonFiniteError:
    """The error of a reply whose next logits are NaN or infinite, though its prompt's were not."""
    return _error(LOGITS)


def _error(what: str) -> NonFiniteError:
    return NonFiniteError(
        f"{what[0].upper()}{what[1:]} contain NaN or infinity, so there is no answer. Either the checkpoint's "
        "weights are damaged (`fastvlm info --verify MODEL` compares its files with their checksums), or the dtype is "
        "too narrow for them: float16 overflows above 65504, use bfloat16 or float32."
    )
