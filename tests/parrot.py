"""A checkpoint whose every answer is known: it looks at images like any other, and then says its sentence.

The decoder is rigged to be a chain: embeddings are unit vectors, attention and feed-forward add nothing, and the head
holds one successor for each token. A prompt ends with a newline, so the newline's successor begins the sentence. The
tokenizer is Qwen2's kind (bytes as letters, ChatML tokens) without merges; the sentence's tokens are pieces of three
bytes, so that they end inside characters.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import Qwen2Tokenizer

from fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmImageProcessor, FastVlmProcessor

SENTENCE = "Grüße! A red circle — 你好, 世界 🙂.\nSecond line: 100 %."
SIZE_PX = 128
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
HIDDEN = 384
CONTEXT = 4096
_PIECE_BYTES = 3


def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {**{b: chr(b) for b in own}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def pieces(sentence: str) -> list[str]:
    """`sentence` cut into tokens of three bytes (the last has up to five), spelt in the vocabulary's letters."""
    letters, data = byte_letters(), sentence.encode()
    starts = list(range(0, max(len(data) - 2 * _PIECE_BYTES, 0) + 1, _PIECE_BYTES))
    ends = [*starts[1:], len(data)]
    cut = ["".join(letters[byte] for byte in data[a:b]) for a, b in zip(starts, ends, strict=True)]
    assert len(set(cut)) == len(cut), "each piece may stand in the sentence once: it has one successor"
    return cut


def tokenizer(sentence: str = SENTENCE) -> Qwen2Tokenizer:
    """Bytes, then the sentence's pieces (never met when encoding: there are no merges), then the special tokens."""
    vocabulary = {token: i for i, token in enumerate([*byte_letters().values(), *pieces(sentence)])}
    words = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None
    )
    words.add_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL], special_tokens=True)
    return words


def model(words: Qwen2Tokenizer, sentence: str = SENTENCE, *, is_endless: bool = False):
    """The rigged model; endless ones begin the sentence again instead of ending."""
    ids = {token: words.convert_tokens_to_ids(token) for token in SPECIAL}
    torch.manual_seed(0)
    config = FastVlmConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(words),
            "hidden_size": HIDDEN,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
            "max_position_embeddings": CONTEXT * (4 if is_endless else 1),
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": False,
        },
        vision_config={"model_args": {"layers": [1, 1, 1, 1, 1], "embed_dims": [8, 8, 16, 32, 32]}},
        image_token_index=ids["<image>"],
        image_seq_length=4,
    )
    parrot = FastVlmForConditionalGeneration(config).eval()
    chain = [words.convert_tokens_to_ids("Ċ"), *words.convert_tokens_to_ids(pieces(sentence))]
    successors = dict(zip(chain, [*chain[1:], chain[1] if is_endless else ids["<|im_end|>"]], strict=True))
    with torch.no_grad():
        for layer in parrot.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        parrot.get_input_embeddings().weight.copy_(torch.eye(len(words), HIDDEN))
        parrot.lm_head.weight.zero_()
        for token in range(len(words)):
            parrot.lm_head.weight[successors.get(token, ids["<|im_end|>"]), token] = 1.0
    return parrot


def save(folder: Path, sentence: str = SENTENCE, *, is_endless: bool = False) -> Path:
    """Write the checkpoint to `folder`, in the `fast_vlm` layout."""
    words = tokenizer(sentence)
    model(words, sentence, is_endless=is_endless).save_pretrained(folder)
    FastVlmProcessor(FastVlmImageProcessor(image_size=SIZE_PX), words).save_pretrained(folder)
    return folder
