"""Who takes part in a benchmark, and in which phase.

A phase opens its contestants, measures them in turn and ends their processes, so that all contestants together never
have to fit into memory, and a finished phase can be kept while another one is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastvlm.backends.native.library import LEVELS, SWITCH, TORCH, available_levels
from fastvlm.bench.cold_start import ask_command, transformers_command
from fastvlm.bench.inputs import FIRST_QUESTION
from fastvlm.bench.plan import BenchOptions, Contestant, Step, steps
from fastvlm.errors import UsageError

_IMAGES = ("encode", "ttft", "second-question")
_DECODER = ("prefill", "decode", "throughput")
# Phase -> share of the time; what one does not need goes to those behind it.
_SHARES = {"images": 0.4, "16 bits": 0.24, "8 bits": 0.13, "4 bits": 0.13, "cold start": 0.1}


@dataclass(frozen=True)
class Phase:
    """Contestants that are measured in turn.

    Args:
        name: for progress and results.
        contestants: who is open meanwhile.
        steps: of one round.
        share: of the time of a run.
    """

    name: str
    contestants: tuple[Contestant, ...]
    steps: tuple[Step, ...]
    share: float


def phases(options: BenchOptions) -> list[Phase]:
    """The phases that have something to measure, in order."""
    found = []
    for name, share in _SHARES.items():
        members = tuple(one for one in contestants(options) if one.phase == name)
        if members:
            found.append(Phase(name, members, tuple(steps(options, members)), share))
    return found


def contestants(options: BenchOptions) -> list[Contestant]:
    """All contestants that have something to do; in each phase ours are first."""
    peers = (*_transformers(options), *_encoders(options), *_decoders(options)) if options.has_peers else ()
    found = [*_fastvlm(options), *peers, *_cold_starts(options)]
    return [contestant for contestant in found if contestant.measures]


def check_kernels(levels: Sequence[str]) -> None:
    """Refuse levels of the compiled kernels that do not exist, or that this machine cannot run.

    Raises:
        UsageError: it names those that this machine can run.
    """
    runnable = (*available_levels(), TORCH)
    for level in levels:
        if level not in runnable:
            is_known = level in [known.name for known in LEVELS]
            what = "this machine cannot run" if is_known else "does not exist"
            raise UsageError(f"--kernels has {level!r}, which {what}; expected some of {', '.join(runnable)}.")
    if len(set(levels)) < len(levels):
        raise UsageError(f"--kernels names a level twice: {', '.join(levels)}.")


def _split(what: frozenset[str]) -> dict[str, frozenset[str]]:
    """Measures of a contestant by its phase of 16 bits; memory is measured behind the one that needs most."""
    images, decoder = what & set(_IMAGES), what & set(_DECODER)
    memory = what & {"memory"}
    return {"images": images | memory if images else images, "16 bits": decoder if images else decoder | memory}


def _fastvlm(options: BenchOptions) -> Iterator[Contestant]:
    what = frozenset(options.what) - {"cold-start"}
    first, *others = options.dtypes
    own = {"folder": options.folder, "threads": options.threads, "device": options.device}
    own |= {"num_slots": max(8, *options.streams)}
    for number, level in enumerate(options.kernels or ("",)):
        label = f"fastvlm-{level}" if number else "fastvlm"
        environment = {SWITCH: level} if level else {}
        for dtype in (first, *others):
            name = label if dtype == first else f"{label}-{dtype}"
            settings = {**own, "dtype": dtype}
            for phase, measures in _split(what).items():
                yield Contestant(name, "fastvlm", settings, measures, phase, dtype=dtype, environment=environment)
        for bits in (bits for bits in options.bits if bits != 16):
            settings = {**own, "dtype": first, "bits": bits}
            measures, phase = what - set(_IMAGES), f"{bits} bits"
            name = f"{label}-int{bits}"
            yield Contestant(name, "fastvlm", settings, measures, phase, bits, first, environment=environment)
        for bits in (bits for bits in options.encoder_bits if bits != 16):
            settings = {**own, "dtype": first, "encoder_bits": bits}
            measures, name = what & {"encode", "ttft"}, f"{label}-encoder{bits}"
            yield Contestant(name, "fastvlm", settings, measures, "images", 16, first, bits, environment)


def _transformers(options: BenchOptions) -> Iterator[Contestant]:
    what = frozenset(options.what) - {"cold-start", "second-question"}
    for dtype in options.dtypes:
        label = "transformers" if dtype == options.dtypes[0] else f"transformers-{dtype}"
        settings = {"folder": options.folder, "threads": options.threads, "device": options.device, "dtype": dtype}
        for phase, measures in _split(what).items():
            yield Contestant(label, "transformers", settings, measures, phase, dtype=dtype)


def _encoders(options: BenchOptions) -> Iterator[Contestant]:
    """Runtimes of the encoder, on a CPU."""
    encoding = frozenset(options.what) & {"encode"} if options.device == "cpu" else frozenset()
    common = {"folder": options.folder, "threads": options.threads}
    first = "bfloat16" if options.dtypes[0] == "bfloat16" else "float32"
    kinds = {"openvino": (first, 32), "openvino-int8": (first, 8)}
    if first == "bfloat16":
        kinds["openvino-float32"] = ("float32", 32)
    for label, (dtype, bits) in kinds.items():
        settings = {**common, "work": options.work, "dtype": dtype, "bits": bits}
        encoder_bits = 8 if bits == 8 else 16
        yield Contestant(label, "openvino", settings, encoding, "images", 16, dtype, encoder_bits, part="encoder")
    yield Contestant("onnxruntime-float32", "onnxruntime", common, encoding, "images", dtype="float32", part="encoder")


def _decoders(options: BenchOptions) -> Iterator[Contestant]:
    """Runtimes of the decoder, on a CPU."""
    what = frozenset(options.what) & {*_DECODER, "memory"} if options.device == "cpu" else frozenset()
    dtype = "bfloat16" if options.dtypes[0] == "bfloat16" else "float32"
    common = {"folder": options.folder, "threads": options.threads, "work": options.work, "dtype": dtype}
    common |= {"prompt_tokens": options.prompt_tokens, "num_slots": max(8, *options.streams)}
    for name, kind in (("llama.cpp", "llama.cpp"), ("openvino", "openvino-decoder")):
        for bits in options.bits:
            label = name if bits == 16 else f"{name}-int{bits}"
            settings, phase = {**common, "bits": bits}, f"{bits} bits"
            yield Contestant(label, kind, settings, what, phase, bits, dtype, part="decoder")


def _cold_starts(options: BenchOptions) -> Iterator[Contestant]:
    cold = frozenset(options.what) & {"cold-start"}
    question = (options.folder, options.image, FIRST_QUESTION, options.device, options.dtypes[0])
    levels = {f"fastvlm-{level}" if number else "fastvlm": level for number, level in enumerate(options.kernels)}
    for label, level in (levels or {"fastvlm": ""}).items():
        settings = {"command": ask_command(*question), "threads": options.threads}
        environment = {SWITCH: level} if level else {}
        yield Contestant(label, "command", settings, cold, "cold start", environment=environment, part="cold")
    if options.has_peers:
        settings = {"command": transformers_command(*question), "threads": options.threads}
        yield Contestant("transformers", "command", settings, cold, "cold start", part="cold")
