"""What this machine allows at most, by measure: from its measured peaks and the model's costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastvlm.backends.native.library import LEVELS, SWITCH, TORCH
from fastvlm.bench.costs import decoded_token_bytes, decoder_weights, encoder_flops, prefill_flops
from fastvlm.bench.plan import Case, Contestant
from fastvlm.bench.worker import Measured
from fastvlm.hf.config import FastVlmConfig

BANDWIDTH = "bandwidth"
# Levels of the peaks, the best first; torch's are a GPU's, or those of a machine without a compiler.
_LEVELS = tuple(dict.fromkeys([*(level.name for level in reversed(LEVELS)), "avx512", "avx2vnni", "avx2", TORCH]))


class Limits:
    """Limits of one run.

    Args:
        config: the model's.
        peaks: bytes a second of `BANDWIDTH`, and operations a second by level and number type, such as "avx2 int8".
        prompt_tokens: length of the prompts behind which replies are decoded.
    """

    def __init__(self, config: FastVlmConfig, peaks: Mapping[str, float], prompt_tokens: int) -> None:
        self._config, self._peaks, self._prompt_tokens = config, peaks, prompt_tokens
        self._encoder: dict[int, int] = {}  # FLOPs by the image's side

    def best(self, measure: str, case: Case, contestant: Contestant, samples: Sequence[Measured]) -> float | None:
        """The best value of a measure, in its unit; None where there is no limit or no peak.

        Weights are taken as they are stored (16, 8 or 4 bits), products in the contestant's number type, where weights
        of 8 and 4 bits allow products of 8 bits. Everything that is no product costs nothing.
        """
        dtype, bits, sizes = contestant.dtype, contestant.bits, dict(case)
        decoder_peak = self._peak(contestant, "int8" if bits < 16 else dtype)
        encoder_peak = self._peak(contestant, "int8" if contestant.encoder_bits == 8 else dtype)
        if decoder_peak is None or encoder_peak is None:
            return None
        seconds = 0.0
        if measure in ("encode", "ttft"):
            seconds += self._encoder_flops(sizes["side_px"]) / encoder_peak
        if measure in ("prefill", "ttft") and "tokens" in samples[0].facts:
            seconds += prefill_flops(self._config, int(samples[0].facts["tokens"])) / decoder_peak
        if measure in ("decode", "throughput"):
            return self._tokens_per_second(bits, sizes.get("streams", 1), decoder_peak)
        return seconds or None

    def _tokens_per_second(self, bits: int, num_streams: int, peak: float) -> float | None:
        if BANDWIDTH not in self._peaks:
            return None
        read = decoded_token_bytes(self._config, bits, num_streams * self._prompt_tokens)
        computed = 2 * num_streams * decoder_weights(self._config)
        return num_streams / max(read / self._peaks[BANDWIDTH], computed / peak)

    def _peak(self, contestant: Contestant, number: str) -> float | None:
        """Operations a second of `number` or of float32, whichever is more, by the levels that a contestant may use."""
        level = contestant.environment.get(SWITCH, _LEVELS[0])
        levels = _LEVELS if level == TORCH else _LEVELS[_LEVELS.index(level) :]
        wanted = {f"{name} {kind}" for name in levels for kind in (number, "float32")}
        return max((peak for name, peak in self._peaks.items() if name in wanted), default=None)

    def _encoder_flops(self, side_px: int) -> int:
        if side_px not in self._encoder:
            self._encoder[side_px] = encoder_flops(self._config, side_px, side_px)
        return self._encoder[side_px]
