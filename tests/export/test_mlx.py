"""``--to mlx``: Apple's layout, and the three things that mlx-vlm asks for besides."""

import json

import fastvlm
from fastvlm.export.export import export
from fastvlm.formats.weights import WeightFiles


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
