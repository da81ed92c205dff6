"""Stop strings in streamed text: text that may be the beginning of one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first stop string.

    Args:
        stops: non-empty strings; the text ends where the first complete one begins.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_hit = False

    def put(self, text: str) -> str:
        """Append text; return what cannot belong to a stop string. Returns nothing after a hit."""
        if not self._stops or self.is_hit:
            return "" if self.is_hit else text
        text = self._held + text
        found = [start for start in map(text.find, self._stops) if start >= 0]
        if found:
            self.is_hit, self._held = True, ""
            return text[: min(found)]
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
