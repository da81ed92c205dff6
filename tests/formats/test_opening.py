"""Opening without transformers gives an engine what transformers gives it, or says that something is unusual."""

import functools
import json
import shutil

import apple_layout
import parrot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import fastvlm
from fastvlm.config import read_config
from fastvlm.conversion.quantize import quantize
from fastvlm.engine.engine import Engine
from fastvlm.engine.types import SamplingParams
from fastvlm.errors import CheckpointError, ConfigError, ContextLengthError, UnusualCheckpointError
from fastvlm.formats.opening import open_folder
from fastvlm.formats.places import checkpoint_path
from fastvlm.formats.quantized_file import QuantizationOptions
from fastvlm.hf.checkpoint import plain_config
from fastvlm.hf.config import PRESETS, FastVlmConfig
from fastvlm.hf.loading import open_with_transformers
from fastvlm.processing.prompt import CHAT_TEMPLATES

CONVERSATIONS = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}],
    [{"role": "user", "content": "No image, ünïcode 你好 🙂 and  two  spaces"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b\n\n\tc"}]},
        {"role": "assistant", "content": "It's 42."},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]},
    ],
]


def edit(file, **changes):
    content = json.loads(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        place = content
        *path, last = key.split("__")
        for part in path:
            place = place[part]
        place[last] = value
    file.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def split_tokenizer(folder):
    """As older versions saved it: vocabulary, merges, and the marks in the settings."""
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    marks = {str(token.pop("id")): token for token in content["added_tokens"]}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=marks, additional_special_tokens=["<|im_start|>"])


def write(folder, layout):
    """A checkpoint of tiny size in one of the layouts that are opened."""
    words = layout.split()
    text = {"tie_word_embeddings": "tied" in words}
    model = apple_layout.tokenized_model(text=text, vision={"inference_mode": False} if "branches" in words else None)
    apple = apple_layout.write_apple_folder(folder / "apple", model)
    if "vocabulary" in words:
        split_tokenizer(apple)
    if words[0] == "apple":
        return apple
    fastvlm.convert(apple, folder / "ours", dtype=next((word for word in words if "float" in word), None))
    if "sharded" in words:
        opened, processor = fastvlm.load(folder / "ours")
        opened.save_pretrained(folder / "sharded", max_shard_size="100KB")
        processor.save_pretrained(folder / "sharded")
        return folder / "sharded"
    if "quantized" in words:
        quantize(folder / "ours", folder / "quantized", QuantizationOptions(bits=8))
        return folder / "quantized"
    return folder / "ours"


LAYOUTS = [
    "ours",
    "ours tied",
    "ours bfloat16",
    "ours branches",
    "ours float16",
    "ours sharded",
    "ours quantized",
    "ours tied quantized",
    "apple",
    "apple tied",
    "apple branches",
    "apple vocabulary",
]


