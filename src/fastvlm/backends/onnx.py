"""Backend on ONNX Runtime: the three files of ``fastvlm export --to onnx`` behind the engine's protocol.

A CPU backend without batches: the rows of a decoding step run one after the other. T tokens, N visual tokens an image,
D decoder width, V vocabulary, K key/value heads of width E.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvlm.config import DecoderConfig
from fastvlm.errors import CheckpointError, MissingExtraError, UsageError

VISION, EMBED, DECODER = "vision_encoder", "embed_tokens", "decoder_model_merged"
SESSIONS = (VISION, EMBED, DECODER)
# Variant -> suffix of its files, as transformers.js spells them.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}
_CHUNK_TOKENS = 64

Array = NDArray[Any]


class OnnxBackend:
    """A :class:`fastvlm.backends.backend.Backend` on ONNX Runtime's CPU provider.

    Args:
        folder: of ``fastvlm export --to onnx``; its files lie in the subfolder ``onnx``.
        config: of the decoder.
        variants: session -> variant, a key of SUFFIXES.
        num_slots: sequences whose keys and values are held.
        threads: of ONNX Runtime; 0 for its default.
        packs_weights: False to compute from weights as they are in the files: slower, without a second copy of them.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        CheckpointError: a file is missing, or onnxruntime cannot open it.
    """

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig,
        variants: Mapping[str, str],
        num_slots: int = 4,
        threads: int = 0,
        *,
        packs_weights: bool = True,
    ) -> None:
        self._sessions = {
            name: _session(folder, name, variants[name], threads, packs_weights=packs_weights) for name in SESSIONS
        }
        inputs = {port.name: port for port in self._sessions[DECODER].get_inputs()}
        self._past_names = [name for name in inputs if name.startswith("past_key_values.")]
        cache_dtype = np.float16 if inputs[self._past_names[0]].type == "tensor(float16)" else np.float32
        self._empty: Array = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), dtype=cache_dtype)
        self._caches = [[self._empty] * len(self._past_names) for _ in range(num_slots)]
        self._config = config

    device = torch.device("cpu")
    dtype = torch.float32
    chunk_tokens = _CHUNK_TOKENS
    encodes_singly = True

    @property
    def num_slots(self) -> int:
        """Sequences in the KV cache."""
        return len(self._caches)

    @property
    def context(self) -> int:
        """Maximum tokens of one slot, prompt and reply."""
        return self._config.max_position_embeddings

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache per token."""
        return self._config.kv_bytes_per_token(self._empty.itemsize)

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (I, N, D) of pixel_values (I, 3, H, W) in [0, 1], the return value."""
        yield from ()
        (features,) = self._sessions[VISION].run(None, {"pixel_values": pixel_values.float().numpy()})
        return torch.from_numpy(features)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        (embeds,) = self._sessions[EMBED].run(None, {"input_ids": np.array([token_ids], dtype=np.int64)})
        return torch.from_numpy(embeds[0])

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor:
        """Prefill `embeds` (T, D) into `slot` at position `start`; return the last token's logits (1, V).

        The file computes the head together with the layers, so logits stand where other backends give hidden states.
        """
        return self._run(embeds, slot, start, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` itself, which are logits."""
        return hidden

    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token in each of `slots`, or several of one, at `positions`."""
        rows = list(zip(token_ids, slots, positions, strict=True))
        logits = []
        for slot, group in groupby(rows, key=lambda row: row[1]):
            tokens, _, places = zip(*group, strict=True)
            logits.append(self._run(self.embed(tokens), slot, places[0], len(tokens)))
        return torch.cat(logits)

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        """Copy keys and values of the first `num_tokens` of slot `source` to slot `target`."""
        self._caches[target] = [_first_tokens(array, num_tokens) for array in self._caches[source]]

    def check_weights(self) -> None:
        """Nothing: the runtime holds the weights."""

    def _run(self, embeds: Tensor, slot: int, start: int, num_logits: int) -> Tensor:
        """Logits (num_logits, V) of the last of `embeds` (T, D), which follow the slot's first `start` tokens."""
        past = [_first_tokens(array, start) for array in self._caches[slot]]
        length = len(embeds)
        inputs = {
            "inputs_embeds": embeds[None].float().numpy(),
            "attention_mask": np.ones((1, start + length), dtype=np.int64),
            "position_ids": np.arange(start, start + length, dtype=np.int64)[None],
            "num_logits_to_keep": np.array(num_logits, dtype=np.int64),
            **dict(zip(self._past_names, past, strict=True)),
        }
        logits, *self._caches[slot] = self._sessions[DECODER].run(None, inputs)
        return torch.from_numpy(logits[0])


def _first_tokens(array: Array, num_tokens: int) -> Array:
    """Keys or values (1, K, P, E) of the first `num_tokens`; `array` itself if it has no more."""
    return array if array.shape[2] == num_tokens else np.ascontiguousarray(array[:, :, :num_tokens])


def chosen_variants(dtype: str, written: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """Session -> variant for `dtype`: a variant for all sessions, or "auto" for the folder's defaults.

    Raises:
        UsageError: a variant that the folder does not have.
    """
    if dtype == "auto":
        return {name: defaults[name] for name in SESSIONS}
    if dtype not in written:
        raise UsageError(f"dtype is {dtype!r}; this folder has {', '.join(written)}. Name one of them, or 'auto'.")
    return dict.fromkeys(SESSIONS, dtype)


def _session(folder: Path, name: str, variant: str, threads: int, *, packs_weights: bool) -> Any:
    try:
        ort: Any = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "onnx", "Running an ONNX model") from error
    file = folder / "onnx" / f"{name}{SUFFIXES[variant]}.onnx"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing. Export the checkpoint again: fastvlm export MODEL TARGET --to onnx")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors; warnings concern the graph's author
    if not packs_weights:
        settings.add_session_config_entry("session.disable_prepacking", "1")
        settings.enable_cpu_mem_arena = False  # which takes up to twice what is needed
        if variant == "fp32":  # float16 ones become float32, one by one while folding, else all of them in each call
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has classes of its own for each kind
        raise CheckpointError(f"onnxruntime cannot open {file}: {error}. Export the checkpoint again.") from error
