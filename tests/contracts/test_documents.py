"""What the documents say is there: their Python runs, their paths, flags, make targets and names exist."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fastvlm

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/*.md"), *ROOT.glob("examples/*.md")]
)
PACKAGE = ROOT / "src/fastvlm"
ROOMS = ("src", "docs", "tests", "examples", "recipes", "benchmarks", ".ci")
RUN_BLOCKS = """
import json, sys
for number, code in enumerate(json.load(sys.stdin)):
    exec(compile(code, f"block {number}", "exec"), {"__name__": "__main__"})
"""


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def command_lines(text: str) -> list[list[str]]:
    """Words of every indented or fenced line that calls fastvlm, pipes cut off; lines that go on are one."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^(?: {4}|\$ )?(?:[^\n|]*\| )?(fastvlm [a-z][^\n|]*)", joined, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def documents_with(found) -> list:
    """A parameter for each document in which `found(text)` finds something."""
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS if found(path.read_text())]


@pytest.mark.parametrize("document", documents_with(lambda text: "```python\n" in text))
def test_python_blocks_run(document):
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)
    finished = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS],
        input=json.dumps(blocks),
        text=True,
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.strip()


@pytest.mark.parametrize("document", documents_with(lambda text: "](" in text))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", documents_with(code_spans))
def test_paths_exist(document):
    for span in code_spans(document.read_text()):
        if re.fullmatch(r"[\w./-]+", span) and span.split("/")[0] in ROOMS and "/" in span:
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"[a-z_]+/[a-z_]+\.py", span) and (PACKAGE / span.split("/")[0]).is_dir():
            assert (PACKAGE / span).exists(), span  # ours, told from the package on


@pytest.mark.parametrize("document", documents_with(lambda text: re.search(r"^ {4}make ", text, flags=re.MULTILINE)))
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = set(re.findall(r"^ {4}make ([a-z-]+)", document.read_text(), flags=re.MULTILINE))
    assert used <= targets


@pytest.mark.parametrize("document", documents_with(command_lines))
def test_flags_exist(document):
    for _, verb, *words in command_lines(document.read_text()):
        help_text = help_of(verb)
        for flag in (word.split("=")[0] for word in words if re.fullmatch(r"-{1,2}[a-zA-Z][\w-]*(=.*)?", word)):
            assert re.search(rf"(^|[\s,]){re.escape(flag)}\b", help_text), f"fastvlm {verb} has no {flag}"


def help_of(verb: str, cache: dict[str, str] = {}) -> str:  # noqa: B006 - one subprocess a verb
    if verb not in cache:
        finished = subprocess.run(
            [sys.executable, "-m", "fastvlm", verb, "--help"],
            text=True,
            capture_output=True,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert finished.returncode == 0, f"fastvlm {verb}: {finished.stderr}"
        cache[verb] = finished.stdout
    return cache[verb]


@pytest.mark.parametrize("document", documents_with(lambda text: "fastvlm." in text))
def test_public_names_exist(document):
    for name in re.findall(r"\bfastvlm\.([A-Za-z_]\w*)\(", document.read_text()):
        assert name in fastvlm.__all__, name
