"""READMEs of exported folders: the lines that ask a question there, and what was checked."""

from __future__ import annotations

from collections.abc import Sequence

from fastvlm.export.checks import Check
from fastvlm.export.source import ExportSource


def onnx_readme(source: ExportSource, variants: Sequence[str], checks: Sequence[Check], *, has_page: bool) -> str:
    """The README of ``--to onnx``."""
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

{checks_table(checks)}"""


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
    """A Markdown table of differences, or the reason why there are none."""
    if not checks:
        return f"The files were not run here: {not_run}\n"
    rows = [
        f"| {check.variant} | {check.features:.1e} | {check.logits:.1e} | {check.num_equal_tokens} of "
        f"{check.num_tokens} |"
        for check in checks
    ]
    names = ", ".join(checks[0].images)
    return "\n".join(
        [
            f"Largest differences over the largest numbers, in float32, on {names}; greedy tokens up to the first that",
            "differs.",
            "",
            "| files | visual tokens | logits | equal tokens |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
