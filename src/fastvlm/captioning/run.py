"""A captioning run: questions over many images, into parts that a later run goes on from."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastvlm.captioning.answering import RowAnswerer
from fastvlm.captioning.inputs import open_inputs, output_names
from fastvlm.captioning.part_formats import FORMATS
from fastvlm.captioning.pipeline import Pipeline
from fastvlm.captioning.progress import ErrorLimit, OnProgress, Progress, Reporter, Summary
from fastvlm.captioning.rows import Captioner, Prompt
from fastvlm.captioning.shard_output import JOURNAL_SUFFIX, Layout
from fastvlm.captioning.shards import Columns
from fastvlm.captioning.work import Job, Split
from fastvlm.errors import UsageError
from fastvlm.storage.locks import LOCK_NAME, brief_lock, exclusive_lock
from fastvlm.storage.run_identity import differences
from fastvlm.storage.whole_files import write_file
from fastvlm.storage.write_errors import clear_write_errors

RUN_FILE = "run.json"
_MOST_ROWS_PER_PART = 1_000_000


@dataclass(frozen=True)
class CaptionSettings:
    """How a run reads and writes.

    Args:
        format: of the parts: "jsonl", "parquet" or "webdataset".
        rows_per_part: rows of an input shard that make a part.
        columns: of Parquet and JSON Lines.
        split: the part of the job that is done here.
        is_retry: ask rows again that have an error in the output.
        error_limit: rows with errors after which the run is stopped.
        sidecars: folder for a text file of each answer; None for none.

    Raises:
        UsageError: an unknown format, or a number out of range.
    """

    format: str = "jsonl"
    rows_per_part: int = 1000
    columns: Columns = field(default_factory=Columns)
    split: Split = field(default_factory=Split)
    is_retry: bool = False
    error_limit: ErrorLimit = field(default_factory=ErrorLimit)
    sidecars: Path | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"format is {self.format!r}; expected one of {', '.join(FORMATS)}.")
        if not 1 <= self.rows_per_part <= _MOST_ROWS_PER_PART:
            raise UsageError(f"rows_per_part is {self.rows_per_part}; expected 1 to {_MOST_ROWS_PER_PART}.")
        FORMATS[self.format].check()


class CaptionRun:
    """A run whose inputs have been found.

    Args:
        inputs: folders, image files, list files, tar, Parquet and JSON Lines files; local or URLs.
        out: folder of the output; made if it is not there.
        prompts: asked about each image, in this order; none if the rows have their own.
        settings: see :class:`CaptionSettings`.

    Raises:
        UsageError, DataError: an input that is not there or cannot be read; no prompt, or an empty one.
    """

    def __init__(
        self, inputs: Sequence[str], out: Path, prompts: Sequence[Prompt | str], settings: CaptionSettings | None = None
    ) -> None:
        self.settings = settings or CaptionSettings()
        self.prompts = _checked(prompts, self.settings.columns)
        self.out = out.expanduser().absolute()
        self.inputs = open_inputs(inputs, self.settings.columns)

    def run(self, captioner: Captioner, on_progress: OnProgress | None = None) -> Summary:
        """Ask about every row that has no answer in the output.

        Args:
            captioner: answers; is opened and closed.
            on_progress: called in this thread, at most every half second and at the end.

        Raises:
            UsageError: the output is of another run, or being written by another process.
            DataError: more rows with errors than the limit; a damaged output.
            StorageError: the disk is full or failed.
        """
        with clear_write_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        split = self.settings.split
        lock = self.out / (LOCK_NAME if split.num_splits == 1 else f".{split.number}-of-{split.num_splits}.lock")
        with exclusive_lock(lock, self.out):
            self._claim(captioner)
            return _run_to_end(self._run(captioner, on_progress))

    async def _run(self, captioner: Captioner, on_progress: OnProgress | None) -> Summary:
        progress = Progress()
        job = self._job(progress)
        works = job.work()
        async with captioner:
            progress.restart()
            if on_progress is not None:
                threading.Thread(target=_count, args=(job, progress), daemon=True).start()
            has_images = FORMATS[self.settings.format].has_images
            pipeline = Pipeline(
                RowAnswerer(captioner, self.prompts, keeps_images=has_images),
                captioner.num_concurrent,
                progress,
                Reporter(progress, on_progress),
                self.settings.error_limit,
            )
            try:
                await pipeline.run(works)
            finally:
                works.close()
        return Summary.of(progress, pipeline.failed_shards, self.inputs.unused)

    def _job(self, progress: Progress) -> Job:
        settings = self.settings
        layout = Layout(
            self.out, FORMATS[settings.format], len(self.prompts), settings.rows_per_part, settings.sidecars
        )
        names = output_names(self.out, self.inputs.shards)
        shards = list(zip(self.inputs.shards, names, strict=True))
        return Job(shards, layout, settings.split, settings.is_retry, progress.keep)

    def _claim(self, captioner: Captioner) -> None:
        """Take the folder for this run, or for a later one of the same. Raises UsageError."""
        identity, file = self.identity(captioner), self.out / RUN_FILE
        with brief_lock(self.out / f".{RUN_FILE}.lock", file):
            different = differences(file, identity)
            if different and self._has_rows():
                raise UsageError(
                    f"{self.out} is the output of another run: {different}. Name another --out, or give the settings "
                    "of that run."
                )
            if different or not file.exists():
                write_file(file, json.dumps(identity, indent=1) + "\n")

    def _has_rows(self) -> bool:
        """Whether the output has parts or journals; a run that was refused at once leaves neither."""
        kinds = {JOURNAL_SUFFIX, *(form.suffix for form in FORMATS.values())}
        return any(file.suffix in kinds for file in self.out.iterdir())

    def identity(self, captioner: Captioner) -> dict[str, Any]:
        """The run's fingerprint: what two runs must share to write to the same folder, as JSON values."""
        settings = self.settings
        return {
            **captioner.identity,
            "prompts": [{"prompt": prompt.text, "schema": prompt.schema} for prompt in self.prompts],
            "columns": [settings.columns.image, settings.columns.id, settings.columns.prompt],
            "format": settings.format,
            "rows_per_part": settings.rows_per_part,
            "num_splits": settings.split.num_splits,
        }


