"""Paths and targets that cannot be used are told before the libraries are imported, which takes seconds."""

import json
import subprocess
import sys

import pytest
from cli_process import plain_environment
from PIL import Image

# All command lines in one process, whose modules are looked at after each.
RUN = """
import io, json, sys
from contextlib import redirect_stderr
from fastvlm.cli.main import main
outcomes = []
for line in json.loads(sys.argv[1]):
    with redirect_stderr(io.StringIO()) as err:
        code = main(line.split())
    outcomes.append((code, err.getvalue(), sorted({"torch", "transformers"} & set(sys.modules))))
print(json.dumps(outcomes))
"""
CASES = [
    ("ask nothing.png What?", 2, "There is no file 'nothing.png'."),
    ("ask red.png What? --adapter nowhere", 1, "There is no folder nowhere; expected a LoRA adapter"),
    ("ask red.png What? --adapter empty", 1, "empty has no adapter_config.json"),
    ("ask red.png What? -m nowhere", 1, "There is no folder 'nowhere'"),
    ("ask What? red.png", 2, "the question comes last. Try: fastvlm ask red.png 'What?'"),
    ("ask red.png file", 2, "There is no question"),
    ("chat red.png --adapter nowhere", 1, "There is no folder nowhere"),
    ("chat nothing.png", 2, "There is no file 'nothing.png'."),
    ("convert mini empty", 2, "exists already, and nothing is overwritten"),
    ("convert mini no/where", 2, "is not a folder. Create it first."),
    ("convert nowhere new", 1, "There is no folder 'nowhere'"),
    ("quantize mini empty", 2, "exists already, and nothing is overwritten"),
    ("quantize nowhere new", 1, "There is no folder 'nowhere'"),
    ("serve --adapter a=nowhere", 1, "There is no folder nowhere"),
    ("serve --adapter a=empty", 1, "empty has no adapter_config.json"),
    ("serve --model nowhere", 1, "There is no folder 'nowhere'"),
    ("eval --suite mini --adapter nowhere", 1, "There is no folder nowhere"),
    ("eval --suite mini --out file", 2, "--out file is a file; expected a folder"),
    ("bench --out file", 2, "--out file is a file; expected a folder"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Line -> exit code, stderr and heavy modules; run in a folder with an image, a file and an empty folder."""
    place = tmp_path_factory.mktemp("place")
    Image.new("RGB", (64, 64), "red").save(place / "red.png")
    (place / "file").write_text("{}")
    (place / "empty").mkdir()
    lines = [line for line, _, _ in CASES]
    command = [sys.executable, "-c", RUN, json.dumps(lines)]
    done = subprocess.run(command, cwd=place, env=plain_environment(), capture_output=True, check=True, timeout=240)
    assert sorted(path.name for path in place.iterdir()) == ["empty", "file", "red.png"]
    return dict(zip(lines, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("line", "code", "words"), CASES)
def test_what_cannot_be_used_is_told_first(outcomes, line, code, words):
    found, error, heavy = outcomes[line]
    assert (found, heavy) == (code, [])
    assert error.startswith("fastvlm: error: ") and error.count("\n") == 1
    assert words in error
