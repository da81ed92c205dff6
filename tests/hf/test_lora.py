"""A LoRA adapter in a model: merged as peft does it, the base untouched and shared, everything checked before."""

import json
import shutil
import warnings

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import fastvlm
from fastvlm.errors import CheckpointError, MissingExtraError, UsageError
from fastvlm.formats.places import checkpoint_path
from fastvlm.formats.quantized_metadata import REST_FILE
from fastvlm.hf.base_digest import DIGEST_FILE, BaseDigest
from fastvlm.hf.lora import merge_adapter, open_with_adapters, sharing_copy

# peft asks for gradient checkpointing by the name that transformers 5.23 has given up.
# Its adapters have no digest of their base; what is warned of then has a test of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient.checkpointing.*"),
    pytest.mark.filterwarnings("ignore:.*no digest of its base.*:UserWarning"),
]

DECODER = r".*language_model.*\.(q_proj|v_proj|down_proj)"
EVERYWHERE = r".*(language_model.*(q_proj|up_proj)|multi_modal_projector\.linear_[12]|vision_tower.*mlp\.fc1)"


def adapter(model, folder, *, targets=DECODER, seed=3, **settings):
    """Random matrices for `model`, saved by peft; returns the model with them, unmerged."""
    lora = peft.LoraConfig(**{"r": 2, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM", **settings})
    wrapped = peft.get_peft_model(sharing_copy(model), lora).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped


@torch.no_grad()
def logits(model):
    inputs = {**tiny.batch([tiny.prompt("titt")]), "pixel_values": tiny.images(1)}
    return model(**inputs).logits


def content(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def edit(folder, **changes):
    """Change an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rewrite(folder, change):
    """Change an adapter's matrices."""
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"targets": EVERYWHERE},
        {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"down_proj": 1}},
        {"use_dora": True},
        {"modules_to_save": ["linear_2"]},
    ],
    ids=["decoder", "all parts", "patterns", "dora", "whole module"],
)
def test_the_merged_model_answers_as_peft_does_and_the_base_as_before(tiny_model, tmp_path, settings):
    base, before = logits(tiny_model), content(tiny_model)
    expected = logits(adapter(tiny_model, tmp_path, **settings))
    merged = merge_adapter(tiny_model, tmp_path)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    assert (expected - base).abs().max() > 1e-2
    assert type(merged) is type(tiny_model) and not merged.training
    assert set(merged.state_dict()) == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


def test_what_the_adapter_does_not_change_is_the_same_memory(tiny_model, tmp_path):
    adapter(tiny_model, tmp_path)
    merged = dict(merge_adapter(tiny_model, tmp_path).named_parameters())
    own = {name for name, one in tiny_model.named_parameters() if merged[name].data_ptr() != one.data_ptr()}
    assert own == {name for name in merged if name.endswith(("q_proj.weight", "v_proj.weight", "down_proj.weight"))}


def test_biases_that_the_adapter_brings_leave_the_base_alone(tiny_model, tmp_path):
    before = content(tiny_model)
    adapter(tiny_model, tmp_path, bias="lora_only")
    rewrite(tmp_path, lambda tensors: {name: t + 1 if name.endswith("bias") else t for name, t in tensors.items()})
    merged = merge_adapter(tiny_model, tmp_path)
    name = "model.language_model.layers.0.self_attn.q_proj.bias"
    torch.testing.assert_close(merged.state_dict()[name], before[name] + 1)
    assert torch.equal(tiny_model.state_dict()[name], before[name])


def test_a_sharing_copy_can_be_given_other_weights(tiny_model):
    copied = sharing_copy(tiny_model)
    before = tiny_model.lm_head.weight.clone()
    assert copied.lm_head.weight.data_ptr() == tiny_model.lm_head.weight.data_ptr()
    copied.lm_head.weight.data = torch.zeros(1)
    assert torch.equal(tiny_model.lm_head.weight, before)


def test_tied_tables_stay_tied_in_a_sharing_copy():
    model = tiny.model(text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    copied = sharing_copy(model)
    assert copied.lm_head.weight is copied.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("name", "is_right"),
    [
        (None, True),
        ("apple/FastVLM-0.5B", True),
        ("/data/FastVLM-0.5B/", True),
        ("/cache/models--apple--fastvlm-0.5b/snapshots/0a1b", True),
        ("apple/FastVLM-1.5B", False),
        ("mini", False),
    ],
)
def test_the_base_is_known_by_its_name(tiny_model, tmp_path, name, is_right):
    tiny_model.config.name_or_path = "apple/FastVLM-0.5B"
    adapter(tiny_model, tmp_path)
    edit(tmp_path, base_model_name_or_path=name)
    if is_right:
        merge_adapter(tiny_model, tmp_path)
        return
    with pytest.raises(CheckpointError, match=r"was made for the model .*'apple/FastVLM-0.5B'.*be null"):
        merge_adapter(tiny_model, tmp_path)


def write_digest(folder, model):
    (folder / DIGEST_FILE).write_text(BaseDigest.of_model(model, is_exact=True).as_text())


def test_other_weights_under_the_same_name_are_refused(tiny_model, tmp_path):
    adapter(tiny_model, tmp_path)
    write_digest(tmp_path, tiny_model)
    merge_adapter(tiny_model, tmp_path)
    other = sharing_copy(tiny_model)
    other.model.multi_modal_projector.linear_2.weight.data = torch.zeros_like(
        other.model.multi_modal_projector.linear_2.weight
    )
    with pytest.raises(CheckpointError, match=r"was made for other weights than those of .* does not match"):
        merge_adapter(other, tmp_path)
    (tmp_path / DIGEST_FILE).unlink()
    merge_adapter(other, tmp_path)


