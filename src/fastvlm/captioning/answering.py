"""A row -> its sample: the image is fetched, the captioner asked, and what is wrong with the row is in the sample."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fastvlm.captioning.files import read_image
from fastvlm.captioning.rows import Answer, Captioner, Prompt, Row, Sample, sample_of
from fastvlm.errors import ImageError

_NUM_FETCHERS = 16


class RowAnswerer:
    """Answers rows with a captioner that has been entered.

    Args:
        captioner: answers.
        prompts: asked about each row that has none of its own.
        keeps_images: samples have the images.
    """

    def __init__(self, captioner: Captioner, prompts: Sequence[Prompt], *, keeps_images: bool = False) -> None:
        self._captioner, self._prompts, self._keeps_images = captioner, prompts, keeps_images
        self._room = asyncio.Semaphore(captioner.num_concurrent + _NUM_FETCHERS)  # bounds the images in memory
        self._fetchers = ThreadPoolExecutor(_NUM_FETCHERS, thread_name_prefix="fastvlm-fetch")

    def close(self) -> None:
        """Begin no more fetches."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    async def sample(self, row: Row) -> Sample:
        """The row's sample; raises what the captioner raises."""
        prompts = self._prompts if row.prompt is None else [Prompt(row.prompt, self._prompts[0].schema)]
        async with self._room:
            image, problem = await self._image(row)
            if problem is None:
                answers = await self._captioner.answer(row, image, prompts)
            else:
                answers = [problem] * len(prompts)
        return sample_of(row, prompts, answers, image if self._keeps_images else b"")

    async def _image(self, row: Row) -> tuple[bytes, Answer | None]:
        """The encoded image, and an answer with the error if there is none."""
        if row.problem:
            return row.image if isinstance(row.image, bytes) else b"", Answer.failed(f"DataError: {row.problem}")
        if isinstance(row.image, bytes):
            return row.image, None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._fetchers, read_image, row.image), None
        except ImageError as error:
            return b"", Answer.failed(error)
