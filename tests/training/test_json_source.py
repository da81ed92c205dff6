"""Records of JSON files by number: offsets only in memory, broken records alone are broken."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_files import llava, write_lines

from fastvlm.errors import DataError
from fastvlm.training.json_source import json_array, json_lines

TEXTS = st.text('a"\\[]{},: \n\ré😀')  # what could be taken for JSON's own marks
RECORDS = st.lists(st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS) | st.dictionaries(TEXTS, st.integers()), max_size=3))


def everything(source):
    return [source.record(index) for index in range(len(source))]


@settings(max_examples=60)
@given(
    records=RECORDS,
    indent=st.sampled_from([None, 0, 2]),
    is_ascii=st.booleans(),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_an_array_is_read_as_json_reads_it(tmp_path_factory, records, indent, is_ascii, mark):
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(mark + json.dumps(records, indent=indent, ensure_ascii=is_ascii) + "\n", encoding="utf-8")
    assert everything(json_array(path)) == records


@settings(max_examples=60)
@given(records=RECORDS, mark=st.sampled_from(["", "\ufeff"]))
def test_lines_are_read_as_json_reads_them(tmp_path_factory, records, mark):
    path = tmp_path_factory.mktemp("json") / "x.jsonl"
    path.write_text(mark + "\r\n\n".join(json.dumps(record) for record in records), encoding="utf-8", newline="")
    assert everything(json_lines(path)) == records


def test_a_broken_line_breaks_no_other(tmp_path):
    source = json_lines(write_lines(tmp_path / "x.jsonl", llava("Hi", "Ho"), "", '{"a": ', '["a"]', llava("A", "B")))
    assert [source.origin(index) for index in range(len(source))] == [f"{tmp_path}/x.jsonl:{n}" for n in (1, 3, 4, 5)]
    assert source.record(3) == llava("A", "B")
    with pytest.raises(DataError, match=r"it is no JSON \(Expecting value: line 3, column 6\)"):
        source.record(1)
    with pytest.raises(DataError, match="it is a list; expected an object with 'conversations' or 'messages'"):
        source.record(2)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        json_lines(tmp_path / "x.jsonl").record(0)


def test_a_record_of_an_array_is_named_by_line_and_number(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"a": "]\n["}, {"b": 1}], indent=1))
    assert [json_array(path).origin(index) for index in (0, 1)] == [f"{path}:2 (record 1)", f"{path}:5 (record 2)"]


def test_a_broken_record_of_an_array_breaks_no_other(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1},\n {"b":\n oops}, {"c": 3}]')
    source = json_array(path)
    assert source.record(2) == {"c": 3}
    with pytest.raises(DataError, match=r"no JSON .*: line 3, column 2"):
        source.record(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"b": ', "ends within its array. Was it cut?"),
        ('[{"a": "', "ends within its array"),
        ('[{"a": 1}] [2]', "has something after its array"),
    ],
)
def test_an_array_that_is_not_whole_is_refused(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=words):
        json_array(tmp_path / "x.json")


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
