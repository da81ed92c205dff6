"""Reference of the decoder peers: a prompt, our float32 logits behind it, and the first tokens of the greedy reply.

A peer whose logits are not near them has got a wrong conversion, and is not timed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.bench.conversions import converted
from fastvlm.errors import MeasurementError
from fastvlm.storage.whole_files import write_file

# Bits -> largest distance that rounding explains (measured: 0.006, 0.05, 0.55); rows in a wrong order give about 3.
LIMITS: dict[int, float] = {16: 0.1, 8: 0.2, 4: 1.5}
TOP = 256  # tokens that are compared


@dataclass(frozen=True)
class Reference:
    """What a peer must reproduce.

    Attributes:
        prompt: token ids.
        log_probs: (V,) float32, of the token behind the prompt.
        tokens: first token ids of the greedy reply.
    """

    prompt: list[int]
    log_probs: NDArray[np.float32]
    tokens: list[int]

    @classmethod
    def of(cls, folder: str, work: str, prompt_tokens: int) -> Reference:
        """The reference of a checkpoint for a prompt of `prompt_tokens` tokens, computed if need be."""
        name = f"reference-{prompt_tokens}.json"
        file = converted("reference", folder, work, name, prompt_tokens=prompt_tokens)
        found = json.loads(file.read_text(encoding="utf-8"))
        log_probs = np.asarray(found["log_probs"], dtype=np.float32)
        return cls(found["prompt"], log_probs, found["tokens"])

    def distance(self, ids: list[int], log_probs: list[float]) -> float:
        """Root mean square of a peer's differences, over the standard deviation of all logits.

        Args:
            ids: the peer's most probable tokens.
            log_probs: of these.
        """
        gaps = np.asarray(log_probs, dtype=np.float64) - self.log_probs[ids]
        return float(np.sqrt(np.mean(gaps**2)) / np.std(self.log_probs))

    def check(self, bits: int, ids: list[int], log_probs: list[float]) -> float:
        """The distance.

        Raises:
            MeasurementError: it is larger than rounding to `bits` explains.
        """
        distance = self.distance(ids, log_probs)
        if not distance <= LIMITS[bits]:
            raise MeasurementError(
                f"Its logits are {distance:.2f} standard deviations off ours, and {LIMITS[bits]} at most are expected "
                f"with {bits} bits: the conversion is wrong, and it is not timed."
            )
        return distance


def write_reference(folder: str, file: Path, prompt_tokens: int, num_tokens: int = 32) -> None:
    """Compute the reference of the checkpoint in `folder` with torch, in float32, and write it to `file`."""
    from fastvlm.bench.inputs import text_prompt
    from fastvlm.export.decoder import TokenDecoder, greedy
    from fastvlm.opening import open_checkpoint

    checkpoint = open_checkpoint(folder)
    prompt: list[int] = text_prompt(checkpoint.processor, prompt_tokens)["input_ids"][0].tolist()
    logits, tokens = greedy(TokenDecoder(checkpoint), prompt, num_tokens)
    found: dict[str, Any] = {"prompt": prompt, "tokens": tokens, "log_probs": logits.log_softmax(0).tolist()}
    write_file(file, json.dumps(found))
