"""Tokens in, text out, as they come: what is shown never ends inside a character.

This room's streamer for `generate`; it also stamps the moments that timings are made of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["TokenText"]

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for the first bytes of a character


class TokenText:
    """Turns the tokens of one reply into pieces of text that can be shown at once.

    The pieces put together equal the decoded reply without leading and trailing white space.

    Args:
        decode: token ids -> text without special tokens, the tokenizer's own.
        on_text: called with each piece, never empty.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        on_text: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._decode, self._on_text, self._clock = decode, on_text, clock
        self._is_prompt_next = True  # `generate` hands over the prompt before the reply
        self._context_start = self._shown_end = 0  # ids before `_shown_end` are shown
        self._pieces: list[str] = []
        self._held_space = ""
        self.token_ids: list[int] = []
        self.token_times_s: list[float] = []
        self.first_text_s: float | None = None

    @property
    def text(self) -> str:
        """What has been shown so far."""
        return "".join(self._pieces)

    def put(self, value: Any) -> None:
        """Take the prompt (first call; ignored) or the next token, an int64 tensor (1,) on the CPU."""
        if self._is_prompt_next:
            self._is_prompt_next = False
            return
        self.token_ids.extend(value.tolist())
        self.token_times_s.append(self._clock())
        self._show(is_end=False)

    def end(self) -> None:
        """Show what was held back."""
        self._show(is_end=True)

    def _show(self, *, is_end: bool) -> None:
        """Pass on the text of the tokens not shown yet, unless they end inside a character.

        Decoded together with the piece before, for decoders that drop a leading space.
        """
        known = self._decode(self.token_ids[self._context_start : self._shown_end])
        text = self._decode(self.token_ids[self._context_start :])
        if len(text) <= len(known) or (text.endswith(_UNFINISHED) and not is_end):
            return
        self._context_start, self._shown_end = self._shown_end, len(self.token_ids)
        self._pass_on(text[len(known) :])

    def _pass_on(self, text: str) -> None:
        text = self._held_space + text if self._pieces else text.lstrip()
        body = text.rstrip()
        self._held_space = text[len(body) :]
        if body:
            self.first_text_s = self.first_text_s or self._clock()
            self._pieces.append(body)
            self._on_text(body)
