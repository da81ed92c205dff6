"""A small tokenizer in Qwen2's format, trained on the spot: byte-level BPE with Qwen2's special tokens."""

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

TEXTS = [
    "What is shown in this image? How many circles are there? You are a helpful assistant.",
    "system user assistant The image shows a red square and a blue triangle. Describe the image.",
]


@functools.cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE trained on TEXTS, through tokenizers' own trainer."""
    import json

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def small_tokenizer(*, with_image: bool = True) -> Qwen2Tokenizer:
    """Ids: the byte-level vocabulary, then <|endoftext|>, <|im_start|>, <|im_end|> and, if asked for, <image>."""
    vocabulary, merges = _vocabulary()
    tokenizer = Qwen2Tokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
    )
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(["<image>"] if with_image else [])]
    tokenizer.add_tokens([AddedToken(m, special=True, normalized=False) for m in marks], special_tokens=True)
    return tokenizer
