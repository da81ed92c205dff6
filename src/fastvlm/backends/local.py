"""Backend of one process on one device, and the choice of its kernels.

CPU: the encoder runs on NHWC maps in short steps; the decoder's weights are packed once or used where they are. GPU:
PyTorch layers with CUDA graphs. `kernels="reference"` uses PyTorch layers everywhere, for comparisons.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fastvlm.backends.cpu.int4 import int4_linear
from fastvlm.backends.cpu.int8 import int8_linear, rounded_to_int8
from fastvlm.backends.cpu.linear import PackedLinears
from fastvlm.backends.cpu.probe import cpu_kernels
from fastvlm.backends.decoder import Decoder
from fastvlm.backends.decoder_weights import DecoderWeights, prepare_decoder
from fastvlm.backends.devices import as_dtype
from fastvlm.backends.image_encoder import ImageEncoder, SteppedImageEncoder, TorchImageEncoder, images_dtype
from fastvlm.backends.linear import Linear, LinearMaker, joined, joined_biases, plain_linears
from fastvlm.backends.native.linear import NativeLinears, has_native_linears, native_linear
from fastvlm.config import BITS, ENCODER_BITS, Bits, EncoderBits
from fastvlm.errors import UsageError
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.mapped_files import MappedFiles
from fastvlm.formats.names import EMBEDDING
from fastvlm.formats.rounding import GROUP_SIZES, Int8Weight, RoundedWeight, quantize_int4

Kernels = Literal["fast", "reference"]
_CHUNK_TOKENS = 64  # CPU only; on a GPU a prompt takes hardly longer than a token
_CONTEXT_TOKENS = 8192  # default on a GPU, where the KV cache is allocated at once


class LocalBackend:
    """A :class:`fastvlm.backends.backend.Backend` on a device of this machine; made by :func:`make_backend`.

    Args:
        images, decoder: image encoder and decoder; the decoder's weights may be shared.
        files: the files that weights are mapped from.
        key: the checkpoint's key.
    """

    def __init__(
        self, images: ImageEncoder, decoder: Decoder, files: MappedFiles | None = None, key: object = None
    ) -> None:
        self.images, self.decoder, self._files, self.key = images, decoder, files, key

    @property
    def weights(self) -> DecoderWeights:
        """The decoder's weights; replicas hold the same object."""
        return self.decoder.weights

    @property
    def device(self) -> torch.device:
        """Device of the computation."""
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder."""
        return self.decoder.dtype

    @property
    def num_slots(self) -> int:
        """Sequences in the KV cache."""
        return self.decoder.cache.num_slots

    @property
    def context(self) -> int:
        """Maximum tokens of one slot, prompt and reply."""
        return self.decoder.cache.context

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache per token."""
        return self.decoder.cache.bytes_per_token

    @property
    def chunk_tokens(self) -> int | None:
        """Prompt tokens to prefill at once while other requests decode; None for all."""
        return _CHUNK_TOKENS if self.device.type == "cpu" else None

    @property
    def encodes_singly(self) -> bool:
        """True if images should be passed one by one."""
        return self.images.is_stepped

    def encode(self, pixel_values: Tensor) -> Generator[None, None, Tensor]:
        """Image embeddings (I, N, D) of pixel_values (I, 3, H, W) in [0, 1], the return value."""
        return self.images(pixel_values)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Token embeddings (T, D)."""
        return self.decoder.embed(token_ids)

    def prefill_chunk(self, embeds: Tensor, slot: int, start: int) -> Tensor:
        """Prefill `embeds` (T, D) into `slot` at position `start`; return the last token's hidden state (1, D)."""
        return self.decoder.prefill_chunk(embeds, slot, start)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (T, V) of hidden states (T, D)."""
        return self.decoder.logits(hidden)

    def decode(self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (B, V) after one more token in each of `slots`, or several of one, at `positions`."""
        return self.decoder.decode(token_ids, slots, positions)

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        """Copy keys and values of the first `num_tokens` of slot `source` to slot `target`."""
        self.decoder.cache.copy_prefix(source, target, num_tokens)

    def replica(self, num_slots: int, context: int) -> LocalBackend:
        """A backend on the same weights with its own KV cache; the two may run in different threads."""
        has_fixed_shapes = self.decoder.fixed is not None
        decoder = Decoder(self.weights, num_slots, context, has_fixed_shapes=has_fixed_shapes)
        return LocalBackend(self.images.replica(), decoder, self._files, self.key)

    def check_weights(self) -> None:
        """Raise CheckpointError if a file that weights are mapped from has changed."""
        if self._files is not None:
            self._files.check()


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """The fast dtype on `device`; None for the checkpoint's own.

    This is float32 on a CPU without bfloat16 arithmetic (most laptops), where bfloat16 is emulated: float32 takes twice
    the memory and a fraction of the time (docs/performance.md).
    """
    return torch.float32 if device.type == "cpu" and not cpu_kernels().has_fast_bfloat16 else None


