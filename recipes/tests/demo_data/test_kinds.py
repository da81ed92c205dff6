"""Samples follow from seed, part and number alone; what is held out stays out of training; conversations."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.demo_data import fonts, kinds, words
from fastvlm_recipes.demo_data.canvas import SIZE
from fastvlm_recipes.demo_data.kinds import DRAWERS, MIX, NEXT_KINDS, draw_sample, has_fonts, kind_of, lacking
from fastvlm_recipes.demo_data.scene_questions import MOST_TURNS, conversation
from fastvlm_recipes.demo_data.vocabulary import HELD_OUT_PAIRS
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS, HELD_OUT_WORDS_6_8, LONGER_TRAIN_WORDS, TRAIN_WORDS

ALWAYS = ["shapes", "letter", "word", "grid", "lines", "receipt", "chart", *NEXT_KINDS]


@pytest.mark.usefixtures("garments", "icons")
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", [*ALWAYS, "emoji", "fashion"])
def test_a_sample_follows_from_its_number(kind, split):
    first, again, other = (draw_sample(1, split, index, {kind: 1}) for index in (3, 3, 4))
    assert first.kind == kind and first.image.size == (SIZE, SIZE) and first.image.mode == "RGB"
    assert first.image.tobytes() == again.image.tobytes() and first.turns == again.turns
    assert first.image.tobytes() != other.image.tobytes()
    assert draw_sample(2, split, 3, {kind: 1}).image.tobytes() != first.image.tobytes()


def test_the_mix_names_what_can_be_drawn():
    assert {*MIX, *NEXT_KINDS} == set(DRAWERS) and not set(MIX) & set(NEXT_KINDS) and sum(MIX.values()) == 100


def test_shares_are_kept_and_known_without_drawing():
    mix = {"shapes": 3, "letter": 1}
    counts = Counter(kind_of(0, "train", index, mix) for index in range(4000))
    assert counts["shapes"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert all(draw_sample(0, "train", index, mix).kind == kind_of(0, "train", index, mix) for index in range(12))


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["word", "small", "lines", "receipt", "chart"]))
def test_training_never_writes_a_held_out_word(seed, kind):
    scene = DRAWERS[kind](Random(seed), "train")
    written = {word for line in scene.lines for word in re.findall("[a-z]+", line.text.casefold())}
    assert not written & HELD_OUT_WORDS


def test_the_test_part_writes_them_and_draws_held_out_pairs():
    texts = {line.text.casefold() for seed in range(60) for line in DRAWERS["word"](Random(seed), "test").lines}
    assert len(texts & HELD_OUT_WORDS) > 10
    pairs = {(s.color, s.name) for seed in range(60) for s in DRAWERS["shapes"](Random(seed), "test").shapes()}
    assert pairs & HELD_OUT_PAIRS
    pairs = {(s.color, s.name) for seed in range(60) for s in DRAWERS["shapes"](Random(seed), "train").shapes()}
    assert not pairs & HELD_OUT_PAIRS


@pytest.mark.usefixtures("icons")
def test_the_held_out_drawing_style_belongs_to_the_test_alone(monkeypatch):
    used = []
    paste = kinds.draw_emoji
    monkeypatch.setattr(kinds, "draw_emoji", lambda rng, styles: (used.append(styles), paste(rng, styles))[1])
    for seed in range(5):
        DRAWERS["emoji"](Random(seed), "train")
    assert all("openmoji" not in styles for styles in used)
    DRAWERS["emoji"](Random(0), "test")
    assert used[-1] == ("openmoji",)


def test_held_out_words_of_every_length_are_drawn_and_none_is_trained_on():
    drawn = Counter(len(words.held_out(Random(seed))) for seed in range(600))
    assert set(drawn) == set(range(3, 9)) and min(drawn.values()) > 60
    assert all(6 <= len(word) <= 8 for word in HELD_OUT_WORDS_6_8)
    assert not HELD_OUT_WORDS & {*TRAIN_WORDS, *LONGER_TRAIN_WORDS}


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(ALWAYS))
def test_no_answer_gives_another_away(seed, kind):
    rng = Random(seed)
    turns = conversation(rng, DRAWERS[kind](rng, "train"))
    assert 1 <= len(turns) <= MOST_TURNS
    assert len({question for question, _ in turns}) == len(turns)
    answers = [answer for _, answer in turns if answer not in ("Yes", "No")]
    assert len(set(answers)) == len(answers)
    for index, answer in enumerate(answers):
        assert len(answer) <= 3 or not any(answer in said for said in answers[:index])


def test_some_questions_cannot_be_answered_and_most_can():
    said = [answer for index in range(300) for _, answer in draw_sample(0, "train", index, {"shapes": 1}).turns]
    refused = sum(answer.startswith("There is no ") for answer in said) / len(said)
    assert 0.03 < refused < 0.2


def test_what_a_bare_machine_lacks_is_named():
    absent = lacking("train")
    assert {"emoji", "fashion"} <= set(absent)
    assert "dataset-fashion-mnist" in absent["fashion"] and "iconify" in absent["emoji"]
    assert not has_fonts("train")


@pytest.mark.usefixtures("icons", "garments")
def test_with_icons_and_data_sets_they_are_drawn(monkeypatch):
    assert not {"emoji", "fashion"} & set(lacking("test"))
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    assert lacking("train") == {"easy": "pip install easy-vqa"}


def test_faces_can_be_told_instead_of_looked_for():
    fonts.use_faces((("Lato", "lato.ttf"), ("Some Family", "some.ttf")))
    assert fonts.known_faces()[0][0] == "Lato"
    assert fonts.families("train") == {"Some Family": ("some.ttf",)}
    assert has_fonts("test")


def test_easy_vqa_is_asked_as_it_comes(monkeypatch, tmp_path):
    """A stand-in with the package's own functions: it has 22 MB of images."""
    import sys
    import types

    from PIL import Image

    from fastvlm_recipes.demo_data import easy_questions

    file = tmp_path / "0.png"
    Image.new("RGB", (64, 64), (200, 10, 10)).save(file)
    stand_in = types.ModuleType("easy_vqa")
    stand_in.get_train_questions = lambda: (["what color is it?", "is it a circle?"], ["red", "no"], [0, 0])
    stand_in.get_train_image_paths = lambda: {0: str(file)}
    monkeypatch.setitem(sys.modules, "easy_vqa", stand_in)
    for cached in (easy_questions.turns_by_image, easy_questions.numbers, easy_questions._paths):
        cached.cache_clear()
    sample = draw_sample(0, "train", 0, {"easy": 1})
    assert sorted(sample.turns) == [("is it a circle?", "No"), ("what color is it?", "It is red.")]
    assert sample.image.size == (SIZE, SIZE)
    for cached in (easy_questions.turns_by_image, easy_questions.numbers, easy_questions._paths):
        cached.cache_clear()
