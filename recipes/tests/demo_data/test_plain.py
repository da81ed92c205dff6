"""Plain images: small text inside the image, equal shapes in a grid."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.demo_data.canvas import SIZE
from fastvlm_recipes.demo_data.kinds import DRAWERS, draw_sample
from fastvlm_recipes.demo_data.plain import draw_plain_grid, draw_small_word
from fastvlm_recipes.demo_data.shapes import ALL_PAIRS
from fastvlm_recipes.demo_data.vocabulary import HELD_OUT_PAIRS


@given(st.integers(0, 2**32), st.sampled_from(["as", "Sun", "WINDOWS", "mmmmmmmm", "$12.50"]))
def test_a_small_word_lies_inside_the_image_and_says_what_was_asked(seed, text):
    scene = draw_small_word(Random(seed), "train", text)
    assert [line.text for line in scene.lines] == [text] and scene.image.size == (SIZE, SIZE)
    assert all(0 <= thing.x <= SIZE and 0 <= thing.y <= SIZE for thing in scene.things)
    assert len(scene.image.getcolors(SIZE * SIZE)) > 1


def test_letters_are_small_as_often_as_large():
    heights = sorted(draw_small_word(Random(seed), "train", "HHH").lines[0].height for seed in range(300))
    assert heights[0] <= 8 and heights[-1] >= 30 and 11 <= heights[150] <= 24


@given(st.integers(0, 2**32))
def test_shapes_of_a_grid_are_equal_and_apart(seed):
    shapes = draw_plain_grid(Random(seed), ALL_PAIRS).shapes()
    assert 1 <= len(shapes) <= 6 and len({(one.name, one.color, one.size) for one in shapes}) == 1
    apart = [abs(a.x - b.x) + abs(a.y - b.y) for i, a in enumerate(shapes) for b in shapes[:i]]
    assert all(distance > shapes[0].size for distance in apart)
    assert all(one.size / 2 <= min(one.x, one.y, SIZE - one.x, SIZE - one.y) for one in shapes)


@pytest.mark.parametrize("kind", ["small", "plain"])
def test_questions_about_plain_images_have_their_answers(kind):
    for index in range(40):
        sample = draw_sample(5, "train", index, {kind: 1})
        assert sample.turns and all(question and answer for question, answer in sample.turns)
        counts = [answer for question, answer in sample.turns if question == "How many shapes are there?"]
        assert all(answer == str(len(sample.scene.shapes())) for answer in counts)


def test_held_out_pairs_stay_out_of_training():
    drawn = {(s.color, s.name) for seed in range(200) for s in DRAWERS["plain"](Random(seed), "train").shapes()}
    assert not drawn & HELD_OUT_PAIRS
