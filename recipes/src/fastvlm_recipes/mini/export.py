"""Writes the tests as files that `fastvlm eval --suite mini --data FOLDER` takes: images and questions.jsonl.

    python -m fastvlm_recipes.mini.export --out FOLDER [--tests NAME ...] [--n 400]

The same questions as fastvlm_recipes.mini.evaluate asks; it needs the same fonts and icon sets.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastvlm_recipes.mini.benchmark import TESTS, make_items
from fastvlm_recipes.mini.evaluate import num_items
from fastvlm_recipes.mini.freeze import as_png


def export(name: str, count: int, out: Path) -> list[str]:
    """The lines of one test; its images are written."""
    lines = []
    for index, item in enumerate(make_items(name, count)):
        file = f"{name}_{index:04d}.png"
        (out / file).write_bytes(as_png(item.image))
        row = {"id": f"{name}-{index}", "test": name, "image": file, "question": item.question}
        lines.append(json.dumps({**row, "answers": list(item.answers)}, ensure_ascii=False))
    return lines


def main() -> None:
    """Write a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder, made if it is not there")
    parser.add_argument("--tests", nargs="+", choices=sorted(TESTS), default=list(TESTS))
    parser.add_argument("--n", type=int, default=400, help="questions a test (easy_vqa: 1000 when 400 or more)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for name in args.tests:
        lines += export(name, num_items(name, args.n), args.out)
    (args.out / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} questions -> {args.out}")


if __name__ == "__main__":
    main()
