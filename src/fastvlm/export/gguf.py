"""The decoder of a checkpoint as a GGUF file, which llama.cpp reads (architecture ``qwen2``).

A tied head has no tensor of its own. llama.cpp has no FastViTHD, so visual tokens come from elsewhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvlm.config import Bits
from fastvlm.errors import CheckpointError, MissingExtraError
from fastvlm.formats.checkpoint import Checkpoint
from fastvlm.formats.json_files import read_tokenizer_json
from fastvlm.formats.names import DECODER, EMBEDDING, HEAD

# Bits -> (type of the layers' matrices, type of embedding and head), by their names in the gguf package.
TYPES: dict[int, tuple[str, str]] = {16: ("BF16", "BF16"), 8: ("Q8_0", "Q8_0"), 4: ("Q4_0", "Q8_0")}


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary as GGUF holds it.

    Args:
        tokens: text of each id, in the tokenizer's byte alphabet.
        kinds: of each id, a name of gguf's TokenType.
        merges: pairs of tokens with a space between them.
    """

    tokens: Sequence[str]
    kinds: Sequence[str]
    merges: Sequence[str]

    @classmethod
    def of_numbers(cls, num_tokens: int) -> Vocabulary:
        """Made-up names, for a file that only token ids go into and come out of: token 7 is "t7"."""
        return cls([f"t{index}" for index in range(num_tokens)], ["NORMAL"] * num_tokens, ["t 0"])

    @classmethod
    def of_file(cls, file: Path, num_tokens: int) -> Vocabulary:
        """The vocabulary of a ``tokenizer.json``; ids without a token get fillers that no text gives.

        Raises:
            CheckpointError: the file is not that of a byte-level BPE tokenizer with ids below `num_tokens`.
        """
        content = read_tokenizer_json(file)
        try:
            _check_byte_level(content)
            return cls._of_content(content, num_tokens)
        except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise CheckpointError(
                f"{file} cannot be written as GGUF. Expected a byte-level BPE tokenizer like Qwen2's, with ids below "
                f"{num_tokens}; {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def _of_content(cls, content: Mapping[str, Any], num_tokens: int) -> Vocabulary:
        tokens, kinds = [f"[PAD{index}]" for index in range(num_tokens)], ["UNUSED"] * num_tokens
        for token, index in content["model"]["vocab"].items():
            tokens[index], kinds[index] = token, "NORMAL"
        for added in content["added_tokens"]:
            if added["id"] < num_tokens:
                kind = "CONTROL" if added["special"] else "USER_DEFINED"
                tokens[added["id"]], kinds[added["id"]] = added["content"], kind
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
        return cls(tokens, kinds, merges)


def _check_byte_level(content: Mapping[str, Any]) -> None:
    """Raise ValueError if a tokenizer is not byte-level BPE."""
    kind = content["model"]["type"]
    steps = content["pre_tokenizer"].get("pretokenizers", [content["pre_tokenizer"]])
    names = [step["type"] for step in steps]
    if kind != "BPE" or "ByteLevel" not in names:
        raise ValueError(f"this is {kind} behind {', '.join(names)}")


def write_gguf(checkpoint: Checkpoint, bits: Bits, file: Path, vocabulary: Vocabulary | None = None) -> None:
    """Write the decoder of `checkpoint` to `file`, its matrices in the type of `bits` in TYPES.

    Args:
        checkpoint: the weights.
        bits: 16, 8 or 4.
        file: is overwritten.
        vocabulary: of the tokenizer; None for made-up names.

    Raises:
        MissingExtraError: the package gguf is not installed.
    """
    try:
        gguf: Any = importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf", "gguf", "Writing a GGUF file") from error
    writer = gguf.GGUFWriter(file, "qwen2")
    _write_sizes(writer, checkpoint)
    known = Vocabulary.of_numbers(checkpoint.tensors[EMBEDDING].shape[0]) if vocabulary is None else vocabulary
    _write_tokens(gguf, writer, known, checkpoint)
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


def _write_tokens(gguf: Any, writer: Any, vocabulary: Vocabulary, checkpoint: Checkpoint) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([gguf.TokenType[kind] for kind in vocabulary.kinds])
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_eos_token_id(min(checkpoint.stop_token_ids))
    writer.add_add_bos_token(False)
