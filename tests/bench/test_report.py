"""The page: for a terminal, and as Markdown."""

import datetime
import re

from result_samples import result

from fastvlm.bench.report import as_markdown, as_text, file_name, sections, write_files


def test_the_text_has_every_measure_ratio_and_failure():
    page = as_text(result())
    for words in (
        "random 0.5b (620 M parameters, random), 2 rounds in 61 s, 2 threads",
        "AMD EPYC 9R14, 2 cores, 24 GiB, avx2; kernels: avx512",
        "commit abc123",
        "encode: pixels to visual tokens",
        "fastvlm 1024 px",
        "0.550 to 0.650",
        "encode 0.500, prefill 0.400",
        "fastvlm 8 together",
        "encode_vs_transformers",
        "5.50",
        "limits of this machine",
        "avx512 bfloat16  2 TFLOP/s",
        "bandwidth        25 GB/s",
        "openvino is not installed",
    ):
        assert words in page, words
    assert not re.search(r"[ \t]$", page, flags=re.MULTILINE)


def test_columns_stand_under_each_other():
    lines = as_text(result()).split("encode: pixels")[1].splitlines()[1:4]
    starts = [re.search(r"\S+ to \S+|quartiles", line).start() for line in lines]
    assert len(set(starts)) == 1


def test_memory_is_told_in_megabytes():
    (table,) = (section for section in sections(result()) if section.title.startswith("memory"))
    assert table.columns[1] == "median MB" and table.rows[0][:2] == ("fastvlm", "2000")


def test_tables_without_rows_are_left_out():
    titles = [section.title for section in sections(result())]
    assert not any(title.startswith("cold-start") for title in titles)


def test_markdown_has_the_command_and_whole_tables():
    page = as_markdown(result(), "A title")
    assert page.startswith("# A title\n") and "\n    fastvlm bench --preset 0.5b --peers\n" in page
    for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        widths = {line.count(" | ") for line in block.splitlines()}
        assert len(widths) == 1, block


def test_files_are_named_by_what_hardware_and_month(tmp_path):
    date = datetime.date(2026, 11, 23)
    assert file_name(result(), date) == "random-0.5b-whole_epyc-9r14-2c_202611"
    assert file_name(result(what=("encode", "ttft")), date) == "random-0.5b-encode-ttft_epyc-9r14-2c_202611"
    file = write_files(result(), tmp_path / "new", "a_b_202611")
    assert file.read_text().startswith("# a, b, 202611\n")
