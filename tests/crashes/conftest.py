"""What the commands are run on, and the library that puts faults in their way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import parrot
import pytest
import small_run

HERE = Path(__file__).parent
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
sys.path.insert(0, str(HERE))  # for `import faulty`


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Checkpoints, samples and questions that are only read."""
    folder = tmp_path_factory.mktemp("sources")
    parrot.save(folder / "parrot")
    small_run.checkpoint(folder / "small")
    (folder / "small" / "LICENSE").write_text("as you like\n")
    data = small_run.samples(folder / "data", 8)
    recipe = small_run.recipe(folder / "small", data, max_steps=3, save_every_steps=1, batch_size=2, micro_batch_size=2)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    questions = [
        {"id": str(n), "question": f"What is {n}?", "answers": ["a circle"], "image": "0.png"} for n in range(3)
    ]
    (folder / "data" / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (folder / "fonts.json").write_text("[]")
    return folder


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """``faults.c``, compiled."""
    if not sys.platform.startswith("linux") or COMPILER is None:
        pytest.skip("faults are put in between the process and the C library of Linux, by a C compiler")
    target = tmp_path_factory.mktemp("library") / "faults.so"
    command = [
        COMPILER,
        "-O1",
        "-Wall",
        "-Wextra",
        "-shared",
        "-fPIC",
        str(HERE / "faults.c"),
        "-o",
        str(target),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return target
