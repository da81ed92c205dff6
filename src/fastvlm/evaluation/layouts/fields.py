"""Known fields of a layout's records, and the errors for unknown ones.

A field that is not known may hold the image, the options or a part of the question under another name; a record that
has one would be asked without them, and its score would be wrong unseen.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fastvlm.evaluation.layouts.reading import RecordProblem
from fastvlm.records.field_names import is_given, unknown_names, with_nearest

# Words in a name that make it likely that the field belongs to what is asked.
_DECIDING = re.compile(
    r"im(g|age)|pic(ture)?s?($|_)|photo|figure|frame|video|audio|question|query|prompt|instruction|system|option|choice"
    r"|hint|context|answer|label|text",
    re.IGNORECASE,
)


def listed(text: str) -> frozenset[str]:
    """Split a text at white space."""
    return frozenset(text.split())


@dataclass(frozen=True)
class Fields:
    """The known fields of a layout.

    Args:
        read: names that the reader uses.
        described: names that say something about the record and never change what is asked.
        is_closed: True if every other name is refused; False for published benchmarks, whose editions differ: there
            a name is refused if it looks like a part of the question, and reported otherwise.
    """

    read: tuple[str, ...]
    described: Collection[str] = field(default=frozenset())
    is_closed: bool = False

    def unread(self, content: Any) -> list[str]:
        """Unknown field names of a record. Raises RecordProblem for names that may be a part of the question.

        Null, empty texts, lists and objects say nothing: files in columns have every column in every row.
        """
        if not isinstance(content, dict):
            return []  # the reader says what it expects
        given = [str(name) for name, value in content.items() if is_given(value)]
        unknown = unknown_names(given, (*self.read, *self.described))
        refused = [name for name in unknown if self.is_closed or _DECIDING.search(name)]
        if refused:
            raise RecordProblem(
                f"it has {with_nearest(refused, self.read)}, which would not be read; known are "
                f"{', '.join(self.read)}. Rename or remove it"
            )
        return unknown
