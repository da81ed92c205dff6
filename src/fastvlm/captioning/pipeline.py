"""Pipeline of a run: read ahead, answer many rows at once, write the answers in the order of the input.

    reader thread      rows of the shards, a batch ahead
    fetcher threads    images that are given by their place
    captioner          decoding in processes, the engine or a server
    this event loop    answers in order -> journal -> parts

All queues are bounded, so memory does not grow with the job.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import islice

from fastvlm.captioning.answering import RowAnswerer
from fastvlm.captioning.progress import ErrorLimit, Progress, Reporter
from fastvlm.captioning.rows import Sample
from fastvlm.captioning.shard_output import ShardOutput
from fastvlm.captioning.work import Work

_WINDOW = 4  # rows in work for each row that the captioner has, so that a slow answer delays no other
_WINDOW_BYTES = 1 << 28  # of images of rows in work
_BATCH_ROWS = 64
_BATCH_BYTES = 1 << 24  # of images


class Pipeline:
    """Answers rows with a captioner and writes them.

    Args:
        answerer: answers a row.
        num_concurrent: rows that its captioner works on at the same time.
        progress: is updated.
        reporter: is called after each row.
        limit: of errors.

    Attributes:
        failed_shards: why shards could not be read to their end.
    """

    def __init__(
        self, answerer: RowAnswerer, num_concurrent: int, progress: Progress, reporter: Reporter, limit: ErrorLimit
    ) -> None:
        self._answerer, self._window = answerer, _WINDOW * num_concurrent
        self._progress, self._reporter, self._limit = progress, reporter, limit
        self._output: ShardOutput | None = None  # the one that has an open file
        self.failed_shards: list[str] = []

    async def run(self, works: Iterator[Work]) -> None:
        """Do all work.

        Raises:
            DataError: more errors than the limit.
            FastVlmError: what the captioner, the input's columns or the disk raise.
        """
        pending: deque[tuple[Work, asyncio.Task[Sample] | None]] = deque()
        num_bytes = 0
        try:
            async with aclosing(_ahead(works)) as ahead:
                async for work in ahead:
                    task = None if work.row is None else asyncio.create_task(self._answerer.sample(work.row))
                    pending.append((work, task))
                    num_bytes += _num_bytes(work)
                    while pending and (self._is_full(len(pending), num_bytes) or _is_done(pending[0][1])):
                        num_bytes -= _num_bytes(pending[0][0])
                        await self._write(*pending.popleft())
            while pending:
                await self._write(*pending.popleft())
        finally:
            tasks = [task for _, task in pending if task is not None]  # after an error
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._output is not None:
                self._output.close()
            self._answerer.close()
        self._limit.check(self._progress, is_end=True)
        self._reporter.update(is_end=True)

    def _is_full(self, num_rows: int, num_bytes: int) -> bool:
        return num_rows >= self._window or num_bytes >= _WINDOW_BYTES

    async def _write(self, work: Work, task: asyncio.Task[Sample] | None) -> None:
        """Wait for the answer, write it, and write parts that are whole."""
        output = self._output = work.output
        if task is None:
            await asyncio.to_thread(output.finish)
            if work.problem:
                self.failed_shards.append(work.problem)
            return
        sample = await task
        if work.place is not None:
            if output.replace(work.place, sample):
                await asyncio.to_thread(output.rewrite, work.place.part)
        else:
            output.add(sample)
            if output.is_full:
                await asyncio.to_thread(output.commit)
        self._progress.add(sample)
        self._reporter.update()
        self._limit.check(self._progress)


def _num_bytes(work: Work) -> int:
    """Bytes of the row's image that are in memory."""
    return len(work.row.image) if work.row is not None else 0


def _is_done(task: asyncio.Task[Sample] | None) -> bool:
    return task is None or task.done()


async def _ahead(works: Iterator[Work]) -> AsyncGenerator[Work]:
    """The works, read in a thread one batch ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="fastvlm-read") as reader:
        following = asyncio.get_running_loop().run_in_executor(reader, _batch, works)
        try:
            while batch := await following:
                following = asyncio.get_running_loop().run_in_executor(reader, _batch, works)
                for work in batch:
                    yield work
        finally:
            await asyncio.gather(following, return_exceptions=True)


def _batch(works: Iterator[Work]) -> list[Work]:
    """The next rows, fewer if their images are large; none at the end."""
    batch: list[Work] = []
    num_bytes = 0
    for work in islice(works, _BATCH_ROWS):
        batch.append(work)
        num_bytes += _num_bytes(work)
        if num_bytes >= _BATCH_BYTES:
            break
    return batch
