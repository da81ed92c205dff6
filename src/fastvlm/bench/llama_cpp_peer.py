"""The contestant `llama.cpp`: the decoder alone, by the server inside the package xllamacpp, called without HTTP."""

from __future__ import annotations

import importlib
import time
from typing import Any

from fastvlm.bench.conversions import converted
from fastvlm.bench.decoder_peers import DecoderPeer
from fastvlm.bench.reference import TOP
from fastvlm.errors import MeasurementError

_ROOM_TOKENS = 256  # for a reply; llama.cpp rounds a slot's context up to a multiple of this


class LlamaCppDecoder(DecoderPeer):
    """llama.cpp with weights in BF16, Q8_0, or Q4_0 under a Q8_0 head. Arguments: see :class:`DecoderPeer`.

    The wheel of xllamacpp is compiled for AVX2; it uses neither AVX-512 nor AMX.
    """

    packages = ("xllamacpp", "gguf")

    def _open(self) -> None:
        file = converted("gguf-decoder", self.folder, self.work, f"decoder-{self.bits}.gguf", bits=self.bits)
        xllamacpp: Any = importlib.import_module("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        slot_tokens = -(-self.prompt_tokens // _ROOM_TOKENS) * _ROOM_TOKENS + _ROOM_TOKENS
        params.n_parallel, params.n_ctx = self.num_slots, self.num_slots * slot_tokens
        params.n_gpu_layers, params.cache_ram_mib = 0, 0
        params.verbosity, params.enable_chat_template, params.warmup = 0, False, False
        if self.threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        self._server = xllamacpp.Server(params)

    def _ask(self, prompt: list[int], num_tokens: int, on_chunk: Any = None, **options: Any) -> Any:
        greedy = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True, "cache_prompt": False}
        request = {"prompt": prompt, "n_predict": num_tokens, **greedy, **options}
        if on_chunk is None:
            return self._server.handle_completions(request)
        return self._server.handle_completions({**request, "stream": True}, on_chunk)

    def _log_probs(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        answer = self._ask(prompt, 1, n_probs=TOP)
        tops = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return [top["id"] for top in tops], [top["logprob"] for top in tops]

    def _replies(self, prompt: list[int], num_tokens: int, num_streams: int) -> tuple[list[list[float]], list[int]]:
        times_s: list[list[float]] = [[] for _ in range(num_streams)]
        texts: list[str] = []
        errors: list[Any] = []

        def on_chunk(chunk: dict[str, Any]) -> None:
            moment = time.perf_counter()
            for choice in chunk.get("choices", ()):
                if choice["text"]:
                    times_s[choice["index"]].append(moment)
                    texts.extend([choice["text"]] if choice["index"] == num_streams - 1 else [])
            errors.extend([chunk["error"]] if "error" in chunk else [])

        self._ask(prompt, num_tokens, on_chunk, **({"n": num_streams} if num_streams > 1 else {}))
        if errors or {len(times) for times in times_s} != {num_tokens}:
            counts = [len(times) for times in times_s]
            raise MeasurementError(f"llama.cpp gave {counts} tokens in place of {num_tokens} a reply. {errors or ''}")
        return times_s, [int(text[1:]) for text in texts]  # the file names token 7 "t7"
