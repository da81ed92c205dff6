"""Options that are refused, who takes part in what, and the steps of a round."""

import json

import pytest

from fastvlm.bench.plan import MEASURES, BenchOptions, contestants, steps
from fastvlm.errors import UsageError


def options(**settings):
    return BenchOptions("folder", "image.jpg", **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"what": ("encode", "speed")}, "--what has 'speed'"),
        ({"what": ()}, "--what is empty"),
        ({"what": ("encode", "encode")}, "names something twice"),
        ({"dtypes": ("int8",)}, "--dtype has 'int8'"),
        ({"bits": (2,)}, "--bits has 2"),
        ({"sides_px": (100,)}, "--image-size has 100; expected multiples of 64"),
        ({"sides_px": (8192,)}, "--image-size has 8192"),
        ({"rounds": 0}, "--rounds"),
        ({"new_tokens": 2}, "--new-tokens is too small; expected at least 3 tokens"),
        ({"streams": ()}, "--streams"),
        ({"streams": (0, 1)}, "--streams"),
        ({"max_minutes": 0}, "--max-minutes"),
        ({"threads": -1}, "--threads is -1"),
        ({"device": "tpu"}, "--device is 'tpu'"),
    ],
)
def test_what_cannot_be_is_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        options(**settings)


def test_alone_we_are_measured_with_all_bits():
    found = {contestant.worker: contestant for contestant in contestants(options())}
    assert list(found) == ["fastvlm", "fastvlm-int8", "fastvlm-int4", "fastvlm (cold)"]
    assert found["fastvlm"].measures == set(MEASURES) - {"cold-start"}
    assert found["fastvlm-int8"].measures == {"prefill", "decode", "throughput", "memory"}
    assert found["fastvlm-int4"].options["bits"] == 4
    assert found["fastvlm"].options["num_slots"] == 8


def test_with_peers_everybody_is_there():
    found = {contestant.worker: contestant for contestant in contestants(options(has_peers=True, threads=3))}
    assert set(found) == {
        *("fastvlm", "fastvlm-int8", "fastvlm-int4", "fastvlm (cold)"),
        *("transformers", "transformers (cold)", "openvino", "openvino-float32", "onnxruntime-float32"),
    }
    assert found["openvino"].measures == {"encode"} and found["openvino"].options["dtype"] == "bfloat16"
    assert "second-question" not in found["transformers"].measures
    assert all(contestant.options["threads"] == 3 for contestant in found.values())
    assert all(json.loads(contestant.arguments[1]) == contestant.options for contestant in found.values())


def test_on_a_gpu_the_runtimes_of_the_cpu_are_left_out():
    found = {c.worker: c for c in contestants(options(has_peers=True, device="cuda:1"))}
    assert not any(name.startswith(("openvino", "onnxruntime")) for name in found)
    assert all(found[name].options["device"] == "cuda:1" for name in ("fastvlm", "fastvlm-int8", "transformers"))
    assert all("cuda:1" in found[name].options["command"] for name in ("fastvlm (cold)", "transformers (cold)"))


def test_other_dtypes_are_contestants_of_their_own():
    found = {c.worker: c for c in contestants(options(dtypes=("bfloat16", "float32"), bits=(16,), has_peers=True))}
    assert found["fastvlm-float32"].options["dtype"] == found["transformers-float32"].options["dtype"] == "float32"
    assert found["fastvlm"].options["dtype"] == "bfloat16"


def test_in_float32_everybody_computes_in_float32():
    found = {c.worker: c for c in contestants(options(dtypes=("float32",), has_peers=True))}
    assert "openvino-float32" not in found
    assert {c.options["dtype"] for c in found.values() if "dtype" in c.options} == {"float32"}
    assert all(found[name].options["command"][-1] == "float32" for name in ("fastvlm (cold)", "transformers (cold)"))


def test_who_has_nothing_to_do_is_not_opened():
    labels = [contestant.worker for contestant in contestants(options(what=("encode",), has_peers=True))]
    assert labels == ["fastvlm", "transformers", "openvino", "openvino-float32", "onnxruntime-float32"]
    assert [c.worker for c in contestants(options(what=("cold-start",)))] == ["fastvlm (cold)"]


def test_a_round_has_every_case_of_every_measure():
    chosen = options(sides_px=(256, 512), streams=(1, 4), has_peers=True)
    found = steps(chosen, contestants(chosen))
    assert len({step.key for step in found}) == len(found)
    for measure in MEASURES:
        assert any(step.measure == measure for step in found), measure
    encodes = [step for step in found if step.measure == "encode"]
    assert [(step.case, step.contestant) for step in encodes[:2]] == [
        ((("side_px", 256),), "fastvlm"),
        ((("side_px", 256),), "transformers"),
    ]
    assert {step.command["side_px"] for step in encodes} == {256, 512}
    together = [step.command for step in found if step.measure == "throughput"]
    assert {command["num_streams"] for command in together} == {1, 4}
    assert all(command["num_tokens"] == 32 and command["prompt_tokens"] == 290 for command in together)


def test_commands_are_methods_of_the_contestants():
    from fastvlm.bench.cold_start import ColdStart
    from fastvlm.bench.fastvlm_engine import FastVlmEngine
    from fastvlm.bench.transformers_peer import TransformersModel

    for name, measure in MEASURES.items():
        if name == "cold-start":
            assert hasattr(ColdStart, measure.command)
            continue
        assert hasattr(FastVlmEngine, measure.command), name
        assert hasattr(TransformersModel, measure.command) or name == "second-question"
