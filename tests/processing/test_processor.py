"""Images and text together: counts per prompt, order, padding, truncation, messages, files."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen2_format import small_tokenizer
from tokenizers import AddedToken

from fastvlm import FastVlmImageProcessor, FastVlmProcessor
from fastvlm.errors import CheckpointError, ConfigError, ImageError, ImageTokenMismatchError, PromptError
from fastvlm.processing.image_processor import ImageProcessor
from fastvlm.processing.processor import Processor
from fastvlm.processing.prompt import CHAT_TEMPLATES
from fastvlm.processing.tokenizer import Tokenizer

N = 4  # visual tokens of a 128 px image


def make(**options):
    return FastVlmProcessor(FastVlmImageProcessor(image_size=128), small_tokenizer(), **options)


@pytest.fixture(scope="module")
def processor():
    return make()


def gray(level):
    """An image that is recognized in `pixel_values` by its level."""
    return Image.new("RGB", (10, 10), (level,) * 3)


def levels(inputs):
    return [round(float(image[0, 0, 0]) * 255) for image in inputs["pixel_values"]]


def user(*items):
    return {"role": "user", "content": [{"type": "text", "text": i} if isinstance(i, str) else i for i in items]}


def counts(processor, inputs):
    return [list(np.asarray(row)).count(processor.image_token_id) for row in inputs["input_ids"]]


# ------------------------------------------------------------------------------------------------------ call


def test_one_image_and_a_prompt(processor):
    inputs = processor(images=gray(7), text="<image>\nWhat?", return_tensors="pt")
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert inputs["input_ids"][0, :N].tolist() == [processor.image_token_id] * N
    assert inputs["pixel_values"].shape == (1, 3, 128, 128)
    assert processor.tokenizer.decode(inputs["input_ids"][0, N:]) == "\nWhat?"
    moved = inputs.to("cpu", torch.bfloat16)
    assert moved["pixel_values"].dtype == torch.bfloat16
    assert moved["input_ids"].dtype == torch.int64


@pytest.mark.parametrize(
    ("texts", "images", "expected"),
    [
        ("<image>a", [gray(1)], [1]),
        ("<image>a", [[gray(1)]], [1]),
        ("<image>a<image>", [gray(1), gray(2)], [2]),
        (["<image>", "<image>"], [gray(1), gray(2)], [1, 1]),
        (["<image>", "<image><image>"], [gray(1), gray(2), gray(3)], [1, 2]),
        (["<image>", "a", "<image><image>"], [[gray(1)], [], [gray(2), gray(3)]], [1, 0, 2]),
        (["a", "<image>"], gray(1), [0, 1]),
        (["a", "b"], None, [0, 0]),
        (["a", "b"], [[], []], [0, 0]),
        ("a", [], [0]),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_numbers_of_images_per_prompt(processor, texts, images, expected, side):
    inputs = processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")
    assert counts(processor, inputs) == [count * N for count in expected]
    assert ("pixel_values" in inputs) == (sum(expected) > 0)
    if sum(expected):
        assert levels(inputs) == list(range(1, sum(expected) + 1))


@given(
    batch=st.lists(st.lists(st.sampled_from(["i", "word", " "]), max_size=6), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
)
def test_every_sample_is_what_it_is_alone(processor, batch, side):
    """Any mix of images and text, any lengths, both sides: padding apart, a row equals its prompt alone."""
    level, texts, images = 0, [], []
    for parts in batch:
        texts.append("".join("<image>" if part == "i" else part for part in parts) + ".")
        images.append([gray(level := level + 1) for part in parts if part == "i"])
    inputs = processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")
    offset = 0
    for row, (text, own) in enumerate(zip(texts, images, strict=True)):
        alone = processor(images=[own], text=[text], return_tensors="pt")
        kept = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        assert torch.equal(kept, alone["input_ids"][0])
        for index in range(len(own)):
            assert torch.equal(inputs["pixel_values"][offset + index], alone["pixel_values"][index])
        offset += len(own)
        mask = inputs["attention_mask"][row].tolist()
        assert mask == sorted(mask, reverse=side == "right")


@pytest.mark.parametrize(
    ("texts", "images", "says"),
    [
        ("a", gray(1), "prompt 0 has 0 <image> and 1 image"),
        ("<image>", None, "prompts have 1 <image>, 1 in all, and 0 image|prompt 0 has 1 <image> and 0"),
        ("<image>", [gray(1), gray(2)], "prompt 0 has 1 <image> and 2 image"),
        ("<image><image>", gray(1), "prompt 0 has 2 <image> and 1 image"),
        # the totals agree, the samples do not: transformers lets this pass
        (
            ["<image><image>", ""],
            [[gray(1)], [gray(2)]],
            "prompt 0 has 2 <image> and 1 .*; prompt 1 has 0 <image> and 1",
        ),
        (["<image>", "<image>"], [[gray(1)]], "for 1 prompt.s. and 2 prompt"),
        (["<image>", "<image>"], [gray(1), gray(2), gray(3)], "have 1, 1 <image>, 2 in all, and 3 image"),
        (["<image>", "<image>"], None, "2 in all, and 0 image"),
    ],
)
def test_places_and_images_are_counted_per_prompt(processor, texts, images, says):
    with pytest.raises(ImageTokenMismatchError, match=says):
        processor(images=images, text=texts)


@pytest.mark.parametrize(
    ("text", "images"), [(None, None), (None, []), ([], None), (5, None), (["a", 5], None), ({}, None)]
)
def test_no_input_is_refused(processor, text, images):
    with pytest.raises(PromptError):
        processor(images=images, text=text)


def test_text_alone_and_images_alone(processor):
    assert set(processor(text="a", return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(processor(images=[gray(1), gray(2)])) == {"pixel_values"}
    assert processor(text=["a", "b c d"])["input_ids"][0] != []  # lists, of different lengths


def test_settings_of_a_call(processor):
    wide = Image.new("RGB", (100, 20), "white")
    small = processor(images=wide, text="<image>", image_size=64, return_tensors="pt")
    assert counts(processor, small) == [1]
    large = processor(images=wide, text="<image>", images_kwargs={"image_size": (64, 192), "image_fit": "crop"})
    assert counts(processor, large) == [3]
    assert large["pixel_values"].min() == 1.0
    padded = processor(text="a", text_kwargs={"padding": "max_length", "max_length": 9})
    assert len(padded["input_ids"][0]) == 9
    with pytest.raises(TypeError, match="unknown setting 'image_sise'"):
        processor(text="a", image_sise=64)
    with pytest.raises(ConfigError, match="nearest are 64 and 128"):
        processor(images=wide, text="<image>", image_size=100)


def test_truncation_that_cuts_an_image_is_an_error(processor):
    longer = "<image>" + " word" * 30
    kept = processor(images=gray(1), text=longer, truncation=True, max_length=N + 2)
    assert counts(processor, kept) == [N]
    with pytest.raises(ImageTokenMismatchError, match=rf"has 3 <image> tokens after truncation.*need {N}"):
        processor(images=gray(1), text=longer, truncation=True, max_length=3)


# ------------------------------------------------------------------------------------------------------ padding side


def test_padding_is_on_the_left_with_a_way_back():
    left = make()
    texts = ["a", "a longer text"]
    assert left(text=texts, padding=True)["attention_mask"][0][0] == 0
    assert left(text=texts, padding=True, padding_side="right")["attention_mask"][0][0] == 1
    left.padding_side = "right"
    assert left(text=texts, padding=True)["attention_mask"][0][0] == 1
    left.tokenizer.padding_side = "left"  # transformers' habit
    assert left.padding_side == "left"
    assert make(padding_side="right")(text=texts, padding=True)["attention_mask"][0][0] == 1
    with pytest.raises(ConfigError, match="known are left, right"):
        left.padding_side = "middle"


# ------------------------------------------------------------------------------------------------------ tokens


def test_a_tokenizer_without_image_gets_it_as_the_next_id():
    tokenizer = small_tokenizer(with_image=False)
    size = len(tokenizer)
    processor = FastVlmProcessor(FastVlmImageProcessor(image_size=64), tokenizer, image_token_id=size)
    assert processor.image_token_id == size
    assert tokenizer.convert_tokens_to_ids("<image>") == size
    ids = processor(images=gray(1), text="a <image> b", return_tensors="pt")["input_ids"]
    assert ids[0].tolist().count(size) == 1
    assert "<image>" not in processor.decode(ids[0], skip_special_tokens=True)
    with pytest.raises(ConfigError, match=rf"id {size}, but the model's config says image_token_index 7"):
        FastVlmProcessor(FastVlmImageProcessor(), small_tokenizer(with_image=False), image_token_id=7)


def test_stop_tokens(processor):
    vocabulary = processor.tokenizer.get_vocab()
    assert processor.stop_token_ids == (vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"])


def test_decoding(processor):
    ids = processor(text=["Grüße 🙂", "b"])["input_ids"]
    assert processor.batch_decode(ids) == ["Grüße 🙂", "b"]
    assert processor.decode(ids[0]) == "Grüße 🙂"
    assert processor.model_input_names == ["pixel_values", "input_ids", "attention_mask"]


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 14},
        {"num_additional_image_tokens": 1},
        {"vision_feature_select_strategy": "default"},
    ],
)
def test_another_models_settings_are_refused(options):
    with pytest.raises(ConfigError):
        make(**options)


# ------------------------------------------------------------------------------------------------------ messages


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_every_way_to_carry_an_image(processor, tmp_path):
    data, path = png(gray(6)), tmp_path / "image.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    items = [
        {"type": "image", "image": gray(6)},
        {"type": "image", "image": np.asarray(gray(6))},
        {"type": "image", "image": torch.from_numpy(np.array(gray(6)))},
        {"type": "image", "image": data},
        {"type": "image", "path": str(path)},
        {"type": "image", "path": path},
        {"type": "image", "url": uri},
        {"type": "image", "base64": base64.b64encode(data).decode()},
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "input_image", "image_url": uri},
    ]
    for item in items:
        inputs = processor.apply_chat_template(
            [user(item, "?")], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        assert levels(inputs) == [6]
        assert counts(processor, inputs) == [N]


def test_images_of_several_turns_keep_their_order(processor):
    def item(level):
        return {"type": "image", "image": gray(level)}

    first = [user(item(1), item(2), "a"), {"role": "assistant", "content": "b"}, user("c", item(3))]
    second = [user("no image")]
    third = [user(item(4), "d")]
    inputs = processor.apply_chat_template(
        [first, second, third], tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    assert levels(inputs) == [1, 2, 3, 4]
    assert counts(processor, inputs) == [3 * N, 0, N]


def test_what_a_template_returns(processor):
    messages = [user({"type": "image", "image": gray(1)}, "What?")]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n")
    assert processor.apply_chat_template([messages, messages]) == [processor.apply_chat_template(messages)] * 2
    ids = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert ids == processor(images=gray(1), text=[text])["input_ids"]
    small = processor.apply_chat_template(messages, tokenize=True, processor_kwargs={"image_size": 64})
    assert small[0].count(processor.image_token_id) == 1


def test_templates_by_name(processor):
    messages = [user("Hello")]
    assert "user\nHello" in processor.apply_chat_template(messages)
    assert "user\nHello" in processor.apply_chat_template(messages, chat_template="default")
    assert "user\n\nHello" in processor.apply_chat_template(messages, chat_template="transformers")
    assert make(chat_template="transformers").chat_template == CHAT_TEMPLATES["transformers"]
    assert processor.apply_chat_template(messages, chat_template="{{ messages|length }}") == "1"


def test_messages_that_are_refused(processor):
    with pytest.raises(PromptError, match="list of messages"):
        processor.apply_chat_template("What is this?")
    with pytest.raises(PromptError, match="tools or documents"):
        processor.apply_chat_template([user("a")], tools=[{"name": "f"}])
    with pytest.raises(TypeError, match="unknown setting 'tokenise'"):
        processor.apply_chat_template([user("a")], tokenise=True)
    with pytest.raises(ImageTokenMismatchError, match="1 <image>"):
        processor.apply_chat_template([user({"type": "image"}, "a")], tokenize=True)
    with pytest.raises(ImageError, match="no file"):
        processor.apply_chat_template([user({"type": "image", "path": "nowhere.png"}, "a")], tokenize=True)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    with pytest.raises(PromptError, match="extra"):
        processor.apply_chat_template([user("a<|extra|>b")])


# ------------------------------------------------------------------------------------------------------ files


def test_saved_and_loaded_again(tmp_path):
    processor = FastVlmProcessor(
        FastVlmImageProcessor(image_size=(64, 128), image_fit="stretch"), small_tokenizer(), padding_side="right"
    )
    written = processor.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert {str(path) for path in tmp_path.iterdir()} == set(written)
    again = FastVlmProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert again.chat_template == processor.chat_template
    assert again.padding_side == "right"
    arguments = {"images": gray(9), "text": "<image>\nWhat?", "return_tensors": "pt"}
    for name, tensor in processor(**arguments).items():
        assert torch.equal(tensor, again(**arguments)[name])


def test_loading_leaves_the_folder_alone_and_saving_twice_is_once(tmp_path):
    make().save_pretrained(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    loaded = FastVlmProcessor.from_pretrained(tmp_path / "a")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    loaded.save_pretrained(tmp_path / "b")
    after = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert set(after) == set(before)
    # transformers notes in tokenizer_config.json where a tokenizer came from
    assert {name for name in before if before[name] != after[name]} <= {"tokenizer_config.json"}


def test_settings_when_loading(tmp_path):
    make().save_pretrained(tmp_path)
    loaded = FastVlmProcessor.from_pretrained(
        tmp_path, image_size=192, image_fit="crop", padding_side="right", chat_template="transformers"
    )
    assert loaded.image_processor.image_size == (192, 192)
    assert loaded.image_processor.image_fit == "crop"
    assert loaded.padding_side == "right"
    assert loaded.chat_template == CHAT_TEMPLATES["transformers"]
    with pytest.raises(TypeError, match="unknown setting 'image_sise'"):
        FastVlmProcessor.from_pretrained(tmp_path, image_sise=192)
    FastVlmProcessor.from_pretrained(tmp_path, trust_remote_code=False, local_files_only=True)


def test_a_template_of_ones_own_survives(tmp_path):
    own = CHAT_TEMPLATES["default"].replace("a helpful assistant", "a pirate")
    make(chat_template=own).save_pretrained(tmp_path)
    assert FastVlmProcessor.from_pretrained(tmp_path).chat_template == own


@pytest.mark.parametrize(
    "stored",
    [
        None,
        CHAT_TEMPLATES["transformers"],
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] }}{% endfor %}",  # Qwen2's: text only
        "{% set first = messages[0]['content'] %}{% if first is not string %}{{ raise_exception('') }}{% endif %}",
    ],
    ids=["none", "transformers", "text-only", "text-only by its own word"],
)
def test_a_plain_checkpoints_template_gives_way_to_the_trained_one(tmp_path, stored):
    make().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    if stored is not None:
        (tmp_path / "chat_template.jinja").write_text(stored)
    assert FastVlmProcessor.from_pretrained(tmp_path).chat_template == CHAT_TEMPLATES["default"]


@pytest.mark.parametrize("stored", ["{{ raise_exception('other messages') }}", "{% broken"])
def test_a_broken_template_is_an_error_that_names_the_folder(tmp_path, stored):
    make().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(stored)
    with pytest.raises(CheckpointError, match=rf"{tmp_path} \(chat_template\.jinja.*cannot be used"):
        FastVlmProcessor.from_pretrained(tmp_path)


def test_a_plain_transformers_folder(tmp_path):
    """LlavaProcessor's and CLIPImageProcessor's files without our keys, the tokenizer padding on the right."""
    make(padding_side="right").save_pretrained(tmp_path)
    for name, ours in (
        ("preprocessor_config.json", ("image_fit", "image_size", "patch_size")),
        ("processor_config.json", ("padding_side",)),
    ):
        file = tmp_path / name
        content = {key: value for key, value in json.loads(file.read_text()).items() if key not in ours}
        content["vision_feature_select_strategy"] = None
        file.write_text(json.dumps(content))
    loaded = FastVlmProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.image_fit == "pad"
    assert loaded.image_processor.image_size == (128, 128)
    assert loaded.padding_side == "left"


def test_the_configs_image_token_is_checked(tmp_path):
    processor = make()
    processor.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "fast_vlm", "image_token_index": processor.image_token_id}))
    assert FastVlmProcessor.from_pretrained(tmp_path).image_token_id == processor.image_token_id
    config.write_text(json.dumps({"model_type": "fast_vlm", "image_token_index": 5}))
    with pytest.raises(ConfigError, match="do not belong together"):
        FastVlmProcessor.from_pretrained(tmp_path)
    config.write_text(json.dumps({"model_type": "fast_vlm"}))
    assert FastVlmProcessor.from_pretrained(tmp_path).image_token_id == processor.image_token_id


def test_a_folder_without_processor_files_is_an_error(tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(OSError, match="preprocessor_config"):
        FastVlmProcessor.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path)
    for missing in (tmp_path, "../missing", "a/b/c"):
        with pytest.raises(CheckpointError, match="no folder"):
            FastVlmProcessor.from_pretrained(missing)


def extended():
    """A processor whose tokenizer got marks after it was made: by both ways, one of them with a composed letter."""
    made = make()
    made.tokenizer.add_tokens(["<|mark|>"], special_tokens=True)
    made.tokenizer.add_tokens([AddedToken("<|é|>", special=True, normalized=True)], special_tokens=True)
    made.tokenizer.add_tokens(["<tool>"])  # a word, not special
    return made


_EXTENDED = extended()


@pytest.mark.parametrize("is_plain", [False, True])
def test_marks_that_were_added_later_do_not_pass_in_text(is_plain):
    processor = extended()
    if is_plain:
        backend = processor.tokenizer.backend_tokenizer
        tokenizer = Tokenizer(backend, {"eos_token": "<|im_end|>"}, [])
        processor = Processor(ImageProcessor(image_size=128), tokenizer)
    for content in ("a <|mark|> b", "<|e\u0301|>", [{"type": "text", "text": part} for part in ("<|ma", "rk|>")]):
        with pytest.raises(PromptError, match="which the model reads as a mark"):
            processor.apply_chat_template([{"role": "user", "content": content}])
    assert "<tool>" in processor.apply_chat_template([{"role": "user", "content": "<tool>"}])


_PIECES = ["<|", "|>", "im_end", "im_start", "mark", "é", "e\u0301", "<image>", "<", ">", "|", "a", " ", "image"]


@given(st.lists(st.lists(st.sampled_from(_PIECES), max_size=5).map("".join), min_size=1, max_size=3))
def test_no_text_gives_a_special_id(texts):
    processor = _EXTENDED
    special = {index for index, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    items = [{"type": "text", "text": text} for text in texts]
    for template in ("default", "{% for item in messages[0].content %}{{ item.text }}{% endfor %}"):
        try:
            prompt = processor.apply_chat_template([{"role": "user", "content": items}], chat_template=template)
        except PromptError:
            continue
        ids = processor.tokenizer(prompt)["input_ids"]
        own = processor.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template)
        expected = [index for index in processor.tokenizer(own)["input_ids"] if index in special]
        assert [index for index in ids if index in special] == expected
