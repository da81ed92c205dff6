"""Options of `fastvlm caption`, in groups, and what they choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastvlm.cli.choices import ModelChoice, Sampling, check_word
from fastvlm.cli.json_objects import parse_object
from fastvlm.cli.options import DEFAULT_MODEL
from fastvlm.cli.options import grouped_option as _option
from fastvlm.cli.schema_choice import enforceable
from fastvlm.errors import UsageError

if TYPE_CHECKING:
    from fastvlm.captioning import CaptionSettings, Prompt

FORMATS = ("jsonl", "parquet", "webdataset")
_PROMPTS, _INPUT, _OUTPUT, _ENGINE, _MACHINES = "Prompts", "Input", "Output", "Engine", "Several machines"
_PROMPT_LINE = 'an object a line, such as {"prompt": "Is there a dog?", "schema": {"enum": ["yes", "no"]}}'
_MOST_SLOTS, _MOST_PROCESSES, _MOST_REQUESTS = 256, 64, 1024


def _check_count(flag: str, value: int | None, most: int, least: int = 1) -> None:
    if value is not None and not least <= value <= most:
        raise UsageError(f"{flag} is {value}; expected {least} to {most}.")


@dataclass(frozen=True)
class PromptChoice:
    """The prompts; see :meth:`prompts` for errors."""

    texts: Annotated[
        list[str] | None,
        _option(
            _PROMPTS,
            "--prompt",
            "-p",
            metavar="TEXT",
            text="The question. For several give it again; an image is encoded once.",
        ),
    ] = None
    prompts_file: Annotated[
        Path | None,
        _option(_PROMPTS, "--prompts", metavar="FILE", text=f"Prompts with a JSON schema each: {_PROMPT_LINE}."),
    ] = None
    prompt_column: Annotated[
        str | None,
        _option(_PROMPTS, "--prompt-column", metavar="NAME", text="Take each row's prompt from this column."),
    ] = None
    system: Annotated[
        str | None,
        _option(_PROMPTS, "--system", metavar="TEXT", text="System prompt in place of the model's own."),
    ] = None

    def prompts(self, schema: dict[str, Any] | None) -> list[Prompt]:
        """All prompts; `schema` is for those of --prompt and --prompt-column.

        Raises:
            UsageError: a file that cannot be read, or a line without a prompt.
            MissingExtraError: a schema, and no package that enforces it.
        """
        from fastvlm.captioning import Prompt

        prompts = [Prompt(text, schema) for text in self.texts or ()]
        if self.prompt_column is not None and schema is not None:
            prompts.append(Prompt("", schema))
        if self.prompts_file is None:
            return prompts
        try:
            lines = self.prompts_file.expanduser().read_bytes().splitlines()
        except OSError as error:
            raise UsageError(
                f"--prompts {self.prompts_file} cannot be read: {error.strerror}. Expected {_PROMPT_LINE}."
            ) from error
        found = [self._of_line(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not found:
            raise UsageError(f"--prompts {self.prompts_file} is empty; expected {_PROMPT_LINE}.")
        return prompts + found

    def _of_line(self, number: int, line: bytes) -> Prompt:
        from fastvlm.captioning import Prompt

        where = f"--prompts {self.prompts_file}, line {number}"
        content = parse_object(line, where, _PROMPT_LINE)
        unknown = set(content) - {"prompt", "schema"}
        text, schema = content.get("prompt"), content.get("schema")
        if unknown or not isinstance(text, str) or not isinstance(schema, (dict, type(None))):
            raise UsageError(f"{where} has {', '.join(map(repr, content)) or 'nothing'}; expected {_PROMPT_LINE}.")
        return Prompt(text, enforceable(schema))


@dataclass(frozen=True)
class ColumnChoice:
    """Columns of Parquet and JSON Lines, and kinds of tar members."""

    image_column: Annotated[
        str | None,
        _option(_INPUT, "--image-column", metavar="NAME", text="Column with the image's bytes, path or URL."),
    ] = None
    id_column: Annotated[
        str | None, _option(_INPUT, "--id-column", metavar="NAME", text="Column with the row's id.")
    ] = None
    drop: Annotated[
        list[str] | None,
        _option(
            _INPUT, "--drop", metavar="NAME", text="Leave this column, or this kind of tar member, out of the output."
        ),
    ] = None


@dataclass(frozen=True)
class OutputChoice:
    """Where and how answers are written.

    Raises:
        UsageError: a value out of its range.
    """

    out: Annotated[
        str | None,
        _option(_OUTPUT, "--out", metavar="DIR", text="Folder of the output; a run goes on where it ended."),
    ] = None
    format: Annotated[
        str,
        _option(_OUTPUT, "--format", metavar="FORMAT", text="Of the output parts: jsonl, parquet or webdataset."),
    ] = "jsonl"
    rows_per_part: Annotated[
        int,
        _option(_OUTPUT, "--rows-per-part", metavar="N", text="Images of an input that make an output part."),
    ] = 1000
    sidecars: Annotated[
        Path | None,
        _option(
            _OUTPUT,
            "--sidecars",
            metavar="DIR",
            text="Write a .txt file for each image, named as the image; may be INPUT.",
        ),
    ] = None
    is_retry: Annotated[
        bool, _option(_OUTPUT, "--retry-errors", text="Ask images again that have an error in the output.")
    ] = False
    max_errors: Annotated[
        str | None,
        _option(_OUTPUT, "--max-errors", metavar="N|P%", text="Stop when more images than this have an error."),
    ] = None
    price_per_hour: Annotated[
        float | None,
        _option(
            _OUTPUT, "--price-per-hour", metavar="PRICE", text="Of this machine; gives the cost of a million images."
        ),
    ] = None

    def __post_init__(self) -> None:
        check_word("--format", self.format, FORMATS)
        if self.out is None:
            raise UsageError('There is no --out. Try: fastvlm caption INPUT --out DIR --prompt "..."')
        if "://" in self.out:
            raise UsageError(
                f"--out is {self.out}; expected a local folder, because whole parts are renamed. Mount the "
                "store, or copy the parts there afterwards."
            )
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < float("inf"):
            raise UsageError(f"--price-per-hour is {self.price_per_hour}; expected 0 or more.")

    @property
    def folder(self) -> Path:
        """The folder of the output."""
        return Path(str(self.out))

    def settings(self, columns: ColumnChoice, prompt_column: str | None, shard: str | None) -> CaptionSettings:
        """The settings of the run. Raises UsageError; MissingExtraError: the format's package is not installed."""
        from fastvlm.captioning import CaptionSettings, Columns, ErrorLimit, Split

        return CaptionSettings(
            format=self.format,
            rows_per_part=self.rows_per_part,
            columns=Columns(columns.image_column, columns.id_column, prompt_column, tuple(columns.drop or ())),
            split=Split.of(shard),
            is_retry=self.is_retry,
            error_limit=ErrorLimit.of(self.max_errors),
            sidecars=None if self.sidecars is None else self.sidecars.expanduser().absolute(),
        )


