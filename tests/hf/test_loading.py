"""`fastvlm.load`: what it opens, where it looks, and what it says when it cannot."""

import json
import socket
import stat

import apple_layout
import pytest
import torch

import fastvlm
from fastvlm.backends.devices import as_dtype, pick_device
from fastvlm.errors import CheckpointError, UsageError
from fastvlm.formats.places import checkpoint_path


@pytest.fixture
def model():
    return apple_layout.tokenized_model()


@pytest.fixture
def apple(tmp_path, model):
    return apple_layout.write_apple_folder(tmp_path / "apple", model)


@pytest.fixture
def ours(tmp_path, apple):
    fastvlm.convert(apple, tmp_path / "ours")
    return tmp_path / "ours"


def edit_config(folder, **changes):
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))


QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]


@pytest.mark.parametrize("kind", ["apple", "ours"])
def test_both_layouts_answer_and_the_folder_stays_as_it_was(request, tmp_path, kind):
    folder = request.getfixturevalue(kind)
    before = apple_layout.digest(folder)
    model, processor = fastvlm.load(folder, device="cpu")
    assert not model.training
    assert processor.image_processor.image_size == (128, 128)
    assert processor.image_processor.image_fit == "pad"
    assert processor.image_token_id == model.config.image_token_index
    prompt = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    inputs = processor(images=[torch.zeros(3, 90, 120)], text=prompt, return_tensors="pt")
    model.generate(**inputs, max_new_tokens=3)
    fastvlm.convert(folder, tmp_path / "copy")
    assert apple_layout.digest(folder) == before


def test_a_read_only_folder_opens(ours):
    for path in (*ours.rglob("*"), ours):
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    try:
        fastvlm.load(ours)
    finally:
        ours.chmod(0o755)
        (ours / "llava_qwen2").chmod(0o755)


def test_code_in_a_folder_is_never_run(apple):
    # `llava_qwen.py` of the written folder exits when it is imported, and `auto_map` names it.
    edit_config(apple, auto_map={"AutoConfig": "llava_qwen.C", "AutoModel": "llava_qwen.M"})
    tokenizer = json.loads((apple / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["llava_qwen.T", "llava_qwen.T"]}
    (apple / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    fastvlm.load(apple)


def test_dtype_and_device_are_taken(ours):
    model, _ = fastvlm.load(ours, device=torch.device("cpu"), dtype="bf16")
    assert (model.dtype, model.device.type) == (torch.bfloat16, "cpu")
    assert fastvlm.load(ours, dtype="auto")[0].dtype == torch.float32
    half, _ = fastvlm.load(ours, dtype=torch.float16)
    assert half.model.language_model.dtype == torch.float16
    assert next(half.model.vision_tower.parameters()).dtype == torch.float32


def test_attention_implementations_and_device_maps_reach_transformers(ours):
    model, _ = fastvlm.load(ours, attn_implementation="eager")
    assert model.config.text_config._attn_implementation == "eager"
    model, _ = fastvlm.load(ours, device_map={"": "cpu"})
    assert model.device.type == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"dtype": torch.int8}, "dtype is 'torch.int8'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
    ],
)
def test_settings_that_mean_nothing_are_refused(ours, settings, message):
    with pytest.raises(UsageError, match=message):
        fastvlm.load(ours, **settings)


def test_names_of_dtypes_and_devices():
    assert as_dtype("fp16") == as_dtype("float16") == torch.float16
    assert as_dtype(None) is None
    assert pick_device().type in {"cpu", "cuda", "mps"}
    assert pick_device("auto") == pick_device()


def test_a_folder_of_that_name_wins_over_the_hub_and_the_shipped_one(monkeypatch, tmp_path, ours):
    ours.rename(tmp_path / "mini")
    (tmp_path / "apple-owner").mkdir()
    (tmp_path / "mini").rename(tmp_path / "apple-owner/FastVLM")
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path("apple-owner/FastVLM").resolve() == tmp_path / "apple-owner/FastVLM"
    fastvlm.load("apple-owner/FastVLM")
    (tmp_path / "mini").symlink_to(tmp_path / "apple-owner/FastVLM")
    assert checkpoint_path("mini").resolve() == tmp_path / "apple-owner/FastVLM"


def test_the_shipped_checkpoint_is_named_when_it_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(fastvlm, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(CheckpointError, match="'mini' is not in this installation"):
        fastvlm.load("mini")


def test_a_subfolder_opens(tmp_path, ours):
    assert fastvlm.load(tmp_path, subfolder="ours")[0].config.text_config.hidden_size == 32


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "holds list"),
        (lambda f: edit_config(f, model_type="llava"), "model_type 'llava'; fastvlm reads 'fast_vlm' and Apple's"),
        (lambda f: edit_config(f, model_type="absent"), "model_type None"),
        (lambda f: edit_config(f, quantization={"bits": 4}), "quantized for MLX"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be read"),
    ],
)
@pytest.mark.parametrize("kind", ["apple", "ours"])
def test_a_broken_folder_is_one_clear_error(request, kind, break_it, message):
    folder = request.getfixturevalue(kind)
    break_it(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        fastvlm.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "FastVLM's encoder is 'mobileclip_l_<pixels>'"),
        ({"mm_vision_tower": "absent"}, "mm_vision_tower None"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"hidden_size": "absent", "num_attention_heads": "absent"}, "lacks hidden_size, num_attention_heads"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized llava_qwen2 checkpoint \(awq\)"),
        ({"model_type": "fast_vlm"}, "named as in 'llava_qwen2'"),
        ({"hidden_size": 64}, r"of another shape"),
        ({"num_hidden_layers": 3}, "12 missing"),
    ],
)
def test_an_apple_config_that_is_not_fastvlms_is_one_clear_error(apple, changes, message):
    edit_config(apple, **changes)
    with pytest.raises(CheckpointError, match=message):
        fastvlm.load(apple)


def test_an_encoder_that_is_not_there_is_not_made_up(tmp_path, model):
    def drop_encoder(tensors):
        for key in [key for key in tensors if "vision_tower" in key]:
            del tensors[key]

    folder = apple_layout.write_apple_folder(
        tmp_path / "stage", model, edit=drop_encoder, unfreeze_mm_vision_tower=False
    )
    with pytest.raises(CheckpointError, match=r"(?s)holds no encoder.*unfreeze_mm_vision_tower false"):
        fastvlm.load(folder)


def test_adapters_and_parts_of_a_training_are_named(tmp_path, apple):
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "apple/FastVLM-0.5B"}))
    with pytest.raises(CheckpointError, match=r"PEFT adapter.*'apple/FastVLM-0.5B'"):
        fastvlm.load(lora)
    part = tmp_path / "part"
    part.mkdir()
    torch.save({}, part / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="not a whole model"):
        fastvlm.load(part)
    with pytest.raises(CheckpointError, match=r"Did you mean its folder 'apple'"):
        fastvlm.load(tmp_path)


def test_an_empty_folder_and_a_file_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        fastvlm.load(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        fastvlm.load(tmp_path / "file")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere-at-all", "nowhere", "a/b/c", "a b/c", ""])
def test_what_can_only_be_a_folder_is_not_asked_for_on_the_hub(monkeypatch, name):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was asked"))
    with pytest.raises(CheckpointError, match=r"There is no folder|is a file|has no config"):
        fastvlm.load(name)
