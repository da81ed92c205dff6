"""The frozen tests: images, questions and accepted answers, with seeds, fonts and words that training never used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image

from fastvlm_recipes.demo_data import easy_questions, words
from fastvlm_recipes.demo_data.canvas import SIZE
from fastvlm_recipes.demo_data.chart_questions import largest
from fastvlm_recipes.demo_data.charts import draw_chart
from fastvlm_recipes.demo_data.clothes import draw_clothes
from fastvlm_recipes.demo_data.emoji import draw_emoji, names_in
from fastvlm_recipes.demo_data.receipts import draw_receipt
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.shapes import draw_shapes
from fastvlm_recipes.demo_data.text import draw_word
from fastvlm_recipes.demo_data.trap_questions import absent_color, absent_shape, no_shape_turn, no_text_turn, twin
from fastvlm_recipes.demo_data.vocabulary import EMOJI_STYLES, HELD_OUT_PAIRS, HELD_OUT_STYLE
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS_3, HELD_OUT_WORDS_LONG
from fastvlm_recipes.demo_data.wording import it_is, sentence, with_article

PAIRS_HELD_OUT = tuple(sorted(HELD_OUT_PAIRS))


@dataclass(frozen=True)
class Item:
    """One question about one image; `answers[0]` is the answer as trained; the others are right, too."""

    image: Image.Image
    question: str
    answers: tuple[str, ...]
    source: bytes | None = None  # the image file, if the image is not drawn here


def _lone_color(rng: Random) -> Item:
    scene = _with_one(rng)
    one = rng.choice([s for s in scene.shapes() if [t.name for t in scene.shapes()].count(s.name) == 1])
    return Item(scene.image, f"What color is the {one.name}?", (it_is(one.color),))


def _lone_shape(rng: Random) -> Item:
    scene = _with_one(rng)
    ones = [s for s in scene.shapes() if [t.color for t in scene.shapes()].count(s.color) == 1]
    one = rng.choice(ones)
    if len(scene.shapes()) == 1:
        return Item(scene.image, "What shape is this?", (it_is(with_article(one.name)),))
    return Item(scene.image, f"What shape is {one.color}?", (it_is(with_article(one.name)),))


def _with_one(rng: Random) -> Scene:
    """One to four shapes, of which one is unique by its name and one by its color."""
    while True:
        scene = draw_shapes(rng, rng.randint(1, 4))
        names, colors = [s.name for s in scene.shapes()], [s.color for s in scene.shapes()]
        if any(names.count(n) == 1 for n in names) and any(colors.count(c) == 1 for c in colors):
            return scene


def _unseen_pair(rng: Random) -> Item:
    scene = draw_shapes(rng, 1, PAIRS_HELD_OUT)
    one = scene.shapes()[0]
    if rng.random() < 0.5:
        return Item(scene.image, f"What color is the {one.name}?", (it_is(one.color),))
    return Item(scene.image, "What shape is this?", (it_is(with_article(one.name)),))


def _count(rng: Random) -> Item:
    wanted = rng.randint(1, 6)
    while True:
        scene = draw_shapes(rng, wanted)
        if len(scene.shapes()) == wanted:
            return Item(scene.image, "How many shapes are there?", (str(wanted),))


def _letter(rng: Random) -> Item:
    char = words.single(rng)
    scene = draw_word(rng, "test", char, "letter")
    noun = "digit" if char.isdigit() else "letter"
    return Item(scene.image, f"What {noun} is this?", (scene.lines[0].text,))


def _held_out_word(rng: Random, vocabulary: frozenset[str]) -> Item:
    scene = draw_word(rng, "test", words.cased(rng, rng.choice(sorted(vocabulary))))
    return Item(scene.image, "What does it say?", (scene.lines[0].text,))


def _any_held_out_word(rng: Random) -> Item:
    """Three to eight letters, every length as often."""
    scene = draw_word(rng, "test", words.held_out(rng))
    return Item(scene.image, "What does it say?", (scene.lines[0].text,))


def _receipt_total(rng: Random) -> Item:
    """The total as written, or without its currency."""
    receipt = (scene := draw_receipt(rng, "test")).receipt
    assert receipt is not None
    return Item(scene.image, "What is the total?", tuple(dict.fromkeys((receipt.total, receipt.total.lstrip("$€£")))))


def _chart_largest(rng: Random) -> Item:
    chart = (scene := draw_chart(rng, "test")).chart
    assert chart is not None
    return Item(scene.image, "Which bar is the largest?", (largest(chart),))


def _garment(rng: Random) -> Item:
    scene = draw_clothes(rng, "test", 1)
    name = scene.things[0].name
    return Item(scene.image, "What is this?", (sentence(with_article(name)), name))


def _false_premise(rng: Random) -> Item:
    """A question about a shape or a color that is not among one to five shapes."""
    scene = draw_shapes(rng, rng.randint(1, 5))
    question, answer = rng.choice((absent_color, absent_shape))(rng, scene)
    return Item(scene.image, question, (answer,))


def _answerable_twin(rng: Random) -> Item:
    """A question in the same words about one that is there."""
    while True:
        scene = draw_shapes(rng, rng.randint(1, 5))
        turn = twin(rng, scene)
        if turn is not None:
            return Item(scene.image, *_as_item(turn))


def _emoji(rng: Random, styles: tuple[str, ...]) -> Item:
    usable = tuple(style for style in styles if names_in(style))
    if not usable:
        raise FileNotFoundError("the emoji tests need the rasters of fastvlm_recipes.mini.assets")
    scene = draw_emoji(rng, usable, 1)
    name = scene.emoji()[0].name
    return Item(scene.image, "What is this?", (sentence(with_article(name)), name))


def _unanswerable(rng: Random) -> Item:
    if rng.random() < 0.5:
        scene = draw_shapes(rng, rng.randint(1, 5))
        return Item(scene.image, *_as_item(no_text_turn(rng)))
    scene = draw_word(rng, "test", words.token(rng, rng.randint(2, 5)))
    while True:
        question, answer = no_shape_turn(rng)
        if answer.startswith("There is no"):
            return Item(scene.image, question, (answer,))


def _as_item(turn: tuple[str, str]) -> tuple[str, tuple[str, ...]]:
    return turn[0], (turn[1],)


def _easy(rng: Random) -> Item:
    table = easy_questions.turns_by_image("test")
    number = rng.choice(sorted(table))
    question, answer = rng.choice(table[number])
    return Item(easy_questions.image("test", number), question, (answer,), easy_questions.file_of("test", number))


TESTS: dict[str, Callable[[Random], Item]] = {
    "easy_vqa": _easy,
    "colours": _lone_color,
    "shapes": _lone_shape,
    "unseen_pairs": _unseen_pair,
    "counts_1_6": _count,
    "letters_digits_unseen_fonts": _letter,
    "words3_unseen_fonts": lambda rng: _held_out_word(rng, HELD_OUT_WORDS_3),
    "words4_5_unseen_fonts": lambda rng: _held_out_word(rng, HELD_OUT_WORDS_LONG),
    "emoji_seen_styles": lambda rng: _emoji(rng, EMOJI_STYLES),
    "emoji_unseen_style": lambda rng: _emoji(rng, (HELD_OUT_STYLE,)),
    "unanswerable": _unanswerable,
    # The second edition's.
    "words_unseen_fonts": _any_held_out_word,
    "receipt_total_unseen_layouts": _receipt_total,
    "chart_largest": _chart_largest,
    "fashion_mnist": _garment,
    "false_premises": _false_premise,
    "answerable_twins": _answerable_twin,
}


def make_items(name: str, count: int, first: int = 0) -> list[Item]:
    """`count` items of a test from number `first` on; item number i is the same whatever `count` is."""
    return [TESTS[name](Random(f"benchmark:{name}:{index}")) for index in range(first, first + count)]


def gray(item: Item) -> Item:
    """The same question about a uniform gray image, to measure what can be answered without seeing."""
    return Item(Image.new("RGB", (SIZE, SIZE), (128, 128, 128)), item.question, item.answers)
