"""Base class of the decoder's peers: a prompt of token ids, decoded greedily, by a runtime without a tokenizer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from fastvlm.bench.memory import peak_bytes
from fastvlm.bench.peers_folder import check_installed
from fastvlm.bench.rates import steady_rate
from fastvlm.bench.reference import TOP, Reference
from fastvlm.bench.worker import Measured
from fastvlm.config import Bits


class DecoderPeer(ABC):
    """A runtime of the decoder; its public methods are commands of a worker.

    Args:
        folder: the checkpoint.
        work: the folder of conversions.
        bits: of the weights.
        dtype: of the computation: "bfloat16" or "float32".
        threads: of the runtime; 0 for its default.
        prompt_tokens: length of the prompt that is prepared.
        num_slots: replies at the same time.
    """

    packages: tuple[str, ...]

    def __init__(
        self,
        folder: str,
        work: str,
        bits: Bits = 16,
        dtype: str = "float32",
        threads: int = 0,
        prompt_tokens: int = 290,
        num_slots: int = 8,
    ) -> None:
        self.folder, self.work, self.bits, self.dtype, self.threads = folder, work, bits, dtype, threads
        self.prompt_tokens, self.num_slots = prompt_tokens, num_slots
        self._reference: Reference | None = None

    @property
    def reference(self) -> Reference:
        """Prompt and expected logits."""
        if self._reference is None:
            self._reference = Reference.of(self.folder, self.work, self.prompt_tokens)
        return self._reference

    @abstractmethod
    def _open(self) -> None:
        """Convert the checkpoint if need be, and load it."""

    @abstractmethod
    def _log_probs(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        """The `TOP` most probable tokens behind `prompt`, and their log-probabilities."""

    @abstractmethod
    def _replies(self, prompt: list[int], num_tokens: int, num_streams: int) -> tuple[list[list[float]], list[int]]:
        """Decode `num_streams` equal replies together: the times of each one's tokens in seconds; the last's ids."""

    def open(self) -> Measured:
        """Seconds to load the model; `facts` are versions and how far its logits are from ours.

        Raises:
            MissingExtraError: the runtime is not installed.
            MeasurementError: the conversion failed, or its logits are wrong.
        """
        versions = check_installed(self.packages, f"Measuring {self.packages[0]}")
        reference = self.reference
        start_s = time.perf_counter()
        self._open()
        seconds = time.perf_counter() - start_s
        distance = reference.check(self.bits, *self._log_probs(reference.prompt))
        return Measured(seconds, facts={**versions, "logits_distance": round(distance, 5)})

    def prefill(self, num_tokens: int) -> Measured:
        """Seconds from a prompt to its first token."""
        prompt = self._prompt(num_tokens)
        start_s = time.perf_counter()
        times_s, tokens = self._replies(prompt, 1, 1)
        seconds = times_s[0][0] - start_s
        return Measured(seconds, check=[float(token) for token in tokens], facts={"tokens": len(prompt)})

    def decode(self, num_tokens: int, prompt_tokens: int) -> Measured:
        """Tokens a second of one reply, after its first token."""
        return self.throughput(1, num_tokens, prompt_tokens)

    def throughput(self, num_streams: int, num_tokens: int, prompt_tokens: int) -> Measured:
        """Tokens a second of several replies to one prompt, which is computed once."""
        times_s, tokens = self._replies(self._prompt(prompt_tokens), num_tokens, num_streams)
        return Measured(steady_rate(times_s), check=[float(token) for token in tokens], facts={"tokens": len(tokens)})

    def memory(self) -> Measured:
        """Largest resident set of this process so far."""
        return Measured(peak_bytes())

    def _prompt(self, num_tokens: int) -> list[int]:
        if num_tokens != self.prompt_tokens:
            self.prompt_tokens, self._reference = num_tokens, None
        return self.reference.prompt


def top_log_probs(logits: object) -> tuple[list[int], list[float]]:
    """The `TOP` most probable tokens of logits (V,), and their log-probabilities."""
    import numpy as np

    values = np.asarray(logits, dtype=np.float64)
    values = values - values.max()
    values -= np.log(np.exp(values).sum())
    ids = np.argsort(-values)[:TOP]
    return [int(index) for index in ids], [float(value) for value in values[ids]]
