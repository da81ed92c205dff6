"""Text that comes in pieces, with its lines broken between words to fit a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len

_TAB = 8
_JOINER = "\N{ZERO WIDTH JOINER}"  # between the parts of one emoji


class WordWrap:
    """Breaks lines between words. A word is kept back until it is complete, or as wide as a line.

    Spaces at a break and before a line feed are dropped, all others stay. A word wider than a line is left to the
    terminal, which breaks it anywhere. A line may also break beside a character two cells wide (Chinese, emoji).

    Args:
        width: the cells of a line, asked for at each word, because a window may change.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0  # cells on the current line
        self._spaces, self._word = "", ""  # not yet written
        self._is_continued = False  # the start of the word has been written

    def add(self, text: str) -> str:
        """What can be written now that `text` has come."""
        return "".join(map(self._next, text))

    def end(self) -> str:
        """What was kept back; text that comes later begins a line."""
        written = self._written_word()
        self._column, self._spaces = 0, ""
        return written

    def _next(self, character: str) -> str:
        if character == "\n":
            return self.end() + "\n"
        if character in " \t":
            written = self._written_word()
            self._spaces += " " * (_TAB - (self._column + len(self._spaces)) % _TAB) if character == "\t" else " "
            return written
        written = self._written_word() if self._may_break_before(character) else ""
        self._word += character
        if cell_len(self._word) < self._width():
            return written
        written += self._written_word()
        self._is_continued = True
        return written

    def _may_break_before(self, character: str) -> bool:
        cells = cell_len(character)
        is_beside_wide = cells > 1 or (cells == 1 and cell_len(self._word[:1]) > 1)
        return is_beside_wide and not self._word.endswith(_JOINER)

    def _written_word(self) -> str:
        """The word with what goes before it: spaces, a line feed, or nothing."""
        word, before, cells = self._word, self._spaces, cell_len(self._word)
        is_continued, self._is_continued = self._is_continued and not before, False
        if not word:
            return ""
        if not is_continued and self._column and self._column + len(before) + cells > self._width():
            before, self._column = "\n", 0
        else:
            self._column += len(before)
        self._column += cells
        while self._column > self._width() > 0:  # the terminal has broken the word
            self._column -= self._width()
        self._word = self._spaces = ""
        return before + word