@pytest.fixture(scope="module", params=[*LAYOUTS, "parrot", "mini"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoint")
    if request.param == "mini":
        return checkpoint_path("mini")
    return parrot.save(place / "it") if request.param == "parrot" else write(place, request.param)


@pytest.fixture(scope="module")
def both(folder):
    """The checkpoint as it is opened without transformers and with it."""
    return open_folder(folder), open_with_transformers(folder, torch.device("cpu"))


def test_weights_are_the_same_tensors(both):
    mine, theirs = both
    assert mine.tensors.keys() == theirs.tensors.keys()
    for name, tensor in mine.tensors.items():
        is_counter = name.endswith("num_batches_tracked")  # of which transformers makes a float in float16
        assert is_counter or tensor.dtype == theirs.tensors[name].dtype, name
        assert (tensor == theirs.tensors[name]).all(), name
    assert mine.dtype == theirs.dtype and not mine.layers and not theirs.layers
    assert not theirs.rounded, "transformers computes with plain weights"


def test_settings_are_the_same(both):
    mine, theirs = (one.config for one in both)
    assert mine.text_config == theirs.text_config
    names = "image_token_index image_seq_length projector_hidden_act multimodal_projector_bias tie_word_embeddings"
    for name in [*names.split(), "stop_token_ids"]:
        assert getattr(mine, name) == getattr(theirs, name), name
    assert mine.vision_config.stages == theirs.vision_config.stages
    assert mine.vision_config.is_inference_form == theirs.vision_config.is_inference_form
    assert mine.num_visual_tokens(100, 200) == theirs.num_visual_tokens(100, 200)
    assert both[0].stop_token_ids == both[1].stop_token_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_those_of_transformers(folder, both, dtype):
    model, _ = fastvlm.load(folder, device="cpu")
    rotary = model.model.language_model.rotary_emb(torch.zeros(1, dtype=dtype), torch.arange(200)[None])
    for one in both:
        for mine, theirs in zip(one.rotary.tables(200, dtype), rotary, strict=True):
            assert torch.equal(mine, theirs[0]) and mine.dtype == dtype


def processors(both):
    return [checkpoint.processor for checkpoint in both]


def filled(conversation):
    """The conversation with an image in every place."""
    image = Image.linear_gradient("L").convert("RGB").resize((90, 60))
    turns = []
    for turn in conversation:
        items = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
        turns.append({**turn, "content": [{**i, "image": image} if i["type"] == "image" else i for i in items]})
    return turns


@pytest.mark.parametrize("template", [None, *CHAT_TEMPLATES])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_prompts_and_texts_are_the_same(both, conversation, template):
    settings = {"chat_template": template, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    mine, theirs = (
        one.apply_chat_template(filled(conversation), add_generation_prompt=True, **settings)
        for one in processors(both)
    )
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]) and tensor.dtype == theirs[key].dtype, key
    for skips in (True, False):
        texts = [one.decode(mine["input_ids"][0].tolist(), skip_special_tokens=skips) for one in processors(both)]
        assert texts[0] == texts[1]


def test_processors_have_the_same_settings(both):
    mine, theirs = processors(both)
    names = "image_token image_token_id padding_side patch_size chat_template stop_token_ids"
    for name in names.split():
        assert getattr(mine, name) == getattr(theirs, name), name
    for name in ("image_size", "image_fit", "patch_size", "resample", "image_limits"):
        assert getattr(mine.image_processor, name) == getattr(theirs.image_processor, name), name
    assert mine._marks() == theirs._marks()
    assert mine.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()


@given(st.text(max_size=40))
def test_texts_become_the_same_tokens(text):
    folder = checkpoint_path("mini")
    mine, theirs = _tokenizers(folder)
    ids = mine([text])["input_ids"]
    assert ids == theirs([text])["input_ids"]
    assert mine.decode(ids[0]) == theirs.decode(ids[0])


@functools.cache
def _tokenizers(folder):
    return open_folder(folder).processor.tokenizer, fastvlm.load(folder)[1].tokenizer


def test_engines_answer_the_same(folder):
    question = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (90, 60), "red")}]}]
    opened = open_folder(folder), open_with_transformers(folder, torch.device("cpu"))
    engines = [Engine.from_checkpoint(one, num_slots=1, dtype=torch.float32) for one in opened]
    if opened[0].rounded:  # transformers has the rounded weights as plain ones, so numbers differ in their last bits
        return
    mine, theirs = (engine.generate(question, SamplingParams(max_new_tokens=8)) for engine in engines)
    assert (mine.text, mine.usage, mine.finish_reason) == (theirs.text, theirs.usage, theirs.finish_reason)
    with pytest.raises(ContextLengthError, match="this model's context is"):
        engines[0].generate(question, SamplingParams(max_new_tokens=10**6))


# ------------------------------------------------------------------------------------------------------ not plain


def drop_a_weight(folder):
    edit_weights(folder, lambda tensors: tensors.pop("model.language_model.norm.weight"))


def add_a_weight(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(1)}))


