"""``--to mlx``: Apple's layout, and the three things that mlx-vlm asks for besides; mlx-vlm answers, where it is."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastvlm
from fastvlm.export.export import export
from fastvlm.formats.weights import WeightFiles

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_folder_is_apples_with_what_mlx_vlm_needs(tmp_path):
    steps = []
    report = export("mini", tmp_path / "mlx", to="mlx", progress=lambda *step: steps.append(step))
    assert report.not_run and steps[-1] == (2, 2)
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["model_type"] == "llava_qwen2" and "image_token_index" not in config
    images = json.loads((tmp_path / "mlx" / "preprocessor_config.json").read_text())
    assert images["crop_size"] == {"height": 512, "width": 512}
    entries = WeightFiles.of(tmp_path / "mlx").entries
    projection = entries["model.vision_tower.vision_tower.model.head.proj"]
    width = fastvlm.load("mini", device="cpu")[0].config.vision_config.hidden_size
    assert projection.shape == (width, 768)
    table = json.loads((tmp_path / "mlx" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(table) == set(entries) and (tmp_path / "mlx" / "LICENSE").is_file()


def our_tokens(image, question):
    model, processor = fastvlm.load("mini", device="cpu", dtype="bfloat16")
    content = [{"type": "image", "image": str(image)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlx_vlm") is None, reason="needs mlx-vlm and mlx[cpu]: make exports")
def test_mlx_vlm_answers_as_we_do_also_in_8_and_4_bits(tmp_path):
    export("mini", tmp_path / "mlx", to="mlx")
    image, question = EXAMPLES / "red_star.png", "What shape is it?"
    expected = our_tokens(image, question)
    script = Path(__file__).with_name("ask_mlx.py")
    command = [sys.executable, script, tmp_path / "mlx", image, question, "16", "8", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"16": expected, "8": expected, "4": expected}
