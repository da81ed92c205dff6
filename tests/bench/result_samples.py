"""Measurements that were never made, and their result."""

from fastvlm import FastVlmConfig
from fastvlm.bench.plan import BenchOptions
from fastvlm.bench.results import result_of
from fastvlm.bench.rounds import Measurements
from fastvlm.bench.worker import Measured

SIDE = (("side_px", 1024),)
CARD = {
    "cpu": "AMD EPYC 9R14",
    "cores": 2,
    "memory_bytes": 24 * 2**30,
    "instruction_sets": ["avx2"],
    "load_average": [0.1, 0.2, 0.3],
    "fastvlm": "0.1.0",
    "commit": "abc123",
    "torch": "2.13.0",
    "python": "3.11",
}


def encoded(seconds, shift=0.0):
    return Measured(seconds, check=[1.0 + shift, 2.0])


def measurements() -> Measurements:
    found = Measurements(rounds=2, seconds=61.0)
    found.samples = {
        ("encode", SIDE, "fastvlm"): [encoded(0.5), encoded(0.7)],
        ("encode", SIDE, "transformers"): [encoded(3.0, 0.1), encoded(3.6, 0.1)],
        ("prefill", (), "fastvlm"): [Measured(0.2, facts={"tokens": 290})],
        ("ttft", SIDE, "fastvlm"): [Measured(0.9, {"encode": 0.5, "prefill": 0.4}, [7.0], {"tokens": 280})],
        ("ttft", SIDE, "transformers"): [Measured(4.5, {"encode": 4.0, "prefill": 0.5}, [7.0])],
        ("second-question", SIDE, "fastvlm"): [Measured(0.1, {"first_question": 0.8})],
        ("decode", (), "fastvlm"): [Measured(20.0, check=[1.0, 2.0, 3.0])],
        ("decode", (), "fastvlm-int8"): [Measured(30.0, check=[1.0, 2.0, 4.0])],
        ("decode", (), "transformers"): [Measured(10.0, check=[1.0, 2.0, 3.0])],
        ("throughput", (("streams", 8),), "fastvlm"): [Measured(200.0)],
        ("memory", (), "fastvlm"): [Measured(2e9)],
        ("memory", (), "transformers"): [Measured(3e9)],
    }
    found.failures = {
        "openvino (encoder)": "openvino is not installed. Run: pip install it",
        "fastvlm-int4: decode": "fastvlm-int4: it broke",
        "transformers (cold)": "too slow",
    }
    products = [{"avx2 float32": 1e12, "avx512 bfloat16": 1e12}, {"avx2 float32": 0.9e12, "avx512 bfloat16": 2e12}]
    found.peaks = {"multiply_adds": [Measured(max(parts.values()), parts) for parts in products]}
    found.peaks["bandwidth"] = [Measured(24e9), Measured(25e9)]
    found.opened = {"machine": Measured(0.0, facts={"threads": 2}), "transformers": Measured(1.0, facts={"timm": "1"})}
    found.opened["fastvlm"] = Measured(1.0, facts={"kernels": "avx512"})
    found.opened["llama.cpp (decoder)"] = Measured(1.0, facts={"xllamacpp": "2026", "logits_distance": 0.01})
    return found


def result(**settings) -> dict:
    options = BenchOptions("folder", "image.jpg", has_peers=True, **settings)
    about = {"name": "random 0.5b", "is_random": True, "parameters": 620_000_000}
    found = result_of(options, FastVlmConfig.preset("0.5b"), {"whole": measurements()}, CARD)
    return {"model": about, **found, "command": "fastvlm bench --preset 0.5b --peers"}
