"""Limits of texts, checked without tokenizing them: tokenizing takes seconds per megabyte."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from llguidance import LLTokenizer

from fastvlm.processing.prompt import SPECIAL_TOKENS
from fastvlm.processing.tokenizer import TokenizerLike
from fastvlm.server.http.errors import invalid

_PIECE_CHARACTERS = 2**16
_SEAM_BYTES = 16  # NFC may shorten the text by this much where two pieces meet: a letter and three marks, 4 bytes each
_LETTERS = bytes(byte for byte in range(128) if chr(byte).isalnum())
_HIGH = bytes(range(128, 256))
_OTHERS = bytes(byte for byte in range(128) if not chr(byte).isalnum())
# One bound per class, because tokens of some classes are short (words) and of others long (runs of spaces or dashes).
_CLASSES = (_LETTERS, _HIGH, _OTHERS)


class TextLimits:
    """Limits for the texts of one request, for a byte-level tokenizer that normalizes to NFC or not at all, as Qwen2's.

    Args:
        tokens: llguidance's view of the tokenizer.
        tokenizer: the model's.
        max_tokens: tokens of a prompt.
    """

    def __init__(self, tokens: LLTokenizer, tokenizer: TokenizerLike, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        contents = [tokens.decode_bytes([token_id]) for token_id in range(tokens.vocab_size)]
        # For each class of bytes, the largest number of them in one token of the vocabulary.
        self._longest = [max(_count(data, members) for data in contents) for members in _CLASSES]
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special_tokens = tuple(dict.fromkeys([*SPECIAL_TOKENS, *added]))

    def check_length(self, texts: Iterable[str], param: str) -> None:
        """Refuse texts that certainly have more than the limit of tokens together.

        A byte-level tokenizer puts each byte of the NFC-normalized text into one token. So there are at least as many
        tokens as bytes of a class divided by the largest number of them in one token.

        Raises:
            ApiError: the texts are too long. Texts that pass may still be too long.
        """
        counts, num_characters = [0] * len(_CLASSES), 0
        for text in texts:
            for start in range(0, len(text), _PIECE_CHARACTERS):
                piece = text[start : start + _PIECE_CHARACTERS]
                num_characters += len(piece)
                data = unicodedata.normalize("NFC", piece).encode("utf-8", "surrogatepass")
                for index, members in enumerate(_CLASSES):
                    counts[index] += _count(data, members) - (_SEAM_BYTES if start else 0)
                limits = [self._max_tokens * most for most in self._longest]
                if any(count > limit for count, limit in zip(counts, limits, strict=True)):
                    raise invalid(
                        f"{param} is too long: its first {num_characters} characters alone are more than "
                        f"{self._max_tokens} tokens, which is the limit. Shorten it.",
                        param=param,
                        code="context_length_exceeded",
                    )

    def check_special_tokens(self, text: str, param: str) -> None:
        """Refuse a text with a special token: the model would read it as the end of a turn, or as an image.

        Raises:
            ApiError: names the token.
        """
        found = next((token for token in self._special_tokens if token in text), None)
        if found is not None:
            raise invalid(
                f"{param} contains {found!r}, which is a special token of the model. Remove it or rewrite it; send an "
                "image as a content part of type image_url.",
                param=param,
                code="invalid_prompt",
            )


def _count(data: bytes, members: bytes) -> int:
    """Number of bytes of `data` that are in `members`."""
    return len(data) - len(data.translate(None, members))
