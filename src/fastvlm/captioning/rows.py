"""Rows, prompts and answers: what a captioning run reads, asks and writes. Records without tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from fastvlm.errors import FastVlmError


@dataclass(frozen=True)
class Prompt:
    """One question that is asked about each image.

    Args:
        text: the question.
        schema: JSON schema that the answer follows; None for free text.
    """

    text: str
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Row:
    """One image of an input.

    Args:
        id: path in its folder, line of a list, tar key, or the value of the id column.
        image: the encoded image, or its place: an absolute path, a URL or a data URI.
        input: further columns or members of the row.
        prompt: the question of this row, in place of the run's prompts.
        problem: why the row cannot be asked; "" for a good one.
        sidecar: path of its text file, relative, without ``.txt``.
    """

    id: str
    image: bytes | str = b""
    input: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    problem: str = ""
    sidecar: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", as_utf8(self.id))
        if self.prompt is not None:
            object.__setattr__(self, "prompt", as_utf8(self.prompt))


def as_utf8(text: str) -> str:
    """`text` with characters that UTF-8 does not have, as in file names of another encoding, written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt about one image.

    Args:
        text: None where there is an error.
        error: class and message of the error; None for an answer.
        finish_reason: "stop", "length" or "error".
        tokens: of the answer.
        ms: from the encoded image to the last token, in milliseconds; waiting for a slot included.
    """

    text: str | None
    error: str | None = None
    finish_reason: str = "stop"
    tokens: int = 0
    ms: float = 0.0

    @classmethod
    def failed(cls, error: FastVlmError | str) -> Answer:
        """An answer that holds an error."""
        words = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return cls(None, as_utf8(words), "error")


@dataclass(frozen=True)
class Sample:
    """A row with its answers: one line of output for each prompt.

    Args:
        id: of the row.
        lines: one object for each prompt, with the keys of :data:`COLUMNS`.
        image: the encoded image; empty unless the output format holds images.
        sidecar: as in :class:`Row`.
    """

    id: str
    lines: Sequence[Mapping[str, Any]]
    image: bytes = b""
    sidecar: str = ""

    @property
    def has_error(self) -> bool:
        """Whether one of the prompts has no answer."""
        return any(line["error"] is not None for line in self.lines)


COLUMNS = ("id", "prompt", "text", "error", "finish_reason", "tokens", "ms", "input")


def sample_of(row: Row, prompts: Sequence[Prompt], answers: Sequence[Answer], image: bytes = b"") -> Sample:
    """The sample of a row that was asked `prompts`."""
    further = dict(row.input) or None
    lines = [
        {"id": row.id, "prompt": prompt.text, **vars(answer), "input": further}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return Sample(row.id, lines, image, row.sidecar)


class Captioner(Protocol):
    """Answers prompts about images; an asynchronous context manager."""

    @property
    def num_concurrent(self) -> int:
        """Rows that it works on at the same time; more calls of `answer` wait."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Settings that change answers, as JSON values; part of the run's fingerprint."""
        ...

    async def __aenter__(self) -> Captioner: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def answer(self, row: Row, image: bytes, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer for each prompt, in order; `image` is encoded (JPEG, PNG, ...).

        A row that cannot be answered has answers with errors. Whatever is raised ends the run.
        """
        ...
