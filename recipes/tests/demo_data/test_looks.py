"""Which things an answer speaks of, and which words of the question say so; what records tell of it."""

import json
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fastvlm_recipes.demo_data.charts import draw_chart
from fastvlm_recipes.demo_data.kinds import Sample
from fastvlm_recipes.demo_data.looks import Look, looks_of, reminder_of
from fastvlm_recipes.demo_data.receipts import draw_receipt
from fastvlm_recipes.demo_data.record_grounding import known_names, record_grounding
from fastvlm_recipes.demo_data.scene import Scene, Thing
from fastvlm_recipes.demo_data.scene_questions import conversation
from fastvlm_recipes.demo_data.shapes import draw_shapes
from fastvlm_recipes.demo_data.shard_writing import record_of
from fastvlm_recipes.demo_data.text import draw_word
from fastvlm_recipes.demo_data.vocabulary import GLYPHS


def two_shapes():
    scene = Scene(draw_shapes(Random(0), 1).image, "shapes")
    scene.things = [
        Thing("shape", "star", "red", 40, 40, 40),
        Thing("shape", "circle", "blue", 200, 220, 40),
    ]
    return scene


def test_the_asked_shape_is_looked_at():
    scene = two_shapes()
    star = looks_of(scene, ("What color is the star?", "It is red."))
    first, blue = looks_of(scene, ("What shape is blue?", "It is a circle."))
    assert star == [Look(at, (scene.things[0],), frozenset({"star"})) for at in (0, 6)]
    assert blue == Look(8, (scene.things[1],), frozenset({"blue"}))
    assert (first.start, first.things) == (0, blue.things)
    assert looks_of(scene, ("Where is the star?", "top left")) == star[:1]
    assert looks_of(scene, ("How many shapes are there?", "2")) == []
    assert looks_of(scene, ("What color is the background?", "It is white.")) == []


def test_for_yes_or_no_only_what_fits_the_question_is_looked_at():
    scene = two_shapes()
    assert looks_of(scene, ("Is there a red star?", "Yes")) == [Look(0, (scene.things[0],), frozenset({"red", "star"}))]
    assert looks_of(scene, ("Is there a blue star?", "No")) == [Look(0, (), frozenset({"blue", "star"}))]
    assert looks_of(scene, ("Is the red star above the blue circle?", "Yes")) == []
    assert reminder_of(("is there a grey shape?", "No")) == [Look(0, (), frozenset({"gray"}))]
    assert reminder_of(("is there not a circle?", "Yes")) == [Look(0, (), frozenset({"circle", "not"}))]


def test_a_word_is_looked_at_letter_by_letter():
    scene = draw_word(Random(1), "train", "OAK")
    text = scene.lines[0].text
    looks = looks_of(scene, ("What does it say?", text))
    assert [look.start for look in looks] == [0, 1, 2, 3]
    assert looks[-1].things == looks[-2].things
    assert {look.words for look in looks} == {frozenset({"say"})}
    assert looks_of(scene, ("What color is the text?", "black")) == []
    for place, number in (("second", 1), ("last", 2)):
        look, end = looks_of(scene, (f"What is the {place} letter?", text[number]))
        assert look == Look(0, looks[number].things, frozenset({place}))
        assert end == Look(1, looks[number].things, frozenset({place}))


def test_what_is_not_there_is_only_reminded_of():
    turn = ("What color is the cross?", "There is no cross in the image.")
    assert looks_of(two_shapes(), turn) == [Look(0, (), frozenset({"color", "cross"}))]


def said_by(looks, answer):
    """The answer as the looked-at characters spell it; a ? where they do not."""
    said = ""
    for look in looks:
        if not answer[look.start : look.start + 1].isspace() and look.start < len(answer):
            near = {thing.name for thing in look.things}
            said += answer[look.start] if answer[look.start] in near else "?"
    return said


@given(st.integers(0, 500))
def test_receipts_and_charts_are_looked_at_where_the_answer_is_written(seed):
    rng = Random(seed)
    scene = (draw_receipt, draw_chart)[seed % 2](rng, "train")
    read = [turn for turn in conversation(rng, scene) if looks_of(scene, turn) and turn[1][:2] not in ('{"', "Th")]
    for turn in read:
        looks, written = looks_of(scene, turn), "".join(turn[1].split())
        assert [look.start for look in looks] == sorted(look.start for look in looks)
        assert said_by(looks, turn[1]) == "".join(char for char in written if char in GLYPHS)
        assert looks[-1].start == len(turn[1]) and looks[-1].things, "the end is looked for where the last stands"


def test_the_values_of_a_json_answer_are_looked_at():
    scene = draw_receipt(Random(4), "train")
    receipt = scene.receipt
    assert receipt is not None
    answer = json.dumps({"shop": receipt.shop, "total": receipt.total}, ensure_ascii=False)
    looks = looks_of(scene, ("Give the shop and total as JSON.", answer))
    assert said_by(looks, answer).startswith(receipt.shop)
    assert {look.words for look in looks} == {frozenset({"shop", "total", "json"})}


def test_a_garment_is_looked_at_by_its_whole_name():
    scene = Scene(draw_shapes(Random(0), 1).image, "clothes")
    scene.things = [Thing("clothing", "shirt", "", 60, 128, 100), Thing("clothing", "T-shirt", "", 190, 128, 100)]
    looks = looks_of(scene, ("What do you see?", "A T-shirt and a shirt."))
    assert {look.start: look.things for look in looks} == {16: (scene.things[0],), 2: (scene.things[1],)}


def test_counting_reads_nothing():
    scene = draw_chart(Random(2), "train")
    assert looks_of(scene, ("How many bars are there?", "3")) == []


def test_a_record_tells_where_things_stand_and_what_each_reply_looks_at():
    turns = [("What colour is the star?", "It is red."), ("is there not a grey circle?", "Yes")]
    record = record_of("7", "7.png", Sample(two_shapes(), turns, "shapes"))
    assert record["objects"] == [
        {"name": "star", "box": [20.0, 20.0, 60.0, 60.0], "colour": "red"},
        {"name": "circle", "box": [180.0, 200.0, 220.0, 240.0], "colour": "blue"},
    ]
    assert record["looks"] == [
        {"reply": 0, "at": 0, "objects": [0], "words": ["star"]},
        {"reply": 0, "at": 6, "objects": [0], "words": ["star"]},
        {"reply": 1, "at": 0, "objects": [], "words": ["circle", "grey"]},
    ], "the question's own spelling, and no negation"


def test_images_of_other_data_sets_have_only_words_as_targets():
    scene = Scene(draw_shapes(Random(0), 1).image, "easy")
    told = record_grounding(scene, [("is there a green shape?", "no"), ("is there a green shape?", "No")])
    assert told == {"looks": [{"reply": 1, "at": 0, "objects": [], "words": ["green"]}]}


def test_every_object_has_a_known_name():
    names, rng = known_names(), Random(3)
    assert len(set(names["objects"])) == len(names["objects"])
    for scene in (draw_shapes(rng), draw_receipt(rng, "train"), draw_chart(rng, "train")):
        objects = record_grounding(scene, [])["objects"]
        assert {entry["name"] for entry in objects} <= set(names["objects"])
        assert {entry["colour"] for entry in objects if "colour" in entry} <= set(names["colours"])
