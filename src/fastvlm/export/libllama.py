"""libllama by ctypes: a GGUF decoder that is fed embeddings and tokens of one sequence, and its tokenizer.

libllama is llama.cpp's C library; the one inside the package xllamacpp is taken if none is named. Of its parameter
structures only the first fields are declared here: the library fills the rest in and gets it back as it was.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections import deque
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.backends.native.openmp import usable_cores
from fastvlm.errors import CheckpointError, ContextLengthError, ExportError, MissingExtraError

PACKAGE = "xllamacpp"
_PARAMETER_BYTES = 2048  # more than either parameter structure has
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _ModelParameters(ctypes.Structure):
    _fields_ = (("rest", ctypes.c_uint64 * (_PARAMETER_BYTES // 8)),)


class _ContextParameters(ctypes.Structure):
    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * (_PARAMETER_BYTES // 8)),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


# Function -> type of its result, types of its arguments.
_P, _I, _B, _S = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_char_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LogCallback, _P)),
    "llama_model_default_params": (_ModelParameters, ()),
    "llama_model_load_from_file": (_P, (_S, _ModelParameters)),
    "llama_model_free": (None, (_P,)),
    "llama_model_n_embd": (_I, (_P,)),
    "llama_model_get_vocab": (_P, (_P,)),
    "llama_context_default_params": (_ContextParameters, ()),
    "llama_init_from_model": (_P, (_P, _ContextParameters)),
    "llama_free": (None, (_P,)),
    "llama_set_n_threads": (None, (_P, _I, _I)),
    "llama_get_memory": (_P, (_P,)),
    "llama_memory_clear": (None, (_P, _B)),
    "llama_batch_init": (_Batch, (_I, _I, _I)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (_I, (_P, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_P, _I)),
    "llama_vocab_n_tokens": (_I, (_P,)),
    "llama_tokenize": (_I, (_P, _S, _I, ctypes.POINTER(_I), _I, _B, _B)),
    "llama_detokenize": (_I, (_P, ctypes.POINTER(_I), _I, ctypes.POINTER(ctypes.c_char), _I, _B, _B)),
}


class LibLlama:
    """A decoder in libllama with room for one sequence; T tokens, D decoder width, V tokens of the vocabulary.

    Args:
        file: of ``fastvlm export --to gguf``.
        num_tokens: of prompt and reply together, at most.
        threads: 0 for as many as this process may use cores; more would wait for each other.
        library: path of libllama; None for the one inside xllamacpp.

    Raises:
        MissingExtraError: no library is named, and xllamacpp is not installed.
        CheckpointError: llama.cpp cannot read the file.
    """

    def __init__(
        self, file: str | os.PathLike[str], num_tokens: int = 4096, threads: int = 0, library: str | None = None
    ) -> None:
        self._model = self._context = None
        self._lib = _library(library)
        self._lib.llama_log_set(_log_error, None)
        self._lib.llama_backend_init()
        self._model = self._lib.llama_model_load_from_file(os.fsencode(file), self._lib.llama_model_default_params())
        if not self._model:
            raise CheckpointError(f"llama.cpp cannot read {file}: {_last_errors()}")
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = self.num_tokens = num_tokens
        self._context = self._lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ExportError(f"llama.cpp has no memory for {num_tokens} tokens: {_last_errors()}")
        threads = threads or usable_cores()
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self.width: int = self._lib.llama_model_n_embd(self._model)
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary_tokens: int = self._lib.llama_vocab_n_tokens(self._vocabulary)

    def prefill(self, embeds: NDArray[np.float32], start: int = 0) -> NDArray[np.float32]:
        """Logits (V,) behind `embeds` (T, D), which follow `start` tokens; 0 empties the cache first."""
        if not start:
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        values = np.ascontiguousarray(embeds, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != self.width:
            raise ExportError(f"embeds has the shape {values.shape}; expected (tokens, {self.width}).")
        batch = self._lib.llama_batch_init(len(values), self.width, 1)
        ctypes.memmove(batch.embd, values.ctypes.data, values.nbytes)
        return self._decoded(batch, len(values), start)

    def decode(self, token_id: int, position: int) -> NDArray[np.float32]:
        """Logits (V,) behind one more token, which is at `position`."""
        batch = self._lib.llama_batch_init(1, 0, 1)
        batch.token[0] = token_id
        return self._decoded(batch, 1, position)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text; the names of special tokens in it become these tokens."""
        raw = text.encode()
        found = (_I * (len(raw) + 1))()
        count = self._lib.llama_tokenize(self._vocabulary, raw, len(raw), found, len(found), False, True)
        if count < 0:
            raise ExportError(f"llama.cpp needs {-count} tokens for {len(raw)} bytes.")
        return list(found[:count])

    def detokenize(self, token_ids: list[int]) -> str:
        """The text of token ids, special tokens by their names; bytes that are not UTF-8 are replaced."""
        ids = (_I * len(token_ids))(*token_ids)
        size = 16 + 8 * len(token_ids)
        for _ in range(2):  # a negative count says how many bytes it would be
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_detokenize(self._vocabulary, ids, len(ids), buffer, size, False, True)
            if count >= 0:
                break
            size = -count
        return buffer.raw[:count].decode(errors="replace")

    def close(self) -> None:
        """Release the memory."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._model = self._context = None

    def __enter__(self) -> LibLlama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decoded(self, batch: Any, length: int, start: int) -> NDArray[np.float32]:
        """Logits behind the `length` tokens of `batch`, which is released."""
        try:
            if start + length > self.num_tokens:
                raise ContextLengthError(f"{start + length} tokens do not fit: num_tokens is {self.num_tokens}.")
            batch.n_tokens = length
            for index in range(length):
                batch.pos[index], batch.n_seq_id[index], batch.seq_id[index][0] = start + index, 1, 0
                batch.logits[index] = index == length - 1
            if code := self._lib.llama_decode(self._context, batch):
                raise ExportError(f"llama.cpp failed with code {code}: {_last_errors()}")
            values = self._lib.llama_get_logits_ith(self._context, length - 1)
            return np.ctypeslib.as_array(values, (self.vocabulary_tokens,)).copy()
        finally:
            self._lib.llama_batch_free(batch)


_ERRORS: deque[str] = deque(maxlen=2)  # the library's last messages


def _note_error(level: int, text: bytes, _data: int | None) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        _ERRORS.append(text.decode(errors="replace").strip())


_log_error = _LogCallback(_note_error)  # the library keeps a pointer to it


def _last_errors() -> str:
    return " ".join(_ERRORS) or "it gives no reason"


def _library(path: str | None) -> Any:
    """libllama with the types of _FUNCTIONS."""
    if path is None:
        try:
            path = importlib.import_module(f"{PACKAGE}.{PACKAGE}").__file__
        except ModuleNotFoundError as error:
            raise MissingExtraError(PACKAGE, "peers", "Running a GGUF file") from error
    lib = ctypes.CDLL(path)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
