"""The drawer: same seed, same picture; what it says is there is there; what is held out is never drawn."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes.mini.dense import CLASS_OF, EMOJI_CLASS, centre_cell, dense_target
from recipes.mini.mix import ENCODER_MIX, JOINT_MIX, MAKERS, draw

from fastvlm.demo_data import words
from fastvlm.demo_data.canvas import SIZE, jittered
from fastvlm.demo_data.fonts import HELD_OUT_FAMILIES, families
from fastvlm.demo_data.scene import Scene
from fastvlm.demo_data.scene_questions import turns_of
from fastvlm.demo_data.shapes import TRAIN_PAIRS, draw_shapes
from fastvlm.demo_data.text import draw_word
from fastvlm.demo_data.vocabulary import COLOUR_NAMES, COLOURS, EMOJI, HELD_OUT_PAIRS
from fastvlm.demo_data.word_lists import HELD_OUT_WORDS, TRAIN_WORDS
from fastvlm.demo_data.wording import place_name, plural, with_article

NUMBERS = {str(n) for n in range(20)}


@pytest.mark.parametrize("topic", MAKERS)
def test_the_same_number_draws_the_same_picture_and_questions(topic: str) -> None:
    first, rng = draw("joint", 7, {topic: 1})
    again, rng_again = draw("joint", 7, {topic: 1})
    other, _ = draw("joint", 8, {topic: 1})
    assert first.image.tobytes() == again.image.tobytes()
    assert first.things == again.things
    assert first.image.tobytes() != other.image.tobytes()
    if topic != "page":
        assert turns_of(rng, first) == turns_of(rng_again, again)


@pytest.mark.parametrize("topic", MAKERS)
def test_a_picture_is_square_rgb_and_its_things_lie_in_it(topic: str) -> None:
    for index in range(8):
        scene, _ = draw("joint", index, {topic: 1})
        assert scene.image.size == (SIZE, SIZE)
        assert scene.image.mode == "RGB"
        assert all(-8 <= thing.x <= SIZE + 8 and -8 <= thing.y <= SIZE + 8 for thing in scene.things)


def test_the_seeds_of_training_and_test_differ() -> None:
    assert draw("joint", 0, {"shapes": 1})[0].things != draw("joint", 0, {"shapes": 1}, "test")[0].things


def test_font_families_are_split_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvlm.demo_data import fonts

    held_out = sorted(HELD_OUT_FAMILIES)[0]
    monkeypatch.setattr(fonts, "_faces", lambda: (("Some Family", "a.ttf"), (held_out, "b.ttf")))
    families.cache_clear()
    assert families("train") == {"Some Family": ("a.ttf",)}
    assert families("test") == {held_out: ("b.ttf",)}
    families.cache_clear()


@settings(max_examples=200, deadline=None)
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
        assert not HELD_OUT_PAIRS & {(shape.colour, shape.name) for shape in scene.shapes()}


def test_a_shape_has_its_colour_where_the_record_says() -> None:
    for index in range(30):
        scene = draw_shapes(Random(index), 3)
        for shape in scene.shapes():
            seen = np.array(scene.image.getpixel((round(shape.x), round(shape.y))))
            assert np.abs(seen - np.array(COLOURS[shape.colour])).max() <= 20


def test_shapes_do_not_overlap_and_are_counted() -> None:
    for count in range(11):
        scene = draw_shapes(Random(count), count)
        assert len(scene.shapes()) <= count
        spots = [(shape.x, shape.y, shape.size / 2) for shape in scene.shapes()]
        for index, (x, y, radius) in enumerate(spots):
            assert all(np.hypot(x - a, y - b) >= 0.9 * (radius + r) for a, b, r in spots[:index])


def test_every_character_of_a_word_leaves_ink_at_its_recorded_centre() -> None:
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
        colour = [word for word in words_asked if word in COLOUR_NAMES]
        return str(
            sum(
                (noun in ("shapes", "objects") or plural(s.name) == noun) and (not colour or s.colour == colour[0])
                for s in shapes
            )
        )
    return None


def _shape_names() -> set[str]:
    from fastvlm.demo_data.vocabulary import SHAPE_NAMES

    return set(SHAPE_NAMES)


def test_counts_are_true_of_the_picture() -> None:
    seen = 0
    for index in range(80):
        scene, rng = draw("joint", index, {"shapes": 1})
        for question, answer in turns_of(rng, scene):
            expected = _answer_to(scene, question)
            if expected is not None:
                assert answer == expected, question
                seen += 1
    assert seen > 200


def test_colour_answers_name_a_colour_of_a_thing_that_is_there() -> None:
    for index in range(60):
        scene, rng = draw("joint", index, {"shapes": 1})
        colours = {shape.colour for shape in scene.shapes()} | {scene.background}
        names = {shape.name for shape in scene.shapes()}
        for _, answer in turns_of(rng, scene):
            told = answer.removeprefix("It is ").rstrip(".")
            if told in COLOUR_NAMES:
                assert told in colours
            if answer.startswith("There is no ") and "text" not in answer:
                assert answer.split()[3] not in names


@pytest.mark.parametrize("topic", ["letter", "word", "lines", "grid"])
def test_what_is_read_was_written(topic: str) -> None:
    for index in range(20):
        scene, rng = draw("joint", index, {topic: 1})
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
        scene, rng = draw("joint", index, JOINT_MIX)
        turns = turns_of(rng, scene)
        assert len(turns) >= 2
        assert all(question.strip() and answer.strip() for question, answer in turns)
        asked.update(question for question, _ in turns)
    assert len(asked) > 150


def test_dense_targets_point_at_the_things() -> None:
    for index in range(20):
        scene, _ = draw("encoder", index, ENCODER_MIX)
        target = dense_target(scene)
        for thing in scene.things[-1:]:
            row, column = centre_cell(thing)
            expected = EMOJI_CLASS if thing.kind == "emoji" else CLASS_OF[thing.kind, thing.name]
            assert target.classes[row, column] == expected
        assert ((target.classes > 0) >= (target.colours >= 0)).all()


@given(seed=st.integers(0, 10_000), colour=st.sampled_from(COLOUR_NAMES))
def test_a_shade_keeps_its_name(seed: int, colour: str) -> None:
    shade = np.array(jittered(Random(seed), colour))
    nearest = min(COLOURS, key=lambda name: float(((shade - np.array(COLOURS[name])) ** 2).sum()))
    assert nearest == colour


def test_places_and_articles() -> None:
    assert place_name(20, 20) == "top left"
    assert place_name(128, 128) == "center"
    assert place_name(128, 250) == "bottom"
    assert place_name(85, 85) is None
    assert with_article("apple") == "an apple"
    assert with_article("jeans") == "jeans"
    assert plural("cross") == "crosses"
    assert len(EMOJI) > 40
