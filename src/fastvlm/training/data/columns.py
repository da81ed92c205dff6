"""Columns of a training record, and the errors for all other columns.

A column that is not known may change what should be learned: an image under another name, a system prompt, tools. So it
is an error and not left out, unless it describes where the record comes from (METADATA_COLUMNS) or the user names it as
one to ignore.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvlm.errors import DataError
from fastvlm.records.field_names import is_given, unknown_names, with_nearest
from fastvlm.records.tables import TableColumns

TURN_COLUMNS = ("conversations", "messages")
IMAGE_COLUMNS = ("image", "images", "image_path")
SYSTEM_COLUMN = "system"
GROUNDING_COLUMNS = ("objects", "looks")
REFUSED_COLUMNS = {
    "video": "FastVLM is trained on images and text only",
    "videos": "FastVLM is trained on images and text only",
    "audio": "FastVLM is trained on images and text only",
    "audios": "FastVLM is trained on images and text only",
    "tools": "FastVLM's chat template has no tools",
    "functions": "FastVLM's chat template has no tools",
}
READ_COLUMNS = (*TURN_COLUMNS, *IMAGE_COLUMNS, SYSTEM_COLUMN, *GROUNDING_COLUMNS)
TABLE_COLUMNS = TableColumns(
    tuple(name for name in (*READ_COLUMNS, *REFUSED_COLUMNS) if name not in IMAGE_COLUMNS), IMAGE_COLUMNS
)
# Where a record comes from and how it is filed; nothing of it could be shown to a model.
_IDS = ("id", "ids", "uid", "uuid", "key", "index", "idx", "image_id", "question_id", "sample_id", "__key__")
_ORIGINS = ("source", "sources", "dataset", "dataset_name", "data_source", "origin", "license", "timestamp", "__url__")
_FILING = ("subset", "split", "category", "task", "kind", "lang", "language", "width", "height", "metadata", "meta")
METADATA_COLUMNS = frozenset((*_IDS, *_ORIGINS, *_FILING, "__index_level_0__"))
# What img2dataset writes next to each image (its README, "Output format"); not used for captions.
CAPTION_METADATA = frozenset(
    ("caption", "url", "status", "error_message", "original_width", "original_height", "exif", "sha256", "md5")
)


def refuse_unknown(
    values: Mapping[str, Any],
    known: Collection[str],
    what: str,
    *,
    harmless: Collection[str] = (),
    ignored: Collection[str] = (),
) -> None:
    """Raise DataError if an object has a value under an unknown name.

    Args:
        values: a record, a turn, an item.
        known: names that are read.
        what: begins the message, such as "it has" or "turn 3 has".
        harmless: names that need not be read.
        ignored: names that the user says need not be read.
    """
    given = [name for name, value in values.items() if is_given(value)]
    unknown = unknown_names(given, known, ignored)
    unknown = unknown_names(unknown, harmless)
    if unknown:
        raise DataError(
            f"{what} {with_nearest(unknown, known)}, which would not be read; known here: {', '.join(known)}. Rename "
            f"or remove it, or name it to be left out: --ignore {unknown[0]}"
        )


def table_check(ignored: Collection[str]) -> Callable[[Path, Sequence[str], Callable[[str], bool]], None]:
    """A check of a table's columns, as :func:`fastvlm.records.tables.open_parquet` takes it.

    It raises DataError for a file without turns, and for values in an unknown column that is not in `ignored`.
    """
    known = {*READ_COLUMNS, *REFUSED_COLUMNS, *METADATA_COLUMNS}

    def check(file: Path, names: Sequence[str], has_values: Callable[[str], bool]) -> None:
        if not set(TURN_COLUMNS) & set(names):
            raise DataError(
                f"{file} has the columns {', '.join(names)}; expected {' or '.join(TURN_COLUMNS)}, with "
                f"{' or '.join(IMAGE_COLUMNS)} for images."
            )
        unread = [name for name in unknown_names(names, known, ignored) if has_values(name)]
        if unread:
            raise DataError(
                f"{file} has values in {with_nearest(unread, READ_COLUMNS)}, which would not be read; known here: "
                f"{', '.join(READ_COLUMNS)}. Rename or remove the columns, or name each to be left out: "
                f"{' '.join(f'--ignore {name}' for name in unread)}"
            )

    return check
