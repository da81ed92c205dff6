"""Ask one question with transformers alone, as its documentation does: the peer of `fastvlm ask`.

python -m fastvlm.bench.cold_transformers FOLDER IMAGE QUESTION NEW_TOKENS DEVICE DTYPE
"""

from __future__ import annotations

import sys
from typing import Any

from fastvlm.bench.peers_folder import add_peers_folder, prepare_torchvision
from fastvlm.processing.tokenizer import TokenizerLike


class _ShowAtOnce:
    """A streamer that writes each token as it comes; transformers' own waits for the end of a word."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer, self._is_prompt_next = tokenizer, True

    def put(self, value: Any) -> None:
        if not self._is_prompt_next:
            sys.stdout.write(self._tokenizer.decode(value.tolist(), skip_special_tokens=True))
            sys.stdout.flush()
        self._is_prompt_next = False

    def end(self) -> None:
        sys.stdout.write("\n")


def main(folder: str, image: str, question: str, new_tokens: str, device: str, dtype: str) -> None:
    """Answer on stdout."""
    add_peers_folder()
    prepare_torchvision()
    from PIL import Image
    from transformers import AutoProcessor, FastVlmForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = FastVlmForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device)
    content = [{"type": "image", "image": Image.open(image).convert("RGB")}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    model.generate(**inputs, max_new_tokens=int(new_tokens), do_sample=False, streamer=_ShowAtOnce(processor.tokenizer))


if __name__ == "__main__":
    main(*sys.argv[1:])