def caption(
    inputs: Sequence[str] | str,
    out: Path | str,
    prompts: Sequence[Prompt | str] | Prompt | str,
    captioner: Captioner | None = None,
    *,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Summary:
    """Ask `prompts` about every image of `inputs`; a second call goes on where the first one ended.

        caption("photos", "captions", "What is this?")

    Args:
        inputs: folders, image files, list files, tar, Parquet and JSON Lines files; local or URLs.
        out: folder of the output.
        prompts: one question or several, each a text or a :class:`Prompt` with a JSON schema.
        captioner: answers; None for the shipped checkpoint on this machine. See :func:`open_captioner`.
        on_progress: called with the counts so far, at most every half second.
        settings: of :class:`CaptionSettings`.

    Raises:
        UsageError, DataError, StorageError: see :class:`CaptionRun`.
    """
    asked = [prompts] if isinstance(prompts, (str, Prompt)) else prompts
    given = [inputs] if isinstance(inputs, str) else inputs
    run = CaptionRun(given, Path(out), asked, CaptionSettings(**settings))
    if captioner is None:
        from fastvlm.captioning.engine_captioner import open_captioner  # noqa: PLC0415  # imports torch

        captioner = open_captioner()
    return run.run(captioner, on_progress)


def _run_to_end(work: Coroutine[Any, Any, Summary]) -> Summary:
    """Run `work`; in a thread of its own where this one has an event loop already, as a notebook has."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _checked(prompts: Sequence[Prompt | str], columns: Columns) -> list[Prompt]:
    """The prompts; one without a text, which only holds a schema, where the rows have their own."""
    asked = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    if columns.prompt is not None:
        if any(prompt.text for prompt in asked) or len(asked) > 1:
            raise UsageError("The rows have prompts of their own (--prompt-column); expected no --prompt besides.")
        return [replace(asked[0], text="")] if asked else [Prompt("")]
    if not asked:
        raise UsageError('There is no prompt. Try: --prompt "Describe the image."')
    if any(not prompt.text.strip() for prompt in asked):
        raise UsageError("A prompt is empty; expected a question or a request, such as 'Describe the image.'")
    texts = [prompt.text for prompt in asked]
    if len(set(texts)) < len(texts):
        raise UsageError("A prompt is given twice; expected different ones, because the output names a row by them.")
    return asked


def _count(job: Job, progress: Progress) -> None:
    """Count the rows of the run while it goes on; nothing is known of inputs that cannot be counted."""
    total = 0
    for shard, _, is_divided in job.own_shards():
        try:
            count = shard.count()
        except Exception:  # noqa: BLE001  # the run itself says what is wrong with a shard
            return
        if count is None:
            return
        total += count // job.split.num_splits if is_divided else count
    progress.total = total