def compute_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype that `name` asks for on `device`: "auto" for :func:`fast_dtype`; None for the checkpoint's own.

    Raises:
        UsageError: not a dtype that a FastVLM is computed in.
    """
    return fast_dtype(device) if name == "auto" else as_dtype(name)


def make_backend(
    checkpoint: Checkpoint,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    bits: Bits = 16,
    encoder_bits: EncoderBits = 16,
    num_slots: int = 4,
    context: int | None = None,
    kernels: Kernels = "fast",
    base: LocalBackend | None = None,
) -> LocalBackend:
    """Build a backend for `checkpoint` on `device`.

    Args:
        checkpoint: not modified; it can be used afterwards.
        device: None for the device of its tensors.
        dtype: dtype of the computation; None for the checkpoint's own. Weights are converted one by one, so mapped
            weights never exist in `dtype` as a whole.
        bits: of the decoder's weights on a CPU. 16 keeps them as the checkpoint has them: in its floating dtype, or in
            the 8 or 4 bits that ``fastvlm quantize`` stored. With 4 bits the head keeps 8.
        encoder_bits: of the image encoder's weights on a CPU. 8 rounds those of its large linear layers, and computes
            with activations of 8 bits; 16 keeps them as the checkpoint has them, which may be 8.
        num_slots: sequences at the same time.
        context: maximum tokens of one sequence, prompt and reply; None for the model's own on a CPU, where only used
            tokens take memory, and for at most 8192 elsewhere.
        kernels: "reference" for PyTorch layers without graphs.
        base: a backend with the same device, dtype, bits, encoder bits and kernels, for this checkpoint or for the one
            that ``checkpoint.changed`` refers to: weights of unchanged tensors are shared. The two may run in different
            threads.

    Raises:
        UsageError: bits that this checkpoint or device does not support, or a context out of range.
    """
    device = checkpoint.tensors[EMBEDDING].device if device is None else device
    dtype = checkpoint.dtype if dtype is None else dtype
    _check_bits(bits, checkpoint.bits, device)
    _check_encoder_bits(encoder_bits, device, kernels)
    context = _context(checkpoint, context, device)
    if base is not None and base.key is checkpoint.key:
        return base.replica(num_slots, context)
    is_fast = kernels == "fast"
    has_graphs = is_fast and device.type == "cuda"
    images: ImageEncoder
    if is_fast and device.type == "cpu":
        shared = base.images if base is not None and isinstance(base.images, SteppedImageEncoder) else None
        images = SteppedImageEncoder(checkpoint, images_dtype(dtype), encoder_bits, shared)
    else:
        images = TorchImageEncoder(checkpoint, images_dtype(dtype), device, has_graphs=has_graphs)
    make = _linears(bits, dtype) if is_fast and device.type == "cpu" else plain_linears(device, dtype)
    rounded = partial(_rounded_linear, dtype=dtype, device=device)
    weights = prepare_decoder(checkpoint, make, rounded, dtype, device, None if base is None else base.weights)
    decoder = Decoder(weights, num_slots, context, has_fixed_shapes=has_graphs)
    return LocalBackend(images, decoder, checkpoint.files if device.type == "cpu" else None, checkpoint.key)


def _check_bits(bits: Bits, stored: int | None, device: torch.device) -> None:
    if bits not in BITS:
        raise UsageError(f"bits is {bits!r}; expected 16, 8 or 4.")
    if bits != 16 and device.type != "cpu":
        raise UsageError(f"bits is {bits}, but the model is on {device}; weights of 8 and 4 bits need a CPU.")
    if stored is not None and bits not in (16, stored):
        raise UsageError(
            f"bits is {bits}, but this checkpoint is stored in {stored} bits. Leave bits at 16, or use the "
            "checkpoint that it was made from."
        )


def _check_encoder_bits(bits: EncoderBits, device: torch.device, kernels: Kernels) -> None:
    if bits not in ENCODER_BITS:
        raise UsageError(f"encoder_bits is {bits!r}; expected 16 or 8.")
    if bits != 16 and device.type != "cpu":
        raise UsageError(f"encoder_bits is {bits}, but the model is on {device}; weights of 8 bits need a CPU.")
    if bits != 16 and kernels != "fast":
        raise UsageError(f"encoder_bits is {bits}, but kernels is {kernels!r}, whose encoder has no weights of 8 bits.")


def _context(checkpoint: Checkpoint, asked: int | None, device: torch.device) -> int:
    own = checkpoint.config.text_config.max_position_embeddings
    if asked is None:
        return own if device.type == "cpu" else min(own, _CONTEXT_TOKENS)
    if not 1 < asked <= own:
        raise UsageError(f"context is {asked} tokens; expected 2 to {own}, which this model was made for.")
    return asked


def _linears(bits: Bits, dtype: torch.dtype) -> LinearMaker:
    """The maker of a CPU's linear layers from floating weights."""
    if has_native_linears(dtype):
        return NativeLinears(partial(_native_form, bits=bits, dtype=dtype), dtype)
    if bits == 16:
        return PackedLinears(dtype)

    def make(weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, is_head: bool) -> Linear:
        weight, bias = joined(weights), joined_biases(biases)
        return int8_linear(weight, bias) if bits == 8 or is_head else int4_linear(weight, bias)

    return make


def _native_form(weight: Tensor, is_head: bool, *, bits: Bits, dtype: torch.dtype) -> Tensor | RoundedWeight:
    """The operand of the compiled kernels: `weight` (out, in) in bfloat16 or float32, or rounded."""
    if bits == 16:  # bfloat16 is read as it is, whatever the dtype of the computation
        return (weight if weight.dtype == torch.bfloat16 else weight.to(dtype)).contiguous()
    has_groups = weight.shape[1] % GROUP_SIZES[0] == 0
    if bits == 8 or is_head or not has_groups:
        return rounded_to_int8(weight)
    return quantize_int4(weight, GROUP_SIZES[0])


def _rounded_linear(weight: RoundedWeight, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device) -> Linear:
    """The layer of a weight that is stored in 8 or 4 bits; on other devices than a CPU it computes in `dtype`."""
    if device.type != "cpu":
        return plain_linears(device, dtype)([weight.dequantize()], [bias], is_head=False)
    native = native_linear([weight], [bias], dtype)
    if native is not None:
        return native
    return int8_linear(weight, bias) if isinstance(weight, Int8Weight) else int4_linear(weight, bias)
