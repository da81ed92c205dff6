"""Plan of a benchmark: options, measures, what a contestant is, and the steps of one round."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastvlm.bench.processes import WORKER
from fastvlm.config import BITS, ENCODER_BITS
from fastvlm.errors import UsageError

DTYPES = ("bfloat16", "float32", "float16")
SIDES_PX = (64, 4096)


@dataclass(frozen=True)
class Measure:
    """One thing that is measured.

    Args:
        command: the worker's command.
        unit: "s", "tokens/s" or "bytes".
        what: description in reports.
        max_rounds: maximum number of repetitions.
        has_warm_up: True to run it once before, not counted; False for measures that take long.
    """

    command: str
    unit: str
    what: str
    max_rounds: int = 1000
    has_warm_up: bool = True

    @property
    def is_more_better(self) -> bool:
        """True for rates."""
        return self.unit == "tokens/s"


MEASURES = {
    "encode": Measure("encode", "s", "pixels to visual tokens"),
    "prefill": Measure("prefill", "s", "prompt of text to its first token"),
    "ttft": Measure("ttft", "s", "image bytes to first text"),
    "second-question": Measure("second_question", "s", "the same, another question about the same image"),
    "decode": Measure("decode", "tokens/s", "one reply, after its first token"),
    "throughput": Measure("throughput", "tokens/s", "several replies together", max_rounds=2, has_warm_up=False),
    "cold-start": Measure("cold_start", "s", "process start to first byte", max_rounds=3, has_warm_up=False),
    "memory": Measure("memory", "bytes", "largest resident set of the process", max_rounds=1, has_warm_up=False),
}

Case = tuple[tuple[str, int], ...]  # variant of a measure, such as (("side_px", 1024),)


@dataclass(frozen=True)
class BenchOptions:
    """One run.

    Args:
        folder: the checkpoint.
        image: a JPEG file.
        what: names of MEASURES.
        sides_px: sides of the square image input; ratios are reported for the first.
        dtypes: dtypes of the computation; all contestants use the first, ours are also measured in the others.
        bits: bits per weight of our decoder.
        encoder_bits: bits per weight of our encoder: 16, and 8 for a contestant more.
        kernels: levels of the compiled kernels, each a contestant; () for the one that is used by itself.
        streams: numbers of concurrent replies, for throughput.
        has_peers: True to measure the peers too.
        rounds: repetitions of everything, unless `max_minutes` end first.
        max_minutes: no new round starts after these.
        threads: of every contestant; 0 for the default of each.
        device: "cpu" or "cuda"; OpenVINO and ONNX Runtime are measured on a CPU only.
        prompt_tokens, new_tokens: lengths of prompt and reply when decoding is measured.
        work: folder of the files that peers read, converted from the checkpoint.

    Raises:
        UsageError: a value outside its range.
    """

    folder: str
    image: str
    what: tuple[str, ...] = tuple(MEASURES)
    sides_px: tuple[int, ...] = (1024,)
    dtypes: tuple[str, ...] = ("bfloat16",)
    bits: tuple[int, ...] = BITS
    encoder_bits: tuple[int, ...] = (16,)
    kernels: tuple[str, ...] = ()
    streams: tuple[int, ...] = (1, 2, 4, 8)
    has_peers: bool = False
    rounds: int = 5
    max_minutes: float = 8.0
    threads: int = 0
    device: str = "cpu"
    prompt_tokens: int = 290
    new_tokens: int = 32
    work: str = ""

    def __post_init__(self) -> None:
        _check_all("--what", self.what, tuple(MEASURES))
        _check_all("--dtype", self.dtypes, DTYPES)
        _check_all("--bits", self.bits, BITS)
        _check_all("--encoder-bits", self.encoder_bits, ENCODER_BITS)
        for side in self.sides_px:
            low, high = SIDES_PX
            if side % 64 or not low <= side <= high:
                raise UsageError(f"--image-size has {side}; expected multiples of 64 from {low} to {high}.")
        counts = {"--rounds": self.rounds, "--new-tokens": self.new_tokens - 2, "--max-minutes": self.max_minutes}
        counts["--streams"] = min(self.streams, default=0)
        for flag, count in counts.items():
            if count <= 0:
                raise UsageError(f"{flag} is too small; expected at least {'3 tokens' if 'new' in flag else 1}.")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"--device is {self.device!r}; expected cpu, cuda, or a number with it: cuda:1.")
        if self.threads < 0:
            raise UsageError(f"--threads is {self.threads}; expected 1 or more, or 0 for each contestant's own choice.")

    def settings(self) -> dict[str, Any]:
        """The settings that a result names, as JSON values."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        for name in ("folder", "image", "work", "rounds", "max_minutes"):
            del fields[name]
        return {"image_sizes_px": fields.pop("sides_px"), **fields}


