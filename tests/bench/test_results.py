"""The result of a run: numbers that can be checked by hand, reasons where there are none, plain JSON."""

import json
import math

import pytest
from result_samples import measurements, result

from fastvlm import FastVlmConfig
from fastvlm.bench.costs import decoded_token_bytes, encoder_flops
from fastvlm.bench.plan import BenchOptions
from fastvlm.bench.results import RATIOS, result_of

PROMISED = {
    *("encode_vs_transformers", "encode_vs_openvino", "ttft_vs_transformers", "decode_int8_vs_transformers"),
    *("decode_int4_vs_transformers", "second_question_vs_first", "cold_start_vs_transformers"),
}


def test_it_is_json_and_has_the_promised_keys():
    found = json.loads(json.dumps(result(), allow_nan=False))
    assert set(found["ratios"]) == set(RATIOS) >= PROMISED
    assert set(found) == {
        *("model", "schema", "settings", "environment", "rounds", "seconds", "measures", "ratios", "ratio_ranges"),
        *("not_measured", "roofline", "agreement", "failures", "command"),
    }
    for entry in found["measures"]:
        assert set(entry) - {"facts"} == {
            *("measure", "contestant", "case", "unit", "median", "quartiles", "range", "samples", "parts")
        }
    assert found["environment"]["threads"] == 2 and found["environment"]["timm"] == "1"


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
    alone = result_of(BenchOptions("f", "p", what=("encode",)), config, measurements().__class__(), {})
    assert alone["not_measured"]["ttft_vs_transformers"] == "ttft was not asked for (--what)"
    some = measurements()
    del some.samples["encode", (("side_px", 1024),), "transformers"]
    why = result_of(BenchOptions("f", "p"), config, some, {})["not_measured"]["encode_vs_transformers"]
    assert why == "transformers was not measured (--peers)"


def test_fractions_are_of_the_best_peak():
    roofline, config = result()["roofline"], FastVlmConfig.preset("0.5b")
    assert roofline["peaks"] == {"matrix_peak": 2e12, "bandwidth": 25e9}
    told = roofline["fractions"]
    assert told["encode 1024 fastvlm"] == pytest.approx(encoder_flops(config, 1024, 1024) / 0.6 / 2e12, abs=1e-4)
    assert told["decode fastvlm-int8"] == pytest.approx(30 * decoded_token_bytes(config, 8, 290) / 25e9, abs=1e-4)
    assert told["decode transformers"] == pytest.approx(10 * decoded_token_bytes(config, 16, 290) / 25e9, abs=1e-4)
    assert "prefill fastvlm" in told and "ttft 1024 fastvlm" not in told


def test_a_run_in_float32_reads_twice_as_much():
    config = FastVlmConfig.preset("0.5b")
    found = result_of(BenchOptions("f", "p", dtypes=("float32",)), config, measurements(), {})
    expected = 20 * decoded_token_bytes(config, 32, 290) / 25e9
    assert found["roofline"]["fractions"]["decode fastvlm"] == pytest.approx(expected, abs=1e-4)


def test_agreement_tells_distances_and_first_tokens():
    found = result()["agreement"]
    gap = 0.1 / math.hypot(1.1, 2.0)
    assert found["encode 1024"] == {"relative_distance_from": "transformers", "fastvlm": round(gap, 5)}
    assert found["decode"] == {"same_first_tokens_of": 3, "fastvlm": 3, "fastvlm-int8": 2, "transformers": 3}
    assert found["ttft 1024"]["fastvlm"] == 1
