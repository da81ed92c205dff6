"""Conversations as the decoder sees them: Apple's qwen_2 format, loss on the answers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipes.mini.looks import (
    GUIDED_HEADS,
    GUIDED_LAYER,
    NEGATED_HEADS,
    REMINDED_LAYER,
    Gaze,
    by_piece,
    pieces_of,
    tokens_of_all,
)

from fastvlm.demo_data.canvas import SIZE
from fastvlm.demo_data.looks import NEGATIONS, Look
from fastvlm.demo_data.wording import Turn
from fastvlm.encoder_config import num_visual_tokens

SYSTEM = "You are a helpful assistant."
VISUAL_TOKENS = num_visual_tokens(SIZE, SIZE)
IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids, labels (IGNORED outside of answers), positions and turns, equally long.

    A token sees those before it of turn 0 (what all turns share) and of its own turn. `gazes`: where attention
    is wanted, see `looks.py`.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    turns: list[int]
    gazes: list[Gaze] = field(default_factory=list)


class Conversations:
    """Turns questions and answers about one picture into token ids.

    Every piece is tokenised on its own; that equals tokenising the whole, because special tokens and line ends
    part the pieces.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        picture = "<image>" * VISUAL_TOKENS
        self._opening = self._ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{picture}\n")
        self._first_visual = self._opening.index(self._ids("<image>")[0])
        self._to_assistant = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self._end = self._ids("<|im_end|>\n")
        self._to_user = self._ids("<|im_start|>user\n")

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def prompt(self, question: str) -> list[int]:
        """The ids up to where the first answer begins."""
        return [*self._opening, *self._ids(question), *self._to_assistant]

    def encode(self, turns: Sequence[Turn], most_tokens: int) -> Encoded:
        """As many turns, from the first, as `most_tokens` allow (at least one)."""
        ids, labels = list(self._opening), [IGNORED] * len(self._opening)
        for number, (question, answer) in enumerate(turns):
            asked = [*(self._to_user if number else []), *self._ids(question), *self._to_assistant]
            told = [*self._ids(answer), *self._end]
            if number and len(ids) + len(asked) + len(told) > most_tokens:
                continue
            ids += [*asked, *told]
            labels += [*([IGNORED] * len(asked)), *told]
        return Encoded(ids, labels, [*range(len(ids))], [0] * len(ids))

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._tokenizer.decode([token]) for token in ids]

    def side_by_side(
        self, turns: Sequence[Turn], most_tokens: int, looks: Sequence[Sequence[Look]] | None = None
    ) -> Encoded:
        """As many questions as `most_tokens` allow, each as the first after the picture, blind to the others.

        One after the other they tell on each other: "The circle is red" answers "What shape is red?" without a look.
        """
        start = len(self._opening)
        ids, labels = list(self._opening), [IGNORED] * start
        positions, owners = [*range(start)], [0] * start
        gazes: list[Gaze] = []
        for number, (question, answer) in enumerate(turns, start=1):
            question_ids, answer_ids = self._ids(question), self._ids(answer)
            asked, told = [*question_ids, *self._to_assistant], [*answer_ids, *self._end]
            length = len(asked) + len(told)
            if number > 1 and len(ids) + length > most_tokens:
                continue
            if looks is not None and looks[number - 1]:
                pieces = by_piece(looks[number - 1], answer, self._pieces(answer_ids))
                gazes += self._gazes(pieces, question_ids, len(ids))
            ids += [*asked, *told]
            labels += [*([IGNORED] * len(asked)), *told]
            positions += range(start, start + length)
            owners += [number] * length
        return Encoded(ids, labels, positions, owners, gazes)

    def _gazes(self, looks: Mapping[int, Look], question_ids: Sequence[int], question_start: int) -> list[Gaze]:
        """The looks of one turn, by the answer's pieces, by position; its question begins at `question_start`."""
        question = self._pieces(question_ids)
        answer_start = question_start + len(question_ids) + len(self._to_assistant)
        gazes = []
        for piece, look in looks.items():
            before = answer_start + piece - 1
            for words, heads in ((look.words - NEGATIONS, GUIDED_HEADS), (look.words & NEGATIONS, NEGATED_HEADS)):
                telling = tuple(question_start + number for number in pieces_of(words, question))
                if telling:
                    gazes.append(Gaze(REMINDED_LAYER, before, telling, heads))
            if look.things:
                seen = tuple(self._first_visual + token for token in tokens_of_all(look.things))
                gazes.append(Gaze(GUIDED_LAYER, before, seen))
        return gazes
