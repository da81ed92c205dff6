"""Captioning on a Ray cluster: an actor pool over :mod:`fastvlm.captioning`, which does the work and keeps the books.

:func:`caption_on_cluster` is `fastvlm caption --ray`: each actor takes splits of the job and writes their parts, as
`--shard K/N` does, so a job that is stopped goes on, on a cluster of any size. :func:`caption_dataset` is a step of a
Ray Data pipeline.

Ray's defaults restart an actor and repeat its work for ever; here both are limited. Actors that hold every CPU leave
none to read and write, and such a job hangs without a word; here that is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastvlm.captioning import Captioner, CaptionRun, CaptionSettings, Prompt, Row, Split, Summary
from fastvlm.captioning.answering import RowAnswerer
from fastvlm.captioning.captioners import make_captioner
from fastvlm.captioning.rows import Sample
from fastvlm.errors import DataError, FastVlmError, MissingExtraError, UsageError

MAX_RESTARTS = 3  # of an actor that dies
MAX_RETRIES = 3  # of the work that it had
_READING_CPUS = 1.0  # left for Ray's own tasks


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and what the job takes of it.

    Args:
        address: "auto" for the one of this machine, "local" for a new one, or ``ray://host:port``.
        num_actors: models that run at the same time; None for as many as fit.
        cpus, gpus: of each.
        num_splits: parts that the job is divided in; all runs of a job need the same number.
    """

    address: str = "auto"
    num_actors: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    num_splits: int = 32


def caption_on_cluster(
    inputs: Sequence[str],
    out: Path,
    prompts: Sequence[Prompt],
    settings: CaptionSettings,
    captioner: Mapping[str, Any],
    cluster: Cluster,
) -> Summary:
    """Caption `inputs` on a cluster whose machines share the folder `out` and the inputs.

    Args:
        inputs, out, prompts, settings: of :class:`fastvlm.captioning.CaptionRun`; the split is the cluster's.
        captioner: of :func:`fastvlm.captioning.captioners.make_captioner`.
        cluster: where.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: no such cluster, or one that is too small.
        DataError: splits that could not be finished; the others are.
    """
    ray = _ray()
    CaptionRun(inputs, out, prompts, settings)  # what is wrong with the inputs is said before anything is started
    num_actors = _connected(ray, cluster)
    places = [one if "://" in one else str(Path(one).expanduser().absolute()) for one in inputs]
    arguments = (places, str(out.expanduser().absolute()), list(prompts), settings, dict(captioner), cluster)
    begun_s = time.monotonic()
    splits = ray.data.from_items([{"split": number + 1} for number in range(cluster.num_splits)])
    done = splits.repartition(cluster.num_splits).map_batches(
        SplitCaptioner,
        fn_constructor_args=arguments,
        batch_size=1,
        **_pool(ray, num_actors, cluster.cpus, cluster.gpus),
    )
    try:
        rows = done.take_all()
    except ray.exceptions.RayError as error:
        raise DataError(f"The job ended early ({_first_line(error)}). {_AGAIN}") from error
    problems = [row["problem"] for row in rows if row["problem"]]
    if problems:
        raise DataError(f"{len(problems)} of {len(rows)} splits were not finished; the first: {problems[0]} {_AGAIN}")
    summaries = [Summary(**row["summary"]) for row in rows]
    return Summary.together(summaries, time.monotonic() - begun_s, max(1, round(num_actors * cluster.cpus)))


_AGAIN = "What was answered is kept: give the same command again."


class SplitCaptioner:
    """Actor that captions splits of a job, one after the other, with a captioner that is opened once."""

    def __init__(
        self,
        inputs: Sequence[str],
        out: str,
        prompts: Sequence[Prompt],
        settings: CaptionSettings,
        captioner: Mapping[str, Any],
        cluster: Cluster,
    ) -> None:
        self._inputs, self._out, self._prompts, self._settings = inputs, Path(out), prompts, settings
        self._num_splits, self._captioner = cluster.num_splits, _open(captioner, cluster.cpus)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """The summary of each split of the batch, or the reason why it could not be finished."""
        results = [self._caption(int(number)) for number in batch["split"]]
        return {name: [result[name] for result in results] for name in ("summary", "problem")}

    def _caption(self, number: int) -> dict[str, Any]:
        settings = replace(self._settings, split=Split(number, self._num_splits))
        try:
            summary = CaptionRun(self._inputs, self._out, self._prompts, settings).run(self._captioner)
        except FastVlmError as error:  # an exception would end the whole job
            return {"summary": None, "problem": str(error)}
        return {"summary": asdict(summary), "problem": ""}


