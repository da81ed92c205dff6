"""Result of a run as JSON values: medians with spread, ratios, fractions of the machine's peaks, agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastvlm.bench.costs import decoded_token_bytes, encoder_flops, prefill_flops
from fastvlm.bench.plan import MEASURES, UNITS, BenchOptions
from fastvlm.bench.rounds import Measurements
from fastvlm.bench.spread import Ratio, ratio, summarize
from fastvlm.bench.worker import Measured
from fastvlm.hf.config import FastVlmConfig

SCHEMA = 1
_DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
_FEATURES, _TOKENS = ("encode",), ("prefill", "ttft", "decode")
# Features are compared with those of the first of these that was measured.
_REFERENCES = ("onnxruntime-float32", "openvino-float32", "transformers", "fastvlm")


@dataclass(frozen=True)
class Pair:
    """Two contestants of one measure; `variant` picks among its cases (None: the first)."""

    measure: str
    ours: str = "fastvlm"
    theirs: str = "transformers"
    variant: int | None = None


RATIOS = {
    "encode_vs_transformers": Pair("encode"),
    "encode_vs_openvino": Pair("encode", theirs="openvino"),
    "encode_vs_onnxruntime": Pair("encode", theirs="onnxruntime-float32"),
    "prefill_vs_transformers": Pair("prefill"),
    "ttft_vs_transformers": Pair("ttft"),
    "decode_vs_transformers": Pair("decode"),
    "decode_int8_vs_transformers": Pair("decode", ours="fastvlm-int8"),
    "decode_int4_vs_transformers": Pair("decode", ours="fastvlm-int4"),
    "throughput_8_vs_transformers": Pair("throughput", variant=8),
    "throughput_8_int8_vs_transformers": Pair("throughput", ours="fastvlm-int8", variant=8),
    "second_question_vs_first": Pair("second-question", theirs="fastvlm"),
    "cold_start_vs_transformers": Pair("cold-start"),
    "memory_vs_transformers": Pair("memory"),
}


def result_of(
    options: BenchOptions, config: FastVlmConfig, measurements: Measurements, card: dict[str, Any]
) -> dict[str, Any]:
    """The whole result.

    Returns:
        `settings`, `environment`, `rounds`, `seconds`, `measures` (samples with their spread), `ratios` (above 1:
        fastvlm is better; None where not measured), `ratio_ranges` (over single rounds), `not_measured` (why),
        `roofline`, `agreement`, `failures`.
    """
    measures = [_measure(key, samples) for key, samples in measurements.samples.items()]
    ratios = {name: _ratio(pair, options, measurements) for name, pair in RATIOS.items()}
    found = {name: value for name, value in ratios.items() if isinstance(value, Ratio)}
    return {
        "schema": SCHEMA,
        "settings": _settings(options),
        "environment": {**card, **_versions(measurements)},
        "rounds": measurements.rounds,
        "seconds": round(measurements.seconds, 1),
        "measures": measures,
        "ratios": {name: round(found[name].value, 3) if name in found else None for name in ratios},
        "ratio_ranges": {name: [round(v.lowest, 3), round(v.highest, 3)] for name, v in found.items()},
        "not_measured": {name: why for name, why in ratios.items() if isinstance(why, str)},
        "roofline": _roofline(options, config, measurements),
        "agreement": _agreement(measurements),
        "failures": measurements.failures,
    }


def _settings(options: BenchOptions) -> dict[str, Any]:
    return {
        "what": list(options.what),
        "image_sizes_px": list(options.sides_px),
        "dtypes": list(options.dtypes),
        "bits": list(options.bits),
        "streams": list(options.streams),
        "threads": options.threads,
        "device": options.device,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "has_peers": options.has_peers,
    }


def _versions(measurements: Measurements) -> dict[str, Any]:
    facts = {name: value for opened in measurements.opened.values() for name, value in opened.facts.items()}
    return {"threads": facts.pop("threads", None), **facts}


def _measure(key: tuple[str, tuple[tuple[str, int], ...], str], samples: Sequence[Measured]) -> dict[str, Any]:
    measure, case, contestant = key
    parts = {
        name: float(f"{summarize([sample.parts[name] for sample in samples]).median:.6g}") for name in samples[0].parts
    }
    return {
        "measure": measure,
        "contestant": contestant,
        "case": dict(case),
        "unit": UNITS[measure],
        **summarize([sample.value for sample in samples]).as_dict(),
        "parts": parts,
        **({"facts": samples[0].facts} if samples[0].facts else {}),
    }


# ------------------------------------------------------------------------------------------------------ ratios


def _case(measure: str, options: BenchOptions, variant: int | None) -> tuple[tuple[str, int], ...]:
    if measure in ("encode", "ttft", "second-question"):
        return (("side_px", options.sides_px[0]),)
    return (("streams", variant),) if variant is not None else ()


def _ratio(pair: Pair, options: BenchOptions, measurements: Measurements) -> Ratio | str:
    """The ratio, or the reason why there is none."""
    case = _case(pair.measure, options, pair.variant)
    if pair.measure not in options.what:
        return f"{pair.measure} was not asked for (--what)"
    ours = measurements.samples.get((pair.measure, case, pair.ours))
    theirs = measurements.samples.get((pair.measure, case, pair.theirs))
    for contestant, samples in ((pair.ours, ours), (pair.theirs, theirs)):
        if not samples:
            return _why_not(contestant, pair, case, options, measurements)
    assert ours is not None and theirs is not None  # noqa: S101  # told above
    mine = [sample.value for sample in ours]
    if pair.measure == "second-question":
        return ratio(mine, [sample.parts["first_question"] for sample in theirs], is_more_better=False)
    is_more_better = MEASURES[pair.measure].is_more_better
    return ratio(mine, [sample.value for sample in theirs], is_more_better=is_more_better)


def _why_not(
    contestant: str, pair: Pair, case: tuple[Any, ...], options: BenchOptions, measurements: Measurements
) -> str:
    suffix = "".join(f" {value}" for _, value in case)
    worker = f"{contestant} (cold)" if pair.measure == "cold-start" else contestant
    for name in (worker, f"{contestant}: {pair.measure}{suffix}"):
        if name in measurements.failures:
            return measurements.failures[name]
    if not contestant.startswith("fastvlm") and not options.has_peers:
        return f"{contestant} was not measured (--peers)"
    return f"{contestant} was not measured"


# ------------------------------------------------------------------------------------------------------ peaks


def _roofline(options: BenchOptions, config: FastVlmConfig, measurements: Measurements) -> dict[str, Any]:
    """The machine's peaks in this run, and the fraction of them that each contestant's median reaches."""
    peaks = {name: max(m.value for m in found) for name, found in measurements.peaks.items()}
    fractions: dict[str, float] = {}
    for (measure, case, contestant), samples in measurements.samples.items():
        median = summarize([sample.value for sample in samples]).median
        fraction = _fraction(measure, dict(case), contestant, median, options, config, peaks, samples[0])
        if fraction is not None:
            label = " ".join([measure, *(str(value) for _, value in case), contestant])
            fractions[label] = round(fraction, 4)
    ways = {name: found[-1].parts for name, found in measurements.peaks.items()}
    return {"peaks": peaks, "ways": ways, "fractions": fractions}


def _fraction(
    measure: str,
    case: dict[str, int],
    contestant: str,
    median: float,
    options: BenchOptions,
    config: FastVlmConfig,
    peaks: dict[str, float],
    sample: Measured,
) -> float | None:
    if measure == "decode" and "bandwidth" in peaks:
        read = decoded_token_bytes(config, _weight_bits(contestant, options), options.prompt_tokens)
        return median * read / peaks["bandwidth"]
    if "matrix_peak" not in peaks or measure not in ("encode", "prefill"):
        return None
    if measure == "encode":
        flops = encoder_flops(config, case["side_px"], case["side_px"])
    else:
        flops = prefill_flops(config, int(sample.facts["tokens"]))
    return flops / median / peaks["matrix_peak"]


def _weight_bits(contestant: str, options: BenchOptions) -> int:
    """Bits of a weight, by the contestant's label."""
    _, _, suffix = contestant.partition("-")
    return {"int8": 8, "int4": 4}.get(suffix) or _DTYPE_BITS[suffix or options.dtypes[0]]