def test_the_same_weights_under_another_name_are_taken(tiny_model, tmp_path):
    tiny_model.config.name_or_path = "/data/renamed"
    adapter(tiny_model, tmp_path)
    edit(tmp_path, base_model_name_or_path="apple/FastVLM-0.5B")
    write_digest(tmp_path, tiny_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*gradient.checkpointing.*")
        merge_adapter(tiny_model, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"bfloat16": 3, "float16": null}'])
def test_a_broken_digest_is_one_line(tiny_model, tmp_path, text):
    adapter(tiny_model, tmp_path)
    (tmp_path / DIGEST_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"not a digest of weights|cannot be read as JSON"):
        merge_adapter(tiny_model, tmp_path)


@pytest.mark.parametrize("text", [None, '{"bfloat16": null, "float16": "00"}'])
def test_an_adapter_that_cannot_be_compared_is_warned_of(tiny_model, tmp_path, text):
    adapter(tiny_model, tmp_path)
    if text is not None:
        (tmp_path / DIGEST_FILE).write_text(text)
    with pytest.warns(UserWarning, match="no digest of its base's weights"):
        merge_adapter(tiny_model, tmp_path)


def drop_one(tensors):
    return {
        name: tensor for name, tensor in tensors.items() if not name.endswith("layers.0.mlp.down_proj.lora_B.weight")
    }


def drop_a_layer(tensors):
    return {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}


def widen(tensors):
    return {name: torch.ones(2, 999) if "q_proj.lora_A" in name else tensor for name, tensor in tensors.items()}


def rename(tensors):
    return {name.replace("language_model.layers", "layers"): tensor for name, tensor in tensors.items()}


def add_a_parameter(tensors):
    return {**tensors, "base_model.model.model.multi_modal_projector.linear_1.weight": torch.ones(3, 3)}


def spoil(tensors):
    return {name: tensor * float("nan") for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_one, "only one of the two matrices of 'model.language_model.layers.0.mlp.down_proj'"),
        (drop_a_layer, r"no matrices for 'model.language_model.layers.1.*\(3 such places\)"),
        (widen, r"for a weight of \[32, 999\] in .*q_proj', which here is \[32, 32\]. It was made for another model"),
        (rename, "changes 'model.layers.0.mlp.down_proj', which this model does not have"),
        (add_a_parameter, r"brings .*linear_1.weight' of shape \[3, 3\], which this model has as \[32, "),
        (spoil, "cannot be merged: NaNs"),
        (lambda _: {}, "is empty"),
    ],
)
def test_matrices_that_do_not_fit_are_told(tiny_model, tmp_path, change, words):
    adapter(tiny_model, tmp_path)
    rewrite(tmp_path, change)
    before = content(tiny_model)
    with pytest.raises(CheckpointError, match=words):
        merge_adapter(tiny_model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "has peft_type 'IA3'; only adapters of the type 'LORA'"),
        ({"r": 0}, "has r 0; expected the rank"),
        ({"r": 4}, "have the ranks 2 and 2, and adapter_config.json says 4"),
    ],
)
def test_configurations_that_do_not_fit_are_told(tiny_model, tmp_path, changes, words):
    adapter(tiny_model, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=words):
        merge_adapter(tiny_model, tmp_path)


def test_folders_that_hold_no_adapter_are_told(tiny_model, tmp_path):
    with pytest.raises(CheckpointError, match="There is no folder"):
        merge_adapter(tiny_model, tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        merge_adapter(tiny_model, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        merge_adapter(tiny_model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        merge_adapter(tiny_model, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        merge_adapter(tiny_model, tmp_path)


def test_a_head_that_is_the_embedding_table_cannot_be_changed(tmp_path):
    model = tiny.model(text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    untied = tiny.model()
    adapter(untied, tmp_path, targets=["lm_head"])
    merge_adapter(untied, tmp_path)
    with pytest.raises(CheckpointError, match="which are one in this model"):
        merge_adapter(model, tmp_path)


def test_rounded_weights_take_no_adapter(tiny_model, tmp_path):
    adapter(tiny_model, tmp_path / "adapter")
    (tmp_path / REST_FILE).touch()  # of a folder that `fastvlm quantize` made
    with pytest.raises(UsageError, match="stored in 8 or 4 bits"):
        open_with_adapters(tmp_path, [tmp_path / "adapter"])


def test_an_adapter_shares_with_the_base_what_it_does_not_change(tmp_path):
    folder = checkpoint_path("mini")
    model, _ = fastvlm.load(folder, device="cpu")
    adapter(model, tmp_path, targets=["q_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its folder has no digest of the base
        base, [adapted] = open_with_adapters(folder, [tmp_path])
    assert adapted.changed and all("q_proj" in name for name in adapted.changed)
    same = [name for name in base.tensors if name not in adapted.changed]
    assert all(adapted.tensors[name] is base.tensors[name] for name in same)
    weights = [name for name in adapted.changed if name.endswith(".weight")]
    assert all(not torch.equal(adapted.tensors[name], base.tensors[name]) for name in weights)


def test_without_peft_there_is_one_line(tiny_model, tmp_path, monkeypatch):
    adapter(tiny_model, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'peft'.*fastvlm\[train\]"):
        merge_adapter(tiny_model, tmp_path)


def test_the_folder_is_left_as_it_is(tiny_model, tmp_path):
    adapter(tiny_model, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    merge_adapter(tiny_model, tmp_path / "a")
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]


def test_a_second_set_of_matrices_is_told(tmp_path):
    model = tiny.model()
    adapter(model, tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"an older copy")
    with pytest.warns(UserWarning, match="holds two complete sets of weights: adapter_model.safetensors, and"):
        merge_adapter(model, tmp_path)
