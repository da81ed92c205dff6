"""`fastvlm caption`: the command line over a checkpoint whose answers are known."""

import json
import re
import sys

import pytest
from PIL import Image

QUESTION = "What is this?"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, color in (("red", "red"), ("blue", "blue")):
        Image.new("RGB", (40, 30), color).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.md").write_text("x")
    return folder


def lines_of(out):
    return [json.loads(line) for part in sorted(out.glob("*.jsonl")) for line in part.read_text().splitlines()]


def test_answers_lie_in_parts_and_figures_on_stdout(fastvlm, parrot_folder, photos, tmp_path):
    out = tmp_path / "out"
    command = ("caption", photos, "--out", out, "-p", QUESTION, "-m", parrot_folder, "--price-per-hour", "2.5")
    done = fastvlm(*command, "--sidecars", tmp_path / "texts")
    assert done.code == 0
    assert "files that are not read, by suffix: 1 .md" in done.err
    assert re.search(
        r"images      3 in .*; 0 were there\nerrors      1 images \(1 ImageError\); --retry-errors", done.out
    )
    assert re.search(
        r"per core    [\d.]+ images/s on each of \d+\ncost        [\d.]+ for a million images at 2.5", done.out
    )
    lines = {line["id"]: line for line in lines_of(out)}
    assert lines["red.png"]["text"].startswith("Grüße! A red circle")
    assert "broken.png" in lines["broken.png"]["error"] or "8 bytes" in lines["broken.png"]["error"]
    assert (tmp_path / "texts/red.txt").read_text().startswith("Grüße!")
    again = fastvlm(*command, "--json", "-q")
    figures = json.loads(again.out)
    assert (again.err, figures["images"], figures["kept"]) == ("", 0, 3)
    assert figures["cost_per_million_images"] is None
    again = fastvlm(*command, "--json", "-q", "--retry-errors")
    assert json.loads(again.out)["images"] == 1
    refused = fastvlm("caption", photos, "--out", out, "-p", "Another?", "-m", parrot_folder, "-q")
    assert refused.code == 2
    assert "is the output of another run: prompts" in refused.error


def test_prompts_of_a_file_have_schemas(fastvlm, parrot_folder, photos, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "A"}\n\n{"prompt": "B", "schema": {"enum": ["x", "y"]}}\n')
    command = ("caption", photos / "red.png", "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.jsonl")
    assert fastvlm(*command, "-p", "C", "-m", parrot_folder, "-q").code == 0
    answers = {line["prompt"]: line["text"] for line in lines_of(tmp_path / "out")}
    assert set(answers) == {"A", "B", "C"}
    assert answers["B"] in ('"x"', '"y"')


def test_max_errors_stops_with_code_1(fastvlm, parrot_folder, photos, tmp_path):
    command = ("caption", photos, "--out", tmp_path / "out", "-p", QUESTION, "-m", parrot_folder, "-q")
    stopped = fastvlm(*command, "--max-errors", "0")
    assert stopped.code == 1
    assert "rows have errors (1 ImageError); the limit is 0 rows" in stopped.error


def test_a_damaged_shard_gives_code_1(fastvlm, parrot_folder, photos, tmp_path):
    (tmp_path / "s.tar").write_bytes(b"no tar" * 200)
    done = fastvlm(
        "caption", tmp_path / "s.tar", photos, "--out", tmp_path / "out", "-p", "P", "-m", parrot_folder, "-q"
    )
    assert done.code == 1
    assert "s.tar cannot be read as an uncompressed tar" in done.err
    assert len(lines_of(tmp_path / "out")) == 3


def test_shards_of_a_job_share_the_folder(fastvlm, parrot_folder, photos, tmp_path):
    for number in (1, 2):
        command = ("caption", photos, "--out", tmp_path / "out", "-p", "P", "-m", parrot_folder, "-q")
        assert fastvlm(*command, "--shard", f"{number}/2", "--json").code == 0
    assert sorted(line["id"] for line in lines_of(tmp_path / "out")) == ["blue.png", "broken.png", "red.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "P"], "There is no --out"),
        (["--out", "o"], "There is no prompt. Try: --prompt"),
        (["--out", "s3://bucket/o", "-p", "P"], "expected a local folder"),
        (["--out", "o", "-p", "P", "--format", "json"], "Did you mean 'jsonl'?"),
        (["--out", "o", "-p", "P", "--shard", "5/4"], "expected K/N with K from 1 to N"),
        (["--out", "o", "-p", "P", "--shard", "1/2", "--ray", "auto"], "expected one of them"),
        (["--out", "o", "-p", "P", "--max-errors", "many"], "expected a number of rows such as 100"),
        (["--out", "o", "-p", "P", "--slots", "0"], "--slots is 0; expected 1 to 256"),
        (["--out", "o", "-p", "P", "--retries", "-1"], "--retries is -1; expected 0 to 100"),
        (["--out", "o", "-p", "P", "--price-per-hour", "-1"], "expected 0 or more"),
        (["--out", "o", "-p", "P", "--ray-cpus", "0"], "--ray-cpus is 0.0"),
        (["--out", "o", "-p", "P", "--rows-per-part", "0"], "rows_per_part is 0; expected 1 to"),
        (["--out", "o", "-p", "P", "--prompt-column", "q"], "expected no --prompt besides"),
        (["--out", "o", "--prompts", "none.jsonl"], "--prompts none.jsonl cannot be read: No such file"),
        (["--out", "o", "-p", "P", "--url", "localhost"], "expected an address such as"),
    ],
)
def test_mistakes_are_one_line_before_a_model_is_opened(fastvlm, photos, arguments, words):
    outcome = fastvlm("caption", photos, *arguments, "-q", "-m", "there/is-none")
    assert outcome.code == 2
    assert words in outcome.error


@pytest.mark.parametrize("line", ['{"text": "P"}', '{"prompt": 3}', '{"prompt": "P", "schema": 1}', "[]", "x", ""])
def test_lines_that_are_no_prompts(fastvlm, photos, tmp_path, line):
    (tmp_path / "p.jsonl").write_text(line)
    outcome = fastvlm("caption", photos, "--out", tmp_path / "out", "--prompts", tmp_path / "p.jsonl")
    assert outcome.code == 2
    assert "expected an object a line" in outcome.error.lower()


def test_without_ray_its_extra_is_named(fastvlm, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = fastvlm("caption", photos, "--out", tmp_path / "out", "-p", "P", "--ray", "local", "-q")
    assert outcome.code == 1
    assert "pip install 'fastvlm[ray]'" in outcome.error


def test_a_server_answers(fastvlm, photos, tmp_path, monkeypatch):
    """The key is the environment's, the model the server's first, and a server's cores are not counted."""
    from fastvlm.captioning import Answer, UrlCaptioner

    async def reply(self, uri, prompt):
        return Answer(f"{self._model} {self._headers['Authorization']} {self._sampling['max_tokens']}")

    monkeypatch.setattr(UrlCaptioner, "_first_model", lambda self, headers: "first")
    monkeypatch.setattr(UrlCaptioner, "_reply", reply)
    monkeypatch.setenv("FASTVLM_API_KEY", "k")
    done = fastvlm("caption", photos, "--out", tmp_path / "out", "-p", "P", "--url", "http://server", "-n", "7")
    assert done.code == 0
    assert "per core" not in done.out
    assert {line["text"] for line in lines_of(tmp_path / "out")} == {"first Bearer k 7"}
