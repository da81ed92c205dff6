"""FastVLM on vLLM, in the environment of `make vllm`: prompts, tokens and texts equal those of `generate`."""

import json
from types import SimpleNamespace

import compressed_tensors_folder
import peft
import pytest
import torch
from PIL import Image
from server_process import ROOT, data_uri, example, question
from vllm_process import CONVERSATIONS, TEXT, Reference, compared, marks, run

import fastvlm
from fastvlm.conversion.quantize import quantize
from fastvlm.formats.places import checkpoint_path
from fastvlm.formats.quantized_file import QuantizationOptions
from fastvlm.hf.lora import merge_adapter

pytestmark = [
    *marks(),
    pytest.mark.filterwarnings("ignore:.*gradient.checkpointing.*"),
    pytest.mark.filterwarnings("ignore:.*has no digest of its base:UserWarning"),  # peft wrote it
]
MINI = checkpoint_path("mini")
NO_IMAGE = "data:image/png;base64,bm8gaW1hZ2U="


def many(*names: str, text: str = TEXT) -> list[dict]:
    return [question(text, *map(example, names))]


@pytest.fixture(scope="module")
def reference():
    return Reference(MINI)


@pytest.fixture(scope="module")
def expected(reference):
    return [reference(conversation) for conversation in CONVERSATIONS]


@pytest.fixture(scope="module")
def one(tmp_path_factory, reference):
    """Replies of one engine: its chunks are smaller than a prompt, so the places of an image are cut in two."""
    folder = tmp_path_factory.mktemp("vllm")
    Image.open(ROOT / "examples/cat_photo.png").resize((300, 100)).save(folder / "wide.png")
    wide = [question(TEXT, data_uri(folder / "wide.png"))]
    mixed = [many("letter", "shapes"), [question("What is a star?")], many("word"), many("letters"), many("word"), wide]
    pixels = reference.processor(images=[str(ROOT / "examples/word.png")])["pixel_values"]
    torch.save(reference.model.get_image_features(pixels).pooler_output.detach(), folder / "embeds.pt")
    prompt = reference.processor.prompt(many("word"))[0]
    batches = [
        {"conversations": [wide]},
        {"conversations": CONVERSATIONS},
        {"conversations": mixed},
        {"embeds": [[prompt, str(folder / "embeds.pt")]]},
        {"conversations": [many("word", "word", "word", "word", "word")]},
        {"conversations": [[question(TEXT, NO_IMAGE)]]},
        {"conversations": CONVERSATIONS},
    ]
    found = run(
        folder,
        MINI,
        batches,
        pixels=folder / "pixels.pt",
        max_num_batched_tokens=80,
        max_num_seqs=8,
        block_size=32,
        enable_mm_embeds=True,
        limit_mm_per_prompt={"image": 4},
    )
    names = ("wide", "first", "mixed", "embeds", "too_many", "no_image", "again")
    return SimpleNamespace(folder=folder, mixed_in=mixed, wide_in=wide, **dict(zip(names, found, strict=True)))


def test_replies_in_chunks_equal_those_of_generate(one, expected):
    assert [compared(reply) for reply in one.first] == expected
    assert {reply["reason"] for reply in one.first} == {"stop"}


def test_pixels_are_padded_and_equal_ours(one, reference):
    (ours,) = reference.processor(images=[str(one.folder / "wide.png")])["pixel_values"]
    (theirs,) = torch.load(one.folder / "pixels.pt")
    assert torch.equal(theirs, ours) and not ours[:, 0].any()


def test_several_images_and_no_image(one, reference):
    assert [compared(reply) for reply in one.mixed] == [reference(conversation) for conversation in one.mixed_in]
    assert one.mixed[2]["tokens"] != one.mixed[3]["tokens"], "the same text with another image"


def test_image_embeddings_stand_for_an_image(one, reference):
    assert [compared(reply) for reply in one.embeds] == [reference(many("word"))]


def test_refused_requests_leave_the_engine_working(one, expected):
    assert "At most 4 image(s)" in one.too_many
    assert "cannot identify image" in one.no_image or "image" in one.no_image
    assert [compared(reply) for reply in one.again] == expected


def test_prefixes_are_shared(one):
    assert all(reply["cached"] >= 64 for reply in one.again)


@pytest.fixture(scope="module")
def apple(tmp_path_factory):
    """The mini as Apple writes folders: no ``<image>``, no chat template, another end token, none in generation."""
    folder = tmp_path_factory.mktemp("apple") / "mini"
    fastvlm.convert(MINI, folder, to="llava_qwen2")
    for name in ("chat_template.jinja", "preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 2.0}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<image>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    content = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in content.items() if "image" not in json.dumps([key, value])}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kept, "eos_token": "<|endoftext|>"}))
    return folder


def test_apples_folder_in_float16(tmp_path, apple, expected):
    (found,) = run(tmp_path, apple, [{"conversations": CONVERSATIONS}], dtype="float16")
    assert [compared(reply) for reply in found] == expected


def test_another_size_in_bfloat16_without_caches(tmp_path):
    small = Reference(MINI, image_size=256)
    caches = {"mm_processor_cache_gb": 0, "enable_prefix_caching": False}
    size = {"mm_processor_kwargs": {"image_size": 256}}
    (found,) = run(tmp_path, MINI, [{"conversations": CONVERSATIONS}], dtype="bfloat16", **caches, **size)
    wanted = [small(conversation) for conversation in CONVERSATIONS]
    assert [reply["prompt"] for reply in found] == [one["prompt"] for one in wanted]
    assert [reply["text"] for reply in found] == [one["text"] for one in wanted]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, reference):
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    targets = r".*language_model.*\.(q_proj|v_proj|up_proj)"  # a regular expression, as `fastvlm train` writes it
    model, _ = fastvlm.load(MINI, dtype=torch.float32)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.15)
    wrapped.save_pretrained(folder)
    return folder


def test_an_adapter_of_the_decoder(tmp_path, reference, expected, adapter):
    batches = [{"conversations": CONVERSATIONS, "adapter": str(adapter)}, {"conversations": CONVERSATIONS}]
    adapted, base = run(tmp_path, MINI, batches, enable_lora=True, max_lora_rank=8)
    merged = merge_adapter(reference.model, adapter)
    wanted = [reference(conversation, merged) for conversation in CONVERSATIONS]
    assert [compared(reply) for reply in adapted] == wanted
    assert [compared(reply) for reply in base] == expected != wanted


def test_text_alone_needs_no_encoder(tmp_path, reference):
    asked = [question("What is a star?")]
    batches = [{"conversations": [asked]}, {"conversations": [many("word")]}]
    (reply,), refused = run(tmp_path, MINI, batches, limit_mm_per_prompt={"image": 0})
    assert compared(reply) == reference(asked)
    assert "At most 0 image(s)" in refused


def test_weights_of_fastvlm_quantize_are_refused(tmp_path):
    quantize(MINI, tmp_path / "rounded", QuantizationOptions(bits=8))
    with pytest.raises(AssertionError, match="which vLLM does not read"):
        run(tmp_path, tmp_path / "rounded", [])


def test_a_quantized_decoder(tmp_path, expected):
    """Its activations are rounded as well, so a reply may differ in a word."""
    folder = compressed_tensors_folder.write(MINI, tmp_path / "int8")
    (found,) = run(tmp_path, folder, [{"conversations": CONVERSATIONS}])
    assert [reply["prompt"] for reply in found] == [one["prompt"] for one in expected]
    assert sum(reply["text"] == one["text"] for reply, one in zip(found, expected, strict=True)) >= 6
