"""READMEs of exported folders: the lines that ask a question there, and what was checked."""

from __future__ import annotations

from collections.abc import Sequence

from fastvlm.export.checks import Check
from fastvlm.export.source import ExportSource


def onnx_readme(source: ExportSource, variants: Sequence[str], checked: str, *, has_page: bool) -> str:
    """The README of ``--to onnx``; `checked` is a text of :func:`checks_table`."""
    page = (
        "\n## In a browser, without a server\n\n`index.html` answers about a dropped image; nothing leaves the "
        "browser. Serve the folder as static files:\n\n    python -m http.server --directory .\n"
        if has_page
        else ""
    )
    return f"""# {source.folder.name} as ONNX

Written by `fastvlm export --to onnx` for images of {source.side_px} x {source.side_px} px.
Files: {", ".join(variants)}.

## JavaScript (transformers.js 4)

```js
{JAVASCRIPT}```

Images must be padded to a black square before they are resized, as above: `padded`. The processor pads by itself too,
but after resizing, which shifts edges by up to half a pixel, and that can change an answer.

## Python

```sh
pip install 'fastvlm[onnx]'
fastvlm ask photo.jpg "What is this?" --model . --runtime onnx
```
{page}
## Checked against the checkpoint

{checked}"""


JAVASCRIPT = """\
import { AutoModelForImageTextToText, AutoProcessor, RawImage } from "@huggingface/transformers";

const processor = await AutoProcessor.from_pretrained(FOLDER);
const model = await AutoModelForImageTextToText.from_pretrained(FOLDER); // { device: "webgpu" } in a browser
async function padded(image) {
  const side = Math.max(image.width, image.height);
  const [left, top] = [Math.floor((side - image.width) / 2), Math.floor((side - image.height) / 2)];
  return image.rgb().pad([left, side - image.width - left, top, side - image.height - top]);
}
const image = await padded(await RawImage.read("photo.jpg"));
const messages = [{ role: "user", content: [{ type: "image" }, { type: "text", text: "What is this?" }] }];
const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
const inputs = await processor(image, prompt, { add_special_tokens: false });
const output = await model.generate({ ...inputs, max_new_tokens: 256 });
const reply = output.slice(null, [inputs.input_ids.dims.at(-1), null]);
console.log(processor.batch_decode(reply, { skip_special_tokens: true })[0].trim());
"""


def checks_table(checks: Sequence[Check], not_run: str = "") -> str:
    """A Markdown table of differences, and the reason why files are missing there."""
    missing = f"Not run here: {not_run}.\n" if not_run else ""
    if not checks:
        return missing
    lines = [
        f"Largest differences over the largest numbers, in float32, on {', '.join(checks[0].images)};",
        "greedy tokens up to the first that differs.",
        "",
        "| files | visual tokens | logits | equal tokens |",
        "| --- | --- | --- | --- |",
        *(
            f"| {check.variant} | {check.features:.1e} | {check.logits:.1e} | {check.num_equal_tokens} of "
            f"{check.num_tokens} |"
            for check in checks
        ),
        "",
        missing,
    ]
    return "\n".join(lines).rstrip() + "\n"


def mlx_readme(source: ExportSource) -> str:
    """The README of ``--to mlx``."""
    return f"""# {source.folder.name} for MLX

Written by `fastvlm export --to mlx`, bfloat16, for images of {source.side_px} x {source.side_px} px. On a Mac:

```sh
pip install mlx-vlm
python -m mlx_vlm.generate --model . --image photo.jpg --prompt "What is this?" --max-tokens 100
python -m mlx_vlm.convert --hf-path . --mlx-path ../quantized -q --q-bits 4 --q-group-size 64
```

mlx-vlm pads images to a black square before it resizes them, as in training. It was never run on a Mac here. Its
encoder has the published widths, so other encoders, such as the shipped mini's, do not open there.
"""


def gguf_readme(source: ExportSource, variants: Sequence[str], checked: str) -> str:
    """The README of ``--to gguf``; `checked` is a text of :func:`checks_table`."""
    files = ", ".join(f"`decoder-{variant}.gguf`" for variant in variants)
    return f"""# The decoder of {source.folder.name} for llama.cpp

Written by `fastvlm export --to gguf`: {files}, architecture `qwen2`, without the image encoder.

**Not for Ollama, LM Studio or llama-server yet:** llama.cpp has no FastViTHD projector, so these see no images. A
program over libllama feeds the visual tokens itself, in `llama_batch.embd`, with the text's embeddings around them.
These lines do so by the library inside `xllamacpp` (`pip install xllamacpp`), or by another one with
`LibLlama(..., library=PATH)`:

```python
{GGUF_PYTHON}```

The tokenizer in the files is the checkpoint's, but llama.cpp does not normalize text to Unicode's NFC as it does.

## Checked against the checkpoint

The visual tokens are the checkpoint's own.

{checked}"""


GGUF_PYTHON = """\
import torch
from fastvlm.backends.generators import finished
from fastvlm.backends.local import make_backend
from fastvlm.export.libllama import LibLlama
from fastvlm.model.joint import join_image_and_text
from fastvlm.opening import open_checkpoint

checkpoint = open_checkpoint(CHECKPOINT)  # what was exported: "mini", a folder or a Hub name
backend, processor = make_backend(checkpoint, dtype=torch.float32, num_slots=1), checkpoint.processor
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
ids = processor.token_ids(processor.prompt(messages)[0], 1)
pixels = processor.image_processor("photo.jpg")["pixel_values"]  # padded to a black square, then resized
places = torch.tensor([ids]) == checkpoint.config.image_token_index
with torch.inference_mode():
    embeds = join_image_and_text(backend.embed(ids)[None], finished(backend.encode(pixels)), places)[0]

with LibLlama("decoder-q8.gguf") as llama:
    reply = [int(llama.prefill(embeds.numpy()).argmax())]  # embeds (tokens, width) go into llama_batch.embd
    while reply[-1] not in checkpoint.stop_token_ids and len(reply) < 256:
        reply.append(int(llama.decode(reply[-1], len(ids) + len(reply) - 1).argmax()))
print(processor.tokenizer.decode(reply, skip_special_tokens=True))
"""


def openvino_readme(source: ExportSource, variant: str, checked: str) -> str:
    """The README of ``--to openvino``; `checked` is a text of :func:`checks_table`."""
    return f"""# {source.folder.name} for OpenVINO, {variant}

Written by `fastvlm export --to openvino` for images of {source.side_px} x {source.side_px} px.

```python
{OPENVINO_PYTHON}```

The pipeline crops the middle of an image, so hand over a square one padded with black, as above. Give the plain
question: the pipeline puts the image before it. On a GPU set `INFERENCE_PRECISION_HINT` to `f32` if answers are odd:
the encoder's numbers come near the end of float16.

## Checked against the checkpoint

{checked}"""


OPENVINO_PYTHON = """\
import numpy as np
import openvino as ov
import openvino_genai
from PIL import Image, ImageOps

def padded(path):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    square = Image.new("RGB", (max(image.size),) * 2)
    square.paste(image.convert("RGB"), ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return ov.Tensor(np.array(square)[None])

pipeline = openvino_genai.VLMPipeline(".", "CPU")
print(pipeline.generate("What is this?", images=[padded("photo.jpg")], max_new_tokens=256))
"""
