"""The shipped checkpoint opens in transformers' own FastVLM, with the same logits and the same greedy text."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import fastvlm

ROOT = Path(__file__).parents[2]
MINI = ROOT / "src" / "fastvlm" / "weights" / "mini"
QUESTIONS = {
    "red_star.png": "What shape is this?",
    "word.png": "What does it say?",
    "shapes.png": "Describe the image.",
}


@pytest.fixture(scope="module")
def ours():
    return fastvlm.load("mini", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def theirs():
    from transformers import AutoTokenizer
    from transformers.models.fast_vlm import FastVlmForConditionalGeneration

    model, info = FastVlmForConditionalGeneration.from_pretrained(MINI, dtype=torch.float32, output_loading_info=True)
    assert not any(info.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return model.eval(), AutoTokenizer.from_pretrained(MINI)


@pytest.mark.parametrize(("name", "question"), QUESTIONS.items())
def test_same_logits_and_same_greedy_text(name, question, ours, theirs):
    model, processor = ours
    their_model, their_tokenizer = theirs
    with Image.open(ROOT / "examples" / name) as image:
        content = [{"type": "image", "image": image.convert("RGB")}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        gap = (model(**inputs).logits - their_model(**inputs).logits).abs().max()
        reply = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        their_reply = their_model.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert gap < 1e-3
    assert reply.tolist() == their_reply.tolist()
    new = reply[0, inputs["input_ids"].shape[1] :]
    said = their_tokenizer.decode(new, skip_special_tokens=True)
    assert said == processor.decode(new, skip_special_tokens=True)
    assert said.strip()