# ------------------------------------------------------------------------------------------------------ agreement


def _agreement(measurements: Measurements) -> dict[str, Any]:
    """Differences between the contestants' results.

    For features the relative distance of 256 numbers (norm) from a reference's; for replies how many of their first
    tokens are those of transformers.
    """
    found: dict[str, Any] = {}
    for measure, case in {(measure, case): None for measure, case, _ in measurements.samples}:
        there = {
            name: samples[0].check
            for (m, c, name), samples in measurements.samples.items()
            if (m, c) == (measure, case)
        }
        label = " ".join([measure, *(str(value) for _, value in case)])
        if measure in _FEATURES and len(there) > 1:
            reference = next(name for name in _REFERENCES if name in there)
            gaps = {name: round(_distance(check, there[reference]), 5) for name, check in there.items()}
            found[label] = {"relative_distance_from": reference, **{n: g for n, g in gaps.items() if n != reference}}
        elif measure in _TOKENS[1:] and "transformers" in there:
            counts = {name: _same_first(check, there["transformers"]) for name, check in there.items()}
            found[label] = {"same_first_tokens_of": len(there["transformers"]), **counts}
    return found


def _distance(values: Sequence[float], reference: Sequence[float]) -> float:
    if len(values) != len(reference):
        return math.inf
    gap = math.sqrt(sum((a - b) ** 2 for a, b in zip(values, reference, strict=True)))
    return gap / max(math.sqrt(sum(b * b for b in reference)), 1e-30)


def _same_first(tokens: Sequence[float], reference: Sequence[float]) -> int:
    pairs = list(zip(tokens, reference, strict=False))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))
