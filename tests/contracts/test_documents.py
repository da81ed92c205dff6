"""What the documents say is there: their Python runs, their paths, flags, make targets and names exist."""

import doctest
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import warm_process
from server_process import Server

import fastvlm

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.md"), *ROOT.glob("examples/*.md")]
)
PACKAGE = ROOT / "src/fastvlm"
ROOMS = ("src", "docs", "tests", "examples", "recipes", "benchmarks", ".ci")
ANSWERED = ("README.md", "docs/quickstart.md", "docs/serve.md")  # of every example the output is stated
# A block of code and the block of its output, if that follows at once; "..." in an output stands for anything.
BLOCKS = re.compile(r"^```(python|py|sh)\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", flags=re.DOTALL | re.MULTILINE)


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


def blocks(document: Path, *languages: str) -> list[tuple[str, str]]:
    """(code, stated output or nothing) of the blocks in these languages."""
    return [(code, output) for language, code, output in BLOCKS.findall(document.read_text()) if language in languages]


def is_stated(stated: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(stated, printed, doctest.ELLIPSIS)


def python_blocks() -> list:
    """A parameter (code, stated output) for each block of Python in all documents."""
    return [
        pytest.param(*block, id=f"{path.relative_to(ROOT)}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(blocks(path, "python"), 1)
    ]


@pytest.mark.parametrize(("code", "stated"), python_blocks())
def test_python_blocks_print_what_is_stated(code, stated, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, printed, err = warm_process.run([], dict(os.environ), code=f"{code}\nraise SystemExit")
    assert status == 0, err[-2000:]
    assert not stated or is_stated(stated, printed), f"printed:\n{printed}\nstated:\n{stated}"


@pytest.mark.parametrize("name", ANSWERED)
def test_the_output_of_every_example_is_stated(name):
    assert all(stated for _, stated in blocks(ROOT / name, "python", "py", "sh"))


@pytest.mark.parametrize("document", documents_with(lambda text: "fastvlm ask" in text))
def test_commands_about_the_example_images_print_what_is_stated(document, tmp_path):
    """The answer stands behind the command: ``fastvlm ask examples/word.png "What does it say?"  # OAK``."""
    command = tmp_path / "fastvlm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastvlm "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for line in re.findall(r"^ {4}(.*fastvlm ask\b.*)", document.read_text(), flags=re.MULTILINE):
        if "examples/" in line:
            done = subprocess.run(
                ["sh", "-c", line], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == line.rpartition("# ")[2], line


@pytest.fixture(scope="module")
def server():
    running = Server()
    yield running
    assert running.stop() == 0, running.lines


def test_curl_gets_the_stated_reply(server):
    ((command, stated),) = blocks(ROOT / "docs/serve.md", "sh")
    there = command.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(["sh", "-c", there], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert is_stated(stated, done.stdout + "\n"), done.stdout


@pytest.mark.parametrize("number", range(5), ids=["openai", "langchain", "llama_index", "ollama", "anthropic"])
def test_clients_get_the_stated_answer(number, server):
    examples = blocks(ROOT / "docs/serve.md", "py")
    client, stated = examples[number]
    for module in re.findall(r"^(?:from|import) (\w+)", client, flags=re.MULTILINE):
        pytest.importorskip(module)  # the two big client libraries are no dependency of the tests
    code = client if number == 0 else f"{examples[0][0]}\nprint('---')\n{client}"
    done = subprocess.run(
        [sys.executable, "-c", code.replace("http://127.0.0.1:8000", server.url)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert is_stated(stated, done.stdout.rpartition("---\n")[2]), done.stdout


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
        if verb == "demo-data" and find_spec("fastvlm_recipes") is None:
            continue
        help_text = help_of(verb)
        for flag in (word.split("=")[0] for word in words if re.fullmatch(r"-{1,2}[a-zA-Z][\w-]*(=.*)?", word)):
            assert re.search(rf"(^|[\s,]){re.escape(flag)}\b", help_text), f"fastvlm {verb} has no {flag}"


def help_of(verb: str, cache: dict[str, str] = {}) -> str:  # noqa: B006 - one process a verb
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


def test_table_of_performance_comes_from_the_result_files():
    overview = runpy.run_path(str(ROOT / "benchmarks/overview.py"))
    assert overview["section"](overview["read_results"]()) in (ROOT / "docs/performance.md").read_text()
