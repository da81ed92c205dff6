"""Options that are refused, who takes part in what, and the steps of a round."""

import json

import pytest

from fastvlm.bench.contestants import check_kernels, contestants, phases
from fastvlm.bench.plan import MEASURES, BenchOptions
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
        ({"encoder_bits": (4,)}, "--encoder-bits has 4"),
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


def by_worker(**settings):
    """Worker -> its contestants, one in each of its phases."""
    found = {}
    for contestant in contestants(options(**settings)):
        found.setdefault(contestant.worker, []).append(contestant)
    return found


def test_alone_we_are_measured_with_all_bits():
    found = by_worker()
    assert list(found) == ["fastvlm", "fastvlm-int8", "fastvlm-int4", "fastvlm (cold)"]
    assert {c.phase: c.measures for c in found["fastvlm"]} == {
        "images": {"encode", "ttft", "second-question", "memory"},
        "16 bits": {"prefill", "decode", "throughput"},
    }
    (int8,), (int4,) = found["fastvlm-int8"], found["fastvlm-int4"]
    assert int8.measures == {"prefill", "decode", "throughput", "memory"} and int8.phase == "8 bits"
    assert int4.options["bits"] == int4.bits == 4
    assert found["fastvlm"][0].options["num_slots"] == 8


def test_memory_is_measured_once():
    for what in (("memory",), ("memory", "encode"), ("memory", "decode"), tuple(MEASURES)):
        found = [c for c in contestants(options(what=what, bits=(16,))) if "memory" in c.measures]
        assert [c.label for c in found] == ["fastvlm"], what


def test_with_peers_everybody_is_there():
    found = by_worker(has_peers=True, threads=3, work="work")
    assert set(found) == {
        *("fastvlm", "fastvlm-int8", "fastvlm-int4", "fastvlm (cold)", "transformers", "transformers (cold)"),
        *("openvino (encoder)", "openvino-int8 (encoder)", "openvino-float32 (encoder)"),
        "onnxruntime-float32 (encoder)",
        *(f"{name}{bits} (decoder)" for name in ("llama.cpp", "openvino") for bits in ("", "-int8", "-int4")),
    }
    (encoder,), (decoder,) = found["openvino (encoder)"], found["openvino-int8 (decoder)"]
    assert encoder.measures == {"encode"} and encoder.options["dtype"] == "bfloat16"
    assert decoder.measures == {"prefill", "decode", "throughput", "memory"}
    assert (decoder.phase, decoder.options["bits"], decoder.options["work"]) == ("8 bits", 8, "work")
    assert not any("second-question" in c.measures for c in found["transformers"])
    everybody = [contestant for each in found.values() for contestant in each]
    assert all(contestant.options["threads"] == 3 for contestant in everybody)
    assert all(json.loads(contestant.arguments[1]) == contestant.options for contestant in everybody)


def test_on_a_gpu_the_runtimes_of_the_cpu_are_left_out():
    found = by_worker(has_peers=True, device="cuda:1")
    assert not any(name.startswith(("openvino", "onnxruntime", "llama")) for name in found)
    assert all(found[name][0].options["device"] == "cuda:1" for name in ("fastvlm", "fastvlm-int8", "transformers"))
    assert all("cuda:1" in found[name][0].options["command"] for name in ("fastvlm (cold)", "transformers (cold)"))


def test_other_dtypes_are_contestants_of_their_own():
    found = by_worker(dtypes=("bfloat16", "float32"), bits=(16,), has_peers=True)
    assert all(found[f"{name}-float32"][0].options["dtype"] == "float32" for name in ("fastvlm", "transformers"))
    assert found["fastvlm"][0].options["dtype"] == "bfloat16"


def test_in_float32_everybody_computes_in_float32():
    found = by_worker(dtypes=("float32",), has_peers=True)
    assert "openvino-float32 (encoder)" not in found
    everybody = [contestant for each in found.values() for contestant in each]
    assert {c.options["dtype"] for c in everybody if "dtype" in c.options} == {"float32"}
    assert all(found[name][0].options["command"][-1] == "float32" for name in ("fastvlm (cold)", "transformers (cold)"))


def test_an_encoder_in_8_bits_is_a_contestant_of_images():
    (found,) = by_worker(encoder_bits=(16, 8))["fastvlm-encoder8"]
    assert found.measures == {"encode", "ttft"} and found.options["encoder_bits"] == found.encoder_bits == 8


def test_levels_of_kernels_are_contestants_by_an_environment_variable():
    found = by_worker(kernels=("avx512", "torch"), bits=(16, 8))
    assert list(found) == [
        *("fastvlm", "fastvlm-int8", "fastvlm-torch", "fastvlm-torch-int8"),
        *("fastvlm (cold)", "fastvlm-torch (cold)"),
    ]
    for name, (contestant, *_) in found.items():
        assert contestant.environment == {"FASTVLM_KERNELS": "torch" if "torch" in name else "avx512"}


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (("avx3",), "'avx3', which does not exist; expected some of avx2, torch"),
        (("avx2", "amx"), "'amx', which this machine cannot run"),
        (("avx2", "avx2"), "names a level twice"),
    ],
)
def test_levels_that_are_not_there_are_refused(monkeypatch, levels, words):
    monkeypatch.setattr("fastvlm.bench.contestants.available_levels", lambda: ("avx2",))
    check_kernels(("torch", "avx2"))
    with pytest.raises(UsageError, match=words):
        check_kernels(levels)


def test_who_has_nothing_to_do_is_not_opened():
    labels = [contestant.worker for contestant in contestants(options(what=("encode",), has_peers=True))]
    assert labels == [
        *("fastvlm", "transformers", "openvino (encoder)", "openvino-int8 (encoder)", "openvino-float32 (encoder)"),
        "onnxruntime-float32 (encoder)",
    ]
    assert [c.worker for c in contestants(options(what=("cold-start",)))] == ["fastvlm (cold)"]


def test_phases_have_their_contestants_ours_first():
    found = {phase.name: phase for phase in phases(options(has_peers=True))}
    assert list(found) == ["images", "16 bits", "8 bits", "4 bits", "cold start"]
    for phase in found.values():
        assert phase.contestants[0].label.startswith("fastvlm")
        assert {step.worker for step in phase.steps} == {contestant.worker for contestant in phase.contestants}
    names = ["fastvlm-int4", "llama.cpp-int4 (decoder)", "openvino-int4 (decoder)"]
    assert [c.worker for c in found["4 bits"].contestants] == names
    assert [phase.name for phase in phases(options(what=("decode",), bits=(8,)))] == ["16 bits", "8 bits"]


def test_a_round_has_every_case_of_every_measure():
    chosen = options(sides_px=(256, 512), streams=(1, 4), has_peers=True)
    found = [step for phase in phases(chosen) for step in phase.steps]
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
    from fastvlm.bench.decoder_peers import DecoderPeer
    from fastvlm.bench.fastvlm_engine import FastVlmEngine
    from fastvlm.bench.transformers_peer import TransformersModel

    for name, measure in MEASURES.items():
        if name == "cold-start":
            assert hasattr(ColdStart, measure.command)
            continue
        assert hasattr(FastVlmEngine, measure.command), name
        assert hasattr(TransformersModel, measure.command) or name == "second-question"
    assert all(hasattr(DecoderPeer, MEASURES[name].command) for name in ("prefill", "decode", "throughput", "memory"))