def _check_all(flag: str, values: tuple[Any, ...], known: tuple[Any, ...]) -> None:
    for value in values:
        if value not in known:
            raise UsageError(f"{flag} has {value!r}; expected some of {', '.join(map(str, known))}, joined by commas.")
    if not values or len(set(values)) < len(values):
        raise UsageError(f"{flag} is empty or names something twice; expected some of {', '.join(map(str, known))}.")


@dataclass(frozen=True)
class Contestant:
    """A program that is measured, in a process of its own.

    Args:
        label: in results: "fastvlm-int8".
        kind: a key of :data:`fastvlm.bench.worker.KINDS`.
        options: the worker's arguments.
        measures: names of MEASURES that it takes part in.
        phase: name of the phase in which it is open.
        bits: of the decoder's weights.
        dtype: of its computation.
        encoder_bits: of the encoder's weights, 16 for those of `dtype`.
        environment: variables of its process.
        part: what it computes, if another process of the same label computes the rest: "encoder", "decoder", "cold".
        program: command that runs the worker.
    """

    label: str
    kind: str
    options: dict[str, Any]
    measures: frozenset[str]
    phase: str = ""
    bits: int = 16
    dtype: str = "bfloat16"
    encoder_bits: int = 16
    environment: dict[str, str] = field(default_factory=dict)
    part: str = ""
    program: tuple[str, ...] = WORKER

    @property
    def worker(self) -> str:
        """The name of its process."""
        return f"{self.label} ({self.part})" if self.part else self.label

    @property
    def arguments(self) -> list[str]:
        """Arguments of `program`."""
        return [self.kind, json.dumps(self.options)]


@dataclass(frozen=True)
class Step:
    """One command to one worker."""

    measure: str
    contestant: str
    worker: str
    command: dict[str, Any] = field(hash=False)
    case: Case = ()

    @property
    def key(self) -> tuple[str, Case, str]:
        """Key of its samples."""
        return self.measure, self.case, self.contestant


def failure_key(contestant: str, measure: str, case: Case) -> str:
    """Key of a failed command in the failures of a run."""
    return f"{contestant}: {measure}" + "".join(f" {value}" for _, value in case)


def steps(options: BenchOptions, measured: Sequence[Contestant]) -> list[Step]:
    """One round: by measure, then by case, all contestants in turn."""
    found = []
    for name in (name for name in MEASURES if name in options.what):
        for case, arguments in _cases(name, options):
            command = {"do": MEASURES[name].command, **arguments}
            found += [
                Step(name, contestant.label, contestant.worker, command, case)
                for contestant in measured
                if name in contestant.measures
            ]
    return found


def _cases(measure: str, options: BenchOptions) -> Iterator[tuple[Case, dict[str, Any]]]:
    decoding = {"num_tokens": options.new_tokens, "prompt_tokens": options.prompt_tokens}
    if measure in ("encode", "ttft", "second-question"):
        for side in options.sides_px:
            image = {} if measure == "encode" else {"image": options.image}
            yield (("side_px", side),), {"side_px": side, **image}
    elif measure == "throughput":
        for count in options.streams:
            yield (("streams", count),), {"num_streams": count, **decoding}
    else:
        yield (), {"prefill": {"num_tokens": options.prompt_tokens}, "decode": decoding}.get(measure, {})
