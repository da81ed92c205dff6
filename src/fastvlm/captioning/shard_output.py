"""Output parts of one shard: ``NAME-00000.jsonl``, ``NAME-00001.jsonl``, ..., each written whole or not at all.

A part has the rows of the shard that follow those of the part before. The rows of the next part are kept in a journal
(``NAME-00002.jsonl.journal``) until it is full.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastvlm.captioning.done_rows import DoneRows, Place
from fastvlm.captioning.journal import Journal, remove_journal
from fastvlm.captioning.part_formats import PartFormat
from fastvlm.captioning.rows import Sample
from fastvlm.errors import DataError
from fastvlm.storage.whole_files import whole_file, write_file
from fastvlm.storage.write_errors import clear_write_errors

JOURNAL_SUFFIX = ".journal"
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5,})(?P<suffix>\.\w+)", re.DOTALL)
Parts = Mapping[str, list[int]]


@dataclass(frozen=True)
class Layout:
    """How the output is laid out.

    Args:
        folder: of the parts.
        format: of the parts.
        num_prompts: lines of each row.
        rows_per_part: of the input.
        sidecars: folder of the text files; None for none.
    """

    folder: Path
    format: PartFormat
    num_prompts: int = 1
    rows_per_part: int = 1000
    sidecars: Path | None = None

    def existing_parts(self) -> Parts:
        """Numbers of the parts in the folder, by the name of their shard."""
        found: dict[str, list[int]] = defaultdict(list)
        with clear_write_errors(self.folder):
            for file in self.folder.iterdir():
                match = _PART.fullmatch(file.name)
                if match and match["suffix"] == self.format.suffix and not file.name.startswith("."):
                    found[match["name"]].append(int(match["number"]))
        return found


class ShardOutput:
    """The output of one shard. Opening it reads the ids of its parts and the journal of a killed run.

    Args:
        layout: of the run.
        name: of the shard; unique in the folder.
        is_ordered: see :class:`fastvlm.captioning.shards.Shard`.
        numbers: of the parts that exist.

    Attributes:
        done: rows that are here.

    Raises:
        DataError: a damaged part, or one that is missing.
    """

    def __init__(self, layout: Layout, name: str, numbers: list[int], *, is_ordered: bool) -> None:
        self._layout, self.name = layout, name
        self.done = DoneRows(name, is_ordered=is_ordered)
        self._retried: dict[int, dict[int, Sample]] = defaultdict(dict)
        if sorted(numbers) != list(range(len(numbers))):
            missing = min(set(range(max(numbers))) - set(numbers))
            raise DataError(
                f"{self._part(missing)} is missing, and later parts are there. Restore it; to caption its rows again, "
                "remove the later ones too."
            )
        for number in range(len(numbers)):
            remove_journal(self._journal_path(number))  # left by a kill after the part was written
            self.done.add_part(layout.format.read(self._part(number), layout.num_prompts, is_index=True))
        self._number = len(numbers)
        self._journal: Journal | None = None
        if self._journal_path(self._number).exists():
            self._journal = Journal(self._journal_path(self._number))
            self.done.add_part(self._journal.samples)
            if self.is_full:
                self.commit()

    def add(self, sample: Sample) -> None:
        """Append the next row to the journal."""
        if self._journal is None:
            self._journal = Journal(self._journal_path(self._number))
        self._journal.append(sample)

    @property
    def is_full(self) -> bool:
        """Whether the journal has a whole part; call :meth:`commit` then."""
        return self._journal is not None and len(self._journal.samples) >= self._layout.rows_per_part

    def commit(self) -> None:
        """Write the journal's rows as a part, and its sidecars."""
        if self._journal is None:
            return
        journal, self._journal = self._journal, None
        self._write(self._part(self._number), journal.with_images())
        for sample in journal.samples:
            self._write_sidecars(sample)
        journal.close(is_done=True)
        self._number += 1

    def replace(self, place: Place, sample: Sample) -> bool:
        """Keep a new answer of a row that had an error; True if :meth:`rewrite` of its part is due."""
        if place.part == self._number and self._journal is not None:
            self._journal.replace(place.index, sample)
            return False
        retried = self._retried[place.part]
        retried[place.index] = sample
        return len(retried) == self.done.num_errors(place.part)

    def rewrite(self, part: int) -> None:
        """Write a part again with the new answers of its rows."""
        retried = self._retried.pop(part)
        path = self._part(part)
        earlier = self._layout.format.read(path, self._layout.num_prompts)
        self._write(path, (retried.get(index, sample) for index, sample in enumerate(earlier)))
        for sample in retried.values():
            self._write_sidecars(sample)

    def finish(self) -> None:
        """Write what is left; the shard has no more rows."""
        for part in list(self._retried):
            self.rewrite(part)
        self.commit()

    def close(self) -> None:
        """Leave the journal as it is, for the next run."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _part(self, number: int) -> Path:
        return self._layout.folder / f"{self.name}-{number:05d}{self._layout.format.suffix}"

    def _journal_path(self, number: int) -> Path:
        part = self._part(number)
        return part.with_name(f"{part.name}{JOURNAL_SUFFIX}")

    def _write(self, path: Path, samples: Iterator[Sample]) -> None:
        with whole_file(path) as stream:
            self._layout.format.write(stream, samples)

    def _write_sidecars(self, sample: Sample) -> None:
        """A text file for each answer, named by the row; numbered from 1 if there are several prompts."""
        folder = self._layout.sidecars
        if folder is None or not sample.sidecar:
            return
        for number, line in enumerate(sample.lines, 1):
            if line["text"] is None:
                continue
            end = "" if len(sample.lines) == 1 else f".{number}"
            file = sidecar_path(folder, f"{sample.sidecar}{end}.txt")
            with clear_write_errors(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, line["text"] + "\n")


def sidecar_path(folder: Path, name: str) -> Path:
    """The file `name` in `folder`, whatever the row's id is: a path out of the folder, a URL."""
    parts = [
        part for part in PurePosixPath(name.replace("://", "/").replace("\\", "/")).parts if part not in ("..", "/")
    ]
    return folder.joinpath(*parts)
