"""The whole example: draw, measure, fine-tune, measure again, and report what was gained and what was forgotten.

    python examples/circuit_symbols/measure.py work

All results are in ``work``; a second call resumes drawing and training. What is measured
besides the circuit symbols is drawn by `fastvlm demo-data --split heldout`: as many images of each kind that this
machine can draw, with fonts, words, layouts and styles that neither the model nor the rehearsal has seen. Before and
after are asked the same questions, so the interval of the difference is that of pairs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from draw import write
from PIL import Image

from fastvlm.evaluation.metrics.text_match import normalized
from fastvlm_recipes.demo_data.kinds import MIX, lacking

RECIPE = Path(__file__).with_name("recipe.yaml").resolve()
SYMBOLS = "circuit_symbols"  # the test's name in draw.py
QUESTIONS_PER_IMAGE = 2
MOST_WORDS = 4  # of an answer: a longer one is rarely right to the letter, before or after
Z_95 = 1.96


def fastvlm(folder: Path, *words: object) -> None:
    """Run a command in `folder` and print it."""
    command = ["fastvlm", *map(str, words)]
    tell(f"$ {shlex.join(command)}")
    done = subprocess.run([sys.executable, "-m", *command], check=False, cwd=folder, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)


def tell(text: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


# Questions.


def draw_old_kinds(folder: Path, num_rehearsed: int, num_asked: int) -> None:
    """Draw the rehearsal samples, in the shares of the original training, and the questions, in equal shares."""
    fastvlm(folder, "demo-data", "rehearsal", "--images", num_rehearsed, "--seed", 3)
    absent = lacking("test")
    kinds = ",".join(f"{kind}=1" for kind in MIX if kind not in absent)
    drawn = ("demo-data", "held-out", "--split", "heldout", "--images", num_asked, "--seed", 4, "--mix", kinds)
    fastvlm(folder, *drawn)


def records_in(shards: Path) -> Iterator[tuple[dict, Image.Image]]:
    """Each record of a folder of shards with its image."""
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, content in members.items():
            if name.endswith(".json"):
                record = json.loads(content)
                yield record, Image.open(io.BytesIO(members[record["image"]]))


def short_turns(record: dict) -> list[tuple[str, str]]:
    """(question, answer) where the answer has few words."""
    texts = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
    return [(q, a) for q, a in zip(texts[::2], texts[1::2], strict=True) if len(a.split()) <= MOST_WORDS]


def write_questions(folder: Path) -> None:
    """One file with the circuit symbols' questions and those of each kind, for `fastvlm eval --task plain`."""
    rng, lines = Random(0), []
    for line in (folder / "circuits" / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        lines.append({**question, "image": f"circuits/{question['image']}"})
    (folder / "images").mkdir(exist_ok=True)
    for record, image in records_in(folder / "held-out"):
        turns = short_turns(record)
        name = f"images/{record['id']}.png"
        image.save(folder / name)
        for question, answer in rng.sample(turns, min(len(turns), QUESTIONS_PER_IMAGE)):
            lines.append({"image": name, "question": question, "answers": [answer], "test": record["kind"]})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# Before and after.


def scores_of(folder: Path) -> dict[str, dict[str, float]]:
    """Test -> question's id -> 1 for right, 0 for wrong, from what `fastvlm eval --out` keeps."""
    found: dict[str, dict[str, float]] = {}
    for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        right = normalized(one["reply"]) in map(normalized, one["answers"])
        found.setdefault(one["test"], {})[one["id"]] = float(right)
    return found


def compared(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """n, scores, difference, and half of its 95 % interval, all in points; the same questions on both sides.

    The variance of a mean of paired differences: McNemar, Psychometrika 12 (1947), 153-157, without correction.
    """
    differences = [after[name] - before[name] for name in before]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((one - mean) ** 2 for one in differences) / n
    return {
        "n": n,
        "before": 100 * sum(before.values()) / n,
        "after": 100 * sum(after.values()) / n,
        "difference": 100 * mean,
        "half": 100 * Z_95 * math.sqrt(variance / n),
    }


def comparison(before: Path, after: Path) -> dict[str, dict[str, float]]:
    """A row a test, the base's together last."""
    first, second = scores_of(before), scores_of(after)
    rows = {test: compared(first[test], second[test]) for test in sorted(first, key=lambda test: test != SYMBOLS)}
    base = [test for test in first if test != SYMBOLS]
    if base:
        old, new = ({name: right for test in base for name, right in side[test].items()} for side in (first, second))
        rows["all but the symbols"] = compared(old, new)
    return rows


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown, in percent and points."""
    lines = ["| test | n | before, % | after, % | difference, points |", "| --- | ---: | ---: | ---: | ---: |"]
    for test, row in rows.items():
        change = f"{row['difference']:+.1f} +/- {row['half']:.1f}"
        lines.append(f"| {test} | {row['n']} | {row['before']:.1f} | {row['after']:.1f} | {change} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="mini", metavar="MODEL", help="what is fine-tuned")
    parser.add_argument("--training", type=int, default=800, metavar="N", help="images of symbols to learn from")
    parser.add_argument("--rehearsal", type=int, default=4000, metavar="N", help="old images to learn with them")
    parser.add_argument("--asked", type=int, default=200, metavar="N", help="images of symbols to ask about")
    parser.add_argument("--held-out", type=int, default=1200, metavar="N", help="other images to ask about")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    args = parser.parse_args()
    model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model
    folder, start = args.folder, time.perf_counter()
    write(folder / "circuits", args.training, args.asked, seed=0)
    draw_old_kinds(folder, args.rehearsal, args.held_out)
    write_questions(folder)
    asking = ("eval", "--task", "plain", "--data", "questions.jsonl", "-m", model, "--restart")
    fastvlm(folder, *asking, "--out", "before")
    training_start = time.perf_counter()
    changes = [word for one in args.set for word in ("--set", one)]
    fastvlm(folder, "train", RECIPE, "-m", model, "--out", "run", "--resume", *changes)
    training_min = (time.perf_counter() - training_start) / 60
    fastvlm(folder, *asking, "--adapter", "run/adapter", "--out", "after")
    rows = comparison(folder / "before", folder / "after")
    (folder / "comparison.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    whole_min = (time.perf_counter() - start) / 60
    sys.stdout.write(f"{as_table(rows)}\n\n{training_min:.1f} minutes of training, {whole_min:.1f} in all.\n")


if __name__ == "__main__":
    main()
