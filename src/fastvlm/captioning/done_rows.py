"""Rows of one shard that are in its output already: 8 bytes of memory each."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastvlm.captioning.rows import Sample
from fastvlm.errors import DataError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Place:
    """Where a row lies in the output.

    Args:
        part: number of the part.
        index: of the sample in the part.
        has_error: whether it has an error in place of an answer.
    """

    part: int
    index: int
    has_error: bool


class DoneRows:
    """The rows of a shard's parts, in their order.

    Args:
        is_ordered: the rows are the first ones of the shard; else they are found by their ids.
        name: of the shard in errors.
    """

    def __init__(self, name: str, *, is_ordered: bool) -> None:
        self._name, self._is_ordered = name, is_ordered
        self._digests = array("Q")
        self._starts: list[int] = []  # of the parts
        self._errors: set[int] = set()
        self._num_errors: list[int] = []  # of the parts
        self._by_digest: tuple[np.ndarray, np.ndarray] | None = None  # sorted digests (R,), their positions (R,)

    def __len__(self) -> int:
        return len(self._digests)

    def add_part(self, samples: Iterable[Sample]) -> None:
        """Add the rows of the next part."""
        self._starts.append(len(self._digests))
        num_before = len(self._errors)
        for sample in samples:
            if sample.has_error:
                self._errors.add(len(self._digests))
            self._digests.append(_digest(sample.id))
        self._num_errors.append(len(self._errors) - num_before)
        self._by_digest = None

    def num_errors(self, part: int) -> int:
        """Rows of `part` that have errors."""
        return self._num_errors[part]

    def is_answered(self, position: int) -> bool:
        """Whether the row at `position` (from 0) of an ordered shard is here and has no error."""
        return position < len(self._digests) and position not in self._errors

    def find(self, position: int, row_id: str) -> Place | None:
        """Where the row lies; None if it is not here.

        Raises:
            DataError: another row was at that position of an ordered shard.
        """
        if not self._digests or (self._is_ordered and position >= len(self._digests)):
            return None
        if not self._is_ordered:
            return self._found(row_id)
        if self._digests[position] != _digest(row_id):
            raise DataError(
                f"{self._name} has changed: row {position} was another one than {row_id!r} when it was captioned. "
                "Restore the input, or name another --out."
            )
        return self._place(position)

    def _found(self, row_id: str) -> Place | None:
        import numpy as np  # noqa: PLC0415  # only folders that were captioned before

        if self._by_digest is None:
            digests = np.array(self._digests, dtype=np.uint64)
            order = np.argsort(digests).astype(np.uint32)
            self._by_digest = digests[order], order
        digests, order = self._by_digest
        wanted = np.uint64(_digest(row_id))
        index = int(np.searchsorted(digests, wanted))
        return self._place(int(order[index])) if index < len(digests) and digests[index] == wanted else None

    def _place(self, position: int) -> Place:
        part = bisect_right(self._starts, position) - 1
        return Place(part, position - self._starts[part], position in self._errors)


def _digest(row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "big")
