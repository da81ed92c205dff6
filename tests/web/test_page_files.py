"""The page's files, without a browser: right answers, nothing from elsewhere, small modules."""

import re

from server_process import ROOT

PAGE = ROOT / "src" / "fastvlm" / "web" / "page"
VENDORED_BYTES = 150_000


def test_nothing_is_loaded_from_elsewhere():
    for file in PAGE.glob("*.*"):
        addresses = re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]+", file.read_text(encoding="utf-8"))
        assert set(addresses) <= {"http://www.w3.org"}, file  # SVG's name, which nothing fetches


def test_the_page_talks_to_v1_and_to_its_own_files_only():
    source = "".join(file.read_text(encoding="utf-8") for file in PAGE.glob("*.js"))
    assert set(re.findall(r"[\"'`](/[\w/]+)", source)) == {"/v1/models", "/v1/chat/completions"}


def test_no_text_of_a_model_is_parsed_as_html():
    for file in PAGE.glob("*.js"):
        source = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b", source), file


def test_the_page_is_small_and_its_examples_are_the_shipped_ones():
    for file in PAGE.glob("*.*"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file
    for file in (PAGE / "examples").iterdir():
        assert file.read_bytes() == (ROOT / "examples" / file.name).read_bytes()
    vendored = list((PAGE / "vendor").iterdir())
    assert sum(file.stat().st_size for file in vendored) < VENDORED_BYTES
    assert PAGE / "vendor" / "LICENSE.txt" in vendored
