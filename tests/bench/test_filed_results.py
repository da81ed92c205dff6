"""Filed results: which are comparable, what fell, and the scripts in benchmarks/ over made-up ones."""

import copy
import json
import runpy
from pathlib import Path

import pytest
from result_samples import result

import fastvlm
from fastvlm.bench.filed_results import comparable, falls, machine_of, read_filed
from fastvlm.cli.main import main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
check = runpy.run_path(str(BENCHMARKS / "check.py"))
overview = runpy.run_path(str(BENCHMARKS / "overview.py"))


def made_up(**environment):
    found = copy.deepcopy(result(dtypes=("bfloat16",)))
    found["environment"] |= {"fastvlm": fastvlm.__version__, **environment}
    return found


@pytest.fixture
def filed(tmp_path):
    """A folder with one of this version, an older one, a foreign file and a result of an older schema."""
    contents = {
        "random_x_202611": made_up(),
        "random_x_202610": made_up(fastvlm="0.1.0"),
        "load_x_202611": {"runs": []},
        "list_x_202611": [],
        "old_x_202611": {**made_up(), "schema": 1},
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_only_results_of_this_schema_and_version_are_read(filed):
    assert list(read_filed(filed)) == ["random_x_202610", "random_x_202611"]
    assert list(read_filed(filed, fastvlm.__version__)) == ["random_x_202611"]


def test_the_latest_of_the_same_kind_of_machine_is_compared(filed):
    found = read_filed(filed)
    assert comparable(made_up(), found) == "random_x_202611"
    for other in (made_up(cpu="another"), made_up(cores=4), made_up(kernels="avx2"), made_up(instruction_sets=["amx"])):
        assert comparable(other, found) is None
    assert "2 cores of AMD EPYC 9R14 (avx2)" in str(machine_of(made_up()))
    assert str(machine_of(made_up(gpu="H100"))).endswith(", H100")


def test_ratios_that_fell_by_more_than_a_fifth_are_said():
    before, now = made_up(), made_up()
    assert falls(now, before) == []
    now["ratios"] |= {"decode_vs_transformers": 1.61, "encode_vs_transformers": 4.39, "ttft_vs_transformers": 9.0}
    (fall,) = falls(now, before)  # 2.0 -> 1.61 is less than a fifth; 5.5 -> 4.39 is more
    assert fall.name == "encode_vs_transformers"
    assert str(fall) == "encode_vs_transformers: 4.39 (5.14 to 6.00), filed 5.50: 20 % less"
    now["ratios"]["encode_vs_transformers"] = None  # what was not measured has not fallen
    assert falls(now, before) == []


def test_absolute_times_are_not_compared():
    before, now = made_up(), made_up()
    for entry in now["measures"]:
        entry["median"] *= 10
    assert falls(now, before) == []


def test_the_check_says_what_fell_by_its_exit_status(filed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(check["main"].__globals__, "HERE", filed)
    new, file = made_up(), tmp_path / "new" / "result.json"
    file.parent.mkdir()
    file.write_text(json.dumps(new))
    assert check["main"]([str(file)]) == 0
    said = capsys.readouterr().out
    assert "6 ratios compared with benchmarks/random_x_202611.json" in said and "None fell" in said
    assert "not measured: openvino (encoder): openvino is not installed" in said
    new["ratios"]["decode_vs_transformers"] = 1.0
    file.write_text(json.dumps(new))
    assert check["main"]([str(file)]) == 1
    assert "fell by more than a fifth: decode_vs_transformers: 1.00" in capsys.readouterr().out


def test_without_a_file_for_this_kind_of_machine_the_check_says_so(filed):
    text, status = check["report"](made_up(cpu="another"), read_filed(filed))
    assert status == 0 and text.startswith("No result is filed for this kind of machine (2 cores of another (avx2)")


def test_the_short_run_is_one_that_bench_takes(capsys):
    assert main([*check["SHORT_RUN"], "--bits", "3"]) == 2
    assert "--bits has 3" in capsys.readouterr().err  # nothing else is wrong


def test_the_table_has_ours_the_best_peer_and_the_limit():
    found = made_up()
    extra = {"decode": ("llama.cpp", 18.5), "throughput": ("llama.cpp", 160.0)}
    for measure, (contestant, value) in extra.items():
        case = {"streams": 8} if measure == "throughput" else {}
        entry = {"measure": measure, "contestant": contestant, "case": case, "unit": "tokens/s", "median": value}
        found["measures"].append({**entry, "range": [value - 1, value]})
    lines = overview["table"]({"a_b_202611": found}).splitlines()
    machine = "| [2 cores of AMD EPYC 9R14, bfloat16, kernels avx512](../benchmarks/a_b_202611.md) | "
    rows = {line.removeprefix(machine).split(" | ")[0]: line.split(" | ")[2:] for line in lines[2:]}
    assert rows["encode 1024 px, s"][:3] == ["0.6 (0.5 to 0.7)", "3.3 (3 to 3.6)", "transformers"]
    assert rows["decode, 16 bits, tokens/s"][:3] == ["20", "18.5 (17.5 to 18.5)", "llama.cpp"]
    assert rows["decode, 8 bits, tokens/s"][1:3] == ["", ""]
    assert rows["8 together, 16 bits, tokens/s"][2] == "llama.cpp"
    assert rows["memory, MB"] == ["2000", "3000", "transformers", "", " |"]
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_page_and_plot_are_written_between_the_marks(tmp_path):
    results = {"a_b_202611": made_up()}
    page = f"before\n{overview['START']}old{overview['END']}after\n"
    made = overview["written"](page, results)
    assert made.startswith("before\n") and made.endswith("after\n") and "old" not in made
    assert overview["table"](results) in made and overview["written"](made, results) == made
    assert "No result of version" in overview["written"](made, {})
    overview["plot"](results, tmp_path / "plot.svg")
    assert "encode 1024 px / transformers" in (tmp_path / "plot.svg").read_text()
