"""Images of receipts: shop, date, one to three items with prices, total. Letters are 12 to 28 px high."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from fastvlm_recipes.demo_data import words
from fastvlm_recipes.demo_data.canvas import RGB, SIZE, background, jittered
from fastvlm_recipes.demo_data.fonts import Split, load
from fastvlm_recipes.demo_data.lettering import Face, Setting, pick_face, set_run, write
from fastvlm_recipes.demo_data.receipt_layouts import HELD_OUT_LAYOUTS, LAYOUTS, SEEN_LAYOUTS, Place, Row
from fastvlm_recipes.demo_data.scene import Receipt, Scene
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS, listed

GOODS: tuple[str, ...] = tuple(
    word
    for word in listed("""
    beer bowl butter cable candy cheese coffee comb cup egg eggs flour fork glue ham honey mug nuts oil onion pasta
    peas pen pears pizza plums rice salad salt soap sock soup spoon steak sugar tape toast toys wine wool
    """)
    if word not in HELD_OUT_WORDS
)
TOTAL_WORDS = ("TOTAL", "TOTAL", "Total", "Total", "SUM", "TO PAY", "Total:")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LARGEST_EM_SHARE = 0.75  # px per em as a share of the row's height, at most
Texts = tuple[str, ...]


def as_written(hundredths: int, sign: str = "") -> str:
    """Such as 12.50 or $12.50."""
    return f"{sign}{hundredths // 100}.{hundredths % 100:02d}"


def make_date(rng: Random) -> str:
    """A day from 2015 to 2029 in one of five ways to write it."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2015, 2029)
    return rng.choice(
        (
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
            f"{month:02d}/{day:02d}/{year % 100}",
            f"{day} {MONTHS[month - 1]} {year}",
            f"{day:02d}.{month:02d}.{year % 100}",
        )
    )


def make_receipt(rng: Random, split: Split, layout: str) -> Receipt:
    """Random content of a receipt; its total is the sum of its items."""
    names: list[str] = []
    for _ in range(rng.choices((1, 2, 3), (30, 42, 28))[0]):
        name = rng.choice(GOODS) if rng.random() < 0.6 else _any_word(rng, split, 3, 6).lower()
        if name.casefold() not in [one.casefold() for one in names]:
            names.append(name)
    style = rng.choice((str.upper, str.capitalize, str.lower))
    prices = [words.amount(rng) for _ in names]
    sign = rng.choice(("", "", "", "$", "€", "£"))
    items = tuple((style(name), as_written(price)) for name, price in zip(names, prices, strict=True))
    return Receipt(_any_word(rng, split, 3, 8), make_date(rng), items, as_written(sum(prices), sign), layout)


def _any_word(rng: Random, split: Split, shortest: int, longest: int) -> str:
    while True:
        is_held_out = split == "test" and rng.random() < 0.5
        text = (
            words.held_out(rng, shortest, longest) if is_held_out else words.longer(rng, rng.randint(shortest, longest))
        )
        if not text.isdigit():
            return text


def draw_receipt(rng: Random, split: Split, layout: str | None = None) -> Scene:
    """A receipt on paper; a random `layout` if None: a seen one in training, a held-out one otherwise."""
    if layout is None:
        layout = rng.choice(tuple(SEEN_LAYOUTS if split == "train" else HELD_OUT_LAYOUTS))
    image, _, _ = background(rng)
    scene = Scene(image, "receipt")
    face = pick_face(rng, split)
    receipt = make_receipt(rng, split, layout)
    if face.is_capitals_only:
        receipt = _in_capitals(receipt)
    scene.receipt = receipt
    box, paper = _lay_paper(rng, scene)
    ink_name = rng.choice(("black", "black", "black", "blue", "purple"))
    rows = [(row, texts) for row in LAYOUTS[layout] for texts in _texts(rng, row, receipt)]
    _write_rows(scene, rows, box, face, (ink_name, jittered(rng, ink_name)), paper)
    return scene


