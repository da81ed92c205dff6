"""What the structure promises, counted: the length of an image's way to the first token, and types at the joints."""

import ast
import json
import os
from pathlib import Path

import warm_process

PACKAGE = Path(__file__).parents[2] / "src" / "fastvlm"
MOST_LINES, MOST_FILES = 1400, 40  # of functions that run, without docstrings, comments and empty lines
JOINTS = {"model", "processor", "image_processor", "tokenizer", "backend", "engine"}

# In a process of its own, because the profiler sees every call: one question, on the default path of a CPU.
WAY = """
import json, sys
from pathlib import Path
import fastvlm
from fastvlm.engine.types import SamplingParams

engine = fastvlm.Engine.from_checkpoint(fastvlm.open_checkpoint("mini"))
image = {"type": "image", "image": Path("examples/red_star.png").read_bytes()}
messages = [{"role": "user", "content": [image, {"type": "text", "text": "What shape is this?"}]}]
called = set()
sys.setprofile(lambda frame, *_: called.add((frame.f_code.co_filename, frame.f_code.co_firstlineno)))
engine.generate(messages, SamplingParams(max_new_tokens=2))
sys.setprofile(None)
print(json.dumps(sorted(called)))
raise SystemExit
"""


def code_lines(file, starts):
    """Lines of code of the functions in `file` that begin in the lines `starts`."""
    text = file.read_text(encoding="utf-8")
    documented, inside = set(), set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        if first in starts or node.lineno in starts:
            inside |= set(range(first, node.end_lineno + 1))
        if not isinstance(node, ast.Lambda) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = text.splitlines()
    kept = [lines[number - 1].strip() for number in inside - documented]
    return sum(bool(line) and not line.startswith("#") for line in kept)


def test_an_images_way_to_the_first_token_stays_as_short_as_it_is(monkeypatch):
    monkeypatch.chdir(PACKAGE.parents[1])
    status, out, err = warm_process.run([], dict(os.environ), code=WAY)
    assert status == 0, err
    files = {}
    for name, line in json.loads(out):
        if Path(name).is_relative_to(PACKAGE):
            files.setdefault(Path(name), set()).add(line)
    lines = sum(code_lines(file, starts) for file, starts in files.items())
    assert 500 < lines <= MOST_LINES, f"{lines} lines"
    assert 10 < len(files) <= MOST_FILES, f"{len(files)} files"


def test_parts_are_typed_where_they_are_handed_over():
    untyped = [
        f"{file.relative_to(PACKAGE)}: {function.name}({argument.arg})"
        for file in PACKAGE.rglob("*.py")
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for argument in (*function.args.args, *function.args.kwonlyargs)
        if argument.arg in JOINTS
        and argument.annotation is not None
        and ast.unparse(argument.annotation) in ("Any", "Any | None")
    ]
    assert not untyped
