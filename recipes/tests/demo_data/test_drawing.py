"""The drawer: same seed, same image; what it says is there is there; what is held out is never drawn."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.demo_data import words
from fastvlm_recipes.demo_data.canvas import SIZE, jittered
from fastvlm_recipes.demo_data.fonts import HELD_OUT_FAMILIES, families, use_faces
from fastvlm_recipes.demo_data.kinds import DRAWERS, draw_sample
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.scene_questions import turns_of
from fastvlm_recipes.demo_data.shapes import TRAIN_PAIRS, draw_shapes
from fastvlm_recipes.demo_data.text import draw_word
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, COLORS, EMOJI, HELD_OUT_PAIRS
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS, TRAIN_WORDS
from fastvlm_recipes.demo_data.wording import place_name, plural, with_article

KINDS = ("shapes", "letter", "word", "grid", "lines", "receipt", "chart", "small", "plain")


def drawn(kind: str, index: int) -> tuple[Scene, Random]:
    """An image of a kind, and the generator that drew it, for its questions."""
    rng = Random(index)
    return DRAWERS[kind](rng, "train"), rng


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_square_rgb_and_its_things_lie_in_it(kind: str) -> None:
    for index in range(8):
        scene, _ = drawn(kind, index)
        assert scene.image.size == (SIZE, SIZE)
        assert scene.image.mode == "RGB"
        assert all(-8 <= thing.x <= SIZE + 8 and -8 <= thing.y <= SIZE + 8 for thing in scene.things)


def test_the_seeds_of_training_and_test_differ() -> None:
    train, test = (draw_sample(0, split, 0, {"plain": 1}).scene.things for split in ("train", "test"))
    assert train != test


def test_font_families_are_split_by_name() -> None:
    held_out = sorted(HELD_OUT_FAMILIES)[0]
    use_faces((("Some Family", "a.ttf"), (held_out, "b.ttf")))
    assert families("train") == {"Some Family": ("a.ttf",)}
    assert families("test") == {held_out: ("b.ttf",)}


@given(seed=st.integers(0, 2**32), length=st.integers(1, 8))
def test_training_never_draws_a_held_out_word(seed: int, length: int) -> None:
    text = words.token(Random(seed), length)
    assert len(text) == length
    assert text.casefold() not in HELD_OUT_WORDS
    assert words.made_up(Random(seed), max(2, length)) not in HELD_OUT_WORDS


def test_training_words_and_pairs_leave_the_held_out_ones_out() -> None:
    assert not HELD_OUT_WORDS & set(TRAIN_WORDS)
    assert not HELD_OUT_PAIRS & set(TRAIN_PAIRS)
    for index in range(60):
        scene = draw_shapes(Random(index))
        assert not HELD_OUT_PAIRS & {(shape.color, shape.name) for shape in scene.shapes()}


def test_a_shape_has_its_color_where_the_record_says() -> None:
    for index in range(30):
        scene = draw_shapes(Random(index), 3)
        for shape in scene.shapes():
            seen = np.array(scene.image.getpixel((round(shape.x), round(shape.y))))
            assert np.abs(seen - np.array(COLORS[shape.color])).max() <= 20


def test_shapes_do_not_overlap_and_are_counted() -> None:
    for count in range(11):
        scene = draw_shapes(Random(count), count)
        assert len(scene.shapes()) <= count
        spots = [(shape.x, shape.y, shape.size / 2) for shape in scene.shapes()]
        for index, (x, y, radius) in enumerate(spots):
            assert all(np.hypot(x - a, y - b) >= 0.9 * (radius + r) for a, b, r in spots[:index])


def test_every_character_of_a_word_leaves_ink_at_its_recorded_center() -> None:
    scene = draw_word(Random(3), "train", "HILT")
    assert "".join(thing.name for thing in scene.things) == "HILT"
    assert [thing.x for thing in scene.things] == sorted(thing.x for thing in scene.things)
    assert scene.lines[0].text == "HILT"


def _answer_to(scene: Scene, question: str) -> str | None:
    """An independent reading of the record for the questions whose wording is plain."""
    shapes = scene.shapes()
    words_asked = question.lower().replace("colour", "color").replace("grey", "gray").rstrip("?.").split()
    if question.lower().startswith(("how many", "count the", "what is the number")):
        nouns = {"shapes", "objects", *(plural(s) for s in _shape_names())}
        noun = next(word for word in words_asked if word in nouns)
        color = [word for word in words_asked if word in COLOR_NAMES]
        return str(
            sum(
                (noun in ("shapes", "objects") or plural(s.name) == noun) and (not color or s.color == color[0])
                for s in shapes
            )
        )
    return None


def _shape_names() -> set[str]:
    from fastvlm_recipes.demo_data.vocabulary import SHAPE_NAMES

    return set(SHAPE_NAMES)


def test_counts_are_true_of_the_image() -> None:
    seen = 0
    for index in range(80):
        scene, rng = drawn("shapes", index)
        for question, answer in turns_of(rng, scene):
            expected = _answer_to(scene, question)
            if expected is not None:
                assert answer == expected, question
                seen += 1
    assert seen > 200


def test_color_answers_name_a_color_of_a_thing_that_is_there() -> None:
    for index in range(60):
        scene, rng = drawn("shapes", index)
        colors = {shape.color for shape in scene.shapes()} | {scene.background}
        names = {shape.name for shape in scene.shapes()}
        for _, answer in turns_of(rng, scene):
            told = answer.removeprefix("It is ").rstrip(".")
            if told in COLOR_NAMES:
                assert told in colors
            if answer.startswith("There is no ") and "text" not in answer:
                assert answer.split()[3] not in names


@pytest.mark.parametrize("topic", ["letter", "word", "lines", "grid"])
def test_what_is_read_was_written(topic: str) -> None:
    for index in range(20):
        scene, rng = drawn(topic, index)
        written = Counter("".join(line.text for line in scene.lines))
        turns = turns_of(rng, scene)
        answers = [answer for _, answer in turns]
        if topic in ("lines", "grid"):
            read = [Counter(answer.replace("\n", "").replace(" ", "")) for answer in answers]
            assert written in read
        else:
            assert scene.lines[0].text in answers


def test_questions_vary_and_none_is_empty() -> None:
    asked: Counter[str] = Counter()
    for index in range(150):
        scene, rng = drawn(("shapes", "letter", "word", "grid")[index % 4], index)
        turns = turns_of(rng, scene)
        assert len(turns) >= 2
        assert all(question.strip() and answer.strip() for question, answer in turns)
        asked.update(question for question, _ in turns)
    assert len(asked) > 150


@given(seed=st.integers(0, 10_000), color=st.sampled_from(COLOR_NAMES))
def test_a_shade_keeps_its_name(seed: int, color: str) -> None:
    shade = np.array(jittered(Random(seed), color))
    nearest = min(COLORS, key=lambda name: float(((shade - np.array(COLORS[name])) ** 2).sum()))
    assert nearest == color


def test_places_and_articles() -> None:
    assert place_name(20, 20) == "top left"
    assert place_name(128, 128) == "center"
    assert place_name(128, 250) == "bottom"
    assert place_name(85, 85) is None
    assert with_article("apple") == "an apple"
    assert with_article("jeans") == "jeans"
    assert plural("cross") == "crosses"
    assert len(EMOJI) > 40
