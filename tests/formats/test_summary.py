"""Summaries of folders that anybody may have written, and names that must not leave the models folder."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.formats.models_folder import model_of_folder, models_folder, models_of_folder
from fastvlm.formats.summary import stated_license, summarize
from fastvlm.hub.files import needed_files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
KEYS = ("mm_vision_tower", "image_aspect_ratio", "text_config", "dtype", "torch_dtype")


@given(
    st.fixed_dictionaries(
        {"model_type": st.sampled_from(["fast_vlm", "llava_qwen2"])}, optional=dict.fromkeys(KEYS, JSON)
    ),
    st.dictionaries(st.sampled_from(["image_size", "crop_size"]), JSON) | JSON,
    st.binary(max_size=40),
)
def test_any_configuration_has_a_summary(tmp_path_factory, config, processor, quantized):
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "fastvlm_quantised.safetensors").write_bytes(quantized)
    summary = summarize(folder)
    assert summary is not None and summary.layout == config["model_type"]
    assert summary.bits is None and summary.missing is not None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": ["fast_vlm"]}', '{"model_type": "llama"}'])
def test_other_folders_have_none(tmp_path, content):
    assert summarize(tmp_path) is None
    (tmp_path / "config.json").write_text(content)
    assert summarize(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "license_name"),
    [
        ({}, None),
        ({"LICENSE": "\n  MIT License\n"}, "MIT License"),
        ({"README.md": "---\nlicense: 'mit'\n---\nlicense: none"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: x\n---\n", "LICENSE": "y"}, "other x"),
        ({"README.md": "license: gpl\n", "LICENSE": "\xff" * 3000}, "\xff" * 500),
    ],
)
def test_the_license_is_what_the_files_state(tmp_path, files, license_name):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert stated_license(tmp_path) == license_name


@given(st.text(alphabet="ab./\\~-_ ") | st.text())
def test_no_name_leads_out_of_the_models_folder(tmp_path_factory, name):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("FASTVLM_HOME", str(home))
        for folder in (home, home.parent, home / "models"):
            folder.mkdir(exist_ok=True)
            (folder / "config.json").touch()
        found = model_of_folder(name)
        assert found is None or found.resolve().is_relative_to((home / "models").resolve())
        assert found is None or found != models_folder()


def test_models_are_found_by_one_or_two_names(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVLM_HOME", str(tmp_path))
    assert list(models_of_folder()) == []
    for name in ("one", "owner/two", "owner/deeper/three", ".hidden"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").touch()
    assert [name for name, _ in models_of_folder()] == ["one", "owner/two"]


def test_files_that_a_checkpoint_needs():
    own = ["LICENSE", "SHA256SUMS", "chat_template.jinja", "config.json", "merges.txt"]
    weights = ["model.safetensors"]
    others = ["model.py", "a/config.json", "onnx/model.safetensors", "README.md", "image.png"]
    assert needed_files([*others, *weights, *own, "pytorch_model.bin"]) == [*own, *weights]
    assert needed_files([*own, "pytorch_model.bin"]) == [*own, "pytorch_model.bin"]
    assert needed_files([]) == []
