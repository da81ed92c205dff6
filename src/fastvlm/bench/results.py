"""Result of a run as JSON values: medians with spread, ratios, fractions of the machine's peaks, agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from fastvlm.bench.costs import decoded_token_bytes, encoder_flops, prefill_flops
from fastvlm.bench.plan import MEASURES, BenchOptions, Case, failure_key
from fastvlm.bench.rounds import Measurements
from fastvlm.bench.spread import Ratio, ratio, six_digits, summarize
from fastvlm.bench.worker import Measured
from fastvlm.hf.config import FastVlmConfig

SCHEMA = 1
_DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
_TOKENS = ("ttft", "decode")  # measures whose `check` are tokens
# Features are compared with those of the first of these that was measured.
_REFERENCES = ("onnxruntime-float32", "openvino-float32", "transformers", "fastvlm")


class Pair(NamedTuple):
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
    facts = {name: value for opened in measurements.opened.values() for name, value in opened.facts.items()}
    ratios = {name: _ratio(pair, options, measurements) for name, pair in RATIOS.items()}
    found = {name: value for name, value in ratios.items() if isinstance(value, Ratio)}
    return {
        "schema": SCHEMA,
        "settings": options.settings(),
        "environment": {**card, "threads": None, **facts},
        "rounds": measurements.rounds,
        "seconds": round(measurements.seconds, 1),
        "measures": [_measure(*key, samples) for key, samples in measurements.samples.items()],
        "ratios": {name: round(found[name].value, 3) if name in found else None for name in ratios},
        "ratio_ranges": {name: [round(v.lowest, 3), round(v.highest, 3)] for name, v in found.items()},
        "not_measured": {name: why for name, why in ratios.items() if isinstance(why, str)},
        "roofline": _roofline(options, config, measurements),
        "agreement": _agreement(measurements),
        "failures": measurements.failures,
    }


def _measure(measure: str, case: Case, contestant: str, samples: Sequence[Measured]) -> dict[str, Any]:
    first = samples[0]
    return {
        "measure": measure,
        "contestant": contestant,
        "case": dict(case),
        "unit": MEASURES[measure].unit,
        **summarize([sample.value for sample in samples]),
        "parts": {name: six_digits(median(sample.parts[name] for sample in samples)) for name in first.parts},
        **({"facts": first.facts} if first.facts else {}),
    }


def _ratio(pair: Pair, options: BenchOptions, measurements: Measurements) -> Ratio | str:
    """The ratio, or the reason why there is none."""
    if pair.measure not in options.what:
        return f"{pair.measure} was not asked for (--what)"
    case: Case = () if pair.variant is None else (("streams", pair.variant),)
    if pair.measure in ("encode", "ttft", "second-question"):
        case = (("side_px", options.sides_px[0]),)
    samples = []
    for contestant in (pair.ours, pair.theirs):
        found = measurements.samples.get((pair.measure, case, contestant))
        if not found:
            return _why_not(contestant, pair.measure, case, options, measurements.failures)
        samples.append(found)
    ours = [sample.value for sample in samples[0]]
    if pair.measure == "second-question":
        return ratio(ours, [sample.parts["first_question"] for sample in samples[1]], is_more_better=False)
    is_more_better = MEASURES[pair.measure].is_more_better
    return ratio(ours, [sample.value for sample in samples[1]], is_more_better=is_more_better)


def _why_not(contestant: str, measure: str, case: Case, options: BenchOptions, failures: dict[str, str]) -> str:
    worker = f"{contestant} (cold)" if measure == "cold-start" else contestant
    for name in (worker, failure_key(contestant, measure, case)):
        if name in failures:
            return failures[name]
    if not contestant.startswith("fastvlm") and not options.has_peers:
        return f"{contestant} was not measured (--peers)"
    return f"{contestant} was not measured"


def _roofline(options: BenchOptions, config: FastVlmConfig, measurements: Measurements) -> dict[str, Any]:
    """The machine's peaks in this run, and the fraction of them that each contestant's median reaches."""
    peaks = {name: max(sample.value for sample in found) for name, found in measurements.peaks.items()}
    fractions: dict[str, float] = {}
    encoder: dict[int, int] = {}  # FLOPs by the image's side
    for (measure, case, contestant), samples in measurements.samples.items():
        value = median(sample.value for sample in samples)
        label = " ".join([measure, *(str(value) for _, value in case), contestant])
        if measure == "decode" and "bandwidth" in peaks:
            bits = _weight_bits(contestant, options)
            read = decoded_token_bytes(config, bits, options.prompt_tokens)
            fractions[label] = round(value * read / peaks["bandwidth"], 4)
        if measure in ("encode", "prefill") and "matrix_peak" in peaks:
            if measure == "prefill":
                flops = prefill_flops(config, int(samples[0].facts["tokens"]))
            else:
                side = case[0][1]
                flops = encoder[side] = encoder.get(side) or encoder_flops(config, side, side)
            fractions[label] = round(flops / value / peaks["matrix_peak"], 4)
    ways = {name: found[-1].parts for name, found in measurements.peaks.items()}
    return {"peaks": peaks, "ways": ways, "fractions": fractions}


def _weight_bits(contestant: str, options: BenchOptions) -> int:
    """Bits of a weight, by the contestant's label."""
    _, _, suffix = contestant.partition("-")
    return {"int8": 8, "int4": 4}.get(suffix) or _DTYPE_BITS[suffix or options.dtypes[0]]


def _agreement(measurements: Measurements) -> dict[str, Any]:
    """Differences between the contestants' results.

    For features the relative distance of 256 numbers (norm) from those of a reference; for replies the number of first
    tokens that equal those of transformers.
    """
    checks: dict[tuple[str, Case], dict[str, list[float]]] = {}
    for (measure, case, name), samples in measurements.samples.items():
        checks.setdefault((measure, case), {})[name] = samples[0].check
    found: dict[str, Any] = {}
    for (measure, case), by_name in checks.items():
        label = " ".join([measure, *(str(value) for _, value in case)])
        if measure == "encode" and len(by_name) > 1:
            reference = next(name for name in _REFERENCES if name in by_name)
            gaps = {name: round(_distance(check, by_name[reference]), 5) for name, check in by_name.items()}
            del gaps[reference]
            found[label] = {"relative_distance_from": reference, **gaps}
        elif measure in _TOKENS and "transformers" in by_name:
            expected = by_name["transformers"]
            counts = {name: _same_first(check, expected) for name, check in by_name.items()}
            found[label] = {"same_first_tokens_of": len(expected), **counts}
    return found


def _distance(values: Sequence[float], reference: Sequence[float]) -> float:
    if len(values) != len(reference):
        return math.inf
    gap = np.linalg.norm(np.subtract(values, reference))
    return float(gap) / max(float(np.linalg.norm(reference)), 1e-30)


def _same_first(tokens: Sequence[float], reference: Sequence[float]) -> int:
    pairs = list(zip(tokens, reference, strict=False))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))
