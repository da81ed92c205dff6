"""The mini's score table: greedy answers on the frozen tests, with the blind and the majority score.

    python -m fastvlm_recipes.mini.evaluate --model FOLDER [--json FILE] [--tests NAME ...] [--n 400] [--bits 16|8|4]

It uses the public interface (`fastvlm.load`, the processor, `generate`; with `--bits` the engine with
weights of that many bits). It needs the held-out fonts and icon sets of README.md; the frozen subset in
src/fastvlm/evaluation/mini_eval needs nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

import fastvlm
from fastvlm.evaluation.metrics.text_match import normalized
from fastvlm_recipes.mini.benchmark import TESTS, Item, gray, make_items
from fastvlm_recipes.mini.scoring import Score, character_error_rate, majority, score

Ask = Callable[[Sequence[Item]], list[str]]

SIZES = {"easy_vqa": 1000}
MOST_TOKENS = 24
REFUSAL = "there is no"
READING = (
    "letters_digits_unseen_fonts", "words3_unseen_fonts", "words4_5_unseen_fonts", "words_unseen_fonts",
    "receipt_total_unseen_layouts", "chart_largest",
)  # fmt: skip
ANSWERABLE = (
    "colours", "shapes", "letters_digits_unseen_fonts", "words3_unseen_fonts", "emoji_seen_styles", "answerable_twins",
)  # fmt: skip


def num_items(name: str, asked: int) -> int:
    """Number of questions of a test: `asked`, or more for those in SIZES unless it is a small run."""
    return max(asked, SIZES.get(name, 0)) if asked >= 400 else asked


class Asked(Protocol):
    """A question about an image."""

    @property
    def image(self) -> Image.Image:
        """The image, RGB."""

    @property
    def question(self) -> str:
        """The text of the question."""


def messages_of(item: Asked) -> list[dict[str, Any]]:
    """One user turn."""
    content = [{"type": "image", "image": item.image}, {"type": "text", "text": item.question}]
    return [{"role": "user", "content": content}]


def ask_engine(engine: fastvlm.Engine, items: Sequence[Asked]) -> list[str]:
    """Greedy answers of an engine, in order."""
    params = fastvlm.SamplingParams(max_new_tokens=MOST_TOKENS)
    return [engine.generate(messages_of(item), params).text.strip() for item in items]


@torch.inference_mode()
def ask(
    model: fastvlm.FastVlmForConditionalGeneration,
    processor: fastvlm.FastVlmProcessor,
    items: Sequence[Item],
    batch: int = 20,
) -> list[str]:
    """Greedy answers of `generate`, in order."""
    answers: list[str] = []
    for start in range(0, len(items), batch):
        messages = [messages_of(item) for item in items[start : start + batch]]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=MOST_TOKENS)
        replies = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [reply.strip() for reply in replies]
    return answers


def as_row(result: Score) -> dict[str, float]:
    """The share with its interval."""
    low, high = result.interval()
    return {"share": result.share, "low": low, "high": high, "n": result.n}


def blind_answers(asked: Ask, items: Sequence[Item]) -> list[str]:
    """The answers to the same questions about a gray image, each question asked once."""
    questions = {item.question: gray(item) for item in items}
    answers = dict(zip(questions, asked(list(questions.values())), strict=True))
    return [answers[item.question] for item in items]


def evaluate(asked: Ask, name: str, count: int) -> dict[str, Any]:
    """One line of the table."""
    items = make_items(name, count)
    accepted = [item.answers for item in items]
    answers = asked(items)
    row: dict[str, Any] = as_row(score(answers, accepted))
    row["blind"] = score(blind_answers(asked, items), accepted).share
    row["majority"] = majority(accepted).share
    if name in READING:
        row["character_error_rate"] = character_error_rate(answers, [good[0] for good in accepted])
    if name in ANSWERABLE:
        row["false_refusals"] = sum(normalized(answer).startswith(REFUSAL) for answer in answers) / len(answers)
    row["wrong"] = [
        [good[0], answer] for good, answer in zip(accepted, answers, strict=True) if not _same(answer, good)
    ][:8]
    return row


def _same(answer: str, good: Sequence[str]) -> bool:
    return score([answer], [good]).right == 1


def as_table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown, percentages."""
    lines = ["| test | n | score | 95 % interval | blind | majority | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, row in rows.items():
        notes = [
            f"{key.replace('_', ' ')} {100 * row[key]:.1f} %"
            for key in ("character_error_rate", "false_refusals")
            if key in row
        ]
        lines.append(
            f"| {name} | {row['n']} | {100 * row['share']:.1f} % | {100 * row['low']:.1f}-{100 * row['high']:.1f} | "
            f"{100 * row['blind']:.1f} % | {100 * row['majority']:.1f} % | {', '.join(notes)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print a JSON line per test as it is done, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="folder or name")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--tests", nargs="+", choices=sorted(TESTS), default=list(TESTS))
    parser.add_argument(
        "--n", type=int, default=400, help="questions a test (easy_vqa: at least 1000 when 400 or more)"
    )
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), help="ask the engine, with weights of so many bits")
    args = parser.parse_args()
    model, processor = fastvlm.load(args.model, device="cpu", dtype=torch.float32)
    asked = partial(ask, model, processor)
    if args.bits is not None:
        asked = partial(ask_engine, fastvlm.Engine.from_model(model, processor, num_slots=1, bits=args.bits))
    rows = {}
    for name in args.tests:
        rows[name] = evaluate(asked, name, num_items(name, args.n))
        print(json.dumps({name: rows[name]}, ensure_ascii=False), flush=True)
    print(as_table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
