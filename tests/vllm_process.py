"""Starts vLLM in its own environment, and computes what it must answer."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from server_process import ROOT, example, question

import fastvlm

ENGINE = ROOT / "tests/integrations/vllm_engine.py"
IMAGES = ("letter", "shapes", "red_star", "word", "objects", "letters", "five_shapes", "cat_photo")
TEXT = "What do you see?"
CONVERSATIONS = [[question(TEXT, example(name))] for name in IMAGES]
MAX_TOKENS = 32  # as in vllm_engine.py


def interpreter(version: str = "") -> Path:
    """Python of `make vllm`, or of another version's environment."""
    return ROOT / f".venv-vllm{version and '-' + version}" / "bin" / "python"


def marks(version: str = "") -> list:
    """Minutes each, also because other processes may use the cores; skipped without the environment."""
    command = f"make vllm{version and ' VLLM_VERSION=' + version}"
    needs = pytest.mark.skipif(not interpreter(version).exists(), reason=f"vLLM is not there; run: {command}")
    return [pytest.mark.slow, pytest.mark.timeout(3600), needs]


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM"))}
    return {**inherited, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", **variables}


def run(folder: Path, model: Path, batches: list, *, version: str = "", pixels: Path | None = None, **engine) -> list:
    """What an engine with these settings answers to each of `batches`; files go to `folder`."""
    job, result = folder / "job.json", folder / "result.json"
    wanted = {"model": str(model), "engine": {"dtype": "float32", **engine}, "batches": batches}
    job.write_text(json.dumps(wanted if pixels is None else {**wanted, "pixels": str(pixels)}))
    done = subprocess.run(
        [interpreter(version), ENGINE, job, result], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads(result.read_text())


class Reference:
    """`generate` on a checkpoint in float32, greedy."""

    def __init__(self, folder: Path, image_size: int | None = None) -> None:
        self.model, self.processor = fastvlm.load(folder, dtype=torch.float32)
        self.processor.image_processor.choose(image_size)

    def __call__(self, conversation: list, model=None) -> dict:
        """Prompt ids, token ids and text of one reply."""
        inputs = self.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        prompt = inputs["input_ids"][0].tolist()
        output = (model or self.model).generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        tokens = output[0, len(prompt) :].tolist()
        return {"prompt": prompt, "tokens": tokens, "text": self.processor.decode(tokens, skip_special_tokens=True)}


def compared(reply: dict) -> dict:
    """What must be equal in both."""
    return {name: reply[name] for name in ("prompt", "tokens", "text")}