def bend_a_weight(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.language_model.norm.weight": torch.zeros(3)}))


def mix_dtypes(folder):
    name = "model.language_model.norm.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].bfloat16()}))


def config(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


def settings(**changes):
    return lambda folder: edit(folder / "tokenizer_config.json", **changes)


def tokens(**changes):
    return lambda folder: edit(folder / "tokenizer.json", **changes)


def file(name, text="{}"):
    return lambda folder: (folder / name).write_text(text)


NOT_PLAIN = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "broken config": file("config.json", "{"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "missing weight": drop_a_weight,
    "unknown weight": add_a_weight,
    "bent weight": bend_a_weight,
    "two dtypes": mix_dtypes,
    "another dtype asked for": config(dtype="bfloat16"),
    "adapter": file("adapter_config.json"),
    "quantized by transformers": config(quantization_config={"quant_method": "bitsandbytes"}),
    "unknown key": config(unheard_of=1),
    "end token beside the decoder's": config(eos_token_id=5),
    "another activation": config(projector_hidden_act="relu"),
    "placeholder outside the vocabulary": config(image_token_index=10**6),
    "another decoder": config(text_config__model_type="llama"),
    "sliding windows": config(text_config__use_sliding_window=True),
    "a sliding layer": config(text_config__layer_types=["full_attention", "sliding_attention"]),
    "scaled positions": config(text_config__rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "wide heads": config(text_config__head_dim=16),
    "a size that is no number": config(text_config__hidden_size="32"),
    "another encoder": config(vision_config__architecture="vit"),
    "impossible encoder": config(vision_config__model_args={"layers": []}),
    "odd end tokens": file("generation_config.json", '{"eos_token_id": "x"}'),
    "old template file": file("chat_template.json", '{"chat_template": "x"}'),
    "nested image settings": lambda folder: edit(folder / "processor_config.json", image_processor={}),
    "no image settings": lambda folder: (folder / "preprocessor_config.json").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "broken tokenizer": file("tokenizer.json"),
    "another tokenizer": settings(tokenizer_class="LlamaTokenizer"),
    "unknown setting": settings(unheard_of=1),
    "a space before": settings(add_prefix_space=True),
    "an added token that is not in the file": settings(additional_special_tokens=["<|more|>"]),
    "another end token": settings(eos_token="<|more|>"),
    "other cuts": tokens(
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ),
    "no normalization": tokens(normalizer=None),
    "padding in the file": tokens(
        padding={
            "strategy": "BatchLongest",
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    ),
    "byte fallback": tokens(model__byte_fallback=True),
}


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain"), "ours")


@pytest.mark.parametrize("change", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_is_not_plain_is_not_opened_here(tmp_path, plain_folder, change):
    copy = shutil.copytree(plain_folder, tmp_path / "copy")
    open_folder(copy)
    change(copy)
    with pytest.raises((CheckpointError, ConfigError)):
        open_folder(copy)


@pytest.mark.parametrize("change", ["missing weight", "unknown weight", "bent weight"])
def test_weights_that_do_not_fit_are_named(tmp_path, plain_folder, change):
    copy = shutil.copytree(plain_folder, tmp_path / "copy")
    NOT_PLAIN[change](copy)
    name = "model.extra.weight" if change == "unknown weight" else "model.language_model.norm.weight"
    with pytest.raises(CheckpointError, match=name):
        fastvlm.open_checkpoint(copy)


def test_an_encoder_that_does_not_fit_is_an_error_when_it_is_built(tmp_path, plain_folder):
    copy = shutil.copytree(plain_folder, tmp_path / "copy")
    edit(copy / "config.json", vision_config__model_args__layers=[1, 1, 2, 1, 1])
    with pytest.raises(CheckpointError, match=r"missing: 'stages\.2"):
        Engine.from_checkpoint(fastvlm.open_checkpoint(copy))


@pytest.mark.parametrize("change", ["scaled positions", "two dtypes", "unknown setting", "old template file"])
def test_what_only_transformers_opens_enters_through_it(tmp_path, plain_folder, change):
    copy = shutil.copytree(plain_folder, tmp_path / "copy")
    NOT_PLAIN[change](copy)
    with pytest.raises(UnusualCheckpointError):
        open_folder(copy)
    engine = Engine.from_checkpoint(fastvlm.open_checkpoint(copy))
    assert engine.generate([{"role": "user", "content": "a"}], SamplingParams(max_new_tokens=2)).token_ids


def test_another_models_processor_is_an_error(tmp_path, plain_folder):
    copy = shutil.copytree(plain_folder, tmp_path / "copy")
    edit(copy / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    for opened in (open_folder, fastvlm.load):
        with pytest.raises(ConfigError, match="image_mean"):
            opened(copy)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_plain(name):
    whole = FastVlmConfig.preset(name)
    stored = whole.to_dict()
    stored.pop("transformers_version", None)
    mine = read_config(json.loads(json.dumps(stored)))
    assert mine.text_config == plain_config(whole).text_config
    assert mine.stop_token_ids == whole.stop_token_ids


def test_older_files_say_positions_otherwise():
    stored = FastVlmConfig.preset("0.5b").to_dict()
    del stored["text_config"]["rope_parameters"]
    stored["text_config"] |= {"rope_theta": 5e5, "rope_scaling": None}
    assert read_config(stored).text_config == plain_config(FastVlmConfig(**stored)).text_config
    stored["text_config"]["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    with pytest.raises(UnusualCheckpointError, match="rope"):
        read_config(stored)
