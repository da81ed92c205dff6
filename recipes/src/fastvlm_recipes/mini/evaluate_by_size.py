"""Score of the mini by the height of the letters, and of counting in a plain layout, in images of another program.

    python -m fastvlm_recipes.mini.evaluate_by_size [--model mini] [--n 120] [--fonts FILE ...] [--json FILE]

Words that training never shows stand alone in an image of 512 x 512 px, in Pillow's own font and in the fonts given
(each in turn); equal shapes stand in a grid (see recipes/mini/plain_drawings.py). Answers are greedy, scored by
normalized exact match, with Wilson's 95 % interval. A cell is left out where fewer than half of its words fit into
the image. The same arguments draw the same images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch

import fastvlm
from fastvlm_recipes.mini.evaluate import ask_engine
from fastvlm_recipes.mini.plain_drawings import (
    Drawing,
    WordCell,
    capital_height_px,
    draw_count,
    draw_word_image,
    fitting_share,
    load_font,
)
from fastvlm_recipes.mini.scoring import score

SIZES_PX = (20, 40, 60, 80, 110, 150)
LENGTHS = ((3, 4), (5, 6), (7, 8))
COUNTS = (1, 2, 3, 4, 5, 6)
OWN_FONT, OTHER_FONTS, GRID = "Pillow's own font", "other fonts", "shapes in a grid"
_LEAST_FITTING = 0.5

Ask = Callable[[Sequence[Drawing]], list[str]]


@dataclass(frozen=True)
class Cell:
    """One result.

    Args:
        table, row, column: its place: the fonts, the font size and the letters; of the grid the count.
        capital_px: mean height of a capital letter, in pixels; None for shapes.
        right, n: right answers, and images.
        low, high: Wilson's 95 % interval of the share.
        wrong: (answer, reply) of the first wrong ones.
    """

    table: str
    row: str
    column: str
    capital_px: float | None
    right: int
    n: int
    low: float
    high: float
    wrong: tuple[tuple[str, str], ...]


def _judged(asked: Ask, drawings: Sequence[Drawing], place: tuple[str, str, str], capital_px: float | None) -> Cell:
    replies = asked(drawings)
    judged = score(replies, [(drawing.answer,) for drawing in drawings])
    pairs = zip(drawings, replies, strict=True)
    wrong = [(drawing.answer, reply) for drawing, reply in pairs if score([reply], [(drawing.answer,)]).right == 0]
    return Cell(*place, capital_px, judged.right, judged.n, *judged.interval(), tuple(wrong[:6]))


def word_cells(
    asked: Ask, table: str, files: Sequence[Path | None], sizes_px: Sequence[int], n: int, seed: int
) -> list[Cell]:
    """Reading by font size and letters: `n` images a cell, the fonts in turn; one printed JSON line a cell."""
    cells = []
    for size_px in sizes_px:
        fonts = [load_font(file, size_px) for file in files]
        capital_px = sum(map(capital_height_px, fonts)) / len(fonts)
        for lengths in LENGTHS:
            cell, rng = WordCell(lengths, size_px), Random(f"{seed}:{table}:{size_px}:{lengths}")
            if min(fitting_share(rng, cell, font) for font in fonts) < _LEAST_FITTING:
                continue
            drawings = [draw_word_image(rng, cell, fonts[index % len(fonts)]) for index in range(n)]
            place = (table, f"{size_px} px", f"{lengths[0]}-{lengths[-1]} letters")
            cells.append(_printed(_judged(asked, drawings, place, capital_px)))
    return cells


def count_cells(asked: Ask, n: int, seed: int) -> list[Cell]:
    """Counting equal shapes in a grid: `n` images for each number."""
    cells = []
    for count in COUNTS:
        rng = Random(f"{seed}:{GRID}:{count}")
        drawings = [draw_count(rng, count) for _ in range(n)]
        cells.append(_printed(_judged(asked, drawings, (GRID, "right", str(count)), None)))
    return cells


def _printed(cell: Cell) -> Cell:
    print(json.dumps(asdict(cell), ensure_ascii=False), flush=True)
    return cell


def as_tables(cells: Sequence[Cell]) -> str:
    """Markdown, a table for each group; percentages with their intervals."""
    return "\n\n".join(
        _as_table([cell for cell in cells if cell.table == name]) for name in dict.fromkeys(c.table for c in cells)
    )


def _as_table(cells: Sequence[Cell]) -> str:
    columns = list(dict.fromkeys(cell.column for cell in cells))
    lines = [f"| {' | '.join((cells[0].table, *columns))} |", f"| --- |{' --- |' * len(columns)}"]
    for row in dict.fromkeys(cell.row for cell in cells):
        found = {cell.column: cell for cell in cells if cell.row == row}
        heights = [cell.capital_px for cell in found.values() if cell.capital_px is not None]
        name = f"{row} (capitals {heights[0]:.0f} px)" if heights else row
        values = [_percent(found[column]) if column in found else "does not fit" for column in columns]
        lines.append(f"| {' | '.join((name, *values))} |")
    right, n = sum(cell.right for cell in cells), sum(cell.n for cell in cells)
    return "\n".join([*lines, "", f"{right} of {n} right; {min(cell.n for cell in cells)} images a cell."])


def _percent(cell: Cell) -> str:
    return f"{100 * cell.right / cell.n:.0f} % ({100 * cell.low:.0f}-{100 * cell.high:.0f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="folder or name")
    parser.add_argument("--n", type=int, default=120, help="images a cell, 1 or more")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_PX, metavar="PX", help="font sizes in pixels")
    parser.add_argument("--fonts", type=Path, nargs="+", default=[], metavar="FILE", help="also in these, in turn")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), default=16, help="of the weights")
    parser.add_argument("--seed", type=int, default=0, help="of all drawings")
    parser.add_argument("--json", type=Path, help="also write the cells here")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a JSON line a cell as it is done, then the tables."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.n < 1 or min(args.sizes) < 1:
        parser.error(f"--n {args.n} and --sizes {list(args.sizes)}: expected 1 or more")
    try:
        for file in args.fonts:
            load_font(file, SIZES_PX[0])
    except OSError as error:
        parser.error(f"--fonts {file}: no font that Pillow can open ({error})")
    model, processor = fastvlm.load(args.model, device="cpu", dtype=torch.float32)
    asked = partial(ask_engine, fastvlm.Engine.from_model(model, processor, num_slots=1, bits=args.bits))
    cells = word_cells(asked, OWN_FONT, [None], args.sizes, args.n, args.seed)
    if args.fonts:
        cells += word_cells(asked, OTHER_FONTS, args.fonts, args.sizes, args.n, args.seed)
    cells += count_cells(asked, args.n, args.seed)
    print(as_tables(cells))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