def _in_capitals(receipt: Receipt) -> Receipt:
    items = tuple((name.upper(), price) for name, price in receipt.items)
    return Receipt(receipt.shop.upper(), receipt.date.upper(), items, receipt.total, receipt.layout)


def _lay_paper(rng: Random, scene: Scene) -> tuple[tuple[int, int, int, int], RGB]:
    """The paper's inner box (left, top, right, bottom) and its color; in a third of the images it fills all."""
    shade = rng.randint(232, 255)
    paper = (shade, shade, max(0, shade - rng.choice((0, 0, 12, 25))))
    if rng.random() < 0.34:
        scene.image = Image.new("RGB", (SIZE, SIZE), paper)
        inset = rng.randint(5, 12)
        return (inset, inset, SIZE - inset, SIZE - inset), paper
    left, right = rng.randint(2, 14), SIZE - rng.randint(2, 14)
    top, bottom = rng.randint(0, 12), SIZE - rng.randint(0, 12)
    ImageDraw.Draw(scene.image).rectangle((left, top, right, bottom), fill=paper)
    return (left + 5, top + 4, right - 5, bottom - 4), paper


def _texts(rng: Random, row: Row, receipt: Receipt) -> list[Texts]:
    """For each row of the kind: one text, or the two at its sides."""
    if row.part == "items":
        return list(receipt.items)
    if row.part == "total":
        label = rng.choice(TOTAL_WORDS)
        is_apart = row.place in ("split", "swapped")
        return [(label, receipt.total)] if is_apart else [(f"{label.rstrip(':')} {receipt.total}",)]
    return [({"shop": receipt.shop, "date": receipt.date, "rule": ""}[row.part],)]


def _write_rows(
    scene: Scene,
    rows: list[tuple[Row, Texts]],
    box: tuple[int, int, int, int],
    face: Face,
    ink: tuple[str, RGB],
    paper: RGB,
) -> None:
    """All rows from the top; their heights are proportional to their scales."""
    left, top, right, bottom = box
    pitch = min(50.0, (bottom - top) / sum(row.scale for row, _ in rows))
    em = min(_widest_em(texts, face, right - left) / row.scale for row, texts in rows if row.part != "rule")
    em = min(em * 1.15, LARGEST_EM_SHARE * pitch)
    pen, y = ImageDraw.Draw(scene.image), float(top)
    for row, texts in rows:
        height = pitch * row.scale
        middle = y + height / 2
        if row.part == "rule":
            pen.line((left, middle, right, middle), fill=ink[1], width=2)
        else:
            if row.is_boxed:
                pen.rectangle((left - 4, y + 1, right + 4, y + height - 1), fill=ink[1])
            size = int(min(em * row.scale, _widest_em(texts, face, right - left)))
            shown = ("white", paper) if row.is_boxed else ink
            for text, place in _placed(texts, row.place):
                _write_at(scene, (text, place), Setting(face, max(9, size)), shown, (left, right, middle))
        y += height


def _widest_em(texts: Texts, face: Face, width: float) -> float:
    """The px per em at which the texts of a row fit side by side with a gap of one letter between them."""
    natural = sum(float(load(face.file, 64).getlength(text)) for text in texts) + 40 * (len(texts) - 1) + 6
    return 64 * width / natural


def _placed(texts: Texts, place: Place) -> list[tuple[str, Place]]:
    if place == "split":
        return [(texts[0], "left"), (texts[1], "right")]
    if place == "swapped":
        return [(texts[1], "left"), (texts[0], "right")]
    return [(texts[0], place)]


def _write_at(
    scene: Scene,
    placed: tuple[str, Place],
    setting: Setting,
    ink: tuple[str, RGB],
    span: tuple[int, int, float],
) -> None:
    """One run of text between `left` and `right`, its ink centered on `middle`."""
    text, place = placed
    left, right, middle = span
    run = set_run(text, setting)
    corner = {"left": left, "right": right - run.mask.width}.get(place, (left + right - run.mask.width) // 2)
    write(scene, run, text, ink, corner, round(middle - run.mask.height / 2))