def caption_dataset(
    dataset: Any,
    prompts: Sequence[Prompt | str],
    captioner: Mapping[str, Any] | None = None,
    *,
    num_actors: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    batch_size: int = 32,
    image_column: str = "image",
    id_column: str | None = None,
) -> Any:
    """A Ray Dataset with the answers: a row for each image and prompt, with the columns of :data:`COLUMNS`.

    Args:
        dataset: with the images' bytes or places; read bytes (``read_binary_files``, ``read_parquet``,
            ``read_webdataset(decoder=None)``), because ``read_images`` ends the job at the first broken image.
        prompts: asked about each image.
        captioner: of :func:`fastvlm.captioning.captioners.make_captioner`; None for the shipped checkpoint.
        num_actors, num_cpus, num_gpus: models at the same time, and what each has.
        batch_size: rows that an actor gets at a time; at least the slots of its engine.
        image_column, id_column: of `dataset`; without an id column, the id is the image's place or "".

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: the actors would take every CPU of the cluster.
    """
    ray = _ray()
    _check_size(ray, num_actors, num_cpus, num_gpus)
    asked = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return dataset.map_batches(
        RowCaptioner,
        fn_constructor_args=(asked, dict(captioner or {}), num_cpus, image_column, id_column),
        batch_size=batch_size,
        **_pool(ray, num_actors, num_cpus, num_gpus),
    )


class RowCaptioner:
    """Actor that answers the rows of a batch; errors are in the column `error`."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        captioner: Mapping[str, Any],
        num_cpus: float,
        image_column: str,
        id_column: str | None,
    ) -> None:
        self._image_column, self._id_column = image_column, id_column
        self._loop, self._captioner = asyncio.new_event_loop(), _open(captioner, num_cpus)
        self._answerer = RowAnswerer(self._captioner, prompts)
        self._loop.run_until_complete(self._captioner.__aenter__())

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """A row for each image and prompt; further columns are repeated."""
        images = batch[self._image_column]
        ids = [_identity(image) for image in images] if self._id_column is None else batch[self._id_column]
        rows = [_row(str(one), image) for one, image in zip(ids, images, strict=True)]
        samples = self._loop.run_until_complete(self._answers(rows))
        lines = [(index, line) for index, sample in enumerate(samples) for line in sample.lines]
        kept = [name for name in batch if name != self._image_column]
        further = {name: [batch[name][index] for index, _ in lines] for name in kept}
        names = [name for name in lines[0][1] if name != "input"] if lines else []
        return {**further, **{name: [line[name] for _, line in lines] for name in names}}

    async def _answers(self, rows: Sequence[Row]) -> list[Sample]:
        return list(await asyncio.gather(*map(self._answerer.sample, rows)))


def _identity(image: object) -> str:
    return image if isinstance(image, str) else ""


def _row(identity: str, image: object) -> Row:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, (bytes, str)) and image:
        return Row(identity, image)
    return Row(identity, problem=f"its image is {type(image).__name__}; expected bytes, a path or a URL.")


def _open(settings: Mapping[str, Any], num_cpus: float) -> Captioner:
    """The captioner, whose engine computes with the CPUs that the actor has."""
    if "url" not in settings:
        import torch  # noqa: PLC0415  # in the actor alone

        torch.set_num_threads(max(1, int(num_cpus)))
    return make_captioner(settings)


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415  # an extra
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "Captioning on a cluster") from error
    return ray


def _connected(ray: Any, cluster: Cluster) -> int:
    """Connect to the cluster; return the number of actors."""
    if not ray.is_initialized():
        try:
            ray.init(address=cluster.address)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"There is no Ray cluster at {cluster.address!r} ({_first_line(error)}). Start one with: ray start "
                "--head, or give --ray local."
            ) from error
    num_fitting = _num_fitting(ray, cluster.cpus, cluster.gpus)
    num_actors = max(1, num_fitting) if cluster.num_actors is None else cluster.num_actors
    _check_size(ray, num_actors, cluster.cpus, cluster.gpus)
    return min(num_actors, cluster.num_splits)


def _num_fitting(ray: Any, cpus: float, gpus: float) -> int:
    """Actors for which the cluster has room, with a CPU left for reading."""
    has = ray.cluster_resources()
    by_cpu = int((has.get("CPU", 0.0) - _READING_CPUS) / cpus)
    return min(by_cpu, int(has.get("GPU", 0.0) / gpus)) if gpus else by_cpu


def _check_size(ray: Any, num_actors: int, cpus: float, gpus: float) -> None:
    """Raise UsageError unless the cluster has room for the actors and a CPU for reading and writing."""
    if _num_fitting(ray, cpus, gpus) < num_actors:
        has = ray.cluster_resources()
        raise UsageError(
            f"{num_actors} actors of {cpus:g} CPUs and {gpus:g} GPUs do not fit a cluster of {has.get('CPU', 0):g} "
            f"CPUs and {has.get('GPU', 0):g} GPUs, of which {_READING_CPUS:g} CPU is left for reading: the job would "
            "wait for ever. Give fewer actors, or fewer CPUs to each."
        )


def _pool(ray: Any, num_actors: int, cpus: float, gpus: float) -> dict[str, Any]:
    """Settings of `map_batches` for a pool of actors with limits on restarts."""
    return {
        "compute": ray.data.ActorPoolStrategy(size=num_actors),
        "num_cpus": cpus,
        "num_gpus": gpus or None,
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": MAX_RETRIES,
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
