"""Records of JSON files by number: offsets only in memory, broken records alone are broken."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_files import llava, write_lines

from fastvlm.errors import DataError, UsageError
from fastvlm.records.json_files import json_lines, json_records

TEXTS = st.text('a"\\[]{},: \n\ré😀')  # what could be taken for JSON's own marks
RECORDS = st.lists(st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS) | st.dictionaries(TEXTS, st.integers()), max_size=3))


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory):
    """For tests with many examples: a new folder for each takes longer than the example."""
    return tmp_path_factory.mktemp("examples")


def everything(source):
    return [source.record(index) for index in range(len(source))]


@given(
    records=RECORDS,
    indent=st.sampled_from([None, 0, 2]),
    is_ascii=st.booleans(),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_an_array_is_read_as_json_reads_it(one_folder, records, indent, is_ascii, mark):
    path = one_folder / "x.json"
    path.write_text(mark + json.dumps(records, indent=indent, ensure_ascii=is_ascii) + "\n", encoding="utf-8")
    assert everything(json_records(path)) == records


@given(records=RECORDS, mark=st.sampled_from(["", "\ufeff"]))
def test_lines_are_read_as_json_reads_them(one_folder, records, mark):
    path = one_folder / "x.jsonl"
    path.write_text(mark + "\r\n\n".join(json.dumps(record) for record in records), encoding="utf-8", newline="")
    assert everything(json_lines(path)) == records


def test_a_broken_line_breaks_no_other(tmp_path):
    source = json_lines(write_lines(tmp_path / "x.jsonl", llava("Hi", "Ho"), "", '{"a": ', '["a"]', llava("A", "B")))
    assert [source.origin(index) for index in range(len(source))] == [f"{tmp_path}/x.jsonl:{n}" for n in (1, 3, 4, 5)]
    assert source.record(3) == llava("A", "B")
    with pytest.raises(DataError, match=r"it is not valid JSON \(Expecting value: line 3, column 6\)"):
        source.record(1)
    assert source.record(2) == ["a"]
    assert [record.problem[:20] for record in source] == ["", "it is not valid JSON", "", ""]


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        json_lines(tmp_path / "x.jsonl").record(0)
    with pytest.raises(UsageError, match=r"nothing\.jsonl cannot be read"):
        json_lines(tmp_path / "nothing.jsonl")


def test_a_record_of_an_array_is_named_by_line_and_number(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"a": "]\n["}, {"b": 1}], indent=1))
    assert [json_records(path).origin(index) for index in (0, 1)] == [f"{path}:2 (record 1)", f"{path}:5 (record 2)"]


def test_a_broken_record_of_an_array_breaks_no_other(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1},\n {"b":\n oops}, {"c": 3}]')
    source = json_records(path)
    assert source.record(2) == {"c": 3}
    with pytest.raises(DataError, match=r"not valid JSON .*: line 3, column 2"):
        source.record(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"b": ', "ends within its array or object, which begins on line 1. Was it cut?"),
        ('[{"a": "', "ends within its array or object"),
        ('[{"a": 1}] [2]', "has something after its array or object"),
    ],
)
def test_an_array_that_is_not_whole_is_refused(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=words):
        json_records(tmp_path / "x.json")


def test_a_source_is_pickled_without_its_file_and_small(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", *[llava("Hi", "Ho" * 1000)] * 500)
    data = pickle.dumps(json_lines(path))
    assert len(data) < 500 * 25  # three numbers of 8 bytes a record
    assert pickle.loads(data).record(499) == llava("Hi", "Ho" * 1000)


def test_a_file_that_became_shorter_is_told(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", llava("Hi", "Ho"), llava("A", "B"))
    source = json_lines(path)
    write_lines(path, llava("Hi", "Ho"))
    with pytest.raises(DataError, match="has become shorter"):
        source.record(1)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be read any more \(No such file"):
        source.record(0)


# Records under a key, and in objects.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"data": [{"a": 1}, {"b": ', "ends within its array or object, which begins on line 1"),
        ('{"data" [1]}', "x.json:1: it is not valid JSON .expected a name and a colon"),
        ("[]", "holds no JSON object"),
        ('{"info": 1}', "has no key 'data'"),
        ('{"data": 3}', "neither a JSON array nor an object"),
        ("", "holds no JSON object"),
    ],
)
def test_a_file_that_is_not_the_layout_is_one_line(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=words):
        json_records(tmp_path / "x.json", "data")


def test_a_missing_comma_spoils_its_own_record(tmp_path):
    (tmp_path / "x.json").write_text('{"data": [{"a": 1} {"b": 2},\n {"c": 3}]}')
    bad, good = json_records(tmp_path / "x.json", "data")
    assert "it is not valid JSON (Extra data: line 1, column 10)" in bad.problem and good.content == {"c": 3}


def test_records_have_the_lines_on_which_they_begin(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "[",\n "data":\n [1,\n\n {"b": 2}\n , 3]\n}')
    assert [(r.line, r.number, r.content) for r in json_records(tmp_path / "x.json", "data")] == [
        (3, 1, 1),
        (5, 2, {"b": 2}),
        (6, 3, 3),
    ]
    assert [(r.key, r.line) for r in json_records(tmp_path / "x.json")] == [("a", 1), ("data", 3)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(JSON, max_size=5), st.dictionaries(st.text(max_size=4), JSON, max_size=3), st.sampled_from([None, 0, 2])
)
def test_records_are_what_json_reads(one_folder, values, others, indent):
    path = one_folder / "x.json"
    others.pop("data", None)
    text = json.dumps({**others, "data": values, "z": others}, indent=indent)
    path.write_text(text, encoding="utf-8")
    records = list(json_records(path, "data"))
    assert [record.content for record in records] == values
    assert [record.number for record in records] == list(range(1, len(values) + 1))
    starts = [record.line for record in records]
    assert starts == sorted(starts) and all(1 <= line <= text.count("\n") + 1 for line in starts)
    assert {record.key: record.content for record in json_records(path)} == json.loads(text)
