"""READMEs of Core ML exports: the packages' inputs and outputs, the lines that ask a question, and what was checked."""

from __future__ import annotations

from collections.abc import Sequence

from fastvlm.export.coreml_graphs import capacity_of
from fastvlm.export.source import ExportSource

QUESTION = "What is this?"
_APP = """
## Apple's app

`app/` is the model folder of Apple's FastVLM app (https://github.com/apple/ml-fastvlm, `app/FastVLM/model`):
`fastvithd.mlpackage` is the encoder alone, in float32 as Apple exports it; projector and decoder are MLX weights in
float16. Copy the contents there and build the app. Its code crops images to their middle square.
"""


def coreml_readme(source: ExportSource, variants: Sequence[str], checked: str) -> str:
    """The README of ``--to coreml``."""
    packages = [variant for variant in variants if variant != "app"]
    side, parts = source.side_px, _packages(source, packages) if packages else ""
    parts += _APP if "app" in variants else ""
    return f"""# {source.folder.name} for Core ML

Written by `fastvlm export --to coreml` for images of {side} x {side} px. It was never run on a Mac or a phone.
{parts}
## Checked against the checkpoint

The packages were read back and computed operation by operation with PyTorch, rounded to float16 where they say so. This
checks the conversion, not Core ML.

{checked}"""


def _packages(source: ExportSource, variants: Sequence[str]) -> str:
    tokens, width, capacity = source.tokens_per_image, source.width, capacity_of(source)
    vocabulary = source.checkpoint.config.text_config.vocab_size
    side, folders = source.side_px, " and ".join(f"`{variant}/`" for variant in variants)
    return f"""
## Packages of {folders}

| package | inputs | outputs |
| --- | --- | --- |
| `vision_encoder` | `image`: RGB, {side} x {side} px | `image_features` (1, {tokens}, {width}) |
| `token_embedding` | `input_ids` int32 (1, T) | `inputs_embeds` (1, T, {width}) |
| `decoder` | `inputs_embeds`, `mask` (1, 1, T, S), the state | `logits` (1, 1, {vocabulary}) of the last token |

They need iOS 17 or macOS 14, the decoder iOS 18 or macOS 15.
S counts the T tokens and those before them, at most {capacity}. The mask is added to attention scores: 0 where a token
attends, -10000 where it does not. Norms and rotary angles are float32 in `fp16/` too, and keys and values are float16
everywhere. On a Mac, in Python (`pip install coremltools pillow tokenizers`); Swift makes the same calls:

```python
{python_lines(source, variants[0])}```
"""


def python_lines(source: ExportSource, variant: str) -> str:
    """A program that asks a question about ``photo.jpg``."""
    checkpoint = source.checkpoint
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt, _ = checkpoint.processor.prompt([{"role": "user", "content": content}])
    dtype = "float16" if variant == "fp16" else "float32"
    return f"""\
import coremltools as ct
import numpy as np
from PIL import Image, ImageOps
from tokenizers import Tokenizer

PROMPT = {prompt!r}
SIDE_PX, TOKENS_PER_IMAGE, IMAGE_ID = {source.side_px}, {source.tokens_per_image}, {checkpoint.config.image_token_index}
STOP_IDS = {sorted(checkpoint.stop_token_ids)}

image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
square = Image.new("RGB", (max(image.size),) * 2)  # black, then resized: as in training
square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
square = square.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)

names = ("vision_encoder", "token_embedding", "decoder")
vision, embedding, decoder = (ct.models.MLModel(f"{variant}/{{name}}.mlpackage") for name in names)
tokenizer = Tokenizer.from_file("tokenizer.json")
ids = tokenizer.encode(PROMPT.replace("<image>", "<image>" * TOKENS_PER_IMAGE)).ids
embeds = embedding.predict({{"input_ids": np.array([ids], np.int32)}})["inputs_embeds"]
embeds[0, np.array(ids) == IMAGE_ID] = vision.predict({{"image": square}})["image_features"][0]
state, start, reply = decoder.make_state(), 0, []
while len(reply) < 256:
    length = embeds.shape[1]
    mask = np.triu(np.full((length, start + length), -1e4, np.{dtype}), start + 1)[None, None]
    logits = decoder.predict({{"inputs_embeds": embeds, "mask": mask}}, state)["logits"]
    reply.append(int(logits[0, 0].argmax()))
    if reply[-1] in STOP_IDS:
        break
    start += length
    embeds = embedding.predict({{"input_ids": np.array([reply[-1:]], np.int32)}})["inputs_embeds"]
print(tokenizer.decode(reply))
"""
