"""Incremental detokenizer: text pieces never end inside a character or a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # a tokenizer's output for an incomplete character


class Detokenizer:
    """Turns the tokens of one reply into pieces of text that can be shown at once.

    The joined pieces equal the decoded reply up to the first stop string, stripped of leading and trailing white space
    (as Apple's ``predict.py`` does) unless `keeps_space`.

    Args:
        decode: token ids -> text without special tokens, the tokenizer's own.
        stops: texts that end the reply.
        keeps_space: do not strip white space, because the text continues another one.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), *, keeps_space: bool = False
    ) -> None:
        self._decode, self._keeps_space = decode, keeps_space
        self._stops = StopStrings(stops)
        self._context_start = self._shown_end = 0  # ids before `_shown_end` have been decoded
        self._known = ""  # the text of the ids between the two
        self._pieces: list[str] = []
        self._held_space = ""
        self.token_ids: list[int] = []

    @property
    def text(self) -> str:
        """The text shown so far."""
        return "".join(self._pieces)

    @property
    def stop_string(self) -> str | None:
        """The stop string that has ended the text, or None."""
        return self._stops.hit

    def put(self, token_id: int) -> str:
        """Append a token; return the text that can be shown now, possibly empty."""
        self.token_ids.append(token_id)
        return self._shown(self._stops.put(self._decoded(is_end=False)))

    def end(self) -> str:
        """Return the text that was held back; no more tokens follow."""
        return self._shown(self._stops.put(self._decoded(is_end=True)) + self._stops.end())

    def _decoded(self, *, is_end: bool) -> str:
        """Text of the tokens not decoded yet; empty if they end inside a character.

        The tokens are decoded together with the previous piece, because some decoders drop a leading space.
        """
        text = self._decode(self.token_ids[self._context_start :])
        if len(text) <= len(self._known) or (text.endswith(_UNFINISHED) and not is_end):
            return ""
        new = text[len(self._known) :]
        self._context_start, self._shown_end = self._shown_end, len(self.token_ids)
        self._known = self._decode(self.token_ids[self._context_start :])
        return new

    def _shown(self, text: str) -> str:
        """`text` after the held-back white space and without its own trailing white space, which is held back."""
        if not self._keeps_space:
            text = self._held_space + text if self._pieces else text.lstrip()
        body = text if self._keeps_space else text.rstrip()
        self._held_space = text[len(body) :]
        if body:
            self._pieces.append(body)
        return body


class StopStrings:
    """Passes text on up to the first stop string; holds back what may be the beginning of one.

    Args:
        stops: non-empty strings; the text ends where the first complete one begins.

    Attributes:
        hit: the stop string that has ended the text, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None

    @property
    def is_hit(self) -> bool:
        """True after a stop string."""
        return self.hit is not None

    def put(self, text: str) -> str:
        """Append text; return what cannot belong to a stop string. Returns nothing after a hit."""
        if not self._stops or self.is_hit:
            return "" if self.is_hit else text
        text = self._held + text
        found = [(start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            start, self.hit = min(found)
            self._held = ""
            return text[:start]
        end = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[end:]
        return text[:end]

    def end(self) -> str:
        """Return the text that was held back; no more text follows."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
