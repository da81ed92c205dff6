"""README of folders of ``--to executorch``."""

from __future__ import annotations

from collections.abc import Mapping

from fastvlm.export.source import ExportSource
from fastvlm.processing.prompt import IMAGE_TOKEN

_QUESTION = "What is this?"


def executorch_readme(
    source: ExportSource, context: int, counts: Mapping[str, Mapping[str, tuple[int, int]]], checked: str
) -> str:
    """The README of ``--to executorch``.

    Args:
        source: what was exported.
        context: tokens of the cache.
        counts: variant -> method -> (calls of XNNPACK, other operations).
        checked: a text of :func:`checks_table`.
    """
    side, num_tokens, width = source.side_px, source.tokens_per_image, source.width
    file = f"model-{next(iter(counts))}.pte"
    files = ", ".join(f"`model-{variant}.pte`" for variant in counts)
    return f"""# {source.folder.name} for ExecuTorch

Written by `fastvlm export --to executorch`: {files}, for images of {side} x {side} px and conversations
of at most {context} tokens, of which an image takes {num_tokens}. Computed by XNNPACK on CPUs.

## Python, to try it

```python
{python_lines(source, file)}```

## C++, Android, iOS

The file is for ExecuTorch's multimodal runner (`extension/llm/runner`, version 1.5), which Android's `LlmModule` and
iOS's `MultimodalRunner` wrap. Give it this file, `tokenizer.json` beside it, and three inputs in this order: the text
before the image, the image, the text after it, as above. The image is float32, 3 x {side} x {side}, RGB, channels
first, values from 0 to 1, without mean and deviation, and **padded to a black square before it is resized**.
Temperature 0 is greedy. Only the Python binding of that runner was run; nothing was run on a phone.

- `vision_encoder`: pixels (1, 3, {side}, {side}) float32 -> visual tokens (1, {num_tokens}, {width}).
- `token_embedding`: ids (1, T) int64 -> (1, T, {width}).
- `text_decoder`: embeddings (1, T, {width}) and their positions (T,) int64 -> logits (1, V) of the last token. Its
  cache is inside; a conversation starts anew at position 0.

| file | method | calls of XNNPACK | other operations |
| --- | --- | --- | --- |
{_rows(counts)}

## Checked against the checkpoint

{checked}"""


def python_lines(source: ExportSource, file: str) -> str:
    """A Python program that asks one question by ExecuTorch's runner; run in the folder."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}]}]
    before, after = source.checkpoint.processor.prompt(messages)[0].split(IMAGE_TOKEN)
    return f"""\
import numpy as np
import torch
from PIL import Image, ImageOps
from executorch.extension.llm.runner import GenerationConfig, MultimodalRunner, make_image_input, make_text_input

def padded(path):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    square = Image.new("RGB", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    square = square.resize(({source.side_px}, {source.side_px}), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float().contiguous() / 255

runner = MultimodalRunner("{file}", "tokenizer.json")
before, after = {before!r}, {after!r}
inputs = [make_text_input(before), make_image_input(padded("photo.jpg")), make_text_input(after)]
config = GenerationConfig(echo=False, temperature=0.0, max_new_tokens=256)
answer = runner.generate_text(inputs, config)  # ends with the end token's text; the runner prints it by itself, too
runner.reset()  # before another conversation
"""


def _rows(counts: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    return "\n".join(
        f"| {variant} | {method} | {delegated} | {others} |"
        for variant, methods in counts.items()
        for method, (delegated, others) in methods.items()
    )
