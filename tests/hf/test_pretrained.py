"""`from_pretrained` of the classes: both layouts, strict about keys."""

import json

import apple_layout
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmModel
from fastvlm.errors import CheckpointError

TIED = {"tie_word_embeddings": True}


def edit_weights(folder, change):
    """Rewrite the folder's one weight file after `change` (tensors)."""
    file = folder / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def assert_same_state(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def saved(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("vision", [{}, {"inference_mode": False}])
@pytest.mark.parametrize("text", [{}, TIED])
def test_apple_folders_open_with_exactly_the_weights_they_hold(tmp_path, text, vision):
    model = apple_layout.tokenized_model(text=text, vision=vision)
    folder = apple_layout.write_apple_folder(tmp_path / "apple", model)
    opened, info = FastVlmForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_state(opened, model)
    assert opened.config.vision_config.stages == model.config.vision_config.stages
    assert opened.config.vision_config.is_inference_form is not bool(vision)
    assert not opened.training
    inputs = apple_layout.inputs_for(model)
    with torch.no_grad():
        # not bit-equal: weights lie at another address, and products may add in another order
        torch.testing.assert_close(opened(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_apples_sampling_without_end_is_replaced(tmp_path):
    model = apple_layout.tokenized_model()
    folder = apple_layout.write_apple_folder(tmp_path / "apple", model)
    generation = FastVlmForConditionalGeneration.from_pretrained(folder).generation_config
    assert generation.do_sample is False
    assert set(model.config.stop_token_ids) <= set(generation.eos_token_id)
    assert generation.pad_token_id == model.config.text_config.pad_token_id


def test_the_model_without_head_opens_from_all_layouts_and_gives_it_back(tmp_path, tiny_model, saved):
    apple = apple_layout.write_apple_folder(tmp_path / "apple", apple_layout.tokenized_model())
    for folder in (saved, apple):
        bare = FastVlmModel.from_pretrained(folder)
        bare.save_pretrained(tmp_path / f"bare-{folder.name}")
        assert_same_state(FastVlmModel.from_pretrained(tmp_path / f"bare-{folder.name}"), bare)
    assert_same_state(FastVlmModel.from_pretrained(saved), tiny_model.model)


def test_a_bare_model_opens_with_a_head_only_if_it_is_tied(tmp_path):
    for name, text in (("tied", TIED), ("untied", {})):
        tiny.model(text=text).model.save_pretrained(tmp_path / name)
    FastVlmForConditionalGeneration.from_pretrained(tmp_path / "tied")
    with pytest.raises(CheckpointError, match=r"1 missing: 'lm_head.weight'"):
        FastVlmForConditionalGeneration.from_pretrained(tmp_path / "untied")


def test_older_llava_names_open(tmp_path, tiny_model, saved):
    def rename(tensors):
        for key in list(tensors):
            new = key.removeprefix("model.").replace("timm_model.", "")
            new = new.replace("language_model.", "language_model.model.")
            tensors["language_model.lm_head.weight" if key == "lm_head.weight" else new] = tensors.pop(key)

    edit_weights(saved, rename)
    assert_same_state(FastVlmForConditionalGeneration.from_pretrained(saved), tiny_model)


def test_the_encoders_form_is_believed_from_the_keys_not_the_config(tmp_path):
    model = tiny.model(vision={"inference_mode": False})
    model.save_pretrained(tmp_path / "a")
    content = json.loads((tmp_path / "a/config.json").read_text())
    content["vision_config"]["model_args"]["inference_mode"] = True
    (tmp_path / "a/config.json").write_text(json.dumps(content))
    opened = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "a")
    assert not opened.config.vision_config.is_inference_form
    assert_same_state(opened, model)


def test_step_counters_may_lack(saved, tiny_model):
    edit_weights(saved, lambda t: [t.pop(key) for key in list(t) if key.endswith("num_batches_tracked")])
    assert_same_state(FastVlmForConditionalGeneration.from_pretrained(saved), tiny_model)


@pytest.mark.parametrize("layout", ["fast_vlm", "llava_qwen2"])
class TestHeads:
    """Tied or stored: the tensors are believed."""

    def folder(self, tmp_path, layout, *, flag, edit):
        model = apple_layout.tokenized_model(text={"tie_word_embeddings": False})
        with torch.no_grad():
            model.lm_head.weight.copy_(model.get_input_embeddings().weight)
        path = tmp_path / "folder"
        if layout == "llava_qwen2":
            apple_layout.write_apple_folder(path, model, edit=edit, tie_word_embeddings=flag)
        else:
            model.save_pretrained(path)
            text = {**model.config.text_config.to_dict(), "tie_word_embeddings": flag}
            edit_config(path, tie_word_embeddings=flag, text_config=text)
            edit_weights(path, edit)
        return path

    def opened(self, path):
        model = FastVlmForConditionalGeneration.from_pretrained(path)
        is_one = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        assert is_one is model.config.tie_word_embeddings
        return model, is_one

    def test_flag_tied_and_equal_tensors(self, tmp_path, layout):
        _, is_one = self.opened(self.folder(tmp_path, layout, flag=True, edit=lambda _: None))
        assert is_one

    def test_flag_tied_and_no_head(self, tmp_path, layout):
        _, is_one = self.opened(self.folder(tmp_path, layout, flag=True, edit=lambda t: t.pop("lm_head.weight")))
        assert is_one

    def test_flag_tied_and_other_tensors(self, tmp_path, layout):
        def change(tensors):
            tensors["lm_head.weight"][-1, -1] += 1

        path = self.folder(tmp_path, layout, flag=True, edit=change)
        with pytest.warns(UserWarning, match="says tie_word_embeddings true, but lm_head.weight"):
            model, is_one = self.opened(path)
        assert not is_one
        assert torch.equal(model.lm_head.weight, load_file(path / "model.safetensors")["lm_head.weight"])

    def test_flag_untied_and_no_head(self, tmp_path, layout):
        path = self.folder(tmp_path, layout, flag=False, edit=lambda t: t.pop("lm_head.weight"))
        with pytest.warns(UserWarning, match=r"there is no lm_head.weight"):
            _, is_one = self.opened(path)
        assert is_one

    def test_flag_untied_and_equal_tensors_stay_two(self, tmp_path, layout):
        _, is_one = self.opened(self.folder(tmp_path, layout, flag=False, edit=lambda _: None))
        assert not is_one


@pytest.mark.parametrize("rows", [151_646, 151_936, 152_000, 152_064, 152_128])
def test_vocabularies_of_all_published_sizes_open(tmp_path, rows):
    text = {
        "vocab_size": rows,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "eos_token_id": 151645,
    }
    model = apple_layout.qwen2_sized_model(text)
    folder = apple_layout.write_apple_folder(tmp_path / "apple", model, image_token_index=None, vocab_size=151_936)
    opened = FastVlmForConditionalGeneration.from_pretrained(folder)
    padded = 151_680 if rows == 151_646 else rows
    assert opened.config.text_config.vocab_size == padded
    assert opened.config.image_token_index == 151_646
    assert set(opened.generation_config.eos_token_id) == {151_645, 151_643}
    for ours, theirs in (
        (opened.lm_head, model.lm_head),
        (opened.get_input_embeddings(), model.get_input_embeddings()),
    ):
        assert torch.equal(ours.weight[:rows], theirs.weight)
        assert not ours.weight[rows:].any()


def failing(tmp_path, change, match, **kwargs):
    model = tiny.model()
    model.save_pretrained(tmp_path / "a")
    edit_weights(tmp_path / "a", change)
    with pytest.raises(CheckpointError, match=match) as caught:
        FastVlmForConditionalGeneration.from_pretrained(tmp_path / "a", **kwargs)
    return str(caught.value)


def test_missing_keys_are_listed_by_name(tmp_path):
    def change(tensors):
        for key in [key for key in tensors if "layers.1." in key]:
            del tensors[key]

    message = failing(tmp_path, change, r"12 missing: 'model.language_model.layers.1.*and 2 more")
    assert "download may be incomplete" in message


def test_unexpected_keys_are_listed_by_name(tmp_path):
    message = failing(
        tmp_path, lambda t: t.update({"model.extra.weight": torch.zeros(1)}), r"1 unexpected: 'model.extra.weight'"
    )
    assert "take both from one source" in message


def test_a_projector_that_does_not_fit_is_named_with_both_shapes(tmp_path):
    key = "model.multi_modal_projector.linear_2.weight"
    message = failing(
        tmp_path, lambda t: t.update({key: torch.zeros(40, 32)}), r"linear_2.weight is \[40, 32\], expected \[32, 32\]"
    )
    assert "projector was trained for another" in message


def test_a_vocabulary_that_does_not_fit_is_named(tmp_path):
    def change(tensors):
        for key in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
            tensors[key] = tensors[key][:50].clone()

    assert "vocabulary differs" in failing(tmp_path, change, "2 of another shape")


def test_swapped_tensors_are_named_by_shape(tmp_path):
    up, down = (f"model.language_model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down"))

    def change(tensors):
        tensors[up], tensors[down] = tensors[down], tensors[up]

    failing(tmp_path, change, r"2 of another shape: .*up_proj.weight is \[32, 48\], expected \[48, 32\]")


def test_another_encoder_is_recognized_as_such(tmp_path):
    model = tiny.model()
    model.save_pretrained(tmp_path / "a")
    other = tiny.vision_config(layers=[2, 1, 1, 1, 1], token_mixers=["repmixer"] * 4 + ["attention"])
    edit_config(tmp_path / "a", vision_config=other.to_dict())
    with pytest.raises(CheckpointError, match="encoder has another architecture"):
        FastVlmForConditionalGeneration.from_pretrained(tmp_path / "a")


def test_the_other_form_is_recognized_as_such(tmp_path, saved):
    config = FastVlmConfig.from_pretrained(saved)
    config.vision_config.model_args["inference_mode"] = False
    with pytest.raises(CheckpointError, match="other form"):
        FastVlmForConditionalGeneration.from_pretrained(saved, config=config)


def test_mismatched_sizes_may_be_ignored_as_in_transformers(tmp_path, saved):
    edit_weights(saved, lambda t: t.update({"lm_head.weight": torch.zeros(50, 32)}))
    model, info = FastVlmForConditionalGeneration.from_pretrained(
        saved, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.lm_head.weight.shape == (tiny.VOCAB, 32)
    assert [entry[0] for entry in info["mismatched_keys"]] == ["lm_head.weight"]
    FastVlmForConditionalGeneration.from_pretrained(saved, ignore_mismatched_sizes=True)


def test_who_asks_for_the_lists_gets_them_instead_of_the_error(saved):
    edit_weights(saved, lambda t: t.pop("model.language_model.norm.weight"))
    _, info = FastVlmForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert info["missing_keys"] == {"model.language_model.norm.weight"}


def test_overrides_of_the_config_reach_it(tmp_path, saved):
    apple = apple_layout.write_apple_folder(tmp_path / "apple", apple_layout.tokenized_model())
    for folder in (saved, apple):
        model = FastVlmForConditionalGeneration.from_pretrained(
            folder, image_seq_length=9, attn_implementation="eager", dtype=torch.bfloat16
        )
        assert model.config.image_seq_length == 9
        assert model.config.text_config._attn_implementation == "eager"
        assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_checkpoints_own_dtype_is_taken(tmp_path, dtype):
    model = apple_layout.tokenized_model()
    folder = apple_layout.write_apple_folder(tmp_path / "apple", model, dtype=dtype, torch_dtype="float16")
    assert FastVlmForConditionalGeneration.from_pretrained(folder).dtype == dtype
    model.to(dtype).save_pretrained(tmp_path / "ours")
    assert FastVlmForConditionalGeneration.from_pretrained(tmp_path / "ours").dtype == dtype


@pytest.mark.parametrize("layout", ["fast_vlm", "llava_qwen2"])
def test_the_encoder_of_a_float16_model_stays_in_float32(tmp_path, layout):
    model = apple_layout.tokenized_model()
    if layout == "fast_vlm":
        model.save_pretrained(tmp_path / "a")
    else:
        apple_layout.write_apple_folder(tmp_path / "a", model)
    opened = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "a", dtype=torch.float16)
    assert next(opened.model.vision_tower.parameters()).dtype == torch.float32
    assert opened.model.language_model.dtype == torch.float16


def test_the_config_alone_knows_apples_folders(tmp_path):
    model = apple_layout.tokenized_model(vision={"inference_mode": False})
    folder = apple_layout.write_apple_folder(tmp_path / "apple", model, vocab_size=999)
    config = FastVlmConfig.from_pretrained(folder)
    assert config.model_type == "fast_vlm"
    assert config.text_config.vocab_size == model.config.text_config.vocab_size
    assert config.vision_config.stages == model.config.vision_config.stages
    (folder / "model.safetensors").unlink()
    assert FastVlmConfig.from_pretrained(folder).text_config.vocab_size == 999


def test_a_model_from_apples_folder_saves_as_fast_vlm(tmp_path):
    model = apple_layout.tokenized_model()
    folder = apple_layout.write_apple_folder(tmp_path / "apple", model)
    FastVlmForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    assert set(load_file(tmp_path / "ours/model.safetensors")) == set(model.state_dict())
    assert json.loads((tmp_path / "ours/config.json").read_text())["model_type"] == "fast_vlm"
