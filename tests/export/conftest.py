"""The mini as ONNX, exported once; node and transformers.js, where they are."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# node_modules with @huggingface/transformers: make exports
MODULES = Path(os.environ.get("FASTVLM_NODE_MODULES", ROOT / ".node-modules" / "node_modules"))
LIBRARY = MODULES / "@huggingface" / "transformers" / "dist" / "transformers.node.mjs"


@pytest.fixture(scope="session")
def modules():
    if not LIBRARY.is_file():
        pytest.skip(f"transformers.js is not in {MODULES} (make exports)")
    return MODULES


@pytest.fixture(scope="session")
def mini_onnx(tmp_path_factory):
    """The mini in float32, 8 and 4 bits, or the folder that FASTVLM_EXPORTED_MINI names."""
    if "FASTVLM_EXPORTED_MINI" in os.environ:
        return Path(os.environ["FASTVLM_EXPORTED_MINI"])
    from fastvlm.export.export import export

    target = tmp_path_factory.mktemp("exports") / "mini"
    export("mini", target, dtypes=["fp32", "q8", "q4"], check_images=[str(EXAMPLES / "cat_photo.png")])
    return target


@pytest.fixture(scope="session")
def in_node(modules):
    """A function: answers of transformers.js to questions [[images], text] by the files of a dtype."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; on Debian: apt-get install nodejs")

    def ask(folder, dtype, questions):
        script = Path(__file__).with_name("ask.mjs")
        command = [node, script, LIBRARY, folder, dtype, json.dumps(questions)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return ask
