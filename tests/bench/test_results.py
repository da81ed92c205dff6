"""The result of a run: numbers that can be checked by hand, reasons where there are none, plain JSON."""

import json
import math

import pytest
from result_samples import SIDE, measurements, result

from fastvlm import FastVlmConfig
from fastvlm.bench.costs import decoded_token_bytes, encoder_flops, prefill_flops
from fastvlm.bench.plan import BenchOptions
from fastvlm.bench.results import RATIOS, result_of
from fastvlm.bench.rounds import Measurements
from fastvlm.bench.worker import Measured

PROMISED = {
    *("encode_vs_transformers", "encode_vs_openvino", "ttft_vs_transformers", "decode_int8_vs_transformers"),
    *("decode_int4_vs_transformers", "second_question_vs_first", "cold_start_vs_transformers"),
}


def test_it_is_json_and_has_the_promised_keys():
    found = json.loads(json.dumps(result(), allow_nan=False))
    assert set(found["ratios"]) == set(RATIOS) >= PROMISED
    assert set(found) == {
        *("model", "schema", "settings", "environment", "phases", "rounds", "seconds", "measures", "ratios"),
        "ratio_ranges",
        *("not_measured", "roofline", "agreement", "failures", "command"),
    }
    for entry in found["measures"]:
        assert set(entry) - {"facts"} == {
            *("measure", "contestant", "case", "unit", "median", "quartiles", "range", "samples", "parts")
        }
    assert found["environment"]["threads"] == 2 and found["environment"]["timm"] == "1"
    assert found["environment"]["kernels"] == "avx512" and found["environment"]["xllamacpp"] == "2026"
    assert found["phases"] == {"whole": {"rounds": 2, "seconds": 61.0}}


def test_ratios_are_those_of_the_medians_above_one_if_we_are_better():
    found = result()
    assert found["ratios"]["encode_vs_transformers"] == pytest.approx(3.3 / 0.6)
    assert found["ratio_ranges"]["encode_vs_transformers"] == [round(3.6 / 0.7, 3), 6.0]
    assert found["ratios"]["ttft_vs_transformers"] == 5.0
    assert found["ratios"]["decode_int8_vs_transformers"] == 3.0
    assert found["ratios"]["decode_vs_transformers"] == 2.0
    assert found["ratios"]["second_question_vs_first"] == 8.0
    assert found["ratios"]["memory_vs_transformers"] == 1.5


def test_a_ratio_that_is_not_there_has_a_reason():
    found = result()
    why = found["not_measured"]
    assert set(why) == {name for name, value in found["ratios"].items() if value is None}
    assert why["encode_vs_openvino"] == "openvino is not installed. Run: pip install it"
    assert why["decode_int4_vs_transformers"] == "fastvlm-int4: it broke"
    assert why["cold_start_vs_transformers"] == "fastvlm was not measured"
    assert why["prefill_vs_transformers"] == "transformers was not measured"
    assert not set(why) & set(found["ratio_ranges"])


def test_what_was_not_asked_for_says_so():
    config = FastVlmConfig.preset("0.5b")
    alone = result_of(BenchOptions("f", "p", what=("encode",)), config, {"images": Measurements()}, {})
    assert alone["not_measured"]["ttft_vs_transformers"] == "ttft was not asked for (--what)"
    some = measurements()
    del some.samples["encode", (("side_px", 1024),), "transformers"]
    why = result_of(BenchOptions("f", "p"), config, {"images": some}, {})["not_measured"]["encode_vs_transformers"]
    assert why == "transformers was not measured (--peers)"


def test_limits_are_by_the_best_peaks_and_fractions_of_them():
    roofline, config = result()["roofline"], FastVlmConfig.preset("0.5b")
    assert roofline["peaks"] == {"bandwidth": 25e9, "avx2 float32": 1e12, "avx512 bfloat16": 2e12}
    limits, fractions = roofline["limits"], roofline["fractions"]
    encode_s = encoder_flops(config, 1024, 1024) / 2e12
    assert limits["encode 1024 fastvlm"] == pytest.approx(encode_s, rel=1e-5)
    assert fractions["encode 1024 fastvlm"] == pytest.approx(encode_s / 0.6, abs=1e-4)
    assert limits["decode fastvlm-int8"] == pytest.approx(25e9 / decoded_token_bytes(config, 8, 290), rel=1e-5)
    assert fractions["decode transformers"] == pytest.approx(10 * decoded_token_bytes(config, 16, 290) / 25e9, abs=1e-4)
    assert limits["prefill fastvlm"] == pytest.approx(prefill_flops(config, 290) / 2e12, rel=1e-5)
    # One step of eight replies reads the weights once; its products take less than that here.
    assert limits["throughput 8 fastvlm"] == pytest.approx(
        8 * 25e9 / decoded_token_bytes(config, 16, 8 * 290), rel=1e-5
    )
    assert "memory fastvlm" not in limits and "ttft 1024 fastvlm" in limits


def test_limits_are_those_of_a_contestants_level():
    some, config = measurements(), FastVlmConfig.preset("0.5b")
    some.samples["encode", SIDE, "fastvlm-torch"] = [Measured(3.0)]
    some.samples["encode", SIDE, "fastvlm-encoder8"] = [Measured(0.3)]
    some.peaks["multiply_adds"][0].parts["avx2 int8"] = 4e12
    options = BenchOptions("f", "p", kernels=("avx2", "torch"), encoder_bits=(16, 8))
    limits = result_of(options, config, {"images": some}, {})["roofline"]["limits"]
    flops = encoder_flops(config, 1024, 1024)
    assert limits["encode 1024 fastvlm"] == pytest.approx(flops / 1e12, rel=1e-5)  # without avx512's bfloat16
    assert limits["encode 1024 fastvlm-torch"] == pytest.approx(flops / 2e12, rel=1e-5)
    assert limits["encode 1024 fastvlm-encoder8"] == pytest.approx(flops / 4e12, rel=1e-5)


def test_phases_are_one_result():
    first, second = measurements(), Measurements({}, {"fastvlm-int8": "it broke"}, {}, {}, 5, 10.0)
    second.samples["decode", (), "llama.cpp"] = [Measured(15.0)]
    second.peaks["bandwidth"] = [Measured(30e9)]
    found = result_of(BenchOptions("f", "p", has_peers=True), FastVlmConfig(), {"a": first, "b": second}, {})
    assert (found["rounds"], found["seconds"]) == (5, 71.0)
    assert found["ratios"]["decode_vs_llama_cpp"] == pytest.approx(20 / 15, abs=1e-3)
    assert found["failures"]["fastvlm-int8"] == "it broke" and found["roofline"]["peaks"]["bandwidth"] == 30e9


def test_agreement_tells_distances_and_first_tokens():
    found = result()["agreement"]
    gap = 0.1 / math.hypot(1.1, 2.0)
    assert found["encode 1024"] == {"relative_distance_from": "transformers", "fastvlm": round(gap, 5)}
    assert found["decode"] == {"same_first_tokens_of": 3, "fastvlm": 3, "fastvlm-int8": 2, "transformers": 3}
    assert found["ttft 1024"]["fastvlm"] == 1
    assert found["logits"]["llama.cpp"] == 0.01
