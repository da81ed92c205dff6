"""Work of a run: the rows of all shards in order, without those that are in the output already."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from fastvlm.captioning.done_rows import Place
from fastvlm.captioning.rows import Row
from fastvlm.captioning.shard_output import Layout, ShardOutput
from fastvlm.captioning.shards import Shard
from fastvlm.errors import DataError, MissingExtraError, StorageError, UsageError


@dataclass(frozen=True)
class Split:
    """The K-th of N parts of a job (K from 1), which N machines do without talking to each other.

    Raises:
        UsageError: K is not from 1 to N.
    """

    number: int = 1
    num_splits: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.num_splits:
            raise UsageError(
                f"shard is {self.number}/{self.num_splits}; expected K/N with K from 1 to N: 1/3, 2/3 and 3/3."
            )

    @classmethod
    def of(cls, text: str | None) -> Split:
        """From ``2/8``; None for the whole job. Raises UsageError."""
        if text is None:
            return cls()
        number, slash, num_splits = text.partition("/")
        if not (slash and number.strip().isdecimal() and num_splits.strip().isdecimal()):
            raise UsageError(f"shard is {text!r}; expected K/N, such as 2/8.")
        return cls(int(number), int(num_splits))

    @property
    def suffix(self) -> str:
        """What the output names of a shard end in, if its rows are divided."""
        return f".{self.number}-of-{self.num_splits}"


@dataclass(frozen=True)
class Work:
    """A row to ask, or the end of a shard.

    Args:
        output: of the row's shard.
        row: None at the end of a shard.
        place: of a row whose error is in the output, and which is asked again.
        problem: why the shard could not be read to its end, if it could not.
    """

    output: ShardOutput
    row: Row | None = None
    place: Place | None = None
    problem: str = ""


@dataclass(frozen=True)
class Job:
    """All shards of a run, and what is done of them here.

    Args:
        shards: each with the name of its output.
        layout: of the output.
        split: the part of the rows that is done here.
        is_retry: rows with errors are asked again.
        on_kept: called with the number of rows that are in the output already.
    """

    shards: Sequence[tuple[Shard, str]]
    layout: Layout
    split: Split
    is_retry: bool
    on_kept: Callable[[int], None]

    def work(self) -> Generator[Work]:
        """The rows to ask, shard by shard.

        Raises:
            UsageError, MissingExtraError: an input without the columns that are asked for.
            DataError: a damaged output.
        """
        parts = self.layout.existing_parts()
        for shard, name, is_divided in self.own_shards():
            output_name = name + self.split.suffix if is_divided else name
            numbers = parts.get(output_name, [])
            output = ShardOutput(self.layout, output_name, numbers, is_ordered=shard.is_ordered)
            yield from self._of_shard(shard, output, is_divided=is_divided)

    def own_shards(self) -> Iterator[tuple[Shard, str, bool]]:
        """(shard, name, whether its rows are divided) of those that have rows of this split.

        Files are given out whole if there are enough of them, so that each is read by one machine.
        """
        files = [(shard, name) for shard, name in self.shards if shard.is_ordered]
        is_divided = self.split.num_splits > 1
        has_enough = len(files) >= self.split.num_splits
        for index, (shard, name) in enumerate(files):
            if is_divided and not has_enough:
                yield shard, name, True
            elif index % self.split.num_splits == self.split.number - 1:
                yield shard, name, False
        yield from ((shard, name, is_divided) for shard, name in self.shards if not shard.is_ordered)

    def _of_shard(self, shard: Shard, output: ShardOutput, *, is_divided: bool) -> Iterator[Work]:
        problem = ""
        try:
            yield from self._rows(shard, output, is_divided=is_divided)
        except (UsageError, MissingExtraError, StorageError):
            raise
        except DataError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  # each remote file system raises its client's own errors
            problem = f"{shard.location} cannot be read any further ({type(error).__name__}: {error})."
        yield Work(output, problem=problem)

    def _rows(self, shard: Shard, output: ShardOutput, *, is_divided: bool) -> Iterator[Work]:
        place_of = partial(self._position, is_divided=is_divided and shard.is_ordered)
        num_seen = 0
        for number, row in enumerate(shard.rows(lambda number: self._is_wanted(output, place_of(number)))):
            if (
                is_divided
                and not shard.is_ordered
                and zlib.crc32(row.id.encode()) % self.split.num_splits != (self.split.number - 1)
            ):
                continue
            position = place_of(number)
            if position is None:
                continue
            num_seen += 1
            place = output.done.find(position, row.id)
            if place is None or (place.has_error and self.is_retry):
                yield Work(output, row, place)
            else:
                self.on_kept(1)
        if shard.is_ordered and num_seen < len(output.done):
            raise DataError(
                f"{shard.location} has {num_seen} rows, and {len(output.done)} were captioned. Restore the input, or "
                "name another --out."
            )

    def _position(self, number: int, *, is_divided: bool) -> int | None:
        """Where row `number` of a shard lies among those of this split; None if it is another's."""
        if not is_divided:
            return number
        index, rest = divmod(number, self.split.num_splits)
        return index if rest == self.split.number - 1 else None

    def _is_wanted(self, output: ShardOutput, position: int | None) -> bool:
        if position is None:
            return False
        return position >= len(output.done) or (self.is_retry and not output.done.is_answered(position))
