"""The door is light: importing the package loads neither torch nor transformers, and every public name resolves."""

import subprocess
import sys

import pytest
from PIL import Image

import fastvlm

HEAVY = ("torch", "transformers", "timm", "torchvision", "PIL", "httpx", "safetensors", "accelerate", "peft")
SEE = f"print([name for name in {HEAVY!r} if name in sys.modules])"


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy():
    assert run(f"import sys, fastvlm; {SEE}") == "[]"


def test_looking_around_loads_nothing_heavy():
    assert run(f"import sys, fastvlm; dir(fastvlm); fastvlm.__version__; fastvlm.errors if 0 else None; {SEE}") == "[]"


def test_importing_prints_and_warns_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import fastvlm"], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == done.stderr == ""


def test_importing_registers_nothing():
    code = "import fastvlm.hf.modeling; from transformers import CONFIG_MAPPING; print(CONFIG_MAPPING._extra_content)"
    assert run(code) == "{}"


def test_a_question_on_a_cpu_needs_no_transformers(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    asked = ["ask", str(tmp_path / "red.png"), "What colour is it?", "-n", "2", "--device", "cpu"]
    slow = (
        "transformers",
        "huggingface_hub",
        "httpx",
        "accelerate",
        "sympy",
        "torch._dynamo",
        "torch.distributed.tensor",
    )
    code = (
        f"import sys; from fastvlm.cli.main import main; assert main({asked!r}) == 0; "
        f"print([name for name in {slow!r} if name in sys.modules], 'torch' in sys.modules)"
    )
    assert run(code).splitlines()[-1] == "[] True"


@pytest.mark.parametrize("name", fastvlm.__all__)
def test_every_public_name_resolves(name):
    value = getattr(fastvlm, name)
    assert value is not None
    if name != "__version__":
        assert value.__doc__, f"fastvlm.{name} has no docstring"


def test_names_are_listed_once_and_listed_by_dir():
    assert len(set(fastvlm.__all__)) == len(fastvlm.__all__)
    assert set(fastvlm.__all__) <= set(dir(fastvlm))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fastvlm' has no attribute 'FastVLMs'"):
        fastvlm.FastVLMs  # noqa: B018


def test_no_peer_is_imported_by_the_source():
    from pathlib import Path

    source = Path(fastvlm.__file__).parent
    for file in source.rglob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            words = line.split()
            is_import = words[:1] in (["import"], ["from"])
            assert not (is_import and ("fast_vlm" in words[1] or words[1].split(".")[0] in ("timm", "torchvision"))), (
                f"{file}: {line}"
            )
