"""Writes a small part of the tests as files, so that any machine can score the shipped checkpoint in a minute.

    python -m fastvlm_recipes.mini.freeze --out src/fastvlm/evaluation/mini_eval

The first questions of each test whose image is at most MOST_BYTES as PNG (this leaves out images with noise in
every pixel); easy-VQA's images are kept at their own 64 px.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from PIL import Image

from fastvlm_recipes.mini.benchmark import Item, make_items

COUNTS = {
    "easy_vqa": 50,
    "colours": 30,
    "shapes": 30,
    "unseen_pairs": 20,
    "counts_1_6": 30,
    "letters_digits_unseen_fonts": 30,
    "words3_unseen_fonts": 10,
    # The second edition's; the 200 above stay as they are.
    "words_unseen_fonts": 24,
    "receipt_total_unseen_layouts": 24,
    "chart_largest": 24,
    "emoji_seen_styles": 20,
    "emoji_unseen_style": 20,
    "fashion_mnist": 20,
    "unanswerable": 14,
    "false_premises": 20,
    "answerable_twins": 14,
}
MOST_BYTES = 14_000


def as_png(image: Image.Image) -> bytes:
    """The image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def small_ones(name: str, count: int) -> list[tuple[Item, bytes]]:
    """The first `count` items of a test with small images."""
    found: list[tuple[Item, bytes]] = []
    for item in make_items(name, 3 * count):
        png = item.source if item.source is not None else as_png(item.image)
        if len(png) <= MOST_BYTES and len(found) < count:
            found.append((item, png))
    return found


def main() -> None:
    """Write the images and questions.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/fastvlm/evaluation/mini_eval"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, count in COUNTS.items():
        for index, (item, png) in enumerate(small_ones(name, count)):
            file = f"{name}_{index:02d}.png"
            (out / file).write_bytes(png)
            rows.append({"test": name, "image": file, "question": item.question, "answers": item.answers})
    (out / "questions.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(rows)} questions, {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.2f} MB -> {out}")


if __name__ == "__main__":
    main()
