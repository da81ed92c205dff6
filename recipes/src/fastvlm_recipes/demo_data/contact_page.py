"""README.md and index.html of a folder of shards: how it was drawn, and some images with their questions."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator
from pathlib import Path

from fastvlm.storage.whole_files import write_file
from fastvlm_recipes.demo_data.drawing_plan import DrawingPlan, shard_name
from fastvlm_recipes.demo_data.kinds import Sample, draw_sample, kind_of
from fastvlm_recipes.demo_data.shard_writing import encoded, record_of

EACH = 6  # images of each kind on the page
SEARCHED = 3000  # among the first so many images
_STYLE = """body{font:16px/1.4 system-ui,sans-serif;margin:2rem;max-width:1100px}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(256px,1fr));gap:1.2rem}
figure{margin:0}img{width:256px;height:256px;border:1px solid #ccc}
dt{color:#555}dd{margin:0 0 .3rem;white-space:pre-line}"""
ABOUT = {
    "shapes": "colored shapes: color, shape, number, place, comparison",
    "letter": "one letter or digit",
    "word": "a word, a number or a price to read",
    "grid": "letters in a grid, each with its color",
    "lines": "words one below the other",
    "emoji": "name, number, place (Noto: Apache-2.0, Fluent: MIT, Twemoji: CC-BY-4.0; held out OpenMoji: CC-BY-SA-4.0)",
    "receipt": "receipts: total, date, shop, items and prices, JSON",
    "chart": "bar charts: largest, smallest, values, number, title",
    "fashion": "Fashion-MNIST's garments (MIT)",
    "small": "a level word in small or large letters",
    "plain": "equal shapes in a grid",
    "easy": "easy-VQA's images and questions (MIT)",
}


def write_pages(target: Path, plan: DrawingPlan) -> None:
    """Write both files; each is replaced as a whole."""
    for name, text in (("README.md", _readme(plan)), ("index.html", _page(plan))):
        write_file(target / name, text)


def _readme(plan: DrawingPlan) -> str:
    split = "train" if plan.split == "train" else "heldout"
    mix = ",".join(f"{kind}={share}" for kind, share in plan.mix.items())
    example = draw_sample(plan.seed, plan.split, 0, plan.mix)
    record = json.dumps(record_of("000000", f"000000.{encoded(example.image)[0]}", example), ensure_ascii=False)
    rows = "\n".join(f"| {kind} | {number} | {ABOUT[kind]} |" for kind, number in plan.kinds().items())
    fonts = (
        "Fonts, words, pairs of color and shape, layouts and styles are those of training."
        if split == "train"
        else "Fonts, words, layouts and styles are those that training never sees."
    )
    return f"""# Images drawn by `fastvlm demo-data`

{plan.num_images} images of 256 x 256 px with questions and answers, in {plan.num_shards} tar files
(`{shard_name(0)}` ...). `index.html` shows some of them. {fonts}

    fastvlm demo-data OUT --images {plan.num_images} --seed {plan.seed} --shards-of {plan.shard_size} \\
      --split {split} --mix {mix}

draws the same again on a machine with the same fonts and icons.

| kind | images | |
| --- | ---: | --- |
{rows}

Each image (`000000.png` or `.jpg`) has a record (`000000.json`), in LLaVA's format:

    {record}
"""


def _samples(plan: DrawingPlan) -> Iterator[tuple[int, Sample]]:
    """The first EACH images of each kind, by kind."""
    for kind in plan.mix:
        found = 0
        for index in range(min(plan.num_images, SEARCHED)):
            if found < EACH and kind_of(plan.seed, plan.split, index, plan.mix) == kind:
                found += 1
                yield index, draw_sample(plan.seed, plan.split, index, plan.mix)


def _page(plan: DrawingPlan) -> str:
    figures = "\n".join(_figure(index, sample) for index, sample in _samples(plan))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>fastvlm demo-data</title><style>{_STYLE}</style>
<h1>Images drawn by fastvlm demo-data</h1>
<p>{plan.num_images} images, seed {plan.seed}. The first of each kind:</p>
<main>
{figures}
</main></html>
"""


def _figure(index: int, sample: Sample) -> str:
    suffix, content = encoded(sample.image)
    source = f"data:image/{'png' if suffix == 'png' else 'jpeg'};base64,{base64.b64encode(content).decode()}"
    turns = "".join(f"<dt>{html.escape(q)}</dt><dd>{html.escape(a)}</dd>" for q, a in sample.turns)
    alt = html.escape(f"{sample.kind}, number {index}")
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{alt}</figcaption><dl>{turns}</dl></figure>'
