"""`fastvlm.register` and transformers' Auto classes, in a process of its own (registering cannot be undone)."""

import subprocess
import sys

import apple_layout

import fastvlm

SCRIPT = """
import sys, fastvlm
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
ours, apple = sys.argv[1:]
assert type(AutoConfig.from_pretrained(ours)).__module__.startswith("transformers.")
fastvlm.register()
fastvlm.register()
for folder in (ours, apple):
    assert type(AutoConfig.from_pretrained(folder)) is fastvlm.FastVlmConfig
    assert type(AutoModel.from_pretrained(folder)) is fastvlm.FastVlmModel
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert type(model) is fastvlm.FastVlmForConditionalGeneration
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert model.config.text_config.tie_word_embeddings
# The files that we write name transformers' own processor, so that plain transformers opens them.
assert type(AutoProcessor.from_pretrained(ours)).__name__ == "LlavaProcessor"
assert type(AutoProcessor.from_pretrained(apple)) is fastvlm.FastVlmProcessor
print("ok")
"""


def test_auto_classes_find_ours_after_registering_and_not_before(tmp_path):
    model = apple_layout.tokenized_model(text={"tie_word_embeddings": True}, vision={"inference_mode": False})
    # Only the tensors tell the encoder's form and widths, and AutoConfig does not see them.
    apple = apple_layout.write_apple_folder(
        tmp_path / "apple", model, edit=lambda t: t.pop("lm_head.weight"), tie_word_embeddings=True
    )
    fastvlm.convert(apple, tmp_path / "ours")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "ours"), str(apple)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("ok"), done.stderr[-3000:]
