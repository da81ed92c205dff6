"""The decoder of a checkpoint as a GGUF file, which llama.cpp reads (architecture ``qwen2``).

Tokens have made-up names, because only token ids go in and come out. A tied head has no tensor of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvlm.bench.peers_folder import add_runtimes_folder
from fastvlm.config import Bits
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.names import DECODER, EMBEDDING, HEAD

# Bits -> (type of the layers' matrices, type of embedding and head), by their names in the gguf package.
TYPES: dict[int, tuple[str, str]] = {16: ("BF16", "BF16"), 8: ("Q8_0", "Q8_0"), 4: ("Q4_0", "Q8_0")}


def write_gguf(checkpoint: Checkpoint, bits: Bits, file: Path) -> None:
    """Write the decoder of `checkpoint` to `file`, its matrices in the type of `bits` in TYPES.

    Raises:
        ModuleNotFoundError: the package gguf is not installed.
    """
    add_runtimes_folder()
    gguf: Any = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(file, "qwen2")
    _write_sizes(writer, checkpoint)
    _write_tokens(gguf, writer, checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, checkpoint.config.text_config.num_hidden_layers)
    for name, tensor in _decoder_tensors(checkpoint):
        layers, ends = TYPES[bits]
        kind = gguf.GGMLQuantizationType["F32" if tensor.dim() == 1 else ends if name in (EMBEDDING, HEAD) else layers]
        data = tensor.float().numpy()
        if kind.name == "BF16":  # the stored numbers, as bytes
            data = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
        elif kind.name != "F32":
            data = gguf.quantize(data, kind)
        renamed = names.get_name(name.replace(DECODER, "model."), (".weight", ".bias"))
        suffix = name[name.rindex(".") :]
        writer.add_tensor(renamed if renamed.endswith(suffix) else renamed + suffix, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _decoder_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for name in sorted(checkpoint.tensors):
        if name.startswith(DECODER) or name == HEAD:
            yield name, checkpoint.tensors[name]


def _write_sizes(writer: Any, checkpoint: Checkpoint) -> None:
    sizes = checkpoint.config.text_config
    writer.add_block_count(sizes.num_hidden_layers)
    writer.add_context_length(sizes.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_head_count(sizes.num_attention_heads)
    writer.add_head_count_kv(sizes.num_key_value_heads)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_rope_freq_base(sizes.rope_theta)


def _write_tokens(gguf: Any, writer: Any, checkpoint: Checkpoint) -> None:
    num_tokens = checkpoint.tensors[EMBEDDING].shape[0]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{index}" for index in range(num_tokens)])
    writer.add_token_types([gguf.TokenType.NORMAL] * num_tokens)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(min(checkpoint.stop_token_ids))
    writer.add_add_bos_token(False)


def convert(folder: str, file: Path, bits: Bits) -> None:
    """Write the decoder of the checkpoint in `folder` to `file`, which appears when it is whole."""
    from fastvlm.opening import open_checkpoint

    part = file.with_name(f".{file.name}.part")
    write_gguf(open_checkpoint(folder), bits, part)
    part.replace(file)