@dataclass(frozen=True)
class EngineChoice:
    """What answers: this machine's engine, or a server.

    Raises:
        UsageError: a value out of its range.
    """

    slots: Annotated[int, _option(_ENGINE, "--slots", metavar="N", text="Replies that are generated together.")] = 8
    decoders: Annotated[
        int | None,
        _option(
            _ENGINE, "--decoders", metavar="N", text="Processes that decode images; if not given, one for four cores."
        ),
    ] = None
    url: Annotated[
        str | None,
        _option(
            _ENGINE,
            "--url",
            metavar="URL",
            text="Ask an OpenAI-compatible server (vLLM, fastvlm serve); its key is in $FASTVLM_API_KEY or "
            "$OPENAI_API_KEY, and --model its name of the model.",
        ),
    ] = None
    concurrency: Annotated[
        int, _option(_ENGINE, "--concurrency", metavar="N", text="Requests to --url at the same time.")
    ] = 16
    retries: Annotated[
        int,
        _option(_ENGINE, "--retries", metavar="N", text="Of a request to --url that fails."),
    ] = 5

    def __post_init__(self) -> None:
        _check_count("--slots", self.slots, _MOST_SLOTS)
        _check_count("--decoders", self.decoders, _MOST_PROCESSES)
        _check_count("--concurrency", self.concurrency, _MOST_REQUESTS)
        _check_count("--retries", self.retries, 100, least=0)

    def captioner_settings(self, choice: ModelChoice, sampling: Sampling, system: str | None) -> dict[str, Any]:
        """Plain values for :func:`fastvlm.captioning.captioners.make_captioner`."""
        if self.url is not None:
            fields = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
            further = {"top_p": sampling.top_p, "seed": sampling.seed}
            return {
                "url": self.url,
                "model": None if choice.name == DEFAULT_MODEL else choice.name,
                "sampling": fields | {name: value for name, value in further.items() if value is not None},
                "system": system,
                "concurrency": self.concurrency,
                "retries": self.retries,
            }
        return {
            "model": choice.name,
            "revision": choice.revision,
            "sampling": sampling.settings(),
            "system": system,
            "num_slots": self.slots,
            "num_decoders": self.decoders,
            **choice.settings(),
        }


@dataclass(frozen=True)
class MachineChoice:
    """How a run is divided over machines.

    Raises:
        UsageError: two ways at once, or a number out of its range.
    """

    shard: Annotated[
        str | None,
        _option(_MACHINES, "--shard", metavar="K/N", text="Do part K of N of the job; --out is shared."),
    ] = None
    ray: Annotated[
        str | None,
        _option(
            _MACHINES, "--ray", metavar="ADDRESS", text="Run on a Ray cluster: 'auto', 'local', or ray://HOST:10001."
        ),
    ] = None
    ray_actors: Annotated[
        int | None,
        _option(_MACHINES, "--ray-actors", metavar="N", text="Models in the cluster; as many as fit if not given."),
    ] = None
    ray_cpus: Annotated[
        float, _option(_MACHINES, "--ray-cpus", metavar="N", text="CPUs of each model in the cluster.")
    ] = 1.0
    ray_gpus: Annotated[
        float, _option(_MACHINES, "--ray-gpus", metavar="N", text="GPUs of each model in the cluster.")
    ] = 0.0
    ray_splits: Annotated[
        int,
        _option(_MACHINES, "--ray-splits", metavar="N", text="Parts of the job; the same for each run."),
    ] = 32

    def __post_init__(self) -> None:
        if self.ray is not None and self.shard is not None:
            raise UsageError("--shard and --ray were both given; expected one of them.")
        _check_count("--ray-actors", self.ray_actors, 10_000)
        _check_count("--ray-splits", self.ray_splits, 10_000)
        if not 0 < self.ray_cpus <= 1024 or not 0 <= self.ray_gpus <= 64:
            raise UsageError(
                f"--ray-cpus is {self.ray_cpus} and --ray-gpus {self.ray_gpus}; expected above 0 to 1024, and 0 to 64."
            )
