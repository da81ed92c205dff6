"""Result of a run as JSON values: medians with spread, ratios, fractions of the machine's peaks, agreement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from fastvlm.bench.contestants import contestants
from fastvlm.bench.limits import BANDWIDTH, Limits
from fastvlm.bench.plan import MEASURES, BenchOptions, Case, Contestant, failure_key
from fastvlm.bench.rounds import Measurements
from fastvlm.bench.spread import Ratio, ratio, six_digits, summarize
from fastvlm.bench.worker import Measured
from fastvlm.config import BITS
from fastvlm.hf.config import FastVlmConfig

SCHEMA = 2
_OWN_FACTS = ("kernels", "logits_distance")  # of a contestant; all other facts are versions
_DECODING = ("prefill", "decode", "throughput")
_TOKENS = ("ttft", "decode")  # measures whose `check` are tokens
# Features are compared with those of the first of these that was measured.
_REFERENCES = ("onnxruntime-float32", "openvino-float32", "transformers", "fastvlm")


class Pair(NamedTuple):
    """Two contestants of one measure; `variant` picks among its cases (None: the first)."""

    measure: str
    ours: str = "fastvlm"
    theirs: str = "transformers"
    variant: int | None = None


def _ratios() -> Iterator[tuple[str, Pair]]:
    for peer in ("transformers", "openvino", "onnxruntime-float32", "openvino-int8"):
        name = peer.replace("-float32", "").replace("-int8", "_int8")
        yield f"encode_vs_{name}", Pair("encode", theirs=peer)
        yield f"encode_8_bits_vs_{name}", Pair("encode", ours="fastvlm-encoder8", theirs=peer)
    yield "ttft_vs_transformers", Pair("ttft")
    yield "ttft_8_bits_vs_transformers", Pair("ttft", ours="fastvlm-encoder8")
    for measure, suffix in ((name, f"-int{bits}" if bits < 16 else "") for name in _DECODING for bits in BITS):
        case = "_8" if measure == "throughput" else ""
        for peer in ("transformers", "llama.cpp", "openvino"):
            theirs = peer if peer == "transformers" else peer + suffix
            name = f"{measure}{case}{suffix.replace('-', '_')}_vs_{peer.replace('.', '_')}"
            yield name, Pair(measure, f"fastvlm{suffix}", theirs, 8 if case else None)
    yield "second_question_vs_first", Pair("second-question", theirs="fastvlm")
    yield "cold_start_vs_transformers", Pair("cold-start")
    yield "memory_vs_transformers", Pair("memory")


RATIOS = dict(_ratios())


def result_of(
    options: BenchOptions, config: FastVlmConfig, found: Mapping[str, Measurements], card: dict[str, Any]
) -> dict[str, Any]:
    """The whole result.

    Args:
        options: of the run.
        config: the model's.
        found: phase -> what was measured in it.
        card: the environment.

    Returns:
        `settings`, `environment`, `phases` (rounds and seconds of each), `measures` (samples with their spread),
        `ratios` (above 1: fastvlm is better; None where not measured), `ratio_ranges` (over single rounds),
        `not_measured` (why), `roofline`, `agreement`, `failures`.
    """
    measurements = _merged(found.values())
    facts = {name: value for opened in measurements.opened.values() for name, value in opened.facts.items()}
    versions = {name: value for name, value in facts.items() if name not in _OWN_FACTS}
    ratios = {name: _ratio(pair, options, measurements) for name, pair in RATIOS.items()}
    known = {name: value for name, value in ratios.items() if isinstance(value, Ratio)}
    ours = measurements.opened.get("fastvlm")
    return {
        "schema": SCHEMA,
        "settings": options.settings(),
        "environment": {**card, "threads": None, "kernels": ours.facts.get("kernels") if ours else None, **versions},
        "phases": {name: {"rounds": each.rounds, "seconds": round(each.seconds, 1)} for name, each in found.items()},
        "rounds": measurements.rounds,
        "seconds": round(measurements.seconds, 1),
        "measures": [_measure(*key, samples) for key, samples in measurements.samples.items()],
        "ratios": {name: round(known[name].value, 3) if name in known else None for name in ratios},
        "ratio_ranges": {name: [round(v.lowest, 3), round(v.highest, 3)] for name, v in known.items()},
        "not_measured": {name: why for name, why in ratios.items() if isinstance(why, str)},
        "roofline": _roofline(options, config, measurements),
        "agreement": _agreement(measurements),
        "failures": measurements.failures,
    }


def _merged(found: Iterable[Measurements]) -> Measurements:
    """The phases as one: the most rounds of one, the seconds of all."""
    whole = Measurements()
    for each in found:
        whole.samples |= each.samples
        whole.failures |= each.failures
        whole.opened = {**each.opened, **whole.opened}
        for name, samples in each.peaks.items():
            whole.peaks.setdefault(name, []).extend(samples)
        whole.rounds, whole.seconds = max(whole.rounds, each.rounds), whole.seconds + each.seconds
    return whole


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
    known = _by_measure(options).get((measure, contestant))
    for name in (known.worker if known else contestant, failure_key(contestant, measure, case)):
        if name in failures:
            return failures[name]
    if not contestant.startswith("fastvlm") and not options.has_peers:
        return f"{contestant} was not measured (--peers)"
    return f"{contestant} was not measured"


def _roofline(options: BenchOptions, config: FastVlmConfig, measurements: Measurements) -> dict[str, Any]:
    """The machine's peaks in this run, each measure's limit by them, and the fraction of it that a median reaches."""
    peaks: dict[str, float] = {}
    if BANDWIDTH in measurements.peaks:
        peaks[BANDWIDTH] = max(sample.value for sample in measurements.peaks[BANDWIDTH])
    for sample in measurements.peaks.get("multiply_adds", ()):
        for name, value in sample.parts.items():
            peaks[name] = max(value, peaks.get(name, 0.0))
    of_run, known = Limits(config, peaks, options.prompt_tokens), _by_measure(options)
    limits, fractions = {}, {}
    for key, samples in measurements.samples.items():
        measure, case, label = key
        best = of_run.best(measure, case, known[measure, label], samples) if (measure, label) in known else None
        if best is not None:
            name = " ".join([measure, *(str(value) for _, value in case), label])
            value = median(sample.value for sample in samples)
            limits[name] = six_digits(best)
            fractions[name] = round(value / best if MEASURES[measure].is_more_better else best / value, 4)
    ways = {name: found[-1].parts for name, found in measurements.peaks.items()}
    return {"peaks": peaks, "ways": ways, "limits": limits, "fractions": fractions}


def _by_measure(options: BenchOptions) -> dict[tuple[str, str], Contestant]:
    """Measure and label -> the contestant."""
    return {(measure, each.label): each for each in contestants(options) for measure in each.measures}


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
    distances = {
        name.replace(" (decoder)", ""): opened.facts["logits_distance"]
        for name, opened in measurements.opened.items()
        if "logits_distance" in opened.facts
    }
    if distances:
        found["logits"] = {"distance_in_standard_deviations_from": "float32", **distances}
    return found


def _distance(values: Sequence[float], reference: Sequence[float]) -> float:
    if len(values) != len(reference):
        return math.inf
    gap = np.linalg.norm(np.subtract(values, reference))
    return float(gap) / max(float(np.linalg.norm(reference)), 1e-30)


def _same_first(tokens: Sequence[float], reference: Sequence[float]) -> int:
    pairs = list(zip(tokens, reference, strict=False))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))
