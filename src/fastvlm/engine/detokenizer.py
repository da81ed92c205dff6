"""Tokens in, text out, as they come: what is shown never ends inside a character, or inside a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastvlm.engine.stop_strings import StopStrings

__all__ = ["TokenText"]

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for the first bytes of a character


class TokenText:
    """Turns the tokens of one reply into pieces of text that can be shown at once.

    The pieces put together equal the decoded reply up to the first stop string, without leading and trailing white
    space (as Apple's ``predict.py`` strips it) unless `keeps_space`.

    Args:
        decode: token ids -> text without special tokens, the tokenizer's own.
        stops: texts that end the reply.
        keeps_space: leave white space at both ends as it is: the text continues another one.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), *, keeps_space: bool = False
    ) -> None:
        self._decode, self._keeps_space = decode, keeps_space
        self._stops = StopStrings(stops)
        self._context_start = self._shown_end = 0  # ids before `_shown_end` are decoded
        self._known = ""  # the text of the ids between the two
        self._pieces: list[str] = []
        self._held_space = ""
        self.token_ids: list[int] = []

    @property
    def text(self) -> str:
        """What has been shown so far."""
        return "".join(self._pieces)

    @property
    def is_stopped(self) -> bool:
        """True once a stop string came."""
        return self._stops.is_hit

    def put(self, token_id: int) -> str:
        """Take the next token; returns the text that can be shown, perhaps none."""
        self.token_ids.append(token_id)
        return self._shown(self._stops.put(self._decoded(is_end=False)))

    def end(self) -> str:
        """What was held back, now that no more tokens come."""
        return self._shown(self._stops.put(self._decoded(is_end=True)) + self._stops.end())

    def _decoded(self, *, is_end: bool) -> str:
        """The text of the tokens not decoded yet, or nothing if they end inside a character.

        Decoded together with the piece before, for decoders that drop a leading space.
        """
        text = self._decode(self.token_ids[self._context_start :])
        if len(text) <= len(self._known) or (text.endswith(_UNFINISHED) and not is_end):
            return ""
        new = text[len(self._known) :]
        self._context_start, self._shown_end = self._shown_end, len(self.token_ids)
        self._known = self._decode(self.token_ids[self._context_start :])
        return new

    def _shown(self, text: str) -> str:
        """`text` with the white space before it that was held back, without the white space at its end."""
        if not self._keeps_space:
            text = self._held_space + text if self._pieces else text.lstrip()
        body = text if self._keeps_space else text.rstrip()
        self._held_space = text[len(body) :]
        if body:
            self._pieces.append(body)
        return body
